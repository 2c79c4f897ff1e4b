//! One image in two places, an image in another place, and places that are clean afterwards.
use crate::Case;
use anyhow::{Context as _, Result, bail, ensure};
use slackwater_harness::{Computation, Mode, Program, patience};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

pub fn all() -> Vec<Case> {
    let case = |name: &str, run: fn() -> Result<()>| Case::new(&format!("places::{name}"), "normal", run);
    let mut all = vec![
        case("replication", replication),
        case("migration", migration),
        case("environment", environment),
        case("storm", storm),
        case("nothing-stays", nothing_stays),
        case("another-address", another_address),
        case("no-object-stays", no_object_stays),
        case("strangers-segment", strangers_segment),
        case("signal-to-group", signal_to_group),
    ];
    all[0].prepare = Box::new(|| family().map(drop));
    for case in &mut all {
        case.places = vec!["host".into()];
    }
    let own_network = Command::new("unshare").args(["-n", "ip", "link", "set", "lo", "up"]).output();
    if !own_network.is_ok_and(|done| done.status.success()) {
        all.iter_mut()
            .filter(|case| case.name == "places::another-address")
            .for_each(|case| case.missing = Some("a network of its own (unshare -n, ip)".into()));
    }
    all
}

fn family() -> Result<Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let all = Program::all(&folder)?;
    all.iter().find(|p| p.name == "family").context("no program `family`")?.command()
}

/// What is sent to the process group of the command comes to the first group of the computation: to each of it, once.
fn signal_to_group() -> Result<()> {
    let mut shell = Computation::new(Mode::Pipe)?;
    shell.under(&["setsid"]);
    let script = "trap 'echo parent had it; wait; exit 3' TERM; \
                  (trap 'echo child had it; exit' TERM; while :; do echo beat; sleep 0.05; done) & wait; exit 4";
    shell.launch(&["/bin/bash", "-c", script].map(str::to_owned))?;
    shell.wait_line("beat")?;
    shell.checkpoint(&[])?;
    shell.sigkill_all()?;
    shell.restart(None)?;
    shell.wait_line("beat")?;
    let output = shell.output()?.clone();
    let done = Command::new("kill").args(["-TERM", "--", &format!("-{}", shell.pid()?)]).status()?;
    ensure!(done.success(), "kill: {done}");
    let status = shell.wait_exit()?;
    let mut lines: Vec<String> = output.lines().into_iter().filter(|l| l.ends_with("had it")).collect();
    lines.sort();
    ensure!(lines == ["child had it", "parent had it"] && status.code() == Some(3), "{lines:?}, {status}");
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(done.success(), "cp -a: {done}");
    Ok(())
}

/// Two copies of a family of processes run at the same time, from two folders, each checkpointed and restarted again while
/// the other runs. Both find themselves to be what they were, pids included.
fn replication() -> Result<()> {
    let mut one = Computation::new(Mode::Pipe)?;
    one.launch(&family()?)?;
    one.wait_line("beat")?;
    one.checkpoint(&[])?;
    one.sigkill_all()?;
    let mut two = Computation::new(Mode::Pipe)?;
    copy_folder(&one.dir(), &two.dir())?;
    one.restart(None)?;
    two.restart(None)?;
    for _ in 0..2 {
        one.wait_new_line("beat").context("the first copy")?;
        two.wait_new_line("beat").context("the second copy")?;
        two.cycle()?;
        one.wait_new_line("beat").context("the first copy, beside a second that was killed")?;
        one.cycle()?;
    }
    one.wait_line("beat")?;
    two.wait_line("beat")?;
    // Both have the first one's environment, and so look for the same file.
    fs::write(one.folder().join("stop"), "")?;
    for copy in [&mut one, &mut two] {
        copy.wait_line("PASS")?;
        let status = copy.wait_exit()?;
        ensure!(status.success(), "it printed PASS, and ended with {status}");
    }
    Ok(())
}

