//! The counter: a number each 50 ms, none lost, none doubled, over 20 generations.
use crate::Case;
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::{Computation, Mode, Program};
use std::path::Path;

const GENERATIONS: u32 = 20;

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, mode) in [("pipe", Mode::Pipe), ("pty", Mode::Pty), ("user", Mode::User)] {
        let mut case = Case::new(&format!("counter::twenty-generations::{name}"), "quick", move || twenty(mode));
        case.prepare = Box::new(|| command().map(drop));
        cases.push(case);
    }
    cases
}

fn command() -> Result<Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let all = Program::all(&folder)?;
    all.iter().find(|p| p.name == "counter").context("no program `counter`")?.command()
}

fn number(line: &str) -> Result<u64> {
    line.strip_prefix("beat ").and_then(|n| n.parse().ok()).with_context(|| format!("no number: {line}"))
}

/// The numbers among what was printed follow one another; the last one.
fn last_in_order(lines: &[String], first: u64) -> Result<u64> {
    let mut last = first - 1;
    for line in lines.iter().filter(|l| l.starts_with("beat ")) {
        let n = number(line)?;
        ensure!(n == last + 1, "{n} comes after {last}");
        last = n;
    }
    Ok(last)
}

/// Odd generations: the program runs on after the checkpoint and is killed; the restart must go on from the cut, which lies
/// between what had been printed before the checkpoint was asked for and after it was committed. Even generations:
/// `checkpoint --kill`, where the next number is known exactly.
fn twenty(mode: Mode) -> Result<()> {
    let mut computation = Computation::new(mode)?;
    computation.launch(&command()?)?;
    computation.wait_line("ready")?;
    let mut first = 1;
    for generation in 1..=GENERATIONS {
        let at = || format!("generation {generation}");
        ensure!(number(&computation.wait_line("beat").with_context(at)?)? == first, "{}: not {first} first", at());
        let output = computation.output()?.clone();
        let before = last_in_order(&output.lines(), first).with_context(at)?;
        let next = if generation % 2 == 1 {
            computation.checkpoint(&[]).with_context(at)?;
            let after = last_in_order(&output.lines(), first).with_context(at)?;
            computation.wait_new_line("beat").with_context(at)?;
            computation.sigkill_all()?;
            last_in_order(&output.lines(), first).with_context(at)?;
            computation.restart(None)?;
            let next = number(&computation.wait_line("beat").with_context(at)?)?;
            // One more may have been on its way through the pipe when we looked.
            ensure!(
                (before + 1..=after + 2).contains(&next),
                "{}: restarted with {next}, though the cut lies in {before}..={after}",
                at()
            );
            next
        } else {
            computation.checkpoint(&["--kill"]).with_context(at)?;
            computation.wait_exit().with_context(at)?;
            let last = last_in_order(&output.lines(), first).with_context(at)?;
            computation.restart(None)?;
            let next = number(&computation.wait_line("beat").with_context(at)?)?;
            ensure!(next == last + 1, "{}: {last} was the last before the cut, {next} came after the restart", at());
            next
        };
        // Read it again as the first of the new life.
        computation.rewind();
        first = next;
    }
    computation.wait_line("beat")?;
    let output = computation.output()?.clone();
    computation.finish()?;
    last_in_order(&output.lines(), first)?;
    Ok(())
}
