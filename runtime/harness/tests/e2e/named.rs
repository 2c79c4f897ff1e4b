//! Programs that nobody here wrote, on a terminal: used, checkpointed, killed with SIGKILL, restarted, and used on.
//!
//! Rule: what is typed is answered by something that only the living program can know (a sum, a buffer's text), never by the
//! terminal's echo of what was typed.
use crate::Case;
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::{Computation, Mode, patience};
use std::fs;
use std::process::Command;
use std::time::Instant;

/// How often each is killed and restarted.
const ROUNDS: usize = 2;
/// Control keys.
const STOP: &str = "\x1a";
const REDRAW: &str = "\x0c";
const ESCAPE: &str = "\x1b";

pub fn all() -> Vec<Case> {
    vec![
        named("bash", "bash", |c| shell(c, &["bash", "--norc", "-i"], "$ ")),
        named("dash", "dash", |c| shell(c, &["dash", "-i"], "$ ")),
        named("zsh", "zsh", |c| shell(c, &["zsh", "-f"], "$ ")),
        named("tcsh", "tcsh", |c| shell(c, &["tcsh", "-f"], "> ")),
        named("vim", "vim", vim),
        named("emacs", "emacs", emacs),
        named("less", "less", less),
        named("python", "python3", python),
        named("sqlite", "sqlite3", sqlite),
        named("screen", "screen", screen),
        named("tmux", "tmux", tmux),
        named("script", "script", script),
        named("make", "make", make),
        named("perl", "perl", perl),
        named("strace", "strace", traced),
    ]
}

/// A case on the host for a program that the guest need not have.
fn named(name: &str, program: &str, run: fn(&mut Computation) -> Result<()>) -> Case {
    let mut case = Case::new(&format!("named::{name}"), "normal", move || {
        let mut computation = Computation::new(Mode::Pty)?;
        let home = computation.folder().to_string_lossy().into_owned();
        for (variable, value) in [("TERM", "xterm"), ("PS1", "$ "), ("HISTFILE", "/dev/null"), ("HOME", &home)] {
            computation.env(variable, value);
        }
        run(&mut computation)
    });
    case.places = vec!["host".into()];
    case.missing = (!found(program)).then(|| format!("program:{program}"));
    case
}

