// Threads that allocate, check, hand to one another and free, with calloc's zeros looked at.
#include "check.h"
#include <dlfcn.h>

enum { THREADS = 4, SLOTS = 512 };
static struct {
    pthread_mutex_t lock;
    uint64_t *data;
    size_t words;
    uint64_t seed;
} slots[SLOTS];
static atomic_int stopping;
static atomic_long rounds[THREADS];

static void *worker(void *argument) {
    long me = (long)argument;
    uint64_t n = me;
    while (!stopping) {
        n = mix(n);
        int s = n % SLOTS;
        pthread_mutex_lock(&slots[s].lock);
        for (size_t i = 0; i < slots[s].words; i++) CHECK(slots[s].data[i] == mix(slots[s].seed + i), "slot %d", s);
        free(slots[s].data);
        slots[s].words = (n >> 20) % (n % 50 ? 200 : 40000) + 1;
        slots[s].seed = n;
        slots[s].data = calloc(slots[s].words, 8);
        for (size_t i = 0; i < slots[s].words; i++) {
            CHECK(slots[s].data[i] == 0, "calloc gives zeros");
            slots[s].data[i] = mix(n + i);
        }
        pthread_mutex_unlock(&slots[s].lock);
        rounds[me]++;
    }
    return NULL;
}

int main(void) {
    Dl_info info;
    CHECK(dladdr((void *)calloc, &info) && strstr(info.dli_fname, "malloc"), "whose calloc is it: %s", info.dli_fname);
    for (int i = 0; i < SLOTS; i++) pthread_mutex_init(&slots[i].lock, NULL);
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++) threads[i] = start(worker, (void *)i, 0);
    ready();
    long seen[THREADS] = {0};
    do {
        for (int i = 0; i < THREADS; i++) {
            while (rounds[i] < seen[i] + 100) sched_yield();
            seen[i] = rounds[i];
        }
    } while (beat());
    stopping = 1;
    for (int i = 0; i < THREADS; i++) join(threads[i]);
    return pass();
}
