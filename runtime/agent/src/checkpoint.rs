//! The checkpoint thread: waits for the coordinator, and takes the process through a checkpoint or out of a restart.
//!
//! Rules: between `stop` and `resume` nothing here touches the program's malloc, stdio, locks or loader. Whatever fails, the
//! program runs on: the checkpoint fails, with the reason.
use crate::{
    apart,
    arch::{self, Context},
    children,
    conn::{self, Connection},
    descriptors::Survey,
    follow::gate,
    freeze::{self, Facts, Writing, Written},
    huge, init, maps, plugins,
    plugins::Event,
    process, relay, sandbox, stop,
    sys::{self, Fd},
    timers,
};
use alloc::{
    ffi::CString,
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::{
    cell::UnsafeCell,
    ffi::{c_int, c_void},
    mem::ManuallyDrop,
    sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::*},
};
use slackwater_image::meta;
use slackwater_protocol::message::{FromProcess, RoundKind, SharedRange, ToProcess};
use slackwater_restorer::plan::RestartInfo;

/// Bounds the wait for threads to park; they may be inside a wrapper that takes long (a big memory registration).
const STOP_DEADLINE_NS: u64 = 30_000_000_000;

/// Where the restorer leaves its note.
struct Note(UnsafeCell<RestartInfo>);
// SAFETY: written by the restorer before any thread runs, read by the checkpoint thread.
unsafe impl Sync for Note {}
static NOTE: Note = Note(UnsafeCell::new(RestartInfo::ZERO));

/// Generations finished, and how: what `slackwater_checkpoint` waits for.
static FINISHED: AtomicU32 = AtomicU32::new(0);
static LAST_RESULT: AtomicI32 = AtomicI32::new(0);
static MEMBER: AtomicU64 = AtomicU64::new(0);

/// Number of this process in the computation; 0: it has not joined yet.
pub fn member() -> u64 {
    MEMBER.load(Relaxed)
}

/// The checkpoint thread's own state.
pub struct Keeper {
    member: u64,
    generation: u64,
    writing: Option<(u64, Writing, Fd)>,
    before: maps::Before,
}

/// How the coordinator wants a snapshot; see [`ToProcess::Snapshot`].
struct Wish {
    folder: String,
    sync: bool,
    codec: u8,
    elsewhere: Vec<SharedRange>,
}

/// A snapshot's argument and result, on the stack of [`Keeper::snapshot`].
struct Shot<'a> {
    facts: &'a mut Facts,
    context: *const Context,
    result: Option<Result<Writing, String>>,
}

unsafe extern "C" fn shoot(arg: *mut c_void) -> usize {
    // SAFETY: `snapshot` passes its own Shot.
    let shot = unsafe { &mut *arg.cast::<Shot>() };
    // SAFETY: filled in by with_context before it called us.
    let context = unsafe { &*shot.context };
    shot.facts.threads.push(stop::describe_self(context));
    shot.result = Some(freeze::freeze(shot.facts));
    0
}

fn send(message: &FromProcess) -> Result<(), String> {
    conn::with(|c| c.send(message))
}

/// The coordinator's next message.
///
/// # Errors
/// It is gone.
pub fn receive() -> Result<ToProcess, String> {
    loop {
        relay::serve();
        if let Some(m) = conn::with(Connection::buffered)? {
            return Ok(m);
        }
        if conn::wait_readable(None).0 {
            conn::with(Connection::fill)?;
        }
    }
}

/// Asks for published values. On the checkpoint thread, inside a round.
///
/// # Errors
/// The coordinator is out of reach, or speaks out of turn.
pub fn query(keys: Vec<(String, Vec<u8>)>) -> Result<Vec<Option<Vec<u8>>>, String> {
    send(&FromProcess::Query { keys })?;
    match receive()? {
        ToProcess::Values { values } => Ok(values),
        other => Err(format!("the coordinator answered a query with {other:?}")),
    }
}

