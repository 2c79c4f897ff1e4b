//! The tokio shell around the state machine: connections, pidfds, timers and files in, effects out.
//!
//! Everything runs on one thread, except what may block on a disk or on many system calls (commit, removal, kcmp), which
//! runs as a blocking job and reports back as an input.
use crate::{
    connection::{self, Event, Out},
    files::Filler,
    folder::{self, Claim},
    generation, lend,
    machine::{Conn, Effect, Input, Machine, Settings, Token},
    options::Options,
    prepare::Preparing,
    process::{self, Handle},
    shared,
};
use rustix::{process::Signal, time::ClockId};
use slackwater_image::manifest::folder_name;
use slackwater_protocol::{
    command::Reply,
    frame,
    message::{FromProcess, ToProcess},
    names,
};
use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    net::TcpListener,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::{JoinHandle, JoinSet},
};

mod processes;

/// At the end, peers have this long to read their last message.
const FAREWELL: Duration = Duration::from_secs(5);

/// Runs the coordinator of a claimed folder until its computation has ended.
///
/// # Errors
/// When the runtime cannot be set up.
pub fn run(claim: Claim, options: &Options) -> io::Result<()> {
    raise_descriptor_limit();
    // After the claim: what lies unfinished in the store is nobody's, or locked.
    let filler = options.file_store.then(|| Filler::start(&claim.dir)).transpose();
    let filler = filler.inspect_err(|error| log(&format!("no thread for the file store: {error}"))).ok().flatten();
    let fill = filler.as_ref().map(Filler::sender);
    if let Err(error) = folder::note_options(&claim.dir, options) {
        log(&format!("how this coordinator works cannot be noted for a restart: {error}"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let result = runtime.block_on(async {
        let listener = TcpListener::from(claim.listener);
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (events, queue) = unbounded_channel();
        let secret = Arc::new(claim.secret);
        lend::start(claim.dir.clone(), claim.addr.port(), secret.clone());
        let acceptor = tokio::spawn(accept(listener, secret, events.clone()));
        let found = generation::find(&claim.dir);
        let settings = Settings {
            expect: options.expect,
            next_generation: found.next,
            newest: found.newest,
            interval_us: options.interval.map(micros),
            patience_us: micros(options.patience),
            sync: options.sync,
            codec: options.codec.number(),
            folder: claim.dir.to_string_lossy().into_owned(),
            plugins: options.plugins.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
        };
        let base = generation::clock_us(ClockId::Monotonic);
        let (machine, effects) = Machine::new(settings, base);
        let mut server = Server {
            dir: claim.dir.clone(),
            keep: options.keep,
            machine,
            started: Instant::now(),
            base,
            events,
            outs: HashMap::new(),
            values: None,
            writers: Vec::new(),
            woken: HashMap::new(),
            processes: HashMap::new(),
            expected: HashMap::new(),
            jobs: JoinSet::new(),
            inputs: VecDeque::new(),
            fill,
            preparing: None,
            done: false,
        };
        log(&format!("coordinator {} of {} listens on {}", std::process::id(), claim.dir.display(), claim.addr));
        server.apply(found.leftovers.into_iter().map(Effect::RemoveFolder).collect());
        server.apply(effects);
        server.run(queue).await;
        acceptor.abort();
        let _ = fs::remove_file(claim.dir.join(names::FILE_ADDRESS));
        server.farewell().await;
        Ok(())
    });
    // The computation is over and its folder free for the next; only copies may still be on their way.
    drop(claim.lock);
    if let Some(filler) = filler {
        filler.finish();
    }
    result
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A line with the time (UTC), to stderr: the daemon's is the computation's log file.
pub(crate) fn log(line: &str) {
    let now = SystemTime::now();
    eprintln!("{} {line}", humantime::format_rfc3339_millis(now));
}

/// Each process needs two descriptors here.
fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
}

async fn accept(
    listener: tokio::net::TcpListener,
    secret: Arc<slackwater_protocol::auth::Secret>,
    events: UnboundedSender<Event>,
) {
    let mut next: Conn = 1;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(connection::serve(stream, peer, next, secret.clone(), events.clone()));
                next += 1;
            }
            Err(error) => {
                // Out of descriptors: those who wait stay in the backlog until some are free.
                drop(events.send(Event::Log(format!("cannot accept a connection: {error}"))));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

struct Server {
    dir: PathBuf,
    keep: Option<u32>,
    machine: Machine,
    /// The machine's clock is CLOCK_MONOTONIC: `base` microseconds when this began.
    started: Instant,
    base: u64,
    events: UnboundedSender<Event>,
    outs: HashMap<Conn, UnboundedSender<Out>>,
    /// The last answer to a question for published values.
    values: Option<Arc<Vec<u8>>>,
    writers: Vec<JoinHandle<()>>,
    /// Of members that were woken and stand: was a SIGCONT pending when they had come to stand?
    woken: HashMap<Conn, bool>,
    /// Members that can be watched.
    processes: HashMap<Conn, (Handle, i32)>,
    expected: HashMap<Token, (Handle, i32)>,
    /// Jobs on files that must end before the coordinator does.
    jobs: JoinSet<()>,
    /// Answers to effects that were carried out at once.
    inputs: VecDeque<Input>,
    /// To be told of committed generations, whose files are then copied.
    fill: Option<std::sync::mpsc::Sender<PathBuf>>,
    /// The machine waits for a folder that is there, until those who were asked have prepared.
    preparing: Option<Preparing>,
    done: bool,
}

impl Server {
    async fn run(&mut self, mut queue: UnboundedReceiver<Event>) {
        while !self.done {
            let deadline =
                self.machine.deadline().map(|at| self.started + Duration::from_micros(at.saturating_sub(self.base)));
            let look = self.preparing.as_ref().map(Preparing::wakes_at);
            let event = match deadline.into_iter().chain(look).min() {
                None => queue.recv().await,
                Some(next) => tokio::select! {
                    biased;
                    event = queue.recv() => event,
                    () = tokio::time::sleep_until(next.into()) => {
                        self.look_at_preparing();
                        if deadline.is_none_or(|deadline| deadline > next) {
                            self.settle();
                            continue;
                        }
                        Some(Event::Input(Input::Tick))
                    }
                },
            };
            match event {
                None => return,
                Some(Event::Log(line)) => log(&line),
                Some(Event::Opened { conn, out, writer }) => {
                    self.outs.insert(conn, out);
                    self.writers.retain(|writer| !writer.is_finished());
                    self.writers.push(writer);
                }
                Some(Event::Input(input)) => self.step(input),
            }
        }
    }

    fn step(&mut self, input: Input) {
        if let Input::Closed(conn) = input {
            self.outs.remove(&conn);
            self.processes.remove(&conn);
            self.woken.remove(&conn);
        }
        if let Input::ExpectedDied(token) = input {
            self.expected.remove(&token);
        }
        if let Some(preparing) = &mut self.preparing {
            match input {
                Input::Process(conn, FromProcess::Prepared { generation }) if generation == preparing.generation => {
                    preparing.answered(conn);
                }
                Input::Closed(conn) | Input::Died(conn) => preparing.answered(conn),
                _ => {}
            }
            self.end_preparing();
        }
        self.inputs.push_back(input);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(input) = self.inputs.pop_front() {
            let now = self.base + micros(self.started.elapsed());
            let effects = self.machine.step(now, input);
            self.apply(effects);
        }
        while self.jobs.try_join_next().is_some() {}
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(conn, message @ ToProcess::Values { .. }) => {
                    self.values = encode(&message);
                    self.pass(conn, self.values.clone());
                }
                Effect::Send(conn, message) => self.send(conn, &message),
                Effect::Repeat(conn) => self.pass(conn, self.values.clone()),
                Effect::Reply(conn, Reply::Status(status)) => {
                    let status = Reply::Status(self.with_threads(status));
                    self.send(conn, &status);
                }
                Effect::Reply(conn, reply) => self.send(conn, &reply),
                Effect::Close(conn) => drop(self.outs.remove(&conn)),
                Effect::Drain(conn) => {
                    if let Some(out) = self.outs.get(&conn) {
                        drop(out.send(Out::Drain));
                    }
                }
                Effect::Watch(conn, pid, claim) => self.watch(conn, pid, claim.as_ref()),
                Effect::WatchExpected(token, pid) => self.watch_expected(token, pid),
                Effect::Wake(conn) => self.wake(conn),
                Effect::WakeExpected(token) => {
                    if let Some((process, pid)) = self.expected.get(&token)
                        && process::is_stopped(*pid)
                        && process.signal(Signal::CONT).is_ok()
                    {
                        self.inputs.push_back(Input::WokenExpected(token));
                    }
                }
                Effect::Woke(conn) => {
                    let pending = self.processes.get(&conn).and_then(|&(_, pid)| process::continue_pending(pid));
                    self.woken.extend(pending.map(|pending| (conn, pending)));
                }
                Effect::Stop(conn) => {
                    let before = self.woken.remove(&conn);
                    if let Some((process, pid)) = self.processes.get(&conn) {
                        if (before, process::continue_pending(*pid)) == (Some(false), Some(true)) {
                            self.inputs.push_back(Input::Continued(conn));
                        } else {
                            let _ = process.signal(Signal::STOP);
                        }
                    }
                }
                Effect::Kill(conn) => match self.processes.get(&conn) {
                    Some((process, _)) => process.kill(),
                    None => self.send(conn, &ToProcess::Kill),
                },
                Effect::KillExpected(token) => {
                    if let Some((process, _)) = self.expected.get(&token) {
                        process.kill();
                    }
                }
                Effect::CreateFolder(generation) => {
                    let result = generation::create(&self.dir, generation);
                    let prepares = result.is_ok() && self.machine.stops_shortly();
                    self.preparing = if prepares { self.prepare(generation) } else { None };
                    if self.preparing.is_none() {
                        self.inputs.push_back(Input::Folder { generation, result });
                    }
                }
                Effect::FindShared(generation, processes) => {
                    let events = self.events.clone();
                    self.jobs.spawn_blocking(move || {
                        let (groups, note) = shared::find(processes);
                        drop(events.send(Event::Input(Input::Shared { generation, groups, note })));
                    });
                }
                Effect::Commit(mut manifest) => {
                    let (dir, keep, events) = (self.dir.clone(), self.keep, self.events.clone());
                    let fill = self.fill.clone();
                    self.jobs.spawn_blocking(move || {
                        let generation = manifest.generation;
                        let result = generation::commit(&dir, &mut manifest);
                        let committed = result.is_ok();
                        drop(events.send(Event::Input(Input::Committed { generation, result })));
                        if let (true, Some(keep)) = (committed, keep)
                            && let Err(error) = generation::prune(&dir, keep)
                        {
                            drop(events.send(Event::Log(format!("an old generation cannot be removed: {error}"))));
                        }
                        if let (true, Some(fill)) = (committed, fill) {
                            drop(fill.send(dir.join(folder_name(generation))));
                        }
                    });
                }
                Effect::RemoveFolder(generation) => {
                    let (dir, events) = (self.dir.clone(), self.events.clone());
                    self.jobs.spawn_blocking(move || {
                        if let Err(error) = generation::remove_partial(&dir, generation) {
                            drop(events.send(Event::Log(format!("leftovers cannot be removed: {error}"))));
                        }
                    });
                }
                Effect::Log(line) => log(&line),
                Effect::Exit => self.done = true,
            }
        }
    }

    fn send(&self, conn: Conn, message: &impl serde::Serialize) {
        self.pass(conn, encode(message));
    }

    fn pass(&self, conn: Conn, frame: Option<Arc<Vec<u8>>>) {
        if let (Some(out), Some(frame)) = (self.outs.get(&conn), frame) {
            drop(out.send(Out::Frame(frame)));
        }
    }

    /// Lets file jobs end and writers flush.
    async fn farewell(mut self) {
        self.outs.clear();
        while self.jobs.join_next().await.is_some() {}
        let flushed = async {
            for writer in self.writers.drain(..) {
                let _ = writer.await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL, flushed).await;
    }
}

fn encode(message: &impl serde::Serialize) -> Option<Arc<Vec<u8>>> {
    let frame = frame::to_frame(message).map_err(|error| log(&format!("a message cannot be sent: {error}")));
    frame.ok().map(Arc::new)
}
