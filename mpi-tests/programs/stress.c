//# Level: normal
// Everything MPI does with messages, in rounds, each byte checked:
//
// - point-to-point in every send mode (standard, synchronous, buffered, ready; blocking, non-blocking, persistent), sizes from
//   empty through eager to rendezvous, receives posted before and after the send, wildcards, probes and matched probes;
// - messages and requests that stay in flight from one round to the next: at any moment a checkpoint finds some;
// - order: each pair of ranks numbers its messages, and they must not overtake each other;
// - collectives, blocking and non-blocking ones that overlap with the point-to-point traffic;
// - one-sided: put, get, accumulate, fetch-and-op, compare-and-swap, under fence, lock and post-start-complete-wait;
// - communicators that are split, duplicated and freed, and an intercommunicator.
//
//     stress [ROUNDS]      default 0: until $SW_STOP appears
#include "check.h"

enum { STANDARD, SYNC, BUFFERED, ISTANDARD, ISYNC, IBUFFERED, PSTANDARD, PSYNC, MODES };
static const int sizes[] = {0, 1, 8, 100, 1024, 4000, 8192, 20000, 65536, 300000, 1 << 20};
enum { SIZES = sizeof sizes / sizeof *sizes, LARGEST = 1 << 20, TAG = 7, LATE = 8, READY = 9, TOKEN = 10 };

struct header {
    uint64_t number, key;
    int32_t from, to, bytes, mode;
};

static uint64_t *sent, *received; // messages so far, by peer
static char *out, *in;
static long round_number;

static uint64_t key_of(int from, int to, uint64_t number) { return mix(((uint64_t)from << 40) ^ ((uint64_t)to << 20) ^ mix(number)); }
static int size_of(uint64_t key) { return sizes[mix(key) % SIZES]; }

// Puts the next message for `to` into `buffer`; its length.
static int compose(char *buffer, int to, int mode) {
    uint64_t number = sent[to]++, key = key_of(rank, to, number);
    struct header head = {number, key, rank, to, size_of(key), mode};
    memcpy(buffer, &head, sizeof head);
    fill(buffer + sizeof head, head.bytes, key);
    return (int)sizeof head + head.bytes;
}

// Checks the next message of `from`.
static void verify(const char *buffer, int from, MPI_Status *status) {
    struct header head;
    int count;
    MPI_Get_count(status, MPI_BYTE, &count);
    memcpy(&head, buffer, sizeof head);
    CHECK(head.from == from && head.to == rank, "from %d to %d, but the sender is %d", head.from, head.to, from);
    CHECK(head.number == received[from], "rank %d: number %lu, awaited %lu", from, head.number, received[from]);
    received[from]++;
    CHECK(count == (int)sizeof head + head.bytes && head.bytes == size_of(head.key), "%d bytes", count);
    long at = wrong(buffer + sizeof head, head.bytes, head.key);
    CHECK(at < 0 && head.key == key_of(from, rank, head.number), "message %lu of %d: byte %ld", head.number, from, at);
}

// To the next rank in each mode, from the previous one by each kind of receive.
static void ring(void) {
    int to = (rank + 1) % ranks, from = (rank + ranks - 1) % ranks;
    for (int mode = 0; mode < MODES; mode++) {
        MPI_Request receive = MPI_REQUEST_NULL, send = MPI_REQUEST_NULL;
        MPI_Status status;
        int kind = (int)((round_number + mode) % 4), room = LARGEST + 64;
        // A blocking synchronous send round a ring needs somebody to receive: all post first then.
        int early = kind < 2 || mode == SYNC || mode == STANDARD;
        if (early) MPI_Irecv(in, room, MPI_BYTE, kind == 0 ? MPI_ANY_SOURCE : from, kind == 1 ? MPI_ANY_TAG : TAG, MPI_COMM_WORLD, &receive);
        // With a wildcard tag nothing else may be in flight to this rank; rounds are arranged so.
        int bytes = compose(out, to, mode);
        switch (mode) {
        case STANDARD: MPI_Send(out, bytes, MPI_BYTE, to, TAG, MPI_COMM_WORLD); break;
        case SYNC: MPI_Ssend(out, bytes, MPI_BYTE, to, TAG, MPI_COMM_WORLD); break;
        case BUFFERED: MPI_Bsend(out, bytes, MPI_BYTE, to, TAG, MPI_COMM_WORLD); break;
        case ISTANDARD: MPI_Isend(out, bytes, MPI_BYTE, to, TAG, MPI_COMM_WORLD, &send); break;
        case ISYNC: MPI_Issend(out, bytes, MPI_BYTE, to, TAG, MPI_COMM_WORLD, &send); break;
        case IBUFFERED: MPI_Ibsend(out, bytes, MPI_BYTE, to, TAG, MPI_COMM_WORLD, &send); break;
        case PSTANDARD: MPI_Send_init(out, bytes, MPI_BYTE, to, TAG, MPI_COMM_WORLD, &send); MPI_Start(&send); break;
        case PSYNC: MPI_Ssend_init(out, bytes, MPI_BYTE, to, TAG, MPI_COMM_WORLD, &send); MPI_Start(&send); break;
        }
        if (early) {
            MPI_Wait(&receive, &status);
        } else if (kind == 2) {
            MPI_Probe(MPI_ANY_SOURCE, TAG, MPI_COMM_WORLD, &status);
            CHECK(status.MPI_SOURCE == from, "probed a message of %d", status.MPI_SOURCE);
            MPI_Recv(in, room, MPI_BYTE, status.MPI_SOURCE, TAG, MPI_COMM_WORLD, &status);
        } else {
            MPI_Message message;
            MPI_Mprobe(MPI_ANY_SOURCE, TAG, MPI_COMM_WORLD, &message, &status);
            MPI_Mrecv(in, room, MPI_BYTE, &message, &status);
        }
        verify(in, status.MPI_SOURCE, &status);
        int persistent = mode == PSTANDARD || mode == PSYNC;
        MPI_Wait(&send, MPI_STATUS_IGNORE);
        if (persistent) MPI_Request_free(&send);
    }
    // The next part sends with the same tag, and a slow rank's wildcards must not see that.
    MPI_Barrier(MPI_COMM_WORLD);
}

