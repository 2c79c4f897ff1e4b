/* closed.c: threads that sleep inside of libibverbs while all else goes on. Two contexts of one device; on each a thread in
 * ibv_get_cq_event(3) and one in ibv_get_async_event(3), which main wakes by messages to a shared receive queue; 2,000 regions, of
 * which some are written to and some made anew each round; children by fork(2) after ibv_fork_init(3), which find their own memory;
 * a CQ that is resized under its sleeper; a sleeper that is interrupted (EINTR) or cancelled. Main itself sleeps between ibv_wr_start and
 * ibv_wr_complete, and between ibv_start_poll and ibv_end_poll.
 * Prints "beat" after each round, and once $SW_STOP is there "PASS". */
#include <errno.h>
#include <infiniband/verbs.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define DIE(...) do { printf("FAIL: round %lu: ", (unsigned long)round_); printf(__VA_ARGS__); printf("\n"); fflush(stdout); _exit(1); } while (0)
#define OK(x) do { if (!(x)) DIE("%s, line %d, errno %m", #x, __LINE__); } while (0)
enum { REGIONS = 2000, PAGE = 4096, SHARED = 8, BURST = 3, PATIENCE = 60, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

static uint64_t round_;

struct side {
  struct ibv_context *ctx; struct ibv_pd *pd; struct ibv_mr *mr;
  struct ibv_comp_channel *channel; struct ibv_cq *receipts, *sends; struct ibv_srq *srq; struct ibv_qp *from, *to;
  uint64_t *memory; /* SHARED receives, then what is sent */
  sem_t received, limit;
};
static struct side sides[2];
static char *pages; static struct ibv_mr *regions[REGIONS];

static void share(struct side *s, uint64_t slot) {
  struct ibv_sge to = {(uintptr_t)&s->memory[slot], 8, s->mr->lkey};
  struct ibv_recv_wr wr = {.wr_id = slot, .sg_list = &to, .num_sge = 1}, *bad; OK(!ibv_post_srq_recv(s->srq, &wr, &bad));
}

static void begin(struct ibv_qp *qp) {
  struct ibv_qp_attr a = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
}
static struct ibv_qp *make(struct side *s, struct ibv_cq *receive, struct ibv_srq *srq) {
  struct ibv_qp_init_attr init = {.send_cq = s->sends, .recv_cq = receive, .srq = srq, .cap = {16, 1, 1, 1, 0}, .qp_type = IBV_QPT_RC};
  struct ibv_qp *qp = ibv_create_qp(s->pd, &init); OK(qp); begin(qp);
  return qp;
}
static void join(struct side *s, struct ibv_qp *qp, struct ibv_qp *peer) {
  union ibv_gid gid; OK(!ibv_query_gid(s->ctx, 1, 2, &gid));
  struct ibv_qp_attr a = {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = peer->qp_num, .max_dest_rd_atomic = 1, .min_rnr_timer = 12, .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = gid, .sgid_index = 2, .hop_limit = 1}}};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
  a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7, .max_rd_atomic = 1};
  OK(!ibv_modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC));
}

/* Sleeps on completions; each message says its number. */
static void *completions(void *side) {
  struct side *s = side; uint64_t awaited = 0;
  for (;;) {
    struct ibv_cq *cq; void *mine; OK(!ibv_get_cq_event(s->channel, &cq, &mine)); OK(cq == s->receipts && mine == s);
    ibv_ack_cq_events(cq, 1); OK(!ibv_req_notify_cq(cq, 0));
    struct ibv_wc wc; int n;
    while ((n = ibv_poll_cq(cq, 1, &wc)) == 1) {
      if (wc.status || s->memory[wc.wr_id] != awaited) DIE("message %lu, awaited %lu: %s", (unsigned long)s->memory[wc.wr_id], (unsigned long)awaited, ibv_wc_status_str(wc.status));
      awaited++; share(s, wc.wr_id); sem_post(&s->received);
    }
    OK(n == 0);
  }
}
static void *limits(void *side) {
  struct side *s = side;
  for (;;) {
    struct ibv_async_event e; OK(!ibv_get_async_event(s->ctx, &e));
    OK(e.event_type == IBV_EVENT_SRQ_LIMIT_REACHED && e.element.srq == s->srq);
    ibv_ack_async_event(&e); sem_post(&s->limit);
  }
}

