//! Time-outs that a checkpoint interrupts: the call is entered again with what is left of its time.
//!
//! The thread is not sent back to the program's own `syscall` instruction but to one of ours, with a record of the call on
//! its stack: the deadline, and the arguments as the program had them. When the call ends, the arguments are put back (to the
//! compiler a system call keeps them) and the thread goes on where the program's own would have. If the next checkpoint
//! finds the thread there, it knows the deadline. How much had passed before the *first* interruption of a call is told by
//! the kernel (nanosleep with a second argument) or by [`crate::asleep`].
//!
//! A socket's own time-out (SO_RCVTIMEO, SO_SNDTIMEO) is in no argument: there the thread waits in poll(2) for what is left,
//! and then enters the call, or reports what the call would have.
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
    /// Where the program goes on, and its stack pointer there: the stub's, by offset, like all up to `expired`.
    rip: u64,
    rsp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    r10: u64,
    r8: u64,
    number: u64,
    /// What a socket call returns when its time is over.
    expired: i64,
    deadline_ns: u64,
    /// What is left while the program stands.
    left_ns: u64,
    kind: Timeout,
    /// The time-out, where the call takes a pointer to one.
    timespec: [u64; 2],
    /// struct pollfd, for a socket.
    poll: [u32; 2],
}

core::arch::global_asm!(
    ".globl slackwater_again, slackwater_again_after, slackwater_again_socket, slackwater_again_socket_after",
    ".hidden slackwater_again, slackwater_again_after, slackwater_again_socket, slackwater_again_socket_after",
    ".type slackwater_again, @function",
    "slackwater_again:",
    ".cfi_startproc",
    ".cfi_signal_frame",
    // The caller's frame is at [rsp + 8], its instruction at [rsp]: pthread_cancel and debuggers unwind through here.
    ".cfi_escape 0x0f, 0x03, 0x77, 0x08, 0x06",
    ".cfi_escape 0x10, 0x10, 0x02, 0x77, 0x00",
    "syscall",
    "slackwater_again_after:",
    "3:",
    "mov rdi, [rsp + 16]",
    "mov rsi, [rsp + 24]",
    "mov rdx, [rsp + 32]",
    "mov r10, [rsp + 40]",
    "mov r8, [rsp + 48]",
    // rcx is the system call's to spoil.
    "mov rcx, [rsp]",
    "mov rsp, [rsp + 8]",
    "jmp rcx",
    "slackwater_again_socket:",
    "syscall",
    "slackwater_again_socket_after:",
    "test rax, rax",
    "js 3b",
    "jz 4f",
    "mov rdi, [rsp + 16]",
    "mov rsi, [rsp + 24]",
    "mov rdx, [rsp + 32]",
    "mov rax, [rsp + 56]",
    "jmp slackwater_again",
    "4: mov rax, [rsp + 64]",
    "jmp 3b",
    ".cfi_endproc",
    ".size slackwater_again, . - slackwater_again",
);

unsafe extern "C" {
    fn slackwater_again();
    fn slackwater_again_after();
    fn slackwater_again_socket();
    fn slackwater_again_socket_after();
}

/// Room between the handler's stack pointer and the record, for what still runs there.
const CLEARANCE: u64 = 2048;
/// More than a signal frame with all registers of any processor (AMX has 8 KiB).
const FRAME: u64 = 32 << 10;
const RED_ZONE: u64 = 128;

/// How a call is told its time-out.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
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
    /// Pointer to a timespec in a register.
    AtR8,
    /// Pointer in rdx to a timespec in which the kernel leaves what is left.
    InRdx,
    /// As `InRdx`.
    InR8,
    /// The same with a timeval.
    TimevalInR8,
    /// The socket in rdi has it.
    Socket,
}

const NANOSLEEP: u64 = 35;
const CLOCK_NANOSLEEP: u64 = 230;
const CONNECT: u64 = 42;

