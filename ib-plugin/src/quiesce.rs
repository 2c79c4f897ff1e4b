//! The quiesce: every RDMA operation in flight comes to rest in the memory of some process. `docs/ib-plugin.md` has the
//! protocol and why it suffices; here is its order.
//!
//! Round 0: drain every CQ into its shadow, publish the card and the counts of every QP. Round 1 and on: drain, read the
//! peers' counts, soak what has no receive, mark what has an unsignaled tail, publish the counts that changed; again until
//! every send queue is known to be empty and every message posted to us has come. Nothing waits on a clock.
//!
//! # Safety
//! Runs on the checkpoint thread while the program stands still outside of all wrappers, so no lock of ours is held, and
//! objects may be reached without one.
use crate::channel::Channel;
use crate::context::Context;
use crate::cq::Cq;
use crate::exchange::{self, Card, Counts};
use crate::ident::{self, Ident, PortMap};
use crate::peers::{Directory, QpId};
use crate::qp::{Qp, kind, state};
use crate::settle::{self, Peer, Quiet, broken, real_state};
use crate::srq::Srq;
use crate::{fds, registry, sync::Lock};
use alloc::{collections::{BTreeMap, BTreeSet}, format, string::String, vec::Vec};
use core::mem::zeroed;
use slackwater_plugin::{Info, Verdict};

/// Rounds for which datagrams and UC messages are waited for once all senders are empty. How many it takes is nobody's to know, for
/// each may be lost by right and its receiver could not tell: it is a courtesy, and nothing's correctness hangs on it. A round is
/// a barrier of all processes, so even one is longer than the way of a packet that had left before it.
const GRACE: u32 = 20;
/// A quiesce in which nothing moves for so many seconds is an error.
const PATIENCE: i64 = 60;

#[derive(Default)]
struct Progress {
    known: Directory,
    published: BTreeMap<QpId, Counts>,
    /// What the peer of each QP (by the QP's own name) said last.
    told: BTreeMap<QpId, Counts>,
    /// QPs in error whose send queue has got a last request of ours.
    flushing: BTreeSet<*mut Qp>,
    /// QPs in SQD that have nothing under way any more.
    drained: BTreeSet<*mut Qp>,
    /// Rounds since anything moved.
    idle: u32,
    /// Second of the monotonic clock in which something moved last.
    moved: i64,
}

fn clock() -> i64 {
    // SAFETY: the struct lives through the call.
    unsafe {
        let mut t: libc::timespec = zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t);
        t.tv_sec
    }
}

// SAFETY: only the checkpoint thread touches it.
unsafe impl Send for Progress {}

static PROGRESS: Lock<Option<Progress>> = Lock::new(None);

/// Contexts of this process (not those inherited over fork).
pub(crate) fn contexts() -> Vec<*mut Context> {
    // SAFETY: listed contexts are live.
    unsafe {
        let pid = libc::getpid();
        registry::world().contexts.0.iter().copied().filter(|&c| (*c).pid == pid).collect()
    }
}

unsafe fn guid(ctx: *mut Context) -> u64 {
    (*(*ctx).device).seen.as_ref().map_or(0, |s| s.node_guid)
}

/// The ports of a device, for the card.
pub(crate) fn port_maps(seen: &Ident, now: &Ident) -> Vec<PortMap> {
    seen.ports
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let here = now.port(i as u8 + 1).or_else(|| now.ports.first());
            let gids = p.gids.iter().map(|e| (e.gid, here.and_then(|h| ident::counterpart(e, h)).map_or(e.gid, |x| x.gid)));
            PortMap { id: (seen.node_guid, i as u8 + 1), lids: (p.lid, here.map_or(0, |h| h.lid)), gids: gids.collect() }
        })
        .collect()
}

unsafe fn each_qp(contexts: &[*mut Context], mut f: impl FnMut(*mut Context, &mut Qp)) {
    for &ctx in contexts {
        let qps: Vec<*mut Qp> = (*ctx).objects.lock().qps.0.clone();
        for qp in qps {
            f(ctx, &mut *qp);
        }
    }
}

unsafe fn drain(contexts: &[*mut Context]) -> bool {
    let mut any = false;
    for &ctx in contexts {
        let cqs: Vec<*mut Cq> = (*ctx).objects.lock().cqs.0.clone();
        for cq in cqs {
            any |= (*cq).drain();
        }
    }
    any
}

