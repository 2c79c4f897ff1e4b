//! System V segments in the plan: shmat(2), so that the program can detach what it attached.
//!
//! A segment is attached as a whole, but a program may have unmapped, moved or protected parts of it. shmdt(2) finds the
//! parts by where the attachment would begin (address minus offset), and so do we. An attachment that is not whole any
//! more is made at a place that nobody uses, its parts are moved to where they were, and the rest goes.
use super::{Entry, hole};
use crate::memory::segment;
use anyhow::Result;
use slackwater_image::meta::{Backing, Range, Region, flag};
use slackwater_restorer::plan::{Op, op};
use std::collections::BTreeMap;

const PAGE: u64 = 4096;
const EXEC: u32 = 4;
const SHM_RDONLY: u64 = 0o10000;
const SHM_EXEC: u64 = 0o100000;

/// The segment behind a region, if there is one again.
pub fn of(r: &Region, segments: &BTreeMap<i32, u64>) -> Option<i32> {
    segment(r).filter(|id| segments.contains_key(id))
}

fn offset(r: &Region) -> u64 {
    match &r.backing {
        Backing::Shared(id) => id.offset,
        _ => 0,
    }
}

/// One shmat.
#[derive(Debug)]
struct Attachment<'a> {
    id: i32,
    /// Where it begins, or would.
    base: u64,
    len: u64,
    parts: Vec<&'a Region>,
}

impl Attachment<'_> {
    fn is_whole(&self) -> bool {
        let end = self.base.checked_add(self.len);
        let reach = self.parts.iter().fold(self.base, |at, r| if r.range.start == at { r.range.end } else { at });
        Some(reach) == end
    }

    fn op(&self, addr: u64) -> Op {
        let writes = self.parts.iter().any(|r| r.flags & flag::MAYWRITE != 0);
        let runs = self.parts.iter().any(|r| r.prot & EXEC != 0);
        let flags = if writes { 0 } else { SHM_RDONLY } | if runs { SHM_EXEC } else { 0 };
        Op { code: op::SHMAT, addr, len: self.len, flags, fd: self.id as u64, ..Op::default() }
    }
}

fn attachments<'a>(regions: &'a [Region], segments: &BTreeMap<i32, u64>) -> Vec<Attachment<'a>> {
    let mut all: BTreeMap<(u64, i32, bool), Attachment<'a>> = BTreeMap::new();
    for r in regions {
        let Some((id, size)) = of(r, segments).and_then(|id| Some((id, *segments.get(&id)?))) else { continue };
        let base = r.range.start.wrapping_sub(offset(r));
        let writes = r.flags & flag::MAYWRITE != 0;
        let len = size.next_multiple_of(PAGE);
        let new = Attachment { id, base, len, parts: Vec::new() };
        all.entry((base, id, writes)).or_insert(new).parts.push(r);
    }
    all.into_values().collect()
}

/// Adds the steps that attach all segments. What they use on the way is added to `taken`.
///
/// # Errors
/// There is no room.
pub fn attach(entry: &Entry, hop: &Range, top: u64, taken: &mut Vec<Range>, ops: &mut Vec<Op>) -> Result<()> {
    for a in attachments(entry.regions, entry.segments) {
        if a.is_whole() {
            ops.push(a.op(a.base));
            continue;
        }
        let others: Vec<Range> = taken.iter().copied().chain([*hop]).collect();
        let start = hole::find(a.len, &others, top)?;
        taken.push(Range { start, end: start + a.len });
        ops.push(a.op(start));
        for r in &a.parts {
            let len = r.range.end - r.range.start;
            ops.push(Op { code: op::MOVE, addr: r.range.start, len, arg: start + offset(r), ..Op::default() });
        }
        ops.push(Op { code: op::UNMAP, addr: start, len: a.len, ..Op::default() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use slackwater_image::meta::FileId;

    fn part(start: u64, end: u64, offset: u64) -> Region {
        let id = FileId { path: "/SYSV00000000".into(), deleted: true, ino: 7, offset, ..FileId::default() };
        Region {
            range: Range { start, end },
            prot: 3,
            flags: flag::SYSV | flag::MAYWRITE,
            backing: Backing::Shared(id),
        }
    }

    #[test]
    fn parts_belong_to_the_attachment_that_shmdt_would_find() {
        let segments = BTreeMap::from([(7, 0x2f00)]);
        // Attached at 0x10000, its middle page protected otherwise; attached again at 0x20000, without its middle page.
        let mut regions = vec![
            part(0x10000, 0x11000, 0),
            part(0x11000, 0x12000, 0x1000),
            part(0x12000, 0x13000, 0x2000),
            part(0x20000, 0x21000, 0),
            part(0x22000, 0x23000, 0x2000),
        ];
        regions[1].prot = 1;
        let all = attachments(&regions, &segments);
        assert_eq!(
            all.iter().map(|a| (a.base, a.parts.len(), a.is_whole())).collect::<Vec<_>>(),
            [(0x10000, 3, true), (0x20000, 2, false)]
        );
        assert_eq!(all[0].op(0x10000).flags, 0);
        // Another namespace's segment, or one that nobody saved, is memory.
        assert!(attachments(&regions, &BTreeMap::new()).is_empty());
    }
}
