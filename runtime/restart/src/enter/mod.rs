//! The last step of a restart in each process: plan, place the restorer, jump.
//!
//! [`prepare`] takes all decisions (pure code over what the image says and what this process looks like: `plan`, `vdso`,
//! `hole`); [`jump`] places the restorer's blob and never returns.
mod blob;
mod hole;
mod plan;
mod segments;
mod vdso;

use anyhow::{Context, Result, bail};
use slackwater_image::{
    meta::{Process, Region, Thread},
    reader::Reader,
};
use slackwater_restorer::plan::RestartInfo;
use std::{
    collections::{BTreeMap, HashMap},
    os::fd::RawFd,
};

/// One process, ready to come back.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Its image, verified.
    pub image: &'a Reader,
    /// Its process section.
    pub process: &'a Process,
    /// Its threads.
    pub threads: &'a [Thread],
    /// Its regions.
    pub regions: &'a [Region],
    /// For each region that maps a file or shared memory: index of the region -> open descriptor, with the access that the
    /// mapping needs (read-write for a shared one with `flag::MAYWRITE`). They are closed on the way.
    pub region_fds: &'a HashMap<usize, RawFd>,
    /// System V segments that exist: size in bytes, by number.
    pub segments: &'a BTreeMap<i32, u64>,
    /// /proc/self/exe of the restored process; None leaves the restart command's.
    pub exe_fd: Option<RawFd>,
    /// Connected, authenticated, joined.
    pub coordinator_fd: RawFd,
    /// Number in the computation.
    pub member: u64,
    /// Generation it comes from.
    pub generation: u64,
    /// Coordinator's address (`IP:PORT`).
    pub address: &'a str,
    /// Checkpoint folder, absolute.
    pub folder: &'a str,
    /// The computation's secret.
    pub secret: [u8; 32],
}

fn text<const N: usize>(what: &str, value: &str) -> Result<[u8; N]> {
    let mut out = [0; N];
    if value.len() >= N {
        bail!("{what} {value:?} is longer than {} bytes: use a shorter one", N - 1);
    }
    out[..value.len()].copy_from_slice(value.as_bytes());
    Ok(out)
}

/// Becomes the restored process. Descriptors other than those named in the entry must be the program's own already.
///
/// # Errors
/// Nothing has been changed yet.
pub fn enter(entry: &Entry) -> Result<std::convert::Infallible> {
    let info = RestartInfo {
        restarts: 0,
        blob: [0; 2],
        coordinator_fd: entry.coordinator_fd.into(),
        member: entry.member,
        generation: entry.generation,
        address: text("the coordinator's address", entry.address)?,
        folder: text("the checkpoint folder", entry.folder)?,
        secret: entry.secret,
    };
    let content = plan::content(entry.image).context("unpacking the image's compressed pages")?;
    let here = hole::Here::look()?;
    let vdso = vdso::decide(entry.process, &here)?;
    let draft = plan::draft(entry, &content, &here, &vdso)?;
    blob::jump(draft, info, &here)
}
