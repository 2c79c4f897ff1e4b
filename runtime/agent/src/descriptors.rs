//! The program's descriptors, and what else it may share, during a checkpoint: surveyed when this process stands, filled in when all do.
use crate::{pages::PAGE, shared::Shared, sys};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use slackwater_image::meta::SECTION_OBJECTS;
use slackwater_objects::backlog::{self, STEPS, Step};
use slackwater_objects::{Table, ipc, model::Kind};
use slackwater_protocol::message::{DescriptorKey, SharedRange};

/// What is known so far.
#[derive(Default)]
pub struct Survey {
    table: Option<Table>,
    shared: Shared,
    /// What made [`Survey::take`], [`Survey::fill`] or [`Survey::quiet`] fail passes when the program runs on.
    pub passing: bool,
    /// How often [`Survey::quiet`] has said no.
    rounds: u32,
    /// Steps that are left in taking apart connections that wait to be accepted; last first.
    steps: Vec<Step>,
}

/// Rounds of the quiesce, each an exchange among all processes, in which bytes may arrive. On loopback a few are enough; only
/// what was lost comes 200 ms later. To ask again after the program has run costs it little, and to stand for nothing much.
const MOST_ROUNDS: u32 = 2000;

/// So many attempts, half a second in all, the program has to accept connections that hold bytes already.
const PATIENCE: u32 = 10;

impl Survey {
    /// For an attempt at a checkpoint of which so many were called off.
    pub fn of_attempt(retaken: u32) -> Self {
        let steps = if retaken >= PATIENCE { STEPS.into_iter().rev().collect() } else { Vec::new() };
        Self { steps, ..Self::default() }
    }

    /// The next step in taking apart connections that wait to be accepted: one in each round.
    pub fn backlog_step(&mut self) -> Option<Step> {
        self.steps.pop().filter(|_| self.table.is_some())
    }

    /// What is to be asked before [`Survey::backlog`].
    pub fn backlog_questions(&self, step: Step) -> Vec<Vec<u8>> {
        self.table.as_ref().map_or_else(Vec::new, |table| backlog::questions(table, step))
    }

    /// Takes the step. Whether another one is wanted, and what all are to be told.
    ///
    /// # Errors
    /// A connection is broken now.
    pub fn backlog(&mut self, step: Step, answers: &[Option<Vec<u8>>]) -> Result<(bool, backlog::Told), String> {
        let table = self.table.get_or_insert_default();
        backlog::step(table, step, answers).map_err(|e| e.to_string())
    }

    /// What there is, but for the descriptors in `exclude`; the answer lets the coordinator find out what processes share.
    ///
    /// # Errors
    /// A descriptor that cannot be brought back.
    pub fn take(&mut self, exclude: &[i32]) -> Result<(Vec<DescriptorKey>, Vec<SharedRange>), String> {
        let table = slackwater_objects::survey(exclude, crate::stop::both).map_err(|e| {
            self.passing = e.passing;
            e.to_string()
        })?;
        let keys = slackwater_objects::keys(&table).map(|(fd, dev, ino)| DescriptorKey { fd, dev, ino }).collect();
        self.table = Some(table);
        let (shared, mut ranges) = Shared::take()?;
        let queues = slackwater_objects::saved_once(self.table.get_or_insert_default());
        ranges.extend(queues.map(|(dev, ino, write)| SharedRange { dev, ino, start: 0, end: PAGE, write }));
        self.shared = shared;
        Ok((keys, ranges))
    }

    /// All bytes that this process sent have arrived. All processes stand.
    ///
    /// # Errors
    /// They cannot arrive: the receiver's buffer is as large as the system permits, full, and the receiver stands. That
    /// passes when the program runs on.
    pub fn quiet(&mut self) -> Result<bool, String> {
        let Some(table) = &mut self.table else { return Ok(true) };
        if slackwater_objects::quiet(table) {
            return Ok(true);
        }
        self.rounds += 1;
        self.passing = self.rounds > MOST_ROUNDS;
        if self.passing {
            return Err(format!(
                "process {}: what its TCP connections have under way does not arrive: more is unread than net.ipv4.tcp_rmem permits to be",
                sys::getpid()
            ));
        }
        Ok(false)
    }

    /// The checkpoint is off: takes back what [`Survey::quiet`] changed.
    pub fn settle(&mut self) {
        self.table.iter_mut().for_each(slackwater_objects::settle);
        self.table.iter_mut().for_each(slackwater_objects::release);
    }

    /// Offsets, counters, unread bytes, System V objects but for those that others save; sections of the image.
    /// `exclude` as for [`Survey::take`].
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn fill(&mut self, exclude: &[i32], elsewhere: &[SharedRange]) -> Result<Vec<(String, Vec<u8>)>, String> {
        let table = self.table.get_or_insert_default();
        let others = |dev, ino| elsewhere.iter().any(|s| (s.dev, s.ino) == (dev, ino));
        let filled = slackwater_objects::fill(table, others, crate::stop::both);
        slackwater_objects::release(table);
        filled.map_err(|e| {
            self.passing = e.passing;
            e.to_string()
        })?;
        for open in &mut table.opens {
            if let Kind::Epoll { watched } = &mut open.kind {
                // Whoever owns a protected descriptor makes it anew, and has it watched again.
                watched.retain(|w| !exclude.contains(&w.fd));
            }
        }
        let objects = postcard::to_allocvec(table).map_err(|e| e.to_string())?;
        let mut sections = alloc::vec![(SECTION_OBJECTS.to_string(), objects)];
        sections.extend(self.shared.fill(elsewhere)?.map(|s| (ipc::SECTION.to_string(), s)));
        Ok(sections)
    }

    /// After a restart, in the program's descriptor table, on a thread of the program.
    ///
    /// # Errors
    /// What the kernel does not give this process again.
    pub fn restarted(&self) -> Result<(), String> {
        self.shared.restarted()?;
        self.table.as_ref().map_or(Ok(()), slackwater_objects::restarted).map_err(|e| e.to_string())
    }
}
