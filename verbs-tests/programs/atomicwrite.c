/* atomicwrite.c: eight-byte atomic writes (IBTA 1.5) by ibv_wr_atomic_write(3), from one queue pair to another of this process, one in
 * three of them signaled, between ordinary writes and sends of no bytes; each completion and each value is checked.
 * It prints "beat" every 500 requests, and once $SW_STOP is there "PASS". */
#include <infiniband/verbs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define DIE(...) do { printf("FAIL: " __VA_ARGS__); printf("\n"); fflush(stdout); _exit(1); } while (0)
#define OK(x) do { if (!(x)) DIE("%s, line %d, errno %m", #x, __LINE__); } while (0)
enum { SLOTS = 8, DEPTH = 33, EVERY = 3, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

static void raise_qp(struct ibv_qp *qp, struct ibv_qp *peer, union ibv_gid *gid) {
  struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
  a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = peer->qp_num, .rq_psn = 7, .max_dest_rd_atomic = 1,
    .min_rnr_timer = 12, .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = *gid, .sgid_index = 2, .hop_limit = 1}}};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
  a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7, .sq_psn = 7, .max_rd_atomic = 1};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC));
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  int n; struct ibv_device **list = ibv_get_device_list(&n); OK(list && n);
  struct ibv_context *ctx = ibv_open_device(list[0]); OK(ctx);
  struct ibv_pd *pd = ibv_alloc_pd(ctx); struct ibv_cq *cq = ibv_create_cq(ctx, 4 * DEPTH, NULL, NULL, 0); OK(pd && cq);
  union ibv_gid gid; OK(!ibv_query_gid(ctx, 1, 2, &gid));
  static volatile uint64_t target[SLOTS], plain; static uint64_t source;
  struct ibv_mr *mr = ibv_reg_mr(pd, (void *)target, sizeof target, ALL), *own = ibv_reg_mr(pd, &source, 8, ALL), *to = ibv_reg_mr(pd, (void *)&plain, 8, ALL);
  OK(mr && own && to);
  struct ibv_qp *qp[2];
  for (int i = 0; i < 2; i++) {
    struct ibv_qp_init_attr_ex a = {.send_cq = cq, .recv_cq = cq, .cap = {DEPTH, DEPTH, 1, 1, 16}, .qp_type = IBV_QPT_RC, .pd = pd,
      .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, .send_ops_flags = IBV_QP_EX_WITH_ATOMIC_WRITE | IBV_QP_EX_WITH_RDMA_WRITE};
    OK(qp[i] = ibv_create_qp_ex(ctx, &a));
  }
  raise_qp(qp[0], qp[1], &gid); raise_qp(qp[1], qp[0], &gid);
  struct ibv_qp_ex *ex = ibv_qp_to_qp_ex(qp[0]); OK(ex);
  const char *stop = getenv("SW_STOP");
  for (uint64_t posted = 0, done = 0, seen = 0;;) {
    int ending = posted % EVERY == 0 && stop && !access(stop, F_OK);
    while (!ending && posted - done < DEPTH - EVERY) {
      uint64_t value = ++posted * 0x100000001ull, none = 0;
      ibv_wr_start(ex);
      ex->wr_id = posted; ex->wr_flags = posted % EVERY ? 0 : IBV_SEND_SIGNALED;
      if (posted % 5 == 0) {
        source = posted; ibv_wr_rdma_write(ex, to->rkey, (uintptr_t)&plain); ibv_wr_set_sge(ex, own->lkey, (uintptr_t)&source, 8);
      } else {
        ibv_wr_atomic_write(ex, mr->rkey, (uintptr_t)&target[posted % SLOTS], &value);
      }
      OK(!ibv_wr_complete(ex)); value = none; /* its buffer is the program's again */
    }
    struct ibv_wc wc;
    int got = ibv_poll_cq(cq, 1, &wc); OK(got >= 0);
    if (got) {
      if (wc.status || wc.wr_id != done + EVERY) DIE("completion %lu after %lu: %s", (unsigned long)wc.wr_id, (unsigned long)done, ibv_wc_status_str(wc.status));
      if (wc.wr_id % 5 && wc.opcode != IBV_WC_ATOMIC_WRITE) DIE("opcode %d", wc.opcode);
      done = wc.wr_id;
      for (uint64_t i = done - EVERY + 1; i <= done; i++) {
        uint64_t is = target[i % SLOTS];
        if (i % 5 && ((is >> 32) != (uint32_t)is || (uint32_t)is < i)) DIE("slot %lu holds %lx after request %lu", (unsigned long)(i % SLOTS), (unsigned long)is, (unsigned long)i);
      }
      if (plain < done / 5 * 5 - 0) DIE("the plain write of %lu has not come", (unsigned long)done);
      if (done / 500 != seen) { seen = done / 500; puts("beat"); }
    }
    if (ending && done >= posted / EVERY * EVERY) { puts("PASS"); return 0; }
  }
}
