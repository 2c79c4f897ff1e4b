//# Args: 1 0; 1 1000; 2 0; 2 1000
//# Where: host
// So many processes, each with both ends of so many TCP connections on which nothing happens.
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int processes = argc > 1 ? atoi(argv[1]) : 1, connections = argc > 2 ? atoi(argv[2]) : 1000, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    for (int i = 1; i < processes; i++)
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, 9);
            close(listener);
            listener = socket(AF_INET, SOCK_STREAM, 0);
            break;
        }
    if (bind(listener, (void *)&name, length) || listen(listener, 16) || getsockname(listener, (void *)&name, &length)) return 1;
    for (int i = 0; i < connections; i++)
        if (connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&name, length) || accept(listener, NULL, NULL) < 0) return 1;
    if (write(1, "idle\n", 5) != 5) return 1;
    for (;;) pause();
}
