/* slackwater.h: the plugin interface. SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * docs/plugins.md is its manual. A plugin is a shared library that `slackwater launch --plugin PATH[,KEY=VALUE...]` preloads
 * behind libslackwater.so. It may define wrapper functions (plain symbol interposition), and it registers event hooks from its
 * constructor by slackwater_plugin_register().
 *
 * From SUSPENDED until RESUME (or RESTARTED, after a restart) every other thread of the process stands still and may hold any
 * lock of the program: hooks must not call malloc, stdio or the loader of the program then, nor take a lock that a wrapper of
 * theirs holds outside of slackwater_wrapper_enter()/exit(). Memory for hooks: slackwater_alloc().
 *
 * All functions are weak: a plugin or a program that uses them also runs without slackwater. What a program calls
 * (slackwater_checkpoint, slackwater_status, slackwater_no_checkpoint_*) then does nothing; the rest must not be called where
 * slackwater_present() says 0.
 */
#ifndef SLACKWATER_H
#define SLACKWATER_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define SLACKWATER_ABI 1
#define SLACKWATER_WEAK __attribute__((weak))

/* On which thread: C, the checkpoint thread; T, the thread that does it, which is not stopped while a hook runs.
 * Order: of the command line, or the opposite (<). */
enum slackwater_event {
  SLACKWATER_PRESUSPEND = 0,       /* C   the program still runs */
  SLACKWATER_SUSPENDED = 1,        /* C   this process's threads stand; others may still run */
  SLACKWATER_QUIESCE = 2,          /* C   all processes stand; held in rounds; return SLACKWATER_AGAIN for another */
  SLACKWATER_SAVE = 3,             /* C   all are quiet; last words before memory is frozen */
  SLACKWATER_RESUME = 4,           /* C < the checkpoint is taken, or off: about to let the threads run */
  SLACKWATER_RESTART = 5,          /* C < restored from an image; held in rounds as QUIESCE */
  SLACKWATER_RESTARTED = 6,        /* C < all have done their rounds: about to let the threads run */
  SLACKWATER_PREFORK = 7,          /* T   in the parent */
  SLACKWATER_POSTFORK_PARENT = 8,  /* T < also when fork failed */
  SLACKWATER_POSTFORK_CHILD = 9,   /* T < */
  SLACKWATER_INIT = 10,            /* T   once in each program, before main; options can be asked for from here on */
  SLACKWATER_RUNNING = 11,         /* C < the threads run again, after RESUME or RESTARTED */
  SLACKWATER_EXIT = 12,            /* T < exit(3), or return from main; not _exit(2), not a signal */
  SLACKWATER_PREEXEC = 13,         /* T   about to become another program */
  SLACKWATER_POSTEXEC = 14,        /* T   in the new program, after its INIT */
  SLACKWATER_EXEC_FAILED = 15,     /* T < after PREEXEC: still the old program */
  SLACKWATER_THREAD_START = 16,    /* T   of each thread but the first */
  SLACKWATER_THREAD_EXIT = 17      /* T < return, pthread_exit or cancellation */
};

/* What a hook returns. FAILED before SAVE's end makes the checkpoint fail, in INIT keeps the process out of the computation,
 * in RESTART ends the restart; elsewhere it is a line in the log or on standard error. */
enum { SLACKWATER_DONE = 0, SLACKWATER_AGAIN = 1, SLACKWATER_FAILED = -1 };

struct slackwater_info {
  uint32_t size;       /* of this struct: later versions append fields */
  uint32_t event;
  uint32_t round;      /* of QUIESCE and RESTART, from 0 on */
  uint32_t members;    /* processes in the computation, known from the first round on */
  uint64_t member;     /* number of this process, the same after a restart; 0: it has not joined yet */
  uint64_t generation; /* that is being taken, or was restored; 0 outside of both */
  char *error;         /* a hook that returns SLACKWATER_FAILED writes a message here */
  size_t error_len;
  uint64_t restarts;   /* how often this process was restored */
};

struct slackwater_plugin {
  uint32_t abi;        /* SLACKWATER_ABI */
  uint32_t size;       /* of this struct: what lies behind is taken as 0 */
  const char *name;    /* for messages */
  int (*event)(void *user, struct slackwater_info *info);
  void *user;
  uint64_t events;     /* bits (1 << SLACKWATER_...) of the events wanted; 0: all */
};

/* 0, or -1 when the ABI is not known. The struct must live as long as the process. Several plugins hear of an event in the
 * order of the command line, or in the opposite one (see above). */
SLACKWATER_WEAK int slackwater_plugin_register(const struct slackwater_plugin *plugin);

/* Publish and query: in hooks on the checkpoint thread, from PRESUSPEND to the last round of QUIESCE, and in RESTART. What is
 * published in one round can be queried from the next on, by any process: a hook that needs an answer returns
 * SLACKWATER_AGAIN, and the next round is the barrier. Keys and values are bytes; scopes keep plugins apart. All is forgotten
 * when the checkpoint or restart is over; but what was published in the last RESTART is kept for programs that are started after
 * it, and query answers them with that on every other thread, at any time. 0, or -1: not here, or the coordinator is out of reach. */
SLACKWATER_WEAK int slackwater_publish(const char *scope, const void *key, size_t key_len, const void *value,
                                       size_t value_len);
struct slackwater_query {
  const void *key;
  size_t key_len;
  void *value;         /* out: to be slackwater_free(value, value_len, 1)d, or NULL when nobody published it */
  size_t value_len;
};
SLACKWATER_WEAK int slackwater_query(const char *scope, struct slackwater_query *queries, size_t n);

