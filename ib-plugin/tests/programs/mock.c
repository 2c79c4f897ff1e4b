/* mock.c: a verbs provider in one file, without device, kernel or clock: SLACKWATER_LIBIBVERBS names it to the plugin, LD_PRELOAD to a
 * program that shall run on it natively. Queue pairs of one process talk to each other by memcpy(3). Everything is
 * deterministic; faults are switched on by the environment:
 *   MOCK_DELAY=n    a completion is seen by the n-th poll of its CQ after the one that would have seen it
 *   MOCK_FAIL=n     the n-th send request of the process ends in an error; its QP breaks and what is posted there is flushed
 *   MOCK_BREAK=n    after the n-th send request its QP breaks by itself, with an asynchronous event
 *   MOCK_SHUFFLE=1  receives of a shared queue are used newest first
 *   MOCK_EARLY=1    the event of a CQ comes before the completion can be polled (by one poll)
 *   MOCK_NULL=1     nothing is done: each request, and each receive, is complete at once (for counting cycles)
 *   MOCK_LID=n      first LID; each port opened after the first open gets others, as after a move to another place
 *   MOCK_PORTS=n, MOCK_DEVICES=n
 * A message that finds no receive waits (RNR); with MOCK_RNR=n it breaks the QP once n polls have found it waiting. */
#define _GNU_SOURCE
#include <errno.h>
#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { QPS = 1 << 14, MRS = 1 << 14, EVENTS = 256 };
struct cq { struct ibv_cq v; struct ibv_wc *ring; unsigned long *due; unsigned head, tail, mask; unsigned long polls; int armed; unsigned n; };
struct recv { uint64_t id; int n; struct ibv_sge g[4]; };
struct srq { struct ibv_srq v; struct recv *r; unsigned n, max; };
struct held { struct ibv_send_wr w; struct ibv_sge g[4]; unsigned char *inline_data; struct held *next; unsigned waited; };
struct qp { struct ibv_qp v; struct ibv_qp_attr a; struct ibv_qp_cap cap; int sig_all; struct recv *r; unsigned head, tail, mask; struct held *first, **last; unsigned held; };
struct mr { struct ibv_mr v; uint64_t iova; unsigned access; };
struct channel { struct ibv_comp_channel v; struct cq *q[EVENTS]; unsigned head, tail; };
struct device { struct ibv_device v; int number; };
struct context { struct ibv_context v; struct device *d; struct ibv_async_event e[EVENTS]; unsigned head, tail; int opened; };
static pthread_spinlock_t lock;
static struct qp *qps[QPS]; static struct mr *mrs[MRS];
static unsigned next_qp = 16, top = 16, next_mr = 1, opens; static unsigned long sends;
static long k_delay, k_fail, k_break, k_shuffle, k_early, k_lid, k_ports = 1, k_devices = 1, k_rnr, k_null;
static struct device devices[4];
static long knob(const char *name, long otherwise) { const char *s = getenv(name); return s ? atol(s) : otherwise; }
static void take(void) { pthread_spin_lock(&lock); }
static void give(void) { pthread_spin_unlock(&lock); }

