//# Scenario: go-on, restart, restart-twice
//# Modes: pipe, pty, user
//# Level: quick
// A number each 50 ms. (The scenario of 20 generations, with its account of every number, is in e2e/counter.rs.)
#include "check.h"

int main(void) {
    ready();
    for (long n = 1;; n++) {
        say("beat %ld", n);
        struct timespec t = {0, 50000000};
        while (nanosleep(&t, &t) != 0) CHECK(errno == EINTR, "nanosleep");
        if (access(getenv("SW_STOP"), F_OK) == 0) return pass();
    }
}
