//! The whole coordinator, with synthetic processes over loopback.
#![allow(clippy::print_stdout)] // why a test was skipped
mod common;

use common::{Behaviour, Coordinator, LONG, Point, Seen, Victim, answer, back, plain, process, temp};
use slackwater_coordinator::{Options, folder};
use slackwater_image::{generations, manifest::Manifest};
use slackwater_protocol::{
    auth::{Role, Secret},
    client::{Client, ClientError},
    command::{Phase, Reply, Request},
    message::{DescriptorKey, Entry, FromProcess, ToProcess},
};
use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
    process::Command,
    time::Duration,
};

#[test]
fn a_checkpoint_commits_a_generation_with_all_in_it() {
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let own = std::process::id() as i32;
    let (first, second) = (fs::File::open("/dev/null").unwrap(), fs::File::open("/dev/null").unwrap());
    let dup = first.try_clone().unwrap();
    let about = first.metadata().unwrap();
    let key = |file: &fs::File| DescriptorKey { fd: file.as_raw_fd(), dev: about.dev(), ino: about.ino() };
    let a = process(&coordinator, Behaviour { descriptors: vec![key(&first), key(&second)], ..plain(own) });
    let b = process(&coordinator, Behaviour { descriptors: vec![key(&dup)], ..plain(own) });
    let (path, figures) = coordinator.checkpoint(false).unwrap();
    assert_eq!((a.next(), a.next()), (Seen::Resumed(None), Seen::Finished(None)));
    assert_eq!((b.next(), b.next()), (Seen::Resumed(None), Seen::Finished(None)));

    assert_eq!(generations::find(&coordinator.dir, None).unwrap(), (1, path.clone()));
    let manifest = Manifest::read(&path).unwrap();
    assert_eq!(manifest.members.iter().map(|m| (m.member, m.pid)).collect::<Vec<_>>(), vec![(1, own), (2, own)]);
    assert_eq!(manifest.shared_descriptors, vec![vec![(1, first.as_raw_fd()), (2, dup.as_raw_fd())]]);
    assert_eq!((manifest.generation, manifest.root_pid), (1, own));
    for member in &manifest.members {
        assert_eq!(fs::metadata(path.join(&member.file)).unwrap().len(), member.bytes);
    }
    for private in ["secret", "address", "lock"] {
        assert_eq!(fs::metadata(coordinator.dir.join(private)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);

    let status = coordinator.status();
    assert_eq!((status.state, status.members.len(), status.generation), (Phase::Running, 2, Some(1)));
    assert_eq!(status.last_checkpoint.as_ref(), Some(&figures));
    assert_eq!((figures.stopped_us, figures.processes, figures.memory), (700, 2, 8192));
    let sum = figures.suspend_us + figures.quiesce_us + figures.snapshot_us + figures.save_us + figures.commit_us;
    assert!(sum <= figures.total_us && figures.resume_us <= figures.save_us, "{figures:?}");

    assert_eq!(coordinator.checkpoint(false).unwrap().0, coordinator.dir.join("generation-000002"));
}

#[test]
fn published_values_arrive_in_the_next_round() {
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let entry = |n: u8| Entry { scope: "t".into(), key: vec![n], value: vec![n; 3] };
    let ask = |n: u8| ("t".to_string(), vec![n]);
    let a = Behaviour { publish: vec![entry(1)], query: vec![ask(2), ask(9)], again: 1, ..plain(1) };
    let b = Behaviour { publish: vec![entry(2)], query: vec![ask(1)], again: 2, ..plain(2) };
    let (a, b) = (process(&coordinator, a), process(&coordinator, b));
    coordinator.checkpoint(false).unwrap();
    assert_eq!(a.next(), Seen::Values(vec![Some(vec![2; 3]), None]));
    assert_eq!(b.next(), Seen::Values(vec![Some(vec![1; 3])]));
}

#[test]
fn a_death_at_each_point_aborts_and_the_rest_runs_on() {
    for point in [Point::Quiesce, Point::Snapshot, Point::Saved] {
        let dir = temp();
        let coordinator = Coordinator::start(dir.path(), Options::default());
        let stays = process(&coordinator, plain(1));
        let dies = process(&coordinator, Behaviour { die: Some(point), exe: "/bin/doomed".into(), ..plain(22) });
        let reason = coordinator.checkpoint(false).unwrap_err();
        assert!(reason.contains("process 22 (/bin/doomed) ended"), "{point:?}: {reason}");
        dies.thread.join().unwrap();
        let resumed = if point == Point::Saved { None } else { Some(reason.clone()) };
        assert_eq!((stays.next(), stays.next()), (Seen::Resumed(resumed), Seen::Finished(Some(reason.clone()))));
        let status = coordinator.status();
        assert_eq!((status.state, status.members.len()), (Phase::Running, 1));
        assert_eq!(status.error, Some(reason));
        let (path, _) = coordinator.checkpoint(false).unwrap();
        assert_eq!(path, coordinator.dir.join("generation-000002"));
        assert_eq!(generations::list(&coordinator.dir).unwrap().committed, vec![2]);
        assert_eq!(coordinator.status().error, None);
    }
}

#[test]
fn who_leaves_before_it_stands_is_simply_not_in_the_generation() {
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let _stays = process(&coordinator, plain(1));
    let _leaves = process(&coordinator, Behaviour { die: Some(Point::Suspend), ..plain(2) });
    let (path, _) = coordinator.checkpoint(false).unwrap();
    assert_eq!(Manifest::read(&path).unwrap().members.len(), 1);
}

#[test]
fn a_failure_at_each_point_aborts_and_everybody_runs_on() {
    for point in [Point::Suspend, Point::Quiesce, Point::Snapshot, Point::Saved] {
        let dir = temp();
        let coordinator = Coordinator::start(dir.path(), Options::default());
        let fine = process(&coordinator, plain(1));
        let fails = process(&coordinator, Behaviour { fail: Some(point), ..plain(2) });
        let reason = coordinator.checkpoint(false).unwrap_err();
        assert_eq!(reason, "process 2 (synthetic): it was told to", "{point:?}");
        for process in [&fine, &fails] {
            assert!(matches!(process.next(), Seen::Resumed(_)));
            assert_eq!(process.next(), Seen::Finished(Some(reason.clone())));
        }
        assert_eq!(coordinator.status().members.len(), 2);
    }
}

#[test]
fn who_is_not_ready_is_asked_again() {
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let fine = process(&coordinator, plain(1));
    let _busy = process(&coordinator, Behaviour { unready: 5, ..plain(2) });
    let (path, figures) = coordinator.checkpoint(false).unwrap();
    assert_eq!(Manifest::read(&path).unwrap().members.len(), 2);
    assert_eq!(figures.retaken, 5);
    for _ in 0..5 {
        assert!(matches!(fine.next(), Seen::Resumed(Some(_))));
        assert!(matches!(fine.next(), Seen::Finished(Some(_))));
    }
    assert_eq!(fine.next(), Seen::Resumed(None));
}

/// Fills the file system that the folder is on, once there is a generation to lose.
fn fill(folder: &Path) {
    let dir = folder.parent().unwrap();
    if dir.join("generation-000001").exists() {
        let mut file = fs::File::create(dir.join("filler")).unwrap();
        while file.write_all(&[1; 512]).is_ok() {}
    }
}

#[test]
fn a_full_disk_fails_that_checkpoint_alone() {
    if !rustix::process::getuid().is_root() {
        return println!("not root: no file system of its own for this test");
    }
    struct Mounted(tempfile::TempDir);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
        }
    }
    let dir = Mounted(temp());
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(dir.0.path()).status();
    if !mount.is_ok_and(|status| status.success()) {
        return println!("no tmpfs can be mounted here");
    }
    let coordinator = Coordinator::start(dir.0.path(), Options::default());
    let process = process(&coordinator, Behaviour { after_image: Some(fill), ..plain(1) });
    coordinator.checkpoint(false).unwrap();
    // Once while the manifest is written, once (the disk is full already) while an image is.
    let manifest = coordinator.checkpoint(false).unwrap_err();
    assert!(manifest.contains("No space left on device") && manifest.contains("manifest"), "{manifest}");
    let image = coordinator.checkpoint(false).unwrap_err();
    assert!(image.contains("No space left on device"), "{image}");
    let seen: Vec<_> = (0..6).map(|_| process.next()).collect();
    assert_eq!((&seen[3], &seen[5]), (&Seen::Finished(Some(manifest)), &Seen::Finished(Some(image))));
    assert_eq!(coordinator.status().generation, Some(1));
    assert_eq!(Manifest::read(&generations::find(&coordinator.dir, None).unwrap().1).unwrap().generation, 1);
    fs::remove_file(coordinator.dir.join("filler")).unwrap();
}

