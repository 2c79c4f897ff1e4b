//! After a restart: every object is made again behind the shadow that the program holds.
//!
//! Round 0: device, protection domains, regions, channels, CQs, SRQs, QPs (up to INIT); publish who and where they are now.
//! Round 1: read the cards, connect each QP to where its peer is now, up to the state it had; address handles; post the
//! remembered receives. No process runs before all have done so, hence no message can come too early.
//!
//! The driver's old objects are left alone for ever: they speak of descriptors that are gone.
//!
//! # Safety
//! Runs on the checkpoint thread while the program stands still outside of all wrappers; objects may be reached without a
//! lock.
use crate::channel::Channel;
use crate::context::Context;
use crate::cq::Cq;
use crate::device::{self, Device, QPNS};
use crate::exchange::{self, Card, SCOPE};
use crate::ident::Ident;
use crate::keys::{DEAD, KeyMap};
use crate::mr::{self, LKEYS, RKEYS};
use crate::pd::Pd;
use crate::peers::{Directory, Peer, QpId};
use crate::qp::{Qp, kind, mask, state};
use crate::quiesce::{contexts, port_maps};
use crate::wire::{Reader, Writer};
use crate::{cm, driver, fds, post, srq};
use alloc::{boxed::Box, collections::BTreeMap, format, string::String, vec::Vec};
use core::mem::zeroed;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};
use rdma_sys::*;
use slackwater_plugin::{Info, Verdict, protect_fd, publish};

type Outcome<T> = Result<T, String>;

const NO_RDMA: &str = "the program uses RDMA, and there is none here; restart it where `ibv_devices` lists a device";

/// One round.
pub(crate) unsafe fn round(info: &mut Info) -> Verdict {
    let contexts = contexts();
    let outcome = match info.round {
        0 => rebuild(info, &contexts).map(|()| if contexts.is_empty() { Verdict::Done } else { Verdict::Again }),
        1 if !contexts.is_empty() => connect(info, &contexts).map(|()| Verdict::Done),
        _ => Ok(Verdict::Done),
    };
    outcome.unwrap_or_else(|message| {
        slackwater_plugin::report(info, &message);
        Verdict::Failed
    })
}

fn need<T>(f: Option<T>, what: &str) -> Outcome<T> {
    f.ok_or_else(|| format!("the driver has no {what}"))
}

fn failed(what: &str) -> String {
    format!("{what} fails after the restart (errno {})", driver::pass_errno())
}

unsafe fn rebuild(info: &Info, contexts: &[*mut Context]) -> Outcome<()> {
    let mut card = Card { member: info.member, ..Card::default() };
    let channels = cm::descriptors();
    fds::hold(&channels);
    if !cm::reopen() {
        return Err(NO_RDMA.into());
    }
    if contexts.is_empty() {
        card.publish();
        return Ok(());
    }
    let d = need(driver::loaded(), "library")?;
    // The numbers that the program holds must not be given to anything that is opened from here on.
    let mut visible = Vec::new();
    for &ctx in contexts {
        visible.push((*ctx).events.visible);
        visible.extend((*ctx).objects.lock().channels.0.iter().map(|&c| (*c).source.visible));
    }
    fds::hold(&visible);
    place(contexts)?;
    let mut keys = Keys::default();
    for &ctx in contexts {
        let c = &mut *ctx;
        let device = c.device;
        let real = need(d.open_device, "ibv_open_device")?((*device).real);
        if real.is_null() {
            return Err(failed("ibv_open_device"));
        }
        c.real = real;
        c.v.context.cmd_fd = (*real).cmd_fd;
        protect_fd((*real).cmd_fd);
        let number = c.events.visible;
        if !c.events.attach((*real).async_fd, Some(number)) {
            return Err("no descriptors left for events".into());
        }
        let now = Ident::read(real).ok_or_else(|| failed("ibv_query_device"))?;
        if let Some(seen) = &(*device).seen {
            card.ports.extend(port_maps(seen, &now));
        }
        (*device).now = Some(now);
        objects(d, c, &mut keys)?;
    }
    for (map, mut pairs) in [(&LKEYS, keys.local), (&RKEYS, keys.remote)] {
        // A number that meant a region which is gone stays out of use.
        if let Some(old) = mr::map(map) {
            let live: BTreeMap<u32, u32> = pairs.iter().copied().collect();
            pairs.extend(old.pairs().map(|p| p.0).filter(|k| !live.contains_key(k)).map(|k| (k, DEAD)));
        }
        install(map, &pairs);
    }
    queues(contexts, info.member, &mut card)?;
    let mut w = Writer::default();
    for (from, to) in mr::map(&RKEYS).into_iter().flat_map(KeyMap::pairs) {
        w.u32(from);
        w.u32(to);
    }
    if !(card.publish() && publish(SCOPE, &exchange::table_key(info.member), &w.0)) {
        return Err("the coordinator takes no published values".into());
    }
    Ok(())
}

