/* verifier.c: pairs of queue pairs, within one process or between two, each checking all that the other does.
 *
 *   verifier [-t rc|uc|ud] [-p processes] [-T threads each] [-n pairs] [-d depth] [-m max bytes] [-k signal one in k]
 *            [-a access] [-M threads] [-P ms] [-s] [-e] [-l] [-x] [-r rnr_retry] [-R min_rnr_timer] [-g gid index] [-S seed]
 *   -s shared receive queues; -e completion events; -l lazy receivers, so that requests wait in RNR; -x extended CQs and ibv_wr_*
 *   (not natively: librxe 44 leaves its lock twice);
 *   -P lazy receivers post something every so many milliseconds only, so that a request nearly always waits in RNR
 *   -a what the queue pairs permit (bits of enum ibv_access_flags), which is what their peers then do
 *   -M so many more threads, in each process, that do nothing but malloc(3) and free(3); all others do so at each turn
 *
 * Every number is a function of endpoint and sequence number, so each side knows what the other must have done:
 *   - completions come in order, each once, with the sequence number in wr_id; messages with theirs in every byte and the immediate;
 *   - operation i writes, or reads, slot i % depth of the peer's window, so a read must bring the last write of that slot;
 *   - fetch-and-add and compare-and-swap bring the count of those before, and the counters add up at the end.
 * It prints "ready", "beat" when every endpoint has come on a good piece, and, once $SW_STOP is there and all has ended, "PASS". */
#include <infiniband/verbs.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DIE(...) do { printf("FAIL: " __VA_ARGS__); printf("\n"); fflush(stdout); _exit(1); } while (0)
#define OK(x) do { if (!(x)) DIE("%s, line %d, errno %m", #x, __LINE__); } while (0)

enum { SEND, SEND_IMM, WRITE, WRITE_IMM, READ, ADD, SWAP, KINDS };
enum { ENDS = 64, STUCK_MS = 40000, QKEY = 0x11111111, ALL = 15 };

static int type = IBV_QPT_RC, processes = 1, threads = 1, pairs = 2, depth = 16, every = 1, access_flags = ALL, shared_queues, events,
           lazy, extended, rnr_retry = 7, rnr_timer = 12, gid_index = 2, hammers, pace;
static unsigned max_len = 4096;
static uint64_t seed = 1;
static int kinds[KINDS], n_kinds;

/* What the processes know of each other: made before the fork. */
static struct board {
  pthread_barrier_t all;
  atomic_int stop;
  struct end {
    uint32_t qpn, rkey;
    uintptr_t window, counters;
    atomic_long done, closed; /* operations complete; 1 + operations in all, once there will be no more */
    long messages, adds, swaps;
  } end[ENDS];
  atomic_long credit[ENDS]; /* receives posted that no message has been sent for, by receive queue */
} *board;

struct queue { /* of receives */
  unsigned char *memory; struct ibv_mr *mr; struct ibv_srq *srq; atomic_long *credit;
  int slots; long posted; char *busy; unsigned *use;
};
struct endpoint {
  int id; struct end *mine, *other; struct ibv_qp *qp; struct ibv_ah *ah; struct ibv_mr *mr; struct queue *queue, own;
  unsigned char *out, *window; uint64_t *counters, *answers;
  long posted, done, messages, adds, swaps, received, cursor, seen; /* cursor: the peer's operation that the next message is looked for from */
  long *last_write, *expected; /* by slot: the operation whose bytes lie there; what an atomic must bring, or a read find */
};
struct worker {
  int number, n; struct endpoint *ends[ENDS]; struct ibv_comp_channel *channel; struct ibv_cq *cq[2]; struct queue shared;
  uint64_t random; pthread_t thread;
};
static int process; static struct ibv_context *context; static struct ibv_pd *pd; static union ibv_gid gid;

