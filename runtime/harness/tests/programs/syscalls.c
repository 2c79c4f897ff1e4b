//# Scenario: go-on, restart
//# Checkpoints: 6
//# Level: quick
// One thread for each call that can sleep, first with a time-out, which must come neither early nor with EINTR, then without
// one, woken by an event. Nothing sends this program a signal, so EINTR would be the checkpoint's.
#include "check.h"
#include <linux/futex.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static const long MS = 1000000;
static const long T = 150; // ms: the time-out of each timed wait

static int quiet[2], noise[2]; // a pipe that nobody writes to, one that is written to in each round
static int quiet_socket[2];
static sigset_t blocked; // what the program itself sends, and waits for
static atomic_long rounds[64];
struct kind {
    void (*call)(void);
    const char *name;
    int timed;
    clockid_t clock;
};
static int kinds;
static atomic_int stopping;

static struct timespec span(long ms) { return (struct timespec){ms / 1000, ms % 1000 * MS}; }
static struct timespec at(clockid_t clock, long ms) {
    int64_t ns = now_ns(clock) + ms * MS;
    return (struct timespec){ns / 1000000000, ns % 1000000000};
}

static void t_poll(void) {
    struct pollfd p = {quiet[0], POLLIN, 0};
    CHECK(poll(&p, 1, T) == 0, "poll");
}
static void t_ppoll(void) {
    struct pollfd p = {quiet[0], POLLIN, 0};
    struct timespec t = span(T);
    CHECK(ppoll(&p, 1, &t, &blocked) == 0, "ppoll");
}
static void t_select(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(quiet[0], &set);
    struct timeval t = {0, T * 1000};
    CHECK(select(quiet[0] + 1, &set, NULL, NULL, &t) == 0, "select");
}
static void t_pselect(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(quiet[0], &set);
    struct timespec t = span(T);
    CHECK(pselect(quiet[0] + 1, &set, NULL, NULL, &t, &blocked) == 0, "pselect");
}
static void t_epoll_wait(void) {
    static int epoll = -1;
    if (epoll < 0) {
        epoll = epoll_create1(0);
        struct epoll_event e = {.events = EPOLLIN};
        CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, quiet[0], &e) == 0, "epoll_ctl");
    }
    struct epoll_event e;
    CHECK(epoll_wait(epoll, &e, 1, T) == 0, "epoll_wait");
}
static void t_epoll_pwait(void) {
    static int epoll = -1;
    if (epoll < 0) epoll = epoll_create1(0);
    struct epoll_event e;
    CHECK(epoll_pwait(epoll, &e, 1, T, &blocked) == 0, "epoll_pwait");
}
static void t_nanosleep(void) {
    struct timespec t = span(T), left;
    CHECK(nanosleep(&t, &left) == 0, "nanosleep");
}
static void t_clock_nanosleep_rel(void) {
    struct timespec t = span(T);
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL) == 0, "clock_nanosleep");
}
static void t_clock_nanosleep_abs(void) {
    struct timespec t = at(CLOCK_MONOTONIC, T);
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == 0, "clock_nanosleep, absolute");
}
static void t_clock_nanosleep_real(void) {
    struct timespec t = at(CLOCK_REALTIME, T);
    CHECK(clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL) == 0, "clock_nanosleep, real time");
}
static void t_usleep(void) { CHECK(usleep(T * 1000) == 0, "usleep"); }
// As libc makes its own system calls.
static long futex(uint32_t *word, int op, uint32_t value, struct timespec *time, uint32_t mask) {
    register struct timespec *r10 __asm__("r10") = time;
    register long r8 __asm__("r8") = 0;
    register long r9 __asm__("r9") = mask;
    long r;
    __asm__ volatile("mov $202, %%eax; syscall"
                     : "=&a"(r)
                     : "D"(word), "S"(op), "d"(value), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return r;
}
static void t_futex(void) {
    static uint32_t word = 7;
    struct timespec t = span(T);
    long r = futex(&word, FUTEX_WAIT_PRIVATE, 7, &t, 0);
    CHECK(r == -ETIMEDOUT, "futex: %ld", r);
}
static void t_futex_bitset(void) {
    static uint32_t word = 7;
    struct timespec t = at(CLOCK_MONOTONIC, T);
    long r = futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 7, &t, -1);
    CHECK(r == -ETIMEDOUT, "futex, absolute: %ld", r);
}
static void t_sem_timedwait(void) {
    static sem_t sem;
    struct timespec t = at(CLOCK_REALTIME, T);
    CHECK(sem_timedwait(&sem, &t) == -1 && errno == ETIMEDOUT, "sem_timedwait");
}
static void t_cond_timedwait(void) {
    static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t c = PTHREAD_COND_INITIALIZER;
    struct timespec t = at(CLOCK_REALTIME, T);
    pthread_mutex_lock(&m);
    int r;
    do r = pthread_cond_timedwait(&c, &m, &t);
    while (r == 0); // a spurious wake is allowed
    CHECK(r == ETIMEDOUT, "pthread_cond_timedwait: %d", r);
    pthread_mutex_unlock(&m);
}
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static void t_mutex_timedlock(void) {
    struct timespec t = at(CLOCK_REALTIME, T);
    CHECK(pthread_mutex_timedlock(&held, &t) == ETIMEDOUT, "pthread_mutex_timedlock");
}
static void t_recv(void) {
    char c;
    CHECK(recv(quiet_socket[0], &c, 1, 0) == -1 && (errno == EAGAIN || errno == EWOULDBLOCK), "recv with SO_RCVTIMEO");
}
static void t_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1); // blocked in all threads
    struct timespec t = span(T);
    CHECK(sigtimedwait(&set, NULL, &t) == -1 && errno == EAGAIN, "sigtimedwait");
}
static void t_semtimedop(void) {
    static int id = -1;
    if (id < 0) {
        id = semget(IPC_PRIVATE, 1, 0600);
        CHECK(id >= 0, "semget");
    }
    struct sembuf op = {0, -1, 0};
    struct timespec t = span(T);
    CHECK(semtimedop(id, &op, 1, &t) == -1 && errno == EAGAIN, "semtimedop");
}

