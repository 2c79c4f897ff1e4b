//# Compilers: gcc, clang
//# Cflags: -fopenmp
//# Scenario: go-on, restart
//# Needs: program:clang
// OpenMP: parallel loops, reductions, tasks, thread-private variables. The sums are known.
#include "check.h"
#include <omp.h>

static int own;
#pragma omp threadprivate(own)

static long fibonacci(int n) {
    if (n < 2) return n;
    long a, b;
#pragma omp task shared(a)
    a = fibonacci(n - 1);
#pragma omp task shared(b)
    b = fibonacci(n - 2);
#pragma omp taskwait
    return a + b;
}

int main(void) {
    omp_set_num_threads(4);
    omp_set_dynamic(0);
#pragma omp parallel
    own = omp_get_thread_num() * 10;
    ready();
    do {
        long sum = 0, wrong = 0, f = 0;
#pragma omp parallel for reduction(+ : sum) schedule(dynamic, 100)
        for (long i = 0; i < 100000; i++) sum += i * (i % 7);
        long again = 0;
        for (long i = 0; i < 100000; i++) again += i * (i % 7);
        CHECK(sum == again, "reduction: %ld, not %ld", sum, again);
#pragma omp parallel reduction(+ : wrong)
        wrong += own != omp_get_thread_num() * 10;
        CHECK(wrong == 0, "thread-private variables");
#pragma omp parallel
#pragma omp single
        f = fibonacci(15);
        CHECK(f == 610, "tasks: %ld", f);
    } while (beat());
    return pass();
}