static void raise_cq(struct cq *c, int solicited) {
  if (!c->armed || (c->armed == 2 && !solicited) || !c->v.channel) return;
  struct channel *h = (struct channel *)c->v.channel; c->armed = 0;
  h->q[h->tail++ % EVENTS] = c; eventfd_write(h->v.fd, 1);
}
static void complete(struct cq *c, const struct ibv_wc *w, int solicited) {
  unsigned at = c->tail & c->mask; c->ring[at] = *w;
  c->due[at] = c->polls + k_delay + (k_early ? 1 : 0); c->tail++;
  raise_cq(c, solicited || w->status);
}
static struct mr *find(uint32_t key) { struct mr *m = mrs[key >> 8 & (MRS - 1)]; return m && m->v.lkey == key ? m : NULL; }
static unsigned char *at(uint32_t key, uint64_t addr, uint64_t len, unsigned access) {
  struct mr *m = find(key);
  if (!m || addr < m->iova || addr + len > m->iova + m->v.length || (m->access & access) != access) return NULL;
  return (unsigned char *)m->v.addr + (addr - m->iova);
}
static void async(struct qp *q, int type) {
  struct context *c = (struct context *)q->v.context; struct ibv_async_event e = {.element.qp = &q->v, .event_type = type};
  c->e[c->tail++ % EVENTS] = e; eventfd_write(c->v.async_fd, 1);
}
static void flush(struct qp *q) {
  q->v.state = q->a.qp_state = IBV_QPS_ERR; struct ibv_wc w = {.status = IBV_WC_WR_FLUSH_ERR, .qp_num = q->v.qp_num, .opcode = 0};
  for (struct held *h; (h = q->first);) { q->first = h->next; w.wr_id = h->w.wr_id; complete((struct cq *)q->v.send_cq, &w, 1); free(h->inline_data); free(h); }
  q->last = &q->first; q->held = 0;
  for (; q->r && q->head != q->tail; q->head++) { w.wr_id = q->r[q->head & q->mask].id; complete((struct cq *)q->v.recv_cq, &w, 1); }
}
static int broken(struct qp *q, struct ibv_send_wr *w, int status) {
  struct ibv_wc c = {.wr_id = w->wr_id, .status = status, .qp_num = q->v.qp_num}; complete((struct cq *)q->v.send_cq, &c, 1); flush(q); return 1;
}
static uint16_t lid_of(struct ibv_context *c, int port) { return k_lid ? k_lid + port + 16 * ((struct context *)c)->opened : 0; }
/* Does a request; 0: it must wait for a receive. */
static int perform(struct qp *q, struct ibv_send_wr *w) {
  static const int done_as[] = {IBV_WC_RDMA_WRITE, IBV_WC_RDMA_WRITE, IBV_WC_SEND, IBV_WC_SEND, IBV_WC_RDMA_READ, IBV_WC_COMP_SWAP, IBV_WC_FETCH_ADD, IBV_WC_LOCAL_INV, 0, IBV_WC_SEND};
  int op = w->opcode, ud = q->v.qp_type == IBV_QPT_UD, two = op == IBV_WR_SEND || op == IBV_WR_SEND_WITH_IMM || op == IBV_WR_SEND_WITH_INV || op == IBV_WR_RDMA_WRITE_WITH_IMM, lost = 0;
  unsigned number = ud ? w->wr.ud.remote_qpn : q->a.dest_qp_num; struct qp *p = number < QPS ? qps[number] : NULL; uint64_t len = 0;
  if (!p || p->v.state < IBV_QPS_RTR || p->v.state == IBV_QPS_ERR) p = NULL;
  if (!p && q->v.qp_type == IBV_QPT_RC && op != IBV_WR_LOCAL_INV) return broken(q, w, IBV_WC_RETRY_EXC_ERR);
  for (int i = 0; i < w->num_sge; i++) { len += w->sg_list[i].length; if (!(w->send_flags & IBV_SEND_INLINE) && w->sg_list[i].length && !at(w->sg_list[i].lkey, w->sg_list[i].addr, w->sg_list[i].length, 0)) return broken(q, w, IBV_WC_LOC_PROT_ERR); }
#define FROM(i) (w->send_flags & IBV_SEND_INLINE ? (unsigned char *)(uintptr_t)w->sg_list[i].addr : at(w->sg_list[i].lkey, w->sg_list[i].addr, w->sg_list[i].length, 0))
  struct recv *r = NULL, kept; struct srq *s = p ? (struct srq *)p->v.srq : NULL;
  if (two && p) {
    if (s) { if (s->n) { unsigned which = k_shuffle ? s->n - 1 : 0; kept = s->r[which]; r = &kept; memmove(s->r + which, s->r + which + 1, (s->n - which - 1) * sizeof *r); s->n--; } }
    else if (p->head != p->tail) { kept = p->r[p->head & p->mask]; p->head++; r = &kept; }
    if (!r) { if (q->v.qp_type == IBV_QPT_RC) return 0; lost = 1; }
  } else if (two) lost = 1;
  if (!lost && (op == IBV_WR_RDMA_WRITE || op == IBV_WR_RDMA_WRITE_WITH_IMM) && p) {
    unsigned char *to = len ? at(w->wr.rdma.rkey, w->wr.rdma.remote_addr, len, IBV_ACCESS_REMOTE_WRITE) : (unsigned char *)1;
    if (!to) { flush(p); return broken(q, w, IBV_WC_REM_ACCESS_ERR); }
    for (int i = 0; i < w->num_sge; i++) { memcpy(to, FROM(i), w->sg_list[i].length); to += w->sg_list[i].length; }
  } else if (op == IBV_WR_RDMA_READ) {
    unsigned char *from = len ? at(w->wr.rdma.rkey, w->wr.rdma.remote_addr, len, IBV_ACCESS_REMOTE_READ) : (unsigned char *)1;
    if (!from) { flush(p); return broken(q, w, IBV_WC_REM_ACCESS_ERR); }
    for (int i = 0; i < w->num_sge; i++) { memcpy(FROM(i), from, w->sg_list[i].length); from += w->sg_list[i].length; }
  } else if (op == IBV_WR_ATOMIC_CMP_AND_SWP || op == IBV_WR_ATOMIC_FETCH_AND_ADD) {
    unsigned long *to = (unsigned long *)at(w->wr.atomic.rkey, w->wr.atomic.remote_addr, 8, IBV_ACCESS_REMOTE_ATOMIC), old;
    if (!to) { flush(p); return broken(q, w, IBV_WC_REM_ACCESS_ERR); }
    old = *to; if (op == IBV_WR_ATOMIC_FETCH_AND_ADD) *to += w->wr.atomic.compare_add; else if (old == w->wr.atomic.compare_add) *to = w->wr.atomic.swap;
    memcpy(FROM(0), &old, 8);
  }
  if (r) {
    struct ibv_wc c = {.wr_id = r->id, .opcode = op == IBV_WR_RDMA_WRITE_WITH_IMM ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV, .byte_len = len + (ud ? 40 : 0), .qp_num = p->v.qp_num, .src_qp = q->v.qp_num,
      .wc_flags = (op == IBV_WR_SEND || op == IBV_WR_RDMA_WRITE ? 0 : op == IBV_WR_SEND_WITH_INV ? IBV_WC_WITH_INV : IBV_WC_WITH_IMM) | (ud && !k_lid ? IBV_WC_GRH : 0), .imm_data = w->imm_data, .slid = lid_of(q->v.context, 1)};
    if (op != IBV_WR_RDMA_WRITE_WITH_IMM) {
      uint64_t skip = ud ? 40 : 0, room = 0; for (int i = 0; i < r->n; i++) room += r->g[i].length;
      if (len + skip > room) { c.status = IBV_WC_LOC_LEN_ERR; complete((struct cq *)p->v.recv_cq, &c, 1); flush(p); return broken(q, w, IBV_WC_REM_INV_REQ_ERR); }
      if (ud && !k_lid && r->g[0].length >= 40) {
        unsigned char *head = at(r->g[0].lkey, r->g[0].addr, 40, IBV_ACCESS_LOCAL_WRITE); if (!head) c.status = IBV_WC_LOC_PROT_ERR;
        else { memset(head, 0, 40); head[0] = 0x60; ibv_query_gid(q->v.context, 1, 2, (union ibv_gid *)(head + 8)); ibv_query_gid(p->v.context, 1, 2, (union ibv_gid *)(head + 24)); }
      }
      int k = 0; uint64_t off = skip;
      for (int i = 0; i < w->num_sge; i++) for (uint64_t done = 0; done < w->sg_list[i].length;) {
        while (off >= r->g[k].length) { off -= r->g[k].length; k++; }
        uint64_t n = w->sg_list[i].length - done; if (n > r->g[k].length - off) n = r->g[k].length - off;
        unsigned char *to = at(r->g[k].lkey, r->g[k].addr + off, n, IBV_ACCESS_LOCAL_WRITE); if (!to) { c.status = IBV_WC_LOC_PROT_ERR; break; }
        memcpy(to, FROM(i) + done, n); done += n; off += n;
      }
    }
    complete((struct cq *)p->v.recv_cq, &c, w->send_flags & IBV_SEND_SOLICITED);
  }
  if (q->sig_all || w->send_flags & IBV_SEND_SIGNALED) { struct ibv_wc c = {.wr_id = w->wr_id, .opcode = done_as[op], .qp_num = q->v.qp_num, .byte_len = len}; complete((struct cq *)q->v.send_cq, &c, 0); }
  return 1;
}
static void progress(struct qp *q) {
  for (struct held *h; (h = q->first);) {
    if (!perform(q, &h->w)) return;
    if (h != q->first) return; /* the QP broke */
    q->first = h->next; q->held--; if (!q->first) q->last = &q->first; free(h->inline_data); free(h);
  }
}
static void progress_all(void) { for (unsigned i = 16; i < top; i++) if (qps[i] && qps[i]->first) progress(qps[i]); }
static void keep(struct qp *q, struct ibv_send_wr *w) {
  struct held *h = calloc(1, sizeof *h); h->w = *w; memcpy(h->g, w->sg_list, w->num_sge * sizeof *h->g); h->w.sg_list = h->g;
  if (w->send_flags & IBV_SEND_INLINE) { size_t n = 0; for (int i = 0; i < w->num_sge; i++) n += w->sg_list[i].length; unsigned char *b = h->inline_data = malloc(n + 1); for (int i = 0; i < w->num_sge; i++) { memcpy(b, (void *)(uintptr_t)w->sg_list[i].addr, w->sg_list[i].length); h->g[i].addr = (uintptr_t)b; b += w->sg_list[i].length; } }
  *q->last = h; q->last = &h->next; q->held++;
}
static int null_send(struct ibv_qp *v, struct ibv_send_wr *w, struct ibv_send_wr **bad) {
  struct cq *c = (struct cq *)v->send_cq; (void)bad;
  for (; w; w = w->next) { struct ibv_wc *o = c->ring + (c->tail++ & c->mask); o->wr_id = w->wr_id; o->status = 0; o->opcode = IBV_WC_RDMA_WRITE; o->qp_num = v->qp_num; }
  return 0;
}
static int null_recv(struct ibv_qp *v, struct ibv_recv_wr *w, struct ibv_recv_wr **bad) {
  struct cq *c = (struct cq *)v->recv_cq; (void)bad;
  for (; w; w = w->next) { struct ibv_wc *o = c->ring + (c->tail++ & c->mask); o->wr_id = w->wr_id; o->status = 0; o->opcode = IBV_WC_RECV; o->qp_num = v->qp_num; o->byte_len = w->sg_list->length; }
  return 0;
}
static int null_poll(struct ibv_cq *v, int n, struct ibv_wc *w) {
  struct cq *c = (struct cq *)v; int got = 0;
  while (got < n && c->head != c->tail) w[got++] = c->ring[c->head++ & c->mask];
  return got;
}
static int post_send(struct ibv_qp *v, struct ibv_send_wr *w, struct ibv_send_wr **bad) {
  struct qp *q = (struct qp *)v; take();
  for (; w; w = w->next) {
    if (v->state < IBV_QPS_RTS || q->held >= q->cap.max_send_wr || w->num_sge > 4) { *bad = w; give(); return v->state < IBV_QPS_RTS ? EINVAL : ENOMEM; }
    sends++;
    if (v->state == IBV_QPS_ERR) { struct ibv_wc c = {.wr_id = w->wr_id, .status = IBV_WC_WR_FLUSH_ERR, .qp_num = v->qp_num}; complete((struct cq *)v->send_cq, &c, 1); continue; }
    if ((long)sends == k_fail) { broken(q, w, IBV_WC_REM_OP_ERR); continue; }
    if (q->first || !perform(q, w)) keep(q, w);
    if ((long)sends == k_break) { flush(q); async(q, IBV_EVENT_QP_FATAL); }
  }
  give(); return 0;
}
static int post_recv(struct ibv_qp *v, struct ibv_recv_wr *w, struct ibv_recv_wr **bad) {
  struct qp *q = (struct qp *)v; take();
  for (; w; w = w->next) {
    if (v->state < IBV_QPS_INIT || q->tail - q->head >= q->cap.max_recv_wr || w->num_sge > 4) { *bad = w; give(); return ENOMEM; }
    if (v->state == IBV_QPS_ERR) { struct ibv_wc c = {.wr_id = w->wr_id, .status = IBV_WC_WR_FLUSH_ERR, .qp_num = v->qp_num}; complete((struct cq *)v->recv_cq, &c, 1); continue; }
    struct recv *r = q->r + (q->tail++ & q->mask); r->id = w->wr_id; r->n = w->num_sge; for (int i = 0; i < w->num_sge; i++) r->g[i] = w->sg_list[i];
  }
  give(); return 0;
}
static int post_srq_recv(struct ibv_srq *v, struct ibv_recv_wr *w, struct ibv_recv_wr **bad) {
  struct srq *s = (struct srq *)v; take();
  for (; w; w = w->next) {
    if (s->n >= s->max || w->num_sge > 4) { *bad = w; give(); return ENOMEM; }
    struct recv *r = s->r + s->n++; r->id = w->wr_id; r->n = w->num_sge; for (int i = 0; i < w->num_sge; i++) r->g[i] = w->sg_list[i];
  }
  give(); return 0;
}
static int poll_cq(struct ibv_cq *v, int n, struct ibv_wc *w) {
  struct cq *c = (struct cq *)v; int got = 0; take(); c->polls++;
  while (got < n && c->head != c->tail && c->due[c->head & c->mask] < c->polls) w[got++] = c->ring[c->head++ & c->mask];
  if (!got) {
    progress_all();
    if (k_rnr) for (unsigned i = 16; i < top; i++) if (qps[i] && qps[i]->first && ++qps[i]->first->waited == k_rnr) broken(qps[i], &qps[i]->first->w, IBV_WC_RNR_RETRY_EXC_ERR);
  }
  give(); return got;
}
static int req_notify_cq(struct ibv_cq *v, int solicited) { take(); ((struct cq *)v)->armed = solicited ? 2 : 1; give(); return 0; }

