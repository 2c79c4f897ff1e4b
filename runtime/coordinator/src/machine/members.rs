//! Processes: what they say, and who is one of the computation's.
use super::*;

impl Machine {
    pub(super) fn process(&mut self, conn: Conn, message: FromProcess) {
        if let FromProcess::Join { token, pid, ppid, exe, host, restarted_from } = message {
            let member = Member { number: 0, pid, ppid, exe, host, token, exec: None, threads: 0, left: false };
            return self.join(conn, member, restarted_from);
        }
        if !self.members.contains_key(&conn) {
            if let FromProcess::Query { keys } = message {
                self.store.forget_answer();
                let values = self.kept.values(&keys);
                return self.emit(Effect::Send(conn, ToProcess::Values { values }));
            }
            self.log(format!("connection {conn} spoke before it joined: closed"));
            return self.emit(Effect::Close(conn));
        }
        match message {
            // `Prepared` is the shell's: it is no barrier.
            FromProcess::Join { .. } | FromProcess::Prepared { .. } => {}
            FromProcess::Expect { token } => {
                // Its Join may have been read first, for it comes on another connection.
                if !self.members.values().any(|m| m.token == token) {
                    self.expected.entry(token).or_insert(Expected { by: None, pid: None, woken: false }).by =
                        Some(conn);
                }
            }
            FromProcess::Born { token, pid } => {
                // It may have joined, and be another program already, before this was read.
                if self.members.values().any(|m| m.pid == pid && !m.left) {
                    self.expected.remove(&token);
                } else if let Some(expected) = self.expected.get_mut(&token) {
                    expected.pid = Some(pid);
                    self.watch_expected(token, pid);
                }
            }
            FromProcess::Unexpect { token } => {
                self.expected.remove(&token);
                if let Some(member) = self.members.get_mut(&conn)
                    && member.exec == Some(token)
                {
                    member.exec = None;
                }
            }
            FromProcess::Exec { token } => {
                if self.superseded(conn) {
                    self.leave(conn);
                } else if let Some(member) = self.members.get_mut(&conn) {
                    member.exec = Some(token);
                }
            }
            FromProcess::Suspended { generation, threads, descriptors, shared } => {
                if let Some(member) = self.members.get_mut(&conn) {
                    member.threads = threads;
                }
                self.suspended(conn, generation, descriptors, shared);
            }
            FromProcess::RoundDone { kind, round, again, publish } => {
                self.round_done(conn, kind, round, again, publish);
            }
            FromProcess::Query { keys } => {
                let answer = self.store.query(keys);
                self.emit(match answer {
                    Answer::Values(values) => Effect::Send(conn, ToProcess::Values { values }),
                    Answer::Same => Effect::Repeat(conn),
                });
            }
            FromProcess::Snapshotted { generation, note, .. } => self.snapshotted(conn, generation, &note),
            FromProcess::Resumed { generation, stopped_us } => self.resumed(conn, generation, stopped_us),
            FromProcess::Saved { generation, file, bytes, memory } => {
                self.saved(conn, generation, checkpoint::Saved { file, bytes, memory });
            }
            FromProcess::Failed { generation, reason } => self.failed(conn, generation, &reason, false),
            FromProcess::Unready { generation, reason } => self.failed(conn, generation, &reason, true),
            FromProcess::RequestCheckpoint => self.pending.push((None, false)),
            FromProcess::Log { line } => {
                let name = self.members[&conn].name();
                self.log(format!("{name}: {line}"));
            }
        }
    }

