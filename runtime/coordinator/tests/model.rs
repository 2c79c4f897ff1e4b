//! Every order of events for up to three processes: the real state machine against a model of the world around it.
//!
//! The world: processes that answer what they are told (each answer lies in its connection's queue, first in first out),
//! jobs of the shell whose results are outstanding, pidfds. A move delivers one of these, or lets something happen: a fork,
//! a fork that fails, an exec, an unannounced joiner, a death (with or without what it had sent), a full disk, a request.
//! All moves are tried from all states that can be reached.
//!
//! Held against it: a process is never told what it cannot do where it stands; nobody runs on before all are frozen; when
//! memory is frozen, every announced process stands; a commit has the saved image of each of them; where nothing is
//! outstanding, nobody stands still, the machine is idle, and every request has been answered; and no run is endless.
#![allow(clippy::print_stdout)] // how much was explored
use slackwater_coordinator::machine::{Effect, Input, Machine, Settings};
use slackwater_image::manifest::Manifest;
use slackwater_protocol::{
    command::{Phase, Reply, Request},
    message::{FromProcess, RoundKind, ToProcess},
};
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Msg {
    Join(u64),
    Expect(u64),
    Born(u64, i32),
    Unexpect(u64),
    Exec(u64),
    Suspended(u64),
    RoundDone(u32, bool),
    Snapshotted(u64, bool),
    Resumed(u64),
    Saved(u64),
    Failed(u64),
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Running,
    Standing(u64),
    /// Generation, written already.
    Frozen(u64, bool),
    Gone,
}

/// A process with its connection; exec makes another one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Proc {
    state: State,
    pid: i32,
    token: u64,
    /// Somebody whose word reaches the coordinator has announced it.
    announced: bool,
    queue: VecDeque<Msg>,
    watched: bool,
    died: bool,
    fail: bool,
    saved: BTreeSet<u64>,
}

/// How much may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Budget {
    forks: u8,
    failed_forks: u8,
    execs: u8,
    strangers: u8,
    deaths: u8,
    full: u8,
    checkpoints: u8,
    kill_checkpoints: u8,
    kills: u8,
    again: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    machine: Machine,
    procs: Vec<Proc>,
    /// Results of jobs that are outstanding, as generation numbers.
    folder: Option<u64>,
    shared: Option<u64>,
    commit: Option<u64>,
    watched_tokens: Vec<(u64, i32)>,
    dead_tokens: Vec<u64>,
    /// Commands that wait for an answer.
    waiting: BTreeSet<u64>,
    next_command: u64,
    budget: Budget,
    /// Pids of those who stood when memory was frozen for this generation.
    cut: Option<(u64, BTreeSet<i32>)>,
    exited: bool,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Deliver(usize),
    Died(usize),
    TokenDied(usize),
    Folder(bool),
    Shared,
    Commit(bool),
    Fork(usize),
    FailedFork(usize),
    Exec(usize),
    Stranger,
    Die(usize, bool),
    Full(usize),
    Checkpoint(bool),
    Kill,
}

const COMMANDS: u64 = 1000;

impl World {
    fn new(budget: Budget) -> Self {
        let settings = Settings {
            expect: Some((1, 101)),
            next_generation: 1,
            newest: None,
            interval_us: None,
            patience_us: u64::MAX / 2,
            sync: false,
            codec: 0,
            folder: "/d".into(),
            plugins: vec![],
        };
        let (machine, effects) = Machine::new(settings, 0);
        let mut world = World {
            machine,
            procs: vec![],
            folder: None,
            shared: None,
            commit: None,
            watched_tokens: vec![],
            dead_tokens: vec![],
            waiting: BTreeSet::new(),
            next_command: COMMANDS,
            budget,
            cut: None,
            exited: false,
        };
        world.spawn(101, 1, true);
        world.apply(effects);
        world
    }

    fn spawn(&mut self, pid: i32, token: u64, announced: bool) {
        self.procs.push(Proc {
            state: State::Running,
            pid,
            token,
            announced,
            queue: VecDeque::from([Msg::Join(token)]),
            watched: false,
            died: false,
            fail: false,
            saved: BTreeSet::new(),
        });
    }

