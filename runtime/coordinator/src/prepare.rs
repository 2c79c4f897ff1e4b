//! Before the first process is stopped: those with much memory are asked to make ready for a short stop (the agent's `huge.rs`).
//!
//! Rules: the state machine knows nothing of it. It has asked for the generation's folder, and hears of it only when all that
//! were asked have answered or cannot: so nobody stands while another prepares. Nothing depends on an answer: a process that
//! is stopped, that dies, or that takes too long is not waited for.
use crate::machine::Conn;
use std::{
    collections::HashSet,
    fs,
    time::{Duration, Instant},
};

/// A process is asked when it has so many bytes of memory of its own; below, its stop is short anyway.
const MUCH: u64 = 128 << 20;
/// As often one looks whether somebody who was asked has been stopped since.
const LOOK: Duration = Duration::from_millis(200);
/// For so long at most.
const LONGEST: Duration = Duration::from_secs(60);

/// Who was asked and has not answered.
pub(crate) struct Preparing {
    /// The generation whose folder the machine waits for.
    pub generation: u64,
    awaited: HashSet<Conn>,
    since: Instant,
    looked: Instant,
}

impl Preparing {
    /// None: there is nobody to wait for.
    pub fn new(generation: u64, awaited: HashSet<Conn>) -> Option<Self> {
        let now = Instant::now();
        (!awaited.is_empty()).then_some(Self { generation, awaited, since: now, looked: now })
    }

    /// Those.
    pub fn awaited(&self) -> impl Iterator<Item = &Conn> {
        self.awaited.iter()
    }

    /// It has answered, or is no more.
    pub fn answered(&mut self, conn: Conn) {
        self.awaited.remove(&conn);
    }

    /// When [`Preparing::look`] is of use next.
    pub fn wakes_at(&self) -> Instant {
        self.looked + LOOK
    }

    /// Who `cannot` answer is not waited for.
    pub fn look(&mut self, cannot: impl Fn(Conn) -> bool) {
        self.looked = Instant::now();
        self.awaited.retain(|&conn| !cannot(conn));
    }

    /// All have answered, or it has taken too long.
    pub fn is_over(&self) -> bool {
        self.awaited.is_empty() || self.since.elapsed() > LONGEST
    }
}

/// Does it have much memory of its own? (proc(5), statm: resident and shared pages, the second and third number.)
pub(crate) fn is_worthwhile(pid: i32) -> bool {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let mut pages = statm.split_ascii_whitespace().skip(1).map_while(|n| n.parse::<u64>().ok());
    let (resident, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    resident.saturating_sub(shared) * 4096 >= MUCH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_when_all_have_answered_or_cannot() {
        assert!(Preparing::new(1, HashSet::new()).is_none());
        let mut preparing = Preparing::new(1, HashSet::from([1, 2, 3])).unwrap();
        preparing.answered(2);
        preparing.answered(7);
        assert!(!preparing.is_over());
        preparing.look(|conn| conn == 3);
        assert!(!preparing.is_over());
        preparing.answered(1);
        assert!(preparing.is_over());
    }

    #[test]
    fn much_memory_is_seen() {
        assert!(!is_worthwhile(i32::MAX));
        let memory = vec![1u8; (MUCH + (1 << 20)) as usize];
        assert!(is_worthwhile(std::process::id() as i32), "{}", memory.len());
    }
}
