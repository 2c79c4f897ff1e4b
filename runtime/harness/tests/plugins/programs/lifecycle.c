/* lifecycle.c: does, once, all that plugins hear of; then beats until it is told to stop. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

__attribute__((weak)) const char *chained(char *out);

static void *returns(void *arg) { return arg; }
static void *exits(void *arg) { pthread_exit(arg); }
static void *cancelled(void *arg) {
  for (;;) pause();
  return arg;
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "child") == 0) return 3;
  void *(*bodies[])(void *) = {returns, exits, cancelled};
  for (int i = 0; i < 3; i++) {
    pthread_t t;
    void *result = NULL;
    if (pthread_create(&t, NULL, bodies[i], bodies) != 0) return 1;
    if (i == 2) pthread_cancel(t);
    if (pthread_join(t, &result) != 0 || result != (i == 2 ? PTHREAD_CANCELED : (void *)bodies)) return 1;
  }
  pid_t pid = fork();
  if (pid == 0) {
    execl("/no/such/program", "no", (char *)NULL);
    execl("/proc/self/exe", argv[0], "child", (char *)NULL);
    _exit(9);
  }
  int status;
  if (waitpid(pid, &status, 0) != pid || WEXITSTATUS(status) != 3) return 1;
  char letters[64] = "";
  if (chained) printf("chain %s\n", chained(letters));
  puts("ready");
  for (int i = 0; access(getenv("SW_STOP"), F_OK) != 0; i++) {
    printf("beat %d %s\n", i, getenv("CHANGES") ? getenv("CHANGES") : "");
    fflush(stdout);
    usleep(20000);
  }
  puts("PASS");
  return 0;
}
