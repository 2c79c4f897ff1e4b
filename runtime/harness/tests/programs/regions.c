//# Scenario: go-on, restart
//# Checkpoints: 2
//# Where: host
// 65,000 mappings: the kernel's limit (vm.max_map_count) is 65,530.
#include "check.h"
#include <sys/mman.h>

enum { REGIONS = 65000 };

static long regions(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps, "maps");
    long n = 0;
    for (int c; (c = getc_unlocked(maps)) != EOF;) n += c == '\n';
    fclose(maps);
    return n;
}

int main(void) {
    long page = sysconf(_SC_PAGESIZE);
    char *p = mmap(NULL, REGIONS * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED, "mmap");
    for (long i = 1; i < REGIONS; i += 2) CHECK(mprotect(p + i * page, page, PROT_READ) == 0, "mprotect %ld", i);
    for (long i = 0; i < REGIONS; i += 2) *(long *)(p + i * page) = i + 1;
    CHECK(regions() >= REGIONS, "%ld regions", regions());
    ready();
    do {
        for (long i = 0; i < REGIONS; i += 2) CHECK(*(long *)(p + i * page) == i + 1, "region %ld", i);
        for (long i = 1; i < REGIONS; i += 2) CHECK(*(long *)(p + i * page) == 0, "region %ld", i);
    } while (beat());
    CHECK(regions() >= REGIONS, "%ld regions", regions());
    return pass();
}
