//# Scenario: go-on, restart
//# Checkpoints: 8
//# Level: quick
// Signals as a program sees them: masks of each thread, what is pending (with its value), handlers and their flags, alternate
// stacks, itimers and POSIX timers, every real-time signal and SIGUSR2 in use by the program itself, sigwaitinfo, signalfd.
#include "check.h"
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>

static atomic_int got[65], got_value[65];
static char alt[65536];
static atomic_int on_alt, ticks_real, ticks_virtual, ticks_timer, stopping;
static atomic_long thread_rounds;

static void handler(int signal, siginfo_t *info, void *context) {
    (void)context;
    got[signal]++;
    got_value[signal] = info->si_value.sival_int;
}
static void alt_handler(int signal) {
    char here;
    (void)signal;
    on_alt = &here >= alt && &here < alt + sizeof alt;
}
static void on_alarm(int signal) {
    if (signal == SIGALRM) ticks_real++;
    else ticks_virtual++;
}
static void on_timer(union sigval value) { ticks_timer += value.sival_int; }

// Has a mask and an alternate stack of its own; one signal is pending for it alone, with a value, all its life.
static void *masked(void *argument) {
    (void)argument;
    static char stack[32768];
    stack_t own = {.ss_sp = stack, .ss_size = sizeof stack}, is;
    CHECK(sigaltstack(&own, NULL) == 0, "sigaltstack");
    sigset_t mask, now, pending;
    sigfillset(&mask);
    sigdelset(&mask, SIGTERM);
    sigdelset(&mask, SIGSEGV);
    CHECK(pthread_sigmask(SIG_SETMASK, &mask, NULL) == 0, "mask");
    sigset_t expected;
    pthread_sigmask(SIG_SETMASK, NULL, &expected);
    union sigval value = {.sival_int = 4711};
    CHECK(pthread_sigqueue(pthread_self(), SIGRTMIN + 3, value) == 0, "sigqueue");
    CHECK(pthread_kill(pthread_self(), SIGHUP) == 0, "kill");
    while (!stopping) {
        CHECK(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0, "mask");
        CHECK(memcmp(&now, &expected, 8) == 0, "mask of the thread");
        CHECK(sigismember(&now, SIGTERM) == 0 && sigismember(&now, SIGUSR1) == 1, "mask of the thread");
        CHECK(sigpending(&pending) == 0, "sigpending");
        CHECK(sigismember(&pending, SIGRTMIN + 3) && sigismember(&pending, SIGHUP), "pending for the thread");
        CHECK(sigaltstack(NULL, &is) == 0 && is.ss_sp == stack && is.ss_size == sizeof stack, "its stack");
        thread_rounds++;
        usleep(5000);
    }
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 3);
    siginfo_t info;
    CHECK(sigwaitinfo(&one, &info) == SIGRTMIN + 3 && info.si_value.sival_int == 4711, "the value");
    CHECK(info.si_pid == getpid() && info.si_code == SI_QUEUE, "who sent it: %d", info.si_pid);
    return NULL;
}

