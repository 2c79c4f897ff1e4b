//! Which MPIs are here.
use super::Finding;
use crate::check;
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io::Read,
    process::{Command, Stdio},
    time::Duration,
};
use wait_timeout::ChildExt;

/// Launchers that may be in PATH; Debian keeps several MPIs side by side under names of their own.
const LAUNCHERS: [&str; 4] = ["mpirun.openmpi", "mpirun.mpich", "mpirun", "mpiexec"];
/// What the tests run.
const TESTED: [&str; 2] = ["Open MPI 4.1.", "MPICH 4.0."];
const BOUND: Duration = Duration::from_secs(10);

pub(super) fn mpi() -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    for name in LAUNCHERS {
        let Ok(path) = check::find(OsStr::new(name)) else { continue };
        let Ok(file) = path.canonicalize() else { continue };
        if !seen.insert(file) {
            continue;
        }
        let path = path.display();
        findings.push(match version(name) {
            Some(version) if TESTED.iter().any(|tested| version.starts_with(tested)) => {
                Finding::ok("mpi", format!("{version} ({path})"))
            }
            Some(version) => Finding::note("mpi", format!("{version} ({path}): tested are Open MPI 4.1 and MPICH 4.0")),
            None => Finding::note("mpi", format!("{path}: does not say which MPI it is of")),
        });
    }
    if findings.is_empty() {
        findings.push(Finding::note("mpi", "no mpirun or mpiexec in PATH (apt install openmpi-bin, or mpich)"));
    }
    findings
}

/// "Open MPI 4.1.4" or "MPICH 4.0.2".
fn version(launcher: &str) -> Option<String> {
    let mut child = Command::new(launcher)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    if child.wait_timeout(BOUND).ok()?.is_none() {
        let _ = child.kill();
        let _ = child.wait();
        return None;
    }
    let mut text = String::new();
    child.stdout.take()?.read_to_string(&mut text).ok()?;
    name(&text)
}

/// Open MPI prints `mpirun (Open MPI) 4.1.4` or `mpirun.openmpi (OpenRTE) 4.1.4`, hydra a table with a line `Version: 4.0.2`.
fn name(text: &str) -> Option<String> {
    if let Some((_, version)) = text.split_once("(Open MPI)").or_else(|| text.split_once("(OpenRTE)")) {
        return Some(format!("Open MPI {}", version.split_whitespace().next()?));
    }
    if text.contains("HYDRA") {
        let line = text.lines().find_map(|line| line.trim().strip_prefix("Version:"))?;
        return Some(format!("MPICH {}", line.trim()));
    }
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn both_families_are_told_apart() {
        let open = "mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n";
        assert_eq!(name(open).as_deref(), Some("Open MPI 4.1.4"));
        assert_eq!(name("mpirun.openmpi (OpenRTE) 4.1.4\n").as_deref(), Some("Open MPI 4.1.4"));
        let hydra = "HYDRA build details:\n    Version:                                 4.0.2\n    Release Date: x\n";
        assert_eq!(name(hydra).as_deref(), Some("MPICH 4.0.2"));
        assert_eq!(name("\nIntel(R) MPI Library\n").as_deref(), Some("Intel(R) MPI Library"));
        assert_eq!(name(""), None);
    }
}
