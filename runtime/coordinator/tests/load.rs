//! Thousands of synthetic processes at one coordinator, over loopback: figures are printed (`--nocapture`), and bounded.
//!
//! Few threads drive many connections each, phase by phase; what they cost is part of what is measured.
#![allow(clippy::print_stdout)] // the figures
mod common;

use common::Coordinator;
use slackwater_coordinator::Options;
use slackwater_protocol::{
    auth::Role,
    client::Client,
    command::{Figures, Reply, Request},
    message::{Entry, FromProcess, ToProcess},
};
use std::{
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Instant,
};

const THREADS: usize = 8;

fn entry_of(member: u64, n: u16) -> (Vec<u8>, Vec<u8>) {
    let mut key = member.to_le_bytes().to_vec();
    key.extend(n.to_le_bytes());
    let value = key.iter().copied().cycle().take(32).collect();
    (key, value)
}

/// What each process publishes in round 0, and asks for in round 1.
#[derive(Clone, Copy)]
enum Exchange {
    /// So many entries of 32 bytes; and as many, each of another process.
    Entries(u16),
    /// What the InfiniBand plugin does at a restart, for 64 queue pairs and 256 memory regions: a card with a port, and with four bytes for
    /// each of those; and all cards.
    Restart,
}

const CARD: usize = 190 + (64 + 256) * 4;

impl Exchange {
    fn publish(self, member: u64) -> Vec<Entry> {
        let entry = |(key, value)| Entry { scope: "ib".into(), key, value };
        match self {
            Self::Entries(n) => (0..n).map(|n| entry(entry_of(member, n))).collect(),
            Self::Restart => vec![entry((card_key(member), vec![member as u8; CARD]))],
        }
    }

    /// Keys and what must be found there.
    fn ask(self, member: u64, processes: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
        let other = |n: u64| (member + n) % processes + 1;
        match self {
            Self::Entries(n) => (0..n).map(|n| entry_of(other(n.into()), n)).collect(),
            Self::Restart => (1..=processes).map(|m| (card_key(m), vec![m as u8; CARD])).collect(),
        }
    }
}

fn card_key(member: u64) -> Vec<u8> {
    let mut key = vec![b'm'];
    key.extend(member.to_le_bytes());
    key
}

/// Takes `clients` through one checkpoint, with an exchange of published values.
fn cycle(clients: &mut [(u64, Client)], processes: u64, exchange: Exchange) {
    let each = |clients: &mut [(u64, Client)], act: &dyn Fn(u64, &mut Client, ToProcess)| {
        for (member, client) in clients.iter_mut() {
            let mut message = client.receive().unwrap();
            // This process may have much memory.
            if let ToProcess::Prepare { generation } = message {
                client.send(&FromProcess::Prepared { generation }).unwrap();
                message = client.receive().unwrap();
            }
            act(*member, client, message);
        }
    };
    each(clients, &|_, client, message| {
        let ToProcess::Suspend { generation, .. } = message else { panic!("{message:?}") };
        client.send(&FromProcess::Suspended { generation, threads: 1, descriptors: vec![], shared: vec![] }).unwrap();
    });
    each(clients, &|member, client, message| {
        let ToProcess::Round { kind, round: 0, .. } = message else { panic!("{message:?}") };
        let publish = exchange.publish(member);
        client.send(&FromProcess::RoundDone { kind, round: 0, again: true, publish }).unwrap();
    });
    each(clients, &|member, client, message| {
        let ToProcess::Round { round: 1, .. } = message else { panic!("{message:?}") };
        let keys = exchange.ask(member, processes).into_iter().map(|(key, _)| ("ib".into(), key));
        client.send(&FromProcess::Query { keys: keys.collect() }).unwrap();
    });
    each(clients, &|member, client, message| {
        let ToProcess::Values { values } = message else { panic!("{message:?}") };
        let expected = exchange.ask(member, processes);
        assert_eq!(values.len(), expected.len());
        assert!(expected.into_iter().zip(values).all(|((_, expected), value)| value == Some(expected)));
        let kind = slackwater_protocol::message::RoundKind::Quiesce;
        client.send(&FromProcess::RoundDone { kind, round: 1, again: false, publish: vec![] }).unwrap();
    });
    each(clients, &|member, client, message| {
        let ToProcess::Snapshot { generation, folder, .. } = message else { panic!("{message:?}") };
        fs::write(Path::new(&folder).join(format!("{member}.image")), "image").unwrap();
        client.send(&FromProcess::Snapshotted { generation, forked: true, note: String::new() }).unwrap();
    });
    each(clients, &|member, client, message| {
        let ToProcess::Resume { generation, aborted: None } = message else { panic!("{message:?}") };
        client.send(&FromProcess::Resumed { generation, stopped_us: 1 }).unwrap();
        let file = format!("{member}.image");
        client.send(&FromProcess::Saved { generation, file, bytes: 5, memory: 4096 }).unwrap();
    });
    each(clients, &|_, client, message| {
        // Whose image was not saved when the last had resumed is told that it may write.
        let write = matches!(message, ToProcess::Write { .. });
        let message = if write { client.receive().unwrap() } else { message };
        assert!(matches!(message, ToProcess::Finished { failed: None, .. }), "{message:?}");
    });
}

