//! What brings one queue pair nearer to rest: markers behind unsignaled requests, receives of our own ("soaks") for messages that
//! find none. `quiesce.rs` has the rounds, `docs/ib-plugin.md` the proof.
//!
//! Rules: a soak is posted only for a message that is known to come; each queue gets at most [`OWN_LIMIT`] requests of ours at a time.
//!
//! # Safety
//! As `quiesce.rs`: on the checkpoint thread, while the program stands still outside of all wrappers.
use crate::attr::mask;
use crate::cq::Cq;
use crate::exchange::Counts;
use crate::keep::{Keep, MARKER, SOAK};
use crate::qp::{Qp, kind, state};
use crate::srq::Srq;
use crate::{context::Context, driver, post, ring};
use alloc::{collections::{BTreeMap, BTreeSet}, format, string::String, vec::Vec};
use core::mem::zeroed;
use core::ptr::null_mut;
use rdma_sys::*;

const REMOTE_WRITE: u32 = 2;
const REMOTE_READ: u32 = 4;
/// Work requests of our own in flight per CQ: the program sized it for its own.
const OWN_LIMIT: u32 = 16;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quiet {
    Yes,
    /// All but messages which may have been lost by right.
    ButForLosses,
    No,
}

/// Who is at the other end of a QP.
#[derive(Clone, Copy)]
pub(crate) enum Peer {
    /// Nobody knows that port: somebody outside of the computation.
    Stranger,
    /// The port is one of the computation, but the QP there was destroyed, or made ready for somebody else.
    Gone,
    /// It is not connected to anybody yet.
    Coming,
    /// What it says; in ERR it says what it has received before.
    Known(Counts),
}

impl Peer {
    /// Of the QP that bears this number, by the record of its destination.
    pub(crate) fn of(number: u32, record: Option<Counts>) -> Self {
        match record {
            Some(counts) if u32::from(counts.state) < state::IBV_QPS_RTR => Self::Coming,
            Some(counts) if counts.peer == number => Self::Known(counts),
            _ => Self::Gone,
        }
    }
}

unsafe fn real_attributes(qp: &Qp) -> Option<ibv_qp_attr> {
    let (mut attr, mut init): (ibv_qp_attr, ibv_qp_init_attr) = (zeroed(), zeroed());
    (driver::loaded()?.query_qp?(qp.real, &mut attr, mask::STATE, &mut init) == 0).then_some(attr)
}

pub(crate) unsafe fn real_state(qp: &Qp) -> ibv_qp_state::Type {
    real_attributes(qp).map_or(qp.state(), |attr| attr.qp_state)
}

/// Takes note if the driver's QP has broken: the program may not have heard of it yet.
pub(crate) unsafe fn broken(qp: &mut Qp) {
    if matches!(qp.state(), state::IBV_QPS_RTR | state::IBV_QPS_RTS | state::IBV_QPS_SQD) {
        let real = real_state(qp);
        if matches!(real, state::IBV_QPS_ERR | state::IBV_QPS_SQE) {
            qp.ibv.qp_base.state = real;
        }
    }
}

/// One QP: is it quiet? If not, does what brings it nearer.
pub(crate) unsafe fn one(
    qp: &mut Qp,
    peer: Peer,
    shared: &mut BTreeMap<*mut Srq, (u64, u32)>,
    flushing: &mut BTreeSet<*mut Qp>,
    drained: &mut BTreeSet<*mut Qp>,
) -> Result<Quiet, String> {
    let now = qp.state();
    match now {
        state::IBV_QPS_RESET | state::IBV_QPS_INIT => return Ok(Quiet::Yes),
        state::IBV_QPS_SQE => {
            return Err(format!("QP {:#x} is in state SQE, which a restart cannot bring back", qp.number()));
        }
        state::IBV_QPS_ERR => return flushed(qp, flushing),
        _ => {}
    }
    let reliable = qp.kind == kind::IBV_QPT_RC;
    let mut quiet = Quiet::Yes;
    if qp.completed < qp.sq.signaled || qp.markers != 0 {
        quiet = Quiet::No;
    } else if qp.sq.tail.count != 0 {
        quiet = tail(qp, peer)?;
    }
    let sends = quiet == Quiet::No;
    if let Peer::Known(peer) = peer
        && qp.kind != kind::IBV_QPT_UD
        && matches!(u32::from(peer.state), state::IBV_QPS_RTS | state::IBV_QPS_SQD)
        && peer.sent > qp.received
    {
        quiet = quiet.max(if reliable { Quiet::No } else { Quiet::ButForLosses });
        let to_come = peer.sent - qp.received;
        let srq = qp.ibv.qp_base.srq.cast::<Srq>();
        if !reliable {
            // What finds no receive is lost by right; a receive of ours that nothing comes for would take a later message.
        } else if !srq.is_null() {
            let entry = shared.entry(srq).or_default();
            *entry = (entry.0 + to_come, entry.1.max(peer.longest));
        } else {
            soak(qp, to_come, peer.longest)?;
        }
    }
    if qp.kind == kind::IBV_QPT_UD {
        quiet = quiet.max(Quiet::ButForLosses);
    }
    if quiet != Quiet::Yes {
        broken(qp);
    }
    if sends && qp.state() == state::IBV_QPS_SQD {
        held_back(qp, drained)?;
    }
    Ok(quiet)
}

