/* hold.c: a plugin that keeps every checkpoint standing for as many seconds as its option `seconds` says, when all traffic has come
 * to rest: as a slow disk would. */
#include <slackwater.h>
#include <stdlib.h>
#include <unistd.h>

static int event(void *user, struct slackwater_info *info) {
  (void)info;
  const char *seconds = slackwater_option(user, "seconds");
  for (unsigned left = seconds ? atoi(seconds) : 0; left; left = sleep(left)) continue;
  return seconds ? SLACKWATER_DONE : SLACKWATER_FAILED;
}

static struct slackwater_plugin plugin = {SLACKWATER_ABI, sizeof plugin, "hold", event, &plugin, 1 << SLACKWATER_SAVE};
static void __attribute__((constructor)) begin(void) { slackwater_plugin_register(&plugin); }
