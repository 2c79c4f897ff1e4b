//# Scenario: go-on, restart
//# Checkpoints: 3
//# Level: quick
//# Modes: pipe, user
// What a process and its threads are, beside memory and registers: limits, umask, folder, personality, prctl settings, names,
// affinity, scheduling, niceness, timer slack, ids, groups, capabilities, securebits, I/O priority, what the kernel's killer and core files
// are to know.
#include "check.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/ioprio.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

struct seen {
    struct rlimit limits[RLIM_NLIMITS];
    char cwd[PATH_MAX], name[16], privileges[1024], oom[32], core[32];
    unsigned personality, mask;
    pid_t pid, tid, sid, pgid;
    uid_t ids[6];
    int dumpable, deathsig, slack, nice, policy, thp, subreaper, io, secure;
    cpu_set_t cpus;
};

static void content(const char *path, char *out, size_t size) {
    FILE *f = fopen(path, "re");
    CHECK(f && fgets(out, size, f), "%s", path);
    fclose(f);
}

static void put(const char *path, const char *text) {
    FILE *f = fopen(path, "we");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0, "%s", path);
}

// What root may: another group, one capability that can never come back, and one that children inherit.
static void privileges(void) {
    gid_t groups[] = {3, 40, 100};
    CHECK(setgroups(3, groups) == 0, "setgroups");
    CHECK(prctl(PR_CAPBSET_DROP, CAP_SYS_PACCT) == 0, "bounding set");
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    CHECK(syscall(SYS_capget, &header, data) == 0, "capget");
    data[0].inheritable |= 1 << CAP_NET_BIND_SERVICE;
    CHECK(syscall(SYS_capset, &header, data) == 0, "capset");
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0) == 0, "ambient");
    CHECK(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP) == 0, "securebits");
}

static void look(struct seen *s) {
    memset(s, 0, sizeof *s);
    for (int i = 0; i < RLIM_NLIMITS; i++) CHECK(getrlimit(i, &s->limits[i]) == 0, "limit %d", i);
    CHECK(getcwd(s->cwd, sizeof s->cwd), "getcwd");
    CHECK(prctl(PR_GET_NAME, s->name) == 0, "name");
    s->personality = personality(0xffffffff);
    // umask(2) can only be read by changing it, under the other threads' feet.
    FILE *status = fopen("/proc/self/status", "re");
    CHECK(status, "status");
    for (char line[256]; fgets(line, sizeof line, status);) {
        sscanf(line, "Umask: %o", &s->mask);
        // An ordinary user's keeps the one capability that a restart needs.
        int has = strncmp(line, "CapPrm", 6) == 0 || strncmp(line, "CapEff", 6) == 0;
        if (strncmp(line, "Groups", 6) == 0 || (strncmp(line, "Cap", 3) == 0 && !(has && geteuid() != 0)))
            strcat(s->privileges, line);
    }
    fclose(status);
    content("/proc/self/oom_score_adj", s->oom, sizeof s->oom);
    content("/proc/self/coredump_filter", s->core, sizeof s->core);
    s->io = syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0);
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
    s->secure = prctl(PR_GET_SECUREBITS);
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
    CHECK(strcmp(is.privileges, was->privileges) == 0, "privileges:\n%s, they were\n%s", is.privileges, was->privileges);
    CHECK(strcmp(is.oom, was->oom) == 0 && strcmp(is.core, was->core) == 0, "oom_score_adj %s, core %s", is.oom, is.core);
    SAME(io);
    SAME(thp);
    SAME(secure);
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
    if (geteuid() == 0) privileges();
    put("/proc/self/oom_score_adj", "321");
    put("/proc/self/coredump_filter", "0x7f");
    CHECK(syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 6)) == 0, "ioprio");
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
