//# Checkpoints: 3
//# Modes: pipe, user
// An inotify watch on a folder that nobody has open and on a file, in a process and in its
// child; events keep coming with the same watch descriptors. Those that the child does not care to read may be lost by a restart
// (docs/coverage.md): what caused one is then done once more.
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char root[64], folder[128], file[160];

static void touch(const char *path) {
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    CHECK(fd >= 0, "open %s", path);
    close(fd);
}

static void create(const char *path) {
    unlink(path);
    touch(path);
}

// It may be gone: the killed program has been further than this one.
static void take_away(const char *path) { CHECK(unlink(path) == 0 || errno == ENOENT, "unlink"); }

static void change(const char *path) { CHECK(chmod(path, 0600) == 0, "chmod"); }

// The event of what has been done to `path` just now is in the queue, or lost.
static void expect(int fd, int wd, uint32_t mask, void (*act)(const char *), const char *path) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (poll(&p, 1, 500) == 0) act(path);
    _Alignas(struct inotify_event) char text[4096];
    ssize_t n = read(fd, text, sizeof text);
    struct inotify_event *e = (void *)text;
    CHECK(n > 0 && e->wd == wd && (e->mask & mask), "%zd bytes, watch %d, mask %x", n, e->wd, e->mask);
}

static void once(int fd, int on_folder, int on_file, int round) {
    char path[200];
    snprintf(path, sizeof path, "%s/%d-%d", folder, getpid(), round);
    create(path);
    expect(fd, on_folder, IN_CREATE, create, path);
    take_away(path);
    change(file);
    expect(fd, on_file, IN_ATTRIB, change, file);
}

static int watch(int *on_folder, int *on_file) {
    int fd = inotify_init1(IN_CLOEXEC);
    CHECK(fd >= 0, "inotify_init1");
    *on_folder = inotify_add_watch(fd, folder, IN_CREATE);
    *on_file = inotify_add_watch(fd, file, IN_ATTRIB);
    CHECK(*on_folder > 0 && *on_file > 0, "inotify_add_watch");
    return fd;
}

int main(void) {
    strcpy(root, "/tmp/sw-inotify-XXXXXX");
    CHECK(mkdtemp(root), "mkdtemp");
    snprintf(folder, sizeof folder, "%s/deep", root);
    snprintf(file, sizeof file, "%s/file", root);
    CHECK(mkdir(folder, 0700) == 0, "mkdir");
    touch(file);
    int on_folder, on_file, fd = watch(&on_folder, &on_file), go[2], done[2];
    CHECK(pipe(go) == 0 && pipe(done) == 0, "pipe");
    pid_t child = fork();
    CHECK(child >= 0, "fork");
    if (child == 0) {
        close(fd);
        close(go[1]);
        int f, g, mine = watch(&f, &g), round = 0;
        char c;
        while (read(go[0], &c, 1) == 1) {
            char drop[4096];
            // What the parent has done since is seen here as well.
            CHECK(fcntl(mine, F_SETFL, O_NONBLOCK) == 0, "fcntl");
            while (read(mine, drop, sizeof drop) > 0) {}
            CHECK(fcntl(mine, F_SETFL, 0) == 0, "fcntl");
            char path[200];
            snprintf(path, sizeof path, "%s/c%d", folder, round++);
            create(path);
            expect(mine, f, IN_CREATE, create, path);
            take_away(path);
            CHECK(write(done[1], "x", 1) == 1, "write");
        }
        _exit(0);
    }
    close(go[0]);
    ready();
    int more = 1;
    char again[160];
    snprintf(again, sizeof again, "%s/again", folder);
    for (int round = 0; more; round++) {
        char c;
        more = beat();
        once(fd, on_folder, on_file, round);
        CHECK(write(go[1], "x", 1) == 1 && read(done[0], &c, 1) == 1, "child");
        expect(fd, on_folder, IN_CREATE, create, again);
        unlink(again);
    }
    close(go[1]);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "child's status %x", status);
    CHECK(unlink(file) == 0 && rmdir(folder) == 0 && rmdir(root) == 0, "rmdir");
    return pass();
}