/// A drained send queue (SQD) holds back what was not begun, so a checkpoint could wait for ever.
unsafe fn held_back(qp: &Qp, drained: &mut BTreeSet<*mut Qp>) -> Result<(), String> {
    let me = core::ptr::from_ref(qp).cast_mut();
    if real_attributes(qp).is_none_or(|attr| attr.sq_draining != 0) {
        return Ok(());
    }
    // What it had completed by then is counted in the next round.
    if drained.insert(me) {
        return Ok(());
    }
    Err(format!(
        "QP {:#x} is in state SQD with requests that it may hold back ({} of {} signaled ones complete, {} unsignaled after them): \
         the program runs on; checkpoint it when the queue is in RTS again, or empty",
        qp.number(), qp.completed, qp.sq.signaled, qp.sq.tail.count
    ))
}

/// A send queue that ends in unsignaled requests.
unsafe fn tail(qp: &mut Qp, peer: Peer) -> Result<Quiet, String> {
    let mut access = REMOTE_WRITE;
    if qp.kind == kind::IBV_QPT_RC {
        match peer {
            // Its silence will break the QP in its own time.
            Peer::Stranger => return Ok(Quiet::No),
            // What was sent was answered long ago, or can do nothing to anybody any more: what nobody waits for is not waited for
            // here. (No marker: it would break a QP that is idle, or where `retry_cnt` is 7 rdma_rxe would retry it for ever.)
            Peer::Gone => return Ok(Quiet::Yes),
            // It may answer yet: a marker finds out.
            Peer::Coming => {}
            // First by counts: a tail that ends in a message needs no marker.
            Peer::Known(peer) => {
                let executed = peer.received >= qp.sq.two_sided;
                if executed && !qp.sq.tail.open && !qp.sq.tail.answered {
                    return Ok(Quiet::Yes);
                }
                if !executed && u32::from(peer.state) != state::IBV_QPS_ERR {
                    return Ok(Quiet::No);
                }
                access = peer.access;
            }
        }
    }
    let op = match qp.kind {
        kind::IBV_QPT_UC => ibv_wr_opcode::IBV_WR_RDMA_WRITE,
        // It leaves at once, or is lost by right.
        kind::IBV_QPT_UD => return Ok(Quiet::ButForLosses),
        _ if access & REMOTE_WRITE != 0 => ibv_wr_opcode::IBV_WR_RDMA_WRITE,
        _ if access & REMOTE_READ != 0 => ibv_wr_opcode::IBV_WR_RDMA_READ,
        // The peer permits nothing but atomics: add nothing, where the program's last atomic went.
        _ => ibv_wr_opcode::IBV_WR_ATOMIC_FETCH_AND_ADD,
    };
    if qp.state() == state::IBV_QPS_RTS {
        mark(qp, op)?;
    }
    Ok(Quiet::No)
}

/// A QP in error: all that was posted there comes back as a flush. Receives are counted. Of requests we do not know how many there
/// are, for the unsignaled ones are flushed with a completion, too: one of our own, the last, says that they are all back.
unsafe fn flushed(qp: &mut Qp, flushing: &mut BTreeSet<*mut Qp>) -> Result<Quiet, String> {
    let received = !qp.ibv.qp_base.srq.is_null() || qp.rq.posted() == 0;
    if !flushing.contains(&core::ptr::from_mut(qp)) {
        // rdma_rxe flushes receives that are posted in this state only when the QP is sent there once more (IBTA 10.3.1: from any).
        if !received && let Some(f) = driver::loaded().and_then(|d| d.modify_qp) {
            let mut attr: ibv_qp_attr = zeroed();
            attr.qp_state = state::IBV_QPS_ERR;
            f(qp.real, &mut attr, mask::STATE);
        }
        let marked = match (qp.sq.signaled + u64::from(qp.sq.tail.count), qp.kind) {
            // A datagram needs an address handle, and the program may have none any more: its signaled requests are counted.
            (0, _) | (_, kind::IBV_QPT_UD) => 0,
            _ => mark(qp, ibv_wr_opcode::IBV_WR_RDMA_WRITE)?,
        };
        // (A driver that takes nothing in this state has nothing there either.)
        if !matches!(marked, libc::ENOMEM | libc::EAGAIN) {
            flushing.insert(qp);
        }
        return Ok(Quiet::No);
    }
    let sent = qp.markers == 0 && (qp.kind != kind::IBV_QPT_UD || qp.completed >= qp.sq.signaled);
    Ok(if received && sent { Quiet::Yes } else { Quiet::No })
}

