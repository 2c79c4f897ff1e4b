//! What goes into the state machine and what comes out: the seam between decisions and I/O.
use slackwater_image::manifest::Manifest;
use slackwater_protocol::{
    command::{Reply, Request},
    message::{DescriptorKey, FromProcess, ToProcess},
};

/// A connection, numbered by the shell; a number is never used twice.
pub type Conn = u64;
/// What an `Expect` announces.
pub type Token = u64;
/// Descriptors that refer to one open file description: (member, descriptor).
pub type Group = Vec<(u64, i32)>;

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A message of a process (after the handshake).
    Process(Conn, FromProcess),
    /// A request of a command (after the handshake).
    Command(Conn, Request),
    /// The connection is gone; nothing comes from it any more.
    Closed(Conn),
    /// The process behind this connection is dead (pidfd), whatever its connection looks like.
    Died(Conn),
    /// The process that was expected with this token is dead (pidfd).
    ExpectedDied(Token),
    /// The process behind this connection was stopped (SIGSTOP, ^Z) and has been continued; answer to [`Effect::Wake`].
    Woken(Conn),
    /// The same of a process that is expected with this token; answer to [`Effect::WakeExpected`].
    WokenExpected(Token),
    /// It is traced by this one of the computation, which keeps it from answering; answer to [`Effect::Wake`].
    Traced(Conn, i32),
    /// Somebody else has continued it since; answer to [`Effect::Stop`].
    Continued(Conn),
    /// Time has passed; see [`Machine::deadline`](super::Machine::deadline).
    Tick,
    /// Answer to [`Effect::CreateFolder`].
    Folder {
        /// Its generation.
        generation: u64,
        /// Or why not.
        result: Result<(), String>,
    },
    /// Answer to [`Effect::FindShared`].
    Shared {
        /// Its generation.
        generation: u64,
        /// Groups of two or more, and remarks for people.
        groups: Vec<Group>,
        /// Empty when there is nothing to remark.
        note: String,
    },
    /// Answer to [`Effect::Commit`].
    Committed {
        /// Its generation.
        generation: u64,
        /// Or why not; then nothing is left under the final name.
        result: Result<(), String>,
    },
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send to a process.
    Send(Conn, ToProcess),
    /// The [`ToProcess::Values`] that was sent last, to another process.
    Repeat(Conn),
    /// Send to a command.
    Reply(Conn, Reply),
    /// Close a connection; its `Closed` must still come.
    Close(Conn),
    /// Read what has arrived on the connection, then close it: the process is dead, though a child may hold the socket.
    Drain(Conn),
    /// Report `Died` when this pid, which says that it runs this program and has this parent, is no more. None: it is
    /// being restored, and is another program still.
    Watch(Conn, i32, Option<(String, i32)>),
    /// Report `ExpectedDied` when this pid is no more.
    WatchExpected(Token, i32),
    /// If the process behind the connection is stopped, continue it, so that it can answer, and report `Woken`.
    Wake(Conn),
    /// The same for the process that is expected with this token: it was stopped before it has joined.
    WakeExpected(Token),
    /// It stands, and had been woken: note whether a SIGCONT is pending by now.
    Woke(Conn),
    /// SIGSTOP: it had been woken, or was stopped when it was saved. When a SIGCONT has become pending since `Woke`,
    /// somebody else has continued it: report `Continued` instead.
    Stop(Conn),
    /// SIGKILL to the process behind the connection.
    Kill(Conn),
    /// SIGKILL to the process that is expected with this token.
    KillExpected(Token),
    /// Make the folder of a generation under its temporary name.
    CreateFolder(u64),
    /// Find out which descriptors share an open file description: (member, pid, its descriptors).
    FindShared(u64, Vec<(u64, i32, Vec<DescriptorKey>)>),
    /// Make the generation durable under its final name.
    Commit(Box<Manifest>),
    /// Remove what an unfinished generation left.
    RemoveFolder(u64),
    /// A line for the log.
    Log(String),
    /// The coordinator's work is done: flush what was sent and end.
    Exit,
}
