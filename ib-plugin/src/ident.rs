//! Who a device is on the network: GUIDs, LIDs, and GID tables; and the translation between what a program has seen and
//! what there is after a restart.
//!
//! # Safety
//! Contexts passed in are the driver's.
use crate::{driver, wire};
use alloc::{vec, vec::Vec};
use rdma_sys::*;

pub(crate) type Gid = [u8; 16];

/// One entry of a GID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GidEntry {
    pub(crate) gid: Gid,
    pub(crate) index: u32,
    pub(crate) kind: u32,
    pub(crate) ifindex: u32,
}

/// One port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortIdent {
    /// Its link is up.
    pub(crate) active: bool,
    /// InfiniBand or Ethernet, `IBV_LINK_LAYER_*`.
    pub(crate) link_layer: u8,
    pub(crate) lid: u16,
    pub(crate) table_len: i32,
    pub(crate) gids: Vec<GidEntry>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ident {
    pub(crate) node_guid: u64,
    pub(crate) sys_guid: u64,
    /// Port 1 first.
    pub(crate) ports: Vec<PortIdent>,
}

/// A port of the computation: node GUID as the program saw it first, and port number.
pub(crate) type PortId = (u64, u8);

pub(crate) unsafe fn vctx(real: *mut ibv_context) -> Option<*mut verbs_context> {
    ((*real).abi_compat as usize == usize::MAX)
        .then(|| real.cast::<u8>().sub(core::mem::offset_of!(verbs_context, context)).cast())
}

/// Full port attributes from the driver; 0 or an errno value.
pub(crate) unsafe fn query_port(real: *mut ibv_context, port: u8, attr: *mut ibv_port_attr, len: usize) -> i32 {
    if let Some(f) = vctx(real).and_then(|v| (*v).query_port) {
        return f(real, port, attr, len);
    }
    driver::loaded().and_then(|d| d.query_port).map_or(libc::EOPNOTSUPP, |f| f(real, port, attr))
}

impl Ident {
    pub(crate) unsafe fn read(real: *mut ibv_context) -> Option<Self> {
        let d = driver::loaded()?;
        let mut attr: ibv_device_attr = core::mem::zeroed();
        if d.query_device?(real, &mut attr) != 0 {
            return None;
        }
        let mut ports = vec![PortIdent::default(); attr.phys_port_cnt as usize];
        for (i, port) in ports.iter_mut().enumerate() {
            let mut p: ibv_port_attr = core::mem::zeroed();
            if query_port(real, i as u8 + 1, &mut p, size_of::<ibv_port_attr>()) == 0 {
                (port.lid, port.table_len) = (p.lid, p.gid_tbl_len);
                (port.active, port.link_layer) = (p.state == ibv_port_state::IBV_PORT_ACTIVE, p.link_layer);
            }
            if d.query_gid_table.is_none()
                && let Some(f) = d.query_gid
            {
                for index in 0..port.table_len {
                    let mut gid: ibv_gid = core::mem::zeroed();
                    if f(real, i as u8 + 1, index, &mut gid) == 0 && gid.raw != [0; 16] {
                        port.gids.push(GidEntry { gid: gid.raw, index: index as u32, kind: 0, ifindex: 0 });
                    }
                }
            }
        }
        if let Some(f) = d.query_gid_table {
            let most: usize = ports.iter().map(|p| p.table_len.max(0) as usize).sum();
            let mut table: Vec<ibv_gid_entry> = Vec::with_capacity(most);
            let n = f(real, table.as_mut_ptr(), most, 0, size_of::<ibv_gid_entry>());
            if n > 0 {
                table.set_len((n as usize).min(most));
            }
            for e in &table {
                if let Some(port) = ports.get_mut((e.port_num as usize).wrapping_sub(1)) {
                    port.gids.push(GidEntry { gid: e.gid.raw, index: e.gid_index, kind: e.gid_type, ifindex: e.ndev_ifindex });
                }
            }
        }
        Some(Self { node_guid: attr.node_guid, sys_guid: attr.sys_image_guid, ports })
    }