static uint64_t hash(uint64_t a, uint64_t b, uint64_t c) {
  uint64_t x = (a + seed * 1000) * 0x9e3779b97f4a7c15ul + b * 0xbf58476d1ce4e5b9ul + c * 0x94d049bb133111ebul;
  x ^= x >> 29; x *= 0xbf58476d1ce4e5b9ul; x ^= x >> 32;
  return x;
}
static unsigned draw(struct worker *w, unsigned below) { return hash(w->random++, process * 100 + w->number, 77) % below; }
static int kind_of(int id, long i) { return kinds[hash(id, i, 1) % n_kinds]; }
static int is_message(int kind) { return kind == SEND || kind == SEND_IMM || kind == WRITE_IMM; }
static unsigned length_of(int id, long i) {
  if (kind_of(id, i) == ADD || kind_of(id, i) == SWAP) return 8;
  uint64_t h = hash(id, i, 2);
  return h % 8 == 0 ? 0 : h % 8 == 1 ? max_len : h % 8 < 5 ? h / 8 % 64 % (max_len + 1) : h / 8 % (max_len + 1);
}
enum { MESSAGE = 4, WRITTEN, UNTOUCHED }; /* what a pattern belongs to */
static uint64_t word(uint64_t s, size_t k) { return (s + k) * 0x9e3779b97f4a7c15ul; }
static void fill(unsigned char *p, size_t n, int id, long sequence, int what) {
  uint64_t s = hash(id, sequence, what), w; size_t k = 0;
  for (; k + 8 <= n; k += 8) { w = word(s, k); memcpy(p + k, &w, 8); }
  w = word(s, k); memcpy(p + k, &w, n - k);
}
static void check(const unsigned char *p, size_t n, int id, long sequence, int what, const char *name) {
  uint64_t s = hash(id, sequence, what), w, got; size_t k = 0;
  for (; k < n; k += 8) {
    size_t m = n - k < 8 ? n - k : 8; w = word(s, k); got = w; memcpy(&got, p + k, m);
    if (got != w) DIE("%s: endpoint %d, number %ld: byte %zu of %zu is corrupt", name, id, sequence, k, n);
  }
}
static int header(void) { return type == IBV_QPT_UD ? 40 : 0; }
static size_t slot_size(void) { return (max_len + header() + 63) & ~63ul; }
static unsigned char *slot_of(unsigned char *memory, long i) { return memory + i % depth * slot_size(); }

static void *memory(size_t n, struct ibv_mr **mr) {
  void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); OK(p != MAP_FAILED);
  OK(*mr = ibv_reg_mr(pd, p, n, ALL)); return p;
}
static void make_queue(struct queue *q, int slots, atomic_long *credit) {
  q->slots = slots; q->credit = credit; q->memory = memory(slots * slot_size(), &q->mr);
  OK(q->busy = calloc(slots, 1)); OK(q->use = calloc(slots, sizeof *q->use));
}
/* wr_id: the slot, and above it how often the slot has been posted. */
static void post_receive(struct endpoint *e, struct queue *q) {
  int slot = q->posted % q->slots;
  if (q->srq) for (slot = 0; q->busy[slot]; slot++) OK(slot < q->slots - 1);
  if (q->busy[slot]) DIE("slot %d is to be posted while it is", slot);
  q->busy[slot] = 1; q->use[slot]++; q->posted++;
  unsigned char *at = q->memory + slot * slot_size(); unsigned whole = max_len + header();
  memset(at, 0xee, whole < 64 ? whole : 64);
  struct ibv_sge g[2] = {{(uintptr_t)at, whole / 2, q->mr->lkey}, {(uintptr_t)at + whole / 2, whole - whole / 2, q->mr->lkey}};
  struct ibv_recv_wr w = {.wr_id = (uint64_t)q->use[slot] << 16 | slot, .sg_list = g, .num_sge = 2}, *bad;
  OK(!(q->srq ? ibv_post_srq_recv(q->srq, &w, &bad) : ibv_post_recv(e->qp, &w, &bad)));
  atomic_fetch_add(q->credit, 1);
}
static int take_credit(struct endpoint *e) {
  int other = e->id ^ 1, owner = shared_queues ? other % 2 % processes * threads + (other / 2 + other % 2) % threads : other;
  atomic_long *c = board->credit + owner; long have = atomic_load(c);
  while (have > 0) if (atomic_compare_exchange_weak(c, &have, have - 1)) return 1;
  return 0;
}

