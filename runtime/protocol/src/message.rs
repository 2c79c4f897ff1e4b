//! The messages.
//!
//! A connection opens with the handshake (`Challenge`, `Proof`, `Welcome`); then a process sends `Join`, or a command
//! its `Request`. One checkpoint, seen from a process (each arrow down is a barrier over all processes):
//!
//! ```text
//! coordinator            process
//!  (Prepare         ->            memory is gathered                 -> Prepared)   who has much of it; all run on
//!  Suspend          ->            threads stop                       -> Suspended { objects }
//!  Round(Quiesce,n) ->            plugins drain                      -> RoundDone { again, publish }   until none says again
//!  Snapshot         ->            memory is frozen (fork, or copied) -> Snapshotted
//!  Resume           ->            threads run                        -> Resumed
//!  Write              ->            (all threads of all run)
//!                                 image is durable                   -> Saved
//!  Finished         ->            (committed, or aborted with the reason)
//! ```
//! Each of the process's answers may be `Failed` (or `Unready`) instead; then every process gets `Resume` with the reason, at once.
//!
//! Rules that hold beside this:
//! - Whoever got `Suspend` answers `Resumed` once for that generation, however it went (after `Failed` too): only then
//!   is the process free for the next generation. `Resume` may come at any point after `Suspend`.
//! - `Saved` comes when the image is durable: where it was written while stopped (`forked: false`) right after
//!   `Snapshotted`, not after `Resume`. With `checkpoint --kill` no `Resume` comes at all, but `Kill`.
//! - A `Query` is answered from what was published in earlier rounds of the same checkpoint or restart; on a connection that has
//!   not joined, from what was published in the last restart.
//! - Answers that name a generation which is over are ignored.
//!
//! A restarted process joins with `restarted_from`, under its old pid; then `Round(Restart, n)` until none says again,
//! then `Resume` with the generation it came from, which it answers by `Resumed`.
use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// Version of this protocol; both sides must agree exactly.
pub const VERSION: u32 = 6;

/// Why rounds are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RoundKind {
    /// Before the snapshot: plugins drain what is in flight.
    Quiesce,
    /// After a restart: plugins rebuild.
    Restart,
}

/// A published value. Keys are scoped by the plugin's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Scope: the plugin's name.
    pub scope: String,
    /// Key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// Value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

/// An object which several processes may share: the coordinator finds out which do (kcmp(2) for descriptors; device and
/// inode for memory), and writes the answer into the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorKey {
    /// Descriptor number.
    pub fd: i32,
    /// Device of the file behind it.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

/// Part of an object that several processes may share: mapped memory (device and inode as /proc/PID/maps shows them), or a
/// System V object (a device that does not exist, and its number). Who saves it is the coordinator's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SharedRange {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// First byte in the object.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// The process can save it: its image will have every byte of it, unless it is told that another saves it.
    pub write: bool,
}

