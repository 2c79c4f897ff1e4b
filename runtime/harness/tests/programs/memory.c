//# Scenario: go-on, restart
//# Checkpoints: 4
// Mappings of each kind, with known content, checked and changed in each round: private, shared anonymous, file-backed private
// and shared, hugepage-advised, PROT_NONE, read-only, mremap'ed, a stack that grows, brk and malloc heaps, partly discarded
// memory, a deleted file, DONTDUMP (which is no cutout).
#include "check.h"
#include <fcntl.h>
#include <malloc.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { PAGES = 64 };
static long page;

static void fill(uint64_t *p, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i < bytes / 8; i++) p[i] = mix(seed + i);
}
static void same(const uint64_t *p, size_t bytes, uint64_t seed, const char *what) {
    for (size_t i = 0; i < bytes / 8; i++) CHECK(p[i] == mix(seed + i), "%s at %zu", what, i * 8);
}
static void zero(const char *p, size_t bytes, const char *what) {
    for (size_t i = 0; i < bytes; i++) CHECK(p[i] == 0, "%s at %zu", what, i);
}
static void *map(size_t bytes, int prot, int flags, int fd) {
    void *p = mmap(NULL, bytes, prot, flags, fd, 0);
    CHECK(p != MAP_FAILED, "mmap of %zu", bytes);
    return p;
}

static sigjmp_buf back;
static void on_fault(int signal) { siglongjmp(back, signal); }
static int faults(volatile char *p, int writes) {
    int signal = sigsetjmp(back, 1);
    if (signal == 0) {
        if (writes) *p = 1;
        else (void)*p;
    }
    return signal;
}

static int __attribute__((noinline)) deep(int levels) {
    volatile char frame[4096];
    memset((void *)frame, levels, sizeof frame);
    int sum = levels ? deep(levels - 1) : 0;
    CHECK(frame[0] == (char)levels && frame[4095] == (char)levels, "stack frame %d", levels);
    return sum + 1;
}

