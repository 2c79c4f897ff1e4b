//! The checkpoint thread: waits for the coordinator, and takes the process through a checkpoint or out of a restart.
//!
//! Rules: between `stop` and `resume` nothing here touches the program's malloc, stdio, locks or loader. Whatever fails, the
//! program runs on: the checkpoint fails, with the reason.
use crate::{
    apart,
    conn::{self, Connection},
    descriptors::Survey,
    follow::gate,
    freeze::{Writing, Written},
    huge, init, maps, membership, plugins,
    plugins::Event,
    process, relay, sandbox,
    spin::Spin,
    stop,
    sys::{self, Fd},
};
use alloc::{format, string::String, vec::Vec};
use slackwater_protocol::message::{Entry, FromProcess, RoundKind, ToProcess};
use snapshot::Wish;

mod snapshot;

/// Bounds the wait for threads to park; they may be inside a wrapper that takes long (a big memory registration).
const STOP_DEADLINE_NS: u64 = 30_000_000_000;

/// The checkpoint thread's own state.
pub struct Keeper {
    member: u64,
    generation: u64,
    writing: Option<(u64, Writing, Fd)>,
    before: maps::Before,
}

fn send(message: &FromProcess) -> Result<(), String> {
    conn::with(|c| c.send(message))
}

/// What the coordinator said while it was waited for an answer of another kind: that the checkpoint is off, above all.
static KEPT: Spin<Option<ToProcess>> = Spin::new(None);

/// The next message that has arrived.
fn arrived() -> Result<Option<ToProcess>, String> {
    match KEPT.with(Option::take) {
        Some(m) => Ok(Some(m)),
        None => conn::with(Connection::buffered),
    }
}

/// The coordinator's next message.
///
/// # Errors
/// It is gone.
pub fn receive() -> Result<ToProcess, String> {
    loop {
        relay::serve();
        if let Some(m) = arrived()? {
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
/// The coordinator is out of reach.
pub fn query(keys: Vec<(String, Vec<u8>)>) -> Result<Vec<Option<Vec<u8>>>, String> {
    send(&FromProcess::Query { keys })?;
    let mut kept = None;
    // It answers each query, but another process may have made the checkpoint fail just before.
    let values = loop {
        match receive()? {
            ToProcess::Values { values } => break values,
            other => kept = Some(other),
        }
    };
    KEPT.with(|k| *k = kept);
    Ok(values)
}

/// Asks for what was published in the last restart, on a connection of its own: on any thread, inside a wrapper.
///
/// # Errors
/// The coordinator is out of reach.
pub fn recall(keys: Vec<(String, Vec<u8>)>) -> Result<Vec<Option<Vec<u8>>>, String> {
    let config = init::config().ok_or("no computation")?;
    let mut connection = Connection::open(&config.address, &config.secret)?;
    let answer = connection.send(&FromProcess::Query { keys }).and_then(|()| connection.receive());
    connection.close();
    match answer? {
        ToProcess::Values { values } => Ok(values),
        _ => Err("the coordinator answers something else".into()),
    }
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

impl Keeper {
    /// For the checkpoint thread of a process that has joined as `member`.
    pub fn new(member: u64) -> Self {
        membership::join(member);
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
                    membership::finished(-1);
                    return e;
                }
            }
        }
    }

    fn step(&mut self) -> Result<(), String> {
        relay::serve();
        if let Some(m) = arrived()? {
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
            ToProcess::Suspend { generation, retaken } => self.checkpoint(generation, retaken),
            ToProcess::Finished { generation, failed } => {
                if let Some((g, w, image)) = self.writing.take() {
                    if g == generation && failed.is_some() {
                        w.cancel();
                    } else {
                        self.writing = Some((g, w, image));
                    }
                }
                if failed.is_none() {
                    membership::committed(generation);
                }
                membership::finished(if failed.is_some() { -1 } else { 0 });
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

    fn checkpoint(&mut self, generation: u64, retaken: u32) -> Result<(), String> {
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
        let (since, before) = (sys::now_ns(), membership::restarts());
        let stopped = match stop::stop(STOP_DEADLINE_NS) {
            Ok(s) => s,
            Err(reason) => {
                gate::release();
                return fail(reason);
            }
        };
        let readable = process::Readable::new();
        let result = self.stopped(generation, retaken, &stopped);
        drop(readable);
        // `stopped` has taken the plugins through RESUME, or this is a restarted process.
        stop::resume();
        gate::release();
        // In a restored process the clock of the other history says nothing.
        let stopped_us = if membership::restarts() == before { (sys::now_ns() - since) / 1000 } else { 0 };
        result?;
        send(&FromProcess::Resumed { generation, stopped_us })?;
        match plugins::dispatch(Event::Running, 0, self.member, self.generation) {
            Ok(_) => Ok(()),
            Err(e) => send(&FromProcess::Log { line: format!("running: {e}") }),
        }
    }

    /// While the threads stand. An error means that the coordinator is lost.
    fn stopped(&mut self, generation: u64, retaken: u32, threads: &stop::Stopped) -> Result<(), String> {
        let member = self.member;
        let event = |event, round| plugins::dispatch(event, round, member, generation);
        let mut survey = Survey::of_attempt(retaken);
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
                        .and_then(|again| Ok(again | backlog(&mut survey)?))
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
}

/// A step in taking connections apart that wait to be accepted; true: another is wanted.
fn backlog(survey: &mut Survey) -> Result<bool, String> {
    const SCOPE: &str = "/backlog";
    let Some(step) = survey.backlog_step() else { return Ok(false) };
    let questions = survey.backlog_questions(step);
    let answers = match questions.is_empty() {
        true => Vec::new(),
        false => query(questions.into_iter().map(|key| (SCOPE.into(), key)).collect())?,
    };
    let (again, told) = stop::as_program(|| survey.backlog(step, &answers))??;
    for (key, value) in told {
        plugins::publish(Entry { scope: SCOPE.into(), key, value });
    }
    Ok(again)
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
