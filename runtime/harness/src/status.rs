//! What the commands answer.
use serde::Deserialize;
use std::path::PathBuf;

/// What `slackwater status --json` prints.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// What the computation is at.
    pub state: String,
    /// Its processes.
    pub processes: serde_json::Value,
    /// Its threads.
    pub threads: serde_json::Value,
    /// The newest committed generation.
    pub generation: Option<u64>,
    /// Figures of the last checkpoint.
    pub last_checkpoint: Option<serde_json::Value>,
    /// Why the last checkpoint failed.
    pub error: Option<String>,
    /// Its processes, one by one.
    pub members: Vec<Member>,
}

/// A process, as `slackwater status --json` has it.
#[derive(Clone, Debug, Deserialize)]
pub struct Member {
    /// Its pid, in the pid namespace of the computation's coordinator.
    pub pid: u32,
}

/// A committed generation.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Its number.
    pub generation: u64,
}
