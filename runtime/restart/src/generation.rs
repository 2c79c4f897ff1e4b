//! Reads a generation and verifies it: after this, nothing about the images is a surprise.
use crate::{Options, cpu};
use anyhow::{Context, Result, bail};
use slackwater_image::manifest::Manifest;
use slackwater_image::meta::{self, Process, Region, Thread};
use slackwater_image::reader::Reader;
use slackwater_image::{generations, layout::Arch};
use slackwater_objects::ipc::{self, Ipc};
use std::path::PathBuf;

/// One process as its image has it.
#[derive(Debug)]
pub struct Saved {
    /// Its number in the computation.
    pub member: u64,
    /// Its image.
    pub path: PathBuf,
    /// The process.
    pub process: Process,
    /// Its threads, leader first.
    pub threads: Vec<Thread>,
    /// Its memory.
    pub regions: Vec<Region>,
}

/// A generation, verified.
#[derive(Debug)]
pub struct Generation {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its folder, absolute.
    pub folder: PathBuf,
    /// Processes, in the manifest's order.
    pub saved: Vec<Saved>,
    /// Their descriptors, by member.
    pub tables: Vec<(u64, slackwater_objects::Table)>,
    /// Their System V objects.
    pub ipc: Vec<Ipc>,
}

impl Generation {
    /// Index of the computation's first process, if it still lived.
    pub fn root(&self) -> Option<usize> {
        self.saved.iter().position(|s| s.process.pid == self.manifest.root_pid)
    }

    /// Device numbers, as in /proc/PID/stat, of the ptys whose masters are among the descriptors.
    pub fn terminals(&self) -> Vec<i32> {
        use slackwater_objects::model::Kind;
        let masters = self.tables.iter().flat_map(|(_, t)| &t.opens).filter_map(|o| match &o.kind {
            Kind::Master(m) => Some(m.number),
            _ => None,
        });
        // UNIX98_PTY_SLAVE_MAJOR of <linux/major.h>.
        masters.map(|n| libc::makedev(136, n) as u32 as i32).collect()
    }
}

/// Opens the generation that `options` names and verifies each byte of it.
pub fn open(options: &Options) -> Result<Generation> {
    let dir = std::path::absolute(&options.dir).context("the current folder")?;
    let (number, folder) = generations::find(&dir, options.generation)?;
    let manifest = Manifest::read(&folder)?;
    if manifest.generation != number || manifest.members.is_empty() {
        bail!(
            "{}: the manifest is not that of generation {number}, or names no process; restart another generation (--generation N)",
            folder.display()
        );
    }
    let mut saved = Vec::new();
    let mut tables = Vec::new();
    let mut objects = Vec::new();
    for m in &manifest.members {
        let path = folder.join(&m.file);
        let reader = Reader::open_path(&path)?;
        reader.verify(0)?;
        let process: Process = reader.section(meta::SECTION_PROCESS)?;
        let threads: Vec<Thread> = reader.section(meta::SECTION_THREADS)?;
        let regions: Vec<Region> = reader.section(meta::SECTION_REGIONS)?;
        tables.push((m.member, reader.section(meta::SECTION_OBJECTS)?));
        if reader.sections().iter().any(|s| s.name == ipc::SECTION) {
            objects.push(reader.section(ipc::SECTION)?);
        }
        fits(&reader, &process)?;
        if process.pid != m.pid {
            bail!("{}: holds process {}, and the manifest says {}", path.display(), process.pid, m.pid);
        }
        saved.push(Saved { member: m.member, path, process, threads, regions });
    }
    Ok(Generation { manifest, folder, saved, tables, ipc: objects })
}

/// Can this machine run what that one saved?
fn fits(reader: &Reader, process: &Process) -> Result<()> {
    let header = reader.header();
    let here = if cfg!(target_arch = "aarch64") { Arch::Aarch64 } else { Arch::X86_64 };
    if header.arch != here {
        bail!(
            "{}: was saved on {}, and this machine is {here}: restart it on a machine of its own kind",
            reader.name(),
            header.arch
        );
    }
    let page = page_size();
    if header.page_size != page {
        bail!(
            "{}: was saved with pages of {} bytes, and this kernel has {page}: restart it under such a kernel",
            reader.name(),
            header.page_size
        );
    }
    let missing = cpu::missing(&process.cpu_features);
    if !missing.is_empty() {
        bail!(
            "{}: process {} ({}) ran on a processor with {}, which this one has not: restart it on a node with a processor as new as that of {}, or launch it where the oldest node is",
            reader.name(),
            process.pid,
            process.exe,
            missing.join(", "),
            process.hostname
        );
    }
    Ok(())
}

#[allow(unsafe_code)] // sysconf(3)
fn page_size() -> u32 {
    // SAFETY: no memory involved.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u32 }
}
