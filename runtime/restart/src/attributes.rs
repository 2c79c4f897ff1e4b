//! What belongs to a process and survives the change of its memory: folder, masks, limits, credentials, prctl settings.
#![allow(unsafe_code)] // prctl(2), prlimit(2), capset(2) and their like
use crate::{Options, sys};
use anyhow::{Context, Result, bail};
use slackwater_image::meta::Process;
use slackwater_objects::rebuild::in_removed_folder;
use std::{fs, io, path::Path};

/// Who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Real, effective, saved user.
    pub uids: [u32; 3],
    /// Real, effective, saved group.
    pub gids: [u32; 3],
}

/// This process's credentials.
pub fn credentials() -> Credentials {
    let (mut uids, mut gids) = ([0; 3], [0; 3]);
    let [u0, u1, u2] = &mut uids;
    let [g0, g1, g2] = &mut gids;
    // SAFETY: six words of ours.
    unsafe {
        libc::getresuid(u0, u1, u2);
        libc::getresgid(g0, g1, g2);
    }
    Credentials { uids, gids }
}

/// May we become what the image says? Looked at before anything is started.
pub fn check_credentials(p: &Process, ours: &Credentials) -> Result<()> {
    if ours.uids[1] == 0 || (p.uids.iter().all(|u| *u == ours.uids[1]) && p.gids.iter().all(|g| *g == ours.gids[1])) {
        return Ok(());
    }
    bail!(
        "process {} ({}) ran as user {:?}, group {:?}, and we are user {}, group {}: restart it as that user, or as root",
        p.pid,
        p.exe,
        p.uids,
        p.gids,
        ours.uids[1],
        ours.gids[1]
    )
}

/// Sets the folder, before paths are opened relative to it. One that had been removed is there for the moment.
pub fn enter_folder(p: &Process, options: &Options) -> Result<()> {
    let removed = p.cwd.strip_suffix(" (deleted)").filter(|_| !Path::new(&p.cwd).exists());
    let cwd = options.map(removed.unwrap_or(&p.cwd));
    let enter = || std::env::set_current_dir(&cwd);
    let entered = if removed.is_some() { in_removed_folder(&cwd, enter) } else { enter() };
    entered.with_context(|| {
        format!(
            "process {}: its current folder {} cannot be entered; make it, or name another with --map-path OLD=NEW",
            p.pid,
            cwd.display()
        )
    })
}

/// Sets all that nothing before the jump depends on. What could not be had, for people.
pub fn apply(p: &Process) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    // SAFETY: plain numbers.
    unsafe {
        libc::umask(p.umask);
        sys::check(libc::personality(p.personality.into())).context("personality")?;
    }
    for (resource, &(soft, hard)) in p.rlimits.iter().enumerate() {
        if let Some(note) = limit(resource as u32, soft, hard).with_context(|| format!("limit {resource}"))? {
            notes.push(format!("process {}: {note}", p.pid));
        }
    }
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, p.subreaper.into()).context("PR_SET_CHILD_SUBREAPER")?;
    sys::prctl(libc::PR_SET_THP_DISABLE, p.thp_disable.into()).context("PR_SET_THP_DISABLE")?;
    // As far as we may: a score below ours, and the real-time class, take privilege.
    let _ = fs::write("/proc/self/oom_score_adj", p.oom_score_adj.to_string());
    let _ = fs::write("/proc/self/coredump_filter", format!("{:#x}", p.coredump_filter));
    // SAFETY: plain numbers; IOPRIO_WHO_PROCESS (1), this thread.
    _ = unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, p.io_priority) };
    if p.no_new_privs {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).context("PR_SET_NO_NEW_PRIVS")?;
    }
    Ok(notes)
}

/// Becomes the image's user, with no more capabilities than the image and the restorer need. Then what a change of credentials
/// would reset.
pub fn become_user(p: &Process) -> Result<()> {
    let ours = credentials();
    let failed = || format!("process {} cannot become user {:?}, group {:?} again", p.pid, p.uids, p.gids);
    let changes = ours.uids != p.uids || ours.gids != p.gids;
    // SAFETY: plain numbers, and words of ours.
    unsafe {
        if groups() != p.groups {
            let set = sys::check(libc::setgroups(p.groups.len(), p.groups.as_ptr()));
            // In a user namespace nobody may.
            if changes {
                set.with_context(failed)?;
            }
        }
        // Takes privilege, as all that follows; who has none has nothing to drop.
        for capability in 0..64_u64 {
            if p.capabilities[BOUNDING] & 1 << capability == 0
                && libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) == 1
            {
                _ = libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
        }
        if changes {
            sys::check(libc::setresgid(p.gids[0], p.gids[1], p.gids[2])).with_context(failed)?;
            sys::prctl(libc::PR_SET_KEEPCAPS, 1).context("PR_SET_KEEPCAPS")?;
            sys::check(libc::setresuid(p.uids[0], p.uids[1], p.uids[2])).with_context(failed)?;
            sys::prctl(libc::PR_SET_KEEPCAPS, 0).context("PR_SET_KEEPCAPS")?;
        }
    }
    keep_capabilities(&p.capabilities).context("keeping the capability that thread ids need")?;
    sys::prctl(libc::PR_SET_PDEATHSIG, p.pdeathsig as u64).context("PR_SET_PDEATHSIG")?;
    // 2 (only root may read its core) cannot be set by hand; 0 is nearest.
    sys::prctl(libc::PR_SET_DUMPABLE, (p.dumpable == 1).into()).context("PR_SET_DUMPABLE")?;
    Ok(())
}

