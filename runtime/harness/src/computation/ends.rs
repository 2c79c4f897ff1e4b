//! How a computation ends: by itself, or by SIGKILL.
use super::{Computation, ERRORS};
use crate::{patience, process};
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::time::Instant;

impl Computation {
    /// Kills the program, all its descendants, and its daemons that descend from it no more, with SIGKILL, and sees to it
    /// that they are gone. The coordinator, which descends from none of them, lives on.
    ///
    /// # Errors
    /// When one survives, or when somebody still holds its output open.
    pub fn sigkill_all(&mut self) -> Result<()> {
        let mut pids = process::tree(self.running()?.child.id());
        if !self.restarted && self.kit.is_some() {
            // (A restarted computation has pids of its own, and nobody leaves its tree.)
            let members = self.status()?.members;
            pids.extend(members.iter().map(|m| m.pid).filter(|pid| !pids.contains(pid)).collect::<Vec<_>>());
        }
        let mut running = self.running.take().context("nothing runs")?;
        process::kill_all(pids, patience())?;
        let status = running.child.wait()?;
        ensure!(status.signal() == Some(9), "killed, but the status is {status}: it had ended before");
        running.out.wait_end(patience()).context("after all processes were killed")
    }

    /// Tells the program to make its last checks, and waits for its `PASS` and its end with status 0.
    ///
    /// # Errors
    /// When it says or does something else.
    pub fn finish(&mut self) -> Result<()> {
        fs::write(self.folder.join("stop"), "")?;
        self.wait_line("PASS")?;
        let status = self.wait_exit()?;
        fs::remove_file(self.folder.join("stop"))?;
        ensure!(status.success(), "it printed PASS, and ended with {status}\n--- its errors\n{}", self.last_errors());
        Ok(())
    }

    /// What was written to standard error by what ended last.
    #[must_use]
    pub fn last_errors(&self) -> String {
        self.ended.ends(ERRORS)
    }

    /// As [`Computation::finish`], for several programs of which each prints its `PASS`.
    ///
    /// # Errors
    /// When one says or does something else.
    pub fn finish_all(&mut self, programs: u32) -> Result<()> {
        fs::write(self.folder.join("stop"), "")?;
        for _ in 0..programs {
            self.wait_line("PASS")?;
        }
        let status = self.wait_exit()?;
        ensure!(status.success(), "they printed PASS, and it ended with {status}");
        Ok(())
    }

    /// Waits for the end of what runs.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        let running = self.running.as_mut().context("nothing runs")?;
        match wait(&mut running.child)? {
            Some(status) => {
                if let Some(running) = self.running.take() {
                    running.out.wait_end(patience())?;
                    if running.terminal.is_none() {
                        running.err.wait_end(patience())?;
                    }
                    self.ended = running.err;
                }
                Ok(status)
            }
            None => bail!("{}", self.explain("it does not end")),
        }
    }
}

/// The child's status, or None if it still runs after all our patience.
pub(super) fn wait(child: &mut Child) -> Result<Option<ExitStatus>> {
    let pid = rustix::process::Pid::from_child(child);
    let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    if process::wait_gone(&fd, Instant::now() + patience()).is_err() {
        return Ok(None);
    }
    Ok(Some(child.wait()?))
}