static void make_qp(struct worker *w, struct endpoint *e) {
  struct ibv_qp_cap cap = {depth, shared_queues ? 0 : depth, 2, shared_queues ? 0 : 2, 64}; struct ibv_srq *srq = w->shared.srq;
  int all = every == 1 && e->id % 2;
  if (extended) {
    struct ibv_qp_init_attr_ex a = {.send_cq = w->cq[0], .recv_cq = w->cq[1], .srq = srq, .cap = cap, .qp_type = type, .sq_sig_all = all,
      .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, .pd = pd, .send_ops_flags = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM};
    if (type != IBV_QPT_UD) a.send_ops_flags |= IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM;
    if (type == IBV_QPT_RC) a.send_ops_flags |= IBV_QP_EX_WITH_RDMA_READ | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP;
    OK(e->qp = ibv_create_qp_ex(context, &a));
  } else {
    struct ibv_qp_init_attr a = {.send_cq = w->cq[0], .recv_cq = w->cq[1], .srq = srq, .cap = cap, .qp_type = type, .sq_sig_all = all};
    OK(e->qp = ibv_create_qp(pd, &a));
  }
}
static void connect_qp(struct endpoint *e) {
  int rc = type == IBV_QPT_RC, ud = type == IBV_QPT_UD;
  struct ibv_ah_attr av = {.is_global = 1, .grh = {.dgid = gid, .sgid_index = gid_index, .hop_limit = 8}, .port_num = 1};
  struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qkey = QKEY, .qp_access_flags = access_flags};
  OK(!ibv_modify_qp(e->qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | (ud ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS)));
  a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = e->other->qpn, .rq_psn = 7 + (e->id ^ 1), .max_dest_rd_atomic = 4, .min_rnr_timer = rnr_timer, .ah_attr = av};
  OK(!ibv_modify_qp(e->qp, &a, IBV_QP_STATE | (ud ? 0 : IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN) | (rc ? IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER : 0)));
  /* 2^22 * 4 us: where requests are sent again (a machine that stands still for longer than the time-out), rdma_rxe of Linux 6.12 now
   * and then loses its place among atomics, natively too, and the queue pair hangs. */
  a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .timeout = 22, .retry_cnt = 7, .rnr_retry = rnr_retry, .sq_psn = 7 + e->id, .max_rd_atomic = 4};
  OK(!ibv_modify_qp(e->qp, &a, IBV_QP_STATE | IBV_QP_SQ_PSN | (rc ? IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC : 0)));
  if (ud) OK(e->ah = ibv_create_ah(pd, &av));
}

