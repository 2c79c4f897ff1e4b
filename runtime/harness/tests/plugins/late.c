/* late.c: in the process of role `fails` QUIESCE fails, and its RESUME makes the file of the option `file`; in that of role `asks` QUIESCE
 * waits for the file, so that the checkpoint is off already, and the coordinator has said so, when it asks the coordinator. */
#include <fcntl.h>
#include <slackwater.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int here;
static const char *role = "";

static int event(void *user, struct slackwater_info *info) {
  (void)user;
  const char *file = slackwater_option(&here, "file");
  if (strcmp(role, "fails") == 0) {
    if (info->event == SLACKWATER_RESUME) close(open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    if (info->event != SLACKWATER_QUIESCE) return SLACKWATER_DONE;
    snprintf(info->error, info->error_len, "it was told to fail");
    return SLACKWATER_FAILED;
  }
  if (strcmp(role, "asks") == 0 && info->event == SLACKWATER_QUIESCE) {
    for (int i = 0; access(file, F_OK) != 0; i++) {
      if (i == 30000) return SLACKWATER_FAILED;
      usleep(1000);
    }
    struct slackwater_query query = {.key = "nobody", .key_len = 6};
    if (slackwater_query("late", &query, 1) != 0 || query.value) return SLACKWATER_FAILED;
  }
  return SLACKWATER_DONE;
}

static const struct slackwater_plugin plugin = {SLACKWATER_ABI, sizeof plugin, "late", event, NULL, 0};

__attribute__((constructor)) static void start(void) {
  if (getenv("ROLE")) role = getenv("ROLE");
  if (slackwater_plugin_register) slackwater_plugin_register(&plugin);
}
