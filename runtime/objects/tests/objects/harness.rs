//! The two steps of a case, and small helpers on plain descriptor numbers.
use std::io::{Read, Write};
use std::os::fd::FromRawFd;

use slackwater_objects::model::{Kind, Open, Table};
use slackwater_objects::rebuild::{Computation, Options, prepare};

/// See the head of main.rs.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub make: fn(),
    /// Processes of the computation; those after the first are forked after `make`.
    pub processes: usize,
    /// Runs in process n before the capture, to make it differ from the others.
    pub differ: fn(usize),
    /// Runs in process n.
    pub check: fn(usize),
    /// Whether `check` runs in the original too.
    pub check_original: bool,
    /// Message with which the capture has to fail.
    pub refused: Option<&'static str>,
    /// Part of a warning that the rebuild has to give; without this it may give none.
    pub warned: Option<&'static str>,
    pub options: fn() -> Options,
    /// Whether a capture of the rebuilt process must find the same.
    pub again: bool,
    /// Happens after the capture, before the rebuild.
    pub between: fn(),
    /// Message with which the rebuild has to fail.
    pub prepare_fails: Option<&'static str>,
    /// Needs what only root may do: raw sockets, device nodes, ports that are in TIME_WAIT.
    pub privileged: bool,
    /// Connections that hold bytes and wait to be accepted are taken apart.
    pub apart: bool,
}

impl Case {
    pub const fn new(name: &'static str, make: fn(), check: fn(usize)) -> Self {
        Self {
            name,
            make,
            processes: 1,
            differ: |_| {},
            check,
            check_original: true,
            refused: None,
            warned: None,
            options: Options::default,
            again: true,
            between: || {},
            prepare_fails: None,
            privileged: false,
            apart: false,
        }
    }

    pub const fn privileged(mut self) -> Self {
        self.privileged = true;
        self
    }

    pub const fn between(mut self, f: fn()) -> Self {
        self.between = f;
        self
    }

    pub const fn processes(mut self, n: usize) -> Self {
        self.processes = n;
        self
    }
}

type Saved = (Vec<(u64, Table)>, Vec<Vec<(u64, i32)>>);

/// Pipe at high numbers for the harness itself: (read, write).
fn harness_pipe(at: i32) -> (i32, i32) {
    let (r, w) = pipe();
    (at_number(r, at), at_number(w, at + 1))
}

pub fn capture(case: &Case, path: &str) {
    (case.make)();
    // go: parent -> children; done: children -> parent.
    let go = harness_pipe(900);
    let done = harness_pipe(902);
    let ours = [go.0, go.1, done.0, done.1];
    let mut children = Vec::new();
    let mut me = 0;
    for n in 1..case.processes {
        // SAFETY: one thread.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            me = n;
            break;
        }
        children.push(pid);
    }
    (case.differ)(me);
    let file = |n: usize| format!("{path}.{n}");
    // All stand: nobody captures before everybody has got here.
    if me > 0 {
        write_all(done.1, b"s");
        assert_eq!(read_some(go.0, 1), b"g");
    } else {
        for _ in 1..case.processes {
            assert_eq!(read_some(done.0, 1), b"s");
        }
        write_all(go.1, &vec![b'g'; case.processes - 1]);
    }
    let mut table = slackwater_objects::survey(&ours, slackwater_objects::in_turn);
    let filled = table.as_mut().map_err(|e| e.clone()).and_then(|table| {
        if case.apart {
            take_apart(table)?;
        }
        // The first round looks at this process's own bytes alone; nobody here tells us that another one wants a second.
        slackwater_objects::quiet(table);
        let rounds = (0..100_000).find(|_| slackwater_objects::quiet(table));
        assert!(rounds.is_some(), "never quiet");
        slackwater_objects::fill(table, |_, _| false, slackwater_objects::in_turn)
    });
    if let Some(expected) = case.refused {
        let message = filled.expect_err("has to be refused").to_string();
        assert!(message.contains(expected), "{message}");
        std::fs::write(path, b"").expect("writing");
        table.iter_mut().for_each(slackwater_objects::release);
        (case.check)(me);
        return;
    }
    let mut table = filled.and(table).unwrap_or_else(|e| panic!("capture: {e}"));
    std::fs::write(file(me), postcard::to_allocvec(&table).expect("serialize")).expect("write");
    if me > 0 {
        write_all(done.1, b"d");
        assert_eq!(read_some(go.0, 1), b"g");
        slackwater_objects::release(&mut table);
        if case.check_original {
            (case.check)(me);
        }
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    for _ in 1..case.processes {
        assert_eq!(read_some(done.0, 1), b"d");
    }
    let tables: Vec<(u64, Table)> = (0..case.processes)
        .map(|n| {
            let bytes = std::fs::read(file(n)).expect("read");
            (10 + n as u64, postcard::from_bytes(&bytes).expect("parse"))
        })
        .collect();
    let mut pids = vec![std::process::id() as i32];
    pids.extend(&children);
    let saved: Saved = (tables.clone(), shared(&tables, &pids));
    std::fs::write(path, postcard::to_allocvec(&saved).expect("serialize")).expect("write");
    write_all(go.1, &vec![b'g'; case.processes - 1]);
    slackwater_objects::release(&mut table);
    if case.check_original {
        (case.check)(0);
    }
    for pid in children {
        wait(pid);
    }
}