static void post(struct endpoint *e) {
  long i = e->posted; int slot = i % depth, k = kind_of(e->id, i), atomic = k == ADD || k == SWAP; unsigned n = length_of(e->id, i);
  unsigned char *buffer = slot_of(e->out, i); uintptr_t at = e->other->window + slot * slot_size();
  if (atomic) { buffer = (void *)(e->answers + slot); at = e->other->counters + (k == SWAP ? 8 : 0); }
  if (k == READ) memset(buffer, 0xdd, n);
  else if (is_message(k) && k != WRITE_IMM) fill(buffer, n, e->id, e->messages, MESSAGE);
  else if (!atomic) fill(buffer, n, e->id, i, WRITTEN);
  e->expected[slot] = k == ADD ? 3 * e->adds : k == SWAP ? e->swaps : e->last_write[slot];
  int inlined = k < READ && n && n <= 64 && hash(e->id, i, 5) % 2;
  /* (rdma_rxe loses its place when a fenced request meets RNR.) */
  int fence = type == IBV_QPT_RC && k != READ && !lazy && hash(e->id, i, 6) % 4 == 0;
  unsigned flags = (i % every == every - 1 ? IBV_SEND_SIGNALED : 0) | (inlined ? IBV_SEND_INLINE : 0) | (fence ? IBV_SEND_FENCE : 0) | (events ? IBV_SEND_SOLICITED : 0);
  struct ibv_sge g = {(uintptr_t)buffer, n, e->mr->lkey}; uint32_t rkey = e->other->rkey, imm = htobe32(e->messages);
  if (extended) {
    struct ibv_qp_ex *x = ibv_qp_to_qp_ex(e->qp); OK(x); ibv_wr_start(x); x->wr_id = i; x->wr_flags = flags & ~IBV_SEND_INLINE;
    switch (k) {
    case SEND: ibv_wr_send(x); break;
    case SEND_IMM: ibv_wr_send_imm(x, imm); break;
    case WRITE: ibv_wr_rdma_write(x, rkey, at); break;
    case WRITE_IMM: ibv_wr_rdma_write_imm(x, rkey, at, imm); break;
    case READ: ibv_wr_rdma_read(x, rkey, at); break;
    case ADD: ibv_wr_atomic_fetch_add(x, rkey, at, 3); break;
    default: ibv_wr_atomic_cmp_swp(x, rkey, at, e->swaps, e->swaps + 1);
    }
    if (type == IBV_QPT_UD) ibv_wr_set_ud_addr(x, e->ah, e->other->qpn, QKEY);
    if (inlined) ibv_wr_set_inline_data(x, buffer, n); else ibv_wr_set_sge_list(x, n ? 1 : 0, &g);
    OK(!ibv_wr_complete(x));
  } else {
    static const int op[] = {IBV_WR_SEND, IBV_WR_SEND_WITH_IMM, IBV_WR_RDMA_WRITE, IBV_WR_RDMA_WRITE_WITH_IMM, IBV_WR_RDMA_READ, IBV_WR_ATOMIC_FETCH_AND_ADD, IBV_WR_ATOMIC_CMP_AND_SWP};
    struct ibv_send_wr w = {.wr_id = i, .sg_list = &g, .num_sge = n ? 1 : 0, .opcode = op[k], .send_flags = flags, .imm_data = imm}, *bad;
    if (atomic) { w.wr.atomic.remote_addr = at; w.wr.atomic.rkey = rkey; w.wr.atomic.compare_add = k == ADD ? 3 : e->swaps; w.wr.atomic.swap = e->swaps + 1; }
    else if (type == IBV_QPT_UD) { w.wr.ud.ah = e->ah; w.wr.ud.remote_qpn = e->other->qpn; w.wr.ud.remote_qkey = QKEY; }
    else { w.wr.rdma.remote_addr = at; w.wr.rdma.rkey = rkey; }
    OK(!ibv_post_send(e->qp, &w, &bad));
  }
  if (inlined) memset(buffer, 0x55, n); /* it is ours again at once */
  if ((k == WRITE || k == WRITE_IMM) && n) e->last_write[slot] = i;
  e->posted++; e->messages += is_message(k); e->adds += k == ADD; e->swaps += k == SWAP;
}

