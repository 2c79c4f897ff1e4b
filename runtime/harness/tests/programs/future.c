//# Checkpoints: 3
//# Scenario: go-on, restart, restart-twice
// Memory to come is locked (mlockall(MCL_FUTURE)), and memory that is there is sealed (mseal(2), where the kernel has it).
#include "check.h"
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096 };

static char *map(int prot) {
    char *p = mmap(NULL, 4 * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED, "mmap");
    return p;
}

// A flag of the mapping at `p`, as smaps has it.
static int has(void *p, const char *flag) {
    FILE *f = fopen("/proc/self/smaps", "re");
    CHECK(f, "smaps");
    unsigned long start, end;
    int here = 0, found = 0;
    for (char line[512]; fgets(line, sizeof line, f);) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) here = start <= (unsigned long)p && (unsigned long)p < end;
        if (here && strncmp(line, "VmFlags:", 8) == 0) found = strstr(line, flag) != NULL;
    }
    fclose(f);
    return found;
}

int main(void) {
    int locks = mlockall(MCL_FUTURE | MCL_ONFAULT) == 0; // an ordinary user's limit may be 0
    char *sealed = map(PROT_READ | PROT_WRITE), *part = map(PROT_READ | PROT_WRITE);
    strcpy(sealed, "sealed");
    int seals = syscall(462, sealed, 4 * PAGE, 0) == 0 && syscall(462, part + PAGE, PAGE, 0) == 0;
    CHECK(seals || errno == ENOSYS, "mseal");
    ready();
    do {
        char *fresh = map(PROT_READ);
        CHECK(has(fresh, " lo") == locks && has(fresh, " lf") == locks, "memory to come: %d", has(fresh, " lo"));
        CHECK(munmap(fresh, 4 * PAGE) == 0, "munmap");
        if (!seals) continue;
        CHECK(munmap(sealed, PAGE) == -1 && errno == EPERM, "sealed memory goes");
        CHECK(mprotect(part + PAGE, PAGE, PROT_READ) == -1 && errno == EPERM, "sealed memory changes");
        CHECK(mprotect(part, PAGE, PROT_READ) == 0 && mprotect(part, PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
        CHECK(strcmp(sealed, "sealed") == 0, "contents");
    } while (beat());
    return pass();
}