fn install(at: &AtomicPtr<KeyMap>, pairs: &[(u32, u32)]) {
    at.store(Box::into_raw(Box::new(KeyMap::new(pairs.iter().copied()))), Ordering::Release);
}

#[derive(Default)]
struct Keys {
    local: Vec<(u32, u32)>,
    remote: Vec<(u32, u32)>,
}

/// The highest port that a QP or an address handle of this device names.
unsafe fn last_port(contexts: &[*mut Context], device: *mut Device) -> u8 {
    let mut last = 1;
    for &ctx in contexts.iter().filter(|&&c| (*c).device == device) {
        let o = (*ctx).objects.lock();
        for &qp in &o.qps.0 {
            let (q, has) = (&*qp, |bit| (*qp).attr_mask & bit != 0);
            last = last.max(if has(mask::PORT) { q.attr.port_num } else { 1 });
            last = last.max(if has(mask::AV) { q.attr.ah_attr.port_num } else { 1 });
        }
        last = o.ahs.0.iter().map(|&ah| (*ah).attr.port_num).fold(last, u8::max);
    }
    last
}

/// Who a device of the driver's is.
unsafe fn who(device: *mut ibv_device) -> Option<Ident> {
    let d = driver::loaded()?;
    let real = d.open_device?(device);
    if real.is_null() {
        return None;
    }
    let ident = Ident::read(real);
    d.close_device?(real);
    ident
}

/// Finds for each device of the program one that is there now and has the ports that it uses: of the same name, else the one
/// most like it that nobody has taken, else the one most like it.
unsafe fn place(contexts: &[*mut Context]) -> Outcome<()> {
    let mut wanted: Vec<*mut Device> = contexts.iter().map(|&c| (*c).device).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let (reals, _) = device::real_list();
    if reals.is_empty() {
        return Err(NO_RDMA.into());
    }
    let here: Vec<(*mut ibv_device, Ident)> = reals.into_iter().filter_map(|r| Some((r, who(r)?))).collect();
    let mut taken = Vec::new();
    let mut homeless = Vec::new();
    for d in wanted {
        (*d).real = null_mut();
        let table = (*d).qps.load(Ordering::Relaxed);
        if !table.is_null() {
            // SAFETY: our own reserve; it comes back as zeros, that is, no QPs. Raw, for UCX patches madvise(2).
            libc::syscall(libc::SYS_madvise, table, QPNS * size_of::<*mut Qp>(), libc::MADV_DONTNEED);
        }
        let ports = last_port(contexts, d);
        match here.iter().find(|h| (*h.0).name == (*d).ibv.name && h.1.ports.len() >= ports.into()) {
            Some(h) => {
                (*d).real = h.0;
                taken.push(h.0);
            }
            None => homeless.push((d, ports)),
        }
    }
    for (d, ports) in homeless {
        let name = (*d).name().to_string_lossy();
        let best = here.iter().filter(|h| h.1.ports.len() >= ports.into()).max_by_key(|h| {
            let like = (*d).seen.as_ref().map_or(0, |seen| seen.likeness(&h.1));
            (!taken.contains(&h.0), like)
        });
        let Some((real, _)) = best else {
            return Err(format!(
                "the program uses port {ports} of RDMA device {name}, and no device here that can be opened has as many ports \
                 (`ibv_devinfo` tells); restart it where one has"
            ));
        };
        (*d).real = *real;
        taken.push(*real);
        crate::say(&format!(
            "slackwater-ib: device {name} is not here; its objects come back on {}",
            core::ffi::CStr::from_ptr((**real).name.as_ptr()).to_string_lossy()
        ));
    }
    Ok(())
}

/// Pages that were put where no memory was; they go when this is dropped. Raw system calls: UCX patches the C library's.
struct Holes(Vec<usize>);

