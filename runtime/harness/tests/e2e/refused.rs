//! What cannot be saved is refused at the checkpoint with one clear message, and the program runs on.
use crate::Case;
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::{Computation, Mode};

pub fn all() -> Vec<Case> {
    vec![Case::new("refused::aio", "quick", aio)]
}

/// Linux's native AIO, as databases use it. Perl speaks system calls: 206 is io_setup.
fn aio() -> Result<()> {
    let program = "$| = 1; my $context = chr(0) x 8; syscall(206, 8, $context) == 0 or die $!; \
        until (-e $ENV{SW_STOP}) { print \"beat\\n\"; select(undef, undef, undef, 0.02) } print \"PASS\\n\";";
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&["perl".into(), "-e".into(), program.into()])?;
    computation.wait_line("beat")?;
    let (status, _, errors) = computation.run("checkpoint", &[])?;
    ensure!(status.code() == Some(1), "{status}: {errors}");
    ensure!(errors.contains("AIO context (io_setup(2))") && errors.contains("io_destroy"), "{errors}");
    computation.wait_new_line("beat").context("after the refusal")?;
    computation.finish()
}
