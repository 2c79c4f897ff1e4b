//# Level: normal
// MPI_THREAD_MULTIPLE: four threads a rank, each with a communicator of its own, send numbered messages round the ring while
// the main thread makes collectives. Each byte is checked.
//
//     threads [ROUNDS]      default 0: until $SW_STOP appears
#include "check.h"
#include <pthread.h>
#include <stdatomic.h>

enum { THREADS = 4, LARGEST = 100000 };
static MPI_Comm comm[THREADS];

// Runs until a message tells it to end, which the main thread of rank 0 starts.
static atomic_int stopping;
static atomic_long laps;

static void *circle(void *argument) {
    int me = (int)(intptr_t)argument, next = (rank + 1) % ranks, last = (rank + ranks - 1) % ranks;
    char *out = malloc(LARGEST + 16), *in = malloc(LARGEST + 16);
    CHECK(out && in, "no memory");
    for (uint64_t number = 0;; number++) {
        uint64_t word[2] = {number, rank == 0 && stopping};
        int bytes = (int)(mix(number + 77u * me) % 16) == 0 ? LARGEST : (int)(mix(number) % 5000);
        MPI_Request request;
        MPI_Status status;
        int count;
        memcpy(out, word, 16);
        fill(out + 16, bytes, mix(number * THREADS + me) + rank);
        if (rank == 0) MPI_Isend(out, bytes + 16, MPI_BYTE, next, me, comm[me], &request);
        MPI_Recv(in, LARGEST + 16, MPI_BYTE, last, me, comm[me], &status);
        MPI_Get_count(&status, MPI_BYTE, &count);
        memcpy(word, in, 16);
        CHECK(word[0] == number && count == bytes + 16, "thread %d: message %lu of %d bytes instead of %lu", me, word[0], count, number);
        long at = wrong(in + 16, bytes, mix(number * THREADS + me) + last);
        CHECK(at < 0, "thread %d, message %lu: byte %ld", me, number, at);
        if (rank != 0) {
            memcpy(out, word, 16);
            MPI_Isend(out, bytes + 16, MPI_BYTE, next, me, comm[me], &request);
        }
        MPI_Wait(&request, MPI_STATUS_IGNORE);
        laps++;
        if (word[1]) break;
    }
    free(out), free(in);
    return NULL;
}

int main(int argc, char **argv) {
    int provided;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    CHECK(provided == MPI_THREAD_MULTIPLE, "thread level %d", provided);
    long limit = argc > 1 ? atol(argv[1]) : 0;
    pthread_t thread[THREADS];
    for (intptr_t t = 0; t < THREADS; t++) {
        MPI_Comm_dup(MPI_COMM_WORLD, &comm[t]);
        CHECK(pthread_create(&thread[t], NULL, circle, (void *)t) == 0, "no thread");
    }
    say("ready");
    long round = 0, sum, one;
    do {
        one = ++round * (rank + 1);
        MPI_Allreduce(&one, &sum, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
        CHECK(sum == round * ranks * (ranks + 1) / 2, "sum %ld in round %ld", sum, round);
        struct timespec pause = {0, 20000000};
        nanosleep(&pause, NULL); // leaves the processors to the other threads
    } while (beat(limit));
    stopping = 1;
    for (int t = 0; t < THREADS; t++) pthread_join(thread[t], NULL);
    CHECK(laps >= THREADS, "%ld laps", laps);
    for (int t = 0; t < THREADS; t++) MPI_Comm_free(&comm[t]);
    MPI_Barrier(MPI_COMM_WORLD);
    say("PASS");
    MPI_Finalize();
    return 0;
}
