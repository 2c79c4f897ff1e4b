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
        if (n % 3 == me % 3) {
            // Born detached: pthread_detach() of a thread that is just ending looks at its block after that was given to
            // another (glibc bug 19951), and a checkpoint makes that moment long.
            pthread_attr_t attr;
            pthread_t child;
            pthread_attr_init(&attr);
            pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
            int error = pthread_create(&child, &attr, mayfly, (void *)n);
            CHECK(error == 0, "pthread_create: %s", strerror(error));
            continue;
        }
        pthread_t child = start(mayfly, (void *)n, 65536);
        void *result;
        int error = pthread_join(child, &result);
        CHECK(error == 0 && result == (void *)(n + 1), "join of %ld: %s, result %p", n, strerror(error), result);
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
