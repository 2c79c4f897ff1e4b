//! Relative time-outs that a checkpoint interrupts: the call is entered again with what is left of its time.
//!
//! The thread is not sent back to the program's own `syscall` instruction but to one of ours, with a record of the call on
//! its stack: the deadline, and the arguments as the program had them. When the call ends, the arguments are put back (to the
//! compiler a system call keeps them) and the thread goes on where the program's own would have. If the next checkpoint
//! finds the thread there, it knows the deadline. Only the time that had passed before the *first* interruption of a call is not
//! known (nanosleep with a second argument aside) and is given once more.
//!
//! A restart starts the clock anew with what was left at the checkpoint: the time in between does not count, and the clock may
//! be another machine's.
//!
//! # Safety
//! The record lies below everything that is in use on the stack: below the running handler's frames, which are gone when the
//! thread returns, or, if the handler has a stack of its own, below the red zone of the interrupted one.
use super::x86_64::Frame;
use crate::sys;

/// One interrupted call.
#[repr(C)]
struct Record {
    /// Where the program goes on, and its stack pointer there: the stub's, by offset.
    rip: u64,
    rsp: u64,
    rdi: u64,
    rdx: u64,
    r10: u64,
    number: u64,
    deadline_ns: u64,
    /// What is left while the program stands.
    left_ns: u64,
    /// The time-out, where the call takes a pointer to one.
    timespec: [u64; 2],
}

core::arch::global_asm!(
    ".globl slackwater_again, slackwater_again_after",
    ".hidden slackwater_again, slackwater_again_after",
    ".type slackwater_again, @function",
    "slackwater_again:",
    ".cfi_startproc",
    ".cfi_signal_frame",
    // The caller's frame is at [rsp + 8], its instruction at [rsp]: pthread_cancel and debuggers unwind through here.
    ".cfi_escape 0x0f, 0x03, 0x77, 0x08, 0x06",
    ".cfi_escape 0x10, 0x10, 0x02, 0x77, 0x00",
    "syscall",
    "slackwater_again_after:",
    "mov rdi, [rsp + 16]",
    "mov rdx, [rsp + 24]",
    "mov r10, [rsp + 32]",
    // rcx is the system call's to spoil.
    "mov rcx, [rsp]",
    "mov rsp, [rsp + 8]",
    "jmp rcx",
    ".cfi_endproc",
    ".size slackwater_again, . - slackwater_again",
);

unsafe extern "C" {
    fn slackwater_again();
    fn slackwater_again_after();
}

/// Room between the handler's stack pointer and the record, for what still runs there.
const CLEARANCE: u64 = 2048;
/// More than a signal frame with all registers of any processor (AMX has 8 KiB).
const FRAME: u64 = 32 << 10;
const RED_ZONE: u64 = 128;

/// How a call is told its time-out.
#[derive(Clone, Copy)]
enum Timeout {
    /// Milliseconds in a register.
    Rdx,
    /// Milliseconds in a register.
    R10,
    /// Pointer to a timespec in a register.
    AtRdi,
    /// Pointer to a timespec in a register.
    AtRdx,
    /// Pointer to a timespec in a register.
    AtR10,
}

/// The relative time-out of this call, if it has one, and what is left of it as far as the kernel says.
///
/// # Safety
/// The registers are those of a call that the kernel has just interrupted, so its pointers are good.
unsafe fn timeout(frame: &mut Frame, number: u64) -> Option<(Timeout, u64)> {
    let (rdi, rsi) = (frame.get(libc::REG_RDI), frame.get(libc::REG_RSI));
    let (rdx, r10) = (frame.get(libc::REG_RDX), frame.get(libc::REG_R10));
    // SAFETY: the caller's promise.
    let at = |p: u64| unsafe {
        let [seconds, nanoseconds] = *(p as *const [u64; 2]);
        seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
    };
    let milliseconds = |n: u64| (n as i32 > 0).then(|| u64::from(n as u32) * 1_000_000);
    let pointer = |kind, p: u64| (p != 0).then(|| (kind, at(p)));
    match number {
        7 => Some((Timeout::Rdx, milliseconds(rdx)?)),                      // poll
        232 | 281 => Some((Timeout::R10, milliseconds(r10)?)),              // epoll_wait, epoll_pwait
        35 => Some((Timeout::AtRdi, at(if rsi != 0 { rsi } else { rdi }))), // nanosleep
        230 if rsi == 0 => Some((Timeout::AtRdx, at(if r10 != 0 { r10 } else { rdx }))), // clock_nanosleep
        202 if rsi & 0x7f == 0 => pointer(Timeout::AtR10, r10),             // futex, FUTEX_WAIT
        128 => pointer(Timeout::AtRdx, rdx),                                // rt_sigtimedwait
        220 | 441 => pointer(Timeout::AtR10, r10),                          // semtimedop, epoll_pwait2
        _ => None,
    }
}

