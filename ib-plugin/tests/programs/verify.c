/* verify.c: the verifier. Pairs of queue pairs in one process talk over the device; every completion is checked for order,
 * loss, doubling and content, remote memory by pattern, and fetch-and-add counters must add up exactly.
 *
 *   verify [-t rc|uc|ud] [-n pairs] [-i operations] [-m max bytes] [-k signal one in k] [-d depth] [-s] [-e] [-l] [-x] [-r N]
 *          [-c N] [-g gid index] [-w milliseconds]
 *   -s shared receive queues; -e completion events; -l lazy receivers (RNR); -x extended CQs and ibv_wr_*;
 *   -r rnr_retry; -R min_rnr_timer; -c slackwater_checkpoint() after each N operations; -w pause between operations */
#include <infiniband/verbs.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
extern int slackwater_checkpoint(void) __attribute__((weak));

#define DIE(...) do { printf("verify: " __VA_ARGS__); printf("\n"); fflush(stdout); _exit(1); } while (0)
#define OK(x) do { if (!(x)) DIE("%s failed at line %d, errno %m", #x, __LINE__); } while (0)
enum { SEND, SEND_IMM, WRITE, WRITE_IMM, READ, ADD, KINDS };
static int type = IBV_QPT_RC, pairs = 2, depth = 16, every = 1, use_srq, use_events, lazy, extended, rnr = 7, rnr_timer = 12, gidx = 2, pause_ms;
static long ops = 2000, ckpt;
static unsigned max_len = 4096;

struct ep {
  struct ibv_qp *qp; struct ep *peer; struct ibv_cq *scq, *rcq; struct ibv_ah *ah; int id;
  unsigned char *sbuf, *rbuf, *window, *source; unsigned long *counter, *old;
  struct ibv_mr *mr; size_t bytes; unsigned char *base;
  long posted, done;         /* send side: operations */
  long two, adds;            /* of which two-sided, atomic */
  long *two_of, *add_of;     /* by slot: number of two-sided / atomic before this one */
  long rposted, rdone;       /* receive side */
  char *busy;                /* SRQ: receive slot is posted */
  long last_write[64];       /* by window slot: operation whose data must be there */
};
static struct ep *eps; static int n_eps;
static struct ibv_context *ctx; static struct ibv_pd *pd; static struct ibv_comp_channel *ch; static struct ibv_srq *srq; static union ibv_gid gid;

static unsigned hash(unsigned long a, unsigned long b, unsigned long c) { unsigned long x = a * 0x9e3779b97f4a7c15ul + b * 0xbf58476d1ce4e5b9ul + c * 0x94d049bb133111ebul; x ^= x >> 29; x *= 0xbf58476d1ce4e5b9ul; return x >> 32; }
static int kind_of(int ep, long i) {
  if (type == IBV_QPT_UD) return hash(ep, i, 1) % 2 ? SEND : SEND_IMM;
  if (type == IBV_QPT_UC) return hash(ep, i, 1) % 4;
  return hash(ep, i, 1) % KINDS;
}
static unsigned len_of(int ep, long i) { unsigned h = hash(ep, i, 2); return h % 8 == 0 ? 0 : h % 8 == 1 ? max_len : hash(ep, i, 3) % (max_len + 1); }
static void fill(unsigned char *p, unsigned n, int ep, long seq) { unsigned s = hash(ep, seq, 4); for (unsigned k = 0; k < n; k++) p[k] = s + k * 7 + (k >> 8); }
static void check(const unsigned char *p, unsigned n, int ep, long seq, const char *what) {
  unsigned s = hash(ep, seq, 4);
  for (unsigned k = 0; k < n; k++) if (p[k] != (unsigned char)(s + k * 7 + (k >> 8))) DIE("%s: ep %d seq %ld byte %u of %u is corrupt", what, ep, seq, k, n);
}
static int grh(void) { return type == IBV_QPT_UD ? 40 : 0; }
static unsigned slot_bytes(void) { return (max_len + grh() + 63) & ~63u; }