fn found(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).exists()))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// The program ends by itself, with success.
fn ends(computation: &mut Computation) -> Result<()> {
    let status = computation.wait_exit()?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

/// One stopped job, which reads from the terminal, and one in the background.
fn shell(computation: &mut Computation, command: &[&str], prompt: &str) -> Result<()> {
    computation.launch(&words(command))?;
    if command[0] == "tcsh" {
        computation.ask("set prompt='> '\r", "\n> ")?;
    } else {
        computation.wait_text(prompt)?;
    }
    computation.ask("sleep 1000 &\r", prompt)?;
    computation.ask("sh -c 'echo rea''dy; exec cat'\r", "ready")?;
    computation.ask(STOP, prompt)?;
    for round in 0..ROUNDS {
        computation.cycle()?;
        computation.ask(&format!("expr 6 '*' {}\r", round + 7), &format!("{}", 6 * (round + 7)))?;
        computation.ask("jobs\r", "sleep 1000")?;
        foreground(computation)?;
        // The echo, and what cat says.
        let line = format!("line {round}");
        computation.ask(&format!("{line}\r"), &line).context("echo")?;
        computation.wait_text(&format!("\n{line}")).context("cat in the foreground")?;
        computation.ask(STOP, prompt)?;
    }
    computation.ask("kill %1\r", prompt)?;
    foreground(computation)?;
    computation.ask("\x04", prompt)?;
    computation.ask("expr 20 + 22\r", "42")?;
    computation.type_in(b"exit\r")?;
    // A shell that has stopped jobs says so first.
    computation.wait_exit().map(drop)
}

/// Brings the second job to the foreground. What is typed before the shell has handed over the terminal would be the shell's.
fn foreground(computation: &mut Computation) -> Result<()> {
    let (here, since) = (computation.foreground()?, Instant::now());
    computation.type_in(b"fg %2\r")?;
    while computation.foreground()? == here {
        ensure!(since.elapsed() < patience(), "`fg` gives the terminal to nobody");
        std::thread::yield_now();
    }
    Ok(())
}

/// An unsaved buffer.
fn vim(computation: &mut Computation) -> Result<()> {
    computation.launch(&words(&["vim", "-u", "NONE", "-n", "text"]))?;
    computation.wait_text("~")?;
    computation.ask(&format!("ifirst line{ESCAPE}"), "first line")?;
    for round in 0..ROUNDS {
        computation.cycle()?;
        computation.ask(REDRAW, "first line")?;
        computation.ask(&format!("oround {round}{ESCAPE}"), &format!("round {round}"))?;
    }
    computation.type_in(b":wq\r")?;
    ends(computation)?;
    let text = fs::read_to_string(computation.folder().join("text"))?;
    ensure!(text == "first line\nround 0\nround 1\n", "vim wrote {text:?}");
    Ok(())
}

/// An unsaved buffer, and an interpreter that has computed something.
fn emacs(computation: &mut Computation) -> Result<()> {
    computation.launch(&words(&["emacs", "-nw", "-Q", "text"]))?;
    computation.wait_text("text ")?;
    // What is typed before it reads the keyboard may be thrown away.
    computation.wait_text("(Fundamental)")?;
    computation.ask("first line", "first line")?;
    for round in 0..ROUNDS {
        computation.cycle()?;
        computation.ask(REDRAW, "first line")?;
        computation.ask(&format!("{ESCAPE}:(* 6 {})\r", round + 7), &format!("{}", 6 * (round + 7)))?;
        computation.ask(&format!(" round {round}"), &format!("{round}"))?;
    }
    computation.ask("\x18\x13", "Wrote")?;
    computation.type_in(b"\x18\x03")?;
    ends(computation)?;
    let text = fs::read_to_string(computation.folder().join("text"))?;
    ensure!(text.trim() == "first line round 0 round 1", "emacs wrote {text:?}");
    Ok(())
}

fn less(computation: &mut Computation) -> Result<()> {
    computation.launch(&words(&["sh", "-c", "seq 1 200000 | less"]))?;
    computation.wait_text("20")?;
    for round in 0..ROUNDS {
        computation.cycle()?;
        computation.ask(&format!("/^15{round}00$\r"), &format!("15{round}01"))?;
    }
    computation.ask("G", "200000")?;
    computation.type_in(b"q")?;
    ends(computation)
}

/// The interpreter, with a subprocess that it talks with.
fn python(computation: &mut Computation) -> Result<()> {
    computation.launch(&words(&["python3", "-q"]))?;
    computation.wait_text(">>> ")?;
    computation.ask("import subprocess as s; x = 1000\r", ">>> ")?;
    computation.ask("p = s.Popen(['cat'], stdin=s.PIPE, stdout=s.PIPE, text=True, bufsize=1)\r", ">>> ")?;
    computation.ask("p.stdin.write('in the pipe\\n')\r", ">>> ")?;
    for round in 0..ROUNDS {
        computation.cycle()?;
        computation.ask("x += 1; x\r", &format!("{}", 1001 + round))?;
        computation.ask("p.stdout.readline()\r", "\n'in the pipe")?;
        computation.ask("p.stdin.write('in the pipe\\n')\r", ">>> ")?;
    }
    computation.ask("s.run('exit 7', shell=True).returncode\r", "7\r")?;
    computation.ask("p.stdin.close(); 40 + p.wait()\r", "40")?;
    computation.type_in(b"exit()\r")?;
    ends(computation)
}

/// An open transaction: nobody else may write before, in between and after; then it is committed.
fn sqlite(computation: &mut Computation) -> Result<()> {
    let base = computation.folder().join("base").to_string_lossy().into_owned();
    let other = |sql: &str| -> Result<String> {
        let out = Command::new("sqlite3").args([&base, sql]).output()?;
        Ok(String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    computation.launch(&words(&["sqlite3", &base]))?;
    computation.wait_text("sqlite> ")?;
    computation.ask("create table t(a); begin immediate; insert into t values(1000);\r", "sqlite> ")?;
    for round in 0..ROUNDS {
        computation.cycle()?;
        computation.ask("insert into t values(1); select sum(a) from t;\r", &format!("{}", 1001 + round))?;
        let said = other("insert into t values(0)")?;
        ensure!(said.contains("locked"), "the lock is gone: {said:?}");
    }
    computation.ask("commit; select 6*7;\r", "42")?;
    computation.type_in(b".quit\r")?;
    ends(computation)?;
    let said = other("select sum(a), count(*) from t")?;
    ensure!(said == "1002|3\n", "the base holds {said:?}");
    Ok(())
}

/// Detaching from the terminal by itself, a server of its own session, and a shell in a pty.
fn screen(computation: &mut Computation) -> Result<()> {
    let sockets = computation.folder().join("sockets");
    fs::create_dir(&sockets)?;
    fs::set_permissions(&sockets, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    computation.env("SCREENDIR", &sockets.to_string_lossy());
    // Of new windows.
    computation.env("SHELL", "/bin/bash");
    fs::write(computation.folder().join(".bashrc"), "PS1='window> '")?;
    computation.launch(&words(&["screen", "-e^Xx", "bash", "--norc"]))?;
    computation.wait_text("$ ")?;
    for round in 0..ROUNDS {
        computation.cycle()?;
        computation.ask(&format!("echo $((6*{}))\r", round + 7), &format!("{}", 6 * (round + 7)))?;
    }
    computation.ask("\x18c", "window> ").context("a new window")?;
    computation.ask("echo $((20+36))\r", "56")?;
    computation.ask("exit\r", "48").context("back in the first window")?;
    computation.ask("echo $((30+33))\r", "63")?;
    computation.type_in(b"exit\r")?;
    ends(computation)
}

fn tmux(computation: &mut Computation) -> Result<()> {
    let sockets = computation.folder().to_string_lossy().into_owned();
    computation.env("TMUX_TMPDIR", &sockets);
    computation.launch(&words(&["tmux", "-f", "/dev/null", "new", "bash", "--norc"]))?;
    computation.wait_text("$ ")?;
    for round in 0..ROUNDS {
        computation.cycle()?;
        computation.ask(&format!("echo $((6*{}))\r", round + 7), &format!("{}", 6 * (round + 7)))?;
    }
    // What is typed before the pane has gone would be the pane's.
    let gone = "until [ $(tmux list-panes | wc -l) = 1 ]; do sleep 0.02; done; echo go'ne'";
    computation.ask(&format!("tmux split-window 'expr 20 + 36; read x'; {gone}\r"), "56").context("a new pane")?;
    computation.ask("\r", "gone").context("the pane's end")?;
    computation.ask("echo $((30+33))\r", "63")?;
    computation.type_in(b"exit\r")?;
    ends(computation)
}

fn script(computation: &mut Computation) -> Result<()> {
    computation.env("SHELL", "/bin/dash");
    computation.launch(&words(&["script", "-q", "typescript"]))?;
    computation.wait_text("$ ")?;
    for round in 0..ROUNDS {
        computation.cycle()?;
        computation.ask(&format!("echo $((6*{}))\r", round + 7), &format!("{}", 6 * (round + 7)))?;
    }
    computation.type_in(b"exit\r")?;
    ends(computation)?;
    let text = fs::read_to_string(computation.folder().join("typescript"))?;
    ensure!(text.contains("42") && text.contains("\n48"), "the typescript: {text:?}");
    Ok(())
}

/// Two compilers at a time: killed in the middle, again and again, and what comes out runs.
fn make(computation: &mut Computation) -> Result<()> {
    const FILES: usize = 24;
    let folder = computation.folder().to_owned();
    let mut main = String::from("#include <stdio.h>\n");
    for n in 0..FILES {
        let body: String =
            (0..120).map(|i| format!("static int f{i}(int x) {{ return x * {i} + printf(\"\"); }}\n")).collect();
        let calls: String = (0..120).map(|i| format!("x += f{i}(x) & 3;")).collect();
        fs::write(
            folder.join(format!("part{n}.c")),
            format!("#include <stdio.h>\n{body}int part{n}(int x) {{ {calls} return {n}; }}\n"),
        )?;
        main += &format!("int part{n}(int);\n");
    }
    let sum: String = (0..FILES).map(|n| format!(" + part{n}(1)")).collect();
    fs::write(folder.join("main.c"), format!("{main}int main(void) {{ printf(\"sum %d\\n\", 0{sum}); return 0; }}\n"))?;
    fs::write(
        folder.join("Makefile"),
        "all: $(patsubst %.c,%.o,$(wildcard *.c))\n\tgcc -o all $^\n%.o: %.c\n\t@echo compiling $<\n\t@gcc -O2 -c $< -o $@\n",
    )?;
    computation.launch(&words(&["make", "-j2"]))?;
    for _ in 0..4 {
        computation.wait_line("compiling")?;
        computation.wait_line("compiling")?;
        // The cut is the end: what the compiler has removed since (its files in /tmp) nobody brings back.
        computation.checkpoint(&["--kill"])?;
        computation.wait_exit()?;
        computation.restart(None)?;
    }
    ends(computation)?;
    let out = Command::new(folder.join("all")).output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(text == format!("sum {}\n", FILES * (FILES - 1) / 2), "it prints {text:?}");
    Ok(())
}

/// A pipe from a shell that forks all the time, and backquotes.
fn perl(computation: &mut Computation) -> Result<()> {
    let program = "$| = 1; open(P, '-|', 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done'); \
                   while (<P>) { chomp; my $sub = `expr $_ '*' 2`; print \"$_ twice is $sub\"; }";
    computation.launch(&words(&["perl", "-e", program]))?;
    for round in 1..=ROUNDS {
        let n = 40 * round;
        computation.wait_line(&format!("{n} twice is {}", 2 * n))?;
        computation.cycle()?;
    }
    computation.wait_line("100 twice is 200")?;
    Ok(())
}

/// A tracer inside the computation: refused with one clear message, and all of it runs on.
fn traced(computation: &mut Computation) -> Result<()> {
    let script = "while :; do echo tick; sleep 0.05; done";
    computation.launch(&words(&["strace", "-o", "/dev/null", "sh", "-c", script]))?;
    computation.wait_line("tick")?;
    let (status, _, error) = computation.run("checkpoint", &[])?;
    ensure!(!status.success() && error.contains("is traced by"), "it says: {error}");
    for _ in 0..5 {
        computation.wait_new_line("tick").context("after the refusal")?;
    }
    Ok(())
}
