//! One attempt at a checkpoint: Suspend, Round(Quiesce) again and again, Snapshot, Resume, Saved, commit; or its abort.
mod answers;
mod barriers;
mod outcome;

use super::{Activity, Conn, Effect, Group, MAX_RETAKEN, Machine, Member, savers};
use slackwater_image::manifest;
use slackwater_protocol::{
    command::{Figures, Phase, Reply},
    message::{DescriptorKey, RoundKind, SharedRange, ToProcess},
};
use std::collections::{BTreeMap, BTreeSet};

/// Who has not answered for so long, in microseconds, may be stopped; it is looked at, and again each so often.
const FIRST_LOOK: u64 = 20_000;
const NEXT_LOOK: u64 = 200_000;

/// For how long the program runs before a checkpoint is taken anew for which somebody was not ready, in microseconds, and how
/// often that is doubled: a tenth of a second, in the end.
const FIRST_PAUSE: u64 = 1000;
const LONGEST_PAUSE: u32 = 7;

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// The shell makes the folder; no process knows yet.
    Folder,
    /// Until all stand and nobody is expected any more.
    Suspend,
    /// Until nobody says "again", and shared descriptors are known.
    Quiesce { round: u32, again: bool, drained: bool },
    /// Until all memory is frozen.
    Snapshot,
    /// Processes run (unless they are to be killed); until all run and all images are durable.
    Save,
    /// The shell makes it durable.
    Commit,
    /// Off, for this reason; until all run again. `retake`: and then anew, at this time.
    Abort { reason: String, retake: Option<u64> },
}

/// What a process reports of its image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Saved {
    pub file: String,
    pub bytes: u64,
    pub memory: u64,
}

/// A process in this generation. What the manifest needs is kept here, for the process may leave before the commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Part {
    manifest: (u64, i32, i32, String, String),
    name: String,
    /// What it may share with others.
    shared: Vec<SharedRange>,
    suspended: bool,
    snapshotted: bool,
    resume_sent: bool,
    /// It was stopped, has been continued for the checkpoint, and is to be stopped again before it resumes.
    stop: bool,
    /// It counts as stopped in the manifest.
    stopped: bool,
    /// Its connection is still open, and somebody listens.
    present: bool,
    saved: Option<Saved>,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Checkpoint {
    pub generation: u64,
    kill: bool,
    pub requesters: Vec<Conn>,
    stage: Stage,
    parts: BTreeMap<Conn, Part>,
    /// Who has yet to answer at the present barrier (Suspend, Quiesce, Snapshot).
    awaited: BTreeSet<Conn>,
    /// Who was told to resume and has not said that it runs.
    unresumed: BTreeSet<Conn>,
    /// Whose image is not durable yet; filled at the suspend barrier.
    unsaved: BTreeSet<Conn>,
    descriptors: Vec<(u64, i32, Vec<DescriptorKeyHash>)>,
    shared: Option<Vec<Group>>,
    /// All run again; set once.
    runs: bool,
    /// When nobody ran any more.
    cut: u64,
    notes: BTreeSet<String>,
    figures: Figures,
    /// When it was asked for, when this attempt and when this stage began.
    asked: u64,
    since: u64,
    /// When those who are waited for are next looked at: a stopped process cannot answer.
    look: u64,
}

/// (fd, dev, ino); the protocol's type has no `Hash`.
type DescriptorKeyHash = (i32, u64, u64);

impl Checkpoint {
    pub(super) const fn phase(&self) -> Phase {
        match self.stage {
            Stage::Folder | Stage::Suspend => Phase::Suspend,
            Stage::Quiesce { .. } => Phase::Quiesce,
            Stage::Snapshot => Phase::Snapshot,
            Stage::Save => Phase::Save,
            Stage::Commit => Phase::Commit,
            Stage::Abort { .. } => Phase::Abort,
        }
    }

    /// Memory will be frozen by fork, and this is the first attempt.
    pub(super) const fn forks_first(&self) -> bool {
        !self.kill && self.figures.retaken == 0
    }

    pub(super) fn deadline(&self, patience: u64) -> Option<u64> {
        // How long freezing and saving take depends on memory and disk: there the connection tells who is alive.
        let bounded = matches!(self.stage, Stage::Suspend | Stage::Quiesce { .. })
            || matches!(self.stage, Stage::Save | Stage::Abort { .. }) && !self.unresumed.is_empty();
        bounded.then(|| self.since + patience)
    }

