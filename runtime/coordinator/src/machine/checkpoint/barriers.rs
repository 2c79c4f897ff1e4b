//! Barriers: what happens when the last process has answered.
use super::*;

impl Machine {
    /// Passes as many barriers as can be passed.
    pub(in crate::machine) fn checkpoint_barrier(&mut self) {
        while self.pass_barrier() {}
    }

    pub(super) fn pass_barrier(&mut self) -> bool {
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
                    let generation = checkpoint.generation;
                    for conn in checkpoint.unsaved.clone() {
                        if self.members.get(&conn).is_some_and(|m| !m.left) {
                            self.emit(Effect::Send(conn, ToProcess::Write { generation }));
                        }
                    }
                }
                let Some(checkpoint) = self.checkpoint() else { return false };
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
    pub(super) fn resume(&mut self, conn: Conn, message: ToProcess) {
        let Some(checkpoint) = self.checkpoint() else { return };
        if checkpoint.parts.get_mut(&conn).is_some_and(|part| std::mem::take(&mut part.stop)) {
            checkpoint.unresumed.remove(&conn);
            self.emit(Effect::Stop(conn));
        }
        self.emit(Effect::Send(conn, message));
    }

    pub(super) fn quiesce_round(&mut self, round: u32) {
        let Some(checkpoint) = self.checkpoint() else { return };
        checkpoint.stage = Stage::Quiesce { round, again: false, drained: false };
        checkpoint.awaited = checkpoint.parts.keys().copied().collect();
        let members = checkpoint.figures.processes;
        for conn in checkpoint.awaited.clone() {
            self.emit(Effect::Send(conn, ToProcess::Round { kind: RoundKind::Quiesce, round, members }));
        }
        self.progress();
    }

    pub(super) fn snapshot(&mut self) {
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
}
