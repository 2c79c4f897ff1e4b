//! Where things lie in this process, and where there is room.
use anyhow::{Context, Result, bail};
use slackwater_image::meta::Range;

/// This process's own address space before the jump.
#[derive(Debug, Clone)]
pub struct Here {
    /// Everything mapped.
    pub mapped: Vec<Range>,
    /// Our vdso's text.
    pub vdso: Range,
    /// Our vdso's data pages.
    pub vvar: Range,
    /// The mappings that vdso and vvar consist of: mremap(2) moves one at a time.
    pub vdso_parts: Vec<Range>,
    /// One past the highest mapping (the vsyscall page does not count): everything of ours lies below.
    pub top: u64,
}

impl Here {
    /// Reads /proc/self/maps.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn look() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/self/maps").context("/proc/self/maps")?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let none = Range::default();
        let mut here = Self { mapped: Vec::new(), vdso: none, vvar: none, vdso_parts: Vec::new(), top: 0 };
        for line in text.lines() {
            let Some((range, rest)) = line.split_once(' ') else { continue };
            let Some((start, end)) = range.split_once('-') else { continue };
            let hex = |s| u64::from_str_radix(s, 16).unwrap_or(0);
            let range = Range { start: hex(start), end: hex(end) };
            let name = rest.rsplit(' ').next().unwrap_or("");
            match name {
                "[vsyscall]" => continue,
                "[vdso]" => {
                    here.vdso = range;
                    here.vdso_parts.push(range);
                }
                n if n.starts_with("[vvar") => {
                    here.vdso_parts.push(range);
                    if here.vvar.start == 0 {
                        here.vvar = range;
                    }
                    here.vvar.end = range.end;
                }
                _ => {}
            }
            here.top = here.top.max(range.end);
            here.mapped.push(range);
        }
        here
    }

    /// The vdso with its data: one block.
    pub fn vdso_group(&self) -> Range {
        match (self.vvar.end > self.vvar.start, self.vdso.end > self.vdso.start) {
            (true, true) => {
                Range { start: self.vvar.start.min(self.vdso.start), end: self.vvar.end.max(self.vdso.end) }
            }
            (false, true) => self.vdso,
            _ => Range::default(),
        }
    }
}

/// Room for `len` bytes that touches none of `taken`, with a distance of 64 KiB to each, below `top`.
///
/// # Errors
/// There is none.
pub fn find(len: u64, taken: &[Range], top: u64) -> Result<u64> {
    const GAP: u64 = 1 << 16;
    let mut taken: Vec<Range> = taken.iter().filter(|r| r.end > r.start).copied().collect();
    taken.sort_by_key(|r| r.start);
    let mut at = 0x1_0000_0000u64.min(top / 4).next_multiple_of(GAP);
    for r in taken {
        if r.start.saturating_sub(GAP) >= at + len {
            break;
        }
        at = at.max((r.end + GAP).next_multiple_of(GAP));
    }
    if at + len + GAP > top {
        bail!("no hole of {len} bytes is free in both the restored and the restarting address space");
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_maps() {
        let here = Here::parse(
            "00400000-00401000 r--p 00000000 fe:00 1 /bin/x\n\
             7ffd1000-7ffd5000 r--p 00000000 00:00 0 [vvar]\n\
             7ffd5000-7ffd7000 r--p 00000000 00:00 0 [vvar_vclock]\n\
             7ffd7000-7ffd9000 r-xp 00000000 00:00 0 [vdso]\n\
             ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n",
        );
        assert_eq!(here.top, 0x7ffd_9000);
        assert_eq!(here.vdso_group(), Range { start: 0x7ffd_1000, end: 0x7ffd_9000 });
    }

    #[test]
    fn finds_room_between_and_after_and_says_when_there_is_none() {
        let r = |start, end| Range { start, end };
        let top = 0x80_0000_0000;
        let at = find(0x10_0000, &[r(0x1_0000_0000, 0x2_0000_0000), r(0x2_0030_0000, 0x3_0000_0000)], top).unwrap();
        assert!(at >= 0x2_0001_0000 && at + 0x10_0000 <= 0x2_002f_0000, "{at:#x}");
        let at = find(0x1000_0000, &[r(0x1_0000_0000, 0x2_0000_0000), r(0x2_0030_0000, 0x3_0000_0000)], top).unwrap();
        assert!(at > 0x3_0000_0000);
        assert!(find(0x1000, &[r(0x1_0000, top)], top).is_err());
    }
}