    /// What can happen without anybody's doing.
    fn deliveries(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for (i, proc) in self.procs.iter().enumerate() {
            if !proc.queue.is_empty() {
                moves.push(Move::Deliver(i));
            }
            if proc.died {
                moves.push(Move::Died(i));
            }
        }
        moves.extend((0..self.dead_tokens.len()).map(Move::TokenDied));
        moves.extend(self.folder.map(|_| Move::Folder(true)));
        moves.extend(self.shared.map(|_| Move::Shared));
        moves.extend(self.commit.map(|_| Move::Commit(true)));
        moves
    }

    /// What may happen besides.
    fn events(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        let b = &self.budget;
        if self.exited {
            return moves;
        }
        for (i, proc) in self.procs.iter().enumerate() {
            // A process forks and execs once its constructor has run.
            let free = proc.state == State::Running && !proc.queue.contains(&Msg::Join(proc.token));
            if free && b.forks > 0 {
                moves.push(Move::Fork(i));
            }
            if free && b.failed_forks > 0 {
                moves.push(Move::FailedFork(i));
            }
            if free && b.execs > 0 {
                moves.push(Move::Exec(i));
            }
            if proc.state != State::Gone && b.deaths > 0 {
                moves.push(Move::Die(i, true));
                moves.push(Move::Die(i, false));
            }
            if proc.state != State::Gone && b.full > 0 && !proc.fail {
                moves.push(Move::Full(i));
            }
        }
        if b.strangers > 0 {
            moves.push(Move::Stranger);
        }
        if b.full > 0 {
            moves.extend(self.folder.map(|_| Move::Folder(false)));
            moves.extend(self.commit.map(|_| Move::Commit(false)));
        }
        if b.checkpoints > 0 {
            moves.push(Move::Checkpoint(false));
        }
        if b.kill_checkpoints > 0 {
            moves.push(Move::Checkpoint(true));
        }
        if b.kills > 0 {
            moves.push(Move::Kill);
        }
        moves
    }

    fn step(&mut self, input: Input) {
        if self.exited {
            return;
        }
        let effects = self.machine.step(0, input);
        self.apply(effects);
    }

    fn make(&mut self, chosen: Move) {
        match chosen {
            Move::Deliver(i) => {
                let Some(msg) = self.procs[i].queue.pop_front() else { return };
                let pid = self.procs[i].pid;
                self.step(input(i as u64, pid, msg));
            }
            Move::Died(i) => {
                self.procs[i].died = false;
                self.step(Input::Died(i as u64));
            }
            Move::TokenDied(i) => {
                let token = self.dead_tokens.remove(i);
                self.step(Input::ExpectedDied(token));
            }
            Move::Folder(well) => {
                let generation = self.folder.take().unwrap();
                self.budget.full -= u8::from(!well);
                self.step(Input::Folder { generation, result: outcome(well) });
            }
            Move::Shared => {
                let generation = self.shared.take().unwrap();
                self.step(Input::Shared { generation, groups: vec![], note: String::new() });
            }
            Move::Commit(well) => {
                let generation = self.commit.take().unwrap();
                self.budget.full -= u8::from(!well);
                self.step(Input::Committed { generation, result: outcome(well) });
            }
            Move::Fork(i) => {
                self.budget.forks -= 1;
                let (token, pid) = self.fresh();
                self.procs[i].queue.extend([Msg::Expect(token), Msg::Born(token, pid)]);
                self.spawn(pid, token, true);
            }
            Move::FailedFork(i) => {
                self.budget.failed_forks -= 1;
                self.procs[i].queue.extend([Msg::Expect(77), Msg::Unexpect(77)]);
            }
            Move::Exec(i) => {
                self.budget.execs -= 1;
                let (token, _) = self.fresh();
                let (pid, announced) = (self.procs[i].pid, self.procs[i].announced);
                self.procs[i].state = State::Gone;
                self.procs[i].queue.extend([Msg::Exec(token), Msg::Close]);
                self.spawn(pid, token, announced);
            }
            Move::Stranger => {
                self.budget.strangers -= 1;
                self.spawn(900, 0, false);
            }
            Move::Die(i, heard) => {
                self.budget.deaths -= 1;
                self.die(i, heard);
            }
            Move::Full(i) => {
                self.budget.full -= 1;
                self.procs[i].fail = true;
            }
            Move::Checkpoint(kill) => {
                if kill {
                    self.budget.kill_checkpoints -= 1;
                } else {
                    self.budget.checkpoints -= 1;
                }
                self.request(Request::Checkpoint { kill });
            }
            Move::Kill => {
                self.budget.kills -= 1;
                self.request(Request::Kill);
            }
        }
    }