/// `slackwater_checkpoint()`.
pub fn from_program() -> c_int {
    if gate::excluded() {
        sys::complain("slackwater_checkpoint() between slackwater_no_checkpoint_begin() and its end takes none");
        return -1;
    }
    let (seen, restarts) = (FINISHED.load(Acquire), restarts());
    if slackwater_hook::thread::guarded(|| send(&FromProcess::RequestCheckpoint)).is_err() {
        return -1;
    }
    while FINISHED.load(Acquire) == seen && restarts == self::restarts() {
        sys::futex_wait(&FINISHED, seen, None);
    }
    if restarts == self::restarts() { LAST_RESULT.load(Acquire) } else { 1 }
}

fn note() -> &'static RestartInfo {
    // SAFETY: written before this process's threads run.
    unsafe { &*NOTE.0.get() }
}

/// How often this process has been restored.
pub fn restarts() -> u64 {
    note().restarts
}

/// The last generation that was committed with this process in it; 0: none yet.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// The last generation that was committed with this process in it; 0: none yet.
pub fn generation() -> u64 {
    GENERATION.load(Relaxed)
}

fn finished(result: c_int) {
    LAST_RESULT.store(result, Release);
    FINISHED.fetch_add(1, AcqRel);
    sys::futex_wake(&FINISHED);
}

fn file_name(member: u64) -> String {
    format!("member-{member:06}.image")
}

fn report_saved(member: u64, generation: u64, result: Written) -> Result<(), String> {
    send(&match result {
        Ok((bytes, memory)) => FromProcess::Saved { generation, file: file_name(member), bytes, memory },
        Err(reason) => FromProcess::Failed { generation, reason },
    })
}

/// The image that is being written, for the child that writes it: (member, generation).
static WRITING: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// In the child, with the image written. No other thread is here that could hold the connection's lock, or listen.
fn child_reports(result: Written) -> Result<(), String> {
    relay::listen();
    conn::unlock_in_child();
    report_saved(WRITING[0].load(Relaxed), WRITING[1].load(Relaxed), result)
}

impl Keeper {
    /// For the checkpoint thread of a process that has joined as `member`.
    pub fn new(member: u64) -> Self {
        MEMBER.store(member, Relaxed);
        Self { member, generation: 0, writing: None, before: maps::Before::default() }
    }

    /// Serves the coordinator until it is gone.
    pub fn serve(&mut self) -> String {
        loop {
            match self.step() {
                Ok(()) => {}
                Err(e) => {
                    if let Some((_, w, _)) = self.writing.take() {
                        w.cancel();
                    }
                    finished(-1);
                    return e;
                }
            }
        }
    }

    fn step(&mut self) -> Result<(), String> {
        relay::serve();
        if let Some(m) = conn::with(Connection::buffered)? {
            return self.handle(m);
        }
        let child = self.writing.as_ref().and_then(|(_, w, _)| w.poll_fd());
        let (connection, ended) = conn::wait_readable(child);
        if ended {
            self.report_writing()?;
        }
        if connection {
            conn::with(Connection::fill)?;
        }
        Ok(())
    }

    fn report_writing(&mut self) -> Result<(), String> {
        let Some((generation, writing, image)) = self.writing.take() else { return Ok(()) };
        let result = writing.finish();
        drop(image);
        result.map_or(Ok(()), |r| report_saved(self.member, generation, r))
    }

    fn file_name(&self) -> String {
        file_name(self.member)
    }