    /// The next time at which there is something to do. `coming`: somebody is expected, who may be stopped, too.
    pub(super) fn wakes_at(&self, patience: u64, coming: bool) -> Option<u64> {
        let coming = coming && matches!(self.stage, Stage::Suspend);
        let waits = coming || !self.awaited.is_empty() || !self.unresumed.is_empty();
        let anew = if let Stage::Abort { retake, .. } = self.stage { retake } else { None };
        self.deadline(patience).into_iter().chain(waits.then_some(self.look)).chain(anew).min()
    }

    /// Its memory is frozen and a child of it may be writing: the process itself is not needed any more.
    pub(super) fn image_is_coming(&self, conn: Conn) -> bool {
        matches!(self.stage, Stage::Save | Stage::Snapshot)
            && self.unsaved.contains(&conn)
            && self.parts.get(&conn).is_some_and(|part| part.snapshotted)
    }

    /// Names of some of those who are waited for.
    fn missing(&self) -> String {
        let waiting = if self.awaited.is_empty() { &self.unresumed } else { &self.awaited };
        let mut names: Vec<&str> =
            waiting.iter().filter_map(|conn| self.parts.get(conn)).map(|part| part.name.as_str()).take(4).collect();
        if waiting.len() > names.len() {
            names.push("...");
        }
        names.join(", ")
    }
}

impl Machine {
    fn checkpoint(&mut self) -> Option<&mut Checkpoint> {
        match &mut self.activity {
            Activity::Checkpoint(checkpoint) => Some(checkpoint),
            _ => None,
        }
    }

    /// The attempt, if `generation` is its number: answers to any other are void.
    fn attempt(&mut self, generation: u64) -> Option<&mut Checkpoint> {
        self.checkpoint().filter(|c| c.generation == generation)
    }

    /// Takes all waiting requests on.
    pub(super) fn begin_checkpoint(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let kill = pending.iter().any(|&(_, kill)| kill);
        let requesters = pending.into_iter().filter_map(|(conn, _)| conn).collect();
        self.attempt_checkpoint(kill, requesters, self.now, 0);
    }

    /// One that was asked for before any process was there waits until the restart, which is announced now, is done.
    pub(super) fn put_off_checkpoint(&mut self) {
        let Activity::Checkpoint(checkpoint) = &mut self.activity else { return };
        if !self.members.is_empty() || !matches!(checkpoint.stage, Stage::Folder | Stage::Suspend) {
            return;
        }
        let (generation, kill) = (checkpoint.generation, checkpoint.kill);
        let requesters = std::mem::take(&mut checkpoint.requesters);
        self.activity = Activity::Idle;
        self.pending.extend(requesters.into_iter().map(|conn| (Some(conn), kill)));
        self.log(format!("checkpoint: generation {generation} is put off until the restart is done"));
        self.emit(Effect::RemoveFolder(generation));
    }

    fn attempt_checkpoint(&mut self, kill: bool, requesters: Vec<Conn>, asked: u64, retaken: u32) {
        let generation = self.settings.next_generation;
        self.settings.next_generation += 1;
        self.log(format!("checkpoint: generation {generation} begins"));
        self.activity = Activity::Checkpoint(Box::new(Checkpoint {
            generation,
            kill,
            requesters,
            stage: Stage::Folder,
            parts: BTreeMap::new(),
            awaited: BTreeSet::new(),
            unresumed: BTreeSet::new(),
            unsaved: BTreeSet::new(),
            descriptors: Vec::new(),
            shared: None,
            runs: false,
            cut: 0,
            notes: BTreeSet::new(),
            figures: Figures { generation, retaken, ..Figures::default() },
            asked,
            since: self.now,
            look: self.now,
        }));
        self.store = super::Store::default();
        self.emit(Effect::CreateFolder(generation));
    }

    pub(super) fn folder_made(&mut self, generation: u64, result: Result<(), String>) {
        let now = self.now;
        let Some(checkpoint) = self.attempt(generation) else { return };
        if !matches!(checkpoint.stage, Stage::Folder) {
            return;
        }
        if let Err(reason) = result {
            return self.abort(reason, false);
        }
        checkpoint.stage = Stage::Suspend;
        checkpoint.look = now + FIRST_LOOK;
        for conn in self.members.iter().filter(|(_, m)| !m.left).map(|(&conn, _)| conn).collect::<Vec<_>>() {
            self.add_part(conn);
        }
    }

