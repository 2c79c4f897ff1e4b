//# Scenario: go-on, restart
//# Checkpoints: 5
//# Modes: pipe, user
//# Where: host
// So much memory that it is gathered into huge pages before each stop, while all of this goes on: a thread stamps page after
// page, so that a page of another moment would show; another discards, unmaps, moves, protects and grows; children write to what
// they have inherited. Memory of which only some pages are there must not become more.
#include "check.h"
#include <sys/mman.h>
#include <sys/wait.h>

enum { PAGE = 4096, WORDS = PAGE / 8, STAMPED = 24 << 10, QUIET = 20 << 10, CHURNED = 2 << 10, SPARSE = 8 << 10 };
static atomic_int done;

static char *map(size_t pages) {
    char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED, "mmap of %zu pages", pages);
    return p;
}

// Each page says in its first, a middle and its last word how often it was passed, and by whom.
static void *stamp(void *memory) {
    uint64_t *words = memory;
    for (uint64_t round = 0; !done; round++) {
        for (size_t i = 0; i < STAMPED; i++) {
            uint64_t *page = words + i * WORDS, was = round ? mix(round - 1) ^ i : 0;
            CHECK(page[0] == was && page[i % WORDS] == was && page[WORDS - 1] == was, "page %zu in round %lu", i, round);
            page[0] = page[i % WORDS] = page[WORDS - 1] = mix(round) ^ i;
        }
    }
    return NULL;
}

static int is_zero(const char *p, size_t pages) {
    for (size_t i = 0; i < pages; i++)
        if (p[i * PAGE] || p[i * PAGE + PAGE - 1]) return 0;
    return 1;
}

static void *churn(void *arg) {
    (void)arg;
    for (unsigned round = 1; !done; round++) {
        char *p = map(CHURNED), mark = (char)(round | 1);
        for (size_t i = 0; i < CHURNED; i++) p[i * PAGE] = mark;
        CHECK(madvise(p + 512 * PAGE, 700 * PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED");
        CHECK(is_zero(p + 512 * PAGE, 700), "discarded memory in round %u", round);
        char *q = mremap(p, CHURNED * PAGE, 2 * CHURNED * PAGE, MREMAP_MAYMOVE);
        CHECK(q != MAP_FAILED, "mremap");
        CHECK(mprotect(q, CHURNED / 4 * PAGE, PROT_READ) == 0, "mprotect");
        for (size_t i = 0; i < 2 * CHURNED; i++)
            CHECK(q[i * PAGE] == (i < 512 || (i >= 1212 && i < CHURNED) ? mark : 0), "page %zu in round %u", i, round);
        CHECK(munmap(q, 2 * CHURNED * PAGE) == 0, "munmap");
        char *heap = sbrk(64 * PAGE);
        CHECK(heap != (void *)-1 && is_zero(heap, 64), "new heap in round %u", round);
        memset(heap, mark, 64 * PAGE);
        CHECK(sbrk(-64 * PAGE) != (void *)-1, "heap in round %u", round);
    }
    return NULL;
}

static size_t there(char *p, size_t pages) {
    static unsigned char bits[SPARSE];
    CHECK(mincore(p, pages * PAGE, bits) == 0, "mincore");
    size_t n = 0;
    for (size_t i = 0; i < pages; i++) n += bits[i] & 1;
    return n;
}

static void check_quiet(uint64_t *quiet, uint64_t with) {
    for (size_t i = 0; i < QUIET; i++) CHECK(quiet[i * WORDS + i % WORDS] == mix(i + with), "quiet page %zu", i);
}

int main(void) {
    uint64_t *stamped = (uint64_t *)map(STAMPED), *quiet = (uint64_t *)map(QUIET);
    char *sparse = map(SPARSE);
    // malloc would meet the other thread's sbrk: it has an arena of its own.
    for (size_t i = 0; i < STAMPED * WORDS; i++) stamped[i] = 0;
    for (size_t i = 0; i < QUIET; i++) quiet[i * WORDS + i % WORDS] = mix(i);
    for (size_t i = 0; i < SPARSE; i += 2) sparse[i * PAGE] = 1;
    size_t few = there(sparse, SPARSE);
    pthread_t stamps = start(stamp, stamped, 0), churns = start(churn, NULL, 0);
    ready();
    do {
        check_quiet(quiet, 0);
        CHECK(there(sparse, SPARSE) <= few, "%zu pages of sparse memory, were %zu", there(sparse, SPARSE), few);
        for (size_t i = 0; i < SPARSE; i += 2) CHECK(sparse[i * PAGE] == 1, "sparse page %zu", i);
        pid_t child = fork();
        CHECK(child >= 0, "fork");
        if (child == 0) {
            for (size_t i = 0; i < QUIET; i++) quiet[i * WORDS + i % WORDS] = mix(i + 1);
            check_quiet(quiet, 1);
            _exit(0);
        }
        int status;
        while (waitpid(child, &status, 0) < 0) CHECK(errno == EINTR, "waitpid");
        CHECK(status == 0, "the child ended with %#x", status);
    } while (beat());
    done = 1;
    join(stamps);
    join(churns);
    return pass();
}
