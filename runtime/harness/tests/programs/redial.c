//# Args: 4; 6
//# Scenario: go-on, restart
//# Checkpoints: 4
//# Modes: pipe, user
// A listener without SO_REUSEADDR, and clients that connect, talk and hang up for ever: when all is killed and comes back at once, the
// listener must be at its port though the kernel holds that of old connections for a minute (TIME_WAIT). Both ends of
// the connections have hung up first, by turns; some stay open.
#include "check.h"
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>

enum { KEPT = 4 };

static union address {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
} here;
static socklen_t length;

static void same(int fd, int (*name)(int, struct sockaddr *, socklen_t *)) {
    union address now;
    socklen_t n = sizeof now;
    CHECK(name(fd, &now.any, &n) == 0, "a name");
    // sin_port and sin6_port lie at the same place.
    CHECK(now.in.sin_port == here.in.sin_port, "port %d was %d", ntohs(now.in.sin_port), ntohs(here.in.sin_port));
}

static void serve(int listener) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int kept[KEPT] = {0}, at = 0;;) {
        int fd = accept(listener, NULL, NULL);
        char c;
        CHECK(fd >= 0, "accept");
        same(fd, getsockname);
        same(listener, getsockname);
        CHECK(read(fd, &c, 1) == 1, "read");
        if (c == 'k') {
            if (kept[at]) {
                CHECK(write(kept[at], "k", 1) == 1 && close(kept[at]) == 0, "a connection that was kept");
            }
            kept[at] = fd;
            at = (at + 1) % KEPT;
        } else {
            CHECK(write(fd, &c, 1) == 1, "write");
            // The other end hangs up first.
            if (c == 'c') CHECK(read(fd, &c, 1) == 0, "the client's end");
            close(fd);
        }
    }
}

static int dial(void) {
    int fd = socket(here.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && connect(fd, &here.any, length) == 0, "connect to port %d", ntohs(here.in.sin_port));
    same(fd, getpeername);
    return fd;
}

int main(int argc, char **argv) {
    int six = argc > 1 && argv[1][0] == '6', kept[KEPT], count = 0;
    if (six) here.in6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    else here.in = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    length = six ? sizeof here.in6 : sizeof here.in;
    int listener = socket(here.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(listener, &here.any, length) == 0 && listen(listener, 8) == 0, "listen");
    CHECK(getsockname(listener, &here.any, &length) == 0, "getsockname");
    pid_t server = fork();
    CHECK(server >= 0, "fork");
    if (server == 0) serve(listener);
    close(listener);
    for (int i = 0; i < KEPT; i++) CHECK(write(kept[i] = dial(), "k", 1) == 1, "write");
    ready();
    for (int going = 1; going; count++) {
        for (int i = 0; i < 8; i++) {
            char c = i & 1 ? 'c' : 's', back = 0;
            int fd = dial();
            CHECK(write(fd, &c, 1) == 1 && read(fd, &back, 1) == 1 && back == c, "talk");
            if (c == 's') CHECK(read(fd, &back, 1) == 0, "the server's end");
            close(fd);
        }
        int *old = &kept[count % KEPT], fd = dial();
        char k = 0;
        CHECK(write(fd, "k", 1) == 1 && read(*old, &k, 1) == 1 && k == 'k', "an old connection");
        close(*old);
        *old = fd;
        going = beat();
    }
    return pass();
}
