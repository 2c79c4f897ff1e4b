//! Everything gets its number, in each process.
//!
//! Order: private objects are made at high numbers; numbers are given; epoll sets are filled, for a registration is by number;
//! all that is not the program's is closed; locks come last, since closing any descriptor of a file drops the process's
//! POSIX locks on it.
use std::collections::BTreeSet;

use super::{Id, Prepared, RebuildError, Result, make, os, outside};
use crate::model::{Kind, Lock, LockClass};

/// What became of descriptors that were not the program's.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    /// Kept descriptors whose number the program needs: (old number, new number).
    pub moved: Vec<(i32, i32)>,
    /// What could not be made quite as it was, for people.
    pub warnings: Vec<String>,
}

impl Prepared<'_> {
    /// Gives process `member` its descriptors. All processes of the tree must exist (pidfds, owners of SIGIO), and the
    /// caller's credentials must suffice to open the files.
    ///
    /// `keep` are descriptors of the caller; all others that are not the program's are closed.
    ///
    /// # Errors
    /// Says which descriptor cannot come back, and why.
    pub fn install(mut self, member: u64, keep: &[i32]) -> Result<Installed> {
        self.warnings.clear();
        let tables = self.tables;
        let Some(t) = tables.iter().position(|(m, _)| *m == member) else {
            return Err(RebuildError {
                member,
                fd: -1,
                what: "no table of descriptors for this process".into(),
                source: None,
            });
        };
        let table = &tables[t].1;
        let fail = |what: String| move |e| RebuildError { member, fd: -1, what, source: Some(e) };
        let mut out = Installed::default();

        // Where each description is to be had.
        let mut source: Vec<i32> = Vec::with_capacity(table.opens.len());
        for o in 0..table.opens.len() {
            let lead = self.groups.lead((t, o));
            let fd = match self.made.get(&lead) {
                Some(&fd) => fd,
                None if self.leads_out.contains(&lead) => -1,
                None => make::one(&mut self, (t, o))?,
            };
            source.push(fd);
        }

        let program: BTreeSet<i32> = table.descriptors.iter().map(|d| d.fd).collect();
        let mut kept: Vec<i32> = Vec::new();
        for &fd in keep {
            if program.contains(&fd) {
                let flags =
                    os::fcntl(fd, libc::F_GETFD, 0).map_err(fail(format!("descriptor {fd} that is to be kept")))?;
                let new = os::copy(fd, self.base).map_err(fail(format!("moving descriptor {fd}")))?;
                os::dup_to(new, new, flags & libc::FD_CLOEXEC != 0).map_err(fail(format!("moving descriptor {fd}")))?;
                out.moved.push((fd, new));
                kept.push(new);
            } else {
                kept.push(fd);
            }
        }

        for d in &table.descriptors {
            let o = d.open as usize;
            let lead = self.groups.lead((t, o));
            let from =
                if self.leads_out.contains(&lead) { outside::standard(&self, lead, d.fd) } else { Some(source[o]) };
            let from = from.ok_or_else(|| RebuildError {
                member,
                fd: d.fd,
                what: "nothing stands for it".into(),
                source: None,
            })?;
            os::dup_to(from, d.fd, d.cloexec)
                .map_err(|e| self.error((t, o), format!("giving descriptor {} its number", d.fd), e))?;
            if source[o] < 0 {
                source[o] = d.fd;
            }
        }

        // What is under way in a Unix socket has no number.
        let numbers: Vec<i32> = table
            .held()
            .iter()
            .zip(&source)
            .zip(&table.opens)
            .map(|((&held, &at), open)| if held { open.fd } else { at })
            .collect();
        for (o, &number) in numbers.iter().enumerate() {
            if let Kind::Epoll { .. } = table.opens[o].kind {
                self.watch((t, o), number, &source, &program)?;
            }
        }
        let held = table.held();
        for (o, &number) in numbers.iter().enumerate().filter(|(o, _)| !held[*o]) {
            self.finish((t, o), number)?;
        }
        close_others(&program, &kept).map_err(fail("closing what is not the program's".into()))?;
        for (o, &number) in numbers.iter().enumerate().filter(|(o, _)| held[*o]) {
            self.finish((t, o), number)?;
        }
        out.warnings = std::mem::take(&mut self.warnings);
        Ok(out)
    }

    // Fills an epoll set with what this process is to register.
    fn watch(&mut self, id: Id, epoll: i32, source: &[i32], program: &BTreeSet<i32>) -> Result<()> {
        let open = self.open(id).clone();
        let Kind::Epoll { watched } = &open.kind else { return Ok(()) };
        let lead = self.groups.lead(id);
        for (n, w) in watched.iter().enumerate() {
            // Of the processes that share the set, the first that holds the target registers it.
            let holders = self.groups.of(lead).ids.iter().filter(|at| match &self.open(**at).kind {
                Kind::Epoll { watched } => watched.get(n).is_some_and(|w| w.open.is_some()),
                _ => false,
            });
            let first = holders.min().copied();
            match (first, w.open) {
                (Some(first), Some(target)) if first == id => {
                    let fd = source[target as usize];
                    self.register(epoll, fd, w.fd, w.events, w.data, program)
                        .map_err(|e| self.error(id, format!("watching descriptor {} in an epoll set", w.fd), e))?;
                }
                (Some(_), _) => {}
                (None, _) => {
                    if self.groups.of(lead).ids[0] == id {
                        self.warn(
                            id,
                            format!(
                                "the epoll set watched something as {} that no process holds by a number any more",
                                w.fd
                            ),
                        );
                    }
                }
            }
        }
        Ok(())
    }

    // A registration is by (number, description): where the number is something else now, it is lent for the moment.
    fn register(
        &self,
        epoll: i32,
        target: i32,
        number: i32,
        events: u32,
        data: u64,
        program: &BTreeSet<i32>,
    ) -> std::io::Result<()> {
        let pid = std::process::id() as i32;
        let is = slackwater_socket::sys::kcmp_file(pid, target, number) == Ok(0);
        if is {
            return os::epoll_add(epoll, number, events, data);
        }
        let lent = if os::fcntl(number, libc::F_GETFD, 0).is_ok() {
            let flags = os::fcntl(number, libc::F_GETFD, 0)?;
            Some((os::copy(number, self.base)?, flags & libc::FD_CLOEXEC != 0))
        } else {
            None
        };
        os::dup_to(target, number, true)?;
        let done = os::epoll_add(epoll, number, events, data);
        match lent {
            Some((saved, cloexec)) => {
                os::dup_to(saved, number, cloexec)?;
                os::close(saved);
            }
            None => {
                debug_assert!(!program.contains(&number));
                os::close(number);
            }
        }
        done
    }

    // Status flags, owner of SIGIO, locks.
    fn finish(&mut self, id: Id, fd: i32) -> Result<()> {
        let open = self.open(id).clone();
        let lead = self.groups.lead(id);
        if self.leads_out.contains(&lead) || open.flags & libc::O_PATH != 0 {
            return Ok(());
        }
        if let Some(owner) = open.owner {
            let mut ex = [owner.kind, owner.id];
            if owner.id != 0
                && let Err(e) = os::fcntl_with(fd, 15 /* F_SETOWN_EX */, &mut ex)
            {
                self.warn(id, format!("the owner of its signals, {}, cannot be set: {e}", owner.id));
            }
            os::fcntl(fd, 10 /* F_SETSIG */, owner.signal).map_err(|e| self.error(id, "fcntl(F_SETSIG)", e))?;
        }
        let settable = libc::O_APPEND | libc::O_NONBLOCK | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME;
        let now = os::fcntl(fd, libc::F_GETFL, 0).map_err(|e| self.error(id, "fcntl(F_GETFL)", e))?;
        if (now ^ open.flags) & settable != 0 {
            let flags = now & !settable | open.flags & settable;
            if let Err(e) = os::fcntl(fd, libc::F_SETFL, flags) {
                self.warn(id, format!("its flags {:#o} cannot be set: {e}", open.flags));
            }
        }
        for lock in &open.locks {
            if let Err(e) = set_lock(fd, lock) {
                self.warn(id, format!("its lock {lock:?} cannot be taken again: {e}"));
            }
        }
        Ok(())
    }
}

