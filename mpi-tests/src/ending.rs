//! How a job ends: what a restarted one prints and which status it leaves must be what it does without slackwater.
use crate::{Job, Mpi};
use anyhow::{Result, ensure};
use slackwater_harness::Computation;
use std::fs;

/// What is left when all is over.
#[derive(Debug, PartialEq, Eq)]
struct End {
    status: String,
    /// What ranks say at the end, sorted: it comes in no fixed order.
    out: Vec<String>,
    /// Lines of standard error, without numbers (pids, times) and without those of ours; once each.
    err: Vec<String>,
}

/// Plays `ending` natively, and killed and restarted before its end; both ends must be alike.
///
/// # Errors
/// How they differ.
pub fn play(job: &Job) -> Result<()> {
    let mut native = Job::environment(true)?;
    native.launch(&job.command()?)?;
    native.wait_line("ready")?;
    let expected = end(&mut native)?;

    let mut computation = Job::environment(false)?;
    computation.launch(&job.command()?)?;
    computation.wait_line("beat")?;
    echo(job, &mut computation, "one")?;
    computation.checkpoint(&[])?;
    computation.wait_new_line("beat")?;
    computation.sigkill_all()?;
    computation.restart(None)?;
    computation.wait_line("beat")?;
    echo(job, &mut computation, "two")?;
    let mut found = end(&mut computation)?;
    let mut expected = expected;
    if job.transport.mpi == Mpi::Mpich || job.program.args.iter().any(|a| a == "abort") {
        // Whether hydra still hands on what a rank says last, and Open MPI's mpirun what MPI_Abort says, is a race that is
        // decided anew each time, natively too.
        (found.err, expected.err) = (Vec::new(), Vec::new());
    }
    ensure!(found == expected, "restarted: {found:#?}\nwithout slackwater: {expected:#?}");
    Ok(())
}

/// What is typed goes through mpirun to rank 0; after a restart it is the restart's own standard input that does.
fn echo(job: &Job, computation: &mut Computation, word: &str) -> Result<()> {
    if job.program.args.iter().any(|a| a == "echo") {
        computation.type_in(format!("{word}\n").as_bytes())?;
        computation.wait_line(&format!("heard {word}"))?;
    }
    Ok(())
}

fn end(computation: &mut Computation) -> Result<End> {
    let (out, err) = (computation.output()?.clone(), computation.errors()?.clone());
    fs::write(computation.folder().join("stop"), "")?;
    let status = computation.wait_exit()?.to_string();
    let out = out.lines();
    // mpirun may hand on the end of one rank before the last beat of another.
    let before = ["ready", "beat", "heard"];
    let said = out.iter().filter(|l| !l.is_empty() && !before.iter().any(|word| l.starts_with(word)));
    let mut out: Vec<String> = said.map(|l| without_numbers(l)).collect();
    out.sort();
    let mut err: Vec<String> = err.lines().iter().filter(|l| ours(l)).map(|l| without_numbers(l)).collect();
    err.sort();
    err.dedup();
    Ok(End { status, out, err })
}

fn ours(line: &str) -> bool {
    !line.starts_with("slackwater: ")
}

/// Numbers, hexadecimal ones too, become `#`: pids, addresses and times differ in any two runs.
fn without_numbers(line: &str) -> String {
    let word = |w: &str| {
        let plain = w.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let number = plain.starts_with("0x") || plain.bytes().any(|b| b.is_ascii_digit());
        if number { "#".to_owned() } else { w.to_owned() }
    };
    line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}
