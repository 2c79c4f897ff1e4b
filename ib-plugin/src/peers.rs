//! The rest of the computation, as a restart has found it: ports, queue pairs and keys under the names that programs know,
//! and what they are called now. Replaced as a whole at each restart, read without a lock.
//!
//! # Safety
//! Contexts and handles are ours; the directory is leaked, so references to it stay valid.
use crate::ah::Ah;
use crate::context::Context;
use crate::device::Device;
use crate::exchange::Card;
use crate::ident::{self, Gid, PortId, PortMap};
use crate::keys::KeyMap;
use crate::qp::Qp;
use crate::sync::Lock;
use alloc::{boxed::Box, collections::BTreeMap, vec::Vec};
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};
use rdma_sys::{ibv_ah_attr, ibv_wc};

/// A queue pair: node GUID (as first seen) and number, as programs call it.
pub(crate) type QpId = (u64, u32);

/// Where a queue pair is now, and the keys of its device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) number: u32,
    pub(crate) keys: *const KeyMap,
}

/// The directory.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    gids: BTreeMap<Gid, (PortId, Gid)>,
    lids: BTreeMap<u16, (PortId, u16)>,
    gids_back: BTreeMap<Gid, (PortId, Gid)>,
    lids_back: BTreeMap<u16, (PortId, u16)>,
    /// Every queue pair of every process, and what it is called now.
    qps: BTreeMap<QpId, u32>,
    /// By the GUID of its node as first seen and its number now, what it is called by programs.
    qps_back: BTreeMap<QpId, u32>,
    /// Of the device with this GUID, all remote keys of all processes.
    keys: BTreeMap<u64, *const KeyMap>,
}

static DIRECTORY: AtomicPtr<Directory> = AtomicPtr::new(null_mut());

fn directory() -> Option<&'static Directory> {
    // SAFETY: null, or leaked.
    unsafe { DIRECTORY.load(Ordering::Acquire).as_ref() }
}

impl Directory {
    pub(crate) fn port(&mut self, map: &PortMap) {
        for &(seen, now) in &map.gids {
            self.gids.insert(seen, (map.id, now));
            self.gids_back.insert(now, (map.id, seen));
        }
        if map.lids.0 != 0 {
            self.lids.insert(map.lids.0, (map.id, map.lids.1));
            self.lids_back.insert(map.lids.1, (map.id, map.lids.0));
        }
    }

    /// Where everything is after a restart.
    pub(crate) fn of(cards: &[Card]) -> Self {
        let mut all = Self::default();
        let mut keys: BTreeMap<u64, Vec<(u32, u32)>> = BTreeMap::new();
        for card in cards {
            card.ports.iter().for_each(|port| all.port(port));
            for names in &card.names {
                for &(number, now) in &names.qps {
                    all.qps.insert((names.guid, number), now);
                    all.qps_back.insert((names.guid, now), number);
                }
                keys.entry(names.guid).or_default().extend_from_slice(&names.keys);
            }
        }
        all.keys = keys.into_iter().map(|(guid, pairs)| (guid, KeyMap::leak(pairs.into_iter()))).collect();
        all
    }

    /// The remote keys of a device.
    pub(crate) fn keys(&self, guid: u64) -> *const KeyMap {
        self.keys.get(&guid).copied().unwrap_or(null())
    }

    /// Makes this the directory that everybody reads.
    pub(crate) fn install(self) {
        DIRECTORY.store(Box::into_raw(Box::new(self)), Ordering::Release);
    }

    /// The port that an address leads to.
    pub(crate) fn destination(&self, av: &ibv_ah_attr) -> Option<PortId> {
        if av.is_global != 0 {
            // SAFETY: all bytes of the union are plain data.
            return self.gids.get(&unsafe { av.grh.dgid.raw }).map(|p| p.0);
        }
        self.lids.get(&av.dlid).map(|p| p.0)
    }

    /// A queue pair that was made after the restart has the same number on both sides.
    pub(crate) fn find(&self, av: &ibv_ah_attr, number: u32) -> Peer {
        let Some((guid, _)) = self.destination(av) else { return Peer { number, keys: null() } };
        Peer { number: self.qps.get(&(guid, number)).copied().unwrap_or(number), keys: self.keys(guid) }
    }

    /// From the program's names to the driver's.
    pub(crate) unsafe fn outward(&self, ctx: *mut Context, av: &mut ibv_ah_attr) {
        if av.is_global != 0 {
            if let Some((_, now)) = self.gids.get(&av.grh.dgid.raw) {
                av.grh.dgid.raw = *now;
            }
            let device = &*(*ctx).device;
            if let (Some(seen), Some(now)) = (&device.seen, &device.now)
                && let (Some(seen), Some(now)) = (seen.port(av.port_num), now.port(av.port_num))
                && let Some(entry) = seen.at(av.grh.sgid_index.into())
                && let Some(real) = ident::counterpart(entry, now)
            {
                av.grh.sgid_index = real.index as u8;
            }
        }
        if let Some((_, now)) = self.lids.get(&av.dlid) {
            av.dlid = *now;
        }
    }
}

/// From the program's names to the driver's; nothing before a restart.
pub(crate) unsafe fn outward(ctx: *mut Context, av: &mut ibv_ah_attr) {
    if let Some(d) = directory() {
        d.outward(ctx, av);
    }
}

