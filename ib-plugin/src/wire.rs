//! Bytes of published values: little-endian, no padding; a reader never goes past the end.
use alloc::vec::Vec;

#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(&mut self, v: u8) {
        self.0.push(v);
    }
    pub(crate) fn u16(&mut self, v: u16) {
        self.bytes(&v.to_le_bytes());
    }
    pub(crate) fn u32(&mut self, v: u32) {
        self.bytes(&v.to_le_bytes());
    }
    pub(crate) fn u64(&mut self, v: u64) {
        self.bytes(&v.to_le_bytes());
    }
    pub(crate) fn bytes(&mut self, v: &[u8]) {
        self.0.extend_from_slice(v);
    }

    /// In groups of seven bits, the lowest first.
    fn short(&mut self, mut v: u64) {
        while v > 0x7f {
            self.u8(v as u8 | 0x80);
            v >>= 7;
        }
        self.u8(v as u8);
    }

    /// Pairs of numbers of which neighbours are near one another, as numbers are that a driver gives out in turn: what a number is
    /// more than the one before it. Their order is lost.
    pub(crate) fn pairs(&mut self, pairs: &mut [(u32, u32)]) {
        pairs.sort_unstable();
        self.u32(pairs.len() as u32);
        let mut last = (0, 0);
        for &mut (from, to) in pairs {
            let step = i64::from(to) - i64::from(last.1);
            self.short(u64::from(from - last.0));
            self.short((step << 1 ^ step >> 63) as u64);
            last = (from, to);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl Reader<'_> {
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    pub(crate) fn u8(&mut self) -> Option<u8> {
        Some(self.array::<1>()?[0])
    }
    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array()?))
    }

    fn short(&mut self) -> Option<u64> {
        let mut v = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            v |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(v);
            }
        }
        None
    }

    pub(crate) fn pairs(&mut self) -> Option<Vec<(u32, u32)>> {
        let count = self.u32()?;
        let mut last = (0u32, 0u32);
        let pair = |_| {
            let from = u32::try_from(self.short()?).ok()?;
            let step = self.short()?;
            let step = (step >> 1) as i64 ^ -((step & 1) as i64);
            last = (last.0.checked_add(from)?, u32::try_from(i64::from(last.1).checked_add(step)?).ok()?);
            Some(last)
        };
        (0..count).map(pair).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_survive_the_wire() {
        let mut pairs = alloc::vec![(0, u32::MAX), (u32::MAX, 0), (256, 1), (17, 4096), (512, 3)];
        let mut w = Writer::default();
        w.pairs(&mut pairs);
        assert_eq!(Reader(&w.0).pairs().as_deref(), Some(&pairs[..]));
        for n in 0..w.0.len() {
            assert_eq!(Reader(&w.0[..n]).pairs(), None, "cut off");
        }
        assert_eq!(Reader(&[1, 0, 0, 0, 1, 1]).pairs(), None, "a number below zero");
        let mut near: Vec<(u32, u32)> = (0..256).map(|n| (n * 256 + 90, n * 256 + 7)).collect();
        let mut w = Writer::default();
        w.pairs(&mut near);
        assert!(w.0.len() <= 4 + 4 * 256, "{} bytes", w.0.len());
    }
}
