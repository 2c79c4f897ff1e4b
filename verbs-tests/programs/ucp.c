/* ucp.c: two processes that talk by UCX itself, without MPI: tagged messages from 8 B to 1 MiB (eager and rendezvous), puts, gets and
 * atomic additions into each other's memory, and active messages; every third round the receiver sleeps on the worker's descriptor
 * until the sender, who waits a while, wakes it. All is checked. Prints "beat" every so many rounds, and once $SW_STOP is there "PASS".
 * UCX measures the time stamp counter by gettimeofday(2), which is ours. With $CLOCK "skewed" it goes at a tenth of its pace: the
 * counter seems ten times as fast as it is, as on a processor that others take away meanwhile. With "back" UCX takes it for its only
 * clock, and every tenth round, between a send and its answer, it goes back an hour: as on another machine. */
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucp/api/ucp.h>
#include <unistd.h>
#define DIE(...) do { printf("FAIL: process %d: ", me); printf(__VA_ARGS__); printf("\n"); fflush(stdout); _exit(1); } while (0)
#define OK(x) do { ucs_status_t status_ = (x); if (status_) DIE("%s, line %d: %s", #x, __LINE__, ucs_status_string(status_)); } while (0)
#define TRUE(x) do { if (!(x)) DIE("%s, line %d: %m", #x, __LINE__); } while (0)
enum { CELLS = 4096, LARGEST = 1 << 20, AM = 7, BEAT = 20, PATIENCE = 60 };
static const size_t sizes[] = {8, 200, 3000, 9000, 70000, LARGEST};

static int me, wire;
static ucp_context_h context; static ucp_worker_h worker; static ucp_ep_h ep;
static uint64_t cells[CELLS], source[CELLS], fetched[CELLS], counter, told;
static unsigned char out[LARGEST], in[LARGEST];

/* UCX's libraries call this one. */
static long back;
static int clock_is(const char *name) { const char *set = getenv("CLOCK"); return set && !strcmp(set, name); }
int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
  static struct timeval first;
  long result = syscall(SYS_gettimeofday, tv, zone);
  tv->tv_sec -= back;
  if (!clock_is("skewed")) return (int)result;
  if (!first.tv_sec) first = *tv;
  long us = ((tv->tv_sec - first.tv_sec) * 1000000 + tv->tv_usec - first.tv_usec) / 10 + first.tv_usec;
  tv->tv_sec = first.tv_sec + us / 1000000; tv->tv_usec = us % 1000000;
  return (int)result;
}
extern int ucs_arch_x86_enable_rdtsc; double ucs_get_cpu_clocks_per_sec(void); /* of libucs */

static void tell(const void *p, size_t n) { TRUE(write(wire, p, n) == (ssize_t)n); }
static void hear(void *p, size_t n) { TRUE(recv(wire, p, n, MSG_WAITALL) == (ssize_t)n); }
static long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec; }

/* UCX's callbacks are not needed: requests are looked at. */
static void end(void *request, const char *what) {
  if (!request) return;
  if (UCS_PTR_IS_ERR(request)) DIE("%s: %s", what, ucs_status_string(UCS_PTR_STATUS(request)));
  long from = now(); /* (on another machine it may be less) */
  ucs_status_t status;
  while ((status = ucp_request_check_status(request)) == UCS_INPROGRESS) {
    if (!ucp_worker_progress(worker) && now() - from > PATIENCE) DIE("%s is not complete after %d s", what, PATIENCE);
  }
  if (status) DIE("%s: %s", what, ucs_status_string(status));
  ucp_request_free(request);
}

static const ucp_request_param_t plain;
static void flush(void) { end(ucp_ep_flush_nbx(ep, &plain), "a flush"); }

static unsigned char byte(uint64_t round, int who, size_t i) { return (unsigned char)(round * 31 + who * 7 + i * 13 + (i >> 8)); }

static ucs_status_t arrived(void *arg, const void *header, size_t bytes, void *data, size_t length, const ucp_am_recv_param_t *param) {
  (void)arg; (void)data; (void)param;
  if (bytes != 8 || length != 8 || *(const uint64_t *)header != *(uint64_t *)data) DIE("an active message of %zu and %zu bytes", bytes, length);
  told += *(const uint64_t *)header;
  return UCS_OK;
}

/* Asleep on the worker's descriptor, as ucp.h says that one has to. */
static void sleep_until_told(uint64_t wanted) {
  int fd; OK(ucp_worker_get_efd(worker, &fd));
  while (told < wanted) {
    if (ucp_worker_progress(worker)) continue;
    ucs_status_t status = ucp_worker_arm(worker);
    if (status == UCS_ERR_BUSY) continue;
    OK(status);
    struct pollfd p = {fd, POLLIN, 0};
    int n = poll(&p, 1, PATIENCE * 1000);
    if (!n) DIE("not woken in %d s; told %lu of %lu", PATIENCE, (unsigned long)told, (unsigned long)wanted);
  }
}

static void tags(uint64_t round, size_t size) {
  for (size_t i = 0; i < size; i++) out[i] = byte(round, me, i);
  memset(in, 0, size);
  void *receive = ucp_tag_recv_nbx(worker, in, size, round, ~0UL, &plain);
  void *send = ucp_tag_send_nbx(ep, out, size, round, &plain);
  if (clock_is("back") && round % 10 == 0) back += 3600;
  end(send, "a send"); end(receive, "a receive");
  for (size_t i = 0; i < size; i++) if (in[i] != byte(round, !me, i)) DIE("round %lu, %zu bytes: byte %zu is %d", (unsigned long)round, size, i, in[i]);
}

