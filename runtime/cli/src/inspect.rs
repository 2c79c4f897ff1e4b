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
