//! [`Compilation`]: what a device of CubeCL does before its first results.

use crate::note::{clear_line, note, show_line};
use dr_kernels::LaunchCounter;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

/// Says how many kernels there are while more come, and in the end how long that took. There is nothing to say of a device without
/// kernels.
#[derive(Debug)]
pub(crate) struct Compilation {
    stop: Option<Sender<()>>,
    watcher: Option<JoinHandle<()>>,
}

/// How often kernels are counted.
const PAUSE: Duration = Duration::from_millis(200);

/// A tuner may run its candidates that long before it compiles others. After it, nothing new is expected.
const QUIET: Duration = Duration::from_secs(30);

impl Compilation {
    /// Of `phase`, until it is dropped or no kernel has been new for half a minute, where there can be kernels.
    pub(crate) fn watch(phase: &str) -> Option<Self> {
        let mut counter = LaunchCounter::start()?;
        let (stop, stopped) = channel();
        let phase = phase.to_string();
        let watcher = spawn(move || {
            let begin = Instant::now();
            let (mut kernels, mut last) = (0, begin);
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(PAUSE) {
                let count = counter.count();
                if count > kernels {
                    (kernels, last) = (count, Instant::now());
                    show_line(&format!("{phase}: compiling kernels, {kernels} so far"));
                } else if kernels > 0 && last.elapsed() > QUIET {
                    break;
                }
            }
            if kernels > 0 {
                clear_line();
                let seconds = (last - begin).as_secs_f64();
                note(format_args!("{phase}: {kernels} kernels, the last one new after {seconds:.1} s"));
            }
        });
        Some(Self { stop: Some(stop), watcher: Some(watcher) })
    }
}

impl Drop for Compilation {
    fn drop(&mut self) {
        self.stop = None;
        // It only counts and writes: that it panicked changes nothing.
        let _ = self.watcher.take().map(JoinHandle::join);
    }
}
