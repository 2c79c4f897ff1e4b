//! The streaming writer: runs in the forked child of a stopped program (or in the stopped program itself).
//!
//! Rules: `alloc` only from the agent's arena, and bounded: a write buffer, a codec's working memory, one block of the
//! index, whatever the amount of memory saved; what is larger than a few pages is asked for in a way that may fail (the
//! program must live on). No system call but through [`Sink`]. Nothing here panics. The file is
//! written from its first byte to its last, each byte once, in writes as large as the caller's runs.
use crate::checksum::{Hasher, checksum};
use crate::codec::{Compressor, is_zero};
use crate::layout::{
    Arch, CHUNK_LEN, Chunk, Codec, Directory, FORMAT, Footer, Header, INDEX_BLOCK, IndexBlock, MAX_BLOCK, MAX_CHUNK,
    MAX_NAME, MAX_SECTION, MAX_SECTIONS, PAGE_SIZES, SectionEntry,
};
use crate::sink::{Out, reserve, zeroed};
pub use crate::sink::{Sink, WriteError};
use alloc::{string::String, vec::Vec};
use serde::Serialize;

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Raw, Lz4, or Zstd with the feature of that name.
    pub codec: Codec,
    /// Page size of this process in bytes.
    pub page_size: u32,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Length of the image in bytes.
    pub bytes: u64,
    /// Pages stored as they are.
    pub raw_pages: u64,
    /// Pages stored compressed.
    pub compressed_pages: u64,
    /// Zero pages in the index (nothing stored).
    pub zero_pages: u64,
    /// Zero pages left out altogether.
    pub dropped_pages: u64,
    /// Entries in the index.
    pub chunks: u64,
}

/// `value` in postcard.
fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, WriteError> {
    let bad = |_| WriteError::Section("content cannot be serialized");
    let mut out = zeroed(postcard::experimental::serialized_size(value).map_err(bad)?)?;
    postcard::to_slice(value, &mut out).map_err(bad)?;
    Ok(out)
}

/// Writes one image. Dropping it without [`Writer::finish`] leaves a file that no reader takes.
pub struct Writer<S> {
    out: Out<S>,
    page: u32,
    compressor: Compressor,
    /// The raw chunk that may still grow (its checksum is in `hasher`).
    raw: Option<Chunk>,
    hasher: Hasher,
    /// The zero chunk that may still grow.
    zero: Option<Chunk>,
    /// Encoded index entries that are not yet in the file.
    entries: Vec<u8>,
    directory: Directory,
    summary: Summary,
    failed: Option<WriteError>,
}

impl<S: Sink> Writer<S> {
    /// Begins an image.
    ///
    /// # Errors
    /// [`WriteError::Options`], or the sink's.
    pub fn new(sink: S, options: Options) -> Result<Writer<S>, WriteError> {
        let arch = Arch::native().ok_or(WriteError::Options("this machine architecture"))?;
        if !PAGE_SIZES.contains(&options.page_size) {
            return Err(WriteError::Options("this page size"));
        }
        let compressor = Compressor::new(options.codec)?;
        let out = Out::new(sink)?;
        let mut writer = Writer {
            out,
            page: options.page_size,
            compressor,
            raw: None,
            hasher: Hasher::new(),
            zero: None,
            entries: Vec::new(),
            directory: Directory::default(),
            summary: Summary::default(),
            failed: None,
        };
        let header = Header { version: FORMAT, arch, page_size: options.page_size, flags: 0 };
        writer.out.append(&header.encode())?;
        writer.out.align(writer.page)?;
        Ok(writer)
    }

    /// Saves whole pages, which lie at `vaddr` in the saved process; runs may come in any order, but no page twice. They
    /// must not change during the call: what may change, the memory in which this writer itself works above all (the agent's
    /// arena), goes through a copy outside of it, or its checksum will not fit. Calls that follow one another in memory make one run: call with as much as is at
    /// hand (1 MiB is plenty).
    ///
    /// Zero pages are never stored. With `drop_zero` they leave no trace (right for private anonymous memory, which is
    /// zero anyhow); without it they are in the index (right for a page that hides a file's).
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn pages(&mut self, vaddr: u64, bytes: &[u8], drop_zero: bool) -> Result<(), WriteError> {
        self.guard(|w| w.save(vaddr, bytes, drop_zero))
    }