/// The images go to another folder; the program's own folder, with its working directory and an open file, to another path.
fn migration() -> Result<()> {
    let mut before = Computation::new(Mode::Pipe)?;
    let (old, new) = (before.folder().join("old"), before.folder().join("new/place"));
    fs::create_dir(&old)?;
    fs::create_dir(before.folder().join("new"))?;
    let script = "$| = 1; chdir $ARGV[0] or die; open(F, '>>', 'log') or die; F->autoflush; use IO::Handle; my $n = 0; \
                  while (1) { $n++; print F \"$n\\n\"; print \"beat $n\\n\"; open(G, '>', 'mark') or die $!; close G; \
                  system('pwd'); select undef, undef, undef, 0.02 }";
    let folder = old.to_string_lossy().into_owned();
    before.launch(&["/usr/bin/perl", "-e", script, &folder].map(str::to_owned))?;
    before.wait_line("beat 3")?;
    before.checkpoint(&["--kill"])?;
    ensure!(!before.wait_exit()?.success(), "`checkpoint --kill` left it running");
    fs::rename(&old, &new)?;
    let lines = fs::read_to_string(new.join("log"))?.lines().count();
    let mut after = Computation::new(Mode::Pipe)?;
    fs::rename(before.dir(), after.dir())?;
    let place = new.to_string_lossy().into_owned();
    after.restart_with(&["--map-path", &format!("{folder}={place}")])?;
    // Where it is, by what pwd(1) says.
    after.wait_line(&place)?;
    after.wait_line(&format!("beat {}", lines + 3))?;
    let text = fs::read_to_string(new.join("log"))?;
    let numbers: Vec<usize> = text.lines().filter_map(|l| l.parse().ok()).collect();
    let expected: Vec<usize> = (1..=numbers.len()).collect();
    ensure!(numbers == expected && numbers.len() >= lines + 2, "the log holds {text:?}");
    ensure!(new.join("mark").exists() && !old.exists(), "it works in the old folder");
    after.cycle().context("of the moved one")?;
    after.wait_line("beat")?;
    Ok(())
}

/// `restart --env`: getenv(3) tells the new value, and so do children; other variables stay, and the next restart keeps all.
fn environment() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    let script = "import ctypes, time\n\
                  c = ctypes.CDLL(None); c.getenv.restype = ctypes.c_char_p\n\
                  while True:\n    \
                    print('beat', c.getenv(b'SW_ONE'), c.getenv(b'SW_TWO'), c.getenv(b'SW_STAYS'), flush=True)\n    \
                    c.system(b'echo child $SW_ONE $SW_TWO $SW_STAYS'); time.sleep(0.02)\n";
    computation.env("SW_ONE", "old");
    computation.env("SW_STAYS", "same");
    computation.launch(&["/usr/bin/python3", "-c", script].map(str::to_owned))?;
    computation.wait_line("beat b'old' None b'same'")?;
    computation.checkpoint(&[])?;
    computation.sigkill_all()?;
    computation.restart_with(&["--env", "SW_ONE=new", "--env", "SW_TWO=two words"])?;
    for _ in 0..2 {
        computation.wait_line("beat b'new' b'two words' b'same'")?;
        computation.wait_line("child new two words same")?;
        // It goes when all run, of which this one is the first to know.
        let since = Instant::now();
        while computation.dir().join("environment").exists() {
            ensure!(since.elapsed() < patience(), "a file is left in the folder");
            std::thread::yield_now();
        }
        computation.cycle()?;
    }
    let (status, _, error) = computation.run("restart", &["--env", "nothing"])?;
    ensure!(!status.success() && error.contains("NAME=VALUE"), "`--env nothing`: {status} {error}");
    Ok(())
}

/// A host without the address that the sockets had, twice, and the first one again: the program is told what it knows, what it
/// connects to by an old address is found, and its children are told the same. With `--addresses=new` it is told the new ones.
fn another_address() -> Result<()> {
    let script = "import ctypes, os, signal, socket, subprocess, sys, time\n\
        s = socket.socket(); s.bind(('10.66.7.1', 0)); s.listen(5); u = socket.socket(type=socket.SOCK_DGRAM); u.bind(('10.66.7.1', 0))\n\
        a = socket.create_connection(s.getsockname()); b, _ = s.accept(); a.send(b'kept')\n\
        names = lambda: [s.getsockname(), u.getsockname(), a.getsockname(), a.getpeername(), b.getsockname(), b.getpeername()]\n\
        was = names(); c = ctypes.CDLL(None)\n\
        ask = 'import socket; print(socket.socket(fileno=0).getpeername())'\n\
        while True:\n    \
            if c.slackwater_checkpoint() != 1: os.kill(os.getpid(), signal.SIGKILL)\n    \
            print('known' if names() == was else names()[0][0], flush=True)\n    \
            d = socket.create_connection(s.getsockname()); e, _ = s.accept(); d.send(b'new')\n    \
            told = subprocess.run([sys.executable, '-c', ask], stdin=a, capture_output=True, text=True).stdout.strip()\n    \
            print('beat', b.recv(4), e.recv(3), told == str(a.getpeername()), flush=True); a.send(b'kept')\n";
    let inside = |extra: &'static str| ["unshare", "-n", "sh", "-c", extra, "-"];
    let with = inside("ip link set lo up && ip addr add 10.66.7.1/32 dev lo && exec \"$@\"");
    let without = inside("ip link set lo up && exec \"$@\"");
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.under(&with);
    computation.launch(&["/usr/bin/python3", "-c", script].map(str::to_owned))?;
    computation.wait_exit()?;
    let steps: [(&[&str], &[&str], &str); 5] = [
        (&without, &[], "known"),
        (&without, &[], "known"),
        (&with, &[], "known"),
        (&without, &["--addresses=new"], "127.0.0.1"),
        // Which is what it knows from then on.
        (&without, &[], "127.0.0.1"),
    ];
    for (n, (place, options, told)) in steps.into_iter().enumerate() {
        computation.under(place);
        computation.restart_with(options)?;
        let at = || format!("restart {}", n + 1);
        computation.wait_line(told).with_context(at)?;
        computation.wait_line("beat b'kept' b'new' True").with_context(at)?;
        computation.wait_exit()?;
    }
    Ok(())
}

