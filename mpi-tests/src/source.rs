//! Sources that no Debian package has: fetched once, by the registry's own client, into `target/`.
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with mpi4py's own sources, its tests among them, of the version that Debian packages.
///
/// # Errors
/// When there is no mpi4py; when pip cannot fetch them.
pub fn mpi4py() -> Result<PathBuf> {
    let version = output(python().args(["-c", "import mpi4py; print(mpi4py.__version__)"]))
        .context("no mpi4py: run `cargo xtask setup` first")?;
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let name = format!("mpi4py-{version}");
    let done = target.join("sources").join(&name);
    if !done.exists() {
        fs::create_dir_all(target.join("sources"))?;
        let partial = tempfile::tempdir_in(target.join("sources"))?;
        let fetch = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"];
        output(python().args(fetch).arg(format!("mpi4py=={version}")).arg("--dest").arg(partial.path()))
            .context("cannot fetch mpi4py's sources from PyPI; `cargo xtask setup` installs pip")?;
        let archive = partial.path().join(format!("{name}.tar.gz"));
        output(Command::new("tar").arg("-C").arg(partial.path()).arg("-xzf").arg(archive))?;
        fs::rename(partial.path().join(&name), &done)?;
    }
    Ok(done.canonicalize()?)
}

/// Debian's, for which mpi4py is packaged; a user may have others before it.
fn python() -> Command {
    Command::new("/usr/bin/python3")
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
