//! What a descriptor table is made of: plain data, written by the agent, read by `slackwater restart`.
//!
//! Rules: what two descriptors share (an *open file description*: offset, flags, owner) is one [`Open`]; what two
//! descriptions share (an inode: a pipe's bytes, a deleted file's contents) is found again by (`dev`, `ino`). Paths are
//! bytes, as the kernel knows them. A field is added at the end of its struct with a minor step of the image format.
use alloc::{boxed::Box, vec::Vec};
use serde::{Deserialize, Serialize};
use slackwater_socket::model::Socket;

/// The descriptors of one process and what is behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Ascending by number.
    pub descriptors: Vec<Descriptor>,
    /// Open file descriptions, each once though several descriptors of the process may be it.
    pub opens: Vec<Open>,
    /// CLOCK_REALTIME at the capture, in nanoseconds.
    pub realtime_ns: i64,
    /// How often it was asked whether all is quiet. In no image.
    #[serde(skip)]
    pub rounds: u32,
    /// Descriptors of the runtime's: copies of what is under way in Unix sockets. In no image.
    #[serde(skip)]
    pub copies: Vec<i32>,
    /// Connections that are being taken apart. In no image.
    #[serde(skip)]
    pub exchange: crate::capture::backlog::Exchange,
}

impl Table {
    /// Of each of [`Table::opens`]: whether the process has a descriptor of it. The others are under way in Unix sockets.
    pub fn held(&self) -> Vec<bool> {
        let mut held = alloc::vec![false; self.opens.len()];
        for d in &self.descriptors {
            if let Some(held) = held.get_mut(d.open as usize) {
                *held = true;
            }
        }
        held
    }
}

/// A descriptor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Number.
    pub fd: i32,
    /// FD_CLOEXEC.
    pub cloexec: bool,
    /// Index into [`Table::opens`].
    pub open: u32,
}

/// An open file description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Lowest number by which the process holds it.
    pub fd: i32,
    /// Device of the inode (as in stat(2)).
    pub dev: u64,
    /// Inode number; the kernel gives all anonymous inodes (eventfd, epoll, ...) the same one.
    pub ino: u64,
    /// F_GETFL: access mode and status flags.
    pub flags: i32,
    /// Who gets SIGIO (F_GETOWN_EX: type and id) and which signal (F_GETSIG; 0: SIGIO).
    pub owner: Option<Owner>,
    /// Locks and leases that the kernel shows for it.
    pub locks: Vec<Lock>,
    /// What it is.
    pub kind: Kind,
}

/// Receiver of SIGIO and SIGURG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// F_OWNER_TID 0, F_OWNER_PID 1, F_OWNER_PGRP 2.
    pub kind: i32,
    /// Its id; 0: nobody.
    pub id: i32,
    /// Signal; 0: SIGIO.
    pub signal: i32,
}

/// A lock from a `lock:` line of /proc/PID/fdinfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Which sort.
    pub class: LockClass,
    /// Exclusive (or a write lease).
    pub write: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; None: to the end of the file, however long it grows.
    pub end: Option<u64>,
}

/// Sorts of locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockClass {
    /// flock(2): held by the open file description.
    Flock,
    /// fcntl(2) F_SETLK: held by the process.
    Posix,
    /// fcntl(2) F_OFD_SETLK: held by the open file description.
    Ofd,
    /// fcntl(2) F_SETLEASE.
    Lease,
}

/// What an open file description is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Regular file or memfd.
    File(File),
    /// Directory.
    Directory {
        /// Where.
        path: Vec<u8>,
        /// Position of getdents(2).
        offset: i64,
        /// It was removed while open.
        deleted: bool,
    },
    /// Opened with O_PATH: nothing but a place in the file system.
    Place {
        /// Where.
        path: Vec<u8>,
    },
    /// A device without a state of its own: /dev/null and friends, disks.
    Device {
        /// Its node.
        path: Vec<u8>,
        /// Device number (makedev).
        rdev: u64,
        /// File offset.
        offset: i64,
    },
    /// Pipe, or FIFO if it has a path.
    Pipe(Pipe),
    /// A terminal that is not a pty master: a pty's slave, the console, /dev/tty.
    Terminal(Terminal),
    /// Master of a pty.
    Master(Master),
    /// eventfd(2).
    Event {
        /// Counter.
        count: u64,
        /// EFD_SEMAPHORE; None: this kernel does not tell (before 6.5).
        semaphore: Option<bool>,
    },
    /// timerfd_create(2).
    Timer(Timer),
    /// signalfd(2).
    Signal {
        /// Signals (bit 0 is signal 1).
        mask: u64,
    },
    /// epoll(7).
    Epoll {
        /// What it watches, in the order of fdinfo.
        watched: Vec<Watched>,
    },
    /// inotify(7).
    Inotify {
        /// Its watches, ascending by descriptor.
        watches: Vec<Watch>,
    },
    /// socket(2), socketpair(2), accept(2).
    Socket(Box<Socket>),
    /// pidfd_open(2).
    Pid {
        /// Process; None: it has ended and was waited for.
        pid: Option<i32>,
    },
    /// mq_open(3).
    MessageQueue(MessageQueue),
}