// Those without a time-out wait for the noise that main makes in each round.
static void e_read(void) {
    char c;
    CHECK(read(noise[0], &c, 1) == 1, "read of a pipe");
}
static int event;
static void e_eventfd(void) {
    uint64_t v;
    CHECK(read(event, &v, 8) == 8 && v == 1, "read of an eventfd");
}
static int stream[2];
static void e_recv(void) {
    char c;
    CHECK(recv(stream[0], &c, 1, 0) == 1, "recv");
}
static sem_t go;
static void e_sem_wait(void) { CHECK(sem_wait(&go) == 0, "sem_wait"); }
static int queue = -1;
static void e_msgrcv(void) {
    struct {
        long type;
        char text[8];
    } m;
    CHECK(msgrcv(queue, &m, sizeof m.text, 1, 0) == 8, "msgrcv");
}
static int sems = -1;
static void e_semop(void) {
    struct sembuf op = {0, -1, 0};
    CHECK(semop(sems, &op, 1) == 0, "semop");
}
static void e_sigwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    int signal;
    CHECK(sigwait(&set, &signal) == 0 && signal == SIGUSR2, "sigwait");
}

// `clock`: that of the wait. While the program is not there, the real time goes on and the others stand.
static void check_timed(void (*call)(void), const char *name, clockid_t clock) {
    int64_t before = now_ns(clock);
    call();
    int64_t took = now_ns(clock) - before;
    // select and poll may count in ticks of the clock.
    CHECK(took >= (T - 1) * MS, "%s came back after %ld us", name, (long)took / 1000);
    CHECK(took < T * MS + slack_ns(), "%s came back after %ld us", name, (long)took / 1000);
}

struct kind table[];
static void *repeat(void *argument) {
    struct kind *kind = argument;
    long index = kind - table;
    while (!stopping) {
        if (kind->timed) check_timed(kind->call, kind->name, kind->clock);
        else kind->call();
        rounds[index]++;
    }
    return NULL;
}
#define TIMED(n) {t_##n, #n, 1, CLOCK_MONOTONIC}
#define REAL(n) {t_##n, #n, 1, CLOCK_REALTIME}
#define EVENT(n) {e_##n, #n, 0, 0}
struct kind table[] = {
    TIMED(poll), TIMED(ppoll), TIMED(select), TIMED(pselect), TIMED(epoll_wait), TIMED(epoll_pwait), TIMED(nanosleep),
    TIMED(clock_nanosleep_rel), TIMED(clock_nanosleep_abs), REAL(clock_nanosleep_real), TIMED(usleep), TIMED(futex),
    TIMED(futex_bitset), REAL(sem_timedwait), REAL(cond_timedwait), REAL(mutex_timedlock), TIMED(recv),
    TIMED(sigtimedwait), TIMED(semtimedop), EVENT(read), EVENT(eventfd), EVENT(recv), EVENT(sem_wait), EVENT(msgrcv),
    EVENT(semop), EVENT(sigwait),
};

static void make_noise(void) {
    CHECK(write(noise[1], "x", 1) == 1, "write");
    uint64_t one = 1;
    CHECK(write(event, &one, 8) == 8, "write");
    CHECK(send(stream[1], "x", 1, 0) == 1, "send");
    sem_post(&go);
    struct {
        long type;
        char text[8];
    } m = {1, "message"};
    CHECK(msgsnd(queue, &m, sizeof m.text, 0) == 0, "msgsnd");
    struct sembuf op = {0, 1, 0};
    CHECK(semop(sems, &op, 1) == 0, "semop");
    CHECK(kill(getpid(), SIGUSR2) == 0, "kill");
}

int main(void) {
    kinds = sizeof table / sizeof *table;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGUSR2);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    CHECK(pipe(quiet) == 0 && pipe(noise) == 0, "pipes");
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, quiet_socket) == 0, "sockets");
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0, "sockets");
    struct timeval limit = {0, T * 1000};
    CHECK(setsockopt(quiet_socket[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0, "SO_RCVTIMEO");
    event = eventfd(0, EFD_SEMAPHORE);
    queue = msgget(IPC_PRIVATE, 0600);
    sems = semget(IPC_PRIVATE, 1, 0600);
    sem_init(&go, 0, 0);
    CHECK(event >= 0 && queue >= 0 && sems >= 0, "objects");
    pthread_mutex_lock(&held);
    pthread_t threads[64];
    for (int i = 0; i < kinds; i++) threads[i] = start(repeat, &table[i], 65536);
    ready();
    long seen[64] = {0};
    do {
        make_noise();
        for (int i = 0; i < kinds; i++) {
            int64_t limit = now_ns(CLOCK_MONOTONIC) + 30 * 1000 * MS;
            while (rounds[i] == seen[i]) {
                CHECK(now_ns(CLOCK_MONOTONIC) < limit, "%s does not come back", table[i].name);
                usleep(1000);
            }
            seen[i] = rounds[i];
        }
    } while (beat());
    stopping = 1;
    make_noise();
    for (int i = 0; i < kinds; i++) join(threads[i]);
    msgctl(queue, IPC_RMID, NULL);
    semctl(sems, 0, IPC_RMID);
    return pass();
}
