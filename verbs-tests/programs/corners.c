/* corners.c: what a program may leave open from one round to the next, and find again whatever has happened in between: completion events
 * not acknowledged, of two CQs on one channel that is watched by epoll(7); an armed limit of a shared receive queue; flushed
 * completions of a queue pair in error, of which half are polled; completions in a CQ that is resized; an address handle made
 * from a datagram (ibv_init_ah_from_wc(3)), and the names that this has for its sender; a region registered anew at the old address.
 * Prints "beat" after each round, and once $SW_STOP is there "PASS". */
#include <arpa/inet.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>
#define DIE(...) do { printf("FAIL: round %lu: ", (unsigned long)round_); printf(__VA_ARGS__); printf("\n"); fflush(stdout); _exit(1); } while (0)
#define OK(x) do { if (!(x)) DIE("%s, line %d, errno %m", #x, __LINE__); } while (0)
enum { DEPTH = 16, SHARED = 8, BULK = 3000, PATIENCE = 60000, KEY = 77, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

static struct ibv_context *ctx; static struct ibv_pd *pd; static union ibv_gid gid;
static struct ibv_mr *mr, *again;
static uint64_t round_;
static char memory[64 << 10], anew[BULK];
/* Places in `memory`. */
enum { SEND = 0, RECEIVE = 4096, DATAGRAM = 8192, ECHO = 12288, SRQ = 16384 };

static struct ibv_cq *queue(struct ibv_comp_channel *channel) { struct ibv_cq *cq = ibv_create_cq(ctx, 2 * DEPTH, NULL, channel, 0); OK(cq); return cq; }
static struct ibv_sge piece(size_t at, uint32_t length) { return (struct ibv_sge){(uintptr_t)memory + at, length, mr->lkey}; }

static struct ibv_qp *make(enum ibv_qp_type type, struct ibv_cq *send, struct ibv_cq *receive, struct ibv_srq *srq) {
  struct ibv_qp_init_attr init = {.send_cq = send, .recv_cq = receive, .srq = srq, .cap = {DEPTH, DEPTH, 1, 1, 16}, .qp_type = type};
  struct ibv_qp *qp = ibv_create_qp(pd, &init); OK(qp);
  struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL, .qkey = KEY};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | (type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS)));
  return qp;
}

static struct ibv_ah_attr home(void) { return (struct ibv_ah_attr){.is_global = 1, .port_num = 1, .grh = {.dgid = gid, .sgid_index = 2, .hop_limit = 1}}; }

static void join(struct ibv_qp *qp, uint32_t peer) {
  int ud = qp->qp_type == IBV_QPT_UD;
  struct ibv_qp_attr a = {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = peer, .rq_psn = 7, .max_dest_rd_atomic = 1, .min_rnr_timer = 12, .ah_attr = home()};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | (ud ? 0 : IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER)));
  a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7, .sq_psn = 7, .max_rd_atomic = 1};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_SQ_PSN | (ud ? 0 : IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC)));
}

static struct ibv_wc await(struct ibv_cq *cq, uint64_t id) {
  struct ibv_wc wc; struct timespec from, now;
  OK(!clock_gettime(CLOCK_MONOTONIC, &from));
  for (int got = 0; !got;) {
    OK((got = ibv_poll_cq(cq, 1, &wc)) >= 0 && !clock_gettime(CLOCK_MONOTONIC, &now));
    if ((now.tv_sec - from.tv_sec) * 1000 > PATIENCE) DIE("no completion %lu", (unsigned long)id);
  }
  if (wc.wr_id != id) DIE("completion %lu, awaited %lu: %s", (unsigned long)wc.wr_id, (unsigned long)id, ibv_wc_status_str(wc.status));
  return wc;
}
static struct ibv_wc good(struct ibv_cq *cq, uint64_t id) { struct ibv_wc wc = await(cq, id); if (wc.status) DIE("completion %lu: %s", (unsigned long)id, ibv_wc_status_str(wc.status)); return wc; }

static void receive(struct ibv_qp *qp, uint64_t id, size_t at, uint32_t length) {
  struct ibv_sge to = piece(at, length); struct ibv_recv_wr wr = {.wr_id = id, .sg_list = &to, .num_sge = 1}, *bad; OK(!ibv_post_recv(qp, &wr, &bad));
}
static void share(struct ibv_srq *srq, uint64_t id) {
  struct ibv_sge to = piece(SRQ + id % SHARED * BULK, BULK); struct ibv_recv_wr wr = {.wr_id = id, .sg_list = &to, .num_sge = 1}, *bad; OK(!ibv_post_srq_recv(srq, &wr, &bad));
}
static void post(struct ibv_qp *qp, struct ibv_send_wr wr) { struct ibv_send_wr *bad; OK(!ibv_post_send(qp, &wr, &bad)); }

