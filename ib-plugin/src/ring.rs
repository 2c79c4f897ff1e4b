//! What must be posted again after a restart: receives, each with its wr_id and scatter list.
//!
//! A receive queue completes in order, so its ring is popped by counting. A shared receive queue does not: there each
//! posted receive has a slot whose number travels as the driver's wr_id (defect: popped by count, one lost, one doubled).
use alloc::{boxed::Box, vec, vec::Vec};
use rdma_sys::{ibv_recv_wr, ibv_sge};

/// In place of a scatter count: a receive of our own (a soak); its id is an index into the soak buffers.
const OWN: u64 = u64::MAX;

/// What begins a slot; its scatter list follows, each entry as large as this.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Cell {
    id: u64,
    count: u64,
}

const _: () = assert!(size_of::<Cell>() == size_of::<ibv_sge>() && size_of::<Cell>() == 1 << CELL);
/// Bytes of a cell, as a power of two.
const CELL: u32 = 4;

/// Slots of posted receives: each a power of two of cells, so that one shift leads to all that a post writes.
pub(crate) struct Slots {
    cells: Box<[Cell]>,
    /// Cells of a slot, as a power of two.
    shift: u32,
    /// Bytes of a slot, as a power of two.
    bytes: u64,
    /// Longest scatter list.
    stride: usize,
    /// A receive of another number of scatter entries than one has been remembered: `put_one` must not be used any more. Until
    /// then all slots but those of our own say one.
    pub(crate) mixed: bool,
}

impl Slots {
    pub(crate) fn new(slots: usize, sges: usize) -> Self {
        let stride = sges.max(1);
        let shift = (stride + 1).next_power_of_two().trailing_zeros();
        let cells = vec![Cell { id: 0, count: 1 }; slots << shift].into();
        Self { cells, shift, bytes: u64::from(shift + CELL), stride, mixed: false }
    }

    #[inline(always)]
    unsafe fn at(&mut self, slot: usize) -> *mut Cell {
        // SAFETY: slot < len by the callers' masks.
        unsafe { self.cells.as_mut_ptr().byte_add(slot << self.bytes) }
    }

    /// Remembers a receive of one scatter entry, as long as there has been no other (`mixed`): the slot says so already.
    #[inline(always)]
    pub(crate) unsafe fn put_one(&mut self, slot: usize, wr: *const ibv_recv_wr) {
        // SAFETY: as in `put`.
        unsafe {
            let at = self.at(slot);
            (*at).id = (*wr).wr_id;
            at.add(1).cast::<ibv_sge>().copy_from_nonoverlapping((*wr).sg_list, 1);
        }
    }

    /// Remembers a receive. The caller has checked `num_sge` against the queue's limit.
    pub(crate) unsafe fn put(&mut self, slot: usize, wr: *const ibv_recv_wr) {
        // SAFETY: slot < len by the callers' masks; the program gave num_sge entries, and there is room for `stride`.
        unsafe {
            let at = self.at(slot);
            let n = ((*wr).num_sge as usize).min(self.stride);
            self.mixed |= n != 1;
            at.write(Cell { id: (*wr).wr_id, count: n as u64 });
            at.add(1).cast::<ibv_sge>().copy_from_nonoverlapping((*wr).sg_list, n);
        }
    }

    pub(crate) fn put_own(&mut self, slot: usize, id: u64) {
        self.cells[slot << self.shift] = Cell { id, count: OWN };
    }

    pub(crate) fn no_longer_own(&mut self, slot: usize) {
        self.cells[slot << self.shift].count = 1;
    }

    #[inline(always)]
    pub(crate) fn id(&self, slot: usize) -> u64 {
        self.cells[slot << self.shift].id
    }

    #[inline(always)]
    pub(crate) fn is_own(&self, slot: usize) -> bool {
        self.cells[slot << self.shift].count == OWN
    }

    /// `slot` becomes what these cells of another are.
    fn copy(&mut self, slot: usize, other: &[Cell]) {
        let at = slot << self.shift;
        self.cells[at..at + other.len()].copy_from_slice(other);
    }

    /// A slot with its scatter list.
    fn cells(&self, slot: usize) -> &[Cell] {
        let at = slot << self.shift;
        &self.cells[at..=at + self.stride]
    }

    /// The scatter list.
    pub(crate) fn list(&self, slot: usize) -> Vec<ibv_sge> {
        if self.is_own(slot) {
            return Vec::new();
        }
        let cells = self.cells(slot);
        // SAFETY: written by `put` as scatter entries, of which there are as many.
        cells[1..=cells[0].count as usize].iter().map(|c| unsafe { core::ptr::from_ref(c).cast::<ibv_sge>().read() }).collect()
    }
}

/// The ring of a QP's own receive queue.
pub(crate) struct Ring {
    pub(crate) slots: Slots,
    /// Receives completed; written under the receive CQ's lock.
    pub(crate) head: u64,
    /// Receives posted; written under the receive queue's lock.
    pub(crate) tail: u64,
    pub(crate) depth: u64,
    mask: u64,
}

impl Ring {
    pub(crate) fn new(depth: u32, sges: u32) -> Self {
        // One is written before the driver says whether it takes it.
        let n = (u64::from(depth) + 1).next_power_of_two();
        Self { slots: Slots::new(n as usize, sges as usize), head: 0, tail: 0, depth: depth.into(), mask: n - 1 }
    }

    #[inline(always)]
    pub(crate) fn slot(&self, at: u64) -> usize {
        (at & self.mask) as usize
    }

