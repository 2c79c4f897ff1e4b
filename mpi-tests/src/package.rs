//! Programs of other people, as Debian packages them: what runs them, when they are in the midst of their work, and what
//! must come out the same.
//!
//! Each is run without slackwater first; then it is checkpointed while it computes, killed with SIGKILL, restarted, again
//! and again, and its answer is compared with that of the uninterrupted run: whatever it prints that no clock goes into.
use crate::reboot::Traveller;
use crate::{Job, Mpi, Transport, source};
use anyhow::{Context as _, Result, bail, ensure};
use slackwater_harness::{Computation, Output, in_guest, patience};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How much it is given to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Some seconds on a usual machine.
    Host,
    /// The same in the guest, where all takes ten times as long.
    Guest,
    /// Enough for the stops and machines of a whole tour in guests.
    Tour,
}

/// A program of a package.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// In the tests' names.
    pub name: &'static str,
    /// The program, by the MPI that it is linked with; empty: the package has none for it.
    program: fn(Mpi) -> &'static str,
    /// Its arguments, `input` in the current folder among them.
    args: &'static [&'static str],
    /// Makes its input in the current folder.
    input: fn(&Path, Size) -> Result<()>,
    /// Where it writes: a file in the current folder; else standard output.
    file: Option<&'static str>,
    /// It computes when this stands there; then a checkpoint is taken each time when more has been written.
    begun: &'static str,
    /// What stands there at last, where it takes longer than any wait of ours.
    last: Option<&'static str>,
    /// A checkpoint is taken each second, and nobody asks for more.
    periodic: bool,
    /// Whether a line belongs to the answer, and what of it does.
    answer: fn(&str) -> Option<String>,
}

/// All of them.
pub const PACKAGES: &[Package] = &[
    // Linear algebra, FFT, random access, transposition, bandwidth; each part checks its residual.
    Package {
        name: "hpcc",
        program: |mpi| if mpi == Mpi::Open { "/usr/bin/hpcc" } else { "" },
        args: &[],
        input: |folder, size| {
            let text = fs::read_to_string("/usr/share/doc/hpcc/examples/_hpccinf.txt").context("hpcc's example")?;
            // The parts before the linear solver write little, and it has solved its one system in a tenth of a second: a tour
            // has it do so in all its ways. (Not with as many sizes as it allows: its transposition then reads beyond them.)
            let sizes = match size {
                Size::Host => "1            # of problems sizes (N)\n1800         Ns",
                Size::Guest => "1            # of problems sizes (N)\n400         Ns",
                Size::Tour => "5            # of problems sizes (N)\n400 390 380 370 360         Ns",
            };
            let ways: &[(&str, &str)] = &[
                ("1            # of panel fact\n2 ", "3            # of panel fact\n0 1 2 "),
                ("1            # of recursive stopping criterium\n4 ", "4            # of them\n1 2 4 8 "),
                ("1            # of recursive panel fact.\n1 ", "3            # of recursive panel fact.\n0 1 2 "),
                ("1            # of broadcast\n1 ", "6            # of broadcast\n0 1 2 3 4 5 "),
            ];
            let mut text = text
                .replace("1            # of problems sizes (N)\n1000         Ns", sizes)
                .replace("2            Ps", "1            Ps");
            for (one, all) in ways.iter().filter(|_| size == Size::Tour) {
                ensure!(text.contains(one), "hpcc's example is another one: no {one:?}");
                text = text.replace(one, all);
            }
            Ok(fs::write(folder.join("hpccinf.txt"), text)?)
        },
        file: Some("hpccoutf.txt"),
        begun: "Begin of MPIRandomAccess section",
        last: Some("End of HPC Challenge tests"),
        periodic: false,
        answer: |line| {
            let kept = ["Success=", "||Ax-b||", "tests completed and", "errors in"];
            kept.iter().any(|k| line.contains(k)).then(|| line.to_owned())
        },
    },
    // Molecular dynamics: a melting crystal; energies to all digits.
    Package {
        name: "lammps",
        program: |mpi| if mpi == Mpi::Open { "/usr/bin/lmp" } else { "" },
        args: &["-in", "input"],
        input: |folder, size| {
            let path = "/usr/share/lammps/examples/melt/in.melt";
            let text = fs::read_to_string(path).context(path)?;
            let steps = match size {
                Size::Host => "run 2500",
                Size::Guest => "run 200",
                Size::Tour => "run 15000",
            };
            let text = text.replace("run\t\t250", steps).replace("thermo\t\t50", "thermo 10");
            Ok(fs::write(folder.join("input"), text)?)
        },
        file: None,
        begun: "Step ",
        last: Some("Total wall time"),
        periodic: false,
        answer: |line| {
            let numbers = line.split_whitespace().collect::<Vec<_>>();
            (numbers.len() == 6 && numbers.iter().all(|n| n.parse::<f64>().is_ok())).then(|| numbers.join(" "))
        },
    },
    // The package's own test of orthogonal factorizations, with error bounds. (Those that solve, LU and LLT, hang natively now and
    // then, after an error message of their own.)
    Package {
        name: "scalapack",
        program: |mpi| match mpi {
            Mpi::Open => "/usr/lib/x86_64-linux-gnu/scalapack/openmpi-tests/xdqr",
            Mpi::Mpich => "/usr/lib/x86_64-linux-gnu/scalapack/mpich-tests/xdqr",
        },
        args: &[],
        input: |folder, size| {
            let sizes = if size == Size::Guest { "40 70 100" } else { "300 450 600" };
            let [kinds, blocks] = ["6\n'QR' 'QL' 'LQ' 'RQ' 'QP' 'TZ'", "8 13 21 32"];
            let text = format!(
                "'QR'\n'MPI'\n'QR.out'\n6\n{kinds}\n3\n{sizes}\n{sizes}\n4\n{blocks}\n{blocks}\n2\n1 2\n2 1\n5.0\n"
            );
            Ok(fs::write(folder.join("QR.dat"), text)?)
        },
        file: None,
        begun: "WALL",
        last: None,
        periodic: false,
        // A test's shape, verdict and residual; time and speed stand between them.
        answer: |line| {
            let words = line.split_whitespace().collect::<Vec<_>>();
            match words.as_slice() {
                ["WALL", shape @ .., _, _, verdict, residual] => {
                    Some(format!("{} {verdict} {residual}", shape.join(" ")))
                }
                _ => line.contains("tests completed and").then(|| line.trim().to_owned()),
            }
        },
    },
    // mpi4py's own test suite: some 1,150 tests a rank, of which each must end as it does natively. Not those that spawn:
    // Open MPI 4.1.4 itself hangs in them now and then.
    Package {
        name: "mpi4py",
        // Debian's is made for Open MPI.
        program: |mpi| if mpi == Mpi::Open { "/usr/bin/python3" } else { "" },
        args: &[
            concat!(env!("CARGO_MANIFEST_DIR"), "/programs/suite.py"),
            "source",
            "not",
            "test_spawn",
            "test_dynproc",
        ],
        input: |folder, _| Ok(std::os::unix::fs::symlink(source::mpi4py()?, folder.join("source"))?),
        file: Some("outcomes"),
        begun: " ok",
        last: Some("0 end"),
        periodic: true,
        answer: |line| Some(line.to_owned()),
    },
];

