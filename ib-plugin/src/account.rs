//! The data path: what each completion tells.
//!
//! Rules: under the CQ's lock; lock order as in `post`. A queue pair of which nothing is translated, and where nothing of ours is
//! under way, costs a look at its record and a count; all else is for `account_slow`.
//!
//! # Safety
//! A completion is the driver's, of the CQ given; objects are ours.
use crate::cq::Cq;
use crate::keep::{Keep, MARKER};
use crate::peers;
use crate::qp::{Qp, Tail};
use crate::srq::Srq;
use core::ffi::c_uint;
use core::ptr::null_mut;
use rdma_sys::*;

/// Takes note of a completion of the driver's, under the CQ's lock, and gives it the program's names. False: it is our own
/// and the program must not see it.
#[inline(always)]
pub(crate) unsafe fn account(cq: &mut Cq, w: &mut ibv_wc) -> bool {
    let qp = if cq.table.is_null() { null_mut() } else { *cq.table.add((w.qp_num & 0xff_ffff) as usize) };
    if qp.is_null() {
        return true;
    }
    let qp = &mut *qp;
    if w.status == 0 && !qp.attention {
        if w.opcode & 128 != 0 {
            qp.received += 1;
            if qp.ibv.qp_base.srq.is_null() {
                qp.rq.head += 1;
            } else {
                shared(qp.ibv.qp_base.srq.cast(), w);
            }
        } else {
            qp.completed += 1;
        }
        return true;
    }
    account_slow(cq, qp, w)
}

/// A successful receive from a shared queue, none of ours being posted there.
#[inline(never)]
unsafe fn shared(srq: *mut Srq, w: &mut ibv_wc) {
    let mut pool = (*srq).pool.lock();
    if let Some(slot) = pool.slot_of(w.wr_id) {
        w.wr_id = pool.slots.id(slot);
        pool.give(slot);
    }
}

/// Where a datagram comes from, by the program's names: UCX drops what is not for the GID that it knows. `list`: where it went; what is
/// in its first 40 bytes the completion says.
unsafe fn datagram(qp: &Qp, w: &mut ibv_wc, list: &[ibv_sge]) {
    const GRH: c_uint = 1;
    let first = list.first().filter(|s| s.length >= 40 && w.wc_flags & GRH != 0);
    // SAFETY: the program's receive buffer, which the device has just written and nobody has been told of.
    peers::source(w, first.map(|first| &mut *(first.addr as *mut [u8; 40])), (*(*qp.context()).device).now.is_some());
}

/// Errors, translated QPs, and QPs with work of our own.
#[cold]
unsafe fn account_slow(cq: &mut Cq, qp: &mut Qp, w: &mut ibv_wc) -> bool {
    let srq = qp.ibv.qp_base.srq.cast::<Srq>();
    let ok = w.status == 0;
    if qp.markers != 0 && w.wr_id == MARKER {
        qp.markers -= 1;
        if let Some(at) = qp.marker_buffer.take() {
            drop(Keep::take(at, w));
        }
        cq.own = cq.own.saturating_sub(1);
        if ok {
            // Work requests of one send queue complete in order: nothing before the marker is left.
            qp.sq.tail = Tail::default();
        }
        return false;
    }
    let receive = if ok { w.opcode & 128 != 0 } else { is_receive(cq, qp, w) };
    w.qp_num = qp.ibv.qp_base.qp_num;
    if !receive {
        qp.completed += 1;
        return true;
    }
    qp.received += u64::from(ok);
    let translate = qp.translated && ok && qp.kind == ibv_qp_type::IBV_QPT_UD;
    if srq.is_null() {
        let slot = qp.rq.slot(qp.rq.head);
        qp.rq.head += 1;
        if !qp.rq.slots.is_own(slot) {
            if translate {
                datagram(qp, w, &qp.rq.slots.list(slot));
            }
            return true;
        }
        let buffer = qp.rq.slots.id(slot);
        qp.rq.slots.no_longer_own(slot);
        cq.own = cq.own.saturating_sub(1);
        if let Some(message) = Keep::take(buffer, w)
            && ok
        {
            qp.soaked.push_back(message);
            qp.slow_receives(true);
        }
        return false;
    }
    let mut pool = (*srq).pool.lock();
    let Some(slot) = pool.slot_of(w.wr_id) else { return true };
    let (own, id) = (pool.slots.is_own(slot), pool.slots.id(slot));
    if translate && !own {
        datagram(qp, w, &pool.slots.list(slot));
    }
    pool.give(slot);
    drop(pool);
    if !own {
        w.wr_id = id;
        return true;
    }
    cq.own = cq.own.saturating_sub(1);
    if let Some(message) = Keep::take(id, w)
        && ok
    {
        (*srq).soaked.push_back((qp, message));
    }
    false
}

/// An error completion says nothing of its opcode (IBTA 11.4.2.1): tell by the CQ, or by whose wr_id it bears.
unsafe fn is_receive(cq: &Cq, qp: &Qp, w: &ibv_wc) -> bool {
    let me = core::ptr::from_ref(cq).cast::<ibv_cq>().cast_mut();
    let base = &qp.ibv.qp_base;
    if base.send_cq != base.recv_cq {
        return base.recv_cq == me;
    }
    if !base.srq.is_null() {
        return (*base.srq.cast::<Srq>()).pool.lock().slot_of(w.wr_id).is_some();
    }
    if w.opcode & 128 != 0 {
        return true;
    }
    let slot = qp.rq.slot(qp.rq.head);
    qp.rq.posted() != 0 && (qp.rq.slots.is_own(slot) || qp.rq.slots.id(slot) == w.wr_id)
}
