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
use slackwater_image::meta::Process;
use std::collections::{BTreeMap, BTreeSet};

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

struct Maker {
    nodes: Vec<Node>,
    by_pid: BTreeMap<i32, usize>,
    roots: Vec<usize>,
    free: (i32, i32),
    next_free: i32,
    subreaper: BTreeSet<i32>,
    /// The number of the group outside; 0: it was outside of the pid namespace then, too.
    outside_pgid: i32,
}

/// In which session a process must be born. Leaders of sessions may be born in any, unless children say otherwise.
type Birth = Option<Id>;

impl Maker {
    fn new(
        processes: &[Process],
        threads: &[i32],
        root: Option<usize>,
        terminals: &[i32],
        pid_max: i32,
    ) -> Result<Self, PlanError> {
        let pids: BTreeSet<i32> = processes.iter().map(|p| p.pid).collect();
        let zombies = || processes.iter().flat_map(|p| p.zombies.iter().map(|z| (p.pid, z)));
        let alive_or_dead: BTreeSet<i32> = pids.iter().copied().chain(zombies().map(|(_, z)| z.pid)).collect();
        // The world outside: where the first process was launched from, unless it leads session or group itself.
        // (Number 1, of a container's first process, cannot be had again.)
        let mut outside_sids = BTreeSet::from([0, 1]);
        let mut outside_pgids = BTreeSet::from([0, 1]);
        if let Some(root) = root.and_then(|r| processes.get(r)) {
            if !alive_or_dead.contains(&root.sid) {
                outside_sids.insert(root.sid);
            }
            // A number above its own is a child's that has ended, one below it (pids ascend) that of who launched it. After the
            // numbers wrapped this may err: then the group is rebuilt under its number, which does no harm.
            if !alive_or_dead.contains(&root.pgid) && root.pgid < root.pid {
                outside_pgids.insert(root.pgid);
            }
        }
        outside_sids.extend(processes.iter().filter(|p| p.tty != 0 && !terminals.contains(&p.tty)).map(|p| p.sid));
        let sid_of = |sid: i32| if outside_sids.contains(&sid) { Id::Outside } else { Id::Is(sid) };
        let pgid_of = |pgid: i32| if outside_pgids.contains(&pgid) { Id::Outside } else { Id::Is(pgid) };
        let node = |pid, role, parent: Option<i32>, exit_signal, sid, pgid| Node {
            pid,
            role,
            parent,
            // Init's children tell it, whatever the parent that they had was told.
            exit_signal: if parent.is_some() { exit_signal } else { libc::SIGCHLD },
            sid: sid_of(sid),
            pgid: pgid_of(pgid),
            makes_group: false,
            adopts: false,
            before: Vec::new(),
            after: Vec::new(),
        };
        let mut nodes = Vec::new();
        for (i, p) in processes.iter().enumerate() {
            let parent = pids.contains(&p.ppid).then_some(p.ppid);
            nodes.push(node(p.pid, Role::Member(i), parent, p.exit_signal, p.sid, p.pgid));
        }
        for (parent, z) in zombies() {
            nodes.push(node(z.pid, Role::Zombie(z.status), Some(parent), libc::SIGCHLD, z.sid, z.pgid));
        }
        let mut by_pid = BTreeMap::new();
        for (i, n) in nodes.iter().enumerate() {
            if n.pid <= 1 {
                return Err(PlanError::Reserved(n.pid));
            }
            if by_pid.insert(n.pid, i).is_some() {
                return Err(PlanError::Twice(n.pid));
            }
        }
        let used: BTreeSet<i32> = nodes
            .iter()
            .flat_map(|n| {
                [n.pid, if let Id::Is(s) = n.sid { s } else { n.pid }, if let Id::Is(g) = n.pgid { g } else { n.pid }]
            })
            .chain(threads.iter().copied())
            .collect();
        let free = largest_gap(&used, pid_max);
        let subreaper = processes.iter().filter(|p| p.subreaper).map(|p| p.pid).collect();
        let outside_pgid = outside_pgids.into_iter().max().unwrap_or(0);
        Ok(Self { nodes, by_pid, roots: Vec::new(), free, next_free: free.0, subreaper, outside_pgid })
    }

