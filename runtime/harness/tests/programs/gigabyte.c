//# Scenario: go-on, restart
//# Checkpoints: 2
//# Where: host
// One gigabyte of random numbers; each is checked in each round, and a few are changed.
#include "check.h"
#include <sys/mman.h>

int main(void) {
    const size_t n = (1ul << 30) / 8;
    uint64_t *data = mmap(NULL, n * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(data != MAP_FAILED, "1 GiB");
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += data[i] = mix(i);
    ready();
    uint64_t round = 0;
    do {
        uint64_t is = 0;
        for (size_t i = 0; i < n; i++) is += data[i];
        CHECK(is == sum, "checksum in round %lu", round);
        for (int i = 0; i < 1000; i++) {
            size_t at = mix(++round) % n;
            sum -= data[at];
            sum += data[at] = mix(round * 7);
        }
    } while (beat());
    return pass();
}