const PAGE: usize = 4096;

impl Holes {
    fn fill(addr: usize, len: usize) -> Self {
        let mut pages = Vec::new();
        let flags = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE);
        let access = i64::from(libc::PROT_READ | libc::PROT_WRITE);
        let mut page = addr & !(PAGE - 1);
        while page < addr.saturating_add(len) {
            // SAFETY: a new mapping, and only where there is none.
            let at = unsafe {
                libc::syscall(libc::SYS_mmap, page, PAGE, access, flags, -1i64, 0i64)
            };
            if at == page as i64 {
                pages.push(page);
            }
            page += PAGE;
        }
        Self(pages)
    }
}

impl Drop for Holes {
    fn drop(&mut self) {
        for page in &self.0 {
            // SAFETY: made by `fill`, and nobody in this process knows of it.
            unsafe { libc::syscall(libc::SYS_munmap, *page, PAGE) };
        }
    }
}

/// Everything of one context but its queue pairs and address handles.
unsafe fn objects(d: &driver::Driver, c: &mut Context, keys: &mut Keys) -> Outcome<()> {
    let (pds, mrs, channels, cqs, srqs) = {
        let o = c.objects.lock();
        (o.pds.0.clone(), o.mrs.0.clone(), o.channels.0.clone(), o.cqs.0.clone(), o.srqs.0.clone())
    };
    for pd in pds {
        (*pd).real = need(d.alloc_pd, "ibv_alloc_pd")?(c.real);
        if (*pd).real.is_null() {
            return Err(failed("ibv_alloc_pd"));
        }
    }
    for m in mrs {
        let m = &mut *m;
        let pd = (*m.ibv.pd.cast::<Pd>()).real;
        let register = || match (d.reg_mr_iova2, d.reg_mr) {
            (Some(f), _) => f(pd, m.ibv.addr, m.ibv.length, m.iova, m.access),
            (None, Some(f)) => f(pd, m.ibv.addr, m.ibv.length, m.access as i32),
            _ => null_mut(),
        };
        let mut real = register();
        if real.is_null() && driver::pass_errno() == libc::EFAULT {
            // A program may unmap what is registered (UCX's cache keeps regions of a heap that was trimmed): the device has
            // the pages then, and nobody else. Pages are there while the region is made, and gone again after.
            let holes = Holes::fill(m.ibv.addr as usize, m.ibv.length);
            real = register();
            drop(holes);
        }
        if real.is_null() {
            return Err(failed(&format!("registering {} bytes at {:p}", m.ibv.length, m.ibv.addr)));
        }
        m.real = real;
        keys.local.push((m.ibv.lkey, (*real).lkey));
        keys.remote.push((m.ibv.rkey, (*real).rkey));
    }
    for channel in channels {
        let ch: &mut Channel = &mut *channel;
        ch.real = need(d.create_comp_channel, "ibv_create_comp_channel")?(c.real);
        if ch.real.is_null() {
            return Err(failed("ibv_create_comp_channel"));
        }
        let number = ch.source.visible;
        if !ch.source.attach((*ch.real).fd, Some(number)) {
            return Err("no descriptors left for events".into());
        }
    }
    for cq in cqs {
        let q: &mut Cq = &mut *cq;
        let channel = q.ibv.channel.cast::<Channel>().as_ref().map_or(null_mut(), |ch| ch.real);
        let vector = q.vector % (*c.real).num_comp_vectors.max(1);
        let real = need(d.create_cq, "ibv_create_cq")?(c.real, q.ibv.cqe, cq.cast(), channel, vector);
        if real.is_null() || !q.attach(real) {
            return Err(failed(&format!("ibv_create_cq of {} entries", q.ibv.cqe)));
        }
        q.table = (*c.device).table();
        q.own = 0;
        // A completion that was drained from an armed CQ owes an event, even if the driver's had not come yet.
        if !q.pending.is_empty() {
            q.owe_event();
        }
        let armed = q.armed.load(Ordering::Relaxed);
        if armed != 0
            && let Some(f) = (*(*real).context).ops.req_notify_cq
        {
            f(real, i32::from(armed == 2));
        }
    }
    for s in srqs {
        let s = &mut *s;
        let mut init: ibv_srq_init_attr = zeroed();
        init.srq_context = core::ptr::from_mut(s).cast();
        init.attr = core::ptr::read(&s.attr);
        s.real = need(d.create_srq, "ibv_create_srq")?((*s.ibv.pd.cast::<Pd>()).real, &mut init);
        if s.real.is_null() {
            return Err(failed("ibv_create_srq"));
        }
    }
    Ok(())
}