/// Posts a signaled request without effect behind all others; 0, or why the driver does not take it (EAGAIN: too many of ours are out).
unsafe fn mark(qp: &mut Qp, op: ibv_wr_opcode::Type) -> Result<i32, String> {
    let cq = &mut *qp.ibv.qp_base.send_cq.cast::<Cq>();
    if cq.own >= OWN_LIMIT {
        return Ok(libc::EAGAIN);
    }
    let mut wr: ibv_send_wr = zeroed();
    let mut sge;
    let mut buffer = None;
    (wr.wr_id, wr.opcode, wr.send_flags) = (MARKER, op, post::SIGNALED);
    if op == ibv_wr_opcode::IBV_WR_ATOMIC_FETCH_AND_ADD {
        let pd = (*qp.ibv.qp_base.pd.cast::<crate::pd::Pd>()).real;
        let (at, answer) = Keep::make(pd, 8).ok_or("a marker's buffer cannot be registered")?;
        buffer = Some(at);
        sge = answer;
        (wr.sg_list, wr.num_sge) = (&raw mut sge, 1);
        let (remote_addr, key) = qp.sq.last_atomic;
        wr.wr.atomic = atomic_t { remote_addr, compare_add: 0, swap: 0, rkey: qp.remote_key(key) };
    }
    let mut bad = null_mut();
    let ret = (qp.post_send)(qp.real, &mut wr, &mut bad);
    if ret == 0 {
        qp.markers += 1;
        qp.marker_buffer = buffer;
        qp.attention = true;
        cq.own += 1;
    } else if let Some(at) = buffer {
        let none: ibv_wc = zeroed();
        drop(Keep::take(at, &none));
    }
    Ok(ret)
}

/// Posts receives of our own for messages that will find none.
unsafe fn soak(qp: &mut Qp, to_come: u64, longest: u32) -> Result<(), String> {
    let cq = &mut *qp.ibv.qp_base.recv_cq.cast::<Cq>();
    let pd = (*qp.ibv.qp_base.pd.cast::<crate::pd::Pd>()).real;
    while qp.rq.posted() < to_come && qp.rq.posted() < qp.rq.depth.max(1) && cq.own < OWN_LIMIT {
        let (at, mut sge) = Keep::make(pd, longest as usize).ok_or("a soak buffer cannot be registered")?;
        let mut wr = ibv_recv_wr { wr_id: SOAK, next: null_mut(), sg_list: &mut sge, num_sge: 1 };
        let mut bad = null_mut();
        if (qp.post_recv)(qp.real, &mut wr, &mut bad) != 0 {
            let none: ibv_wc = zeroed();
            drop(Keep::take(at, &none));
            return Ok(());
        }
        let slot = qp.rq.slot(qp.rq.tail);
        qp.rq.slots.put_own(slot, at);
        qp.rq.tail += 1;
        qp.attention = true;
        cq.own += 1;
    }
    Ok(())
}

/// The same for a shared receive queue, `to_come` being the sum over its QPs.
pub(crate) unsafe fn soak_shared(srq: &mut Srq, to_come: u64, longest: u32) -> Result<(), String> {
    let pd = (*srq.ibv.pd.cast::<crate::pd::Pd>()).real;
    let Some(f) = (*(*srq.real).context).ops.post_srq_recv else { return Ok(()) };
    let me = core::ptr::from_mut(srq).cast::<ibv_srq>();
    let mut posted = 0;
    while posted < OWN_LIMIT {
        let slot = {
            let mut pool = srq.pool.lock();
            if pool.outstanding() as u64 >= to_come {
                return Ok(());
            }
            let Some(slot) = pool.take() else { return Ok(()) };
            slot
        };
        let (at, mut sge) = Keep::make(pd, longest as usize).ok_or("a soak buffer cannot be registered")?;
        srq.pool.lock().slots.put_own(slot, at);
        let mut wr = ibv_recv_wr { wr_id: ring::SRQ_TAG | slot as u64, next: null_mut(), sg_list: &mut sge, num_sge: 1 };
        let mut bad = null_mut();
        if f(srq.real, &mut wr, &mut bad) != 0 {
            srq.pool.lock().give(slot);
            return Ok(());
        }
        posted += 1;
        let ctx = Context::of(srq.ibv.context);
        let qps: Vec<*mut Qp> = (*ctx).objects.lock().qps.0.clone();
        for qp in qps {
            if (*qp).ibv.qp_base.srq == me {
                (*qp).attention = true;
            }
        }
    }
    Ok(())
}