impl Package {
    /// Plays it over `transport` with `ranks` ranks and so many kills.
    ///
    /// # Errors
    /// What went wrong, and after which restart.
    pub fn play(&self, transport: &'static Transport, ranks: u32, kills: u32) -> Result<()> {
        let size = if in_guest() { Size::Guest } else { Size::Host };
        let command = self.command(transport, ranks)?;
        let native = self.native(&command, size)?;

        let mut computation = self.computation(false, size)?;
        let options: &[&str] = if self.periodic { &["--interval", "1", "--keep", "2"] } else { &[] };
        computation.launch_with(options, &command)?;
        self.wait(&mut computation, |text| text.contains(self.begun))?;
        let mut printed = Vec::new();
        for kill in 1..=kills {
            let length = self.text(&computation)?.len();
            self.wait(&mut computation, |text| text.len() > length).with_context(|| format!("before kill {kill}"))?;
            self.checkpoint(&mut computation).with_context(|| format!("checkpoint {kill}"))?;
            let output = computation.output()?.clone();
            computation.sigkill_all()?;
            printed.extend(self.answers(&output));
            computation.restart(None)?;
        }
        let answer = self.finish(&mut computation)?;
        // What was printed between a checkpoint and the kill is printed again; a line is never missing, and never another.
        printed.extend(answer);
        if self.file.is_some() {
            printed = self.lines(&computation)?;
        }
        compare(&native, &printed).with_context(|| format!("after {kills} kills"))
    }

    fn command(&self, transport: &Transport, ranks: u32) -> Result<Vec<String>> {
        let program = (self.program)(transport.mpi);
        ensure!(!program.is_empty(), "{} is not made for {:?}", self.name, transport.mpi);
        ensure!(Path::new(program).exists(), "no {program}: run `cargo xtask setup` first");
        let mut command = transport.mpirun(ranks);
        command.push(program.to_owned());
        command.extend(self.args.iter().map(|a| (*a).to_owned()));
        Ok(command)
    }

