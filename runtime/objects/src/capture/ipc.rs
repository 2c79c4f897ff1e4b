//! Capture of System V IPC objects.
//!
//! The kernel does not say whose an object is. Ours are those that this process has attached, has made or has used last;
//! and those whose known users have all ended, if they belong to this user and came into being after this process. What a
//! living process outside of the computation was the last to use is left alone. In the IPC namespace of a restart everything
//! belongs to the computation. An object too many does no harm: it is a copy in a namespace of its own.
//!
//! Rules: as in [`super`]: a message is looked at (MSG_COPY, Linux 3.8), not received; a segment is attached for reading
//! and detached again, which leaves traces in its times and its last process alone.
#![allow(unsafe_code)] // Reason: system calls that no safe wrapper covers.
use super::{CaptureError, Result, Undo, fdinfo::words, file::NAMELESS_LIMIT, undo};
use crate::ipc::{Class, Head, Ipc, Queue, Segment, Set};
use crate::model::Contents;
use alloc::{format, vec, vec::Vec};
use slackwater_socket::sys::{self, Errno};

const PAGE: usize = 4096;
const IPC_STAT: usize = 2;
const GETPID: usize = 11;
const GETALL: usize = 13;
const SHM_RDONLY: usize = 0o10000;
const IPC_NOWAIT: usize = 0o4000;
const MSG_COPY: usize = 0o40000;

/// A part of a segment that this process maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Segment.
    pub id: i32,
    /// First byte in the segment.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Through which the program may write now: only such pages are in the image for certain.
    pub write: bool,
}

/// Numbers of a line of /proc/sysvipc/*; the third, permissions, is octal.
fn table(path: &[u8]) -> Vec<Vec<i64>> {
    // Without CONFIG_SYSVIPC there is no such file, and no object.
    let text = sys::read_file(path).unwrap_or_default();
    let number = |(i, word): (usize, &[u8])| match core::str::from_utf8(word) {
        Ok(w) if i == 2 => i64::from_str_radix(w, 8).unwrap_or(0),
        Ok(w) => w.parse().unwrap_or(0),
        Err(_) => 0,
    };
    text.split(|&b| b == b'\n').skip(1).map(|line| words(line).enumerate().map(number).collect()).collect()
}

/// What anybody may know of an object.
struct Row {
    head: Head,
    creator: i64,
    /// Processes that made it or used it last; of semaphores, each has its own.
    pids: [i64; 2],
    /// Seconds since the epoch: when it was made or changed, and used.
    made: i64,
    used: i64,
    /// Bytes, or semaphores.
    size: u64,
}

impl Row {
    fn new(id: usize, p: &libc::ipc_perm, size: u64) -> Self {
        let head = Head { id: id as i32, key: p.__key, mode: u32::from(p.mode), uid: p.uid, gid: p.gid };
        Self { head, creator: i64::from(p.cuid), pids: [0; 2], made: 0, used: 0, size }
    }
}

/// Objects of a kind: each is asked for by its place in the kernel's list, for on a machine with thousands of strangers' objects
/// the text in /proc/sysvipc costs ten times as much. Before Linux 4.17, whoever has no right to one does not see it.
fn list<T>(call: libc::c_long, info: usize, any: usize, stat: usize, row: impl Fn(usize, &T) -> Row) -> Vec<Row> {
    // SAFETY: the kernel's structs of numbers, all zeros.
    let (mut numbers, mut object): ([u64; 16], T) = unsafe { core::mem::zeroed() };
    // semctl(2) has the number of a semaphore before the command.
    let ask = |at: usize, command: usize, out: usize| {
        let args = if call == libc::SYS_semctl { [at, 0, command, out, 0, 0] } else { [at, command, out, 0, 0, 0] };
        // SAFETY: `out` has room for what the command fills in.
        unsafe { sys::call(call, args) }
    };
    // The highest place; also where there is none.
    let Ok(highest) = ask(0, info, &raw mut numbers as usize) else { return Vec::new() };
    let mut out = Vec::new();
    for at in 0..=highest {
        let mut found = ask(at, any, &raw mut object as usize);
        if found.is_err() {
            found = ask(at, stat, &raw mut object as usize);
        }
        out.extend(found.ok().map(|id| row(id, &object)));
    }
    out
}

fn segments() -> Vec<Row> {
    // SHM_INFO, SHM_STAT_ANY, SHM_STAT of <linux/shm.h>.
    list(libc::SYS_shmctl, 14, 15, 13, |id, s: &libc::shmid_ds| Row {
        pids: [s.shm_cpid.into(), s.shm_lpid.into()],
        made: s.shm_ctime,
        ..Row::new(id, &s.shm_perm, s.shm_segsz as u64)
    })
}

