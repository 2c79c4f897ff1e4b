//! Capture of the calling process's descriptors, by asking the kernel.
//!
//! Rules: one thread runs, the program's stand; nothing is taken out of a queue (but where there is no other way, and then
//! it is put back: `mq`, `tty`, `backlog`), no offset moves, no flag changes; an object that no restart could bring back makes the capture fail with a sentence that says so, and the program runs on.
//!
//! Three steps, since other processes of the computation may still be running when this one stands: [`survey`] finds out
//! what there is (and refuses); when *all* stand, [`quiet`] says whether bytes are still under way to a peer; [`fill`]
//! then takes offsets, counters and unread bytes.
use alloc::{boxed::Box, collections::BTreeSet, format, string::String, vec::Vec};
use core::fmt;

use slackwater_socket::diag::Diag;
use slackwater_socket::model::{Socket, State};
use slackwater_socket::sys::{self, Errno};

use crate::model::{Descriptor, Kind, Open, Owner, Table};

mod anon;
pub mod backlog;
mod fdinfo;
pub(crate) mod file;
mod flight;
mod ipc;
mod mq;
mod parts;
mod pipe;
pub(crate) mod tty;
pub(crate) mod typed;
mod undo;
mod watch;

pub use flight::release;
pub use ipc::{Mapped, fill_ipc, survey_ipc};
use parts::Parts;
pub use parts::{Both, in_turn};
pub use undo::{Undo, take_on as take_on_undos};

/// Why a process cannot be checkpointed as it is; the program runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureError {
    /// Descriptor; -1: none in particular.
    pub fd: i32,
    /// What it is, and what to do.
    pub reason: String,
    /// It passes when the program runs on.
    pub passing: bool,
}

impl CaptureError {
    pub(crate) fn new(fd: i32, reason: impl Into<String>) -> Self {
        Self { fd, reason: reason.into(), passing: false }
    }

    pub(crate) fn call(fd: i32, what: &str, error: Errno) -> Self {
        Self::new(fd, format!("{what} failed with {error}"))
    }
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fd < 0 { f.write_str(&self.reason) } else { write!(f, "descriptor {}: {}", self.fd, self.reason) }
    }
}

impl core::error::Error for CaptureError {}

pub(crate) type Result<T> = core::result::Result<T, CaptureError>;

/// All of it at once: for a process whose peers all stand already.
///
/// `exclude` are descriptors that belong to the runtime.
///
/// # Errors
/// An object that cannot be brought back (see docs/coverage.md), or a kernel that does not answer.
pub fn capture(exclude: &[i32]) -> Result<Table> {
    let mut table = survey(exclude, in_turn)?;
    let filled = fill(&mut table, |_, _| false, in_turn);
    release(&mut table);
    filled.map(|()| table)
}

/// What there is: numbers, descriptions, kinds. Fails early for what cannot be brought back. Of descriptors that are under way in
/// Unix sockets it holds copies until [`release`], which must follow, so that they can be compared with others' (`keys`). `both`
/// shortens it where there are many.
///
/// # Errors
/// As [`capture`].
pub fn survey(exclude: &[i32], both: Both) -> Result<Table> {
    let mut numbers = sys::descriptors().map_err(|e| CaptureError::call(-1, "listing /proc/self/fd", e))?;
    numbers.retain(|fd| !exclude.contains(fd));
    let mut seen: Vec<Seen> = numbers.into_iter().map(|fd| Seen { fd, found: None }).collect();
    let all = |parts: &Parts<'_, Seen>| {
        while let Some(part) = parts.take() {
            part.iter_mut().for_each(look);
        }
        Ok(())
    };
    let many = seen.len() >= MANY;
    parts::by_parts(&mut seen, all, if many { both } else { in_turn })?;
    let mut table = Table::default();
    // Descriptors sorted by inode, then by the kernel's order of descriptions: duplicates are found by binary search.
    let mut known: Vec<(u64, u64, i32, u32)> = Vec::with_capacity(seen.len());
    let pid = sys::getpid();
    for Seen { fd, found } in seen {
        // A descriptor that is gone by now belonged to the lister.
        let Some(Found { flags, stat, socket }) = found else { continue };
        let st = stat.map_err(|e| CaptureError::call(fd, "fstat", e))?;
        let mut failed = None;
        let place = known.binary_search_by(|&(dev, ino, other, _)| {
            (dev, ino).cmp(&(st.st_dev, st.st_ino)).then_with(|| match sys::kcmp_file(pid, other, fd) {
                Ok(0) => core::cmp::Ordering::Equal,
                Ok(1) => core::cmp::Ordering::Less,
                Ok(_) => core::cmp::Ordering::Greater,
                Err(e) => {
                    failed = Some(e);
                    core::cmp::Ordering::Less
                }
            })
        });
        if let Some(e) = failed {
            return Err(CaptureError::new(
                fd,
                format!(
                    "kcmp(2), which tells whether two descriptors are one, failed with {e}; the kernel needs CONFIG_KCMP"
                ),
            ));
        }
        let open = match place {
            Ok(at) => known[at].3,
            Err(at) => {
                let open = table.opens.len() as u32;
                known.insert(at, (st.st_dev, st.st_ino, fd, open));
                table.opens.push(match socket {
                    Some(socket) => {
                        let socket = socket.map_err(|e| CaptureError::new(fd, e))?;
                        Open { kind: Kind::Socket(Box::new(socket)), ..blank(fd, &st, 0) }
                    }
                    None => describe(fd, &st)?,
                });
                open
            }
        };
        table.descriptors.push(Descriptor { fd, cloexec: flags & libc::FD_CLOEXEC != 0, open });
    }
    if let Err(e) = flight::find(&mut table) {
        release(&mut table);
        return Err(e);
    }
    Ok(table)
}

