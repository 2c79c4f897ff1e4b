//! Tables of virtual ids: what the program holds on the one side, what the outside world knows on the other.
//!
//! A table lives in the arena, so it is in the image and comes back with it; a plugin gives entries new real ids as it rebuilds
//! what they stand for. Rule: tables are touched under the lock of the plugins' state, inside the wrapper guard: no holder is
//! stopped, and none is missing in the child of a fork.
use alloc::{boxed::Box, vec::Vec};
use core::ffi::c_int;

/// `struct slackwater_ids`.
#[derive(Default)]
pub struct Ids {
    /// (virtual, real), by virtual id.
    pairs: Vec<(u64, u64)>,
    /// (real, virtual), by real id.
    back: Vec<(u64, u64)>,
}

impl Ids {
    fn put(&mut self, id: u64, real: u64) {
        self.take(id);
        for (list, pair) in [(&mut self.pairs, (id, real)), (&mut self.back, (real, id))] {
            let at = list.partition_point(|p| *p < pair);
            list.insert(at, pair);
        }
    }

    fn take(&mut self, id: u64) -> Option<u64> {
        let at = self.pairs.binary_search_by_key(&id, |p| p.0).ok()?;
        let (_, real) = self.pairs.remove(at);
        if let Ok(at) = self.back.binary_search(&(real, id)) {
            self.back.remove(at);
        }
        Some(real)
    }

    fn real(&self, id: u64) -> Option<u64> {
        self.pairs.binary_search_by_key(&id, |p| p.0).ok().map(|at| self.pairs[at].1)
    }

    fn id(&self, real: u64) -> Option<u64> {
        let at = self.back.partition_point(|p| p.0 < real);
        self.back.get(at).filter(|p| p.0 == real).map(|p| p.1)
    }
}

/// # Safety
/// From `slackwater_ids_new`.
unsafe fn with<R>(ids: *mut Ids, f: impl FnOnce(&mut Ids) -> R) -> R {
    // SAFETY: the caller's; the lock is ours meanwhile.
    super::with(|_| f(unsafe { &mut *ids }))
}

/// A table.
#[unsafe(no_mangle)]
pub extern "C" fn slackwater_ids_new() -> *mut Ids {
    super::with(|_| Box::into_raw(Box::default()))
}

/// Adds a pair, or gives a virtual id another real one.
///
/// # Safety
/// From `slackwater_ids_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_ids_set(ids: *mut Ids, id: u64, real: u64) {
    // SAFETY: the caller's.
    unsafe { with(ids, |t| t.put(id, real)) };
}

/// Takes a pair out; -1: there is none.
///
/// # Safety
/// From `slackwater_ids_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_ids_remove(ids: *mut Ids, id: u64) -> c_int {
    // SAFETY: the caller's.
    if unsafe { with(ids, |t| t.take(id)) }.is_some() { 0 } else { -1 }
}

/// # Safety
/// NULL or writable.
unsafe fn answer(found: Option<u64>, out: *mut u64) -> c_int {
    match found {
        // SAFETY: the caller's.
        Some(value) => unsafe {
            if !out.is_null() {
                *out = value;
            }
            0
        },
        None => -1,
    }
}

/// The real id of a virtual one; -1: unknown.
///
/// # Safety
/// From `slackwater_ids_new`; `real` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_ids_real(ids: *mut Ids, id: u64, real: *mut u64) -> c_int {
    // SAFETY: the caller's.
    unsafe { answer(with(ids, |t| t.real(id)), real) }
}

/// The virtual id of a real one; -1: unknown.
///
/// # Safety
/// From `slackwater_ids_new`; `id` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_ids_virtual(ids: *mut Ids, real: u64, id: *mut u64) -> c_int {
    // SAFETY: the caller's.
    unsafe { answer(with(ids, |t| t.id(real)), id) }
}

/// The pair with the smallest virtual id that is at least `from`; -1: none. To walk the table.
///
/// # Safety
/// From `slackwater_ids_new`; `id` and `real` are NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slackwater_ids_next(ids: *mut Ids, from: u64, id: *mut u64, real: *mut u64) -> c_int {
    // SAFETY: the caller's.
    unsafe {
        let found = with(ids, |t| t.pairs.get(t.pairs.partition_point(|p| p.0 < from)).copied());
        answer(found.map(|p| p.0), id);
        answer(found.map(|p| p.1), real)
    }
}
