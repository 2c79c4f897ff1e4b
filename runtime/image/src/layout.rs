//! How an image is laid out in its file: the numbers, and the fixed-size records as bytes.
//!
//! Drawn and explained in `docs/image-format.md`. Rules that hold here:
//! * Everything is little-endian and is encoded field by field; no struct of ours is ever copied to the disk.
//! * Decoding never panics and never allocates by a number that it has read: it returns what is wrong in words.
//! * Records only; where they stand in the file is up to the writer and the reader.
use crate::checksum::checksum;
use alloc::{string::String, vec::Vec};
use core::fmt;
use serde::{Deserialize, Serialize};

/// First bytes of every image. The line ends and the 0x1a catch a transfer in text mode, as in PNG.
pub const MAGIC: [u8; 8] = *b"SLKIMG\r\n";
/// First bytes of the footer, with which every whole image ends.
pub const FOOTER_MAGIC: [u8; 8] = *b"SLKEND\x1a\n";
/// Version of the format that this crate writes.
pub const FORMAT: Version = Version { major: 0, minor: 4, patch: 0 };

/// Length of the encoded [`Header`] in bytes. Zero bytes fill the file up to the first page boundary.
pub const HEADER_LEN: usize = 48;
/// Length of the encoded [`Footer`] in bytes.
pub const FOOTER_LEN: usize = 48;
/// Length of one encoded [`Chunk`] in bytes.
pub const CHUNK_LEN: usize = 40;
/// No chunk stands for more than this many bytes of memory.
pub const MAX_CHUNK: usize = 4 << 20;
/// A compressed chunk stands for at most this many bytes of memory: what is decoded at once.
pub const MAX_BLOCK: usize = 256 << 10;
/// Entries in one block of the index.
pub const INDEX_BLOCK: usize = 16_384;
/// Longest name of a section, in bytes.
pub const MAX_NAME: usize = 255;
/// Most sections in an image.
pub const MAX_SECTIONS: usize = 4096;
/// Longest section, in bytes.
pub const MAX_SECTION: u64 = 1 << 30;
/// Longest directory, in bytes.
pub const MAX_DIRECTORY: u64 = 64 << 20;
/// Page sizes that the format allows.
pub const PAGE_SIZES: [u32; 3] = [4096, 16_384, 65_536];

/// Version of the format. See `docs/image-format.md` for what makes which number step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Steps when older readers cannot read the image (from 1.0 on).
    pub major: u16,
    /// Before 1.0 as `major`; then: steps for additions that an older reader cannot pass over.
    pub minor: u16,
    /// Steps for additions that older readers may pass over: a new section.
    pub patch: u16,
}

impl Version {
    /// Whether a reader of version `self` reads an image of version `image`.
    pub fn reads(self, image: Version) -> bool {
        self.major == image.major && if self.major == 0 { self.minor == image.minor } else { self.minor >= image.minor }
    }
}

impl core::str::FromStr for Version {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Version, &'static str> {
        let mut numbers = text.split('.').map(str::parse);
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => Ok(Version { major, minor, patch }),
            _ => Err("its format is no version such as 0.1.0"),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Machine architecture of the saved process; the numbers are those of ELF's `e_machine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arch {
    /// EM_X86_64.
    X86_64,
    /// EM_AARCH64.
    Aarch64,
}

impl Arch {
    /// The architecture that this code was compiled for; None: one that slackwater does not know.
    pub const fn native() -> Option<Arch> {
        if cfg!(target_arch = "x86_64") {
            Some(Arch::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Arch::Aarch64)
        } else {
            None
        }
    }

    /// ELF's number.
    pub const fn number(self) -> u16 {
        match self {
            Arch::X86_64 => 62,
            Arch::Aarch64 => 183,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        })
    }
}

/// How a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Codec {
    /// All zero; nothing is stored.
    Zero,
    /// As in memory, at a page boundary of the file.
    Raw,
    /// One LZ4 block.
    Lz4,
    /// One zstd frame.
    Zstd,
}

impl Codec {
    /// Its number in the file.
    pub const fn number(self) -> u8 {
        match self {
            Codec::Zero => 0,
            Codec::Raw => 1,
            Codec::Lz4 => 2,
            Codec::Zstd => 3,
        }
    }