fn sets() -> Vec<Row> {
    // SEM_INFO, SEM_STAT_ANY, SEM_STAT.
    list(libc::SYS_semctl, 19, 20, 18, |id, s: &libc::semid_ds| Row {
        made: s.sem_ctime,
        used: s.sem_otime,
        ..Row::new(id, &s.sem_perm, s.sem_nsems)
    })
}

fn queues() -> Vec<Row> {
    // MSG_INFO, MSG_STAT_ANY, MSG_STAT.
    list(libc::SYS_msgctl, 12, 13, 11, |id, q: &libc::msqid_ds| Row {
        pids: [q.msg_lspid.into(), q.msg_lrpid.into()],
        made: q.msg_ctime,
        ..Row::new(id, &q.msg_perm, 0)
    })
}

/// Decides whose an object is.
struct Whose {
    me: i32,
    user: i64,
    all: bool,
    /// Seconds since the epoch.
    since: i64,
}

impl Whose {
    fn find() -> Result<Self> {
        let plain = |nr| {
            // SAFETY: no arguments.
            unsafe { sys::call(nr, [0; 6]) }.unwrap_or(0)
        };
        let clock = |c| sys::clock(c).map_err(|e| CaptureError::call(-1, "clock_gettime", e));
        let stat =
            sys::read_file(b"/proc/self/stat").map_err(|e| CaptureError::call(-1, "reading /proc/self/stat", e))?;
        let fields = stat.iter().rposition(|&b| b == b')').map_or(&[][..], |at| &stat[at + 1..]);
        // Field 22: start after boot, in hundredths of a second (proc(5)).
        let started = words(fields).nth(19).and_then(sys::decimal).unwrap_or(0) as i64;
        let boot = clock(libc::CLOCK_REALTIME)? - clock(libc::CLOCK_BOOTTIME)?;
        // Process 1 of a restart's namespaces is the restart command.
        let first = sys::read_file(b"/proc/1/comm").unwrap_or_default();
        Ok(Self {
            me: sys::getpid(),
            user: plain(libc::SYS_geteuid) as i64,
            all: first.starts_with(b"slackwater"),
            since: (boot + started * 10_000_000) / 1_000_000_000 - 1,
        })
    }

    fn is_ours(&self, pids: &[i64], creator: i64, made: i64) -> bool {
        let lives = |pid: i64| {
            // SAFETY: signal 0 is no signal.
            pid > 0 && unsafe { sys::call(libc::SYS_kill, [pid as usize, 0, 0, 0, 0, 0]) } != Err(Errno(libc::ESRCH))
        };
        self.all
            || pids.contains(&i64::from(self.me))
            || (creator == self.user && made >= self.since && !pids.iter().any(|&pid| lives(pid)))
    }
}

/// Objects of this process, without what is in them: what it would save if nobody else does.
///
/// # Errors
/// The kernel does not answer.
pub fn survey_ipc(mapped: &[Mapped]) -> Result<Ipc> {
    let (shm, sem, msg) = (segments(), sets(), queues());
    let mut ipc = Ipc::default();
    if shm.is_empty() && sem.is_empty() && msg.is_empty() {
        return Ok(ipc);
    }
    let whose = Whose::find()?;
    for row in shm {
        let attached = mapped.iter().any(|m| m.id == row.head.id);
        if attached || whose.is_ours(&row.pids, row.creator, row.made) {
            ipc.segments.push(Segment { head: row.head, size: row.size, contents: None });
        }
    }
    for row in sem {
        let set = Set { head: row.head, values: vec![0; row.size as usize] };
        let asked = if whose.all { 0 } else { set.values.len() };
        let pids: Vec<i64> = (0..asked).map(|n| semctl(&set, n, GETPID, 0).unwrap_or(0) as i64).collect();
        if whose.is_ours(&pids, row.creator, row.made) {
            ipc.sets.push(set);
        }
    }
    for row in msg {
        if whose.is_ours(&row.pids, row.creator, row.made) {
            ipc.queues.push(Queue { head: row.head, ..Queue::default() });
        }
    }
    Ok(ipc)
}

