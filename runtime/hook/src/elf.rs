//! Symbol look-up in the loaded objects without the loader: no lock, no allocation, no libc call, version-exact.
//!
//! dlsym(3) takes the loader's lock and may allocate an error text, so it can neither be called while the program stands
//! still nor from a hook of `malloc`. This walks what the loader publishes for debuggers, `_r_debug` and its link map
//! (<link.h>), and each object's own hash table (GNU hash; the System V one where there is no other).
//!
//! What is found is what `dlvsym(RTLD_NEXT)` finds, with two differences that callers can live with: objects opened
//! with RTLD_LOCAL are searched too (after all others), and a library that another thread unloads at this very moment
//! may be looked at.
//!
//! The rules for versions are glibc's (`do_lookup_x`): without a version the default one of a versioned symbol is meant, or an
//! unversioned symbol; with one, it must be exactly that, or the object must know no versions at all. Both hold on any
//! glibc: where a name moved from libpthread into libc (2.34) and got a second version, the default is the newer.
//!
//! # Safety
//! The link map and the objects' dynamic sections are valid as long as the objects are loaded; the loader only appends.
#![allow(unsafe_code)]
use core::ffi::{CStr, c_char};

#[repr(C)]
struct LinkMap {
    addr: usize,
    name: *const c_char,
    dynamic: *const [usize; 2],
    next: *const LinkMap,
    prev: *const LinkMap,
}

/// `struct r_debug`, and behind it (`version` 2 and later, glibc 2.35) the next namespace's.
#[repr(C)]
struct RDebug {
    version: i32,
    map: *const LinkMap,
    brk: usize,
    state: i32,
    base: usize,
    next: *const RDebug,
}

#[repr(C)]
struct Sym {
    name: u32,
    info: u8,
    other: u8,
    shndx: u16,
    value: u64,
    size: u64,
}

unsafe extern "C" {
    static _r_debug: RDebug;
}

const DT_HASH: usize = 4;
const DT_STRTAB: usize = 5;
const DT_SYMTAB: usize = 6;
const DT_GNU_HASH: usize = 0x6fff_fef5;
const DT_VERSYM: usize = 0x6fff_fff0;
const DT_VERDEF: usize = 0x6fff_fffc;
const STT_OBJECT: u8 = 1;
const STT_FUNC: u8 = 2;
const STT_NOTYPE: u8 = 0;
const STT_COMMON: u8 = 5;
const STT_GNU_IFUNC: u8 = 10;
const STB_LOCAL: u8 = 0;

/// The tables of one loaded object.
struct Object {
    base: usize,
    symbols: *const Sym,
    strings: *const u8,
    gnu_hash: *const u32,
    sysv_hash: *const u32,
    versym: *const u16,
    verdef: *const u8,
}

impl LinkMap {
    fn name(&self) -> &CStr {
        // SAFETY: a C string as long as the object is loaded, or NULL.
        if self.name.is_null() { c"" } else { unsafe { CStr::from_ptr(self.name) } }
    }

    /// The kernel's object is in the list, but in nobody's search order.
    fn is_vdso(&self) -> bool {
        let name = self.name().to_bytes();
        name.starts_with(b"linux-vdso") || name.starts_with(b"linux-gate")
    }

    fn object(&self) -> Option<Object> {
        let mut o = Object {
            base: self.addr,
            symbols: core::ptr::null(),
            strings: core::ptr::null(),
            gnu_hash: core::ptr::null(),
            sysv_hash: core::ptr::null(),
            versym: core::ptr::null(),
            verdef: core::ptr::null(),
        };
        let mut d = self.dynamic;
        if d.is_null() {
            return None;
        }
        loop {
            // SAFETY: the dynamic section ends with DT_NULL.
            let [tag, v] = unsafe { *d };
            // glibc relocates most of these in place, except where the section is read-only.
            let p = if v < self.addr { v.wrapping_add(self.addr) } else { v };
            match tag {
                0 => break,
                DT_STRTAB => o.strings = p as _,
                DT_SYMTAB => o.symbols = p as _,
                DT_GNU_HASH => o.gnu_hash = p as _,
                DT_HASH => o.sysv_hash = p as _,
                DT_VERSYM => o.versym = p as _,
                DT_VERDEF => o.verdef = p as _,
                _ => {}
            }
            // SAFETY: as above.
            d = unsafe { d.add(1) };
        }
        let hashed = !o.gnu_hash.is_null() || !o.sysv_hash.is_null();
        (!o.symbols.is_null() && !o.strings.is_null() && hashed).then_some(o)
    }
}

