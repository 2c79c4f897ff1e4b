//! Trials in the guest: a soft-RoCE machine of its own, in which this same test binary runs one trial.
use anyhow::{Context as _, Result, bail};
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

/// Memory of the guest in MiB: two ranks with UCX's buffers, their copies while a checkpoint is written, and the overlay.
const MEMORY: u32 = 1500;

/// Tells the trial in the guest which act of its play it is; see [`crate::reboot`].
pub const ACT: &str = "SLACKWATER_ACT";

/// Runs the trial `name` of this binary in a guest.
///
/// # Errors
/// What the guest printed, when the trial fails or is not found there.
pub fn run(name: &str) -> Result<()> {
    boot(name, 1, &[], "")
}

/// As [`run`], in the guest of that number (its address depends on it), which can write to `folders`. `act` is handed on.
///
/// # Errors
/// As for [`run`].
pub fn boot(name: &str, node: u8, folders: &[&Path], act: &str) -> Result<()> {
    let writable: Vec<&OsStr> = folders.iter().flat_map(|f| [OsStr::new("-w"), f.as_os_str()]).collect();
    let full = std::env::var("SLACKWATER_LEVEL").is_ok_and(|level| level == "full");
    let xtask = std::env::var("SLACKWATER_XTASK").context("SLACKWATER_XTASK is not set")?;
    let output = Command::new(xtask)
        .args(["guest", "-t", if full { "2400" } else { "600" }, "-m", &MEMORY.to_string()])
        .args(["-i", &node.to_string(), "-e", ACT])
        .args(writable)
        .args(["-e", "SLACKWATER_IN_GUEST", "-e", "SLACKWATER_LEVEL", "-e", "SLACKWATER_KIT", "-e", "CARGO_TARGET_DIR"])
        .arg("--")
        .arg(std::env::current_exe()?)
        .args(["--exact", name, "--include-ignored", "--test-threads", "1"])
        .env("SLACKWATER_IN_GUEST", "1")
        .env(ACT, act)
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // A trial that was not found is no success.
    if !output.status.success() || !text.contains("1 passed") {
        bail!("in the guest: {}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Packets that the guest's RDMA device has sent so far (`hw_counters` of rdma_rxe, Linux 6.12). A verbs trial that does not
/// move it ran over something else.
///
/// # Errors
/// When there is no such device.
pub fn packets_sent() -> Result<u64> {
    let path = "/sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts";
    std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().parse().context(path)
}
