//! What processes say in a checkpoint, and what their leaving means for it.
use super::*;

impl Machine {
    pub(in crate::machine) fn suspended(
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

    pub(in crate::machine) fn checkpoint_round_done(&mut self, conn: Conn, done: u32, more: bool) -> bool {
        let Some(checkpoint) = self.checkpoint() else { return false };
        match &mut checkpoint.stage {
            Stage::Quiesce { round, again, .. } if *round == done && checkpoint.awaited.remove(&conn) => {
                *again |= more;
                true
            }
            _ => false,
        }
    }

    pub(in crate::machine) fn shared_found(&mut self, generation: u64, groups: Vec<Group>, note: String) {
        let Some(checkpoint) = self.attempt(generation) else { return };
        checkpoint.shared = Some(groups);
        if !note.is_empty() {
            checkpoint.notes.insert(note);
        }
    }

    pub(in crate::machine) fn snapshotted(&mut self, conn: Conn, generation: u64, note: &str) {
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

    pub(in crate::machine) fn saved(&mut self, conn: Conn, generation: u64, saved: Saved) {
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

    pub(in crate::machine) fn resumed(&mut self, conn: Conn, generation: u64, stopped_us: u64) {
        if let Activity::Restart(_) = self.activity {
            return self.restart_resumed(conn);
        }
        let Some(checkpoint) = self.attempt(generation) else { return };
        checkpoint.unresumed.remove(&conn);
        checkpoint.figures.stopped_us = checkpoint.figures.stopped_us.max(stopped_us);
    }

    /// It was found stopped, and has been continued.
    pub(in crate::machine) fn woken(&mut self, conn: Conn) {
        let Some(part) = self.checkpoint().and_then(|c| c.parts.get_mut(&conn)) else { return };
        (part.stop, part.stopped) = (true, true);
        let line = format!("{} was stopped: it was continued for this checkpoint", part.name);
        self.log(line);
    }

    /// The user has continued it: that counts.
    pub(in crate::machine) fn continued(&mut self, conn: Conn) {
        let Some(part) = self.checkpoint().and_then(|c| c.parts.get_mut(&conn)) else { return };
        (part.stop, part.stopped) = (false, false);
        let line = format!("{} was continued during the checkpoint: it runs on", part.name);
        self.log(line);
    }

    /// `passing`: it will be able to when the program has run on.
    pub(in crate::machine) fn failed(&mut self, conn: Conn, generation: u64, reason: &str, passing: bool) {
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
    pub(in crate::machine) fn left_in_checkpoint(&mut self, conn: Conn) {
        if let Some(checkpoint) = self.checkpoint() {
            checkpoint.unresumed.remove(&conn);
        }
    }

    pub(in crate::machine) fn closed_in_checkpoint(&mut self, conn: Conn, member: &Member) {
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
}
