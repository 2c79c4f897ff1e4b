//! The guest's initramfs: busybox, the two stages, and the console's device node.
//!
//! Written anew for each boot (2 MB, a millisecond), so that an edited stage takes effect at once. Device nodes are
//! entries of the archive: no privilege is needed to make one.
use anyhow::{Context as _, Result};
use cpio::newc::Builder;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

const INIT: &[u8] = include_bytes!("../guest/init");
const STAGE2: &[u8] = include_bytes!("../guest/stage2");
const DIR: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER: u32 = 0o020_600;

/// Writes the archive to `path`.
pub fn write(path: &Path) -> Result<()> {
    let busybox =
        fs::read("/bin/busybox").context("no /bin/busybox: run `cargo xtask setup` (package busybox-static)")?;
    let mut entries: Vec<(Builder, &[u8])> = Vec::new();
    for dir in ["bin", "proc", "lower", "rw", "new", "dev"] {
        entries.push((Builder::new(dir).mode(DIR), b""));
    }
    entries.push((Builder::new("bin/busybox").mode(FILE), &busybox));
    for applet in ["sh", "mount", "mkdir", "switch_root", "cp", "cat", "umount"] {
        entries.push((Builder::new(&format!("bin/{applet}")).mode(LINK), b"busybox"));
    }
    entries.push((Builder::new("init").mode(FILE), INIT));
    entries.push((Builder::new("stage2").mode(FILE), STAGE2));
    entries.push((Builder::new("dev/console").mode(CHARACTER).rdev_major(5).rdev_minor(1), b""));

    let mut out = BufWriter::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?);
    for (number, (builder, data)) in (1..).zip(entries) {
        let mut entry = builder.ino(number).nlink(1).write(&mut out, u32::try_from(data.len())?);
        entry.write_all(data)?;
        entry.finish()?;
    }
    cpio::newc::trailer(&mut out)?;
    out.flush()?;
    Ok(())
}