/// Supplementary groups of this process.
fn groups() -> Vec<u32> {
    // SAFETY: asks for the number, then for as many.
    unsafe {
        let mut groups = vec![0; libc::getgroups(0, std::ptr::null_mut()).max(0) as usize];
        let n = libc::getgroups(groups.len() as i32, groups.as_mut_ptr());
        groups.truncate(n.max(0) as usize);
        groups
    }
}

const PR_CAP_AMBIENT: i32 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;

// Indexes in `Process::capabilities`.
const INHERITABLE: usize = 0;
const PERMITTED: usize = 1;
const EFFECTIVE: usize = 2;
const BOUNDING: usize = 3;
const AMBIENT: usize = 4;

/// Leaves those of the image, and the one that the restorer needs for thread ids and /proc/self/exe: CAP_CHECKPOINT_RESTORE
/// (before Linux 5.9, CAP_SYS_ADMIN). In a user namespace of our own it permits nothing else; as root's gift it goes at the
/// next exec.
fn keep_capabilities(image: &[u64; 5]) -> io::Result<()> {
    let now = capabilities()?;
    let (_, need) = needed(&now);
    let half = |set: usize, n: usize| (image[set] >> (32 * n)) as u32;
    let permitted = |n: usize| (half(PERMITTED, n) | need[n]) & now[1 + 3 * n];
    let effective = |n: usize| (half(EFFECTIVE, n) | need[n]) & permitted(n);
    let inheritable = |n: usize| half(INHERITABLE, n) & now[1 + 3 * n];
    let wanted = [effective(0), permitted(0), inheritable(0), effective(1), permitted(1), inheritable(1)];
    if wanted != now {
        set_capabilities(wanted)?;
    }
    for capability in (0..64_u64).filter(|c| image[AMBIENT] & 1 << c != 0) {
        // SAFETY: plain numbers. Only what is permitted and inheritable can be.
        _ = unsafe { libc::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) };
    }
    Ok(())
}

/// Lets what `f` executes have that capability too: the coordinator of an ordinary user may compare descriptors (kcmp(2)) only
/// of processes that have no more capabilities than itself.
pub fn lending_capability<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: no arguments.
    let ordinary = unsafe { libc::geteuid() } != 0;
    let before = capabilities().ok().filter(|_| ordinary);
    if let Some(now) = before {
        let (number, keep) = needed(&now);
        let mut with = now;
        (with[2], with[5]) = (with[2] | keep[0], with[5] | keep[1]);
        // Without it the coordinator says what it cannot compare.
        if set_capabilities(with).is_ok() {
            // SAFETY: plain numbers.
            _ = unsafe { libc::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0) };
        }
    }
    let result = f();
    if let Some(now) = before {
        // What is inheritable no more is ambient no more.
        _ = set_capabilities(now);
    }
    result
}

/// The version of capget(2) that Linux has had since 2.6.26.
const VERSION_3: u32 = 0x2008_0522;

/// Effective, permitted, inheritable capabilities 0 to 31; then 32 to 63.
type Capabilities = [u32; 6];

/// The one that is needed: its number, and its bits.
fn needed(now: &Capabilities) -> (u64, [u32; 2]) {
    const SYS_ADMIN: u32 = 21;
    const CHECKPOINT_RESTORE: u32 = 40;
    let bit = 1 << (CHECKPOINT_RESTORE - 32);
    if now[4] & bit != 0 {
        (CHECKPOINT_RESTORE.into(), [0, bit])
    } else {
        (SYS_ADMIN.into(), [now[1] & 1 << SYS_ADMIN, 0])
    }
}

fn capabilities() -> io::Result<Capabilities> {
    let (mut header, mut data) = ([VERSION_3, 0], [0u32; 6]);
    // SAFETY: the kernel's own layout (capget(2)): version and pid; three words, twice.
    unsafe { sys::check(libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr())) }?;
    Ok(data)
}

fn set_capabilities(data: Capabilities) -> io::Result<()> {
    let mut header = [VERSION_3, 0];
    // SAFETY: as above.
    unsafe { sys::check(libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr())) }.map(drop)
}

/// Sets one limit; a hard limit above ours cannot be had without privilege.
fn limit(resource: u32, soft: u64, hard: u64) -> io::Result<Option<String>> {
    let wanted = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both structs are ours.
    unsafe {
        sys::check(libc::getrlimit(resource as _, &raw mut now))?;
        if (now.rlim_cur, now.rlim_max) == (soft, hard) || libc::setrlimit(resource as _, &raw const wanted) == 0 {
            return Ok(None);
        }
        let have = now.rlim_max;
        let lower = libc::rlimit { rlim_cur: soft.min(have), rlim_max: hard.min(have) };
        sys::check(libc::setrlimit(resource as _, &raw const lower))?;
        Ok((soft > have).then(|| {
            let name = NAMES.get(resource as usize).copied().unwrap_or("?");
            format!("its {name} limit was {soft}, and no more than {have} is permitted here (ulimit -H)")
        }))
    }
}

/// getrlimit(2), by number.
const NAMES: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];