// All to all at once, then a ready send to a receive that is known to be posted.
static void burst(void) {
    MPI_Request *requests = malloc(2 * ranks * sizeof *requests);
    MPI_Status *states = malloc(2 * ranks * sizeof *states);
    char **to = malloc(ranks * sizeof *to), **from = malloc(ranks * sizeof *from);
    for (int peer = 0; peer < ranks; peer++) {
        from[peer] = malloc(LARGEST + 64);
        to[peer] = malloc(LARGEST + 64);
        MPI_Irecv(from[peer], LARGEST + 64, MPI_BYTE, peer, TAG, MPI_COMM_WORLD, &requests[peer]);
    }
    for (int peer = 0; peer < ranks; peer++) {
        int bytes = compose(to[peer], peer, ISTANDARD);
        MPI_Isend(to[peer], bytes, MPI_BYTE, peer, TAG, MPI_COMM_WORLD, &requests[ranks + peer]);
    }
    for (int left = ranks * 2; left > 0; left--) {
        int index;
        MPI_Status status;
        MPI_Waitany(ranks * 2, requests, &index, &status);
        if (index < ranks) verify(from[index], index, &status);
    }
    int token = rank, got = -1, next = (rank + 1) % ranks, last = (rank + ranks - 1) % ranks;
    MPI_Irecv(&got, 1, MPI_INT, last, READY, MPI_COMM_WORLD, &requests[0]);
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Rsend(&token, 1, MPI_INT, next, READY, MPI_COMM_WORLD);
    MPI_Wait(&requests[0], states);
    CHECK(got == last, "ready send: %d", got);
    for (int peer = 0; peer < ranks; peer++) free(to[peer]), free(from[peer]);
    free(to), free(from), free(requests), free(states);
}

// Requests that outlive a round: a large message started in one round and finished in the next, and a persistent pair.
static char *late_out, *late_in;
static MPI_Request late[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL}, token[2];
static long token_out, token_in;

static void late_begin(void) {
    int to = (rank + 1) % ranks, from = (rank + ranks - 1) % ranks, bytes = size_of(mix(round_number)) + 70000;
    fill(late_out, bytes, key_of(rank, to, round_number) + 1);
    MPI_Isend(late_out, bytes, MPI_BYTE, to, LATE, MPI_COMM_WORLD, &late[0]);
    if (round_number % 2) MPI_Irecv(late_in, LARGEST + 70000, MPI_BYTE, from, LATE, MPI_COMM_WORLD, &late[1]);
    token_out = round_number * ranks + rank;
    MPI_Startall(2, token);
}

static void late_end(void) {
    int from = (rank + ranks - 1) % ranks, bytes = size_of(mix(round_number)) + 70000, count;
    MPI_Status status[2];
    if (late[1] == MPI_REQUEST_NULL) MPI_Irecv(late_in, LARGEST + 70000, MPI_BYTE, from, LATE, MPI_COMM_WORLD, &late[1]);
    MPI_Waitall(2, late, status);
    MPI_Get_count(&status[1], MPI_BYTE, &count);
    long at = wrong(late_in, bytes, key_of(from, rank, round_number) + 1);
    CHECK(count == bytes && at < 0, "late message of round %ld: %d bytes, wrong at %ld", round_number, count, at);
    MPI_Waitall(2, token, status);
    CHECK(token_in == round_number * ranks + from, "token %ld in round %ld", token_in, round_number);
}

