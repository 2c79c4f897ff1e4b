//! What cannot be saved is refused at the checkpoint with one clear message, and the program runs on.
use crate::Case;
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::{Computation, Mode};

pub fn all() -> Vec<Case> {
    vec![Case::new("refused::aio", "quick", aio), Case::new("refused::thread-apart", "quick", thread_apart)]
}

/// Linux's native AIO, as databases use it. Perl speaks system calls: 206 is io_setup.
fn aio() -> Result<()> {
    let program = "$| = 1; my $context = chr(0) x 8; syscall(206, 8, $context) == 0 or die $!; \
        until (-e $ENV{SW_STOP}) { print \"beat\\n\"; select(undef, undef, undef, 0.02) } print \"PASS\\n\";";
    refuses(&["perl", "-e", program], &["AIO context (io_setup(2))", "io_destroy"])
}

/// A thread with a working directory of its own, as file servers have them.
fn thread_apart() -> Result<()> {
    let program = "import ctypes, os, threading, time\n\
        libc = ctypes.CDLL(None)\n\
        def apart():\n    assert libc.unshare(0x200) == 0\n    os.chdir('/')\n    ready.set()\n    time.sleep(1000)\n\
        ready = threading.Event()\n\
        threading.Thread(target=apart, daemon=True).start()\n\
        ready.wait()\n\
        while not os.path.exists(os.environ['SW_STOP']):\n    print('beat', flush=True)\n    time.sleep(0.02)\n\
        print('PASS', flush=True)\n\
        os._exit(0)\n";
    refuses(&["python3", "-c", program], &["has a working directory of its own (unshare(CLONE_FS))"])
}

fn refuses(program: &[&str], message: &[&str]) -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&program.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())?;
    computation.wait_line("beat")?;
    let (status, _, errors) = computation.run("checkpoint", &[])?;
    ensure!(status.code() == Some(1), "{status}: {errors}");
    ensure!(message.iter().all(|part| errors.contains(part)), "{errors}");
    computation.wait_new_line("beat").context("after the refusal")?;
    computation.finish()
}