fn set_lock(fd: i32, lock: &Lock) -> std::io::Result<()> {
    match lock.class {
        LockClass::Flock => os::flock(fd, lock.write),
        LockClass::Lease => {
            os::fcntl(fd, libc::F_SETLEASE, if lock.write { libc::F_WRLCK } else { libc::F_RDLCK }).map(|_| ())
        }
        LockClass::Posix | LockClass::Ofd => {
            let command = if lock.class == LockClass::Posix { libc::F_SETLK } else { libc::F_OFD_SETLK };
            let mut range = libc::flock {
                l_type: if lock.write { libc::F_WRLCK } else { libc::F_RDLCK } as i16,
                l_whence: libc::SEEK_SET as i16,
                l_start: lock.start as i64,
                l_len: lock.end.map_or(0, |end| (end - lock.start + 1) as i64),
                l_pid: 0,
            };
            os::fcntl_with(fd, command, &mut range)
        }
    }
}

fn close_others(program: &BTreeSet<i32>, kept: &[i32]) -> std::io::Result<()> {
    let mut stay: Vec<u32> = program.iter().chain(kept).map(|&fd| fd as u32).collect();
    stay.sort_unstable();
    let mut next = 0;
    for fd in stay {
        if fd > next {
            os::close_range(next, fd - 1)?;
        }
        next = fd + 1;
    }
    os::close_range(next, u32::MAX)
}