    pub(crate) fn posted(&self) -> u64 {
        self.tail.wrapping_sub(self.head)
    }

    /// Forgets receives of our own, which a new queue does not have; the program's keep their order.
    pub(crate) fn forget_own(&mut self) {
        let mut to = self.head;
        for at in self.head..self.tail {
            let slot = self.slot(at);
            if self.slots.is_own(slot) {
                self.slots.no_longer_own(slot);
            } else {
                let from = self.slots.cells(slot).to_vec();
                self.slots.copy(self.slot(to), &from);
                to += 1;
            }
        }
        self.tail = to;
    }

    pub(crate) fn clear(&mut self) {
        for at in self.head..self.tail {
            let slot = self.slot(at);
            if self.slots.is_own(slot) {
                self.slots.no_longer_own(slot);
            }
        }
        self.head = self.tail;
    }
}

/// Marks the driver's wr_id of a shared receive: the upper half is this tag, the lower the slot.
pub(crate) const SRQ_TAG: u64 = 0x5a1c_3a7e_0000_0000;

/// Receives of a shared receive queue.
pub(crate) struct Pool {
    pub(crate) slots: Slots,
    free: Vec<u32>,
    used: Vec<bool>,
    /// Order of posting, so that a restart posts in the order of the program.
    stamp: Vec<u64>,
    clock: u64,
}

impl Pool {
    pub(crate) fn new(depth: u32, sges: u32) -> Self {
        let n = depth.max(1) as usize;
        Self {
            slots: Slots::new(n, sges as usize),
            free: (0..n as u32).rev().collect(),
            used: vec![false; n],
            stamp: vec![0; n],
            clock: 0,
        }
    }

    pub(crate) fn take(&mut self) -> Option<usize> {
        let slot = self.free.pop()? as usize;
        self.used[slot] = true;
        self.stamp[slot] = self.clock;
        self.clock += 1;
        Some(slot)
    }

    pub(crate) fn give(&mut self, slot: usize) {
        self.used[slot] = false;
        self.free.push(slot as u32);
    }

    /// The slot that a wr_id of the driver's names; None: it is not one of ours.
    pub(crate) fn slot_of(&self, wr_id: u64) -> Option<usize> {
        let slot = (wr_id as u32) as usize;
        (wr_id >> 32 == SRQ_TAG >> 32 && self.used.get(slot) == Some(&true)).then_some(slot)
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.used.len() - self.free.len()
    }

    /// Slots in use, oldest first.
    pub(crate) fn in_order(&self) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.used.len()).filter(|&s| self.used[s]).collect();
        all.sort_unstable_by_key(|&s| self.stamp[s]);
        all
    }

    /// Room for more receives; the old ones keep their slots.
    pub(crate) fn grow(&mut self, depth: u32, sges: u32) {
        let old = self.used.len();
        let n = depth as usize;
        if n <= old {
            return;
        }
        let mut slots = Slots::new(n, (sges as usize).max(self.slots.stride));
        for s in 0..old {
            slots.copy(s, self.slots.cells(s));
        }
        self.slots = slots;
        self.free.extend((old as u32..n as u32).rev());
        self.used.resize(n, false);
        self.stamp.resize(n, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wr(id: u64, sge: &mut ibv_sge) -> ibv_recv_wr {
        ibv_recv_wr { wr_id: id, next: core::ptr::null_mut(), sg_list: sge, num_sge: 1 }
    }

    #[test]
    fn shared_receives_complete_out_of_order() {
        let mut pool = Pool::new(4, 1);
        let mut sge = ibv_sge { addr: 1, length: 2, lkey: 3 };
        let slots: Vec<usize> = (0..4u64)
            .map(|id| {
                let s = pool.take().unwrap();
                // SAFETY: one entry.
                unsafe { pool.slots.put(s, &wr(id, &mut sge)) };
                s
            })
            .collect();
        assert!(pool.take().is_none());
        let third = pool.slot_of(SRQ_TAG | slots[2] as u64).unwrap();
        assert_eq!(pool.slots.id(third), 2);
        pool.give(third);
        assert!(pool.slot_of(SRQ_TAG | slots[2] as u64).is_none(), "a slot is named once");
        let left: Vec<u64> = pool.in_order().into_iter().map(|s| pool.slots.id(s)).collect();
        assert_eq!(left, [0, 1, 3]);
        pool.grow(8, 2);
        assert_eq!(pool.in_order().len(), 3);
        assert_eq!(pool.slots.list(slots[3])[0].lkey, 3);
        assert_eq!((0..5).filter_map(|_| pool.take()).count(), 5);
    }

    #[test]
    fn a_ring_is_popped_by_counting() {
        let mut ring = Ring::new(3, 1);
        let mut sge = ibv_sge { addr: 0, length: 0, lkey: 0 };
        for id in 0..10u64 {
            let slot = ring.slot(ring.tail);
            // SAFETY: one entry.
            unsafe { ring.slots.put(slot, &wr(id, &mut sge)) };
            ring.tail += 1;
            if id >= 3 {
                assert_eq!(ring.slots.id(ring.slot(ring.head)), id - 3);
                ring.head += 1;
            }
        }
        assert_eq!(ring.posted(), 3);
        let (slot, tail) = (ring.slot(ring.tail - 2), ring.tail);
        ring.slots.put_own(slot, 77);
        ring.forget_own();
        assert_eq!(ring.tail, tail - 1);
        let left: Vec<u64> = (ring.head..ring.tail).map(|i| ring.slots.id(ring.slot(i))).collect();
        assert_eq!(left, [7, 9]);
    }
}
