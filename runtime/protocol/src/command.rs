//! What the command line asks of a coordinator, and what it hears. After the handshake with
//! [`Role::Command`](crate::auth::Role::Command) a connection carries one [`Request`]; the answer is one or more
//! [`Reply`] messages, the last of which is none of [`Reply::Progress`] and [`Reply::Expecting`].
use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// From a command to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// How does the computation stand? Answer: [`Reply::Status`].
    Status,
    /// Take a checkpoint. Answers: [`Reply::Progress`] now and then, [`Reply::Committed`] or [`Reply::Failed`].
    Checkpoint {
        /// End the computation when the generation is committed; its processes do not run on after the cut.
        kill: bool,
    },
    /// End all processes (SIGKILL), then the coordinator. Answer when they are gone: [`Reply::Gone`].
    Kill,
    /// `slackwater restart`: these processes will join. Answers: [`Reply::Expecting`] at once; [`Reply::Restarted`] when
    /// all have joined, held their rounds and run; or [`Reply::Failed`], and then all that had joined are killed. The
    /// connection must stay open until then: closing it earlier gives the restart up.
    Restart {
        /// What the coordinator was started to expect, see its options; that expectation ends with this message.
        token: u64,
        /// The generation that is restarted.
        generation: u64,
        /// Pid of the computation's first process.
        root_pid: i32,
        /// All processes of it.
        members: Vec<RestartMember>,
    },
}

/// One process of a generation that is restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartMember {
    /// Its number, as the manifest has it: it gets the same again.
    pub member: u64,
    /// Its pid, as the manifest has it and as it will say in `Join`.
    pub pid: i32,
    /// It was stopped, and is to be stopped again before it resumes.
    pub stopped: bool,
}

/// From the coordinator to a command.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reply {
    /// Answer to [`Request::Status`].
    Status(Status),
    /// A checkpoint goes on.
    Progress {
        /// What it is at.
        phase: Phase,
        /// Processes that have done their part of it.
        done: u32,
        /// Of how many.
        members: u32,
        /// Memory whose images are complete, in bytes.
        memory: u64,
    },
    /// The checkpoint is committed.
    Committed {
        /// Absolute path of the generation's folder.
        path: String,
        /// Its figures.
        figures: Figures,
    },
    /// The restart can begin.
    Expecting,
    /// All processes of the restart run.
    Restarted,
    /// All processes are gone, the coordinator ends now.
    Gone,
    /// It was not to be.
    Failed {
        /// What, where, what to do.
        reason: String,
    },
}

/// What the computation is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The coordinator is up, the first process has not joined yet.
    Starting,
    /// Processes run, nothing is asked of them.
    Running,
    /// A checkpoint: threads are being stopped.
    Suspend,
    /// A checkpoint: all stand, plugins drain.
    Quiesce,
    /// A checkpoint: memory is being frozen.
    Snapshot,
    /// A checkpoint: images are being written.
    Save,
    /// A checkpoint: the manifest is being made durable.
    Commit,
    /// A checkpoint is off; its processes are being let go.
    Abort,
    /// A restart.
    Restart,
    /// Processes are being killed.
    Ending,
}

/// The state of a computation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Status {
    /// What it is at.
    pub state: Phase,
    /// Its processes, by number.
    pub members: Vec<MemberStatus>,
    /// Processes that were announced and have not joined yet.
    pub expected: u32,
    /// Newest committed generation.
    pub generation: Option<u64>,
    /// Figures of the last checkpoint that this coordinator committed.
    pub last_checkpoint: Option<Figures>,
    /// Why the last checkpoint or restart failed; None once a later one succeeded.
    pub error: Option<String>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Number in the computation.
    pub member: u64,
    /// Pid as the process knows it.
    pub pid: i32,
    /// Its parent.
    pub ppid: i32,
    /// Its program.
    pub exe: String,
    /// Its host.
    pub host: String,
    /// The program's threads (without ours); 0: not known.
    pub threads: u32,
}

/// Figures of a committed checkpoint. Times in microseconds, taken by the coordinator except `stopped_us`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Figures {
    /// Generation.
    pub generation: u64,
    /// Processes in it.
    pub processes: u32,
    /// From the request until all processes stood.
    pub suspend_us: u64,
    /// Rounds in which plugins drained.
    pub quiesce_us: u64,
    /// Until all memory was frozen.
    pub snapshot_us: u64,
    /// Until all processes ran again.
    pub resume_us: u64,
    /// Longest time that a process's threads stood still, as the process measured it.
    pub stopped_us: u64,
    /// From the snapshot until all images were durable (the program runs meanwhile, unless `sync`).
    pub save_us: u64,
    /// Manifest and rename.
    pub commit_us: u64,
    /// From the request to the commit, attempts that were taken again included.
    pub total_us: u64,
    /// Size of all images, in bytes.
    pub bytes: u64,
    /// Memory they stand for, in bytes.
    pub memory: u64,
    /// Attempts before this one that a late joiner undid.
    pub retaken: u32,
}
