//! The plugin over a provider of our own (`programs/mock.c`), without device or guest: the verifier over every fault knob, with
//! checkpoints that go on and with restarts onto new objects at every hundredth operation; and the defects of the old plugin.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A C file of `programs/`, built into `to`.
fn build(source: &str, flags: &[&str], to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(source);
    let status =
        Command::new("cc").args(["-O2", "-g", "-o"]).arg(to).args(flags).arg(&source).arg("-libverbs").status();
    assert!(status.unwrap().success(), "{} does not compile", source.display());
}

struct Kit {
    folder: PathBuf,
}

impl Kit {
    fn new(name: &str, program: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("slackwater-mock-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        build("mock.c", &["-shared", "-fPIC"], &folder.join("mock.so"));
        build("fakert.c", &["-shared", "-fPIC"], &folder.join("fakert.so"));
        build(program, &["-pthread"], &folder.join("program"));
        Self { folder }
    }

    fn run(&self, mode: &str, knob: &str, arguments: &[&str]) -> (Output, String) {
        let plugin = std::env::current_exe().unwrap().with_file_name("libslackwater_ib.so");
        let mut command = Command::new("timeout");
        command.args(["60", "env", knob, &format!("FAKERT={mode}")]);
        command.arg(format!("SLACKWATER_LIBIBVERBS={}", self.folder.join("mock.so").display()));
        command.arg(format!("LD_PRELOAD={} {}", self.folder.join("fakert.so").display(), plugin.display()));
        let out = command.arg(self.folder.join("program")).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out, text)
    }
}

impl Drop for Kit {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

const KNOBS: [&str; 5] = ["MOCK=", "MOCK_DELAY=3", "MOCK_SHUFFLE=1", "MOCK_EARLY=1", "MOCK_LID=5"];
const ARGUMENTS: [&str; 9] =
    ["", "-s", "-e", "-s -e -k 3", "-k 3 -l", "-t uc", "-t ud", "-x -k 5 -e", "-n 8 -d 64 -m 65536 -k 16"];

#[test]
fn the_verifier_with_every_knob() {
    let kit = Kit::new("verify", "verify.c");
    for mode in ["resume", "restart"] {
        for knob in KNOBS {
            for arguments in ARGUMENTS {
                // A completion that comes late comes without an event of its own.
                if knob == "MOCK_DELAY=3" && arguments.contains("-e") {
                    continue;
                }
                let mut all = vec!["-i", "800", "-c", "100"];
                all.extend(arguments.split_whitespace());
                let (out, text) = kit.run(mode, knob, &all);
                let last = text.lines().last().unwrap_or_default();
                let zero = if mode == "resume" { " 0 restarts" } else { " 0 checkpoints" };
                assert!(
                    out.status.success() && last.starts_with("verify: ok") && !last.contains(" 0 checkpoints"),
                    "{mode}, {knob}, {arguments}: {}\n{text}",
                    out.status
                );
                assert_eq!(last.contains(zero), mode == "resume", "{last}");
            }
        }
    }
}

/// Each is a scenario of `defects.c`, which says what it is about.
#[test]
fn defects_of_the_old_plugin() {
    let kit = Kit::new("defects", "defects.c");
    for (scenario, knob) in [
        ("signaled", "MOCK_DELAY=2"),
        ("lost-message", "MOCK="),
        // Finite retries: the queue pair breaks when its request has waited for a receive over ten polls.
        ("lost-message", "MOCK_RNR=10"),
        ("datagram", "MOCK_DELAY=2"),
        ("whole-context", "MOCK="),
        ("threads", "MOCK="),
        ("inline", "MOCK="),
        ("once", "MOCK_DELAY=2"),
        ("shared-order", "MOCK_SHUFFLE=1"),
        ("scatter-one", "MOCK="),
        ("scatter-every", "MOCK="),
        ("errors", "MOCK_FAIL=40"),
        ("breaks", "MOCK_BREAK=40"),
        ("flushed", "MOCK_DELAY=40"),
        ("unheard", "MOCK="),
        ("parted", "MOCK="),
        ("sleeper", "MOCK="),
        ("identities", "MOCK_LID=5"),
        ("devices", "MOCK_DEVICES=2"),
        ("many", "MOCK="),
        ("hammer", "MOCK="),
    ] {
        for mode in ["resume", "restart"] {
            let (out, text) = kit.run(mode, knob, &[scenario]);
            assert!(out.status.success() && text.contains("defects: ok"), "{scenario}, {mode}: {}\n{text}", out.status);
        }
    }
}
