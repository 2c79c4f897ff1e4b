//# Checkpoints: 4
//# Scenario: go-on, restart, restart-twice
// POSIX message queues, between two processes: messages of several priorities and lengths, a queue that was unlinked, one that is
// full, one that is waited for, a notification while messages wait and one while there are none. What waits has to stay, in order, and
// each notification has to come once, with its value.
#include "check.h"
#include <fcntl.h>
#include <mqueue.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { DEPTH = 6, LONGEST = 100 };

static volatile sig_atomic_t told, value;

static void on_told(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    told++;
    value = info->si_value.sival_int;
}

static mqd_t make(const char *name, int flags, long most) {
    struct mq_attr a = {.mq_maxmsg = most, .mq_msgsize = LONGEST};
    mqd_t q = mq_open(name, O_CREAT | O_EXCL | flags, 0620, &a);
    CHECK(q >= 0, "mq_open %s", name);
    return q;
}

static void post(mqd_t q, uint64_t n, unsigned priority) {
    char text[LONGEST] = {0};
    memcpy(text, &n, 8);
    CHECK(mq_send(q, text, 8 + n % 90, priority) == 0, "mq_send %lu", n);
}

static void take(mqd_t q, uint64_t n, unsigned priority) {
    char text[LONGEST];
    unsigned p;
    ssize_t length = mq_receive(q, text, sizeof text, &p);
    CHECK(length == (ssize_t)(8 + n % 90), "mq_receive %lu: %zd bytes", n, length);
    CHECK(memcmp(text, &n, 8) == 0 && p == priority, "message %lu of priority %u, not %lu of %u", *(uint64_t *)text, p, n, priority);
}

static void await(mqd_t q, int number) {
    struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = number};
    CHECK(mq_notify(q, &e) == 0, "mq_notify");
}

static long waiting(mqd_t q) {
    struct mq_attr a;
    CHECK(mq_getattr(q, &a) == 0 && a.mq_msgsize == LONGEST, "mq_getattr");
    return a.mq_curmsgs;
}

int main(void) {
    // All queues are gone when the last process of a namespace is, also after a SIGKILL. All threads have to be there: hence the exec.
    if (!getenv("SW_OWN_IPC") && unshare(CLONE_NEWIPC) == 0) {
        setenv("SW_OWN_IPC", "1", 1);
        execl("/proc/self/exe", "mqueue", NULL);
    }
    char name[64], other[64];
    snprintf(name, sizeof name, "/slackwater.%d", getpid());
    snprintf(other, sizeof other, "/slackwater.%d.ask", getpid());
    mqd_t nameless = make(name, O_RDWR, DEPTH);
    CHECK(mq_unlink(name) == 0, "mq_unlink");
    mqd_t named = make(name, O_RDWR | O_NONBLOCK, DEPTH); // the name of the first
    mqd_t writer = mq_open(name, O_WRONLY);
    mqd_t ask = make(other, O_RDWR, 2);
    char third[80], fourth[80];
    snprintf(third, sizeof third, "%s.answer", name);
    snprintf(fourth, sizeof fourth, "%s.told", name);
    mqd_t answer = make(third, O_RDWR, 2), quiet = make(fourth, O_RDONLY, 2), loud = mq_open(fourth, O_WRONLY);
    CHECK(writer >= 0 && loud >= 0, "mq_open");
    struct sigaction act = {.sa_sigaction = on_told, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK(sigaction(SIGUSR1, &act, NULL) == 0, "sigaction");

    // Full, two by two of a priority.
    uint64_t n = 0;
    for (uint64_t i = 0; i < DEPTH; i++) post(nameless, i, 9 - i / 2);
    post(named, 77, 3);
    post(named, 78, 0);
    pid_t pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid == 0) {
        // Waits in mq_receive most of the time, checkpoints included.
        for (uint64_t i = 1;; i++) {
            take(ask, i, i % 5);
            post(answer, mix(i) % 1000, 1);
            if (i == UINT64_MAX) break;
        }
        _exit(1);
    }
    await(named, 1000);
    await(quiet, 2000);
    ready();
    do {
        n++;
        post(ask, n, n % 5);
        take(answer, mix(n) % 1000, 1);
        CHECK(waiting(nameless) == DEPTH && waiting(named) == 2 && waiting(quiet) == 0, "%ld, %ld, %ld messages", waiting(nameless), waiting(named), waiting(quiet));
        struct stat st;
        CHECK(fstat(nameless, &st) == 0 && st.st_nlink == 0, "the unlinked queue has a name");
        CHECK(fstat(named, &st) == 0 && st.st_nlink == 1 && (st.st_mode & 0777) == 0600, "mode %o", st.st_mode);
        mqd_t same = mq_open(name, O_RDONLY);
        struct stat by_name;
        CHECK(same >= 0 && fstat(same, &by_name) == 0 && by_name.st_ino == st.st_ino, "another queue has the name");
        // To close it takes off the notification of this process.
        CHECK(mq_close(same) == 0, "mq_close");
        CHECK(told == 0, "told %d times of what was there already", told);
        CHECK((fcntl(named, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDWR | O_NONBLOCK), "flags");
        CHECK((fcntl(writer, F_GETFL) & O_ACCMODE) == O_WRONLY, "flags");
        await(named, 1000 + (int)(n % 1000));
    } while (beat());
    // In order, though they were taken out and put back, or made again.
    for (uint64_t i = 0; i < DEPTH; i++) take(nameless, i, 9 - i / 2);
    take(named, 77, 3);
    take(named, 78, 0);
    post(writer, 5, 0);
    CHECK(told == 1 && value == 1000 + (int)(n % 1000), "told %d times, last %d", told, value);
    post(loud, 6, 0);
    CHECK(told == 2 && value == 2000, "told %d times, last %d", told, value);
    post(writer, 6, 0);
    CHECK(told == 2, "told again");
    int status;
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid, "waitpid");
    CHECK(mq_unlink(name) == 0 && mq_unlink(other) == 0 && mq_unlink(third) == 0 && mq_unlink(fourth) == 0, "mq_unlink");
    return pass();
}
