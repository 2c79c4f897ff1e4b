//! What an image holds, as a report for `slackwater inspect`: as JSON (by serde), and as a table for people.
//!
//! Rules: it shows what can be shown of an image that is damaged in part: what could not be read is listed in `problems`.
//! Fields of the JSON are only ever added. Addresses are strings in hexadecimal (JSON's numbers are doubles), sizes are
//! numbers of bytes. No crate of the descriptors' is needed: their section is named with its size.
use crate::{
    error::ImageError,
    layout::{Chunk, Codec},
    meta::{self, Backing, Process, Region, Thread, flag},
    reader::Reader,
};
use serde::Serialize;
use std::{
    fmt::Write,
    format,
    string::{String, ToString},
    vec::Vec,
};

/// One image.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the file.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Version of the format.
    pub format: String,
    /// Machine architecture.
    pub arch: String,
    /// Page size in bytes.
    pub page_size: u32,
    /// Whether all checksums were verified and fit; None: nobody asked for it.
    pub verified: Option<bool>,
    /// Memory that the image stands for, in bytes: what is stored, and zero pages.
    pub memory: u64,
    /// The process; None: see `problems`.
    pub process: Option<ProcessReport>,
    /// Its threads.
    pub threads: Vec<ThreadReport>,
    /// Its memory.
    pub regions: Vec<RegionReport>,
    /// All sections of the image.
    pub sections: Vec<SectionReport>,
    /// How the chunks are stored, by codec.
    pub codecs: Vec<CodecReport>,
    /// What could not be read, and damage that was found.
    pub problems: Vec<String>,
}

/// The process.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessReport {
    /// Process id.
    pub pid: i32,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Executable.
    pub exe: String,
    /// Arguments.
    pub cmdline: Vec<String>,
    /// Current working directory.
    pub cwd: String,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Kernel release at the checkpoint.
    pub kernel: String,
    /// Host at the checkpoint.
    pub hostname: String,
}

/// A thread.
#[derive(Clone, Debug, Serialize)]
pub struct ThreadReport {
    /// Thread id.
    pub tid: i32,
    /// Name.
    pub name: String,
    /// Stack pointer.
    pub sp: String,
    /// FS base (thread pointer on x86-64).
    pub fs: String,
    /// Number of pending signals.
    pub pending: usize,
}

/// A region.
#[derive(Clone, Debug, Serialize)]
pub struct RegionReport {
    /// First address.
    pub start: String,
    /// One past the last.
    pub end: String,
    /// Size in bytes.
    pub size: u64,
    /// As in /proc/PID/maps: "rw-p".
    pub prot: String,
    /// Names of the flags.
    pub flags: Vec<&'static str>,
    /// "anon", "file" or "shared".
    pub backing: &'static str,
    /// File behind it.
    pub path: Option<String>,
    /// Offset in that file.
    pub offset: u64,
    /// The file's name was gone at the checkpoint.
    pub deleted: bool,
    /// Bytes of it that have content in the image.
    pub saved: u64,
    /// Bytes of it that the image knows to be zero.
    pub zero: u64,
}

