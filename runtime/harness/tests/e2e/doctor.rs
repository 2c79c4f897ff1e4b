//! `slackwater doctor`: what it calls fine is fine, what it calls a problem is one, and nothing of its trial stays behind.
use crate::Case;
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::{Computation, Kit, Mode, in_guest};
use std::process::Command;

pub fn all() -> Vec<Case> {
    vec![
        Case::new("doctor::fine", "quick", || fine(Mode::Pipe)),
        Case::new("doctor::fine::user", "quick", || fine(Mode::User)),
        Case::new("doctor::problems", "quick", problems),
    ]
}

fn fine(mode: Mode) -> Result<()> {
    let computation = Computation::new(mode)?;
    let (status, text, errors) = computation.run("doctor", &[])?;
    ensure!(status.success(), "{status}: {text}{errors}");
    let trial = text.lines().find(|line| line.contains("trial")).context("no trial")?;
    ensure!(trial.starts_with("ok ") && trial.contains("killed and restarted"), "{trial}");
    // The guest has a soft-RoCE device, and root may open it.
    if in_guest() && mode != Mode::User {
        let device = text.lines().find(|line| line.contains("rxe0")).context("no device")?;
        ensure!(device.starts_with("ok ") && device.contains("port 1 ACTIVE (Ethernet)"), "{device}");
        without(
            "mount --bind /dev/null /usr/lib/x86_64-linux-gnu/libibverbs.so.1",
            "apt install libibverbs1",
            &computation,
        )?;
        without("mount -t tmpfs none /usr/lib/x86_64-linux-gnu/libibverbs", "has no provider for it", &computation)?;
    }
    let left = std::fs::read_dir(computation.folder())?.flatten().filter(|e| e.file_name() != "kit").count();
    ensure!(left == 0, "the trial left {left} things behind");
    Ok(())
}

/// Where a part of the verbs stack is hidden, in a mount namespace of its own, the device is a problem.
fn without(hide: &str, means: &str, computation: &Computation) -> Result<()> {
    let out = Command::new("unshare")
        .args(["--mount", "sh", "-c", &format!("{hide} && exec \"$0\" doctor --dir \"$1\"")])
        .arg(Kit::find()?.slackwater())
        .arg(computation.dir())
        .output()
        .context("unshare")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let device = text.lines().find(|line| line.contains("rxe0")).with_context(|| format!("no device: {text}"))?;
    ensure!(device.starts_with("PROBLEM") && device.contains(means), "{device}");
    Ok(())
}

fn problems() -> Result<()> {
    let computation = Computation::new(Mode::Pipe)?;
    let (status, text, errors) = computation.run("doctor", &["--json", "/sbin/ldconfig"])?;
    ensure!(status.code() == Some(1) && errors.contains("one problem"), "{status}: {text}{errors}");
    ensure!(text.contains("\"ok\": false") && text.contains("is statically linked"), "{text}");

    // A user who can make no user namespace: the limit holds in a namespace made for this test, and nowhere else.
    let kit = Kit::find()?;
    let script =
        "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all \"$0\" doctor --dir \"$1\"";
    let out = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", script])
        .arg(kit.slackwater())
        .arg(computation.dir())
        .output()
        .context("unshare")?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.code() == Some(1), "{}: {text}", out.status);
    let trial = text.lines().find(|line| line.contains("trial")).context("no trial")?;
    ensure!(trial.starts_with("PROBLEM") && trial.contains("sysctl user.max_user_namespaces"), "{trial}");
    Ok(())
}
