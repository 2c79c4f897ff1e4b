/* sleeper.c: sleeps a second at a time. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(void) {
  puts("ready");
  for (int i = 0; access(getenv("SW_STOP"), F_OK) != 0; i++) {
    for (unsigned left = 1; left;) left = sleep(left);
    printf("beat %d\n", i);
    fflush(stdout);
  }
  puts("PASS");
  return 0;
}
