//! The snapshot itself, which returns twice: in the process that goes on, and in the one that a restart makes of the image.
//!
//! Rules: those of [`super`]; all threads but this one are parked.
use super::{Keeper, protected, receive, report_saved, round_done, send};
use crate::{
    arch::{self, Context},
    children, conn,
    descriptors::Survey,
    freeze::{self, Facts, Writing, Written},
    init, maps, membership, plugins,
    plugins::Event,
    process, relay, stop,
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
    ffi::c_void,
    mem::ManuallyDrop,
    sync::atomic::{AtomicU64, Ordering::*},
};
use slackwater_image::meta;
use slackwater_protocol::message::{FromProcess, RoundKind, SharedRange, ToProcess};

/// How the coordinator wants a snapshot; see [`ToProcess::Snapshot`].
pub(super) struct Wish {
    pub(super) folder: String,
    pub(super) sync: bool,
    pub(super) codec: u8,
    pub(super) elsewhere: Vec<SharedRange>,
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

/// The image that is being written, for the child that writes it: (member, generation).
static WRITING: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// In the child, with the image written. No other thread is here that could hold the connection's lock, or listen.
fn child_reports(result: Written) -> Result<(), String> {
    relay::listen();
    conn::unlock_in_child();
    report_saved(WRITING[0].load(Relaxed), WRITING[1].load(Relaxed), result)
}

impl Keeper {
    /// Some(note): the memory is frozen. None: this is the restored process.
    pub(super) fn snapshot(
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
        let process = process::capture(
            children.zombies,
            vdso,
            vvar,
            core::ptr::from_ref(membership::note()) as u64,
            &protected,
            &timers,
        )?;
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
            maps::lock_future();
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
    pub(super) fn restarted(&mut self, threads: &stop::Stopped, survey: &Survey) -> Result<(), String> {
        let note = membership::note();
        stop::wait_arrived(threads.tids.len());
        // SAFETY: every thread has left the restorer.
        _ = unsafe { sc!(munmap, note.blob[0], note.blob[1] - note.blob[0]) };
        self.writing = None;
        self.member = note.member;
        membership::join(note.member);
        init::adopt(note)?;
        leave_program_table()?;
        if let Err(e) = stop::as_program(|| survey.restarted())? {
            send(&FromProcess::Log { line: format!("restarted: {e}") })?;
        }
        crate::follow::env::change();
        crate::follow::address::load();
        let generation = note.generation;
        self.generation = generation;
        membership::committed(generation);
        membership::finished(1);
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

/// The restorer makes all threads with one descriptor table. The checkpoint thread takes the connection into its own.
fn leave_program_table() -> Result<(), String> {
    let Some(fd) = conn::descriptor().filter(|_| init::is_bare()) else { return Ok(()) };
    sys::own_table(&mut [fd]).map_err(|e| format!("a descriptor table of its own: {e}"))?;
    // SAFETY: the program's copy of a descriptor that `restart` left for us.
    stop::as_program(|| _ = unsafe { sc!(close, fd) })
}
