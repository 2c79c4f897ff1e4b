//! A restart: the announced processes join, plugins hold their rounds, then all run. It succeeds as a whole or the
//! processes are killed: half a computation must not run.
use super::{Activity, Conn, Effect, Machine, Member};
use slackwater_protocol::{
    command::{Reply, RestartMember},
    message::{Entry, RoundKind, ToProcess},
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Until all have joined.
    Join,
    /// Until nobody says "again".
    Round { round: u32, again: bool },
    /// Until all run.
    Resume,
}

/// One restart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Restart {
    pub requester: Conn,
    generation: u64,
    /// Pid to number, of those who have not joined yet.
    missing: BTreeMap<i32, u64>,
    /// Pids of those who were stopped, and shall be again.
    stopped: BTreeSet<i32>,
    parts: BTreeSet<Conn>,
    awaited: BTreeSet<Conn>,
    stage: Stage,
    since: u64,
}

impl Restart {
    pub(super) fn includes(&self, conn: Conn) -> bool {
        self.parts.contains(&conn)
    }

    pub(super) fn deadline(&self, patience: u64) -> Option<u64> {
        // Before, images are read, which takes what it takes; the command's connection shows that it is at work.
        (!matches!(self.stage, Stage::Join)).then(|| self.since + patience)
    }
}

impl Machine {
    fn restart(&mut self) -> Option<&mut Restart> {
        match &mut self.activity {
            Activity::Restart(restart) => Some(restart),
            _ => None,
        }
    }

    pub(super) fn begin_restart(
        &mut self,
        conn: Conn,
        token: u64,
        generation: u64,
        root_pid: i32,
        members: &[RestartMember],
    ) {
        self.put_off_checkpoint();
        if !matches!(self.activity, Activity::Idle) || !self.members.is_empty() || members.is_empty() {
            let reason = "a restart needs a coordinator without processes, and at least one process to restart".into();
            return self.answer(conn, Reply::Failed { reason });
        }
        self.expected.remove(&token);
        self.begun = true;
        self.root_pid = root_pid;
        self.next_member = members.iter().map(|m| m.member + 1).max().unwrap_or(1);
        self.store = super::Store::default();
        self.log(format!("restart: {} processes of generation {generation} are awaited", members.len()));
        self.activity = Activity::Restart(Box::new(Restart {
            requester: conn,
            generation,
            missing: members.iter().map(|m| (m.pid, m.member)).collect(),
            stopped: members.iter().filter(|m| m.stopped).map(|m| m.pid).collect(),
            parts: BTreeSet::new(),
            awaited: BTreeSet::new(),
            stage: Stage::Join,
            since: self.now,
        }));
        self.emit(Effect::Reply(conn, Reply::Expecting));
    }

    /// The number of a process that says it was restarted; None when nobody announced it.
    pub(super) fn restart_number(&mut self, generation: u64, pid: i32) -> Option<u64> {
        self.restart().filter(|restart| restart.generation == generation)?.missing.remove(&pid)
    }

    pub(super) fn joined_in_restart(&mut self, conn: Conn, restarted_from: Option<u64>) {
        let now = self.now;
        // A process that was born while the first ones ran already is an ordinary member.
        let Some(restart) = self.restart().filter(|_| restarted_from.is_some()) else { return };
        restart.parts.insert(conn);
        if restart.missing.is_empty() {
            restart.since = now;
            self.restart_round(0);
        }
    }

    fn restart_round(&mut self, round: u32) {
        let Some(restart) = self.restart() else { return };
        restart.stage = Stage::Round { round, again: false };
        restart.awaited = restart.parts.clone();
        let members = u32::try_from(restart.parts.len()).unwrap_or(u32::MAX);
        for conn in restart.parts.clone() {
            self.emit(Effect::Send(conn, ToProcess::Round { kind: RoundKind::Restart, round, members }));
        }
    }

    pub(super) fn round_done(&mut self, conn: Conn, kind: RoundKind, done: u32, again: bool, publish: Vec<Entry>) {
        if kind == RoundKind::Quiesce {
            if self.checkpoint_round_done(conn, done, again) {
                self.store.publish(publish);
            }
            return;
        }
        let Some(restart) = self.restart() else { return };
        let Stage::Round { round, again: more } = &mut restart.stage else { return };
        if *round != done || !restart.awaited.remove(&conn) {
            return;
        }
        *more |= again;
        let (more, last) = (*more, restart.awaited.is_empty());
        self.store.publish(publish);
        if last && more {
            self.store.next_round();
            self.restart_round(done + 1);
        } else if last {
            self.restart_resume();
        }
    }

    fn restart_resume(&mut self) {
        let now = self.now;
        self.store.next_round();
        self.kept = std::mem::take(&mut self.store);
        let Some(restart) = self.restart() else { return };
        restart.stage = Stage::Resume;
        restart.since = now;
        restart.awaited = restart.parts.clone();
        let (generation, parts) = (restart.generation, restart.parts.clone());
        for conn in parts {
            // Before it can read that it may go; it does when somebody continues it.
            let stopped = self.members.get(&conn).is_some_and(|m| self.was_stopped(m.pid));
            if stopped {
                self.emit(Effect::Stop(conn));
            }
            self.emit(Effect::Send(conn, ToProcess::Resume { generation, aborted: None }));
            if stopped {
                self.restart_resumed(conn);
            }
        }
    }

    pub(super) fn restart_resumed(&mut self, conn: Conn) {
        let Some(restart) = self.restart().filter(|restart| matches!(restart.stage, Stage::Resume)) else { return };
        restart.awaited.remove(&conn);
        let (requester, generation, last) = (restart.requester, restart.generation, restart.awaited.is_empty());
        if last {
            self.log(format!("restart: generation {generation} runs"));
            self.activity = Activity::Idle;
            self.error = None;
            self.due = self.settings.interval_us.map(|interval| self.now + interval);
            self.answer(requester, Reply::Restarted);
        }
    }

    fn was_stopped(&self, pid: i32) -> bool {
        matches!(&self.activity, Activity::Restart(restart) if restart.stopped.contains(&pid))
    }

    pub(super) fn closed_in_restart(&mut self, conn: Conn, member: &Member) {
        let name = member.name();
        let Some(restart) = self.restart().filter(|restart| restart.parts.contains(&conn)) else { return };
        if matches!(restart.stage, Stage::Resume) {
            // It was let go; that it has ended since, or is another program, is its own affair.
            return self.restart_resumed(conn);
        }
        self.restart_failed(format!("{name} ended during the restart"));
    }

    pub(super) fn restart_failed(&mut self, reason: String) {
        let Some(restart) = self.restart() else { return };
        let requester = restart.requester;
        self.log(format!("restart failed, its processes are killed: {reason}"));
        self.error = Some(reason.clone());
        self.activity = Activity::Idle;
        self.end(vec![(requester, Reply::Failed { reason })]);
    }

    pub(super) fn restart_tick(&mut self) {
        let (now, patience) = (self.now, self.settings.patience_us);
        let Some(restart) = self.restart() else { return };
        if restart.deadline(patience).is_some_and(|deadline| now >= deadline) {
            let missing = restart.awaited.len();
            self.restart_failed(format!("no answer from {missing} processes within {} s", patience / 1_000_000));
        }
    }
}
