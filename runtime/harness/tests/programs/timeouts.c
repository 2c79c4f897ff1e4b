//# Scenario: go-on
//# Checkpoints: 40
// Time-outs of one second while checkpoints come one after the other: a wait that began anew with each of them would never
// come to its end.
#include "check.h"
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>

static const int64_t S = 1000000000;
enum { KINDS = 7 };
static int quiet[2];
static atomic_int stopping;
static atomic_long rounds[KINDS];

static void w_poll(void) {
    struct pollfd p = {quiet[0], POLLIN, 0};
    CHECK(poll(&p, 1, 1000) == 0, "poll");
}
static void w_epoll(void) {
    static int epoll = -1;
    if (epoll < 0) epoll = epoll_create1(0);
    struct epoll_event e;
    CHECK(epoll_wait(epoll, &e, 1, 1000) == 0, "epoll_wait");
}
static void w_select(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(quiet[0], &set);
    struct timeval t = {1, 0};
    CHECK(select(quiet[0] + 1, &set, NULL, NULL, &t) == 0, "select");
}
static void w_nanosleep(void) {
    struct timespec t = {1, 0};
    CHECK(nanosleep(&t, NULL) == 0, "nanosleep");
}
static void w_clock_nanosleep(void) {
    struct timespec t = {1, 0};
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL) == 0, "clock_nanosleep");
}
static void w_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    struct timespec t = {1, 0};
    CHECK(sigtimedwait(&set, NULL, &t) == -1 && errno == EAGAIN, "sigtimedwait");
}
static void w_sem(void) {
    static sem_t sem;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec++;
    CHECK(sem_timedwait(&sem, &t) == -1 && errno == ETIMEDOUT, "sem_timedwait");
}
static struct {
    void (*call)(void);
    const char *name;
} kinds[KINDS] = {{w_poll, "poll"}, {w_epoll, "epoll_wait"}, {w_select, "select"}, {w_nanosleep, "nanosleep"},
              {w_clock_nanosleep, "clock_nanosleep"}, {w_sigtimedwait, "sigtimedwait"}, {w_sem, "sem_timedwait"}};

static void *repeat(void *argument) {
    long me = (long)argument;
    while (!stopping) {
        int64_t before = now_ns(CLOCK_MONOTONIC);
        kinds[me].call();
        int64_t took = now_ns(CLOCK_MONOTONIC) - before;
        CHECK(took >= S - S / 100, "%s came back after %ld ms", kinds[me].name, (long)(took / 1000000));
        CHECK(took < S + S * 6 / 10, "%s came back after %ld ms", kinds[me].name, (long)(took / 1000000));
        rounds[me]++;
    }
    return NULL;
}

int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    CHECK(pipe(quiet) == 0, "pipe");
    pthread_t threads[KINDS];
    for (long i = 0; i < KINDS; i++) threads[i] = start(repeat, (void *)i, 0);
    ready();
    while (beat()) {}
    stopping = 1;
    for (int i = 0; i < KINDS; i++) {
        join(threads[i]);
        CHECK(rounds[i] > 0, "%s never came back", kinds[i].name);
    }
    return pass();
}
