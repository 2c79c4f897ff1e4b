//# Where: host
// Nanoseconds a call, each the least mean of several rounds (the least disturbed one).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}
static int zero, null;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void *nothing(void *argument) { return argument; }

#define MEASURE(name, n, body)                                                                                         \
    do {                                                                                                               \
        double best = 1e18;                                                                                            \
        for (int round = 0; round < 9; round++) {                                                                      \
            double before = now();                                                                                     \
            for (long i = 0; i < (n); i++) { body; }                                                                   \
            double mean = (now() - before) / (n);                                                                      \
            if (mean < best) best = mean;                                                                              \
        }                                                                                                              \
        printf("%s %.2f\n", name, best);                                                                               \
    } while (0)

// A byte there and back over TCP.
static int listener, there, back;
static struct sockaddr_in name = {.sin_family = AF_INET};

static void connected(void) {
    socklen_t length = sizeof name;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&name, length) || listen(listener, 16) || getsockname(listener, (void *)&name, &length)) abort();
    there = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(there, (void *)&name, length) || (back = accept(listener, NULL, NULL)) < 0) abort();
}

// A reset, so that no port is left in TIME_WAIT.
static void connect_and_accept(void) {
    struct linger none = {1, 0};
    int client = socket(AF_INET, SOCK_STREAM, 0), server;
    if (connect(client, (void *)&name, sizeof name) || (server = accept(listener, NULL, NULL)) < 0) abort();
    setsockopt(client, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    close(client);
    close(server);
}

int main(void) {
    char buffer[64];
    connected();
    zero = open("/dev/zero", O_RDONLY);
    null = open("/dev/null", O_WRONLY);
    MEASURE("getpid", 100000, getpid());
    MEASURE("open+close", 5000, close(open("/dev/null", O_RDONLY)));
    MEASURE("malloc+free", 1000000, void *volatile p = malloc(64); free(p));
    MEASURE("read", 50000, if (read(zero, buffer, 64) != 64) abort());
    MEASURE("write", 50000, if (write(null, buffer, 64) != 64) abort());
    MEASURE("mutex", 1000000, pthread_mutex_lock(&mutex); pthread_mutex_unlock(&mutex));
    MEASURE("clock_gettime", 500000, struct timespec t; clock_gettime(CLOCK_REALTIME, &t));
    MEASURE("socket+close", 5000, close(socket(AF_UNIX, SOCK_STREAM, 0)));
    MEASURE("send+recv", 20000, if (send(there, buffer, 1, 0) != 1 || recv(back, buffer, 1, 0) != 1) abort());
    MEASURE("connect+accept", 1000, connect_and_accept());
    MEASURE("pthread_create+join", 500, pthread_t t; pthread_create(&t, NULL, nothing, NULL); pthread_join(t, NULL));
    MEASURE("fork+wait", 100, pid_t p = fork(); if (p == 0) _exit(0); waitpid(p, NULL, 0));
    return 0;
}
