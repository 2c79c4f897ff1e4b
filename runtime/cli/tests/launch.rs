//! The program as its user has it: launch, status, kill. The preloaded library is a stand-in without code, so that no
//! process joins: what the runtime does with a program is tested with the agent.
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// None where there is no C compiler to make a library.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut cc = Command::new("cc")
            .args(["-shared", "-x", "c", "-", "-o"])
            .arg(dir.path().join("libslackwater.so"))
            .stdin(Stdio::piped())
            .spawn()
            .ok()?;
        cc.stdin.take().unwrap().write_all(b"int slackwater_stand_in;\n").unwrap();
        cc.wait().unwrap().success().then_some(Self { dir })
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("computation")
    }

    fn slackwater(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slackwater"));
        command.args(arguments).env("SLACKWATER_LIB", self.dir.path().join("libslackwater.so"));
        command.env("SLACKWATER_DIR", self.folder()).current_dir(self.dir.path());
        command
    }

    /// Until the coordinator of the folder has ended: it holds the lock as long as it lives.
    fn ended(&self) {
        let status = Command::new("timeout").args(["60", "flock"]).arg(self.folder().join("lock")).arg("true").status();
        assert!(status.unwrap().success(), "the coordinator does not end");
    }
}

fn out(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A launched shell that says it runs, and waits for its stdin to end.
fn waiting(bench: &Bench) -> Child {
    let mut command = bench.slackwater(&["launch", "sh", "-c", "echo $$; read x"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), child.id().to_string(), "launch becomes the program");
    child
}

#[test]
fn the_program_takes_the_place_of_launch() {
    let Some(bench) = Bench::new() else { return };
    let script = "echo \"$SLACKWATER_ADDR $SLACKWATER_DIR $LD_PRELOAD\"; exit 7";
    let (code, stdout, stderr) = out(&mut bench.slackwater(&["launch", "sh", "-c", script]));
    let library = fs::canonicalize(bench.dir.path().join("libslackwater.so")).unwrap();
    let words: Vec<&str> = stdout.split_whitespace().collect();
    assert_eq!((code, stderr.as_str()), (Some(7), ""));
    assert!(words[0].starts_with("127.0.0.1:"), "{words:?}");
    assert_eq!((Path::new(words[1]), Path::new(words[2])), (bench.folder().as_path(), library.as_path()));
    bench.ended();
    assert!(!bench.folder().join("address").exists());

    let status = bench.slackwater(&["launch", "sh", "-c", "kill -TERM $$"]).status().unwrap();
    assert_eq!(status.signal(), Some(15), "ended by a signal, as without us");
    bench.ended();
}

#[test]
fn the_program_sees_no_trace_in_signals_and_descriptors_and_children() {
    let Some(bench) = Bench::new() else { return };
    let script = "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ls -l /proc/self/fd | grep -c slackwater; wait";
    let native = out(Command::new("sh").args(["-c", script]).current_dir(bench.dir.path()));
    let launched = out(&mut bench.slackwater(&["launch", "sh", "-c", script]));
    assert_eq!(launched, native);
    bench.ended();
    // SIGPIPE ignored, SIGUSR1 blocked, by whoever starts us: so they stay.
    let odd = |command: &mut Command| {
        // SAFETY: async-signal-safe calls only, between fork and exec.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigaddset(&raw mut set, libc::SIGUSR1);
                libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
                Ok(())
            });
        }
        out(command)
    };
    let native = odd(Command::new("sh").args(["-c", script]).current_dir(bench.dir.path()));
    let launched = odd(&mut bench.slackwater(&["launch", "sh", "-c", script]));
    assert_eq!(launched, native);
    bench.ended();
}

#[test]
fn status_and_kill_while_it_runs() {
    let Some(bench) = Bench::new() else { return };
    let mut child = waiting(&bench);
    let (code, stdout, stderr) = out(&mut bench.slackwater(&["status", "--json"]));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let status: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&status["state"], &status["processes"]), (&"starting".into(), &0.into()));
    assert_eq!((&status["generation"], &status["last_checkpoint"]), (&().into(), &().into()));

    let (code, _, stderr) = out(&mut bench.slackwater(&["launch", "true"]));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("is in use by a computation that runs"), "{stderr}");

    assert_eq!(out(&mut bench.slackwater(&["kill"])), (Some(0), String::new(), String::new()));
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    bench.ended();
}

#[test]
fn two_computations_run_side_by_side() {
    let (Some(one), Some(two)) = (Bench::new(), Bench::new()) else { return };
    let (mut first, mut second) = (waiting(&one), waiting(&two));
    assert_eq!(out(&mut one.slackwater(&["kill"])).0, Some(0));
    assert_eq!(first.wait().unwrap().signal(), Some(9));
    assert_eq!(out(&mut two.slackwater(&["status"])).0, Some(0));
    drop(second.stdin.take());
    assert_eq!(second.wait().unwrap().code(), Some(1), "read at the end of its input");
    one.ended();
    two.ended();
}

#[test]
fn a_static_program_and_a_missing_library_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let program = bench.dir.path().join("static");
    let mut cc = Command::new("cc")
        .args(["-static", "-nostdlib", "-x", "c", "-", "-o"])
        .arg(&program)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    cc.stdin.take().unwrap().write_all(b"void _start(void) {}\n").unwrap();
    assert!(cc.wait().unwrap().success());
    let (code, _, stderr) = out(bench.slackwater(&["launch"]).arg(&program));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("is statically linked"), "{stderr}");
    let (code, _, stderr) = out(bench.slackwater(&["launch", "true"]).env("SLACKWATER_LIB", "/no/such/lib.so"));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("/no/such/lib.so: cannot be preloaded"), "{stderr}");
    assert!(!bench.folder().exists(), "nothing was started");
}

#[test]
fn signals_that_a_program_could_see_are_refused() {
    let Some(bench) = Bench::new() else { return };
    for number in ["12", "40", "0", "x"] {
        let (code, _, stderr) = out(&mut bench.slackwater(&["launch", "--signal", number, "true"]));
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("only 32 and 33"), "{stderr}");
    }
    let (code, _, stderr) =
        out(&mut bench.slackwater(&["launch", "--signal", "32", "sh", "-c", "exit $SLACKWATER_SIGNAL"]));
    assert_eq!(code, Some(32), "{stderr}");
    bench.ended();
}
