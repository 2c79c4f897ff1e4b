//! Round 1 of a restart: who is where now, address handles, and every queue pair from INIT to the state it had, connected to where
//! its peer is now, with its receives.
//!
//! # Safety
//! As `restart.rs`: on the checkpoint thread, while the program stands still outside of all wrappers.
use crate::context::Context;
use crate::exchange::{self, Card};
use crate::keys::KeyMap;
use crate::pd::Pd;
use crate::peers::{Directory, Peer, QpId};
use crate::qp::{Qp, kind, mask, state};
use crate::restart::{Outcome, failed, modify, need};
use crate::wire::Reader;
use crate::{driver, post, srq};
use alloc::{boxed::Box, collections::{BTreeMap, BTreeSet}, format, vec::Vec};
use rdma_sys::*;
use slackwater_plugin::Info;

pub(crate) unsafe fn connect(info: &Info, contexts: &[*mut Context]) -> Outcome<()> {
    let cards = Card::all(info).ok_or("the cards of some processes did not come")?;
    let mut directory = Directory::default();
    for port in cards.iter().flat_map(|c| &c.ports) {
        directory.port(port);
    }
    // Where the peers of connected QPs are now.
    let mut ids: Vec<QpId> = Vec::new();
    for &ctx in contexts {
        let qps = (*ctx).objects.lock().qps.0.clone();
        for qp in qps {
            let q = &*qp;
            if q.kind != kind::IBV_QPT_UD
                && q.attr_mask & mask::DEST_QPN != 0
                && let Some(port) = directory.destination(&q.attr.ah_attr)
            {
                ids.push((port.0, q.attr.dest_qp_num));
            }
        }
    }
    ids.sort_unstable();
    ids.dedup();
    let keys: Vec<[u8; 13]> = ids.iter().map(|&id| exchange::qp_key(b'c', id)).collect();
    let values = exchange::ask(&keys).ok_or("the peers' records cannot be queried")?;
    let mut found: Vec<(QpId, u64, u32)> = Vec::new();
    for (id, value) in ids.iter().zip(values) {
        if let Some(value) = value {
            let mut r = Reader(&value);
            if let (Some(member), Some(number)) = (r.u64(), r.u32()) {
                found.push((*id, member, number));
            }
        }
    }
    let maps = names(&cards, contexts, &mut directory)?;
    let map_of = |member: u64| maps.get(&member).copied().unwrap_or(core::ptr::null());
    for (id, member, number) in found {
        directory.qp(id, Peer { number, keys: map_of(member) });
    }
    for card in &cards {
        for &(id, number) in &card.open {
            directory.qp(id, Peer { number, keys: map_of(card.member) });
        }
    }
    for &ctx in contexts {
        let guid = (*(*ctx).device).seen.as_ref().map_or(0, |s| s.node_guid);
        for &qp in &(*ctx).objects.lock().qps.0 {
            let q = &*qp;
            directory.qp((guid, q.number()), Peer { number: (*q.real).qp_num, keys: map_of(info.member) });
        }
    }
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

/// The keys of every process that uses verbs, whoever is connected to whom: a connection made after the restart may name a region
/// of before. And what new objects must not be called: a new one bears the driver's number, by which a third process may know
/// an old one on the same device.
unsafe fn names(
    cards: &[Card],
    contexts: &[*mut Context],
    directory: &mut Directory,
) -> Outcome<BTreeMap<u64, *const KeyMap>> {
    let guids: Vec<u64> = contexts.iter().filter_map(|&c| (*(*c).device).seen.as_ref().map(|s| s.node_guid)).collect();
    // (Who has no device open yet may open any.)
    let is_near = |card: &Card| guids.is_empty() || card.ports.iter().any(|p| guids.contains(&p.id.0));
    let users: Vec<&Card> = cards.iter().filter(|c| !c.ports.is_empty()).collect();
    let asked: Vec<[u8; 9]> = users.iter().map(|c| exchange::table_key(c.member)).collect();
    let tables = exchange::ask(&asked).ok_or("the peers' keys cannot be queried")?;
    let mut maps: BTreeMap<u64, *const KeyMap> = BTreeMap::new();
    let mut merged: BTreeMap<u64, Vec<(u32, u32)>> = BTreeMap::new();
    for (card, table) in users.iter().zip(tables) {
        let mut pairs = Vec::new();
        let bytes = table.unwrap_or_default();
        let mut r = Reader(&bytes);
        while let (Some(from), Some(to)) = (r.u32(), r.u32()) {
            pairs.push((from, to));
        }
        if is_near(card) {
            directory.taken_keys.extend(pairs.iter().map(|p| p.0));
        }
        let guids: BTreeSet<u64> = card.ports.iter().map(|p| p.id.0).collect();
        for guid in guids {
            merged.entry(guid).or_default().extend_from_slice(&pairs);
        }
        maps.insert(card.member, Box::into_raw(Box::new(KeyMap::new(pairs.into_iter()))));
    }
    for (guid, pairs) in merged {
        directory.by_device.insert(guid, Box::into_raw(Box::new(KeyMap::new(pairs.into_iter()))));
    }
    let near: Vec<[u8; 9]> = users.iter().filter(|c| is_near(c)).map(|c| exchange::names_key(c.member)).collect();
    for bytes in exchange::ask(&near).ok_or("the peers' numbers cannot be queried")?.into_iter().flatten() {
        let mut r = Reader(&bytes);
        while let Some(number) = r.u32() {
            directory.taken_numbers.push(number);
        }
    }
    Ok(maps)
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
    let mut peer = Peer { number: q.attr.dest_qp_num, keys: core::ptr::null() };
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
        let ret = srq::repost(f, s.real, slot, list.as_mut_ptr(), list.len() as i32);
        if ret != 0 {
            return Err(format!("a shared receive cannot be posted again: error {ret}"));
        }
    }
    Ok(())
}
