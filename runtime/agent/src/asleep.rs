//! What a thread sleeps in just before it is stopped: which system call, and since when.
//!
//! The kernel tells neither in the frame of a signal that interrupts the call. /proc does, as long as the thread sleeps:
//! `syscall` names the call, and `sched` says when the scheduler last took the thread from its CPU, in that CPU's own time.
//! The checkpoint thread looks, and sends what it saw along with the stop signal, in the part of siginfo that is not in use
//! for SI_QUEUE; the thread believes it only where the interrupted registers agree, and it has not slept anew. How long ago
//! it fell asleep only somebody on that CPU can tell: the checkpoint thread, or itself where it wakes. That time leaves out
//! interrupts, so a wait may be taken for shorter than it was, never longer.
//!
//! Rules: what runs in the handler allocates nothing. Where /proc says nothing (no `sched` in this kernel, a process that
//! may not read its own files) all works but for the time before a wait was first interrupted, which is given once more.
use crate::{arch, sys};
use core::{ffi::CStr, fmt::Write as _};

/// As it lies in the siginfo.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Asleep {
    /// Number of the system call; [`Asleep::UNKNOWN`]: not known.
    number: u16,
    /// CPU on which the thread fell asleep; [`Asleep::ANY`]: `since` is for how long it has slept.
    cpu: u16,
    /// Of program counter, stack pointer and first argument.
    check: u32,
    /// When, in nanoseconds of that CPU's time, the low 48 bits; 0: not known.
    since: [u16; 3],
    /// How often it had been switched out by then, the low 16 bits.
    switches: u16,
}

/// A path, or the beginning of a file, without allocation.
struct Text {
    bytes: [u8; 512],
    len: usize,
}

impl core::fmt::Write for Text {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let end = self.len + s.len();
        // One byte stays for the end of a C string.
        self.bytes.get_mut(self.len..end).filter(|_| end < 512).ok_or(core::fmt::Error)?.copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}

impl Text {
    /// The beginning of a file of /proc.
    fn of(path: core::fmt::Arguments<'_>) -> Option<Self> {
        let mut text = Self { bytes: [0; 512], len: 0 };
        text.write_fmt(path).ok()?;
        let fd = sys::open(CStr::from_bytes_until_nul(&text.bytes).ok()?, libc::O_RDONLY, 0).ok()?;
        // SAFETY: writable for its length.
        text.len = unsafe { sc!(read, fd.0, text.bytes.as_mut_ptr(), text.bytes.len()) }.ok()?;
        Some(text)
    }

    fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

/// When the scheduler last put the thread on its CPU or took it from there, and how often it has done the latter.
///
/// "se.exec_start  :  1234.567890" in milliseconds, and "nr_switches  :  12".
fn schedule(task: core::fmt::Arguments<'_>) -> Option<(u64, u16)> {
    let text = Text::of(format_args!("/proc/{task}/sched"))?;
    let value = |name: &str| {
        let line = text.as_str().lines().find_map(|l| l.strip_prefix(name))?;
        Some(line.trim_start_matches([' ', ':']).trim_end())
    };
    let (whole, part) = value("se.exec_start")?.split_once('.')?;
    let at = whole.parse::<u64>().ok()? * 1_000_000 + part.get(..6)?.parse::<u64>().ok()?;
    Some((at, value("nr_switches")?.parse::<u64>().ok()? as u16))
}

/// Field 39 of /proc/PID/stat, counted from field 3, which follows the name in parentheses (that may hold anything).
fn last_cpu(tid: i32) -> Option<u16> {
    let mut text = Text { bytes: [0; 512], len: 0 };
    write!(text, "/proc/self/task/{tid}/stat").ok()?;
    let fd = sys::open(CStr::from_bytes_until_nul(&text.bytes).ok()?, libc::O_RDONLY, 0).ok()?;
    let mut line = [0u8; 1024];
    // SAFETY: writable for its length.
    let n = unsafe { sc!(read, fd.0, line.as_mut_ptr(), line.len()) }.ok()?;
    let close = line[..n].iter().rposition(|&c| c == b')')?;
    let cpu = core::str::from_utf8(&line[close + 2..n]).ok()?.split(' ').nth(36)?;
    cpu.parse().ok()
}

/// The checkpoint thread, on another CPU for a moment.
struct Visit {
    mask: [u8; 1024],
    len: usize,
}

impl Visit {
    fn to(cpu: u16) -> Option<Self> {
        if current_cpu() == Some(cpu) {
            return None;
        }
        let mut home = Self { mask: [0; 1024], len: 0 };
        // SAFETY: masks of the lengths given.
        unsafe {
            home.len = sc!(sched_getaffinity, 0, home.mask.len(), home.mask.as_mut_ptr()).ok()?;
            let mut there = [0u8; 1024];
            *there.get_mut(usize::from(cpu / 8))? = 1 << (cpu % 8);
            sc!(sched_setaffinity, 0, home.len, there.as_ptr()).ok()?;
        }
        Some(home)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // SAFETY: a mask of this length.
        _ = unsafe { sc!(sched_setaffinity, 0, self.len, self.mask.as_ptr()) };
    }
}

pub(crate) fn current_cpu() -> Option<u16> {
    let mut cpu = 0u32;
    // SAFETY: cpu is an unsigned int.
    unsafe { sc!(getcpu, &raw mut cpu, 0, 0) }.ok()?;
    u16::try_from(cpu).ok()
}

impl Asleep {
    const NOWHERE: u16 = u16::MAX;
    const ANY: u16 = u16::MAX;
    /// How many threads may be asked about, the first of which the checkpoint thread visits on their CPUs.
    pub const TIMES: u32 = 64;
    const VISITS: u32 = Self::TIMES - 8;
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { number: Self::NOWHERE, cpu: 0, check: 0, since: [0; 3], switches: 0 };
    /// Offset in siginfo_t: behind the fields of SI_QUEUE. The kernel carries 48 bytes of a siginfo (struct kernel_siginfo).
    const PLACE: usize = 32;

