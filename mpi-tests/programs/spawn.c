//# Level: normal
// Processes that come and go while the job runs, in rounds:
//
// - MPI_Comm_spawn of two children by all ranks; the intercommunicator, a merged one, and collectives on both; each pair of
//   children lives from one round to the next, so that a checkpoint always finds some, and others on their way in or out;
// - MPI_Open_port, MPI_Comm_accept and MPI_Comm_connect between two groups of the job.
//
//     spawn [ROUNDS]      default 0: until $SW_STOP appears
#include "check.h"

enum { CHILDREN = 2, WORDS = 30000 };

// A child: answers each order with the sum of what it got and its own rank, until the order is 0.
static int child(MPI_Comm parent) {
    MPI_Comm all;
    int me, everyone;
    static long data[WORDS];
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Intercomm_merge(parent, 1, &all);
    MPI_Comm_rank(all, &me);
    MPI_Comm_size(all, &everyone);
    for (;;) {
        long order, sum;
        MPI_Bcast(&order, 1, MPI_LONG, 0, all);
        if (order == 0) break;
        MPI_Recv(data, WORDS, MPI_LONG, 0, 1, parent, MPI_STATUS_IGNORE);
        for (int i = 0; i < WORDS; i++) CHECK(data[i] == order * 7 + rank + i, "child: word %d is %ld", i, data[i]);
        for (int i = 0; i < WORDS; i++) data[i]++;
        MPI_Ssend(data, WORDS, MPI_LONG, 0, 2, parent);
        long mine = me;
        MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, all);
        CHECK(sum == (long)everyone * (everyone - 1) / 2, "child: sum %ld", sum);
    }
    MPI_Comm_free(&all);
    MPI_Comm_disconnect(&parent);
    MPI_Finalize();
    return 0;
}

struct family {
    MPI_Comm inter, all;
};

static struct family born(char *program) {
    struct family family;
    int codes[CHILDREN], remote, everyone;
    MPI_Comm_spawn(program, (char *[]){"child", NULL}, CHILDREN, MPI_INFO_NULL, 0, MPI_COMM_WORLD, &family.inter, codes);
    MPI_Comm_remote_size(family.inter, &remote);
    CHECK(remote == CHILDREN, "%d children", remote);
    MPI_Intercomm_merge(family.inter, 0, &family.all);
    MPI_Comm_size(family.all, &everyone);
    CHECK(everyone == ranks + CHILDREN, "%d in the family", everyone);
    return family;
}

static void order(struct family *family, long number) {
    static long data[WORDS];
    MPI_Bcast(&number, 1, MPI_LONG, 0, family->all);
    if (number == 0) {
        MPI_Comm_free(&family->all);
        MPI_Comm_disconnect(&family->inter);
        return;
    }
    for (int c = 0; rank == 0 && c < CHILDREN; c++) {
        for (int i = 0; i < WORDS; i++) data[i] = number * 7 + c + i;
        MPI_Send(data, WORDS, MPI_LONG, c, 1, family->inter);
        memset(data, 0, sizeof data);
        MPI_Recv(data, WORDS, MPI_LONG, c, 2, family->inter, MPI_STATUS_IGNORE);
        for (int i = 0; i < WORDS; i++) CHECK(data[i] == number * 7 + c + i + 1, "answer of child %d: word %d is %ld", c, i, data[i]);
    }
    long mine = rank, sum, everyone = ranks + CHILDREN;
    MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, family->all);
    // Ranks of the merged communicator: parents first.
    CHECK(sum == everyone * (everyone - 1) / 2, "sum %ld", sum);
}

// The two halves of the job meet by a port's name.
static void meet(long round) {
    char port[MPI_MAX_PORT_NAME] = "";
    MPI_Comm half, met;
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
    if (rank == 0) MPI_Open_port(MPI_INFO_NULL, port);
    MPI_Bcast(port, MPI_MAX_PORT_NAME, MPI_CHAR, 0, MPI_COMM_WORLD);
    if (rank % 2 == 0) MPI_Comm_accept(port, MPI_INFO_NULL, 0, half, &met);
    else MPI_Comm_connect(port, MPI_INFO_NULL, 0, half, &met);
    long mine = rank + round, theirs, expected = 0;
    MPI_Allreduce(&mine, &theirs, 1, MPI_LONG, MPI_SUM, met);
    for (int r = 1 - rank % 2; r < ranks; r += 2) expected += r + round;
    CHECK(theirs == expected, "the other half's sum is %ld instead of %ld", theirs, expected);
    MPI_Comm_disconnect(&met);
    if (rank == 0) MPI_Close_port(port);
    MPI_Comm_free(&half);
}

int main(int argc, char **argv) {
    MPI_Comm parent;
    MPI_Init(&argc, &argv);
    MPI_Comm_get_parent(&parent);
    if (parent != MPI_COMM_NULL) return child(parent);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    long limit = argc > 1 ? atol(argv[1]) : 0, round = 0;
    struct family family = born(argv[0]), next;
    say("ready");
    int on = 1;
    while (on) {
        round++;
        for (int i = 1; i <= 5; i++) order(&family, round * 10 + i);
        next = born(argv[0]);
        order(&family, 0);
        family = next;
        if (ranks > 1) meet(round);
        on = beat(limit);
    }
    order(&family, 0);
    say("PASS");
    MPI_Finalize();
    return 0;
}
