//# Checkpoints: 4
//# Scenario: go-on, restart, restart-twice
//# Modes: pipe, user
// Locks and files in their corners, held by two processes: POSIX locks over several ranges (and one that is waited for), OFD locks
// on a shared description, a lease with its signal, O_ASYNC's owner and signal, memfd seals, O_TMPFILE, a deleted file that two share,
// a removed working directory, a FIFO with content, a descriptor above 1,024. The child looks at the
// locks from outside; at the end each lock, lease and signal has to do its work.
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define LEASE_SIGNAL (SIGRTMIN + 3)
#define ASYNC_SIGNAL (SIGRTMIN + 4)

static char root[64];
static volatile sig_atomic_t lease_fd = -1, async_fd = -1;

static void told(int signal, siginfo_t *info, void *context) {
    (void)context;
    if (signal == LEASE_SIGNAL) lease_fd = info->si_fd;
    else async_fd = info->si_fd;
}

static char *in(const char *name) {
    static char path[8][128];
    static int next;
    char *p = path[next++ % 8];
    snprintf(p, 128, "%s/%s", root, name);
    return p;
}

static int make(const char *name, int flags) {
    int fd = open(in(name), O_RDWR | O_CREAT | flags, 0600);
    CHECK(fd >= 0, "open %s", name);
    return fd;
}

static struct flock range(short type, off_t from, off_t length) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = from, .l_len = length};
}

static void take(int fd, int how, short type, off_t from, off_t length) {
    struct flock l = range(type, from, length);
    CHECK(fcntl(fd, how, &l) == 0, "lock %ld+%ld", (long)from, (long)length);
}

// What another process sees at this byte: type and holder.
static void seen(int fd, off_t at, short type, pid_t holder) {
    struct flock l = range(F_WRLCK, at, 1);
    CHECK(fcntl(fd, F_GETLK, &l) == 0 && l.l_type == type, "byte %ld: type %d, not %d", (long)at, l.l_type, type);
    if (type != F_UNLCK) CHECK(l.l_pid == holder, "byte %ld is held by %d, not %d", (long)at, l.l_pid, holder);
}

struct shared {
    atomic_int looked, wait, got, over;
};
static struct shared *shared;

// Looks at its parent's locks, then waits for one.
static void other(pid_t parent, int gone) {
    int posix = make("posix", 0), ofd = make("ofd", 0);
    for (long n = 1; !shared->over; n++) {
        seen(posix, 5, F_UNLCK, 0);
        seen(posix, 10, F_WRLCK, parent);
        seen(posix, 29, F_WRLCK, parent);
        seen(posix, 30, F_UNLCK, 0);
        struct flock l = range(F_RDLCK, 45, 1);
        CHECK(fcntl(posix, F_GETLK, &l) == 0 && l.l_type == F_UNLCK, "a read lock permits another");
        seen(posix, 45, F_RDLCK, parent);
        seen(posix, 1L << 40, F_WRLCK, parent);
        seen(ofd, 0, F_WRLCK, -1);
        char text[8];
        CHECK(pread(gone, text, 7, 0) == 7 && memcmp(text, "deleted", 7) == 0, "the deleted file");
        shared->looked++;
        usleep(3000);
    }
    shared->wait = 1;
    take(posix, F_SETLKW, F_WRLCK, 10, 20);
    shared->got = 1;
    // Breaks the parent's lease.
    int fd = open(in("lease"), O_WRONLY);
    CHECK(fd >= 0, "open of a leased file");
    _exit(0);
}

