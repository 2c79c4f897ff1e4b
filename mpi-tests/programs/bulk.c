//# Level: normal
// What is large, late or one-sided, in rounds, each byte checked:
//
// - messages of 64 MiB under way over several beats, each way, as bytes and as one element of a large derived type, begun by some ranks a
//   beat before the others; non-blocking barrier and reduction that some ranks enter only then; sends that nobody receives before that;
// - passive-target windows that stay locked by all: put, get, accumulate, fetch-and-op with flushes and requests, in allocated and in
//   dynamic memory;
// - intercommunicators: messages and collectives between two halves, merged anew each time; matched probes of messages on them;
// - the tool interface: a session open from the beginning, variables read each round.
//
//     bulk [ROUNDS [MIB [no-rma]]]      default 0: until $SW_STOP appears; 64
#include "check.h"

enum { CELLS = 1000, EARLY = 40 };
static size_t large;
static char *out, *in;
static long turn;
static int next_rank, last_rank;

static MPI_Request big[2], late[3], early[EARLY];
static long barrier_mark, late_in, late_sum, early_out[EARLY][30];
static MPI_Datatype chunk;
static MPI_Status states[EARLY];

// Odd ranks (all where there is one) are a beat late with their half.
static int is_late(void) { return rank % 2; }

static void receive_big(void) { MPI_Irecv(in, (int)large, MPI_BYTE, last_rank, 1, MPI_COMM_WORLD, &big[1]); }
static void late_half(MPI_Comm comm) {
    late_in = turn * 100 + rank;
    MPI_Ibarrier(comm, &late[0]);
    MPI_Iallreduce(&late_in, &late_sum, 1, MPI_LONG, MPI_SUM, comm, &late[1]);
    MPI_Ibcast(&barrier_mark, 1, MPI_LONG, 0, comm, &late[2]);
}

static void begin(MPI_Comm comm) {
    fill(out, large, (uint64_t)(turn * 1000 + rank));
    memset(in, 0, large);
    for (int i = 0; i < EARLY; i++) {
        for (int k = 0; k < 30; k++) early_out[i][k] = turn * 7 + rank * 1000 + i * 31 + k;
        MPI_Isend(early_out[i], 30, MPI_LONG, next_rank, 100 + i, MPI_COMM_WORLD, &early[i]);
    }
    if (turn % 2) MPI_Isend(out, 1, chunk, next_rank, 1, MPI_COMM_WORLD, &big[0]);
    else MPI_Issend(out, (int)large, MPI_BYTE, next_rank, 1, MPI_COMM_WORLD, &big[0]);
    barrier_mark = rank == 0 ? turn : -1;
    if (!is_late()) receive_big(), late_half(comm);
}

static void end(MPI_Comm comm) {
    if (is_late()) receive_big(), late_half(comm);
    // Last ones first.
    for (int i = EARLY - 1; i >= 0; i--) {
        long got[30];
        MPI_Message message;
        MPI_Status status;
        int count;
        MPI_Mprobe(i % 2 ? MPI_ANY_SOURCE : last_rank, 100 + i, MPI_COMM_WORLD, &message, &status);
        MPI_Get_count(&status, MPI_LONG, &count);
        CHECK(count == 30 && status.MPI_SOURCE == last_rank, "probed %d of rank %d", count, status.MPI_SOURCE);
        MPI_Mrecv(got, 30, MPI_LONG, &message, &status);
        for (int k = 0; k < 30; k++) CHECK(got[k] == turn * 7 + last_rank * 1000 + i * 31 + k, "early message %d: %ld", i, got[k]);
    }
    MPI_Waitall(3, late, states);
    CHECK(late_sum == ranks * turn * 100 + (long)ranks * (ranks - 1) / 2, "late sum %ld", late_sum);
    CHECK(barrier_mark == turn, "late broadcast %ld", barrier_mark);
    MPI_Waitall(2, big, states);
    MPI_Waitall(EARLY, early, states);
    long at = wrong(in, large, (uint64_t)(turn * 1000 + last_rank));
    CHECK(at < 0, "round %ld: byte %ld of the large message", turn, at);
}

static MPI_Win fixed, dynamic;
static long *cells, *loose;
static MPI_Aint *places;

static void windows(void) {
    CHECK(MPI_Win_allocate(CELLS * sizeof(long), sizeof(long), MPI_INFO_NULL, MPI_COMM_WORLD, &cells, &fixed) == 0, "window");
    memset(cells, 0, CELLS * sizeof(long));
    MPI_Win_create_dynamic(MPI_INFO_NULL, MPI_COMM_WORLD, &dynamic);
    loose = calloc(CELLS, sizeof(long));
    MPI_Win_attach(dynamic, loose, CELLS * sizeof(long));
    MPI_Aint mine;
    MPI_Get_address(loose, &mine);
    places = calloc(ranks, sizeof *places);
    MPI_Allgather(&mine, 1, MPI_AINT, places, 1, MPI_AINT, MPI_COMM_WORLD);
    MPI_Win_lock_all(0, fixed);
    MPI_Win_lock_all(0, dynamic);
    MPI_Barrier(MPI_COMM_WORLD);
}

static long put_out[300], rput_out[100];
static long add;
static MPI_Request rput;

