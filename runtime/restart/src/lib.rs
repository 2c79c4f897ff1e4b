//! The library of `slackwater restart`: from a committed generation to running processes.
//!
//! ```text
//! outer      the command itself: reads and verifies all images, then starts init and stays in the foreground: signals and
//!            terminal go through to the restored program, and its status comes back
//! init       process 1 of a new pid namespace: makes memory and descriptors that processes share, forks the tree,
//!            then reaps until all have gone
//! member     one of the tree: takes its descriptors, limits and credentials, joins the coordinator, and enters the
//!            restorer, which puts the old memory back
//! ```
//! Everything that can be done in ordinary code is done here, before the old memory is back. Rules: nothing is started
//! before every image has been verified; whatever fails in any process ends all of them, with one message that says what
//! to do; the calling process has one thread.
#![deny(unsafe_code)]

mod attributes;
mod clocks;
mod coordinator;
mod cpu;
pub mod enter;
mod environment;
mod generation;
mod init;
mod memory;
pub mod namespace;
mod outer;
mod sys;
pub mod tree;

pub use generation::{Generation, Saved};
pub use outer::{End, restart};
pub use slackwater_objects::rebuild::{External, Files};
pub use sys::SharedPage;

use std::path::PathBuf;

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The computation's folder.
    pub dir: PathBuf,
    /// Which generation; None: the newest.
    pub generation: Option<u64>,
    /// Paths that are elsewhere now: (old, new), of files, folders and programs.
    pub map_path: Vec<(PathBuf, PathBuf)>,
    /// NAME=VALUE: variables that are to have other values in the processes' environments.
    pub env: Vec<String>,
    /// Files that changed since the checkpoint.
    pub files: Files,
    /// Connections that lead out of the computation.
    pub external: External,
    /// Programs are told their sockets' new addresses, where these are not the old ones.
    pub new_addresses: bool,
    /// How the new coordinator is to work.
    pub coordinator: slackwater_coordinator::Options,
    /// The `slackwater` executable, for the coordinator.
    pub program: PathBuf,
}

impl Options {
    /// Where `path` is now.
    pub fn map(&self, path: &str) -> PathBuf {
        for (old, new) in &self.map_path {
            if let Ok(rest) = std::path::Path::new(path).strip_prefix(old) {
                return if rest.as_os_str().is_empty() { new.clone() } else { new.join(rest) };
            }
        }
        path.into()
    }
}