    fn handle(&mut self, message: ToProcess) -> Result<(), String> {
        match message {
            ToProcess::Prepare { generation } => {
                // What the program forks meanwhile, and what the coordinator says, comes first.
                if sandbox::refuse().is_ok() {
                    huge::gather(|| {
                        relay::serve();
                        conn::descriptor().is_none_or(|fd| sys::readable(fd, 0))
                    });
                }
                send(&FromProcess::Prepared { generation })
            }
            ToProcess::Suspend { generation } => self.checkpoint(generation),
            ToProcess::Finished { generation, failed } => {
                if let Some((g, w, image)) = self.writing.take() {
                    if g == generation && failed.is_some() {
                        w.cancel();
                    } else {
                        self.writing = Some((g, w, image));
                    }
                }
                if failed.is_none() {
                    GENERATION.store(generation, Relaxed);
                }
                finished(if failed.is_some() { -1 } else { 0 });
                Ok(())
            }
            ToProcess::Write { generation } => {
                if let Some((g, writing, _)) = &self.writing
                    && *g == generation
                {
                    writing.go();
                }
                Ok(())
            }
            ToProcess::Kill => {
                // SAFETY: the computation is to end.
                _ = unsafe { sc!(kill, sys::getpid(), libc::SIGKILL) };
                Ok(())
            }
            // Of a checkpoint that failed here before anything stood: the coordinator waits for an answer all the same.
            ToProcess::Resume { generation, .. } => send(&FromProcess::Resumed { generation, stopped_us: 0 }),
            // Left over from a checkpoint that failed here first.
            _ => Ok(()),
        }
    }

    fn checkpoint(&mut self, generation: u64) -> Result<(), String> {
        self.generation = generation;
        // The child of the last one has reported for itself; it may still be about to end.
        self.report_writing()?;
        let fail = |reason: String| send(&FromProcess::Failed { generation, reason });
        let presuspend = || plugins::dispatch(Event::Presuspend, 0, self.member, generation);
        if let Err(reason) = presuspend().and_then(|_| gate::hold(STOP_DEADLINE_NS)) {
            return fail(reason);
        }
        // Behind the gate: a child that is born meanwhile would inherit what is opened here, where the table is shared.
        match sandbox::refuse().and_then(|()| maps::before()) {
            Ok(before) => self.before = before,
            Err(reason) => {
                gate::release();
                return fail(reason);
            }
        }
        let (since, before) = (sys::now_ns(), restarts());
        let stopped = match stop::stop(STOP_DEADLINE_NS) {
            Ok(s) => s,
            Err(reason) => {
                gate::release();
                return fail(reason);
            }
        };
        let readable = process::Readable::new();
        let result = self.stopped(generation, &stopped);
        drop(readable);
        // `stopped` has taken the plugins through RESUME, or this is a restarted process.
        stop::resume();
        gate::release();
        // In a restored process the clock of the other history says nothing.
        let stopped_us = if restarts() == before { (sys::now_ns() - since) / 1000 } else { 0 };
        result?;
        send(&FromProcess::Resumed { generation, stopped_us })?;
        match plugins::dispatch(Event::Running, 0, self.member, self.generation) {
            Ok(_) => Ok(()),
            Err(e) => send(&FromProcess::Log { line: format!("running: {e}") }),
        }
    }

