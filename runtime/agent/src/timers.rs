//! Timers of the process: interval timers (setitimer(2), alarm(2)) and POSIX timers (timer_create(2)).
//!
//! A timer that expires while the image's facts are gathered must be found once, as a signal that waits or as time that is left: a
//! program waits for ever for an alarm that is lost (perftest's duration runs do). They run on meanwhile, for a timer that is
//! disarmed takes its signal with it (since Linux 6.13); so they are read before and after the look at what waits, until none has
//! expired between the two. A timer that fires once can only spoil one look.
use crate::{
    sys,
    text::{dec, hex, lines, signed},
};
use alloc::vec::Vec;
use slackwater_image::meta::PosixTimer;

/// How many looks timers with an interval may spoil: they expire again and again, and what is lost comes with the next time.
const LOOKS: u32 = 16;

/// What has expired between two looks: the worst of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Expired {
    Nothing,
    Periodic,
    Once,
}

/// What is left of each timer.
pub struct Timers {
    /// ITIMER_REAL, VIRTUAL, PROF: remaining and interval in microseconds.
    pub intervals: [(u64, u64); 3],
    /// In ascending order of their ids.
    pub posix: Vec<PosixTimer>,
}

/// The timers, and `look_at_signals` has seen the signals of those that have expired, and of no others.
pub fn settled(mut look_at_signals: impl FnMut()) -> Timers {
    let mut before = Timers::read();
    let mut left = LOOKS;
    loop {
        look_at_signals();
        if !before.any() {
            return before;
        }
        let after = Timers::read();
        let expired = after.expired_since(&before);
        before = after;
        match expired {
            Expired::Nothing => return before,
            Expired::Periodic if left == 0 => return before,
            Expired::Periodic => left -= 1,
            Expired::Once => {}
        }
    }
}

impl Timers {
    fn read() -> Self {
        let mut intervals = [(0, 0); 3];
        for (which, t) in intervals.iter_mut().enumerate() {
            let mut v = [0u64; 4];
            // SAFETY: v is a struct itimerval: interval, then value.
            _ = unsafe { sc!(getitimer, which, v.as_mut_ptr()) };
            *t = (v[2] * 1_000_000 + v[3], v[0] * 1_000_000 + v[1]);
        }
        Self { intervals, posix: posix() }
    }

    fn any(&self) -> bool {
        !self.posix.is_empty() || self.intervals.iter().any(|&t| t != (0, 0))
    }

    /// What is left only becomes less, until the timer expires: then it is nothing, or a new interval.
    fn expired_since(&self, before: &Self) -> Expired {
        let one = |was: u64, is: u64, interval: u64| match is > was || (is == 0 && was != 0) {
            false => Expired::Nothing,
            true if interval == 0 => Expired::Once,
            true => Expired::Periodic,
        };
        let intervals = self.intervals.iter().zip(&before.intervals).map(|(is, was)| one(was.0, is.0, is.1));
        let posix = self.posix.iter().zip(&before.posix);
        let posix = posix.map(|(is, was)| one(was.remaining_ns, is.remaining_ns, is.interval_ns));
        intervals.chain(posix).max().unwrap_or(Expired::Nothing)
    }
}

/// Arms the interval timers with what was left.
pub fn arm(intervals: &[(u64, u64); 3]) {
    for (which, &(value, interval)) in intervals.iter().enumerate() {
        // ITIMER_REAL stands still from its expiry until SIGALRM is taken, which may be waiting among the pending signals.
        let value = if which == 0 && value == 0 { interval } else { value };
        if value != 0 {
            let v = [interval / 1_000_000, interval % 1_000_000, value / 1_000_000, value % 1_000_000];
            // SAFETY: v is a struct itimerval.
            _ = unsafe { sc!(setitimer, which, v.as_ptr(), 0) };
        }
    }
}

fn posix() -> Vec<PosixTimer> {
    let Ok(text) = sys::read_file(c"/proc/self/timers") else { return Vec::new() };
    let mut out: Vec<PosixTimer> = Vec::new();
    for line in lines(&text) {
        if let Some(v) = line.strip_prefix(b"ID: ") {
            let id = dec(v) as i32;
            let mut spec = [0u64; 4];
            // SAFETY: spec is a struct itimerspec: interval, then value.
            _ = unsafe { sc!(timer_gettime, id, spec.as_mut_ptr()) };
            out.push(PosixTimer {
                id,
                clock: 0,
                notify: 0,
                signo: 0,
                value: 0,
                tid: 0,
                remaining_ns: spec[2] * 1_000_000_000 + spec[3],
                interval_ns: spec[0] * 1_000_000_000 + spec[1],
            });
            continue;
        }
        let Some(t) = out.last_mut() else { continue };
        if let Some(v) = line.strip_prefix(b"signal: ") {
            t.signo = dec(v) as i32;
            t.value = v.iter().position(|&c| c == b'/').map_or(0, |i| hex(&v[i + 1..]));
        } else if let Some(v) = line.strip_prefix(b"notify: ") {
            // "signal/pid.17", "signal/tid.17", "none/pid.17", "thread/pid.17"
            let kind = v.split(|&c| c == b'/').next().unwrap_or(b"");
            let by_tid = v.windows(4).any(|w| w == b"tid.");
            t.tid = v.iter().position(|&c| c == b'.').map_or(0, |i| dec(&v[i + 1..]) as i32);
            t.notify = match kind {
                b"none" => libc::SIGEV_NONE,
                b"thread" => libc::SIGEV_THREAD,
                _ if by_tid => libc::SIGEV_THREAD_ID,
                _ => libc::SIGEV_SIGNAL,
            };
        } else if let Some(v) = line.strip_prefix(b"ClockID: ") {
            t.clock = signed(v) as i32;
        }
    }
    // Newer kernels list the newest first; ids can only be had again in ascending order.
    out.sort_by_key(|t| t.id);
    out
}

/// Makes the timer under its old id: the kernel hands out ids in ascending order, so those before it are made and deleted.
pub fn make(t: &PosixTimer) {
    // struct sigevent: value, signo, notify, tid; 64 bytes.
    let mut event = [0u8; 64];
    event[..8].copy_from_slice(&t.value.to_ne_bytes());
    event[8..12].copy_from_slice(&t.signo.to_ne_bytes());
    event[12..16].copy_from_slice(&t.notify.to_ne_bytes());
    event[16..20].copy_from_slice(&t.tid.to_ne_bytes());
    for _ in 0..=t.id {
        let mut id = 0i32;
        // SAFETY: event is a struct sigevent, id an int, spec a struct itimerspec.
        unsafe {
            if sc!(timer_create, t.clock, event.as_ptr(), &raw mut id).is_err() {
                return;
            }
            if id == t.id {
                let ns = |n: u64| [n / 1_000_000_000, n % 1_000_000_000];
                let spec = [ns(t.interval_ns), ns(t.remaining_ns)];
                _ = sc!(timer_settime, id, 0, spec.as_ptr(), 0);
                return;
            }
            _ = sc!(timer_delete, id);
        }
    }
}
