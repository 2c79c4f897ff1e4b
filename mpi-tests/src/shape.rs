//! Jobs of other shapes than `mpirun -np N PROGRAM`: several programs, files of hosts, output in files, two jobs in one
//! computation; and one that wants other hosts, which is told what that means.
use crate::{Job, Mpi, Transport};
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::Computation;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

/// A shape: its name in the tests, whose launcher, and the command line for sh(1), in which `$0` is the program.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// In the tests' names.
    pub name: &'static str,
    /// Whose launcher.
    pub mpi: Mpi,
    script: &'static str,
    /// A file in the current folder that must have the verdict in it as well.
    file: Option<&'static str>,
}

const fn shape(name: &'static str, mpi: Mpi, script: &'static str) -> Shape {
    Shape { name, mpi, script, file: None }
}

/// All of them.
pub const SHAPES: &[Shape] = &[
    shape("mpmd", Mpi::Open, "exec mpirun.openmpi --oversubscribe -np 1 $0 : -np 1 $0"),
    shape("mpmd", Mpi::Mpich, "exec mpiexec.mpich -np 1 $0 : -np 1 $0"),
    shape(
        "hostfile",
        Mpi::Open,
        "echo localhost slots=2 > hosts; exec mpirun.openmpi --hostfile hosts --bind-to none --tag-output -np 2 $0",
    ),
    shape("hostfile", Mpi::Mpich, "echo localhost:2 > hosts; exec mpiexec.hydra -f hosts -l -np 2 $0"),
    Shape {
        file: Some("out/1/rank.0/stdout"),
        ..shape(
            "outputs",
            Mpi::Open,
            "exec mpirun.openmpi --oversubscribe --output-filename out -np 2 sh -c \"$0; exit \\$?\"",
        )
    },
    shape("two", Mpi::Open, "j='mpirun.openmpi --oversubscribe -np 2'; $j $0 & $j $0 && wait $!"),
    shape("two", Mpi::Mpich, "mpirun.mpich -np 2 $0 & mpirun.mpich -np 2 $0 && wait $!"),
];

impl Shape {
    /// Killed and restarted so many times, until its verdict.
    ///
    /// # Errors
    /// What went wrong.
    pub fn play(&self, transport: &'static Transport, kills: u32) -> Result<()> {
        let program = Job::new("stress", &[], transport, 2)?.program.command()?;
        let mut command = ["sh", "-c", self.script].map(str::to_owned).to_vec();
        command.extend(program);
        let mut computation = Job::environment(false)?;
        computation.launch_with(&["--keep", "2"], &command)?;
        let said = |line: &str| line.contains("beat");
        heard(&computation, said)?;
        for kill in 1..=kills {
            computation.checkpoint(&[]).with_context(|| format!("checkpoint {kill}"))?;
            computation.sigkill_all()?;
            computation.restart_with(&["--keep", "2"])?;
            heard(&computation, said).with_context(|| format!("after restart {kill}"))?;
        }
        fs::write(computation.folder().join("stop"), "")?;
        heard(&computation, |line| line.contains("PASS"))?;
        let status = computation.wait_exit()?;
        ensure!(status.success(), "it ended with {status}");
        if let Some(file) = self.file {
            let text = fs::read_to_string(computation.folder().join(file)).with_context(|| file.to_owned())?;
            ensure!(text.contains("PASS"), "{file} has no verdict:\n{text}");
        }
        Ok(())
    }
}

/// Waits for a line, which may have a rank's tag before it.
fn heard(computation: &Computation, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let output = computation.output()?.clone();
    output.wait(0, slackwater_harness::patience(), "a line", wanted).map(drop)
}

/// A host that is not this one: mpirun starts its daemon there by ssh (here a script, which runs it on this host). It runs as
/// it does natively, and standard error says once that checkpoints will not hold what runs there. (With two such hosts on one
/// Open MPI 4.1.4 itself fails in 10 of 60 runs.)
///
/// # Errors
/// What is missing.
pub fn elsewhere(transport: &Transport) -> Result<()> {
    const TOLD: &str = "starts daemons on another host: what runs there is outside the computation";
    let hosts: &[&str] = match transport.mpi {
        Mpi::Open => &["mpirun.openmpi", "--host", "slackwater-a:2"],
        Mpi::Mpich => &["mpiexec.mpich", "-hosts", "slackwater-a"],
    };
    let mut computation = Job::environment(false)?;
    let ssh = computation.folder().join("ssh");
    fs::write(&ssh, "#!/bin/sh\nwhile [ \"${1#-}\" != \"$1\" ]; do shift; done\nshift\nexec sh -c \"$*\"\n")?;
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755))?;
    let path = std::env::var("PATH").unwrap_or_default();
    computation.env("PATH", &format!("{}:{path}", computation.folder().display()));
    let words = [hosts, &["-np", "2", "echo", "afloat"]].concat();
    computation.launch(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())?;
    let (output, errors) = (computation.output()?.clone(), computation.errors()?.clone());
    let status = computation.wait_exit()?;
    let ran = output.lines().iter().filter(|line| *line == "afloat").count();
    ensure!(status.success() && ran == 2, "{status}, {ran} ranks; errors:\n{}", errors.tail(10));
    let told = errors.lines().iter().filter(|line| line.contains(TOLD)).count();
    ensure!(told == 1, "said {told} times that the host is another:\n{}", errors.tail(10));
    Ok(())
}