/* What a slot of the window of endpoint `owner` holds after its peer's operation `i` wrote there (-1: none has), up to `n` bytes. */
static void check_window(const unsigned char *p, unsigned n, int owner, int slot, long i, const char *name) {
  if (i < 0) return check(p, n, owner, slot, UNTOUCHED, name);
  unsigned written = length_of(owner ^ 1, i); check(p, n < written ? n : written, owner ^ 1, i, WRITTEN, name);
}
/* Operation i is known to be complete. */
static void finished(struct endpoint *e, long i) {
  int slot = i % depth, k = kind_of(e->id, i);
  if (k == READ) check_window(slot_of(e->out, i), length_of(e->id, i), e->id ^ 1, slot, e->expected[slot], "read");
  if ((k == ADD || k == SWAP) && e->answers[slot] != (uint64_t)e->expected[slot])
    DIE("endpoint %d, operation %ld: an atomic brought %lu, not %ld", e->id, i, e->answers[slot], e->expected[slot]);
}
static void arrived(struct endpoint *e, struct ibv_wc *c) {
  struct queue *q = e->queue; int slot = c->wr_id & 0xffff, from = e->id ^ 1; long i = e->cursor;
  if (slot >= q->slots || !q->busy[slot] || c->wr_id >> 16 != q->use[slot]) DIE("endpoint %d: receive completion %#lx: not posted, or for the second time", e->id, (long)c->wr_id);
  if (!q->srq && slot != e->received % q->slots) DIE("endpoint %d: receive %d completes, and %ld was next", e->id, slot, e->received % q->slots);
  q->busy[slot] = 0;
  while (!is_message(kind_of(from, i))) i++;
  e->cursor = i + 1; int k = kind_of(from, i); unsigned n = length_of(from, i);
  if (k != SEND && (!(c->wc_flags & IBV_WC_WITH_IMM) || be32toh(c->imm_data) != (uint32_t)e->received))
    DIE("endpoint %d: message %ld bears number %u", e->id, e->received, be32toh(c->imm_data));
  if ((int)c->opcode != (k == WRITE_IMM ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV)) DIE("endpoint %d: message %ld has opcode %d", e->id, e->received, c->opcode);
  if (c->byte_len != n + (k == WRITE_IMM ? 0 : header())) DIE("endpoint %d: message %ld has %u bytes, not %u", e->id, e->received, c->byte_len, n);
  if (type == IBV_QPT_UD && c->src_qp != e->other->qpn) DIE("endpoint %d: message %ld is from QP %#x", e->id, e->received, c->src_qp);
  if (k != WRITE_IMM) check(q->memory + slot * slot_size() + header(), n, from, e->received, MESSAGE, "message");
  e->received++;
  if (!lazy) post_receive(e, q);
}
static void completion(struct worker *w, struct ibv_wc *c, int receive_side) {
  struct endpoint *e = NULL; for (int i = 0; i < w->n; i++) if (w->ends[i]->qp->qp_num == c->qp_num) e = w->ends[i];
  if (!e) DIE("a completion names QP %#x, which is none of ours", c->qp_num);
  if (c->status) DIE("endpoint %d, wr_id %lu: %s", e->id, (unsigned long)c->wr_id, ibv_wc_status_str(c->status));
  if (!!(c->opcode & IBV_WC_RECV) != receive_side) DIE("endpoint %d: a completion in the wrong CQ", e->id);
  if (receive_side) return arrived(e, c);
  long next = e->done + (every - 1 - e->done % every);
  if ((long)c->wr_id != next || next >= e->posted) DIE("endpoint %d: operation %lu completes, and %ld was next", e->id, (unsigned long)c->wr_id, next);
  for (; e->done <= next; e->done++) finished(e, e->done);
  atomic_store(&e->mine->done, e->done);
}
static int drain(struct worker *w, int side) {
  enum { MOST = 16 }; struct ibv_wc c[MOST]; int total = 0, n;
  do {
    n = 0;
    if (extended) {
      struct ibv_cq_ex *x = (struct ibv_cq_ex *)w->cq[side]; struct ibv_poll_cq_attr a = {0};
      if (ibv_start_poll(x, &a)) return total;
      do {
        struct ibv_wc *o = c + n++; memset(o, 0, sizeof *o); o->wr_id = x->wr_id; o->status = x->status; o->qp_num = ibv_wc_read_qp_num(x);
        o->opcode = ibv_wc_read_opcode(x); o->byte_len = ibv_wc_read_byte_len(x); o->wc_flags = ibv_wc_read_wc_flags(x); o->imm_data = ibv_wc_read_imm_data(x); o->src_qp = ibv_wc_read_src_qp(x);
      } while (n < MOST && !ibv_next_poll(x));
      ibv_end_poll(x);
    } else OK((n = ibv_poll_cq(w->cq[side], 1 + draw(w, MOST), c)) >= 0);
    for (int i = 0; i < n; i++) completion(w, c + i, side);
    total += n;
  } while (n);
  return total;
}
/* Sleeps until there is an event. Nobody tells of credits and of the end, so these are looked after now and then; but what has
 * completed since the queues were armed must have brought an event. */
