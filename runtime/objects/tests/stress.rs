//! Streams under load, captured at random moments: no record lost, doubled, reordered or damaged, neither in the process that
//! goes on nor in one rebuilt from the capture.
//!
//! One thread plays both ends with non-blocking calls, so that it can stand still anywhere, in the middle of a record as well. Each
//! round captures, forks, rebuilds in the child, and lets the child finish all that is under way; the parent goes on. The child
//! has the parent's counters by fork, and its connection has other addresses, for the parent's are in use: two copies of one
//! image run at the same time.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)] // Reason: libc calls on numbers that the test opened; one thread.
#![allow(clippy::print_stdout)] // Reason: this is the harness.
use std::net::{TcpListener, TcpStream};
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use slackwater_objects::Table;
use slackwater_objects::rebuild::{Computation, Options, prepare};

const ROUNDS: usize = 200;
const ENDS: [i32; 2] = [100, 101];

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }
}

/// Record `n` of a direction: length, number, checksum, bytes. Its length depends on its number.
fn record(direction: u64, n: u64) -> Vec<u8> {
    let mut random = Random((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (direction + 1));
    let body: Vec<u8> = (0..random.next(20_000)).map(|_| random.next(256) as u8).collect();
    let sum = body.iter().fold(n ^ 0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut out = (body.len() as u64).to_le_bytes().to_vec();
    out.extend(n.to_le_bytes());
    out.extend(sum.to_le_bytes());
    out.extend(body);
    out
}

/// One direction of a connection.
#[derive(Default)]
struct Direction {
    id: u64,
    /// The record being written, and how much of it has gone.
    out: (Vec<u8>, usize),
    sent: u64,
    /// What of the next record has come.
    got: Vec<u8>,
    received: u64,
}

impl Direction {
    fn write(&mut self, fd: i32) -> bool {
        if self.out.1 == self.out.0.len() {
            self.out = (record(self.id, self.sent), 0);
            self.sent += 1;
        }
        let rest = &self.out.0[self.out.1..];
        let n = unsafe { libc::send(fd, rest.as_ptr().cast(), rest.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        if n < 0 {
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EAGAIN));
            return false;
        }
        self.out.1 += n as usize;
        true
    }

    fn read(&mut self, fd: i32, limit: usize) -> bool {
        let mut buffer = vec![0; limit];
        let n = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), limit, libc::MSG_DONTWAIT) };
        if n < 0 {
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EAGAIN));
            return false;
        }
        assert!(n > 0, "the stream ended");
        self.got.extend_from_slice(&buffer[..n as usize]);
        loop {
            let wanted = record(self.id, self.received);
            let have = self.got.len().min(wanted.len());
            assert!(self.got[..have] == wanted[..have], "record {} of direction {} differs", self.received, self.id);
            if have < wanted.len() {
                return true;
            }
            self.got.drain(..have);
            self.received += 1;
        }
    }

    /// The rest of the record that is being written, then everything is read.
    fn finish(&mut self, from: i32, to: i32) {
        let mut idle = 0;
        while self.received < self.sent {
            let wrote = self.out.1 < self.out.0.len() && self.write(from);
            let read = self.read(to, 1 << 20);
            if wrote || read {
                idle = 0;
                continue;
            }
            // A full window is opened again by the kernel's timers; ten seconds without a byte are a loss.
            idle += 1;
            assert!(idle < 10, "{} records of {} came", self.received, self.sent);
            let mut p = libc::pollfd { fd: to, events: libc::POLLIN, revents: 0 };
            unsafe { libc::poll(&mut p, 1, 1000) };
        }
        assert!(self.got.is_empty());
    }
}

fn step(random: &mut Random, both: &mut [Direction; 2]) {
    // Phases of only writing fill the queues to the brim.
    let only_write = random.next(4) == 0;
    for _ in 0..random.next(300) {
        let d = random.next(2) as usize;
        let (from, to) = (ENDS[d], ENDS[1 - d]);
        if random.next(2) == 0 || only_write {
            both[d].write(from);
        } else {
            let limit = 1 + random.next(60_000) as usize;
            both[d].read(to, limit);
        }
    }
}

fn capture() -> Table {
    let mut table = slackwater_objects::survey(&[], slackwater_objects::in_turn).expect("survey");
    assert!((0..100_000).any(|_| slackwater_objects::quiet(&mut table)), "never quiet");
    slackwater_objects::fill(&mut table, |_, _| false, slackwater_objects::in_turn).expect("fill");
    table
}

fn rebuild(table: Table) {
    let tables = [(1, table)];
    let options = Options::default();
    let computation = Computation { tables: &tables, shared: &[], options: &options };
    let prepared = prepare(&computation).unwrap_or_else(|e| panic!("prepare: {e}"));
    prepared.install(1, &[]).unwrap_or_else(|e| panic!("install: {e}"));
}

/// Makes the two ends.
type Pair = fn() -> (i32, i32);

fn stress(name: &str, pair: Pair) {
    let (a, b) = pair();
    for (fd, number) in [(a, ENDS[0]), (b, ENDS[1])] {
        unsafe {
            assert_eq!(libc::dup2(fd, number), number);
            libc::close(fd);
        }
    }
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut both = [Direction::default(), Direction { id: 1, ..Direction::default() }];
    let (mut unread, mut most) = (0usize, 0usize);
    for round in 0..ROUNDS {
        step(&mut random, &mut both);
        let table = capture();
        let bytes: usize = table
            .opens
            .iter()
            .map(|o| match &o.kind {
                slackwater_objects::model::Kind::Socket(s) => s.queue.iter().map(|m| m.data.len()).sum(),
                _ => 0,
            })
            .sum();
        (unread, most) = (unread + bytes, most.max(bytes));
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            unsafe { libc::alarm(60) };
            rebuild(table);
            // It goes on, and is rebuilt once more.
            step(&mut random, &mut both);
            if round % 10 == 0 {
                rebuild(capture());
            }
            let [forth, back] = &mut both;
            forth.finish(ENDS[0], ENDS[1]);
            back.finish(ENDS[1], ENDS[0]);
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0, "round {round}: the rebuilt process failed");
    }
    let [forth, back] = &mut both;
    forth.finish(ENDS[0], ENDS[1]);
    back.finish(ENDS[1], ENDS[0]);
    println!(
        "test {name} ... ok ({ROUNDS} rounds, {} records, {} KiB unread at a capture on average, {} KiB at most)",
        forth.received + back.received,
        unread / ROUNDS / 1024,
        most / 1024
    );
}

fn main() -> ExitCode {
    let mut failed = 0;
    let cases: [(&str, Pair); 3] = [
        ("unix-stream", || {
            let (a, b) = UnixStream::pair().expect("pair");
            (a.into_raw_fd(), b.into_raw_fd())
        }),
        ("tcp-v4", || tcp("127.0.0.1:0")),
        ("tcp-v6", || tcp("[::1]:0")),
    ];
    let wanted = std::env::args().nth(1).filter(|a| !a.starts_with('-'));
    for (name, pair) in cases.into_iter().filter(|(name, _)| wanted.as_deref().is_none_or(|w| name.contains(w))) {
        // A process each, so that a failure ends one case only.
        let child = unsafe { libc::fork() };
        if child == 0 {
            unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
            stress(name, pair);
            std::process::exit(0);
        }
        let mut status = 0;
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        if status != 0 {
            failed += 1;
            println!("test {name} ... FAILED");
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tcp(address: &str) -> (i32, i32) {
    let listener = TcpListener::bind(address).expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
    (client.into_raw_fd(), listener.accept().expect("accept").0.into_raw_fd())
}
