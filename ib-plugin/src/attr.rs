//! Attributes of queue pairs: what the program sets is merged, for a restart sets it again.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says, queue pairs are ours.
use crate::qp::{Qp, state};
use crate::{driver, peers};
use core::ffi::c_int;
use rdma_sys::*;
use slackwater_plugin::Wrapper;

/// `enum ibv_qp_attr_mask`.
pub(crate) mod mask {
    pub(crate) const STATE: i32 = 1;
    pub(crate) const CUR_STATE: i32 = 1 << 1;
    pub(crate) const EN_SQD_ASYNC_NOTIFY: i32 = 1 << 2;
    pub(crate) const ACCESS_FLAGS: i32 = 1 << 3;
    pub(crate) const PKEY_INDEX: i32 = 1 << 4;
    pub(crate) const PORT: i32 = 1 << 5;
    pub(crate) const QKEY: i32 = 1 << 6;
    pub(crate) const AV: i32 = 1 << 7;
    pub(crate) const PATH_MTU: i32 = 1 << 8;
    pub(crate) const TIMEOUT: i32 = 1 << 9;
    pub(crate) const RETRY_CNT: i32 = 1 << 10;
    pub(crate) const RNR_RETRY: i32 = 1 << 11;
    pub(crate) const RQ_PSN: i32 = 1 << 12;
    pub(crate) const MAX_QP_RD_ATOMIC: i32 = 1 << 13;
    pub(crate) const ALT_PATH: i32 = 1 << 14;
    pub(crate) const MIN_RNR_TIMER: i32 = 1 << 15;
    pub(crate) const SQ_PSN: i32 = 1 << 16;
    pub(crate) const MAX_DEST_RD_ATOMIC: i32 = 1 << 17;
    pub(crate) const PATH_MIG_STATE: i32 = 1 << 18;
    pub(crate) const CAP: i32 = 1 << 19;
    pub(crate) const DEST_QPN: i32 = 1 << 20;
}

/// Copies the fields that `given` names.
fn merge(to: &mut ibv_qp_attr, from: &ibv_qp_attr, given: c_int) {
    macro_rules! take { ($($m:ident: $($f:ident)*;)*) => { $(if given & mask::$m != 0 { $(to.$f = from.$f;)* })* }; }
    take! {
        STATE: qp_state; CUR_STATE: cur_qp_state; EN_SQD_ASYNC_NOTIFY: en_sqd_async_notify; ACCESS_FLAGS: qp_access_flags;
        PKEY_INDEX: pkey_index; PORT: port_num; QKEY: qkey; AV: ah_attr; PATH_MTU: path_mtu; TIMEOUT: timeout;
        RETRY_CNT: retry_cnt; RNR_RETRY: rnr_retry; RQ_PSN: rq_psn; MAX_QP_RD_ATOMIC: max_rd_atomic;
        ALT_PATH: alt_ah_attr alt_pkey_index alt_port_num alt_timeout; MIN_RNR_TIMER: min_rnr_timer; SQ_PSN: sq_psn;
        MAX_DEST_RD_ATOMIC: max_dest_rd_atomic; PATH_MIG_STATE: path_mig_state; DEST_QPN: dest_qp_num;
    }
    if given & mask::CAP != 0 {
        // SAFETY: plain data.
        to.cap = unsafe { core::ptr::read(&from.cap) };
    }
}

/// `ibv_modify_qp(3)`.
pub(crate) unsafe extern "C" fn modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, given: c_int) -> c_int {
    let _w = Wrapper::enter();
    let q = &mut *qp.cast::<Qp>();
    let Some(f) = driver::loaded().and_then(|d| d.modify_qp) else { return libc::EOPNOTSUPP };
    let mut real: ibv_qp_attr = core::ptr::read(attr);
    let ctx = q.context();
    if (*ctx).translated() {
        if given & mask::AV != 0 {
            peers::outward(ctx, &mut real.ah_attr);
        }
        if given & mask::ALT_PATH != 0 {
            peers::outward(ctx, &mut real.alt_ah_attr);
        }
        if given & mask::DEST_QPN != 0 {
            let av = if given & mask::AV != 0 { &(*attr).ah_attr } else { &q.attr.ah_attr };
            let peer = peers::find(av, (*attr).dest_qp_num);
            real.dest_qp_num = peer.number;
            q.keys = peer.keys;
        }
    }
    let ret = f(q.real, &mut real, given);
    if ret != 0 {
        driver::pass_errno();
        return ret;
    }
    merge(&mut q.attr, &*attr, given);
    q.attr_mask |= given;
    if given & mask::STATE != 0 {
        q.ibv.qp_base.state = (*attr).qp_state;
        if (*attr).qp_state == state::IBV_QPS_RESET {
            q.reset_counters();
            q.attr_mask = 0;
        }
    }
    0
}

/// `ibv_query_qp(3)`.
pub(crate) unsafe extern "C" fn query_qp(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    wanted: c_int,
    init: *mut ibv_qp_init_attr,
) -> c_int {
    let _w = Wrapper::enter();
    let q = &mut *qp.cast::<Qp>();
    let Some(f) = driver::loaded().and_then(|d| d.query_qp) else { return libc::EOPNOTSUPP };
    let ret = f(q.real, attr, wanted, init);
    if ret != 0 {
        driver::pass_errno();
        return ret;
    }
    let a = &mut *attr;
    if q.translated {
        if q.attr_mask & mask::AV != 0 {
            a.ah_attr = q.attr.ah_attr;
        }
        if q.attr_mask & mask::DEST_QPN != 0 {
            a.dest_qp_num = q.attr.dest_qp_num;
        }
    }
    a.cap = core::ptr::read(&q.cap);
    q.ibv.qp_base.state = a.qp_state;
    let base = &q.ibv.qp_base;
    let i = &mut *init;
    (i.qp_context, i.send_cq, i.recv_cq, i.srq) = (base.qp_context, base.send_cq, base.recv_cq, base.srq);
    i.cap = core::ptr::read(&q.cap);
    0
}

/// `ibv_query_qp_data_in_order(3)`.
pub(crate) unsafe extern "C" fn query_qp_data_in_order(qp: *mut ibv_qp, op: ibv_wr_opcode::Type, flags: u32) -> c_int {
    let _w = Wrapper::enter();
    driver::loaded().and_then(|d| d.query_qp_data_in_order).map_or(0, |f| f((*qp.cast::<Qp>()).real, op, flags))
}