/// How call `number` with these arguments (rdi, rsi, rdx, r10, r8) is told a relative time-out, if it has one.
fn kind(number: u64, [_, rsi, rdx, r10, r8]: [u64; 5]) -> Option<Timeout> {
    let (kind, there) = match number {
        7 => (Timeout::Rdx, rdx as i32 > 0),                  // poll
        232 | 281 => (Timeout::R10, r10 as i32 > 0),          // epoll_wait, epoll_pwait
        NANOSLEEP => (Timeout::AtRdi, true),                  //
        CLOCK_NANOSLEEP => (Timeout::AtRdx, rsi == 0),        //
        202 => (Timeout::AtR10, rsi & 0x7f == 0 && r10 != 0), // futex, FUTEX_WAIT
        128 => (Timeout::AtRdx, rdx != 0),                    // rt_sigtimedwait
        220 | 441 => (Timeout::AtR10, r10 != 0),              // semtimedop, epoll_pwait2
        271 => (Timeout::InRdx, rdx != 0),                    // ppoll
        270 => (Timeout::InR8, r8 != 0),                      // pselect6
        23 => (Timeout::TimevalInR8, r8 != 0),                // select
        208 | 333 => (Timeout::AtR8, r8 != 0),                // io_getevents, io_pgetevents
        _ => (Timeout::Socket, direction(number).is_some()),
    };
    there.then_some(kind)
}

/// Which of its time-outs a call on a socket obeys, and what poll(2) is to wait for.
fn direction(number: u64) -> Option<(i32, i16)> {
    match number {
        0 | 19 | 45 | 47 | 43 | 288 => Some((libc::SO_RCVTIMEO, libc::POLLIN)), // read, readv, recvfrom, recvmsg, accept, accept4
        1 | 20 | 44 | 46 | CONNECT => Some((libc::SO_SNDTIMEO, libc::POLLOUT)), // write, writev, sendto, sendmsg, connect
        _ => None,
    }
}

/// Where the kernel writes what is left of the time; 0: nowhere.
fn remainder(number: u64, [_, rsi, rdx, r10, r8]: [u64; 5]) -> u64 {
    match number {
        271 => rdx,
        270 | 23 => r8,
        NANOSLEEP => rsi,
        CLOCK_NANOSLEEP => r10,
        _ => 0,
    }
}

/// Might somebody want to know for how long a thread has been in this call? (arguments as [`kind`], and a sixth)
pub fn has_timeout(number: u64, arguments: &[u64; 6]) -> bool {
    let &[a @ .., _] = arguments;
    kind(number, a).is_some() && remainder(number, a) == 0
}

/// The time-out, in nanoseconds.
///
/// # Safety
/// The arguments are those of a call that the kernel has just interrupted, so its pointers are good.
unsafe fn length(kind: Timeout, number: u64, arguments: [u64; 5]) -> Option<u64> {
    let [rdi, _, rdx, r10, r8] = arguments;
    // SAFETY: the caller's promise.
    let at = |p: u64| unsafe {
        let [seconds, nanoseconds] = *(p as *const [u64; 2]);
        Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
    };
    let milliseconds = |n: u64| Some(u64::from(n as u32) * 1_000_000);
    match kind {
        Timeout::Rdx => milliseconds(rdx),
        Timeout::R10 => milliseconds(r10),
        Timeout::AtRdi => at(rdi),
        Timeout::AtRdx | Timeout::InRdx => at(rdx),
        Timeout::AtR10 => at(r10),
        Timeout::AtR8 | Timeout::InR8 => at(r8),
        // SAFETY: as above.
        Timeout::TimevalInR8 => unsafe {
            let [seconds, microseconds] = *(r8 as *const [u64; 2]);
            Some(seconds.saturating_mul(1_000_000_000).saturating_add(microseconds.saturating_mul(1000)))
        },
        Timeout::Socket => {
            let (mut time, mut len) = ([0u64; 2], 16u32);
            let (option, _) = direction(number)?;
            // SAFETY: a struct timeval and its length.
            unsafe { sc!(getsockopt, rdi, libc::SOL_SOCKET, option, time.as_mut_ptr(), &raw mut len) }.ok()?;
            (time != [0; 2]).then(|| time[0].saturating_mul(1_000_000_000).saturating_add(time[1].saturating_mul(1000)))
        }
    }
}

