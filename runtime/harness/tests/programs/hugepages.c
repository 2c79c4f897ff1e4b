//# Scenario: go-on, restart
//# Checkpoints: 6
//# Where: host
// Huge pages (hugetlbfs), private, shared and of System V, all that the pool has, rewritten without a pause: the kernel takes those that a
// forked child shares away from it when the pool is empty. Also memory locked in several ways, and a file that has become
// shorter than what is mapped of it.
//
// The pool is made larger for the time of the test where that is allowed; where there are no huge pages, small ones are used.
#include "check.h"
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>

enum { POOL = 7, HUGE = 2 << 20, WORDS = HUGE / 8 };
static const char pool[] = "/proc/sys/vm/nr_hugepages";

// Other tests may do the same at this moment.
static void enlarge(int by) {
    FILE *f = fopen(pool, "r+");
    int now;
    if (!f) return;
    flock(fileno(f), LOCK_EX);
    if (fscanf(f, "%d", &now) == 1 && fseek(f, 0, SEEK_SET) == 0) fprintf(f, "%d", now + by);
    fclose(f);
}
static void give_back(void) { enlarge(-POOL); }

static uint64_t *huge(int pages, int flags) {
    void *p = mmap(NULL, (size_t)pages * HUGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (p == MAP_FAILED) p = mmap(NULL, (size_t)pages * HUGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED, "mmap of %d huge pages", pages);
    return p;
}

// kB of /proc/self/smaps, or its flags, for the mapping at `p`.
static void smaps(void *p, const char *key, char *out, size_t size) {
    FILE *f = fopen("/proc/self/smaps", "r");
    char line[512];
    int here = 0;
    *out = 0;
    CHECK(f, "smaps");
    while (fgets(line, sizeof line, f)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) here = start <= (unsigned long)p && (unsigned long)p < end;
        else if (here && strncmp(line, key, strlen(key)) == 0) snprintf(out, size, "%s", line);
    }
    fclose(f);
}

int main(void) {
    if (access(pool, W_OK) == 0) {
        enlarge(POOL);
        atexit(give_back);
    }
    uint64_t *private = huge(POOL - 2, MAP_PRIVATE), *shared = huge(1, MAP_SHARED), seed = 0;
    long page = sysconf(_SC_PAGESIZE);
    char *locked = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *onfault = mmap(NULL, 64 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mlock(locked, 4 * page) == 0 && mlock2(onfault, 64 * page, MLOCK_ONFAULT) == 0, "mlock");
    onfault[5 * page] = 5;
    int fd = open("shorter", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(ftruncate(fd, 4 * page) == 0, "ftruncate");
    char *shorter = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    strcpy(shorter, "what is left");
    CHECK(ftruncate(fd, page) == 0 && close(fd) == 0, "ftruncate");
    fd = open("shorter", O_RDONLY);
    char *reader = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(reader != MAP_FAILED && close(fd) == 0, "mmap for reading");

    // A segment that somebody else has filled, and this process does not look at until the end.
    int id = shmget(IPC_PRIVATE, HUGE, IPC_CREAT | SHM_HUGETLB | 0600);
    if (id < 0) id = shmget(IPC_PRIVATE, HUGE, IPC_CREAT | 0600);
    uint64_t *segment = shmat(id, NULL, 0);
    CHECK(segment != (void *)-1 && shmctl(id, IPC_RMID, NULL) == 0, "segment %d", id);
    pid_t child = fork();
    CHECK(child >= 0, "fork");
    if (child == 0) {
        for (size_t i = 0; i < WORDS; i++) segment[i] = mix(3 * i);
        _exit(0);
    }
    CHECK(waitpid(child, NULL, 0) == child, "waitpid");

    for (size_t i = 0; i < (POOL - 2) * WORDS; i++) private[i] = mix(i);
    for (size_t i = 0; i < WORDS; i++) shared[i] = mix(~i);
    ready();
    do {
        uint64_t next = seed + 1;
        for (size_t i = 0; i < (POOL - 2) * WORDS; i++) {
            CHECK(private[i] == mix(seed + i), "private huge page, word %zu", i);
            private[i] = mix(next + i);
        }
        for (size_t i = 0; i < WORDS; i++) CHECK(shared[i] == mix(~i), "shared huge page, word %zu", i);
        seed = next;
        char text[512];
        smaps(locked, "VmFlags", text, sizeof text);
        CHECK(strstr(text, " lo"), "no longer locked: %s", text);
        smaps(onfault, "VmFlags", text, sizeof text);
        CHECK(strstr(text, " lo") && strstr(text, " lf"), "no longer locked when touched: %s", text);
        CHECK(onfault[5 * page] == 5 && !strcmp(shorter, "what is left") && !strcmp(reader, shorter), "contents");
        CHECK(mprotect(reader, page, PROT_READ | PROT_WRITE) < 0 && errno == EACCES, "a file open for reading is writable");
    } while (beat());
    for (size_t i = 0; i < WORDS; i++) CHECK(segment[i] == mix(3 * i), "segment, word %zu", i);
    return pass();
}
