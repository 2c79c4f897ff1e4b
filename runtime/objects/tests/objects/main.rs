//! Objects are made, captured, rebuilt in a fresh process from the serialized tables, and looked at.
//!
//! A case is `make` and `check`. Process one runs `make`, forks what the case wants, and each process captures its table, as the
//! agent does; which descriptions are one is found by kcmp(2), as the coordinator does. Then `check` runs *in the original
//! process*: capture must have left everything as it was. Then a fresh process reads the tables, prepares, forks, installs, and
//! the same `check` runs there. Numbers are fixed (`at`), so that `check` needs no state.
//!
//! Safety, for all cases: libc calls on descriptor numbers that the case opened and on structures that live through the call, in
//! processes with one thread.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)] // Reason: see above.
#![allow(clippy::print_stdout)] // Reason: this is the harness.
use std::process::{Command, ExitCode, Stdio};

mod backlog;
mod files;
mod harness;
mod pipes;
mod sockets;
mod watchers;

use harness::Case;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let cases: Vec<Case> =
        [backlog::cases(), files::cases(), pipes::cases(), sockets::cases(), watchers::cases()].concat();
    if let [_, step, name, path] = args.as_slice()
        && step.starts_with("step-")
    {
        let case = cases.iter().find(|c| c.name == name).expect("no such case");
        // A case that hangs is ended by SIGALRM.
        // What the runner was started with is not the case's.
        unsafe {
            libc::alarm(30);
            libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
        }
        match step.as_str() {
            "step-capture" => harness::capture(case, path),
            _ => harness::rebuild(case, path),
        }
        return ExitCode::SUCCESS;
    }
    let wanted = args.get(1).filter(|a| !a.starts_with('-'));
    let folder = std::env::temp_dir().join(format!("slackwater-objects-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let mut failed = 0;
    for case in cases.iter().filter(|c| wanted.is_none_or(|w| c.name.contains(w.as_str()))) {
        if case.privileged && unsafe { libc::geteuid() } != 0 {
            println!("test {} ... ignored, needs root", case.name);
            continue;
        }
        let path = folder.join(format!("image-of-{}", case.name));
        let mut trouble = None;
        for step in ["step-capture", "step-rebuild"] {
            let out = Command::new("/proc/self/exe")
                .args([step, case.name])
                .arg(&path)
                .current_dir(&folder)
                .stdin(Stdio::null())
                .output()
                .expect("running a step");
            if !out.status.success() {
                trouble = Some(format!("{step}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr)));
                break;
            }
        }
        match trouble {
            None => println!("test {} ... ok", case.name),
            Some(text) => {
                failed += 1;
                println!("test {} ... FAILED\n{text}", case.name);
            }
        }
    }
    let _ = std::fs::remove_dir_all(&folder);
    println!("{failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