unsafe fn counts(qp: &Qp) -> Counts {
    Counts {
        state: qp.state() as u8,
        peer: qp.attr.dest_qp_num,
        access: qp.attr.qp_access_flags,
        sent: qp.sq.two_sided,
        received: qp.received,
        longest: qp.sq.longest(u64::from(qp.cap.max_send_wr) + 1),
    }
}

/// One round.
pub(crate) unsafe fn round(info: &mut Info) -> Verdict {
    let contexts = contexts();
    match step(info, &contexts) {
        Ok(verdict) => verdict,
        Err(message) => {
            slackwater_plugin::report(info, &message);
            Verdict::Failed
        }
    }
}

unsafe fn step(info: &Info, contexts: &[*mut Context]) -> Result<Verdict, String> {
    if let Some(message) = crate::cm::refusal() {
        return Err(message);
    }
    let mut slot = PROGRESS.lock();
    if info.round == 0 {
        *slot = Some(Progress::default());
        drop(slot);
        for &ctx in contexts {
            let device = &mut *(*ctx).device;
            if device.seen.is_none() {
                device.seen = Ident::read((*ctx).real);
            }
        }
        drain(contexts);
        each_qp(contexts, |_, qp| broken(qp));
        let mut card = Card { member: info.member, ..Card::default() };
        for &ctx in contexts {
            let device = &*(*ctx).device;
            if let Some(seen) = &device.seen {
                card.ports.extend(port_maps(seen, device.now.as_ref().unwrap_or(seen)));
            }
        }
        let ok = card.publish();
        publish_counts(contexts)?;
        if !ok {
            return Err("the coordinator takes no published values".into());
        }
        return Ok(if contexts.is_empty() { Verdict::Done } else { Verdict::Again });
    }
    if contexts.is_empty() {
        return Ok(Verdict::Done);
    }
    let progress = slot.get_or_insert_with(Progress::default);
    let mut connected = false;
    each_qp(contexts, |_, qp| connected |= qp.kind != kind::IBV_QPT_UD && qp.state() >= state::IBV_QPS_RTR);
    if info.round == 1 && connected {
        let cards = Card::all(info).ok_or("the cards of some processes did not come")?;
        for port in cards.iter().flat_map(|c| &c.ports) {
            progress.known.port(port);
        }
    }
    let moved = drain(contexts);
    let quiet = evaluate(contexts, progress)?;
    progress.idle = if moved { 0 } else { progress.idle + 1 };
    let idle = progress.idle;
    if moved || progress.moved == 0 {
        progress.moved = clock();
    }
    let stuck = (clock() - progress.moved > PATIENCE).then(|| describe(contexts, &progress.told));
    drop(slot);
    let published = publish_counts(contexts)?;
    if quiet == Quiet::Yes || (quiet == Quiet::ButForLosses && idle > GRACE) {
        return Ok(Verdict::Done);
    }
    if let Some(message) = stuck
        && !published
    {
        return Err(message);
    }
    Ok(Verdict::Again)
}

unsafe fn publish_counts(contexts: &[*mut Context]) -> Result<bool, String> {
    let mut slot = PROGRESS.lock();
    let progress = slot.get_or_insert_with(Progress::default);
    let (mut any, mut failed) = (false, false);
    each_qp(contexts, |ctx, qp| {
        let id = (guid(ctx), qp.number());
        let now = counts(qp);
        if progress.published.get(&id) != Some(&now) {
            any = true;
            failed |= !now.publish(id);
            progress.published.insert(id, now);
        }
    });
    if failed { Err("the coordinator takes no published values".into()) } else { Ok(any) }
}

