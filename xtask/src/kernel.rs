//! The guest's kernel: built once, kept in a cache outside the clone.
//!
//! Source: Debian's `linux-source-6.12`; configuration: `guest/kernel.config`, User-Mode Linux with rdma_rxe, siw and
//! ib_uverbs built in. The folder in the cache is named by a hash of all that makes the kernel what it is, so another
//! recipe is another folder, and a clone at an older commit finds its own. A build happens in a temporary folder and is
//! renamed into place when it is whole; a lock keeps two builds apart.
use crate::run;
use anyhow::{Context as _, Result, bail};
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const CONFIG: &str = include_str!("../guest/kernel.config");
const SOURCE: &str = "linux-source-6.12";
/// Raised when the steps below change what comes out.
const RECIPE: u32 = 2;

/// What we change in the source: file, text, what stands there instead.
const CHANGES: [[&str; 3]; 2] = [
    // Slices of 1 ms: two programs that poll share the guest's one CPU, and the scheduler's tick is then their latency.
    ["arch/um/Kconfig", "default 100\n", "default 1000\n"],
    // A fork that SIGKILL interrupts leaves a mark in the list of what it has copied so far (dup_mmap, since 6.8); the list
    // is walked here once more before it goes, and the kernel panicked. As all who walk such a list, end there.
    [
        "arch/um/kernel/tlb.c",
        "for_each_vma(vmi, vma)\n\t\tum_tlb_mark_sync",
        "for_each_vma(vmi, vma)\n\t\tif (xa_is_zero(vma))\n\t\t\tbreak;\n\t\telse\n\t\t\tum_tlb_mark_sync",
    ],
];

/// Where slackwater keeps what is dear to make: `$SLACKWATER_CACHE`, `$XDG_CACHE_HOME/slackwater`, `~/.cache/slackwater`.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("SLACKWATER_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("slackwater")))
        .or_else(|| set("HOME").map(|d| d.join(".cache/slackwater")))
        .context("no place for the guest's kernel: set SLACKWATER_CACHE to a folder")
}

/// This recipe's folder in the cache.
fn folder() -> Result<PathBuf> {
    let key = xxhash_rust::xxh3::xxh3_64(format!("{RECIPE}\n{SOURCE}\n{CONFIG}").as_bytes());
    Ok(cache()?.join(format!("guest-{key:016x}")))
}

/// The kernel (a Linux program), built if the cache has none.
pub fn ensure() -> Result<PathBuf> {
    let folder = folder()?;
    let kernel = folder.join("linux");
    if kernel.exists() {
        println!("setup: the guest's kernel is there: {}", kernel.display());
        return Ok(kernel);
    }
    let cache = cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot make the cache folder {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).context("cannot make the cache's lock file")?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).context("cannot lock the cache")?;
    if kernel.exists() {
        return Ok(kernel);
    }
    let work = tempfile::Builder::new().prefix("building-").tempdir_in(&cache)?;
    build(work.path(), &folder)?;
    Ok(kernel)
}

/// The kernel, which must be there.
pub fn find() -> Result<PathBuf> {
    let kernel = folder()?.join("linux");
    if !kernel.exists() {
        bail!("the guest's kernel has not been built: run `cargo xtask setup` (looked for {})", kernel.display());
    }
    Ok(kernel)
}

fn build(work: &Path, folder: &Path) -> Result<()> {
    println!("setup: building the guest's kernel, once, for {} (6 minutes on two cores)", folder.display());
    run::step(Command::new("apt-get").args(["download", "-q", SOURCE]).current_dir(work))
        .or_else(|_| {
            // No package lists yet, or none of today's.
            crate::setup::update()?;
            run::step(Command::new("apt-get").args(["download", "-q", SOURCE]).current_dir(work))
        })
        .with_context(|| {
            format!("{SOURCE} comes from Debian 12's security suite: apt's sources need `bookworm-security main`")
        })
        .context("cannot fetch the kernel's source package")?;
    let package = fs::read_dir(work)?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .context("apt-get download left no package")?;
    run::step(Command::new("dpkg-deb").arg("-x").arg(&package).arg(work))?;
    run::step(Command::new("tar").arg("-C").arg(work).arg("-xf").arg(work.join(format!("usr/src/{SOURCE}.tar.xz"))))?;
    let (source, out, log) = (work.join(SOURCE), work.join("out"), work.join("log"));
    fs::create_dir(&out)?;
    for [file, old, new] in CHANGES {
        let path = source.join(file);
        let text = fs::read_to_string(&path)?;
        let changed = text.replacen(old, new, 1);
        if changed == text {
            bail!("{} has no {old:?} any more: raise RECIPE and look", path.display());
        }
        fs::write(&path, changed)?;
    }
    let config = work.join("config");
    fs::write(&config, CONFIG)?;
    let make = || {
        let mut make = Command::new("make");
        make.arg("-s").arg("-C").arg(&source).arg(format!("O={}", out.display())).arg("ARCH=um").stdin(Stdio::null());
        make
    };
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let logged = |command: &mut Command| {
        let file = File::options().create(true).append(true).open(&log)?;
        run::step(command.stdout(file.try_clone()?).stderr(file)).inspect_err(|_| {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        })
    };
    logged(make().arg("allnoconfig").env("KCONFIG_ALLCONFIG", &config))?;
    logged(make().arg(format!("-j{jobs}")).arg("linux"))?;
    let done = work.join("done");
    fs::create_dir(&done)?;
    run::step(Command::new("strip").arg("-o").arg(done.join("linux")).arg(out.join("linux")))?;
    fs::copy(out.join(".config"), done.join("config"))?;
    fs::rename(&done, folder).with_context(|| format!("cannot put the kernel into {}", folder.display()))?;
    println!("setup: built {}", folder.join("linux").display());
    Ok(())
}
