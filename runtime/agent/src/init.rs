//! The constructor: what happens in each process before its `main`.
//!
//! Nothing here may fail loudly: a process that cannot join its computation runs as if slackwater were not there, after one
//! line on stderr.
use crate::{
    arch, arena, checkpoint, conn,
    conn::Connection,
    follow, guard, libc_facts, plugins,
    plugins::Event,
    relay, sandbox, stop,
    sys::{self, complain},
};
use alloc::{
    ffi::CString,
    format,
    string::{String, ToString},
};
use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_char, c_int, c_void},
    sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering::*},
};
use slackwater_protocol::{
    auth::Secret,
    message::{FromProcess, ToProcess},
    names,
};
use slackwater_restorer::plan::RestartInfo;

/// What this process knows of its computation.
#[derive(Clone)]
pub struct Config {
    /// Coordinator, `IP:PORT`.
    pub address: String,
    /// Checkpoint folder.
    pub folder: String,
    /// The computation's secret.
    pub secret: Secret,
}

struct Shared(UnsafeCell<Option<Config>>);
// SAFETY: written in the constructor, and by the checkpoint thread of a restored process while all others stand.
unsafe impl Sync for Shared {}
static CONFIG: Shared = Shared(UnsafeCell::new(None));

/// Whose memory this is: the process that [`start`] ran in last.
static PID: AtomicI32 = AtomicI32::new(0);

/// The process that joined. A restart gives it the same number.
pub fn pid() -> i32 {
    PID.load(Relaxed)
}

/// The computation that this process belongs to; None: none.
pub fn config() -> Option<&'static Config> {
    // SAFETY: see `Shared`.
    unsafe { (*CONFIG.0.get()).as_ref() }
}

/// The constructor's arguments, as glibc and the ELF specification of the System V ABI's users have them.
type Constructor = unsafe extern "C" fn(c_int, *const *const c_char, *const *const c_char);

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: Constructor = constructor;

/// # Safety
/// `envp` is a NULL-terminated array of C strings.
unsafe fn variable<'a>(envp: *const *const c_char, name: &str) -> Option<&'a str> {
    let mut at = envp;
    // SAFETY: the caller's.
    unsafe {
        while !(*at).is_null() {
            let entry = CStr::from_ptr(*at).to_bytes();
            if let Some(v) = entry.strip_prefix(name.as_bytes()).and_then(|r| r.strip_prefix(b"=")) {
                return core::str::from_utf8(v).ok();
            }
            at = at.add(1);
        }
    }
    None
}

unsafe extern "C" fn constructor(_argc: c_int, _argv: *const *const c_char, envp: *const *const c_char) {
    // SAFETY: the loader's arguments.
    let (address, folder, token) =
        unsafe { (variable(envp, names::ENV_ADDR), variable(envp, names::ENV_DIR), variable(envp, names::ENV_TOKEN)) };
    let (Some(address), Some(folder)) = (address, folder) else { return };
    libc_facts::probe();
    // SAFETY: the loader's arguments.
    let named = unsafe { variable(envp, names::ENV_PLUGINS) };
    follow::env::remember(named);
    plugins::options::remember(named.unwrap_or_default());
    // SAFETY: the loader's arguments.
    stop::choose_signal(unsafe { variable(envp, names::ENV_SIGNAL) });
    guard::install();
    follow::thread::prepare();
    let token = token.unwrap_or_default();
    let becomes = names::token_pid(token) == Some(sys::getpid());
    // SAFETY: the loader's arguments.
    let handed = unsafe { take_secret(envp) };
    let result = handed.map_or_else(|| read_secret(folder), Ok).and_then(|secret| {
        let config = Config { address: address.to_string(), folder: folder.to_string(), secret };
        // SAFETY: no other thread of ours yet.
        unsafe { *CONFIG.0.get() = Some(config) };
        follow::address::load();
        plugins::dispatch(Event::Init, 0, 0, 0)?;
        if becomes {
            plugins::dispatch(Event::Postexec, 0, 0, 0)?;
        }
        start(names::parse_token(token))
    });
    if let Err(e) = result {
        complain(&format!("this process is not part of the computation and will not be in its checkpoints: {e}"));
    }
}

/// The secret in the environment, which is overwritten there: neither the program nor who looks at it is to find it.
///
/// # Safety
/// `envp` is the process's own environment.
unsafe fn take_secret(envp: *const *const c_char) -> Option<Secret> {
    // SAFETY: the caller's.
    let text = unsafe { variable(envp, names::ENV_SECRET) }?;
    let secret = Secret::from_hex(text.as_bytes());
    // SAFETY: the strings of the environment are the process's own writable memory, and no other thread runs yet.
    unsafe { text.as_ptr().cast_mut().write_bytes(b'x', text.len()) };
    secret
}

