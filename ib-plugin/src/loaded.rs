//! Programs that load libibverbs themselves: `dlopen(3)` and `dlsym(3)`, python's ctypes, `RTLD_DEEPBIND`, bindings without a link
//! dependency.
//!
//! Such lookups go to the symbol table of that very object and never meet a preloaded library. So the table is changed: in
//! the program's libibverbs each symbol that we wrap or refuse leads to our definition. `dlsym` itself stays as it is, for what it
//! does depends on its caller. The object is loaded for that when the program first calls dlopen (a program that never does and is not
//! linked to libibverbs pays nothing); the wrapper of dlopen ends in a jump, so that dlopen still sees its caller.
//!
//! # Safety
//! The tables are those of an object that stays loaded (its handle is never closed); their layout is elf(5)'s. Only `st_value` of
//! defined functions is written, in pages that are writable for the moment and private to the process.
use crate::exports;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

type Dlopen = unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void;

const LIBRARY: &CStr = c"libibverbs.so.1";

/// `struct link_map` of `<link.h>`, as far as it is public.
#[repr(C)]
struct LinkMap {
    addr: usize,
    name: *const c_char,
    dynamic: *const [usize; 2],
}

/// Elf64_Sym.
#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: usize,
    size: u64,
}

// Elf64_Dyn tags.
const STRTAB: usize = 5;
const SYMTAB: usize = 6;
const GNU_HASH: usize = 0x6fff_fef5;
const VERSYM: usize = 0x6fff_fff0;
const VERDEF: usize = 0x6fff_fffc;

unsafe fn tag(map: &LinkMap, wanted: usize) -> Option<usize> {
    let mut d = map.dynamic;
    while (*d)[0] != 0 {
        if (*d)[0] == wanted {
            // The loader has relocated these in place, but for objects whose dynamic section is read-only.
            let value = (*d)[1];
            return Some(if value < map.addr { value + map.addr } else { value });
        }
        d = d.add(1);
    }
    None
}

/// Number of symbols, from the last chain of the GNU hash table.
unsafe fn symbols(hash: usize) -> usize {
    let head = hash as *const u32;
    let (buckets, offset, bloom) = (*head as usize, *head.add(1) as usize, *head.add(2) as usize);
    let table = head.add(4 + bloom * 2);
    let chains = table.add(buckets);
    let mut last = (0..buckets).map(|i| *table.add(i) as usize).max().unwrap_or(0);
    if last < offset {
        return offset;
    }
    while *chains.add(last - offset) & 1 == 0 {
        last += 1;
    }
    last + 1
}

/// Name of a version number of the object's own.
unsafe fn version<'a>(definitions: usize, strings: usize, wanted: u16) -> &'a CStr {
    let mut at = definitions as *const u8;
    loop {
        // Elf64_Verdef: vd_ndx at 4, vd_aux at 12, vd_next at 16; Elf64_Verdaux: vda_name first.
        let next = at.add(16).cast::<u32>().read_unaligned() as usize;
        if at.add(4).cast::<u16>().read_unaligned() == wanted {
            let aux = at.add(at.add(12).cast::<u32>().read_unaligned() as usize);
            return CStr::from_ptr((strings + aux.cast::<u32>().read_unaligned() as usize) as *const c_char);
        }
        if next == 0 {
            return c"";
        }
        at = at.add(next);
    }
}

/// Leads the symbols of this object that we define to us.
unsafe fn lead_here(map: &LinkMap) -> Option<()> {
    let (strings, table) = (tag(map, STRTAB)?, tag(map, SYMTAB)? as *mut Symbol);
    let (versions, definitions) = (tag(map, VERSYM)? as *const u16, tag(map, VERDEF)?);
    let n = symbols(tag(map, GNU_HASH)?);
    let first = table as usize & !0xfff;
    let length = (table.add(n) as usize).next_multiple_of(0x1000) - first;
    let protect = |access: c_int| libc::syscall(libc::SYS_mprotect, first, length, access);
    if protect(libc::PROT_READ | libc::PROT_WRITE) != 0 {
        return None;
    }
    for i in 0..n {
        let symbol = &mut *table.add(i);
        if symbol.section == 0 {
            continue;
        }
        let name = CStr::from_ptr((strings + symbol.name as usize) as *const c_char);
        let version = version(definitions, strings, *versions.add(i) & 0x7fff);
        if let Some(ours) = exports::definition(name.to_bytes(), version.to_bytes()) {
            symbol.value = ours.wrapping_sub(map.addr);
        }
    }
    protect(libc::PROT_READ);
    Some(())
}