/// What the coordinator does at late attempts, with one process: what waits to be accepted is taken apart.
fn take_apart(table: &mut Table) -> Result<(), slackwater_objects::CaptureError> {
    use slackwater_objects::backlog;
    let mut known = std::collections::HashMap::new();
    for step in backlog::STEPS {
        let answers: Vec<_> =
            backlog::questions(table, step).iter().map(|key| known.get(key).cloned()).collect::<Vec<Option<Vec<u8>>>>();
        let (again, told) = backlog::step(table, step, &answers)?;
        known.extend(told);
        assert_eq!(again, step != backlog::Step::Take, "{step:?}");
    }
    Ok(())
}

/// What the coordinator does with `keys`.
fn shared(tables: &[(u64, Table)], pids: &[i32]) -> Vec<Vec<(u64, i32)>> {
    let mut groups: Vec<Vec<(usize, i32, u64, u64)>> = Vec::new();
    for (t, (_, table)) in tables.iter().enumerate() {
        for (fd, dev, ino) in slackwater_objects::keys(table) {
            let same = |g: &&mut Vec<(usize, i32, u64, u64)>| {
                let first = g[0];
                // SAFETY: numbers; KCMP_FILE is 0.
                (first.2, first.3) == (dev, ino)
                    && unsafe { libc::syscall(libc::SYS_kcmp, pids[first.0], pids[t], 0, first.1, fd) } == 0
            };
            match groups.iter_mut().find(same) {
                Some(group) => group.push((t, fd, dev, ino)),
                None => groups.push(vec![(t, fd, dev, ino)]),
            }
        }
    }
    groups.retain(|g| g.len() > 1);
    groups.into_iter().map(|g| g.into_iter().map(|(t, fd, ..)| (tables[t].0, fd)).collect()).collect()
}

pub fn rebuild(case: &Case, path: &str) {
    if case.refused.is_some() {
        return;
    }
    let saved: Saved = postcard::from_bytes(&std::fs::read(path).expect("read")).expect("parse");
    let options = (case.options)();
    let computation = Computation { tables: &saved.0, shared: &saved.1, options: &options };
    (case.between)();
    let prepared = match (prepare(&computation), case.prepare_fails) {
        (Ok(prepared), _) => prepared,
        (Err(e), Some(expected)) if e.to_string().contains(expected) => return,
        (Err(e), _) => panic!("prepare: {e}"),
    };
    let go = harness_pipe(900);
    let done = harness_pipe(902);
    let ours = [go.0, go.1, done.0, done.1];
    let mut children = Vec::new();
    let mut me = 0;
    for n in 1..case.processes {
        // SAFETY: one thread.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            me = n;
            break;
        }
        children.push(pid);
    }
    let prepared_warnings = prepared.warnings().to_vec();
    let installed = prepared.install(10 + me as u64, &ours);
    if let Some(expected) = case.prepare_fails {
        let message = installed.expect_err("has to fail").to_string();
        assert!(message.contains(expected), "{message}");
        return;
    }
    let installed = installed.unwrap_or_else(|e| panic!("install: {e}"));
    assert!(installed.moved.is_empty());
    let warnings = [prepared_warnings, installed.warnings].concat();
    match case.warned {
        None => assert!(warnings.is_empty(), "{warnings:?}"),
        Some(text) => assert!(warnings.iter().any(|w| w.contains(text)), "{warnings:?}"),
    }
    // Exactly the program's numbers and ours are open.
    let mut open: Vec<i32> = slackwater_socket::sys::descriptors().expect("descriptors");
    open.retain(|fd| !ours.contains(fd));
    let wanted: Vec<i32> = saved.0[me].1.descriptors.iter().map(|d| d.fd).collect();
    assert_eq!(open, wanted);
    // A second capture finds what the first one found: a restart can be checkpointed and restarted again.
    if me > 0 {
        write_all(done.1, b"s");
        assert_eq!(read_some(go.0, 1), b"g");
    } else {
        for _ in 1..case.processes {
            assert_eq!(read_some(done.0, 1), b"s");
        }
        write_all(go.1, &vec![b'g'; case.processes - 1]);
    }
    if case.again {
        let mut again = slackwater_objects::survey(&ours, slackwater_objects::in_turn)
            .unwrap_or_else(|e| panic!("capture of the rebuilt: {e}"));
        assert!((0..100_000).any(|_| slackwater_objects::quiet(&mut again)), "never quiet");
        if case.apart {
            take_apart(&mut again).unwrap_or_else(|e| panic!("taking apart: {e}"));
        }
        slackwater_objects::fill(&mut again, |_, _| false, slackwater_objects::in_turn)
            .unwrap_or_else(|e| panic!("capture of the rebuilt: {e}"));
        compare(&saved.0[me].1, &again);
    }
    if me > 0 {
        write_all(done.1, b"i");
        assert_eq!(read_some(go.0, 1), b"g");
        (case.check)(me);
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    for _ in 1..case.processes {
        assert_eq!(read_some(done.0, 1), b"i");
    }
    write_all(go.1, &vec![b'g'; case.processes - 1]);
    (case.check)(0);
    for pid in children {
        wait(pid);
    }
}