    fn fresh_pid(&mut self) -> Result<i32, PlanError> {
        if self.next_free >= self.free.1 {
            return Err(PlanError::Full(self.free.1));
        }
        self.next_free += 1;
        Ok(self.next_free - 1)
    }

    fn add(&mut self, pid: i32, sid: Id, pgid: Id) -> usize {
        let i = self.nodes.len();
        self.nodes.push(Node {
            pid,
            role: Role::StandIn,
            parent: None,
            exit_signal: libc::SIGCHLD,
            sid,
            pgid,
            makes_group: false,
            adopts: false,
            before: Vec::new(),
            after: Vec::new(),
        });
        self.by_pid.insert(pid, i);
        i
    }

    fn check_circles(&self) -> Result<(), PlanError> {
        for n in &self.nodes {
            let mut up = n.parent;
            for steps in 0.. {
                let Some(pid) = up else { break };
                if steps > self.nodes.len() {
                    return Err(PlanError::Circle(n.pid));
                }
                up = self.nodes[self.by_pid[&pid]].parent;
            }
        }
        Ok(())
    }

    fn add_session_leaders(&mut self) {
        let sids: BTreeSet<i32> =
            self.nodes.iter().filter_map(|n| if let Id::Is(s) = n.sid { Some(s) } else { None }).collect();
        for sid in sids {
            if !self.by_pid.contains_key(&sid) {
                self.add(sid, Id::Is(sid), Id::Is(sid));
            }
        }
    }

    /// A process that led a group and then moved (back) to the group outside cannot be sent there: that group has no number
    /// in our namespace. Then a group of ours takes its place for all.
    fn name_outside_group(&mut self) -> Result<(), PlanError> {
        let led = |pid: i32| self.nodes.iter().any(|n| n.pgid == Id::Is(pid));
        if !self.nodes.iter().any(|n| n.pgid == Id::Outside && led(n.pid)) {
            return Ok(());
        }
        let number = if self.outside_pgid > 1 { self.outside_pgid } else { self.fresh_pid()? };
        for n in self.nodes.iter_mut().filter(|n| n.pgid == Id::Outside) {
            n.pgid = Id::Is(number);
        }
        Ok(())
    }

    fn add_group_leaders(&mut self) -> Result<(), PlanError> {
        let mut groups: BTreeMap<i32, Id> = BTreeMap::new();
        for n in &self.nodes {
            if let Id::Is(g) = n.pgid
                && *groups.entry(g).or_insert(n.sid) != n.sid
            {
                return Err(PlanError::Group(g));
            }
        }
        for (g, sid) in groups {
            let i = match self.by_pid.get(&g) {
                Some(&i) if self.nodes[i].sid != sid => return Err(PlanError::Group(g)),
                Some(&i) => i,
                None => self.add(g, sid, Id::Is(g)),
            };
            // A session's leader leads its group from setsid on.
            self.nodes[i].makes_group = !self.nodes[i].leads_session();
        }
        Ok(())
    }

    /// Is `pid` in the tree below `above`?
    fn is_below(&self, pid: i32, above: i32) -> bool {
        let mut up = Some(pid);
        while let Some(p) = up {
            if p == above {
                return true;
            }
            up = self.by_pid.get(&p).and_then(|&i| self.nodes[i].parent);
        }
        false
    }

    /// May `parent` have adopted somebody from session `sid`?
    fn may_adopt(&self, parent: i32, sid: Id) -> bool {
        let Id::Is(leader) = sid else { return false };
        let stand_in = self.by_pid.get(&leader).is_some_and(|&i| self.nodes[i].role == Role::StandIn);
        self.subreaper.contains(&parent) && (stand_in || (leader != parent && self.is_below(leader, parent)))
    }

