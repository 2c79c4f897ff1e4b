//! Shared receive queues.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says, objects are ours.
use crate::channel::Unacked;
use crate::keep::Soaked;
use crate::qp::Qp;
use crate::ring::{Pool, SRQ_TAG};
use crate::{context::Context, driver, pd::Pd, post, refuse, sync::{Inside, Lock}};
use alloc::{boxed::Box, collections::VecDeque};
use core::ffi::c_int;
use core::mem::zeroed;
use core::ptr::null_mut;
use rdma_sys::*;
use slackwater_plugin::Wrapper;

/// A shadow SRQ.
#[repr(C)]
pub(crate) struct Srq {
    pub(crate) ibv: ibv_srq,
    pub(crate) place: usize,
    pub(crate) real: *mut ibv_srq,
    pub(crate) pool: Lock<Pool>,
    pub(crate) attr: ibv_srq_attr,
    pub(crate) unacked: Unacked,
    /// Messages which came when the program had no receive posted: they go into the next ones that it posts.
    pub(crate) soaked: VecDeque<(*mut Qp, Soaked)>,
}

/// `ibv_create_srq(3)`.
pub(crate) unsafe extern "C" fn create_srq(pd: *mut ibv_pd, init: *mut ibv_srq_init_attr) -> *mut ibv_srq {
    let _w = Wrapper::enter();
    let ctx = Context::of((*pd).context);
    let Some(f) = driver::loaded().and_then(|d| d.create_srq) else { return null_mut() };
    let mut ibv: ibv_srq = zeroed();
    (ibv.context, ibv.pd, ibv.srq_context) = ((*ctx).ibv(), pd, (*init).srq_context);
    let srq = Box::into_raw(Box::new(Srq {
        ibv,
        place: 0,
        real: null_mut(),
        pool: Lock::new(Pool::new(1, 1)),
        attr: zeroed(),
        unacked: Unacked::new(),
        soaked: VecDeque::new(),
    }));
    let mut given: ibv_srq_init_attr = core::ptr::read(init);
    given.srq_context = srq.cast();
    let real = f((*pd.cast::<Pd>()).real, &mut given);
    if real.is_null() {
        driver::pass_errno();
        drop(Box::from_raw(srq));
        return null_mut();
    }
    (*init).attr = core::ptr::read(&given.attr);
    let s = &mut *srq;
    s.real = real;
    s.ibv.handle = (*real).handle;
    s.attr = core::ptr::read(&given.attr);
    s.pool = Lock::new(Pool::new(given.attr.max_wr, given.attr.max_sge));
    (*ctx).objects.lock().srqs.add(srq);
    srq.cast()
}

/// `ibv_create_srq_ex(3)`: basic queues only.
pub(crate) unsafe extern "C" fn create_srq_ex(_: *mut ibv_context, attr: *mut ibv_srq_init_attr_ex) -> *mut ibv_srq {
    // IBV_SRQ_INIT_ATTR_TYPE 1, _PD 2; IBV_SRQT_BASIC 0.
    if (*attr).comp_mask & !3 != 0 || (*attr).comp_mask & 2 == 0 || ((*attr).comp_mask & 1 != 0 && (*attr).srq_type != 0) {
        refuse::refused("ibv_create_srq_ex with XRC or tag matching");
        driver::set_errno(libc::EOPNOTSUPP);
        return null_mut();
    }
    create_srq((*attr).pd, attr.cast())
}

/// `ibv_modify_srq(3)`.
pub(crate) unsafe extern "C" fn modify_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr, mask: c_int) -> c_int {
    let _w = Wrapper::enter();
    let s = &mut *srq.cast::<Srq>();
    let Some(f) = driver::loaded().and_then(|d| d.modify_srq) else { return libc::EOPNOTSUPP };
    let ret = f(s.real, attr, mask);
    if ret != 0 {
        driver::pass_errno();
        return ret;
    }
    // IBV_SRQ_MAX_WR 1, IBV_SRQ_LIMIT 2.
    if mask & 1 != 0 {
        s.attr.max_wr = (*attr).max_wr;
        let sges = s.attr.max_sge;
        s.pool.lock().grow((*attr).max_wr, sges);
    }
    if mask & 2 != 0 {
        s.attr.srq_limit = (*attr).srq_limit;
    }
    0
}

/// `ibv_query_srq(3)`.
pub(crate) unsafe extern "C" fn query_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr) -> c_int {
    let _w = Wrapper::enter();
    let Some(f) = driver::loaded().and_then(|d| d.query_srq) else { return libc::EOPNOTSUPP };
    let ret = f((*srq.cast::<Srq>()).real, attr);
    if ret != 0 {
        driver::pass_errno();
    }
    ret
}

/// `ibv_destroy_srq(3)`.
pub(crate) unsafe extern "C" fn destroy_srq(srq: *mut ibv_srq) -> c_int {
    let srq = srq.cast::<Srq>();
    {
        let _w = Wrapper::enter();
        let Some(f) = driver::loaded().and_then(|d| d.destroy_srq) else { return libc::EOPNOTSUPP };
        let ret = f((*srq).real);
        if ret != 0 {
            driver::pass_errno();
            return ret;
        }
        let ctx = Context::of((*srq).ibv.context);
        (*ctx).objects.lock().srqs.remove(srq);
        (*ctx).events.forget(|e| e.element == srq as usize);
    }
    (*srq).unacked.wait();
    let _w = Wrapper::enter();
    drop(Box::from_raw(srq));
    0
}

/// `ibv_post_srq_recv(3)`, through `context->ops`.
pub(crate) unsafe extern "C" fn post_srq_recv(
    srq: *mut ibv_srq,
    mut wr: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
) -> c_int {
    let _w = Inside::enter();
    let s = &mut *srq.cast::<Srq>();
    let Some(f) = (*(*s.real).context).ops.post_srq_recv else { return libc::EOPNOTSUPP };
    let mut pool = s.pool.lock();
    while !wr.is_null() {
        if (*wr).num_sge as u32 > s.attr.max_sge {
            *bad = wr;
            return libc::EINVAL;
        }
        if let Some((qp, message)) = s.soaked.pop_front() {
            let ctx = Context::of(s.ibv.context);
            drop(pool);
            post::deliver(ctx, &mut *qp, message, wr);
            pool = s.pool.lock();
            wr = (*wr).next;
            continue;
        }
        let Some(slot) = pool.take() else {
            *bad = wr;
            return libc::ENOMEM;
        };
        pool.slots.put(slot, wr);
        let ret = repost(f, s, slot, (*wr).sg_list, (*wr).num_sge);
        if ret != 0 {
            pool.give(slot);
            *bad = wr;
            return ret;
        }
        wr = (*wr).next;
    }
    0
}

type PostFn = unsafe extern "C" fn(*mut ibv_srq, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int;

/// Posts one receive to the driver under the slot's number.
pub(crate) unsafe fn repost(f: PostFn, srq: &Srq, slot: usize, list: *mut ibv_sge, n: c_int) -> c_int {
    post::translated((*(*Context::of(srq.ibv.context)).device).lkeys, list, n, |sg_list| {
        let mut wr = ibv_recv_wr { wr_id: SRQ_TAG | slot as u64, next: null_mut(), sg_list, num_sge: n };
        let mut bad = null_mut();
        f(srq.real, &mut wr, &mut bad)
    })
}
