/* table.c: reads a table that the plugin cutout of docs/plugins.md makes. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

__attribute__((weak)) const unsigned *table_new(size_t length, unsigned seed);

enum { LENGTH = 64 << 20 };

int main(void) {
  const unsigned *table = table_new ? table_new(LENGTH, 7) : NULL;
  if (!table) return 1;
  puts("ready");
  for (int i = 0; access(getenv("SW_STOP"), F_OK) != 0; i++) {
    unsigned x = 7;
    for (size_t at = 0; at < LENGTH / sizeof *table; at++)
      if (table[at] != (x = x * 1664525 + 1013904223)) return fprintf(stderr, "differs at %zu\n", at), 1;
    printf("beat %d\n", i);
    fflush(stdout);
    usleep(20000);
  }
  puts("PASS");
  return 0;
}