/// Everything but what must differ: inode numbers, counters of connections, time that has passed.
fn compare(before: &Table, after: &Table) {
    assert_eq!(before.descriptors, after.descriptors);
    for (before, after) in before.opens.iter().zip(&after.opens) {
        let (before, after) = (plain(before), plain(after));
        if let (Kind::Socket(a), Kind::Socket(b)) = (&before.kind, &after.kind) {
            let differ: Vec<_> = a.options.iter().zip(&b.options).filter(|(a, b)| a != b).collect();
            assert!(differ.is_empty(), "descriptor {}: options differ: {differ:?}", before.fd);
        }
        if before != after {
            let lines = |o: &Open| format!("{o:#?}").lines().map(str::to_owned).collect::<Vec<_>>();
            let differ: Vec<_> =
                lines(&before).into_iter().zip(lines(&after)).filter(|(a, b)| a != b).take(10).collect();
            panic!("descriptor {} differs after the rebuild: {differ:#?}\n{before:?}\n{after:?}", before.fd);
        }
    }
}

fn plain(open: &Open) -> Open {
    let mut open = open.clone();
    (open.dev, open.ino) = (0, 0);
    match &mut open.kind {
        Kind::Socket(s) => {
            s.ino = 0;
            s.saved = false;
            s.backlog.iter_mut().for_each(|one| one.client = one.client.min(1));
            for peer in s.unix.iter_mut().flat_map(|u| u.pending.iter_mut().chain(&mut u.peer)) {
                *peer = (*peer).min(1);
            }
            if let Some(tcp) = &mut s.tcp {
                (tcp.written, tcp.arrived) = (0, 0);
                // FIN_WAIT1 and FIN_WAIT2; which end of a closed connection closed first.
                tcp.state = if tcp.state == 5 { 4 } else { tcp.state };
                // Sizes that the kernel tunes by itself.
                // IPV6_V6ONLY of a connected socket: bind(2) to an IPv6 address sets it, and it means nothing there.
                let connected = s.state == slackwater_socket::model::State::Connected;
                s.options.retain(|(level, name, _)| match (*level, *name) {
                    (1, 7 | 8) => false,
                    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) => !connected,
                    _ => true,
                });
            }
        }
        Kind::Timer(t) => t.remaining_ns = t.remaining_ns.div_ceil(60_000_000_000),
        Kind::Epoll { watched } => {
            watched.iter_mut().for_each(|w| w.target = (0, 0));
            watched.sort_by_key(|w| (w.fd, w.data));
        }
        Kind::File(f) => {
            // The files of the first half of the test are the runner's to change.
            f.mtime_ns = 0;
            open.flags &= !libc::O_NOFOLLOW;
            if f.deleted {
                f.path.clear();
            }
        }
        Kind::Directory { path, deleted: true, .. } => path.clear(),
        _ => {}
    }
    open
}

fn wait(pid: i32) {
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert_eq!(status, 0, "a child of the case failed");
}

/// Moves a descriptor to a fixed number.
pub fn at_number(fd: i32, number: i32) -> i32 {
    // SAFETY: numbers.
    unsafe {
        assert_eq!(libc::dup2(fd, number), number);
        libc::close(fd);
    }
    number
}

pub fn pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    // SAFETY: two ints.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    (ends[0], ends[1])
}

pub fn open(path: &str, flags: i32) -> i32 {
    let path = std::ffi::CString::new(path).expect("path");
    // SAFETY: a terminated path.
    let fd = unsafe { libc::open(path.as_ptr(), flags, 0o644) };
    assert!(fd >= 0, "{path:?}: {}", std::io::Error::last_os_error());
    fd
}

fn borrowed<T>(fd: i32, f: impl FnOnce(&mut std::fs::File) -> T) -> T {
    // SAFETY: the number is open and is not closed here.
    let mut file = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) });
    f(&mut file)
}

pub fn write_all(fd: i32, data: &[u8]) {
    borrowed(fd, |f| f.write_all(data).expect("write"));
}

/// Exactly `n` bytes.
pub fn read_some(fd: i32, n: usize) -> Vec<u8> {
    let mut out = vec![0; n];
    borrowed(fd, |f| f.read_exact(&mut out).expect("read"));
    out
}

/// One read(2).
pub fn read_once(fd: i32) -> std::io::Result<Vec<u8>> {
    let mut out = vec![0; 1 << 20];
    let n = borrowed(fd, |f| f.read(&mut out))?;
    out.truncate(n);
    Ok(out)
}

pub fn offset(fd: i32) -> i64 {
    // SAFETY: numbers.
    unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) }
}

pub fn fcntl(fd: i32, command: i32, arg: i32) -> i32 {
    // SAFETY: commands with ints.
    unsafe { libc::fcntl(fd, command, arg) }
}

pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
