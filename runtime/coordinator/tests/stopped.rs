//! Processes that are stopped by a signal while a checkpoint or a restart goes on.
mod common;

use common::{Behaviour, Coordinator, LONG, Point, Seen, Victim, answer, back, plain, process, temp};
use slackwater_coordinator::Options;
use slackwater_image::manifest::Manifest;
use slackwater_protocol::{
    auth::Role,
    command::{Reply, Request, RestartMember},
    message::{FromProcess, ToProcess},
};
use std::{fs, process::Command};

/// The letter of a process's state, as in /proc/PID/stat.
fn state(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

fn wait_state(pid: i32, wanted: impl Fn(char) -> bool) {
    let since = std::time::Instant::now();
    while !wanted(state(pid)) {
        assert!(since.elapsed() < LONG, "process {pid} is {}", state(pid));
        std::thread::yield_now();
    }
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// A process that is stopped.
fn stopped() -> Victim {
    let victim = Victim::new();
    signal(victim.pid(), rustix::process::Signal::STOP);
    wait_state(victim.pid(), |s| s == 'T');
    victim
}

/// As an agent in it: it can answer only while its process is not stopped.
fn within(victim: &Victim) -> Behaviour {
    let exe = fs::read_link(format!("/proc/{}/exe", victim.pid())).unwrap().to_string_lossy().into_owned();
    Behaviour { exe, before_suspended: Some(|pid| wait_state(pid, |s| s != 'T')), ..plain(victim.pid()) }
}

#[test]
fn a_stopped_process_is_saved_and_stopped_again() {
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let victim = stopped();
    let (process, other) = (process(&coordinator, within(&victim)), process(&coordinator, plain(1)));
    for _ in 0..2 {
        let (path, _) = coordinator.checkpoint(false).unwrap();
        // The coordinator stops it before it commits.
        wait_state(victim.pid(), |s| s == 'T');
        let members = Manifest::read(&path).unwrap().members;
        assert_eq!(members.iter().map(|m| m.stopped).collect::<Vec<_>>(), vec![true, false]);
        assert_eq!((process.next(), process.next()), (Seen::Resumed(None), Seen::Finished(None)));
        assert_eq!((other.next(), other.next()), (Seen::Resumed(None), Seen::Finished(None)));
    }
    signal(victim.pid(), rustix::process::Signal::CONT);
    wait_state(victim.pid(), |s| s != 'T');
    let (path, _) = coordinator.checkpoint(false).unwrap();
    assert_ne!(state(victim.pid()), 'T');
    assert!(Manifest::read(&path).unwrap().members.iter().all(|m| !m.stopped));
}

/// ^Z may meet a process in execve(2): what it was has gone, what it will be has not joined, and nobody else is waited for.
#[test]
fn a_process_that_is_stopped_in_its_exec_is_woken() {
    const TOKEN: u64 = 77;
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let (victim, other) = (stopped(), process(&coordinator, plain(1)));
    let mut before = coordinator.client(Role::Process);
    let (pid, host) = (victim.pid(), "here".into());
    before
        .send(&FromProcess::Join { token: 0, pid, ppid: -1, exe: "/bin/before".into(), host, restarted_from: None })
        .unwrap();
    let _joined: ToProcess = before.receive().unwrap();
    before.send(&FromProcess::Exec { token: TOKEN }).unwrap();
    drop(before);
    while coordinator.status().expected == 0 {
        std::thread::yield_now();
    }
    let mut asked = coordinator.ask(&Request::Checkpoint { kill: false });
    wait_state(pid, |s| s != 'T');
    let after = process(&coordinator, Behaviour { token: TOKEN, ..within(&victim) });
    let (path, _) = answer(&mut asked).unwrap();
    assert_eq!(Manifest::read(&path).unwrap().members.len(), 2);
    assert!(matches!((other.next(), after.next()), (Seen::Resumed(None), Seen::Resumed(None))));
    wait_state(pid, |s| s == 'T');
}

#[test]
fn a_stopped_process_is_stopped_again_when_the_checkpoint_fails() {
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let victim = stopped();
    let process = process(&coordinator, Behaviour { fail: Some(Point::Snapshot), ..within(&victim) });
    coordinator.checkpoint(false).unwrap_err();
    assert!(matches!(process.next(), Seen::Resumed(Some(_))));
    wait_state(victim.pid(), |s| s == 'T');
}

#[test]
fn who_is_continued_by_others_during_the_checkpoint_runs_on() {
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    // Once continued it blocks SIGCONT, as a program does whose threads stand in the agent's handler.
    let script = "use POSIX; $SIG{CONT} = sub { $on = 1 }; kill STOP => $$; \
        sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGCONT)); sleep 1000";
    let victim = Victim(Command::new("perl").args(["-e", script]).spawn().unwrap());
    wait_state(victim.pid(), |s| s == 'T');
    let blocks = |pid: i32| {
        let blocked = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let set = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim().to_string();
            u64::from_str_radix(&set, 16).unwrap() & 1 << 17 != 0
        };
        wait_state(pid, |_| blocked());
    };
    let behaviour = Behaviour {
        before_suspended: Some(blocks),
        before_snapshotted: Some(|pid| signal(pid, rustix::process::Signal::CONT)),
        ..within(&victim)
    };
    let process = process(&coordinator, behaviour);
    let (path, _) = coordinator.checkpoint(false).unwrap();
    assert_eq!((process.next(), process.next()), (Seen::Resumed(None), Seen::Finished(None)));
    assert_ne!(state(victim.pid()), 'T');
    assert!(!Manifest::read(&path).unwrap().members[0].stopped);
}

#[test]
fn a_restart_stops_who_was_stopped() {
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let (one, two) = (Victim::new(), Victim::new());
    let members = vec![RestartMember { stopped: true, ..back(1, one.pid()) }, back(2, two.pid())];
    let mut restart = coordinator.ask(&Request::Restart { token: 0, generation: 3, root_pid: one.pid(), members });
    assert!(matches!(restart.receive().unwrap(), Reply::Expecting));
    let restored = |pid: i32| Behaviour { restarted_from: Some(3), ..plain(pid) };
    let _back = [one.pid(), two.pid()].map(|pid| process(&coordinator, restored(pid)));
    assert!(matches!(restart.receive().unwrap(), Reply::Restarted));
    wait_state(one.pid(), |s| s == 'T');
    assert_ne!(state(two.pid()), 'T');
}
