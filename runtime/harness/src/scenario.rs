//! The scenarios that a test program is played through.
//!
//! - `native`: as it is. What fails here is a mistake in the test.
//! - `go-on`: checkpoints are taken one after the other; the program goes on.
//! - `restart`: checkpoint, go on a little, SIGKILL, restart; again and again, so that most of it are restarts of restarts.
//! - `stop-restart`: `checkpoint --kill`, restart; again and again. For programs whose state is in files, too: these are then as they
//!   were at the cut.
//! - `restart-twice`: one generation is restarted two times.
//!
//! Each ends with the program's own verdict.
use crate::{Computation, Mode, Program};
use anyhow::{Context as _, Result, bail};

/// Plays one scenario of `program` in `mode`.
///
/// # Errors
/// What went wrong, and at which checkpoint.
pub fn play(program: &Program, scenario: &str, mode: Mode) -> Result<()> {
    let command = program.command()?;
    let mut computation = if scenario == "native" { Computation::native(mode)? } else { Computation::new(mode)? };
    // A restart moves the clocks on by the time that the program was away.
    computation.env("SW_SLACK_MS", if scenario.contains("restart") { "20000" } else { "5000" });
    if let Some(preload) = &program.preload {
        computation.env("LD_PRELOAD", preload);
    }
    computation.launch(&command)?;
    computation.wait_line("ready")?;
    computation.wait_line("beat")?;
    match scenario {
        "native" => {}
        "go-on" => {
            for n in 1..=program.checkpoints {
                computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
                computation.wait_new_line("beat").with_context(|| format!("after checkpoint {n}"))?;
            }
        }
        "restart" => {
            for n in 1..=program.checkpoints {
                computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
                computation.wait_new_line("beat").with_context(|| format!("after checkpoint {n}"))?;
                computation.sigkill_all()?;
                computation.restart(None)?;
                computation.wait_line("beat").with_context(|| format!("after restart {n}"))?;
            }
        }
        "stop-restart" => {
            for n in 1..=program.checkpoints {
                computation.checkpoint(&["--kill"]).with_context(|| format!("checkpoint {n}"))?;
                computation.wait_exit()?;
                computation.restart(None)?;
                computation.wait_line("beat").with_context(|| format!("after restart {n}"))?;
            }
        }
        "restart-twice" => {
            let first = computation.checkpoint(&[])?;
            for n in 1..=2 {
                computation.wait_new_line("beat")?;
                computation.sigkill_all()?;
                computation.restart(Some(first.generation))?;
                computation.wait_line("beat").with_context(|| format!("after restart {n}"))?;
            }
        }
        _ => bail!("no such scenario: {scenario}"),
    }
    computation.finish()
}
