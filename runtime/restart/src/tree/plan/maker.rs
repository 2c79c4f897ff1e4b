//! How a plan comes about: sessions and groups without a leader get one, each process its place of birth.
//!
//! Rule: the steps are called in the order of [`super::plan`]; each relies on those before it.
use super::{Id, Node, PlanError, Role};
use slackwater_image::meta::Process;
use std::collections::{BTreeMap, BTreeSet};

/// A plan under way.
pub(super) struct Maker {
    pub(super) nodes: Vec<Node>,
    by_pid: BTreeMap<i32, usize>,
    pub(super) roots: Vec<usize>,
    pub(super) free: (i32, i32),
    next_free: i32,
    subreaper: BTreeSet<i32>,
    /// The number of the group outside; 0: it was outside of the pid namespace then, too.
    outside_pgid: i32,
}

/// In which session a process must be born. Leaders of sessions may be born in any, unless children say otherwise.
type Birth = Option<Id>;

impl Maker {
    pub(super) fn new(
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

    pub(super) fn check_circles(&self) -> Result<(), PlanError> {
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

    pub(super) fn add_session_leaders(&mut self) {
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
    pub(super) fn name_outside_group(&mut self) -> Result<(), PlanError> {
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

    pub(super) fn add_group_leaders(&mut self) -> Result<(), PlanError> {
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

    pub(super) fn place_all(&mut self) -> Result<(), PlanError> {
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
pub(super) fn largest_gap(used: &BTreeSet<i32>, end: i32) -> (i32, i32) {
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