int main(void) {
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    strcpy(root, "/tmp/sw-corners-XXXXXX");
    CHECK(shared != MAP_FAILED && mkdtemp(root), "mkdtemp");
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");

    int posix = make("posix", 0);
    take(posix, F_SETLK, F_WRLCK, 10, 20);
    take(posix, F_SETLK, F_RDLCK, 40, 10);
    take(posix, F_SETLK, F_WRLCK, 1L << 40, 0);
    int ofd = make("ofd", 0);
    take(ofd, F_OFD_SETLK, F_WRLCK, 0, 5);
    int lease = make("lease", 0);
    close(lease);
    lease = open(in("lease"), O_RDONLY);
    struct sigaction action = {.sa_sigaction = told, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK(sigaction(LEASE_SIGNAL, &action, NULL) == 0 && sigaction(ASYNC_SIGNAL, &action, NULL) == 0, "sigaction");
    CHECK(fcntl(lease, F_SETSIG, LEASE_SIGNAL) == 0 && fcntl(lease, F_SETLEASE, F_RDLCK) == 0, "a lease");

    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    CHECK(fcntl(pair[0], F_SETOWN, getpid()) == 0 && fcntl(pair[0], F_SETSIG, ASYNC_SIGNAL) == 0, "F_SETOWN");
    CHECK(fcntl(pair[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0, "O_ASYNC");
    int sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
    CHECK(write(sealed, "under seals", 11) == 11 && fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK) == 0, "seals");
    int nameless = open(root, O_TMPFILE | O_RDWR, 0640);
    CHECK(nameless >= 0 && write(nameless, "nameless", 8) == 8 && lseek(nameless, 3, SEEK_SET) == 3, "O_TMPFILE");
    int gone = make("gone", O_APPEND);
    CHECK(write(gone, "deleted", 7) == 7 && unlink(in("gone")) == 0, "unlink");
    CHECK(mkfifo(in("fifo"), 0600) == 0, "mkfifo");
    int fifo = open(in("fifo"), O_RDWR | O_NONBLOCK);
    CHECK(fifo >= 0 && write(fifo, "in the fifo", 11) == 11, "fifo");
    int high = fcntl(sealed, F_DUPFD_CLOEXEC, (int)limit.rlim_cur > 3000 ? 3000 : 900);
    CHECK(high >= 900, "F_DUPFD");
    CHECK(mkdir(in("here"), 0700) == 0 && chdir(in("here")) == 0 && rmdir(in("here")) == 0, "a removed directory");
    pid_t me = getpid(), child = fork();
    if (child == 0) other(me, gone);
    // The working directory is gone: nothing is in it, and nothing can be made there.
    ready();
    int looked = 0;
    do {
        while (shared->looked < looked + 2) usleep(1000);
        looked = shared->looked;
        CHECK(fcntl(lease, F_GETLEASE) == F_RDLCK && fcntl(lease, F_GETSIG) == LEASE_SIGNAL, "the lease");
        CHECK(fcntl(pair[0], F_GETOWN) == me && fcntl(pair[0], F_GETSIG) == ASYNC_SIGNAL, "the owner");
        CHECK(fcntl(pair[0], F_GETFL) & O_ASYNC, "O_ASYNC");
        async_fd = -1;
        char c;
        CHECK(write(pair[1], "x", 1) == 1, "write");
        while (async_fd != pair[0]) usleep(500);
        CHECK(read(pair[0], &c, 1) == 1, "read");
        CHECK(fcntl(sealed, F_GET_SEALS) == (F_SEAL_WRITE | F_SEAL_SHRINK), "seals");
        CHECK(write(sealed, "x", 1) == -1 && errno == EPERM, "a write under seals");
        char text[16] = {0};
        CHECK(pread(high, text, 16, 0) == 11 && strcmp(text, "under seals") == 0, "descriptor %d", high);
        CHECK(fcntl(high, F_GETFD) == FD_CLOEXEC && fcntl(sealed, F_GETFD) == 0, "FD_CLOEXEC");
        struct stat st;
        CHECK(fstat(nameless, &st) == 0 && st.st_nlink == 0 && st.st_size == 8 && (st.st_mode & 0777) == 0640, "O_TMPFILE");
        CHECK(lseek(nameless, 0, SEEK_CUR) == 3, "its offset");
        CHECK(fstat(gone, &st) == 0 && st.st_nlink == 0 && st.st_size == 7 && fcntl(gone, F_GETFL) & O_APPEND, "the deleted file");
        int n = 0;
        CHECK(ioctl(fifo, FIONREAD, &n) == 0 && n == 11, "%d bytes in the fifo", n);
        CHECK(open("x", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT, "a file in a removed directory");
        CHECK(lease_fd == -1 && !shared->got, "lease or lock has been lost");
    } while (beat());
    shared->over = 1;
    while (!shared->wait) usleep(1000);
    CHECK(!shared->got, "the lock was free");
    take(posix, F_SETLK, F_UNLCK, 10, 20);
    // The child has the lock now, and breaks the lease: it waits until that is given up.
    while (lease_fd == -1) usleep(1000);
    CHECK(lease_fd == lease && shared->got, "the signal was for %d, not %d", lease_fd, lease);
    CHECK(fcntl(lease, F_SETLEASE, F_UNLCK) == 0, "F_UNLCK");
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended with %#x", status);
    char text[16] = {0};
    CHECK(read(fifo, text, 16) == 11 && strcmp(text, "in the fifo") == 0, "%s", text);
    // A file without a name takes one, and a second description in this process conflicts with the OFD lock.
    int again = make("ofd", 0);
    struct flock l = range(F_WRLCK, 4, 1);
    CHECK(fcntl(again, F_OFD_SETLK, &l) == -1 && errno == EAGAIN, "the OFD lock is lost");
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", nameless);
    CHECK(linkat(AT_FDCWD, link, AT_FDCWD, in("named"), AT_SYMLINK_FOLLOW) == 0, "linkat");
    return pass();
}
