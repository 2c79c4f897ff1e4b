/* defects.c: what the InfiniBand plugins before this one did wrong (and a few more), one scenario each, on mock.c. Every scenario takes
 * a checkpoint where it hurts; fakert.c goes on or restarts onto other numbers and keys. */
#include <infiniband/verbs.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
extern int slackwater_checkpoint(void) __attribute__((weak));

#define DIE(...) do { printf("defects: " __VA_ARGS__); printf(" (line %d)\n", __LINE__); fflush(stdout); _exit(1); } while (0)
#define OK(x) do { if (!(x)) DIE("%s", #x); } while (0)
enum { DEPTH = 32, SIZE = 256 };
struct end { struct ibv_qp *qp; struct ibv_cq *cq; struct ibv_mr *mr; unsigned char *m; };
static struct ibv_context *ctx; static struct ibv_pd *pd; static struct ibv_comp_channel *ch; static struct ibv_srq *srq;
static struct end a, b;
static int cycle(void) { int r = slackwater_checkpoint(); OK(r >= 0); return r; }
static void open_device(int which) { int n; struct ibv_device **l = ibv_get_device_list(&n); OK(l && n > which); OK(ctx = ibv_open_device(l[which])); ibv_free_device_list(l); OK(pd = ibv_alloc_pd(ctx)); }
static struct end make(int type, int events) {
  struct end e = {0}; OK(e.cq = ibv_create_cq(ctx, 4 * DEPTH, NULL, events ? ch : NULL, 0));
  struct ibv_qp_init_attr i = {.send_cq = e.cq, .recv_cq = e.cq, .srq = srq, .cap = {DEPTH, srq ? 0 : DEPTH, 2, srq ? 0 : 2, 64}, .qp_type = type};
  OK(e.qp = ibv_create_qp(pd, &i)); OK(e.m = aligned_alloc(4096, DEPTH * SIZE + 4096)); memset(e.m, 0, DEPTH * SIZE);
  OK(e.mr = ibv_reg_mr(pd, e.m, DEPTH * SIZE, 15)); return e;
}
static struct ibv_ah_attr towards(void) { struct ibv_ah_attr v = {.port_num = 1}; struct ibv_port_attr p; OK(!ibv_query_port(ctx, 1, &p)); if (p.lid) v.dlid = p.lid; else { v.is_global = 1; v.grh.sgid_index = 2; OK(!ibv_query_gid(ctx, 1, 2, &v.grh.dgid)); } return v; }
static void raise_to(struct end *e, unsigned peer, int state) {
  int ud = e->qp->qp_type == IBV_QPT_UD, rc = e->qp->qp_type == IBV_QPT_RC;
  struct ibv_qp_attr t = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qkey = 5, .qp_access_flags = 15};
  OK(!ibv_modify_qp(e->qp, &t, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | (ud ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS))); if (state == IBV_QPS_INIT) return;
  t = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = peer, .max_dest_rd_atomic = 1, .min_rnr_timer = 12, .ah_attr = towards()};
  OK(!ibv_modify_qp(e->qp, &t, IBV_QP_STATE | (ud ? 0 : IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN) | (rc ? IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER : 0))); if (state == IBV_QPS_RTR) return;
  t = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7, .max_rd_atomic = 1};
  OK(!ibv_modify_qp(e->qp, &t, IBV_QP_STATE | IBV_QP_SQ_PSN | (rc ? IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC : 0)));
}
static void both(int type, int events) { open_device(0); if (events) OK(ch = ibv_create_comp_channel(ctx)); a = make(type, events); b = make(type, events); raise_to(&a, b.qp->qp_num, IBV_QPS_RTS); raise_to(&b, a.qp->qp_num, IBV_QPS_RTS); }
static int receive(struct end *e, unsigned long id) { struct ibv_sge g = {(unsigned long)e->m + id % DEPTH * SIZE, SIZE, e->mr->lkey}; struct ibv_recv_wr w = {.wr_id = id, .sg_list = &g, .num_sge = 1}, *bad; return srq ? ibv_post_srq_recv(srq, &w, &bad) : ibv_post_recv(e->qp, &w, &bad); }
static int request(struct end *e, struct end *to, unsigned long id, int op, unsigned flags, unsigned len) {
  struct ibv_sge g = {(unsigned long)e->m + id % DEPTH * SIZE, len, e->mr->lkey};
  struct ibv_send_wr w = {.wr_id = id, .sg_list = &g, .num_sge = 1, .opcode = op, .send_flags = flags}, *bad;
  if (op == IBV_WR_ATOMIC_FETCH_AND_ADD) { w.wr.atomic.remote_addr = (unsigned long)to->m; w.wr.atomic.rkey = to->mr->rkey; w.wr.atomic.compare_add = 1; g.length = 8; }
  else if (op != IBV_WR_SEND) { w.wr.rdma.remote_addr = (unsigned long)to->m + id % DEPTH * SIZE; w.wr.rdma.rkey = to->mr->rkey; }
  return ibv_post_send(e->qp, &w, &bad);
}
/* A receive scattered over a pair of halves, n of them. */
static int scattered(struct end *e, unsigned long id, int n) { unsigned long at = (unsigned long)e->m + id % DEPTH * SIZE; struct ibv_sge g[2] = {{at, SIZE / 2, e->mr->lkey}, {at + SIZE / 2, SIZE / 2, e->mr->lkey}}; struct ibv_recv_wr w = {.wr_id = id, .sg_list = g, .num_sge = n}, *bad = NULL; int r = ibv_post_recv(e->qp, &w, &bad); OK(!r || bad == &w); return r; }
static struct ibv_wc wait_one(struct end *e) { struct ibv_wc w; for (long i = 0; i < 10000000; i++) { int n = ibv_poll_cq(e->cq, 1, &w); OK(n >= 0); if (n) return w; } DIE("a completion was lost"); }
static void none(struct end *e) { struct ibv_wc w; for (int i = 0; i < 50; i++) if (ibv_poll_cq(e->cq, 1, &w)) DIE("a completion too many, wr_id %lu", (unsigned long)w.wr_id); }
static void expect(struct end *e, unsigned long id, int op) { struct ibv_wc w = wait_one(e); if (w.status || w.wr_id != id || (int)w.opcode != op || w.qp_num != e->qp->qp_num) DIE("completion %lu, opcode %d, status %d, QP %u; expected %lu, %d", (unsigned long)w.wr_id, w.opcode, w.status, w.qp_num, id, op); }