/// 100 checkpoints while a shell forks and executes; every tenth is killed and restarted. Not one turn is lost or doubled.
fn storm() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    let script =
        "i=0; while :; do i=$((i+1)); /bin/true; echo $(expr $i '*' 2); (exit 3); [ $? = 3 ] || echo lost; done";
    computation.launch(&["/bin/sh", "-c", script].map(str::to_owned))?;
    computation.wait_line("4")?;
    for n in 1..=100 {
        computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
        if n % 10 != 0 {
            continue;
        }
        computation.wait_new_line("")?;
        let lines = computation.output()?.lines();
        computation.sigkill_all()?;
        let numbers: Vec<i64> = lines.iter().map(|l| l.parse().unwrap_or(-1)).collect();
        ensure!(numbers.windows(2).all(|w| w[1] == w[0] + 2), "before restart {n}: {lines:?}");
        computation.restart(None)?;
        computation.wait_line("").with_context(|| format!("after restart {n}"))?;
    }
    Ok(())
}

/// Processes that name this folder in their command line or environment.
fn users_of(folder: &Path) -> Vec<String> {
    let needle = folder.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let read = |name: &str| {
            fs::read(entry.path().join(name)).map(|t| String::from_utf8_lossy(&t).into_owned()).unwrap_or_default()
        };
        let command = read("cmdline");
        if pid != std::process::id() && (command.contains(&needle) || read("environ").contains(&needle)) {
            found.push(format!("{pid} {}", command.replace('\0', " ")));
        }
    }
    found
}

/// Nobody of this computation is left, and nothing of a generation that was not finished.
fn clean(computation: &Computation, when: &str) -> Result<()> {
    let since = Instant::now();
    loop {
        let left = users_of(computation.folder());
        if left.is_empty() {
            break;
        }
        ensure!(since.elapsed() < patience(), "{when}: still there: {left:?}");
        std::thread::yield_now();
    }
    let names = fs::read_dir(computation.dir())?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let known = |name: &str| {
        matches!(name, "log" | "lock" | "options" | "secret" | "files" | "address")
            || name.strip_prefix("generation-").is_some_and(|n| n.parse::<u64>().is_ok())
    };
    match names.collect::<Vec<_>>().iter().find(|name| !known(name)) {
        Some(name) => bail!("{when}: `{name}` is left in the folder"),
        None => Ok(()),
    }
}