#[test]
fn a_wrong_secret_is_refused_and_logged() {
    let dir = temp();
    let program = std::env::current_exe().unwrap();
    let log = dir.path().join("log");
    // A coordinator of its own process, so that its log is a file: this very test program, see `as_a_program`.
    let mut child = Command::new(program)
        .args(["as_a_program", "--exact", "--nocapture"])
        .env("TEST_COORDINATOR", dir.path())
        .stderr(fs::File::create(&log).unwrap())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 1];
    let mut stdout = child.stdout.take().unwrap();
    while ready != *b"!" {
        stdout.read_exact(&mut ready).unwrap();
    }
    let addr = folder::read_address(dir.path()).unwrap();
    let refused = Client::connect(addr, &Secret::new([1; 32]), Role::Command).unwrap_err();
    assert!(matches!(refused, ClientError::Refused), "{refused}");
    // The log line is written before the connection is closed; the same connection, then, orders the two.
    let right = folder::connect(dir.path(), Role::Command).unwrap();
    drop(right);
    child.kill().unwrap();
    child.wait().unwrap();
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("refused a connection from 127.0.0.1:"), "{log}");
    assert!(log.contains("does not know the computation's secret"), "{log}");
}

/// Not a test by itself: the coordinator of `a_wrong_secret_is_refused_and_logged`.
#[test]
fn as_a_program() {
    let Some(dir) = std::env::var_os("TEST_COORDINATOR") else { return };
    let claim = folder::claim(Path::new(&dir)).unwrap();
    println!("!");
    slackwater_coordinator::server::run(claim, &Options::default()).unwrap();
}