/// From a process (agent) to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromProcess {
    /// First message after the handshake.
    Join {
        /// What an `Expect` announced; 0: nothing did.
        token: u64,
        /// Process id as getpid(2) gives it.
        pid: i32,
        /// Parent.
        ppid: i32,
        /// /proc/self/exe.
        exe: String,
        /// Host name.
        host: String,
        /// The generation this process was restarted from.
        restarted_from: Option<u64>,
    },
    /// A child, or this process itself after exec, will join with this token: no generation may pass it by.
    Expect {
        /// Random.
        token: u64,
    },
    /// The process that `Expect` announced has this pid.
    Born {
        /// As in `Expect`.
        token: u64,
        /// Its pid.
        pid: i32,
    },
    /// It will not come (fork failed, exec failed, it is a static binary).
    Unexpect {
        /// As in `Expect`.
        token: u64,
    },
    /// This connection will close by exec; the process joins again with this token.
    Exec {
        /// Random.
        token: u64,
    },
    /// Answer to `Prepare`, however far it came.
    Prepared {
        /// Generation.
        generation: u64,
    },
    /// All threads stand.
    Suspended {
        /// Generation.
        generation: u64,
        /// Number of the program's threads.
        threads: u32,
        /// The program's descriptors.
        descriptors: Vec<DescriptorKey>,
        /// Memory and System V objects that others may have as well.
        shared: Vec<SharedRange>,
    },
    /// A round is done.
    RoundDone {
        /// As asked.
        kind: RoundKind,
        /// As asked.
        round: u32,
        /// A plugin wants another round.
        again: bool,
        /// What plugins publish; peers can query it from the next round on.
        publish: Vec<Entry>,
    },
    /// Values of these keys, please.
    Query {
        /// (scope, key).
        #[serde(with = "crate::bytes::keys")]
        keys: Vec<(String, Vec<u8>)>,
    },
    /// Memory is frozen.
    Snapshotted {
        /// Generation.
        generation: u64,
        /// True: a child writes while the program runs; false: the image is written already.
        forked: bool,
        /// Why not forked, for people; empty otherwise.
        note: String,
    },
    /// Threads run again.
    Resumed {
        /// Generation.
        generation: u64,
        /// For how long the program's threads stood still, in microseconds.
        stopped_us: u64,
    },
    /// The image is durable under its temporary name in the generation's folder.
    Saved {
        /// Generation.
        generation: u64,
        /// File name in that folder.
        file: String,
        /// Its size in bytes.
        bytes: u64,
        /// Memory it stands for, in bytes.
        memory: u64,
    },
    /// This process cannot do its part; the program runs on unharmed.
    Failed {
        /// Generation.
        generation: u64,
        /// What, where, what to do.
        reason: String,
    },
    /// This process cannot do its part at this very moment, but will when the program has run on for a little: the checkpoint
    /// is taken anew.
    Unready {
        /// Generation.
        generation: u64,
        /// What is in the way.
        reason: String,
    },
    /// The program asks for a checkpoint (`slackwater_checkpoint()`).
    RequestCheckpoint,
    /// A line for the computation's log.
    Log {
        /// Text.
        line: String,
    },
}

/// From the coordinator to a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToProcess {
    /// Answer to `Join`.
    Joined {
        /// Number of this process in the computation; names its image.
        member: u64,
    },
    /// To a process with much memory, while all run: make ready for a short stop. Nobody has stopped anything, and nobody waits
    /// for long: `Suspend` may come before the answer.
    Prepare {
        /// Generation to be made.
        generation: u64,
    },
    /// Stop all threads.
    Suspend {
        /// Generation to be made.
        generation: u64,
        /// How many attempts at this checkpoint were called off before, and taken again.
        retaken: u32,
    },
    /// Hold a round.
    Round {
        /// Which.
        kind: RoundKind,
        /// 0, 1, 2...
        round: u32,
        /// Processes that take part.
        members: u32,
    },
    /// Answer to `Query`, in its order; None: nobody published it.
    Values {
        /// Values.
        #[serde(with = "crate::bytes::values")]
        values: Vec<Option<Vec<u8>>>,
    },
    /// Freeze memory.
    Snapshot {
        /// Generation.
        generation: u64,
        /// Folder (absolute) for the image's temporary name.
        folder: String,
        /// Write while stopped.
        sync: bool,
        /// Codec: 0 raw, 1 lz4, 2 zstd.
        codec: u8,
        /// Parts of shared objects that other processes save: not needed in this image.
        elsewhere: Vec<SharedRange>,
    },
    /// Let threads run.
    Resume {
        /// Generation.
        generation: u64,
        /// Some: this checkpoint is off, for this reason.
        aborted: Option<String>,
    },
    /// Threads of all processes run again: the child that writes may take the processor (for whoever is not told in time
    /// it does so by itself).
    Write {
        /// Generation.
        generation: u64,
    },
    /// The generation's end.
    Finished {
        /// Generation.
        generation: u64,
        /// Some: it failed, for this reason; remove what was written.
        failed: Option<String>,
    },
    /// End this process with SIGKILL (`slackwater kill`, `checkpoint --kill`).
    Kill,
}