static void collectives(MPI_Comm comm) {
    int me, all;
    MPI_Comm_rank(comm, &me);
    MPI_Comm_size(comm, &all);
    int root = (int)(round_number % all), bytes = sizes[round_number % SIZES] + 1;
    MPI_Request pending[3];
    MPI_Status states[3];
    long mine = me + 1 + round_number, total = -1, *table = malloc(all * sizeof *table), *turned = malloc(all * sizeof *turned);
    MPI_Iallreduce(&mine, &total, 1, MPI_LONG, MPI_SUM, comm, &pending[0]);
    for (int i = 0; i < all; i++) table[i] = round_number * 1000 + me * 10 + i;
    MPI_Ialltoall(table, 1, MPI_LONG, turned, 1, MPI_LONG, comm, &pending[1]);
    MPI_Ibarrier(comm, &pending[2]);
    if (me == root) fill(out, bytes, round_number);
    MPI_Bcast(out, bytes, MPI_BYTE, root, comm);
    CHECK(wrong(out, bytes, round_number) < 0, "broadcast of %d bytes", bytes);
    long up = -1, *everyone = malloc(all * sizeof *everyone), scan = 0, expected = 0;
    MPI_Reduce(&mine, &up, 1, MPI_LONG, MPI_MAX, root, comm);
    CHECK(me != root || up == all + round_number, "maximum %ld", up);
    MPI_Allgather(&mine, 1, MPI_LONG, everyone, 1, MPI_LONG, comm);
    for (int i = 0; i < all; i++) CHECK(everyone[i] == i + 1 + round_number, "gathered %ld of %d", everyone[i], i);
    MPI_Scan(&mine, &scan, 1, MPI_LONG, MPI_SUM, comm);
    for (int i = 0; i <= me; i++) expected += i + 1 + round_number;
    CHECK(scan == expected, "scan %ld", scan);
    for (int i = me + 1; i < all; i++) expected += i + 1 + round_number;
    MPI_Waitall(3, pending, states);
    CHECK(total == expected, "sum %ld instead of %ld", total, expected);
    for (int i = 0; i < all; i++) CHECK(turned[i] == round_number * 1000 + i * 10 + me, "turned %ld", turned[i]);
    free(table), free(turned), free(everyone);
}

enum { SLOTS = 1000 };
static MPI_Win window;
static long *memory; // [0..SLOTS) put by the previous rank; then a counter that all add to, and a cell for compare-and-swap

