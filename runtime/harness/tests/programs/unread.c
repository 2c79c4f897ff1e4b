// Four connections, of which nobody reads anything until the end, in each direction as much as goes in: with large buffers at least
// so many MiB, which wait in the receiver's queue and in the sender's; with small ones a full window.
//# Args: tcp4 4; tcp6 4; unix 1; small 0
//# Scenario: go-on, restart
//# Checkpoints: 3
//# Where: host
#include "check.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { PAIRS = 4 };

static unsigned char byte(uint64_t seed, uint64_t at) { return (unsigned char)((at * 0x9e3779b97f4a7c15 + seed) >> 37); }

static uint64_t fill(int fd, uint64_t seed) {
    char part[10007];
    uint64_t done = 0;
    // An acknowledgement that comes a little later makes room once more.
    for (int idle = 0; idle < 20;) {
        for (size_t i = 0; i < sizeof part; i++) part[i] = byte(seed, done + i);
        ssize_t n = send(fd, part, sizeof part, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            done += n, idle = 0;
        } else {
            CHECK(errno == EAGAIN || errno == EINTR, "send");
            usleep(1000), idle++;
        }
    }
    return done;
}

static void drain(int fd, uint64_t seed, uint64_t length) {
    static char part[1 << 16];
    for (uint64_t done = 0; done < length;) {
        ssize_t n = recv(fd, part, sizeof part, 0);
        if (n < 0 && errno == EINTR) continue;
        CHECK(n > 0, "the end came after %llu of %llu", (unsigned long long)done, (unsigned long long)length);
        for (ssize_t i = 0; i < n; i++) CHECK(part[i] == (char)byte(seed, done + i), "at %llu", (unsigned long long)(done + i));
        done += n;
    }
    char one;
    // Nothing, or the end, if the other process has read all and is gone.
    CHECK(recv(fd, &one, 1, MSG_DONTWAIT) <= 0, "more came than was sent");
}

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "tcp4";
    int mib = argc > 2 ? atoi(argv[2]) : 4, size = mib ? 3 << 20 : 8192, ends[PAIRS][2], to_child[2], to_parent[2];
    int family = strcmp(kind, "tcp6") == 0 ? AF_INET6 : AF_INET;
    for (int i = 0; i < PAIRS; i++) {
        if (strcmp(kind, "unix") == 0) {
            CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends[i]) == 0, "socketpair");
        } else {
            struct sockaddr_storage name = {.ss_family = family};
            socklen_t length = sizeof name;
            if (family == AF_INET) ((struct sockaddr_in *)&name)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            if (family == AF_INET6) ((struct sockaddr_in6 *)&name)->sin6_addr = in6addr_loopback;
            int listener = socket(family, SOCK_STREAM, 0);
            if (mib == 0) setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
            CHECK(bind(listener, (void *)&name, length) == 0 && listen(listener, 1) == 0, "listen");
            CHECK(getsockname(listener, (void *)&name, &length) == 0, "name");
            ends[i][0] = socket(family, SOCK_STREAM, 0);
            if (mib == 0) setsockopt(ends[i][0], SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
            CHECK(connect(ends[i][0], (void *)&name, length) == 0, "connect");
            CHECK((ends[i][1] = accept(listener, NULL, NULL)) >= 0, "accept");
            close(listener);
        }
        for (int k = 0; k < 2; k++) CHECK(setsockopt(ends[i][k], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0, "SO_SNDBUF");
    }
    CHECK(pipe(to_child) == 0 && pipe(to_parent) == 0, "pipe");
    pid_t pid = fork();
    int me = pid == 0;
    uint64_t sent[PAIRS], theirs[PAIRS];
    for (int i = 0; i < PAIRS; i++) {
        close(ends[i][!me]);
        sent[i] = fill(ends[i][me], 2 * i + me);
        CHECK(sent[i] >= (uint64_t)mib << 20, "only %llu bytes went in", (unsigned long long)sent[i]);
    }
    CHECK(write(me ? to_parent[1] : to_child[1], sent, sizeof sent) == sizeof sent, "pipe");
    CHECK(read(me ? to_child[0] : to_parent[0], theirs, sizeof theirs) == sizeof theirs, "pipe");
    if (!me) {
        ready();
        while (beat()) {}
        close(to_child[1]);
    } else {
        char one;
        close(to_child[1]);
        while (read(to_child[0], &one, 1) < 0) {}
    }
    for (int i = 0; i < PAIRS; i++) drain(ends[i][me], 2 * i + !me, theirs[i]);
    if (me) _exit(0);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the other process: %d", status);
    pass();
    return 0;
}
