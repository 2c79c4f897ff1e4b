//! System V IPC objects, in process 1 of a restart's IPC namespace, before the tree is forked.
//!
//! Each takes its old number: /proc/sys/kernel/{shm,sem,msg}_next_id (CONFIG_CHECKPOINT_RESTORE) names the next one, to
//! whoever has CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE in the namespace's user namespace. A segment that was removed while
//! attached would vanish at once: we keep it attached until all who had it have it again.
#![allow(unsafe_code)] // Reason: system calls.
use crate::ipc::{Head, Ipc, Queue, Segment, Set};
use crate::model::Contents;
use std::collections::BTreeMap;
use std::io::{self, Error};

const SHM_LOCK: i32 = 11;

fn check(r: impl Into<i64>) -> io::Result<i64> {
    let r = r.into();
    if r < 0 { Err(Error::last_os_error()) } else { Ok(r) }
}

/// Objects that were made.
#[derive(Debug, Default)]
pub struct Made {
    sizes: BTreeMap<i32, u64>,
    // Where removed segments are attached in this process.
    held: Vec<usize>,
    warnings: Vec<String>,
}

impl Made {
    /// Sizes in bytes of the segments, by number.
    pub const fn segments(&self) -> &BTreeMap<i32, u64> {
        &self.sizes
    }

    /// What is not quite as it was, for people.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// All who had removed segments attached have them again: from here on they live as long as those do.
    pub fn release(&mut self) {
        for at in self.held.drain(..) {
            // SAFETY: attached by `segment`, and used by nobody.
            unsafe { libc::shmdt(at as *const libc::c_void) };
        }
    }
}

/// Makes all objects of all processes. `huge`: the segments that were in huge pages.
///
/// # Errors
/// Says which object, and why.
pub fn make<'a>(all: impl Iterator<Item = &'a Ipc> + Clone, huge: &[i32]) -> Result<Made, String> {
    let mut made = Made::default();
    let mut segments: BTreeMap<i32, &Segment> = BTreeMap::new();
    for s in all.clone().flat_map(|i| &i.segments) {
        let known = segments.entry(s.head.id).or_insert(s);
        if known.contents.is_none() {
            *known = s;
        }
    }
    for s in segments.values() {
        segment(s, huge.contains(&s.head.id), &mut made).map_err(|e| failed("shared memory segment", &s.head, &e))?;
        made.sizes.insert(s.head.id, s.size);
    }
    let sets: BTreeMap<i32, &Set> = all.clone().flat_map(|i| &i.sets).map(|s| (s.head.id, s)).collect();
    for s in sets.values() {
        set(s, &mut made).map_err(|e| failed("semaphore set", &s.head, &e))?;
    }
    let queues: BTreeMap<i32, &Queue> = all.flat_map(|i| &i.queues).map(|q| (q.head.id, q)).collect();
    for q in queues.values() {
        queue(q, &mut made).map_err(|e| failed("message queue", &q.head, &e))?;
    }
    Ok(made)
}

fn failed(what: &str, head: &Head, e: &Error) -> String {
    format!(
        "making System V {what} {} again: {e} (the limits are in /proc/sys/kernel: shmmni, shmmax, shmall, sem, msgmni, msgmax; numbers need a kernel with CONFIG_CHECKPOINT_RESTORE)",
        head.id
    )
}

/// Names the number of the next object of a kind.
fn next(kind: &str, head: &Head) -> io::Result<()> {
    std::fs::write(format!("/proc/sys/kernel/{kind}_next_id"), head.id.to_string())
}

fn right(id: i64, head: &Head) -> io::Result<i32> {
    match id as i32 {
        id if id == head.id => Ok(id),
        other => Err(Error::other(format!("the kernel gave it number {other}"))),
    }
}

fn create(head: &Head) -> i32 {
    libc::IPC_CREAT | libc::IPC_EXCL | (head.mode & 0o777) as i32
}

/// Whose it is. In a user namespace there are no other users.
fn owner(what: &str, head: &Head, made: &mut Made, set: impl FnOnce() -> i64) {
    if let Err(e) = check(set()) {
        made.warnings.push(format!("System V {what} {}: its owner cannot be user {} again: {e}", head.id, head.uid));
    }
}

