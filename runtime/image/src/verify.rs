//! Checks every byte of an open image, on several threads.
//!
//! Rules: the file is read in its own order, in pieces that stay in a core's cache, so that one pass runs at the speed of memory
//! (or of the disk). The error is that of the damaged part which lies first in the file, whichever thread finds one first.
use crate::checksum::{Hasher, checksum};
use crate::codec::is_zero;
use crate::error::{ImageError, Problem};
use crate::layout::HEADER_LEN;
use crate::reader::{Extent, Reader, read_at};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread, vec,
    vec::Vec,
};

/// What is read at once.
const PIECE: usize = 256 << 10;
/// What a thread takes at once: neighbours in the file with at most this many bytes, or one larger part.
const UNIT: u64 = 4 << 20;

/// What was verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Bytes of the file that were checked.
    pub bytes: u64,
    /// Chunks with content.
    pub chunks: u64,
}

impl Reader {
    /// Checks the checksum of every chunk, section and index block, and that all filling between them is zero, on
    /// `threads` threads (0: as many as there are processors). Memory: 256 KiB a thread, and the list of parts.
    ///
    /// # Errors
    /// The first damaged part of the file.
    pub fn verify(&self, threads: usize) -> Result<Verified, ImageError> {
        let extents = self.extents(true);
        let units = units(&extents);
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let threads = threads.clamp(1, units.len().max(1));
        let next = AtomicUsize::new(0);
        let worst: Mutex<Option<(usize, Problem)>> = Mutex::new(None);
        let work = || {
            let mut buffer = vec![0; PIECE];
            let mut hasher = Hasher::new();
            loop {
                // Relaxed: the counter hands out numbers, and nothing else is published by it.
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(&(first, last)) = units.get(number) else { return };
                if let Err(problem) = self.verify_unit(&extents, first, last, &mut hasher, &mut buffer) {
                    next.store(units.len(), Ordering::Relaxed);
                    let mut worst = worst.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    if worst.as_ref().is_none_or(|(n, _)| number < *n) {
                        *worst = Some((number, problem));
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                // A thread that cannot be had is no harm: this one does its work.
                let _ = thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        match worst.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some((_, problem)) => Err(self.error(problem)),
            None => Ok(Verified {
                bytes: self.file_len(),
                chunks: (extents.len() - self.directory.sections.len() - self.directory.index.len()) as u64,
            }),
        }
    }

    /// Extents `first..last`, and the filling before each; after the last of all, also that before the directory.
    fn verify_unit(
        &self,
        extents: &[Extent],
        first: usize,
        last: usize,
        hasher: &mut Hasher,
        buffer: &mut [u8],
    ) -> Result<(), Problem> {
        let mut at = match first.checked_sub(1).and_then(|i| extents.get(i)) {
            Some(before) => before.offset + before.len,
            None => HEADER_LEN as u64,
        };
        // What `buffer` holds of the file.
        let (mut held, mut held_end) = (0, 0);
        for extent in &extents[first..last] {
            let end = extent.offset + extent.len;
            if end - at > buffer.len() as u64 {
                self.filling(at, extent.offset, buffer)?;
                let sum = self.sum(extent, hasher, buffer)?;
                (held, held_end) = (0, 0);
                if sum != extent.checksum {
                    return Err(self.damaged(extent, "its checksum does not fit its content"));
                }
            } else {
                if at < held || end > held_end {
                    let unit_end = extents[last - 1].offset + extents[last - 1].len;
                    (held, held_end) = (at, unit_end.min(at + buffer.len() as u64));
                    read_at(&self.file, &mut buffer[..(held_end - held) as usize], held)?;
                }
                let part = |from: u64, to: u64| &buffer[(from - held) as usize..(to - held) as usize];
                if !is_zero(part(at, extent.offset)) {
                    return Err(Problem::Filling { offset: at, len: extent.offset - at });
                }
                if checksum(part(extent.offset, end)) != extent.checksum {
                    return Err(self.damaged(extent, "its checksum does not fit its content"));
                }
            }
            at = end;
        }
        if last == extents.len() { self.filling(at, self.body_end, buffer) } else { Ok(()) }
    }

    fn filling(&self, from: u64, to: u64, buffer: &mut [u8]) -> Result<(), Problem> {
        let mut at = from;
        while at < to {
            let n = (to - at).min(buffer.len() as u64);
            let piece = &mut buffer[..n as usize];
            read_at(&self.file, piece, at)?;
            if !is_zero(piece) {
                return Err(Problem::Filling { offset: from, len: to - from });
            }
            at += n;
        }
        Ok(())
    }
}

/// Cuts the extents into units of work; at least one, so that an image without extents has its filling looked at.
fn units(extents: &[Extent]) -> Vec<(usize, usize)> {
    let mut units = Vec::new();
    let mut first = 0;
    for (i, extent) in extents.iter().enumerate() {
        if i > first && extent.offset + extent.len - extents[first].offset > UNIT {
            units.push((first, i));
            first = i;
        }
    }
    units.push((first, extents.len()));
    units
}