    fn fresh(&self) -> (u64, i32) {
        let n = self.procs.len();
        (n as u64 + 1, 101 + n as i32)
    }

    fn request(&mut self, request: Request) {
        let conn = self.next_command;
        self.next_command += 1;
        self.waiting.insert(conn);
        self.step(Input::Command(conn, request));
    }

    fn die(&mut self, i: usize, heard: bool) {
        let proc = &mut self.procs[i];
        if proc.state == State::Gone {
            return;
        }
        proc.state = State::Gone;
        proc.died = proc.watched;
        let mut silenced = Vec::new();
        if !heard {
            silenced.extend(proc.queue.drain(..));
        }
        proc.queue.push_back(Msg::Close);
        let pid = proc.pid;
        for lost in silenced {
            // Its children are announced no more; nor is the program that it has become.
            if let Msg::Expect(token) | Msg::Born(token, _) = lost {
                for child in self.procs.iter_mut().filter(|p| p.token == token) {
                    child.announced = false;
                }
            }
        }
        let dead: Vec<u64> = self.watched_tokens.iter().filter(|w| w.1 == pid).map(|w| w.0).collect();
        self.watched_tokens.retain(|w| w.1 != pid);
        self.dead_tokens.extend(dead);
    }

    fn alive(&self, pid: i32) -> bool {
        self.procs.iter().any(|p| p.pid == pid && p.state != State::Gone)
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(conn, message) => self.hear(conn as usize, message),
                Effect::Reply(conn, reply) => {
                    if !matches!(reply, Reply::Progress { .. }) {
                        assert!(self.waiting.remove(&conn), "command {conn} was answered twice");
                    }
                }
                Effect::Close(conn) if conn >= COMMANDS => {}
                Effect::Close(conn) => {
                    let proc = &mut self.procs[conn as usize];
                    assert_eq!(proc.state, State::Gone, "the connection of a live process was closed");
                    proc.queue.clear();
                    proc.queue.push_back(Msg::Close);
                }
                Effect::Watch(conn, pid, _) => {
                    let alive = self.alive(pid);
                    let proc = &mut self.procs[conn as usize];
                    proc.watched = true;
                    proc.died = !alive;
                }
                Effect::WatchExpected(token, pid) => {
                    if self.alive(pid) {
                        self.watched_tokens.push((token, pid));
                    } else {
                        self.dead_tokens.push(token);
                    }
                }
                Effect::Kill(conn) => self.die(conn as usize, true),
                Effect::KillExpected(token) => {
                    let found = self.watched_tokens.iter().find(|w| w.0 == token).map(|w| w.1);
                    let found = found.and_then(|pid| self.procs.iter().rposition(|p| p.pid == pid));
                    if let Some(i) = found {
                        self.die(i, true);
                    }
                }
                Effect::CreateFolder(generation) => self.folder = Some(generation),
                Effect::FindShared(generation, _) => self.shared = Some(generation),
                Effect::Commit(manifest) => self.check_commit(&manifest),
                Effect::Exit => self.exited = true,
                Effect::Wake(_) | Effect::WakeExpected(_) | Effect::Woke(_) | Effect::Stop(_) => {
                    panic!("nobody is stopped here, and no time passes")
                }
                Effect::Repeat(_) => panic!("values that nobody asked for"),
                Effect::Drain(_) | Effect::RemoveFolder(_) | Effect::Log(_) => {}
            }
        }
    }

    fn check_commit(&mut self, manifest: &Manifest) {
        let generation = manifest.generation;
        assert!(self.commit.is_none(), "two commits at once");
        self.commit = Some(generation);
        let cut = self.cut.as_ref().filter(|cut| cut.0 == generation).expect("a commit without a cut");
        let listed: BTreeSet<i32> = manifest.members.iter().map(|m| m.pid).collect();
        assert_eq!(listed, cut.1, "a commit must have each process of the cut");
        for pid in listed {
            let saved = self.procs.iter().any(|p| p.pid == pid && p.saved.contains(&generation));
            assert!(saved, "{pid} has not saved generation {generation}");
        }
    }

    /// A process is told something, and does it at once; its answers lie in its queue.
    fn hear(&mut self, i: usize, message: ToProcess) {
        if self.procs[i].state == State::Gone {
            return;
        }
        if let ToProcess::Snapshot { generation, .. } = message
            && self.cut.as_ref().is_none_or(|cut| cut.0 != generation)
        {
            let live = self.procs.iter().filter(|p| p.state != State::Gone);
            for proc in live.clone().filter(|p| p.announced) {
                assert_eq!(proc.state, State::Standing(generation), "the cut passes {} by", proc.pid);
            }
            let stood = live.filter(|p| p.state == State::Standing(generation)).map(|p| p.pid).collect();
            self.cut = Some((generation, stood));
        }
        if let ToProcess::Resume { generation, aborted: None } = &message {
            let cut = &self.cut.as_ref().filter(|cut| cut.0 == *generation).expect("resumed without a cut").1;
            for proc in self.procs.iter().filter(|p| cut.contains(&p.pid) && p.state != State::Gone) {
                let stopped = !matches!(proc.state, State::Standing(g) if g == *generation);
                assert!(stopped, "{} runs on before {} is frozen", self.procs[i].pid, proc.pid);
            }
        }
        let again = self.budget.again;
        let proc = &mut self.procs[i];
        match message {
            ToProcess::Suspend { generation, .. } => {
                assert_eq!(proc.state, State::Running);
                proc.state = State::Standing(generation);
                proc.queue.push_back(Msg::Suspended(generation));
            }
            ToProcess::Round { kind: RoundKind::Quiesce, round, .. } => {
                assert!(matches!(proc.state, State::Standing(_)), "a round in {:?}", proc.state);
                proc.queue.push_back(Msg::RoundDone(round, again && round == 0));
            }
            ToProcess::Snapshot { generation, sync, .. } => {
                assert_eq!(proc.state, State::Standing(generation));
                if std::mem::take(&mut proc.fail) {
                    proc.queue.push_back(Msg::Failed(generation));
                    return;
                }
                proc.state = State::Frozen(generation, sync);
                proc.queue.push_back(Msg::Snapshotted(generation, !sync));
                if sync {
                    proc.saved.insert(generation);
                    proc.queue.push_back(Msg::Saved(generation));
                }
            }
            ToProcess::Resume { generation, aborted } => {
                match proc.state {
                    State::Standing(g) => assert!(g == generation && aborted.is_some(), "resumed before it was frozen"),
                    State::Frozen(g, _) => assert_eq!(g, generation),
                    other => panic!("told to resume in {other:?}"),
                }
                proc.queue.push_back(Msg::Resumed(generation));
                if matches!(proc.state, State::Frozen(_, false)) && aborted.is_none() {
                    if std::mem::take(&mut proc.fail) {
                        proc.queue.push_back(Msg::Failed(generation));
                    } else {
                        proc.saved.insert(generation);
                        proc.queue.push_back(Msg::Saved(generation));
                    }
                }
                proc.state = State::Running;
            }
            ToProcess::Kill => self.die(i, true),
            ToProcess::Prepare { .. } => panic!("that is the shell's to say"),
            ToProcess::Joined { .. } | ToProcess::Write { .. } | ToProcess::Finished { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Nothing is outstanding: how things must be.
    fn check_rest(&self) {
        for proc in &self.procs {
            assert!(
                matches!(proc.state, State::Running | State::Gone),
                "{} stands still for ever: {:?}",
                proc.pid,
                self.machine.phase()
            );
        }
        assert!(self.waiting.is_empty(), "{} requests are never answered", self.waiting.len());
        // Whom nobody has announced may come when all others have gone.
        let known = |p: &Proc| p.announced || p.watched;
        let anybody = self.procs.iter().any(|p| p.state == State::Running && known(p));
        if anybody {
            assert_eq!(self.machine.phase(), Phase::Running);
            assert!(!self.exited, "the coordinator left its processes");
        } else {
            assert!(self.exited, "the coordinator outlives its processes: {:?}", self.machine);
        }
    }

    fn key(&self) -> u128 {
        let half = |salt: u64| {
            let mut hasher = DefaultHasher::new();
            (salt, self).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        half(1) << 64 | half(2)
    }
}

fn outcome(well: bool) -> Result<(), String> {
    if well { Ok(()) } else { Err("No space left on device".into()) }
}

fn input(conn: u64, pid: i32, msg: Msg) -> Input {
    let message = match msg {
        Msg::Close => return Input::Closed(conn),
        Msg::Join(token) => {
            FromProcess::Join { token, pid, ppid: 1, exe: String::new(), host: String::new(), restarted_from: None }
        }
        Msg::Expect(token) => FromProcess::Expect { token },
        Msg::Born(token, pid) => FromProcess::Born { token, pid },
        Msg::Unexpect(token) => FromProcess::Unexpect { token },
        Msg::Exec(token) => FromProcess::Exec { token },
        Msg::Suspended(generation) => {
            FromProcess::Suspended { generation, threads: 1, descriptors: vec![], shared: vec![] }
        }
        Msg::RoundDone(round, again) => {
            FromProcess::RoundDone { kind: RoundKind::Quiesce, round, again, publish: vec![] }
        }
        Msg::Snapshotted(generation, forked) => FromProcess::Snapshotted { generation, forked, note: String::new() },
        Msg::Resumed(generation) => FromProcess::Resumed { generation, stopped_us: 1 },
        Msg::Saved(generation) => FromProcess::Saved { generation, file: format!("{pid}.image"), bytes: 1, memory: 1 },
        Msg::Failed(generation) => FromProcess::Failed { generation, reason: "disk full".into() },
    };
    Input::Process(conn, message)
}

/// The moves of the present run; shown when a test fails.
#[derive(Default)]
struct Run(Vec<Move>);

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the run: {:?}", self.0);
        }
    }
}