/// After the program's end, `kill`, a checkpoint that failed, a restart that failed, and a restart that was killed.
fn nothing_stays() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    let script = "sleep 1000 & (sleep 1000 &); while :; do echo beat; sleep 0.05; done";
    let program = ["/bin/sh", "-c", script].map(str::to_owned);
    let ended = ["/bin/sh", "-c", "exit 0"].map(str::to_owned);
    computation.launch(&ended)?;
    computation.wait_exit()?;
    clean(&computation, "after its end")?;

    computation.launch(&program)?;
    computation.wait_line("beat")?;
    computation.checkpoint(&[])?;
    let (status, _, error) = computation.run("kill", &[])?;
    ensure!(status.success(), "kill: {error}");
    computation.wait_exit()?;
    clean(&computation, "after `kill`")?;

    computation.restart(None)?;
    computation.wait_line("beat")?;
    computation.checkpoint(&[])?;
    computation.sigkill_all()?;
    clean(&computation, "after a restart was killed")?;

    let image = |n: u64| computation.dir().join(format!("generation-{n:06}"));
    let newest = (1..).take_while(|&n| image(n).is_dir()).last().context("no generation")?;
    let file =
        fs::read_dir(image(newest))?.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "image"));
    let file = file.context("no image")?;
    let sound = fs::read(&file)?;
    fs::write(&file, &sound[..sound.len() / 2])?;
    let (status, _, error) = computation.run("restart", &[])?;
    ensure!(!status.success() && error.contains("image"), "half an image: {status} {error}");
    clean(&computation, "after a restart that failed")?;
    fs::write(&file, &sound)?;

    let traced = ["strace", "-f", "-o", "/dev/null", "/bin/sh", "-c", "while :; do echo beat; sleep 0.05; done"];
    fs::remove_dir_all(computation.dir())?;
    computation.launch(&traced.map(str::to_owned))?;
    computation.wait_line("beat")?;
    let (status, _, error) = computation.run("checkpoint", &[])?;
    ensure!(!status.success() && !error.is_empty(), "a tracer is saved: {status}");
    computation.wait_new_line("beat")?;
    let (status, _, error) = computation.run("kill", &[])?;
    ensure!(status.success(), "kill: {error}");
    computation.wait_exit()?;
    clean(&computation, "after a checkpoint that failed")
}

/// Makes one of each object that has a name of its own, and says by which key; SIGUSR1 makes it a process that no checkpoint takes.
const OBJECTS: &str = "import ctypes, mmap, os, signal, time\n\
    libc = ctypes.CDLL(None)\n\
    key = 0x5c000000 | os.getpid()\n\
    ids = [libc.shmget(key, 4096, 0o1600), libc.semget(key, 1, 0o1600), libc.msgget(key, 0o1600)]\n\
    libc.shmat.restype = ctypes.c_void_p\n\
    assert min(ids) >= 0 and libc.shmat(ids[0], None, 0) > 0\n\
    queue = f'/sw-objects-{key}'.encode()\n\
    mq = libc.mq_open(queue, os.O_CREAT | os.O_RDWR, 0o600, None)\n\
    assert mq >= 0 and libc.mq_send(mq, b'x', 1, 0) == 0\n\
    name = f'/dev/shm/sw-objects-{key}'\n\
    fd = os.open(name, os.O_CREAT | os.O_RDWR)\n\
    os.ftruncate(fd, 4096)\n\
    memory = mmap.mmap(fd, 4096)\n\
    context = ctypes.c_ulong(0)\n\
    signal.signal(signal.SIGUSR1, lambda *_: libc.syscall(206, 1, ctypes.byref(context)))\n\
    print('key', key, flush=True)\n\
    while not os.path.exists(os.environ['SW_STOP']):\n    print('beat', bool(context.value), flush=True)\n    time.sleep(0.02)\n\
    libc.shmctl(ids[0], 0, None), libc.semctl(ids[1], 0, 0), libc.msgctl(ids[2], 0, None), os.unlink(name)\n\
    assert libc.mq_getattr(mq, ctypes.create_string_buffer(64)) == 0 and libc.mq_unlink(queue) == 0\n\
    print('PASS', flush=True)\n";

/// How many System V objects on this host have this key.
fn with_key(key: &str) -> Result<usize> {
    let mut count = 0;
    for kind in ["shm", "sem", "msg"] {
        let text = fs::read_to_string(format!("/proc/sysvipc/{kind}"))?;
        count += text.lines().filter(|line| line.split_whitespace().next() == Some(key)).count();
    }
    Ok(count)
}

/// What mq_open(3) or mq_unlink(3) says of the program's POSIX message queue on this host: is it there?
fn posix_queue(key: &str, function: &str) -> Result<bool> {
    let script = format!(
        "import ctypes, os, sys; sys.exit(ctypes.CDLL(None).{function}(b'/sw-objects-{key}', os.O_RDONLY) < 0)"
    );
    Ok(Command::new("python3").args(["-c", &script]).status()?.success())
}

/// What the runtime itself gives names to for a moment: files in /dev/shm and /tmp, and abstract sockets.
fn named_by_us() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (folder, start) in [("/dev/shm", ".slackwater-"), ("/tmp", ".slackwater-")] {
        let names = fs::read_dir(folder)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        // The doctor's trial has a folder for as long as it runs.
        found.extend(names.filter(|name| name.starts_with(start) && !name.contains("doctor")));
    }
    let sockets = fs::read_to_string("/proc/net/unix")?;
    let names = sockets.lines().filter_map(|line| line.rsplit(' ').next());
    found.extend(names.filter(|name| name.starts_with("@slackwater-queue-")).map(str::to_owned));
    Ok(found)
}

