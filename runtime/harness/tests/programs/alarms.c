//# Scenario: go-on, restart
//# Checkpoints: 12
//# Level: quick
// Timers that fire once, armed again and again: whatever a checkpoint falls upon, each comes exactly once. One that is lost
// leaves the program waiting for ever.
#include "check.h"
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

// The first is setitimer(2)'s; one of them expires each 0.3 milliseconds. Every second one is for this thread alone.
enum { TIMERS = 100, APART_US = 300 };
static volatile sig_atomic_t came[TIMERS], all_came;

static void arrived(int which) {
    came[which]++;
    all_came++;
}
static void on_alarm(int signal) {
    (void)signal;
    arrived(0);
}
static void on_timer(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    arrived(info->si_value.sival_int);
}

int main(void) {
    struct sigaction alarm = {.sa_handler = on_alarm}, timer = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO};
    sigfillset(&alarm.sa_mask);
    sigfillset(&timer.sa_mask);
    CHECK(sigaction(SIGALRM, &alarm, NULL) == 0 && sigaction(SIGRTMIN, &timer, NULL) == 0, "sigaction");
    sigset_t all, before;
    sigfillset(&all);
    CHECK(sigprocmask(SIG_BLOCK, &all, &before) == 0, "mask");
    timer_t ids[TIMERS];
    for (int i = 1; i < TIMERS; i++) {
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = i};
        if (i % 2) {
            event.sigev_notify = SIGEV_THREAD_ID;
            event._sigev_un._tid = syscall(SYS_gettid);
        }
        CHECK(timer_create(CLOCK_MONOTONIC, &event, &ids[i]) == 0, "timer_create");
    }
    ready();
    long rounds = 0;
    int go_on;
    do {
        rounds++;
        struct itimerval once = {.it_value = {0, 500 + mix(rounds) % 25000}};
        CHECK(setitimer(ITIMER_REAL, &once, NULL) == 0, "setitimer");
        for (int i = 1; i < TIMERS; i++) {
            struct itimerspec spec = {.it_value = {0, (i + 1) * APART_US * 1000}};
            CHECK(timer_settime(ids[i], 0, &spec, NULL) == 0, "timer_settime");
        }
        // The harness asks for checkpoints when it sees the beat: now, that is, while they run.
        go_on = beat();
        while (all_came < rounds * TIMERS) sigsuspend(&before);
        for (int i = 0; i < TIMERS; i++)
            CHECK(came[i] == rounds, "timer %d came %d times, not %ld", i, (int)came[i], rounds);
    } while (go_on);
    return pass();
}
