// A few objects of shared memory, two without a name, each mapped hundreds of times in turn (as UCX does, once more for each window), and by two
// processes: after a restart all are one memory still.
//# Checkpoints: 5
#include "check.h"
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { OBJECTS = 4, TIMES = 400, LENGTH = 3 * 4096 };
static volatile uint64_t *view[TIMES][OBJECTS];

int main(void) {
    int fds[OBJECTS];
    for (int o = 0; o < OBJECTS; o++) {
        char name[64];
        snprintf(name, sizeof name, "/sw-aliases-%d-%d", getpid(), o);
        fds[o] = o == 0 ? memfd_create("aliases", 0) : shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
        CHECK(fds[o] >= 0 && ftruncate(fds[o], LENGTH) == 0, "object %d", o);
        if (o > 0) CHECK(shm_unlink(name) == 0, "object %d", o);
    }
    for (int t = 0; t < TIMES; t++)
        for (int o = 0; o < OBJECTS; o++) {
            view[t][o] = mmap(NULL, LENGTH, t % 7 == 3 ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED, fds[o], 0);
            CHECK(view[t][o] != MAP_FAILED, "mapping %d of object %d", t, o);
        }
    for (int o = 0; o < OBJECTS; o++) close(fds[o]);
    pid_t child = fork();
    CHECK(child >= 0, "fork");
    // The child answers in the second page what it finds in the first, each time through other mappings.
    for (uint64_t n = 1; child == 0; n++) {
        int t = (int)(n % TIMES);
        while (view[t][0][0] < n)
            if (sched_yield() != 0 || getppid() == 1) _exit(0);
        if (view[t][0][0] == UINT64_MAX) _exit(0);
        for (int o = 0; o < OBJECTS; o++) {
            CHECK(view[t][o][1] == n * OBJECTS + o, "object %d has %lu in round %lu", o, view[t][o][1], n);
            view[0][o][600] = n + o;
        }
        __atomic_store_n(&view[0][0][700], n, __ATOMIC_RELEASE);
    }
    ready();
    uint64_t n = 0;
    do {
        n++;
        for (int o = 0; o < OBJECTS; o++) view[1][o][1] = n * OBJECTS + o;
        __atomic_store_n(&view[1][0][0], n, __ATOMIC_RELEASE);
        while (__atomic_load_n(&view[3][0][700], __ATOMIC_ACQUIRE) < n) CHECK(waitpid(child, NULL, WNOHANG) == 0, "the child ended");
        for (int t = 0; t < TIMES; t++)
            for (int o = 0; o < OBJECTS; o++) CHECK(view[t][o][600] == n + o, "mapping %d of object %d has %lu", t, o, view[t][o][600]);
    } while (beat());
    view[1][0][0] = UINT64_MAX;
    CHECK(waitpid(child, NULL, 0) == child, "no child");
    return pass();
}
