// Clients that connect, write and pass descriptors before their server takes notice, one connection a request, over TCP and Unix
// sockets; the server answers late. A checkpoint finds connections that nobody has accepted with data in them, and
// descriptors on their way.
//# Scenario: go-on, restart
//# Checkpoints: 6
//# Where: host
#include "check.h"
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

static void transfer(int fd, void *data, size_t n, int out) {
    for (char *p = data; n;) {
        ssize_t k = out ? send(fd, p, n, MSG_NOSIGNAL) : recv(fd, p, n, 0);
        CHECK(k > 0 || (k < 0 && errno == EINTR), "%zd", k);
        if (k > 0) p += k, n -= k;
    }
}

// A request is a number, over Unix sockets with the writing end of a pipe, by which the answer comes.
static void serve(int tcp, int local) {
    for (unsigned n = 0;; n++) {
        int fd = accept(n % 2 ? tcp : local, NULL, NULL);
        if (fd < 0 && errno == EINTR) continue;
        CHECK(fd >= 0, "accept");
        usleep(n % 7 * 300);
        uint64_t number;
        int answer = fd;
        if (n % 2) {
            transfer(fd, &number, sizeof number, 0);
        } else {
            char control[CMSG_SPACE(sizeof answer)];
            struct iovec part = {&number, sizeof number};
            struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
            ssize_t got;
            do got = recvmsg(fd, &m, 0);
            while (got < 0 && errno == EINTR);
            CHECK(got == sizeof number && CMSG_FIRSTHDR(&m), "recvmsg %zd", got);
            memcpy(&answer, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof answer);
        }
        number = ~number;
        CHECK(write(answer, &number, sizeof number) == sizeof number, "answer");
        if (answer != fd) close(answer);
        close(fd);
        if (number == 0) return;
    }
}

static void ask(uint64_t number, const struct sockaddr *name, socklen_t length) {
    int fd = socket(name->sa_family, SOCK_STREAM, 0), ends[2];
    uint64_t answer;
    CHECK(connect(fd, name, length) == 0, "connect");
    if (name->sa_family == AF_INET) {
        transfer(fd, &number, sizeof number, 1);
        transfer(fd, &answer, sizeof answer, 0);
    } else {
        CHECK(pipe(ends) == 0, "pipe");
        char control[CMSG_SPACE(sizeof *ends)] = {0};
        struct iovec part = {&number, sizeof number};
        struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof *ends)};
        memcpy(CMSG_DATA(c), &ends[1], sizeof *ends);
        CHECK(sendmsg(fd, &m, MSG_NOSIGNAL) == sizeof number, "sendmsg");
        close(ends[1]);
        ssize_t n;
        do n = read(ends[0], &answer, sizeof answer);
        while (n < 0 && errno == EINTR);
        CHECK(n == sizeof answer, "the pipe gave %zd", n);
        close(ends[0]);
    }
    CHECK(answer == ~number, "%llx", (unsigned long long)answer);
    close(fd);
}

int main(void) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    socklen_t length = sizeof in;
    snprintf(un.sun_path + 1, 80, "slackwater-hasty-%d", getpid());
    int tcp = socket(AF_INET, SOCK_STREAM, 0), local = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(tcp, (void *)&in, length) == 0 && listen(tcp, 16) == 0 && getsockname(tcp, (void *)&in, &length) == 0, "TCP");
    CHECK(bind(local, (void *)&un, sizeof un) == 0 && listen(local, 16) == 0, "Unix");
    pid_t server = fork();
    if (server == 0) {
        serve(tcp, local);
        _exit(0);
    }
    close(tcp), close(local);
    ready();
    uint64_t n = 1;
    do {
        for (int i = 0; i < 20; i++, n += 2) {
            ask(n, (void *)&un, sizeof un);
            ask(n + 1, (void *)&in, sizeof in);
        }
    } while (beat());
    ask(UINT64_MAX, (void *)&un, sizeof un);
    int status;
    CHECK(waitpid(server, &status, 0) == server && status == 0, "the server: %d", status);
    pass();
    return 0;
}
