//! The coordinator's state machine: who is a member, what goes on, what comes next. No I/O and no clock in it, so that a
//! model test can drive it through every order of events (`tests/model.rs`).
//!
//! Rules:
//! - A generation commits only with the image of every process that was there at the cut; no process runs on before all
//!   have been snapshotted (or the checkpoint is off); whoever was told to suspend is told to resume.
//! - Each attempt at a checkpoint has a generation number of its own, so that a late answer or a late writer of an
//!   attempt that is over can do no harm. Numbers may thus be skipped.
//! - Waiting is for sets of connections that shrink with each answer and each death, never for time. Patience only
//!   bounds phases whose length does not depend on the amount of memory.
mod checkpoint;
mod commands;
mod event;
mod members;
mod restart;
mod savers;
mod store;

pub use event::{Conn, Effect, Group, Input, Token};

use checkpoint::Checkpoint;
use restart::Restart;
use slackwater_protocol::{
    command::{Figures, MemberStatus, Phase, Reply, Request, Status},
    message::{FromProcess, ToProcess},
};
use std::collections::{BTreeMap, BTreeSet};
use store::{Answer, Store};

/// How often one checkpoint may be taken anew (for late joiners, or somebody who is not ready) before it counts as failed.
pub(crate) const MAX_RETAKEN: u32 = 100;

/// What a coordinator is started with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// The process it is started for: token, pid. It ends when this process dies without anybody having joined.
    pub expect: Option<(Token, i32)>,
    /// Number of the next generation.
    pub next_generation: u64,
    /// Newest generation that is committed already.
    pub newest: Option<u64>,
    /// Checkpoint each so many microseconds.
    pub interval_us: Option<u64>,
    /// How long suspending, draining, and letting go may take, in microseconds.
    pub patience_us: u64,
    /// Write images while the program is stopped.
    pub sync: bool,
    /// Codec of images: 0 raw, 1 lz4, 2 zstd.
    pub codec: u8,
    /// The computation's folder, absolute.
    pub folder: String,
    /// Plugins, for the manifest.
    pub plugins: Vec<String>,
}

/// A process that has joined.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Member {
    pub number: u64,
    pub pid: i32,
    pub ppid: i32,
    pub exe: String,
    pub host: String,
    /// What announced it; an `Expect` for it that is read later than its `Join` is void.
    token: Token,
    /// It is about to exec, and will join again with this token.
    exec: Option<Token>,
    threads: u32,
    /// It is no process any more (dead, or another program by exec); its connection lives on because its image is still
    /// being written by its child.
    pub left: bool,
}

impl Member {
    pub(crate) fn name(&self) -> String {
        format!("process {} ({})", self.pid, self.exe)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Expected {
    /// Who said so.
    by: Option<Conn>,
    /// Known from `Born`, or because it is an exec.
    pid: Option<i32>,
    /// It was found stopped, and has been continued so that it can join.
    woken: bool,
}

/// What goes on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Activity {
    Idle,
    Checkpoint(Box<Checkpoint>),
    Restart(Box<Restart>),
    /// All are being killed; then these are answered.
    Ending(Vec<(Conn, Reply)>),
}

/// A request for a checkpoint that waits for its turn. None: the interval, or a process.
type Pending = (Option<Conn>, bool);

/// The state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    settings: Settings,
    members: BTreeMap<Conn, Member>,
    expected: BTreeMap<Token, Expected>,
    /// Connections of commands that wait for an answer.
    commands: BTreeSet<Conn>,
    activity: Activity,
    pending: Vec<Pending>,
    /// `slackwater kill` that came while the commit was on its way.
    pending_kill: Vec<Conn>,
    store: Store,
    /// What was published in the last restart, for programs that were started since.
    kept: Store,
    next_member: u64,
    root_pid: i32,
    newest: Option<u64>,
    last: Option<Figures>,
    error: Option<String>,
    /// When the interval's next checkpoint is due.
    due: Option<u64>,
    /// Somebody has joined, or was expected: from then on, nobody there means the end.
    begun: bool,
    exited: bool,
    now: u64,
    out: Effects,
}

/// Effects of the present step; empty between steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Effects(Vec<Effect>);

impl std::hash::Hash for Effects {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

impl Machine {
    /// A machine, and what is to be done first.
    #[must_use]
    pub fn new(settings: Settings, now: u64) -> (Self, Vec<Effect>) {
        let mut machine = Self {
            members: BTreeMap::new(),
            expected: BTreeMap::new(),
            commands: BTreeSet::new(),
            activity: Activity::Idle,
            pending: Vec::new(),
            pending_kill: Vec::new(),
            store: Store::default(),
            kept: Store::default(),
            next_member: 1,
            root_pid: settings.expect.map_or(0, |(_, pid)| pid),
            newest: settings.newest,
            last: None,
            error: None,
            due: settings.interval_us.map(|interval| now + interval),
            begun: settings.expect.is_some(),
            exited: false,
            now,
            out: Effects::default(),
            settings,
        };
        if let Some((token, pid)) = machine.settings.expect {
            machine.expected.insert(token, Expected { by: None, pid: Some(pid), woken: false });
            machine.emit(Effect::WatchExpected(token, pid));
        }
        let effects = std::mem::take(&mut machine.out.0);
        (machine, effects)
    }