static void await(sem_t *what, const char *name) {
  struct timespec until; OK(!clock_gettime(CLOCK_REALTIME, &until)); until.tv_sec += PATIENCE;
  while (sem_timedwait(what, &until)) { if (errno == ETIMEDOUT) DIE("no %s: a sleeper sleeps on", name); OK(errno == EINTR); }
}

static void post(struct side *s, struct ibv_send_wr wr) {
  struct ibv_send_wr *bad; struct ibv_wc wc; int n; OK(!ibv_post_send(s->from, &wr, &bad));
  while (!(n = ibv_poll_cq(s->sends, 1, &wc))) continue;
  if (n != 1 || wc.status || wc.wr_id != wr.wr_id) DIE("request %lu: %s", (unsigned long)wr.wr_id, ibv_wc_status_str(wc.status));
}

static void messages(struct side *s) {
  uint64_t *message = &s->memory[SHARED];
  struct ibv_srq_attr limit = {.srq_limit = SHARED}; OK(!ibv_modify_srq(s->srq, &limit, IBV_SRQ_LIMIT));
  for (int i = 0; i < BURST; i++) {
    *message = round_ * BURST + i;
    struct ibv_sge from = {(uintptr_t)message, 8, s->mr->lkey};
    post(s, (struct ibv_send_wr){.wr_id = *message, .sg_list = &from, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED});
  }
  for (int i = 0; i < BURST; i++) await(&s->received, "completion");
  await(&s->limit, "asynchronous event");
  OK(!ibv_resize_cq(s->receipts, 32 + (int)(round_ % 16)));
}

/* Writes from one region into another; then one is made anew. */
static void region(void) {
  static unsigned seed = 1; struct side *s = &sides[0];
  for (int i = 0; i < 8; i++) {
    int from = rand_r(&seed) % REGIONS, to = rand_r(&seed) % REGIONS, anew = rand_r(&seed) % REGIONS;
    if (from == to) continue;
    char *source = pages + (size_t)from * PAGE, *target = pages + (size_t)to * PAGE;
    memset(source, (int)round_ + i, PAGE); memset(target, 0, PAGE);
    struct ibv_sge piece = {(uintptr_t)source, PAGE, regions[from]->lkey};
    post(s, (struct ibv_send_wr){.wr_id = i, .sg_list = &piece, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED, .wr.rdma = {(uintptr_t)target, regions[to]->rkey}});
    OK(!memcmp(source, target, PAGE));
    OK(!ibv_dereg_mr(regions[anew])); OK(regions[anew] = ibv_reg_mr(s->pd, pages + (size_t)anew * PAGE, PAGE, ALL));
  }
}

static void child(void) {
  static volatile uint64_t own; own = round_;
  pid_t pid = fork(); OK(pid >= 0);
  if (!pid) { own++; _exit(own == round_ + 1 ? 7 : 1); }
  int status; while (waitpid(pid, &status, 0) < 0) OK(errno == EINTR);
  OK(WIFEXITED(status) && WEXITSTATUS(status) == 7 && own == round_);
}

/* Nothing ever comes on this channel: who sleeps there is woken by a signal, or cancelled. */
static struct ibv_comp_channel *silent; static volatile int interrupted;
static void wake(int signal) { (void)signal; }
static void *sleeper(void *none) {
  struct ibv_cq *cq; void *mine; OK(ibv_get_cq_event(silent, &cq, &mine) == -1 && errno == EINTR);
  interrupted = 1; return none;
}
static void disturb(void) {
  pthread_t thread; void *how; interrupted = 0; OK(!pthread_create(&thread, NULL, sleeper, NULL));
  if (round_ % 2) OK(!pthread_cancel(thread));
  else while (!interrupted) { OK(!pthread_kill(thread, SIGUSR1)); usleep(1000); }
  OK(!pthread_join(thread, &how) && how == (round_ % 2 ? PTHREAD_CANCELED : NULL));
}

