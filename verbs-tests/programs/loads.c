/* loads.c: a program without a link to libibverbs. However it loads it, and whatever it asks for, it gets the wrapper's definition
 * (argument 1: "ours", else that of libibverbs itself). With -l it says so once a line is read from standard input, again and again. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static int failed;
static void check(const char *how, void *p, int ours) {
  Dl_info info;
  const char *in = p && dladdr(p, &info) && info.dli_fname ? info.dli_fname : "nothing";
  if (!strstr(in, ours ? "libslackwater_ib" : "libibverbs")) { printf("%s: found in %s\n", how, in); failed = 1; }
}
static int all(int ours) {
  static const int flags[] = {RTLD_LAZY, RTLD_NOW | RTLD_LOCAL, RTLD_NOW | RTLD_GLOBAL, RTLD_NOW | RTLD_DEEPBIND};
  for (int i = 0; i < 4; i++) {
    void *h = dlopen("libibverbs.so.1", flags[i]);
    if (!h) { printf("%s\n", dlerror()); return 1; }
    check("dlsym", dlsym(h, "ibv_open_device"), ours);
    check("dlvsym", dlvsym(h, "ibv_create_qp", "IBVERBS_1.1"), ours);
    check("dlvsym of a private version", dlvsym(h, "ibv_query_gid_type", "IBVERBS_PRIVATE_34"), ours);
    check("a refused one", dlsym(h, "ibv_import_pd"), ours);
    check("one that passes", dlsym(h, "ibv_wc_status_str"), 0);
    check("the old ABI", dlvsym(h, "ibv_open_device", "IBVERBS_1.0"), 0);
    if (i % 2) dlclose(h);
  }
  void *cm = dlopen("librdmacm.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
  check("through a library that needs it", cm ? dlsym(cm, "ibv_get_device_list") : NULL, ours);
  return failed;
}
int main(int argc, char **argv) {
  int ours = argc > 1 && !strcmp(argv[1], "ours");
  if (all(ours)) return 1;
  printf("ok\n"); fflush(stdout);
  for (char line[64]; argc > 2 && fgets(line, sizeof line, stdin);) {
    if (all(ours)) return 1;
    printf("again\n"); fflush(stdout);
  }
  return 0;
}