static int wait_event(struct worker *w) {
  struct pollfd f = {w->channel->fd, POLLIN, 0}; int got = 0, r = poll(&f, 1, 50);
  if (r <= 0) {
    got = drain(w, 0) + drain(w, 1);
    if (!got) return 0;
    if ((r = poll(&f, 1, STUCK_MS)) == 0) DIE("thread %d: completions without an event: a sleeper would never wake", w->number);
  }
  struct ibv_cq *cq; void *its; OK(!ibv_get_cq_event(w->channel, &cq, &its));
  int side = cq == w->cq[1]; if (cq != w->cq[side] || its != w) DIE("an event names a wrong queue");
  ibv_ack_cq_events(cq, 1); OK(!ibv_req_notify_cq(cq, side && w->number % 2));
  return got + 1;
}
static int send_some(struct worker *w, struct endpoint *e, int stop) {
  int any = 0;
  for (int burst = draw(w, 4) ? depth : 1 + (int)draw(w, depth); burst-- && e->posted - e->done < depth; any = 1) {
    if (stop && e->posted % every == 0) break;
    if (is_message(kind_of(e->id, e->posted)) && !lazy && !take_credit(e)) break;
    post(e);
  }
  if (stop && e->posted % every == 0 && !e->mine->closed) {
    e->mine->messages = e->messages; e->mine->adds = e->adds; e->mine->swaps = e->swaps;
    atomic_store(&e->mine->closed, 1 + e->posted); any = 1;
  }
  return any;
}
static void beat(void) {
  static long at[ENDS], number;
  for (int i = 0; i < 2 * pairs; i++) if (atomic_load(&board->end[i].done) < at[i] + 2 * depth) return;
  for (int i = 0; i < 2 * pairs; i++) at[i] = atomic_load(&board->end[i].done);
  printf("beat %ld\n", number++); fflush(stdout);
}
static void malloc_some(uint64_t *random, void **kept, int n) {
  for (int i = 0; i < n; i++) { uint64_t h = hash((*random)++, process, 88); void **p = kept + h % n; free(*p); *p = malloc(h / n % 5000); OK(*p); memset(*p, 1, h / n % 5000 ? 1 : 0); }
}
static atomic_int over;
static void *hammer(void *x) { void *kept[64] = {0}; uint64_t random = (uintptr_t)x; while (!over) malloc_some(&random, kept, 64); return NULL; }
static void work(struct worker *w) {
  void *kept[4] = {0};
  struct timespec was, now; long idle = 0, turns = 0, waited = 0; clock_gettime(CLOCK_MONOTONIC, &was);
  const char *until = getenv("SW_STOP");
  for (int left = 1; left; turns++) {
    int any = 0, stop = atomic_load(&board->stop); left = 0;
    int give_now = pace ? waited >= pace : draw(w, 8) == 0; if (give_now) waited = 0;
    if (hammers) malloc_some(&w->random, kept, 4);
    for (int i = 0; i < w->n; i++) {
      struct endpoint *e = w->ends[i]; struct queue *q = e->queue; any |= send_some(w, e, stop);
      int posted = 0; for (int s = 0; lazy && s < q->slots; s++) posted += q->busy[s];
      for (int give = lazy && give_now ? 1 + draw(w, 3) : 0; give-- && posted < q->slots; posted++, any = 1) post_receive(e, q);
      long closed = atomic_load(&e->other->closed);
      left |= !e->mine->closed || e->done < e->posted || !closed || e->received < e->other->messages;
    }
    any |= drain(w, 0) + drain(w, 1);
    if (!any && left) any = events && !lazy ? wait_event(w) : (sched_yield(), 0);
    if (process + w->number == 0 && turns % 64 == 0) { beat(); if (until && !access(until, F_OK)) atomic_store(&board->stop, 1); }
    /* A clock may jump, back too, where the machine is another: only small steps count. */
    clock_gettime(CLOCK_MONOTONIC, &now); long ms = (now.tv_sec - was.tv_sec) * 1000 + (now.tv_nsec - was.tv_nsec) / 1000000;
    if (ms) { was = now; ms = ms < 0 ? 0 : ms > 100 ? 100 : ms; waited += ms; idle += ms; }
    int stuck = 0; /* those that still have something to do and have done nothing since idle was 0 */
    for (int i = 0; i < w->n; i++) stuck |= w->ends[i]->done == w->ends[i]->seen && !(w->ends[i]->mine->closed && w->ends[i]->done == w->ends[i]->posted);
    if (any && !stuck) { idle = 0; for (int i = 0; i < w->n; i++) w->ends[i]->seen = w->ends[i]->done; }
    if (idle > STUCK_MS) {
      for (int i = 0; i < w->n; i++) { struct endpoint *e = w->ends[i]; printf("  endpoint %d: posted %ld done %ld (kind %d, %u bytes) messages %ld received %ld, peer's %ld (closed %ld)\n", e->id, e->posted, e->done, kind_of(e->id, e->done), length_of(e->id, e->done), e->messages, e->received, e->other->messages, (long)e->other->closed); }
      DIE("process %d, thread %d: nothing moves any more: something was lost", process, w->number);
    }
  }
}
/* All is quiet: what the peers did to our memory. */
static void verdict(struct endpoint *e) {
  if (e->counters[0] != 3ul * e->other->adds) DIE("endpoint %d: counter is %lu after %ld additions of 3", e->id, e->counters[0], e->other->adds);
  if (e->counters[1] != (uint64_t)e->other->swaps) DIE("endpoint %d: counter is %lu after %ld swaps", e->id, e->counters[1], e->other->swaps);
  for (int s = 0; s < depth; s++) {
    long i = e->other->closed - 2;
    for (; i >= 0; i--) if (i % depth == s && (kind_of(e->id ^ 1, i) == WRITE || kind_of(e->id ^ 1, i) == WRITE_IMM) && length_of(e->id ^ 1, i)) break;
    check_window(slot_of(e->window, s), max_len, e->id, s, i, "window");
  }
}
static void *run(void *argument) {
  struct worker *w = argument;
  if (events) OK(w->channel = ibv_create_comp_channel(context));
  int room = 0; for (int id = 0; id < 2 * pairs; id++) room += depth + 1;
  for (int side = 0; side < 2; side++) {
    struct ibv_cq_init_attr_ex a = {.cqe = room, .cq_context = w, .channel = w->channel, .wc_flags = IBV_WC_STANDARD_FLAGS};
    w->cq[side] = extended ? (struct ibv_cq *)ibv_create_cq_ex(context, &a) : ibv_create_cq(context, room, w, w->channel, 0); OK(w->cq[side]);
    if (events) OK(!ibv_req_notify_cq(w->cq[side], side && w->number % 2));
  }
  for (int id = 0; id < 2 * pairs; id++) w->n += id % 2 % processes == process && (id / 2 + id % 2) % threads == w->number;
  if (shared_queues && w->n) {
    make_queue(&w->shared, depth, board->credit + process * threads + w->number);
    struct ibv_srq_init_attr a = {.attr = {depth, 2, 0}}; OK(w->shared.srq = ibv_create_srq(pd, &a));
  }
  w->n = 0;
  for (int id = 0; id < 2 * pairs; id++) {
    if (id % 2 % processes != process || (id / 2 + id % 2) % threads != w->number) continue;
    struct endpoint *e = calloc(1, sizeof *e); OK(e); w->ends[w->n++] = e; e->id = id; e->mine = board->end + id; e->other = board->end + (id ^ 1);
    size_t slots = depth * slot_size(); unsigned char *m = memory(2 * slots + 4096 + 8 * depth, &e->mr);
    e->window = m; e->out = m + slots; e->counters = (void *)(m + 2 * slots); e->answers = e->counters + 512;
    for (int s = 0; s < depth; s++) fill(slot_of(e->window, s), slot_size(), id, s, UNTOUCHED);
    OK(e->last_write = calloc(depth, 8)); OK(e->expected = calloc(depth, 8)); for (int s = 0; s < depth; s++) e->last_write[s] = -1;
    make_qp(w, e); e->queue = &w->shared;
    if (!shared_queues) { make_queue(&e->own, depth, board->credit + id); e->queue = &e->own; }
    e->mine->qpn = e->qp->qp_num; e->mine->rkey = e->mr->rkey; e->mine->window = (uintptr_t)e->window; e->mine->counters = (uintptr_t)e->counters;
  }
  pthread_barrier_wait(&board->all);
  for (int i = 0; i < w->n; i++) connect_qp(w->ends[i]);
  for (int i = 0; i < w->n && !lazy; i++) while (w->ends[i]->queue->posted < depth) post_receive(w->ends[i], w->ends[i]->queue);
  if (pthread_barrier_wait(&board->all) == PTHREAD_BARRIER_SERIAL_THREAD) { printf("ready\n"); fflush(stdout); }
  work(w);
  pthread_barrier_wait(&board->all);
  for (int i = 0; i < w->n; i++) verdict(w->ends[i]);
  for (int side = 0; side < 2; side++) if (drain(w, side)) DIE("a completion after the last");
  pthread_barrier_wait(&board->all);
  for (int i = 0; i < w->n; i++) {
    struct endpoint *e = w->ends[i]; OK(!ibv_destroy_qp(e->qp)); if (e->ah) OK(!ibv_destroy_ah(e->ah)); OK(!ibv_dereg_mr(e->mr));
    if (e->own.mr) OK(!ibv_dereg_mr(e->own.mr));
  }
  if (w->shared.srq) { OK(!ibv_destroy_srq(w->shared.srq)); OK(!ibv_dereg_mr(w->shared.mr)); }
  for (int side = 0; side < 2; side++) OK(!ibv_destroy_cq(w->cq[side]));
  if (w->channel) OK(!ibv_destroy_comp_channel(w->channel));
  return NULL;
}
int main(int argc, char **argv) {
  for (int o; (o = getopt(argc, argv, "t:p:T:n:d:m:k:a:M:P:selxr:R:g:S:")) != -1;) switch (o) {
    case 't': type = !strcmp(optarg, "uc") ? IBV_QPT_UC : !strcmp(optarg, "ud") ? IBV_QPT_UD : IBV_QPT_RC; break;
    case 'p': processes = atoi(optarg); break; case 'T': threads = atoi(optarg); break; case 'n': pairs = atoi(optarg); break;
    case 'd': depth = atoi(optarg); break; case 'm': max_len = atoi(optarg); break; case 'k': every = atoi(optarg); break;
    case 'a': access_flags = atoi(optarg); break; case 'M': hammers = atoi(optarg); break; case 'P': pace = atoi(optarg); break;
    case 's': shared_queues = 1; break; case 'e': events = 1; break; case 'l': lazy = 1; break;
    case 'x': extended = 1; break; case 'r': rnr_retry = atoi(optarg); break; case 'R': rnr_timer = atoi(optarg); break;
    case 'g': gid_index = atoi(optarg); break; case 'S': seed = atol(optarg); break; default: return 2;
  }
  if (type == IBV_QPT_UD && max_len > 1024) max_len = 1024;
  OK(2 * pairs <= ENDS && processes * threads <= ENDS && processes <= 2 && every <= depth && (type == IBV_QPT_RC || !lazy));
  for (int k = 0; k < KINDS; k++) {
    int wants = k < WRITE ? 0 : k < READ ? IBV_ACCESS_REMOTE_WRITE : k == READ ? IBV_ACCESS_REMOTE_READ : IBV_ACCESS_REMOTE_ATOMIC;
    if ((access_flags & wants) == wants && k < (type == IBV_QPT_UD ? WRITE : type == IBV_QPT_UC ? READ : KINDS)) kinds[n_kinds++] = k;
  }
  board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); OK(board != MAP_FAILED);
  pthread_barrierattr_t a; pthread_barrierattr_init(&a); pthread_barrierattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
  OK(!pthread_barrier_init(&board->all, &a, processes * threads));
  pid_t child = 0; if (processes == 2) { OK((child = fork()) >= 0); process = child == 0; }
  int n; struct ibv_device **list = ibv_get_device_list(&n); OK(list && n && (context = ibv_open_device(list[0]))); ibv_free_device_list(list);
  OK(pd = ibv_alloc_pd(context)); OK(!ibv_query_gid(context, 1, gid_index, &gid));
  struct worker *w = calloc(threads, sizeof *w); OK(w);
  for (int t = 1; t < threads; t++) { w[t].number = t; OK(!pthread_create(&w[t].thread, NULL, run, w + t)); }
  pthread_t mallocs[16]; OK(hammers <= 16);
  for (long i = 0; i < hammers; i++) OK(!pthread_create(mallocs + i, NULL, hammer, (void *)(1000 + i)));
  run(w);
  over = 1; for (int i = 0; i < hammers; i++) OK(!pthread_join(mallocs[i], NULL));
  for (int t = 1; t < threads; t++) OK(!pthread_join(w[t].thread, NULL));
  OK(!ibv_dealloc_pd(pd)); OK(!ibv_close_device(context));
  if (process == 1) return 0;
  int status = 0; if (child) OK(waitpid(child, &status, 0) == child);
  if (status) DIE("the other process ended with status %#x", status);
  long operations = 0, adds = 0, swaps = 0;
  for (int i = 0; i < 2 * pairs; i++) { operations += board->end[i].closed - 1; adds += board->end[i].adds; swaps += board->end[i].swaps; }
  printf("verified: %ld operations of %d queue pairs, %ld fetch-and-adds, %ld compare-and-swaps\nPASS\n", operations, 2 * pairs, adds, swaps);
  return 0;
}
