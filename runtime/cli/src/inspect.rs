//! `slackwater inspect`: what an image holds.
use anyhow::{Result, bail};
use slackwater_image::{inspect::Report, reader::Reader};
use std::{
    io::{Write, stdout},
    path::Path,
};

/// Threads and regions that the table shows; JSON has all.
const ROWS: usize = 40;

/// Prints the report; fails when the image is damaged.
pub fn inspect(image: &Path, json: bool, verify: bool) -> Result<()> {
    if image.is_dir() {
        bail!("{} is a folder: name an image in it{}", image.display(), images(image));
    }
    let reader = Reader::open_path(image)?;
    let report = Report::new(&reader, verify.then_some(0));
    if json {
        serde_json::to_writer_pretty(stdout(), &report)?;
        writeln!(stdout())?;
    } else {
        write!(stdout(), "{}", report.table(ROWS))?;
    }
    if let Some(problem) = report.problems.first() {
        bail!("{}: {problem}", image.display());
    }
    Ok(())
}

/// Those of a generation's folder, to be named.
fn images(folder: &Path) -> String {
    let mut names: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
    names.retain(|name| Path::new(name).extension().is_some_and(|e| e == "image"));
    names.sort_unstable();
    match names.as_slice() {
        [] => String::new(),
        [one] => format!(": {}", one.display()),
        [first, .., last] => format!(": {} to {}", first.display(), last.display()),
    }
}
