//# Scenario: go-on, restart
//# Checkpoints: 20
// glibc makes setresuid and its kin hold for all threads by a signal of its own (33). It must go on to work, also at the very
// moment of a checkpoint.
#include "check.h"
#include <sys/syscall.h>

static atomic_long calls;
static atomic_int stopping;

static void *caller(void *argument) {
    (void)argument;
    while (!stopping) {
        CHECK(setresuid(-1, geteuid(), -1) == 0, "setresuid");
        CHECK(setresgid(-1, getegid(), -1) == 0, "setresgid");
        calls++;
    }
    return NULL;
}
static void *sleeper(void *argument) {
    (void)argument;
    while (!stopping) usleep(3000);
    return NULL;
}

int main(void) {
    pthread_t threads[8];
    for (int i = 0; i < 8; i++) threads[i] = start(i < 2 ? caller : sleeper, NULL, 65536);
    ready();
    long seen = 0;
    do {
        while (calls < seen + 10) sched_yield();
        seen = calls;
    } while (beat());
    stopping = 1;
    for (int i = 0; i < 8; i++) join(threads[i]);
    return pass();
}
