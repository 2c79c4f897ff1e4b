/* answers.c: asks libibverbs for all sorts of things, wrong ones too, and prints the answers, but for what differs from run to run
 * (numbers, keys, handles, addresses). Natively and under slackwater the text must be the same. */
#include <errno.h>
#include <infiniband/verbs.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#define INT(what, call) do { errno = 0; long r_ = (call); printf("%s: %ld, errno %d\n", what, r_, r_ ? errno : 0); } while (0)
#define PTR(what, call) ({ errno = 0; void *p_ = (call); printf("%s: %s, errno %d\n", what, p_ ? "made" : "none", p_ ? 0 : errno); p_; })
static void hex(const char *what, const void *p, size_t n) { printf("%s:", what); for (size_t i = 0; i < n; i++) printf("%02x", ((unsigned char *)p)[i]); printf("\n"); }
/* ibv_devinfo -v uses it; no header has it. */
extern int ibv_query_gid_type(struct ibv_context *, uint8_t, unsigned, unsigned *);
int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  int n; struct ibv_device **l = ibv_get_device_list(&n); printf("devices %d\n", n); if (!n) return 1;
  struct ibv_device *d = l[0]; printf("%s %d %d %s %s\n", ibv_get_device_name(d), d->node_type, d->transport_type, d->dev_name, d->ibdev_path); printf("guid %lx\n", (long)ibv_get_device_guid(d)); INT("index", ibv_get_device_index(d) > 0);
  struct ibv_context *c = PTR("open", ibv_open_device(d)); ibv_free_device_list(l); printf("vectors %d\n", c->num_comp_vectors);
  struct ibv_device_attr a; memset(&a, 0, sizeof a); INT("query_device", ibv_query_device(c, &a)); hex("attributes", &a, sizeof a);
  struct ibv_device_attr_ex x; memset(&x, 0, sizeof x); INT("query_device_ex", ibv_query_device_ex(c, NULL, &x)); hex("extended", &x, sizeof x);
  for (int p = 0; p < 3; p++) { struct ibv_port_attr t; memset(&t, 0, sizeof t); INT("query_port", ibv_query_port(c, p, &t)); hex("port", &t, sizeof t); }
  for (int i = -1; i < 5; i++) { union ibv_gid g; memset(&g, 0, 16); INT("query_gid", ibv_query_gid(c, 1, i, &g)); hex("gid", &g, 16); struct ibv_gid_entry e; memset(&e, 0, sizeof e); if (i >= 0) { INT("query_gid_ex", ibv_query_gid_ex(c, 1, i, &e, 0)); hex("entry", &e, sizeof e); } }
  { union ibv_gid g; INT("gid of port 9", ibv_query_gid(c, 9, 0, &g)); INT("gid 100000", ibv_query_gid(c, 1, 100000, &g)); struct ibv_gid_entry e[16]; long m = ibv_query_gid_table(c, e, 16, 0); printf("table %ld\n", m); INT("table, flags", ibv_query_gid_table(c, e, 16, 1)); INT("gid_ex, flags", ibv_query_gid_ex(c, 1, 0, e, 1)); INT("table too small", ibv_query_gid_table(c, e, 1, 0)); }
  for (unsigned i = 0; i < 5; i++) { unsigned t = 77; INT("query_gid_type", ibv_query_gid_type(c, 1, i, &t)); printf("gid type %u\n", t); }
  { unsigned t = 77; INT("gid type of port 9", ibv_query_gid_type(c, 9, 0, &t)); INT("gid type 100000", ibv_query_gid_type(c, 1, 100000, &t)); }
  { __be16 k; INT("pkey", ibv_query_pkey(c, 1, 0, &k)); hex("pkey", &k, 2); INT("pkey 77777", ibv_query_pkey(c, 1, 77777, &k)); INT("pkey index", ibv_get_pkey_index(c, 1, htobe16(0xffff))); INT("no such pkey", ibv_get_pkey_index(c, 1, htobe16(0x1234))); }
  struct ibv_values_ex v = {.comp_mask = IBV_VALUES_MASK_RAW_CLOCK}; INT("rt_values", ibv_query_rt_values_ex(c, &v));
  struct ibv_pd *pd = PTR("pd", ibv_alloc_pd(c)); static char m[8192] __attribute__((aligned(4096)));
  struct ibv_mr *mr = PTR("mr", ibv_reg_mr(pd, m, sizeof m, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC)); printf("length %zu, %d\n", mr->length, mr->addr == m);
  PTR("remote without local write", ibv_reg_mr(pd, m, 4096, IBV_ACCESS_REMOTE_WRITE)); PTR("mr of nothing", ibv_reg_mr(pd, (void *)16, 4096, 1)); PTR("mr, bad flags", ibv_reg_mr(pd, m, 4096, 1 << 14));
  { void *ro = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); PTR("write to read-only", ibv_reg_mr(pd, ro, 4096, 1)); struct ibv_mr *r = PTR("read-only", ibv_reg_mr(pd, ro, 4096, 0)); if (r) INT("dereg", ibv_dereg_mr(r)); }
  { struct ibv_mr *i = PTR("mr_iova", ibv_reg_mr_iova(pd, m, 4096, 0x10000, 1)); if (i) INT("dereg", ibv_dereg_mr(i)); struct ibv_mr *z = PTR("mr, zero bytes", ibv_reg_mr(pd, m, 0, 1)); if (z) INT("dereg", ibv_dereg_mr(z)); struct ibv_mr *o = PTR("relaxed", ibv_reg_mr(pd, m, 4096, 1 | IBV_ACCESS_RELAXED_ORDERING)); if (o) INT("dereg", ibv_dereg_mr(o)); }
  INT("dealloc a pd in use", ibv_dealloc_pd(pd));
  struct ibv_comp_channel *ch = PTR("channel", ibv_create_comp_channel(c)); PTR("cq -1", ibv_create_cq(c, -1, NULL, NULL, 0)); PTR("cq 0", ibv_create_cq(c, 0, NULL, NULL, 0)); PTR("cq too large", ibv_create_cq(c, a.max_cqe + 1, NULL, NULL, 0)); PTR("cq, vector", ibv_create_cq(c, 10, NULL, NULL, 1000));
  struct ibv_cq *cq = PTR("cq", ibv_create_cq(c, 100, (void *)7, ch, 0)); printf("cqe %d, context %d, channel %d, refs %d\n", cq->cqe, cq->cq_context == (void *)7, cq->channel == ch, ch->refcnt); INT("resize", ibv_resize_cq(cq, 200)); printf("cqe %d\n", cq->cqe); INT("resize too far", ibv_resize_cq(cq, a.max_cqe + 1)); INT("resize to 0", ibv_resize_cq(cq, 0)); INT("channel in use", ibv_destroy_comp_channel(ch)); INT("moderate", ({ struct ibv_modify_cq_attr t = {.attr_mask = IBV_CQ_ATTR_MODERATE, .moderate = {1, 1}}; ibv_modify_cq(cq, &t); }));
  { struct ibv_cq_init_attr_ex t = {.cqe = 10, .wc_flags = IBV_WC_STANDARD_FLAGS}; struct ibv_cq_ex *e = PTR("cq_ex", ibv_create_cq_ex(c, &t)); struct ibv_poll_cq_attr pa = {0}; printf("start_poll of nothing %d\n", ibv_start_poll(e, &pa)); INT("destroy", ibv_destroy_cq(ibv_cq_ex_to_cq(e))); }
  struct ibv_srq_init_attr sa = {.attr = {100, 2, 0}}; struct ibv_srq *s = PTR("srq", ibv_create_srq(pd, &sa)); struct ibv_srq_attr sq; INT("query_srq", ibv_query_srq(s, &sq)); printf("srq %u %u %u\n", sq.max_wr, sq.max_sge, sq.srq_limit); sq.srq_limit = 5; INT("limit", ibv_modify_srq(s, &sq, IBV_SRQ_LIMIT)); sq.srq_limit = 100000; INT("limit too far", ibv_modify_srq(s, &sq, IBV_SRQ_LIMIT)); INT("query_srq", ibv_query_srq(s, &sq)); printf("srq %u %u %u\n", sq.max_wr, sq.max_sge, sq.srq_limit); sq.max_wr = 200; INT("grow", ibv_modify_srq(s, &sq, IBV_SRQ_MAX_WR)); { unsigned num; INT("srq number", ibv_get_srq_num(s, &num) != 0); } sa.attr.max_wr = 1 << 30; PTR("srq too large", ibv_create_srq(pd, &sa));
  static const int types[] = {IBV_QPT_RC, IBV_QPT_UC, IBV_QPT_UD};
  for (int k = 0; k < 3; k++) {
    struct ibv_qp_init_attr q = {.qp_context = (void *)9, .send_cq = cq, .recv_cq = cq, .cap = {10, 10, 2, 2, 16}, .qp_type = types[k]}; struct ibv_qp *qp = PTR("qp", ibv_create_qp(pd, &q)); if (!qp) continue;
    printf("cap %u %u %u %u %u, context %d, state %d\n", q.cap.max_send_wr >= 10, q.cap.max_recv_wr, q.cap.max_send_sge, q.cap.max_recv_sge, q.cap.max_inline_data, qp->qp_context == (void *)9, qp->state);
    struct ibv_qp_attr t; struct ibv_qp_init_attr i; memset(&t, 0, sizeof t); INT("query_qp", ibv_query_qp(qp, &t, IBV_QP_STATE | IBV_QP_CAP, &i)); printf("state %d, context %d, cqs %d, type %d, sig_all %d, srq %d, caps %u %u\n", t.qp_state, i.qp_context == (void *)9, i.send_cq == cq && i.recv_cq == cq, i.qp_type, i.sq_sig_all, i.srq != NULL, t.cap.max_recv_wr, i.cap.max_recv_sge);
    struct ibv_sge g = {(uintptr_t)m, 64, mr->lkey}; struct ibv_recv_wr r = {.sg_list = &g, .num_sge = 1}, *badr = NULL;
    memset(&t, 0, sizeof t); t.qp_state = IBV_QPS_RTS; INT("RESET to RTS", ibv_modify_qp(qp, &t, IBV_QP_STATE)); t.qp_state = IBV_QPS_INIT; INT("INIT without attributes", ibv_modify_qp(qp, &t, IBV_QP_STATE)); t.port_num = 9; t.qkey = 1; INT("INIT, no such port", ibv_modify_qp(qp, &t, IBV_QP_STATE | IBV_QP_PORT | IBV_QP_PKEY_INDEX | (k == 2 ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS))); t.port_num = 1; INT("INIT", ibv_modify_qp(qp, &t, IBV_QP_STATE | IBV_QP_PORT | IBV_QP_PKEY_INDEX | (k == 2 ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS))); printf("state %d\n", qp->state);
    for (int o = 0; o < 12; o++) { r.wr_id = o; int e = ibv_post_recv(qp, &r, &badr); if (e) { printf("recv %d: %d\n", o, e); break; } } r.num_sge = 9; INT("recv, 9 entries", ibv_post_recv(qp, &r, &badr)); r.num_sge = 1;
    memset(&t, 0, sizeof t); t.qp_state = IBV_QPS_ERR; INT("ERR", ibv_modify_qp(qp, &t, IBV_QP_STATE)); struct ibv_wc wc[16]; int total = 0; for (int o = 0; o < 2000 && total < 10; o++) { int got = ibv_poll_cq(cq, 16, wc); for (int z = 0; z < got; z++) { printf("wc %lu %d %d\n", (long)wc[z].wr_id, wc[z].status, wc[z].qp_num == qp->qp_num); total++; } if (!got) usleep(1000); }
    INT("cq in use", ibv_destroy_cq(cq)); t.qp_state = IBV_QPS_RESET; INT("RESET", ibv_modify_qp(qp, &t, IBV_QP_STATE)); INT("destroy", ibv_destroy_qp(qp)); q.cap.max_send_sge = 1000; PTR("qp, 1000 entries", ibv_create_qp(pd, &q)); q.cap.max_send_sge = 1; q.cap.max_send_wr = 1 << 30; PTR("qp, too many", ibv_create_qp(pd, &q)); q.cap.max_send_wr = ~0u; PTR("qp, the largest number", ibv_create_qp(pd, &q)); q.cap.max_send_wr = a.max_qp_wr; qp = PTR("qp, as many as there may be", ibv_create_qp(pd, &q)); if (qp) { printf("caps %u\n", q.cap.max_send_wr); ibv_destroy_qp(qp); } q.cap.max_send_wr = 1; q.srq = s; q.cap.max_recv_wr = 0; qp = PTR("qp, srq", ibv_create_qp(pd, &q)); if (qp) { INT("recv to a qp with srq", ibv_post_recv(qp, &r, &badr)); INT("srq in use", ibv_destroy_srq(s)); INT("destroy", ibv_destroy_qp(qp)); }
  }
  for (int o = 0; o < 110; o++) { struct ibv_sge g = {(uintptr_t)m, 64, mr->lkey}; struct ibv_recv_wr r = {.sg_list = &g, .num_sge = 1}, *bad; int e = ibv_post_srq_recv(s, &r, &bad); if (e) { printf("srq recv: %s %d\n", o >= 100 ? "after all" : "early", e); break; } }
  struct ibv_ah_attr av = {.port_num = 1, .is_global = 1, .grh = {.sgid_index = 1, .hop_limit = 4}}; ibv_query_gid(c, 1, 1, &av.grh.dgid); struct ibv_ah *ah = PTR("ah", ibv_create_ah(pd, &av)); if (ah) INT("destroy_ah", ibv_destroy_ah(ah)); av.port_num = 9; PTR("ah, port 9", ibv_create_ah(pd, &av)); av.port_num = 1; av.is_global = 0; PTR("ah, not global", ibv_create_ah(pd, &av));
  { struct ibv_async_event e; struct pollfd f = {c->async_fd, POLLIN, 0}; int k = poll(&f, 1, 0); printf("async %d\n", k); if (k > 0 && !ibv_get_async_event(c, &e)) { printf("event %d\n", e.event_type); ibv_ack_async_event(&e); } }
  INT("destroy_srq", ibv_destroy_srq(s)); INT("destroy_cq", ibv_destroy_cq(cq)); INT("destroy_channel", ibv_destroy_comp_channel(ch)); INT("dereg", ibv_dereg_mr(mr)); INT("dealloc", ibv_dealloc_pd(pd)); INT("close", ibv_close_device(c));
  INT("fork_init", ibv_fork_init()); printf("%s %s %s\n", ibv_node_type_str(IBV_NODE_CA), ibv_port_state_str(IBV_PORT_ACTIVE), ibv_event_type_str(IBV_EVENT_QP_FATAL)); return 0;
}