fn kind(number: u64) -> Timeout {
    match number {
        7 => Timeout::Rdx,
        232 | 281 => Timeout::R10,
        35 => Timeout::AtRdi,
        230 | 128 => Timeout::AtRdx,
        _ => Timeout::AtR10,
    }
}

/// The record of a thread that was interrupted in our own `syscall`.
fn record(frame: &mut Frame) -> Option<&'static mut Record> {
    let here = frame.get(libc::REG_RIP) == slackwater_again_after as *const () as u64;
    // SAFETY: only `enter` sends a thread there, with the record at its stack pointer.
    here.then(|| unsafe { &mut *(frame.get(libc::REG_RSP) as *mut Record) })
}

/// As the thread stops: how much time has it left?
pub fn note(frame: &mut Frame) {
    if let Some(record) = record(frame) {
        record.left_ns = record.deadline_ns.saturating_sub(sys::now_ns());
    }
}

/// As it goes on, with the call to be entered again: true if it is one of ours already.
pub fn again(frame: &mut Frame, restarted: bool) -> bool {
    let Some(record) = record(frame) else { return false };
    if restarted {
        record.deadline_ns = sys::now_ns().saturating_add(record.left_ns);
    }
    // SAFETY: the record is in place, the stack pointer at it.
    unsafe { enter(frame, record) };
    true
}

/// As it goes on, for the first time: true if call `number`, which the program makes at the frame's address, has a relative
/// time-out and is entered again by our stub. `interrupted_ns`: when it was interrupted.
pub fn begin(frame: &mut Frame, number: u64, interrupted_ns: u64, restarted: bool) -> bool {
    // SAFETY: the caller has found a system call that returned EINTR.
    let Some((_, left_ns)) = (unsafe { timeout(frame, number) }) else { return false };
    let rsp = frame.get(libc::REG_RSP);
    let handler = (&raw const rsp) as u64;
    let same_stack = rsp > handler && rsp - handler < FRAME + CLEARANCE;
    let top = if same_stack { handler - CLEARANCE } else { rsp - RED_ZONE };
    let place = (top - size_of::<Record>() as u64) & !15;
    let since = if restarted { sys::now_ns() } else { interrupted_ns };
    // SAFETY: see the module's head.
    unsafe {
        let record = &mut *(place as *mut Record);
        *record = Record {
            rip: frame.get(libc::REG_RIP),
            rsp,
            rdi: frame.get(libc::REG_RDI),
            rdx: frame.get(libc::REG_RDX),
            r10: frame.get(libc::REG_R10),
            number,
            deadline_ns: since.saturating_add(left_ns),
            left_ns,
            timespec: [0; 2],
        };
        enter(frame, record);
    }
    true
}

/// Sends the thread to the stub.
///
/// # Safety
/// The record is filled, and lies where the module's head says.
unsafe fn enter(frame: &mut Frame, record: &mut Record) {
    let left = record.deadline_ns.saturating_sub(sys::now_ns());
    record.timespec = [left / 1_000_000_000, left % 1_000_000_000];
    let milliseconds = left.div_ceil(1_000_000).min(i32::MAX as u64);
    let pointer = (&raw const record.timespec) as u64;
    frame.set(libc::REG_RDI, record.rdi);
    frame.set(libc::REG_RDX, record.rdx);
    frame.set(libc::REG_R10, record.r10);
    match kind(record.number) {
        Timeout::Rdx => frame.set(libc::REG_RDX, milliseconds),
        Timeout::R10 => frame.set(libc::REG_R10, milliseconds),
        Timeout::AtRdi => frame.set(libc::REG_RDI, pointer),
        Timeout::AtRdx => frame.set(libc::REG_RDX, pointer),
        Timeout::AtR10 => frame.set(libc::REG_R10, pointer),
    }
    frame.set(libc::REG_RAX, record.number);
    frame.set(libc::REG_RSP, (&raw const *record) as u64);
    frame.set(libc::REG_RIP, slackwater_again as *const () as u64);
}