/// Queue pairs up to INIT, and their records.
unsafe fn queues(contexts: &[*mut Context], member: u64, card: &mut Card) -> Outcome<()> {
    for &ctx in contexts {
        let Some(guid) = (*(*ctx).device).seen.as_ref().map(|s| s.node_guid) else { continue };
        let qps = (*ctx).objects.lock().qps.0.clone();
        for qp in qps {
            let q = &mut *qp;
            let mut cap: ibv_qp_cap = core::ptr::read(&q.cap);
            if !q.create_real(&mut cap) {
                return Err(failed(&format!("ibv_create_qp for QP {:#x}", q.number())));
            }
            (q.translated, q.copies, q.rq_slow, q.attention) = (true, true, true, true);
            q.markers = 0;
            q.sq.tail = 0;
            q.sq.tail_open = false;
            q.sq.tail_answered = false;
            q.completed = q.sq.signaled;
            if q.state() != state::IBV_QPS_RESET {
                let extra = if q.kind == kind::IBV_QPT_UD { mask::QKEY } else { mask::ACCESS_FLAGS };
                modify(q, state::IBV_QPS_INIT, mask::PKEY_INDEX | mask::PORT | extra, |_| {})?;
            }
            let id: QpId = (guid, q.number());
            let now = (*q.real).qp_num;
            let mut w = Writer::default();
            w.u64(member);
            w.u32(now);
            publish(SCOPE, &exchange::qp_key(b'c', id), &w.0);
            let unconnected = matches!(q.state(), state::IBV_QPS_RESET | state::IBV_QPS_INIT);
            if unconnected || q.kind == kind::IBV_QPT_UD {
                card.open.push((id, now));
                card.connectable |= unconnected && q.kind != kind::IBV_QPT_UD;
            }
        }
    }
    Ok(())
}

/// Brings the driver's QP to a state with the attributes that the program had set.
unsafe fn modify(q: &mut Qp, to: ibv_qp_state::Type, what: i32, patch: impl FnOnce(&mut ibv_qp_attr)) -> Outcome<()> {
    let mut attr: ibv_qp_attr = core::ptr::read(&q.attr);
    attr.qp_state = to;
    patch(&mut attr);
    let f = need(driver::loaded().and_then(|d| d.modify_qp), "ibv_modify_qp")?;
    let ret = f(q.real, &mut attr, mask::STATE | what);
    if ret != 0 {
        return Err(format!("QP {:#x} cannot be brought to state {to}: error {ret}", q.number()));
    }
    Ok(())
}

unsafe fn connect(info: &Info, contexts: &[*mut Context]) -> Outcome<()> {
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
    // The key tables of all processes that may be named in a remote operation.
    let mut members: Vec<u64> = found.iter().map(|f| f.1).collect();
    members.extend(cards.iter().filter(|c| c.connectable).map(|c| c.member));
    members.sort_unstable();
    members.dedup();
    let asked: Vec<[u8; 9]> = members.iter().map(|&m| exchange::table_key(m)).collect();
    let tables = exchange::ask(&asked).ok_or("the peers' keys cannot be queried")?;
    let mut maps: BTreeMap<u64, *const KeyMap> = BTreeMap::new();
    let mut merged: BTreeMap<u64, Vec<(u32, u32)>> = BTreeMap::new();
    for (member, table) in members.iter().zip(tables) {
        let mut pairs = Vec::new();
        let bytes = table.unwrap_or_default();
        let mut r = Reader(&bytes);
        while let (Some(from), Some(to)) = (r.u32(), r.u32()) {
            pairs.push((from, to));
        }
        for port in cards.iter().filter(|c| c.member == *member).flat_map(|c| &c.ports) {
            merged.entry(port.id.0).or_default().extend_from_slice(&pairs);
        }
        maps.insert(*member, Box::into_raw(Box::new(KeyMap::new(pairs.into_iter()))));
    }
    let map_of = |member: u64| maps.get(&member).copied().unwrap_or(core::ptr::null());
    for (guid, pairs) in merged {
        directory.by_device.insert(guid, Box::into_raw(Box::new(KeyMap::new(pairs.into_iter()))));
    }
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