fn segment(s: &Segment, huge: bool, made: &mut Made) -> io::Result<()> {
    next("shm", &s.head)?;
    let flags = create(&s.head) | if huge { libc::SHM_HUGETLB } else { 0 };
    // SAFETY: numbers; the struct is filled by the kernel and handed back with other numbers in it.
    unsafe {
        let id = right(check(libc::shmget(s.head.key, s.size as usize, flags))?, &s.head)?;
        let mut stat: libc::shmid_ds = core::mem::zeroed();
        check(libc::shmctl(id, libc::IPC_STAT, &raw mut stat))?;
        (stat.shm_perm.uid, stat.shm_perm.gid) = (s.head.uid, s.head.gid);
        owner("segment", &s.head, made, || libc::shmctl(id, libc::IPC_SET, &raw mut stat).into());
        if let Some(contents) = &s.contents {
            fill(id, s.size, contents)?;
        }
        if s.locked() {
            // As with mlock: the limit may be lower here.
            let _ = libc::shmctl(id, SHM_LOCK, core::ptr::null_mut());
        }
        if s.removed() {
            made.held.push(attach(id)?);
            check(libc::shmctl(id, libc::IPC_RMID, core::ptr::null_mut()))?;
        }
    }
    Ok(())
}

fn attach(id: i32) -> io::Result<usize> {
    // SAFETY: at a place that the kernel chooses.
    let at = unsafe { libc::shmat(id, core::ptr::null(), 0) };
    if at as isize == -1 { Err(Error::last_os_error()) } else { Ok(at as usize) }
}

fn fill(id: i32, size: u64, contents: &Contents) -> io::Result<()> {
    let at = attach(id)?;
    for (offset, bytes) in contents.extents.iter().filter(|(o, b)| o.saturating_add(b.len() as u64) <= size) {
        // SAFETY: inside the segment, which nobody else has attached yet.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), (at + *offset as usize) as *mut u8, bytes.len()) };
    }
    // SAFETY: attached above.
    check(unsafe { libc::shmdt(at as *const libc::c_void) }).map(drop)
}

fn set(s: &Set, made: &mut Made) -> io::Result<()> {
    next("sem", &s.head)?;
    // SAFETY: as for segments; SETALL reads a value for each semaphore.
    unsafe {
        let id = right(check(libc::semget(s.head.key, s.values.len() as i32, create(&s.head)))?, &s.head)?;
        check(libc::semctl(id, 0, libc::SETALL, s.values.as_ptr()))?;
        let mut stat: libc::semid_ds = core::mem::zeroed();
        check(libc::semctl(id, 0, libc::IPC_STAT, &raw mut stat))?;
        (stat.sem_perm.uid, stat.sem_perm.gid) = (s.head.uid, s.head.gid);
        owner("semaphore set", &s.head, made, || libc::semctl(id, 0, libc::IPC_SET, &raw mut stat).into());
    }
    Ok(())
}

fn queue(q: &Queue, made: &mut Made) -> io::Result<()> {
    next("msg", &q.head)?;
    // SAFETY: as for segments; a message is a long and its bytes.
    unsafe {
        let id = right(check(libc::msgget(q.head.key, create(&q.head)))?, &q.head)?;
        let mut stat: libc::msqid_ds = core::mem::zeroed();
        check(libc::msgctl(id, libc::IPC_STAT, &raw mut stat))?;
        if stat.msg_qbytes != q.limit {
            stat.msg_qbytes = q.limit as _;
            if let Err(e) = check(libc::msgctl(id, libc::IPC_SET, &raw mut stat)) {
                made.warnings.push(format!(
                    "System V queue {id}: it held up to {} bytes, which is not permitted here (kernel.msgmnb): {e}",
                    q.limit
                ));
            }
        }
        for (kind, bytes) in &q.messages {
            let message = [&kind.to_ne_bytes(), bytes.as_slice()].concat();
            check(libc::msgsnd(id, message.as_ptr().cast(), bytes.len(), libc::IPC_NOWAIT))?;
        }
        check(libc::msgctl(id, libc::IPC_STAT, &raw mut stat))?;
        (stat.msg_perm.uid, stat.msg_perm.gid) = (q.head.uid, q.head.gid);
        owner("queue", &q.head, made, || libc::msgctl(id, libc::IPC_SET, &raw mut stat).into());
    }
    Ok(())
}
