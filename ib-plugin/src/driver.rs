//! The seam: the functions of the real libibverbs, or of a mock in tests.
//!
//! The real driver stack lives in a link namespace of its own (`dlmopen(3)`), with its own libc. Why: at a checkpoint the
//! program's threads stand still and one of them may hold the malloc lock, yet queue pairs must be made and polled then.
//! It is loaded when the program first uses verbs, so nothing is loaded into programs that never do. Every call into it is
//! made inside a [`slackwater_plugin::Wrapper`], so no stopped thread ever holds one of its locks either.
//!
//! # Safety
//! The pointers have the types of `<infiniband/verbs.h>`; objects passed through them are real ones, never shadows.
use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};
use rdma_sys::*;

macro_rules! driver {
    ($($(#[$doc:meta])* $field:ident = $symbol:literal : fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// A verbs implementation; None: this one lacks the function.
        #[derive(Clone, Copy, Debug)]
        #[allow(missing_docs, reason = "named as in libibverbs")]
        #[non_exhaustive]
        pub struct Driver { $($(#[$doc])* pub $field: Option<unsafe extern "C" fn($($arg),*) $(-> $ret)?>,)* }

        impl Driver {
            /// One that has no function at all.
            pub const EMPTY: Self = Self { $($field: None),* };

            unsafe fn load(handle: *mut c_void) -> Self {
                Self { $($field: {
                    const NAME: &CStr = match CStr::from_bytes_with_nul(concat!($symbol, "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => panic!(),
                    };
                    // SAFETY: the symbol of this name has this type; null becomes None.
                    unsafe { core::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn($($arg),*) $(-> $ret)?>>(
                        libc::dlsym(handle, NAME.as_ptr())) }
                }),* }
            }
        }
    };
}

driver! {
    errno_location = "__errno_location": fn() -> *mut c_int;
    get_device_list = "ibv_get_device_list": fn(*mut c_int) -> *mut *mut ibv_device;
    free_device_list = "ibv_free_device_list": fn(*mut *mut ibv_device);
    get_device_guid = "ibv_get_device_guid": fn(*mut ibv_device) -> u64;
    get_device_index = "ibv_get_device_index": fn(*mut ibv_device) -> c_int;
    open_device = "ibv_open_device": fn(*mut ibv_device) -> *mut ibv_context;
    close_device = "ibv_close_device": fn(*mut ibv_context) -> c_int;
    query_device = "ibv_query_device": fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    query_port = "ibv_query_port": fn(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
    query_gid = "ibv_query_gid": fn(*mut ibv_context, u8, c_int, *mut ibv_gid) -> c_int;
    query_gid_ex = "_ibv_query_gid_ex":
        fn(*mut ibv_context, u32, u32, *mut ibv_gid_entry, u32, usize) -> c_int;
    query_gid_table = "_ibv_query_gid_table":
        fn(*mut ibv_context, *mut ibv_gid_entry, usize, u32, usize) -> isize;
    query_pkey = "ibv_query_pkey": fn(*mut ibv_context, u8, c_int, *mut u16) -> c_int;
    get_pkey_index = "ibv_get_pkey_index": fn(*mut ibv_context, u8, u16) -> c_int;
    alloc_pd = "ibv_alloc_pd": fn(*mut ibv_context) -> *mut ibv_pd;
    dealloc_pd = "ibv_dealloc_pd": fn(*mut ibv_pd) -> c_int;
    reg_mr = "ibv_reg_mr": fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    reg_mr_iova2 = "ibv_reg_mr_iova2": fn(*mut ibv_pd, *mut c_void, usize, u64, c_uint) -> *mut ibv_mr;
    dereg_mr = "ibv_dereg_mr": fn(*mut ibv_mr) -> c_int;
    create_comp_channel = "ibv_create_comp_channel": fn(*mut ibv_context) -> *mut ibv_comp_channel;
    destroy_comp_channel = "ibv_destroy_comp_channel": fn(*mut ibv_comp_channel) -> c_int;
    create_cq = "ibv_create_cq":
        fn(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
    resize_cq = "ibv_resize_cq": fn(*mut ibv_cq, c_int) -> c_int;
    destroy_cq = "ibv_destroy_cq": fn(*mut ibv_cq) -> c_int;
    get_cq_event = "ibv_get_cq_event": fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    ack_cq_events = "ibv_ack_cq_events": fn(*mut ibv_cq, c_uint);
    create_srq = "ibv_create_srq": fn(*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq;
    modify_srq = "ibv_modify_srq": fn(*mut ibv_srq, *mut ibv_srq_attr, c_int) -> c_int;
    query_srq = "ibv_query_srq": fn(*mut ibv_srq, *mut ibv_srq_attr) -> c_int;
    destroy_srq = "ibv_destroy_srq": fn(*mut ibv_srq) -> c_int;
    create_qp = "ibv_create_qp": fn(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    modify_qp = "ibv_modify_qp": fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    query_qp = "ibv_query_qp": fn(*mut ibv_qp, *mut ibv_qp_attr, c_int, *mut ibv_qp_init_attr) -> c_int;
    query_qp_data_in_order = "ibv_query_qp_data_in_order": fn(*mut ibv_qp, ibv_wr_opcode::Type, u32) -> c_int;
    destroy_qp = "ibv_destroy_qp": fn(*mut ibv_qp) -> c_int;
    create_ah = "ibv_create_ah": fn(*mut ibv_pd, *mut ibv_ah_attr) -> *mut ibv_ah;
    init_ah_from_wc = "ibv_init_ah_from_wc":
        fn(*mut ibv_context, u8, *mut ibv_wc, *mut ibv_grh, *mut ibv_ah_attr) -> c_int;
    destroy_ah = "ibv_destroy_ah": fn(*mut ibv_ah) -> c_int;
    get_async_event = "ibv_get_async_event": fn(*mut ibv_context, *mut ibv_async_event) -> c_int;
    ack_async_event = "ibv_ack_async_event": fn(*mut ibv_async_event);
    fork_init = "ibv_fork_init": fn() -> c_int;
    is_fork_initialized = "ibv_is_fork_initialized": fn() -> c_int;
    resolve_eth_l2 = "ibv_resolve_eth_l2_from_gid":
        fn(*mut ibv_context, *mut ibv_ah_attr, *mut u8, *mut u16) -> c_int;
}

static DRIVER: AtomicPtr<Driver> = AtomicPtr::new(null_mut());

/// Puts a mock in the real driver's place; before the first verbs call.
pub fn install(driver: &'static Driver) {
    DRIVER.store(core::ptr::from_ref(driver).cast_mut(), Ordering::Release);
}

/// The driver, if verbs have been used in this process.
pub(crate) fn loaded() -> Option<&'static Driver> {
    // SAFETY: null, or a leaked or static Driver.
    unsafe { DRIVER.load(Ordering::Acquire).as_ref() }
}

/// The driver, loaded now if need be; None: there is no libibverbs.
pub(crate) fn get() -> Option<&'static Driver> {
    loaded().or_else(load)
}

#[cold]
fn load() -> Option<&'static Driver> {
    static LOADING: crate::sync::Lock<()> = crate::sync::Lock::new(());
    unsafe extern "C" {
        fn dlmopen(namespace: isize, file: *const c_char, flags: c_int) -> *mut c_void;
    }
    let _one = LOADING.lock();
    if let Some(driver) = loaded() {
        return Some(driver);
    }
    const LM_ID_NEWLM: isize = -1;
    // SAFETY: getenv's answer is used at once; the strings are terminated.
    let handle = unsafe {
        let named = libc::getenv(c"SLACKWATER_LIBIBVERBS".as_ptr());
        let file = if named.is_null() { c"libibverbs.so.1".as_ptr() } else { named };
        dlmopen(LM_ID_NEWLM, file, libc::RTLD_NOW | libc::RTLD_LOCAL)
    };
    if handle.is_null() {
        crate::say(
            "slackwater-ib: libibverbs.so.1 cannot be loaded into a namespace of its own; verbs report no device",
        );
        return None;
    }
    // SAFETY: a libibverbs.
    let driver = unsafe { Driver::load(handle) };
    let leaked = alloc::boxed::Box::leak(alloc::boxed::Box::new(driver));
    DRIVER.store(leaked, Ordering::Release);
    Some(leaked)
}

/// Sets the program's errno.
pub(crate) fn set_errno(value: c_int) {
    // SAFETY: the calling thread's own.
    unsafe { *libc::__errno_location() = value };
}

/// Hands the driver's errno (it has a libc of its own) to the program, and returns it.
pub(crate) fn pass_errno() -> c_int {
    let value = loaded().and_then(|d| d.errno_location).map_or(libc::EIO, |f| {
        // SAFETY: the calling thread's own, in the driver's libc.
        unsafe { *f() }
    });
    set_errno(value);
    value
}

/// The answer of a call of the driver's, with its errno if it says that the call failed.
pub(crate) fn answered(ret: c_int) -> c_int {
    if ret != 0 {
        pass_errno();
    }
    ret
}
