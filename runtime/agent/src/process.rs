//! What the kernel keeps for the process as a whole: asked for while its threads stand, given back after a restart.
//!
//! Given back here are only the things which a restored process must do itself (timers, pending signals); the rest is set by
//! `slackwater restart` before the memory comes back.
use crate::{
    arch, sys,
    text::{self, dec, signed, value},
    timers::{self, Timers},
};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use slackwater_image::meta::{MmMap, Process, Range, SigAction, Zombie};

fn prctl_get(option: i32) -> i32 {
    // SAFETY: options used here take no pointer.
    unsafe { sc!(prctl, option, 0, 0, 0, 0) }.unwrap_or(0) as i32
}

/// PR_GET_DUMPABLE of the program, while [`Readable`] lives.
static DUMPABLE: AtomicU32 = AtomicU32::new(1);

/// While this lives the process may read its own memory in /proc: one that is not dumpable, and not privileged, may not.
pub struct Readable(());

impl Readable {
    /// With all threads parked.
    pub fn new() -> Self {
        DUMPABLE.store(prctl_get(libc::PR_GET_DUMPABLE) as u32, Relaxed);
        Self::set(1);
        Self(())
    }

    fn set(value: u32) {
        if DUMPABLE.load(Relaxed) != 1 {
            // SAFETY: no pointer.
            _ = unsafe { sc!(prctl, libc::PR_SET_DUMPABLE, value, 0, 0, 0) };
        }
    }
}

impl Drop for Readable {
    fn drop(&mut self) {
        // 2 ("only by root") is the kernel's to set; 0 is as strict.
        Self::set(DUMPABLE.load(Relaxed) & 1);
    }
}

/// /proc/self/stat from field 3 on (field n is at n - 3).
fn stat_fields() -> Result<Vec<i64>, String> {
    let text = sys::read_file(c"/proc/self/stat").map_err(|e| format!("/proc/self/stat: {e}"))?;
    let close = text.iter().rposition(|&c| c == b')').ok_or("/proc/self/stat has no name")?;
    Ok(text[close + 2..].split(|&c| c == b' ' || c == b'\n').map(signed).collect())
}

fn id_line(status: &[u8], key: &str) -> [u32; 3] {
    let mut out = [0; 3];
    if let Some(v) = value(status, key) {
        for (o, x) in out.iter_mut().zip(v.split(|&c| c == b'\t')) {
            *o = dec(x) as u32;
        }
    }
    out
}

fn utsname() -> (String, String) {
    // SAFETY: all zeros is a utsname; the kernel fills it with C strings.
    unsafe {
        let mut u: libc::utsname = core::mem::zeroed();
        _ = sc!(uname, &raw mut u);
        let text = |f: &[core::ffi::c_char]| {
            f.iter().take_while(|&&c| c != 0).map(|&c| char::from(c as u8)).collect::<String>()
        };
        (text(&u.release), text(&u.nodename))
    }
}

