//! A program of ours that talks UCX without MPI (`programs/ucp.c`): its workers, endpoints, descriptors and timers.
use crate::{Folder, beats, beats_there};
use anyhow::Result;
use slackwater_harness::{Computation, Mode};
use slackwater_mpi_tests::transport::VERBS;

/// Datagrams alone.
const UD: &[(&str, &str)] = &[VERBS[0], VERBS[1], ("UCX_TLS", "ud_verbs,self")];

const FLAGS: &[&str] = &["-lucp", "-lucs"];

/// It moves from machine to machine, over connections or over datagrams. One act: [`crate::travel`] boots the machines.
///
/// # Errors
/// What went wrong.
pub fn moves(datagrams: bool) -> Result<()> {
    beats_there("ucp", FLAGS, if datagrams { UD } else { VERBS })
}

/// Over datagrams, while UCX's clock goes as the program's head says of this `clock`: UCX is never at the end of its patience.
///
/// # Errors
/// What went wrong.
pub fn clock(clock: &str) -> Result<()> {
    let folder = Folder::new()?;
    let program = folder.build("programs/ucp.c", "ucp", FLAGS)?;
    let mut computation = Computation::new(Mode::Pipe)?;
    for (name, value) in UD {
        computation.env(name, value);
    }
    computation.env("CLOCK", clock);
    computation.launch(&[program])?;
    beats(computation, 2)
}
