//# Scenario: go-on, restart
//# Checkpoints: 2
//# Level: quick
// Huge reservations that hold little: 1 TiB NORESERVE with a few pages touched, and 1 TiB PROT_NONE (an eighth of it each where
// the address space is small). They must cost nothing in the image.
#include "check.h"
#include <sys/mman.h>

static size_t size = 1ul << 40;

static char *reserve(int prot) {
    char *p = mmap(NULL, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED && size == 1ul << 40) {
        size >>= 3;
        return reserve(prot);
    }
    CHECK(p != MAP_FAILED, "reservation of %zu", size);
    return p;
}

int main(void) {
    char *sparse = reserve(PROT_READ | PROT_WRITE), *none = reserve(PROT_NONE);
    for (uint64_t i = 0; i < 100; i++) *(uint64_t *)(sparse + (mix(i) % size & ~7ul)) = mix(i);
    mprotect(none + size / 2, 4096, PROT_READ | PROT_WRITE);
    strcpy(none + size / 2, "island");
    ready();
    do {
        for (uint64_t i = 0; i < 100; i++) CHECK(*(uint64_t *)(sparse + (mix(i) % size & ~7ul)) == mix(i), "page %lu", i);
        CHECK(strcmp(none + size / 2, "island") == 0, "island");
    } while (beat());
    return pass();
}
