//# Checkpoints: 3
//# Scenario: go-on, restart
// Nearly always an inotify event waits unread, for whoever reads takes his time. A checkpoint lets him: what is lost is
// not more than one, on a machine that is too busy.
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>

static char root[64];
static int notices;
static atomic_long seen;
static atomic_int over;

static void *reader(void *argument) {
    while (!over) {
        struct pollfd p = {notices, POLLIN, 0};
        int n = poll(&p, 1, 100);
        CHECK(n >= 0 || errno == EINTR, "poll");
        if (n <= 0) continue;
        usleep(20000);
        _Alignas(struct inotify_event) char text[4096];
        ssize_t length = read(notices, text, sizeof text);
        CHECK(length > 0, "read");
        for (char *at = text; at < text + length; at += sizeof(struct inotify_event) + ((struct inotify_event *)at)->len) seen++;
    }
    return argument;
}

int main(void) {
    strcpy(root, "/tmp/sw-notices-XXXXXX");
    CHECK(mkdtemp(root), "mkdtemp");
    notices = inotify_init1(IN_CLOEXEC);
    CHECK(notices >= 0 && inotify_add_watch(notices, root, IN_CREATE) > 0, "inotify");
    pthread_t thread = start(reader, NULL, 0);
    ready();
    int lost = 0;
    char path[96];
    for (int more = 1, n = 0; more; n++) {
        more = beat();
        snprintf(path, sizeof path, "%s/%d", root, n);
        // Of an earlier life, which was killed.
        unlink(path);
        long before = seen;
        int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
        CHECK(fd >= 0 && close(fd) == 0, "open %s", path);
        for (int waited = 0; seen == before && waited < 3000; waited++) usleep(1000);
        lost += seen == before;
        // It may be gone: the killed program has been further than this one.
        CHECK(unlink(path) == 0 || errno == ENOENT, "unlink");
    }
    CHECK(lost <= 1, "%d events are lost", lost);
    over = 1;
    join(thread);
    CHECK(rmdir(root) == 0, "rmdir");
    return pass();
}
