//! Trees of real processes against a model of the kernel.
//!
//! A model runs random histories of fork, setsid, setpgid, exit, wait and PR_SET_CHILD_SUBREAPER, as the kernel would; what is left at
//! the end is a tree that can exist. Each is rebuilt in namespaces of its own, as root and as nobody, and every process
//! says what it finds itself to be. (No test harness: its threads would be in the way of fork.)
//!
//! # Safety
//! Plain system calls on numbers and buffers of this file; the process has one thread.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks, clippy::print_stdout)]
use slackwater_image::meta::{Process, Zombie};
use slackwater_restart::SharedPage;
use slackwater_restart::namespace::{self, Side};
use slackwater_restart::tree::build::{self, NEXT_BARRIER, Place};
use slackwater_restart::tree::plan::{self, Id, Plan};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// splitmix64: the same trees in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % n as u64) as usize
    }
}

#[derive(Clone, Debug)]
struct Task {
    ppid: i32,
    pgid: i32,
    sid: i32,
    subreaper: bool,
    dead: Option<i32>,
}

/// The kernel, as far as it matters here. Process 90 is the shell outside; 1 is init.
struct Model {
    tasks: BTreeMap<i32, Task>,
    next: i32,
}

const SHELL: i32 = 90;
const ROOT: i32 = 100;

impl Model {
    fn new(own_group: bool) -> Self {
        let pgid = if own_group { ROOT } else { SHELL };
        let root = Task { ppid: SHELL, pgid, sid: SHELL, subreaper: false, dead: None };
        Self { tasks: BTreeMap::from([(ROOT, root)]), next: ROOT + 1 }
    }

    fn alive(&self) -> Vec<i32> {
        self.tasks.iter().filter(|(_, t)| t.dead.is_none()).map(|(p, _)| *p).collect()
    }

    fn group_exists(&self, group: i32, sid: i32) -> bool {
        self.tasks.values().any(|t| t.pgid == group && t.sid == sid)
    }

    fn id_in_use(&self, id: i32) -> bool {
        self.tasks.iter().any(|(p, t)| *p == id || t.pgid == id || t.sid == id)
    }

    fn fork(&mut self, p: i32) {
        while self.id_in_use(self.next) {
            self.next += 1;
        }
        let child = Task { ppid: p, subreaper: false, dead: None, ..self.tasks[&p].clone() };
        self.tasks.insert(self.next, child);
        self.next += 1;
    }

    fn setsid(&mut self, p: i32) {
        if self.tasks.values().all(|t| t.pgid != p) {
            let t = self.tasks.get_mut(&p).unwrap();
            (t.sid, t.pgid) = (p, p);
        }
    }

    fn setpgid(&mut self, p: i32, group: i32) {
        let t = &self.tasks[&p];
        if t.sid != p && (group == p || self.group_exists(group, t.sid)) {
            self.tasks.get_mut(&p).unwrap().pgid = group;
        }
    }

    fn exit(&mut self, p: i32, status: i32) {
        let mut up = self.tasks[&p].ppid;
        let mut heir = 1;
        while let Some(t) = self.tasks.get(&up) {
            if t.subreaper && t.dead.is_none() {
                heir = up;
                break;
            }
            up = t.ppid;
        }
        let children: Vec<i32> = self.tasks.iter().filter(|(_, t)| t.ppid == p).map(|(c, _)| *c).collect();
        for c in children {
            self.tasks.get_mut(&c).unwrap().ppid = heir;
            if heir == 1 && self.tasks[&c].dead.is_some() {
                self.tasks.remove(&c);
            }
        }
        let t = self.tasks.get_mut(&p).unwrap();
        t.dead = Some(status);
        if t.ppid == 1 || t.ppid == SHELL {
            self.tasks.remove(&p);
        }
    }

