//# Checkpoints: 4
//# Scenario: go-on, restart, restart-twice
// System V IPC, between two processes: segments (removed while attached, attached by nobody, attached in part, read-only),
// semaphores that are waited for, messages that wait. Numbers, keys and contents have to stay, and what was attached can be
// detached.
#include "check.h"
#include <sched.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>

enum { PAGE = 4096, ASK = 0, ANSWER = 1, IDLE = 2, DEPTH = 5 };

static int semaphores, queue, loose, key;
static volatile uint64_t *common; // in a removed segment

static void add(int n, int by) {
    struct sembuf op = {n, by, 0};
    CHECK(semop(semaphores, &op, 1) == 0, "semop %d by %d", n, by);
}

static char *attach(int id, void *at, int flags) {
    char *p = shmat(id, at, flags);
    CHECK(p != (void *)-1, "shmat %d", id);
    return p;
}

static struct shmid_ds look(int id) {
    struct shmid_ds ds;
    CHECK(shmctl(id, IPC_STAT, &ds) == 0, "shmctl %d", id);
    return ds;
}

// Waits in semop most of the time, checkpoints included.
static void child(void) {
    for (uint64_t n = 1;; n++) {
        add(ASK, -1);
        CHECK(common[0] == n, "the child sees %lu, not %lu", common[0], n);
        if (common[2]) break;
        common[1] = mix(n);
        add(ANSWER, 1);
    }
    CHECK(shmdt((void *)common) == 0, "the child's shmdt");
    _exit(0);
}

struct message {
    long type;
    uint64_t number;
    char rest[50];
};

// Messages differ in length, the first has none but its number.
static void post(uint64_t n) {
    struct message m = {n % 3 + 1, n, {0}};
    memset(m.rest, (int)n, n % 50);
    CHECK(msgsnd(queue, &m, 8 + n % 50, IPC_NOWAIT) == 0, "msgsnd %lu", n);
}

static void take(uint64_t n) {
    struct message m;
    CHECK(msgrcv(queue, &m, sizeof m - sizeof m.type, 0, IPC_NOWAIT) == (ssize_t)(8 + n % 50), "msgrcv %lu", n);
    CHECK(m.number == n && m.type == (long)(n % 3 + 1), "message %lu of type %ld, not %lu", m.number, m.type, n);
    for (unsigned i = 0; i < n % 50; i++) CHECK(m.rest[i] == (char)n, "message %lu, byte %u", n, i);
}