#[test]
fn two_computations_side_by_side_and_one_folder_for_one() {
    let (one, two) = (temp(), temp());
    let (first, second) =
        (Coordinator::start(one.path(), Options::default()), Coordinator::start(two.path(), Options::default()));
    let busy = folder::claim(one.path()).unwrap_err();
    assert!(busy.to_string().contains("is in use by a computation that runs"), "{busy}");
    let (_a, _b) = (process(&first, plain(1)), process(&second, plain(2)));
    assert_eq!(Manifest::read(&first.checkpoint(false).unwrap().0).unwrap().members[0].pid, 1);
    assert_eq!(Manifest::read(&second.checkpoint(false).unwrap().0).unwrap().members[0].pid, 2);
    // The secret of one is of no use at the other.
    let addr = folder::read_address(&second.dir).unwrap();
    let wrong = folder::read_secret(&first.dir).unwrap();
    assert!(matches!(Client::connect(addr, &wrong, Role::Process), Err(ClientError::Refused)));
}

#[test]
fn it_ends_with_its_last_process_and_numbers_go_on() {
    let dir = temp();
    for generation in 1..3 {
        let coordinator = Coordinator::start(dir.path(), Options::default());
        let last = process(&coordinator, Behaviour { die: Some(Point::Suspend), ..plain(1) });
        let other = process(&coordinator, plain(2));
        assert_eq!(coordinator.checkpoint(true).unwrap().1.generation, generation);
        // Told to end, it does not run on after the cut.
        assert_eq!((other.next(), other.next()), (Seen::Finished(None), Seen::Killed));
        last.thread.join().unwrap();
        coordinator.ended();
    }
    assert_eq!(generations::list(dir.path()).unwrap().committed, vec![1, 2]);
}

#[test]
fn it_ends_when_the_process_it_was_started_for_never_joins() {
    let dir = temp();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let options = Options { expect: Some((7, child.id() as i32)), ..Options::default() };
    let coordinator = Coordinator::start(dir.path(), options);
    assert_eq!(coordinator.status().state, Phase::Starting);
    let mut waits = coordinator.ask(&Request::Checkpoint { kill: false });
    child.kill().unwrap();
    assert!(answer(&mut waits).unwrap_err().contains("nothing to checkpoint"));
    child.wait().unwrap();
    coordinator.ended();
}