    /// One step, at `now` microseconds of a monotonic clock.
    pub fn step(&mut self, now: u64, input: Input) -> Vec<Effect> {
        self.now = now;
        match input {
            Input::Process(conn, message) => self.process(conn, message),
            Input::Command(conn, request) => self.command(conn, request),
            Input::Closed(conn) => self.closed(conn),
            Input::Died(conn) => self.died(conn),
            Input::ExpectedDied(token) => {
                self.expected.remove(&token);
            }
            Input::Woken(conn) => self.woken(conn),
            Input::Traced(conn, tracer) => self.traced(conn, tracer),
            Input::WokenExpected(token) => {
                if let Some(expected) = self.expected.get_mut(&token) {
                    expected.woken = true;
                }
            }
            Input::Continued(conn) => self.continued(conn),
            Input::Tick => self.tick(),
            Input::Folder { generation, result } => self.folder_made(generation, result),
            Input::Shared { generation, groups, note } => self.shared_found(generation, groups, note),
            Input::Committed { generation, result } => self.committed(generation, result),
        }
        self.settle();
        std::mem::take(&mut self.out.0)
    }

    /// When the next [`Input::Tick`] is of use, if it is at all, in microseconds of the clock given to `step`.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let patience = match &self.activity {
            Activity::Checkpoint(checkpoint) => {
                checkpoint.wakes_at(self.settings.patience_us, !self.expected.is_empty())
            }
            Activity::Restart(restart) => restart.deadline(self.settings.patience_us),
            Activity::Idle | Activity::Ending(_) => None,
        };
        let due = self.due.filter(|_| matches!(self.activity, Activity::Idle) && !self.members.is_empty());
        patience.into_iter().chain(due).min()
    }

    /// What goes on.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.activity {
            Activity::Idle if self.members.is_empty() && !self.expected.is_empty() => Phase::Starting,
            Activity::Idle => Phase::Running,
            Activity::Checkpoint(checkpoint) => checkpoint.phase(),
            Activity::Restart(_) => Phase::Restart,
            Activity::Ending(_) => Phase::Ending,
        }
    }

    /// A checkpoint is about to begin whose stop is to be short: its images are not written while all stand, and it is not a
    /// new attempt at one that was called off a moment ago.
    #[must_use]
    pub fn stops_shortly(&self) -> bool {
        !self.settings.sync && matches!(&self.activity, Activity::Checkpoint(checkpoint) if checkpoint.forks_first())
    }

    /// Newest committed generation.
    #[must_use]
    pub const fn newest(&self) -> Option<u64> {
        self.newest
    }

    fn emit(&mut self, effect: Effect) {
        self.out.0.push(effect);
    }

    fn log(&mut self, line: String) {
        self.emit(Effect::Log(line));
    }

    /// Answers a command, if it still listens; its connection is done with.
    fn answer(&mut self, conn: Conn, reply: Reply) {
        if self.commands.remove(&conn) {
            self.emit(Effect::Reply(conn, reply));
            self.emit(Effect::Close(conn));
        }
    }

    fn tick(&mut self) {
        match &self.activity {
            Activity::Checkpoint(_) => self.checkpoint_tick(),
            Activity::Restart(_) => self.restart_tick(),
            Activity::Idle if self.due.is_some_and(|due| due <= self.now) && !self.members.is_empty() => {
                self.pending.push((None, false));
            }
            Activity::Idle | Activity::Ending(_) => {}
        }
    }

    /// After each input: what is possible now that was not before.
    fn settle(&mut self) {
        if matches!(self.activity, Activity::Idle) && !self.pending_kill.is_empty() {
            let conns = std::mem::take(&mut self.pending_kill);
            self.end(conns.into_iter().map(|conn| (conn, Reply::Gone)).collect());
        }
        self.checkpoint_barrier();
        if matches!(self.activity, Activity::Idle) && !self.pending.is_empty() {
            self.begin_checkpoint();
        }
        let nobody = self.members.is_empty() && self.expected.is_empty();
        if let Activity::Ending(answers) = &mut self.activity
            && nobody
        {
            for (conn, reply) in std::mem::take(answers) {
                self.answer(conn, reply);
            }
            self.exit();
        } else if matches!(self.activity, Activity::Idle) && nobody && self.begun {
            self.exit();
        }
    }

    fn exit(&mut self) {
        if !self.exited {
            self.exited = true;
            self.log("the last process has left: the coordinator ends".into());
            self.emit(Effect::Exit);
        }
    }
}