    /// How well `now` stands for this device: the same hardware before all, then ports whose links are up and alike.
    pub(crate) fn likeness(&self, now: &Self) -> u32 {
        let ports = self.ports.iter().zip(&now.ports).map(|(seen, now)| {
            u32::from(now.active >= seen.active) * 4 + u32::from(now.link_layer == seen.link_layer) * 2
                + u32::from(seen.gids.iter().all(|e| counterpart(e, now).is_some_and(|c| class(&c.gid) == class(&e.gid))))
        });
        u32::from(now.node_guid == self.node_guid) << 16 | ports.sum::<u32>()
    }

    pub(crate) fn port(&self, port: u8) -> Option<&PortIdent> {
        self.ports.get((port as usize).wrapping_sub(1))
    }
}

/// Link-local, IPv4-mapped, or other: a GID is replaced by one of its own class.
fn class(gid: &Gid) -> u8 {
    if gid[0] == 0xfe && gid[1] & 0xc0 == 0x80 {
        0
    } else if gid[..10] == [0; 10] && gid[10..12] == [0xff, 0xff] {
        1
    } else {
        2
    }
}

/// The entry of `now` that stands for `entry` of the table seen before: same type and class, then the same index.
pub(crate) fn counterpart(entry: &GidEntry, now: &PortIdent) -> Option<GidEntry> {
    let score = |e: &GidEntry| {
        u32::from(e.kind == entry.kind) * 4 + u32::from(class(&e.gid) == class(&entry.gid)) * 8 + u32::from(e.index == entry.index)
    };
    now.gids.iter().copied().max_by_key(|e| (score(e), core::cmp::Reverse(e.index)))
}

impl PortIdent {
    pub(crate) fn at(&self, index: u32) -> Option<&GidEntry> {
        self.gids.iter().find(|e| e.index == index)
    }
}

/// What one port of some process was called, and is called now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortMap {
    pub(crate) id: PortId,
    pub(crate) lids: (u16, u16),
    pub(crate) gids: Vec<(Gid, Gid)>,
}

impl PortMap {
    pub(crate) fn put(&self, w: &mut wire::Writer) {
        w.u64(self.id.0);
        w.u8(self.id.1);
        w.u16(self.lids.0);
        w.u16(self.lids.1);
        w.u32(self.gids.len() as u32);
        for (a, b) in &self.gids {
            w.bytes(a);
            w.bytes(b);
        }
    }

    pub(crate) fn get(r: &mut wire::Reader<'_>) -> Option<Self> {
        let id = (r.u64()?, r.u8()?);
        let lids = (r.u16()?, r.u16()?);
        let n = r.u32()?;
        let mut gids = Vec::new();
        for _ in 0..n {
            gids.push((r.array()?, r.array()?));
        }
        Some(Self { id, lids, gids })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(node_guid: u64, active: bool, last: u8) -> Ident {
        let mut gid = [0; 16];
        (gid[0], gid[15]) = (0xfd, last);
        let gids = vec![GidEntry { gid, index: 0, kind: 2, ifindex: 1 }];
        Ident { node_guid, sys_guid: 0, ports: vec![PortIdent { active, link_layer: 2, lid: 0, table_len: 1, gids }] }
    }

    #[test]
    fn the_same_hardware_is_most_alike_then_a_link_that_is_up() {
        let seen = device(1, true, 1);
        let (same, up, down) = (device(1, false, 2), device(2, true, 3), device(3, false, 4));
        assert!(seen.likeness(&same) > seen.likeness(&up));
        assert!(seen.likeness(&up) > seen.likeness(&down));
        let empty = Ident { ports: vec![PortIdent { gids: vec![], ..up.ports[0].clone() }], ..up.clone() };
        assert!(seen.likeness(&up) > seen.likeness(&empty), "a port without a GID of the class");
    }
}
