// Idle sockets with bytes that nobody has read: a checkpoint that goes on leaves the kernel's counters and queues as they were, for it
// peeks. (After a restart the connections are others: counters begin anew.)
//# Scenario: go-on
//# Checkpoints: 5
#include "check.h"
#include <arpa/inet.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { PAIRS = 8, BYTES = 5000 };

struct counters {
    uint64_t sent, received, acked;
    uint32_t segments_out, segments_in, data_out, data_in;
    int unread, unsent, peek_offset;
};

static struct counters look(int fd, int tcp) {
    struct counters c = {0};
    if (tcp) {
        struct tcp_info info = {0};
        socklen_t length = sizeof info;
        CHECK(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0, "TCP_INFO");
        c = (struct counters){info.tcpi_bytes_sent, info.tcpi_bytes_received, info.tcpi_bytes_acked, info.tcpi_segs_out,
                              info.tcpi_segs_in, info.tcpi_data_segs_out, info.tcpi_data_segs_in, 0, 0, 0};
    }
    socklen_t length = sizeof c.peek_offset;
    CHECK(ioctl(fd, SIOCINQ, &c.unread) == 0 && ioctl(fd, SIOCOUTQ, &c.unsent) == 0, "ioctl");
    c.peek_offset = -1;
    if (!tcp) getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &c.peek_offset, &length);
    return c;
}

int main(void) {
    int ends[PAIRS][2];
    struct counters before[PAIRS][2];
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    char bytes[BYTES];
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (void *)&name, length) == 0 && listen(listener, PAIRS) == 0, "listen");
    CHECK(getsockname(listener, (void *)&name, &length) == 0, "name");
    for (int i = 0; i < PAIRS; i++) {
        if (i % 2) {
            ends[i][0] = socket(AF_INET, SOCK_STREAM, 0);
            CHECK(connect(ends[i][0], (void *)&name, length) == 0, "connect");
            CHECK((ends[i][1] = accept(listener, NULL, NULL)) >= 0, "accept");
        } else {
            CHECK(socketpair(AF_UNIX, i % 4 ? SOCK_STREAM : SOCK_SEQPACKET, 0, ends[i]) == 0, "socketpair");
        }
        for (int k = 0; k < 2; k++) {
            memset(bytes, i * 2 + k, BYTES);
            CHECK(send(ends[i][k], bytes, BYTES, 0) == BYTES, "send");
        }
    }
    // An acknowledgement may be delayed; then all is still.
    usleep(500000);
    for (int i = 0; i < PAIRS; i++)
        for (int k = 0; k < 2; k++) before[i][k] = look(ends[i][k], i % 2);
    ready();
    do {
        for (int i = 0; i < PAIRS; i++)
            for (int k = 0; k < 2; k++) {
                struct counters now = look(ends[i][k], i % 2);
                CHECK(memcmp(&now, &before[i][k], sizeof now) == 0, "socket %d.%d: %llu sent, %llu arrived, %u and %u segments", i, k,
                      (unsigned long long)now.sent, (unsigned long long)now.received, now.segments_out, now.segments_in);
            }
    } while (beat());
    for (int i = 0; i < PAIRS; i++)
        for (int k = 0; k < 2; k++) {
            CHECK(recv(ends[i][k], bytes, BYTES, MSG_WAITALL) == BYTES, "recv");
            for (int at = 0; at < BYTES; at++) CHECK(bytes[at] == (char)(i * 2 + !k), "at %d", at);
        }
    pass();
    return 0;
}