// A descriptor, and what is there, each by itself: of which there may be thousands.
struct Seen {
    fd: i32,
    // None: nothing.
    found: Option<Found>,
}

struct Found {
    flags: i32,
    stat: sys::Result<libc::stat>,
    // If it is one; O_PATH's are not.
    socket: Option<core::result::Result<Socket, String>>,
}

fn look(seen: &mut Seen) {
    let fd = seen.fd;
    let Ok(flags) = sys::fcntl(fd, libc::F_GETFD, 0) else { return };
    let stat = sys::fstat(fd);
    let socket = stat.as_ref().ok().filter(|st| st.st_mode & libc::S_IFMT == libc::S_IFSOCK);
    let socket = socket.and_then(|st| slackwater_socket::recognise(fd, st.st_ino).transpose());
    seen.found = Some(Found { flags, stat, socket });
}

/// Whether every byte that was written to this process's TCP connections, in either direction, has arrived (as far as the
/// other end is on this host). All processes of the computation must stand. While it says no, to whomever, hold another round:
/// each call also widens receive windows that are full, so that what waits in senders' queues can arrive. [`fill`] or [`settle`]
/// must follow.
pub fn quiet(table: &mut Table) -> bool {
    let mut diag = LazyDiag::default();
    let mut all = true;
    let first = table.rounds == 0;
    table.rounds += 1;
    for open in &mut table.opens {
        if let Kind::Socket(socket) = &mut open.kind
            && let Ok(diag) = diag.get(open.fd)
        {
            all &= slackwater_socket::quiet(open.fd, socket, diag, first);
        }
    }
    all
}

/// Takes back what [`quiet`] changed, when no [`fill`] follows.
pub fn settle(table: &mut Table) {
    for open in &mut table.opens {
        if let Kind::Socket(socket) = &mut open.kind {
            slackwater_socket::settle(open.fd, socket);
        }
    }
}

