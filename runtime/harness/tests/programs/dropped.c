//# Checkpoints: 4
//# Scenario: go-on, restart, restart-twice
// Files without names, of a user that the process is no more, and of the one that it has become (as servers do that begin as
// root): read and written on, and their owners and modes stay.
#include "check.h"
#include <fcntl.h>
#include <grp.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NOBODY = 65534 };

static int file(uid_t owner, mode_t mode) {
    int fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    CHECK(fd >= 0 && write(fd, "of a user", 9) == 9, "O_TMPFILE");
    CHECK(fchown(fd, owner, owner) == 0 && fchmod(fd, mode) == 0, "fchown, fchmod");
    return fd;
}

static void look(int fd, uid_t owner, mode_t mode, int round) {
    char text[16] = "";
    struct stat st;
    CHECK(pread(fd, text, 9, 0) == 9 && strcmp(text, "of a user") == 0, "read %s", text);
    CHECK(pwrite(fd, &round, sizeof round, 100) == sizeof round, "write");
    CHECK(fstat(fd, &st) == 0 && st.st_uid == owner && st.st_gid == owner, "owner %u, not %u", st.st_uid, owner);
    CHECK((st.st_mode & 07777) == mode, "mode %o, not %o", st.st_mode & 07777, mode);
}

int main(void) {
    // Who cannot become another stays what it is.
    uid_t was = getuid(), is = was == 0 ? NOBODY : was;
    int first = file(was, 0600), second = file(is, 02640);
    if (was == 0) CHECK(setgroups(0, NULL) == 0 && setresgid(is, is, is) == 0 && setresuid(is, is, is) == 0, "to be nobody");
    ready();
    int round = 0;
    do {
        look(first, was, 0600, round);
        look(second, is, 02640, round++);
    } while (beat());
    return pass();
}