/* 1: a signaled request outstanding on a queue that does not signal all. */
static void signaled(void) {
  both(IBV_QPT_RC, 0);
  for (int i = 0; i < 8; i++) OK(!request(&a, &b, i, IBV_WR_RDMA_WRITE, i == 3 ? IBV_SEND_SIGNALED : 0, 64));
  cycle(); expect(&a, 3, IBV_WC_RDMA_WRITE); none(&a);
}
/* 2: the message is on its way, or waits for a receive, at the cut. */
static void lost_message(void) {
  both(IBV_QPT_RC, 0);
  for (int i = 0; i < 6; i++) { memset(a.m + i * SIZE, 'A' + i, SIZE); OK(!request(&a, &b, i, IBV_WR_SEND, IBV_SEND_SIGNALED, 100)); }
  OK(!receive(&b, 100)); OK(!receive(&b, 101));
  cycle(); memset(a.m, 'z', 6 * SIZE);
  for (int i = 2; i < 6; i++) OK(!receive(&b, 100 + i));
  for (int i = 0; i < 6; i++) { expect(&b, 100 + i, IBV_WC_RECV); OK(b.m[(100 + i) % DEPTH * SIZE] == 'A' + i && b.m[(100 + i) % DEPTH * SIZE + 99] == 'A' + i); expect(&a, i, IBV_WC_SEND); }
  none(&a); none(&b);
}
/* 3: a datagram's completion outstanding. */
static void datagram(void) {
  both(IBV_QPT_UD, 0); struct ibv_ah_attr v = towards(); struct ibv_ah *ah = ibv_create_ah(pd, &v); OK(ah);
  for (int round = 0; round < 2; round++) {
    OK(!receive(&b, 7)); struct ibv_sge g = {(unsigned long)a.m, 50, a.mr->lkey};
    struct ibv_send_wr w = {.wr_id = 9, .sg_list = &g, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .wr.ud = {ah, b.qp->qp_num, 5}}, *bad; OK(!ibv_post_send(a.qp, &w, &bad));
    cycle(); expect(&a, 9, IBV_WC_SEND); struct ibv_wc r = wait_one(&b); OK(r.wr_id == 7 && r.byte_len == 90 && r.src_qp == a.qp->qp_num);
  }
  OK(!ibv_destroy_ah(ah));
}
/* 4, 5, 14: what lies before ibv_context; macros; extended CQs and ibv_wr_*, with checkpoints between start and end. */
static void whole_context(void) {
  both(IBV_QPT_RC, 0); struct ibv_port_attr p; struct ibv_device_attr_ex d; OK(!ibv_query_port(ctx, 1, &p) && p.state == IBV_PORT_ACTIVE); OK(!ibv_query_device_ex(ctx, NULL, &d) && d.orig_attr.phys_port_cnt == 1);
  struct ibv_cq_init_attr_ex ca = {.cqe = 16, .wc_flags = IBV_WC_STANDARD_FLAGS}; struct ibv_cq_ex *x = ibv_create_cq_ex(ctx, &ca); OK(x);
  struct ibv_qp_init_attr_ex qa = {.send_cq = ibv_cq_ex_to_cq(x), .recv_cq = ibv_cq_ex_to_cq(x), .cap = {8, 8, 1, 1, 64}, .qp_type = IBV_QPT_RC, .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, .pd = pd, .send_ops_flags = IBV_QP_EX_WITH_RDMA_WRITE};
  struct end e = a; OK(e.qp = ibv_create_qp_ex(ctx, &qa)); raise_to(&e, b.qp->qp_num, IBV_QPS_RTS);
  struct ibv_mr *m = ibv_reg_mr(pd, a.m, SIZE, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_RELAXED_ORDERING); OK(m);
  struct ibv_qp_ex *q = ibv_qp_to_qp_ex(e.qp); ibv_wr_start(q); q->wr_id = 77; q->wr_flags = IBV_SEND_SIGNALED; ibv_wr_rdma_write(q, b.mr->rkey, (unsigned long)b.m); cycle(); ibv_wr_set_sge(q, m->lkey, (unsigned long)a.m, 16); OK(!ibv_wr_complete(q));
  cycle(); struct ibv_poll_cq_attr pa = {0}; OK(!ibv_start_poll(x, &pa)); cycle(); OK(x->wr_id == 77 && !x->status && ibv_wc_read_opcode(x) == IBV_WC_RDMA_WRITE && ibv_wc_read_qp_num(x) == e.qp->qp_num); OK(ibv_next_poll(x)); ibv_end_poll(x);
  OK(!ibv_dereg_mr(m));
}
/* 6, and the biased locks: one thread posts, another polls, a third makes and destroys what shares the CQ. */
static atomic_int stop; static atomic_long done;
static void *poller(void *x) { (void)x; struct ibv_wc w[4]; while (!stop) { int n = ibv_poll_cq(a.cq, 4, w); OK(n >= 0); for (int i = 0; i < n; i++) if (w[i].status || w[i].wr_id != (unsigned long)done++) DIE("out of order"); } return NULL; }
static void *maker(void *x) { (void)x; while (!stop) { struct ibv_qp_init_attr i = {.send_cq = a.cq, .recv_cq = a.cq, .cap = {4, 4, 1, 1, 0}, .qp_type = IBV_QPT_RC}; struct ibv_qp *q = ibv_create_qp(pd, &i); OK(q); OK(!ibv_destroy_qp(q)); } return NULL; }
static void threads(void) {
  both(IBV_QPT_RC, 0); pthread_t t[2]; OK(!pthread_create(t, NULL, poller, NULL) && !pthread_create(t + 1, NULL, maker, NULL));
  for (long i = 0; i < 4000; i++) { while (i - done >= DEPTH) sched_yield(); OK(!request(&a, &b, i, IBV_WR_RDMA_WRITE, IBV_SEND_SIGNALED, 8)); }
  while (done < 4000) sched_yield();
  stop = 1; pthread_join(t[0], NULL); pthread_join(t[1], NULL); cycle(); none(&a);
  OK(!request(&a, &b, 5, IBV_WR_RDMA_WRITE, IBV_SEND_SIGNALED, 8)); expect(&a, 5, IBV_WC_RDMA_WRITE);
}
/* 7: the buffer of an inline send is the program's again at once. */
static void inlined(void) {
  both(IBV_QPT_RC, 0); memset(a.m, 'i', 64); OK(!request(&a, &b, 0, IBV_WR_SEND, IBV_SEND_SIGNALED | IBV_SEND_INLINE, 64)); memset(a.m, 'x', 64);
  cycle(); OK(!receive(&b, 0)); expect(&b, 0, IBV_WC_RECV); OK(b.m[0] == 'i' && b.m[63] == 'i'); expect(&a, 0, IBV_WC_SEND);
}
/* 8: nothing happens twice. */
static void once(void) {
  both(IBV_QPT_RC, 0); long n = 0; for (int round = 0; round < 5; round++) { for (int i = 1; i < 9; i++, n++) OK(!request(&a, &b, i, IBV_WR_ATOMIC_FETCH_AND_ADD, i == 8 ? 0 : IBV_SEND_SIGNALED, 8)); cycle(); for (int i = 1; i < 8; i++) expect(&a, i, IBV_WC_FETCH_ADD); none(&a); OK(*(long *)b.m == n); }
}
/* 9: receives of a shared queue complete out of order; what is left is posted again. */
static void shared_order(void) {
  open_device(0); struct ibv_srq_init_attr s = {.attr = {DEPTH, 2, 0}}; OK(srq = ibv_create_srq(pd, &s)); a = make(IBV_QPT_RC, 0); b = make(IBV_QPT_RC, 0); raise_to(&a, b.qp->qp_num, IBV_QPS_RTS); raise_to(&b, a.qp->qp_num, IBV_QPS_RTS);
  int seen[16] = {0}; for (int i = 0; i < 12; i++) OK(!receive(&b, i));
  for (int i = 0; i < 5; i++) OK(!request(&a, &b, 20, IBV_WR_SEND, 0, 10));
  for (int i = 0; i < 2; i++) { struct ibv_wc w = wait_one(&b); OK(!w.status && w.wr_id < 12 && !seen[w.wr_id]++); }
  cycle(); for (int i = 0; i < 7; i++) OK(!request(&a, &b, 20, IBV_WR_SEND, 0, 10));
  for (int i = 0; i < 10; i++) { struct ibv_wc w = wait_one(&b); OK(!w.status && w.wr_id < 12 && !seen[w.wr_id]++ && w.qp_num == b.qp->qp_num); }
  none(&b);
}
/* Receives as many as there may be, and what is refused beyond them; of one scatter entry, or of every number. Messages that come while
 * some are posted find them in their order, each with its own list, also where receives of ours have been among them. The last
 * checkpoint alone is as $FAKERT has it: after a restart receives are posted another way. */