impl Object {
    unsafe fn string(&self, offset: u32) -> &CStr {
        // SAFETY: offsets in an object's own tables lead into its string table.
        unsafe { CStr::from_ptr(self.strings.add(offset as usize).cast()) }
    }

    /// Name of version `index` among those that this object defines.
    unsafe fn version(&self, index: u16) -> Option<&CStr> {
        let mut d = self.verdef;
        if d.is_null() {
            return None;
        }
        loop {
            // SAFETY: Elf64_Verdef: version, flags, ndx, cnt: u16; hash, aux, next: u32; an Elf64_Verdaux starts with the name.
            unsafe {
                let flags = d.add(2).cast::<u16>().read_unaligned();
                let ndx = d.add(4).cast::<u16>().read_unaligned();
                let aux = d.add(12).cast::<u32>().read_unaligned();
                let next = d.add(16).cast::<u32>().read_unaligned();
                const VER_FLG_BASE: u16 = 1;
                if ndx & 0x7fff == index && flags & VER_FLG_BASE == 0 {
                    return Some(self.string(d.add(aux as usize).cast::<u32>().read_unaligned()));
                }
                if next == 0 {
                    return None;
                }
                d = d.add(next as usize);
            }
        }
    }

    /// Is symbol `i` a definition of `name` in the wanted version?
    unsafe fn matches(&self, i: u32, name: &CStr, version: Option<&CStr>) -> bool {
        // SAFETY: `i` comes from the object's hash table.
        unsafe {
            let s = &*self.symbols.add(i as usize);
            let kind = s.info & 15;
            let defined = s.shndx != 0
                && s.info >> 4 != STB_LOCAL
                && matches!(kind, STT_NOTYPE | STT_OBJECT | STT_FUNC | STT_COMMON | STT_GNU_IFUNC);
            if !defined || self.string(s.name) != name {
                return false;
            }
            if self.versym.is_null() {
                return true;
            }
            let v = *self.versym.add(i as usize);
            match version {
                None => v & 0x8000 == 0,
                Some(want) => self.version(v & 0x7fff) == Some(want),
            }
        }
    }

    unsafe fn address(&self, i: u32) -> usize {
        // SAFETY: `i` comes from the object's hash table; an IFUNC's value is the address of its resolver.
        unsafe {
            let s = &*self.symbols.add(i as usize);
            let a = self.base.wrapping_add(s.value as usize);
            if s.info & 15 == STT_GNU_IFUNC { call_ifunc(a) } else { a }
        }
    }

    unsafe fn find(&self, name: &CStr, version: Option<&CStr>) -> Option<usize> {
        // SAFETY: the tables are the object's own.
        unsafe { if !self.gnu_hash.is_null() { self.find_gnu(name, version) } else { self.find_sysv(name, version) } }
    }

    unsafe fn find_gnu(&self, name: &CStr, version: Option<&CStr>) -> Option<usize> {
        let h = name.to_bytes().iter().fold(5381u32, |h, &c| h.wrapping_mul(33).wrapping_add(u32::from(c)));
        // SAFETY: layout of DT_GNU_HASH: buckets, first symbol, bloom words, shift; bloom; buckets; chains.
        unsafe {
            let [buckets, first, bloom, shift] = *self.gnu_hash.cast::<[u32; 4]>();
            if buckets == 0 {
                return None;
            }
            if bloom != 0 {
                let words = self.gnu_hash.add(4).cast::<u64>();
                let word = words.add((h / 64 % bloom) as usize).read_unaligned();
                let mask = 1u64 << (h % 64) | 1u64 << ((h >> (shift & 31)) % 64);
                if word & mask != mask {
                    return None;
                }
            }
            let bucket = self.gnu_hash.add(4 + 2 * bloom as usize);
            let chain = bucket.add(buckets as usize);
            let mut i = *bucket.add((h % buckets) as usize);
            if i < first {
                return None;
            }
            loop {
                let c = *chain.add((i - first) as usize);
                if c | 1 == h | 1 && self.matches(i, name, version) {
                    return Some(self.address(i));
                }
                if c & 1 != 0 {
                    return None;
                }
                i += 1;
            }
        }
    }