    /// Records zero pages which the caller knows without reading them.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn zero_pages(&mut self, vaddr: u64, pages: u64) -> Result<(), WriteError> {
        self.guard(|w| {
            let len = pages.checked_mul(w.page.into()).filter(|len| w.is_run(vaddr, *len));
            let len = len.ok_or(WriteError::Pages { vaddr, len: usize::MAX })?;
            w.zero_run(vaddr, len)
        })
    }

    /// Adds a section. Names are unique.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn section(&mut self, name: &str, content: &[u8]) -> Result<(), WriteError> {
        self.guard(|w| {
            if name.is_empty() || name.len() > MAX_NAME {
                return Err(WriteError::Section("name is empty or longer than 255 bytes"));
            }
            if w.directory.sections.len() >= MAX_SECTIONS || w.directory.sections.iter().any(|s| s.name == name) {
                return Err(WriteError::Section("name is used twice, or there are too many sections"));
            }
            if content.len() as u64 > MAX_SECTION {
                return Err(WriteError::Section("content is longer than 1 GiB"));
            }
            reserve(&mut w.directory.sections, 1)?;
            w.directory.sections.push(SectionEntry {
                name: String::from(name),
                offset: w.out.pos,
                len: content.len() as u64,
                checksum: checksum(content),
            });
            w.out.append(content)
        })
    }

    /// Adds a section that holds `value` in postcard.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn section_of<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), WriteError> {
        self.section(name, &encode(value)?)
    }

    /// Writes index, directory and footer. The sink is not synced: that is the caller's.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn finish(mut self) -> Result<Summary, WriteError> {
        self.guard(|w| {
            w.close_raw()?;
            w.close_zero()?;
            w.flush_index()?;
            let directory = encode(&w.directory)?;
            let at = w.out.pos;
            w.out.append(&directory)?;
            let footer = Footer {
                directory: at,
                directory_len: directory.len() as u64,
                directory_sum: checksum(&directory),
                file_len: w.out.pos + crate::layout::FOOTER_LEN as u64,
            };
            w.out.append(&footer.encode())?;
            w.out.flush()?;
            w.summary.bytes = w.out.pos;
            Ok(())
        })?;
        Ok(self.summary)
    }

    fn guard(&mut self, f: impl FnOnce(&mut Self) -> Result<(), WriteError>) -> Result<(), WriteError> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        let done = f(self);
        self.failed = done.err();
        done
    }

    /// Whether this is a run of whole pages inside the address space.
    fn is_run(&self, vaddr: u64, len: u64) -> bool {
        let page = u64::from(self.page);
        vaddr.is_multiple_of(page) && len.is_multiple_of(page) && vaddr.checked_add(len).is_some()
    }

    fn save(&mut self, vaddr: u64, bytes: &[u8], drop_zero: bool) -> Result<(), WriteError> {
        if !self.is_run(vaddr, bytes.len() as u64) {
            return Err(WriteError::Pages { vaddr, len: bytes.len() });
        }
        let page = self.page as usize;
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let zeros = rest.chunks_exact(page).take_while(|p| is_zero(p)).count();
            if zeros > 0 {
                if drop_zero {
                    self.summary.dropped_pages += zeros as u64;
                } else {
                    self.zero_run(vaddr + at as u64, (zeros * page) as u64)?;
                }
                at += zeros * page;
                continue;
            }
            let len = rest.chunks_exact(page).take_while(|p| !is_zero(p)).count() * page;
            self.data_run(vaddr + at as u64, &rest[..len])?;
            at += len;
        }
        Ok(())
    }

    fn data_run(&mut self, vaddr: u64, run: &[u8]) -> Result<(), WriteError> {
        if matches!(self.compressor, Compressor::Raw) {
            return self.raw_run(vaddr, run);
        }
        let mut at = vaddr;
        for block in run.chunks(MAX_BLOCK) {
            match self.compressor.compress(block) {
                None => self.raw_run(at, block)?,
                Some((codec, stored)) => {
                    let pages = (block.len() / self.page as usize) as u32;
                    let (offset, checksum) = (self.out.pos, checksum(stored));
                    self.out.append(stored)?;
                    let stored = stored.len() as u32;
                    self.summary.compressed_pages += u64::from(pages);
                    self.entry(Chunk { vaddr: at, pages, codec, offset, stored, checksum })?;
                }
            }
            at += block.len() as u64;
        }
        Ok(())
    }

    fn raw_run(&mut self, mut vaddr: u64, mut run: &[u8]) -> Result<(), WriteError> {
        while !run.is_empty() {
            let grows = |c: &Chunk| {
                c.end(self.page) == vaddr
                    && c.offset + u64::from(c.stored) == self.out.pos
                    && (c.stored as usize) < MAX_CHUNK
            };
            let mut chunk = match self.raw.take_if(|c| grows(c)) {
                Some(chunk) => chunk,
                None => {
                    self.close_raw()?;
                    self.out.align(self.page)?;
                    Chunk { vaddr, pages: 0, codec: Codec::Raw, offset: self.out.pos, stored: 0, checksum: 0 }
                }
            };
            let (now, rest) = run.split_at(run.len().min(MAX_CHUNK - chunk.stored as usize));
            self.hasher.update(now);
            self.out.append(now)?;
            chunk.stored += now.len() as u32;
            chunk.pages = chunk.stored / self.page;
            self.raw = Some(chunk);
            self.summary.raw_pages += now.len() as u64 / u64::from(self.page);
            vaddr += now.len() as u64;
            run = rest;
        }
        Ok(())
    }

    fn zero_run(&mut self, mut vaddr: u64, mut len: u64) -> Result<(), WriteError> {
        let page = u64::from(self.page);
        let most = (MAX_CHUNK as u64 / page) as u32;
        while len > 0 {
            let mut chunk = match self.zero.take_if(|c| c.end(self.page) == vaddr && c.pages < most) {
                Some(chunk) => chunk,
                None => {
                    self.close_zero()?;
                    Chunk { vaddr, pages: 0, codec: Codec::Zero, offset: 0, stored: 0, checksum: 0 }
                }
            };
            let now = (len / page).min(u64::from(most - chunk.pages));
            chunk.pages += now as u32;
            self.zero = Some(chunk);
            self.summary.zero_pages += now;
            vaddr += now * page;
            len -= now * page;
        }
        Ok(())
    }

    fn close_raw(&mut self) -> Result<(), WriteError> {
        match self.raw.take() {
            None => Ok(()),
            Some(chunk) => {
                let checksum = self.hasher.finish();
                self.entry(Chunk { checksum, ..chunk })
            }
        }
    }

    fn close_zero(&mut self) -> Result<(), WriteError> {
        self.zero.take().map_or(Ok(()), |chunk| self.entry(chunk))
    }

    /// Adds an entry to the index. A block of the index that is full goes into the file at once: the index takes no
    /// memory by the number of chunks.
    fn entry(&mut self, chunk: Chunk) -> Result<(), WriteError> {
        self.summary.chunks += 1;
        reserve(&mut self.entries, CHUNK_LEN)?;
        self.entries.extend_from_slice(&chunk.encode());
        if self.entries.len() == INDEX_BLOCK * CHUNK_LEN { self.flush_index() } else { Ok(()) }
    }

    fn flush_index(&mut self) -> Result<(), WriteError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let count = (self.entries.len() / CHUNK_LEN) as u32;
        reserve(&mut self.directory.index, 1)?;
        self.directory.index.push(IndexBlock { offset: self.out.pos, count, checksum: checksum(&self.entries) });
        self.out.append(&self.entries)?;
        self.entries.clear();
        Ok(())
    }
}