// Cells 0: a counter of all; 1 to 300: put by the last rank; 400 to 499: put with a request over a beat; 500: accumulated by all.
static void one_sided_begin(void) {
    for (int i = 0; i < 300; i++) put_out[i] = turn * 5 + rank * 1000 + i;
    for (int i = 0; i < 100; i++) rput_out[i] = turn * 9 + rank * 1000 + i;
    MPI_Put(put_out, 300, MPI_LONG, next_rank, 1, 300, MPI_LONG, fixed);
    MPI_Put(put_out, 300, MPI_LONG, next_rank, places[next_rank] + 8, 300, MPI_LONG, dynamic);
    long one = 1, old;
    MPI_Fetch_and_op(&one, &old, MPI_LONG, 0, 0, MPI_SUM, fixed);
    MPI_Win_flush(0, fixed);
    CHECK(old >= (turn - 1) * ranks && old < turn * ranks, "round %ld: the counter was %ld", turn, old);
    MPI_Rput(rput_out, 100, MPI_LONG, next_rank, 400, 100, MPI_LONG, fixed, &rput);
    add = turn;
    for (int r = 0; r < ranks; r++) MPI_Accumulate(&add, 1, MPI_LONG, r, 500, 1, MPI_LONG, MPI_SUM, fixed);
}

static void one_sided_end(void) {
    long seen[300];
    MPI_Request request;
    MPI_Wait(&rput, MPI_STATUS_IGNORE);
    MPI_Win_flush_all(fixed);
    MPI_Win_flush(next_rank, dynamic);
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Win_sync(fixed);
    MPI_Win_sync(dynamic);
    for (int i = 0; i < 300; i++) CHECK(cells[1 + i] == turn * 5 + last_rank * 1000 + i, "cell %d is %ld", 1 + i, cells[1 + i]);
    for (int i = 0; i < 300; i++) CHECK(loose[1 + i] == turn * 5 + last_rank * 1000 + i, "loose cell %d is %ld", 1 + i, loose[1 + i]);
    for (int i = 0; i < 100; i++) CHECK(cells[400 + i] == turn * 9 + last_rank * 1000 + i, "cell %d is %ld", 400 + i, cells[400 + i]);
    CHECK(cells[500] == ranks * turn * (turn + 1) / 2, "round %ld: %ld was accumulated", turn, cells[500]);
    MPI_Rget(seen, 300, MPI_LONG, next_rank, 1, 300, MPI_LONG, fixed, &request);
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    for (int i = 0; i < 300; i++) CHECK(seen[i] == put_out[i], "got %ld", seen[i]);
    MPI_Barrier(MPI_COMM_WORLD);
}

static MPI_Comm half, between;
static void halves(void) {
    MPI_Comm merged;
    int others, everyone;
    MPI_Comm_remote_size(between, &others);
    long mine = turn + rank, sum, theirs = 0;
    MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, between);
    for (int r = 1 - rank % 2; r < ranks; r += 2) theirs += turn + r;
    CHECK(sum == theirs, "the other half's sum is %ld", sum);
    MPI_Intercomm_merge(between, rank % 2, &merged);
    MPI_Comm_size(merged, &everyone);
    CHECK(everyone == ranks, "%d are merged", everyone);
    MPI_Comm_free(&merged);
}

int main(int argc, char **argv) {
    int provided;
    MPI_Init(&argc, &argv);
    CHECK(MPI_T_init_thread(MPI_THREAD_SINGLE, &provided) == MPI_SUCCESS, "the tool interface");
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    CHECK(ranks > 1, "two ranks are needed");
    next_rank = (rank + 1) % ranks, last_rank = (rank + ranks - 1) % ranks;
    long limit = argc > 1 ? atol(argv[1]) : 0;
    large = (size_t)(argc > 2 ? atol(argv[2]) : 64) << 20;
    int rma = !(argc > 3 && strcmp(argv[3], "no-rma") == 0);
    CHECK(MPI_Alloc_mem((MPI_Aint)large, MPI_INFO_NULL, &in) == MPI_SUCCESS && (out = malloc(large)), "no memory");
    MPI_Type_contiguous((int)large, MPI_BYTE, &chunk);
    MPI_Type_commit(&chunk);
    MPI_Comm apart;
    MPI_Comm_dup(MPI_COMM_WORLD, &apart);
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
    MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, 1 - rank % 2, 77, &between);
    MPI_T_pvar_session session;
    MPI_T_pvar_session_create(&session);
    int variables, still;
    MPI_T_cvar_get_num(&variables);
    if (rma) windows();
    say("ready");
    int on = 1;
    while (on) {
        turn++;
        begin(apart);
        if (rma) one_sided_begin();
        on = beat(limit);
        halves();
        if (on) on = beat(limit);
        if (rma) one_sided_end();
        end(apart);
        MPI_T_cvar_get_num(&still);
        CHECK(still == variables, "%d control variables, %d before", still, variables);
    }
    if (rma) {
        MPI_Win_unlock_all(fixed), MPI_Win_unlock_all(dynamic);
        MPI_Win_detach(dynamic, loose);
        MPI_Win_free(&fixed), MPI_Win_free(&dynamic);
    }
    MPI_T_pvar_session_free(&session);
    MPI_Comm_free(&between), MPI_Comm_free(&half), MPI_Comm_free(&apart);
    MPI_Type_free(&chunk);
    MPI_Free_mem(in);
    say("PASS");
    MPI_T_finalize();
    MPI_Finalize();
    return 0;
}
