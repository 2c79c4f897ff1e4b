//! The data path: posts. What their completions tell: `account`.
//!
//! Rules: `post_send` copies nothing before a restart but for datagrams (whose address handle is a shadow); it counts
//! after the driver has taken the work, up to the first refused request, for counts are read only while the program stands
//! still. Receives are remembered, for they are what a restart must post again. Lock order: queue, then CQ; SRQ alone.
//!
//! # Safety
//! FFI entries: arguments are what `<infiniband/verbs.h>` says, objects are ours.
use crate::cq::Cq;
use crate::keep::Soaked;
use crate::qp::{NONE_SHORT, Qp, Tail};
use crate::wr::{WR_ATOMIC_WRITE, post_atomic_write};
use crate::{ah::Ah, context::Context, keys::KeyMap, mr, peers, sync::Inside};
use alloc::vec::Vec;
use core::ffi::{c_int, c_uint};
use core::mem::MaybeUninit;
use core::ptr::null_mut;
use rdma_sys::*;

/// Opcodes that take a receive at the other side: RDMA_WRITE_WITH_IMM, SEND, SEND_WITH_IMM, SEND_WITH_INV.
const TWO_SIDED: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 9;
/// Opcodes whose answer changes our memory: RDMA_READ, CMP_SWP, FETCH_ADD.
const ANSWERED: u32 = 1 << 4 | 1 << 5 | 1 << 6;
pub(crate) const SIGNALED: c_uint = 2;
pub(crate) const INLINE: c_uint = 8;

/// `ibv_post_send(3)`, through `context->ops`.
pub(crate) unsafe extern "C" fn post_send(qp: *mut ibv_qp, wr: *mut ibv_send_wr, bad: *mut *mut ibv_send_wr) -> c_int {
    let q = &mut *qp.cast::<Qp>();
    if !q.sq_lock.enter_wrapped() {
        return send_slowly(q, wr, bad);
    }
    if q.copies {
        return send_held(q, wr, bad);
    }
    let ret = (q.post_send)(q.real, wr, bad);
    if ret != 0 {
        return refused_held(q, wr, bad, ret);
    }
    if wr.is_null() || !(*wr).next.is_null() {
        return count_held(q, wr);
    }
    count(q, wr);
    q.sq_lock.leave_wrapped();
    0
}

#[inline(never)]
unsafe fn send_held(qp: &mut Qp, wr: *mut ibv_send_wr, bad: *mut *mut ibv_send_wr) -> c_int {
    let ret = send_copied(qp, wr, bad);
    qp.sq_lock.leave_wrapped();
    ret
}

/// By a thread that the lock does not lean to.
#[cold]
#[inline(never)]
unsafe fn send_slowly(qp: &mut Qp, wr: *mut ibv_send_wr, bad: *mut *mut ibv_send_wr) -> c_int {
    let _w = Inside::enter();
    qp.sq_lock.acquire();
    let ret = send_locked(qp, wr, bad);
    qp.sq_lock.release();
    ret
}

/// With the send queue's lock held.
pub(crate) unsafe fn send_locked(qp: &mut Qp, wr: *mut ibv_send_wr, bad: *mut *mut ibv_send_wr) -> c_int {
    if qp.copies {
        return send_copied(qp, wr, bad);
    }
    let ret = (qp.post_send)(qp.real, wr, bad);
    count_list(qp, wr, if ret == 0 { null_mut() } else { *bad });
    ret
}

#[inline(always)]
unsafe fn count(qp: &mut Qp, wr: *const ibv_send_wr) {
    let op = (*wr).opcode;
    if TWO_SIDED >> op & 1 != 0 {
        let n = if op == 1 { 0 } else { (*wr).num_sge as usize };
        qp.sq.sent((0..n).map(|i| (*(*wr).sg_list.add(i)).length).fold(0, u32::wrapping_add));
    }
    let tail = &mut qp.sq.tail;
    if qp.sig_all | ((*wr).send_flags & SIGNALED != 0) {
        qp.sq.signaled += 1;
        if tail.count != 0 {
            *tail = Tail::default();
        }
        return;
    }
    tail.count += 1;
    tail.open = TWO_SIDED >> op & 1 == 0;
    tail.answered |= ANSWERED >> op & 1 != 0;
    if op == 5 || op == 6 {
        qp.sq.last_atomic = ((*wr).wr.atomic.remote_addr, (*wr).wr.atomic.rkey);
    }
}

