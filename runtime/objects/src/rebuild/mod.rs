//! Rebuild of descriptors, in `slackwater restart`.
//!
//! Sharing comes back the way it came about: by inheritance. [`prepare`] runs in the root of the restarting tree before it
//! forks and makes, at high numbers, all that two processes share or that connects two descriptors (pipes, ptys, sockets, deleted
//! files). [`Prepared::install`] runs in each process when the tree stands, makes what is private, and gives everything
//! its number. Between the two, descriptors at high numbers must not be closed, and RLIMIT_NOFILE must not be lowered.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io;

use crate::model::{Kind, Open, Table};
use slackwater_socket::known::{self, Known};

mod file;
mod group;
mod install;
pub mod ipc;
mod make;
mod mq;
mod os;
mod outside;
mod pipe;
mod socket;
mod tty;

pub use file::in_removed_folder;
pub use install::Installed;

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Computation<'a> {
    /// Tables by member number.
    pub tables: &'a [(u64, Table)],
    /// (member, descriptor) that are one open file description, as kcmp(2) found.
    pub shared: &'a [Vec<(u64, i32)>],
    /// Choices of the user.
    pub options: &'a Options,
}

/// What to do with files (`--files=keep|restore|fail`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Files {
    /// A file is opened as it is now. One that is gone is made again if the image has its contents.
    #[default]
    Keep,
    /// As `Keep`, but one that was open for writing is cut back to its size at the checkpoint (what was written after it is
    /// written again), and one whose contents the image has gets them back.
    Restore,
    /// A file that is gone, replaced, or of another size or modification time stops the restart.
    Fail,
}

/// What to do with connections that lead out of the computation (`--external=reset|fail`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum External {
    /// They come back broken (ECONNRESET, EPIPE), as after a failure of the network.
    #[default]
    Reset,
    /// They stop the restart.
    Fail,
}

/// Choices of the user.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Changed or missing files.
    pub files: Files,
    /// `--map-path OLD=NEW`: the first whose OLD is the path or a folder above it is taken.
    pub map_path: Vec<(Vec<u8>, Vec<u8>)>,
    /// Connections to the outside.
    pub external: External,
}

impl Options {
    /// The path to open instead of `path`.
    pub fn map(&self, path: &[u8]) -> Vec<u8> {
        for (old, new) in &self.map_path {
            if let Some(rest) = path.strip_prefix(old.as_slice())
                && (rest.is_empty() || rest.starts_with(b"/") || old.ends_with(b"/"))
            {
                return [new.as_slice(), rest].concat();
            }
        }
        path.to_vec()
    }
}

/// Why descriptors could not be rebuilt.
#[derive(Debug)]
pub struct RebuildError {
    /// Member of the computation.
    pub member: u64,
    /// Descriptor; -1: none in particular.
    pub fd: i32,
    /// What was being done to what.
    pub what: String,
    /// Why it failed.
    pub source: Option<io::Error>,
}

impl fmt::Display for RebuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.member)?;
        if self.fd >= 0 {
            write!(f, ", descriptor {}", self.fd)?;
        }
        write!(f, ": {}", self.what)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for RebuildError {}

/// Result of this module.
pub type Result<T> = std::result::Result<T, RebuildError>;

/// Position of an open file description: index of the table, index in its `opens`.
pub(crate) type Id = (usize, usize);

/// What [`prepare`] made. Cheap to clone; the descriptors are the process's, and its children's.
#[derive(Clone, Debug)]
pub struct Prepared<'a> {
    tables: &'a [(u64, Table)],
    options: &'a Options,
    // Lead of the group of each description that has one other than itself.
    groups: group::Groups,
    // Descriptor of each group that was made, by its lead.
    made: HashMap<Id, i32>,
    // Descriptors of inodes that were made anew, by old device and inode.
    inodes: BTreeMap<(u64, u64), i32>,
    // Slaves of ptys that were made, by the old device number.
    terminals: BTreeMap<u64, i32>,
    // Leads of groups that are the restart's own standard descriptors.
    leads_out: HashSet<Id>,
    outside: outside::Outside,
    // Program's numbers are below.
    base: i32,
    warnings: Vec<String>,
    // Sockets that are not under the addresses that the program knows.
    known: Vec<Known>,
}

