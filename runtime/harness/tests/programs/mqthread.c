//# Checkpoints: 4
//# Scenario: go-on, restart, restart-twice
// mq_notify(3) by a thread (SIGEV_THREAD): on a queue that is empty, on one with messages, on one that can only be written to; with
// attributes and without. Each has to come once, with its value, in a thread of its attributes, and no other with it.
#include "check.h"
#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>

enum { QUEUES = 4, STACK = 3 << 20 };

static atomic_int told[QUEUES], value[QUEUES];
static atomic_long stack[QUEUES];

static void on_told(union sigval v) {
    int n = v.sival_int / 1000000;
    size_t size = 0;
    pthread_attr_t attr;
    CHECK(n < QUEUES, "queue %d", n);
    CHECK(pthread_getattr_np(pthread_self(), &attr) == 0 && pthread_attr_getstacksize(&attr, &size) == 0, "stack");
    pthread_attr_destroy(&attr);
    value[n] = v.sival_int % 1000000;
    stack[n] = size;
    told[n]++;
}

static pthread_attr_t attributes;

static void await(mqd_t q, int n, int number) {
    struct sigevent e = {.sigev_notify = SIGEV_THREAD, .sigev_value.sival_int = n * 1000000 + number};
    e.sigev_notify_function = on_told;
    if (n == 0) e.sigev_notify_attributes = &attributes;
    CHECK(mq_notify(q, &e) == 0, "mq_notify %d", n);
}

static void post(mqd_t q, char c) { CHECK(mq_send(q, &c, 1, c % 3) == 0, "mq_send"); }

static void take(mqd_t q, char c) {
    char text[16];
    CHECK(mq_receive(q, text, sizeof text, NULL) == 1 && *text == c, "mq_receive: %c, not %c", *text, c);
}

static void came(int n, int times, int number) {
    while (told[n] < times) sched_yield();
    CHECK(told[n] == times && value[n] == number, "%d: told %d times, last %d, not %d", n, told[n], value[n], number);
    CHECK(n != 0 || stack[n] == STACK, "a stack of %ld bytes", stack[n]);
}

int main(void) {
    // All queues are gone when the last process of a namespace is, also after a SIGKILL. All threads have to be there: hence the exec.
    if (!getenv("SW_OWN_IPC") && unshare(CLONE_NEWIPC) == 0) {
        setenv("SW_OWN_IPC", "1", 1);
        execl("/proc/self/exe", "mqthread", NULL);
    }
    CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setstacksize(&attributes, STACK) == 0, "attributes");
    mqd_t queue[QUEUES];
    char name[QUEUES][64];
    struct mq_attr a = {.mq_maxmsg = 5, .mq_msgsize = 16};
    for (int n = 0; n < QUEUES; n++) {
        snprintf(name[n], sizeof name[n], "/slackwater.%d.%d", getpid(), n);
        queue[n] = mq_open(name[n], O_CREAT | O_EXCL | (n == 2 ? O_WRONLY : O_RDWR), 0600, &a);
        CHECK(queue[n] >= 0, "mq_open %d", n);
    }
    for (char c = 'a'; c < 'd'; c++) post(queue[1], c), post(queue[3], c);
    for (int n = 0; n < QUEUES; n++) await(queue[n], n, 0);
    ready();
    int rounds = 0;
    do {
        // The first comes, and is asked for again; of the others none has come.
        post(queue[0], 'x');
        came(0, rounds + 1, rounds);
        take(queue[0], 'x');
        rounds++;
        await(queue[0], 0, rounds);
        for (int n = 1; n < QUEUES; n++) CHECK(told[n] == 0, "%d: told", n);
        struct sigevent e = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_told};
        CHECK(mq_notify(queue[3], &e) == -1 && errno == EBUSY, "asked twice");
    } while (beat());
    // By priority: b 98 % 3 is 2, a 97 % 3 is 1, c 99 % 3 is 0.
    for (const char *c = "bac"; *c; c++) take(queue[1], *c);
    post(queue[1], 'y');
    came(1, 1, 0);
    post(queue[2], 'y');
    came(2, 1, 0);
    CHECK(mq_notify(queue[3], NULL) == 0, "mq_notify");
    for (const char *c = "bac"; *c; c++) take(queue[3], *c);
    post(queue[3], 'y');
    post(queue[1], 'z');
    CHECK(told[3] == 0 && told[1] == 1, "told %d, %d", told[3], told[1]);
    for (int n = 0; n < QUEUES; n++) CHECK(mq_unlink(name[n]) == 0, "mq_unlink");
    return pass();
}