/// A section.
#[derive(Clone, Debug, Serialize)]
pub struct SectionReport {
    /// Name.
    pub name: String,
    /// Offset in the file.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// All chunks of one codec.
#[derive(Clone, Debug, Serialize)]
pub struct CodecReport {
    /// Codec.
    pub codec: String,
    /// Number of chunks.
    pub chunks: u64,
    /// Memory that they stand for.
    pub memory: u64,
    /// Bytes stored.
    pub stored: u64,
}

const FLAGS: [(u32, &str); 15] = [
    (flag::GROWSDOWN, "growsdown"),
    (flag::NORESERVE, "noreserve"),
    (flag::DONTFORK, "dontfork"),
    (flag::WIPEONFORK, "wipeonfork"),
    (flag::DONTDUMP, "dontdump"),
    (flag::HUGEPAGE, "hugepage"),
    (flag::NOHUGEPAGE, "nohugepage"),
    (flag::LOCKED, "locked"),
    (flag::ONFAULT, "onfault"),
    (flag::MERGEABLE, "mergeable"),
    (flag::SEQUENTIAL, "sequential"),
    (flag::RANDOM, "random"),
    (flag::HUGETLB, "hugetlb"),
    (flag::CUTOUT, "cutout"),
    (flag::SEALED, "sealed"),
];

impl Report {
    /// Looks at an open image; with `verify` at each byte of it, on that many threads (0: one per processor).
    pub fn new(reader: &Reader, verify: Option<usize>) -> Report {
        let mut problems = Vec::new();
        let mut note = |e: ImageError| problems.push(e.to_string());
        let verified = verify.map(|threads| reader.verify(threads).map_err(&mut note).is_ok());
        let process: Option<Process> = reader.section(meta::SECTION_PROCESS).map_err(&mut note).ok();
        let threads: Vec<Thread> = reader.section(meta::SECTION_THREADS).map_err(&mut note).unwrap_or_default();
        let regions: Vec<Region> = reader.section(meta::SECTION_REGIONS).map_err(&mut note).unwrap_or_default();
        let header = reader.header();
        let codecs: Vec<CodecReport> = [Codec::Zero, Codec::Raw, Codec::Lz4, Codec::Zstd]
            .into_iter()
            .map(|codec| {
                let mut sum = CodecReport { codec: codec.to_string(), chunks: 0, memory: 0, stored: 0 };
                for chunk in reader.chunks().iter().filter(|c| c.codec == codec) {
                    sum.chunks += 1;
                    sum.memory += chunk.end(header.page_size) - chunk.vaddr;
                    sum.stored += u64::from(chunk.stored);
                }
                sum
            })
            .filter(|sum| sum.chunks > 0)
            .collect();
        Report {
            file: reader.name().into(),
            bytes: reader.file_len(),
            format: header.version.to_string(),
            arch: header.arch.to_string(),
            page_size: header.page_size,
            verified,
            memory: codecs.iter().map(|c| c.memory).sum(),
            process: process.map(process_report),
            threads: threads.iter().map(thread_report).collect(),
            regions: regions.iter().map(|r| region_report(r, reader.chunks(), header.page_size)).collect(),
            sections: reader
                .sections()
                .iter()
                .map(|s| SectionReport { name: s.name.clone(), offset: s.offset, bytes: s.len })
                .collect(),
            codecs,
            problems,
        }
    }

    /// As a table for people, with at most `most` threads and `most` regions.
    pub fn table(&self, most: usize) -> String {
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _ = self.write(&mut out, most);
        out
    }

