//! A coordinator on a thread, and synthetic processes that speak the protocol: what the agent does, without a program.
#![allow(dead_code)] // each test program uses a part of it
use slackwater_coordinator::{Options, folder, server};
use slackwater_protocol::{
    auth::Role,
    client::Client,
    command::{Figures, Reply, Request, RestartMember, Status},
    message::{DescriptorKey, Entry, FromProcess, ToProcess},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};

/// Longer than anything here takes; a wait that lasts so long is a failure.
pub const LONG: Duration = Duration::from_secs(60);

/// A coordinator of a folder.
pub struct Coordinator {
    pub dir: PathBuf,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Coordinator {
    pub fn start(dir: &Path, options: Options) -> Self {
        let claim = folder::claim(dir).unwrap();
        let dir = claim.dir.clone();
        let named = std::thread::Builder::new().name("coordinator".into());
        Self { dir, thread: named.spawn(move || server::run(claim, &options)).unwrap() }
    }

    pub fn client(&self, role: Role) -> Client {
        let client = folder::connect(&self.dir, role).unwrap();
        client.set_timeout(Some(LONG)).unwrap();
        client
    }

    pub fn ask(&self, request: &Request) -> Client {
        let mut client = self.client(Role::Command);
        client.send(request).unwrap();
        client
    }

    pub fn status(&self) -> Status {
        match self.ask(&Request::Status).receive().unwrap() {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub fn checkpoint(&self, kill: bool) -> Result<(PathBuf, Figures), String> {
        answer(&mut self.ask(&Request::Checkpoint { kill }))
    }

    /// It ends by itself.
    pub fn ended(self) -> PathBuf {
        self.thread.join().unwrap().unwrap();
        assert!(folder::read_address(&self.dir).is_err(), "the address outlives the coordinator");
        self.dir
    }
}

/// The last answer to a request for a checkpoint.
pub fn answer(client: &mut Client) -> Result<(PathBuf, Figures), String> {
    loop {
        match client.receive().unwrap() {
            Reply::Progress { .. } => {}
            Reply::Committed { path, figures } => return Ok((path.into(), figures)),
            Reply::Failed { reason } => return Err(reason),
            other => panic!("{other:?}"),
        }
    }
}

/// How a synthetic process behaves.
#[derive(Clone, Default)]
pub struct Behaviour {
    pub pid: i32,
    pub token: u64,
    pub exe: String,
    pub restarted_from: Option<u64>,
    pub descriptors: Vec<DescriptorKey>,
    /// Rounds in which it says "again".
    pub again: u32,
    /// Published in round 0.
    pub publish: Vec<Entry>,
    /// Asked for in the last round.
    pub query: Vec<(String, Vec<u8>)>,
    /// Ends instead of an answer to this.
    pub die: Option<Point>,
    /// Fails instead of an answer to this.
    pub fail: Option<Point>,
    /// So often it is not ready when it shall freeze its memory.
    pub unready: u32,
    /// What it writes; else a line that is no image.
    pub image: Option<Vec<u8>>,
    /// Run when the image has been written: what goes wrong outside of it.
    pub after_image: Option<fn(&Path)>,
    /// Run with its pid before it says that it stands, and that its memory is frozen.
    pub before_suspended: Option<fn(i32)>,
    pub before_snapshotted: Option<fn(i32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    Prepare,
    Suspend,
    Quiesce,
    Snapshot,
    Saved,
}

/// What it has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Joined(u64),
    Resumed(Option<String>),
    Values(Vec<Option<Vec<u8>>>),
    Finished(Option<String>),
    Killed,
    Closed,
}

pub struct Process {
    pub seen: Receiver<Seen>,
    pub thread: JoinHandle<()>,
}

impl Process {
    /// The next thing that it sees.
    pub fn next(&self) -> Seen {
        self.seen.recv_timeout(LONG).unwrap()
    }
}

/// Joins and behaves, on a thread; returns when it has joined.
pub fn process(coordinator: &Coordinator, behaviour: Behaviour) -> Process {
    let client = coordinator.client(Role::Process);
    let (tell, seen) = channel();
    let thread = std::thread::spawn(move || live(client, &behaviour, &tell));
    let process = Process { seen, thread };
    assert!(matches!(process.next(), Seen::Joined(_)));
    process
}

pub fn live(mut client: Client, behaviour: &Behaviour, tell: &Sender<Seen>) {
    // The test may have seen enough and be gone.
    let see = |seen| drop(tell.send(seen));
    let Behaviour { pid, token, exe, restarted_from, .. } = behaviour.clone();
    let exe = if exe.is_empty() { "synthetic".into() } else { exe };
    client.send(&FromProcess::Join { token, pid, ppid: -1, exe, host: "here".into(), restarted_from }).unwrap();
    client.set_timeout(None).unwrap();
    let mut image = (String::new(), PathBuf::new());
    let mut sync_mode = false;
    let mut generation = 0;
    let mut unready = behaviour.unready;
    loop {
        let Ok(message) = client.receive::<ToProcess>() else { return see(Seen::Closed) };
        let point = match &message {
            ToProcess::Prepare { .. } => Some(Point::Prepare),
            ToProcess::Suspend { .. } => Some(Point::Suspend),
            ToProcess::Round { .. } => Some(Point::Quiesce),
            ToProcess::Snapshot { .. } => Some(Point::Snapshot),
            _ => None,
        };
        if point.is_some() && point == behaviour.die {
            return;
        }
        let failed = |generation| FromProcess::Failed { generation, reason: "it was told to".into() };
        if point.is_some() && point == behaviour.fail {
            if let ToProcess::Suspend { generation: new, .. } = message {
                generation = new;
            }
            client.send(&failed(generation)).unwrap();
            continue;
        }
        let save = |client: &mut Client, generation, image: &(String, PathBuf)| {
            if behaviour.fail == Some(Point::Saved) {
                return client.send(&failed(generation)).unwrap();
            }
            let content = behaviour.image.clone().unwrap_or_else(|| format!("memory of {pid}").into_bytes());
            if let Err(error) = fs::write(&image.1, &content) {
                let reason = format!("{}: {error}", image.1.display());
                return client.send(&FromProcess::Failed { generation, reason }).unwrap();
            }
            if let Some(after) = behaviour.after_image {
                after(image.1.parent().unwrap());
            }
            let (file, bytes) = (image.0.clone(), content.len() as u64);
            client.send(&FromProcess::Saved { generation, file, bytes, memory: 4096 }).unwrap();
        };
        match message {
            ToProcess::Joined { member } => {
                image.0 = format!("process-{member}.image");
                see(Seen::Joined(member));
            }
            ToProcess::Suspend { generation: new, .. } => {
                generation = new;
                if let Some(before) = behaviour.before_suspended {
                    before(pid);
                }
                let descriptors = behaviour.descriptors.clone();
                client.send(&FromProcess::Suspended { generation, threads: 3, descriptors, shared: vec![] }).unwrap();
            }
            ToProcess::Round { kind, round, .. } => {
                if round == behaviour.again && !behaviour.query.is_empty() {
                    client.send(&FromProcess::Query { keys: behaviour.query.clone() }).unwrap();
                    let ToProcess::Values { values } = client.receive().unwrap() else { panic!("no values") };
                    see(Seen::Values(values));
                }
                let publish = if round == 0 { behaviour.publish.clone() } else { vec![] };
                let again = round < behaviour.again;
                client.send(&FromProcess::RoundDone { kind, round, again, publish }).unwrap();
            }
            ToProcess::Snapshot { generation, .. } if unready > 0 => {
                unready -= 1;
                client.send(&FromProcess::Unready { generation, reason: "not yet".into() }).unwrap();
            }
            ToProcess::Snapshot { generation, folder, sync, .. } => {
                image.1 = Path::new(&folder).join(&image.0);
                sync_mode = sync;
                if let Some(before) = behaviour.before_snapshotted {
                    before(pid);
                }
                client.send(&FromProcess::Snapshotted { generation, forked: !sync, note: String::new() }).unwrap();
                if sync {
                    save(&mut client, generation, &image);
                }
            }
            ToProcess::Resume { generation: of, aborted } => {
                client.send(&FromProcess::Resumed { generation: of, stopped_us: 700 }).unwrap();
                let goes_on = aborted.is_none() && !sync_mode && generation > 0;
                see(Seen::Resumed(aborted));
                if goes_on && behaviour.die == Some(Point::Saved) {
                    return;
                }
                if goes_on {
                    save(&mut client, of, &image);
                }
            }
            ToProcess::Finished { failed, .. } => see(Seen::Finished(failed)),
            ToProcess::Write { .. } => {}
            ToProcess::Prepare { generation } => client.send(&FromProcess::Prepared { generation }).unwrap(),
            ToProcess::Kill => return see(Seen::Killed),
            ToProcess::Values { .. } => panic!("values that nobody asked for"),
        }
    }
}

/// A folder for a computation.
pub fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A process of this pid that does as it is told.
pub fn plain(pid: i32) -> Behaviour {
    Behaviour { pid, ..Behaviour::default() }
}

/// A member that comes back as this process.
pub fn back(member: u64, pid: i32) -> RestartMember {
    RestartMember { member, pid, stopped: false }
}

/// A process that is there to be watched and killed.
pub struct Victim(pub std::process::Child);

impl Victim {
    pub fn new() -> Self {
        Self(std::process::Command::new("sleep").arg("1000").spawn().unwrap())
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
