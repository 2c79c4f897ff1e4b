//! The command in the foreground: it verifies, starts init, and then stands for the first process of the computation: the
//! signals that it gets go there, it stops when that stops, and it ends as that ends.
use crate::init::{self, Init};
use crate::namespace::{self, Side};
use crate::sys::Signal;
use crate::tree::plan;
use crate::{Options, attributes, environment, generation, sys};
use anyhow::{Context, Result, anyhow};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

/// How the first process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// exit(3) status.
    Exited(i32),
    /// Signal.
    Killed(i32),
}

impl End {
    /// Ends this process in the same way, as a shell would see it.
    pub fn leave(self) -> ! {
        match self {
            Self::Exited(status) => sys::exit(status),
            Self::Killed(signal) => {
                sys::no_core();
                sys::default_action(signal);
                sys::mask(libc::SIG_UNBLOCK, &sys::signals(&[signal]));
                let _ = sys::kill(sys::pid(), signal);
                sys::exit(128 + signal)
            }
        }
    }
}

/// Signals that go through to the program.
pub const PASSED: [i32; 9] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGTSTP,
    libc::SIGCONT,
];

/// Restarts a generation, stays in the foreground, and returns how its first process ended. Must be called
/// while the process has one thread.
///
/// # Errors
/// The generation cannot be read or verified, or a process cannot be rebuilt; nothing is left running then.
pub fn restart(options: &Options) -> Result<End> {
    let generation = generation::open(options)?;
    let ours = attributes::credentials();
    for s in &generation.saved {
        attributes::check_credentials(&s.process, &ours)?;
    }
    let processes: Vec<_> = generation.saved.iter().map(|s| s.process.clone()).collect();
    let threads: Vec<i32> = generation.saved.iter().flat_map(|s| s.threads.iter().map(|t| t.tid)).collect();
    let terminals = generation.terminals();
    let tty = Terminal::find();
    // A terminal belongs to one session, and has its job control in the groups of that. Where there is none, nothing keeps the
    // computation from the session and the group which it knows, whose numbers its programs may have kept.
    let root = generation.root().filter(|_| tty.is_some());
    let plan = plan::plan(&processes, &threads, root, &terminals, namespace::pid_max())?;
    let (here, there) = sys::channel().context("socketpair")?;
    environment::leave(options)?;
    let old_mask = sys::mask(libc::SIG_BLOCK, &sys::signals(&PASSED));
    let side = namespace::enter()?;
    let init_pid = match side {
        Side::Init(in_user_namespace) => {
            drop(here);
            let foreground = tty.as_ref().is_some_and(|t| t.had_foreground);
            let init = Init { options, generation: &generation, plan: &plan, channel: &there, ours, foreground };
            init::run(&init, in_user_namespace)
        }
        Side::Outer(pid) => pid,
    };
    drop(there);
    // What init and the tree hold they have by now.
    drop(generation);
    let end = follow(&here, init_pid, tty.as_ref());
    if let Some(tty) = &tty
        && tty.had_foreground
    {
        let _ = sys::set_foreground(tty.file.as_raw_fd(), sys::pgrp());
    }
    if end.is_err() {
        environment::withdraw(options);
        let _ = sys::kill(init_pid, libc::SIGKILL);
        let _ = sys::wait(init_pid, 0);
    }
    sys::mask(libc::SIG_SETMASK, &old_mask);
    end
}

/// Our terminal.
struct Terminal {
    file: File,
    had_foreground: bool,
}

impl Terminal {
    fn find() -> Option<Self> {
        let file = File::options().read(true).write(true).open("/dev/tty").ok()?;
        let had_foreground = sys::foreground(file.as_raw_fd()).ok() == Some(sys::pgrp());
        Some(Self { file, had_foreground })
    }
}

/// Stands for the first process until it has ended.
fn follow(channel: &OwnedFd, init_pid: i32, tty: Option<&Terminal>) -> Result<End> {
    let signals = sys::signalfd(&sys::signals(&PASSED)).context("signalfd")?;
    // The first process's group, if it is not ours.
    let mut group = None;
    loop {
        let ready = sys::poll(&[channel.as_raw_fd(), signals.as_raw_fd()], None).context("poll")?;
        if ready[1] {
            while let Some(Signal { number: signal, code, .. }) = sys::next_signal(&signals) {
                // The terminal sends to the whole group: who is in ours has it already.
                const SI_KERNEL: i32 = 0x80;
                if code != SI_KERNEL || group.is_some() {
                    // After `fg` the terminal is ours, to be handed on.
                    let ours = |t: &Terminal| sys::foreground(t.file.as_raw_fd()).ok() == Some(sys::pgrp());
                    let hand_on = signal == libc::SIGCONT && tty.is_some_and(ours);
                    let _ = sys::send(channel, &[if hand_on { b'F' } else { b'K' }, signal as u8]);
                }
            }
        }
        if !ready[0] {
            continue;
        }
        let message = sys::receive(channel, true).context("the line to the restarted processes")?;
        let number = message.get(1..5).and_then(|b| b.try_into().ok()).map_or(0, i32::from_le_bytes);
        match message.first() {
            Some(b'G') => group = Some(number),
            Some(b'X') if libc::WIFSIGNALED(number) => return Ok(End::Killed(libc::WTERMSIG(number))),
            Some(b'X') => return Ok(End::Exited(libc::WEXITSTATUS(number))),
            Some(b'S') => {
                // As a shell would see the program itself stop; whoever continues us, continues it.
                let _ = sys::kill(sys::pid(), libc::SIGSTOP);
            }
            Some(b'E') => return Err(anyhow!("{}", String::from_utf8_lossy(&message[1..]))),
            Some(b'W') => eprintln!("slackwater: {}", String::from_utf8_lossy(&message[1..])),
            Some(_) => {}
            None => {
                let status = sys::wait(init_pid, 0).ok().flatten().map_or(0, |w| w.status);
                return Err(anyhow!("the restarted processes ended without a word (status {status:#x})"));
            }
        }
    }
}
