//! A generation's manifest, and how a generation's folder is named.
//!
//! A generation lives in `DIR/generation-000007`, with one image per process and `manifest.json`. While it is being written, its
//! folder is `DIR/generation-000007.partial`; when every image is synced, the manifest is written and synced, and **one rename**
//! of the folder commits all of it. So a folder without the suffix is whole, and a `.partial` one is rubbish,
//! or somebody is at work in it.
//!
//! Rules: the manifest is JSON, for people and scripts too; a field is added with `#[serde(default)]`, so that older
//! manifests stay readable, and never changes its meaning. Names of files in it are plain: no folders, or they are refused.
use alloc::{format, string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// Name of the manifest in a generation's folder.
pub const MANIFEST: &str = "manifest.json";
/// What the folder's name ends with while the generation is being written.
pub const PARTIAL: &str = ".partial";
/// What the folder's name begins with.
const PREFIX: &str = "generation-";

/// One generation: all images of one consistent cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the image format, as semver ([`crate::layout::FORMAT`]).
    pub format: String,
    /// Number of the generation.
    pub generation: u64,
    /// When it was committed, in milliseconds since the epoch.
    pub created_unix_ms: u64,
    /// Pid of the process that `launch` started.
    pub root_pid: i32,
    /// The processes.
    pub members: Vec<Member>,
    /// Groups of descriptors which are one open file description: (member, descriptor number).
    pub shared_descriptors: Vec<Vec<(u64, i32)>>,
    /// Remarks for people (such as why a process could not be saved by fork); empty: none.
    #[serde(default)]
    pub note: String,
    /// Names of the plugins that were at work.
    #[serde(default)]
    pub plugins: Vec<String>,
    /// What the clocks showed at the cut; none in generations of older versions.
    #[serde(default)]
    pub clocks: Option<Clocks>,
}

/// Clocks which a boot begins anew, as the computation saw them (clock_gettime(2)), in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// CLOCK_MONOTONIC.
    pub monotonic_us: u64,
    /// CLOCK_BOOTTIME.
    pub boottime_us: u64,
}

/// One process of a generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number in the computation.
    pub member: u64,
    /// Name of its image, in the generation's folder.
    pub file: String,
    /// Length of the image in bytes.
    pub bytes: u64,
    /// Memory that it stands for, in bytes.
    pub memory: u64,
    /// Process id.
    pub pid: i32,
    /// Parent.
    pub ppid: i32,
    /// /proc/self/exe.
    pub exe: String,
    /// Host on which it ran.
    pub host: String,
    /// It was stopped (SIGSTOP, ^Z): a restart stops it again.
    #[serde(default)]
    pub stopped: bool,
}

/// Name of the folder of generation `n`.
pub fn folder_name(n: u64) -> String {
    format!("{PREFIX}{n:06}")
}

/// Name of that folder while it is being written.
pub fn partial_name(n: u64) -> String {
    format!("{PREFIX}{n:06}{PARTIAL}")
}

/// Name of the image of a member, in the generation's folder.
pub fn image_name(member: u64) -> String {
    format!("process-{member:06}.image")
}

/// A folder's name taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderName {
    /// A committed generation.
    Committed(u64),
    /// One that was never committed.
    Partial(u64),
}

/// The generation that a folder's name stands for; None: it is no such folder. Only names that [`folder_name`] and
/// [`partial_name`] make are taken, so that no two folders are one generation.
pub fn parse_folder_name(name: &str) -> Option<FolderName> {
    let (stem, partial) = match name.strip_suffix(PARTIAL) {
        Some(stem) => (stem, true),
        None => (name, false),
    };
    let n: u64 = stem.strip_prefix(PREFIX)?.parse().ok()?;
    (folder_name(n) == stem).then_some(if partial { FolderName::Partial(n) } else { FolderName::Committed(n) })
}

impl Manifest {
    /// Checks what no manifest of ours breaks: numbers of members and pids are unique, files are plain names, groups of
    /// descriptors name members.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let unique = |mut ids: Vec<u64>| {
            ids.sort_unstable();
            ids.windows(2).all(|pair| pair[0] != pair[1])
        };
        if !unique(self.members.iter().map(|m| m.member).collect()) {
            return Err("two processes have one member number".into());
        }
        let mut files: Vec<&str> = self.members.iter().map(|m| m.file.as_str()).collect();
        files.sort_unstable();
        if files.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("two processes have one image".into());
        }
        for m in &self.members {
            if m.file.is_empty() || m.file == "." || m.file == ".." || m.file.contains(['/', '\0']) {
                return Err(format!("member {} has the file name {:?}, which is no plain name", m.member, m.file));
            }
        }
        let known = |id: u64| self.members.iter().any(|m| m.member == id);
        if let Some((id, fd)) = self.shared_descriptors.iter().flatten().find(|(id, _)| !known(*id)) {
            return Err(format!("descriptor {fd} belongs to member {id}, which is not listed"));
        }
        Ok(())
    }
}
