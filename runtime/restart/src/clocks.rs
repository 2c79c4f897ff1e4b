//! CLOCK_MONOTONIC and CLOCK_BOOTTIME go on from where they stood at the cut, in a time namespace (time_namespaces(7)).
//!
//! Programs keep absolute times of these clocks: deadlines of condition variables, event loops and timers, marks from which
//! they count what has passed. Without a namespace all deadlines are over at once after a pause, and on a machine that was
//! booted more recently they never come. CLOCK_REALTIME is the world's, and stays so.
#![allow(unsafe_code)] // clock_gettime(2), unshare(2)
use crate::sys;
use slackwater_image::manifest::Clocks;
use std::{fs, io};

/// Linux 5.6, CONFIG_TIME_NS.
const OFFSETS: &str = "/proc/self/timens_offsets";
const SECOND: i128 = 1_000_000_000;

/// Processes that are forked from now on see the clocks as if no time had passed since the cut. Returns a warning where that
/// cannot be (no CONFIG_TIME_NS, no CAP_SYS_TIME), and matters.
#[must_use]
pub fn go_on(saved: Clocks) -> Option<String> {
    let now = Clocks { monotonic_us: micros(libc::CLOCK_MONOTONIC), boottime_us: micros(libc::CLOCK_BOOTTIME) };
    // The offsets that the kernel wants count from its own clocks; we may be in somebody's namespace already.
    let ours = fs::read_to_string(OFFSETS).unwrap_or_default();
    let line = |name: &str, saved: u64, now: u64| {
        let offset = offset(&ours, name) + (i128::from(saved) - i128::from(now)) * 1000;
        format!("{name} {} {}\n", offset.div_euclid(SECOND), offset.rem_euclid(SECOND))
    };
    let text =
        line("monotonic", saved.monotonic_us, now.monotonic_us) + &line("boottime", saved.boottime_us, now.boottime_us);
    // SAFETY: no memory involved. The caller stays in its namespace; only its children are in the new one.
    let made = sys::check(unsafe { libc::unshare(CLONE_NEWTIME) });
    made.and_then(|_| fs::write(OFFSETS, text)).err().and_then(|error| without(saved, now, &error))
}

/// `<sched.h>`.
const CLONE_NEWTIME: libc::c_int = 0x80;

fn without(saved: Clocks, now: Clocks, error: &io::Error) -> Option<String> {
    let behind = saved.monotonic_us.checked_sub(now.monotonic_us).filter(|behind| *behind > 1_000_000)?;
    Some(format!(
        "this machine was booted later than the one of the checkpoint, and no time namespace can be had ({error}): \
         CLOCK_MONOTONIC goes back by {} s, and programs that wait for a time of it wait so much longer",
        behind / 1_000_000
    ))
}

/// Nanoseconds in the line of `name`.
fn offset(text: &str, name: &str) -> i128 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let mut words = line.split_whitespace().map(|word| word.parse::<i128>().unwrap_or(0));
    words.next().unwrap_or(0) * SECOND + words.next().unwrap_or(0)
}

fn micros(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the answer.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_as_the_kernel_writes_them() {
        let text = "monotonic           -1    250000000\nboottime          3600         0\n";
        assert_eq!(offset(text, "monotonic"), -750_000_000);
        assert_eq!(offset(text, "boottime"), 3600 * SECOND);
        assert_eq!(offset("", "monotonic"), 0);
    }
}
