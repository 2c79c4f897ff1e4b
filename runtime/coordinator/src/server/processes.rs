//! The processes behind the connections: watched by pidfd, woken where they were stopped, asked to prepare.
use super::{Event, Server, log};
use crate::{
    machine::{Conn, Input, Token},
    prepare::{self, Preparing},
    process::{self, Found, Handle},
};
use rustix::process::Signal;
use slackwater_protocol::{command::Status, message::ToProcess};

/// A stopped process says nothing, nor does one whose tracer keeps it.
fn cannot_answer(pid: i32) -> bool {
    process::is_stopped(pid) || process::tracer(pid).is_some()
}

impl Server {
    /// Asks those with much memory to prepare. Who is stopped would not answer.
    pub(super) fn prepare(&self, generation: u64) -> Option<Preparing> {
        let asked = self.processes.iter().filter(|&(_, &(_, pid))| prepare::is_worthwhile(pid));
        let asked = asked.filter(|&(_, &(_, pid))| !cannot_answer(pid)).map(|(&conn, _)| conn).collect();
        let preparing = Preparing::new(generation, asked);
        for &conn in preparing.iter().flat_map(Preparing::awaited) {
            self.send(conn, &ToProcess::Prepare { generation });
        }
        preparing
    }

    pub(super) fn look_at_preparing(&mut self) {
        let processes = &self.processes;
        if let Some(preparing) = &mut self.preparing {
            preparing.look(|conn| processes.get(&conn).is_none_or(|&(_, pid)| cannot_answer(pid)));
        }
        self.end_preparing();
    }

    /// The machine goes on, if all have prepared.
    pub(super) fn end_preparing(&mut self) {
        if let Some(Preparing { generation, .. }) = self.preparing.take_if(|preparing| preparing.is_over()) {
            self.inputs.push_back(Input::Folder { generation, result: Ok(()) });
        }
    }

    /// `claim` (program, parent) None: the process is being restored, and is another program still.
    pub(super) fn watch(&mut self, conn: Conn, pid: i32, claim: Option<&(String, i32)>) {
        let found = process::open(pid);
        if let Some((exe, ppid)) = claim {
            match process::is(pid, exe, *ppid) {
                Some(true) => {}
                Some(false) => {
                    return log(&format!(
                        "process {pid} is another one here: its connection alone tells whether it lives (is it in another \
                         pid namespace?)"
                    ));
                }
                // Gone already, or never in this pid namespace: its connection tells.
                None => return,
            }
        }
        if let Some(handle) = self.follow(found, Input::Died(conn), &format!("process {pid}")) {
            self.processes.insert(conn, (handle, pid));
        }
    }

    pub(super) fn watch_expected(&mut self, token: Token, pid: i32) {
        let who = format!("process {pid}, which was announced,");
        if let Some(handle) = self.follow(process::open(pid), Input::ExpectedDied(token), &who) {
            self.expected.insert(token, (handle, pid));
        }
    }

    /// Says `died` when that process has ended. None: it has, or cannot be watched.
    fn follow(&self, found: Found, died: Input, who: &str) -> Option<Handle> {
        let events = self.events.clone();
        match found {
            Found::Alive(handle) => {
                let watched = handle.clone();
                tokio::spawn(async move {
                    watched.died().await;
                    drop(events.send(Event::Input(died)));
                });
                return Some(handle);
            }
            Found::Dead => drop(events.send(Event::Input(died))),
            Found::Unknown(error) => log(&format!("{who} cannot be watched: {error}")),
        }
        None
    }

    /// A stopped process cannot answer; its parent, if it is a member, may stand already and learns nothing of this.
    pub(super) fn wake(&mut self, conn: Conn) {
        let Some((process, pid)) = self.processes.get(&conn) else { return };
        if !process::is_stopped(*pid) {
            // A tracer outside passes the checkpoint signal on; one of ours stands itself, and cannot.
            let tracer = process::tracer(*pid).filter(|tracer| self.processes.values().any(|(_, pid)| pid == tracer));
            self.inputs.extend(tracer.map(|tracer| Input::Traced(conn, tracer)));
            return;
        }
        process::hold_threads(*pid);
        match process.signal(Signal::CONT) {
            Ok(()) => self.inputs.push_back(Input::Woken(conn)),
            Err(error) => log(&format!("process {pid} is stopped and cannot be continued: {error}")),
        }
    }

    /// Counts the threads of processes that can be seen here; one of them is the checkpoint thread.
    pub(super) fn with_threads(&self, mut status: Status) -> Status {
        let seen: std::collections::HashSet<i32> = self.processes.values().map(|&(_, pid)| pid).collect();
        for member in status.members.iter_mut().filter(|member| seen.contains(&member.pid)) {
            if let Some(threads) = process::threads(member.pid) {
                member.threads = threads.saturating_sub(1);
            }
        }
        status
    }
}
