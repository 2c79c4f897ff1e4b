/* slackwater.h: the plugin interface. SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A plugin is a shared library that `slackwater launch --plugin PATH` preloads behind libslackwater.so. It may define
 * wrapper functions (plain symbol interposition), and it registers event hooks from its constructor by
 * slackwater_plugin_register(). Events run on the checkpoint thread of each process. From SUSPENDED until RESUME (or
 * RUNNING after RESTART) every other thread of the process stands still and may hold any lock of the program: hooks must
 * not call malloc, stdio or the loader of the program, nor take a lock that a wrapper of theirs holds outside of
 * slackwater_wrapper_enter()/exit(). Memory for hooks: slackwater_alloc().
 */
#ifndef SLACKWATER_H
#define SLACKWATER_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define SLACKWATER_ABI 1

enum slackwater_event {
  SLACKWATER_PRESUSPEND = 0, /* checkpoint thread; the program still runs */
  SLACKWATER_SUSPENDED = 1,  /* this process's threads stand; others may still run */
  SLACKWATER_QUIESCE = 2,    /* all processes stand; held in rounds; return SLACKWATER_AGAIN for another */
  SLACKWATER_SAVE = 3,       /* all are quiet; last words before memory is frozen */
  SLACKWATER_RESUME = 4,     /* the checkpoint is taken, or off: about to let the threads run */
  SLACKWATER_RESTART = 5,    /* restored from an image; held in rounds as QUIESCE */
  SLACKWATER_RESTARTED = 6,  /* all have done their rounds: about to let the threads run */
  SLACKWATER_PREFORK = 7,    /* on the forking thread, in the parent */
  SLACKWATER_POSTFORK_PARENT = 8,
  SLACKWATER_POSTFORK_CHILD = 9
};

/* What a hook returns. */
enum { SLACKWATER_DONE = 0, SLACKWATER_AGAIN = 1, SLACKWATER_FAILED = -1 };

struct slackwater_info {
  uint32_t size;       /* of this struct */
  uint32_t event;
  uint32_t round;      /* of QUIESCE and RESTART */
  uint32_t members;    /* processes in the computation */
  uint64_t member;     /* number of this process */
  uint64_t generation;
  char *error;         /* a hook that returns SLACKWATER_FAILED writes a message here */
  size_t error_len;
};

struct slackwater_plugin {
  uint32_t abi;        /* SLACKWATER_ABI */
  uint32_t size;       /* of this struct */
  const char *name;    /* scope of published keys, and of the plugin's section of the image */
  int (*event)(void *user, struct slackwater_info *info);
  void *user;
};

/* 0, or -1 when the ABI is not known. The struct must live as long as the process. Events go to plugins in the order of
 * registration up to SAVE, and in the opposite order from RESUME or RESTART on. */
int slackwater_plugin_register(const struct slackwater_plugin *plugin);

/* In hooks only. Published values can be queried from the next round on, by any process. */
int slackwater_publish(const char *scope, const void *key, size_t key_len, const void *value, size_t value_len);
struct slackwater_query {
  const void *key; size_t key_len;
  void *value;         /* out: slackwater_alloc()ed, or NULL when nobody published it */
  size_t value_len;
};
int slackwater_query(const char *scope, struct slackwater_query *queries, size_t n);

/* The checkpoint thread's heap: an arena of ours, usable while the program stands still. */
void *slackwater_alloc(size_t size, size_t align);
void slackwater_free(void *p, size_t size, size_t align);

/* A thread between enter and exit is not stopped: it parks as it leaves. Nests. Cheap: two plain stores. */
void slackwater_wrapper_enter(void);
void slackwater_wrapper_exit(void);

/* The next definition of a symbol after the plugin's own (version may be NULL), as dlvsym(RTLD_NEXT). */
void *slackwater_next(const void *own_address, const char *symbol, const char *version);

/* Descriptors and memory that are the plugin's own: closed, or left out of the image (they come back as zero pages). */
void slackwater_protect_fd(int fd);
void slackwater_unprotect_fd(int fd);
int slackwater_cutout(void *address, size_t length);

/* For programs; declare weak and test for NULL to run without slackwater. 0: committed; -1: failed. 1: restarted. */
int slackwater_checkpoint(void);

#ifdef __cplusplus
}
#endif
#endif