/// All that can be reached; depth first, so that a run that comes back to a state it has been in is seen.
fn explore(name: &str, budget: Budget) {
    enum Task {
        Enter(Box<World>, Move),
        Leave(u128),
    }
    // True: on the present run.
    let mut seen: HashMap<u128, bool> = HashMap::new();
    let mut run = Run::default();
    let mut tasks = Vec::new();
    let mut at_rest = 0_u64;
    let mut visit = |world: &World, key: u128, tasks: &mut Vec<Task>, seen: &mut HashMap<u128, bool>| {
        seen.insert(key, true);
        tasks.push(Task::Leave(key));
        let mut moves = world.deliveries();
        if moves.is_empty() {
            at_rest += 1;
            world.check_rest();
        }
        moves.extend(world.events());
        tasks.extend(moves.into_iter().map(|chosen| Task::Enter(Box::new(world.clone()), chosen)));
    };
    let first = World::new(budget);
    visit(&first, first.key(), &mut tasks, &mut seen);
    while let Some(task) = tasks.pop() {
        match task {
            Task::Leave(key) => {
                seen.insert(key, false);
                run.0.pop();
            }
            Task::Enter(mut world, chosen) => {
                run.0.push(chosen);
                world.make(chosen);
                let key = world.key();
                match seen.get(&key) {
                    Some(true) => panic!("an endless run"),
                    Some(false) => drop(run.0.pop()),
                    None => visit(&world, key, &mut tasks, &mut seen),
                }
            }
        }
    }
    println!("{name}: {} states, {at_rest} at rest", seen.len());
    assert!(at_rest > 0);
}

