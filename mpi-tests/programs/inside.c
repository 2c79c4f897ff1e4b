//# Level: normal
// Ranks that ask for checkpoints themselves, by slackwater.h; built without slackwater, it also runs without.
//
//     inside one [ROUNDS]     the last rank asks, every fifth round, while messages to it are under way
//     inside all [ROUNDS]     all ranks do, at once
//
// Rank 0 says `committed` or `restarted` after the rounds in which one was asked for, once all ranks agree on the answer.
#include "check.h"
#include <slackwater.h>

enum { WORDS = 50000 };

// 0: committed; 1: restarted; SLACKWATER_ABSENT: without slackwater.
static int ask(int all, long round) {
    static long out[WORDS], in[WORDS];
    int last = ranks - 1, asks = all || rank == last, told = asks ? SLACKWATER_ABSENT : 0, least, most;
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0 && ranks > 1) {
        fill(out, sizeof out, (uint64_t)round);
        MPI_Isend(out, WORDS, MPI_LONG, last, 1, MPI_COMM_WORLD, &request);
    }
    if (asks) {
        struct slackwater_status status = {.size = sizeof status};
        told = slackwater_checkpoint();
        CHECK(told != -1, "the checkpoint of round %ld failed", round);
        CHECK(told == SLACKWATER_ABSENT || (slackwater_status(&status) == 0 && status.generation > 0), "no status in round %ld", round);
    }
    if (rank == last && ranks > 1) {
        MPI_Recv(in, WORDS, MPI_LONG, 0, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        long at = wrong(in, sizeof in, (uint64_t)round);
        CHECK(at < 0, "round %ld: byte %ld of the message is wrong", round, at);
    }
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    if (!all) {
        MPI_Bcast(&told, 1, MPI_INT, last, MPI_COMM_WORLD);
        return told;
    }
    // Each rank's wish may have a checkpoint of its own, and the job may be restarted from any of them.
    MPI_Allreduce(&told, &least, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    MPI_Allreduce(&told, &most, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    CHECK((least == SLACKWATER_ABSENT) == (most == SLACKWATER_ABSENT), "slackwater is in some ranks only");
    return most;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    int all = argc > 1 && strcmp(argv[1], "all") == 0;
    long limit = argc > 2 ? atol(argv[2]) : 0, round = 0;
    say("ready");
    do {
        round++;
        long mine = rank * round, sum;
        MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
        CHECK(sum == round * ranks * (ranks - 1) / 2, "sum %ld in round %ld", sum, round);
        if (round % 5 == 0) {
            int told = ask(all, round);
            if (told != SLACKWATER_ABSENT) say(told ? "restarted" : "committed");
        }
        struct timespec pause = {0, 5000000};
        nanosleep(&pause, NULL);
    } while (beat(limit));
    say("PASS");
    MPI_Finalize();
    return 0;
}
