//! Limits of the system.

/// Asks the system to refuse what would make a file larger than the shell allows (`ulimit -f`), instead of ending the program in the middle
/// of it: so what is half-written is removed, and the file is named.
pub(super) fn files_too_large_are_errors() {
    #[cfg(target_os = "linux")]
    // SAFETY: No handler runs; nothing else in the program asks for this signal.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