    fn step(&mut self, r: &mut Random, subreapers: bool) {
        let alive = self.alive();
        let p = alive[r.below(alive.len())];
        match r.below(20) {
            0..8 => self.fork(p),
            8..11 => self.setsid(p),
            11 | 12 => self.setpgid(p, p),
            13 | 14 => {
                let groups: Vec<i32> =
                    self.tasks.values().filter(|t| t.sid == self.tasks[&p].sid).map(|t| t.pgid).collect();
                self.setpgid(p, groups[r.below(groups.len())]);
            }
            15..18 if p != ROOT => self.exit(p, [0, 3 << 8, 255 << 8, 9, 15, 6][r.below(6)]),
            18 => {
                let dead: Vec<i32> = self.tasks.iter().filter(|(_, t)| t.dead.is_some()).map(|(p, _)| *p).collect();
                if !dead.is_empty() {
                    self.tasks.remove(&dead[r.below(dead.len())]);
                }
            }
            19 if subreapers => self.tasks.get_mut(&p).unwrap().subreaper = true,
            _ => {}
        }
    }

    fn processes(&self) -> Vec<Process> {
        let process = |(pid, t): (&i32, &Task)| {
            let zombies = self.tasks.iter().filter(|(_, z)| z.dead.is_some() && z.ppid == *pid);
            Process {
                pid: *pid,
                ppid: t.ppid,
                pgid: t.pgid,
                sid: t.sid,
                subreaper: t.subreaper,
                zombies: zombies
                    .map(|(p, z)| Zombie { pid: *p, pgid: z.pgid, sid: z.sid, status: z.dead.unwrap() })
                    .collect(),
                ..Process::default()
            }
        };
        self.tasks.iter().filter(|(_, t)| t.dead.is_none()).map(process).collect()
    }
}

/// What a process says: pid, parent, group, session.
type Facts = [i32; 4];

/// Rebuilds `processes` and returns what each of them, and each zombie, turned out to be.
fn rebuild(processes: &[Process], plan: &Plan, user: u32) -> Result<Vec<Facts>, String> {
    let mut fds = [0; 2];
    assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    let [reader, writer] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let outer = unsafe { libc::fork() };
    if outer == 0 {
        drop(reader);
        let status = match in_namespace(processes, plan, user, &writer) {
            Ok(()) => 0,
            Err(e) => {
                eprintln!("{}: {e:#}", std::process::id());
                1
            }
        };
        unsafe { libc::_exit(status) };
    }
    drop(writer);
    let mut bytes = Vec::new();
    std::fs::File::from(reader).read_to_end(&mut bytes).unwrap();
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(outer, &raw mut status, 0) }, outer);
    if status != 0 {
        return Err(format!("status {status:#x}"));
    }
    let numbers: Vec<i32> = bytes.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect();
    let mut facts: Vec<Facts> = numbers.chunks(4).map(|c| c.try_into().unwrap()).collect();
    facts.sort_unstable();
    Ok(facts)
}

fn in_namespace(processes: &[Process], plan: &Plan, user: u32, writer: &OwnedFd) -> anyhow::Result<()> {
    if user != 0 {
        unsafe {
            assert_eq!(libc::setgroups(0, core::ptr::null()), 0);
            assert_eq!(libc::setresgid(user, user, user), 0);
            assert_eq!(libc::setresuid(user, user, user), 0);
            // What execve(2) would have set again: our own /proc files are ours.
            assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0), 0);
        }
    }
    match namespace::enter()? {
        Side::Outer(init) => {
            let mut status = 0;
            assert_eq!(unsafe { libc::waitpid(init, &raw mut status, 0) }, init);
            anyhow::ensure!(status == 0, "init ended with {status:#x}");
        }
        Side::Init(in_user_namespace) => {
            let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
            namespace::settle(in_user_namespace, uid, gid)?;
            let shared = SharedPage::new()?;
            let alive = build::alive(plan);
            let done = match build::build(plan, &shared) {
                Ok(place) => {
                    if let Place::Member(index) = place {
                        tell(&processes[index], writer);
                    }
                    shared.meet(NEXT_BARRIER, alive, Duration::from_secs(30)).map_err(anyhow::Error::from)
                }
                Err(e) => {
                    shared.fail();
                    Err(e)
                }
            };
            done?;
        }
    }
    Ok(())
}