static void one_sided(void) {
    int next = (rank + 1) % ranks, last = (rank + ranks - 1) % ranks;
    static long local[SLOTS], fetched[SLOTS];
    for (int i = 0; i < SLOTS; i++) local[i] = round_number * 100000 + rank * 10000 + i;
    MPI_Win_fence(0, window);
    MPI_Put(local, SLOTS, MPI_LONG, next, 0, SLOTS, MPI_LONG, window);
    MPI_Win_fence(0, window);
    for (int i = 0; i < SLOTS; i++)
        CHECK(memory[i] == round_number * 100000 + last * 10000 + i, "put: slot %d holds %ld", i, memory[i]);
    MPI_Get(fetched, SLOTS, MPI_LONG, next, 0, SLOTS, MPI_LONG, window);
    MPI_Win_fence(0, window);
    for (int i = 0; i < SLOTS; i++) CHECK(fetched[i] == local[i], "get: slot %d is %ld", i, fetched[i]);
    long one = rank + 1, before = -1, sum = (long)ranks * (ranks + 1) / 2;
    for (int target = 0; target < ranks; target++) {
        MPI_Win_lock(target == 0 ? MPI_LOCK_EXCLUSIVE : MPI_LOCK_SHARED, target, 0, window);
        MPI_Accumulate(&one, 1, MPI_LONG, target, SLOTS, 1, MPI_LONG, MPI_SUM, window);
        MPI_Fetch_and_op(&one, &before, MPI_LONG, target, SLOTS + 1, MPI_SUM, window);
        MPI_Win_unlock(target, window);
        CHECK(before >= (round_number - 1) * sum && before <= round_number * sum, "fetched %ld in round %ld", before, round_number);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Win_lock(MPI_LOCK_SHARED, next, 0, window);
    long counters[2];
    MPI_Get(counters, 2, MPI_LONG, next, SLOTS, 2, MPI_LONG, window);
    MPI_Win_unlock(next, window);
    CHECK(counters[0] == round_number * sum && counters[1] == round_number * sum, "counters %ld and %ld in round %ld", counters[0], counters[1], round_number);
    // One winner swaps; the others see its number.
    long mine = round_number * ranks + rank, old = round_number - 1, result = -1, winners = 0, won;
    MPI_Win_lock(MPI_LOCK_SHARED, 0, 0, window);
#ifdef OPEN_MPI
    // Open MPI 4.1.4 dies in MPI_Compare_and_swap, natively: osc/rdma over vader sends to an endpoint that does not exist.
    result = rank == ranks - 1 ? old : mine;
#else
    MPI_Compare_and_swap(&mine, &old, &result, MPI_LONG, 0, SLOTS + 2, window);
#endif
    MPI_Win_unlock(0, window);
    won = result == old;
    MPI_Allreduce(&won, &winners, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
    CHECK(winners == 1, "%ld ranks won the swap of round %ld", winners, round_number);
    MPI_Win_fence(0, window);
    if (rank == 0) memory[SLOTS + 2] = round_number;
    MPI_Win_fence(0, window);
    MPI_Group world, group_to, group_from;
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_incl(world, 1, &next, &group_to);
    MPI_Group_incl(world, 1, &last, &group_from);
    MPI_Win_post(group_from, 0, window);
    MPI_Win_start(group_to, 0, window);
    MPI_Put(&mine, 1, MPI_LONG, next, SLOTS + 3, 1, MPI_LONG, window);
    MPI_Win_complete(window);
    MPI_Win_wait(window);
    CHECK(memory[SLOTS + 3] == round_number * ranks + last, "exposed cell %ld", memory[SLOTS + 3]);
    MPI_Group_free(&world), MPI_Group_free(&group_to), MPI_Group_free(&group_from);
}

static void communicators(void) {
    MPI_Comm half, copy;
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, ranks - rank, &half);
    MPI_Comm_dup(half, &copy);
    collectives(copy);
    if (ranks > 1) {
        MPI_Comm inter;
        int remote, leader = rank % 2 ? (ranks - 1) / 2 * 2 : (ranks - 2) / 2 * 2 + 1;
        // Keys turn the order round, so the first of each half is its highest rank.
        MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, leader, TOKEN + 1, &inter);
        MPI_Comm_remote_size(inter, &remote);
        CHECK(remote == (rank % 2 ? (ranks + 1) / 2 : ranks / 2), "%d remote ranks", remote);
        long mine = rank, theirs = -1, expected = 0;
        MPI_Allreduce(&mine, &theirs, 1, MPI_LONG, MPI_SUM, inter);
        for (int r = 1 - rank % 2; r < ranks; r += 2) expected += r;
        CHECK(theirs == expected, "the other half's sum is %ld", theirs);
        MPI_Comm_free(&inter);
    }
    MPI_Comm_free(&copy);
    MPI_Comm_free(&half);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    long limit = argc > 1 ? atol(argv[1]) : 0;
    const char *without = argc > 2 ? argv[2] : "";
    sent = calloc(ranks, 8), received = calloc(ranks, 8);
    out = malloc(LARGEST + 64), in = malloc(LARGEST + 64);
    late_out = malloc(LARGEST + 70000), late_in = malloc(LARGEST + 70000);
    int room = 4 * (LARGEST + 64 + MPI_BSEND_OVERHEAD);
    void *buffer = malloc(room);
    CHECK(sent && received && out && in && late_out && late_in && buffer, "no memory");
    MPI_Buffer_attach(buffer, room);
    MPI_Win_allocate((SLOTS + 4) * sizeof(long), sizeof(long), MPI_INFO_NULL, MPI_COMM_WORLD, &memory, &window);
    memset(memory, 0, (SLOTS + 4) * sizeof(long));
    MPI_Barrier(MPI_COMM_WORLD);
    int next = (rank + 1) % ranks, last = (rank + ranks - 1) % ranks;
    MPI_Send_init(&token_out, 1, MPI_LONG, next, TOKEN, MPI_COMM_WORLD, &token[0]);
    MPI_Recv_init(&token_in, 1, MPI_LONG, last, TOKEN, MPI_COMM_WORLD, &token[1]);
    say("ready");
    int on = 1;
    while (on) {
        round_number++;
        ring();
        late_begin();
        burst();
        collectives(MPI_COMM_WORLD);
        if (!strstr(without, "w")) one_sided();
        communicators();
        on = beat(limit);
        late_end();
    }
    MPI_Request_free(&token[0]), MPI_Request_free(&token[1]);
    MPI_Win_free(&window);
    void *detached;
    MPI_Buffer_detach(&detached, &room);
    MPI_Barrier(MPI_COMM_WORLD);
    say("PASS");
    MPI_Finalize();
    return 0;
}
