/* heldback.c: a queue pair whose send queue is drained (SQD) and holds requests back. Says "beat"; after a line of input they are let go,
 * and it says "PASS". */
#include <infiniband/verbs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define OK(x) do { if (!(x)) { printf("FAIL: %s, line %d, errno %m\n", #x, __LINE__); exit(1); } } while (0)
enum { ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  static uint64_t memory[8]; char line[16]; struct ibv_wc wc; int n; union ibv_gid gid;
  struct ibv_device **list = ibv_get_device_list(&n); OK(list && n);
  struct ibv_context *ctx = ibv_open_device(list[0]); OK(ctx); OK(!ibv_query_gid(ctx, 1, 2, &gid));
  struct ibv_pd *pd = ibv_alloc_pd(ctx); struct ibv_mr *mr = ibv_reg_mr(pd, memory, sizeof memory, ALL); struct ibv_cq *cq = ibv_create_cq(ctx, 8, NULL, NULL, 0); OK(pd && mr && cq);
  struct ibv_qp_init_attr init = {.send_cq = cq, .recv_cq = cq, .cap = {8, 1, 1, 1, 0}, .qp_type = IBV_QPT_RC}, same;
  struct ibv_qp *qp = ibv_create_qp(pd, &init); OK(qp);
  struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
  a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = qp->qp_num, .max_dest_rd_atomic = 1, .min_rnr_timer = 12, .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = gid, .sgid_index = 2, .hop_limit = 1}}};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
  a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7, .max_rd_atomic = 1};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC));
  for (uint64_t round = 1; round < 3; round++) {
    struct ibv_sge from = {(uintptr_t)memory, 8, mr->lkey}; memory[0] = round;
    struct ibv_send_wr write = {.wr_id = round, .sg_list = &from, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED, .wr.rdma = {(uintptr_t)&memory[1], mr->rkey}}, *bad;
    OK(!ibv_post_send(qp, &write, &bad)); while (!(n = ibv_poll_cq(cq, 1, &wc))) continue;
    OK(n == 1 && !wc.status && wc.wr_id == round && memory[1] == round);
    a.qp_state = IBV_QPS_SQD; OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE));
    do OK(!ibv_query_qp(qp, &a, IBV_QP_STATE, &same)); while (a.sq_draining);
    memory[0] = round + 10; write.wr_id = round + 10;
    if (round == 1) OK(!ibv_post_send(qp, &write, &bad)); /* in the second round nothing is held back */
    puts("beat"); OK(fgets(line, sizeof line, stdin)); OK(!ibv_poll_cq(cq, 1, &wc) && memory[1] == round);
    a.qp_state = IBV_QPS_RTS; OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE));
    write.wr_id = round + 20; OK(!ibv_post_send(qp, &write, &bad)); /* rdma_rxe looks at the queue when something is posted */
    for (uint64_t id = round == 1 ? 11 : 22; id <= round + 20; id += 10) {
      while (!(n = ibv_poll_cq(cq, 1, &wc))) continue;
      OK(n == 1 && !wc.status && wc.wr_id == id && memory[1] == round + 10);
    }
  }
  puts("PASS");
  return 0;
}