int main(void) {
    // What is left when this is killed must not pile up. All threads have to be there: hence the exec.
    if (!getenv("SW_OWN_IPC") && unshare(CLONE_NEWIPC) == 0) {
        setenv("SW_OWN_IPC", "1", 1);
        execl("/proc/self/exe", "sysv", NULL);
    }
    key = 0x51000000 | getpid();
    int removed = shmget(IPC_PRIVATE, 3 * PAGE, 0600);
    common = (void *)attach(removed, NULL, 0);
    CHECK(shmctl(removed, IPC_RMID, NULL) == 0, "IPC_RMID");
    common[0] = common[1] = common[2] = 0;

    // Nobody has it attached at a checkpoint; no whole number of pages.
    loose = shmget(key, 2 * PAGE + 100, IPC_CREAT | IPC_EXCL | 0640);
    CHECK(loose >= 0, "shmget");
    char *p = attach(loose, NULL, 0);
    memset(p + PAGE, 7, PAGE + 100);
    CHECK(shmdt(p) == 0, "shmdt");

    // Without its second page, the third is read-only; and a second time, to be looked at.
    int parts = shmget(IPC_PRIVATE, 5 * PAGE, 0600);
    char *part = attach(parts, NULL, 0);
    for (int i = 0; i < 5; i++) memset(part + i * PAGE, 'a' + i, PAGE);
    CHECK(munmap(part + PAGE, PAGE) == 0 && mprotect(part + 2 * PAGE, PAGE, PROT_READ) == 0, "parts");
    char *view = attach(parts, NULL, SHM_RDONLY);

    semaphores = semget(key, 3, IPC_CREAT | IPC_EXCL | 0600);
    queue = msgget(key, IPC_CREAT | IPC_EXCL | 0600);
    CHECK(semaphores >= 0 && queue >= 0, "semget, msgget");
    unsigned short values[3] = {0, 0, 1234};
    CHECK(semctl(semaphores, 0, SETALL, values) == 0, "SETALL");
    struct msqid_ds ds;
    CHECK(msgctl(queue, IPC_STAT, &ds) == 0, "msgctl");
    ds.msg_qbytes = 1000;
    CHECK(msgctl(queue, IPC_SET, &ds) == 0, "IPC_SET");
    uint64_t n = 0, sent = 0;
    while (sent < DEPTH) post(sent++);

    pid_t pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid == 0) child();
    ready();
    do {
        n++;
        common[0] = n;
        add(ASK, 1);
        add(ANSWER, -1);
        CHECK(common[1] == mix(n), "the child says %lx", common[1]);
        struct shmid_ds s = look(removed);
        CHECK(s.shm_perm.mode & SHM_DEST && s.shm_segsz == 3 * PAGE, "mode %o, %zu bytes", s.shm_perm.mode, s.shm_segsz);

        CHECK(shmget(key, 0, 0) == loose, "the segment's key");
        s = look(loose);
        CHECK(s.shm_nattch == 0 && s.shm_segsz == 2 * PAGE + 100, "%lu attach %zu", s.shm_nattch, s.shm_segsz);
        CHECK((s.shm_perm.mode & 0777) == 0640 && s.shm_perm.uid == geteuid(), "mode %o", s.shm_perm.mode);
        p = attach(loose, NULL, 0);
        CHECK(*(uint64_t *)p == n - 1, "loose: %lu, not %lu", *(uint64_t *)p, n - 1);
        *(uint64_t *)p = n;
        for (int i = PAGE; i < 2 * PAGE + 100; i++) CHECK(p[i] == 7, "loose: byte %d is %d", i, p[i]);
        CHECK(shmdt(p) == 0, "loose: shmdt");

        for (int i = 0; i < 5; i++) {
            if (i != 1) CHECK(part[i * PAGE + 8] == 'a' + i && part[i * PAGE + PAGE - 1] == 'a' + i, "part %d", i);
            CHECK(view[i * PAGE + 8] == 'a' + i && view[i * PAGE + PAGE - 1] == 'a' + i, "view %d", i);
        }
        *(uint64_t *)part = n;
        CHECK(*(volatile uint64_t *)view == n, "two views of one segment differ");
        CHECK(look(parts).shm_nattch >= 2, "%lu attach", look(parts).shm_nattch);

        CHECK(semget(key, 0, 0) == semaphores, "the semaphores' key");
        CHECK(semctl(semaphores, IDLE, GETVAL) == 1234 && semctl(semaphores, ASK, GETVAL) == 0, "values");
        CHECK(msgget(key, 0) == queue, "the queue's key");
        CHECK(msgctl(queue, IPC_STAT, &ds) == 0 && ds.msg_qbytes == 1000 && ds.msg_qnum == DEPTH, "%lu", ds.msg_qnum);
        take(sent - DEPTH);
        post(sent++);
    } while (beat());
    common[0] = n + 1;
    common[2] = 1;
    add(ASK, 1);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the child: %#x", status);
    CHECK(look(removed).shm_nattch == 1, "%lu have the removed one", look(removed).shm_nattch);
    CHECK(shmdt((void *)common) == 0, "shmdt");
    CHECK(shmctl(removed, IPC_STAT, &(struct shmid_ds){0}) == -1, "a removed segment stays when all have left it");
    // An attachment is detached by where it began, all of its parts at once.
    CHECK(shmdt(view) == 0 && shmdt(part) == 0 && look(parts).shm_nattch == 0, "shmdt of parts");
    CHECK(shmctl(parts, IPC_RMID, NULL) == 0 && shmctl(loose, IPC_RMID, NULL) == 0, "IPC_RMID");
    CHECK(semctl(semaphores, 0, IPC_RMID) == 0 && msgctl(queue, IPC_RMID, NULL) == 0, "IPC_RMID");
    return pass();
}