/// A POSIX message queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageQueue {
    /// `/name`.
    pub name: Vec<u8>,
    /// mq_unlink(3) was done.
    pub deleted: bool,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// mq_maxmsg: how many messages it holds.
    pub most: i64,
    /// mq_msgsize: bytes of the longest.
    pub longest: i64,
    /// Who is told of a message.
    pub notice: Option<Notice>,
    /// Priority and text of what nobody has received yet, in order; in the image of one of the processes that have it.
    pub messages: Vec<(u32, Vec<u8>)>,
}

/// A notification that mq_notify(3) asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Process.
    pub pid: i32,
    /// SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD 2.
    pub how: i32,
    /// Signal; the C library's socket of a notification by a thread.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// What the kernel sends there. In no image: the process that has it asks with it again.
    #[serde(skip)]
    pub cookie: [u64; 4],
}

/// A regular file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Path; of a deleted one, where it was; of a memfd, its name.
    pub path: Vec<u8>,
    /// memfd_create(2): seals and flags.
    pub memfd: Option<Memfd>,
    /// It has no name any more.
    pub deleted: bool,
    /// Offset of the open file description.
    pub offset: i64,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Uid and gid.
    pub owner: (u32, u32),
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// What was in it: of files without a name, and of small ones in places that do not last (/dev/shm, /tmp).
    pub contents: Option<Contents>,
}

/// What is special about a memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memfd {
    /// F_GET_SEALS.
    pub seals: i32,
    /// In huge pages (MFD_HUGETLB): their size as a power of two.
    pub huge: Option<u32>,
}

/// Bytes of a file without its holes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Offset and bytes, ascending.
    pub extents: Vec<(u64, Vec<u8>)>,
}

/// A pipe or FIFO as seen through one of its ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// Path of a FIFO.
    pub path: Option<Vec<u8>>,
    /// F_GETPIPE_SZ in bytes.
    pub capacity: u32,
    /// Unread bytes, in order; of a pipe in packet mode (O_DIRECT), packet by packet. Through a read end only.
    pub unread: Vec<Vec<u8>>,
    /// The other side has been closed by everybody (POLLHUP, POLLERR).
    pub hangup: bool,
}

/// Modes and size of a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Its node, /dev/pts/3.
    pub path: Vec<u8>,
    /// Device number (makedev).
    pub rdev: u64,
    /// struct termios2 of <asm/termbits.h>; empty if it hung up.
    pub modes: Vec<u8>,
    /// struct winsize.
    pub window: [u16; 4],
}

/// Master of a pty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    /// Number: its slave is /dev/pts/NUMBER.
    pub number: u32,
    /// TIOCSPTLCK.
    pub locked: bool,
    /// TIOCPKT.
    pub packet: bool,
    /// struct termios2.
    pub modes: Vec<u8>,
    /// struct winsize.
    pub window: [u16; 4],
    /// What the slave's side wrote and nobody has read; in one process that has it.
    pub unread: Vec<u8>,
    /// Number of such bytes that nobody could take: in packet mode, or where output was stopped.
    pub lost: u32,
    /// The slave was open, and is no more.
    pub hangup: bool,
    /// What was written here and the slave's side has not read; in one process that has it.
    pub typed: Typed,
}

/// What a pty's slave has not read of its input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typed {
    /// As it is to be written to the master again (`capture::typed`).
    pub bytes: Vec<u8>,
    /// How many of the last of these go in one piece: from the end of the last whole line on.
    pub tail: u32,
    /// What FIONREAD says of it at the slave.
    pub counted: u32,
    /// Number of bytes that nobody could take: more than a line discipline holds.
    pub lost: u32,
}

/// timerfd_create(2), from fdinfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// Clock id.
    pub clock: i32,
    /// Expirations not read yet.
    pub ticks: u64,
    /// TFD_TIMER_* flags of the last timerfd_settime(2).
    pub flags: i32,
    /// Nanoseconds to the next expiration; 0: not armed.
    pub remaining_ns: u64,
    /// Interval in nanoseconds; 0: once.
    pub interval_ns: u64,
}

/// One registration in an epoll set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Descriptor number under which it was added.
    pub fd: i32,
    /// EPOLL* bits.
    pub events: u32,
    /// epoll_data.
    pub data: u64,
    /// The description that is watched (index into [`Table::opens`]): mostly, not always, what `fd` is now. None: this
    /// process does not hold it any more.
    pub open: Option<u32>,
    /// Device and inode of what is watched.
    pub target: (u64, u64),
}

/// One inotify watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Watch descriptor.
    pub wd: i32,
    /// IN_* bits.
    pub mask: u32,
    /// What it watches.
    pub path: Vec<u8>,
}