struct card { uint64_t cells, counter; size_t cells_key, counter_key; };
static ucp_rkey_h there_cells, there_counter;
static struct card there;

static ucp_mem_h map(void *at, size_t n, void **key, size_t *length) {
  ucp_mem_map_params_t p = {.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH, .address = at, .length = n};
  ucp_mem_h m; OK(ucp_mem_map(context, &p, &m)); OK(ucp_rkey_pack(context, m, key, length));
  return m;
}

static ucp_rkey_h rkey(size_t length) { char key[4096]; TRUE(length <= sizeof key); hear(key, length); ucp_rkey_h k; OK(ucp_ep_rkey_unpack(ep, key, &k)); return k; }

static void one_sided(uint64_t round) {
  for (int i = 0; i < CELLS; i++) source[i] = round << 20 | (uint64_t)me << 16 | (unsigned)i;
  end(ucp_put_nbx(ep, source, sizeof source, there.cells, there_cells, &plain), "a put");
  uint64_t add = round;
  end(ucp_atomic_op_nbx(ep, UCP_ATOMIC_OP_ADD, &add, 1, there.counter, there_counter, &(ucp_request_param_t){.op_attr_mask = UCP_OP_ATTR_FIELD_DATATYPE, .datatype = ucp_dt_make_contig(8)}), "an addition");
  flush();
  end(ucp_get_nbx(ep, fetched, sizeof fetched, there.cells, there_cells, &plain), "a get");
  if (memcmp(source, fetched, sizeof source)) DIE("round %lu: what was got is not what was put", (unsigned long)round);
  tags(round << 32, 8); /* both have */
  for (int i = 0; i < CELLS; i++) if (cells[i] != (round << 20 | (uint64_t)!me << 16 | (unsigned)i)) DIE("round %lu: cell %d is %lx", (unsigned long)round, i, (unsigned long)cells[i]);
  if (counter != round * (round + 1) / 2) DIE("round %lu: the counter is %lu", (unsigned long)round, (unsigned long)counter);
  tags(round << 33, 8); /* both have looked */
}

static void connect_both(void) {
  ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_TAG | UCP_FEATURE_RMA | UCP_FEATURE_AMO64 | UCP_FEATURE_AM | UCP_FEATURE_WAKEUP};
  OK(ucp_init(&params, NULL, &context));
  ucp_worker_params_t wp = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE, .thread_mode = UCS_THREAD_MODE_SINGLE};
  OK(ucp_worker_create(context, &wp, &worker));
  ucp_am_handler_param_t handler = {.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB, .id = AM, .cb = arrived};
  OK(ucp_worker_set_am_recv_handler(worker, &handler));
  ucp_address_t *mine; size_t length, n;
  OK(ucp_worker_get_address(worker, &mine, &length));
  tell(&length, sizeof length); tell(mine, length); ucp_worker_release_address(worker, mine);
  hear(&n, sizeof n); char *theirs = malloc(n); TRUE(theirs); hear(theirs, n);
  ucp_ep_params_t e = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS, .address = (const ucp_address_t *)theirs};
  OK(ucp_ep_create(worker, &e, &ep)); free(theirs);
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  int ends[2]; TRUE(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
  pid_t child = fork(); TRUE(child >= 0);
  me = !child; wire = ends[me]; close(ends[!me]);
  if (clock_is("back")) ucs_arch_x86_enable_rdtsc = 0;
  connect_both();
  struct card mine = {.cells = (uintptr_t)cells, .counter = (uintptr_t)&counter}; void *keys[2];
  ucp_mem_h maps[2] = {map(cells, sizeof cells, &keys[0], &mine.cells_key), map(&counter, sizeof counter, &keys[1], &mine.counter_key)};
  tell(&mine, sizeof mine); tell(keys[0], mine.cells_key); tell(keys[1], mine.counter_key);
  ucp_rkey_buffer_release(keys[0]); ucp_rkey_buffer_release(keys[1]);
  hear(&there, sizeof there); there_cells = rkey(there.cells_key); there_counter = rkey(there.counter_key);
  const char *stop = getenv("SW_STOP");
  uint64_t awaited = 0;
  for (uint64_t round = 1;; round++) {
    tags(round, sizes[round % (sizeof sizes / sizeof *sizes)]);
    one_sided(round);
    if (round % 3 == 0) {
      if (me) sleep_until_told(awaited += round);
      else {
        usleep(20000);
        end(ucp_am_send_nbx(ep, AM, &round, sizeof round, &round, sizeof round, &plain), "an active message"); flush();
      }
    }
    /* The first process decides when it is over. */
    uint64_t over = stop && !access(stop, F_OK), other;
    tell(&over, sizeof over); hear(&other, sizeof other);
    if (me ? other : over) break;
    if (!me && round % BEAT == 0) puts("beat");
  }
  ucp_rkey_destroy(there_cells); ucp_rkey_destroy(there_counter);
  OK(ucp_mem_unmap(context, maps[0])); OK(ucp_mem_unmap(context, maps[1]));
  char both; tell("", 1); hear(&both, 1);
  void *closing = ucp_ep_close_nbx(ep, &plain); end(closing, "closing"); tell("", 1); hear(&both, 1);
  ucp_worker_destroy(worker); ucp_cleanup(context);
  if (me) return 0;
  int status; TRUE(waitpid(child, &status, 0) == child && !status);
  puts("PASS");
  return 0;
}
