//! The reader: opens an image, and trusts nothing in it.
//!
//! Rules: no length or offset from the file is used before it is bounded by the file's own length and by the limits in
//! [`crate::layout`]; memory is taken by the size of what is really there; every error names what, where, and what to do. No
//! arithmetic on values of the file may overflow, no slice may be indexed by one.
//!
//! [`Reader::open`] checks everything but the chunks' content: header, footer, directory, index, sections, and that all of
//! them tile the file without overlap and without a gap of a page or more. [`crate::verify`] checks the rest: then each bit
//! of the file has been looked at.
use crate::checksum::{Hasher, checksum};
use crate::codec::decompress;
use crate::error::{ImageError, Problem};
use crate::layout::{
    CHUNK_LEN, Chunk, Codec, Directory, FOOTER_LEN, Footer, HEADER_LEN, Header, INDEX_BLOCK, MAX_DIRECTORY, MAX_NAME,
    MAX_SECTION, MAX_SECTIONS, SectionEntry,
};
use serde::de::DeserializeOwned;
use std::{
    format,
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    string::{String, ToString},
    vec,
    vec::Vec,
};

/// A part of the file with a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub offset: u64,
    pub len: u64,
    pub checksum: u64,
    pub part: Part,
}

/// What an extent holds; the number is that of the chunk, section or index block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Chunk(u32),
    Section(u32),
    Index(u32),
}

/// An image that has been opened.
#[derive(Debug)]
pub struct Reader {
    pub(crate) file: File,
    pub(crate) name: String,
    len: u64,
    header: Header,
    pub(crate) directory: Directory,
    /// Where the directory begins: the extents lie before.
    pub(crate) body_end: u64,
    chunks: Vec<Chunk>,
}