    fn write(&self, out: &mut String, most: usize) -> std::fmt::Result {
        let checked = match self.verified {
            Some(true) => "all checksums fit",
            Some(false) => "DAMAGED",
            None => "chunks not verified",
        };
        writeln!(out, "image      {}", plain(&self.file))?;
        let (bytes, memory) = (size(self.bytes), size(self.memory));
        writeln!(out, "           {bytes} for {memory} of memory, {checked}")?;
        writeln!(out, "format     {} for {}, pages of {}", self.format, self.arch, size(self.page_size.into()))?;
        if let Some(p) = &self.process {
            writeln!(out, "process    {} (parent {}, group {}, session {})", p.pid, p.ppid, p.pgid, p.sid)?;
            writeln!(out, "           {}", plain(&p.cmdline.join(" ")))?;
            writeln!(out, "           executable {}", plain(&p.exe))?;
            writeln!(out, "           in {}, as user {} group {}", plain(&p.cwd), p.uid, p.gid)?;
            writeln!(out, "           on {}, Linux {}", plain(&p.hostname), plain(&p.kernel))?;
        }
        writeln!(out, "\nSECTIONS {}", self.sections.len())?;
        for s in &self.sections {
            writeln!(out, "  {:<24} {:>11}", plain(&s.name), size(s.bytes))?;
        }
        writeln!(out, "\nCHUNKS {}", self.codecs.iter().map(|c| c.chunks).sum::<u64>())?;
        for c in &self.codecs {
            let (memory, stored) = (size(c.memory), size(c.stored));
            writeln!(out, "  {:<6} {:>9} chunks {memory:>11} of memory {stored:>11} stored", c.codec, c.chunks)?;
        }
        writeln!(out, "\nTHREADS {}", self.threads.len())?;
        for t in self.threads.iter().take(most) {
            let pending = if t.pending > 0 { format!("  {} signals pending", t.pending) } else { String::new() };
            writeln!(out, "  {:>8}  {:<16} stack at {}{pending}", t.tid, plain(&t.name), t.sp)?;
        }
        more(out, self.threads.len(), most)?;
        writeln!(out, "\nREGIONS {}", self.regions.len())?;
        for r in self.regions.iter().take(most) {
            let (all, saved, zero) = (size(r.size), size(r.saved), size(r.zero));
            let what = match (&r.path, r.deleted) {
                (Some(path), true) => format!("{} (deleted)", plain(path)),
                (Some(path), false) => plain(path),
                (None, _) => String::new(),
            };
            let flags = if r.flags.is_empty() { String::new() } else { format!(" [{}]", r.flags.join(" ")) };
            let line = format!(
                "  {:>18} {} {all:>11}  saved {saved:>11}  zero {zero:>11}  {:<6} {what}{flags}",
                r.start, r.prot, r.backing
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        more(out, self.regions.len(), most)?;
        for problem in &self.problems {
            writeln!(out, "\nPROBLEM {}", plain(problem))?;
        }
        Ok(())
    }
}

fn more(out: &mut String, have: usize, most: usize) -> std::fmt::Result {
    if have > most { writeln!(out, "  ... and {} more (--json lists all)", have - most) } else { Ok(()) }
}

fn process_report(p: Process) -> ProcessReport {
    ProcessReport {
        pid: p.pid,
        ppid: p.ppid,
        pgid: p.pgid,
        sid: p.sid,
        exe: p.exe,
        cmdline: p.cmdline,
        cwd: p.cwd,
        uid: p.uids[0],
        gid: p.gids[0],
        kernel: p.kernel,
        hostname: p.hostname,
    }
}

fn thread_report(t: &Thread) -> ThreadReport {
    let len = t.name.iter().position(|b| *b == 0).unwrap_or(t.name.len());
    ThreadReport {
        tid: t.tid,
        name: String::from_utf8_lossy(&t.name[..len]).into_owned(),
        sp: format!("{:#x}", t.sp),
        fs: format!("{:#x}", t.fs),
        pending: t.pending.len(),
    }
}

fn region_report(region: &Region, chunks: &[Chunk], page_size: u32) -> RegionReport {
    let (start, end) = (region.range.start, region.range.end);
    let first = chunks.partition_point(|c| c.end(page_size) <= start);
    let (mut saved, mut zero) = (0, 0);
    for chunk in chunks[first..].iter().take_while(|c| c.vaddr < end) {
        let part = chunk.end(page_size).min(end).saturating_sub(chunk.vaddr.max(start));
        if chunk.codec == Codec::Zero { zero += part } else { saved += part }
    }
    let (backing, file) = match &region.backing {
        Backing::Anon => ("anon", None),
        Backing::FilePrivate(file) => ("file", Some(file)),
        Backing::Shared(file) => ("shared", Some(file)),
    };
    let letter = |bit: u32, letter: char| if region.prot & bit != 0 { letter } else { '-' };
    let share = if backing == "shared" { 's' } else { 'p' };
    RegionReport {
        start: format!("{start:#x}"),
        end: format!("{end:#x}"),
        size: end.saturating_sub(start),
        prot: [letter(1, 'r'), letter(2, 'w'), letter(4, 'x'), share].iter().collect(),
        flags: FLAGS.iter().filter(|(bit, _)| region.flags & bit != 0).map(|(_, name)| *name).collect(),
        backing,
        path: file.map(|f| f.path.clone()),
        offset: file.map_or(0, |f| f.offset),
        deleted: file.is_some_and(|f| f.deleted),
        saved,
        zero,
    }
}

/// A size for people, in binary units.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10).min(6);
    let value = bytes as f64 / (1u64 << (10 * power)) as f64;
    format!("{value:.1} {}", UNITS[power as usize - 1])
}

/// Text out of an image, without what would drive the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