    fn add_part(&mut self, conn: Conn) {
        let Some(member) = self.members.get(&conn) else { return };
        let part = Part {
            manifest: (member.number, member.pid, member.ppid, member.exe.clone(), member.host.clone()),
            name: member.name(),
            shared: Vec::new(),
            suspended: false,
            snapshotted: false,
            resume_sent: false,
            stop: false,
            stopped: false,
            present: true,
            saved: None,
        };
        let Some(checkpoint) = self.checkpoint() else { return };
        let (generation, retaken) = (checkpoint.generation, checkpoint.figures.retaken);
        checkpoint.parts.insert(conn, part);
        checkpoint.awaited.insert(conn);
        self.emit(Effect::Send(conn, ToProcess::Suspend { generation, retaken }));
    }

    pub(super) fn joined_in_checkpoint(&mut self, conn: Conn, announced: bool) {
        let name = self.members[&conn].name();
        let Some(checkpoint) = self.checkpoint() else { return };
        match checkpoint.stage {
            Stage::Suspend => self.add_part(conn),
            // The cut has passed it by.
            Stage::Quiesce { .. } | Stage::Snapshot => {
                self.abort(format!("{name} joined after all others stood"), true)
            }
            // Announced by a process that ran again: born after the cut. Otherwise nobody knows.
            Stage::Save if !announced => self.abort(format!("{name} joined unannounced before the commit"), true),
            Stage::Folder | Stage::Save | Stage::Commit | Stage::Abort { .. } => {}
        }
    }

    /// What traces it has come to stand, or will: neither can go on.
    pub(super) fn traced(&mut self, conn: Conn, tracer: i32) {
        let name = |m: &Member| m.name();
        let by = self.members.values().find(|m| m.pid == tracer).map_or_else(|| format!("process {tracer}"), name);
        let Some(checkpoint) = self.checkpoint() else { return };
        if !matches!(checkpoint.stage, Stage::Suspend) {
            return;
        }
        let Some(part) = checkpoint.parts.get(&conn).filter(|part| !part.suspended) else { return };
        let reason = format!(
            "{} is traced by {by}: a debugger or tracer inside the computation cannot be saved with what it traces; let it \
             detach first, or start it outside of the computation",
            part.name
        );
        self.abort(reason, false);
    }

    pub(super) fn checkpoint_tick(&mut self) {
        let (now, patience) = (self.now, self.settings.patience_us);
        let expected = self.expected.len();
        let Some(checkpoint) = self.checkpoint() else { return };
        if now >= checkpoint.look {
            checkpoint.look = now + NEXT_LOOK;
            let silent: Vec<Conn> = checkpoint.awaited.union(&checkpoint.unresumed).copied().collect();
            for conn in silent {
                self.emit(Effect::Wake(conn));
            }
            let coming = self.expected.iter().filter(|(_, e)| e.pid.is_some()).map(|(&token, _)| token);
            for token in coming.collect::<Vec<_>>() {
                self.emit(Effect::WakeExpected(token));
            }
        }
        let Some(checkpoint) = self.checkpoint() else { return };
        if checkpoint.deadline(patience).is_none_or(|deadline| now < deadline) {
            return;
        }
        let mut missing = checkpoint.missing();
        if missing.is_empty() && expected > 0 {
            missing = format!("{expected} announced processes that have not joined");
        }
        let seconds = patience / 1_000_000;
        if matches!(checkpoint.stage, Stage::Abort { .. }) {
            checkpoint.unresumed.clear();
            return self.log(format!("after {seconds} s still no answer from {missing}: not waited for any longer"));
        }
        let reason = format!(
            "no answer within {seconds} s ({:?}) from {missing}; is it stopped, or in an uninterruptible wait?",
            checkpoint.phase()
        );
        self.abort(reason, false);
    }

    /// Tells those who asked how far it is.
    fn progress(&mut self) {
        let Some(checkpoint) = self.checkpoint() else { return };
        let members = checkpoint.parts.len();
        let awaited = if matches!(checkpoint.stage, Stage::Save) { &checkpoint.unsaved } else { &checkpoint.awaited };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let reply = Reply::Progress {
            phase: checkpoint.phase(),
            done: count(members - awaited.len().min(members)),
            members: count(members),
            memory: checkpoint.figures.memory,
        };
        for conn in checkpoint.requesters.clone() {
            if self.commands.contains(&conn) {
                self.emit(Effect::Reply(conn, reply.clone()));
            }
        }
    }
}
