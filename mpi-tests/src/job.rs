//! A job: one program under one `mpirun`.
use crate::transport::Transport;
use anyhow::{Context as _, Result};
use slackwater_harness::{Computation, Mode, Program};
use std::path::Path;

/// A program of `programs/`, how it is started, and with how many ranks.
#[derive(Clone, Debug)]
pub struct Job {
    /// The program, with its compiler and arguments.
    pub program: Program,
    /// The way for the bytes.
    pub transport: &'static Transport,
    /// Number of ranks.
    pub ranks: u32,
}

impl Job {
    /// `program` (its name without extension) over `transport`.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn new(program: &str, args: &[&str], transport: &'static Transport, ranks: u32) -> Result<Self> {
        let all = Program::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("programs"))?;
        let mut found = all.into_iter().find(|p| p.name == program).with_context(|| format!("no program {program}"))?;
        let extension = found.source.extension().unwrap_or_default().to_string_lossy().into_owned();
        found.compiler = transport.mpi.compiler(&extension).to_owned();
        // For programs that ask for checkpoints themselves; nothing is linked.
        found.cflags.push(concat!("-I", env!("CARGO_MANIFEST_DIR"), "/../runtime/plugin/include").to_owned());
        found.args = args.iter().map(|a| (*a).to_owned()).collect();
        Ok(Self { program: found, transport, ranks })
    }

    /// The whole command line; the program is built if need be.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn command(&self) -> Result<Vec<String>> {
        let mut words = self.transport.mpirun(self.ranks);
        words.extend(self.program.command()?);
        Ok(words)
    }

    /// A computation for it, `native` or under `slackwater`, with the environment that the launchers want.
    ///
    /// # Errors
    /// When `slackwater` has not been built.
    pub fn environment(native: bool) -> Result<Computation> {
        let mut computation = if native { Computation::native(Mode::Pipe)? } else { Computation::new(Mode::Pipe)? };
        Self::prepare(&mut computation);
        Ok(computation)
    }

    /// The environment: tests run as root in containers and in the guest, which Open MPI wants to hear twice.
    pub fn prepare(computation: &mut Computation) {
        computation.env("OMPI_ALLOW_RUN_AS_ROOT", "1");
        computation.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    }
}