    /// While the threads stand. An error means that the coordinator is lost.
    fn stopped(&mut self, generation: u64, threads: &stop::Stopped) -> Result<(), String> {
        let member = self.member;
        let event = |event, round| plugins::dispatch(event, round, member, generation);
        let mut survey = Survey::default();
        let outcome = apart::refuse(&threads.tids)
            .and_then(|()| event(Event::Suspended, 0))
            .and_then(|_| stop::as_program(|| survey.take(&protected()))?);
        match outcome {
            Ok((descriptors, shared)) => {
                let threads = threads.tids.len() as u32;
                send(&FromProcess::Suspended { generation, threads, descriptors, shared })?;
            }
            Err(reason) if survey.passing => send(&FromProcess::Unready { generation, reason })?,
            Err(reason) => send(&FromProcess::Failed { generation, reason })?,
        }
        let result = loop {
            match receive() {
                Ok(ToProcess::Round { kind: kind @ RoundKind::Quiesce, round, members }) => {
                    plugins::set_members(members.into());
                    let again = event(Event::Quiesce, round)
                        .and_then(|again| Ok(again | !stop::as_program(|| survey.quiet())??));
                    let r = match again {
                        Err(reason) if survey.passing => send(&FromProcess::Unready { generation, reason }),
                        again => round_done(kind, round, generation, again),
                    };
                    if r.is_err() {
                        break r;
                    }
                }
                Ok(ToProcess::Snapshot { folder, sync, codec, elsewhere, .. }) => {
                    let wish = Wish { folder, sync, codec, elsewhere };
                    match self.snapshot(generation, threads, wish, &mut survey) {
                        Ok(None) => return self.restarted(threads, &survey),
                        Ok(Some(note)) => {
                            let r = send(&FromProcess::Snapshotted { generation, forked: !sync, note });
                            let r = if sync { r.and_then(|()| self.report_writing()) } else { r };
                            if r.is_err() {
                                break r;
                            }
                        }
                        Err(reason) => {
                            let failed = FromProcess::Failed { generation, reason: reason.clone() };
                            let unready = FromProcess::Unready { generation, reason };
                            if let Err(e) = send(if survey.passing { &unready } else { &failed }) {
                                break Err(e);
                            }
                        }
                    }
                }
                Ok(ToProcess::Resume { aborted, .. }) => {
                    if aborted.is_some() {
                        // An error: nobody is parked, and nothing was changed.
                        _ = stop::as_program(|| survey.settle());
                        if let Some((_, w, _)) = self.writing.take() {
                            w.cancel();
                        }
                    }
                    break Ok(());
                }
                Ok(ToProcess::Kill) => _ = self.handle(ToProcess::Kill),
                Ok(_) => {}
                Err(e) => break Err(e),
            }
        };
        if result.is_err() {
            _ = stop::as_program(|| survey.settle());
        }
        if let Err(e) = plugins::dispatch(Event::Resume, 0, self.member, generation) {
            _ = send(&FromProcess::Log { line: format!("resume: {e}") });
        }
        result
    }

    /// Some(note): the memory is frozen. None: this is the restored process.
    fn snapshot(
        &mut self,
        generation: u64,
        threads: &stop::Stopped,
        wish: Wish,
        survey: &mut Survey,
    ) -> Result<Option<String>, String> {
        plugins::dispatch(Event::Save, 0, self.member, generation)?;
        let children = children::look(&threads.tids);
        if let Err(reason) = children.followed() {
            // It may be about to join.
            survey.passing = true;
            return Err(reason);
        }
        let protected = protected();
        let Wish { folder, sync, codec, elsewhere } = wish;
        let mut sections = stop::as_program(|| survey.fill(&protected, &elsewhere))??;
        sections.extend(plugins::sections());
        let (vdso, vvar) = maps::vdso()?;
        let path = format!("{folder}/{}", self.file_name());
        let c_path = CString::new(path.as_str()).map_err(|e| e.to_string())?;
        let image = match sys::open(&c_path, libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC, 0o600) {
            Err(sys::Errno::EACCES) => conn::borrow_image(&path),
            other => other.map_err(|e| e.to_string()),
        };
        let image = image.map_err(|e| format!("{path} cannot be made: {e}"))?;
        let high = conn::move_high(image.0).map_err(|e| format!("no free descriptor: {e}"))?;
        core::mem::forget(image);
        let timers = timers::settled(|| stop::take_pending(threads.leader_gone));
        let mut described = stop::describe();
        let pid = sys::getpid();
        if threads.leader_gone {
            described.push(meta::Thread { tid: pid, ..meta::Thread::default() });
        }
        described.sort_by_key(|t| (t.tid != pid, t.tid));
        let process = process::capture(children.zombies, vdso, vvar, NOTE.0.get() as u64, &protected, &timers)?;
        let mut facts = ManuallyDrop::new(Facts {
            process,
            threads: described,
            sections,
            elsewhere,
            cutouts: plugins::cutouts(),
            before: core::mem::take(&mut self.before),
            image: Fd(high),
            codec,
            sync,
            report: child_reports,
        });
        WRITING[0].store(self.member, Relaxed);
        WRITING[1].store(generation, Relaxed);
        let own = stop::own_slot();
        let mut context = Context::default();
        let mut shot = ManuallyDrop::new(Shot { facts: &mut facts, context: &raw const context, result: None });
        // SAFETY: context and shot outlive the call; `shoot` returns 0.
        let again = unsafe { arch::with_context(&raw mut context, shoot, (&raw mut *shot).cast()) };
        if again == 1 {
            crate::arena::Scratch::leave();
            stop::restore_self(&own);
            process::restore(&facts.process);
            return Ok(None);
        }
        let result = shot.result.take();
        let facts = ManuallyDrop::into_inner(facts);
        let writing = result.unwrap_or_else(|| Err("no snapshot was taken".to_string()))?;
        let note = writing.note.clone();
        self.writing = Some((generation, writing, facts.image));
        Ok(Some(note))
    }

