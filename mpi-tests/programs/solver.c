//# Level: normal
// A solver as users have them: heat on a square plate, one implicit step after the other, each by conjugate gradients.
//
//     solver [STEPS] [N] [EVERY]     defaults: 200 steps, N = 96 inner points a side, a line each 10 steps
//
// Rows are spread over the ranks; each iteration exchanges halos by point-to-point messages and makes two dot products.
// The state is a sum of eight eigenvectors of the discrete operator, and so is the source, so the exact answer of every
// step is known: each coefficient obeys a scalar recursion. A lost, doubled or damaged message therefore shows.
//
// Every printed digit is reproducible: dot products are added up in the order of the ranks, on every transport.
// Ends with `PASS` when $SW_STOP appears or after STEPS steps (0: without end).
#include "check.h"
#include <math.h>

#define MODES 8
static const int mode_x[MODES] = {1, 2, 1, 3, 2, 5, 4, 7}, mode_y[MODES] = {1, 1, 2, 2, 3, 1, 4, 2};

static int n, first, rows;
static double *partials;

static double dot(const double *a, const double *b) {
    double own = 0, all = 0;
    for (int i = 1; i <= rows; i++)
        for (int j = 1; j <= n; j++) own += a[i * (n + 2) + j] * b[i * (n + 2) + j];
    MPI_Allgather(&own, 1, MPI_DOUBLE, partials, 1, MPI_DOUBLE, MPI_COMM_WORLD);
    for (int r = 0; r < ranks; r++) all += partials[r];
    return all;
}

// out = (1 + dt A) v, A being the five-point Laplacian times (n + 1)^2.
static void apply(double *out, double *v, double dt) {
    int up = rank > 0 ? rank - 1 : MPI_PROC_NULL, down = rank + 1 < ranks ? rank + 1 : MPI_PROC_NULL;
    int width = n + 2;
    MPI_Request request[4];
    MPI_Status status[4];
    MPI_Irecv(v, width, MPI_DOUBLE, up, 1, MPI_COMM_WORLD, &request[0]);
    MPI_Irecv(v + (rows + 1) * width, width, MPI_DOUBLE, down, 2, MPI_COMM_WORLD, &request[1]);
    MPI_Isend(v + width, width, MPI_DOUBLE, up, 2, MPI_COMM_WORLD, &request[2]);
    MPI_Isend(v + rows * width, width, MPI_DOUBLE, down, 1, MPI_COMM_WORLD, &request[3]);
    MPI_Waitall(4, request, status);
    double c = dt * (n + 1.0) * (n + 1.0);
    for (int i = 1; i <= rows; i++)
        for (int j = 1; j <= n; j++) {
            double *p = v + i * width + j;
            out[i * width + j] = p[0] + c * (4 * p[0] - p[-1] - p[1] - p[-width] - p[width]);
        }
}

static double mode(int m, int i, int j) {
    return sin(M_PI * mode_x[m] * i / (n + 1.0)) * sin(M_PI * mode_y[m] * j / (n + 1.0));
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    long steps = argc > 1 ? atol(argv[1]) : 200, every = argc > 3 ? atol(argv[3]) : 10;
    n = argc > 2 ? atoi(argv[2]) : 96;
    CHECK(n >= ranks && every > 0, "%d rows for %d ranks", n, ranks);
    first = (int)((long)n * rank / ranks) + 1;
    rows = (int)((long)n * (rank + 1) / ranks) + 1 - first;
    partials = malloc(ranks * sizeof *partials);
    size_t size = (size_t)(rows + 2) * (n + 2);
    double *u = calloc(size, 8), *r = calloc(size, 8), *p = calloc(size, 8), *q = calloc(size, 8);
    double *shape = calloc(size * MODES, 8);
    CHECK(partials && u && r && p && q && shape, "no memory");
    double exact[MODES], lambda[MODES], dt = 0.01;
    for (int m = 0; m < MODES; m++) {
        double sx = sin(M_PI * mode_x[m] / (2 * (n + 1.0))), sy = sin(M_PI * mode_y[m] / (2 * (n + 1.0)));
        lambda[m] = 4 * (n + 1.0) * (n + 1.0) * (sx * sx + sy * sy);
        exact[m] = 1.0 / (m + 1);
        for (int i = 1; i <= rows; i++)
            for (int j = 1; j <= n; j++) {
                size_t at = (size_t)i * (n + 2) + j;
                shape[m * size + at] = mode(m, first + i - 1, j);
                u[at] += exact[m] * shape[m * size + at];
            }
    }
    say("ready");
    int on = 1;
    for (long step = 1; on; step++) {
        // Right-hand side u + dt f; each mode's exact coefficient makes the same step.
        double source[MODES];
        for (int m = 0; m < MODES; m++) {
            source[m] = cos(0.1 * step * (m + 1)) * lambda[m] * 0.1;
            exact[m] = (exact[m] + dt * source[m]) / (1 + dt * lambda[m]);
        }
        apply(q, u, dt);
        for (int i = 1; i <= rows; i++)
            for (int j = 1; j <= n; j++) {
                size_t at = (size_t)i * (n + 2) + j;
                double right = u[at];
                for (int m = 0; m < MODES; m++) right += dt * source[m] * shape[m * size + at];
                r[at] = p[at] = right - q[at];
            }
        double rr = dot(r, r), start = rr;
        int iterations = 0;
        while (rr > 1e-24 * start && rr > 1e-26 && iterations < 500) {
            apply(q, p, dt);
            double alpha = rr / dot(p, q), before = rr;
            for (size_t k = 0; k < size; k++) u[k] += alpha * p[k], r[k] -= alpha * q[k];
            rr = dot(r, r);
            for (size_t k = 0; k < size; k++) p[k] = r[k] + rr / before * p[k];
            iterations++;
        }
        CHECK(iterations < 500, "step %ld does not converge: %g", step, rr);
        double worst = 0;
        for (int i = 1; i <= rows; i++)
            for (int j = 1; j <= n; j++) {
                size_t at = (size_t)i * (n + 2) + j;
                double value = 0;
                for (int m = 0; m < MODES; m++) value += exact[m] * shape[m * size + at];
                worst = fmax(worst, fabs(value - u[at]));
            }
        CHECK(worst < 1e-8, "step %ld: off by %g", step, worst);
        double norm = dot(u, u);
        if (step % every == 0)
            say("beat %ld iterations %d residual %.17g norm %.17g", step, iterations, sqrt(rr), norm);
        if (rank == 0) {
            const char *stop = getenv("SW_STOP");
            on = !(stop && access(stop, F_OK) == 0) && (steps == 0 || step < steps);
        }
        MPI_Bcast(&on, 1, MPI_INT, 0, MPI_COMM_WORLD);
    }
    double answer = dot(u, u);
    say("answer %.17g", answer);
    say("PASS");
    MPI_Finalize();
    return 0;
}
