/* fakert.c: a runtime in one file, for tests without agent and coordinator. Preload it before the plugin. The program's
 * only thread calls slackwater_checkpoint(); it then sees what a process sees of QUIESCE, SAVE and RESUME, or, every second
 * time (FAKERT=restart: every time; FAKERT=resume: never), of RESTART instead: the plugin makes all objects anew, with
 * other numbers and keys, while the old ones stay behind in the kernel like those of a dead process, and never speak again. FAKERT_HOLD=s: each checkpoint stands for s seconds. */
#define _GNU_SOURCE
#include "../../../runtime/plugin/include/slackwater.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct slackwater_plugin *plugins[8];
static int n_plugins;
static struct entry { size_t kl, vl; char *k, *v; int round; } *kv;
static size_t n_kv;
static int now_round, cycles;

int slackwater_plugin_register(const struct slackwater_plugin *p) {
  if (p->abi != SLACKWATER_ABI || n_plugins == 8) return -1;
  plugins[n_plugins++] = p;
  return 0;
}
static void *copy(const void *p, size_t n) { return memcpy(malloc(n + 1), p, n); }
int slackwater_publish(const char *scope, const void *k, size_t kl, const void *v, size_t vl) {
  (void)scope;
  for (size_t i = 0; i < n_kv; i++)
    if (kv[i].kl == kl && !memcmp(kv[i].k, k, kl) && kv[i].round == now_round) { free(kv[i].v); kv[i].v = copy(v, vl); kv[i].vl = vl; return 0; }
  kv = realloc(kv, (n_kv + 1) * sizeof *kv);
  kv[n_kv++] = (struct entry){kl, vl, copy(k, kl), copy(v, vl), now_round};
  return 0;
}
int slackwater_query(const char *scope, struct slackwater_query *q, size_t n) {
  (void)scope;
  for (size_t j = 0; j < n; j++) {
    q[j].value = NULL;
    /* newest first; what was published in this very round is not visible yet */
    for (size_t i = n_kv; i-- > 0;)
      if (kv[i].round < now_round && kv[i].kl == q[j].key_len && !memcmp(kv[i].k, q[j].key, kv[i].kl)) {
        q[j].value = copy(kv[i].v, kv[i].vl); q[j].value_len = kv[i].vl;
        break;
      }
  }
  return 0;
}
void *slackwater_alloc(size_t size, size_t align) { return aligned_alloc(align < 16 ? 16 : align, (size + 15) & ~15ul); }
void slackwater_free(void *p, size_t size, size_t align) { (void)size, (void)align; free(p); }
static __thread int depth;
void slackwater_wrapper_enter(void) { depth++; }
void slackwater_wrapper_exit(void) { if (--depth < 0) { fprintf(stderr, "fakert: wrapper exit without enter\n"); abort(); } }
void slackwater_protect_fd(int fd) { (void)fd; }
void slackwater_unprotect_fd(int fd) { (void)fd; }
int slackwater_cutout(void *a, size_t n) { (void)a, (void)n; return 0; }

static int tell(int event, int round) {
  int again = 0;
  for (int i = 0; i < n_plugins; i++) {
    char error[512] = "";
    struct slackwater_info info = {sizeof info, event, round, 1, 1, cycles, error, sizeof error};
    int r = plugins[i]->event(plugins[i]->user, &info);
    if (r < 0) { fprintf(stderr, "fakert: event %d round %d: %s\n", event, round, error); exit(3); }
    again |= r;
  }
  return again;
}
static void rounds(int event) {
  for (size_t i = 0; i < n_kv; i++) { free(kv[i].k); free(kv[i].v); }
  n_kv = 0;
  for (now_round = 0; tell(event, now_round); now_round++)
    if (now_round > 1000000000) { fprintf(stderr, "fakert: event %d does not come to an end\n", event); exit(3); }
}
/* The header has an inline function of this name, which looks for this one. */
int checkpoint(void) __asm__("slackwater_checkpoint");
int checkpoint(void) {
  const char *mode = getenv("FAKERT");
  if (depth) { fprintf(stderr, "fakert: checkpoint inside a wrapper\n"); abort(); }
  cycles++;
  tell(SLACKWATER_PRESUSPEND, 0); tell(SLACKWATER_SUSPENDED, 0);
  rounds(SLACKWATER_QUIESCE);
  tell(SLACKWATER_SAVE, 0);
  if (getenv("FAKERT_HOLD")) sleep(atoi(getenv("FAKERT_HOLD")));
  int restart = mode && !strcmp(mode, "restart") ? 1 : mode && !strcmp(mode, "resume") ? 0 : cycles % 2 == 0;
  if (!restart) { tell(SLACKWATER_RESUME, 0); return 0; }
  rounds(SLACKWATER_RESTART);
  tell(SLACKWATER_RESTARTED, 0);
  return 1;
}
