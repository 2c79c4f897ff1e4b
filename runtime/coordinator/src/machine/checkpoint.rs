//! One attempt at a checkpoint: Suspend, Round(Quiesce) again and again, Snapshot, Resume, Saved, commit; or its abort.
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

    pub(super) fn deadline(&self, patience: u64) -> Option<u64> {
        // How long freezing and saving take depends on memory and disk: there the connection tells who is alive.
        let bounded = matches!(self.stage, Stage::Suspend | Stage::Quiesce { .. })
            || matches!(self.stage, Stage::Save | Stage::Abort { .. }) && !self.unresumed.is_empty();
        bounded.then(|| self.since + patience)
    }

    /// The next time at which there is something to do.
    pub(super) fn wakes_at(&self, patience: u64) -> Option<u64> {
        let waits = !self.awaited.is_empty() || !self.unresumed.is_empty();
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
        let generation = checkpoint.generation;
        checkpoint.parts.insert(conn, part);
        checkpoint.awaited.insert(conn);
        self.emit(Effect::Send(conn, ToProcess::Suspend { generation }));
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

    pub(super) fn suspended(
        &mut self,
        conn: Conn,
        generation: u64,
        descriptors: Vec<DescriptorKey>,
        shared: Vec<SharedRange>,
    ) {
        let Some(checkpoint) = self.attempt(generation) else { return };
        if !matches!(checkpoint.stage, Stage::Suspend) || !checkpoint.awaited.remove(&conn) {
            return;
        }
        let Some(part) = checkpoint.parts.get_mut(&conn) else { return };
        part.suspended = true;
        part.shared = shared;
        let (number, pid, ..) = part.manifest;
        let woken = part.stop;
        let descriptors = descriptors.into_iter().map(|d| (d.fd, d.dev, d.ino)).collect();
        checkpoint.descriptors.push((number, pid, descriptors));
        if woken {
            self.emit(Effect::Woke(conn));
        }
        self.progress();
    }

    pub(super) fn checkpoint_round_done(&mut self, conn: Conn, done: u32, more: bool) -> bool {
        let Some(checkpoint) = self.checkpoint() else { return false };
        match &mut checkpoint.stage {
            Stage::Quiesce { round, again, .. } if *round == done && checkpoint.awaited.remove(&conn) => {
                *again |= more;
                true
            }
            _ => false,
        }
    }

    pub(super) fn shared_found(&mut self, generation: u64, groups: Vec<Group>, note: String) {
        let Some(checkpoint) = self.attempt(generation) else { return };
        checkpoint.shared = Some(groups);
        if !note.is_empty() {
            checkpoint.notes.insert(note);
        }
    }

    pub(super) fn snapshotted(&mut self, conn: Conn, generation: u64, note: &str) {
        let Some(checkpoint) = self.attempt(generation) else { return };
        if !matches!(checkpoint.stage, Stage::Snapshot) || !checkpoint.awaited.remove(&conn) {
            return;
        }
        let Some(part) = checkpoint.parts.get_mut(&conn) else { return };
        part.snapshotted = true;
        if !note.is_empty() {
            checkpoint.notes.insert(format!("{}: {note}", part.name));
        }
        self.progress();
    }

    pub(super) fn saved(&mut self, conn: Conn, generation: u64, saved: Saved) {
        let Some(checkpoint) = self.attempt(generation) else { return };
        if !matches!(checkpoint.stage, Stage::Snapshot | Stage::Save) || !checkpoint.unsaved.contains(&conn) {
            return;
        }
        // The child that writes reports for itself, and may be done before its parent has said that it snapshotted.
        let Some(part) = checkpoint.parts.get_mut(&conn) else { return };
        if saved.file.contains('/') || matches!(saved.file.as_str(), "" | "." | ".." | manifest::MANIFEST) {
            let reason = format!("{}: its image cannot be named {:?}", part.name, saved.file);
            return self.abort(reason, false);
        }
        checkpoint.unsaved.remove(&conn);
        checkpoint.figures.bytes += saved.bytes;
        checkpoint.figures.memory += saved.memory;
        part.saved = Some(saved);
        self.progress();
        if self.members.get(&conn).is_some_and(|m| m.left) {
            // Its child has done the last thing that the connection was kept for.
            self.emit(Effect::Drain(conn));
        }
    }

    pub(super) fn resumed(&mut self, conn: Conn, generation: u64, stopped_us: u64) {
        if let Activity::Restart(_) = self.activity {
            return self.restart_resumed(conn);
        }
        let Some(checkpoint) = self.attempt(generation) else { return };
        checkpoint.unresumed.remove(&conn);
        checkpoint.figures.stopped_us = checkpoint.figures.stopped_us.max(stopped_us);
    }

    /// It was found stopped, and has been continued.
    pub(super) fn woken(&mut self, conn: Conn) {
        let Some(part) = self.checkpoint().and_then(|c| c.parts.get_mut(&conn)) else { return };
        (part.stop, part.stopped) = (true, true);
        let line = format!("{} was stopped: it was continued for this checkpoint", part.name);
        self.log(line);
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

    /// The user has continued it: that counts.
    pub(super) fn continued(&mut self, conn: Conn) {
        let Some(part) = self.checkpoint().and_then(|c| c.parts.get_mut(&conn)) else { return };
        (part.stop, part.stopped) = (false, false);
        let line = format!("{} was continued during the checkpoint: it runs on", part.name);
        self.log(line);
    }

    /// `passing`: it will be able to when the program has run on.
    pub(super) fn failed(&mut self, conn: Conn, generation: u64, reason: &str, passing: bool) {
        let Some(name) = self.members.get(&conn).map(Member::name) else { return };
        let reason = format!("{name}: {reason}");
        if matches!(&self.activity, Activity::Restart(restart) if restart.includes(conn)) {
            return self.restart_failed(reason);
        }
        let Some(checkpoint) = self.attempt(generation) else { return };
        let mine = checkpoint.parts.get(&conn).is_some_and(|part| part.saved.is_none());
        if mine && !matches!(checkpoint.stage, Stage::Folder | Stage::Commit | Stage::Abort { .. }) {
            // A little longer from one time to the next: nobody knows how long the program needs.
            let pause = FIRST_PAUSE << checkpoint.figures.retaken.min(LONGEST_PAUSE);
            self.abort_for(reason, passing.then_some(self.now + pause));
        }
    }

    /// The process is gone, its child still writes.
    pub(super) fn left_in_checkpoint(&mut self, conn: Conn) {
        if let Some(checkpoint) = self.checkpoint() {
            checkpoint.unresumed.remove(&conn);
        }
    }

    pub(super) fn closed_in_checkpoint(&mut self, conn: Conn, member: &Member) {
        let Some(checkpoint) = self.checkpoint() else { return };
        checkpoint.awaited.remove(&conn);
        checkpoint.unresumed.remove(&conn);
        let Some(part) = checkpoint.parts.get_mut(&conn) else { return };
        part.present = false;
        let how = if member.exec.is_some() { "executed another program" } else { "ended" };
        let name = member.name();
        match checkpoint.stage {
            // It was on its way out before the cut: the generation is without it.
            Stage::Suspend if !part.suspended => {
                checkpoint.parts.remove(&conn);
                if checkpoint.parts.is_empty() && self.expected.is_empty() {
                    self.abort("all processes have ended: there is nothing to checkpoint".into(), false);
                }
            }
            // Others may have stopped while it was there, and some may still run and know of its end.
            Stage::Suspend => self.abort(format!("{name} {how} while it stood still"), true),
            Stage::Quiesce { .. } => self.abort(format!("{name} {how} during the checkpoint"), false),
            Stage::Snapshot | Stage::Save if part.saved.is_none() => {
                self.abort(format!("{name} {how} before its image was saved"), false);
            }
            Stage::Folder | Stage::Snapshot | Stage::Save | Stage::Commit | Stage::Abort { .. } => {}
        }
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

    /// Calls the attempt off: all that were told to suspend are told to resume, at once.
    fn abort(&mut self, reason: String, retake: bool) {
        self.abort_for(reason, retake.then_some(self.now));
    }

    /// As `abort`; `retake` is when it is taken anew.
    fn abort_for(&mut self, reason: String, retake: Option<u64>) {
        let now = self.now;
        let Some(checkpoint) = self.checkpoint() else { return };
        let generation = checkpoint.generation;
        checkpoint.awaited.clear();
        checkpoint.since = now;
        let mut told = Vec::new();
        for (&conn, part) in &mut checkpoint.parts {
            if part.present && !part.resume_sent {
                part.resume_sent = true;
                told.push(conn);
            }
        }
        checkpoint.unresumed.extend(&told);
        let line = format!("checkpoint: generation {generation} is off: {reason}");
        checkpoint.stage = Stage::Abort { reason: reason.clone(), retake };
        self.log(line);
        for conn in told {
            if self.members.get(&conn).is_some_and(|m| m.left) {
                self.left_in_checkpoint(conn);
            } else {
                self.resume(conn, ToProcess::Resume { generation, aborted: Some(reason.clone()) });
            }
        }
    }

    /// Tells everybody who took part how it ended.
    fn finish_parts(&mut self, checkpoint: &Checkpoint, failed: Option<&str>) {
        let generation = checkpoint.generation;
        for &conn in checkpoint.parts.iter().filter(|(_, part)| part.present).map(|(conn, _)| conn) {
            match self.members.get(&conn) {
                Some(member) if member.left => self.emit(Effect::Drain(conn)),
                Some(_) => {
                    self.emit(Effect::Send(
                        conn,
                        ToProcess::Finished { generation, failed: failed.map(str::to_string) },
                    ));
                }
                None => {}
            }
        }
    }

    /// Passes as many barriers as can be passed.
    pub(super) fn checkpoint_barrier(&mut self) {
        while self.pass_barrier() {}
    }

    fn pass_barrier(&mut self) -> bool {
        let now = self.now;
        let quiet = self.expected.is_empty();
        let Activity::Checkpoint(checkpoint) = &mut self.activity else { return false };
        let elapsed = now.saturating_sub(checkpoint.since);
        match &mut checkpoint.stage {
            // What those who are no more have said of their children must have been read.
            Stage::Suspend if checkpoint.awaited.is_empty() && quiet && !self.members.values().any(|m| m.left) => {
                if checkpoint.parts.is_empty() {
                    self.abort("all processes have ended: there is nothing to checkpoint".into(), false);
                    return true;
                }
                checkpoint.figures.suspend_us = elapsed;
                checkpoint.figures.processes = u32::try_from(checkpoint.parts.len()).unwrap_or(u32::MAX);
                checkpoint.unsaved = checkpoint.parts.keys().copied().collect();
                checkpoint.since = now;
                let key = |(fd, dev, ino)| DescriptorKey { fd, dev, ino };
                let descriptors = std::mem::take(&mut checkpoint.descriptors);
                let found = descriptors.into_iter().map(|(m, pid, d)| (m, pid, d.into_iter().map(key).collect()));
                let effect = Effect::FindShared(checkpoint.generation, found.collect());
                self.emit(effect);
                self.quiesce_round(0);
            }
            Stage::Quiesce { round, again: true, .. } if checkpoint.awaited.is_empty() => {
                let next = *round + 1;
                self.store.next_round();
                self.quiesce_round(next);
            }
            Stage::Quiesce { drained, .. } if checkpoint.awaited.is_empty() => {
                if !*drained {
                    *drained = true;
                    checkpoint.figures.quiesce_us = elapsed;
                }
                if checkpoint.shared.is_none() {
                    return false;
                }
                self.snapshot();
            }
            Stage::Snapshot if checkpoint.awaited.is_empty() => {
                checkpoint.figures.snapshot_us = elapsed;
                checkpoint.since = now;
                checkpoint.stage = Stage::Save;
                let generation = checkpoint.generation;
                let kill = checkpoint.kill;
                let mut told = Vec::new();
                for (&conn, part) in checkpoint.parts.iter_mut().filter(|(_, part)| part.present && !kill) {
                    part.resume_sent = true;
                    if self.members.get(&conn).is_some_and(|m| !m.left) {
                        told.push(conn);
                    }
                }
                checkpoint.unresumed.extend(&told);
                for conn in told {
                    self.resume(conn, ToProcess::Resume { generation, aborted: None });
                }
                self.progress();
            }
            Stage::Save => {
                if checkpoint.unresumed.is_empty() && !checkpoint.kill && !checkpoint.runs {
                    checkpoint.runs = true;
                    checkpoint.figures.resume_us = elapsed;
                }
                if !checkpoint.unresumed.is_empty() || !checkpoint.unsaved.is_empty() {
                    return false;
                }
                checkpoint.figures.save_us = elapsed;
                checkpoint.since = now;
                checkpoint.stage = Stage::Commit;
                let manifest = self.manifest();
                self.emit(Effect::Commit(Box::new(manifest)));
                self.progress();
            }
            Stage::Abort { retake, .. } if checkpoint.unresumed.is_empty() && retake.is_none_or(|at| at <= now) => {
                self.aborted();
            }
            _ => return false,
        }
        true
    }

    /// One that had been woken is stopped before it can read this: it resumes when somebody continues it, and is not
    /// waited for. So its threads do not run in between (one that reads its terminal in the background would stop itself).
    fn resume(&mut self, conn: Conn, message: ToProcess) {
        let Some(checkpoint) = self.checkpoint() else { return };
        if checkpoint.parts.get_mut(&conn).is_some_and(|part| std::mem::take(&mut part.stop)) {
            checkpoint.unresumed.remove(&conn);
            self.emit(Effect::Stop(conn));
        }
        self.emit(Effect::Send(conn, message));
    }

    fn quiesce_round(&mut self, round: u32) {
        let Some(checkpoint) = self.checkpoint() else { return };
        checkpoint.stage = Stage::Quiesce { round, again: false, drained: false };
        checkpoint.awaited = checkpoint.parts.keys().copied().collect();
        let members = checkpoint.figures.processes;
        for conn in checkpoint.awaited.clone() {
            self.emit(Effect::Send(conn, ToProcess::Round { kind: RoundKind::Quiesce, round, members }));
        }
        self.progress();
    }

    fn snapshot(&mut self) {
        let (now, codec, sync) = (self.now, self.settings.codec, self.settings.sync);
        let dir = self.settings.folder.clone();
        let Some(checkpoint) = self.checkpoint() else { return };
        checkpoint.stage = Stage::Snapshot;
        checkpoint.since = now;
        checkpoint.cut = now;
        checkpoint.awaited = checkpoint.parts.keys().copied().collect();
        let (generation, sync) = (checkpoint.generation, sync || checkpoint.kill);
        let folder = format!("{dir}/{}", manifest::partial_name(generation));
        let reports: Vec<_> = checkpoint
            .parts
            .iter_mut()
            .map(|(&conn, part)| (conn, part.manifest.4.clone(), std::mem::take(&mut part.shared)))
            .collect();
        let conns: Vec<_> = reports.iter().map(|(conn, ..)| *conn).collect();
        let elsewhere =
            savers::elsewhere(&reports.into_iter().map(|(_, host, shared)| (host, shared)).collect::<Vec<_>>());
        for (conn, elsewhere) in conns.into_iter().zip(elsewhere) {
            let folder = folder.clone();
            self.emit(Effect::Send(conn, ToProcess::Snapshot { generation, folder, sync, codec, elsewhere }));
        }
        self.progress();
    }

    fn manifest(&mut self) -> manifest::Manifest {
        let (root_pid, plugins) = (self.root_pid, self.settings.plugins.clone());
        let Some(checkpoint) = self.checkpoint() else { return manifest::Manifest::default() };
        let mut members: Vec<_> = checkpoint
            .parts
            .values()
            .filter_map(|part| {
                let saved = part.saved.clone()?;
                let (member, pid, ppid, exe, host) = part.manifest.clone();
                let Saved { file, bytes, memory } = saved;
                let stopped = part.stopped;
                Some(manifest::Member { member, file, bytes, memory, pid, ppid, exe, host, stopped })
            })
            .collect();
        members.sort_by_key(|m| m.member);
        manifest::Manifest {
            format: slackwater_image::layout::FORMAT.to_string(),
            generation: checkpoint.generation,
            created_unix_ms: 0,
            root_pid,
            members,
            shared_descriptors: checkpoint.shared.take().unwrap_or_default(),
            note: checkpoint.notes.iter().cloned().collect::<Vec<_>>().join("\n"),
            plugins,
            // Rounded up: nobody may have read a later time. The shell knows the other clock.
            clocks: Some(manifest::Clocks { monotonic_us: checkpoint.cut + 1, boottime_us: 0 }),
        }
    }

    pub(super) fn committed(&mut self, generation: u64, result: Result<(), String>) {
        if !self.attempt(generation).is_some_and(|c| matches!(c.stage, Stage::Commit)) {
            return;
        }
        if let Err(reason) = result {
            return self.abort(reason, false);
        }
        let Activity::Checkpoint(mut checkpoint) = std::mem::replace(&mut self.activity, Activity::Idle) else {
            return;
        };
        checkpoint.figures.commit_us = self.now.saturating_sub(checkpoint.since);
        checkpoint.figures.total_us = self.now.saturating_sub(checkpoint.asked);
        let figures = checkpoint.figures.clone();
        self.log(format!(
            "checkpoint: generation {generation} committed: {} processes, {} bytes, stopped {} us, in all {} us",
            figures.processes, figures.bytes, figures.stopped_us, figures.total_us
        ));
        self.newest = Some(generation);
        self.last = Some(figures.clone());
        self.error = None;
        self.next_due();
        self.finish_parts(&checkpoint, None);
        let path = format!("{}/{}", self.settings.folder, manifest::folder_name(generation));
        let answers = checkpoint.requesters.iter();
        let answers: Vec<_> =
            answers.map(|&conn| (conn, Reply::Committed { path: path.clone(), figures: figures.clone() })).collect();
        if checkpoint.kill {
            return self.end(answers);
        }
        for (conn, reply) in answers {
            self.answer(conn, reply);
        }
    }

    /// All that took part in an attempt that was called off run again.
    fn aborted(&mut self) {
        let Activity::Checkpoint(checkpoint) = std::mem::replace(&mut self.activity, Activity::Idle) else { return };
        let Stage::Abort { reason, retake } = &checkpoint.stage else { return };
        self.finish_parts(&checkpoint, Some(reason));
        self.emit(Effect::RemoveFolder(checkpoint.generation));
        let retaken = checkpoint.figures.retaken;
        if retake.is_some() && retaken < MAX_RETAKEN {
            return self.attempt_checkpoint(checkpoint.kill, checkpoint.requesters, checkpoint.asked, retaken + 1);
        }
        let reason = if retake.is_some() {
            format!("{reason}; this happened {retaken} times, try again later")
        } else {
            reason.clone()
        };
        self.next_due();
        self.error = Some(reason.clone());
        for conn in checkpoint.requesters {
            self.answer(conn, Reply::Failed { reason: reason.clone() });
        }
    }

    fn next_due(&mut self) {
        self.due = self.settings.interval_us.map(|interval| self.now + interval);
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
