//# Checkpoints: 20
//# Scenario: go-on, restart
// Every way to make a process, all the time, in two threads at once: whatever moment a checkpoint picks, one of them goes on.
#include "check.h"
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;
static atomic_int stopping;
static atomic_long rounds;

static int ended(pid_t pid) {
    int status;
    CHECK(pid > 0, "a child");
    CHECK(waitpid(pid, &status, 0) == pid, "wait for %d", pid);
    CHECK(WIFEXITED(status), "status %#x", status);
    return WEXITSTATUS(status);
}

static void once(void) {
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) _exit(getppid() == parent ? 3 : 4);
    CHECK(ended(pid) == 3, "fork");
    if ((pid = vfork()) == 0) {
        execl("/bin/sh", "sh", "-c", "exit $6", "0", "1", "2", "3", "4", "5", "21", (char *)NULL);
        _exit(9);
    }
    CHECK(ended(pid) == 21, "vfork and execl with arguments on the stack");
    if ((pid = fork()) == 0) {
        char *env[] = {"ONLY=5", NULL};
        execle("/bin/sh", "sh", "-c", "exit $ONLY$HOME", (char *)NULL, env);
        _exit(9);
    }
    CHECK(ended(pid) == 5, "execle with an environment of its own");
    if ((pid = fork()) == 0) {
        execlp("no-such-program-here", "x", (char *)NULL);
        _exit(errno == ENOENT ? 6 : 9);
    }
    CHECK(ended(pid) == 6, "an exec that fails");
    char *argv[] = {"sh", "-c", "exit 7", NULL};
    CHECK(posix_spawnp(&pid, "sh", NULL, NULL, argv, environ) == 0, "posix_spawnp");
    CHECK(ended(pid) == 7, "posix_spawnp");
    CHECK(posix_spawn(&pid, "/no/such/program", NULL, NULL, argv, environ) == ENOENT, "a spawn that fails");
    int status = system("exit 8");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 8, "system: %#x", status);
    char line[16] = "";
    FILE *out = popen("echo $((6 * 7))", "r");
    CHECK(out && fgets(line, sizeof line, out) && !strcmp(line, "42\n"), "popen: %s", line);
    CHECK(pclose(out) == 0, "pclose");
    FILE *in = popen("read x; exit $x", "w");
    CHECK(in && fputs("11\n", in) >= 0, "popen for writing");
    status = pclose(in);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 11, "pclose: %#x", status);
}

static void *breeder(void *unused) {
    (void)unused;
    while (!stopping) {
        once();
        atomic_fetch_add(&rounds, 1);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) threads[i] = start(breeder, NULL, 0);
    ready();
    long last = 0;
    do {
        int64_t limit = now_ns(CLOCK_MONOTONIC) + 60000000000;
        while (rounds == last) {
            CHECK(now_ns(CLOCK_MONOTONIC) < limit, "no process is made any more");
            usleep(1000);
        }
        last = rounds;
    } while (beat());
    stopping = 1;
    for (int i = 0; i < 2; i++) join(threads[i]);
    return pass();
}