/* Takes its time over one write. */
static struct ibv_cq_ex *polled; static struct ibv_qp *loop;
static void linger(void) {
  struct ibv_qp_ex *x = ibv_qp_to_qp_ex(loop); struct ibv_poll_cq_attr all = {0}; int empty;
  memset(pages, (int)round_, PAGE); memset(pages + PAGE, 0, PAGE);
  ibv_wr_start(x);
  for (int i = 0; i < 2; i++) {
    x->wr_id = round_ + i; x->wr_flags = IBV_SEND_SIGNALED; ibv_wr_rdma_write(x, regions[1]->rkey, (uintptr_t)pages + PAGE + i * PAGE / 2);
    if (!i) usleep(10000);
    ibv_wr_set_sge(x, regions[0]->lkey, (uintptr_t)pages, PAGE / 2);
  }
  OK(!ibv_wr_complete(x));
  while ((empty = ibv_start_poll(polled, &all))) OK(empty == ENOENT);
  for (int i = 0;;) {
    if (!i) usleep(10000);
    if (polled->wr_id != round_ + i || polled->status || ibv_wc_read_qp_num(polled) != loop->qp_num) DIE("write %lu, awaited %lu, of QP %u: %s", (unsigned long)polled->wr_id, (unsigned long)round_ + i, ibv_wc_read_qp_num(polled), ibv_wc_status_str(polled->status));
    if (++i == 2) break;
    while ((empty = ibv_next_poll(polled))) OK(empty == ENOENT);
  }
  ibv_end_poll(polled);
  OK(!memcmp(pages, pages + PAGE, PAGE));
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  OK(!ibv_fork_init());
  struct sigaction quiet = {.sa_handler = wake}; OK(!sigaction(SIGUSR1, &quiet, NULL)); /* no SA_RESTART */
  int n; struct ibv_device **list = ibv_get_device_list(&n); OK(list && n);
  for (int i = 0; i < 2; i++) {
    struct side *s = &sides[i]; pthread_t thread;
    OK(s->ctx = ibv_open_device(list[0])); OK(s->pd = ibv_alloc_pd(s->ctx)); OK(s->channel = ibv_create_comp_channel(s->ctx));
    OK(!posix_memalign((void **)&s->memory, PAGE, PAGE)); OK(s->mr = ibv_reg_mr(s->pd, s->memory, PAGE, ALL));
    OK(s->receipts = ibv_create_cq(s->ctx, 32, s, s->channel, 0)); OK(s->sends = ibv_create_cq(s->ctx, 32, NULL, NULL, 0));
    struct ibv_srq_init_attr init = {.attr = {SHARED, 1, 0}}; OK(s->srq = ibv_create_srq(s->pd, &init));
    for (uint64_t slot = 0; slot < SHARED; slot++) share(s, slot);
    s->from = make(s, s->sends, NULL); s->to = make(s, s->receipts, s->srq); join(s, s->from, s->to); join(s, s->to, s->from);
    OK(!sem_init(&s->received, 0, 0) && !sem_init(&s->limit, 0, 0)); OK(!ibv_req_notify_cq(s->receipts, 0));
    OK(!pthread_create(&thread, NULL, completions, s) && !pthread_create(&thread, NULL, limits, s));
  }
  OK(silent = ibv_create_comp_channel(sides[0].ctx));
  OK(!posix_memalign((void **)&pages, PAGE, (size_t)REGIONS * PAGE));
  for (int i = 0; i < REGIONS; i++) OK(regions[i] = ibv_reg_mr(sides[0].pd, pages + (size_t)i * PAGE, PAGE, ALL));
  struct ibv_cq_init_attr_ex extended = {.cqe = 16, .wc_flags = IBV_WC_STANDARD_FLAGS}; OK(polled = ibv_create_cq_ex(sides[0].ctx, &extended));
  struct ibv_qp_init_attr_ex init = {.send_cq = ibv_cq_ex_to_cq(polled), .recv_cq = ibv_cq_ex_to_cq(polled), .cap = {8, 1, 1, 1, 0}, .qp_type = IBV_QPT_RC, .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, .pd = sides[0].pd, .send_ops_flags = IBV_QP_EX_WITH_RDMA_WRITE};
  OK(loop = ibv_create_qp_ex(sides[0].ctx, &init)); begin(loop); join(&sides[0], loop, loop);
  const char *stop = getenv("SW_STOP");
  for (; !stop || access(stop, F_OK); round_++) {
    messages(&sides[0]); messages(&sides[1]); region(); child(); disturb();
    puts("beat");
    linger();
  }
  puts("PASS");
  return 0;
}
