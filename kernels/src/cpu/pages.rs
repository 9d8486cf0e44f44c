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
    }
}

/// Asks the operating system to move what will be read over and over to huge pages; does nothing where there are none, or for little
/// memory.
///
/// Pages of 4 KiB are looked up so often that a product of one row, which only reads its weights, takes 5 % longer.
pub(super) fn collapse(words: &[u32]) {
    #[cfg(target_os = "linux")]
    if size_of_val(words) >= COLLAPSE_FROM {
        const HUGE: usize = 2 << 20;
        let first = words.as_ptr().addr() / HUGE * HUGE;
        let end = (words.as_ptr().addr() + size_of_val(words)).next_multiple_of(HUGE);
        // SAFETY: Advice changes no contents, neither of this memory nor of what else lies on the same pages. Nothing depends
        // on it, so its result does not matter (it fails where something is not mapped, or the system is too old).
        let _ = unsafe {
            libc::madvise(words.as_ptr().with_addr(first).cast_mut().cast(), end - first, libc::MADV_COLLAPSE)
        };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = words;
}

/// Bytes that are worth it.
#[cfg(target_os = "linux")]
const COLLAPSE_FROM: usize = 1 << 20;
