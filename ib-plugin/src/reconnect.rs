//! Round 1 of a restart: who is where now, address handles, and every queue pair from INIT to the state it had, connected to where
//! its peer is now, with its receives.
//!
//! # Safety
//! As `restart.rs`: on the checkpoint thread, while the program stands still outside of all wrappers.
use crate::context::Context;
use crate::exchange::Card;
use crate::pd::Pd;
use crate::peers::{Directory, Peer};
use crate::attr::mask;
use crate::qp::{Qp, kind, state};
use crate::restart::{Outcome, failed, modify, need};
use crate::{driver, post, srq};
use alloc::{format, vec::Vec};
use core::ptr::null;
use rdma_sys::*;
use slackwater_plugin::Info;

pub(crate) unsafe fn connect(info: &Info, contexts: &[*mut Context]) -> Outcome<()> {
    let cards = Card::all(info).ok_or("the cards of some processes did not come")?;
    let directory = Directory::of(&cards);
    for &ctx in contexts {
        let (ahs, srqs, qps) = {
            let o = (*ctx).objects.lock();
            (o.ahs.0.clone(), o.srqs.0.clone(), o.qps.0.clone())
        };
        for ah in ahs {
            let mut attr = (*ah).attr;
            directory.outward(ctx, &mut attr);
            let f = need(driver::loaded().and_then(|d| d.create_ah), "ibv_create_ah")?;
            (*ah).real = f((*(*ah).ibv.pd.cast::<Pd>()).real, &mut attr);
            if (*ah).real.is_null() {
                return Err(failed("ibv_create_ah"));
            }
        }
        for s in srqs {
            repost_shared(&mut *s)?;
        }
        for qp in qps {
            raise(ctx, &mut *qp, &directory)?;
        }
    }
    directory.install();
    Ok(())
}

/// A QP from INIT to the state it had, its receives posted.
unsafe fn raise(ctx: *mut Context, q: &mut Qp, directory: &Directory) -> Outcome<()> {
    let had = q.state();
    if had == state::IBV_QPS_RESET {
        return Ok(());
    }
    q.rq.forget_own();
    let ring: Vec<(u64, Vec<ibv_sge>)> =
        (q.rq.head..q.rq.tail).map(|i| q.rq.slot(i)).map(|s| (q.rq.slots.id(s), q.rq.slots.list(s))).collect();
    if had == state::IBV_QPS_ERR {
        q.rq.clear();
        return modify(q, state::IBV_QPS_ERR, 0, |_| {});
    }
    for (id, list) in ring {
        let ret = post::recv_one(q, id, list.as_ptr(), list.len() as i32);
        if ret != 0 {
            return Err(format!("a receive of QP {:#x} cannot be posted again: error {ret}", q.number()));
        }
    }
    if had == state::IBV_QPS_INIT {
        return Ok(());
    }
    let (mut rtr, mut rts) = (0, 0);
    let mut peer = Peer { number: q.attr.dest_qp_num, keys: null() };
    if q.kind != kind::IBV_QPT_UD {
        peer = directory.find(&q.attr.ah_attr, q.attr.dest_qp_num);
        rtr = mask::AV | mask::PATH_MTU | mask::DEST_QPN | mask::RQ_PSN;
    }
    if q.kind == kind::IBV_QPT_RC {
        rtr |= mask::MAX_DEST_RD_ATOMIC | mask::MIN_RNR_TIMER;
        rts = mask::TIMEOUT | mask::RETRY_CNT | mask::RNR_RETRY | mask::MAX_QP_RD_ATOMIC;
    }
    q.keys = peer.keys;
    modify(q, state::IBV_QPS_RTR, rtr, |attr| {
        attr.dest_qp_num = peer.number;
        // SAFETY: the context is live, the union plain data.
        unsafe { directory.outward(ctx, &mut attr.ah_attr) };
    })?;
    if had == state::IBV_QPS_RTR {
        return Ok(());
    }
    modify(q, state::IBV_QPS_RTS, rts | mask::SQ_PSN, |_| {})?;
    if had == state::IBV_QPS_SQD {
        modify(q, state::IBV_QPS_SQD, 0, |_| {})?;
    }
    Ok(())
}

unsafe fn repost_shared(s: &mut srq::Srq) -> Outcome<()> {
    let f = need((*(*s.real).context).ops.post_srq_recv, "ibv_post_srq_recv")?;
    let slots = s.pool.lock().in_order();
    for slot in slots {
        let mut pool = s.pool.lock();
        if pool.slots.is_own(slot) {
            pool.give(slot);
            continue;
        }
        let mut list = pool.slots.list(slot);
        drop(pool);
        let ret = srq::repost(f, s, slot, list.as_mut_ptr(), list.len() as i32);
        if ret != 0 {
            return Err(format!("a shared receive cannot be posted again: error {ret}"));
        }
    }
    Ok(())
}