/// Takes values, messages, and those bytes of segments that are not among this process's pages. All processes of the
/// computation must stand. `ipc` is what [`survey_ipc`] found; what has gone since then is left out, what has come is added,
/// and what another process saves (`elsewhere`) is dropped. Tells what SEM_UNDO has in store for the end of this process.
///
/// # Errors
/// An object that cannot be read, or is too large.
pub fn fill_ipc(ipc: &mut Ipc, mapped: &[Mapped], elsewhere: impl Fn(Class, i32) -> bool) -> Result<Vec<Undo>> {
    let now = survey_ipc(mapped)?;
    let mut out = Ipc::default();
    let known = |id| ipc.segments.iter().chain(&now.segments).any(|s| s.head.id == id);
    let shm = if ipc.segments.is_empty() && now.segments.is_empty() { Vec::new() } else { segments() };
    for row in shm {
        let mut s = Segment { head: row.head, size: row.size, contents: None };
        let id = s.head.id;
        if !known(id) || elsewhere(Class::Memory, id) {
            continue;
        }
        if !all_mapped(&s, mapped) {
            s.contents = match segment(&s)? {
                None if mapped.iter().all(|m| m.id != id) => continue,
                None => {
                    return Err(CaptureError::call(
                        -1,
                        &format!("attaching shared memory segment {id}"),
                        Errno(libc::EACCES),
                    ));
                }
                contents => contents,
            };
        }
        out.segments.push(s);
    }
    for list in [&ipc.sets, &now.sets] {
        for set in list {
            let id = set.head.id;
            if elsewhere(Class::Semaphores, id) || out.sets.iter().any(|s| s.head.id == id) {
                continue;
            }
            let mut set = set.clone();
            match semctl_all(&mut set) {
                Ok(()) => out.sets.push(set),
                Err(e) if gone(e) => {}
                Err(e) => return Err(CaptureError::call(-1, &format!("reading semaphore set {id} (semctl)"), e)),
            }
        }
    }
    for list in [&ipc.queues, &now.queues] {
        for queue in list {
            let id = queue.head.id;
            if elsewhere(Class::Messages, id) || out.queues.iter().any(|q| q.head.id == id) {
                continue;
            }
            let mut queue = queue.clone();
            match messages(&mut queue) {
                Ok(()) => out.queues.push(queue),
                Err(e) if gone(e) => {}
                Err(e) => {
                    return Err(CaptureError::new(
                        -1,
                        format!(
                            "looking at the messages in queue {id} failed with {e}; it takes read permission, and a kernel with CONFIG_CHECKPOINT_RESTORE"
                        ),
                    ));
                }
            }
        }
    }
    let undos = undos(&mut out.sets, |id| elsewhere(Class::Semaphores, id))?;
    *ipc = out;
    Ok(undos)
}

/// This process's adjustments in all sets. One that nobody has named before is ours by that.
fn undos(sets: &mut Vec<Set>, elsewhere: impl Fn(i32) -> bool) -> Result<Vec<Undo>> {
    let mut out = Vec::new();
    let rows = self::sets();
    if rows.is_empty() {
        return Ok(out);
    }
    let whose = Whose::find()?;
    // Before this process began it was not this process that used it last.
    for row in rows.iter().filter(|r| r.used != 0 && (whose.all || r.used >= whose.since)) {
        let mut set = Set { head: row.head, values: vec![0; row.size as usize] };
        let id = set.head.id;
        match semctl_all(&mut set).and_then(|()| undo::find(id, &set.values)) {
            Ok(found) => {
                if !found.is_empty() && !elsewhere(id) && sets.iter().all(|s| s.head.id != id) {
                    sets.push(set);
                }
                out.extend(found);
            }
            Err(e) if gone(e) => {}
            Err(e) => return Err(CaptureError::call(-1, &format!("asking for SEM_UNDO's adjustments in set {id}"), e)),
        }
    }
    Ok(out)
}

/// Removed meanwhile, or (a stranger's, taken by mistake) not for us to read.
fn gone(e: Errno) -> bool {
    matches!(e.0, libc::EINVAL | libc::EIDRM | libc::EACCES)
}

fn semctl(set: &Set, n: usize, command: usize, arg: usize) -> sys::Result<usize> {
    // SAFETY: GETPID takes no pointer; GETALL's is an array with a place for each semaphore.
    unsafe { sys::call(libc::SYS_semctl, [set.head.id as usize, n, command, arg, 0, 0]) }
}

fn semctl_all(set: &mut Set) -> sys::Result<()> {
    // The set may be another one by now, and larger: no set has more than SEMMSL's limit of 32,000.
    let mut values = vec![0u16; 0x10000];
    semctl(set, 0, GETALL, values.as_mut_ptr() as usize)?;
    values.truncate(set.values.len());
    set.values = values;
    Ok(())
}

