//# Level: normal
// How a job ends that does not end well, or has something to say while it does; when $SW_STOP appears:
//
//     ending abort      rank 1 calls MPI_Abort with code 7
//     ending signal     rank 1 dies of SIGSEGV
//     ending status     all finalize, and rank 1 exits with status 3
//     ending echo       rank 0 repeats each line of standard input; all end well
#include "check.h"
#include <poll.h>
#include <signal.h>

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    const char *how = argc > 1 ? argv[1] : "";
    setvbuf(stdin, NULL, _IONBF, 0);
    say("ready");
    do {
        struct pollfd in = {0, POLLIN, 0};
        char line[100];
        if (rank == 0 && strcmp(how, "echo") == 0 && poll(&in, 1, 0) == 1 && fgets(line, sizeof line, stdin)) say("heard %s", strtok(line, "\n"));
        struct timespec pause = {0, 5000000};
        nanosleep(&pause, NULL);
    } while (beat(0));
    printf("rank %d ends\n", rank);
    fflush(stdout);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 1 && strcmp(how, "abort") == 0) MPI_Abort(MPI_COMM_WORLD, 7);
    if (rank == 1 && strcmp(how, "signal") == 0) raise(SIGSEGV);
    // Whoever is left waits for the one that is gone.
    if (strcmp(how, "abort") == 0 || strcmp(how, "signal") == 0) MPI_Barrier(MPI_COMM_WORLD);
    MPI_Finalize();
    return rank == 1 && strcmp(how, "status") == 0 ? 3 : 0;
}
