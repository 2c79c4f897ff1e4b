/* halfopen.c: two processes that always have pairs of queue pairs of which one end is connected and the other is not yet, as UCX's
 * wireup has them for a moment. Each round makes one more such pair (its ends change sides from round to round), then connects the
 * late end of the oldest and sends over it: a message and an RDMA write each way, checked. Many a late end is therefore connected
 * after a restart that the early end was connected before. Prints "beat" each 20 rounds, and once $SW_STOP is there "PASS". */
#include <infiniband/verbs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define DIE(...) do { printf("FAIL: " __VA_ARGS__); printf("\n"); fflush(stdout); _exit(1); } while (0)
#define OK(x) do { if (!(x)) DIE("%s, line %d, errno %m", #x, __LINE__); } while (0)
enum { OPEN = 6, DEPTH = 4, PATIENCE = 60, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

struct end { struct ibv_qp *qp; uint32_t peer; };
static struct ibv_context *ctx; static struct ibv_pd *pd; static struct ibv_cq *cq; static struct ibv_mr *mr;
static union ibv_gid gid;
static int me, wire;
/* Written by the other side: its writes; what messages go out of and come into; the value that is written. */
static volatile struct { uint64_t target, out, in, source; } cell;
static struct { uint64_t at; uint32_t key; } there;

static void tell(const void *p, size_t n) { OK(write(wire, p, n) == (ssize_t)n); }
static void hear(void *p, size_t n) { OK(recv(wire, p, n, MSG_WAITALL) == (ssize_t)n); }

static void connect_end(struct end *e) {
  struct ibv_qp_attr a = {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = e->peer, .rq_psn = 7, .max_dest_rd_atomic = 1,
    .min_rnr_timer = 12, .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = gid, .sgid_index = 2, .hop_limit = 1}}};
  OK(!ibv_modify_qp(e->qp, &a, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
  a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7, .sq_psn = 7, .max_rd_atomic = 1};
  OK(!ibv_modify_qp(e->qp, &a, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC));
}

static void make(struct end *e, int late) {
  struct ibv_qp_init_attr init = {.send_cq = cq, .recv_cq = cq, .cap = {DEPTH, DEPTH, 1, 1, 0}, .qp_type = IBV_QPT_RC};
  OK(e->qp = ibv_create_qp(pd, &init));
  struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL};
  OK(!ibv_modify_qp(e->qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
  tell(&e->qp->qp_num, sizeof e->qp->qp_num); hear(&e->peer, sizeof e->peer);
  struct ibv_sge to = {(uintptr_t)&cell.in, 8, mr->lkey};
  struct ibv_recv_wr wr = {.wr_id = 1, .sg_list = &to, .num_sge = 1}, *bad;
  OK(!ibv_post_recv(e->qp, &wr, &bad));
  if (!late) connect_end(e);
}

/* The peer's answer (1) may overtake the acknowledgement of what it answers (3): nothing orders the two. */
static void await(uint64_t id) {
  static int came[4];
  struct ibv_wc wc;
  struct timespec from, now;
  OK(!clock_gettime(CLOCK_MONOTONIC, &from));
  for (; !came[id];) {
    int got = ibv_poll_cq(cq, 1, &wc);
    OK(got >= 0 && !clock_gettime(CLOCK_MONOTONIC, &now));
    if (now.tv_sec - from.tv_sec > PATIENCE) DIE("process %d: no completion %lu after %d s", me, (unsigned long)id, PATIENCE);
    if (!got) continue;
    int known = (wc.wr_id == 1 && wc.opcode == IBV_WC_RECV) || (wc.wr_id == 3 && wc.opcode == IBV_WC_SEND);
    if (wc.status || !known || came[wc.wr_id]++) DIE("process %d: completion %lu (%d), awaited %lu: %s", me, (unsigned long)wc.wr_id, wc.opcode, (unsigned long)id, ibv_wc_status_str(wc.status));
  }
  came[id] = 0;
}

static void send_to(struct end *e, uint64_t value) {
  cell.source = cell.out = value;
  struct ibv_sge written = {(uintptr_t)&cell.source, 8, mr->lkey}, sent = {(uintptr_t)&cell.out, 8, mr->lkey};
  struct ibv_send_wr message = {.wr_id = 3, .sg_list = &sent, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED},
    write = {.wr_id = 2, .next = &message, .sg_list = &written, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .wr.rdma = {there.at, there.key}}, *bad;
  OK(!ibv_post_send(e->qp, &write, &bad));
  await(3);
}

static void receive(uint64_t value) {
  await(1);
  if (cell.in != value || cell.target != value) DIE("process %d: message %lx, written %lx, awaited %lx", me, cell.in, cell.target, value);
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  int ends[2]; OK(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
  pid_t child = fork(); OK(child >= 0);
  me = !child; wire = ends[me]; close(ends[!me]);
  int n; struct ibv_device **list = ibv_get_device_list(&n); OK(list && n);
  OK(ctx = ibv_open_device(list[0])); OK(pd = ibv_alloc_pd(ctx)); OK(cq = ibv_create_cq(ctx, 4 * OPEN * DEPTH, NULL, NULL, 0));
  OK(!ibv_query_gid(ctx, 1, 2, &gid)); OK(mr = ibv_reg_mr(pd, (void *)&cell, sizeof cell, ALL));
  there.at = (uintptr_t)&cell.target; there.key = mr->rkey;
  __typeof__(there) mine = there; tell(&mine, sizeof mine); hear(&there, sizeof there);
  struct end open[OPEN];
  const char *stop = getenv("SW_STOP");
  for (uint64_t round = 0, oldest = 0;; round++) {
    /* The first process decides when it is over. */
    int over = stop && !access(stop, F_OK);
    if (!me) tell(&over, sizeof over); else hear(&over, sizeof over);
    if (over) break;
    make(&open[round % OPEN], round % 2 == (uint64_t)me);
    if (round - oldest < OPEN - 1) continue;
    struct end *e = &open[oldest % OPEN];
    uint64_t late = oldest % 2, value = oldest * 2;
    if (late == (uint64_t)me) { connect_end(e); send_to(e, value); receive(value + 1); }
    else { receive(value); send_to(e, value + 1); }
    OK(!ibv_destroy_qp(e->qp)); /* all has been answered */
    oldest++;
    if (!me && oldest % 20 == 0) puts("beat");
  }
  if (me) return 0;
  int status; OK(waitpid(child, &status, 0) == child && !status);
  puts("PASS");
  return 0;
}
