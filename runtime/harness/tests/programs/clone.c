//# Checkpoints: 3
//# Scenario: go-on, restart, restart-twice
//# Modes: pipe, user
// Children that clone(2) and clone3(2) made: as forks by their numbers, on stacks of their own, on borrowed memory until they become
// another program, with another signal at their end, with words and a pidfd for their numbers; and one that became a program
// by execve's number. They are forked from before and during the checkpoints; at the end each is waited for in its own way.
#define _GNU_SOURCE
#include "check.h"
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { BARE, STACK, SIGNAL, THREE, GRANDCHILD, WORKERS };
struct shared {
    atomic_long beats[WORKERS];
    atomic_int over, grandchild;
};
static struct shared *shared;
static char stacks[4][65536] __attribute__((aligned(16)));
static volatile int signals;
extern char **environ;

static void told(int signal) { signals += signal == SIGUSR1; }

static int work(void *argument) {
    long which = (long)argument;
    while (!shared->over) {
        shared->beats[which]++;
        usleep(2000);
    }
    return 10 + (int)which;
}

// On a stack of its own, with a child of its own.
static int family(void *argument) {
    CHECK((char *)__builtin_frame_address(0) > stacks[0] && (char *)__builtin_frame_address(0) < stacks[0] + sizeof stacks[0], "the stack");
    pid_t pid = fork();
    if (pid == 0) {
        shared->grandchild = getpid();
        _exit(work((void *)GRANDCHILD));
    }
    int result = work(argument), status;
    CHECK(waitpid(pid, &status, 0) == pid && status == (10 + GRANDCHILD) << 8, "the grandchild: %#x", status);
    return result;
}

static int sleeper(void *argument) {
    (void)argument;
    execlp("sleep", "sleep", "1000", NULL);
    _exit(99);
}

static int quick(void *argument) { return (int)(long)argument; }

static void ended(pid_t pid, int options, int how) {
    int status = 0;
    pid_t got = waitpid(pid, &status, options);
    CHECK(got == pid && status == how, "%d ended with %#x, not %#x", pid, status, how);
}

static pid_t three(struct clone_args *args) { return (pid_t)syscall(SYS_clone3, args, sizeof *args); }

// Born and buried between two beats.
static void brief(long n) {
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit((int)(n & 63));
    ended(pid, 0, (int)(n & 63) << 8);
    pid = clone(quick, stacks[3] + sizeof stacks[3], CLONE_VM | CLONE_VFORK | SIGCHLD, (void *)(n & 63));
    CHECK(pid > 0, "clone");
    ended(pid, 0, (int)(n & 63) << 8);
    struct clone_args args = {.exit_signal = SIGCHLD};
    pid = three(&args);
    if (pid == 0) {
        char *command[] = {"sh", "-c", "exit 5", NULL};
        syscall(SYS_execve, "/bin/sh", command, environ);
        _exit(98);
    }
    ended(pid, 0, 5 << 8);
}

static void *idle(void *argument) {
    while (!shared->over) usleep(5000);
    return argument;
}

int main(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap");
    pthread_t thread = start(idle, NULL, 0);
    struct sigaction action = {.sa_handler = told, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
    pid_t pids[WORKERS] = {0}, me = getpid();
    int child_tid = 0, parent_tid = 0;
    // The word for the child is written in the child's memory.
    pids[BARE] = (pid_t)syscall(SYS_clone, CLONE_CHILD_SETTID | CLONE_PARENT_SETTID | SIGCHLD, 0, &parent_tid, &child_tid, 0);
    if (pids[BARE] == 0) {
        CHECK(child_tid == getpid() && getppid() == me, "%d is written, not %d", child_tid, getpid());
        _exit(work((void *)BARE));
    }
    CHECK(parent_tid == pids[BARE] && child_tid == 0, "%d is written, not %d", parent_tid, pids[BARE]);
    pids[STACK] = clone(family, stacks[0] + sizeof stacks[0], SIGCHLD, (void *)STACK);
    pids[SIGNAL] = clone(work, stacks[1] + sizeof stacks[1], SIGUSR1, (void *)SIGNAL);
    int pidfd = -1;
    struct clone_args args = {.flags = CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&pidfd, .exit_signal = SIGCHLD};
    pids[THREE] = three(&args);
    // The thread alone ends, and with it, being the last, the process.
    if (pids[THREE] == 0) syscall(SYS_exit, work((void *)THREE));
    CHECK(pids[BARE] > 0 && pids[STACK] > 0 && pids[SIGNAL] > 0 && pids[THREE] > 0 && pidfd >= 0, "clone");
    pid_t other = clone(sleeper, stacks[2] + sizeof stacks[2], CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
    CHECK(other > 0, "clone");
    long seen[WORKERS] = {0}, n = 0;
    ready();
    do {
        brief(n++);
        for (int i = 0; i < WORKERS; i++) {
            while (shared->beats[i] == seen[i]) usleep(1000);
            seen[i] = shared->beats[i];
        }
        CHECK(kill(other, 0) == 0 && getpgid(other) == getpgrp() && shared->grandchild > 0, "who became another program");
        siginfo_t info = {0};
        CHECK(waitid(P_ALL, 0, &info, WEXITED | WNOHANG) == 0 && info.si_pid == 0, "%d ended", info.si_pid);
        CHECK(poll(&(struct pollfd){pidfd, POLLIN, 0}, 1, 0) == 0 && signals == 0, "somebody ended");
    } while (beat());
    shared->over = 1;
    join(thread);
    ended(pids[BARE], 0, (10 + BARE) << 8);
    ended(pids[STACK], 0, (10 + STACK) << 8);
    int status;
    CHECK(waitpid(pids[SIGNAL], &status, 0) == -1 && errno == ECHILD, "no child of fork's kind");
    ended(pids[SIGNAL], __WCLONE, (10 + SIGNAL) << 8);
    CHECK(signals == 1, "%d signals", signals);
    CHECK(poll(&(struct pollfd){pidfd, POLLIN, 0}, 1, -1) == 1, "poll");
    siginfo_t info;
    CHECK(waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) == 0 && info.si_pid == pids[THREE] && info.si_status == 10 + THREE, "waitid");
    CHECK(kill(other, SIGKILL) == 0, "kill");
    ended(other, 0, SIGKILL);
    CHECK(waitpid(-1, &status, 0) == -1 && errno == ECHILD, "a child too many");
    return pass();
}
