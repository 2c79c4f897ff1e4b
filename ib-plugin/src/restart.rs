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
use crate::device::Device;
use crate::exchange::{Card, Names};
use crate::ident::Ident;
use crate::keys::KeyMap;
use crate::pd::Pd;
use crate::place::place;
use crate::attr::mask;
use crate::qp::{Qp, Tail, kind, state};
use crate::quiesce::{contexts, port_maps};
use crate::reconnect::connect;
use crate::{cm, driver, fds};
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use core::mem::zeroed;
use core::ptr::null_mut;
use core::sync::atomic::Ordering;
use rdma_sys::*;
use slackwater_plugin::{Info, Verdict, protect_fd};

pub(crate) type Outcome<T> = Result<T, String>;

pub(crate) const NO_RDMA: &str = "the program uses RDMA, and there is none here; restart it where `ibv_devices` lists a device";

/// One round.
pub(crate) unsafe fn round(info: &mut Info) -> Verdict {
    let contexts = contexts();
    let outcome = match info.round {
        0 => rebuild(info, &contexts).map(|()| if contexts.is_empty() { Verdict::Done } else { Verdict::Again }),
        // Also where no device is open yet: it will be, to talk to those who keep their names.
        1 => connect(info, &contexts).map(|()| Verdict::Done),
        _ => Ok(Verdict::Done),
    };
    outcome.unwrap_or_else(|message| {
        slackwater_plugin::report(info, &message);
        Verdict::Failed
    })
}

pub(crate) fn need<T>(f: Option<T>, what: &str) -> Outcome<T> {
    f.ok_or_else(|| format!("the driver has no {what}"))
}

pub(crate) fn failed(what: &str) -> String {
    format!("{what} fails after the restart (errno {})", driver::pass_errno())
}

unsafe fn rebuild(info: &Info, contexts: &[*mut Context]) -> Outcome<()> {
    let mut card = Card { member: info.member, ..Card::default() };
    Card::count(info.members);
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
        visible.extend((*ctx).events.numbers());
        visible.extend((*ctx).objects.lock().channels.0.iter().flat_map(|&c| (*c).source.numbers()));
    }
    fds::hold(&visible);
    place(contexts)?;
    let mut keys: BTreeMap<*mut Device, Keys> = BTreeMap::new();
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
        if !c.events.attach(real) {
            return Err(failed("dup3 for asynchronous events"));
        }
        let now = Ident::read(real).ok_or_else(|| failed("ibv_query_device"))?;
        if let Some(seen) = &(*device).seen {
            card.ports.extend(port_maps(seen, &now));
        }
        (*device).now = Some(now);
        objects(d, c, keys.entry(device).or_default())?;
    }
    for (device, mut keys) in keys {
        let device = &mut *device;
        KeyMap::renew(device.lkeys.as_ref(), &mut keys.local);
        device.lkeys = KeyMap::leak(keys.local.into_iter());
        KeyMap::renew(device.told.as_ref(), &mut keys.remote);
        device.told = KeyMap::leak(keys.remote.iter().copied());
        if let Some(seen) = &device.seen {
            card.names.push(Names { guid: seen.node_guid, qps: Vec::new(), keys: keys.remote });
        }
    }
    queues(contexts, &mut card)?;
    if !card.publish() {
        return Err("the coordinator takes no published values".into());
    }
    Ok(())
}

#[derive(Default)]
struct Keys {
    local: Vec<(u32, u32)>,
    remote: Vec<(u32, u32)>,
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
        if !ch.source.attach(ch.real) {
            return Err(failed("dup3 for a completion channel"));
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
        q.owe_for_pending();
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

/// Queue pairs up to INIT, and what they are called now.
unsafe fn queues(contexts: &[*mut Context], card: &mut Card) -> Outcome<()> {
    for &ctx in contexts {
        let Some(guid) = (*(*ctx).device).seen.as_ref().map(|s| s.node_guid) else { continue };
        let qps = (*ctx).objects.lock().qps.0.clone();
        for qp in qps {
            let q = &mut *qp;
            let mut cap: ibv_qp_cap = core::ptr::read(&q.cap);
            if !q.create_real(&mut cap) {
                return Err(failed(&format!("ibv_create_qp for QP {:#x}", q.number())));
            }
            (q.translated, q.copies, q.attention) = (true, true, true);
            q.slow_receives(true);
            q.markers = 0;
            q.sq.tail = Tail::default();
            q.completed = q.sq.signaled;
            if q.state() != state::IBV_QPS_RESET {
                let extra = if q.kind == kind::IBV_QPT_UD { mask::QKEY } else { mask::ACCESS_FLAGS };
                modify(q, state::IBV_QPS_INIT, mask::PKEY_INDEX | mask::PORT | extra, |_| {})?;
            }
            if let Some(names) = card.names.iter_mut().find(|n| n.guid == guid) {
                names.qps.push((q.number(), (*q.real).qp_num));
            }
        }
    }
    Ok(())
}

/// Brings the driver's QP to a state with the attributes that the program had set.
pub(crate) unsafe fn modify(q: &mut Qp, to: ibv_qp_state::Type, what: i32, patch: impl FnOnce(&mut ibv_qp_attr)) -> Outcome<()> {
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