struct ibv_device **ibv_get_device_list(int *n) { static struct ibv_device *list[5]; for (int i = 0; i < k_devices; i++) list[i] = &devices[i].v; list[k_devices] = NULL; if (n) *n = k_devices; return list; }
void ibv_free_device_list(struct ibv_device **l) { (void)l; }
__be64 ibv_get_device_guid(struct ibv_device *d) { return htobe64(0x1000 + ((struct device *)d)->number); }
int ibv_get_device_index(struct ibv_device *d) { return ((struct device *)d)->number; }
struct ibv_context *ibv_open_device(struct ibv_device *d) {
  struct context *c = calloc(1, sizeof *c); c->d = (struct device *)d; c->v.device = d; c->v.num_comp_vectors = 1; c->opened = opens++; c->v.cmd_fd = eventfd(0, EFD_CLOEXEC); c->v.async_fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
  struct ibv_context_ops *o = &c->v.ops; o->poll_cq = poll_cq; o->req_notify_cq = req_notify_cq; o->post_send = post_send; o->post_recv = post_recv; o->post_srq_recv = post_srq_recv;
  if (k_null) { o->poll_cq = null_poll; o->post_send = null_send; o->post_recv = null_recv; }
  return &c->v;
}
int ibv_close_device(struct ibv_context *c) { close(c->cmd_fd); close(c->async_fd); free(c); return 0; }
int ibv_query_device(struct ibv_context *c, struct ibv_device_attr *a) { memset(a, 0, sizeof *a); a->node_guid = a->sys_image_guid = ibv_get_device_guid(c->device); a->phys_port_cnt = k_ports; a->max_qp = QPS; a->max_cqe = 1 << 16; a->max_sge = 4; a->max_qp_wr = 1 << 14; return 0; }
#undef ibv_query_port
int ibv_query_port(struct ibv_context *c, uint8_t port, struct _compat_ibv_port_attr *p) { struct ibv_port_attr *a = (void *)p; if (port < 1 || port > k_ports) return EINVAL; memset(a, 0, 48); a->state = IBV_PORT_ACTIVE; a->lid = lid_of(c, port); a->gid_tbl_len = 4; a->pkey_tbl_len = 1; a->max_mtu = a->active_mtu = IBV_MTU_4096; return 0; }
int ibv_query_gid(struct ibv_context *c, uint8_t port, int i, union ibv_gid *g) { if (i < 0 || i > 3) { errno = EINVAL; return -1; } memset(g, 0, 16); if (i == 2) { g->raw[0] = 0xfd; g->raw[13] = ((struct context *)c)->opened; g->raw[14] = port; g->raw[15] = 1 + ((struct context *)c)->d->number; } return 0; }
int ibv_query_pkey(struct ibv_context *c, uint8_t p, int i, __be16 *k) { (void)c, (void)p, (void)i; *k = 0xffff; return 0; }
struct ibv_pd *ibv_alloc_pd(struct ibv_context *c) { struct ibv_pd *p = calloc(1, sizeof *p); p->context = c; return p; }
int ibv_dealloc_pd(struct ibv_pd *p) { free(p); return 0; }
#undef ibv_reg_mr
static struct ibv_mr *reg(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova, unsigned access) { take(); struct mr *m = calloc(1, sizeof *m); while (mrs[next_mr & (MRS - 1)]) next_mr++; m->v = (struct ibv_mr){.context = pd->context, .pd = pd, .addr = addr, .length = len}; m->v.lkey = m->v.rkey = next_mr << 8 | (next_mr >> 14 & 0xff); m->iova = iova; m->access = access; mrs[next_mr++ & (MRS - 1)] = m; give(); return &m->v; }
struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access) { return reg(pd, addr, len, (uintptr_t)addr, access); }
struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova, unsigned access) { return reg(pd, addr, len, iova, access); }
int ibv_dereg_mr(struct ibv_mr *m) { take(); mrs[m->lkey >> 8 & (MRS - 1)] = NULL; give(); free(m); return 0; }
struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *c) { struct channel *h = calloc(1, sizeof *h); h->v.context = c; h->v.fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE); return &h->v; }
int ibv_destroy_comp_channel(struct ibv_comp_channel *h) { close(h->fd); free(h); return 0; }
struct ibv_cq *ibv_create_cq(struct ibv_context *c, int cqe, void *user, struct ibv_comp_channel *h, int vector) { (void)vector; struct cq *q = calloc(1, sizeof *q); unsigned n = 1; while (n < (unsigned)cqe + 64) n *= 2; q->mask = n - 1; q->ring = calloc(n, sizeof *q->ring); q->due = calloc(n, sizeof *q->due); q->v.context = c; q->v.channel = h; q->v.cq_context = user; q->v.cqe = cqe; return &q->v; }
int ibv_resize_cq(struct ibv_cq *c, int cqe) { (void)c, (void)cqe; return ENOSYS; }
int ibv_destroy_cq(struct ibv_cq *v) { struct cq *c = (struct cq *)v; free(c->ring); free(c->due); free(c); return 0; }
int ibv_get_cq_event(struct ibv_comp_channel *v, struct ibv_cq **cq, void **user) { struct channel *h = (struct channel *)v; uint64_t one; if (read(v->fd, &one, 8) != 8) return -1; take(); *cq = &h->q[h->head++ % EVENTS]->v; give(); *user = (*cq)->cq_context; return 0; }
void ibv_ack_cq_events(struct ibv_cq *c, unsigned n) { (void)c, (void)n; }
struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *a) { struct srq *s = calloc(1, sizeof *s); s->v.context = pd->context; s->v.pd = pd; s->v.srq_context = a->srq_context; s->max = a->attr.max_wr; s->r = calloc(s->max + 1, sizeof *s->r); return &s->v; }
int ibv_modify_srq(struct ibv_srq *s, struct ibv_srq_attr *a, int m) { (void)s, (void)a; return m & 1 ? ENOSYS : 0; }
int ibv_query_srq(struct ibv_srq *s, struct ibv_srq_attr *a) { memset(a, 0, sizeof *a); a->max_wr = ((struct srq *)s)->max; a->max_sge = 4; return 0; }
int ibv_destroy_srq(struct ibv_srq *s) { free(((struct srq *)s)->r); free(s); return 0; }
struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *a) {
  take(); struct qp *q = calloc(1, sizeof *q); unsigned tried = 0; while (next_qp >= QPS || qps[next_qp]) { next_qp = next_qp >= QPS ? 16 : next_qp + 1; if (tried++ > QPS) break; } if (tried > QPS) { give(); free(q); errno = ENOMEM; return NULL; }
  q->v.context = pd->context; q->v.pd = pd; q->v.qp_context = a->qp_context; q->v.send_cq = a->send_cq; q->v.recv_cq = a->recv_cq; q->v.srq = a->srq; q->v.qp_type = a->qp_type; q->v.qp_num = next_qp; q->cap = a->cap; q->sig_all = a->sq_sig_all; q->last = &q->first;
  if (!a->srq) { unsigned n = 1; while (n < a->cap.max_recv_wr + 1) n *= 2; q->mask = n - 1; q->r = calloc(n, sizeof *q->r); }
  qps[next_qp++] = q; if (next_qp > top) top = next_qp; give(); return &q->v;
}
int ibv_modify_qp(struct ibv_qp *v, struct ibv_qp_attr *a, int m) {
  struct qp *q = (struct qp *)v; take();
  if (m & IBV_QP_DEST_QPN) q->a.dest_qp_num = a->dest_qp_num;
  if (m & IBV_QP_AV) q->a.ah_attr = a->ah_attr;
  if (m & IBV_QP_ACCESS_FLAGS) q->a.qp_access_flags = a->qp_access_flags;
  if (m & IBV_QP_STATE) { if (a->qp_state == IBV_QPS_ERR) flush(q); v->state = q->a.qp_state = a->qp_state; if (a->qp_state == IBV_QPS_RESET) { q->head = q->tail; for (struct held *h; (h = q->first);) { q->first = h->next; free(h); } q->last = &q->first; q->held = 0; } }
  give(); return 0;
}
int ibv_query_qp(struct ibv_qp *v, struct ibv_qp_attr *a, int m, struct ibv_qp_init_attr *i) { (void)m; struct qp *q = (struct qp *)v; *a = q->a; a->cap = q->cap; memset(i, 0, sizeof *i); i->cap = q->cap; i->qp_type = v->qp_type; return 0; }
int ibv_destroy_qp(struct ibv_qp *v) { take(); qps[v->qp_num] = NULL; give(); free(((struct qp *)v)->r); free(v); return 0; }
struct ibv_ah *ibv_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *a) { (void)a; struct ibv_ah *h = calloc(1, sizeof *h); h->context = pd->context; h->pd = pd; return h; }
int ibv_destroy_ah(struct ibv_ah *h) { free(h); return 0; }
int ibv_get_async_event(struct ibv_context *v, struct ibv_async_event *e) { struct context *c = (struct context *)v; uint64_t one; if (read(v->async_fd, &one, 8) != 8) return -1; take(); *e = c->e[c->head++ % EVENTS]; give(); return 0; }
void ibv_ack_async_event(struct ibv_async_event *e) { (void)e; }
const char *ibv_wc_status_str(enum ibv_wc_status s) { static char t[32]; snprintf(t, sizeof t, "status %d", s); return t; }
int ibv_fork_init(void) { return 0; }

static void __attribute__((constructor)) setup(void) {
  pthread_spin_init(&lock, 0);
  k_delay = knob("MOCK_DELAY", 0); k_fail = knob("MOCK_FAIL", 0); k_break = knob("MOCK_BREAK", 0); k_shuffle = knob("MOCK_SHUFFLE", 0); k_early = knob("MOCK_EARLY", 0); k_lid = knob("MOCK_LID", 0); k_ports = knob("MOCK_PORTS", 1); k_devices = knob("MOCK_DEVICES", 1); k_rnr = knob("MOCK_RNR", 0); k_null = knob("MOCK_NULL", 0);
  for (int i = 0; i < k_devices && i < 4; i++) { devices[i].number = i; devices[i].v.node_type = IBV_NODE_CA; devices[i].v.transport_type = IBV_TRANSPORT_IB; snprintf(devices[i].v.name, sizeof devices[i].v.name, "mock%d", i); }
}