    /// The codec of this number.
    pub const fn from_number(n: u8) -> Option<Codec> {
        match n {
            0 => Some(Codec::Zero),
            1 => Some(Codec::Raw),
            2 => Some(Codec::Lz4),
            3 => Some(Codec::Zstd),
            _ => None,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Codec::Zero => "zero",
            Codec::Raw => "raw",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        })
    }
}

/// What the file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format.
    pub version: Version,
    /// Machine architecture.
    pub arch: Arch,
    /// Page size of the saved process in bytes.
    pub page_size: u32,
    /// Features that a reader must know; a bit that it does not know makes it refuse. None is defined yet.
    pub flags: u32,
}

/// A little-endian cursor over a record whose length has been checked by its type.
struct Take<'a>(&'a [u8]);

impl Take<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        if let Some((head, rest)) = self.0.split_at_checked(N) {
            out.copy_from_slice(head);
            self.0 = rest;
        }
        out
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }
}

/// Appends the checksum of what is there, which completes a record of `N` bytes.
fn seal<const N: usize>(mut bytes: Vec<u8>) -> [u8; N] {
    let mut out = [0; N];
    bytes.resize(N - 8, 0);
    let sum = checksum(&bytes);
    out[..N - 8].copy_from_slice(&bytes);
    out[N - 8..].copy_from_slice(&sum.to_le_bytes());
    out
}

fn sealed<const N: usize>(record: &[u8; N]) -> bool {
    checksum(&record[..N - 8]).to_le_bytes() == record[N - 8..]
}

impl Header {
    /// As bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(&MAGIC);
        for n in [self.version.major, self.version.minor, self.version.patch, self.arch.number()] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&self.page_size.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        seal(out)
    }

    /// From bytes.
    ///
    /// # Errors
    /// What is wrong, in words. Magic, version and checksum keep their places in all versions of the format, so that an
    /// image of another version is told from a damaged one.
    pub fn decode(record: &[u8; HEADER_LEN]) -> Result<Header, Unreadable> {
        let mut take = Take(record);
        if take.bytes() != MAGIC {
            return Err(Unreadable::NotAnImage);
        }
        let version = Version { major: take.u16(), minor: take.u16(), patch: take.u16() };
        let machine = take.u16();
        let (page_size, flags) = (take.u32(), take.u32());
        if !sealed(record) {
            return Err(Unreadable::Damaged);
        }
        if !FORMAT.reads(version) {
            return Err(Unreadable::Version(version));
        }
        let arch = [Arch::X86_64, Arch::Aarch64]
            .into_iter()
            .find(|a| a.number() == machine)
            .ok_or(Unreadable::Unknown("machine architecture", machine.into()))?;
        if !PAGE_SIZES.contains(&page_size) {
            return Err(Unreadable::Unknown("page size", page_size));
        }
        if flags != 0 {
            return Err(Unreadable::Unknown("feature flags", flags));
        }
        Ok(Header { version, arch, page_size, flags })
    }
}

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Other magic.
    #[error("it does not begin as a slackwater image does")]
    NotAnImage,
    /// Checksum.
    #[error("the header's checksum does not fit its content")]
    Damaged,
    /// A version that this reader does not read.
    #[error("it has format {0}, and this slackwater reads {FORMAT}")]
    Version(Version),
    /// A value that this reader does not know.
    #[error("it has an unknown {0} ({1:#x})")]
    Unknown(&'static str, u32),
}

/// What the file ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where the directory begins.
    pub directory: u64,
    /// Its length in bytes; the footer follows it.
    pub directory_len: u64,
    /// Its checksum.
    pub directory_sum: u64,
    /// Length of the whole file, this footer included.
    pub file_len: u64,
}

impl Footer {
    /// As bytes.
    pub fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = Vec::with_capacity(FOOTER_LEN);
        out.extend_from_slice(&FOOTER_MAGIC);
        for n in [self.directory, self.directory_len, self.directory_sum, self.file_len] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        seal(out)
    }

    /// From bytes; None: it is no footer, or a damaged one.
    pub fn decode(record: &[u8; FOOTER_LEN]) -> Option<Footer> {
        let mut take = Take(record);
        (take.bytes() == FOOTER_MAGIC && sealed(record)).then(|| Footer {
            directory: take.u64(),
            directory_len: take.u64(),
            directory_sum: take.u64(),
            file_len: take.u64(),
        })
    }
}