fn messages(queue: &mut Queue) -> sys::Result<()> {
    let id = queue.head.id as usize;
    // SAFETY: all zeros is a msqid_ds, as the kernel lays it out on 64-bit machines.
    let mut stat: libc::msqid_ds = unsafe { core::mem::zeroed() };
    // SAFETY: writable for its size.
    unsafe { sys::call(libc::SYS_msgctl, [id, IPC_STAT, &raw mut stat as usize, 0, 0, 0]) }?;
    queue.limit = stat.msg_qbytes;
    // No message is longer than all together; what the kernel would refuse as longer than msgmax is cut there.
    let longest = stat.__msg_cbytes as usize;
    let mut buffer = vec![0u64; 1 + longest.div_ceil(8)];
    for n in 0.. {
        let args = [id, buffer.as_mut_ptr() as usize, longest, n, MSG_COPY | IPC_NOWAIT, 0];
        // SAFETY: struct msgbuf: a long, then room for `longest` bytes.
        match unsafe { sys::call(libc::SYS_msgrcv, args) } {
            Ok(length) => {
                let bytes = buffer[1..].iter().flat_map(|w| w.to_ne_bytes()).take(length).collect();
                queue.messages.push((buffer[0] as i64, bytes));
            }
            Err(Errno(libc::ENOMSG)) => break,
            // EINVAL here is not "no such queue".
            Err(Errno(libc::EINVAL)) => return Err(Errno(libc::ENOSYS)),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Does this process's own memory, as the image takes it, have all of the segment?
fn all_mapped(s: &Segment, mapped: &[Mapped]) -> bool {
    let mut parts: Vec<&Mapped> = mapped.iter().filter(|m| m.id == s.head.id && m.write).collect();
    parts.sort_by_key(|m| m.start);
    parts.iter().fold(0, |end, m| if m.start <= end { m.end.max(end) } else { end }) >= s.size
}

/// The bytes of a segment, without pages that were never touched. None: it is [`gone`].
fn segment(s: &Segment) -> Result<Option<Contents>> {
    let id = s.head.id;
    // proc_sysvipc(5): rss, swap.
    let rows = table(b"/proc/sysvipc/shm");
    let row = rows.iter().find(|r| r.len() >= 16 && r[1] == i64::from(id));
    let (resident, swapped) = row.map_or((usize::MAX, true), |r| (r[14] as usize, r[15] > 0));
    let fail = |what: &str, e| CaptureError::call(-1, &format!("{what} shared memory segment {id}"), e);
    let length = (s.size as usize).next_multiple_of(PAGE);
    // SAFETY: at a place that the kernel chooses, for reading.
    let at = match unsafe { sys::call(libc::SYS_shmat, [id as usize, 0, SHM_RDONLY, 0, 0, 0]) } {
        Ok(at) => at,
        Err(e) if gone(e) => return Ok(None),
        Err(e) => return Err(fail("attaching", e)),
    };
    let mut bits = vec![0u8; length / PAGE];
    // SAFETY: a byte for each page.
    let told = unsafe { sys::call(libc::SYS_mincore, [at, length, bits.as_mut_ptr() as usize, 0, 0, 0]) }.is_ok();
    // Of huge pages mincore(2) tells only those that the caller itself has touched (mm/mincore.c).
    let known = told && bits.iter().filter(|b| *b & 1 != 0).count() * PAGE >= resident;
    let (mut out, mut total) = (Contents::default(), 0);
    let mut page = 0;
    while page < bits.len() && total <= NAMELESS_LIMIT {
        let wanted = |n: usize| !known || swapped || bits[n] & 1 != 0;
        let end = (page..bits.len()).find(|&n| !wanted(n)).unwrap_or(bits.len());
        if end > page {
            let (from, to) = (page * PAGE, (end * PAGE).min(s.size as usize));
            total += (to - from) as u64;
            if total <= NAMELESS_LIMIT {
                // SAFETY: attached above for the whole length, and everybody stands.
                let bytes = unsafe { core::slice::from_raw_parts((at + from) as *const u8, to - from) };
                out.extents.push((from as u64, bytes.to_vec()));
            }
        }
        page = end.max(page + 1);
    }
    // SAFETY: attached above.
    unsafe { sys::call(libc::SYS_shmdt, [at, 0, 0, 0, 0, 0]) }.map_err(|e| fail("detaching", e))?;
    if total > NAMELESS_LIMIT {
        return Err(CaptureError::new(
            -1,
            format!(
                "shared memory segment {id} has {} bytes, and no process of the computation has attached all of it for writing: up to {NAMELESS_LIMIT} bytes can be saved of such a one; attach it, or remove it (ipcrm -m {id})",
                s.size
            ),
        ));
    }
    Ok(Some(out))
}
