//! A list that two threads work through, each taking the next part as soon as it is done with one: beside load, one of them may be
//! left waiting for a processor.
#![allow(unsafe_code)] // Reason: parts of one list, each of which is handed out once.
use core::marker::PhantomData;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{CaptureError, Result};

/// Runs two pieces of work, at the same time if that can be had.
pub type Both = fn(&mut (dyn FnMut() + Send), &mut (dyn FnMut() + Send));

/// A [`Both`]: one after the other.
pub fn in_turn(first: &mut (dyn FnMut() + Send), second: &mut (dyn FnMut() + Send)) {
    first();
    second();
}

/// So much of the list at a time: some 0.1 ms.
const PART: usize = 16;

/// What of a list nobody has taken yet.
pub struct Parts<'a, T> {
    list: *mut T,
    length: usize,
    next: AtomicUsize,
    whole: PhantomData<&'a mut [T]>,
}

// SAFETY: whoever takes a part has it alone.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    fn new(list: &'a mut [T]) -> Self {
        Self { list: list.as_mut_ptr(), length: list.len(), next: AtomicUsize::new(0), whole: PhantomData }
    }

    /// The next part.
    pub fn take(&self) -> Option<&'a mut [T]> {
        let from = self.next.fetch_add(PART, Relaxed);
        let length = self.length.checked_sub(from)?.min(PART);
        // SAFETY: inside the list, which is borrowed for 'a, and what begins at `from` is handed out this once.
        (length > 0).then(|| unsafe { core::slice::from_raw_parts_mut(self.list.add(from), length) })
    }
}

/// Has both do `all`, until nothing of the list is left.
pub fn by_parts<T: Send>(list: &mut [T], all: impl Fn(&Parts<'_, T>) -> Result<()> + Sync, both: Both) -> Result<()> {
    let parts = Parts::new(list);
    let (mut first, mut second) = (None, None);
    both(&mut || first = Some(all(&parts)), &mut || second = Some(all(&parts)));
    let undone = || Err(CaptureError::new(-1, "the thread that was to look at descriptors has ended"));
    first.unwrap_or_else(undone)?;
    second.unwrap_or_else(undone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(first: &mut (dyn FnMut() + Send), second: &mut (dyn FnMut() + Send)) {
        std::thread::scope(|scope| {
            scope.spawn(second);
            first();
        });
    }

    #[test]
    fn each_item_is_somebodys_once() {
        for length in [0, 1, PART - 1, PART, PART + 1, 1000 * PART + 3] {
            let mut list = vec![0u32; length];
            for both in [in_turn as Both, threads] {
                let all = |parts: &Parts<'_, u32>| {
                    while let Some(part) = parts.take() {
                        part.iter_mut().for_each(|item| *item += 1);
                    }
                    Ok(())
                };
                by_parts(&mut list, all, both).expect("both end");
            }
            assert!(list.iter().all(|&item| item == 2), "of {length}");
        }
    }

    #[test]
    fn one_that_stands_still_leaves_the_rest_to_the_other() {
        use std::sync::{Barrier, atomic::AtomicBool};
        let (taken, done) = (Barrier::new(2), Barrier::new(2));
        let slow = AtomicBool::new(true);
        let mut list = vec![0u32; 100 * PART];
        let all = |parts: &Parts<'_, u32>| {
            let still = slow.swap(false, Relaxed);
            let mut part = parts.take();
            taken.wait();
            if still {
                done.wait();
            }
            let mut count = 0;
            while let Some(items) = part {
                items.fill(1);
                count += 1;
                part = parts.take();
            }
            if still {
                assert_eq!(count, 1, "the other was to do the rest");
            } else {
                done.wait();
            }
            Ok(())
        };
        by_parts(&mut list, all, threads).expect("both end");
        assert!(list.iter().all(|&item| item == 1));
    }

    #[test]
    fn an_error_of_either_is_told() {
        for failing in [0, 900] {
            let mut list: Vec<u32> = (0..1000).collect();
            let all = |parts: &Parts<'_, u32>| {
                while let Some(part) = parts.take() {
                    if part.contains(&failing) {
                        return Err(CaptureError::new(-1, "no"));
                    }
                }
                Ok(())
            };
            assert!(by_parts(&mut list, all, threads).is_err(), "{failing}");
        }
    }
}