/// Processor time of this process's coordinators so far, in milliseconds (schedstat of proc_pid_schedstat(5)).
fn coordinator_ms() -> u64 {
    let mut total = 0;
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        if read("comm").trim() == "coordinator" {
            total += read("schedstat").split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    total / 1_000_000
}

/// One after the other: together they would need more descriptors than each may count on, and spoil each other's figures.
static ALONE: Mutex<()> = Mutex::new(());

fn run(processes: u64, exchange: Exchange) -> Figures {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Memory, where there is any: the disk is not what is measured.
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let start = Instant::now();
    let mut shares: Vec<Vec<(u64, Client)>> = (0..THREADS).map(|_| Vec::new()).collect();
    std::thread::scope(|scope| {
        for (i, share) in shares.iter_mut().enumerate() {
            let coordinator = &coordinator;
            scope.spawn(move || {
                for pid in (0..processes).filter(|pid| *pid as usize % THREADS == i) {
                    let mut client = coordinator.client(Role::Process);
                    let (exe, host) = ("synthetic".into(), "elsewhere".into());
                    let pid = pid as i32 + 1;
                    client
                        .send(&FromProcess::Join { token: 0, pid, ppid: -1, exe, host, restarted_from: None })
                        .unwrap();
                    let ToProcess::Joined { member } = client.receive().unwrap() else { panic!("not joined") };
                    share.push((member, client));
                }
            });
        }
    });
    let joined = start.elapsed();
    let before = coordinator_ms();
    let mut asked = coordinator.ask(&Request::Checkpoint { kill: false });
    std::thread::scope(|scope| {
        for share in &mut shares {
            scope.spawn(|| cycle(share, processes, exchange));
        }
    });
    let (_, figures) = common::answer(&mut asked).unwrap();
    println!(
        "{processes} processes: joined in {joined:?}; exchange in {} ms, the whole {} ms of the coordinator's time; {figures:?}",
        figures.quiesce_us / 1000,
        coordinator_ms() - before
    );
    let mut kill = coordinator.ask(&Request::Kill);
    std::thread::scope(|scope| {
        for share in &mut shares {
            scope.spawn(|| {
                for (_, mut client) in share.drain(..) {
                    assert_eq!(client.receive::<ToProcess>().unwrap(), ToProcess::Kill);
                }
            });
        }
    });
    assert!(matches!(kill.receive().unwrap(), Reply::Gone));
    coordinator.ended();
    figures
}

/// As many connections as descriptors allow, both ends being in this process.
fn bounded(processes: u64) -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    processes.min(limit.saturating_sub(100) / 2)
}

#[test]
fn a_thousand_processes_exchange_keys() {
    let figures = run(bounded(1024), Exchange::Entries(64 + 256));
    // What is aimed at, on two processors that have nothing else to do, is a second; other test programs may run, so
    // that here the bound is that nothing is quadratic.
    assert!(figures.quiesce_us <= 30_000_000, "{figures:?}");
}

/// The restart exchange of InfiniBand. Measured alone on two cores it must stay below a second; the bound is as above.
#[test]
fn a_thousand_processes_restart_over_verbs() {
    let figures = run(bounded(1024), Exchange::Restart);
    assert!(figures.quiesce_us <= 30_000_000, "{figures:?}");
}

#[test]
fn four_thousand_processes_pass_all_barriers() {
    let figures = run(bounded(4096), Exchange::Entries(2));
    assert_eq!(u64::from(figures.processes), bounded(4096));
    assert!(figures.total_us <= 30_000_000, "{figures:?}");
}
