//! Process 1 of the restart's pid namespace, and what happens in each member before it enters the restorer.
//!
//! Init makes what processes share, forks the tree, and lets go of everything but its line to the command outside: from then
//! on it reaps, passes signals on, and reports the first process's status the moment it ends. It ends when all have gone;
//! when it ends earlier, the kernel kills all that is in the namespace.
//!
//! Messages to the outside: `R` (all run), `G` + group (i32) of the first process for the terminal, `X`, `S` (ended,
//! stopped: wait status as i32), `C` (continued), `W` + text (a warning), `E` + text (failed: all is over). From it: `K` + signal,
//! for the first process; `F` + SIGCONT: the same, and its group gets the terminal's foreground.
use crate::enter;
use crate::memory::{Owners, SharedObjects, Stored, huge_segments, private_files};
use crate::sys::{self, SharedPage};
use crate::tree::build::{self, NEXT_BARRIER, Place};
use crate::tree::plan::{Id, Plan};
use crate::{Generation, Options, Saved, attributes, clocks, coordinator, environment, namespace, outer};
use anyhow::{Context, Result, anyhow};
use slackwater_image::reader::Reader;
use slackwater_objects::rebuild::{self, Computation, Prepared, ipc};
use slackwater_protocol::client::Client;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// All sessions have their terminals.
const TERMINALS: usize = NEXT_BARRIER;
/// All descriptors are in place.
const INSTALLED: usize = NEXT_BARRIER + 1;
/// How long the slowest process may take for its descriptors.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the coordinator may outlive the computation.
const FAREWELL: Duration = Duration::from_secs(10);

/// What init needs.
pub struct Init<'a> {
    pub options: &'a Options,
    pub generation: &'a Generation,
    pub plan: &'a Plan,
    pub channel: &'a OwnedFd,
    pub ours: attributes::Credentials,
    /// The command had its terminal's foreground.
    pub foreground: bool,
}

/// What lies behind mappings.
#[derive(Clone, Copy)]
struct Behind<'a> {
    memory: &'a SharedObjects,
    stored: &'a Stored,
}

/// Runs process 1; never returns. Members leave it through the restorer.
pub fn run(init: &Init<'_>, in_user_namespace: bool) -> ! {
    let shared = match SharedPage::new() {
        Ok(shared) => shared,
        Err(e) => give_up(init.channel, None, &anyhow!("no shared memory: {e}")),
    };
    let error = match init.start(&shared, in_user_namespace) {
        Ok(never) => match never {},
        Err(e) => e,
    };
    give_up(init.channel, Some(&shared), &error)
}

/// Says why, and ends. In process 1 that ends all.
fn give_up(channel: &OwnedFd, shared: Option<&SharedPage>, error: &anyhow::Error) -> ! {
    let first = shared.is_none_or(|s| !s.failed());
    if first {
        say(channel, b'E', format!("{error:#}").as_bytes());
    }
    if let Some(shared) = shared {
        shared.fail();
    }
    sys::exit(1)
}

fn say(channel: &OwnedFd, tag: u8, body: &[u8]) {
    let body = &body[..body.len().min(8000)];
    // Nobody listens any more: then nobody needs to know.
    let _ = sys::send(channel, &[&[tag], body].concat());
}