static void post_receive(struct ep *e, int slot) {
  struct ibv_sge g[2] = {{(uintptr_t)e->rbuf + (size_t)slot * slot_bytes(), (max_len + grh()) / 2, e->mr->lkey}};
  g[1] = (struct ibv_sge){g[0].addr + g[0].length, max_len + grh() - g[0].length, e->mr->lkey};
  memset((void *)(uintptr_t)g[0].addr, 0xee, slot_bytes());
  struct ibv_recv_wr w = {.wr_id = use_srq ? (unsigned long)slot : (unsigned long)e->rposted, .sg_list = g, .num_sge = 2}, *bad;
  if (use_srq) { if (e->busy[slot]) DIE("SRQ slot %d is given back twice", slot); e->busy[slot] = 1; OK(!ibv_post_srq_recv(srq, &w, &bad)); }
  else OK(!ibv_post_recv(e->qp, &w, &bad));
  e->rposted++;
}
static void new_qp(struct ep *e) {
  if (extended) {
    struct ibv_qp_init_attr_ex a = {.send_cq = e->scq, .recv_cq = e->rcq, .srq = srq, .cap = {depth, use_srq ? 0 : depth, 2, use_srq ? 0 : 2, 64}, .qp_type = type, .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, .pd = pd,
      .send_ops_flags = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM | (type == IBV_QPT_UD ? 0 : IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM) | (type == IBV_QPT_RC ? IBV_QP_EX_WITH_RDMA_READ | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD : 0)};
    OK(e->qp = ibv_create_qp_ex(ctx, &a)); OK(ibv_qp_to_qp_ex(e->qp));
  } else {
    struct ibv_qp_init_attr a = {.send_cq = e->scq, .recv_cq = e->rcq, .srq = srq, .cap = {depth, use_srq ? 0 : depth, 2, use_srq ? 0 : 2, 64}, .qp_type = type};
    OK(e->qp = ibv_create_qp(pd, &a));
  }
}
static void connect_qp(struct ep *e, struct ep *to) {
  struct ibv_ah_attr av = {.is_global = 1, .grh = {.dgid = gid, .sgid_index = gidx, .hop_limit = 8}, .port_num = 1};
  struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qkey = 0x11111111, .qp_access_flags = 15};
  OK(!ibv_modify_qp(e->qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | (type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS)));
  struct ibv_qp_attr b = {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = to->qp->qp_num, .rq_psn = 7 + to->id, .max_dest_rd_atomic = 4, .min_rnr_timer = rnr_timer, .ah_attr = av};
  OK(!ibv_modify_qp(e->qp, &b, IBV_QP_STATE | (type == IBV_QPT_UD ? 0 : IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN) | (type == IBV_QPT_RC ? IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER : 0)));
  struct ibv_qp_attr c = {.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = rnr, .sq_psn = 7 + e->id, .max_rd_atomic = 4};
  OK(!ibv_modify_qp(e->qp, &c, IBV_QP_STATE | IBV_QP_SQ_PSN | (type == IBV_QPT_RC ? IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC : 0)));
  if (type == IBV_QPT_UD) OK(e->ah = ibv_create_ah(pd, &av));
}
static int inline_ok(int k, unsigned len) { return k != READ && k != ADD && len && len <= 64; }
static void post(struct ep *e) {
  long i = e->posted; int slot = i % depth, k = kind_of(e->id, i); unsigned len = k == ADD ? 8 : len_of(e->id, i); struct ep *p = e->peer;
  unsigned char *buf = e->sbuf + (size_t)slot * slot_bytes(); int two = k == SEND || k == SEND_IMM || k == WRITE_IMM;
  e->two_of[slot] = e->two; e->add_of[slot] = e->adds;
  if (k == READ) memset(buf, 0xdd, len); else if (k != ADD) fill(buf, len, e->id, two && k != WRITE_IMM ? 1000000000l + e->two : i);
  unsigned flags = (i % every == every - 1 ? IBV_SEND_SIGNALED : 0) | (inline_ok(k, len) && hash(e->id, i, 5) % 2 ? IBV_SEND_INLINE : 0) | (k != READ && hash(e->id, i, 6) % 4 == 0 && type == IBV_QPT_RC && !lazy /* rxe loses its place when a fenced request meets RNR */ ? IBV_SEND_FENCE : 0) | (use_events ? IBV_SEND_SOLICITED : 0);
  uintptr_t at = k == ADD ? (uintptr_t)p->counter : k == READ ? (uintptr_t)p->source : (uintptr_t)p->window + (size_t)(i % depth) * slot_bytes();
  struct ibv_sge g = {k == ADD ? (uintptr_t)(e->old + slot) : (uintptr_t)buf, len, e->mr->lkey};
  if (extended) {
    struct ibv_qp_ex *x = ibv_qp_to_qp_ex(e->qp); ibv_wr_start(x); x->wr_id = i; x->wr_flags = flags & ~IBV_SEND_INLINE;
    switch (k) { case SEND: ibv_wr_send(x); break; case SEND_IMM: ibv_wr_send_imm(x, htobe32(e->two)); break; case WRITE: ibv_wr_rdma_write(x, p->mr->rkey, at); break;
      case WRITE_IMM: ibv_wr_rdma_write_imm(x, p->mr->rkey, at, htobe32(e->two)); break; case READ: ibv_wr_rdma_read(x, p->mr->rkey, at); break; default: ibv_wr_atomic_fetch_add(x, p->mr->rkey, at, 3); }
    if (type == IBV_QPT_UD) ibv_wr_set_ud_addr(x, e->ah, p->qp->qp_num, 0x11111111);
    if (flags & IBV_SEND_INLINE) { ibv_wr_set_inline_data(x, buf, len); memset(buf, 0x55, len); } else ibv_wr_set_sge_list(x, len ? 1 : 0, &g);
    OK(!ibv_wr_complete(x));
  } else {
    static const int op[] = {IBV_WR_SEND, IBV_WR_SEND_WITH_IMM, IBV_WR_RDMA_WRITE, IBV_WR_RDMA_WRITE_WITH_IMM, IBV_WR_RDMA_READ, IBV_WR_ATOMIC_FETCH_AND_ADD};
    struct ibv_send_wr w = {.wr_id = i, .sg_list = &g, .num_sge = len ? 1 : 0, .opcode = op[k], .send_flags = flags, .imm_data = htobe32(e->two)}, *bad;
    if (k == ADD) { w.wr.atomic.remote_addr = at; w.wr.atomic.rkey = p->mr->rkey; w.wr.atomic.compare_add = 3; }
    else if (type == IBV_QPT_UD) { w.wr.ud.ah = e->ah; w.wr.ud.remote_qpn = p->qp->qp_num; w.wr.ud.remote_qkey = 0x11111111; }
    else { w.wr.rdma.remote_addr = at; w.wr.rdma.rkey = p->mr->rkey; }
    OK(!ibv_post_send(e->qp, &w, &bad));
    if (flags & IBV_SEND_INLINE) memset(buf, 0x55, len);  /* the buffer is the program's again at once */
  }
  if ((k == WRITE || k == WRITE_IMM) && len) e->last_write[slot] = i;
  e->posted++; e->two += two; e->adds += k == ADD;
}
/* Operation i is known to be complete at the sender. */
static void finished(struct ep *e, long i) {
  int slot = i % depth, k = kind_of(e->id, i);
  if (k == READ) check(e->sbuf + (size_t)slot * slot_bytes(), len_of(e->id, i), e->peer->id, -1, "read");
  if (k == ADD && e->old[slot] != 3ul * e->add_of[slot]) DIE("ep %d op %ld: fetch-and-add brought %lu, not %lu", e->id, i, e->old[slot], 3ul * e->add_of[slot]);
}
static struct ep *by_number(unsigned n) { for (int i = 0; i < n_eps; i++) if (eps[i].qp->qp_num == n) return eps + i; DIE("a completion names QP %#x, which is none of ours", n); }
static void completion(struct ibv_wc *w, struct ibv_cq *cq) {
  struct ep *e = by_number(w->qp_num);
  if (w->status) DIE("ep %d wr_id %lu: %s", e->id, (unsigned long)w->wr_id, ibv_wc_status_str(w->status));
  if (!(w->opcode & IBV_WC_RECV)) {
    if (cq != e->scq) DIE("a send completion in the wrong CQ");
    long want = e->done + (every - 1 - e->done % every);
    if ((long)w->wr_id != want) DIE("ep %d: send completion %lu, expected %ld", e->id, (unsigned long)w->wr_id, want);
    for (; e->done <= want; e->done++) finished(e, e->done);
    return;
  }
  if (cq != e->rcq) DIE("a receive completion in the wrong CQ");
  /* which of the peer's operations is this? the rdone-th two-sided one */
  static long (*cursor)[2]; if (!cursor) cursor = calloc(n_eps, sizeof *cursor);
  long *c = cursor[e->id]; while (1) { int k = kind_of(e->peer->id, c[0]); if (k == SEND || k == SEND_IMM || k == WRITE_IMM) break; c[0]++; }
  long i = c[0]++; int k = kind_of(e->peer->id, i); unsigned len = len_of(e->peer->id, i); int slot;
  if (use_srq) { slot = w->wr_id; if (slot < 0 || slot >= depth || !eps[0].busy[slot]) DIE("SRQ completion names slot %d, which is not posted", slot); eps[0].busy[slot] = 0; }
  else { if ((long)w->wr_id != e->rdone) DIE("ep %d: receive completion %lu, expected %ld", e->id, (unsigned long)w->wr_id, e->rdone); slot = e->rdone % depth; }
  if (k != SEND && (!(w->wc_flags & IBV_WC_WITH_IMM) || be32toh(w->imm_data) != (unsigned)e->rdone)) DIE("ep %d: message %ld has immediate %u", e->id, e->rdone, be32toh(w->imm_data));
  if (w->byte_len != len + (k == WRITE_IMM ? 0 : grh())) DIE("ep %d: message %ld is %u bytes, not %u", e->id, e->rdone, w->byte_len, len);
  struct ep *owner = use_srq ? eps : e;
  if (k != WRITE_IMM) check(owner->rbuf + (size_t)slot * slot_bytes() + grh(), len, e->peer->id, 1000000000l + e->rdone, "receive");
  e->rdone++;
  if (use_srq) { owner->rdone += owner != e ? 0 : 0; post_receive(owner, slot); }
}
static int drain(struct ibv_cq *cq) {
  int total = 0; struct ibv_wc w[8];
  if (extended) {
    struct ibv_cq_ex *x = (struct ibv_cq_ex *)cq; struct ibv_poll_cq_attr a = {0}; struct ibv_wc got[64]; int n = 0;
    if (ibv_start_poll(x, &a)) return 0;
    do { struct ibv_wc *o = got + n++; memset(o, 0, sizeof *o); o->wr_id = x->wr_id; o->status = x->status; o->opcode = ibv_wc_read_opcode(x); o->qp_num = ibv_wc_read_qp_num(x); o->byte_len = ibv_wc_read_byte_len(x); o->wc_flags = ibv_wc_read_wc_flags(x); o->imm_data = ibv_wc_read_imm_data(x); } while (n < 64 && !ibv_next_poll(x));
    ibv_end_poll(x);
    for (int i = 0; i < n; i++) completion(got + i, cq);
    return n;
  }
  for (int n; (n = ibv_poll_cq(cq, 8, w)) > 0; total += n) for (int i = 0; i < n; i++) completion(w + i, cq);
  return total;
}
int main(int argc, char **argv) {
  for (int o; (o = getopt(argc, argv, "t:n:i:m:k:d:selxr:R:c:g:w:")) != -1;) switch (o) {
    case 't': type = !strcmp(optarg, "uc") ? IBV_QPT_UC : !strcmp(optarg, "ud") ? IBV_QPT_UD : IBV_QPT_RC; break;
    case 'n': pairs = atoi(optarg); break; case 'i': ops = atol(optarg); break; case 'm': max_len = atoi(optarg); break; case 'k': every = atoi(optarg); break; case 'd': depth = atoi(optarg); break;
    case 's': use_srq = 1; break; case 'e': use_events = 1; break; case 'l': lazy = 1; break; case 'x': extended = 1; break; case 'r': rnr = atoi(optarg); break; case 'R': rnr_timer = atoi(optarg); break; case 'c': ckpt = atol(optarg); break; case 'g': gidx = atoi(optarg); break; case 'w': pause_ms = atoi(optarg); break; default: return 2; }
  if (depth > 64) depth = 64;
  if (every > depth) every = depth;
  if (type == IBV_QPT_UD && max_len > 1024) max_len = 1024;
  ops -= ops % every; setvbuf(stdout, NULL, _IOLBF, 0);
  int n; struct ibv_device **list = ibv_get_device_list(&n); OK(list && n); OK(ctx = ibv_open_device(list[0])); ibv_free_device_list(list);
  OK(pd = ibv_alloc_pd(ctx)); OK(!ibv_query_gid(ctx, 1, gidx, &gid)); n_eps = 2 * pairs; OK(eps = calloc(n_eps, sizeof *eps));
  if (use_events) OK(ch = ibv_create_comp_channel(ctx));
  struct ibv_cq *cqs[2];
  for (int i = 0; i < 2; i++) {
    if (extended) { struct ibv_cq_init_attr_ex a = {.cqe = n_eps * depth + 1, .channel = ch, .wc_flags = IBV_WC_STANDARD_FLAGS}; OK(cqs[i] = (struct ibv_cq *)ibv_create_cq_ex(ctx, &a)); }
    else OK(cqs[i] = ibv_create_cq(ctx, n_eps * depth + 1, NULL, ch, 0));
    if (use_events) OK(!ibv_req_notify_cq(cqs[i], 0));
  }
  if (use_srq) { struct ibv_srq_init_attr a = {.attr = {depth, 2, 0}}; OK(srq = ibv_create_srq(pd, &a)); }
  for (int i = 0; i < n_eps; i++) {
    struct ep *e = eps + i; e->id = i; e->peer = eps + (i ^ 1); e->scq = cqs[0]; e->rcq = cqs[1];
    size_t s = (size_t)depth * slot_bytes(); e->bytes = 3 * s + max_len + 64 + 8 + 8 * depth + 4096; OK(e->base = aligned_alloc(4096, (e->bytes + 4095) & ~4095ul)); memset(e->base, 0, e->bytes);
    e->sbuf = e->base; e->rbuf = e->base + s; e->window = e->base + 2 * s; e->source = e->base + 3 * s; e->counter = (void *)(((uintptr_t)e->source + max_len + 63) & ~63ul); e->old = e->counter + 1;
    fill(e->source, max_len, i, -1); OK(e->mr = ibv_reg_mr(pd, e->base, e->bytes, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC));
    OK(e->two_of = calloc(depth, 8)); OK(e->add_of = calloc(depth, 8)); OK(e->busy = calloc(depth, 1)); for (int k = 0; k < 64; k++) e->last_write[k] = -1;
    new_qp(e);
  }
  for (int i = 0; i < n_eps; i++) connect_qp(eps + i, eps[i].peer);
  if (use_srq) for (int k = 0; k < depth; k++) post_receive(eps, k);
  else if (!lazy || type != IBV_QPT_RC) for (int i = 0; i < n_eps; i++) while (eps[i].rposted < depth) post_receive(eps + i, eps[i].rposted % depth);
  long steps = 0, restarts = 0, checkpoints = 0, next = ckpt, total = 0; time_t said = time(NULL), moved = said;
  for (;; steps++) {
    int left = 0, any = 0;
    for (int i = 0; i < n_eps; i++) {
      struct ep *e = eps + i, *p = e->peer; int burst = hash(i, steps, 9) % (depth + 1);
      while (burst-- && e->posted < ops && e->posted - e->done < depth) {
        /* datagrams, and unreliable messages, are lost where no receive is, so send no more than there are; reliable ones
         * wait (RNR), which -l tries */
        if ((type != IBV_QPT_RC || !lazy) && (use_srq ? ({ long out = 0, busy = 0; for (int k = 0; k < n_eps; k++) out += eps[k].two - eps[k ^ 1].rdone; for (int k = 0; k < depth; k++) busy += eps[0].busy[k]; out >= busy; }) : e->two >= p->rposted)) break;
        post(e); total++; any = 1;
      }
      if (!use_srq && e->rposted < p->two + depth && (!lazy || hash(i, steps, 10) % 8 == 0)) { long room = e->rdone + depth - e->rposted; int give = lazy ? 1 + hash(i, steps, 11) % 3 : depth; while (room-- > 0 && give-- > 0) { post_receive(e, e->rposted % depth); any = 1; } }
      left |= e->done < ops || e->rdone < p->two || p->posted < ops;
    }
    if (ckpt && total >= next && slackwater_checkpoint) { next = total + ckpt; int r = slackwater_checkpoint(); if (r < 0) DIE("checkpoint failed"); checkpoints++; restarts += r; }
    if (use_events && !lazy && !any && left) {
      struct pollfd f = {ch->fd, POLLIN, 0}; int r = poll(&f, 1, 20000); if (r == 0) DIE("no completion event in 20 s: a sleeper would never wake");
      if (r > 0) { struct ibv_cq *cq; void *c; OK(!ibv_get_cq_event(ch, &cq, &c)); ibv_ack_cq_events(cq, 1); OK(!ibv_req_notify_cq(cq, 0)); }
    }
    int got = drain(cqs[0]) + drain(cqs[1]);
    if (got || any) moved = time(NULL);
    if (!left) break;
    if (time(NULL) - moved > 10) { for (int i = 0; i < n_eps; i++) printf("  ep %d: posted %ld done %ld (kind %d, %u bytes) two %ld rposted %ld rdone %ld\n", i, eps[i].posted, eps[i].done, kind_of(i, eps[i].done), len_of(i, eps[i].done), eps[i].two, eps[i].rposted, eps[i].rdone); DIE("nothing moves for 10 s: something was lost"); }
    if (time(NULL) != said) { said = time(NULL); printf("verify: %ld operations\n", total); }
    if (pause_ms) usleep(pause_ms * 1000);
  }
  long adds = 0;
  for (int i = 0; i < n_eps; i++) {
    struct ep *e = eps + i, *p = e->peer;
    if (*p->counter != 3ul * e->adds) DIE("ep %d: counter is %lu after %ld additions of 3", i, *p->counter, e->adds);
    adds += e->adds;
    for (int s = 0; s < depth; s++) if (e->last_write[s] >= 0) { int k = kind_of(i, e->last_write[s]); check(p->window + (size_t)s * slot_bytes(), len_of(i, e->last_write[s]), i, e->last_write[s], k == WRITE ? "write" : "write with immediate"); }
    OK(!ibv_destroy_qp(e->qp));
  }
  for (int i = 0; i < n_eps; i++) { if (eps[i].ah) OK(!ibv_destroy_ah(eps[i].ah)); OK(!ibv_dereg_mr(eps[i].mr)); }
  if (srq) OK(!ibv_destroy_srq(srq));
  OK(!ibv_destroy_cq(cqs[0])); OK(!ibv_destroy_cq(cqs[1])); if (ch) OK(!ibv_destroy_comp_channel(ch)); OK(!ibv_dealloc_pd(pd)); OK(!ibv_close_device(ctx));
  printf("verify: ok, %ld operations on %d QPs, %ld atomics, %ld checkpoints, %ld restarts\n", total, n_eps, adds, checkpoints, restarts);
  return 0;
}