impl Reader {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// [`ImageError`], which names the path.
    pub fn open_path(path: &Path) -> Result<Reader, ImageError> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Reader::open_named(file, name),
            Err(error) => Err(ImageError { image: name, problem: Problem::Open(error) }),
        }
    }

    /// Opens the image in `file`, which must be readable and seekable; its position is not used.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open(file: File) -> Result<Reader, ImageError> {
        Reader::open_named(file, String::from("(open file)"))
    }

    /// The same, with the name that errors are to give.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open_named(file: File, name: String) -> Result<Reader, ImageError> {
        match Self::load(file) {
            Ok(reader) => Ok(Reader { name, ..reader }),
            Err(problem) => Err(ImageError { image: name, problem }),
        }
    }

    fn load(file: File) -> Result<Reader, Problem> {
        let len = file.metadata().map_err(Problem::Open)?.len();
        let least = (HEADER_LEN + FOOTER_LEN) as u64;
        if len < least {
            return Err(Problem::Length { found: len, expected: format!("and no image has less than {least}") });
        }
        let mut record = [0; HEADER_LEN];
        read_at(&file, &mut record, 0)?;
        let header = Header::decode(&record)?;

        let footer_at = len - FOOTER_LEN as u64;
        let mut record = [0; FOOTER_LEN];
        read_at(&file, &mut record, footer_at)?;
        let footer = Footer::decode(&record).ok_or(Problem::Footer(footer_at))?;
        if footer.file_len != len {
            return Err(Problem::Length {
                found: len,
                expected: format!("and it was written with {}", footer.file_len),
            });
        }
        let page = header.page_size;
        let bounds = footer.directory >= u64::from(page)
            && footer.directory_len <= MAX_DIRECTORY
            && footer.directory.checked_add(footer.directory_len) == Some(footer_at);
        let table = |why: &str| Problem::Table {
            what: "the directory".into(),
            offset: footer.directory,
            len: footer.directory_len,
            why: why.into(),
        };
        if !bounds {
            return Err(table("it is out of bounds"));
        }
        let mut bytes = vec![0; footer.directory_len as usize];
        read_at(&file, &mut bytes, footer.directory)?;
        if checksum(&bytes) != footer.directory_sum {
            return Err(table("its checksum does not fit its content"));
        }
        let directory: Directory = match postcard::take_from_bytes(&bytes) {
            Ok((directory, [])) => directory,
            _ => return Err(table("it does not decode")),
        };
        let mut reader = Reader {
            file,
            name: String::new(),
            len,
            header,
            directory,
            body_end: footer.directory,
            chunks: Vec::new(),
        };
        reader.check_directory()?;
        // First the places alone: what overlaps must not be read twice over.
        reader.check_extents(reader.extents(false))?;
        reader.load_index()?;
        reader.check_extents(reader.extents(true))?;
        reader.check_memory()?;
        reader.check_sections()?;
        Ok(reader)
    }

    /// Names and limits.
    fn check_directory(&self) -> Result<(), Problem> {
        let sections = &self.directory.sections;
        let table = |why: String| Problem::Table {
            what: "the directory".into(),
            offset: self.body_end,
            len: self.len - FOOTER_LEN as u64 - self.body_end,
            why,
        };
        if sections.len() > MAX_SECTIONS {
            return Err(table(format!("it has {} sections, and {MAX_SECTIONS} are allowed", sections.len())));
        }
        let mut names: Vec<&str> = sections.iter().map(|s| s.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(table("two sections have one name".into()));
        }
        if sections.iter().any(|s| s.name.is_empty() || s.name.len() > MAX_NAME || s.len > MAX_SECTION) {
            return Err(table("a section is out of bounds".into()));
        }
        if self.directory.index.iter().any(|b| b.count == 0 || b.count as usize > INDEX_BLOCK) {
            return Err(table("a block of the index is out of bounds".into()));
        }
        Ok(())
    }

    /// All parts of the body by offset; with or without the chunks.
    pub(crate) fn extents(&self, chunks: bool) -> Vec<Extent> {
        let sections = self.directory.sections.iter().enumerate().map(|(i, s)| Extent {
            offset: s.offset,
            len: s.len,
            checksum: s.checksum,
            part: Part::Section(i as u32),
        });
        let index = self.directory.index.iter().enumerate().map(|(i, b)| Extent {
            offset: b.offset,
            len: u64::from(b.count) * CHUNK_LEN as u64,
            checksum: b.checksum,
            part: Part::Index(i as u32),
        });
        let stored = self.chunks.iter().enumerate().filter(|(_, c)| chunks && c.codec != Codec::Zero);
        let stored = stored.map(|(i, c)| Extent {
            offset: c.offset,
            len: c.stored.into(),
            checksum: c.checksum,
            part: Part::Chunk(i as u32),
        });
        let mut all: Vec<Extent> = sections.chain(index).chain(stored).collect();
        all.sort_unstable_by_key(|e| (e.offset, e.len));
        all
    }

    /// All lie in the body, and none over another. Once the chunks are among them, they must also fill it.
    fn check_extents(&self, extents: Vec<Extent>) -> Result<(), Problem> {
        let page = u64::from(self.header.page_size);
        let mut end = page;
        for e in &extents {
            let over = e.offset.checked_add(e.len).filter(|over| *over <= self.body_end && e.offset >= end);
            end = over.ok_or_else(|| self.damaged(e, "it lies outside of the file's body, or over another part"))?;
        }
        if self.chunks.is_empty() && !self.directory.index.is_empty() {
            return Ok(());
        }
        let mut end = page;
        for e in &extents {
            if e.offset - end >= page {
                return Err(self.damaged(e, "bytes before it belong to nothing"));
            }
            end = e.offset + e.len;
        }
        if self.body_end - end >= page {
            return Err(Problem::Filling { offset: end, len: self.body_end - end });
        }
        Ok(())
    }

    fn load_index(&mut self) -> Result<(), Problem> {
        let mut chunks: Vec<Chunk> = Vec::new();
        let mut bytes = Vec::new();
        for (number, block) in self.directory.index.iter().enumerate() {
            let extent = Extent {
                offset: block.offset,
                len: u64::from(block.count) * CHUNK_LEN as u64,
                checksum: block.checksum,
                part: Part::Index(number as u32),
            };
            bytes.resize(block.count as usize * CHUNK_LEN, 0);
            read_at(&self.file, &mut bytes, block.offset)?;
            if checksum(&bytes) != block.checksum {
                return Err(self.damaged(&extent, "its checksum does not fit its content"));
            }
            let (records, _) = bytes.as_chunks::<CHUNK_LEN>();
            chunks.reserve(records.len());
            for (i, record) in records.iter().enumerate() {
                match Chunk::decode(record, self.header.page_size) {
                    Ok(chunk) => chunks.push(chunk),
                    Err(why) => return Err(self.damaged(&extent, &format!("entry {i}: {why}"))),
                }
            }
        }
        chunks.sort_unstable_by_key(|c| c.vaddr);
        self.chunks = chunks;
        Ok(())
    }

    /// No page twice.
    fn check_memory(&self) -> Result<(), Problem> {
        let over = |pair: &[Chunk]| pair[0].end(self.header.page_size) > pair[1].vaddr;
        match self.chunks.windows(2).position(over) {
            None => Ok(()),
            Some(i) => Err(self.bad_chunk(i + 1, "the chunk before it holds the same memory")),
        }
    }

    fn check_sections(&self) -> Result<(), Problem> {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 256 << 10];
        for extent in self.extents(false) {
            if let Part::Section(_) = extent.part
                && self.sum(&extent, &mut hasher, &mut buffer)? != extent.checksum
            {
                return Err(self.damaged(&extent, "its checksum does not fit its content"));
            }
        }
        Ok(())
    }

    /// The checksum of an extent, read piece by piece into `buffer`.
    pub(crate) fn sum(&self, extent: &Extent, hasher: &mut Hasher, buffer: &mut [u8]) -> Result<u64, Problem> {
        let mut done = 0;
        while done < extent.len {
            let n = (extent.len - done).min(buffer.len() as u64);
            let piece = &mut buffer[..n as usize];
            read_at(&self.file, piece, extent.offset + done)?;
            hasher.update(piece);
            done += n;
        }
        Ok(hasher.finish())
    }

    /// The error for a damaged part.
    pub(crate) fn damaged(&self, extent: &Extent, why: &str) -> Problem {
        let what = match extent.part {
            Part::Chunk(i) => return self.bad_chunk(i as usize, why),
            Part::Section(i) => {
                let name = self.directory.sections.get(i as usize).map_or("?", |s| s.name.as_str());
                format!("section {:?}", name.chars().take(64).collect::<String>())
            }
            Part::Index(i) => format!("block {i} of the index"),
        };
        Problem::Table { what, offset: extent.offset, len: extent.len, why: why.into() }
    }

    fn bad_chunk(&self, index: usize, why: &str) -> Problem {
        let chunk = self.chunks.get(index);
        Problem::Chunk {
            index,
            vaddr: chunk.map_or(0, |c| c.vaddr),
            pages: chunk.map_or(0, |c| c.pages),
            offset: chunk.map_or(0, |c| c.offset),
            stored: chunk.map_or(0, |c| c.stored),
            why: why.into(),
        }
    }

    pub(crate) fn error(&self, problem: Problem) -> ImageError {
        ImageError { image: self.name.clone(), problem }
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Name of the file, as errors give it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// The file itself: to read or map raw chunks from.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The sections, in the order of their being written.
    pub fn sections(&self) -> &[SectionEntry] {
        &self.directory.sections
    }

    /// The chunks, ascending by address, none over another.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The bytes of a section.
    ///
    /// # Errors
    /// [`Problem::NoSection`], or it cannot be read or has changed since [`Reader::open`].
    pub fn section_bytes(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let found = self.directory.sections.iter().enumerate().find(|(_, s)| s.name == name);
        let (i, s) = found.ok_or_else(|| self.error(Problem::NoSection(name.into())))?;
        let mut bytes = vec![0; s.len as usize];
        read_at(&self.file, &mut bytes, s.offset).map_err(|p| self.error(p))?;
        if checksum(&bytes) != s.checksum {
            let (offset, len, checksum) = (s.offset, s.len, s.checksum);
            let extent = Extent { offset, len, checksum, part: Part::Section(i as u32) };
            return Err(self.error(self.damaged(&extent, "it has changed since the image was opened")));
        }
        Ok(bytes)
    }

    /// A section that holds a value in postcard. All of it must belong to the value.
    ///
    /// # Errors
    /// As [`Reader::section_bytes`], and [`Problem::Section`].
    pub fn section<T: DeserializeOwned>(&self, name: &str) -> Result<T, ImageError> {
        let bytes = self.section_bytes(name)?;
        let why = match postcard::take_from_bytes(&bytes) {
            Ok((value, [])) => return Ok(value),
            Ok((_, rest)) => format!("{} bytes are left over", rest.len()),
            Err(e) => e.to_string(),
        };
        Err(self.error(Problem::Section { name: name.into(), why }))
    }

    /// Reads chunk `index` of [`Reader::chunks`] into `out`, which then holds its pages (also those of a zero chunk),
    /// checked. At most [`crate::layout::MAX_CHUNK`] bytes.
    ///
    /// # Errors
    /// The chunk is damaged, does not decompress, or there is none of this number.
    pub fn read_chunk(&self, index: usize, out: &mut Vec<u8>) -> Result<(), ImageError> {
        self.chunk_into(index, out).map_err(|p| self.error(p))
    }

    fn chunk_into(&self, index: usize, out: &mut Vec<u8>) -> Result<(), Problem> {
        let chunk = self.chunks.get(index).ok_or_else(|| self.bad_chunk(index, "the index has no such chunk"))?;
        out.clear();
        out.resize(chunk.pages as usize * self.header.page_size as usize, 0);
        let check = |stored: &[u8]| match checksum(stored) == chunk.checksum {
            true => Ok(()),
            false => Err(self.bad_chunk(index, "its checksum does not fit its content")),
        };
        match chunk.codec {
            Codec::Zero => Ok(()),
            Codec::Raw => {
                read_at(&self.file, out, chunk.offset)?;
                check(out)
            }
            codec => {
                let mut stored = vec![0; chunk.stored as usize];
                read_at(&self.file, &mut stored, chunk.offset)?;
                check(&stored)?;
                decompress(codec, &stored, out).map_err(|why| self.bad_chunk(index, why))
            }
        }
    }
}

/// Reads all of `buffer`, or says what could not be read.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), Problem> {
    file.read_exact_at(buffer, offset).map_err(|error| Problem::Io { offset, len: buffer.len() as u64, error })
}
