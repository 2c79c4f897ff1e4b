//! Key maps: what the program calls a key, to what the driver calls it now.
//!
//! Before a restart there is no map. A restart makes one with every key that was live; a key made later is the same number
//! on both sides, which holds because a new registration is repeated until its keys collide with none in the map. A key
//! whose region is gone keeps its place and leads to [`DEAD`], so its number never comes to mean something else. A device's
//! local keys are its own process's; its remote keys are those of all processes, for a connection that is made after the restart
//! may lead to any of them, and only the key says to which.
use alloc::{boxed::Box, collections::BTreeSet, vec, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

/// A key that no driver gives out for a live region.
pub(crate) const DEAD: u32 = u32::MAX;
const EMPTY: u64 = u64::MAX;

/// Open addressing, at most half full; entries are `virtual << 32 | real`.
#[derive(Debug)]
pub(crate) struct KeyMap {
    slots: Box<[AtomicU64]>,
    mask: usize,
}

#[inline(always)]
fn hash(key: u32) -> usize {
    (u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

impl KeyMap {
    /// Of pairs (virtual, real). Later pairs win.
    pub(crate) fn new(pairs: impl ExactSizeIterator<Item = (u32, u32)>) -> Self {
        let n = (pairs.len() * 2 + 2).next_power_of_two();
        let map = Self { slots: vec![(); n].into_iter().map(|()| AtomicU64::new(EMPTY)).collect(), mask: n - 1 };
        for (from, to) in pairs {
            map.slot(from).store(u64::from(from) << 32 | u64::from(to), Ordering::Relaxed);
        }
        map
    }

    /// As [`KeyMap::new`], and never freed: whoever reads it holds no lock.
    pub(crate) fn leak(pairs: impl ExactSizeIterator<Item = (u32, u32)>) -> *const Self {
        Box::into_raw(Box::new(Self::new(pairs)))
    }

    /// Adds to `live` the keys which the last map had and whose regions are gone: they stay out of use.
    pub(crate) fn renew(last: Option<&Self>, live: &mut Vec<(u32, u32)>) {
        let known: BTreeSet<u32> = live.iter().map(|p| p.0).collect();
        live.extend(last.into_iter().flat_map(Self::pairs).map(|p| p.0).filter(|k| !known.contains(k)).map(|k| (k, DEAD)));
    }

    /// The slot of this key, or the empty one where it belongs.
    #[inline(always)]
    fn slot(&self, key: u32) -> &AtomicU64 {
        let mut i = hash(key);
        loop {
            // SAFETY: there is one more of them than the mask says.
            let slot = unsafe { self.slots.get_unchecked(i & self.mask) };
            let v = slot.load(Ordering::Relaxed);
            if v == EMPTY || (v >> 32) as u32 == key {
                return slot;
            }
            i += 1;
        }
    }

    /// The real key of a virtual one.
    #[inline(always)]
    pub(crate) fn get(&self, key: u32) -> u32 {
        match self.slot(key).load(Ordering::Relaxed) {
            EMPTY => key,
            v => v as u32,
        }
    }

    /// True when this number already means something to the program.
    pub(crate) fn reserves(&self, key: u32) -> bool {
        self.slot(key).load(Ordering::Relaxed) != EMPTY
    }

    /// The region behind a key is gone.
    pub(crate) fn kill(&self, key: u32) {
        if self.reserves(key) {
            self.slot(key).store(u64::from(key) << 32 | u64::from(DEAD), Ordering::Relaxed);
        }
    }

    /// All pairs.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.slots.iter().map(|s| s.load(Ordering::Relaxed)).filter(|&v| v != EMPTY).map(|v| ((v >> 32) as u32, v as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_reserves_and_kills() {
        let map = KeyMap::new((0..1000u32).map(|k| (k * 256, k * 256 + 7)).collect::<alloc::vec::Vec<_>>().into_iter());
        for k in 0..1000u32 {
            assert_eq!(map.get(k * 256), k * 256 + 7);
            assert_eq!(map.get(k * 256 + 1), k * 256 + 1, "an unknown key is the same on both sides");
        }
        assert!(map.reserves(256) && !map.reserves(255));
        map.kill(256);
        assert_eq!(map.get(256), DEAD);
        assert!(map.reserves(256));
        assert_eq!(map.pairs().count(), 1000);
        assert_eq!(KeyMap::new([].into_iter()).get(5), 5);
    }
}
