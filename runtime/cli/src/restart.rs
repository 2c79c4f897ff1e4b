//! `slackwater restart`: brings a generation back and stands for its first process.
use crate::args;
use anyhow::{Context, Result};
use slackwater_restart::{External, Files};
use std::env;

/// Returns only if it fails: a computation that came back ends this process as its own first process ends.
pub fn restart(restart: args::Restart) -> Result<()> {
    let files = match restart.files.as_str() {
        "restore" => Files::Restore,
        "fail" => Files::Fail,
        _ => Files::Keep,
    };
    let coordinator = restart.options.or_noted(&restart.dir.dir).into_options();
    let options = slackwater_restart::Options {
        dir: restart.dir.dir,
        generation: restart.generation,
        map_path: restart.map_path,
        env: restart.env,
        files,
        new_addresses: restart.addresses == "new",
        external: if restart.external == "fail" { External::Fail } else { External::Reset },
        coordinator,
        program: env::current_exe().context("cannot find the slackwater executable")?,
    };
    slackwater_restart::restart(&options)?.leave()
}
