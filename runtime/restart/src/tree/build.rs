//! Makes the processes of a [`Plan`].
//!
//! Runs in init and in each process that it makes, all single-threaded. Each makes its children, then all meet; groups are
//! made, all meet; groups are joined, all meet; stand-ins and zombies end; and those that are left look whether they are
//! what they should be. A process that fails says so on the way out and sets the shared flag, which ends all waits.
//!
//! Rule: no process is moved to a group before all are made, so each is born in the group of its session's leader, or in
//! that of `slackwater restart`.
use super::plan::{Id, Node, Plan, Role};
use crate::sys::{self, SharedPage};
use anyhow::{Context, Result, bail};
use std::time::Duration;

/// How long one step may take for all processes together.
const PATIENCE: Duration = Duration::from_secs(60);
/// The barriers of this module; those after them are the caller's.
const MADE: usize = 0;
const JOINED: usize = 1;
const MOVED: usize = 2;
const ENDED: usize = 3;
/// The first barrier that is the caller's.
pub const NEXT_BARRIER: usize = 4;

/// Who returns from [`build`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The caller.
    Init,
    /// The process of this index.
    Member(usize),
}

/// Makes all processes. Returns once in the caller (process 1 of its namespace) and once in each member; never in
/// stand-ins and zombies. An error may come back in any of them: the process then has to report it and end.
pub fn build(plan: &Plan, shared: &SharedPage) -> Result<Place> {
    let tree = Tree { plan, shared, all: plan.nodes.len() as u32 + 1 };
    for &root in &plan.roots {
        if let Some(member) = tree.make(root)? {
            return Ok(Place::Member(member));
        }
    }
    tree.meet(MADE)?;
    tree.meet(JOINED)?;
    tree.meet(MOVED)?;
    tree.wait_for_children(&plan.roots)?;
    tree.meet(ENDED)?;
    Ok(Place::Init)
}

/// Number of processes that live on, and init.
pub fn alive(plan: &Plan) -> u32 {
    plan.nodes.iter().filter(|n| matches!(n.role, Role::Member(_))).count() as u32 + 1
}

struct Tree<'a> {
    plan: &'a Plan,
    shared: &'a SharedPage,
    all: u32,
}

impl Tree<'_> {
    fn meet(&self, barrier: usize) -> Result<()> {
        let all = if barrier == ENDED { alive(self.plan) } else { self.all };
        self.shared.meet(barrier, all, PATIENCE).context("rebuilding the process tree")
    }

    /// Makes node `i`. None in the caller; in the new process (or one below it) the member's index.
    fn make(&self, i: usize) -> Result<Option<usize>> {
        let node = &self.plan.nodes[i];
        match sys::fork_as(0, Some(node.pid), node.exit_signal) {
            Ok(0) => self.become_node(node).map(Some),
            Ok(_) => Ok(None),
            Err(e) => {
                let why = match e.raw_os_error() {
                    Some(libc::EEXIST) => "the number is taken in the new pid namespace",
                    Some(libc::EPERM) => "the kernel refuses to give out chosen process numbers (clone3 with set_tid)",
                    Some(libc::EAGAIN) => "the limit of processes is reached (ulimit -u, or pids.max of the cgroup)",
                    Some(libc::ENOSYS) => "the kernel has no clone3 (5.5 or later is needed)",
                    _ => "clone3",
                };
                Err(e).with_context(|| format!("process {} cannot be made: {why}", node.pid))
            }
        }
    }

    /// Runs in the new process.
    fn become_node(&self, node: &Node) -> Result<usize> {
        for &child in &node.before {
            if let Some(member) = self.make(child)? {
                return Ok(member);
            }
        }
        if node.leads_session() {
            sys::setsid().with_context(|| format!("process {} cannot lead a session", node.pid))?;
        }
        for &child in &node.after {
            if let Some(member) = self.make(child)? {
                return Ok(member);
            }
        }
        let join = |group: i32| {
            sys::setpgid(group).with_context(|| format!("process {} cannot join process group {group}", node.pid))
        };
        if node.makes_group {
            join(node.pid)?;
        }
        self.meet(MADE)?;
        let group = match node.pgid {
            Id::Is(g) if g != node.pid => Some(g),
            _ => None,
        };
        if let Some(g) = group.filter(|_| !node.moves_on()) {
            join(g)?;
        }
        self.meet(JOINED)?;
        if let Some(g) = group.filter(|_| node.moves_on()) {
            join(g)?;
        }
        if node.adopts {
            sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).context("PR_SET_CHILD_SUBREAPER")?;
        }
        self.meet(MOVED)?;
        let children: Vec<usize> = node.before.iter().chain(&node.after).copied().collect();
        self.wait_for_children(&children)?;
        match node.role {
            Role::Member(member) => {
                self.meet(ENDED)?;
                verify(node)?;
                Ok(member)
            }
            Role::StandIn => sys::exit(0),
            Role::Zombie(status) => die(status),
        }
    }

    /// Reaps the stand-ins among the caller's children, and waits until its zombies are.
    fn wait_for_children(&self, children: &[usize]) -> Result<()> {
        for node in children.iter().map(|&c| &self.plan.nodes[c]) {
            match node.role {
                Role::Member(_) => {}
                Role::StandIn => {
                    let end = sys::wait(node.pid, 0).with_context(|| format!("waiting for stand-in {}", node.pid))?;
                    if end.is_none_or(|w| w.status != 0) {
                        bail!("stand-in {} failed", node.pid);
                    }
                }
                Role::Zombie(_) => {
                    sys::wait_dead(node.pid).with_context(|| format!("waiting for zombie {}", node.pid))?;
                }
            }
        }
        Ok(())
    }
}

/// Is this process what its node says?
fn verify(node: &Node) -> Result<()> {
    let mut wrong = Vec::new();
    let mut look = |what: &str, have: i32, want: i32| {
        if have != want {
            wrong.push(format!("{what} is {have}, not {want}"));
        }
    };
    look("pid", sys::pid(), node.pid);
    look("parent", sys::ppid(), node.parent.unwrap_or(1));
    if let Id::Is(sid) = node.sid {
        look("session", sys::sid(), sid);
    }
    if let Id::Is(pgid) = node.pgid {
        look("process group", sys::pgrp(), pgid);
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("process {} came out wrong: {}", node.pid, wrong.join(", "))
}

/// Ends with this wait status. A core file is not made again: the flag for it is dropped.
fn die(status: i32) -> ! {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        sys::no_core();
        sys::default_action(signal);
        sys::mask(libc::SIG_UNBLOCK, &sys::signals(&[signal]));
        let _ = sys::kill(sys::pid(), signal);
    }
    sys::exit(libc::WEXITSTATUS(status))
}