/// Takes what changes: offsets, counters, unread bytes, socket states, messages in queues that no other process saves
/// (`elsewhere`, by device and inode). All processes of the computation must stand. `both` shortens that where there are many sockets.
///
/// # Errors
/// As [`capture`].
pub fn fill(table: &mut Table, elsewhere: impl Fn(u64, u64) -> bool, both: Both) -> Result<()> {
    settle(table);
    let tried = table.exchange.tried;
    fill_internet(&mut table.opens, tried, both)?;
    table.realtime_ns = sys::clock(libc::CLOCK_REALTIME).map_err(|e| CaptureError::call(-1, "clock_gettime", e))?;
    let mut saved: BTreeSet<(u64, u64)> = BTreeSet::new();
    let mut events = 0;
    let mut diag = LazyDiag::default();
    let known: Vec<(i32, u64, u64)> = keys(table).collect();
    let slaves: Vec<u32> = table.opens.iter().filter_map(slave).collect();
    for i in 0..table.opens.len() {
        let fd = table.opens[i].fd;
        // The threads of this process stand since the survey: behind the number is what was there. A socket's kind stays, too.
        if let Open { kind: Kind::Socket(_), .. } = &table.opens[i] {
            if !is_internet(&table.opens[i]) {
                fill_socket(&mut table.opens[i], tried, &mut diag, &mut |copy| flight::name(copy, &known))?;
            }
            continue;
        }
        let st = sys::fstat(fd).map_err(|e| CaptureError::call(fd, "fstat", e))?;
        let mut open = describe(fd, &st)?;
        // An inode's bytes are taken once, however many descriptions this process has of it.
        let key = (open.dev, open.ino);
        let readable = open.flags & libc::O_ACCMODE != libc::O_WRONLY;
        if !saved.contains(&key) {
            match &mut open.kind {
                Kind::File(file) => {
                    file::contents(fd, open.flags, &open.locks, file)?;
                    if file.contents.is_some() {
                        saved.insert(key);
                    }
                }
                Kind::Pipe(pipe) if readable => {
                    pipe::unread(fd, pipe)?;
                    saved.insert(key);
                }
                Kind::MessageQueue(queue) if !elsewhere(open.dev, open.ino) => {
                    mq::fill(fd, queue)?;
                    saved.insert(key);
                }
                Kind::Master(master) => {
                    let key = (tty::PTYS, tty::name(open.dev, master.number));
                    if !elsewhere(key.0, key.1) && saved.insert(key) {
                        tty::unread(fd, master)?;
                        if slaves.contains(&master.number) || elsewhere(typed::SLAVES, master.number.into()) {
                            master.typed = typed::take(fd)?;
                        }
                    }
                }
                _ => {}
            }
        }
        if matches!(open.kind, Kind::Inotify { .. }) {
            events += sys::ioctl_get::<i32>(fd, libc::FIONREAD).unwrap_or(0).max(0) as u32;
        }
        if table.copies.contains(&fd) {
            flight::own_locks(&mut open);
        }
        table.opens[i] = open;
    }
    watch::unread(events)?;
    watch::resolve(table)
}

fn is_internet(open: &Open) -> bool {
    matches!(&open.kind, Kind::Socket(s) if s.family == libc::AF_INET || s.family == libc::AF_INET6)
}

// Internet sockets, of which there may be thousands, have nothing to do with one another, nor with other descriptors.
fn fill_internet(opens: &mut [Open], tried: bool, both: Both) -> Result<()> {
    let all = |parts: &Parts<'_, Open>| {
        let mut diag = LazyDiag::default();
        while let Some(part) = parts.take() {
            let mut sockets = part.iter_mut().filter(|open| is_internet(open));
            // No descriptors are under way in them.
            sockets.try_for_each(|open| fill_socket(open, tried, &mut diag, &mut |_| Ok(0)))?;
        }
        Ok(())
    };
    let many = opens.iter().filter(|open| is_internet(open)).count() >= MANY;
    parts::by_parts(opens, all, if many { both } else { in_turn })
}

/// From so many sockets on a second thread is worth its making (50 us; a socket takes 10).
const MANY: usize = 64;

fn fill_socket(open: &mut Open, tried: bool, diag: &mut LazyDiag, name: slackwater_socket::Name<'_>) -> Result<()> {
    let fd = open.fd;
    open.flags = sys::fcntl(fd, libc::F_GETFL, 0).map_err(|e| CaptureError::call(fd, "fcntl(F_GETFL)", e))?;
    open.owner = owner(fd);
    let Kind::Socket(socket) = &mut open.kind else { return Ok(()) };
    let diag = diag.get(fd)?;
    slackwater_socket::describe(fd, socket, diag).map_err(|e| CaptureError::new(fd, e))?;
    if matches!(socket.state, State::Listening { .. }) {
        backlog::check(fd, socket, tried, diag)?;
    }
    slackwater_socket::fill(fd, socket, diag, name)
        .map_err(|e| CaptureError { passing: e.passing, ..CaptureError::new(fd, e.reason) })
}

/// One entry a description: what the coordinator compares between processes by kcmp(2).
pub fn keys(table: &Table) -> impl Iterator<Item = (i32, u64, u64)> + '_ {
    table.opens.iter().map(|open| (open.fd, open.dev, open.ino))
}