type Destructor = extern "C" fn();

#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: Destructor = destructor;

/// exit(3), or the return of `main`.
extern "C" fn destructor() {
    if config().is_some() {
        plugins::tell(Event::Exit);
    }
}

fn read_secret(folder: &str) -> Result<Secret, String> {
    let path = format!("{folder}/{}", names::FILE_SECRET);
    let c_path = CString::new(path.as_str()).map_err(|e| e.to_string())?;
    let text = sys::read_file(&c_path).map_err(|e| format!("{path}: {e}"))?;
    Secret::from_hex(&text).ok_or_else(|| format!("{path} does not hold a secret (64 hexadecimal digits)"))
}

/// Starts the checkpoint thread, connects and joins. In the constructor, and in a forked child.
///
/// # Errors
/// The process is not part of the computation then.
pub fn start(token: u64) -> Result<(), String> {
    let all = u64::MAX;
    let mut old = 0u64;
    // The checkpoint thread takes no signal of the program's.
    // SAFETY: masks are 8 bytes.
    _ = unsafe { sc!(rt_sigprocmask, libc::SIG_SETMASK, &raw const all, &raw mut old, 8) };
    // Not by the checkpoint thread: a child that the program forks meanwhile would inherit the file, where the table is shared.
    sandbox::remember();
    PID.store(sys::getpid(), Relaxed);
    BARE.store(!plugins::any(), Relaxed);
    STATE.store(WAIT, Release);
    let started = if is_bare() { start_bare(token) } else { start_pthread(token) };
    // SAFETY: as above.
    _ = unsafe { sc!(rt_sigprocmask, libc::SIG_SETMASK, &raw const old, 0, 8) };
    started
}

/// Where there are plugins, the checkpoint thread is a pthread, for they use libc in their hooks.
fn start_pthread(token: u64) -> Result<(), String> {
    join(token)?;
    // SAFETY: the thread gets no argument.
    unsafe {
        let mut thread: libc::pthread_t = core::mem::zeroed();
        let r = follow::thread::real::pthread_create(
            &raw mut thread,
            core::ptr::null(),
            run_pthread as *const c_void,
            core::ptr::null_mut(),
        );
        if r != 0 {
            return Err(format!("the checkpoint thread cannot be made: errno {r}"));
        }
        libc::pthread_detach(thread);
    }
    // Over glibc's own, which came with pthread_create.
    install()?;
    tell(SERVE);
    Ok(())
}

/// Elsewhere it is a thread that libc does not know: so a program of one thread stays one in the eyes of glibc, which then
/// takes no lock and no detour at a cancellation point (mutexes, stdio, malloc and read(2) are dearer by half or more
/// otherwise). It leaves the program's descriptor table, so that the kernel too finds that table used by one thread alone,
/// and no descriptor of ours in it.
fn start_bare(token: u64) -> Result<(), String> {
    install()?;
    TOKEN.store(token, Relaxed);
    bare()?;
    while STATE.load(Acquire) == WAIT {
        sys::futex_wait(&STATE, WAIT, None);
    }
    // SAFETY: the checkpoint thread has filled it in, and does not touch it any more.
    match unsafe { (*ERROR.0.get()).take() } {
        None => Ok(()),
        Some(e) => Err(e),
    }
}

fn install() -> Result<(), String> {
    stop::install().map(drop).map_err(|e| format!("rt_sigaction: {e}"))
}

/// What [`start`] and the checkpoint thread tell each other: [`WAIT`], [`SERVE`].
static STATE: AtomicU32 = AtomicU32::new(0);
const WAIT: u32 = 0;
const SERVE: u32 = 1;
static TOKEN: AtomicU64 = AtomicU64::new(0);

fn tell(state: u32) {
    STATE.store(state, Release);
    sys::futex_wake(&STATE);
}

struct Failure(UnsafeCell<Option<String>>);
// SAFETY: handed over by `STATE`.
unsafe impl Sync for Failure {}
static ERROR: Failure = Failure(UnsafeCell::new(None));

