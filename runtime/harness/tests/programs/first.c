//# Scenario: go-on, restart
//# Checkpoints: 30
//# Where: host
//# Level: quick
// Who takes a signal to the process: Linux prefers the first thread. Here that one sleeps while others work, and a timer goes
// off some times in each checkpoint. A thread that leaves a handler takes what waits for the process and has not reached the
// first thread yet, natively too, so a few may go astray.
#include "check.h"
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

static atomic_long by_first, by_others;
static atomic_int stopping, running;

static void handler(int signal) {
    (void)signal;
    if (syscall(SYS_gettid) == getpid()) by_first++;
    else by_others++;
}

static void *sleeper(void *unused) {
    struct timespec moment = {.tv_nsec = 3000000};
    running++;
    while (!stopping) nanosleep(&moment, NULL);
    return unused;
}

int main(void) {
    // Not blocked in its handler: else the next one is another thread's.
    struct sigaction act = {.sa_handler = handler, .sa_flags = SA_NODEFER};
    CHECK(sigaction(SIGALRM, &act, NULL) == 0, "sigaction");
    pthread_t threads[13];
    for (int i = 0; i < 13; i++) threads[i] = start(sleeper, NULL, 0);
    while (running < 13) usleep(1000);
    struct itimerval each = {{0, 4000}, {0, 4000}};
    CHECK(setitimer(ITIMER_REAL, &each, NULL) == 0, "setitimer");
    ready();
    do {
        for (int i = 0; i < 5; i++) {
            struct timespec moment = {.tv_nsec = 20000000};
            nanosleep(&moment, NULL);
        }
        CHECK(by_others <= 14, "others took %ld, the first thread %ld", (long)by_others, (long)by_first);
    } while (beat());
    stopping = 1;
    for (int i = 0; i < 13; i++) join(threads[i]);
    CHECK(by_first > 0, "no signal came");
    return pass();
}
