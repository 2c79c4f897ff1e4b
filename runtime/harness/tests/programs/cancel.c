//# Scenario: go-on, restart
//# Checkpoints: 6
// Threads that are cancelled in waits which a checkpoint has interrupted: each runs its cleanup and ends, and none before.
#include "check.h"
#include <poll.h>
#include <semaphore.h>
#include <sys/socket.h>

enum { KINDS = 5 };
static int pair[2];
static atomic_int cleaned;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;

static void clean(void *unused) {
    (void)unused;
    cleaned++;
}
static void *wait_for_ever(void *argument) {
    static sem_t empty;
    char byte;
    pthread_cleanup_push(clean, NULL);
    for (;;) switch ((long)argument) {
        case 0: poll(NULL, 0, 1000000); break;
        case 1: recv(pair[0], &byte, 1, 0); break; // with SO_RCVTIMEO
        case 2: sem_wait(&empty); break;
        case 3: sleep(1000); break;
        case 4:
            pthread_mutex_lock(&mutex);
            pthread_cleanup_push((void (*)(void *))pthread_mutex_unlock, &mutex);
            pthread_cond_wait(&never, &mutex);
            pthread_cleanup_pop(1);
        }
    pthread_cleanup_pop(0);
    return NULL;
}

int main(void) {
    struct timeval t = {1000, 0};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    CHECK(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t) == 0, "setsockopt");
    pthread_t threads[KINDS];
    for (long i = 0; i < KINDS; i++) threads[i] = start(wait_for_ever, (void *)i, 0);
    ready();
    // One kind after the other is cancelled and begun anew, so that each has stood through checkpoints.
    for (long i = 0; beat(); i = (i + 1) % KINDS) {
        void *result;
        CHECK(cleaned == 0, "a thread ended by itself");
        CHECK(pthread_cancel(threads[i]) == 0, "pthread_cancel");
        CHECK(pthread_join(threads[i], &result) == 0 && result == PTHREAD_CANCELED, "thread %ld was not cancelled", i);
        CHECK(cleaned == 1, "%d cleanups", cleaned);
        cleaned = 0;
        threads[i] = start(wait_for_ever, (void *)i, 0);
    }
    return pass();
}
