//! How memory comes from the operating system.

/// Asks the C library to keep what is freed, up to 2 GiB of it, for what is allocated next; does nothing where that is not
/// glibc's.
///
/// Tensors of some megabytes come and go with every layer. By default glibc gives each of them back and fetches fresh pages for the
/// next one, which the kernel clears: a fifth of an integer network's time. A program that runs networks calls this once, at
/// its start; a library should leave it to its program.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: These are settings of the allocator. It refuses what it does not like.
    unsafe {
        // The largest that all versions take.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        // In large steps, so that there is room for huge pages; what is not used takes no memory.
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

/// What is asked of the operating system for memory that will be read over and over. Pages of 4 KiB are looked up so often that
/// a product of one row, which only reads its weights, takes some 5 % longer.
#[derive(Clone, Copy)]
pub(crate) enum Huge {
    /// Huge pages when it is written for the first time: that takes less time than others, but memory that was used before is as it was.
    Fresh,
    /// To be moved to huge pages now: some ms for each of them.
    Now,
}

impl Huge {
    /// Does nothing where there are no huge pages, or for little memory.
    pub(crate) fn ask(self, start: *const u32, words: usize) {
        #[cfg(target_os = "linux")]
        if words * size_of::<u32>() >= HUGE_FROM {
            const HUGE: usize = 2 << 20;
            let advice = match self {
                Self::Fresh => libc::MADV_HUGEPAGE,
                Self::Now => libc::MADV_COLLAPSE,
            };
            // All pages that it lies on: what is beside it will often be such memory, too.
            let first = start.addr() / HUGE * HUGE;
            let end = (start.addr() + words * size_of::<u32>()).next_multiple_of(HUGE);
            // SAFETY: Advice changes no contents, neither of this memory nor of what is beside it. Nothing depends on it, so
            // its result does not matter (it fails where something is not mapped, or the system is too old).
            let _ = unsafe { libc::madvise(start.with_addr(first).cast_mut().cast(), end - first, advice) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (self, start, words);
    }
}

/// Bytes that are worth it.
#[cfg(target_os = "linux")]
const HUGE_FROM: usize = 1 << 20;
