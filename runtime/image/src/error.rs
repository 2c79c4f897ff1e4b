//! Errors of reading an image: which image, what is wrong and where, what to do.
use crate::layout::Unreadable;
use std::{io, string::String};

/// An image cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("image {image}: {problem}; {}", problem.advice())]
pub struct ImageError {
    /// Name of the file, as it was given to the reader.
    pub image: String,
    /// What is wrong: part of the message, and so no source of it.
    pub problem: Problem,
}

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// There is no such file, or it may not be opened.
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    /// The system would not read it.
    #[error("cannot read {len} bytes at offset {offset}: {error}")]
    Io {
        /// Offset in the file.
        offset: u64,
        /// Length.
        len: u64,
        /// The system's error.
        error: io::Error,
    },
    /// It ends too early, or something was appended.
    #[error("the file has {found} bytes, {expected}")]
    Length {
        /// Length of the file.
        found: u64,
        /// What was expected, in words.
        expected: String,
    },
    /// Header.
    #[error(transparent)]
    Header(#[from] Unreadable),
    /// The footer is not there, or is damaged.
    #[error("it does not end with a whole footer (at offset {0}): it was cut off, overwritten, or never finished")]
    Footer(u64),
    /// Directory, index or a section.
    #[error("{what} at offset {offset} ({len} bytes) is damaged: {why}")]
    Table {
        /// Which.
        what: String,
        /// Offset in the file.
        offset: u64,
        /// Its length.
        len: u64,
        /// What is wrong.
        why: String,
    },
    /// A chunk.
    #[error(
        "chunk {index} (memory at {vaddr:#x}, {pages} pages, {stored} bytes at file offset {offset}) is damaged: {why}"
    )]
    Chunk {
        /// Its number in the index.
        index: usize,
        /// Address in the saved process.
        vaddr: u64,
        /// Pages that it stands for.
        pages: u32,
        /// Offset in the file.
        offset: u64,
        /// Bytes stored.
        stored: u32,
        /// What is wrong.
        why: String,
    },
    /// Bytes that belong to nothing are not zero, or more than alignment needs.
    #[error("the filling at offset {offset} ({len} bytes) is damaged: it is not zero, or longer than a page")]
    Filling {
        /// Offset in the file.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// A section is asked for that is not there.
    #[error("it has no section \"{0}\"")]
    NoSection(String),
    /// A section does not hold what was asked for.
    #[error("section \"{name}\" does not decode: {why}")]
    Section {
        /// Name.
        name: String,
        /// What is wrong.
        why: String,
    },
}

impl Problem {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Problem::Open(_) | Problem::Io { .. } => "check the path, its permissions and the disk",
            Problem::Header(Unreadable::NotAnImage) => "name a file of a generation's folder",
            Problem::Header(Unreadable::Version(_) | Unreadable::Unknown(..)) => {
                "restart it with the slackwater that wrote it, or a newer one"
            }
            Problem::NoSection(_) | Problem::Section { .. } => {
                "it was written by another version of slackwater, or by another program: use the one that wrote it"
            }
            _ => "restart from another generation (`slackwater restart --generation N`), or from a copy of this one",
        }
    }
}