/// Nothing stays that is there now and was not `before`: other computations may have such names, but each for a moment.
fn no_names_stay(before: &[String], when: &str) -> Result<()> {
    let (since, mut left) = (Instant::now(), named_by_us()?);
    left.retain(|name| !before.contains(name));
    while !left.is_empty() {
        ensure!(since.elapsed() < patience(), "{when}: still there: {left:?}");
        let now = named_by_us()?;
        left.retain(|name| now.contains(name));
    }
    Ok(())
}

/// System V objects, POSIX message queues, names in /dev/shm and sockets: a restart has its own, which end with it; and the runtime leaves none.
fn no_object_stays() -> Result<()> {
    let before = named_by_us()?;
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&["python3", "-c", OBJECTS].map(str::to_owned))?;
    let key = computation.wait_line("key ")?.trim_start_matches("key ").to_owned();
    computation.wait_line("beat")?;
    ensure!(with_key(&key)? == 3, "{} objects have key {key}", with_key(&key)?);
    computation.checkpoint(&[])?;
    no_names_stay(&before, "after a checkpoint")?;
    computation.sigkill_all()?;
    // These are the killed program's, and would stay natively, too.
    let number = format!("{:#x}", key.parse::<u32>()?);
    let removed = Command::new("ipcrm").args(["-M", &number, "-S", &number, "-Q", &number]).status()?;
    ensure!(removed.success() && with_key(&key)? == 0, "ipcrm: {removed}");
    ensure!(posix_queue(&key, "mq_unlink")?, "the killed program's POSIX queue is not there");

    computation.restart(None)?;
    computation.wait_line("beat False")?;
    let outside = with_key(&key)? != 0 || posix_queue(&key, "mq_open")?;
    ensure!(!outside, "a restart made its objects outside of its namespace");
    let tree = slackwater_harness::tree(computation.pid()?);
    let program = tree.last().context("no program")?;
    ensure!(Command::new("kill").args(["-USR1", &program.to_string()]).status()?.success(), "kill -USR1 {program}");
    computation.wait_line("beat True")?;
    let (status, _, error) = computation.run("checkpoint", &[])?;
    ensure!(!status.success() && error.contains("AIO"), "with an AIO context: {status} {error}");
    no_names_stay(&before, "after a checkpoint that failed")?;
    let (status, _, error) = computation.run("kill", &[])?;
    ensure!(status.success(), "kill: {error}");
    computation.wait_exit()?;
    clean(&computation, "after `kill`")?;
    no_names_stay(&before, "after `kill`")?;

    // The program's own end takes its objects away.
    computation.restart(None)?;
    computation.wait_line("beat")?;
    computation.finish()?;
    clean(&computation, "after its end")?;
    no_names_stay(&before, "after its end")?;
    ensure!(with_key(&key)? == 0 && !posix_queue(&key, "mq_open")?, "objects of key {key} are left");
    let name = format!("/dev/shm/sw-objects-{key}");
    ensure!(!Path::new(&name).exists(), "{name} is left");
    Ok(())
}

/// A segment of the same user's that nobody may attach, made by somebody outside, is no hindrance.
fn strangers_segment() -> Result<()> {
    let mut computation = Computation::new(Mode::User)?;
    let script = "while ! [ -e $SW_STOP ]; do echo beat; sleep 0.05; done; echo PASS";
    computation.launch(&["/bin/sh", "-c", script].map(str::to_owned))?;
    computation.wait_line("beat")?;
    let mut make = Command::new("setpriv");
    make.args(["--reuid=65534", "--regid=65534", "--clear-groups", "ipcmk", "--shmem", "4096", "--mode", "0"]);
    let made = make.output().context("setpriv ipcmk")?;
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    let id = said.split_whitespace().last().filter(|_| made.status.success()).context("ipcmk")?.to_owned();
    let mut cycles = || -> Result<()> {
        for _ in 0..2 {
            computation.cycle()?;
            computation.wait_line("beat")?;
        }
        computation.finish()
    };
    let result = cycles();
    let removed = Command::new("ipcrm").args(["--shmem-id", &id]).status()?;
    ensure!(removed.success(), "ipcrm: segment {id} is gone");
    result
}
