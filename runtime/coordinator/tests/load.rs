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
use std::{fs, path::Path, time::Instant};

const THREADS: usize = 8;

fn entry(member: u64, n: u16) -> (Vec<u8>, Vec<u8>) {
    let mut key = member.to_le_bytes().to_vec();
    key.extend(n.to_le_bytes());
    let value = key.iter().copied().cycle().take(32).collect();
    (key, value)
}

/// Takes `clients` through one checkpoint; each publishes `entries`, and queries those of the `neighbours` next members.
fn cycle(clients: &mut [(u64, Client)], processes: u64, entries: u16) {
    let each = |clients: &mut [(u64, Client)], act: &dyn Fn(u64, &mut Client, ToProcess)| {
        for (member, client) in clients.iter_mut() {
            let message = client.receive().unwrap();
            act(*member, client, message);
        }
    };
    each(clients, &|_, client, message| {
        let ToProcess::Suspend { generation } = message else { panic!("{message:?}") };
        client.send(&FromProcess::Suspended { generation, threads: 1, descriptors: vec![], shared: vec![] }).unwrap();
    });
    each(clients, &|member, client, message| {
        let ToProcess::Round { kind, round: 0, .. } = message else { panic!("{message:?}") };
        let publish = (0..entries).map(|n| entry(member, n));
        let publish = publish.map(|(key, value)| Entry { scope: "ib".into(), key, value }).collect();
        client.send(&FromProcess::RoundDone { kind, round: 0, again: true, publish }).unwrap();
    });
    each(clients, &|member, client, message| {
        let ToProcess::Round { round: 1, .. } = message else { panic!("{message:?}") };
        // Each of another process, as in an all-to-all.
        let keys = (0..entries).map(|n| ("ib".into(), entry((member + u64::from(n)) % processes + 1, n).0));
        client.send(&FromProcess::Query { keys: keys.collect() }).unwrap();
    });
    each(clients, &|member, client, message| {
        let ToProcess::Values { values } = message else { panic!("{message:?}") };
        assert_eq!(values.len(), usize::from(entries));
        for (n, value) in (0..entries).zip(values) {
            assert_eq!(value, Some(entry((member + u64::from(n)) % processes + 1, n).1));
        }
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

fn run(processes: u64, entries: u16) -> Figures {
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
    let mut asked = coordinator.ask(&Request::Checkpoint { kill: false });
    std::thread::scope(|scope| {
        for share in &mut shares {
            scope.spawn(|| cycle(share, processes, entries));
        }
    });
    let (_, figures) = common::answer(&mut asked).unwrap();
    println!(
        "{processes} processes: joined in {joined:?}; {entries} entries published and queried by each in {} ms; {figures:?}",
        figures.quiesce_us / 1000
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
    let figures = run(bounded(1024), 64 + 256);
    // What is aimed at, on two processors that have nothing else to do, is a second; tests run beside other tests, so
    // that here the bound is that nothing is quadratic.
    assert!(figures.quiesce_us <= 10_000_000, "{figures:?}");
}

#[test]
fn four_thousand_processes_pass_all_barriers() {
    let figures = run(bounded(4096), 2);
    assert_eq!(u64::from(figures.processes), bounded(4096));
    assert!(figures.total_us <= 30_000_000, "{figures:?}");
}