/// 0: not looked yet. The next definition of dlopen.
static NEXT: AtomicUsize = AtomicUsize::new(0);
static DONE: AtomicBool = AtomicBool::new(false);

unsafe extern "C" fn none(_: *const c_char, _: c_int) -> *mut c_void {
    null_mut()
}

unsafe fn next() -> Dlopen {
    let mut at = NEXT.load(Ordering::Acquire);
    if at == 0 {
        let own = dlopen_entry();
        let versions = [c"GLIBC_2.34", c"GLIBC_2.2.5"];
        at = versions.into_iter().map(|v| slackwater_plugin::next(own, c"dlopen", Some(v)) as usize).find(|&p| p != 0).unwrap_or(0);
        if at == 0 {
            at = libc::dlsym(libc::RTLD_NEXT, c"dlopen".as_ptr()) as usize;
        }
        if at == 0 || at == own {
            at = none as *const () as usize;
        }
        NEXT.store(at, Ordering::Release);
    }
    core::mem::transmute::<usize, Dlopen>(at)
}

unsafe fn find(flags: c_int) {
    let handle = next()(LIBRARY.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL | flags);
    let mut map: *const LinkMap = core::ptr::null();
    if !handle.is_null()
        && libc::dlinfo(handle, libc::RTLD_DI_LINKMAP, (&raw mut map).cast()) == 0
        && let Some(map) = map.as_ref()
    {
        DONE.store(true, Ordering::Release);
        if lead_here(map).is_none() {
            crate::say("slackwater-ib: libibverbs cannot be wrapped for programs that load it by dlopen");
        }
    }
}

/// A libibverbs that the program is linked to is here already; from the constructor.
pub(crate) fn at_start() {
    // SAFETY: as the module says.
    unsafe { find(libc::RTLD_NOLOAD) };
}

/// What dlopen does before it jumps to the next definition, which is returned.
unsafe extern "C" fn before() -> usize {
    if !DONE.swap(true, Ordering::AcqRel) {
        let errno = *libc::__errno_location();
        find(0);
        *libc::__errno_location() = errno;
    }
    next() as usize
}

#[cfg(not(feature = "no-exports"))]
core::arch::global_asm!(
    ".pushsection .text.slackwater_ib_dlopen,\"ax\",@progbits",
    ".globl slackwater_ib_dlopen",
    ".hidden slackwater_ib_dlopen",
    ".globl slackwater_ib_dlopen_old",
    ".type slackwater_ib_dlopen, @function",
    ".type slackwater_ib_dlopen_old, @function",
    "slackwater_ib_dlopen_old:",
    "slackwater_ib_dlopen: push rdi",
    "push rsi",
    "sub rsp, 8",
    "call {before}",
    "add rsp, 8",
    "pop rsi",
    "pop rdi",
    "jmp rax",
    ".size slackwater_ib_dlopen, . - slackwater_ib_dlopen",
    ".globl slackwater_ib_dlopen_new",
    ".set slackwater_ib_dlopen_new, slackwater_ib_dlopen",
    ".symver slackwater_ib_dlopen_new, dlopen@@GLIBC_2.34, remove",
    ".symver slackwater_ib_dlopen_old, dlopen@GLIBC_2.2.5, remove",
    ".popsection",
    before = sym before
);

#[cfg(not(feature = "no-exports"))]
fn dlopen_entry() -> usize {
    unsafe extern "C" {
        fn slackwater_ib_dlopen();
    }
    slackwater_ib_dlopen as *const () as usize
}

#[cfg(feature = "no-exports")]
fn dlopen_entry() -> usize {
    let _ = before;
    0
}