impl Init<'_> {
    fn start(&self, shared: &SharedPage, in_user_namespace: bool) -> Result<core::convert::Infallible> {
        sys::mask(libc::SIG_SETMASK, &sys::signals(&(1..=64).collect::<Vec<_>>()));
        let heard: Vec<i32> = outer::PASSED.into_iter().chain([libc::SIGCHLD]).collect();
        let signals = sys::signalfd(&sys::signals(&heard)).context("signalfd")?;
        namespace::settle(in_user_namespace, self.ours.uids[1], self.ours.gids[1])?;
        namespace::next_pid(self.plan.free.0 + self.plan.nodes.len() as i32)?;
        let g = self.generation;
        let regions = || g.saved.iter().flat_map(|s| &s.regions);
        let stored = Stored::find(regions(), self.options)?;
        for warning in &stored.warnings {
            say(self.channel, b'W', warning.as_bytes());
        }
        // Before the coordinator: its clock is what the next generation records.
        if let Some(clocks) = g.manifest.clocks
            && let Some(warning) = clocks::go_on(clocks)
        {
            say(self.channel, b'W', warning.as_bytes());
        }
        let (place, client) = self.start_coordinator()?;
        let mut owners = Owners::default();
        for saved in &g.saved {
            owners.add((saved.process.uids[1], saved.process.gids[1]), saved.regions.iter());
        }
        let mut memory = SharedObjects::names(regions(), &owners, self.options)?;
        let options = self.object_options();
        let computation = Computation { tables: &g.tables, shared: &g.manifest.shared_descriptors, options: &options };
        let prepared = rebuild::prepare(&computation)?;
        environment::leave_names(self.options, &prepared.known())?;
        let mut segments = ipc::make(g.ipc.iter(), &huge_segments(regions())).map_err(|e| anyhow!(e))?;
        memory.rest(regions(), &prepared, segments.segments(), self.options)?;
        for warning in prepared.warnings().iter().chain(segments.warnings()) {
            say(self.channel, b'W', warning.as_bytes());
        }

        // At a number that no program uses: it must be there to report what goes wrong with descriptors.
        let above = g.tables.iter().flat_map(|(_, t)| &t.descriptors).map(|d| d.fd).max().unwrap_or(2).max(255) + 1;
        let channel = sys::duplicate_above(self.channel, above).context("a descriptor above those of all processes")?;

        // The children of init must see SIGCHLD ignored, not pending.
        let all_but_child: Vec<i32> = (1..=64).filter(|s| *s != libc::SIGCHLD).collect();
        let ours = sys::mask(libc::SIG_SETMASK, &sys::signals(&all_but_child));
        match build::build(self.plan, shared)? {
            Place::Member(index) => {
                self.member(index, shared, prepared, Behind { memory: &memory, stored: &stored }, &place, &channel)
            }
            Place::Init => {
                sys::mask(libc::SIG_SETMASK, &ours);
                self.watch(shared, &signals, client, &mut segments)
            }
        }
    }

    fn object_options(&self) -> rebuild::Options {
        let bytes = |p: &std::path::Path| p.as_os_str().as_encoded_bytes().to_vec();
        let map_path = self.options.map_path.iter().map(|(old, new)| (bytes(old), bytes(new))).collect();
        rebuild::Options { files: self.options.files, map_path, external: self.options.external }
    }

    /// In this namespace, so that it sees processes by the numbers that they have themselves.
    fn start_coordinator(&self) -> Result<(coordinator::Place, Client)> {
        let token = coordinator::token()?;
        // Until somebody joins it lives as long as we do.
        let options = slackwater_coordinator::Options { expect: Some((token, 1)), ..self.options.coordinator.clone() };
        let daemon = attributes::lending_capability(|| {
            slackwater_coordinator::spawn_daemon(&self.options.dir, &options, &self.options.program)
        })?;
        let place = coordinator::Place { address: daemon.addr, secret: daemon.secret };
        let stream = coordinator::announce(&place, token, self.generation)?;
        Ok((place, stream))
    }

    // ---- in a member of the tree

    fn member(
        &self,
        index: usize,
        shared: &SharedPage,
        prepared: Prepared<'_>,
        behind: Behind<'_>,
        place: &coordinator::Place,
        channel: &OwnedFd,
    ) -> Result<core::convert::Infallible> {
        let saved = &self.generation.saved[index];
        let p = &saved.process;
        let who = || format!("process {} ({})", p.pid, p.exe);
        let alive = build::alive(self.plan);
        self.take_terminal(index, &prepared).with_context(who)?;
        shared.meet(TERMINALS, alive, PATIENCE).with_context(who)?;

        // Memory objects at numbers that the program does not use; the channel likewise.
        let objects: Vec<Option<RawFd>> = saved.regions.iter().map(|r| behind.memory.of(r)).collect();
        let mut keep: Vec<RawFd> = objects.iter().copied().flatten().collect();
        keep.push(channel.as_raw_fd());
        keep.sort_unstable();
        keep.dedup();
        let installed = prepared.install(saved.member, &keep)?;
        let now = |fd: RawFd| installed.moved.iter().find(|(old, _)| *old == fd).map_or(fd, |(_, new)| *new);
        let channel = adopt(channel.as_raw_fd());
        for warning in &installed.warnings {
            say(&channel, b'W', warning.as_bytes());
        }
        let objects = objects.iter().map(|fd| fd.map(now)).collect();
        let failed = self.come_back(saved, shared, place, &channel, objects, behind);
        give_up(&channel, Some(shared), &failed.context(who()))
    }

    /// The rest, when descriptors are in place: returns only if it fails. `objects`: shared memory, by region.
    fn come_back(
        &self,
        saved: &Saved,
        shared: &SharedPage,
        place: &coordinator::Place,
        channel: &OwnedFd,
        objects: Vec<Option<RawFd>>,
        behind: Behind<'_>,
    ) -> anyhow::Error {
        let p = &saved.process;
        let generation = self.generation.manifest.generation;
        let enter = || -> Result<core::convert::Infallible> {
            shared.meet(INSTALLED, build::alive(self.plan), PATIENCE)?;
            let image = Reader::open_path(&saved.path)?;
            attributes::enter_folder(p, self.options)?;
            let (private, _open) = private_files(&saved.regions, behind.stored, self.options)?;
            let mut region_fds: HashMap<usize, RawFd> = HashMap::new();
            region_fds.extend(private.iter().enumerate().filter_map(|(i, fd)| fd.map(|fd| (i, fd))));
            region_fds.extend(objects.iter().enumerate().filter_map(|(i, fd)| fd.map(|fd| (i, fd))));
            // No region has this number: it is closed with the others.
            region_fds.insert(usize::MAX, channel.as_raw_fd());
            let exe = std::fs::File::open(self.options.map(&p.exe)).ok();
            let coordinator = coordinator::join(place, p, saved.member, generation)?;
            for note in attributes::apply(p)? {
                say(channel, b'W', note.as_bytes());
            }
            attributes::become_user(p)?;
            let folder = std::path::absolute(&self.options.dir)?;
            enter::enter(&enter::Entry {
                image: &image,
                process: p,
                threads: &saved.threads,
                regions: &saved.regions,
                region_fds: &region_fds,
                segments: behind.memory.segments(),
                exe_fd: exe.as_ref().map(AsRawFd::as_raw_fd),
                coordinator_fd: coordinator.as_raw_fd(),
                member: saved.member,
                generation,
                address: &place.address.to_string(),
                folder: folder.to_str().context("the checkpoint folder's name is no UTF-8: move it")?,
                secret: *place.secret.bytes(),
            })
        };
        match enter() {
            Ok(never) => match never {},
            Err(e) => e,
        }
    }

    /// A session's leader takes its terminal, and gives it its foreground group.
    fn take_terminal(&self, index: usize, prepared: &Prepared<'_>) -> Result<()> {
        let p = &self.generation.saved[index].process;
        let node = &self.plan.nodes[index];
        if p.tty == 0 || !node.leads_session() {
            return Ok(());
        }
        let Some(tty) = prepared.terminal(p.tty as u32 as u64) else { return Ok(()) };
        take(tty).context("taking its terminal again (TIOCSCTTY)")?;
        if p.tpgid > 0 {
            // The group may have no member any more: then nobody is in the foreground, as before.
            let _ = sys::set_foreground(tty, p.tpgid);
        }
        Ok(())
    }

    // ---- in init

    /// The group which shall have the command's own terminal, if the command had it.
    fn foreground_group(&self) -> Option<i32> {
        let root = self.generation.root()?;
        let node = &self.plan.nodes[root];
        if node.sid != Id::Outside {
            return None;
        }
        let here = |g: i32| self.plan.nodes.iter().any(|n| n.sid == Id::Outside && n.pgid == Id::Is(g));
        let tpgid = self.generation.saved[root].process.tpgid;
        match node.pgid {
            _ if tpgid > 0 && here(tpgid) => Some(tpgid),
            Id::Is(g) => Some(g),
            Id::Outside => None,
        }
    }

    /// A signal from outside. To go on is for the whole group, as a shell's `fg` sends it.
    fn pass_on(&self, tag: u8, signal: i32, root: i32) {
        let group = self.generation.root().map(|r| self.plan.nodes[r].pgid);
        if tag == b'F'
            && let (Some(group), Ok(tty)) = (self.foreground_group(), std::fs::File::open("/dev/tty"))
        {
            let _ = sys::set_foreground(tty.as_raw_fd(), group);
        }
        let target = match group {
            Some(Id::Is(g)) if signal == libc::SIGCONT => -g,
            _ => root,
        };
        let _ = sys::kill(target, signal);
    }

    /// Signals to us: children that ended, and what somebody outside sent to the whole group of the command, in which we are,
    /// too. The computation's first group would have it then, so it gets it, if it is another. Adds to `had` what it got.
    fn heed(&self, signals: &OwnedFd, had: &mut u64) {
        let group = self.generation.root().map(|r| self.plan.nodes[r].pgid);
        while let Some(s) = sys::next_signal(signals) {
            if s.number != libc::SIGCHLD
                && (s.code, s.sender) == (libc::SI_USER, 0)
                && let Some(Id::Is(g)) = group
            {
                let _ = sys::kill(-g, s.number);
                *had |= 1 << s.number;
            }
        }
    }

    fn watch(
        &self,
        shared: &SharedPage,
        signals: &OwnedFd,
        client: Client,
        segments: &mut ipc::Made,
    ) -> Result<core::convert::Infallible> {
        let alive = build::alive(self.plan);
        if let Some(group) = self.foreground_group() {
            if self.foreground
                && let Ok(tty) = std::fs::File::open("/dev/tty")
            {
                let _ = sys::set_foreground(tty.as_raw_fd(), group);
            }
            say(self.channel, b'G', &group.to_le_bytes());
        }
        shared.meet(TERMINALS, alive, PATIENCE).context("giving sessions their terminals")?;
        shared.meet(INSTALLED, alive, PATIENCE).context("giving processes their descriptors")?;
        let keep = [self.channel.as_raw_fd(), signals.as_raw_fd(), client.stream().as_raw_fd()];
        let mut client = Some(client);
        close_standard();
        sys::close_all_but(&keep);

        let root = self.generation.root().map(|r| self.generation.saved[r].process.pid);
        let mut root_alive = root.is_some();
        let mut outside = true;
        let mut had = 0;
        loop {
            self.heed(signals, &mut had);
            loop {
                match sys::wait(-1, libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED) {
                    Ok(Some(w)) if Some(w.pid) == root => {
                        let tag = match w.status {
                            s if libc::WIFSTOPPED(s) => b'S',
                            s if libc::WIFCONTINUED(s) => b'C',
                            _ => b'X',
                        };
                        root_alive &= tag != b'X';
                        // It ended, or was killed because the restart failed: the coordinator knows which.
                        while tag == b'X' && client.is_some() {
                            self.hear(&mut client, segments)?;
                        }
                        say(self.channel, tag, &w.status.to_le_bytes());
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => {
                        if root.is_none() {
                            say(self.channel, b'X', &0i32.to_le_bytes());
                        }
                        sys::exit(0)
                    }
                }
            }
            let patience = (!root_alive && alone()).then_some(FAREWELL);
            let mut fds = vec![signals.as_raw_fd()];
            fds.push(if outside { self.channel.as_raw_fd() } else { -1 });
            fds.push(client.as_ref().map_or(-1, |c| c.stream().as_raw_fd()));
            let ready = sys::poll(&fds, patience).context("poll")?;
            if ready.is_empty() {
                // Only the coordinator was left, and it had its time.
                sys::exit(0);
            }
            if ready[1] {
                match sys::receive(self.channel, false) {
                    Ok(m) if m.is_empty() => {
                        outside = false;
                        // The command was killed: so is what it stands for, as it would be without us.
                        if root_alive && let Some(root) = root {
                            let _ = sys::kill(root, libc::SIGKILL);
                        }
                    }
                    Ok(m) => {
                        // The command got what its group was sent before it told us.
                        self.heed(signals, &mut had);
                        if let (Some(&[tag, signal]), Some(root), true) = (m.first_chunk::<2>(), root, root_alive) {
                            let bit = 1 << signal;
                            if had & bit == 0 {
                                self.pass_on(tag, signal.into(), root);
                            }
                            had &= !bit;
                        }
                    }
                    Err(_) => {}
                }
            }
            if ready[2] {
                self.hear(&mut client, segments)?;
            }
        }
    }

    /// What the coordinator says of the restart; when all run, it has no more to say.
    fn hear(&self, client: &mut Option<Client>, segments: &mut ipc::Made) -> Result<()> {
        match client.as_mut().and_then(coordinator::outcome) {
            Some(Ok(())) => {
                segments.release();
                environment::withdraw(self.options);
                say(self.channel, b'R', &[]);
                *client = None;
                Ok(())
            }
            Some(Err(e)) => Err(e),
            None => Ok(()),
        }
    }
}

/// Is there no process but init and one more (the coordinator)?
fn alone() -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    let pids = entries.flatten().filter(|e| e.file_name().to_string_lossy().parse::<i32>().is_ok());
    pids.count() <= 2
}

#[allow(unsafe_code)] // a number becomes its owner
fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: `install` closed all but the program's descriptors and those that we kept, and this is one of those; nothing
    // that runs afterwards drops the value which owned it before.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[allow(unsafe_code)] // ioctl(2)
fn take(tty: RawFd) -> std::io::Result<()> {
    // SAFETY: no memory involved.
    sys::check(unsafe { libc::ioctl(tty, libc::TIOCSCTTY, 0) }).map(drop)
}

/// Init holds none of the command's standard descriptors: a reader of a pipe must see its end when the program is gone.
#[allow(unsafe_code)] // dup2(2)
fn close_standard() {
    if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        for fd in 0..3 {
            // SAFETY: init writes and reads nothing by these numbers.
            unsafe { libc::dup2(null.as_raw_fd(), fd) };
        }
    }
}