#[test]
fn kill_ends_real_processes() {
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let exe = fs::read_link(format!("/proc/{}/exe", child.id())).unwrap().to_string_lossy().into_owned();
    let synthetic = process(&coordinator, Behaviour { exe, ..plain(child.id() as i32) });
    let mut kill = coordinator.ask(&Request::Kill);
    // A connection that outlives its process does not matter.
    assert!(matches!(kill.receive().unwrap(), Reply::Gone));
    assert_eq!(synthetic.next(), Seen::Closed);
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    coordinator.ended();
}

#[test]
fn a_restart_gives_the_old_numbers_and_holds_rounds() {
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let (one, two) = (Victim::new(), Victim::new());
    let (pid, other) = (one.pid(), two.pid());
    let members = vec![back(5, pid), back(9, other)];
    let mut restart = coordinator.ask(&Request::Restart { token: 0, generation: 3, root_pid: pid, members });
    assert!(matches!(restart.receive().unwrap(), Reply::Expecting));
    let entry = Entry { scope: "t".into(), key: vec![1], value: vec![2] };
    let restored = |pid: i32| Behaviour { restarted_from: Some(3), again: 1, ..plain(pid) };
    let (first, second) = (coordinator.client(Role::Process), coordinator.client(Role::Process));
    let spawn = |client: Client, behaviour: Behaviour| {
        let (tell, seen) = std::sync::mpsc::channel();
        std::thread::spawn(move || common::live(client, &behaviour, &tell));
        seen
    };
    let first = spawn(first, Behaviour { publish: vec![entry], ..restored(pid) });
    let second = spawn(second, Behaviour { query: vec![("t".into(), vec![1])], ..restored(other) });
    let next = |seen: &std::sync::mpsc::Receiver<Seen>| seen.recv_timeout(LONG).unwrap();
    assert_eq!((next(&first), next(&first)), (Seen::Joined(5), Seen::Resumed(None)));
    assert_eq!(next(&second), Seen::Joined(9));
    assert_eq!((next(&second), next(&second)), (Seen::Values(vec![Some(vec![2])]), Seen::Resumed(None)));
    assert!(matches!(restart.receive().unwrap(), Reply::Restarted));
    let (path, _) = coordinator.checkpoint(false).unwrap();
    let manifest = Manifest::read(&path).unwrap();
    assert_eq!(manifest.members.iter().map(|m| m.member).collect::<Vec<_>>(), vec![5, 9]);
    assert_eq!(manifest.root_pid, pid);
}

#[test]
fn a_program_started_since_asks_for_what_was_published_in_the_last_restart() {
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let keys = vec![("t".into(), vec![1]), ("t".into(), vec![2])];
    let recall = || {
        let mut client = coordinator.client(Role::Process);
        client.send(&FromProcess::Query { keys: keys.clone() }).unwrap();
        client.receive::<ToProcess>().unwrap()
    };
    let values = |values: [Option<Vec<u8>>; 2]| ToProcess::Values { values: values.into() };
    assert_eq!(recall(), values([None, None]), "there was none");
    let victim = Victim::new();
    let pid = victim.pid();
    let request = Request::Restart { token: 0, generation: 3, root_pid: pid, members: vec![back(5, pid)] };
    let mut restart = coordinator.ask(&request);
    assert!(matches!(restart.receive().unwrap(), Reply::Expecting));
    // Published in the last round: also what nobody could see in the restart itself.
    let publish = vec![Entry { scope: "t".into(), key: vec![1], value: vec![2] }];
    let _back = process(&coordinator, Behaviour { restarted_from: Some(3), publish, ..plain(pid) });
    assert!(matches!(restart.receive().unwrap(), Reply::Restarted));
    assert_eq!(recall(), values([Some(vec![2]), None]));
    // Another key: both publish in the checkpoint, and of one key the later value would hold.
    let publish = vec![Entry { scope: "t".into(), key: vec![2], value: vec![3] }];
    let new = process(&coordinator, Behaviour { publish, query: keys.clone(), again: 2, ..plain(6) });
    coordinator.checkpoint(false).unwrap();
    while new.next() != Seen::Values(vec![Some(vec![2]), Some(vec![3])]) {}
    assert_eq!(recall(), values([Some(vec![2]), None]), "a checkpoint's values are its own");
}

