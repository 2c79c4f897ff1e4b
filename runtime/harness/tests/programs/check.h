// What every test program needs: see runtime/harness/src/program.rs for the rules between program and harness.
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// A check that fails ends the program at once, with a line that says where.
#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) fail(__FILE__, __LINE__, #condition, __VA_ARGS__);                                           \
    } while (0)

static void __attribute__((noreturn, unused, format(printf, 4, 5)))
fail(const char *file, int line, const char *condition, const char *format, ...) {
    char text[512];
    int error = errno, n = snprintf(text, sizeof text, "FAIL %s:%d: %s (errno %d): ", file, line, condition, error);
    va_list list;
    va_start(list, format);
    n += vsnprintf(text + n, sizeof text - n - 1, format, list);
    va_end(list);
    if (n > (int)sizeof text - 2) n = sizeof text - 2;
    text[n++] = '\n';
    if (write(2, text, n)) {}
    _exit(1);
}

static inline int64_t now_ns(clockid_t clock) {
    struct timespec t;
    CHECK(clock_gettime(clock, &t) == 0, "clock %d", clock);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// How much later than asked a time-out may come, in nanoseconds.
static inline int64_t slack_ns(void) {
    const char *text = getenv("SW_SLACK_MS");
    return (text ? atoll(text) : 5000) * 1000000LL;
}

static inline void say(const char *format, ...) {
    char text[256];
    va_list list;
    va_start(list, format);
    int n = vsnprintf(text, sizeof text - 1, format, list);
    va_end(list);
    text[n++] = '\n';
    CHECK(write(1, text, n) == n, "standard output");
}

static inline void ready(void) { say("ready"); }

// Once through all checks: says so, and waits a moment. False when it is time for the last checks.
static inline int beat(void) {
    static long count;
    say("beat %ld", ++count);
    struct timespec t = {0, 20000000};
    while (nanosleep(&t, &t) != 0) CHECK(errno == EINTR, "nanosleep");
    const char *stop = getenv("SW_STOP");
    return !(stop && access(stop, F_OK) == 0);
}

static inline int pass(void) {
    say("PASS");
    return 0;
}

static inline pthread_t start(void *(*function)(void *), void *argument, size_t stack) {
    pthread_attr_t attr;
    pthread_t thread;
    pthread_attr_init(&attr);
    if (stack) pthread_attr_setstacksize(&attr, stack);
    int error = pthread_create(&thread, &attr, function, argument);
    CHECK(error == 0, "pthread_create: %s", strerror(error));
    pthread_attr_destroy(&attr);
    return thread;
}

static inline void join(pthread_t thread) {
    int error = pthread_join(thread, NULL);
    CHECK(error == 0, "pthread_join: %s", strerror(error));
}

// A small generator whose state can be checked.
static inline uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}
