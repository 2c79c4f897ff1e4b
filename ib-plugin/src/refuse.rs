//! What is out of scope for now: each call fails with EOPNOTSUPP where the interface allows it, and says so once.
//!
//! # Safety
//! No argument is touched.
use crate::driver::set_errno;
use core::ffi::{c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU32, Ordering};
use rdma_sys::*;

/// Says once per process and call that it is refused.
pub(crate) fn refused(what: &str) {
    static SAID: [AtomicU32; 64] = [const { AtomicU32::new(0) }; 64];
    let mut h = 0x811c_9dc5u32;
    for b in what.bytes() {
        h = (h ^ u32::from(b)).wrapping_mul(0x0100_0193);
    }
    let h = h.max(1);
    for slot in &SAID {
        match slot.compare_exchange(0, h, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => break,
            Err(seen) if seen == h => return,
            Err(_) => {}
        }
    }
    crate::say(&alloc::format!(
        "slackwater-ib: {what} is not supported under slackwater: it cannot be checkpointed; it fails with EOPNOTSUPP"
    ));
}

macro_rules! refuse {
    ($($name:ident($($t:ty),*) -> $kind:ident $ret:ty;)*) => { $(
        pub(crate) unsafe extern "C" fn $name($(_: $t),*) -> $ret {
            refused(stringify!($name));
            set_errno(libc::EOPNOTSUPP);
            refuse!(@$kind)
        }
    )* };
    (@ptr) => { null_mut() };
    (@int) => { libc::EOPNOTSUPP };
}

refuse! {
    modify_qp_rate_limit(*mut ibv_qp, *mut ibv_qp_rate_limit_attr) -> int c_int;
    post_srq_ops(*mut ibv_srq, *mut ibv_ops_wr, *mut *mut ibv_ops_wr) -> int c_int;
    advise_mr(*mut ibv_pd, ib_uverbs_advise_mr_advice::Type, u32, *mut ibv_sge, u32) -> int c_int;
    alloc_null_mr(*mut ibv_pd) -> ptr *mut ibv_mr;
    create_counters(*mut ibv_context, *mut ibv_counters_init_attr) -> ptr *mut ibv_counters;
    alloc_dm(*mut ibv_context, *mut ibv_alloc_dm_attr) -> ptr *mut ibv_dm;
    create_flow_action_esp(*mut ibv_context, *mut ibv_flow_action_esp_attr) -> ptr *mut ibv_flow_action;
    alloc_parent_domain(*mut ibv_context, *mut ibv_parent_domain_init_attr) -> ptr *mut ibv_pd;
    alloc_td(*mut ibv_context, *mut ibv_td_init_attr) -> ptr *mut ibv_td;
    create_wq(*mut ibv_context, *mut ibv_wq_init_attr) -> ptr *mut ibv_wq;
    create_rwq_ind_table(*mut ibv_context, *mut ibv_rwq_ind_table_init_attr) -> ptr *mut ibv_rwq_ind_table;
    create_flow(*mut ibv_qp, *mut ibv_flow_attr) -> ptr *mut ibv_flow;
    open_qp(*mut ibv_context, *mut ibv_qp_open_attr) -> ptr *mut ibv_qp;
    open_xrcd(*mut ibv_context, *mut ibv_xrcd_init_attr) -> ptr *mut ibv_xrcd;
    alloc_mw(*mut ibv_pd, ibv_mw_type::Type) -> ptr *mut ibv_mw;
    bind_mw(*mut ibv_qp, *mut ibv_mw, *mut ibv_mw_bind) -> int c_int;
    dealloc_mw(*mut ibv_mw) -> int c_int;
    attach_mcast(*mut ibv_qp, *const ibv_gid, u16) -> int c_int;
    detach_mcast(*mut ibv_qp, *const ibv_gid, u16) -> int c_int;
    import_device(c_int) -> ptr *mut ibv_context;
    import_pd(*mut ibv_context, u32) -> ptr *mut ibv_pd;
    import_mr(*mut ibv_pd, u32) -> ptr *mut ibv_mr;
    import_dm(*mut ibv_context, u32) -> ptr *mut ibv_dm;
    unimport(*mut c_void) -> int c_int;
    reg_dmabuf_mr(*mut ibv_pd, u64, usize, u64, c_int, c_int) -> ptr *mut ibv_mr;
    ece(*mut ibv_qp, *mut c_void) -> int c_int;
}