    /// The restored process: its threads are coming out of the restorer.
    fn restarted(&mut self, threads: &stop::Stopped, survey: &Survey) -> Result<(), String> {
        let note = note();
        stop::wait_arrived(threads.tids.len());
        // SAFETY: every thread has left the restorer.
        _ = unsafe { sc!(munmap, note.blob[0], note.blob[1] - note.blob[0]) };
        self.writing = None;
        self.member = note.member;
        MEMBER.store(note.member, Relaxed);
        init::adopt(note)?;
        leave_program_table()?;
        if let Err(e) = stop::as_program(|| survey.restarted())? {
            send(&FromProcess::Log { line: format!("restarted: {e}") })?;
        }
        crate::follow::env::change();
        let generation = note.generation;
        self.generation = generation;
        GENERATION.store(generation, Relaxed);
        finished(1);
        let result = loop {
            match receive() {
                Ok(ToProcess::Round { kind: kind @ RoundKind::Restart, round, members }) => {
                    plugins::set_members(members.into());
                    let again = plugins::dispatch(Event::Restart, round, self.member, generation);
                    if let Err(e) = round_done(kind, round, generation, again) {
                        break Err(e);
                    }
                }
                Ok(ToProcess::Resume { aborted: None, .. }) => break Ok(()),
                Ok(ToProcess::Resume { aborted: Some(_), .. } | ToProcess::Kill) => _ = self.handle(ToProcess::Kill),
                Ok(_) => {}
                Err(e) => break Err(e),
            }
        };
        if let Err(e) = plugins::dispatch(Event::Restarted, 0, self.member, generation) {
            _ = send(&FromProcess::Log { line: format!("restarted: {e}") });
        }
        result
    }
}

/// Answers a round with what the plugins said of it.
fn round_done(kind: RoundKind, round: u32, generation: u64, again: Result<bool, String>) -> Result<(), String> {
    send(&match again {
        Ok(again) => FromProcess::RoundDone { kind, round, again, publish: plugins::take_published() },
        Err(reason) => FromProcess::Failed { generation, reason },
    })
}

/// Descriptors in the program's table that are not the program's.
fn protected() -> Vec<i32> {
    let mut p = plugins::protected();
    if !init::is_bare() {
        p.extend(conn::descriptor());
    }
    p
}

/// The restorer makes all threads with one descriptor table. The checkpoint thread takes the connection into its own.
fn leave_program_table() -> Result<(), String> {
    let Some(fd) = conn::descriptor().filter(|_| init::is_bare()) else { return Ok(()) };
    sys::own_table(&mut [fd]).map_err(|e| format!("a descriptor table of its own: {e}"))?;
    // SAFETY: the program's copy of a descriptor that `restart` left for us.
    stop::as_program(|| _ = unsafe { sc!(close, fd) })
}
