//! What the launcher costs an MPI job that is never checkpointed: transfers of two ranks, and hpcc from its first line to its
//! end. Each run of slackwater's has a native one beside it, in turn first and second; the figure is the median of the pairs'
//! ratios.
use crate::{median, run, verdict};
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::Computation;
use slackwater_mpi_tests::{Job, Transport};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

/// Those that Debian's two MPIs have within a host; MPICH's own choice is the last.
const TRANSPORTS: [&str; 4] = ["openmpi-tcp", "openmpi-vader", "openmpi-ucx-tcp", "mpich-posix"];
/// Ratio to native that the project allows itself.
const BOUND: f64 = 1.01;

/// Prints a line for each figure of each transport.
pub fn all(pairs: usize) -> Result<()> {
    println!("{:<34}{:>12}{:>12}{:>8}", "MPI, two ranks", "native ns", "launched ns", "ratio");
    for name in TRANSPORTS {
        let transport = Transport::named(name).with_context(|| format!("no transport {name}"))?;
        let command = Job::new("cost", &[], transport, 2)?.command()?;
        paired(name, pairs, |native| {
            let lines = run(Job::environment(native)?, &command)?;
            lines.iter().map(|line| figure(line)).collect()
        })?;
    }
    let transport = Transport::named("openmpi-vader").context("no such transport")?;
    let mut command = transport.mpirun(2);
    command.push("/usr/bin/hpcc".into());
    paired("openmpi-vader", pairs.div_ceil(3), |native| {
        let mut computation = Job::environment(native)?;
        computation.env("OMP_NUM_THREADS", "1");
        hpcc(computation, &command)
    })
}

/// The whole of its example, with one row of processes and larger matrices: some seconds.
fn hpcc(computation: Computation, command: &[String]) -> Result<Vec<(String, f64)>> {
    let example = Path::new("/usr/share/doc/hpcc/examples/_hpccinf.txt");
    let text = fs::read_to_string(example).context("hpcc's example: run `cargo xtask setup`")?;
    let text = text.replace("2            Ps", "1            Ps").replace("1000         Ns", "3000         Ns");
    fs::write(computation.folder().join("hpccinf.txt"), text)?;
    let folder = computation.folder().to_owned();
    let before = Instant::now();
    let mut computation = computation;
    computation.launch(command)?;
    let status = computation.wait_exit()?;
    let took = before.elapsed().as_secs_f64() * 1e9;
    let written = fs::read_to_string(folder.join("hpccoutf.txt"))?;
    ensure!(status.success() && written.contains("End of HPC Challenge tests"), "hpcc ended with {status}");
    Ok(vec![("hpcc".to_owned(), took)])
}

fn figure(line: &str) -> Result<(String, f64)> {
    let (name, value) = line.split_once(' ').with_context(|| format!("not a figure: {line}"))?;
    Ok((name.to_owned(), value.parse()?))
}

fn paired(name: &str, pairs: usize, measure: impl Fn(bool) -> Result<Vec<(String, f64)>>) -> Result<()> {
    let mut all = BTreeMap::<String, [Vec<f64>; 3]>::new();
    let _ = measure(true)?; // what is read from the disk is read now
    for pair in 0..pairs {
        let first = measure(pair % 2 == 0)?;
        let second = measure(pair % 2 == 1)?;
        let (native, ours) = if pair % 2 == 0 { (first, second) } else { (second, first) };
        for ((what, n), (_, o)) in native.into_iter().zip(ours) {
            let [natives, launched, ratios] = all.entry(what).or_default();
            natives.push(n);
            launched.push(o);
            ratios.push(o / n);
        }
    }
    for (what, [mut natives, mut launched, mut ratios]) in all {
        let ratio = median(&mut ratios);
        println!(
            "{:<34}{:>12.0}{:>12.0}{ratio:>8.4}  {}",
            format!("{what}, {name}"),
            median(&mut natives),
            median(&mut launched),
            verdict(ratio, BOUND)
        );
    }
    Ok(())
}
