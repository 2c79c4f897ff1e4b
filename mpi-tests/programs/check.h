// What every MPI test program needs; the rules between program and harness are those of runtime/harness/src/program.rs:
// rank 0 prints `ready`, a line `beat N` for each round, and `PASS` at the end; anything wrong ends the job with status 1.
#include <errno.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int rank, ranks;

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) fail(__FILE__, __LINE__, #condition, __VA_ARGS__);                                           \
    } while (0)

static void __attribute__((noreturn, unused, format(printf, 4, 5)))
fail(const char *file, int line, const char *condition, const char *format, ...) {
    fprintf(stderr, "FAIL rank %d %s:%d: %s: ", rank, file, line, condition);
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    fflush(stderr);
    MPI_Abort(MPI_COMM_WORLD, 1);
    _exit(1);
}

// Mixes 64 bits so that each output bit depends on all input bits (the finalizer of splitmix64).
static inline uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// A message body that depends on its key alone, so that the receiver knows each byte of it.
static inline void fill(void *data, size_t bytes, uint64_t key) {
    unsigned char *to = data;
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = mix(key + i);
        memcpy(to + i, &word, bytes - i < 8 ? bytes - i : 8);
    }
}

// Offset of the first wrong byte, or -1.
static inline long wrong(const void *data, size_t bytes, uint64_t key) {
    const unsigned char *from = data;
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = mix(key + i);
        size_t n = bytes - i < 8 ? bytes - i : 8;
        if (memcmp(from + i, &word, n) != 0)
            for (size_t k = 0; k < n; k++)
                if (from[i + k] != ((unsigned char *)&word)[k]) return (long)(i + k);
    }
    return -1;
}

// Rank 0 prints the line; lines of other ranks would come in no fixed order.
static inline void __attribute__((format(printf, 1, 2))) say(const char *format, ...) {
    if (rank != 0) return;
    va_list list;
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    putchar('\n');
    fflush(stdout);
}

// Ends a round: says so, and tells all ranks whether to go on: rank 0 decides (by the file that $SW_STOP names, or after
// `limit` rounds if that is positive).
static inline int beat(long limit) {
    static long beats;
    beats++;
    say("beat %ld", beats);
    int on = 1;
    if (rank == 0) {
        const char *stop = getenv("SW_STOP");
        on = !(stop && access(stop, F_OK) == 0) && !(limit > 0 && beats >= limit);
    }
    MPI_Bcast(&on, 1, MPI_INT, 0, MPI_COMM_WORLD);
    return on;
}