    /// The answer of an uninterrupted run without slackwater.
    fn native(&self, command: &[String], size: Size) -> Result<Vec<String>> {
        let mut computation = self.computation(true, size)?;
        computation.launch(command)?;
        let native = self.finish(&mut computation)?;
        ensure!(native.len() > 1, "the uninterrupted run gives no answer: {native:?}");
        Ok(native)
    }

    /// Ranks share processors: threads of a BLAS's own would only wait for each other.
    fn prepare(computation: &mut Computation) {
        Job::prepare(computation);
        computation.env("OMP_NUM_THREADS", "1");
    }

    fn computation(&self, native: bool, size: Size) -> Result<Computation> {
        let mut computation = Job::environment(native)?;
        Self::prepare(&mut computation);
        (self.input)(computation.folder(), size)?;
        Ok(computation)
    }

    fn checkpoint(&self, computation: &mut Computation) -> Result<()> {
        if !self.periodic {
            return computation.checkpoint(&[]).map(drop);
        }
        let newest = computation.status()?.generation;
        let until = Instant::now() + patience();
        while computation.status()?.generation == newest {
            ensure!(Instant::now() < until, "none is taken");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn path(&self, computation: &Computation) -> Option<PathBuf> {
        self.file.map(|file| computation.folder().join(file))
    }

    /// All that it has written so far.
    fn text(&self, computation: &Computation) -> Result<String> {
        match self.path(computation) {
            Some(path) => Ok(fs::read_to_string(path).unwrap_or_default()),
            None => Ok(computation.output()?.lines().join("\n")),
        }
    }

    fn lines(&self, computation: &Computation) -> Result<Vec<String>> {
        Ok(match self.path(computation) {
            Some(path) => fs::read_to_string(path).unwrap_or_default().lines().filter_map(self.answer).collect(),
            None => self.answers(computation.output()?),
        })
    }

    fn answers(&self, output: &Output) -> Vec<String> {
        output.lines().iter().filter_map(|line| (self.answer)(line)).collect()
    }

    /// Until what it has written is as wanted. A file tells nobody that it grows, so it is looked at.
    fn wait(&self, computation: &mut Computation, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let until = Instant::now() + patience();
        while !wanted(&self.text(computation)?) {
            if Instant::now() > until {
                let errors = computation.errors().map(|e| e.tail(10)).unwrap_or_default();
                bail!("{}: nothing more is written; its errors:\n{errors}", self.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits for its end, and gives the answer.
    fn finish(&self, computation: &mut Computation) -> Result<Vec<String>> {
        let output = computation.output()?.clone();
        while let Some(last) = self.last
            && let text = self.text(computation)?
            && !text.contains(last)
        {
            self.wait(computation, |now| now.len() > text.len())?;
        }
        let status = computation.wait_exit()?;
        ensure!(status.success(), "it ended with {status}");
        match self.path(computation) {
            Some(_) => self.lines(computation),
            None => Ok(self.answers(&output)),
        }
    }
}

/// A line is never missing, and never another.
fn compare(native: &[String], printed: &[String]) -> Result<()> {
    for line in native {
        ensure!(printed.contains(line), "missing: {line}\nprinted: {printed:#?}");
    }
    for line in printed {
        ensure!(native.contains(line), "not in the uninterrupted run: {line}");
    }
    Ok(())
}

/// A package's program on its way from machine to machine.
#[derive(Clone, Copy, Debug)]
pub struct Packaged {
    /// Which.
    pub package: &'static Package,
    /// The way for its bytes.
    pub transport: &'static Transport,
    /// Number of ranks.
    pub ranks: u32,
}

impl Traveller for Packaged {
    fn prepare(&self, computation: &mut Computation) {
        Package::prepare(computation);
    }

    fn launch(&self, computation: &mut Computation, options: &[&str]) -> Result<()> {
        (self.package.input)(computation.folder(), Size::Tour)?;
        computation.launch_with(options, &self.package.command(self.transport, self.ranks)?)?;
        self.package.wait(computation, |text| text.contains(self.package.begun))
    }

    fn onward(&self, computation: &mut Computation) -> Result<()> {
        let length = self.package.text(computation)?.len();
        self.package.wait(computation, |text| text.len() > length)
    }

    fn end(&self, computation: &mut Computation) -> Result<()> {
        self.package.finish(computation).map(drop)
    }

    fn compare(&self, computation: &Computation, printed: &str) -> Result<Option<String>> {
        let printed = match self.package.path(computation) {
            Some(_) => self.package.lines(computation)?,
            None => printed.lines().filter_map(self.package.answer).collect(),
        };
        let native = self.package.native(&self.package.command(self.transport, self.ranks)?, Size::Tour)?;
        compare(&native, &printed)?;
        Ok(Some(format!("  {} lines of {}: each that of a native run", native.len(), self.package.name)))
    }
}
