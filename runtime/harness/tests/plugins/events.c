/* events.c: writes the name of every event to the file of its option `log`, one line each, with the plugin's own `name`; fails in
 * the event number `fail`; wants another round of QUIESCE and RESTART until there were `rounds`. */
#include <fcntl.h>
#include <slackwater.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int here;

static const char *const names[] = {
    "PRESUSPEND", "SUSPENDED", "QUIESCE", "SAVE", "RESUME", "RESTART", "RESTARTED", "PREFORK", "POSTFORK_PARENT",
    "POSTFORK_CHILD", "INIT", "RUNNING", "EXIT", "PREEXEC", "POSTEXEC", "EXEC_FAILED", "THREAD_START", "THREAD_EXIT"};

static int number(const char *key, int otherwise) {
  const char *value = slackwater_option(&here, key);
  return value ? atoi(value) : otherwise;
}

static int event(void *user, struct slackwater_info *info) {
  (void)user;
  const char *log = slackwater_option(&here, "log"), *name = slackwater_option(&here, "name");
  int fd = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  char line[160];
  int n = snprintf(line, sizeof line, "%s %s %u %llu\n", name ? name : "events", names[info->event], info->round,
                   (unsigned long long)info->restarts);
  if (fd < 0 || write(fd, line, n) != n) return SLACKWATER_FAILED;
  close(fd);
  if (info->size < sizeof *info) return SLACKWATER_FAILED;
  if (number("fail", -1) == (int)info->event) {
    snprintf(info->error, info->error_len, "it was told to fail in %s", names[info->event]);
    return SLACKWATER_FAILED;
  }
  if ((info->event == SLACKWATER_QUIESCE || info->event == SLACKWATER_RESTART) &&
      (int)info->round + 1 < number("rounds", 1))
    return SLACKWATER_AGAIN;
  return SLACKWATER_DONE;
}

static const struct slackwater_plugin plugin = {SLACKWATER_ABI, sizeof plugin, "events", event, NULL, 0};

__attribute__((constructor)) static void start(void) {
  if (slackwater_plugin_register) slackwater_plugin_register(&plugin);
}

/* A wrapper, for chains: what comes next, with a letter of ours before it. */
const char *chained(char *out) {
  const char *(*next)(char *) = (const char *(*)(char *))slackwater_next(&here, "chained", NULL);
  const char *name = slackwater_option(&here, "name");
  strcat(out, name ? name : "?");
  return next ? next(out) : out;
}
