//! Where an image goes: the [`Sink`], the buffer before it, and what can go wrong.
//!
//! Rules: each byte is written once, in order; small pieces are gathered, large ones go straight from where they lie.
use alloc::vec::Vec;

/// Where the image goes.
pub trait Sink {
    /// Writes all of `bytes` at `offset`, which is always the number of bytes written before: a sink may ignore it and
    /// append.
    ///
    /// # Errors
    /// The errno of the failed system call (a short write is to be carried on; a write of nothing is ENOSPC).
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), i32>;
}

impl<S: Sink + ?Sized> Sink for &mut S {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), i32> {
        (**self).write_at(offset, bytes)
    }
}

impl Sink for Vec<u8> {
    fn write_at(&mut self, _: u64, bytes: &[u8]) -> Result<(), i32> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

/// Into a regular file, as its only content.
#[cfg(feature = "std")]
impl Sink for std::fs::File {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), i32> {
        // 5 is EIO: the one error of ours that is none of the system's is a write of nothing.
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset).map_err(|e| e.raw_os_error().unwrap_or(5))
    }
}

/// Why an image could not be written. After the first error the writer only repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A write failed.
    #[error("writing {len} bytes at offset {offset} of the image failed with errno {errno}{}", hint(*errno))]
    Sink {
        /// Errno.
        errno: i32,
        /// Offset in the file.
        offset: u64,
        /// Length of the write.
        len: usize,
    },
    /// Options that make no image.
    #[error("this build cannot write an image with {0}; use the codec raw or lz4 on a page size of 4, 16 or 64 KiB")]
    Options(&'static str),
    /// Misuse: not whole pages, or outside of the address space.
    #[error("{len} bytes at {vaddr:#x} are not whole pages: this is a defect of slackwater's agent, please report it")]
    Pages {
        /// Address.
        vaddr: u64,
        /// Length.
        len: usize,
    },
    /// Misuse: a section's name or length.
    #[error("a section's {0}: this is a defect of slackwater's agent or of a plugin, please report it")]
    Section(&'static str),
    /// No memory for the writer itself.
    #[error("no {0} bytes of memory for writing the image; raise the memory limit of the program (ulimit -v, cgroup)")]
    Memory(usize),
}

fn hint(errno: i32) -> &'static str {
    match errno {
        28 => " (ENOSPC): no space is left; free some, or choose another --dir",
        122 => " (EDQUOT): your quota is used up; free some space, or choose another --dir",
        27 => " (EFBIG): the file would be larger than the file system or `ulimit -f` allows",
        5 => " (EIO): the disk has a fault; choose another --dir",
        _ => "",
    }
}

/// Makes room for `more` elements, or says that there is none.
pub(crate) fn reserve<T>(vec: &mut Vec<T>, more: usize) -> Result<(), WriteError> {
    vec.try_reserve(more).map_err(|_| WriteError::Memory(more.saturating_mul(size_of::<T>())))
}

/// A vector of zeros, or the word that there is no memory for it.
pub(crate) fn zeroed<T: Clone + From<u8>>(len: usize) -> Result<Vec<T>, WriteError> {
    let mut vec = Vec::new();
    reserve(&mut vec, len)?;
    vec.resize(len, T::from(0));
    Ok(vec)
}

/// Writes of at least this length go to the sink straight from the caller's memory.
const DIRECT: usize = 128 << 10;
/// Smaller ones are gathered to this length.
const BUFFER: usize = 512 << 10;

/// The sink with a buffer before it.
pub(crate) struct Out<S> {
    sink: S,
    buffer: Vec<u8>,
    /// Bytes of the image so far, those in the buffer included.
    pub(crate) pos: u64,
}

impl<S: Sink> Out<S> {
    /// With an empty image.
    pub(crate) fn new(sink: S) -> Result<Out<S>, WriteError> {
        let mut buffer = Vec::new();
        reserve(&mut buffer, BUFFER)?;
        Ok(Out { sink, buffer, pos: 0 })
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        self.sink.write_at(offset, bytes).map_err(|errno| WriteError::Sink { errno, offset, len: bytes.len() })
    }

    /// Writes what is in the buffer.
    pub(crate) fn flush(&mut self) -> Result<(), WriteError> {
        let buffer = core::mem::take(&mut self.buffer);
        let done = if buffer.is_empty() { Ok(()) } else { self.put(self.pos - buffer.len() as u64, &buffer) };
        self.buffer = buffer;
        self.buffer.clear();
        done
    }

    /// Adds `bytes` to the image.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        if bytes.len() >= DIRECT {
            self.flush()?;
            self.put(self.pos, bytes)?;
        } else {
            if self.buffer.len() + bytes.len() > BUFFER {
                self.flush()?;
            }
            self.buffer.extend_from_slice(bytes);
        }
        self.pos += bytes.len() as u64;
        Ok(())
    }

    /// Zeros up to the next multiple of `page`.
    pub(crate) fn align(&mut self, page: u32) -> Result<(), WriteError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut missing = self.pos.next_multiple_of(page.into()) - self.pos;
        while missing > 0 {
            let n = missing.min(ZEROS.len() as u64);
            self.append(&ZEROS[..n as usize])?;
            missing -= n;
        }
        Ok(())
    }
}
