//! System V IPC (sysvipc(7)): what an image has of shared memory segments, semaphore sets and message queues.
//!
//! A restart runs in an IPC namespace of its own, in which every object has its old number again; so the numbers in the
//! program's memory stay true and no call is translated. Not kept: times, and the numbers of the processes that made or used
//! an object last. The adjustments of SEM_UNDO are each process's own business (`capture::undo`).
use crate::model::Contents;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Name of the image section that holds an [`Ipc`].
pub const SECTION: &str = "sysvipc";

/// The objects that one process answers for. Several processes may name the same; one at least has its contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipc {
    /// shmget(2).
    pub segments: Vec<Segment>,
    /// semget(2).
    pub sets: Vec<Set>,
    /// msgget(2).
    pub queues: Vec<Queue>,
}

/// What the three have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Number.
    pub id: i32,
    /// Key; 0 (IPC_PRIVATE): none.
    pub key: i32,
    /// Permission bits; of a segment also SHM_DEST (0o1000) and SHM_LOCKED (0o2000).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
}

/// A shared memory segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Number, key, owner.
    pub head: Head,
    /// Size in bytes, as it was asked for.
    pub size: u64,
    /// Bytes, if they are not among the pages of this process (it maps the segment in part, for reading, or not at all).
    pub contents: Option<Contents>,
}

impl Segment {
    /// IPC_RMID was done; it lives as long as somebody has it attached.
    pub const fn removed(&self) -> bool {
        self.head.mode & 0o1000 != 0
    }

    /// SHM_LOCK was done.
    pub const fn locked(&self) -> bool {
        self.head.mode & 0o2000 != 0
    }
}

/// A semaphore set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// Number, key, owner.
    pub head: Head,
    /// Values.
    pub values: Vec<u16>,
}

/// A message queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Number, key, owner.
    pub head: Head,
    /// msg_qbytes: how many bytes it may hold.
    pub limit: u64,
    /// Type and text of what nobody has received yet, in order.
    pub messages: Vec<(i64, Vec<u8>)>,
}

/// Kinds of objects, as far as it matters who saves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Segment.
    Memory,
    /// Semaphore set.
    Semaphores,
    /// Message queue.
    Messages,
}

impl Class {
    /// Stands for a device number where objects are told apart by device and inode. No device has it.
    pub const fn device(self) -> u64 {
        match self {
            Self::Memory => u64::MAX,
            Self::Semaphores => u64::MAX - 1,
            Self::Messages => u64::MAX - 2,
        }
    }
}

impl Ipc {
    /// Every object: class, number, size in bytes (0: not memory).
    pub fn objects(&self) -> impl Iterator<Item = (Class, i32, u64)> + '_ {
        let memory = self.segments.iter().map(|s| (Class::Memory, s.head.id, s.size));
        let sets = self.sets.iter().map(|s| (Class::Semaphores, s.head.id, 0));
        memory.chain(sets).chain(self.queues.iter().map(|q| (Class::Messages, q.head.id, 0)))
    }
}