#[test]
fn a_checkpoint_asked_for_before_the_restart_waits_for_it() {
    let dir = temp();
    let (command, victim) = (Victim::new(), Victim::new());
    let options = Options { expect: Some((7, command.pid())), ..Options::default() };
    let coordinator = Coordinator::start(dir.path(), options);
    let mut asked = coordinator.ask(&Request::Checkpoint { kill: false });
    while coordinator.status().state == Phase::Starting {
        std::thread::yield_now();
    }
    let (pid, members) = (victim.pid(), vec![back(5, victim.pid())]);
    let mut restart = coordinator.ask(&Request::Restart { token: 7, generation: 3, root_pid: pid, members });
    assert!(matches!(restart.receive().unwrap(), Reply::Expecting));
    let back = process(&coordinator, Behaviour { restarted_from: Some(3), ..plain(pid) });
    assert!(matches!(restart.receive().unwrap(), Reply::Restarted));
    let (path, _) = answer(&mut asked).unwrap();
    assert_eq!(Manifest::read(&path).unwrap().members.len(), 1);
    assert_eq!((back.next(), back.next()), (Seen::Resumed(None), Seen::Resumed(None)));
}

#[test]
fn a_restart_that_fails_in_one_process_kills_all() {
    let dir = temp();
    let coordinator = Coordinator::start(dir.path(), Options::default());
    let (mut one, two) = (Victim::new(), Victim::new());
    let (pid, other) = (one.pid(), two.pid());
    let members = vec![back(1, pid), back(2, other)];
    let mut restart = coordinator.ask(&Request::Restart { token: 0, generation: 3, root_pid: pid, members });
    assert!(matches!(restart.receive().unwrap(), Reply::Expecting));
    let fine = process(&coordinator, Behaviour { restarted_from: Some(3), ..plain(pid) });
    let dies = process(&coordinator, Behaviour { restarted_from: Some(3), die: Some(Point::Quiesce), ..plain(other) });
    dies.thread.join().unwrap();
    assert_eq!(fine.next(), Seen::Closed);
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(one.0.wait().unwrap().signal(), Some(9));
    let Reply::Failed { reason } = restart.receive().unwrap() else { panic!("it did not fail") };
    assert!(reason.contains(&format!("process {other} (synthetic) ended during the restart")), "{reason}");
    coordinator.ended();
}

#[test]
fn the_interval_takes_checkpoints_and_keeps_the_newest() {
    let dir = temp();
    let options = Options { interval: Some(Duration::from_millis(5)), keep: Some(2), ..Options::default() };
    let coordinator = Coordinator::start(dir.path(), options);
    let process = process(&coordinator, plain(1));
    for _ in 0..5 {
        assert_eq!((process.next(), process.next()), (Seen::Resumed(None), Seen::Finished(None)));
    }
    let mut kill = coordinator.ask(&Request::Kill);
    assert!(matches!(kill.receive().unwrap(), Reply::Gone));
    let dir = coordinator.ended();
    let kept = generations::list(&dir).unwrap();
    assert_eq!((kept.committed.len(), kept.partial.len()), (2, 0));
}

#[test]
fn who_does_not_answer_is_named_when_patience_ends() {
    let dir = temp();
    let options = Options { patience: Duration::from_millis(200), ..Options::default() };
    let coordinator = Coordinator::start(dir.path(), options);
    let fine = process(&coordinator, plain(1));
    let mut silent = coordinator.client(Role::Process);
    silent
        .send(&FromProcess::Join {
            token: 0,
            pid: 33,
            ppid: -1,
            exe: "/bin/deaf".into(),
            host: "here".into(),
            restarted_from: None,
        })
        .unwrap();
    let _joined: ToProcess = silent.receive().unwrap();
    let reason = coordinator.checkpoint(false).unwrap_err();
    assert!(reason.contains("process 33 (/bin/deaf)") && reason.contains("no answer"), "{reason}");
    assert_eq!((fine.next(), fine.next()), (Seen::Resumed(Some(reason.clone())), Seen::Finished(Some(reason))));
}
