//! How memory comes from the operating system: on huge pages, where it is read over and over.
//!
//! Pages of 4 KiB are looked up so often that a product of one row, which only reads its weights, takes some 5 % longer.

use super::team;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::ptr::NonNull;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Bytes that are worth one, and the rest of some.
const HUGE_FROM: usize = HUGE / 2;

/// What is asked of the operating system for memory that will be read over and over.
#[derive(Clone, Copy)]
pub(crate) enum Huge {
    /// Huge pages when it is written for the first time: that takes less time than others, but memory that was used before is as it was.
    Fresh,
    /// To be moved to huge pages now: some ms for each of them.
    Now,
}

impl Huge {
    /// Asks for the pages that are whole inside the words. Does nothing where there are no huge pages, or for little memory.
    pub(crate) fn ask(self, start: *const u32, words: usize) {
        #[cfg(target_os = "linux")]
        if words * size_of::<u32>() >= HUGE_FROM {
            const PAGE: usize = 4096;
            /// `MADV_COLLAPSE`, since Linux 6.1; not every C library's headers have it.
            const COLLAPSE: libc::c_int = 25;
            let advice = match self {
                Self::Fresh => libc::MADV_HUGEPAGE,
                Self::Now => COLLAPSE,
            };
            let first = start.addr().next_multiple_of(PAGE);
            let end = (start.addr() + words * size_of::<u32>()) / PAGE * PAGE;
            // SAFETY: Advice changes no contents of these pages, on which there is nothing else. Nothing depends on it, so its result
            // does not matter (it fails where pages are larger or the system is too old).
            let _ = unsafe { libc::madvise(start.with_addr(first).cast_mut().cast(), end - first, advice) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (self, start, words);
    }
}

/// Writes a part of some words, by number.
pub(super) type Fill<'a> = &'a (dyn Fn(usize, &mut [u32]) + Sync);

/// Writes all of `out`: `fill` is given `part` words at a time (the last ones may be fewer), which are zeros, by number and in
/// parallel.
pub(super) fn fill(out: &mut [MaybeUninit<u32>], part: usize, fill: Fill) {
    team::for_each_chunk(out, part.max(1), |index, part| {
        part.fill(MaybeUninit::new(0));
        // SAFETY: All of these words have just been written.
        fill(index, unsafe { &mut *(std::ptr::from_mut(part) as *mut [u32]) });
    });
}

/// Words that are read over and over, by vectors: they start at a cache line or, if they are many, at a huge page.
pub(crate) struct Words {
    start: NonNull<u32>,
    len: usize,
    layout: Layout,
}

impl Words {
    /// `len` words; `fill` is as in [`fill`].
    pub(super) fn filled(len: usize, part: usize, fill: Fill) -> Self {
        let bytes = len * size_of::<u32>();
        let (bytes, align) = match bytes % HUGE {
            _ if bytes < HUGE_FROM => (bytes.max(1), 64),
            // The last page is whole, too, if most of it is used.
            HUGE_FROM.. => (bytes.next_multiple_of(HUGE), HUGE),
            _ => (bytes, HUGE),
        };
        let Ok(layout) = Layout::from_size_align(bytes, align) else {
            handle_alloc_error(Layout::new::<u32>())
        };
        // SAFETY: The layout has at least one byte.
        let start = unsafe { alloc(layout) }.cast::<u32>();
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Huge::Fresh.ask(start.as_ptr(), layout.size() / size_of::<u32>());
        let words = Self { start, len, layout };
        // SAFETY: This is the allocation, which nobody else knows, or its beginning.
        let out = unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast(), len) };
        self::fill(out, part, fill);
        words
    }

    /// Takes some milliseconds for each megabyte to move them to huge pages, if they are not there.
    pub(crate) fn settle(&self) {
        Huge::Now.ask(self.start.as_ptr(), self.layout.size() / size_of::<u32>());
    }
}

impl Deref for Words {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        // SAFETY: `filled` has written all words.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: `filled` has allocated this, with this layout.
        unsafe { dealloc(self.start.as_ptr().cast(), self.layout) };
    }
}

// SAFETY: The words are this value's own.
unsafe impl Send for Words {}
// SAFETY: Nobody writes to them.
unsafe impl Sync for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_as_they_were_filled() {
        for len in [0, 1, 5, 1 << 18, (1 << 18) + 7, (3 << 18) - 1, (1 << 20) + 3] {
            let words = Words::filled(len, 1000, &|index, part| {
                assert!(part.iter().all(|&word| word == 0));
                part.fill(index as u32);
            });
            words.settle();
            assert_eq!(words.len(), len);
            assert!(words.iter().enumerate().all(|(at, &word)| word as usize == at / 1000));
        }
    }
}