int main(void) {
    // Every signal that a program can have, but the few with another use below.
    struct sigaction act = {.sa_flags = SA_SIGINFO | SA_RESTART};
    act.sa_sigaction = handler;
    sigfillset(&act.sa_mask);
    for (int s = SIGRTMIN; s <= SIGRTMAX; s++) CHECK(sigaction(s, &act, NULL) == 0, "sigaction %d", s);
    CHECK(sigaction(SIGUSR2, &act, NULL) == 0, "SIGUSR2");
    struct sigaction once = {.sa_handler = alt_handler, .sa_flags = SA_ONSTACK | SA_NODEFER};
    CHECK(sigaction(SIGWINCH, &once, NULL) == 0, "SIGWINCH");
    stack_t stack = {.ss_sp = alt, .ss_size = sizeof alt};
    CHECK(sigaltstack(&stack, NULL) == 0, "sigaltstack");
    signal(SIGPIPE, SIG_IGN);
    struct sigaction alarms = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &alarms, NULL);
    sigaction(SIGVTALRM, &alarms, NULL);

    // Pending for the process from now to the end: two queued instances of one real-time signal, in order.
    sigset_t set, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGQUIT);
    sigaddset(&set, SIGRTMIN + 7);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (int i = 1; i <= 2; i++) CHECK(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = i}) == 0, "queue");
    CHECK(kill(getpid(), SIGQUIT) == 0, "kill"); // its siginfo says that nobody but we may send it
    sigset_t usr1, blocked_now;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    int fd = signalfd(-1, &usr1, SFD_CLOEXEC);
    CHECK(fd >= 0, "signalfd");

    pthread_t thread = start(masked, NULL, 0);
    struct itimerval every = {{0, 20000}, {0, 20000}}, is;
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0 && setitimer(ITIMER_VIRTUAL, &every, NULL) == 0, "setitimer");
    timer_t by_thread, by_signal, far;
    struct sigevent notify = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_timer, .sigev_value.sival_int = 1};
    CHECK(timer_create(CLOCK_MONOTONIC, &notify, &by_thread) == 0, "timer_create");
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 9, .sigev_value.sival_int = 99};
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &by_signal) == 0, "timer_create");
    CHECK(timer_create(CLOCK_REALTIME, &event, &far) == 0, "timer_create");
    struct itimerspec period = {{0, 20000000}, {0, 20000000}}, hour = {{0, 0}, {3600, 0}}, left;
    CHECK(timer_settime(by_thread, 0, &period, NULL) == 0 && timer_settime(by_signal, 0, &period, NULL) == 0, "settime");
    CHECK(timer_settime(far, 0, &hour, NULL) == 0, "settime");
    // User-Mode Linux has no virtual time that ticks.
    int64_t second = now_ns(CLOCK_MONOTONIC) + 1000000000;
    while (ticks_virtual == 0 && now_ns(CLOCK_MONOTONIC) < second) {}
    int has_virtual = ticks_virtual > 0;
    ready();
    int64_t far_start = now_ns(CLOCK_MONOTONIC);

    do {
        for (int s = SIGRTMIN; s <= SIGRTMAX; s++) {
            if (s == SIGRTMIN + 5 || s == SIGRTMIN + 7 || s == SIGRTMIN + 9) continue;
            int before = got[s];
            CHECK(sigqueue(getpid(), s, (union sigval){.sival_int = s * 3}) == 0, "sigqueue %d", s);
            while (got[s] == before) sched_yield();
            CHECK(got[s] == before + 1 && got_value[s] == s * 3, "signal %d", s);
            struct sigaction now;
            CHECK(sigaction(s, NULL, &now) == 0 && now.sa_sigaction == handler, "handler of %d", s);
            CHECK((now.sa_flags & (SA_SIGINFO | SA_RESTART)) == (SA_SIGINFO | SA_RESTART), "flags of %d", s);
        }
        int before = got[SIGUSR2];
        raise(SIGUSR2);
        CHECK(got[SIGUSR2] == before + 1, "SIGUSR2");
        on_alt = 0;
        raise(SIGWINCH);
        CHECK(on_alt, "the handler runs on the alternate stack");
        struct sigaction pipe;
        CHECK(sigaction(SIGPIPE, NULL, &pipe) == 0 && pipe.sa_handler == SIG_IGN, "SIGPIPE is ignored");
        CHECK(sigprocmask(SIG_BLOCK, NULL, &blocked_now) == 0, "mask");
        for (int s = 1; s <= SIGRTMAX; s++) {
            if (s == 32 || s == 33) continue;
            CHECK(sigismember(&blocked_now, s) == sigismember(&set, s), "mask: signal %d", s);
        }
        CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGRTMIN + 5), "pending for the process");
        CHECK(sigismember(&pending, SIGQUIT), "by kill, for the process");
        CHECK(!sigismember(&pending, SIGHUP), "that one is the thread's");

        CHECK(kill(getpid(), SIGUSR1) == 0, "kill");
        struct signalfd_siginfo info;
        CHECK(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1, "signalfd");
        CHECK(info.ssi_pid == (uint32_t)getpid(), "signalfd: pid %u", info.ssi_pid);
        CHECK(sigqueue(getpid(), SIGRTMIN + 7, (union sigval){.sival_int = 5}) == 0, "sigqueue");
        sigset_t seven;
        sigemptyset(&seven);
        sigaddset(&seven, SIGRTMIN + 7);
        siginfo_t waited;
        CHECK(sigwaitinfo(&seven, &waited) == SIGRTMIN + 7 && waited.si_value.sival_int == 5, "sigwaitinfo");

        int real = ticks_real, timer = ticks_timer, nine = got[SIGRTMIN + 9], virtual = ticks_virtual;
        int64_t limit = now_ns(CLOCK_MONOTONIC) + 10000000000;
        while (ticks_real == real || ticks_timer == timer || got[SIGRTMIN + 9] == nine ||
               (has_virtual && ticks_virtual == virtual))
            CHECK(now_ns(CLOCK_MONOTONIC) < limit, "timers: real %d, virtual %d, thread %d, signal %d", ticks_real - real,
                  ticks_virtual - virtual, ticks_timer - timer, got[SIGRTMIN + 9] - nine);
        CHECK(got_value[SIGRTMIN + 9] == 99, "the timer's value");
        CHECK(getitimer(ITIMER_REAL, &is) == 0 && is.it_interval.tv_usec == 20000, "interval");
        CHECK(timer_gettime(far, &left) == 0, "timer_gettime");
        int64_t elapsed = now_ns(CLOCK_MONOTONIC) - far_start, remaining = left.it_value.tv_sec;
        CHECK(remaining > 3600 - elapsed / 1000000000 - 30 && remaining <= 3600, "an hour's timer has %ld s", (long)remaining);
        long r = thread_rounds;
        while (thread_rounds == r) sched_yield();
    } while (beat());

    stopping = 1;
    join(thread);
    sigset_t quit;
    sigemptyset(&quit);
    sigaddset(&quit, SIGQUIT);
    siginfo_t by;
    CHECK(sigwaitinfo(&quit, &by) == SIGQUIT && by.si_pid == getpid() && by.si_code == SI_USER, "who sent SIGQUIT");
    sigset_t five;
    sigemptyset(&five);
    sigaddset(&five, SIGRTMIN + 5);
    siginfo_t info;
    for (int i = 1; i <= 2; i++)
        CHECK(sigwaitinfo(&five, &info) == SIGRTMIN + 5 && info.si_value.sival_int == i, "queued signal %d", i);
    return pass();
}
