// The program of `cargo xtask demo`: four threads count, the main thread reports. It knows nothing of slackwater.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static long counts[4];

static void *count(void *argument) {
    long *mine = argument;
    for (;;) {
        pthread_mutex_lock(&turn);
        ++*mine;
        pthread_mutex_unlock(&turn);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

int main(void) {
    pthread_t thread;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < 4; i++) pthread_create(&thread, NULL, count, &counts[i]);
    for (int tide = 1;; tide++) {
        nanosleep(&(struct timespec){0, 200000000}, NULL);
        pthread_mutex_lock(&turn);
        printf("tide %d: four threads have counted to %ld %ld %ld %ld\n", tide, counts[0], counts[1], counts[2], counts[3]);
        pthread_mutex_unlock(&turn);
    }
}
