//# Scenario: go-on, restart
//# Checkpoints: 3
//# Modes: pipe, user
//# Where: host
// What servers do to be left alone: all descriptors closed, no core dumps, no new privileges, tight limits. None of it may end a
// checkpoint or be lost by one, and no descriptor may be there that the program has not opened. Not in the guest: where there is
// RDMA a plugin is loaded, and its thread shares the program's descriptor table (README, limits).
#include "check.h"
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void limit(int resource, rlim_t value) {
    struct rlimit l;
    CHECK(getrlimit(resource, &l) == 0, "getrlimit");
    if (l.rlim_max < value) value = l.rlim_max;
    l = (struct rlimit){value, value};
    CHECK(setrlimit(resource, &l) == 0, "setrlimit");
}

static void check(void) {
    struct rlimit l;
    CHECK(getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur == 40, "%lu open files", (unsigned long)l.rlim_cur);
    CHECK(getrlimit(RLIMIT_AS, &l) == 0 && l.rlim_cur == 256u << 20, "%lu bytes", (unsigned long)l.rlim_cur);
    CHECK(getrlimit(RLIMIT_CORE, &l) == 0 && l.rlim_cur == 0, "core dumps");
    CHECK(prctl(PR_GET_DUMPABLE) == 0, "dumpable");
    CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "new privileges");
    for (int fd = 3; fd < 1 << 16; fd++) CHECK(fcntl(fd, F_GETFD) == -1 && errno == EBADF, "descriptor %d is open", fd);
    // As a daemon's child does before it becomes another program.
    pid_t pid = fork();
    if (pid == 0) {
        for (int fd = 3; fd < 40; fd++) close(fd);
        execlp("true", "true", (char *)NULL);
        _exit(1);
    }
    int status;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "child %d ended with %#x", pid, status);
}

int main(void) {
    limit(RLIMIT_NOFILE, 40);
    limit(RLIMIT_AS, 256 << 20);
    limit(RLIMIT_CORE, 0);
    if (syscall(436 /* close_range */, 3, ~0u, 0) != 0)
        for (int fd = 3; fd < 1 << 16; fd++) close(fd);
    CHECK(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, "PR_SET_DUMPABLE");
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
    ready();
    do check();
    while (beat());
    return pass();
}
