//! `slackwater doctor`: can this user, on this machine, checkpoint and restart, and what is to be changed if not?
//!
//! The answer that counts is a trial: a shell is launched, checkpointed, killed and restarted in the folder that is asked
//! about ([`trial`]). The other checks say what the trial cannot: limits that hit bigger programs, what MPI and verbs stacks
//! are here, and whether they are ones that slackwater has been seen to work with.
//!
//! Rules: nothing is changed and nothing stays behind; each wait has a bound; a finding that is no `ok` says what to do.
mod library;
mod machine;
mod mpi;
mod trial;
mod verbs;

use crate::check;
use anyhow::{Result, bail};
use serde::Serialize;
use std::{
    ffi::OsString,
    io::{Write, stdout},
    path::Path,
};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, but there is something to know.
    Note,
    /// Checkpoint or restart fails until it is changed.
    Problem,
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    text: String,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, text: text.into() }
    }

    fn note(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Note, text: text.into() }
    }

    fn problem(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Problem, text: text.into() }
    }
}

#[derive(Serialize)]
struct Answer {
    ok: bool,
    findings: Vec<Finding>,
}

/// Prints what was found; fails when something must be changed.
pub fn doctor(dir: &Path, json: bool, program: Option<&OsString>) -> Result<()> {
    let mut findings = vec![machine::kernel(), machine::libc(), machine::memory()];
    findings.push(machine::folder(dir));
    findings.push(trial::trial(dir));
    findings.extend(mpi::mpi());
    findings.extend(verbs::verbs());
    findings.extend(program.map(|name| match check::find(name).and_then(|path| check::check(&path).map(|()| path)) {
        Ok(path) => Finding::ok("program", format!("{}: can be launched", path.display())),
        Err(error) => Finding::problem("program", format!("{error:#}")),
    }));
    let problems = findings.iter().filter(|finding| finding.verdict == Verdict::Problem).count();
    let mut out = stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &Answer { ok: problems == 0, findings })?;
        writeln!(out)?;
    } else {
        for Finding { check, verdict, text } in &findings {
            let verdict = match verdict {
                Verdict::Ok => "ok",
                Verdict::Note => "note",
                Verdict::Problem => "PROBLEM",
            };
            writeln!(out, "{verdict:<8}{check:<9}{text}")?;
        }
    }
    match problems {
        0 => Ok(()),
        1 => bail!("one problem is to be solved first"),
        many => bail!("{many} problems are to be solved first"),
    }
}
