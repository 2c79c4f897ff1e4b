//# Checkpoints: 4
//# Scenario: go-on, restart, restart-twice
// Mutexes in shared memory whose state is the kernel's, too: with priority inheritance and robust, waited for by other processes and
// threads at each checkpoint. The next owner is one who waits; when an owner is killed, it is told (EOWNERDEAD). Barriers, rwlocks
// and semaphores between processes with them.
#include "check.h"
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { CHILDREN = 3 };

struct common {
    pthread_mutex_t inheriting, robust, both;
    pthread_rwlock_t rw;
    pthread_barrier_t barrier;
    sem_t go, back;
    atomic_long turns[3], dead[3];
    atomic_int stop;
};
static struct common *c;

static pthread_mutex_t *mutex(int n) { return n == 0 ? &c->inheriting : n == 1 ? &c->robust : &c->both; }

// Locks the n-th mutex, again and again: waits in it most of the time.
static void *contender(void *argument) {
    long n = (long)argument;
    while (!c->stop) {
        int error = pthread_mutex_lock(mutex(n));
        if (error == EOWNERDEAD) {
            c->dead[n]++;
            error = pthread_mutex_consistent(mutex(n));
        }
        CHECK(error == 0, "mutex %ld: %s", n, strerror(error));
        c->turns[n]++;
        CHECK(pthread_mutex_unlock(mutex(n)) == 0, "unlock");
        struct timespec t = {0, 1000000};
        nanosleep(&t, NULL);
    }
    return NULL;
}

static void child(void) {
    pthread_t threads[3];
    for (long n = 0; n < 3; n++) threads[n] = start(contender, (void *)n, 0);
    while (!c->stop) {
        CHECK(sem_wait(&c->go) == 0, "sem_wait");
        CHECK(pthread_rwlock_rdlock(&c->rw) == 0, "rdlock");
        int r = pthread_barrier_wait(&c->barrier);
        CHECK(r == 0 || r == PTHREAD_BARRIER_SERIAL_THREAD, "barrier");
        CHECK(pthread_rwlock_unlock(&c->rw) == 0, "unlock");
        CHECK(sem_post(&c->back) == 0, "sem_post");
    }
    for (int n = 0; n < 3; n++) join(threads[n]);
    _exit(0);
}

// Takes both that are robust, and is killed with them.
static pid_t owner(int fd[2]) {
    pid_t parent = getpid(), pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid > 0) {
        char x;
        CHECK(read(fd[0], &x, 1) == 1, "read");
        return pid;
    }
    // Whoever kills all that he has seen may have missed a new one.
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0, "prctl");
    if (getppid() != parent) _exit(1);
    for (int n = 1; n < 3; n++) {
        int error = pthread_mutex_lock(mutex(n));
        if (error == EOWNERDEAD) error = pthread_mutex_consistent(mutex(n));
        CHECK(error == 0, "mutex %d: %s", n, strerror(error));
    }
    CHECK(write(fd[1], "x", 1) == 1, "write");
    for (;;) pause();
}

int main(void) {
    c = mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(c != MAP_FAILED, "mmap");
    for (int n = 0; n < 3; n++) {
        pthread_mutexattr_t a;
        pthread_mutexattr_init(&a);
        pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
        if (n != 1) pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT);
        if (n != 0) pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
        CHECK(pthread_mutex_init(mutex(n), &a) == 0, "mutex %d", n);
    }
    pthread_rwlockattr_t ra;
    pthread_barrierattr_t ba;
    pthread_rwlockattr_init(&ra), pthread_rwlockattr_setpshared(&ra, PTHREAD_PROCESS_SHARED);
    pthread_barrierattr_init(&ba), pthread_barrierattr_setpshared(&ba, PTHREAD_PROCESS_SHARED);
    CHECK(pthread_rwlock_init(&c->rw, &ra) == 0 && pthread_barrier_init(&c->barrier, &ba, CHILDREN + 1) == 0, "init");
    CHECK(sem_init(&c->go, 1, 0) == 0 && sem_init(&c->back, 1, 0) == 0, "sem_init");
    int fd[2];
    CHECK(pipe(fd) == 0, "pipe");
    pid_t pids[CHILDREN];
    for (int i = 0; i < CHILDREN; i++) {
        pids[i] = fork();
        CHECK(pids[i] >= 0, "fork");
        if (pids[i] == 0) child();
    }
    ready();
    long rounds = 0;
    int more = 1;
    while (more) {
        // At the checkpoint of this beat all wait: for us, and for one that will be killed.
        CHECK(pthread_mutex_lock(&c->inheriting) == 0, "lock");
        pid_t pid = owner(fd);
        CHECK(pthread_rwlock_wrlock(&c->rw) == 0, "wrlock");
        for (int i = 0; i < CHILDREN; i++) CHECK(sem_post(&c->go) == 0, "sem_post");
        long before[3], dead[3];
        for (int n = 0; n < 3; n++) before[n] = c->turns[n], dead[n] = c->dead[n];
        more = beat();
        for (int n = 0; n < 3; n++) CHECK(c->turns[n] == before[n] && c->dead[n] == dead[n], "mutex %d had no owner", n);
        CHECK(pthread_mutex_unlock(&c->inheriting) == 0, "unlock");
        int status;
        CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid, "the owner");
        for (int n = 1; n < 3; n++) {
            while (c->dead[n] == dead[n]) sched_yield();
            CHECK(c->dead[n] == dead[n] + 1, "mutex %d: %ld were told of one death", n, c->dead[n] - dead[n]);
        }
        for (int n = 0; n < 3; n++)
            while (c->turns[n] < before[n] + 10) sched_yield();
        rounds++;
        c->stop = !more;
        CHECK(pthread_rwlock_unlock(&c->rw) == 0, "unlock");
        int r = pthread_barrier_wait(&c->barrier);
        CHECK(r == 0 || r == PTHREAD_BARRIER_SERIAL_THREAD, "barrier");
        for (int i = 0; i < CHILDREN; i++) CHECK(sem_wait(&c->back) == 0, "sem_wait");
    }
    for (int i = 0; i < CHILDREN; i++) {
        int status;
        CHECK(waitpid(pids[i], &status, 0) == pids[i] && status == 0, "child %d: %#x", i, status);
    }
    return pass();
}
