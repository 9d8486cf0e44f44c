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