/// Connects and joins.
fn join(token: u64) -> Result<(), String> {
    let config = config().ok_or("no computation is named in the environment")?;
    let mut connection = Connection::open(&config.address, &config.secret)?;
    connection.send(&FromProcess::Join {
        token,
        pid: sys::getpid(),
        // SAFETY: no arguments.
        ppid: unsafe { sc!(getppid) }.unwrap_or(0) as i32,
        exe: sys::read_link(c"/proc/self/exe").unwrap_or_default(),
        host: hostname(),
        restarted_from: None,
    })?;
    conn::set(Some(connection));
    Ok(())
}

fn hostname() -> String {
    sys::read_file(c"/proc/sys/kernel/hostname")
        .map(|h| String::from_utf8_lossy(h.trim_ascii()).into_owned())
        .unwrap_or_default()
}

/// Bytes below and above a bare thread's thread pointer: initial-exec variables of all libraries lie below (glibc bounds
/// them by its surplus, some KiB), glibc's own `struct pthread`, of which nobody takes notice, above.
pub const TLS: usize = 64 << 10;
/// Of these, the bytes above.
pub const TLS_ABOVE: usize = 8 << 10;
const STACK: usize = 256 << 10;

/// Is the checkpoint thread one that libc does not know?
pub fn is_bare() -> bool {
    BARE.load(Relaxed)
}

static BARE: AtomicBool = AtomicBool::new(false);
/// The bare checkpoint thread's stack and TLS block; 0: not made yet.
static AREA: AtomicUsize = AtomicUsize::new(0);

fn bare() -> Result<(), String> {
    let bad = |e| format!("the checkpoint thread cannot be made: {e}");
    // A page without access below the stack. After a fork it is there already, and nobody's.
    let base = match AREA.load(Relaxed) {
        0 => sys::map_anonymous(STACK + TLS, 0).map_err(bad)? as usize,
        base => {
            // SAFETY: as said; it is zeros again.
            unsafe { sc!(madvise, base + 4096, STACK + TLS - 4096, libc::MADV_DONTNEED) }.map_err(bad)?;
            base
        }
    };
    AREA.store(base, Relaxed);
    // SAFETY: memory of its own; `run` calls nothing of libc where no plugin is.
    unsafe {
        sc!(mprotect, base, 4096, libc::PROT_NONE).map_err(bad)?;
        let tls = base + STACK + TLS - TLS_ABOVE;
        arch::make_tls(tls);
        let r = arch::bare_thread(base + STACK, tls, run_bare);
        if r < 0 {
            return Err(format!("the checkpoint thread cannot be made: errno {}", -r));
        }
    }
    Ok(())
}

extern "C" fn run_pthread(_: *mut c_void) -> *mut c_void {
    while STATE.load(Acquire) != SERVE {
        sys::futex_wait(&STATE, WAIT, None);
    }
    relay::listen();
    serve();
    core::ptr::null_mut()
}

extern "C" fn run_bare() {
    let own = sys::own_table(&mut []).map_err(|e| format!("a descriptor table of its own: {e}"));
    relay::listen();
    let joined = own.and_then(|()| join(TOKEN.load(Relaxed)));
    let failed = joined.is_err();
    // SAFETY: `start_bare` waits for us.
    unsafe { *ERROR.0.get() = joined.err() };
    if failed {
        relay::close();
        tell(SERVE);
        return;
    }
    tell(SERVE);
    serve();
}

/// The checkpoint thread's life.
fn serve() {
    let member = loop {
        match checkpoint::receive() {
            Ok(ToProcess::Joined { member }) => break Ok(member),
            Ok(_) => {}
            Err(e) => break Err(e),
        }
    };
    let reason = match member {
        Ok(member) => checkpoint::Keeper::new(member).serve(),
        Err(e) => e,
    };
    conn::set(None);
    complain(&format!("{reason}: the program runs on, without checkpoints; the last committed generation restarts"));
    relay::close();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&c| c == 0).next().unwrap_or(b"")).into_owned()
}

/// In a restored process: the new coordinator, folder and secret, and the connection that `restart` made.
///
/// # Errors
/// The connection is not there.
pub fn adopt(note: &RestartInfo) -> Result<(), String> {
    let config = Config { address: text(&note.address), folder: text(&note.folder), secret: Secret::new(note.secret) };
    // SAFETY: all other threads stand.
    unsafe { *CONFIG.0.get() = Some(config) };
    conn::forget();
    let c = Connection::adopt(note.coordinator_fd as i32).map_err(|e| format!("connection left by restart: {e}"))?;
    conn::set(Some(c));
    arena::Scratch::leave();
    // The filters of whoever restarts.
    sandbox::remember();
    Ok(())
}
