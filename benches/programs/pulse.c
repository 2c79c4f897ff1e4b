//# Args: 0; 1024
// Holds so many MiB of random bytes and prints a line each millisecond.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    size_t bytes = (argc > 1 ? strtoul(argv[1], NULL, 10) : 0) << 20;
    uint64_t *data = bytes ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : NULL, x = 88172645463325252;
    if (data == MAP_FAILED) return 1;
    for (size_t i = 0; i < bytes / 8; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        data[i] = x;
    }
    for (;;) {
        if (write(1, "pulse\n", 6) != 6) return 1;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}