    pub(super) fn join(&mut self, conn: Conn, mut member: Member, restarted_from: Option<u64>) {
        if self.members.contains_key(&conn) {
            self.log(format!("{} joined twice: closed", member.name()));
            return self.emit(Effect::Close(conn));
        }
        let token = member.token;
        let expected = self.expected.remove(&token).filter(|_| token != 0);
        let mut announced = expected.is_some();
        let woken = expected.is_some_and(|e| e.woken);
        // Whatever else this pid was announced as, it has become this.
        self.expected.retain(|_, expected| expected.pid != Some(member.pid));
        // Another program of a process that has joined before: its old self is over, though a child of it may be writing.
        let before = self.members.iter().find(|(_, m)| token != 0 && m.exec == Some(token)).map(|(&conn, _)| conn);
        if let Some(before) = before {
            announced = true;
            self.leave(before);
        }
        if let Some(generation) = restarted_from {
            match self.restart_number(generation, member.pid) {
                Some(number) => member.number = number,
                None => {
                    self.log(format!(
                        "{} says it was restarted from generation {generation}, which nobody announced: closed",
                        member.name()
                    ));
                    return self.emit(Effect::Close(conn));
                }
            }
        } else {
            member.number = self.next_member;
            self.next_member += 1;
        }
        if self.root_pid == 0 {
            self.root_pid = member.pid;
        }
        self.begun = true;
        let (number, pid, name) = (member.number, member.pid, member.name());
        let claim = restarted_from.is_none().then(|| (member.exe.clone(), member.ppid));
        self.log(format!("{name} joined as member {number}"));
        self.members.insert(conn, member);
        self.emit(Effect::Send(conn, ToProcess::Joined { member: number }));
        self.emit(Effect::Watch(conn, pid, claim));
        match &self.activity {
            Activity::Idle if woken => self.emit(Effect::Stop(conn)),
            Activity::Idle => {}
            Activity::Checkpoint(_) => {
                self.joined_in_checkpoint(conn, announced);
                if woken {
                    self.woken(conn);
                }
            }
            Activity::Restart(_) => self.joined_in_restart(conn, restarted_from),
            Activity::Ending(_) => self.emit(Effect::Kill(conn)),
        }
    }

    pub(super) fn died(&mut self, conn: Conn) {
        let Some(member) = self.members.get(&conn) else { return };
        if member.left {
            return;
        }
        if matches!(&self.activity, Activity::Checkpoint(c) if c.image_is_coming(conn)) {
            self.leave(conn);
        } else {
            self.emit(Effect::Drain(conn));
        }
    }

    /// The process is no more (or another program); its connection stays only while its image is being written.
    pub(super) fn leave(&mut self, conn: Conn) {
        let coming = matches!(&self.activity, Activity::Checkpoint(c) if c.image_is_coming(conn));
        if let Some(member) = self.members.get_mut(&conn) {
            member.left = true;
            member.exec = None;
        }
        if coming {
            self.left_in_checkpoint(conn);
        } else {
            self.emit(Effect::Drain(conn));
        }
    }

    /// The process behind `conn` is another program already, and has joined as that.
    pub(super) fn superseded(&self, conn: Conn) -> bool {
        let Some(member) = self.members.get(&conn) else { return false };
        let mut others =
            self.members.iter().filter(|&(&other, m)| other != conn && !m.left && m.number > member.number);
        others.any(|(_, m)| m.pid == member.pid && m.host == member.host)
    }

    pub(super) fn closed(&mut self, conn: Conn) {
        if self.commands.remove(&conn) {
            return self.command_closed(conn);
        }
        let Some(member) = self.members.remove(&conn) else { return };
        // Children that it announced and whose pid nobody knows: they join unannounced, or do not exist.
        self.expected.retain(|_, expected| expected.by != Some(conn) || expected.pid.is_some());
        if let Some(token) = member.exec {
            self.expected.insert(token, Expected { by: None, pid: Some(member.pid), woken: false });
            self.watch_expected(token, member.pid);
        } else if !member.left {
            self.log(format!("{} left", member.name()));
        }
        match &self.activity {
            Activity::Checkpoint(_) => self.closed_in_checkpoint(conn, &member),
            Activity::Restart(_) => self.closed_in_restart(conn, &member),
            Activity::Idle | Activity::Ending(_) => {}
        }
    }

    pub(super) fn watch_expected(&mut self, token: Token, pid: i32) {
        self.emit(Effect::WatchExpected(token, pid));
        if matches!(self.activity, Activity::Ending(_)) {
            self.emit(Effect::KillExpected(token));
        }
    }
}
