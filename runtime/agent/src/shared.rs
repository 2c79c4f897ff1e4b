//! What processes share besides descriptors: mapped objects and System V IPC. Each is saved by one of them.
//!
//! Every process reports what it could save ([`Shared::take`]); when all stand, the coordinator tells each what others
//! save, and it leaves that out ([`Shared::fill`], [`without`]). Objects are told apart by device and inode, System V
//! objects by [`Class::device`] and their number. Rule: what is reported is saved, unless the answer says otherwise: so only
//! memory through which the program may write now counts (of other memory the image may have nothing), and a segment
//! counts as a whole, since what is not mapped of it is saved from a mapping of ours.
use crate::{maps, pages::PAGE};
use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use slackwater_image::meta::{Backing, Region, flag};
use slackwater_objects::{
    Mapped, Undo, fill_ipc,
    ipc::{Class, Ipc},
    survey_ipc, take_on_undos,
};
use slackwater_protocol::message::SharedRange;

/// What is known so far.
#[derive(Default)]
pub struct Shared {
    ipc: Ipc,
    mapped: Vec<Mapped>,
    undos: Vec<Undo>,
}

/// Device, inode, and offset of a shared region's first byte.
fn key(r: &Region) -> Option<(u64, u64, u64)> {
    match &r.backing {
        Backing::Shared(f) if r.flags & flag::SYSV != 0 => Some((Class::Memory.device(), f.ino, f.offset)),
        Backing::Shared(f) => Some((f.dev, f.ino, f.offset)),
        _ => None,
    }
}

/// The part of an object that a shared region maps.
pub fn range(r: &Region) -> Option<SharedRange> {
    let (dev, ino, start) = key(r)?;
    Some(SharedRange { dev, ino, start, end: start + (r.range.end - r.range.start), write: r.prot & 2 != 0 })
}

/// The addresses of a region but for those parts of its object that are saved elsewhere.
pub fn without(r: &Region, elsewhere: &[SharedRange]) -> Vec<(u64, u64)> {
    let mut left = alloc::vec![(r.range.start, r.range.end)];
    let Some((dev, ino, offset)) = key(r) else { return left };
    for s in elsewhere.iter().filter(|s| (s.dev, s.ino) == (dev, ino)) {
        let address = |at: u64| r.range.start.saturating_add(at.saturating_sub(offset)).min(r.range.end);
        let (start, end) = (address(s.start), address(s.end));
        let cut = |(a, b): (u64, u64)| [(a, b.min(start)), (a.max(end), b)];
        left = left.into_iter().flat_map(cut).filter(|(a, b)| a < b).collect();
    }
    left
}

impl Shared {
    /// What there is.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn take() -> Result<(Self, Vec<SharedRange>), String> {
        let regions = maps::shared()?;
        let segment = |r: &&Region| r.flags & flag::SYSV != 0;
        let mapped = regions.iter().filter(segment).filter_map(range);
        let mapped: Vec<Mapped> =
            mapped.map(|s| Mapped { id: s.ino as i32, start: s.start, end: s.end, write: s.write }).collect();
        let ipc = survey_ipc(&mapped).map_err(|e| e.to_string())?;
        let known = |id: u64| ipc.segments.iter().any(|s| s.head.id as u64 == id);
        let mut out: Vec<SharedRange> =
            regions.iter().filter_map(range).filter(|s| s.dev != Class::Memory.device() || !known(s.ino)).collect();
        out.extend(ipc.objects().map(|(class, id, size)| SharedRange {
            dev: class.device(),
            ino: id as u64,
            start: 0,
            end: size.max(1).next_multiple_of(PAGE),
            write: true,
        }));
        // The same part of an object may be mapped thousands of times.
        out.sort_unstable_by_key(|s| (s.dev, s.ino, s.start, s.end, s.write));
        out.dedup();
        Ok((Self { ipc, mapped, undos: Vec::new() }, out))
    }

    /// The section of the image: System V objects that are not saved elsewhere. None: there are none.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn fill(&mut self, elsewhere: &[SharedRange]) -> Result<Option<Vec<u8>>, String> {
        let skip = |class: Class, id: i32| elsewhere.iter().any(|s| (s.dev, s.ino) == (class.device(), id as u64));
        self.undos = fill_ipc(&mut self.ipc, &self.mapped, skip).map_err(|e| e.to_string())?;
        if self.ipc == Ipc::default() {
            return Ok(None);
        }
        postcard::to_allocvec(&self.ipc).map(Some).map_err(|e| e.to_string())
    }

    /// In the restarted process: it takes on again what SEM_UNDO does at its end.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn restarted(&self) -> Result<(), String> {
        take_on_undos(&self.undos).map_err(|e| alloc::format!("what SEM_UNDO does at the end of the process: {e}"))
    }
}