/// Up to `end`, which the driver has refused.
unsafe fn count_list(qp: &mut Qp, mut wr: *mut ibv_send_wr, end: *mut ibv_send_wr) {
    while wr != end && !wr.is_null() {
        count(qp, wr);
        wr = (*wr).next;
    }
}

/// A list, which the path of a single request does not save registers for.
#[inline(never)]
unsafe fn count_held(qp: &mut Qp, wr: *mut ibv_send_wr) -> c_int {
    count_list(qp, wr, null_mut());
    qp.sq_lock.leave_wrapped();
    0
}

#[cold]
unsafe fn refused_held(qp: &mut Qp, wr: *mut ibv_send_wr, bad: *mut *mut ibv_send_wr, ret: c_int) -> c_int {
    count_list(qp, wr, *bad);
    qp.sq_lock.leave_wrapped();
    ret
}

/// How long a scatter list is translated without allocation.
const FEW: usize = 16;

/// Calls `f` with the program's scatter list by the driver's keys: the list itself as long as there has been no restart.
#[inline(always)]
pub(crate) unsafe fn translated<R>(
    keys: *const KeyMap,
    list: *mut ibv_sge,
    n: c_int,
    f: impl FnOnce(*mut ibv_sge) -> R,
) -> R {
    let mut few = MaybeUninit::<[ibv_sge; FEW]>::uninit();
    let mut to = list;
    if let Some(keys) = keys.as_ref() {
        if n as usize > FEW {
            return many(keys, list, n as usize, f);
        }
        to = few.as_mut_ptr().cast();
        translate(keys, list, n as usize, to);
    }
    f(to)
}

#[inline(always)]
unsafe fn translate(keys: &KeyMap, from: *const ibv_sge, n: usize, to: *mut ibv_sge) {
    for i in 0..n {
        let sge = &*from.add(i);
        to.add(i).write(ibv_sge { addr: sge.addr, length: sge.length, lkey: keys.get(sge.lkey) });
    }
}

#[cold]
#[inline(never)]
unsafe fn many<R>(keys: &KeyMap, list: *const ibv_sge, n: usize, f: impl FnOnce(*mut ibv_sge) -> R) -> R {
    let mut own = Vec::<ibv_sge>::with_capacity(n);
    translate(keys, list, n, own.as_mut_ptr());
    f(own.as_mut_ptr())
}

/// Datagrams, QPs with atomic writes, and everything after a restart: one request at a time, with the driver's handles and keys.
unsafe fn send_copied(qp: &mut Qp, mut wr: *mut ibv_send_wr, bad: *mut *mut ibv_send_wr) -> c_int {
    while !wr.is_null() {
        let mut own = MaybeUninit::<ibv_send_wr>::uninit();
        core::ptr::copy_nonoverlapping(wr, own.as_mut_ptr(), 1);
        let own = own.assume_init_mut();
        own.next = null_mut();
        match (qp.kind, own.opcode) {
            (ibv_qp_type::IBV_QPT_UD, _) => {
                let ah = own.wr.ud.ah.cast::<Ah>();
                if !ah.is_null() {
                    own.wr.ud.remote_qpn = peers::datagram_qpn(qp, &*ah, own.wr.ud.remote_qpn);
                    own.wr.ud.ah = (*ah).real;
                }
            }
            (_, 0 | 1 | 4 | WR_ATOMIC_WRITE) => own.wr.rdma.rkey = qp.remote_key(own.wr.rdma.rkey),
            (_, 5 | 6) => own.wr.atomic.rkey = qp.remote_key(own.wr.atomic.rkey),
            (_, 9) => {
                let key = own.imm_data_invalidated_rkey_union.invalidated_rkey;
                own.imm_data_invalidated_rkey_union.invalidated_rkey = qp.remote_key(key);
            }
            _ => {}
        }
        let ret = if own.send_flags & INLINE == 0 {
            translated(qp.lkeys, own.sg_list, own.num_sge, |list| {
                own.sg_list = list;
                let mut failed = null_mut();
                (qp.post_send)(qp.real, own, &mut failed)
            })
        } else {
            send_inline(qp, own)
        };
        if ret != 0 {
            *bad = wr;
            return ret;
        }
        count(qp, wr);
        wr = (*wr).next;
    }
    0
}

/// Data that needs no keys.
#[inline(never)]
unsafe fn send_inline(qp: &Qp, own: &mut ibv_send_wr) -> c_int {
    if own.opcode == WR_ATOMIC_WRITE {
        return post_atomic_write(qp, own);
    }
    let mut failed = null_mut();
    (qp.post_send)(qp.real, own, &mut failed)
}

