/* strangers.c: four processes on one device. The first and the third know each other's regions, but between rounds no queue pair
 * connects them: each round makes new pairs and destroys them again, as MPI connects ranks when they first talk. The second keeps
 * many pairs with the third, and many regions, of which neither the first nor its queue pairs know; what the first makes after a
 * restart must get no number and no key by which the third knows something of the second. Each round the third writes through the
 * first's oldest region and through many that were just made, and over each pair that it has with the second, all checked. The
 * fourth knows from the beginning what the second has for it, and opens the device only at the end. Prints "beat" after each round,
 * and once $SW_STOP is there "PASS". */
#include <infiniband/verbs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define DIE(...) do { printf("FAIL: process %d: ", me); printf(__VA_ARGS__); printf("\n"); fflush(stdout); _exit(1); } while (0)
#define OK(x) do { if (!(x)) DIE("%s, line %d, errno %m", #x, __LINE__); } while (0)
enum { PAIRS = 24, KEPT = 64, FRESH = 1500, REGIONS = 6000, CELLS = FRESH + 1, DEPTH = 128, PATIENCE = 60, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

static struct ibv_context *ctx; static struct ibv_pd *pd; static struct ibv_cq *cq;
static union ibv_gid gid;
static int me;
static volatile uint64_t cells[CELLS]; /* the others write here */
static uint64_t source[CELLS];

static void tell(int to, const void *p, size_t n) { for (size_t d = 0; d < n;) { ssize_t k = write(to, (const char *)p + d, n - d); OK(k > 0); d += k; } }
static void hear(int from, void *p, size_t n) { OK(recv(from, p, n, MSG_WAITALL) == (ssize_t)n); }
static struct ibv_mr *region(volatile void *at, size_t n) { struct ibv_mr *m = ibv_reg_mr(pd, (void *)at, n, ALL); OK(m); return m; }

static void use_device(void) {
  int n; struct ibv_device **list = ibv_get_device_list(&n); OK(list && n);
  OK(ctx = ibv_open_device(list[0])); OK(pd = ibv_alloc_pd(ctx)); OK(cq = ibv_create_cq(ctx, 16, NULL, NULL, 0));
  OK(!ibv_query_gid(ctx, 1, 2, &gid));
}

static struct ibv_qp *make(void) {
  struct ibv_qp_init_attr init = {.send_cq = cq, .recv_cq = cq, .cap = {DEPTH, 1, 1, 1, 0}, .qp_type = IBV_QPT_RC};
  struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL}; struct ibv_qp *qp;
  OK(qp = ibv_create_qp(pd, &init));
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
  return qp;
}

static void join(struct ibv_qp *qp, uint32_t peer, union ibv_gid where) {
  struct ibv_qp_attr a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = peer, .rq_psn = 7, .max_dest_rd_atomic = 1,
      .min_rnr_timer = 12, .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = where, .sgid_index = 2, .hop_limit = 1}}};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
  a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7, .sq_psn = 7, .max_rd_atomic = 1};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC));
}

/* One end each of `n` pairs with the process at the other end of this socket. */
static void pair(int wire, struct ibv_qp **qps, int n) {
  for (int i = 0; i < n; i++) {
    uint32_t peer; qps[i] = make(); tell(wire, &qps[i]->qp_num, 4); hear(wire, &peer, 4);
    join(qps[i], peer, gid);
  }
  char both; tell(wire, &both, 1); hear(wire, &both, 1);
}

static void write_cell(struct ibv_qp *qp, struct ibv_mr *mine, int i, uint64_t value, uint64_t at, uint32_t key) {
  source[i] = value;
  struct ibv_sge sge = {(uintptr_t)&source[i], 8, mine->lkey};
  struct ibv_send_wr wr = {.wr_id = i, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED, .wr.rdma = {at + i * 8, key}}, *bad;
  OK(!ibv_post_send(qp, &wr, &bad));
  struct timespec from, now; struct ibv_wc wc;
  OK(!clock_gettime(CLOCK_MONOTONIC, &from));
  for (int got = 0; !got;) {
    OK((got = ibv_poll_cq(cq, 1, &wc)) >= 0 && !clock_gettime(CLOCK_MONOTONIC, &now));
    if (now.tv_sec - from.tv_sec > PATIENCE) DIE("write %d is not complete after %d s", i, PATIENCE);
  }
  if (wc.status || wc.wr_id != (uint64_t)i) DIE("write %d through key %#x: completion %lu: %s", i, key, (unsigned long)wc.wr_id, ibv_wc_status_str(wc.status));
}

static void verify(uint64_t round, int n) {
  for (int i = 0; i < n; i++) if (cells[i] != (round << 16 | (unsigned)i)) DIE("round %lu, cell %d holds %lx", (unsigned long)round, i, (unsigned long)cells[i]);
}

struct place { uint64_t at; uint32_t key, qp; union ibv_gid gid; };

