//! What a computation's program says, and is told.
use super::Computation;
use crate::output::Output;
use crate::patience;
use anyhow::{Context as _, Result, bail};

impl Computation {
    /// Standard output of what runs.
    ///
    /// # Errors
    /// When nothing runs.
    pub fn output(&self) -> Result<&Output> {
        Ok(&self.running()?.out)
    }

    /// Standard error of what runs.
    ///
    /// # Errors
    /// When nothing runs.
    pub fn errors(&self) -> Result<&Output> {
        Ok(&self.running()?.err)
    }

    /// Waits for a line of output that nobody has waited for before and that starts with `start`.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_line(&mut self, start: &str) -> Result<String> {
        let running = self.running.as_mut().context("nothing runs")?;
        let from = running.seen;
        match running.out.wait(from, patience(), &format!("a line `{start}...`"), |line| line.starts_with(start)) {
            Ok((number, line)) => {
                running.seen = number + 1;
                Ok(line)
            }
            Err(error) => bail!("{}", self.explain(&format!("{error:#}"))),
        }
    }

    /// Waits for the lines up to one that starts with `start`, of a program that speaks meanwhile: each may take its time.
    ///
    /// # Errors
    /// When the next one does not come.
    pub fn lines_until(&mut self, start: &str) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        while !lines.last().is_some_and(|line: &String| line.starts_with(start)) {
            lines.push(self.wait_line("")?);
        }
        Ok(lines)
    }

    /// Waits for `text` anywhere in what nobody has waited for by this function before: what full-screen programs paint has
    /// no lines.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_text(&mut self, text: &str) -> Result<()> {
        let running = self.running.as_mut().context("nothing runs")?;
        match running.out.wait_text(running.read, patience(), text) {
            Ok(read) => {
                running.read = read;
                Ok(())
            }
            Err(error) => bail!("{}", self.explain(&format!("{error:#}"))),
        }
    }

    /// Types `text`, and waits for `answer` in what is painted from now on.
    ///
    /// # Errors
    /// When it does not come.
    pub fn ask(&mut self, text: &str, answer: &str) -> Result<()> {
        let running = self.running.as_mut().context("nothing runs")?;
        running.read = running.out.bytes();
        self.type_in(text.as_bytes())?;
        self.wait_text(answer).with_context(|| format!("after {text:?} was typed"))
    }

    /// Waits for a line that is printed from now on and starts with `start`.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_new_line(&mut self, start: &str) -> Result<String> {
        let running = self.running.as_mut().context("nothing runs")?;
        running.seen = running.out.count();
        self.wait_line(start)
    }

    /// Lets [`Computation::wait_line`] begin again with the first line.
    pub fn rewind(&mut self) {
        if let Some(running) = &mut self.running {
            running.seen = 0;
        }
    }

    /// Writes to the program's standard input (its terminal's keyboard).
    ///
    /// # Errors
    /// When there is none.
    pub fn type_in(&mut self, text: &[u8]) -> Result<()> {
        use std::io::Write as _;
        let running = self.running.as_mut().context("nothing runs")?;
        match (&mut running.terminal, &mut running.child.stdin) {
            (Some(terminal), _) => terminal.write_all(text)?,
            (None, Some(stdin)) => stdin.write_all(text)?,
            _ => bail!("it has no standard input"),
        }
        Ok(())
    }

    /// The process group that has the program's terminal.
    ///
    /// # Errors
    /// There is no terminal, or it is nobody's.
    pub fn foreground(&self) -> Result<i32> {
        let terminal = self.running()?.terminal.as_ref().context("it has no terminal")?;
        Ok(rustix::termios::tcgetpgrp(terminal).context("tcgetpgrp")?.as_raw_nonzero().get())
    }
}