/// In a process that has been restarted, and closes no descriptors any more: what it would have lost by that.
///
/// # Errors
/// As [`capture`].
pub fn restarted(table: &Table) -> Result<()> {
    mq::restarted(table)
}

/// Of which pty this is the slave.
fn slave(open: &Open) -> Option<u32> {
    match &open.kind {
        Kind::Terminal(terminal) => tty::slave_number(terminal.rdev),
        _ => None,
    }
}

/// Device and inode of what is received to be saved, which one process alone may do; and whether this one can. Also ptys' slaves:
/// who has the master is told that others have them.
pub fn saved_once(table: &Table) -> impl Iterator<Item = (u64, u64, bool)> + '_ {
    let me = sys::getpid();
    table
        .opens
        .iter()
        .flat_map(move |open| match &open.kind {
            Kind::MessageQueue(queue) => [Some((open.dev, open.ino, mq::can_save(queue, me))), None],
            Kind::Master(master) => [
                Some((tty::PTYS, tty::name(open.dev, master.number), true)),
                Some((typed::SLAVES, master.number.into(), false)),
            ],
            _ => [slave(open).map(|number| (typed::SLAVES, number.into(), true)), None],
        })
        .flatten()
}

// A sock_diag socket, opened when the first socket is met.
#[derive(Default)]
struct LazyDiag(Option<Diag>);

impl LazyDiag {
    fn get(&mut self, fd: i32) -> Result<&Diag> {
        if self.0.is_none() {
            self.0 = Some(Diag::new().map_err(|e| CaptureError::call(fd, "opening a sock_diag(7) socket", e))?);
        }
        self.0.as_ref().ok_or_else(|| CaptureError::new(fd, "no sock_diag(7) socket"))
    }
}

fn blank(fd: i32, st: &libc::stat, flags: i32) -> Open {
    let kind = Kind::Place { path: Vec::new() };
    Open { fd, dev: st.st_dev, ino: st.st_ino, flags, owner: None, locks: Vec::new(), kind }
}

// All that can be said of an open file description without its contents; of a socket, its kind alone.
fn describe(fd: i32, st: &libc::stat) -> Result<Open> {
    let flags = sys::fcntl(fd, libc::F_GETFL, 0).map_err(|e| CaptureError::call(fd, "fcntl(F_GETFL)", e))?;
    let format = st.st_mode & libc::S_IFMT;
    let mut open = blank(fd, st, flags);
    if format == libc::S_IFSOCK
        && let Some(socket) = slackwater_socket::recognise(fd, st.st_ino).map_err(|e| CaptureError::new(fd, e))?
    {
        open.kind = Kind::Socket(Box::new(socket));
        return Ok(open);
    }
    let link = sys::readlink(&sys::proc_path("/proc/self/fd/", fd))
        .map_err(|e| CaptureError::call(fd, "readlink of /proc/self/fd", e))?;
    if flags & libc::O_PATH != 0 {
        open.kind = Kind::Place { path: link };
        return Ok(open);
    }
    open.owner = owner(fd);
    open.kind = match format {
        libc::S_IFREG => {
            open.locks = fdinfo::locks(&fdinfo::read(fd)?);
            file::regular(fd, st, link)?
        }
        libc::S_IFDIR => {
            open.locks = fdinfo::locks(&fdinfo::read(fd)?);
            file::directory(fd, st, link)?
        }
        libc::S_IFIFO => pipe::describe(fd, flags, link)?,
        libc::S_IFCHR => tty::or_device(fd, st, link)?,
        libc::S_IFBLK => file::device(fd, st, link)?,
        // Anonymous inodes have no format bits (from Linux 6.16 on, some have S_IFREG: see `file::regular`).
        _ => anon::describe(fd, &link)?,
    };
    Ok(open)
}

// Receiver of SIGIO, if there is one or a signal was chosen.
fn owner(fd: i32) -> Option<Owner> {
    // struct f_owner_ex of <fcntl.h>.
    let mut ex = [0i32; 2];
    sys::fcntl_with(fd, 16 /* F_GETOWN_EX */, &mut ex).ok()?;
    let signal = sys::fcntl(fd, 11 /* F_GETSIG */, 0).ok()?;
    (ex[1] != 0 || signal != 0).then_some(Owner { kind: ex[0], id: ex[1], signal })
}
