//! `setup`: what a bare Debian 12 with rustup's cargo lacks.
//!
//! Idempotent: it asks dpkg what is there, installs only what is not, and builds the guest's kernel only when the cache
//! has none of this recipe. Where it may not install (no root, no password-free sudo) it says what to install.
use crate::{kernel, run};
use anyhow::{Result, bail};
use clap::Args;
use std::collections::HashSet;
use std::process::Command;

/// Debian packages, by what needs them.
const PACKAGES: &[(&str, &str)] = &[
    ("the build", "gcc libc6-dev lld pkg-config libclang-dev"),
    ("the guest's kernel", "make flex bison bc xz-utils busybox-static"),
    ("the guest", "iproute2 util-linux procps coreutils bash"),
    (
        "verbs",
        "rdma-core ibverbs-providers ibverbs-utils rdmacm-utils perftest libibverbs-dev librdmacm-dev cmake python3-pyverbs",
    ),
    ("MPI", "openmpi-bin libopenmpi-dev mpich libmpich-dev ucx-utils libucx-dev libfabric-bin gfortran"),
    ("tests with other people's programs", "g++ clang libomp-dev python3 perl default-jdk-headless gdb strace tmux"),
    (
        "tests with other people's programs on a terminal",
        "dash zsh tcsh vim emacs-nox less sqlite3 screen bsdutils make",
    ),
    (
        "tests with other people's MPI programs",
        "hpcc lammps lammps-examples scalapack-mpi-test python3-mpi4py python3-numpy python3-pip",
    ),
    (
        "tests with other people's servers",
        "redis-server redis-tools memcached nginx-light wrk postgresql iperf3 socat openssh-server openssh-client nodejs",
    ),
    ("tests with other people's allocators", "libjemalloc2 libtcmalloc-minimal4"),
];

/// `setup`'s options.
#[derive(Args)]
pub struct Options {
    /// Leave the guest's kernel for later.
    #[arg(long)]
    no_kernel: bool,
}

/// Installs packages, then builds the guest's kernel if need be.
pub fn run(options: &Options) -> Result<()> {
    packages()?;
    if !options.no_kernel {
        kernel::ensure()?;
    }
    Ok(())
}

/// All that other commands need before they start.
pub fn ensure() -> Result<()> {
    run(&Options { no_kernel: false })
}

fn packages() -> Result<()> {
    let wanted: Vec<&str> = PACKAGES.iter().flat_map(|(_, names)| names.split(' ')).collect();
    let Some(installed) =
        run::output(Command::new("dpkg-query").args(["-W", "-f", "${Package} ${db:Status-Status}\n"]))
    else {
        bail!(
            "no dpkg-query here: slackwater's setup knows Debian 12 and its kin. Elsewhere install the like of: {wanted:?}"
        );
    };
    let installed: HashSet<&str> = installed.lines().filter_map(|l| l.strip_suffix(" installed")).collect();
    let missing: Vec<&str> = wanted.iter().copied().filter(|p| !installed.contains(p)).collect();
    if missing.is_empty() {
        println!("setup: all {} Debian packages are there", wanted.len());
        return Ok(());
    }
    println!("setup: installing {} of {} Debian packages: {}", missing.len(), wanted.len(), missing.join(" "));
    update()?;
    let mut install = vec!["install", "-q", "-y", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install)
}

/// Fetches the package lists.
pub fn update() -> Result<()> {
    apt(&["update", "-q"])
}

fn apt(args: &[&str]) -> Result<()> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("apt-get")
    } else if run::output(Command::new("sudo").args(["-n", "true"])).is_some() {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"]);
        sudo
    } else {
        bail!("not root, and sudo wants a password. Please run: sudo apt-get {}", args.join(" "));
    };
    // Servers are installed for tests that start them: invoke-rc.d(8) starts none in runlevel 1.
    run::step(command.args(args).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1"))
}