int main(void) {
    page = sysconf(_SC_PAGESIZE);
    size_t bytes = PAGES * page;
    struct sigaction fault = {.sa_handler = on_fault};
    sigaction(SIGSEGV, &fault, NULL);
    int rw = PROT_READ | PROT_WRITE, anon = MAP_ANONYMOUS;

    uint64_t *private = map(bytes, rw, MAP_PRIVATE | anon, -1), *shared = map(bytes, rw, MAP_SHARED | anon, -1);
    char path[] = "memory.XXXXXX", gone[] = "memory.XXXXXX";
    int fd = mkstemp(path), deleted = mkstemp(gone);
    CHECK(fd >= 0 && deleted >= 0, "scratch files");
    CHECK(ftruncate(fd, bytes) == 0 && ftruncate(deleted, bytes) == 0, "scratch files");
    uint64_t *file = map(bytes, rw, MAP_SHARED, fd), *copy = map(bytes, rw, MAP_PRIVATE, fd);
    uint64_t *lost = map(bytes, rw, MAP_SHARED, deleted), *lost_copy = map(bytes, PROT_READ, MAP_PRIVATE, deleted);
    fill(file, bytes, 30);
    fill(lost, bytes, 31);
    fill(copy, bytes / 2, 32); // the first half is ours, the second the file's
    CHECK(unlink(gone) == 0, "unlink");
    close(deleted);

    size_t huge = 4 << 20;
    char *around = map(huge + (2 << 20), rw, MAP_PRIVATE | anon, -1);
    uint64_t *advised = (uint64_t *)(((uintptr_t)around + (2 << 20) - 1) & ~((2ul << 20) - 1));
    madvise(advised, huge, MADV_HUGEPAGE);
    char *none = map(bytes, PROT_NONE, MAP_PRIVATE | anon, -1);
    uint64_t *hidden = map(bytes, rw, MAP_PRIVATE | anon, -1), *constant = map(bytes, rw, MAP_PRIVATE | anon, -1);
    fill(hidden, bytes, 5);
    mprotect(hidden, bytes, PROT_NONE); // has content that nobody can read now
    fill(constant, bytes, 6);
    mprotect(constant, bytes, PROT_READ);
    uint64_t *undumped = map(bytes, rw, MAP_PRIVATE | anon, -1);
    fill(undumped, bytes, 7);
    madvise(undumped, bytes, MADV_DONTDUMP);
    char *discarded = map(bytes, rw, MAP_PRIVATE | anon, -1);
    uint64_t *moved = map(bytes, rw, MAP_PRIVATE | anon, -1);
    fill(moved, bytes, 8);
    size_t moved_bytes = bytes;
    uint64_t *brk_heap = sbrk(bytes);
    CHECK(brk_heap != (void *)-1, "sbrk");
    void *heap[200] = {0};
    size_t heap_bytes[200] = {0};
    ready();

    uint64_t round = 0;
    fill(private, bytes, 100);
    fill(shared, bytes, 200);
    fill(advised, huge, 300);
    fill(brk_heap, bytes, 400);
    for (int i = 0; i < 200; i++) {
        heap_bytes[i] = (mix(i) % 40000 + 8) & ~7ul;
        fill(heap[i] = malloc(heap_bytes[i]), heap_bytes[i], i);
    }
    memset(discarded, 1, bytes);
    do {
        same(private, bytes, 100 + round, "private");
        same(shared, bytes, 200 + round, "shared");
        same(advised, huge, 300 + round, "hugepage-advised");
        same(brk_heap, bytes, 400 + round, "brk heap");
        same(file, bytes, 30 + round, "shared file");
        same(copy, bytes / 2, 32, "private file, own half");
        same(copy + bytes / 16, bytes / 2, 30 + round + bytes / 16, "private file, the file's half");
        same(lost, bytes, 31, "deleted file");
        same(lost_copy, bytes, 31, "deleted file, private");
        same(constant, bytes, 6, "read-only");
        same(undumped, bytes, 7, "DONTDUMP");
        same(moved, moved_bytes, 8, "moved");
        CHECK(faults(none, 0) == SIGSEGV, "PROT_NONE");
        CHECK(faults((char *)hidden, 0) == SIGSEGV, "PROT_NONE with content");
        CHECK(faults((char *)constant, 1) == SIGSEGV, "read-only");
        mprotect(hidden, bytes, PROT_READ);
        same(hidden, bytes, 5, "hidden");
        mprotect(hidden, bytes, PROT_NONE);
        // What an allocator relies on: discarded memory is zero, not what once was there.
        CHECK(discarded[0] == 1 && discarded[bytes - 1] == 1, "not discarded yet");
        madvise(discarded, bytes / 2, MADV_DONTNEED);
        zero(discarded, bytes / 2, "discarded");
        memset(discarded, 1, bytes / 2);
        uint64_t pread_value;
        CHECK(pread(fd, &pread_value, 8, 8) == 8 && pread_value == mix(31 + round), "the file sees the mapping");
        CHECK(deep(20 + round % 500) > 20, "stack");
        for (int i = round % 3; i < 200; i += 3) {
            same(heap[i], heap_bytes[i], i, "malloc");
            free(heap[i]);
            heap_bytes[i] = (mix(i + round) % 40000 + 8) & ~7ul;
            fill(heap[i] = malloc(heap_bytes[i]), heap_bytes[i], i);
        }
        malloc_trim(0);
        size_t longer = bytes * (1 + round % 4);
        moved = mremap(moved, moved_bytes, longer, MREMAP_MAYMOVE);
        CHECK(moved != MAP_FAILED, "mremap");
        if (longer > moved_bytes) {
            zero((char *)moved + moved_bytes, longer - moved_bytes, "mremap's new pages");
            fill(moved + moved_bytes / 8, longer - moved_bytes, 8 + moved_bytes / 8);
        }
        moved_bytes = longer;
        round++;
        fill(private, bytes, 100 + round);
        fill(shared, bytes, 200 + round);
        fill(advised, huge, 300 + round);
        fill(brk_heap, bytes, 400 + round);
        fill(file, bytes, 30 + round);
    } while (beat());
    // The heap's end still moves.
    void *end = sbrk(0);
    CHECK(sbrk(page) == end && sbrk(0) == (char *)end + page, "brk");
    return pass();
}
