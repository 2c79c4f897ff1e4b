//! How an attempt ends: called off, committed, or taken anew.
use super::*;

impl Machine {
    /// Calls the attempt off: all that were told to suspend are told to resume, at once.
    pub(super) fn abort(&mut self, reason: String, retake: bool) {
        self.abort_for(reason, retake.then_some(self.now));
    }

    /// As `abort`; `retake` is when it is taken anew.
    pub(super) fn abort_for(&mut self, reason: String, retake: Option<u64>) {
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
    pub(super) fn finish_parts(&mut self, checkpoint: &Checkpoint, failed: Option<&str>) {
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

    pub(super) fn manifest(&mut self) -> manifest::Manifest {
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

    pub(in crate::machine) fn committed(&mut self, generation: u64, result: Result<(), String>) {
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
    pub(super) fn aborted(&mut self) {
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

    pub(super) fn next_due(&mut self) {
        self.due = self.settings.interval_us.map(|interval| self.now + interval);
    }
}
