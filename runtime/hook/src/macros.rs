//! `hook!` and `versioned!`.

/// Defines wrappers. For each function: the exported wrapper `name`; `real::name`, which calls the next definition; and
/// `__wrap_name`, to which the linker's `--wrap` sends uses of `name` inside this library (see `build::hooks`).
///
/// ```ignore
/// hook! {
///     /// Counts opens.
///     unsafe fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
///         unsafe { real::open64(path, flags, mode) }
///     }
///     unsafe fn pthread_cond_wait["GLIBC_2.3.2"](c: *mut c_void, m: *mut c_void) -> c_int { ... }
/// }
/// ```
/// A C function with one optional integer argument at the end (`open`, `fcntl`, `ioctl`) may be given a fixed arity: on
/// x86-64 and aarch64 the calling convention is the same. Longer variadic ones need naked stubs. Where the C library has no
/// such function `real::name` returns -1 or NULL with ENOSYS.
///
/// One invocation a module; several modules of a library may each have one.
#[macro_export]
macro_rules! hook {
    ($( $(#[$m:meta])* unsafe fn $name:ident $([$version:literal])? ($($a:ident : $t:ty),* $(,)?) $(-> $r:ty)? $body:block )*) => {
        /// The next definitions of the wrapped functions.
        #[allow(unsafe_code, dead_code, non_snake_case, clippy::missing_safety_doc, clippy::too_many_arguments)]
        pub mod real {
            #[allow(unused_imports)]
            use super::*;
            $(
                /// The next definition.
                ///
                /// # Safety
                /// As the C function's manual page has it.
                pub unsafe extern "C" fn $name($($a: $t),*) $(-> $r)? {
                    static NEXT: $crate::real::Next =
                        $crate::real::Next::new($crate::__c!(stringify!($name)), $crate::__version!($($version)?));
                    match NEXT.get() {
                        0 => <$crate::__ret!($($r)?) as $crate::real::Absent>::absent(),
                        // SAFETY: the definition that our wrapper stands in front of has its type.
                        f => unsafe {
                            ::core::mem::transmute::<usize, unsafe extern "C" fn($($t),*) $(-> $r)?>(f)($($a),*)
                        },
                    }
                }
                // Hidden, so that the library exports the listed names alone.
                ::core::arch::global_asm!(
                    concat!(".pushsection .text.__wrap_", stringify!($name), ",\"ax\",@progbits"),
                    concat!(".globl __wrap_", stringify!($name)),
                    concat!(".hidden __wrap_", stringify!($name)),
                    concat!(".type __wrap_", stringify!($name), ", %function"),
                    concat!("__wrap_", stringify!($name), ":"),
                    $crate::__jump!(),
                    ".popsection",
                    f = sym $name
                );
            )*
        }
        $(
            #[doc = concat!("Wrapper of `", stringify!($name), "`.")]
            $(#[$m])*
            #[allow(unsafe_code, clippy::missing_safety_doc, clippy::too_many_arguments)]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($a: $t),*) $(-> $r)? $body
        )*
    };
}

/// Exports `name@VERSION` (old) and `name@@VERSION` (default): `versioned! { "ibv_open_device" @ "@@IBVERBS_1.1" => open_device; }`.
///
/// The stub and its `.symver` stand in one piece of assembly, so that codegen units cannot part them; the Rust function
/// stays private. The versions must be in the library's version script: `build::hooks` writes one from lines `name@VERSION`.
#[macro_export]
macro_rules! versioned {
    ($( $name:literal @ $version:literal => $f:path; )*) => { $(
        ::core::arch::global_asm!(
            concat!(".pushsection .text.", $name, ",\"ax\",@progbits"),
            concat!(".globl __export_", $name, "_", $version),
            concat!(".type __export_", $name, "_", $version, ", %function"),
            concat!("__export_", $name, "_", $version, ":"),
            $crate::__jump!(),
            concat!(".symver __export_", $name, "_", $version, ", ", $name, $version, ", remove"),
            ".popsection",
            f = sym $f
        );
    )* };
}

#[doc(hidden)]
#[macro_export]
#[cfg(target_arch = "x86_64")]
macro_rules! __jump {
    () => {
        "jmp {f}"
    };
}
#[doc(hidden)]
#[macro_export]
#[cfg(target_arch = "aarch64")]
macro_rules! __jump {
    () => {
        "b {f}"
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __c {
    ($s:expr) => {
        const {
            match ::core::ffi::CStr::from_bytes_with_nul(concat!($s, "\0").as_bytes()) {
                Ok(s) => s,
                Err(_) => panic!("a name with a NUL"),
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __version {
    () => {
        None
    };
    ($v:literal) => {
        Some($crate::__c!($v))
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __ret {
    () => {
        ()
    };
    ($r:ty) => {
        $r
    };
}
