//# Cflags: -no-pie -fno-pie
//# Scenario: go-on, restart
//# Level: quick
// A program at a fixed address.
#include "check.h"

static long data = 5, bss;
static int (*function)(const char *, ...) = printf;

int main(void) {
    CHECK((uintptr_t)main < 1u << 31, "it is not a non-PIE program");
    ready();
    do {
        bss++;
        CHECK(data == 4 + bss && function == printf, "data");
        data++;
    } while (beat());
    return pass();
}
