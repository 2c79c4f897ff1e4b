//# Args: 1; 64
//# Scenario: go-on, restart
//# Checkpoints: 50
// N threads with everything that pthread has: mutex, condition variable, rwlock, barrier, TLS, error-checking and robust
// mutexes. They pass a token around a ring; each lap every thread checks all of it.
#include "check.h"

static int threads, stopping;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, checked, robust;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER, lapped = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static long token, laps, readers_sum;
static __thread uint64_t tls = 0x1234;
static __thread char tls_big[256];

static void *worker(void *argument) {
    long me = (long)argument, lap = 0;
    tls = mix(me);
    memset(tls_big, (int)me, sizeof tls_big);
    pthread_t self = pthread_self();
    pid_t tid = gettid();
    pthread_barrier_wait(&barrier);
    for (;;) {
        pthread_mutex_lock(&lock);
        while (token % threads != me && !stopping) pthread_cond_wait(&moved, &lock);
        if (stopping) break;
        CHECK(tls == mix(me), "TLS of thread %ld", me);
        CHECK(tls_big[0] == (char)me && tls_big[255] == (char)me, "big TLS of thread %ld", me);
        CHECK(pthread_equal(self, pthread_self()) && tid == gettid(), "identity of thread %ld", me);

        CHECK(pthread_mutex_lock(&checked) == 0, "error-checking mutex");
        CHECK(pthread_mutex_lock(&checked) == EDEADLK, "it knows its owner");
        CHECK(pthread_mutex_unlock(&checked) == 0, "it knows its owner");
        CHECK(pthread_mutex_unlock(&checked) == EPERM, "not ours any more");

        int error = pthread_mutex_lock(&robust);
        if (error == EOWNERDEAD) error = pthread_mutex_consistent(&robust);
        CHECK(error == 0, "robust mutex: %s", strerror(error));
        CHECK(pthread_mutex_unlock(&robust) == 0, "robust mutex");

        pthread_rwlock_rdlock(&rwlock);
        long seen = readers_sum;
        pthread_rwlock_unlock(&rwlock);
        pthread_rwlock_wrlock(&rwlock);
        CHECK(readers_sum == seen, "two writers");
        readers_sum++;
        pthread_rwlock_unlock(&rwlock);

        token++;
        lap++;
        if (token % threads == 0) {
            laps++;
            CHECK(readers_sum == token, "%ld of %ld", readers_sum, token);
            pthread_cond_signal(&lapped);
        }
        pthread_cond_broadcast(&moved);
        pthread_mutex_unlock(&lock);
    }
    CHECK(lap == laps || lap == laps + 1 || lap + 1 == laps, "thread %ld made %ld of %ld laps", me, lap, laps);
    pthread_mutex_unlock(&lock);
    pthread_barrier_wait(&barrier);
    return NULL;
}

// Dies with the robust mutex in its hands.
static void *dying(void *argument) {
    (void)argument;
    CHECK(pthread_mutex_lock(&robust) == 0, "robust mutex");
    return NULL;
}

int main(int argc, char **argv) {
    threads = argc > 1 ? atoi(argv[1]) : 4;
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&checked, &attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_NORMAL);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &attr);
    pthread_barrier_init(&barrier, NULL, threads + 1);
    pthread_t *all = calloc(threads, sizeof *all);
    for (long i = 0; i < threads; i++) all[i] = start(worker, (void *)i, 65536);
    pthread_barrier_wait(&barrier);
    ready();
    do {
        pthread_mutex_lock(&lock);
        long next = laps + 1;
        while (laps < next) pthread_cond_wait(&lapped, &lock);
        pthread_mutex_unlock(&lock);
        join(start(dying, NULL, 65536));
        int error = pthread_mutex_lock(&robust);
        // A worker may have met the dead owner before us.
        CHECK(error == 0 || error == EOWNERDEAD, "robust mutex: %s", strerror(error));
        if (error == EOWNERDEAD) CHECK(pthread_mutex_consistent(&robust) == 0, "robust mutex");
        CHECK(pthread_mutex_unlock(&robust) == 0, "robust mutex");
    } while (beat());
    pthread_mutex_lock(&lock);
    stopping = 1;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < threads; i++) join(all[i]);
    return pass();
}
