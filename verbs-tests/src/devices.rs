//! Restart where the RDMA device has another name, or is one of several, or where there is none.
use crate::{Pair, SECONDS, at_work, script};
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::{Computation, Mode};
use slackwater_mpi_tests::guest::packets_sent;
use std::fs;
use std::process::Command;

/// The network interface under rxe0.
fn interface() -> Result<String> {
    let path = "/sys/class/infiniband/rxe0/ports/1/gid_attrs/ndevs/0";
    Ok(fs::read_to_string(path).context(path)?.trim().to_owned())
}

fn run(words: &str) -> Result<()> {
    let mut words = words.split(' ');
    let status = Command::new(words.next().unwrap_or_default()).args(words.clone()).status()?;
    ensure!(status.success(), "{words:?} ended with {status}");
    Ok(())
}

/// A pair that was at work over rxe0, killed; rxe0 has gone.
fn orphan(pair: &Pair) -> Result<Computation> {
    let before = packets_sent()?;
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&["/bin/bash".into(), "-c".into(), script(pair, SECONDS)])?;
    at_work(&computation, before)?;
    computation.checkpoint(&[])?;
    computation.sigkill_all()?;
    run("rdma link delete rxe0")?;
    Ok(computation)
}

fn ends(mut computation: Computation, on: &str) -> Result<()> {
    computation.restart(None)?;
    let line = computation.wait_line("RESULT")?;
    ensure!(line == "RESULT client 0 server 0", "{line}");
    let sent = format!("/sys/class/infiniband/{on}/ports/1/hw_counters/sent_pkts");
    ensure!(fs::read_to_string(&sent)?.trim() != "0", "nothing went over {on}");
    computation.wait_exit()?;
    Ok(())
}

/// The restarts, one after the other.
///
/// # Errors
/// What went wrong.
pub fn play(pair: &Pair) -> Result<()> {
    let interface = interface()?;
    let computation = orphan(pair)?;
    run(&format!("rdma link add rxe1 type rxe netdev {interface}"))?;
    ends(computation, "rxe1").context("on a device of another name")?;

    // First in the list, and without a peer.
    run("rdma link delete rxe1")?;
    run(&format!("rdma link add rxe0 type rxe netdev {interface}"))?;
    let computation = orphan(pair)?;
    run("ip link add other0 type dummy")?;
    run("ip link set other0 up")?;
    run("rdma link add aaa type rxe netdev other0")?;
    run(&format!("rdma link add zzz type rxe netdev {interface}"))?;
    ends(computation, "zzz").context("on one of two devices")?;

    run("rdma link delete aaa")?;
    run("rdma link delete zzz")?;
    run(&format!("rdma link add rxe0 type rxe netdev {interface}"))?;
    let mut computation = orphan(pair)?;
    let refused = computation.restart(None).and_then(|()| computation.wait_exit());
    ensure!(!refused.is_ok_and(|status| status.success()), "it came back without a device");
    let errors = computation.last_errors();
    let said = errors.matches("the program uses RDMA, and there is none here").count();
    ensure!(said == 1, "it says: {errors}");

    // And nothing is lost.
    run(&format!("rdma link add rxe0 type rxe netdev {interface}"))?;
    ends(computation, "rxe0").context("where there is a device again")
}