    fn place_all(&mut self) -> Result<(), PlanError> {
        let mut children: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
        for (i, n) in self.nodes.iter().enumerate() {
            if let Some(parent) = n.parent {
                children.entry(parent).or_default().push(i);
            }
        }
        let mut births: Vec<Birth> = vec![None; self.nodes.len()];
        for i in self.children_first(&children) {
            let n = &self.nodes[i];
            if !n.leads_session() {
                births[i] = Some(n.sid);
                continue;
            }
            for &c in children.get(&n.pid).into_iter().flatten() {
                let Some(s) = births[c] else { continue };
                if s == n.sid || self.may_adopt(n.pid, s) {
                    continue;
                }
                if births[i].is_some_and(|b| b != s) {
                    return Err(self.wrong_session(c, s));
                }
                births[i] = Some(s);
            }
        }
        for i in 0..births.len() {
            self.place(i, births[i], &births)?;
        }
        Ok(())
    }

    fn wrong_session(&self, i: usize, sid: Id) -> PlanError {
        let n = &self.nodes[i];
        let sid = if let Id::Is(s) = sid { s } else { 0 };
        PlanError::Session { pid: n.pid, sid, ppid: n.parent.unwrap_or(1) }
    }

    /// Indices so that each stands behind its children.
    fn children_first(&self, children: &BTreeMap<i32, Vec<usize>>) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.nodes.len()).filter(|&i| self.nodes[i].parent.is_none()).collect();
        let mut at = 0;
        while at < order.len() {
            let kids = children.get(&self.nodes[order[at]].pid);
            order.extend(kids.into_iter().flatten());
            at += 1;
        }
        order.reverse();
        order
    }

    fn place(&mut self, i: usize, birth: Birth, births: &[Birth]) -> Result<(), PlanError> {
        let n = &self.nodes[i];
        let parent = n.parent.map(|p| self.by_pid[&p]);
        // A stand-in for a group belongs to a session, but to no parent: it is made by the session's leader.
        let group_stand_in = n.role == Role::StandIn && !n.leads_session();
        match (parent, birth) {
            _ if group_stand_in => match n.sid {
                Id::Outside => self.roots.push(i),
                Id::Is(sid) => {
                    let leader = self.by_pid[&sid];
                    self.nodes[i].parent = Some(sid);
                    self.nodes[leader].after.push(i);
                }
            },
            (None, None | Some(Id::Outside)) => self.roots.push(i),
            (None, Some(Id::Is(sid))) => self.adopt(i, sid)?,
            (Some(p), None) => self.nodes[p].after.push(i),
            (Some(p), Some(s)) if s == self.nodes[p].sid => self.nodes[p].after.push(i),
            (Some(p), Some(s)) => {
                let parent_pid = self.nodes[p].pid;
                match s {
                    Id::Is(sid) if self.may_adopt(parent_pid, s) => {
                        self.nodes[p].adopts = true;
                        let leader = self.by_pid[&sid];
                        // A stand-in's orphans go to the subreaper above it. (It is placed later: stand-ins come last.)
                        if self.nodes[leader].role == Role::StandIn && self.nodes[leader].parent.is_none() {
                            self.nodes[leader].parent = Some(parent_pid);
                        }
                        self.adopt(i, sid)?;
                    }
                    _ if self.nodes[p].leads_session() && births[p] == Some(s) => self.nodes[p].before.push(i),
                    _ => return Err(self.wrong_session(i, s)),
                }
            }
        }
        Ok(())
    }

    /// Node `i` is made in session `sid` by somebody who then ends.
    fn adopt(&mut self, i: usize, sid: i32) -> Result<(), PlanError> {
        let leader = self.by_pid[&sid];
        if matches!(self.nodes[leader].role, Role::Member(_)) {
            let pid = self.fresh_pid()?;
            // It need not care for its group: that of its maker will do.
            let helper = self.add(pid, Id::Is(sid), Id::Is(sid));
            self.nodes[helper].parent = Some(sid);
            self.nodes[helper].after.push(i);
            self.nodes[leader].after.push(helper);
        } else {
            self.nodes[leader].after.push(i);
        }
        Ok(())
    }
}

/// The largest run of unused numbers from 2 up to (not with) `end`.
fn largest_gap(used: &BTreeSet<i32>, end: i32) -> (i32, i32) {
    let mut best = (2, 2);
    let mut start = 2;
    for n in used.iter().copied().filter(|n| (2..end).contains(n)).chain([end]) {
        if n - start > best.1 - best.0 {
            best = (start, n);
        }
        start = n + 1;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use slackwater_image::meta::Zombie;

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