/// The record of a thread that was interrupted in a `syscall` of ours.
fn record(frame: &mut Frame) -> Option<&'static mut Record> {
    let rip = frame.get(libc::REG_RIP);
    let here =
        rip == slackwater_again_after as *const () as u64 || rip == slackwater_again_socket_after as *const () as u64;
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
/// time-out and is entered again by our stub. It was interrupted at `interrupted_ns`, `slept_ns` after it had begun.
pub fn begin(frame: &mut Frame, number: u64, interrupted_ns: u64, slept_ns: u64, restarted: bool) -> bool {
    let register = |frame: &mut Frame, r| frame.get(r);
    let arguments =
        [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10, libc::REG_R8].map(|r| register(frame, r));
    let Some(kind) = kind(number, arguments) else { return false };
    // SAFETY: the caller has found a system call that returned EINTR.
    let Some(length) = (unsafe { length(kind, number, arguments) }) else { return false };
    let left_ns = match (kind, remainder(number, arguments)) {
        (_, 0) => length.saturating_sub(slept_ns),
        (Timeout::InRdx | Timeout::InR8 | Timeout::TimevalInR8, _) => length,
        // SAFETY: the kernel has written a timespec there.
        (_, p) => unsafe {
            let [seconds, nanoseconds] = *(p as *const [u64; 2]);
            seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
        },
    };
    let rsp = frame.get(libc::REG_RSP);
    let handler = (&raw const rsp) as u64;
    let same_stack = rsp > handler && rsp - handler < FRAME + CLEARANCE;
    let top = if same_stack { handler - CLEARANCE } else { rsp - RED_ZONE };
    let place = (top - size_of::<Record>() as u64) & !15;
    let since = if restarted { sys::now_ns() } else { interrupted_ns };
    let [rdi, rsi, rdx, r10, r8] = arguments;
    let events = direction(number).map_or(0, |(_, events)| events);
    // SAFETY: see the module's head.
    unsafe {
        let record = &mut *(place as *mut Record);
        *record = Record {
            rip: frame.get(libc::REG_RIP),
            rsp,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            number,
            expired: i64::from(if number == CONNECT { -libc::EINPROGRESS } else { -libc::EAGAIN }),
            deadline_ns: since.saturating_add(left_ns),
            left_ns,
            kind,
            timespec: [0; 2],
            poll: [rdi as u32, events as u32],
        };
        enter(frame, record);
    }
    true
}

/// Writes what is left where the program will look for it. False: it may not be written to, as the kernel has found too.
fn put(to: u64, value: [u64; 2]) -> bool {
    let (here, there) = ([(&raw const value) as u64, 16], [to, 16]);
    // SAFETY: one struct iovec each.
    let written = unsafe { sc!(process_vm_writev, sys::getpid(), here.as_ptr(), 1, there.as_ptr(), 1, 0) };
    written == Ok(16)
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
    for (register, value) in [
        (libc::REG_RDI, record.rdi),
        (libc::REG_RSI, record.rsi),
        (libc::REG_RDX, record.rdx),
        (libc::REG_R10, record.r10),
        (libc::REG_R8, record.r8),
        (libc::REG_RAX, record.number),
        (libc::REG_RSP, (&raw const *record) as u64),
        (libc::REG_RIP, slackwater_again as *const () as u64),
    ] {
        frame.set(register, value);
    }
    match record.kind {
        Timeout::Rdx => frame.set(libc::REG_RDX, milliseconds),
        Timeout::R10 => frame.set(libc::REG_R10, milliseconds),
        Timeout::AtRdi => frame.set(libc::REG_RDI, pointer),
        Timeout::InRdx if put(record.rdx, record.timespec) => {}
        Timeout::InR8 if put(record.r8, record.timespec) => {}
        Timeout::TimevalInR8 => {
            let micros = left.div_ceil(1000);
            record.timespec = [micros / 1_000_000, micros % 1_000_000];
            if !put(record.r8, record.timespec) {
                frame.set(libc::REG_R8, pointer);
            }
        }
        Timeout::AtRdx | Timeout::InRdx => frame.set(libc::REG_RDX, pointer),
        Timeout::AtR10 => frame.set(libc::REG_R10, pointer),
        Timeout::AtR8 | Timeout::InR8 => frame.set(libc::REG_R8, pointer),
        Timeout::Socket => {
            frame.set(libc::REG_RDI, (&raw const record.poll) as u64);
            frame.set(libc::REG_RSI, 1);
            frame.set(libc::REG_RDX, milliseconds);
            frame.set(libc::REG_RAX, 7);
            frame.set(libc::REG_RIP, slackwater_again_socket as *const () as u64);
        }
    }
}