static void scatter(int every) {
  both(IBV_QPT_RC, 0); const char *last = getenv("FAKERT"); OK(last && (last = strdup(last))); OK(!setenv("FAKERT", "resume", 1));
  enum { ROUNDS = 8 }; unsigned long to = 0, from = 0;
  for (int round = 0; round <= ROUNDS; round++) {
    for (; to < from + DEPTH; to++) OK(!scattered(&b, to, every ? (int)(to % 3) : 1));
    OK(scattered(&b, 7777, 1)); OK(scattered(&b, 7777, 2));
    if (round == ROUNDS) { OK(!setenv("FAKERT", last, 1)); cycle(); }
    for (int i = 0; i < DEPTH + 3; i++, from++) {
      unsigned len = from >= to || !every || from % 3 == 1 ? SIZE / 2 : from % 3 ? SIZE : 0;
      memset(a.m, (int)from, SIZE); OK(!request(&a, &b, 0, IBV_WR_SEND, IBV_SEND_SIGNALED, len));
      if (from >= to) { cycle(); OK(!scattered(&b, to++, 1)); }
      struct ibv_wc w = wait_one(&b); if (w.status || w.wr_id != from || w.byte_len != len) DIE("message %lu: receive %lu, %u bytes, status %d", from, (unsigned long)w.wr_id, w.byte_len, w.status);
      for (unsigned k = 0; k < len; k++) OK(b.m[from % DEPTH * SIZE + k] == (unsigned char)from);
      expect(&a, 0, IBV_WC_SEND);
    }
  }
  none(&b);
}
static void scatter_one(void) { scatter(0); }
static void scatter_every(void) { scatter(1); }
/* 10: errors and flushes bear the program's numbers, and completions of a QP that is gone are harmless. */
static void errors(void) {
  both(IBV_QPT_RC, 0); cycle();
  for (int i = 0; i < 10; i++) OK(!receive(&a, 500 + i));
  for (long i = 0; i < 39; i++) { OK(!request(&a, &b, i, IBV_WR_RDMA_WRITE, IBV_SEND_SIGNALED, 8)); expect(&a, i, IBV_WC_RDMA_WRITE); }
  OK(!request(&a, &b, 39, IBV_WR_RDMA_WRITE, IBV_SEND_SIGNALED, 8)); cycle();
  struct ibv_wc w = wait_one(&a); OK(w.status == IBV_WC_REM_OP_ERR && w.wr_id == 39 && w.qp_num == a.qp->qp_num);
  w = wait_one(&a); OK(w.status == IBV_WC_WR_FLUSH_ERR && w.wr_id == 500 && w.qp_num == a.qp->qp_num);
  OK(!ibv_destroy_qp(a.qp)); cycle();
  for (int i = 1; i < 10; i++) { w = wait_one(&a); OK(w.status == IBV_WC_WR_FLUSH_ERR && w.wr_id == 500u + i); }
  none(&a);
}
/* The same, with its asynchronous event pending at the cut. */
static void breaks(void) {
  both(IBV_QPT_RC, 0); for (long i = 0; i < 40; i++) { OK(!request(&a, &b, i, IBV_WR_RDMA_WRITE, IBV_SEND_SIGNALED, 8)); expect(&a, i, IBV_WC_RDMA_WRITE); }
  cycle(); struct pollfd f = {ctx->async_fd, POLLIN, 0}; OK(poll(&f, 1, 10000) == 1); struct ibv_async_event e; OK(!ibv_get_async_event(ctx, &e)); OK(e.event_type == IBV_EVENT_QP_FATAL && e.element.qp == a.qp); ibv_ack_async_event(&e);
  struct ibv_qp_attr t; struct ibv_qp_init_attr i; OK(!ibv_query_qp(a.qp, &t, IBV_QP_STATE, &i) && t.qp_state == IBV_QPS_ERR); OK(!ibv_destroy_qp(a.qp));
}
/* What was posted to a queue pair in error is flushed, signaled or not; late, but before the cut is over. */
static void flushed(void) {
  both(IBV_QPT_RC, 0); for (int i = 0; i < 5; i++) OK(!receive(&a, 500 + i));
  for (int i = 0; i < 4; i++) OK(!request(&a, &b, i, IBV_WR_SEND, i == 1 ? IBV_SEND_SIGNALED : 0, 30));
  struct ibv_qp_attr t = {.qp_state = IBV_QPS_ERR}; OK(!ibv_modify_qp(a.qp, &t, IBV_QP_STATE)); cycle();
  unsigned sends = 0, receives = 0;
  for (int i = 0; i < 9; i++) { struct ibv_wc w = wait_one(&a); OK(w.status == IBV_WC_WR_FLUSH_ERR && w.qp_num == a.qp->qp_num); OK(w.wr_id == (w.wr_id < 500 ? sends++ : 500 + receives++)); }
  none(&a); cycle(); none(&a); OK(!receive(&a, 9)); cycle(); struct ibv_wc w = wait_one(&a); OK(w.status == IBV_WC_WR_FLUSH_ERR && w.wr_id == 9);
}
/* An unreliable message that found no receive is lost by right, and nothing waits for it: no receive of ours is left in its place. */
static void unheard(void) {
  both(IBV_QPT_UC, 0); OK(!request(&a, &b, 0, IBV_WR_SEND, IBV_SEND_SIGNALED, 30)); expect(&a, 0, IBV_WC_SEND);
  for (int round = 1; round < 4; round++) {
    cycle(); none(&b); OK(!receive(&b, 100 + round)); OK(!request(&a, &b, round, IBV_WR_SEND, IBV_SEND_SIGNALED, 30));
    expect(&a, round, IBV_WC_SEND); expect(&b, 100 + round, IBV_WC_RECV);
  }
}
/* Unsignaled requests were answered long ago, and the peer is gone, or connected to another by now: nothing is waited for. */
static void parted(void) {
  both(IBV_QPT_RC, 0); struct end c = make(IBV_QPT_RC, 0), d = make(IBV_QPT_RC, 0); raise_to(&c, d.qp->qp_num, IBV_QPS_RTS); raise_to(&d, c.qp->qp_num, IBV_QPS_RTS);
  struct end *from[] = {&a, &c}, *to[] = {&b, &d};
  for (int k = 0; k < 2; k++) { OK(!receive(to[k], 1)); OK(!request(from[k], to[k], 2, IBV_WR_SEND, 0, 9)); OK(!request(from[k], to[k], 3, IBV_WR_RDMA_WRITE, 0, 9)); expect(to[k], 1, IBV_WC_RECV); }
  OK(!ibv_destroy_qp(b.qp)); struct ibv_qp_attr t = {.qp_state = IBV_QPS_RESET}; OK(!ibv_modify_qp(d.qp, &t, IBV_QP_STATE));
  struct end e = make(IBV_QPT_RC, 0); raise_to(&d, e.qp->qp_num, IBV_QPS_RTS); raise_to(&e, d.qp->qp_num, IBV_QPS_RTS); OK(!receive(&d, 4)); OK(!request(&e, &d, 5, IBV_WR_SEND, IBV_SEND_SIGNALED, 9));
  cycle(); none(&a); none(&c); expect(&d, 4, IBV_WC_RECV); expect(&e, 5, IBV_WC_SEND);
  OK(!ibv_destroy_qp(a.qp) && !ibv_destroy_qp(c.qp));
}
/* 11: an event that is pending at the cut wakes the sleeper, with the right CQ and context. */
static void sleeper(void) {
  both(IBV_QPT_RC, 1); for (int round = 0; round < 3; round++) {
    OK(!ibv_req_notify_cq(a.cq, 0)); OK(!request(&a, &b, round, IBV_WR_RDMA_WRITE, IBV_SEND_SIGNALED, 8)); cycle();
    struct pollfd f = {ch->fd, POLLIN, 0}; OK(poll(&f, 1, 10000) == 1); struct ibv_cq *cq; void *c; OK(!ibv_get_cq_event(ch, &cq, &c)); OK(cq == a.cq && cq->context == ctx); ibv_ack_cq_events(cq, 1); expect(&a, round, IBV_WC_RDMA_WRITE);
  }
}
/* 12: LIDs, GIDs, numbers and keys are others now, and the program's are still true; new keys never clash with old ones. */
static void identities(void) {
  both(IBV_QPT_RC, 0); struct ibv_port_attr p, q; union ibv_gid g, h; OK(!ibv_query_port(ctx, 1, &p) && !ibv_query_gid(ctx, 1, 2, &g)); unsigned n = a.qp->qp_num, l = a.mr->lkey;
  for (int round = 0; round < 3; round++) {
    cycle(); OK(!ibv_query_port(ctx, 1, &q) && q.lid == p.lid); OK(!ibv_query_gid(ctx, 1, 2, &h) && !memcmp(&g, &h, 16)); OK(a.qp->qp_num == n && a.mr->lkey == l);
    for (int i = 0; i < 300; i++) { struct ibv_mr *m = ibv_reg_mr(pd, a.m, SIZE, 15); OK(m && m->lkey != a.mr->lkey && m->lkey != b.mr->lkey && m->rkey != b.mr->rkey); OK(!ibv_dereg_mr(m)); }
    struct end c = make(IBV_QPT_RC, 0), d = make(IBV_QPT_RC, 0); OK(c.qp->qp_num != n && d.qp->qp_num != n && c.qp->qp_num != b.qp->qp_num); raise_to(&c, d.qp->qp_num, IBV_QPS_RTS); raise_to(&d, c.qp->qp_num, IBV_QPS_RTS);
    struct end *from[] = {&a, &c}, *to[] = {&b, &d};
    for (int k = 0; k < 2; k++) { OK(!receive(to[k], 1)); OK(!request(from[k], to[k], 2, IBV_WR_SEND, IBV_SEND_SIGNALED, 9)); expect(to[k], 1, IBV_WC_RECV); expect(from[k], 2, IBV_WC_SEND); OK(!request(from[k], to[k], 3, IBV_WR_RDMA_READ, IBV_SEND_SIGNALED, 9)); expect(from[k], 3, IBV_WC_RDMA_READ); }
  }
}
/* 12: several devices, each with traffic of its own. */
static void devices(void) {
  struct end e[4]; struct ibv_context *c[2];
  for (int k = 0; k < 2; k++) { open_device(k); c[k] = ctx; e[2 * k] = make(IBV_QPT_RC, 0); e[2 * k + 1] = make(IBV_QPT_RC, 0); raise_to(&e[2 * k], e[2 * k + 1].qp->qp_num, IBV_QPS_RTS); raise_to(&e[2 * k + 1], e[2 * k].qp->qp_num, IBV_QPS_RTS); }
  for (int round = 0; round < 2; round++) { for (int k = 0; k < 2; k++) { OK(!receive(&e[2 * k + 1], k)); OK(!request(&e[2 * k], &e[2 * k + 1], 10 + k, IBV_WR_SEND, IBV_SEND_SIGNALED, 20)); } cycle(); for (int k = 0; k < 2; k++) { expect(&e[2 * k + 1], k, IBV_WC_RECV); expect(&e[2 * k], 10 + k, IBV_WC_SEND); } }
  OK(strcmp(ibv_get_device_name(c[0]->device), ibv_get_device_name(c[1]->device)));
}
/* 13: thousands of queue pairs and regions; what one completion costs does not depend on how many there are. */
static double per_operation(struct end *x, struct end *y) { struct timespec s, t; double best = 1e9; for (int k = 0; k < 20; k++) { clock_gettime(CLOCK_MONOTONIC, &s); for (int i = 0; i < 500; i++) { OK(!request(x, y, 1, IBV_WR_RDMA_WRITE, IBV_SEND_SIGNALED, 8)); expect(x, 1, IBV_WC_RDMA_WRITE); } clock_gettime(CLOCK_MONOTONIC, &t); double ns = ((t.tv_sec - s.tv_sec) * 1e9 + t.tv_nsec - s.tv_nsec) / 500; if (ns < best) best = ns; } return best; }
static void many(void) {
  enum { N = 3000 }; both(IBV_QPT_RC, 0); cycle(); double few = per_operation(&a, &b);
  struct end *e = calloc(2 * N, sizeof *e); static unsigned char memory[4096];
  for (int i = 0; i < 2 * N; i++) { e[i].cq = a.cq; struct ibv_qp_init_attr q = {.send_cq = a.cq, .recv_cq = a.cq, .cap = {4, 4, 1, 1, 0}, .qp_type = IBV_QPT_RC}; OK(e[i].qp = ibv_create_qp(pd, &q)); e[i].m = memory; OK(e[i].mr = ibv_reg_mr(pd, memory, sizeof memory, 15)); }
  for (int i = 0; i < 2 * N; i++) raise_to(&e[i], e[i ^ 1].qp->qp_num, IBV_QPS_RTS);
  for (int i = 0; i < 2 * N; i += 2) OK(!request(&e[i], &e[i + 1], 0, IBV_WR_RDMA_WRITE, 0, 8));
  cycle(); double lots = per_operation(&a, &b); for (int i = 0; i < 2 * N; i += 97) { OK(!request(&e[i], &e[i ^ 1], 0, IBV_WR_RDMA_WRITE, IBV_SEND_SIGNALED, 8)); expect(&e[i], 0, IBV_WC_RDMA_WRITE); }
  if (lots > 8 * few + 1000) DIE("an operation takes %.0f ns with %d queue pairs, and %.0f ns with two", lots, 2 * N, few);
}
/* Every thread is in malloc at the cut. */
static void *mallocs(void *x) { unsigned s = (unsigned)(unsigned long)x; void *p[64] = {0}; while (!stop) { s = s * 1103515245 + 12345; free(p[s >> 16 & 63]); p[s >> 16 & 63] = malloc(s >> 20); } for (int i = 0; i < 64; i++) free(p[i]); return NULL; }
static void hammer(void) {
  both(IBV_QPT_RC, 0); pthread_t t[6]; for (long i = 0; i < 6; i++) OK(!pthread_create(t + i, NULL, mallocs, (void *)i));
  for (int k = 0; k < 20; k++) { OK(!receive(&b, k)); OK(!request(&a, &b, k, IBV_WR_SEND, IBV_SEND_SIGNALED, 30)); cycle(); expect(&b, k, IBV_WC_RECV); expect(&a, k, IBV_WC_SEND); }
  stop = 1; for (int i = 0; i < 6; i++) pthread_join(t[i], NULL);
}
/* The same under a real runtime, which stops the threads wherever they are: until $SW_STOP is there. */
static void endless(void) {
  both(IBV_QPT_RC, 0); pthread_t t[6]; for (long i = 0; i < 6; i++) OK(!pthread_create(t + i, NULL, mallocs, (void *)i));
  const char *until = getenv("SW_STOP"); printf("ready\n"); fflush(stdout);
  for (long k = 0; !until || access(until, F_OK); k++) { OK(!receive(&b, k)); OK(!request(&a, &b, k, IBV_WR_SEND, IBV_SEND_SIGNALED, 30)); expect(&b, k, IBV_WC_RECV); expect(&a, k, IBV_WC_SEND); if (k % 2000 == 0) { printf("beat %ld\n", k); fflush(stdout); } }
  stop = 1; for (int i = 0; i < 6; i++) pthread_join(t[i], NULL);
  printf("PASS\n");
}
int main(int argc, char **argv) {
  static const struct { const char *name; void (*run)(void); } all[] = {{"signaled", signaled}, {"lost-message", lost_message}, {"datagram", datagram}, {"whole-context", whole_context}, {"threads", threads}, {"inline", inlined}, {"once", once}, {"shared-order", shared_order}, {"scatter-one", scatter_one}, {"scatter-every", scatter_every}, {"errors", errors}, {"breaks", breaks}, {"flushed", flushed}, {"unheard", unheard}, {"parted", parted}, {"sleeper", sleeper}, {"identities", identities}, {"devices", devices}, {"many", many}, {"hammer", hammer}, {"endless", endless}};
  for (unsigned i = 0; argc > 1 && i < sizeof all / sizeof *all; i++) if (!strcmp(all[i].name, argv[1])) { all[i].run(); printf("defects: ok, %s\n", argv[1]); return 0; }
  return 2;
}
