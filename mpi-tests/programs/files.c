//# Level: normal
// MPI-IO, in rounds; every byte is read back and checked:
//
// - collective writes through a view of interleaved blocks, independent writes at offsets, non-blocking ones that are open
//   from one round to the next;
// - with `shared`: shared and ordered file pointers;
// - the files stay open all the time, under their names in the current folder.
//
//     files [ROUNDS [shared]]      default 0: until $SW_STOP appears
//
// What is written at a place depends on the place alone: a restart does not roll files back, so they hold what was written
// after the checkpoint, and the same is written again. A shared pointer is itself a file, hence not for restarts.
#include "check.h"

enum { BLOCK = 500, BLOCKS = 40, SLOTS = 8 };

static MPI_File open_file(const char *name) {
    MPI_File file;
    int code = MPI_File_open(MPI_COMM_WORLD, name, MPI_MODE_CREATE | MPI_MODE_RDWR, MPI_INFO_NULL, &file);
    CHECK(code == MPI_SUCCESS, "cannot open %s", name);
    return file;
}

static void shared_pointer(MPI_File shared, const int *out, int slot) {
    int *everything = malloc(110 * ranks * sizeof(int));
    MPI_Status status;
    // By the pointer that all share: in the order of the ranks, then in any order. It is set back in each round.
    MPI_File_seek_shared(shared, 0, MPI_SEEK_SET);
    MPI_File_write_ordered(shared, out, 100, MPI_INT, &status);
    MPI_File_write_shared(shared, out, 10, MPI_INT, &status);
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Offset end;
    MPI_File_get_position_shared(shared, &end);
    CHECK(end == 110 * ranks * (MPI_Offset)sizeof(int), "the shared pointer is at %lld", (long long)end);
    MPI_File_sync(shared);
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_File_read_at(shared, 0, everything, 110 * ranks, MPI_INT, &status);
    for (int i = 0; i < 100 * ranks; i++) CHECK(everything[i] == slot * 1000000 + i / 100 * 100000 + i % 100, "ordered: word %d is %d", i, everything[i]);
    for (int i = 0, seen = 0; i < ranks; i++) {
        int who = (everything[100 * ranks + 10 * i] - slot * 1000000) / 100000;
        CHECK(who >= 0 && who < ranks && !(seen & 1 << who), "shared: %d twice, or nobody", who);
        seen |= 1 << who;
    }
    free(everything);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    long limit = argc > 1 ? atol(argv[1]) : 0, round = 0;
    int by_pointer = argc > 2;
    MPI_File viewed = open_file("viewed"), plain = open_file("plain"), shared = open_file("shared");
    // Rank r has each r-th block.
    MPI_Datatype blocks;
    MPI_Type_vector(BLOCKS, BLOCK, BLOCK * ranks, MPI_INT, &blocks);
    MPI_Type_commit(&blocks);
    enum { LENGTH = BLOCK * BLOCKS };
    int *out = malloc(LENGTH * sizeof(int)), *in = malloc(LENGTH * sizeof(int)), *late = malloc(LENGTH * sizeof(int)), *everything = malloc(LENGTH * sizeof(int) * ranks);
    MPI_Offset part = (MPI_Offset)LENGTH * ranks * sizeof(int), lasting = (MPI_Offset)LENGTH * sizeof(int);
    MPI_Request pending = MPI_REQUEST_NULL;
    MPI_Status status;
    say("ready");
    int on = 1, count;
    while (on) {
        round++;
        int slot = (int)(round % SLOTS);
        for (int i = 0; i < LENGTH; i++) out[i] = slot * 1000000 + rank * 100000 + i;
        MPI_File_set_view(viewed, slot * part + rank * BLOCK * (MPI_Offset)sizeof(int), MPI_INT, blocks, "native", MPI_INFO_NULL);
        MPI_File_write_at_all(viewed, 0, out, LENGTH, MPI_INT, &status);
        MPI_Get_count(&status, MPI_INT, &count);
        CHECK(count == LENGTH, "%d written", count);
        memset(in, 0, LENGTH * sizeof(int));
        MPI_File_read_at_all(viewed, 0, in, LENGTH, MPI_INT, &status);
        CHECK(memcmp(in, out, LENGTH * sizeof(int)) == 0, "read back through the view, round %ld", round);
        // All of the others' too, as plain bytes.
        MPI_File_sync(viewed);
        MPI_Barrier(MPI_COMM_WORLD);
        MPI_File_set_view(viewed, 0, MPI_INT, MPI_INT, "native", MPI_INFO_NULL);
        MPI_File_read_at(viewed, slot * part / sizeof(int), everything, LENGTH * ranks, MPI_INT, &status);
        for (int i = 0; i < LENGTH * ranks; i++) {
            int block = i / BLOCK, who = block % ranks, index = block / ranks * BLOCK + i % BLOCK;
            CHECK(everything[i] == slot * 1000000 + who * 100000 + index, "word %d of slot %d is %d", i, slot, everything[i]);
        }
        // Begun in the last round.
        MPI_Wait(&pending, &status);
        if (round > 1) {
            MPI_File_read_at(plain, ((round - 1) % SLOTS) * part + rank * lasting, in, LENGTH, MPI_INT, &status);
            CHECK(memcmp(in, late, LENGTH * sizeof(int)) == 0, "what the last round began, in round %ld", round);
        }
        memcpy(late, out, LENGTH * sizeof(int));
        MPI_File_iwrite_at(plain, slot * part + rank * lasting, late, LENGTH, MPI_INT, &pending);
        if (by_pointer) shared_pointer(shared, out, slot);
        MPI_Barrier(MPI_COMM_WORLD);
        on = beat(limit);
    }
    MPI_Wait(&pending, &status);
    MPI_File_close(&viewed), MPI_File_close(&plain), MPI_File_close(&shared);
    MPI_Type_free(&blocks);
    MPI_Barrier(MPI_COMM_WORLD);
    say("PASS");
    MPI_Finalize();
    return 0;
}
