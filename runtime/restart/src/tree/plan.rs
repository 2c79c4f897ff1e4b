//! How a process tree is to be made: pure, so that it can be tested by the thousand.
//!
//! The kernel gives a process its session and group by inheritance, and moves it only by its own hand: setsid(2) makes it the
//! leader of a new session, setpgid(2) moves it inside its session. So each process must be *born* in the right session:
//!
//! * a child whose session is its parent's is made after the parent's own setsid;
//! * a child in the session which its parent left by setsid is made before that;
//! * a child in any other session lost its first parent, and was adopted by init or by a subreaper. It is made below a member
//!   of that session by a *stand-in*, which then ends;
//! * where the leader of a session or group has ended (but its number lives on with the members), a stand-in takes the
//!   number, makes the members, and ends.
//!
//! Numbers that belong to the world outside (the shell's session, where the restart has a terminal; group and parent 0,
//! which is how a pid namespace shows what lies outside of it) map to those of `slackwater restart` itself. So does a session
//! that is led by one of ours on a terminal that is not (the first program of an xterm): a terminal belongs to one session,
//! and here that is the restart's.
mod maker;

use maker::Maker;
use slackwater_image::meta::Process;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The images contradict each other.
    #[error("two images are of process {0}: the generation is damaged; restart another one")]
    Twice(i32),
    /// Number 1 is init's.
    #[error(
        "process {0} cannot be made again: this number belongs to the restart's own init process (a computation that was launched as the first process of a container cannot be restarted yet: launch it from a shell there)"
    )]
    Reserved(i32),
    /// Parents in a circle.
    #[error("the parents of process {0} form a circle: the generation is damaged; restart another one")]
    Circle(i32),
    /// Sessions that no order of births gives.
    #[error("process {pid} cannot be made again: it is in session {sid}, in which its parent {ppid} can have no child")]
    Session {
        /// Which.
        pid: i32,
        /// Its session.
        sid: i32,
        /// Its parent.
        ppid: i32,
    },
    /// A group spread over sessions.
    #[error("process group {0} has members in several sessions: the generation is damaged; restart another one")]
    Group(i32),
    /// No numbers left.
    #[error("no free process number below {0} (see /proc/sys/kernel/pid_max)")]
    Full(i32),
}

/// A session or group: one that is rebuilt, or that which `slackwater restart` runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Id {
    /// The restart's own.
    Outside,
    /// This number.
    Is(i32),
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Process of this index.
    Member(usize),
    /// Ends with this wait status, and waits to be waited for.
    Zombie(i32),
    /// Ends when its work is done.
    StandIn,
}

/// One process to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub pid: i32,
    /// What it is.
    pub role: Role,
    /// Its parent in the end; None: init.
    pub parent: Option<i32>,
    /// Its session.
    pub sid: Id,
    /// Its group.
    pub pgid: Id,
    /// The signal that its parent gets when it ends.
    pub exit_signal: i32,
    /// It makes a group of its own number first (its own, or one it leaves again when others have joined).
    pub makes_group: bool,
    /// It adopts children, so it must be a subreaper before stand-ins end.
    pub adopts: bool,
    /// Nodes that it makes before its setsid.
    pub before: Vec<usize>,
    /// Nodes that it makes in its own session.
    pub after: Vec<usize>,
}

impl Node {
    /// Does it call setsid?
    pub fn leads_session(&self) -> bool {
        self.sid == Id::Is(self.pid)
    }

    /// Does it join another's group in the last step, after its own was joined?
    pub fn moves_on(&self) -> bool {
        self.makes_group && self.pgid != Id::Is(self.pid)
    }
}

/// The plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// All processes: members first, in the order given.
    pub nodes: Vec<Node>,
    /// Those that init makes.
    pub roots: Vec<usize>,
    /// The largest run of numbers that nothing uses: [start, end). Later processes begin there.
    pub free: (i32, i32),
}

/// Makes the plan.
///
/// `threads`: all further numbers in use (thread ids). `root`: index of the computation's first process, if it still lives
/// and the restart has a terminal: its session and group count as the world outside where their leaders are not among
/// `processes`. Without it they are made again under their numbers. `terminals`: device
/// numbers (as in /proc/PID/stat) of terminals that the computation itself makes. `pid_max`: numbers end below it.
pub fn plan(
    processes: &[Process],
    threads: &[i32],
    root: Option<usize>,
    terminals: &[i32],
    pid_max: i32,
) -> Result<Plan, PlanError> {
    let mut maker = Maker::new(processes, threads, root, terminals, pid_max)?;
    maker.check_circles()?;
    maker.add_session_leaders();
    maker.name_outside_group()?;
    maker.add_group_leaders()?;
    maker.place_all()?;
    Ok(Plan { nodes: maker.nodes, roots: maker.roots, free: maker.free })
}

#[cfg(test)]
mod tests {
    use super::maker::largest_gap;
    use super::*;
    use slackwater_image::meta::Zombie;
    use std::collections::BTreeSet;

