//! The rest of the computation, as a restart has found it: ports, queue pairs and keys under the names that programs know,
//! and what they are called now. Replaced as a whole at each restart, read without a lock.
//!
//! # Safety
//! Contexts and handles are ours; the directory is leaked, so references to it stay valid.
use crate::ah::Ah;
use crate::context::Context;
use crate::ident::{self, Gid, PortId, PortMap};
use crate::keys::KeyMap;
use crate::qp::Qp;
use alloc::{boxed::Box, collections::BTreeMap, vec::Vec};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};
use rdma_sys::ibv_ah_attr;

/// A queue pair: node GUID (as first seen) and number, as programs call it.
pub(crate) type QpId = (u64, u32);

/// Where a queue pair is now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) number: u32,
    pub(crate) keys: *const KeyMap,
}

/// The directory.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) gids: BTreeMap<Gid, (PortId, Gid)>,
    pub(crate) lids: BTreeMap<u16, (PortId, u16)>,
    back: BTreeMap<Gid, Gid>,
    pub(crate) qps: BTreeMap<QpId, Peer>,
    numbers_back: BTreeMap<u32, u32>,
    /// Sorted: numbers that name some QP to some program, and keys that name a region on a device of ours.
    pub(crate) taken_numbers: Vec<u32>,
    pub(crate) taken_keys: Vec<u32>,
    /// Of the device with this GUID, all regions of all its processes.
    pub(crate) by_device: BTreeMap<u64, *const KeyMap>,
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
            self.back.insert(now, seen);
        }
        if map.lids.0 != 0 {
            self.lids.insert(map.lids.0, (map.id, map.lids.1));
        }
    }

    pub(crate) fn qp(&mut self, id: QpId, peer: Peer) {
        self.numbers_back.insert(peer.number, id.1);
        self.taken_numbers.push(id.1);
        self.qps.insert(id, peer);
    }

    /// Makes this the directory that everybody reads.
    pub(crate) fn install(mut self) {
        for taken in [&mut self.taken_numbers, &mut self.taken_keys] {
            taken.sort_unstable();
            taken.dedup();
        }
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

    pub(crate) fn find(&self, av: &ibv_ah_attr, number: u32) -> Peer {
        let port = self.destination(av);
        if let Some(peer) = port.and_then(|p| self.qps.get(&(p.0, number))) {
            return *peer;
        }
        // Made after the restart: the same number on both sides.
        let keys = port.and_then(|p| self.by_device.get(&p.0)).copied().unwrap_or(core::ptr::null());
        Peer { number, keys }
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
        if let Some(seen) = d.back.get(&av.grh.dgid.raw) {
            av.grh.dgid.raw = *seen;
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
    directory().map_or(Peer { number, keys: core::ptr::null() }, |d| d.find(av, number))
}

/// Destination of a datagram.
pub(crate) fn datagram_qpn(qp: &Qp, ah: &Ah, number: u32) -> u32 {
    if qp.translated { find(&ah.attr, number).number } else { number }
}

/// Source of a datagram, as the program knows it.
pub(crate) fn source_qpn(number: u32) -> u32 {
    directory().and_then(|d| d.numbers_back.get(&number)).copied().unwrap_or(number)
}

/// True after a restart, also in a process that had no device open then.
pub(crate) fn translate() -> bool {
    directory().is_some()
}

/// A new QP must not have this number.
pub(crate) fn is_number_taken(number: u32) -> bool {
    directory().is_some_and(|d| d.taken_numbers.binary_search(&number).is_ok())
}

/// A new region must not have this key.
pub(crate) fn is_key_taken(key: u32) -> bool {
    directory().is_some_and(|d| d.taken_keys.binary_search(&key).is_ok())
}

/// From the driver's addresses to the program's in a global routing header (RoCE v2 puts an IP header there: IPv4 in the last
/// 20 bytes, IBTA annex A17.4.5.1); nothing before a restart. `moved`: the program knows the receiving device by old addresses.
pub(crate) fn header(grh: &mut [u8; 40], moved: bool) {
    let Some(d) = directory() else { return };
    let (six, four) = (grh[0] >> 4 == 6, grh[20] >> 4 == 4);
    let fields = if six { [8, 24] } else { [32, 36] };
    if !six && !four {
        return;
    }
    for &at in &fields[..if moved { 2 } else { 1 }] {
        let mut gid = [0; 16];
        let from = if six { 0 } else { 12 };
        if !six {
            gid[10..12].fill(0xff);
        }
        gid[from..].copy_from_slice(&grh[at..at + 16 - from]);
        if let Some(seen) = d.back.get(&gid) {
            grh[at..at + 16 - from].copy_from_slice(&seen[from..]);
        }
    }
}
