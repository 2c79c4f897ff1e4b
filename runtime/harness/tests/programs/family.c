//# Checkpoints: 5
//# Scenario: go-on, restart
// A family: a child in a group of its own, a grandchild in a session of its own, one whose parent has ended, a zombie that is not
// waited for until the end; a pipe to each, through which it says what it finds itself to be, over and over.
#include "check.h"
#include <signal.h>
#include <sys/wait.h>

struct facts {
    pid_t pid, ppid, pgid, sid;
};

static int asks[2], answers[2];

// Answers each question with the facts; ends when the parent's end of the pipe is closed.
static void serve(int in, int out) {
    char c;
    while (read(in, &c, 1) == 1) {
        struct facts f = {getpid(), getppid(), getpgrp(), getsid(0)};
        CHECK(write(out, &f, sizeof f) == sizeof f, "answer");
    }
}

struct member {
    int ask, answer;
    struct facts facts;
};

static struct facts ask(struct member *m) {
    struct facts f;
    CHECK(write(m->ask, "?", 1) == 1, "ask");
    CHECK(read(m->answer, &f, sizeof f) == sizeof f, "no answer");
    return f;
}

enum kind { GROUP, SESSION, ORPHAN };

static struct member make(enum kind kind) {
    CHECK(pipe(asks) == 0 && pipe(answers) == 0, "pipe");
    pid_t pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid == 0) {
        close(asks[1]);
        close(answers[0]);
        if (kind == GROUP) CHECK(setpgid(0, 0) == 0, "setpgid");
        if (kind == SESSION) CHECK(setsid() == getpid(), "setsid");
        if (kind == ORPHAN) {
            pid_t parent = getpid();
            if (fork()) _exit(0);
            while (getppid() == parent) usleep(1000);
        }
        serve(asks[0], answers[1]);
        _exit(kind + 40);
    }
    close(asks[0]);
    close(answers[1]);
    if (kind == ORPHAN) CHECK(waitpid(pid, NULL, 0) == pid, "the one in between");
    struct member m = {asks[1], answers[0], {0}};
    m.facts = ask(&m);
    return m;
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    struct member members[3];
    for (int i = 0; i < 3; i++) members[i] = make(i);
    pid_t zombie = fork(), killed = fork();
    if (zombie == 0 || killed == 0) {
        if (zombie == 0) _exit(77);
        raise(SIGKILL);
    }
    siginfo_t info;
    CHECK(waitid(P_PID, zombie, &info, WEXITED | WNOWAIT) == 0, "the zombie");
    CHECK(waitid(P_PID, killed, &info, WEXITED | WNOWAIT) == 0, "the killed one");
    ready();
    do {
        for (int i = 0; i < 3; i++) {
            struct facts f = ask(&members[i]), was = members[i].facts;
            CHECK(f.pid == was.pid, "member %d: pid %d, was %d", i, f.pid, was.pid);
            // Who adopts an orphan is the system's affair; groups and sessions outside have no number after a restart.
            if (i == ORPHAN) continue;
            CHECK(f.ppid == getpid(), "member %d: parent %d", i, f.ppid);
            CHECK(f.pgid == was.pgid, "member %d: group %d, was %d", i, f.pgid, was.pgid);
            if (i == SESSION) CHECK(f.sid == was.sid, "session %d, was %d", f.sid, was.sid);
        }
    } while (beat());
    for (int i = 0; i < 3; i++) close(members[i].ask);
    for (int i = 0; i < 2; i++) {
        int status;
        CHECK(waitpid(members[i].facts.pid, &status, 0) == members[i].facts.pid, "wait");
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == i + 40, "member %d: status %#x", i, status);
    }
    int status;
    CHECK(waitpid(zombie, &status, 0) == zombie && status == 77 << 8, "zombie: status %#x", status);
    CHECK(waitpid(killed, &status, 0) == killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %#x", status);
    CHECK(waitpid(-1, &status, 0) == -1 && errno == ECHILD, "a child too many");
    return pass();
}
