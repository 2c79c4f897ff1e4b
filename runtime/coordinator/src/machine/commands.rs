//! Commands: checkpoint, status, kill; and the end of all.
use super::*;

impl Machine {
    pub(super) fn status(&self) -> Status {
        let present = self.members.values().filter(|m| !m.left);
        let mut members: Vec<_> = present
            .map(|m| MemberStatus {
                member: m.number,
                pid: m.pid,
                ppid: m.ppid,
                exe: m.exe.clone(),
                host: m.host.clone(),
                threads: m.threads,
            })
            .collect();
        members.sort_by_key(|m| m.member);
        Status {
            state: self.phase(),
            members,
            expected: u32::try_from(self.expected.len()).unwrap_or(u32::MAX),
            generation: self.newest,
            last_checkpoint: self.last.clone(),
            error: self.error.clone(),
        }
    }

    pub(super) fn command(&mut self, conn: Conn, request: Request) {
        if !self.commands.insert(conn) {
            self.log(format!("command {conn} asked twice: closed"));
            return self.emit(Effect::Close(conn));
        }
        match request {
            Request::Status => {
                let status = Reply::Status(self.status());
                self.answer(conn, status);
            }
            Request::Checkpoint { .. } if matches!(self.activity, Activity::Ending(_)) => {
                self.answer(conn, Reply::Failed { reason: "the computation is being killed".into() });
            }
            Request::Checkpoint { kill } => {
                if self.members.is_empty() && self.expected.is_empty() && matches!(self.activity, Activity::Idle) {
                    let reason = "no process has joined this computation: there is nothing to checkpoint".into();
                    return self.answer(conn, Reply::Failed { reason });
                }
                self.pending.push((Some(conn), kill));
            }
            Request::Kill => {
                if let Activity::Ending(answers) = &mut self.activity {
                    answers.push((conn, Reply::Gone));
                } else if matches!(&self.activity, Activity::Checkpoint(c) if c.phase() == Phase::Commit) {
                    self.pending_kill.push(conn);
                } else {
                    self.log("asked to kill the computation".into());
                    self.end(vec![(conn, Reply::Gone)]);
                }
            }
            Request::Restart { token, generation, root_pid, members } => {
                self.begin_restart(conn, token, generation, root_pid, &members);
            }
        }
    }

    pub(super) fn command_closed(&mut self, conn: Conn) {
        // One that was to end the computation is taken even if nobody waits for its answer.
        self.pending.retain(|&(by, kill)| by != Some(conn) || kill);
        if matches!(&self.activity, Activity::Restart(restart) if restart.requester == conn) {
            self.restart_failed("the command that restarts it is gone".into());
        }
    }

    /// Kills everything; `answers` are given when all are gone.
    pub(super) fn end(&mut self, answers: Vec<(Conn, Reply)>) {
        let before = std::mem::replace(&mut self.activity, Activity::Ending(answers));
        let reason = "the computation was killed".to_string();
        match before {
            Activity::Checkpoint(checkpoint) => {
                self.emit(Effect::RemoveFolder(checkpoint.generation));
                for conn in checkpoint.requesters {
                    self.answer(conn, Reply::Failed { reason: reason.clone() });
                }
            }
            Activity::Restart(restart) => self.answer(restart.requester, Reply::Failed { reason: reason.clone() }),
            Activity::Idle | Activity::Ending(_) => {}
        }
        for (conn, _) in std::mem::take(&mut self.pending) {
            if let Some(conn) = conn {
                self.answer(conn, Reply::Failed { reason: reason.clone() });
            }
        }
        for (conn, left) in self.members.iter().map(|(&conn, m)| (conn, m.left)).collect::<Vec<_>>() {
            self.emit(if left { Effect::Drain(conn) } else { Effect::Kill(conn) });
        }
        let tokens: Vec<_> = self.expected.iter().filter(|(_, e)| e.pid.is_some()).map(|(&token, _)| token).collect();
        for token in tokens {
            self.emit(Effect::KillExpected(token));
        }
    }
}