    unsafe fn find_sysv(&self, name: &CStr, version: Option<&CStr>) -> Option<usize> {
        let h = name.to_bytes().iter().fold(0u32, |h, &c| {
            let h = (h << 4).wrapping_add(u32::from(c));
            let top = h & 0xf000_0000;
            (h ^ (top >> 24)) & !top
        });
        // SAFETY: layout of DT_HASH: number of buckets, of chain entries; buckets; chains, ended by symbol 0.
        unsafe {
            let [buckets, _] = *self.sysv_hash.cast::<[u32; 2]>();
            if buckets == 0 {
                return None;
            }
            let bucket = self.sysv_hash.add(2);
            let chain = bucket.add(buckets as usize);
            let mut i = *bucket.add((h % buckets) as usize);
            while i != 0 {
                if self.matches(i, name, version) {
                    return Some(self.address(i));
                }
                i = *chain.add(i as usize);
            }
            None
        }
    }
}

unsafe fn call_ifunc(resolver: usize) -> usize {
    // SAFETY: by contract an IFUNC resolver. On x86-64 it takes no argument; on aarch64 the hardware capabilities, with
    // bit 62 (_IFUNC_ARG_HWCAP) saying that a second argument follows: without the bit resolvers read the first alone.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        return core::mem::transmute::<usize, extern "C" fn() -> usize>(resolver)();
        #[cfg(target_arch = "aarch64")]
        {
            unsafe extern "C" {
                fn getauxval(kind: u64) -> u64;
            }
            const AT_HWCAP: u64 = 16;
            core::mem::transmute::<usize, extern "C" fn(u64) -> usize>(resolver)(getauxval(AT_HWCAP))
        }
    }
}

/// The objects of one namespace, in search order.
fn objects(head: *const LinkMap) -> impl Iterator<Item = &'static LinkMap> {
    // SAFETY: the loader's list; its entries live as long as their objects.
    let mut m = unsafe { head.as_ref() };
    core::iter::from_fn(move || {
        let here = m?;
        // SAFETY: as above.
        m = unsafe { here.next.as_ref() };
        Some(here)
    })
}

/// The list heads of all namespaces (dlmopen(3)), the program's own first.
fn namespaces() -> impl Iterator<Item = *const LinkMap> {
    let mut d: *const RDebug = &raw const _r_debug;
    core::iter::from_fn(move || {
        // SAFETY: the loader's; `next` exists from version 2 on.
        let here = unsafe { d.as_ref() }?;
        d = if here.version >= 2 { here.next } else { core::ptr::null() };
        Some(here.map)
    })
}

/// The object that holds `address`: the one with the highest base at or below it (each is mapped in one piece, so none lies
/// inside another). `address` must lie in some object.
fn owner(address: usize) -> Option<&'static LinkMap> {
    namespaces().flat_map(objects).filter(|m| m.addr <= address && !m.is_vdso()).max_by_key(|m| m.addr)
}

/// The next definition of `name` after the object that holds `own_address`, in search order: what that object's wrapper
/// of `name` calls. About 50 ns.
///
/// `version` None: the default version. An IFUNC is resolved.
pub fn next(own_address: usize, name: &CStr, version: Option<&CStr>) -> Option<usize> {
    let own = owner(own_address)?;
    // SAFETY: as above.
    let after = objects(unsafe { own.next.as_ref() }.map_or(core::ptr::null(), |m| m));
    // SAFETY: tables of loaded objects.
    after.filter(|m| !m.is_vdso()).find_map(|m| m.object().and_then(|o| unsafe { o.find(name, version) }))
}