impl Prepared<'_> {
    /// A descriptor (for reading and writing) of the file that was made anew for this old device and inode: deleted files
    /// and memfds. Memory that was mapped from it is to be mapped from this.
    pub fn inode(&self, dev: u64, ino: u64) -> Option<i32> {
        self.inodes.get(&(dev, ino)).copied()
    }

    /// A descriptor of the new slave of the pty whose slave had this device number: for TIOCSCTTY in a session's leader.
    pub fn terminal(&self, rdev: u64) -> Option<i32> {
        self.terminals.get(&rdev).copied()
    }

    /// Sockets that have other addresses than the program knows, for [`slackwater_socket::known::load`].
    pub fn known(&self) -> Vec<u8> {
        known::bytes(&self.known)
    }

    /// What could not be made quite as it was, for people.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub(crate) fn open(&self, id: Id) -> &Open {
        &self.tables[id.0].1.opens[id.1]
    }

    pub(crate) fn error(&self, id: Id, what: impl Into<String>, source: io::Error) -> RebuildError {
        RebuildError { member: self.tables[id.0].0, fd: self.open(id).fd, what: what.into(), source: Some(source) }
    }

    pub(crate) fn warn(&mut self, id: Id, what: impl fmt::Display) {
        let line = format!("process {}, descriptor {}: {what}", self.tables[id.0].0, self.open(id).fd);
        self.warnings.push(line);
    }
}

/// Makes what processes share. Runs in the root of the restarting tree, before it forks.
///
/// # Errors
/// Says which descriptor of which process cannot come back, and why.
pub fn prepare<'a>(c: &Computation<'a>) -> Result<Prepared<'a>> {
    c.tables.iter().try_for_each(|(member, table)| check(*member, table))?;
    let limit = os::raise_limit().unwrap_or(1024);
    let highest = c.tables.iter().flat_map(|(_, t)| t.descriptors.last()).map(|d| d.fd).max().unwrap_or(2);
    let base = highest.max(255) + 1;
    let outside = outside::Outside::find(base).map_err(|source| RebuildError {
        member: 0,
        fd: -1,
        what: format!("keeping the restart's own terminal (the limit of open files is {limit}, descriptors from {base} on are needed)"),
        source: Some(source),
    })?;
    let mut p = Prepared {
        tables: c.tables,
        options: c.options,
        groups: group::Groups::find(c.tables, c.shared),
        made: HashMap::new(),
        inodes: BTreeMap::new(),
        terminals: BTreeMap::new(),
        leads_out: HashSet::new(),
        outside,
        base,
        warnings: Vec::new(),
        known: Vec::new(),
    };
    file::nameless(&mut p)?;
    pipe::all(&mut p)?;
    tty::all(&mut p)?;
    mq::all(&mut p)?;
    // What is under way in a socket has to be there before the socket's bytes are; other sockets are `socket::all`'s.
    shared(&mut p, |kind, group| group.under_way && !matches!(kind, Kind::Socket(_)))?;
    socket::all(&mut p)?;
    shared(&mut p, |_, group| group.processes > 1)?;
    Ok(p)
}

// The rest of what several processes hold, as far as it is `wanted`.
fn shared(p: &mut Prepared<'_>, wanted: impl Fn(&Kind, &group::Group) -> bool) -> Result<()> {
    for (lead, group) in p.groups.iter() {
        if !wanted(&p.open(lead).kind, &group)
            || p.made.contains_key(&lead)
            || p.leads_out.contains(&lead)
            || made_by_each(&p.open(lead).kind)
        {
            continue;
        }
        let fd = make::one(p, lead)?;
        p.made.insert(lead, fd);
    }
    Ok(())
}

// What the rest of this module relies on: an image may be damaged, or forged.
fn check(member: u64, table: &Table) -> Result<()> {
    let wrong = |fd, what: &str| Err(RebuildError { member, fd, what: what.into(), source: None });
    let known = |open: u32| (open as usize) < table.opens.len();
    let mut last = -1;
    for d in &table.descriptors {
        if !known(d.open) || d.fd <= last {
            return wrong(d.fd, "the image's table of descriptors is damaged");
        }
        last = d.fd;
    }
    for open in &table.opens {
        let sound = match &open.kind {
            Kind::Epoll { watched } => watched.iter().all(|w| w.open.is_none_or(known) && w.fd >= 0),
            Kind::Socket(s) if s.queue.iter().any(|m| m.rights.iter().any(|&open| !known(open))) => false,
            Kind::Socket(s) if s.tcp.is_some() || s.protocol == libc::IPPROTO_UDP => {
                slackwater_socket::address::Endpoint::parse(&s.local).is_some()
            }
            _ => true,
        };
        if !sound {
            return wrong(open.fd, "the image's description of this object is damaged");
        }
    }
    Ok(())
}

// Made in each process though shared, since it means something only there; what is lost is the sharing of O_NONBLOCK.
fn made_by_each(kind: &Kind) -> bool {
    match kind {
        Kind::Pid { .. } => true,
        Kind::Terminal(terminal) => tty::is_controlling(terminal),
        _ => false,
    }
}
