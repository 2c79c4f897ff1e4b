//# Checkpoints: 50
//# Scenario: go-on, restart
// Threads are made and joined all the time, by several threads at once, some detached: whatever moment a checkpoint picks, one
// of them is being born or is dying.
#include "check.h"
#include <sched.h>

static atomic_long born, died;
static atomic_int stopping;

static void *mayfly(void *argument) {
    static __thread long life;
    CHECK(life == 0, "TLS of a new thread is new");
    life = (long)argument;
    atomic_fetch_add(&died, 1);
    return (void *)(life + 1);
}

static void *breeder(void *argument) {
    long me = (long)argument;
    for (long n = 0; !stopping; n++) {
        atomic_fetch_add(&born, 1);
        pthread_t child = start(mayfly, (void *)n, 65536);
        if (n % 3 == me % 3) {
            pthread_detach(child);
            continue;
        }
        void *result;
        int error = pthread_join(child, &result);
        CHECK(error == 0 && result == (void *)(n + 1), "join of %ld: %s", n, strerror(error));
    }
    return NULL;
}

int main(void) {
    pthread_t breeders[4];
    for (long i = 0; i < 4; i++) breeders[i] = start(breeder, (void *)i, 0);
    ready();
    long last = 0;
    do {
        int64_t limit = now_ns(CLOCK_MONOTONIC) + 30000000000;
        while (born == last) {
            CHECK(now_ns(CLOCK_MONOTONIC) < limit, "no thread is born any more");
            sched_yield();
        }
        last = born;
    } while (beat());
    stopping = 1;
    for (int i = 0; i < 4; i++) join(breeders[i]);
    for (int i = 0; i < 500 && died < born; i++) usleep(10000); // the detached ones
    CHECK(died == born, "%ld born, %ld died", born, died);
    return pass();
}