/// Writes our facts and those of our zombies (whose status it checks).
fn tell(process: &Process, writer: &OwnedFd) {
    use std::os::fd::AsRawFd;
    let write = |facts: Facts| {
        let bytes: Vec<u8> = facts.iter().flat_map(|n| n.to_le_bytes()).collect();
        assert_eq!(unsafe { libc::write(writer.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) }, 16);
    };
    unsafe { write([libc::getpid(), libc::getppid(), libc::getpgrp(), libc::getsid(0)]) };
    for z in &process.zombies {
        let (pgid, sid) = unsafe { (libc::getpgid(z.pid), libc::getsid(z.pid)) };
        let mut status = 0;
        // It waits to be waited for, by us.
        assert_eq!(unsafe { libc::waitpid(z.pid, &raw mut status, libc::WNOHANG) }, z.pid);
        assert_eq!(status & !0x80, z.status, "status of zombie {}", z.pid);
        write([z.pid, process.pid, pgid, sid]);
    }
}

/// What they should be: the world outside shows as 0, init as 1.
fn expected(processes: &[Process], plan: &Plan) -> Vec<Facts> {
    // Where group or session outside had to be named, they have their old number.
    let no_group = plan.nodes.iter().all(|n| n.pgid != Id::Is(SHELL));
    let no_session = plan.nodes.iter().all(|n| n.sid != Id::Is(SHELL));
    let group = |id: i32| if id == SHELL && no_group { 0 } else { id };
    let outside = |id: i32| if id == SHELL && no_session { 0 } else { id };
    let parent = |id: i32| if id == SHELL { 1 } else { id };
    let all = processes.iter().flat_map(|p| {
        let own = [p.pid, parent(p.ppid), group(p.pgid), outside(p.sid)];
        std::iter::once(own).chain(p.zombies.iter().map(|z| [z.pid, p.pid, group(z.pgid), outside(z.sid)]))
    });
    let mut all: Vec<Facts> = all.collect();
    all.sort_unstable();
    all
}

fn main() {
    let trees: u64 = std::env::var("SLACKWATER_TREES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let is_root = unsafe { libc::geteuid() } == 0;
    let users: &[u32] = if is_root { &[0, 65534] } else { &[0] };
    let (mut largest, mut stand_ins, mut zombies, mut refused) = (0, 0, 0, 0);
    let begin = Instant::now();
    for seed in 0..trees {
        let mut r = Random(seed);
        let mut model = Model::new(seed % 2 == 0);
        // Half of the trees have subreapers.
        let steps = 10 + r.below(90);
        for _ in 0..steps {
            model.step(&mut r, seed % 4 >= 2);
        }
        let processes = model.processes();
        // A third is restarted without a terminal.
        let root = processes.iter().position(|p| p.pid == ROOT).filter(|_| seed % 3 != 0);
        let plan = match plan::plan(&processes, &[], root, &[], 32768) {
            Ok(plan) => plan,
            // Subreapers can leave trees behind that no order of births gives; those are refused, in words.
            Err(e @ plan::PlanError::Session { .. }) if seed % 4 >= 2 => {
                println!("tree {seed}: {e}");
                refused += 1;
                continue;
            }
            Err(e) => panic!("tree {seed}: {e}\n{processes:#?}"),
        };
        largest = largest.max(processes.len());
        zombies += processes.iter().map(|p| p.zombies.len()).sum::<usize>();
        stand_ins += plan.nodes.iter().filter(|n| n.role == plan::Role::StandIn).count();
        for &user in users {
            let have = rebuild(&processes, &plan, user)
                .unwrap_or_else(|e| panic!("tree {seed} as {user}: {e}\n{processes:?}\n{plan:?}"));
            assert_eq!(have, expected(&processes, &plan), "tree {seed} as user {user}\n{plan:#?}");
        }
    }
    assert!(largest > 10 && stand_ins > 0 && zombies > 0, "the trees are too simple to show anything");
    assert!(refused * 20 <= trees, "{refused} of {trees} trees refused");
    println!(
        "test result: ok. {trees} trees as {} users in {:.1} s; largest {largest}, {zombies} zombies, {stand_ins} stand-ins, {refused} refused",
        users.len(),
        begin.elapsed().as_secs_f64()
    );
}
