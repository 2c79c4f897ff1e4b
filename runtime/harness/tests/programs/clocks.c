//# Scenario: go-on, restart
//# Checkpoints: 10
//# Level: quick
// The clocks, which glibc reads through the vdso: none goes back, and each agrees with the system call.
#include "check.h"
#include <sched.h>
#include <sys/syscall.h>
#include <sys/time.h>

static const clockid_t clocks[] = {CLOCK_REALTIME,        CLOCK_MONOTONIC, CLOCK_BOOTTIME,
                                   CLOCK_MONOTONIC_COARSE, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_RAW,
                                   CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID};
enum { CLOCKS = sizeof clocks / sizeof *clocks };
static atomic_int stopping;
static atomic_long rounds;

static int64_t by_syscall(clockid_t clock) {
    struct timespec t;
    CHECK(syscall(SYS_clock_gettime, clock, &t) == 0, "clock %d", clock);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *watch(void *argument) {
    (void)argument;
    int64_t last[CLOCKS] = {0};
    while (!stopping) {
        for (int i = 0; i < CLOCKS; i++) {
            // CPU time starts anew in a new process; the others never go back.
            int cpu = clocks[i] == CLOCK_PROCESS_CPUTIME_ID || clocks[i] == CLOCK_THREAD_CPUTIME_ID;
            int64_t before = by_syscall(clocks[i]), is = now_ns(clocks[i]), after = by_syscall(clocks[i]);
            if (cpu) {
                CHECK(is >= 0, "clock %d", clocks[i]);
                continue;
            }
            CHECK(is >= last[i], "clock %d went back by %ld ns", clocks[i], (long)(last[i] - is));
            CHECK(before <= is && is <= after, "clock %d: vdso %ld, system call %ld", clocks[i], (long)is, (long)before);
            last[i] = is;
        }
        struct timeval tv;
        CHECK(gettimeofday(&tv, NULL) == 0 && tv.tv_sec > 1700000000, "gettimeofday");
        CHECK(time(NULL) > 1700000000, "time");
        unsigned cpu, node;
        CHECK(getcpu(&cpu, &node) == 0 && sched_getcpu() >= 0, "getcpu");
        rounds++;
    }
    return NULL;
}

int main(void) {
    pthread_t a = start(watch, NULL, 0), b = start(watch, NULL, 0);
    ready();
    long seen = 0;
    do {
        while (rounds == seen) sched_yield();
        seen = rounds;
    } while (beat());
    stopping = 1;
    join(a);
    join(b);
    return pass();
}
