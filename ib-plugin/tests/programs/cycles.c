/* cycles.c: cycles of the data path on mock.c with MOCK_NULL=1, the least of many batches. Run on the mock natively and through the
 * plugin, the difference is what the plugin adds. With an argument it asks for a checkpoint first (fakert.c restarts it). */
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <x86intrin.h>
extern int slackwater_checkpoint(void) __attribute__((weak));
enum { BATCH = 64, ROUNDS = 20000 };
static unsigned long least[5] = {~0ul, ~0ul, ~0ul, ~0ul, ~0ul};
static void note(int what, unsigned long cycles) { if (cycles < least[what]) least[what] = cycles; }
#define OK(x) do { if (!(x)) { printf("cycles: %s fails at line %d\n", #x, __LINE__); exit(1); } } while (0)

int main(int argc, char **argv) {
  (void)argv;
  int n; struct ibv_device **list = ibv_get_device_list(&n); OK(list && n);
  struct ibv_context *ctx = ibv_open_device(list[0]); OK(ctx);
  struct ibv_pd *pd = ibv_alloc_pd(ctx); struct ibv_cq *cq = ibv_create_cq(ctx, 4 * BATCH, NULL, NULL, 0); OK(pd && cq);
  struct ibv_qp_init_attr a = {.send_cq = cq, .recv_cq = cq, .cap = {2 * BATCH, 2 * BATCH, 1, 1, 0}, .qp_type = IBV_QPT_RC};
  struct ibv_qp *qp = ibv_create_qp(pd, &a); OK(qp);
  static char memory[4096]; struct ibv_mr *mr = ibv_reg_mr(pd, memory, sizeof memory, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE); OK(mr);
  struct ibv_qp_attr to = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = 15};
  OK(!ibv_modify_qp(qp, &to, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
  to = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTR, .dest_qp_num = qp->qp_num, .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.sgid_index = 2}}};
  OK(!ibv_query_gid(ctx, 1, 2, &to.ah_attr.grh.dgid));
  OK(!ibv_modify_qp(qp, &to, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
  to = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS};
  OK(!ibv_modify_qp(qp, &to, IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC));
  if (argc > 1) OK(slackwater_checkpoint && slackwater_checkpoint() == 1);
  struct ibv_wc wc[BATCH];
  struct ibv_sge g = {(unsigned long)memory, 64, mr->lkey}; unsigned aux;
  struct ibv_send_wr s = {.sg_list = &g, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED, .wr.rdma = {(unsigned long)memory, mr->rkey}}, *bads;
  struct ibv_recv_wr r = {.sg_list = &g, .num_sge = 1}, *badr;
  for (int round = 0; round < ROUNDS; round++) {
    unsigned long t0 = __rdtsc();
    for (int i = 0; i < BATCH; i++) { s.wr_id = i; OK(!ibv_post_send(qp, &s, &bads)); }
    unsigned long t1 = __rdtscp(&aux);
    OK(ibv_poll_cq(cq, BATCH, wc) == BATCH);
    unsigned long t2 = __rdtscp(&aux);
    OK(wc[BATCH - 1].wr_id == BATCH - 1);
    note(0, t1 - t0); note(1, t2 - t1);
    for (int i = 0; i < BATCH; i++) OK(!ibv_post_send(qp, &s, &bads));
    t0 = __rdtsc();
    for (int i = 0; i < BATCH; i++) OK(ibv_poll_cq(cq, 1, wc) == 1);
    t1 = __rdtscp(&aux);
    note(4, t1 - t0);
    t0 = __rdtsc();
    for (int i = 0; i < BATCH; i++) { r.wr_id = i; OK(!ibv_post_recv(qp, &r, &badr)); }
    t1 = __rdtscp(&aux);
    OK(ibv_poll_cq(cq, BATCH, wc) == BATCH);
    t2 = __rdtscp(&aux);
    OK(wc[BATCH - 1].wr_id == BATCH - 1 && wc[0].byte_len == 64);
    note(2, t1 - t0); note(3, t2 - t1);
  }
  static const char *const names[] = {"post_send", "poll_cq, sends", "post_recv", "poll_cq, receives", "poll_cq, one by one"};
  for (int i = 0; i < 5; i++) printf("%s: %.1f\n", names[i], (double)least[i] / BATCH);
  return 0;
}
