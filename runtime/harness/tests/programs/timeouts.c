//# Scenario: go-on
//# Checkpoints: 40
// Time-outs of one second while checkpoints come one after the other: a wait that began anew with each of them would never
// come to its end.
#include "check.h"
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <linux/futex.h>

static const int64_t S = 1000000000;
enum { KINDS = 16 };
static int quiet[2], set_to_remove = -1;
static atomic_int stopping;
static atomic_long rounds[KINDS], late[KINDS];

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
// Through syscall(2): the number of the call is nowhere in the code before the instruction. (So do Rust's park_timeout, and more.)
static void w_raw_futex(void) {
    static uint32_t word = 7;
    struct timespec t = {1, 0};
    CHECK(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, &t, NULL, 0) == -1 && errno == ETIMEDOUT, "futex");
}
static void w_raw_futex_absolute(void) {
    static uint32_t word = 7;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec++;
    long r = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 7, &t, NULL, -1);
    CHECK(r == -1 && errno == ETIMEDOUT, "futex, absolute");
}
static void w_raw_poll(void) {
    struct pollfd p = {quiet[0], POLLIN, 0};
    CHECK(syscall(SYS_poll, &p, 1, 1000) == 0, "poll by syscall");
}
static void w_ppoll(void) {
    struct pollfd p = {quiet[0], POLLIN, 0};
    struct timespec t = {1, 0};
    CHECK(ppoll(&p, 1, &t, NULL) == 0, "ppoll");
}
static void w_epoll_pwait2(void) {
    static int epoll = -1;
    if (epoll < 0) epoll = epoll_create1(0);
    struct epoll_event e;
    struct timespec t = {1, 0};
    long r = syscall(441 /* SYS_epoll_pwait2 */, epoll, &e, 1, &t, NULL, 0);
    if (r == -1 && errno == ENOSYS) r = epoll_wait(epoll, &e, 1, 1000);
    CHECK(r == 0, "epoll_pwait2");
}
static void w_semtimedop(void) {
    static int set = -1;
    if (set < 0) {
        CHECK((set = semget(IPC_PRIVATE, 1, 0600)) >= 0, "semget");
        set_to_remove = set;
    }
    struct sembuf op = {0, -1, 0};
    struct timespec t = {1, 0};
    CHECK(semtimedop(set, &op, 1, &t) == -1 && errno == EAGAIN, "semtimedop");
}
static int timed_socket(int pair[2], int option) {
    struct timeval t = {1, 0};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    CHECK(setsockopt(pair[0], SOL_SOCKET, option, &t, sizeof t) == 0, "setsockopt");
    return pair[0];
}
static void w_recv(void) {
    static int pair[2] = {-1, -1};
    char c;
    if (pair[0] < 0) timed_socket(pair, SO_RCVTIMEO);
    CHECK(recv(pair[0], &c, 1, 0) == -1 && errno == EAGAIN, "recv with SO_RCVTIMEO");
}
static void w_write(void) {
    static int pair[2] = {-1, -1};
    static char some[1 << 16];
    if (pair[0] < 0) {
        timed_socket(pair, SO_SNDTIMEO);
        while (send(pair[0], some, sizeof some, MSG_DONTWAIT) > 0) {}
    }
    CHECK(write(pair[0], some, sizeof some) == -1 && errno == EAGAIN, "write with SO_SNDTIMEO");
}
static void w_accept(void) {
    static int listener = -1;
    if (listener < 0) {
        struct timeval t = {1, 0};
        listener = socket(AF_UNIX, SOCK_STREAM, 0);
        sa_family_t family = AF_UNIX;
        CHECK(bind(listener, (struct sockaddr *)&family, sizeof family) == 0 && listen(listener, 1) == 0, "listen");
        CHECK(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t) == 0, "setsockopt");
    }
    CHECK(accept(listener, NULL, NULL) == -1 && errno == EAGAIN, "accept with SO_RCVTIMEO");
}
static struct {
    void (*call)(void);
    const char *name;
} kinds[KINDS] = {{w_raw_futex, "futex by syscall()"}, {w_raw_futex_absolute, "absolute futex by syscall()"},
              {w_raw_poll, "poll by syscall()"}, {w_ppoll, "ppoll"}, {w_epoll_pwait2, "epoll_pwait2"},
              {w_semtimedop, "semtimedop"}, {w_recv, "recv"}, {w_write, "write"},
              {w_accept, "accept"}, {w_poll, "poll"}, {w_epoll, "epoll_wait"}, {w_select, "select"}, {w_nanosleep, "nanosleep"},
              {w_clock_nanosleep, "clock_nanosleep"}, {w_sigtimedwait, "sigtimedwait"}, {w_sem, "sem_timedwait"}};

static void *repeat(void *argument) {
    long me = (long)argument;
    while (!stopping) {
        int64_t before = now_ns(CLOCK_MONOTONIC);
        kinds[me].call();
        int64_t took = now_ns(CLOCK_MONOTONIC) - before;
        CHECK(took >= S - S / 100, "%s came back after %ld ms", kinds[me].name, (long)(took / 1000000));
        // Where the kernel does not tell when a wait began, what had passed before its first interruption is waited for twice.
        CHECK(took < 2 * S + S / 2, "%s came back after %ld ms", kinds[me].name, (long)(took / 1000000));
        rounds[me]++;
        if (took > S + S / 10) late[me]++;
    }
    return NULL;
}

int main(void) {
    long all = 0, all_late = 0;
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
        if (getenv("SW_VERBOSE")) say("%s: %ld of %ld late", kinds[i].name, late[i], rounds[i]);
        all_late += late[i];
        all += rounds[i];
    }
    if (set_to_remove >= 0) semctl(set_to_remove, 0, IPC_RMID);
    // The machine may be busy, and a thread may wake on another CPU than it fell asleep on; the guest stands for long.
    CHECK(access("/proc/self/syscall", R_OK) != 0 || all_late * 2 <= all, "%ld of %ld waits were late", all_late, all);
    return pass();
}
