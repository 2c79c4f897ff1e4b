//# Checkpoints: 4
//# Scenario: go-on, restart, restart-twice
//# Modes: pipe, user
// Who waits while checkpoints are taken: on a robust process-shared mutex whose owner is killed at the end, on a process-shared
// condition, on a named semaphore, in epoll_wait on a set in a set, in poll on a pidfd. And what is due: signals that are
// pending behind a signalfd (with their values), a timer to an absolute time, one that has expired unseen.
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

enum { ROBUST, CONDITION, SEMAPHORE, WAITERS };
static struct shared {
    pthread_mutex_t robust, lock;
    pthread_cond_t changed;
    uint64_t turn;
    atomic_int begun[WAITERS], woken[WAITERS], owner;
} *shared;
static int epoll, inner, event, pidfd;
static atomic_int events, ended;

static pid_t child(void (*function)(void)) {
    pid_t pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid == 0) {
        function();
        _exit(0);
    }
    return pid;
}

static void own(void) {
    CHECK(pthread_mutex_lock(&shared->robust) == 0, "lock");
    shared->owner = getpid();
    for (;;) pause();
}

static void want(void) {
    while (!shared->owner) usleep(1000);
    shared->begun[ROBUST] = 1;
    int error = pthread_mutex_lock(&shared->robust);
    CHECK(error == EOWNERDEAD, "the robust mutex: %s", strerror(error));
    CHECK(pthread_mutex_consistent(&shared->robust) == 0 && pthread_mutex_unlock(&shared->robust) == 0, "consistent");
    shared->woken[ROBUST] = 1;
}

static void change(void) {
    CHECK(pthread_mutex_lock(&shared->lock) == 0, "lock");
    shared->begun[CONDITION] = 1;
    while (shared->turn != 42) CHECK(pthread_cond_wait(&shared->changed, &shared->lock) == 0, "wait");
    pthread_mutex_unlock(&shared->lock);
    shared->woken[CONDITION] = 1;
}

static sem_t *semaphore;
static void post(void) {
    shared->begun[SEMAPHORE] = 1;
    CHECK(sem_wait(semaphore) == 0, "sem_wait");
    shared->woken[SEMAPHORE] = 1;
}

static void *in_epoll(void *argument) {
    for (;;) {
        struct epoll_event e[2] = {0};
        int n = epoll_wait(epoll, e, 2, -1);
        if (n == -1 && errno == EINTR) continue;
        CHECK(n == 1 && e[0].data.u64 == 0x1122334455667788 && e[0].events == EPOLLIN, "the outer set: %d, %lx", n, e[0].data.u64);
        CHECK(epoll_wait(inner, e, 2, 0) == 1 && e[0].data.u64 == 0x99aabbccddeeff00, "the inner set: %lx", e[0].data.u64);
        uint64_t count;
        CHECK(read(event, &count, 8) == 8, "eventfd");
        events += (int)count;
        if (count == 7) return argument;
    }
}

static void *in_poll(void *argument) {
    struct pollfd p = {pidfd, POLLIN, 0};
    while (poll(&p, 1, -1) == -1) CHECK(errno == EINTR, "poll");
    ended = 1;
    return argument;
}

static void add(int set, int fd, uint64_t data) {
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = data};
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0, "epoll_ctl");
}

static uint64_t remaining(int timer) {
    struct itimerspec t;
    CHECK(timerfd_gettime(timer, &t) == 0, "timerfd_gettime");
    return (uint64_t)t.it_value.tv_sec;
}