/* The first and the second are written to by the third: `pairs` pairs, and as many writes as there are keys. */
static void first(int third) {
  struct place mine = {.at = (uintptr_t)cells, .key = region(cells, sizeof cells)->rkey};
  tell(third, &mine, sizeof mine);
  const char *stop = getenv("SW_STOP");
  for (uint64_t round = 0;; round++) {
    int over = stop && !access(stop, F_OK);
    tell(third, &over, sizeof over);
    if (over) return;
    struct ibv_qp *qps[PAIRS]; static struct ibv_mr *mrs[FRESH]; static uint32_t keys[FRESH];
    pair(third, qps, PAIRS);
    for (int i = 0; i < FRESH; i++) keys[i] = (mrs[i] = region(cells, sizeof cells))->rkey;
    tell(third, keys, sizeof keys);
    char done; hear(third, &done, 1);
    verify(round, CELLS);
    for (int i = 0; i < FRESH; i++) OK(!ibv_dereg_mr(mrs[i]));
    for (int i = 0; i < PAIRS; i++) OK(!ibv_destroy_qp(qps[i]));
    hear(third, &done, 1);
    puts("beat");
    usleep(300000); /* mostly, a checkpoint finds nothing between the first and the third */
  }
}

static void second(int third, int fourth) {
  static struct ibv_mr *mrs[REGIONS]; struct ibv_qp *qps[2 * KEPT];
  for (int i = 0; i < REGIONS; i++) mrs[i] = region(cells, sizeof cells);
  for (int i = 1; i < REGIONS; i += 2) OK(!ibv_dereg_mr(mrs[i]));
  struct ibv_qp *late = make();
  struct place mine = {(uintptr_t)cells, mrs[0]->rkey, late->qp_num, gid}, there;
  tell(third, &mine, sizeof mine); tell(fourth, &mine, sizeof mine);
  pair(third, qps, 2 * KEPT);
  for (int i = 1; i < 2 * KEPT; i += 2) OK(!ibv_destroy_qp(qps[i]));
  char done = 0; tell(third, &done, 1);
  for (uint64_t round = 0;; round++) {
    int over; hear(third, &over, sizeof over);
    if (over) {
      tell(fourth, &done, 1); hear(fourth, &there, sizeof there);
      join(late, there.qp, there.gid);
      tell(fourth, &done, 1); hear(fourth, &done, 1);
      if (cells[0] != 4) DIE("the fourth has written %lx", (unsigned long)cells[0]);
      return;
    }
    uint32_t key = mrs[round * 2 % REGIONS]->rkey; tell(third, &key, 4);
    hear(third, &done, 1);
    verify(round, KEPT);
    tell(third, &done, 1);
  }
}

static void third(int one, int two) {
  struct ibv_mr *mine = region(source, sizeof source); struct place a, b; struct ibv_qp *kept[2 * KEPT];
  hear(one, &a, sizeof a); hear(two, &b, sizeof b);
  pair(two, kept, 2 * KEPT);
  for (int i = 1; i < 2 * KEPT; i += 2) OK(!ibv_destroy_qp(kept[i]));
  char done; hear(two, &done, 1);
  for (uint64_t round = 0;; round++) {
    int over; hear(one, &over, sizeof over); tell(two, &over, sizeof over);
    if (over) return;
    struct ibv_qp *qps[PAIRS]; static uint32_t keys[FRESH];
    pair(one, qps, PAIRS); hear(one, keys, sizeof keys);
    write_cell(qps[0], mine, FRESH, round << 16 | FRESH, a.at, a.key);
    for (int i = 0; i < FRESH; i++) write_cell(qps[i % PAIRS], mine, i, round << 16 | (unsigned)i, a.at, keys[i]);
    tell(one, &done, 1);
    hear(two, &b.key, 4);
    for (int i = 0; i < KEPT; i++) write_cell(kept[2 * i], mine, i, round << 16 | (unsigned)i, b.at, b.key);
    tell(two, &done, 1); hear(two, &done, 1);
    for (int i = 0; i < PAIRS; i++) OK(!ibv_destroy_qp(qps[i]));
    tell(one, &done, 1);
  }
}

static void fourth(int two) {
  char done; struct place b, mine = {0}; hear(two, &b, sizeof b); hear(two, &done, 1);
  use_device();
  struct ibv_mr *from = region(source, sizeof source); struct ibv_qp *qp = make();
  mine.qp = qp->qp_num; mine.gid = gid; tell(two, &mine, sizeof mine);
  join(qp, b.qp, b.gid); hear(two, &done, 1);
  write_cell(qp, from, 0, 4, b.at, b.key);
  tell(two, &done, 1);
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  int a[2], b[2], c[2]; pid_t children[3] = {0};
  OK(!socketpair(AF_UNIX, SOCK_STREAM, 0, a) && !socketpair(AF_UNIX, SOCK_STREAM, 0, b) && !socketpair(AF_UNIX, SOCK_STREAM, 0, c));
  for (int i = 0; i < 3 && !me; i++) { OK((children[i] = fork()) >= 0); if (!children[i]) me = i + 1; }
  if (me != 3) use_device();
  if (me == 1) second(b[0], c[0]);
  if (me == 2) third(a[1], b[1]);
  if (me == 3) fourth(c[1]);
  if (me) return 0;
  first(a[0]);
  for (int i = 0; i < 3; i++) { int status; OK(waitpid(children[i], &status, 0) == children[i] && !status); }
  puts("PASS");
  return 0;
}