/// What stands at the end of the image, before the footer: where everything else is. Serialized with postcard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// The named sections, in the order of their being written.
    pub sections: Vec<SectionEntry>,
    /// The blocks of the chunk index.
    pub index: Vec<IndexBlock>,
}

/// A named section: bytes that the image's format does not look into (postcard, by custom).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionEntry {
    /// Name, unique in the image.
    pub name: String,
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// XXH3-64 of the bytes.
    pub checksum: u64,
}

/// A block of the chunk index: `count` times [`CHUNK_LEN`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexBlock {
    /// Offset in the file.
    pub offset: u64,
    /// Number of entries, at most [`INDEX_BLOCK`].
    pub count: u32,
    /// XXH3-64 of the bytes.
    pub checksum: u64,
}

/// An entry of the index: a run of pages, and where their content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Address of the first page in the saved process.
    pub vaddr: u64,
    /// Number of pages, never 0.
    pub pages: u32,
    /// How it is stored.
    pub codec: Codec,
    /// Offset in the file; 0 for [`Codec::Zero`].
    pub offset: u64,
    /// Bytes stored; 0 for [`Codec::Zero`].
    pub stored: u32,
    /// XXH3-64 of the stored bytes; 0 for [`Codec::Zero`].
    pub checksum: u64,
}

impl Chunk {
    /// As bytes.
    pub fn encode(&self) -> [u8; CHUNK_LEN] {
        let mut out = [0; CHUNK_LEN];
        out[0..8].copy_from_slice(&self.vaddr.to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..24].copy_from_slice(&self.checksum.to_le_bytes());
        out[24..28].copy_from_slice(&self.pages.to_le_bytes());
        out[28..32].copy_from_slice(&self.stored.to_le_bytes());
        out[32] = self.codec.number();
        out
    }

    /// From bytes, with everything checked that can be seen from the entry alone.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn decode(record: &[u8; CHUNK_LEN], page_size: u32) -> Result<Chunk, &'static str> {
        let mut take = Take(record);
        let (vaddr, offset, checksum) = (take.u64(), take.u64(), take.u64());
        let (pages, stored) = (take.u32(), take.u32());
        let [codec, rest @ ..] = take.bytes::<8>();
        let codec = Codec::from_number(codec).ok_or("unknown codec")?;
        let chunk = Chunk { vaddr, pages, codec, offset, stored, checksum };
        let page = u64::from(page_size);
        let bytes = u64::from(pages) * page;
        if rest != [0; 7] {
            return Err("reserved bytes are not zero");
        }
        if !vaddr.is_multiple_of(page) || vaddr.checked_add(bytes).is_none() {
            return Err("its address is not that of a page");
        }
        if pages == 0 || bytes > MAX_CHUNK as u64 {
            return Err("its number of pages is out of bounds");
        }
        let stored = u64::from(stored);
        match codec {
            Codec::Zero if offset != 0 || stored != 0 || checksum != 0 => Err("a zero chunk has content"),
            Codec::Raw if stored != bytes => Err("a raw chunk is not as long as its pages"),
            Codec::Raw if !offset.is_multiple_of(page) => Err("a raw chunk does not begin at a page"),
            Codec::Lz4 | Codec::Zstd if stored == 0 || stored >= bytes => Err("a compressed chunk is out of bounds"),
            Codec::Lz4 | Codec::Zstd if bytes > MAX_BLOCK as u64 => Err("a compressed chunk has too many pages"),
            _ => Ok(chunk),
        }
    }

    /// One past its last address.
    pub fn end(&self, page_size: u32) -> u64 {
        self.vaddr + u64::from(self.pages) * u64::from(page_size)
    }

    /// Whether `next` goes on where this one ends, in memory and in the file, both raw: one read can take both.
    pub fn joins(&self, next: &Chunk, page_size: u32) -> bool {
        (self.codec, next.codec) == (Codec::Raw, Codec::Raw)
            && self.end(page_size) == next.vaddr
            && self.offset + u64::from(self.stored) == next.offset
    }
}