    fn check(pc: u64, sp: u64, first: u64) -> u32 {
        let mixed = pc ^ sp.rotate_left(11) ^ first.rotate_left(23);
        (mixed ^ mixed >> 32) as u32
    }

    /// What thread `tid` of this process sleeps in. `times`: how many more threads may be asked since when, which takes long.
    pub fn of(tid: i32, times: &mut u32) -> Self {
        let see = || {
            let text = Text::of(format_args!("/proc/self/task/{tid}/syscall"))?;
            // "7 0x55d69a2f78d0 0x0 0x1388 0x0 0x0 0x0 0x7f57b3bf8a30 0x7f57b431a26f"; "running"; "-1 SP PC".
            let mut words = text.as_str().split_whitespace();
            let number = words.next()?.parse::<u16>().ok()?;
            let mut values = [0u64; 8];
            for value in &mut values {
                *value = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
            }
            let [arguments @ .., sp, pc] = values;
            Some((number, arguments, Self::check(pc, sp, arguments[0])))
        };
        let Some((number, arguments, check)) = see() else { return Self::UNKNOWN };
        let mut asleep = Self { number, check, ..Self::UNKNOWN };
        if *times > 0 && arch::has_timeout(number.into(), &arguments) {
            *times -= 1;
            if let (Some(cpu), Some((at, switches))) = (last_cpu(tid), schedule(format_args!("self/task/{tid}"))) {
                (asleep.cpu, asleep.switches) = (cpu, switches);
                let mut since = at;
                let home = (*times >= Self::VISITS).then(|| Visit::to(cpu)).flatten();
                if current_cpu() == Some(cpu)
                    && let Some((now, _)) = schedule(format_args!("thread-self"))
                    && current_cpu() == Some(cpu)
                {
                    since = now.saturating_sub(at).max(1);
                    asleep.cpu = Self::ANY;
                }
                drop(home);
                asleep.since = [since as u16, (since >> 16) as u16, (since >> 32) as u16];
            }
        }
        asleep
    }

    /// Puts it into a siginfo.
    ///
    /// # Safety
    /// `info` is a whole siginfo_t.
    pub unsafe fn put(self, info: *mut u8) {
        // SAFETY: the caller's; 16 bytes of 128.
        unsafe { info.add(Self::PLACE).cast::<Self>().write_unaligned(self) }
    }

    /// In the handler: takes it out of a siginfo.
    ///
    /// # Safety
    /// `info` is a whole siginfo_t, of a signal that we have sent.
    pub unsafe fn take(info: *const u8) -> Self {
        // SAFETY: the caller's.
        unsafe { info.add(Self::PLACE).cast::<Self>().read_unaligned() }
    }

    /// The number of the call that was interrupted with these registers.
    pub fn number(&self, pc: u64, sp: u64, first: u64) -> Option<u32> {
        (self.number != Self::NOWHERE && self.check == Self::check(pc, sp, first)).then_some(self.number.into())
    }

    /// In the handler: for how many nanoseconds the calling thread has slept; 0: not known.
    pub fn slept(&self) -> u64 {
        let here = || self.cpu == Self::ANY || current_cpu() == Some(self.cpu);
        if self.since == [0; 3] || !here() {
            return 0;
        }
        let [low, middle, high] = self.since.map(u64::from);
        let since = low | middle << 16 | high << 32;
        let now = schedule(format_args!("thread-self"));
        // It must not have slept anew since the checkpoint thread looked, and not have moved: each CPU has its own time.
        match now {
            Some((now, switches)) if switches == self.switches && here() => {
                if self.cpu == Self::ANY {
                    since
                } else {
                    now.wrapping_sub(since) & 0xffff_ffff_ffff
                }
            }
            _ => 0,
        }
    }
}
