//! What the program asks of the memory's allocator.

/// Asks the C library to keep what is freed, up to 2 GiB of it, for what is allocated next; does nothing where that is not
/// glibc's.
///
/// In training and on tensors, memory of some megabytes comes and goes with every layer. By default glibc gives it back and
/// fetches fresh pages for the next layer, which the kernel clears: a fifth of an integer network's time on tensors. That is a
/// program's decision, at its start; a library leaves it to its program.
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