    fn process(pid: i32, ppid: i32, pgid: i32, sid: i32) -> Process {
        Process { pid, ppid, pgid, sid, ..Process::default() }
    }

    #[test]
    fn a_shell_with_jobs() {
        // Launched from a shell 90 in its own group; two jobs, one whose first process has ended.
        let all = [process(100, 90, 100, 90), process(101, 100, 101, 90), process(103, 100, 102, 90)];
        let plan = plan(&all, &[110], Some(0), &[], 32768).unwrap();
        assert_eq!(plan.roots, [0, 3]);
        assert_eq!(plan.nodes[0].after, [1, 2]);
        assert_eq!(plan.nodes[0].sid, Id::Outside);
        assert_eq!((plan.nodes[3].pid, plan.nodes[3].role), (102, Role::StandIn));
        assert!(plan.nodes[3].makes_group && plan.nodes[1].makes_group && !plan.nodes[2].makes_group);
        assert_eq!(plan.free, (111, 32768));
    }

    #[test]
    fn a_leader_on_a_terminal_outside() {
        let mut shell = process(100, 90, 100, 100);
        shell.tty = 0x8803;
        let mut inside = process(101, 100, 101, 101);
        inside.tty = 0x8804;
        let plan = plan(&[shell, inside], &[], Some(0), &[0x8804], 32768).unwrap();
        assert_eq!(
            (plan.nodes[0].sid, plan.nodes[0].pgid, plan.nodes[0].makes_group),
            (Id::Outside, Id::Is(100), true)
        );
        assert!(plan.nodes[1].leads_session());
    }

    #[test]
    fn a_daemon_whose_session_leader_is_gone() {
        let all = [process(100, 90, 90, 90), process(105, 1, 104, 104)];
        let plan = plan(&all, &[], Some(0), &[], 32768).unwrap();
        assert_eq!(plan.nodes[0].pgid, Id::Outside);
        let leader = &plan.nodes[2];
        assert_eq!((leader.pid, leader.role, leader.after.as_slice()), (104, Role::StandIn, &[1][..]));
        assert_eq!(plan.roots, [0, 2]);
    }

    #[test]
    fn a_child_from_before_setsid() {
        let all = [
            process(100, 1, 100, 100),
            process(101, 100, 100, 100),
            process(102, 101, 102, 102),
            process(103, 102, 100, 100),
        ];
        let plan = plan(&all, &[], Some(0), &[], 32768).unwrap();
        assert_eq!(plan.nodes[2].before, [3]);
        assert_eq!(plan.nodes[1].after, [2]);
    }

    #[test]
    fn an_orphan_of_a_living_session() {
        let all = [process(100, 1, 100, 100), process(101, 1, 100, 100)];
        let plan = plan(&all, &[], Some(0), &[], 32768).unwrap();
        assert_eq!(plan.nodes[0].after, [2]);
        assert_eq!((plan.nodes[2].role, plan.nodes[2].after.as_slice()), (Role::StandIn, &[1][..]));
    }

    #[test]
    fn what_cannot_be_is_said() {
        let twice = [process(100, 1, 100, 100), process(100, 1, 100, 100)];
        assert_eq!(plan(&twice, &[], None, &[], 32768), Err(PlanError::Twice(100)));
        let circle = [process(100, 101, 100, 100), process(101, 100, 100, 100)];
        assert_eq!(plan(&circle, &[], None, &[], 32768), Err(PlanError::Circle(100)));
        assert_eq!(plan(&[process(1, 0, 1, 1)], &[], None, &[], 32768), Err(PlanError::Reserved(1)));
        let spread = [process(100, 1, 100, 100), process(101, 1, 100, 101)];
        assert_eq!(plan(&spread, &[], None, &[], 32768), Err(PlanError::Group(100)));
        // A child in a session which its parent was never in, without a subreaper.
        let odd = [
            process(100, 1, 100, 100),
            process(101, 1, 101, 101),
            process(102, 100, 101, 101),
            process(103, 100, 104, 104),
        ];
        assert!(matches!(plan(&odd, &[], Some(0), &[], 32768), Err(PlanError::Session { .. })));
    }

    #[test]
    fn zombies_are_children() {
        let mut parent = process(100, 1, 100, 100);
        parent.zombies.push(Zombie { pid: 101, pgid: 100, sid: 100, status: 7 << 8 });
        let plan = plan(&[parent], &[], Some(0), &[], 32768).unwrap();
        assert_eq!(plan.nodes[0].after, [1]);
        assert_eq!(plan.nodes[1].role, Role::Zombie(7 << 8));
    }

    #[test]
    fn gaps() {
        assert_eq!(largest_gap(&BTreeSet::new(), 100), (2, 100));
        assert_eq!(largest_gap(&BTreeSet::from([1, 40, 99]), 100), (41, 99));
    }
}