int main(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap");
    pthread_mutexattr_t m;
    pthread_mutexattr_init(&m);
    pthread_mutexattr_setpshared(&m, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->lock, &m);
    pthread_mutexattr_setrobust(&m, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&shared->robust, &m);
    pthread_condattr_t c;
    pthread_condattr_init(&c);
    pthread_condattr_setpshared(&c, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&shared->changed, &c);
    char name[64];
    snprintf(name, sizeof name, "/sw-waiters-%d", getpid());
    semaphore = sem_open(name, O_CREAT | O_EXCL, 0600, 0);
    CHECK(semaphore != SEM_FAILED && sem_unlink(name) == 0, "sem_open");

    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 5);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0, "sigprocmask");
    pid_t owner = child(own), wanting = child(want), changing = child(change), posting = child(post);
    int signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    for (int i = 0; i < 3; i++) CHECK(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 100 + i}) == 0, "sigqueue");
    CHECK(kill(getpid(), SIGUSR1) == 0, "kill");

    event = eventfd(0, EFD_NONBLOCK);
    inner = epoll_create1(0), epoll = epoll_create1(EPOLL_CLOEXEC);
    add(inner, event, 0x99aabbccddeeff00);
    add(epoll, inner, 0x1122334455667788);
    pidfd = (int)syscall(SYS_pidfd_open, owner, 0);
    CHECK(signals >= 0 && event >= 0 && pidfd >= 0, "descriptors");
    // To the hour after next of the wall clock; after 10,000 seconds of the monotonic one; and one that has expired 3 times.
    int wall = timerfd_create(CLOCK_REALTIME, 0), mono = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), past = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int64_t at = now_ns(CLOCK_REALTIME) / 1000000000 + 7200, due = now_ns(CLOCK_MONOTONIC) / 1000000000 + 10000;
    CHECK(timerfd_settime(wall, TFD_TIMER_ABSTIME, &(struct itimerspec){.it_value.tv_sec = at}, NULL) == 0, "wall");
    CHECK(timerfd_settime(mono, TFD_TIMER_ABSTIME, &(struct itimerspec){.it_value.tv_sec = due}, NULL) == 0, "mono");
    CHECK(timerfd_settime(past, 0, &(struct itimerspec){.it_value.tv_nsec = 1}, NULL) == 0, "past");
    CHECK(poll(&(struct pollfd){past, POLLIN, 0}, 1, -1) == 1, "poll");
    pthread_t first = start(in_epoll, NULL, 0), second = start(in_poll, NULL, 0);
    for (int i = 0; i < WAITERS; i++)
        while (!shared->begun[i]) usleep(1000);
    int sum = 0;
    ready();
    do {
        uint64_t one = 1;
        CHECK(write(event, &one, 8) == 8, "write");
        sum++;
        while (events != sum) usleep(500);
        for (int i = 0; i < WAITERS; i++) CHECK(!shared->woken[i], "waiter %d woke", i);
        CHECK(!ended && kill(owner, 0) == 0, "the owner ended");
        CHECK(poll(&(struct pollfd){signals, POLLIN, 0}, 1, 0) == 1, "no signal is pending");
        int64_t left = at - now_ns(CLOCK_REALTIME) / 1000000000 - (int64_t)remaining(wall);
        CHECK(left >= -2 && left <= 2, "the wall timer is %ld s off", (long)left);
        left = due - now_ns(CLOCK_MONOTONIC) / 1000000000 - (int64_t)remaining(mono);
        CHECK(left >= -2 && left <= 2, "the monotonic timer is %ld s off", (long)left);
    } while (beat());
    uint64_t count = 0;
    CHECK(read(past, &count, 8) == 8 && count == 1, "%lu expirations", count);
    CHECK(read(past, &count, 8) == -1 && errno == EAGAIN, "it expired again");
    struct signalfd_siginfo got;
    CHECK(read(signals, &got, sizeof got) == sizeof got && got.ssi_signo == SIGUSR1 && got.ssi_pid == (unsigned)getpid(), "signal %u", got.ssi_signo);
    for (int i = 0; i < 3; i++)
        CHECK(read(signals, &got, sizeof got) == sizeof got && got.ssi_int == 100 + i && got.ssi_code == SI_QUEUE, "signal %u with %d", got.ssi_signo, got.ssi_int);
    CHECK(read(signals, &got, sizeof got) == -1 && errno == EAGAIN, "one signal more: %u", got.ssi_signo);
    uint64_t last = 7;
    CHECK(write(event, &last, 8) == 8, "write");
    join(first);
    pthread_mutex_lock(&shared->lock);
    shared->turn = 42;
    pthread_cond_broadcast(&shared->changed);
    pthread_mutex_unlock(&shared->lock);
    CHECK(sem_post(semaphore) == 0 && kill(owner, SIGKILL) == 0, "post, kill");
    join(second);
    int status;
    pid_t pids[] = {wanting, changing, posting};
    for (int i = 0; i < WAITERS; i++) CHECK(waitpid(pids[i], &status, 0) == pids[i] && status == 0 && shared->woken[i], "waiter %d: %#x", i, status);
    siginfo_t info;
    CHECK(waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) == 0 && info.si_pid == owner && info.si_status == SIGKILL, "waitid");
    return pass();
}