/* A datagram there and one back, to the sender that the first one names. */
static struct ibv_qp *near, *far; static struct ibv_cq *datagrams; static struct ibv_ah *first, *last;
static void echo(void) {
  struct ibv_sge ping = piece(SEND, 8), pong = piece(SEND + 8, 8);
  struct ibv_send_wr there = {.wr_id = 1, .sg_list = &ping, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .wr.ud = {first, far->qp_num, KEY}}, back = there;
  memcpy(memory + SEND, &round_, 8); memcpy(memory + SEND + 8, &round_, 8);
  post(near, there); good(near->send_cq, 1);
  struct ibv_wc wc = good(datagrams, 10);
  OK(wc.byte_len == 48 && !memcmp(memory + DATAGRAM + 40, &round_, 8));
  if (wc.src_qp != near->qp_num || wc.qp_num != far->qp_num) DIE("a datagram from QP %u to %u, not %u to %u", wc.src_qp, wc.qp_num, near->qp_num, far->qp_num);
  struct ibv_ah_attr attr;
  OK(!ibv_init_ah_from_wc(ctx, 1, &wc, (struct ibv_grh *)(memory + DATAGRAM), &attr));
  if (memcmp(&attr.grh.dgid, &gid, 16) || attr.grh.sgid_index != 2) { char text[64]; DIE("its sender is %s, index %u", inet_ntop(AF_INET6, &attr.grh.dgid, text, sizeof text), attr.grh.sgid_index); }
  struct ibv_ah *ah = ibv_create_ah(pd, &attr); OK(ah);
  back.sg_list = &pong; back.wr.ud.ah = round_ % 2 && last ? last : ah; back.wr.ud.remote_qpn = wc.src_qp;
  receive(far, 10, DATAGRAM, 128);
  post(far, back); good(far->send_cq, 1);
  OK(good(datagrams, 11).byte_len == 48 && !memcmp(memory + ECHO + 40, &round_, 8));
  receive(near, 11, ECHO, 128);
  if (last) OK(!ibv_destroy_ah(last));
  last = ah;
}

/* Messages to a shared receive queue, with events of both CQs, and its limit, armed in the round before. */
static struct ibv_qp *left, *right; static struct ibv_srq *srq; static struct ibv_cq *sends, *receipts; static struct ibv_comp_channel *channel;
static int epoll; static unsigned unacknowledged[2];
static void events(void) {
  for (int seen = 0; seen != 3;) {
    struct epoll_event e; OK(epoll_wait(epoll, &e, 1, PATIENCE) == 1);
    for (;;) {
      struct ibv_cq *cq; void *mine;
      if (ibv_get_cq_event(channel, &cq, &mine)) { OK(errno == EAGAIN); break; }
      OK((cq == sends || cq == receipts) && mine == cq->cq_context);
      unacknowledged[cq == receipts]++; seen |= 1 << (cq == receipts);
    }
  }
}
static void shared(void) {
  static uint64_t next = SHARED; /* receive that is posted next */
  uint64_t oldest = next - SHARED;
  struct ibv_sge bulk = {(uintptr_t)anew, BULK, again->lkey};
  struct ibv_send_wr write = {.wr_id = 2, .sg_list = &bulk, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE_WITH_IMM, .imm_data = htonl(round_), .send_flags = IBV_SEND_SIGNALED, .wr.rdma = {(uintptr_t)memory + RECEIVE, mr->rkey}};
  struct ibv_send_wr empty = {.wr_id = 3, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE};
  struct ibv_send_wr message = {.wr_id = 4, .sg_list = &bulk, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED | IBV_SEND_SOLICITED};
  memset(anew, (int)round_, BULK);
  post(left, write); post(left, empty); post(left, message);
  events();
  for (uint64_t id = 2; id <= 4; id++) good(sends, id);
  for (int i = 0; i < 3; i++) {
    struct ibv_wc wc = good(receipts, oldest + i);
    if (i == 0) OK(wc.opcode == IBV_WC_RECV_RDMA_WITH_IMM && ntohl(wc.imm_data) == (uint32_t)round_ && wc.byte_len == BULK && !memcmp(memory + RECEIVE, anew, BULK));
    else OK(wc.opcode == IBV_WC_RECV && wc.byte_len == (i == 1 ? 0 : BULK) && !(i == 2 && memcmp(memory + SRQ + wc.wr_id % SHARED * BULK, anew, BULK)));
  }
  struct pollfd p = {ctx->async_fd, POLLIN, 0}; struct ibv_async_event e;
  OK(poll(&p, 1, PATIENCE) == 1 && !ibv_get_async_event(ctx, &e));
  OK(e.event_type == IBV_EVENT_SRQ_LIMIT_REACHED && e.element.srq == srq);
  ibv_ack_async_event(&e);
  for (int i = 0; i < 3; i++) share(srq, next++);
  /* For the next round. */
  struct ibv_srq_attr limit = {.srq_limit = SHARED - 1};
  OK(!ibv_modify_srq(srq, &limit, IBV_SRQ_LIMIT));
  OK(!ibv_req_notify_cq(sends, 0) && !ibv_req_notify_cq(receipts, round_ % 2));
  struct ibv_cq *both[] = {sends, receipts};
  for (int i = 0; i < 2; i++) { if (unacknowledged[i] > 1) ibv_ack_cq_events(both[i], unacknowledged[i] - 1); unacknowledged[i] = 1; }
}