#[test]
fn two_forks_a_death_and_a_checkpoint() {
    explore("fork fork die checkpoint", Budget { forks: 2, deaths: 1, checkpoints: 1, ..Budget::default() });
}

#[test]
fn a_fork_and_two_checkpoints_with_a_full_disk() {
    explore("fork checkpoint*2 full", Budget { forks: 1, checkpoints: 2, full: 1, again: true, ..Budget::default() });
}

#[test]
fn strangers_and_failed_forks_and_a_death() {
    explore(
        "stranger failed-fork die checkpoint",
        Budget { strangers: 1, failed_forks: 1, deaths: 1, checkpoints: 1, ..Budget::default() },
    );
}

#[test]
fn exec_fork_and_death() {
    explore("exec fork die checkpoint", Budget { execs: 1, forks: 1, deaths: 1, checkpoints: 1, ..Budget::default() });
}

#[test]
fn checkpoint_that_kills_with_a_full_disk_and_a_fork() {
    explore(
        "kill-checkpoint full fork die",
        Budget { kill_checkpoints: 1, full: 1, forks: 1, deaths: 1, ..Budget::default() },
    );
}

#[test]
fn kill_at_any_time() {
    explore("kill checkpoint fork exec", Budget { kills: 1, checkpoints: 1, forks: 1, execs: 1, ..Budget::default() });
}
