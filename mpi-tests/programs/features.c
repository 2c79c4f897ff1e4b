//# Level: normal
// What MPI has beside messages and the common collectives, in rounds, each value checked:
//
// - derived types (vector, indexed, struct, subarray, resized), packing;
// - every non-blocking collective and the neighbourhood ones, on a torus and on a graph, begun in one round and ended in the next;
// - persistent requests that stay active over a round: buffered, ready, and a receive from anyone; cancelled receives; errors returned;
// - shared windows, and requests of generalized kind (MPI_Grequest), which a thread of the program's own completes.
//
//     features [ROUNDS]      default 0: until $SW_STOP appears
#include "check.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

enum { WIDE = 40000, HALO = 300 };
static long turn;
static int next_rank, last_rank;

// A matrix's column, a scattered list, a record with a hole and a block out of a cube, sent as such and received as plain data.
static void derived(void) {
    enum { N = 20 };
    static double matrix[N][N], column[N];
    static int list[100], picked[30];
    struct record { char tag; double value; int count[3]; } record[7], copy[7];
    static int cube[8][8][8], block[3 * 4 * 5];
    MPI_Datatype vector, indexed, plain, structure, subarray;
    MPI_Type_vector(N, 1, N, MPI_DOUBLE, &vector);
    int lengths[10], places[10];
    for (int i = 0; i < 10; i++) lengths[i] = 1 + i % 5, places[i] = i * 10;
    MPI_Type_indexed(10, lengths, places, MPI_INT, &indexed);
    MPI_Aint at[3] = {offsetof(struct record, tag), offsetof(struct record, value), offsetof(struct record, count)};
    MPI_Type_create_struct(3, (int[]){1, 1, 3}, at, (MPI_Datatype[]){MPI_CHAR, MPI_DOUBLE, MPI_INT}, &plain);
    MPI_Type_create_resized(plain, 0, sizeof(struct record), &structure);
    MPI_Type_create_subarray(3, (int[]){8, 8, 8}, (int[]){3, 4, 5}, (int[]){2, 1, 3}, MPI_ORDER_C, MPI_INT, &subarray);
    MPI_Type_commit(&vector), MPI_Type_commit(&indexed), MPI_Type_commit(&structure), MPI_Type_commit(&subarray);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) matrix[i][j] = turn * 1e6 + rank * 1e4 + i * 100 + j;
    for (int i = 0; i < 100; i++) list[i] = (int)(turn * 1000 + rank * 100 + i);
    memset(record, 0, sizeof record), memset(copy, 0, sizeof copy);
    for (int i = 0; i < 7; i++) record[i] = (struct record){(char)('a' + i), turn + i / 4.0, {rank, i, (int)turn}};
    for (int i = 0; i < 512; i++) ((int *)cube)[i] = (int)turn + rank * 1000 + i;
    MPI_Sendrecv(&matrix[0][3], 1, vector, next_rank, 1, column, N, MPI_DOUBLE, last_rank, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    for (int i = 0; i < N; i++) CHECK(column[i] == turn * 1e6 + last_rank * 1e4 + i * 100 + 3, "column: %g", column[i]);
    int total = 0, k = 0;
    for (int i = 0; i < 10; i++) total += lengths[i];
    MPI_Sendrecv(list, 1, indexed, next_rank, 2, picked, total, MPI_INT, last_rank, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    for (int i = 0; i < 10; i++)
        for (int j = 0; j < lengths[i]; j++, k++) CHECK(picked[k] == turn * 1000 + last_rank * 100 + places[i] + j, "list: %d", picked[k]);
    MPI_Sendrecv(record, 7, structure, next_rank, 3, copy, 7, structure, last_rank, 3, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    for (int i = 0; i < 7; i++)
        CHECK(copy[i].tag == 'a' + i && copy[i].value == turn + i / 4.0 && copy[i].count[0] == last_rank && copy[i].count[2] == (int)turn, "record %d", i);
    MPI_Sendrecv(cube, 1, subarray, next_rank, 4, block, 60, MPI_INT, last_rank, 4, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    for (int i = 0; i < 60; i++) {
        int x = i / 20 + 2, y = i / 5 % 4 + 1, z = i % 5 + 3;
        CHECK(block[i] == turn + last_rank * 1000 + x * 64 + y * 8 + z, "cube: %d", block[i]);
    }
    char packed[4000];
    int where = 0, got[3];
    double real;
    MPI_Pack((int[]){rank, (int)turn, 7}, 3, MPI_INT, packed, sizeof packed, &where, MPI_COMM_WORLD);
    MPI_Pack(&matrix[1][1], 1, MPI_DOUBLE, packed, sizeof packed, &where, MPI_COMM_WORLD);
    MPI_Sendrecv_replace(packed, sizeof packed, MPI_PACKED, next_rank, 5, last_rank, 5, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    where = 0;
    MPI_Unpack(packed, sizeof packed, &where, got, 3, MPI_INT, MPI_COMM_WORLD);
    MPI_Unpack(packed, sizeof packed, &where, &real, 1, MPI_DOUBLE, MPI_COMM_WORLD);
    CHECK(got[0] == last_rank && got[1] == turn && real == turn * 1e6 + last_rank * 1e4 + 101, "packed: %d %d %g", got[0], got[1], real);
    MPI_Type_free(&vector), MPI_Type_free(&indexed), MPI_Type_free(&plain), MPI_Type_free(&structure), MPI_Type_free(&subarray);
}

// Begun in one round, ended in the next. Each has buffers of its own.
enum { BCAST, ALLREDUCE, ALLTOALLV, GATHERV, SCATTER, REDUCE_SCATTER, SCAN, EXSCAN, TORUS, GRAPH, PENDING };
static MPI_Request pending[PENDING];
static MPI_Comm torus, graph, copied;
static char *wide;
static long *sums, *sums_in, *rows, *columns, *gathered, *parts, one_part, *reduced, own_sum, scanned, before, mine;
static long halo_out[HALO], halo_in[4 * HALO], graph_out[2 * HALO], graph_in[2 * HALO];
static int *counts, *offsets, *ones, *starts;

static void begin(void) {
    int root = (int)(turn % ranks);
    mine = turn * 10 + rank;
    if (rank == root) fill(wide, WIDE, turn);
    MPI_Ibcast(wide, WIDE, MPI_BYTE, root, MPI_COMM_WORLD, &pending[BCAST]);
    for (int i = 0; i < 1000; i++) sums_in[i] = turn + rank * i;
    MPI_Iallreduce(sums_in, sums, 1000, MPI_LONG, MPI_SUM, copied, &pending[ALLREDUCE]);
    for (int i = 0; i < ranks; i++) counts[i] = 100, offsets[i] = i * 100, ones[i] = 1, starts[i] = i;
    for (int i = 0; i < ranks * 100; i++) rows[i] = turn * 100000 + rank * 10000 + i;
    MPI_Ialltoallv(rows, counts, offsets, MPI_LONG, columns, counts, offsets, MPI_LONG, MPI_COMM_WORLD, &pending[ALLTOALLV]);
    MPI_Igatherv(&mine, 1, MPI_LONG, gathered, ones, starts, MPI_LONG, root, MPI_COMM_WORLD, &pending[GATHERV]);
    for (int i = 0; i < ranks; i++) parts[i] = turn * 7 + i;
    MPI_Iscatter(parts, 1, MPI_LONG, &one_part, 1, MPI_LONG, root, MPI_COMM_WORLD, &pending[SCATTER]);
    for (int i = 0; i < ranks; i++) reduced[i] = turn + i;
    MPI_Ireduce_scatter(reduced, &own_sum, ones, MPI_LONG, MPI_SUM, MPI_COMM_WORLD, &pending[REDUCE_SCATTER]);
    MPI_Iscan(&mine, &scanned, 1, MPI_LONG, MPI_MAX, MPI_COMM_WORLD, &pending[SCAN]);
    MPI_Iexscan(&mine, &before, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD, &pending[EXSCAN]);
    for (int i = 0; i < HALO; i++) halo_out[i] = turn * 1000 + rank * 300 + i;
    MPI_Ineighbor_allgather(halo_out, HALO, MPI_LONG, halo_in, HALO, MPI_LONG, torus, &pending[TORUS]);
    for (int i = 0; i < 2 * HALO; i++) graph_out[i] = turn * 5000 + rank * 600 + i;
    MPI_Ineighbor_alltoall(graph_out, HALO, MPI_LONG, graph_in, HALO, MPI_LONG, graph, &pending[GRAPH]);
}

static void end(void) {
    int root = (int)(turn % ranks), source, target;
    MPI_Status states[PENDING];
    MPI_Waitall(PENDING, pending, states);
    CHECK(wrong(wide, WIDE, turn) < 0, "broadcast of round %ld", turn);
    long all = (long)ranks * (ranks - 1) / 2;
    for (int i = 0; i < 1000; i++) CHECK(sums[i] == turn * ranks + all * i, "sum %d is %ld", i, sums[i]);
    for (int i = 0; i < ranks * 100; i++)
        CHECK(columns[i] == turn * 100000 + i / 100 * 10000 + rank * 100 + i % 100, "all to all: %d is %ld", i, columns[i]);
    for (int i = 0; rank == root && i < ranks; i++) CHECK(gathered[i] == turn * 10 + i, "gathered %ld", gathered[i]);
    CHECK(one_part == turn * 7 + rank, "scattered %ld", one_part);
    CHECK(own_sum == (turn + rank) * ranks, "reduced and scattered %ld", own_sum);
    CHECK(scanned == mine, "scan %ld", scanned);
    CHECK(rank == 0 || before == turn * 10 * rank + (long)rank * (rank - 1) / 2, "exclusive scan %ld", before);
    for (int side = 0; side < 2; side++) {
        MPI_Cart_shift(torus, side, 1, &source, &target);
        for (int way = 0; way < 2; way++)
            for (int i = 0; i < HALO; i++)
                CHECK(halo_in[(2 * side + way) * HALO + i] == turn * 1000 + (way ? target : source) * 300 + i, "halo of dimension %d", side);
    }
    // Towards the next rank goes the first half, towards the last rank the second; so they come. Where both are one rank, the
    // two edges may change places (MPICH's do).
    int swapped = next_rank == last_rank && graph_in[0] != turn * 5000 + last_rank * 600 ? HALO : 0;
    for (int i = 0; i < HALO; i++) {
        CHECK(graph_in[swapped + i] == turn * 5000 + last_rank * 600 + i, "graph, first: %ld", graph_in[i]);
        CHECK(graph_in[HALO - swapped + i] == turn * 5000 + next_rank * 600 + HALO + i, "graph, second: %ld", graph_in[HALO + i]);
    }
}

// Persistent requests, made once; active from one round to the next.
enum { ANYONE, PLAIN, BUFFER, LISTEN, PERSISTENT };
static MPI_Request persistent[PERSISTENT];
static long from_anyone[500], plain_in[500], buffered_out[500];
static MPI_Comm quiet;

static void persistent_begin(void) {
    for (int i = 0; i < 500; i++) buffered_out[i] = turn * 1000 + rank * 100 + i;
    MPI_Startall(PERSISTENT, persistent);
    // A receive that nobody answers, ended by MPI_Cancel, while the others are active.
    MPI_Request never;
    MPI_Status status;
    int cancelled = 0, nothing;
    long room[2];
    MPI_Irecv(&nothing, 1, MPI_INT, MPI_ANY_SOURCE, 99, quiet, &never);
    MPI_Cancel(&never);
    MPI_Wait(&never, &status);
    MPI_Test_cancelled(&status, &cancelled);
    CHECK(cancelled, "a receive in round %ld", turn);
    // A message that is too long for its buffer is an error, returned as such.
    int class = 0, code;
    MPI_Request big;
    MPI_Isend(buffered_out, 10, MPI_LONG, rank, 5, quiet, &big);
    code = MPI_Recv(room, 2, MPI_LONG, rank, 5, quiet, MPI_STATUS_IGNORE);
    MPI_Error_class(code, &class);
    MPI_Wait(&big, MPI_STATUS_IGNORE);
    CHECK(class == MPI_ERR_TRUNCATE, "error class %d", class);
}

static void persistent_end(void) {
    int done = 0, indices[PERSISTENT], count;
    MPI_Status states[PERSISTENT];
    while (done < PERSISTENT) {
        MPI_Waitsome(PERSISTENT, persistent, &count, indices, states);
        CHECK(count != MPI_UNDEFINED, "only %d persistent requests were active", done);
        done += count;
    }
    for (int i = 0; i < 500; i++) {
        CHECK(from_anyone[i] == turn * 1000 + last_rank * 100 + i, "from anyone: %ld", from_anyone[i]);
        CHECK(plain_in[i] == turn * 1000 + last_rank * 100 + i, "buffered: %ld", plain_in[i]);
    }
}

// Each writes into the next rank's part of a window that all see as memory.
static MPI_Win shared;
static long *shared_own;
static void shared_window(void) {
    MPI_Aint size;
    int unit;
    long *theirs, *seen;
    MPI_Win_shared_query(shared, next_rank, &size, &unit, &theirs);
    for (int i = 0; i < 1000; i++) theirs[i] = turn * 10000 + rank * 1000 + i;
    MPI_Win_sync(shared);
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Win_sync(shared);
    MPI_Win_shared_query(shared, rank, &size, &unit, &seen);
    CHECK(seen == shared_own, "the window moved from %p to %p", (void *)shared_own, (void *)seen);
    for (int i = 0; i < 1000; i++) CHECK(seen[i] == turn * 10000 + last_rank * 1000 + i, "shared window: %ld", seen[i]);
    MPI_Barrier(MPI_COMM_WORLD);
}

// A request that the program itself completes, from a thread.
static int query(void *state, MPI_Status *status) {
    (void)state;
    MPI_Status_set_elements(status, MPI_INT, 3);
    MPI_Status_set_cancelled(status, 0);
    return MPI_SUCCESS;
}
static int release(void *state) { return *(int *)state = 1, MPI_SUCCESS; }
static int cancel(void *state, int complete) { return (void)state, (void)complete, MPI_SUCCESS; }
static void *complete(void *argument) {
    MPI_Grequest_complete(*(MPI_Request *)argument);
    return NULL;
}
static void generalized(void) {
    int freed = 0, count = 0;
    MPI_Request request, same;
    MPI_Status status;
    pthread_t thread;
    MPI_Grequest_start(query, release, cancel, &freed, &request);
    same = request;
    CHECK(pthread_create(&thread, NULL, complete, &same) == 0, "no thread");
    MPI_Wait(&request, &status);
    pthread_join(thread, NULL);
    MPI_Get_count(&status, MPI_INT, &count);
    CHECK(count == 3 && freed, "count %d", count);
}

int main(int argc, char **argv) {
    int provided, sides[2] = {0, 0};
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    next_rank = (rank + 1) % ranks, last_rank = (rank + ranks - 1) % ranks;
    long limit = argc > 1 ? atol(argv[1]) : 0;
    MPI_Request idup;
    MPI_Comm_idup(MPI_COMM_WORLD, &copied, &idup);
    MPI_Wait(&idup, MPI_STATUS_IGNORE);
    MPI_Dims_create(ranks, 2, sides);
    MPI_Cart_create(MPI_COMM_WORLD, 2, sides, (int[]){1, 1}, 0, &torus);
    int from[2] = {last_rank, next_rank}, to[2] = {next_rank, last_rank}, weights[2] = {1, 1};
    MPI_Dist_graph_create_adjacent(MPI_COMM_WORLD, 2, from, weights, 2, to, weights, MPI_INFO_NULL, 0, &graph);
    MPI_Comm_dup(MPI_COMM_WORLD, &quiet);
    MPI_Comm_set_errhandler(quiet, MPI_ERRORS_RETURN);
    wide = malloc(WIDE), sums = calloc(1000, 8), sums_in = calloc(1000, 8), rows = calloc(ranks * 100, 8), columns = calloc(ranks * 100, 8);
    gathered = calloc(ranks, 8), parts = calloc(ranks, 8), reduced = calloc(ranks, 8);
    counts = calloc(ranks, 4), offsets = calloc(ranks, 4), ones = calloc(ranks, 4), starts = calloc(ranks, 4);
    int room = 2 * ((int)sizeof buffered_out + MPI_BSEND_OVERHEAD) + 100000;
    MPI_Buffer_attach(malloc(room), room);
    MPI_Recv_init(from_anyone, 500, MPI_LONG, MPI_ANY_SOURCE, 21, MPI_COMM_WORLD, &persistent[ANYONE]);
    MPI_Recv_init(plain_in, 500, MPI_LONG, last_rank, MPI_ANY_TAG, graph, &persistent[PLAIN]);
    MPI_Bsend_init(buffered_out, 500, MPI_LONG, next_rank, 21, MPI_COMM_WORLD, &persistent[BUFFER]);
    MPI_Send_init(buffered_out, 500, MPI_LONG, next_rank, 22, graph, &persistent[LISTEN]);
    MPI_Comm node;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    MPI_Win_allocate_shared(1000 * sizeof(long), sizeof(long), MPI_INFO_NULL, node, &shared_own, &shared);
    MPI_Win_lock_all(MPI_MODE_NOCHECK, shared);
    say("ready");
    int on = 1;
    while (on) {
        turn++;
        begin();
        persistent_begin();
        derived();
        shared_window();
        if (provided == MPI_THREAD_MULTIPLE) generalized();
        on = beat(limit);
        end();
        persistent_end();
    }
    for (int i = 0; i < PERSISTENT; i++) MPI_Request_free(&persistent[i]);
    MPI_Win_unlock_all(shared);
    MPI_Win_free(&shared);
    MPI_Comm_free(&node), MPI_Comm_free(&quiet), MPI_Comm_free(&graph), MPI_Comm_free(&torus), MPI_Comm_free(&copied);
    void *buffer;
    MPI_Buffer_detach(&buffer, &room);
    free(buffer);
    MPI_Barrier(MPI_COMM_WORLD);
    say("PASS");
    MPI_Finalize();
    return 0;
}
