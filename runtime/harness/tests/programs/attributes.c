//# Scenario: go-on, restart
//# Checkpoints: 3
//# Level: quick
//# Modes: pipe, user
// What a process and its threads are, beside memory and registers: limits, umask, folder, personality, prctl settings, names,
// affinity, scheduling, niceness, timer slack, ids.
#include "check.h"
#include <sched.h>
#include <signal.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

struct seen {
    struct rlimit limits[RLIM_NLIMITS];
    char cwd[PATH_MAX], name[16];
    unsigned personality, mask;
    pid_t pid, tid, sid, pgid;
    uid_t ids[6];
    int dumpable, deathsig, slack, nice, policy, thp, subreaper;
    cpu_set_t cpus;
};

static void look(struct seen *s) {
    memset(s, 0, sizeof *s);
    for (int i = 0; i < RLIM_NLIMITS; i++) CHECK(getrlimit(i, &s->limits[i]) == 0, "limit %d", i);
    CHECK(getcwd(s->cwd, sizeof s->cwd), "getcwd");
    CHECK(prctl(PR_GET_NAME, s->name) == 0, "name");
    s->personality = personality(0xffffffff);
    // umask(2) can only be read by changing it, under the other threads' feet.
    FILE *status = fopen("/proc/self/status", "re");
    CHECK(status, "status");
    for (char line[256]; fgets(line, sizeof line, status);) sscanf(line, "Umask: %o", &s->mask);
    fclose(status);
    s->pid = getpid();
    s->tid = gettid();
    s->sid = getsid(0);
    s->pgid = getpgrp();
    CHECK(getresuid(&s->ids[0], &s->ids[1], &s->ids[2]) == 0 && getresgid(&s->ids[3], &s->ids[4], &s->ids[5]) == 0, "ids");
    s->dumpable = prctl(PR_GET_DUMPABLE);
    CHECK(prctl(PR_GET_PDEATHSIG, &s->deathsig) == 0, "pdeathsig");
    s->slack = prctl(PR_GET_TIMERSLACK);
    s->thp = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
    CHECK(prctl(PR_GET_CHILD_SUBREAPER, &s->subreaper) == 0, "subreaper");
    s->nice = getpriority(PRIO_PROCESS, gettid());
    s->policy = sched_getscheduler(gettid());
    CHECK(sched_getaffinity(0, sizeof s->cpus, &s->cpus) == 0, "affinity");
}

#define SAME(field) CHECK(memcmp(&is.field, &was->field, sizeof is.field) == 0, "thread %s: " #field, was->name)
static void compare(const struct seen *was) {
    struct seen is;
    look(&is);
    SAME(limits);
    CHECK(strcmp(is.cwd, was->cwd) == 0, "folder: %s, it was %s", is.cwd, was->cwd);
    SAME(name);
    SAME(personality);
    SAME(mask);
    SAME(pid);
    SAME(tid);
    // A session or group whose leader is none of us is that of whoever restarts.
    if (was->sid == was->pid) SAME(sid);
    if (was->pgid == was->pid) SAME(pgid);
    SAME(ids);
    SAME(dumpable);
    SAME(deathsig);
    SAME(slack);
    SAME(thp);
    SAME(subreaper);
    CHECK(is.nice == was->nice, "niceness %d, it was %d", is.nice, was->nice);
    SAME(policy);
    SAME(cpus);
}

static int first_nice;
static atomic_int stopping;
static atomic_long rounds[3];

static void *thread(void *argument) {
    long me = (long)argument;
    char name[16];
    snprintf(name, sizeof name, "worker-%ld", me);
    CHECK(pthread_setname_np(pthread_self(), name) == 0, "name");
    CHECK(setpriority(PRIO_PROCESS, gettid(), first_nice + 3 + (int)me) == 0, "nice");
    CHECK(prctl(PR_SET_TIMERSLACK, 70000 + me) == 0, "slack");
    if (me == 1) {
        struct sched_param none = {0};
        CHECK(sched_setscheduler(0, SCHED_BATCH, &none) == 0, "SCHED_BATCH");
    }
    if (me == 2) {
        cpu_set_t all, one;
        CHECK(sched_getaffinity(0, sizeof all, &all) == 0, "affinity");
        CPU_ZERO(&one);
        for (int i = 0; i < CPU_SETSIZE; i++)
            if (CPU_ISSET(i, &all)) {
                CPU_SET(i, &one);
                break;
            }
        CHECK(sched_setaffinity(0, sizeof one, &one) == 0, "affinity");
    }
    struct seen was;
    look(&was);
    while (!stopping) {
        compare(&was);
        rounds[me]++;
        usleep(5000);
    }
    return NULL;
}

int main(void) {
    CHECK(mkdir("a folder", 0777) == 0 || errno == EEXIST, "mkdir");
    CHECK(chdir("a folder") == 0, "chdir");
    umask(031);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = 300;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0, "limit");
    limit.rlim_cur = 0;
    limit.rlim_max = 1 << 20;
    CHECK(setrlimit(RLIMIT_CORE, &limit) == 0, "limit");
    personality(ADDR_NO_RANDOMIZE | personality(0xffffffff));
    prctl(PR_SET_NAME, "attributed");
    prctl(PR_SET_PDEATHSIG, SIGUSR1);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_TIMERSLACK, 12345);
    first_nice = getpriority(PRIO_PROCESS, 0); // lower it may not be for everybody
    CHECK(setpriority(PRIO_PROCESS, 0, first_nice + 2) == 0, "nice");
    pthread_t threads[3];
    for (long i = 0; i < 3; i++) threads[i] = start(thread, (void *)i, 0);
    struct seen was;
    look(&was);
    ready();
    long seen[3] = {0};
    do {
        compare(&was);
        CHECK(was.mask == 031, "umask %o", was.mask);
        for (int i = 0; i < 3; i++) {
            while (rounds[i] == seen[i]) sched_yield();
            seen[i] = rounds[i];
        }
    } while (beat());
    stopping = 1;
    for (int i = 0; i < 3; i++) join(threads[i]);
    return pass();
}
