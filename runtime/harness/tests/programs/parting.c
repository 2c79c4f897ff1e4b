// Servers that write, and close at once, to clients that have not read yet: what the clients' windows keep back is in the kernel
// alone, in a socket that no process holds. All of it, and the end of the stream, still arrives.
//# Scenario: go-on, restart
//# Checkpoints: 4
#include "check.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/socket.h>

enum { CLIENTS = 3 };
static char bytes[1 << 16];

// How much the kernel took.
static size_t write_and_close(int fd, int seed) {
    size_t written = 0;
    CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0, "nonblocking");
    for (;;) {
        for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (char)(mix(seed + written + i));
        ssize_t n = write(fd, bytes, sizeof bytes);
        if (n < 0) break;
        written += n;
    }
    CHECK(errno == EAGAIN, "write");
    CHECK(close(fd) == 0, "close");
    return written;
}

int main(void) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    int listener = socket(AF_INET, SOCK_STREAM, 0), small = 1 << 15;
    CHECK(bind(listener, (void *)&name, length) == 0 && listen(listener, CLIENTS) == 0, "listen");
    CHECK(getsockname(listener, (void *)&name, &length) == 0, "name");
    int seed = 0, more = 1;
    do {
        int clients[CLIENTS];
        size_t written[CLIENTS];
        for (int i = 0; i < CLIENTS; i++) {
            clients[i] = socket(AF_INET, SOCK_STREAM, 0);
            // One has the window that the kernel tunes.
            if (i) CHECK(setsockopt(clients[i], SOL_SOCKET, SO_RCVBUF, &small, sizeof small) == 0, "buffer");
            CHECK(connect(clients[i], (void *)&name, sizeof name) == 0, "connect");
            int server = accept(listener, NULL, NULL);
            CHECK(server >= 0, "accept");
            // One has ended its own half before.
            if (i == 2) CHECK(shutdown(clients[i], SHUT_WR) == 0, "shutdown");
            written[i] = write_and_close(server, seed + i);
        }
        if (seed == 0) ready();
        more = beat();
        for (int i = 0; i < CLIENTS; i++) {
            size_t at = 0;
            ssize_t n;
            while ((n = read(clients[i], bytes, sizeof bytes)) > 0)
                for (ssize_t k = 0; k < n; k++, at++)
                    CHECK(bytes[k] == (char)(mix(seed + i + at)), "client %d, byte %zu", i, at);
            CHECK(n == 0 && at == written[i], "client %d: %zu bytes of %zu, then %zd", i, at, written[i], n);
            close(clients[i]);
        }
        seed += 10;
    } while (more);
    pass();
    return 0;
}