/// The first definition of `name` in the program's own namespace: what the program itself would call.
pub fn first(name: &CStr, version: Option<&CStr>) -> Option<usize> {
    let head = namespaces().next()?;
    // SAFETY: tables of loaded objects.
    objects(head).filter(|m| !m.is_vdso()).find_map(|m| m.object().and_then(|o| unsafe { o.find(name, version) }))
}

/// `name` as defined by the loaded object whose path ends with `path_suffix` ("/libc.so.6"; "" is the main program): the
/// first such object that has it.
pub fn find_in(path_suffix: &CStr, name: &CStr, version: Option<&CStr>) -> Option<usize> {
    let head = namespaces().next()?;
    let wanted = path_suffix.to_bytes();
    objects(head)
        .enumerate()
        .filter(|(i, m)| if wanted.is_empty() { *i == 0 } else { m.name().to_bytes().ends_with(wanted) })
        // SAFETY: tables of loaded objects.
        .find_map(|(_, m)| m.object().and_then(|o| unsafe { o.find(name, version) }))
}

/// Base address and path (empty: the main program) of the object that holds `address`.
pub fn object_at(address: usize) -> Option<(usize, &'static CStr)> {
    owner(address).map(|m| (m.addr, m.name()))
}

/// Where the object that holds `address` stands in the search order of the program's own namespace.
pub fn position(address: usize) -> Option<usize> {
    let own = owner(address)?;
    objects(namespaces().next()?).position(|m| core::ptr::eq(m, own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::ffi::c_void;
    unsafe extern "C" {
        fn dlsym(h: *mut c_void, s: *const c_char) -> *mut c_void;
        fn dlvsym(h: *mut c_void, s: *const c_char, v: *const c_char) -> *mut c_void;
    }
    /// RTLD_NEXT: from the test program on.
    const NEXT: *mut c_void = -1isize as *mut c_void;

    #[test]
    fn agrees_with_dlsym() {
        let own = agrees_with_dlsym as fn() as usize;
        let names = [
            c"open64",
            c"pthread_cond_wait",
            c"pthread_create",
            c"memcpy",
            c"strlen",
            c"dlsym",
            c"clock_gettime",
            c"gettimeofday",
            c"time",
            c"getcpu",
            c"environ",
            c"_r_debug",
            c"fork",
            c"posix_spawn",
            c"no_such_function",
        ];
        for name in names {
            // SAFETY: plain C strings.
            let want = unsafe { dlsym(NEXT, name.as_ptr()) } as usize;
            assert_eq!(next(own, name, None).unwrap_or(0), want, "{name:?}");
            for version in [c"GLIBC_2.2.5", c"GLIBC_2.3.2", c"GLIBC_2.14", c"GLIBC_2.34", c"GLIBC_2.17", c"NONE_1"] {
                // SAFETY: plain C strings.
                let want = unsafe { dlvsym(NEXT, name.as_ptr(), version.as_ptr()) } as usize;
                assert_eq!(next(own, name, Some(version)).unwrap_or(0), want, "{name:?} {version:?}");
            }
        }
    }

    #[test]
    fn looks_inside_one_object() {
        let libc = find_in(c"/libc.so.6", c"getpid", None).unwrap();
        assert_eq!(first(c"getpid", None), Some(libc));
        assert!(object_at(libc).unwrap().1.to_bytes().ends_with(b"/libc.so.6"));
        assert_eq!(find_in(c"/libm-not-here.so", c"getpid", None), None);
        assert_eq!(find_in(c"", c"getpid", None), None);
    }

    #[test]
    fn knows_its_own_object() {
        let own = knows_its_own_object as fn() as usize;
        assert_eq!(object_at(own).unwrap().1, c"");
        assert_eq!(position(own), Some(0));
        assert!(position(first(c"getpid", None).unwrap()) > Some(0));
    }
}