/* A heap of ours, usable while the program stands still. NULL when memory is short. */
SLACKWATER_WEAK void *slackwater_alloc(size_t size, size_t align);
SLACKWATER_WEAK void slackwater_free(void *p, size_t size, size_t align);

/* A thread between enter and exit is not stopped: it parks as it leaves. Nests. Cheap: two plain stores. Do not wait in
 * between for what another thread must do. */
SLACKWATER_WEAK void slackwater_wrapper_enter(void);
SLACKWATER_WEAK void slackwater_wrapper_exit(void);

/* The next definition of a symbol after that of the library which holds own_address (version may be NULL): what a wrapper
 * calls. Plugins over one function form a chain in the order of the command line, then come the program's own libraries. */
SLACKWATER_WEAK void *slackwater_next(const void *own_address, const char *symbol, const char *version);

/* The value of KEY in `--plugin PATH,KEY=VALUE` of the library that holds own_address; NULL: not given. From INIT on. */
SLACKWATER_WEAK const char *slackwater_option(const void *own_address, const char *key);

/* Descriptors that are the plugin's own: neither saved nor restored. */
SLACKWATER_WEAK void slackwater_protect_fd(int fd);
SLACKWATER_WEAK void slackwater_unprotect_fd(int fd);

/* Leaves whole pages of private anonymous memory out of images; they come back as zeros. -1: not page-aligned. */
SLACKWATER_WEAK int slackwater_cutout(void *address, size_t length);

/* Sections `plugin.NAME` of the images that are taken from now on (no data: out again); get: what was put, also after a
 * restart. Tools find them by `slackwater inspect`. */
SLACKWATER_WEAK int slackwater_section_put(const char *name, const void *data, size_t length);
SLACKWATER_WEAK const void *slackwater_section_get(const char *name, size_t *length);

/* A table of virtual ids, kept in the image. set: adds a pair, or gives a virtual id another real one. 0, or -1: unknown.
 * next: the pair with the smallest virtual id from `from` on. Safe in threads and wrappers. */
struct slackwater_ids;
SLACKWATER_WEAK struct slackwater_ids *slackwater_ids_new(void);
SLACKWATER_WEAK void slackwater_ids_set(struct slackwater_ids *ids, uint64_t id, uint64_t real);
SLACKWATER_WEAK int slackwater_ids_remove(struct slackwater_ids *ids, uint64_t id);
SLACKWATER_WEAK int slackwater_ids_real(struct slackwater_ids *ids, uint64_t id, uint64_t *real);
SLACKWATER_WEAK int slackwater_ids_virtual(struct slackwater_ids *ids, uint64_t real, uint64_t *id);
SLACKWATER_WEAK int slackwater_ids_next(struct slackwater_ids *ids, uint64_t from, uint64_t *id, uint64_t *real);

/* For programs, which need this header only: inline functions that look for the real ones. */

struct slackwater_status {
  uint32_t size;       /* set it to sizeof(struct slackwater_status) */
  uint32_t members;    /* processes, as of the last checkpoint */
  uint64_t member;     /* number of this process */
  uint64_t generation; /* the last one committed; 0: none yet */
  uint64_t restarts;   /* how often this process was restored */
};

#define SLACKWATER_ABSENT 2

/* The address of a weak symbol, or NULL, from the table that the dynamic linker fills in: plain C would make it a constant, 0,
 * in an executable that is not position-independent. */
#if defined(__x86_64__)
#define SLACKWATER_ADDRESS(symbol, out) \
  __asm__(".weak " symbol "\n\tmovq " symbol "@GOTPCREL(%%rip), %0" : "=r"(out))
#elif defined(__aarch64__)
#define SLACKWATER_ADDRESS(symbol, out) \
  __asm__(".weak " symbol "\n\tadrp %0, :got:" symbol "\n\tldr %0, [%0, :got_lo12:" symbol "]" : "=r"(out))
#else
#error "slackwater.h: not for this machine"
#endif

/* Is slackwater in this process? */
static inline int slackwater_present(void) {
  void *found;
  SLACKWATER_ADDRESS("slackwater_checkpoint", found);
  return found != NULL;
}

/* Takes a checkpoint and waits for it. 0: committed; 1: this is the restarted program; -1: failed; SLACKWATER_ABSENT:
 * without slackwater. Not from a hook, nor inside no_checkpoint or a wrapper. */
static inline int slackwater_checkpoint(void) {
  int (*found)(void);
  SLACKWATER_ADDRESS("slackwater_checkpoint", found);
  return found ? found() : SLACKWATER_ABSENT;
}

/* 0; -1: this process is in no computation (yet); SLACKWATER_ABSENT: without slackwater. */
static inline int slackwater_status(struct slackwater_status *status) {
  int (*found)(struct slackwater_status *);
  SLACKWATER_ADDRESS("slackwater_status", found);
  return found ? found(status) : SLACKWATER_ABSENT;
}

/* No checkpoint begins between the two; begin waits while one is taken. Nests. A checkpoint that is asked for waits for 30
 * seconds, then fails. */
static inline void slackwater_no_checkpoint_begin(void) {
  void (*found)(void);
  SLACKWATER_ADDRESS("slackwater_no_checkpoint_begin", found);
  if (found) found();
}
static inline void slackwater_no_checkpoint_end(void) {
  void (*found)(void);
  SLACKWATER_ADDRESS("slackwater_no_checkpoint_end", found);
  if (found) found();
}

#ifdef __cplusplus
}
#endif
#endif
