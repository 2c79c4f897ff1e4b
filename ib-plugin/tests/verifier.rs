//! The verifier on soft-RoCE, driven by the runtime in one file (`programs/fakert.c`): checkpoints that go on, and restarts
//! onto new objects, at every hundredth operation. Each test runs itself in the guest.
use std::path::{Path, PathBuf};
use std::process::Command;

/// Case name, and arguments of the verifier.
const CASES: &[(&str, &[&str])] = &[
    ("plain", &[]),
    ("SRQ", &["-s"]),
    ("events", &["-e"]),
    ("SRQ, events, one in three signaled", &["-s", "-e", "-k", "3"]),
    ("extended interfaces, one in five signaled, events", &["-x", "-k", "5", "-e"]),
    ("UC", &["-t", "uc"]),
    ("UD", &["-t", "ud"]),
    ("lazy receivers", &["-l"]),
    ("lazy receivers, one in seven signaled", &["-l", "-k", "7"]),
    ("64 KiB messages", &["-m", "65536", "-k", "4"]),
    ("finite rnr_retry", &["-r", "2"]),
];

fn compile(dir: &Path) -> (PathBuf, PathBuf) {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let (runtime, verifier) = (dir.join("fakert.so"), dir.join("verify"));
    let steps: [&[&str]; 2] = [&["-shared", "-fPIC"], &[]];
    for ((flags, source), to) in steps.iter().zip(["fakert.c", "verify.c"]).zip([&runtime, &verifier]) {
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-g", "-o"]).arg(to).args(*flags).arg(programs.join(source));
        if source == "verify.c" {
            cc.arg("-libverbs");
        }
        assert!(cc.status().unwrap().success(), "{source} does not compile");
    }
    (runtime, verifier)
}

/// Runs every case; in the guest.
fn cases(mode: &str) {
    let dir = std::env::temp_dir().join(format!("slackwater-verifier-{mode}"));
    std::fs::create_dir_all(&dir).unwrap();
    let (runtime, verifier) = compile(&dir);
    let plugin = std::env::current_exe().unwrap().with_file_name("libslackwater_ib.so");
    for (name, arguments) in CASES {
        let out = Command::new("timeout")
            .arg("60")
            .arg("env")
            .arg(format!("LD_PRELOAD={} {}", runtime.display(), plugin.display()))
            .arg(format!("FAKERT={mode}"))
            .arg(&verifier)
            .args(["-i", "400", "-c", "100"])
            .args(*arguments)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        let last = text.lines().last().unwrap_or_default();
        eprintln!("{mode}, {name}: {last}");
        assert!(out.status.success() && last.starts_with("verify: ok"), "{mode}, {name}: {}\n{text}", out.status);
        let count = |what: &str| -> u32 {
            let words: Vec<&str> = last.split([' ', ',']).collect();
            words.iter().position(|w| *w == what).map_or(0, |i| words[i - 1].parse().unwrap())
        };
        assert!(count("checkpoints") >= 10, "{last}");
        assert_eq!(count("restarts"), if mode == "restart" { count("checkpoints") } else { 0 }, "{last}");
    }
}

/// Runs the test of this name in a guest, unless this is one.
fn in_guest(name: &str, body: impl FnOnce()) {
    if std::env::var_os("SLACKWATER_IN_GUEST").is_some() {
        return body();
    }
    let mut xtask = match std::env::var_os("SLACKWATER_XTASK") {
        Some(path) => Command::new(path),
        None => {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["run", "--quiet", "--package", "xtask", "--"]);
            cargo
        }
    };
    let out = xtask
        .args(["guest", "-t", "400", "-m", "1500", "-e", "SLACKWATER_IN_GUEST", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads", "1", "--nocapture"])
        .env("SLACKWATER_IN_GUEST", "1")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "in the guest: {}\n{text}", out.status);
    eprintln!("{text}");
}

#[test]
fn checkpoints_that_go_on() {
    in_guest("checkpoints_that_go_on", || cases("resume"));
}

/// Requests wait for receives (at most 61 ms: six retries of 10.24 ms), and the program stands for 30 seconds.
#[test]
fn no_queue_pair_dies_of_a_long_checkpoint() {
    in_guest("no_queue_pair_dies_of_a_long_checkpoint", || {
        let dir = std::env::temp_dir().join("slackwater-verifier-long");
        std::fs::create_dir_all(&dir).unwrap();
        let (runtime, verifier) = compile(&dir);
        let plugin = std::env::current_exe().unwrap().with_file_name("libslackwater_ib.so");
        let out = Command::new("timeout")
            .args(["200", "env", &format!("LD_PRELOAD={} {}", runtime.display(), plugin.display())])
            .args(["FAKERT_HOLD=30", "FAKERT=resume"])
            .arg(&verifier)
            .args(["-i", "400", "-c", "900", "-l", "-r", "6", "-R", "20"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        let last = text.lines().last().unwrap_or_default();
        eprintln!("{last}");
        assert!(out.status.success() && last.contains(", 1 checkpoints"), "{}\n{text}", out.status);
    });
}

#[test]
fn restarts_onto_new_objects() {
    in_guest("restarts_onto_new_objects", || cases("restart"));
}