/* A queue pair in error: half of what it flushed is polled in the round after. */
static struct ibv_qp *broken; static struct ibv_cq *flushes;
static void flush(void) {
  if (broken) { for (uint64_t id = 2; id < 4; id++) OK(await(flushes, id).status == IBV_WC_WR_FLUSH_ERR); OK(!ibv_destroy_qp(broken)); }
  broken = make(IBV_QPT_RC, flushes, flushes, NULL);
  for (uint64_t id = 0; id < 4; id++) receive(broken, id, ECHO, 8);
  struct ibv_qp_attr a = {.qp_state = IBV_QPS_ERR};
  OK(!ibv_modify_qp(broken, &a, IBV_QP_STATE));
  for (uint64_t id = 0; id < 2; id++) OK(await(flushes, id).status == IBV_WC_WR_FLUSH_ERR);
}

/* A CQ that is resized with completions in it, which stay there till the next round. */
static struct ibv_qp *loop; static struct ibv_cq *resized;
static void resize(void) {
  if (round_) for (uint64_t id = 5; id < 8; id++) good(resized, id);
  struct ibv_sge some = piece(SEND + 64, 64);
  for (uint64_t id = 5; id < 8; id++) {
    post(loop, (struct ibv_send_wr){.wr_id = id, .sg_list = &some, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED, .wr.rdma = {(uintptr_t)memory + SEND + 256, mr->rkey}});
    if (id == 6) OK(!ibv_resize_cq(resized, DEPTH + (int)(round_ % 8)));
  }
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  int n; struct ibv_device **list = ibv_get_device_list(&n); OK(list && n);
  OK(ctx = ibv_open_device(list[0])); OK(pd = ibv_alloc_pd(ctx)); OK(!ibv_query_gid(ctx, 1, 2, &gid));
  OK(mr = ibv_reg_mr(pd, memory, sizeof memory, ALL)); OK(again = ibv_reg_mr(pd, anew, sizeof anew, ALL));
  datagrams = queue(NULL);
  near = make(IBV_QPT_UD, queue(NULL), datagrams, NULL); far = make(IBV_QPT_UD, queue(NULL), datagrams, NULL);
  join(near, 0); join(far, 0);
  receive(far, 10, DATAGRAM, 128); receive(near, 11, ECHO, 128);
  struct ibv_ah_attr attr = home(); OK(first = ibv_create_ah(pd, &attr));
  OK(channel = ibv_create_comp_channel(ctx)); OK((epoll = epoll_create1(0)) >= 0);
  OK(!fcntl(channel->fd, F_SETFL, O_NONBLOCK));
  OK(!epoll_ctl(epoll, EPOLL_CTL_ADD, channel->fd, &(struct epoll_event){.events = EPOLLIN}));
  sends = queue(channel); receipts = queue(channel);
  OK(!ibv_req_notify_cq(sends, 0) && !ibv_req_notify_cq(receipts, 0));
  struct ibv_srq_init_attr init = {.attr = {SHARED, 1, 0}}; OK(srq = ibv_create_srq(pd, &init));
  for (uint64_t id = 0; id < SHARED; id++) share(srq, id);
  struct ibv_srq_attr limit = {.srq_limit = SHARED - 1}; OK(!ibv_modify_srq(srq, &limit, IBV_SRQ_LIMIT));
  left = make(IBV_QPT_RC, sends, sends, NULL); right = make(IBV_QPT_RC, receipts, receipts, srq);
  join(left, right->qp_num); join(right, left->qp_num);
  flushes = queue(NULL); resized = queue(NULL);
  loop = make(IBV_QPT_RC, resized, resized, NULL); join(loop, loop->qp_num);
  const char *stop = getenv("SW_STOP");
  for (; !stop || access(stop, F_OK); round_++) {
    echo(); shared(); flush(); resize();
    OK(!ibv_dereg_mr(again)); OK(again = ibv_reg_mr(pd, anew, sizeof anew, ALL));
    puts("beat");
    usleep(10000);
  }
  puts("PASS");
  return 0;
}
