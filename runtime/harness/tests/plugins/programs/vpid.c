/* vpid.c: uses process ids; for the plugin of the same name in docs/plugins.md. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
  pid_t first = getpid();
  if (first < 1000000) return 1;
  pid_t child = fork();
  if (child == 0) _exit(getpid() > 1000000 && getpid() != first && kill(getpid(), 0) == 0 ? 0 : 1);
  int status;
  if (waitpid(child, &status, 0) != child || status != 0) return 1;
  puts("ready");
  for (int i = 0; access(getenv("SW_STOP"), F_OK) != 0; i++) {
    if (getpid() != first || kill(first, 0) != 0) return 1;
    printf("beat %d\n", i);
    fflush(stdout);
    usleep(20000);
  }
  puts("PASS");
  return 0;
}
