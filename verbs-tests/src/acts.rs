//! Trials in acts, one a machine: what one guest leaves in a folder of the host, the next, at another address, goes on with.
use anyhow::{Context as _, Result};
use slackwater_mpi_tests::guest::{ACT, boot};
use std::path::{Path, PathBuf};

/// Machines per trial.
const MACHINES: u8 = 2;

/// Inside a guest: which act this is.
#[derive(Debug)]
pub(crate) struct Act {
    /// From 1 on.
    pub(crate) number: u8,
    /// Drawn once a trial, and printed with whatever fails.
    pub(crate) seed: u64,
    /// Shared by all acts, at the same path.
    pub(crate) folder: PathBuf,
}

impl Act {
    /// From the environment.
    pub(crate) fn here() -> Result<Self> {
        let words = std::env::var(ACT).with_context(|| format!("${ACT} is not set"))?;
        let mut words = words.splitn(3, ' ');
        let mut next = || words.next().context("which act?");
        Ok(Self { number: next()?.parse()?, seed: next()?.parse()?, folder: next()?.into() })
    }

    pub(crate) const fn is_last(&self) -> bool {
        self.number == MACHINES
    }
}

/// From outside: boots a machine for each act of the trial `name`, in a folder that `prepare` fills; `done` hears the seed and sees
/// what they have left.
///
/// # Errors
/// Which act failed, and what its guest printed.
pub fn direct(
    name: &str,
    prepare: impl FnOnce(&Path) -> Result<()>,
    done: impl FnOnce(u64, &Path) -> Result<()>,
) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("slackwater-verbs-").tempdir()?;
    let seed: u64 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.subsec_nanos().into();
    prepare(folder.path())?;
    for act in 1..=MACHINES {
        let words = format!("{act} {seed} {}", folder.path().display());
        boot(name, act, &[folder.path()], &words).with_context(|| format!("{name}, act {act}, seed {seed}"))?;
    }
    done(seed, folder.path())
}
