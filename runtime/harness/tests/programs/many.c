//# Args: 2000
//# Scenario: go-on, restart
//# Checkpoints: 50
//# Level: full
//# Where: host
// Two thousand threads; each sleeps on a semaphore of its own, with a mutex, a TLS variable and a robust mutex of its own in
// use. A ring of 2,000 with a broadcast each would be quadratic, so here each wakes its neighbour alone.
#include "check.h"
#include <semaphore.h>

struct slot {
    sem_t go;
    pthread_mutex_t own;
    long rounds;
    pthread_t thread;
};
static struct slot *slots;
static int count;
static atomic_int stopping;
static sem_t home;
static __thread uint64_t tls;

static void *worker(void *argument) {
    long me = (long)argument;
    struct slot *slot = &slots[me];
    tls = mix(me);
    pid_t tid = gettid();
    for (;;) {
        while (sem_wait(&slot->go) != 0) CHECK(errno == EINTR, "sem_wait");
        if (stopping) return NULL;
        CHECK(tls == mix(me) && tid == gettid(), "thread %ld", me);
        CHECK(pthread_mutex_lock(&slot->own) == 0, "lock");
        CHECK(pthread_mutex_lock(&slot->own) == EDEADLK, "it knows its owner");
        slot->rounds++;
        CHECK(pthread_mutex_unlock(&slot->own) == 0, "unlock");
        sem_post(me + 1 < count ? &slots[me + 1].go : &home);
    }
}

int main(int argc, char **argv) {
    count = argc > 1 ? atoi(argv[1]) : 2000;
    slots = calloc(count, sizeof *slots);
    sem_init(&home, 0, 0);
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    for (long i = 0; i < count; i++) {
        sem_init(&slots[i].go, 0, 0);
        pthread_mutex_init(&slots[i].own, &attr);
        slots[i].thread = start(worker, (void *)i, 32768);
    }
    ready();
    long rounds = 0;
    do {
        sem_post(&slots[0].go);
        while (sem_wait(&home) != 0) CHECK(errno == EINTR, "sem_wait");
        rounds++;
        for (int i = 0; i < count; i++) CHECK(slots[i].rounds == rounds, "thread %d: %ld", i, slots[i].rounds);
    } while (beat());
    stopping = 1;
    for (int i = 0; i < count; i++) sem_post(&slots[i].go);
    for (int i = 0; i < count; i++) join(slots[i].thread);
    return pass();
}
