//# Checkpoints: 4
//# Scenario: go-on, restart, restart-twice
//# Modes: pipe, user
// Memory that three processes share: anonymous with a process-shared mutex and condition, a memfd of which each maps another
// part (and one of them a part twice), shm_open with its name and without, a named semaphore.
#include "check.h"
#include <fcntl.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { PAGE = 4096, CHILDREN = 2, PAGES = 12, BULK = 16 << 20 };

static struct board {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t turn; // 0: the parent's, else a child's
    uint64_t round;
    int over;
} *board;
static uint64_t *bulk, *named, *nameless;
static sem_t *semaphore;

static void *map(size_t length, int flags, int fd, off_t offset) {
    void *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, offset);
    CHECK(p != MAP_FAILED, "mmap");
    return p;
}

static void wait_turn(uint64_t me) {
    while (board->turn != me) CHECK(pthread_cond_wait(&board->changed, &board->lock) == 0, "wait");
}

static void child(uint64_t me, int fd) {
    // Pages 4 to 7, or 8 to 11: nobody else maps them.
    uint64_t *mine = map(4 * PAGE, 0, fd, me * 4 * PAGE);
    uint64_t *first = map(PAGE, 0, fd, 0);
    close(fd);
    for (int i = 0; i < 4; i++) mine[i * 512] = mix(me * 10 + i);
    pthread_mutex_lock(&board->lock);
    for (;;) {
        wait_turn(me);
        if (board->over) break;
        uint64_t n = board->round;
        for (int i = 0; i < 4; i++) CHECK(mine[i * 512] == mix(me * 10 + i), "child %lu, page %d", me, i);
        CHECK(first[0] == n && named[0] == n && nameless[0] == n, "child %lu: %lu %lu %lu", me, first[0], named[0], nameless[0]);
        for (size_t i = 0; i < BULK / 8; i += 97) CHECK(bulk[i] == mix(i), "child %lu: bulk %zu", me, i);
        first[me] = named[me] = nameless[me] = mix(n + me);
        CHECK(sem_post(semaphore) == 0, "sem_post");
        board->turn = me % CHILDREN == 0 ? 0 : me + 1;
        pthread_cond_broadcast(&board->changed);
    }
    pthread_mutex_unlock(&board->lock);
    _exit(0);
}

static int shm(const char *name, off_t size) {
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0 && ftruncate(fd, size) == 0, "shm_open %s", name);
    return fd;
}

int main(void) {
    char name[3][64];
    for (int i = 0; i < 3; i++) snprintf(name[i], sizeof name[i], "/slackwater-test-%d-%d", getpid(), i);
    board = map(sizeof *board, MAP_ANONYMOUS, -1, 0);
    bulk = map(BULK, MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < BULK / 8; i++) bulk[i] = mix(i);
    pthread_mutexattr_t ma;
    pthread_condattr_t ca;
    pthread_mutexattr_init(&ma);
    pthread_condattr_init(&ca);
    CHECK(pthread_mutexattr_setpshared(&ma, PTHREAD_PROCESS_SHARED) == 0, "pshared");
    CHECK(pthread_condattr_setpshared(&ca, PTHREAD_PROCESS_SHARED) == 0, "pshared");
    pthread_mutex_init(&board->lock, &ma);
    pthread_cond_init(&board->changed, &ca);
    int fd = memfd_create("ring", 0);
    CHECK(fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0, "memfd");
    // A ring: the same page twice, one behind the other.
    char *ring = mmap(NULL, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t *first = mmap(ring, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    uint64_t *again = mmap(ring + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    CHECK((char *)first == ring && (char *)again == ring + PAGE, "ring");
    int with = shm(name[0], 1000), without = shm(name[1], PAGE);
    named = map(1000, 0, with, 0);
    nameless = map(PAGE, 0, without, 0);
    close(with);
    close(without);
    CHECK(shm_unlink(name[1]) == 0, "shm_unlink");
    semaphore = sem_open(name[2], O_CREAT | O_EXCL, 0600, 0);
    CHECK(semaphore != SEM_FAILED, "sem_open");
    pid_t pids[CHILDREN];
    for (int i = 0; i < CHILDREN; i++) {
        pids[i] = fork();
        CHECK(pids[i] >= 0, "fork");
        if (pids[i] == 0) child(i + 1, fd);
    }
    close(fd);
    ready();
    do {
        pthread_mutex_lock(&board->lock);
        uint64_t n = ++board->round;
        *again = *named = *nameless = n;
        board->turn = 1;
        pthread_cond_broadcast(&board->changed);
        wait_turn(0);
        for (uint64_t i = 1; i <= CHILDREN; i++) {
            uint64_t want = mix(n + i);
            CHECK(first[i] == want && named[i] == want && nameless[i] == want, "child %lu in round %lu", i, n);
            CHECK(sem_trywait(semaphore) == 0, "sem_trywait");
        }
        CHECK(*first == n, "the ring's two ends differ");
        CHECK(sem_trywait(semaphore) == -1 && errno == EAGAIN, "the semaphore counts too much");
        // Who opens it by its name has the same one.
        sem_t *again = sem_open(name[2], 0);
        CHECK(again != SEM_FAILED && sem_post(again) == 0 && sem_close(again) == 0, "sem_open");
        CHECK(sem_trywait(semaphore) == 0, "the name is another semaphore's");
        pthread_mutex_unlock(&board->lock);
        struct stat st;
        with = shm_open(name[0], O_RDWR, 0);
        CHECK(with >= 0 && fstat(with, &st) == 0 && st.st_size == 1000, "%s: %ld bytes", name[0], (long)st.st_size);
        uint64_t *other = map(1000, 0, with, 0);
        CHECK(other[0] == n, "what is named %s is another object", name[0]);
        munmap(other, 1000);
        close(with);
        CHECK(shm_open(name[1], O_RDWR, 0) == -1 && errno == ENOENT, "%s is back", name[1]);
    } while (beat());
    pthread_mutex_lock(&board->lock);
    board->over = 1;
    for (int i = 0; i < CHILDREN; i++) {
        board->turn = i + 1;
        pthread_cond_broadcast(&board->changed);
        pthread_mutex_unlock(&board->lock);
        int status;
        CHECK(waitpid(pids[i], &status, 0) == pids[i] && status == 0, "child %d: %#x", i + 1, status);
        pthread_mutex_lock(&board->lock);
    }
    pthread_mutex_unlock(&board->lock);
    CHECK(shm_unlink(name[0]) == 0 && sem_close(semaphore) == 0 && sem_unlink(name[2]) == 0, "unlink");
    return pass();
}
