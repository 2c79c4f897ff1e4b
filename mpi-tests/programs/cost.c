//# Level: normal
// What messages cost: prints for each kind of transfer the nanoseconds that one takes. Each figure is the median of batches, so
// that what else the machine does now and then does not count.
//
//     cost [MILLISECONDS]      for each figure, about; default 250
#include "check.h"

enum { LARGE = 1 << 20, BATCHES = 101 };
static char *data;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void pingpong(int bytes, int times) {
    for (int i = 0; i < times; i++) {
        if (rank == 0) {
            MPI_Send(data, bytes, MPI_BYTE, 1, 1, MPI_COMM_WORLD);
            MPI_Recv(data, bytes, MPI_BYTE, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else if (rank == 1) {
            MPI_Recv(data, bytes, MPI_BYTE, 0, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(data, bytes, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
        }
    }
}

// A window of large messages one way, and an answer.
static void stream(int bytes, int times) {
    enum { WINDOW = 8 };
    MPI_Request requests[WINDOW];
    for (int i = 0; i < times; i++) {
        for (int w = 0; w < WINDOW && rank < 2; w++) {
            if (rank == 0) MPI_Isend(data, bytes, MPI_BYTE, 1, 2, MPI_COMM_WORLD, &requests[w]);
            else MPI_Irecv(data, bytes, MPI_BYTE, 0, 2, MPI_COMM_WORLD, &requests[w]);
        }
        if (rank < 2) MPI_Waitall(WINDOW, requests, MPI_STATUSES_IGNORE);
        pingpong(1, 1);
    }
}

static void allreduce(int bytes, int times) {
    static double sum[1024];
    for (int i = 0; i < times; i++) MPI_Allreduce(data, sum, bytes / 8, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(const char *name, void (*transfer)(int, int), int bytes, double budget) {
    static double took[BATCHES];
    transfer(bytes, 10);
    MPI_Barrier(MPI_COMM_WORLD);
    double before = now();
    transfer(bytes, 10);
    int times = (int)(budget / BATCHES / ((now() - before) / 10)) + 1;
    MPI_Bcast(&times, 1, MPI_INT, 0, MPI_COMM_WORLD);
    for (int b = 0; b < BATCHES; b++) {
        MPI_Barrier(MPI_COMM_WORLD);
        before = now();
        transfer(bytes, times);
        took[b] = (now() - before) / times;
    }
    qsort(took, BATCHES, sizeof took[0], ascending);
    say("%s %.1f", name, took[BATCHES / 2]);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    double budget = (argc > 1 ? atof(argv[1]) : 250) * 1e6;
    data = calloc(LARGE, 1);
    CHECK(data && ranks > 1, "two ranks and 1 MiB are needed");
    measure("ping-pong-8B", pingpong, 8, budget);
    measure("stream-1MiB", stream, LARGE, budget);
    measure("allreduce-8B", allreduce, 8, budget);
    measure("allreduce-8KiB", allreduce, 8192, budget);
    MPI_Finalize();
    return 0;
}
