//# Checkpoints: 4
//# Scenario: go-on, restart, restart-twice
// SEM_UNDO: what semaphores get back when their users end, by SIGKILL too, has to be what they owe since before the checkpoint.
// Owed by threads, by a program that has called exec since, by one that has never been the last to use the set; not by children,
// and no more after SETVAL. Near the limits.
#include "check.h"
#include <sched.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/wait.h>

// Semaphores of the common set.
enum { TAKEN, GIVEN, HIGH, LOW, CLEARED, THREAD, BYEXEC, DIRECT, MANY, SEMS = 100 };

static int set;

static void add(int n, int by, int flags) {
    struct sembuf op = {n, by, flags};
    CHECK(semop(set, &op, 1) == 0, "semop %d by %d", n, by);
}

static int value(int n) {
    int v = semctl(set, n, GETVAL);
    CHECK(v >= 0, "GETVAL %d", n);
    return v;
}

static void *in_thread(void *unused) {
    add(THREAD, 7, SEM_UNDO);
    return unused;
}

static void debtor(int in, int out) {
    char c;
    add(HIGH, -20000, SEM_UNDO);
    add(LOW, 30000, SEM_UNDO);
    add(CLEARED, 5, SEM_UNDO);
    join(start(in_thread, NULL, 0));
    struct sembuf op = {DIRECT, 3, SEM_UNDO};
    CHECK(syscall(SYS_semtimedop, set, &op, 1, NULL) == 0, "semtimedop");
    CHECK(write(out, "r", 1) == 1, "write");
    while (read(in, &c, 1) == 1) {
        add(TAKEN, -1, SEM_UNDO);
        add(GIVEN, 2, SEM_UNDO);
        for (int n = MANY; n < SEMS; n++) add(n, n % 3, SEM_UNDO);
        // A child owes nothing.
        pid_t pid = fork();
        CHECK(pid >= 0, "fork");
        if (pid == 0) _exit(0);
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the grandchild: %#x", status);
        CHECK(write(out, "d", 1) == 1, "write");
    }
    pause();
}

int main(int argc, char **argv) {
    if (argc > 1) {
        set = atoi(argv[1]);
        for (;;) pause();
    }
    // What is left when this is killed must not pile up. All threads have to be there: hence the exec.
    if (!getenv("SW_OWN_IPC") && unshare(CLONE_NEWIPC) == 0) {
        setenv("SW_OWN_IPC", "1", 1);
        execl("/proc/self/exe", "semundo", NULL);
    }
    set = semget(IPC_PRIVATE, SEMS, 0600);
    CHECK(set >= 0, "semget");
    unsigned short first[SEMS] = {[TAKEN] = 1000, [HIGH] = 32767};
    CHECK(semctl(set, 0, SETALL, first) == 0, "SETALL");
    int in[2], out[2];
    CHECK(pipe(in) == 0 && pipe(out) == 0, "pipe");
    pid_t pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid == 0) debtor(in[0], out[1]);
    pid_t other = fork();
    CHECK(other >= 0, "fork");
    if (other == 0) {
        char text[16];
        snprintf(text, sizeof text, "%d", set);
        add(BYEXEC, 11, SEM_UNDO);
        execl("/proc/self/exe", "semundo", text, NULL);
        _exit(1);
    }
    char c;
    CHECK(read(out[0], &c, 1) == 1, "the child");
    while (value(BYEXEC) != 11) sched_yield();
    // From here on we are the last to use each of them, and the values are what they were.
    add(HIGH, 20000, 0);
    add(LOW, -30000, 0);
    CHECK(semctl(set, CLEARED, SETVAL, 9) == 0, "SETVAL");
    ready();
    int n = 0;
    do {
        n++;
        CHECK(write(in[1], "x", 1) == 1 && read(out[0], &c, 1) == 1, "the child");
        add(TAKEN, 1, 0);
        add(GIVEN, -2, 0);
        for (int i = MANY; i < SEMS; i++)
            if (i % 3) add(i, -(i % 3), 0);
        CHECK(value(TAKEN) == 1000 && value(GIVEN) == 0 && value(HIGH) == 32767 && value(LOW) == 0, "values");
        CHECK(value(CLEARED) == 9 && value(THREAD) == 7 && value(BYEXEC) == 11 && value(DIRECT) == 3, "values");
    } while (beat());
    // Room for what comes back.
    add(GIVEN, 30000, 0);
    add(LOW, 31000, 0);
    add(HIGH, -32000, 0);
    for (int i = MANY; i < SEMS; i++) add(i, 30000, 0);
    int status;
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid, "the child");
    CHECK(value(TAKEN) == 1000 + n, "taken %d times, %d given back", n, value(TAKEN) - 1000);
    CHECK(value(GIVEN) == 30000 - 2 * n, "given %d times, %d taken back", n, 30000 - value(GIVEN));
    CHECK(value(HIGH) == 20767 && value(LOW) == 1000, "high %d, low %d", value(HIGH), value(LOW));
    CHECK(value(CLEARED) == 9 && value(THREAD) == 0 && value(DIRECT) == 0, "cleared %d", value(CLEARED));
    CHECK(value(BYEXEC) == 11, "the other child lives");
    for (int i = MANY; i < SEMS; i++) CHECK(value(i) == 30000 - n * (i % 3), "semaphore %d: %d", i, value(i));
    CHECK(kill(other, SIGKILL) == 0 && waitpid(other, &status, 0) == other, "the other child");
    CHECK(value(BYEXEC) == 0, "by exec: %d", value(BYEXEC));
    CHECK(semctl(set, 0, IPC_RMID) == 0, "IPC_RMID");
    return pass();
}
