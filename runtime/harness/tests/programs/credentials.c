// Who is at the other end, and who has sent what nobody has read yet: SO_PEERCRED and SCM_CREDENTIALS name processes by the numbers
// and users that they had, also those of processes that have ended.
//# Scenario: go-on, restart
//# Checkpoints: 3
//# Modes: pipe, user
//# Where: host
#include "check.h"
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

static pid_t peer(int fd) {
    struct ucred who;
    socklen_t length = sizeof who;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) == 0, "SO_PEERCRED");
    CHECK(who.uid == geteuid() && who.gid == getegid(), "user %d, group %d", who.uid, who.gid);
    return who.pid;
}

// The sender of the next message.
static pid_t sender(int fd, const char *text) {
    char data[64], control[CMSG_SPACE(sizeof(struct ucred))];
    struct iovec part = {data, sizeof data};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(fd, &m, 0);
    CHECK(n == (ssize_t)strlen(text) && memcmp(data, text, n) == 0, "%zd bytes", n);
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    CHECK(c && c->cmsg_type == SCM_CREDENTIALS, "no credentials");
    struct ucred who;
    memcpy(&who, CMSG_DATA(c), sizeof who);
    CHECK(who.uid == geteuid(), "user %d", who.uid);
    return who.pid;
}

int main(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path + 1, 80, "slackwater-credentials-%d", getpid());
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), pairs[2][2], on = 1, to_child[2], to_parent[2];
    CHECK(bind(listener, (void *)&name, sizeof name) == 0 && listen(listener, 8) == 0, "listen");
    for (int i = 0; i < 2; i++) {
        CHECK(socketpair(AF_UNIX, i ? SOCK_DGRAM : SOCK_STREAM, 0, pairs[i]) == 0, "socketpair");
        CHECK(setsockopt(pairs[i][0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0, "SO_PASSCRED");
    }
    CHECK(pipe(to_child) == 0 && pipe(to_parent) == 0, "pipe");
    pid_t gone = fork();
    if (gone == 0) {
        for (int i = 0; i < 2; i++) CHECK(send(pairs[i][1], "of one that ended", 17, 0) == 17, "send");
        _exit(0);
    }
    CHECK(waitpid(gone, NULL, 0) == gone, "waitpid");
    pid_t child = fork(), parent = child ? getpid() : getppid();
    if (child == 0) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        CHECK(connect(fd, (void *)&name, sizeof name) == 0, "connect");
        for (int i = 0; i < 2; i++) CHECK(send(pairs[i][1], "of the child", 12, 0) == 12, "send");
        char c;
        while (read(to_child[0], &c, 1) != 1) {}
        do {
            CHECK(peer(fd) == parent, "the listener is %d, not %d", peer(fd), parent);
            CHECK(write(to_parent[1], "!", 1) == 1, "write");
            while (read(to_child[0], &c, 1) != 1) {}
        } while (c == '?');
        _exit(0);
    }
    int fd = accept(listener, NULL, NULL);
    char c;
    ready();
    do {
        CHECK(write(to_child[1], "?", 1) == 1, "write");
        CHECK(peer(fd) == child, "the client is %d, not %d", peer(fd), child);
        for (int i = 0; i < 4; i++) CHECK(peer(pairs[i / 2][i % 2]) == parent, "the pair was made by %d", peer(pairs[i / 2][i % 2]));
        while (read(to_parent[0], &c, 1) != 1) {}
    } while (beat());
    for (int i = 0; i < 2; i++) {
        pid_t first = sender(pairs[i][0], "of one that ended"), second = sender(pairs[i][0], "of the child");
        CHECK(first == gone && second == child, "sent by %d and %d, not %d and %d", first, second, gone, child);
    }
    CHECK(write(to_child[1], ".", 1) == 1, "write");
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child: %d", status);
    pass();
    return 0;
}