unsafe fn describe(contexts: &[*mut Context], told: &BTreeMap<QpId, Counts>) -> String {
    let mut text = String::from("RDMA traffic does not come to rest:");
    let mut n = 0;
    each_qp(contexts, |ctx, qp| {
        let sent_to_us = told.get(&(guid(ctx), qp.number())).map_or(0, |p| p.sent);
        let quiet = qp.completed >= qp.sq.signaled && qp.sq.tail.count == 0 && qp.markers == 0 && sent_to_us <= qp.received;
        if n < 4 && !quiet {
            n += 1;
            text += &format!(
                " QP {:#x} (state {}, driver's {}): {} of {} signaled sends complete, {} unsignaled after them, {} markers \
                 out; {} of {} messages received, {} receives posted;",
                qp.number(), qp.state(), real_state(qp), qp.completed, qp.sq.signaled, qp.sq.tail.count, qp.markers, qp.received,
                sent_to_us, qp.rq.posted()
            );
        }
    });
    text
}

unsafe fn evaluate(contexts: &[*mut Context], progress: &mut Progress) -> Result<Quiet, String> {
    // The peers' counts, in one query.
    let mut peers: Vec<(*mut Qp, QpId)> = Vec::new();
    each_qp(contexts, |_, qp| {
        if qp.kind != kind::IBV_QPT_UD
            && matches!(qp.state(), state::IBV_QPS_RTR | state::IBV_QPS_RTS | state::IBV_QPS_SQD)
            && let Some(port) = progress.known.destination(&qp.attr.ah_attr)
        {
            peers.push((qp, (port.0, qp.attr.dest_qp_num)));
        }
    });
    let keys: Vec<[u8; 13]> = peers.iter().map(|p| exchange::qp_key(p.1)).collect();
    let values = exchange::ask(&keys).ok_or("the peers' counts cannot be queried")?;
    let told: BTreeMap<*mut Qp, Peer> = peers
        .iter()
        .zip(values)
        .map(|(p, v)| (p.0, Peer::of((*p.0).number(), v.and_then(|v| Counts::decode(&v)))))
        .collect();
    let mut all = Quiet::Yes;
    progress.told.clear();
    let mut error = None;
    let mut shared: BTreeMap<*mut Srq, (u64, u32)> = BTreeMap::new();
    each_qp(contexts, |ctx, qp| {
        let peer = told.get(&core::ptr::from_mut(qp)).copied().unwrap_or(Peer::Stranger);
        if let Peer::Known(counts) = peer {
            progress.told.insert((guid(ctx), qp.number()), counts);
        }
        match settle::one(qp, peer, &mut shared, &mut progress.flushing, &mut progress.drained) {
            Ok(q) => all = all.max(q),
            Err(e) => error = Some(e),
        }
    });
    for (srq, (to_come, longest)) in shared {
        settle::soak_shared(&mut *srq, to_come, longest)?;
    }
    error.map_or(Ok(all), Err)
}

unsafe fn channels(ctx: *mut Context) -> Vec<*mut Channel> {
    (*ctx).objects.lock().channels.0.clone()
}

/// All are quiet: take what the driver's event queues hold, so that a restart can give it to the program.
pub(crate) unsafe fn save() {
    for ctx in contexts() {
        (*ctx).events.capture();
        for channel in channels(ctx) {
            (*channel).source.capture();
        }
    }
}

/// About to run again: completions take the fast path where nothing of ours is left, and so do those who wait for events.
pub(crate) unsafe fn resume(restarted: bool) {
    let contexts = contexts();
    let mut expecting = false;
    each_qp(&contexts, |_, qp| {
        let own_left = (qp.rq.head..qp.rq.tail).any(|i| qp.rq.slots.is_own(qp.rq.slot(i)));
        let (mut shared, mut kept) = (false, !qp.soaked.is_empty());
        if let Some(srq) = qp.ibv.qp_base.srq.cast::<Srq>().as_ref() {
            let pool = srq.pool.lock();
            shared = pool.in_order().into_iter().any(|s| pool.slots.is_own(s));
            kept |= !srq.soaked.is_empty();
        }
        qp.attention = qp.translated || qp.markers != 0 || own_left || shared;
        expecting |= own_left || shared || kept;
    });
    let mut changes = false;
    for &ctx in &contexts {
        changes |= (*ctx).events.changes(false) || channels(ctx).into_iter().any(|c| (*c).source.changes(expecting));
    }
    if changes {
        fds::unwatch();
    }
    for &ctx in &contexts {
        (*ctx).events.settle(false);
        for channel in channels(ctx) {
            (*channel).source.settle(expecting);
        }
    }
    fds::watch_again(changes || restarted);
    *PROGRESS.lock() = None;
}
