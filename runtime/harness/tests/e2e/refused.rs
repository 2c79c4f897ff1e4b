//! What cannot be saved is refused at the checkpoint with one clear message, and the program runs on.
use crate::Case;
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::{Computation, Mode};

pub fn all() -> Vec<Case> {
    let mut seccomp = Case::new("refused::seccomp", "normal", seccomp);
    // The guest's kernel takes no filters.
    seccomp.places = vec!["host".into()];
    vec![
        Case::new("refused::aio", "quick", aio),
        Case::new("refused::stray", "quick", stray),
        Case::new("refused::thread-apart", "quick", thread_apart),
        seccomp,
        Case::new("refused::deaf", "normal", deaf),
    ]
}

/// Linux's native AIO, as databases use it. Perl speaks system calls: 206 is io_setup.
fn aio() -> Result<()> {
    let program = "$| = 1; my $context = chr(0) x 8; syscall(206, 8, $context) == 0 or die $!; \
        until (-e $ENV{SW_STOP}) { print \"beat\\n\"; select(undef, undef, undef, 0.02) } print \"PASS\\n\";";
    refuses(&["perl", "-e", program], &["AIO context (io_setup(2))", "io_destroy"])
}

/// A child that shares its parent's descriptor table: nobody follows it. 56 is clone, 1041 CLONE_FILES with SIGCHLD.
fn stray() -> Result<()> {
    let program =
        "$| = 1; my $child = syscall(56, 1041, 0, 0, 0, 0); if ($child == 0) { sleep 1 until -e $ENV{SW_STOP}; exit }
        until (-e $ENV{SW_STOP}) { print \"beat\\n\"; select(undef, undef, undef, 0.02) } print \"PASS\\n\";";
    refuses(
        &["perl", "-e", program],
        &["was made by a clone(2) that shares memory, files or handlers", "posix_spawn(3)"],
    )
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

/// A sandbox that ends the process for nearly each system call: the checkpoint must not touch it.
fn seccomp() -> Result<()> {
    let program = "import ctypes, os, struct, sys\n\
        libc = ctypes.CDLL(None)\n\
        nrs = [0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 21, 35, 202, 230, 231, 257, 262, 332]\n\
        code = [struct.pack('HBBI', 0x20, 0, 0, 0)]\n\
        code += [struct.pack('HBBI', 0x15, len(nrs) - i, 0, nr) for i, nr in enumerate(nrs)]\n\
        code += [struct.pack('HBBI', 6, 0, 0, 0x80000000), struct.pack('HBBI', 6, 0, 0, 0x7fff0000)]\n\
        text = ctypes.create_string_buffer(b''.join(code))\n\
        fprog = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(code), ctypes.addressof(text)))\n\
        import time\n\
        assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, fprog) == 0\n\
        while not os.path.exists(os.environ['SW_STOP']):\n    print('beat', flush=True)\n    time.sleep(0.02)\n\
        print('PASS', flush=True)\n\
        os._exit(0)\n";
    refuses(&["python3", "-c", program], &["seccomp filter", "without its sandbox"])
}

/// A thread that blocks each signal there is, glibc's own too.
fn deaf() -> Result<()> {
    let program = "$| = 1; my $all = chr(255) x 8; syscall(14, 0, $all, 0, 8) == 0 or die $!; \
        until (-e $ENV{SW_STOP}) { print \"beat\\n\"; select(undef, undef, undef, 0.02) } print \"PASS\\n\";";
    refuses(&["perl", "-e", program], &["blocks signal 33", "raw system call"])
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
