//# Checkpoints: 3
//# Scenario: go-on, restart, restart-twice
// Who belongs to whom: zombies, an orphan and a session whose first parents are gone, a group without its leader, sessions inside a
// session, a spawned group, a vfork that became another program, pidfds, a grandchild nobody has waited for. Numbers, groups and
// sessions have to stay; at the end everybody is signalled and waited for in the way that goes by them.
#define _GNU_SOURCE
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

extern char **environ;
enum { ORPHAN, FIRST, SECOND, LEADER, GROUP, SESSION, NEPHEW, KNOWN };

static volatile pid_t *pids;
static int here[2], over[2];

static void stay(int which) {
    pids[which] = getpid();
    CHECK(write(here[1], "x", 1) == 1, "write");
    for (;;) pause();
}

static void ended(pid_t pid, int how) {
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == how, "%d ended with %#x, not %#x", pid, status, how);
}

int main(void) {
    pids = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(pids != MAP_FAILED && pipe(here) == 0 && pipe(over) == 0, "mmap, pipe");
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "prctl");
    int terminal = open("/dev/tty", O_RDONLY | O_CLOEXEC) >= 0;
    pid_t me = getpid(), group = getpgrp(), sid = getsid(0), quick = fork();
    if (quick == 0) _exit(7);
    pid_t shot = fork();
    if (shot == 0) kill(getpid(), SIGKILL);
    pid_t daemon = fork();
    if (daemon == 0) {
        setsid();
        if (fork() == 0) stay(ORPHAN);
        _exit(0);
    }
    ended(daemon, 0);
    pid_t leader = fork();
    if (leader == 0) {
        setpgid(0, 0);
        for (int i = FIRST; i <= SECOND; i++)
            if (fork() == 0) stay(i);
        _exit(0);
    }
    ended(leader, 0);
    pid_t session = fork();
    if (session == 0) {
        setsid();
        if (fork() == 0) setpgid(0, 0), stay(GROUP);
        if (fork() == 0) setsid(), stay(SESSION);
        stay(LEADER);
    }
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    char *command[] = {"sleep", "1000", NULL};
    pid_t spawned;
    CHECK(posix_spawnp(&spawned, "sleep", NULL, &attributes, command, environ) == 0, "posix_spawnp");
    pid_t late = vfork();
    if (late == 0) {
        execvp("sleep", command);
        _exit(1);
    }
    pid_t middle = fork();
    if (middle == 0) {
        pid_t grandchild = fork();
        if (grandchild == 0) _exit(9);
        siginfo_t info;
        CHECK(waitid(P_PID, grandchild, &info, WEXITED | WNOWAIT) == 0, "waitid");
        pids[NEPHEW] = grandchild;
        CHECK(write(here[1], "x", 1) == 1, "write");
        char c;
        CHECK(read(over[0], &c, 1) == 1 && getppid() == me, "parent %d, not %d", getppid(), me);
        ended(grandchild, 9 << 8);
        _exit(3);
    }
    int alive = (int)syscall(SYS_pidfd_open, spawned, 0), zombie = (int)syscall(SYS_pidfd_open, quick, 0);
    CHECK(alive >= 0 && zombie >= 0, "pidfd_open");
    char c;
    for (int i = 0; i < KNOWN; i++) CHECK(read(here[0], &c, 1) == 1, "read");
    siginfo_t info;
    CHECK(waitid(P_PID, quick, &info, WEXITED | WNOWAIT) == 0 && waitid(P_PID, shot, &info, WEXITED | WNOWAIT) == 0, "waitid");
    ready();
    do {
        CHECK(getpgid(pids[FIRST]) == leader && getpgid(pids[SECOND]) == leader, "the group without a leader");
        CHECK(kill(-leader, 0) == 0, "signal to it");
        CHECK(getsid(pids[ORPHAN]) == daemon && getpgid(pids[ORPHAN]) == daemon, "the orphan is in session %d", getsid(pids[ORPHAN]));
        CHECK(getsid(session) == session && getsid(pids[GROUP]) == session && getpgid(pids[GROUP]) == pids[GROUP], "the session");
        CHECK(getsid(pids[SESSION]) == pids[SESSION] && getpgid(spawned) == spawned, "sessions and groups");
        // On a terminal, group and session are the restart command's.
        CHECK(terminal || (getpgrp() == group && getpgid(late) == group && getpgid(middle) == group), "group %d, not %d", getpgrp(), group);
        CHECK(terminal || (getsid(0) == sid && getsid(late) == sid && getsid(middle) == sid), "session %d, not %d", getsid(0), sid);
        info.si_pid = 0;
        CHECK(waitid(P_PID, quick, &info, WEXITED | WNOWAIT | WNOHANG) == 0 && info.si_pid == quick && info.si_status == 7, "the zombie");
        CHECK(syscall(SYS_pidfd_send_signal, alive, 0, NULL, 0) == 0, "pidfd_send_signal");
    } while (beat());
    ended(quick, 7 << 8);
    ended(shot, SIGKILL);
    CHECK(syscall(SYS_pidfd_send_signal, zombie, 0, NULL, 0) == -1 && errno == ESRCH, "a pidfd of the dead");
    CHECK(kill(-leader, SIGTERM) == 0, "kill the group");
    ended(pids[FIRST], SIGTERM);
    ended(pids[SECOND], SIGTERM);
    CHECK(kill(-leader, 0) == -1 && errno == ESRCH, "somebody is left in the group");
    CHECK(kill(pids[ORPHAN], SIGTERM) == 0, "kill");
    ended(pids[ORPHAN], SIGTERM);
    CHECK(kill(session, SIGKILL) == 0, "kill");
    ended(session, SIGKILL);
    // Now they are ours.
    for (int i = GROUP; i <= SESSION; i++) {
        CHECK(kill(pids[i], SIGKILL) == 0, "kill");
        ended(pids[i], SIGKILL);
    }
    int status;
    CHECK(kill(spawned, SIGSTOP) == 0 && waitpid(spawned, &status, WUNTRACED) == spawned && WIFSTOPPED(status), "stop");
    CHECK(syscall(SYS_pidfd_send_signal, alive, SIGKILL, NULL, 0) == 0, "pidfd_send_signal");
    CHECK(poll(&(struct pollfd){alive, POLLIN, 0}, 1, -1) == 1, "poll");
    CHECK(waitid(P_PIDFD, (id_t)alive, &info, WEXITED) == 0 && info.si_pid == spawned, "waitid by pidfd");
    CHECK(kill(late, SIGKILL) == 0, "kill");
    ended(late, SIGKILL);
    CHECK(write(over[1], "x", 1) == 1, "write");
    ended(middle, 3 << 8);
    CHECK(waitpid(-1, &status, 0) == -1 && errno == ECHILD, "a child too many");
    int subreaper = 0;
    CHECK(prctl(PR_GET_CHILD_SUBREAPER, &subreaper) == 0 && subreaper == 1, "subreaper");
    return pass();
}
