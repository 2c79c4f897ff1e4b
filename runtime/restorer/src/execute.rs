//! The executor: ops in order, mm, signal actions, the agent's note, threads.
//!
//! # Safety
//! The plan was checked by the one who made it; every address in it is either in the blob or is mapped by an op before it is
//! used. After the first op nothing but the blob may be touched.
use crate::arch::{become_thread, nr, spawn, syscall};
use slackwater_restorer::plan::{KernelMmMap, Op, Plan, RestartInfo, ThreadPlan, op};

const PR_SET_MM: usize = 35;
const PR_SET_MM_MAP: usize = 14;
const MADV_POPULATE_WRITE: usize = 23;
const MAP_HUGETLB: usize = 0x4_0000;

/// Decimal digits of `v` at the end of `buf`.
fn digits(mut v: u64, buf: &mut [u8; 20]) -> &[u8] {
    let mut i = buf.len();
    loop {
        i -= 1;
        buf[i] = b'0' + (v % 10) as u8;
        v /= 10;
        if v == 0 {
            break;
        }
    }
    &buf[i..]
}

fn put(text: &[u8]) {
    // SAFETY: writes bytes of ours to stderr.
    unsafe { syscall(nr::WRITE, [2, text.as_ptr() as usize, text.len(), 0, 0, 0]) };
}

/// Ends the process: `slackwater restart` sees status 99 and says the rest.
pub fn die(what: &[u8], step: u64, errno: u64) -> ! {
    let mut buf = [0; 20];
    put(b"slackwater: restorer: ");
    put(what);
    put(b" failed at step ");
    put(digits(step, &mut buf));
    put(b", errno ");
    put(digits(errno, &mut buf));
    put(b"\n");
    loop {
        // SAFETY: ends the process.
        unsafe { syscall(nr::EXIT_GROUP, [99, 0, 0, 0, 0, 0]) };
    }
}

fn failed(r: isize) -> bool {
    (-4095..0).contains(&r)
}

fn check(r: isize, what: &'static [u8], step: u64) {
    if failed(r) {
        die(what, step, -r as u64);
    }
}

fn execute(o: &Op, step: u64) {
    let (addr, len, arg) = (o.addr as usize, o.len as usize, o.arg as usize);
    let call = |n, a| {
        // SAFETY: the plan says so (module head).
        unsafe { syscall(n, a) }
    };
    match o.code {
        op::UNMAP => check(call(nr::MUNMAP, [addr, len, 0, 0, 0, 0]), b"munmap", step),
        op::MAP => {
            let map = |flags| call(nr::MMAP, [addr, len, arg, flags, o.fd as usize, o.offset as usize]);
            let mut r = map(o.flags as usize);
            if failed(r) && o.flags as usize & MAP_HUGETLB != 0 {
                r = map(o.flags as usize & !MAP_HUGETLB);
            }
            check(r, b"mmap", step);
            if r as usize != addr {
                die(b"mmap at the wrong place", step, 0);
            }
        }
        op::READ => {
            let mut done = 0;
            while done < len {
                let r = call(nr::PREAD64, [o.fd as usize, addr + done, len - done, o.offset as usize + done, 0, 0]);
                check(r, b"reading the image", step);
                if r == 0 {
                    die(b"reading the image (it ended early)", step, 0);
                }
                done += r as usize;
            }
        }
        op::PROTECT => check(call(nr::MPROTECT, [addr, len, arg, 0, 0, 0]), b"mprotect", step),
        op::ADVISE => _ = call(nr::MADVISE, [addr, len, arg, 0, 0, 0]),
        op::POPULATE => _ = call(nr::MADVISE, [addr, len, MADV_POPULATE_WRITE, 0, 0, 0]),
        op::LOCK => _ = call(nr::MLOCK2, [addr, len, o.flags as usize, 0, 0, 0]),
        op::SEAL => _ = call(nr::MSEAL, [addr, len, 0, 0, 0, 0]),
        op::MOVE => {
            let r = call(nr::MREMAP, [arg, len, len, 3, addr, 0]);
            check(r, b"mremap", step);
        }
        op::SHMAT => {
            let r = call(nr::SHMAT, [o.fd as usize, addr, o.flags as usize, 0, 0, 0]);
            check(r, b"shmat", step);
            if r as usize != addr {
                die(b"shmat at the wrong place", step, 0);
            }
        }
        op::CLOSE => _ = call(nr::CLOSE, [o.fd as usize, 0, 0, 0, 0, 0]),
        op::COPY => {
            // SAFETY: arg lies in the blob, addr was mapped writable by an op before.
            unsafe { core::ptr::copy_nonoverlapping(arg as *const u8, addr as *mut u8, len) }
        }
        op::ZERO => {
            // SAFETY: addr was mapped writable by an op before.
            unsafe { core::ptr::write_bytes(addr as *mut u8, 0, len) }
        }
        _ => die(b"unknown op", step, o.code),
    }
}

/// Executes the plan and never returns.
///
/// # Safety
/// Module head.
pub unsafe extern "C" fn run(plan: *const Plan) -> ! {
    // SAFETY: the plan and all that it points to lie in the blob.
    let (plan, ops, threads) = unsafe {
        let p = &*plan;
        (
            p,
            core::slice::from_raw_parts::<Op>(p.ops, p.ops_len as usize),
            core::slice::from_raw_parts::<ThreadPlan>(p.threads, p.threads_len as usize),
        )
    };
    let all = u64::MAX;
    // SAFETY: blocks all signals; `all` is 8 bytes, as the kernel's sigset is.
    unsafe { syscall(nr::RT_SIGPROCMASK, [2, &raw const all as usize, 0, 8, 0, 0]) };
    for (step, o) in ops.iter().enumerate() {
        execute(o, step as u64);
    }
    let step = ops.len() as u64;
    // SAFETY: reads `mm` in the blob.
    let r = unsafe {
        syscall(nr::PRCTL, [PR_SET_MM, PR_SET_MM_MAP, &raw const plan.mm as usize, size_of::<KernelMmMap>(), 0, 0])
    };
    check(r, b"PR_SET_MM_MAP", step);
    if plan.mm.exe_fd != u32::MAX {
        // SAFETY: closes the restart's own descriptor; the program never had it.
        unsafe { syscall(nr::CLOSE, [plan.mm.exe_fd as usize, 0, 0, 0, 0, 0]) };
    }
    for (i, action) in plan.sigactions.iter().enumerate() {
        let signal = i + 1;
        if signal != 9 && signal != 19 {
            // SAFETY: installs the program's own action.
            let r = unsafe { syscall(nr::RT_SIGACTION, [signal, action.words.as_ptr() as usize, 0, 8, 0, 0]) };
            check(r, b"rt_sigaction", step + signal as u64);
        }
    }
    // SAFETY: the agent's memory is in place again; the address is its own RestartInfo.
    unsafe {
        let at = plan.restart_info_at as *mut RestartInfo;
        let restarts = (*at).restarts;
        *at = plan.restart_info;
        (*at).restarts = restarts + 1;
    }
    let (leader, others) = match threads.split_last() {
        Some(x) => x,
        None => die(b"no thread", step, 0),
    };
    for t in others {
        // SAFETY: its memory is in place.
        check(unsafe { spawn(t) }, b"clone3 (thread id taken?)", t.tid);
    }
    // SAFETY: this thread is the leader.
    unsafe { become_thread(leader) }
}