/// From the driver's names to the program's; nothing before a restart.
pub(crate) unsafe fn inward(ctx: *mut Context, av: &mut ibv_ah_attr) {
    let Some(d) = directory() else { return };
    if av.is_global != 0 {
        if let Some(seen) = d.gids_back.get(&av.grh.dgid.raw) {
            av.grh.dgid.raw = seen.1;
        }
        let device = &*(*ctx).device;
        if let (Some(seen), Some(now)) = (&device.seen, &device.now)
            && let (Some(seen), Some(now)) = (seen.port(av.port_num), now.port(av.port_num))
            && let Some(entry) = now.at(av.grh.sgid_index.into())
            && let Some(known) = seen.gids.iter().find(|e| ident::counterpart(e, now) == Some(*entry))
        {
            av.grh.sgid_index = known.index as u8;
        }
    }
}

/// The peer QP behind a program's names; itself before a restart.
pub(crate) fn find(av: &ibv_ah_attr, number: u32) -> Peer {
    directory().map_or(Peer { number, keys: null() }, |d| d.find(av, number))
}

/// Destination of a datagram.
pub(crate) fn datagram_qpn(qp: &Qp, ah: &Ah, number: u32) -> u32 {
    if qp.translated { find(&ah.attr, number).number } else { number }
}

/// True after a restart, also in a process that had no device open then.
pub(crate) fn known() -> bool {
    directory().is_some()
}

/// Before a device is opened: a program that was started after a restart has not heard who is called what, and who waits for it
/// keeps the names of before. Whoever took part in the restart knows, and so do its forks.
pub(crate) fn learn() {
    static ASKED: Lock<bool> = Lock::new(false);
    let mut asked = ASKED.lock();
    if !core::mem::replace(&mut *asked, true)
        && !known()
        && let Some(cards) = Card::of_last_restart()
    {
        Directory::of(&cards).install();
    }
}

/// True if a new queue pair of this device must not have this number: some program calls another one by it.
pub(crate) fn reserved(device: &Device, number: u32) -> bool {
    let Some(d) = directory() else { return false };
    match &device.seen {
        Some(seen) => d.qps.contains_key(&(seen.node_guid, number)),
        // Opened for the first time: it may be that of any of them.
        None => d.qps.keys().any(|id| id.1 == number),
    }
}

/// The same of a region's remote key.
pub(crate) fn reserved_key(device: &Device, key: u32) -> bool {
    let Some(d) = directory() else { return false };
    // SAFETY: leaked.
    let has = |map: &*const KeyMap| unsafe { map.as_ref() }.is_some_and(|map| map.reserves(key));
    match &device.seen {
        Some(seen) => has(&d.keys(seen.node_guid)),
        None => d.keys.values().any(has),
    }
}

/// A region of ours is gone.
pub(crate) fn kill_key(device: &Device, key: u32) {
    let map = directory().zip(device.seen.as_ref()).map(|(d, seen)| d.keys(seen.node_guid));
    // SAFETY: null, or leaked.
    if let Some(map) = map.and_then(|map| unsafe { map.as_ref() }) {
        map.kill(key);
    }
}

/// A datagram's source, from the driver's names to the program's, in its completion and in the global routing header before it, if
/// there is one; nothing before a restart. `moved`: the program knows the device that received it by other addresses, too.
pub(crate) fn source(w: &mut ibv_wc, grh: Option<&mut [u8; 40]>, moved: bool) {
    let Some(d) = directory() else { return };
    let local = d.lids_back.get(&w.slid).map(|&(port, seen)| {
        w.slid = seen;
        port.0
    });
    let guid = grh.and_then(|grh| swap(grh, &d.gids_back, moved)).or(local);
    if let Some(number) = guid.and_then(|guid| d.qps_back.get(&(guid, w.src_qp))) {
        w.src_qp = *number;
    }
}

/// The other way, for the driver to make an address of.
pub(crate) fn source_outward(w: &mut ibv_wc, grh: &mut [u8; 40], moved: bool) {
    let Some(d) = directory() else { return };
    if let Some((_, now)) = d.lids.get(&w.slid) {
        w.slid = *now;
    }
    swap(grh, &d.gids, moved);
}

/// Replaces the addresses in a global routing header, the destination's only with `both`; the GUID of the node where it comes from.
/// RoCE v2 puts an IP header there, IPv4 in the last 20 bytes (IBTA annex A17.4.5.1), and what is before that is anything: which it is,
/// the addresses say.
fn swap(grh: &mut [u8; 40], names: &BTreeMap<Gid, (PortId, Gid)>, both: bool) -> Option<u64> {
    // The source, then the destination.
    for (fields, from) in [([8, 24], 0), ([32, 36], 12)] {
        let known = fields.map(|at| {
            let mut gid = [0; 16];
            gid[10..12].fill(0xff);
            gid[from..].copy_from_slice(&grh[at..at + 16 - from]);
            names.get(&gid)
        });
        if known == [None, None] {
            continue;
        }
        for (at, name) in fields.into_iter().zip(known).take(if both { 2 } else { 1 }) {
            if let Some((_, name)) = name {
                grh[at..at + 16 - from].copy_from_slice(&name[from..]);
            }
        }
        return known[0].map(|(port, _)| port.0);
    }
    None
}