/// Everything but memory, threads and descriptors.
///
/// # Errors
/// /proc is not there.
pub fn capture(
    zombies: Vec<Zombie>,
    vdso: Range,
    vvar: Range,
    restart_info: u64,
    protected: &[i32],
    timers: &Timers,
) -> Result<Process, String> {
    let f = stat_fields()?;
    let field = |n: usize| f.get(n - 3).copied().unwrap_or(0);
    let status = sys::read_file(c"/proc/self/status").map_err(|e| format!("/proc/self/status: {e}"))?;
    let file = |p: &core::ffi::CStr| sys::read_file(p).unwrap_or_default();
    let mut rlimits = Vec::new();
    for resource in 0..16 {
        let mut l = [0u64; 2];
        // SAFETY: l is a struct rlimit64.
        _ = unsafe { sc!(prlimit64, 0, resource, 0, l.as_mut_ptr()) };
        rlimits.push((l[0], l[1]));
    }
    let mut sigactions = Vec::new();
    for signal in 1..=64 {
        let mut a = [0u64; 4];
        // SAFETY: a is the kernel's struct sigaction.
        _ = unsafe { sc!(rt_sigaction, signal, 0, a.as_mut_ptr(), 8) };
        sigactions.push(SigAction { handler: a[0], flags: a[1], restorer: a[2], mask: a[3] });
    }
    let (mut pdeathsig, mut subreaper) = (0i32, 0i32);
    // SAFETY: both write an int; brk and personality take no pointer.
    let (brk, personality) = unsafe {
        _ = sc!(prctl, libc::PR_GET_PDEATHSIG, &raw mut pdeathsig, 0, 0, 0);
        _ = sc!(prctl, libc::PR_GET_CHILD_SUBREAPER, &raw mut subreaper, 0, 0, 0);
        (sc!(brk, 0).unwrap_or(0) as u64, sc!(personality, 0xffff_ffffu32).unwrap_or(0) as u32)
    };
    let vdso_content = if vdso.end > vdso.start {
        // SAFETY: the kernel maps the vdso readable.
        unsafe { core::slice::from_raw_parts(vdso.start as *const u8, (vdso.end - vdso.start) as usize) }.to_vec()
    } else {
        Vec::new()
    };
    let (kernel, hostname) = utsname();
    Ok(Process {
        pid: sys::getpid(),
        ppid: field(4) as i32,
        pgid: field(5) as i32,
        sid: field(6) as i32,
        tty: field(7) as i32,
        tpgid: field(8) as i32,
        exit_signal: field(38) as i32,
        exe: sys::read_link(c"/proc/self/exe").unwrap_or_default(),
        cmdline: file(c"/proc/self/cmdline")
            .split(|&c| c == 0)
            .map(|a| String::from_utf8_lossy(a).into_owned())
            .collect(),
        cwd: sys::read_link(c"/proc/self/cwd").unwrap_or_default(),
        umask: value(&status, "Umask").map_or(0o022, |v| v.iter().fold(0, |a, c| a << 3 | u32::from(c - b'0'))),
        personality,
        rlimits,
        dumpable: DUMPABLE.load(Relaxed),
        pdeathsig,
        subreaper: subreaper != 0,
        // A thread's own, which the checkpoint thread has as of the process's first moment.
        no_new_privs: value(&status, "NoNewPrivs") == Some(b"1"),
        thp_disable: prctl_get(libc::PR_GET_THP_DISABLE) == 1,
        uids: id_line(&status, "Uid"),
        gids: id_line(&status, "Gid"),
        groups: value(&status, "Groups").map_or_else(Vec::new, |v| {
            v.split(|&c| c == b' ').filter(|g| !g.is_empty()).map(|g| dec(g) as u32).collect()
        }),
        capabilities: ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
            .map(|key| value(&status, key).map_or(0, text::hex)),
        oom_score_adj: signed(file(c"/proc/self/oom_score_adj").trim_ascii()) as i32,
        coredump_filter: text::hex(file(c"/proc/self/coredump_filter").trim_ascii()) as u32,
        // SAFETY: IOPRIO_WHO_PROCESS (1); no pointer.
        io_priority: unsafe { sc!(ioprio_get, 1, sys::getpid()) }.unwrap_or(0) as u32,
        mm: MmMap {
            start_code: field(26) as u64,
            end_code: field(27) as u64,
            start_data: field(45) as u64,
            end_data: field(46) as u64,
            start_brk: field(47) as u64,
            brk,
            start_stack: field(28) as u64,
            arg_start: field(48) as u64,
            arg_end: field(49) as u64,
            env_start: field(50) as u64,
            env_end: field(51) as u64,
        },
        auxv: file(c"/proc/self/auxv"),
        vdso,
        vvar,
        vdso_content,
        sigactions,
        pending: crate::pending::of(crate::pending::PROCESS),
        itimers: timers.intervals,
        timers: timers.posix.clone(),
        zombies,
        restart_info,
        protected_fds: protected.to_vec(),
        cpu_features: arch::cpu_features(),
        kernel: kernel.to_string(),
        hostname: hostname.to_string(),
    })
}

/// In a restored process: what the kernel keeps and only the process can set up again.
pub fn restore(p: &Process) {
    for t in &p.timers {
        timers::make(t);
    }
    timers::arm(&p.itimers);
    // The threads have put the others back themselves.
    crate::pending::put_back_if_leaderless();
}