/// `ibv_post_recv(3)`, through `context->ops`.
pub(crate) unsafe extern "C" fn post_recv(qp: *mut ibv_qp, wr: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    let q = &mut *qp.cast::<Qp>();
    if !q.rq_lock.enter_wrapped() {
        return recv_slowly(q, wr, bad);
    }
    if wr.is_null() || (*wr).num_sge != q.rq_short || !(*wr).next.is_null() {
        return recv_held(q, wr, bad);
    }
    // The ring has room for one more than the driver takes; what it refuses is not counted. (After the call `wr` would have to be kept
    // over it, and what a post costs is mostly its stores.)
    q.rq.slots.put_one(q.rq.slot(q.rq.tail), wr);
    let ret = (q.post_recv)(q.real, wr, bad);
    q.rq.tail += u64::from(ret == 0);
    q.rq_lock.leave_wrapped();
    ret
}

/// What is not short: apart, so that the path of what is does not save registers for it.
#[inline(never)]
unsafe fn recv_held(qp: &mut Qp, wr: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    let ret = recv_locked(qp, wr, bad);
    qp.rq_lock.leave_wrapped();
    ret
}

/// By a thread that the lock does not lean to.
#[cold]
#[inline(never)]
unsafe fn recv_slowly(qp: &mut Qp, wr: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    let _w = Inside::enter();
    qp.rq_lock.acquire();
    let ret = recv_locked(qp, wr, bad);
    qp.rq_lock.release();
    ret
}

/// With the receive queue's lock held.
#[inline(always)]
unsafe fn recv_locked(qp: &mut Qp, mut wr: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    if qp.rq_slow {
        return recv_slow(qp, wr, bad);
    }
    let ret = (qp.post_recv)(qp.real, wr, bad);
    // Up to the one that the driver has refused.
    let end = if ret == 0 { null_mut() } else { *bad };
    while wr != end && !wr.is_null() {
        remember(qp, wr);
        wr = (*wr).next;
    }
    ret
}

unsafe fn remember(qp: &mut Qp, wr: *mut ibv_recv_wr) {
    let slot = qp.rq.slot(qp.rq.tail);
    qp.rq.slots.put(slot, wr);
    if qp.rq.slots.mixed {
        qp.rq_short = NONE_SHORT;
    }
    qp.rq.tail += 1;
}

/// After a restart, or while soaked messages wait for receives.
unsafe fn recv_slow(qp: &mut Qp, mut wr: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    while !wr.is_null() {
        if !qp.soaked.is_empty()
            && let Some(message) = qp.soaked.pop_front()
        {
            let ctx = Context::of(qp.ibv.qp_base.context);
            deliver(ctx, qp, message, wr);
            qp.slow_receives(qp.translated || !qp.soaked.is_empty());
            wr = (*wr).next;
            continue;
        }
        let ret = recv_one(qp, (*wr).wr_id, (*wr).sg_list, (*wr).num_sge);
        if ret != 0 {
            *bad = wr;
            return ret;
        }
        remember(qp, wr);
        wr = (*wr).next;
    }
    0
}

/// Posts one receive to the driver, with its keys.
#[inline(always)]
pub(crate) unsafe fn recv_one(qp: &Qp, id: u64, list: *const ibv_sge, n: c_int) -> c_int {
    translated(qp.lkeys, list.cast_mut(), n, |sg_list| {
        let mut wr = ibv_recv_wr { wr_id: id, next: null_mut(), sg_list, num_sge: n };
        let mut bad = null_mut();
        (qp.post_recv)(qp.real, &mut wr, &mut bad)
    })
}

/// Puts a soaked message into a receive which the program posts now, and its completion into the CQ.
pub(crate) unsafe fn deliver(ctx: *mut Context, qp: &mut Qp, message: Soaked, wr: *const ibv_recv_wr) {
    let mut wc = message.wc;
    wc.wr_id = (*wr).wr_id;
    let mut left: &[u8] = &message.bytes;
    for i in 0..(*wr).num_sge as usize {
        let sge = &*(*wr).sg_list.add(i);
        let n = left.len().min(sge.length as usize);
        core::ptr::copy_nonoverlapping(left.as_ptr(), mr::locate(ctx, sge), n);
        left = &left[n..];
    }
    if !left.is_empty() {
        wc.status = ibv_wc_status::IBV_WC_LOC_LEN_ERR;
    }
    (*qp.ibv.qp_base.recv_cq.cast::<Cq>()).push(wc);
}
