//! [`Ahead`]: batches that are prepared while the network computes, of files that are read on all processors.

use burn::data::dataset::DatasetError;
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use std::{
    io,
    num::NonZeroUsize,
    ops::Range,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

/// Batches that wait, ready, for the one who trains.
const AHEAD: usize = 2;

/// The batches of an epoch, not yet on a device, which a thread of its own prepares.
pub(super) struct Ahead<P> {
    /// `None` once there is nothing more to come.
    receiver: Option<Receiver<P>>,
    worker: Option<JoinHandle<()>>,
    failure: Option<io::Error>,
    waited: Arc<AtomicU64>,
}

impl<P: Send + 'static> Ahead<P> {
    /// What `prepare` makes of the positions up to each of `ends`, as long as somebody wants more; `None` is left out.
    pub fn start(
        ends: Vec<usize>, waited: Arc<AtomicU64>,
        mut prepare: impl FnMut(Range<usize>) -> Option<P> + Send + 'static,
    ) -> Self {
        let (sender, receiver) = sync_channel(AHEAD);
        let worker = thread::Builder::new().name("batches".into()).spawn(move || {
            let mut start = 0;
            for end in ends {
                let batch = prepare(start..end);
                start = end;
                if batch.is_some_and(|batch| sender.send(batch).is_err()) {
                    return;
                }
            }
        });
        let (worker, failure) =
            worker.map_or_else(|error| (None, Some(error)), |worker| (Some(worker), None));
        Self { receiver: Some(receiver), worker, failure, waited }
    }
}

impl<P> Ahead<P> {
    /// Lets the worker end, and waits for that.
    fn stop(&mut self) -> thread::Result<()> {
        self.receiver = None;
        self.worker.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl<P> Iterator for Ahead<P> {
    type Item = Result<P, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let started = Instant::now();
        let received = self.receiver.as_ref()?.recv();
        self.waited.fetch_add(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        if let Ok(batch) = received {
            return Some(Ok(batch));
        }
        let ended = self.stop();
        let failure = self.failure.take().or_else(|| {
            ended.is_err().then(|| io::Error::other("the thread that prepares batches panicked"))
        });
        failure.map(|error| Err(DatasetError::new(error)))
    }
}

impl<P> Drop for Ahead<P> {
    fn drop(&mut self) {
        // A panic of the worker was reported on its own thread; there is nobody left to return it to.
        let _ = self.stop();
    }
}

/// So many files are tried in place of one that cannot be read, so far from each other in the order.
const REPLACEMENTS: usize = 16;
const REPLACEMENT_STEP: usize = 7919;

/// Threads that read files: their own, so that whoever computes on the others does not wait for them.
static READERS: LazyLock<ThreadPool> = LazyLock::new(|| {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let named = ThreadPoolBuilder::new().thread_name(|i| format!("images {i}"));
    named.num_threads(threads).build().expect("the system has threads to give")
});

/// What `read` gives for each position that it can read, read on all processors.
pub(super) fn read_all<T: Send>(
    positions: Range<usize>, read: impl Fn(usize) -> Option<T> + Send + Sync,
) -> Vec<T> {
    READERS.install(|| positions.into_par_iter().filter_map(read).collect())
}

/// What `read` gives for the item at a position of an order; in training, if that cannot be read, for another in its place, so that all batches have their
/// size.
pub(super) fn read_one<I, T>(
    order: &[I], position: usize, training: bool, read: impl FnMut(&I) -> Option<T>,
) -> Option<T> {
    let tries = 0..if training { REPLACEMENTS } else { 1 };
    tries.map(|attempt| &order[(position + attempt * REPLACEMENT_STEP) % order.len()]).find_map(read)
}
