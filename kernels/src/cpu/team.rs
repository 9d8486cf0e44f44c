//! [`for_each`]: parallel loops that take less time than waking a thread.
//!
//! rayon's threads sleep when there is nothing to do, and waking one takes 5 to 50 us: longer than a layer of a small network, or
//! than half a product with one row. So, for as long as a network calls one layer after another, rayon's threads stay awake
//! here: they are *helpers*, which look for tasks of these loops, and for rayon's between them, until there has been none for a
//! while. The caller does not depend on them: tasks are taken one by one, and it takes them too. (If one of rayon's threads is busy with
//! something else all the time, the others are not woken again: the caller then works alone.)

use rayon::prelude::*;
use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a helper stays awake after the last task.
const AWAKE: Duration = Duration::from_micros(500);

/// How long it helps at most, without a pause: a loop of rayon's may wait for the very thread, which finds out only afterwards.
const STAY: Duration = Duration::from_millis(5);

/// So many tasks without helpers wake them: what takes no longer than waking them is better done alone.
const WORTH_WAKING: usize = 8;

/// How often a helper looks for tasks before it looks at the time and for work of rayon's.
const LOOKS: u32 = 512;

/// Runs `task` with every number below `tasks`, on the caller's thread and on rayon's. A panic of a task is the caller's.
pub(super) fn for_each(tasks: usize, task: impl Fn(usize) + Sync) {
    static TEAM: Team = Team::new();
    let alone = tasks <= 1 || rayon::current_num_threads() == 1;
    if alone {
        return (0..tasks).for_each(task);
    }
    // Inside rayon's loops its threads have other things to do; and there is one loop of ours at a time.
    if rayon::current_thread_index().is_some() || !TEAM.run(tasks, &task) {
        (0..tasks).into_par_iter().for_each(&task);
    }
}

/// The parts of `items` that have `len` elements (the last may have fewer), each with its number.
pub(super) fn for_each_chunk<T: Send>(items: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let start = AtomicPtr::new(items.as_mut_ptr());
    let count = items.len();
    for_each(count.div_ceil(len), |index| {
        let first = index * len;
        // SAFETY: The parts are inside the slice, which is borrowed until all are done, and do not overlap.
        let part = unsafe {
            let start = start.load(Ordering::Relaxed).add(first);
            std::slice::from_raw_parts_mut(start, len.min(count - first))
        };
        task(index, part);
    });
}

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// The one loop that is under way, and who takes part in it.
struct Team {
    /// Somebody's loop is under way.
    busy: AtomicBool,
    /// The number of the loop, and, in the lowest bits, of its tasks that nobody has taken yet.
    state: AtomicU64,
    /// A [`Task`], on the stack of the loop's caller.
    task: AtomicPtr<()>,
    /// Tasks that are done.
    done: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Threads that are awake, or about to be.
    helpers: AtomicUsize,
    /// Tasks since there were any.
    unhelped: AtomicUsize,
}

/// Bits of [`Team::state`] for tasks.
const LEFT_BITS: u32 = 24;

impl Team {
    const fn new() -> Self {
        Self {
            busy: AtomicBool::new(false),
            state: AtomicU64::new(0),
            task: AtomicPtr::new(null_mut()),
            done: AtomicUsize::new(0),
            panic: Mutex::new(None),
            helpers: AtomicUsize::new(0),
            unhelped: AtomicUsize::new(0),
        }
    }

    /// Runs a loop, unless there is another one or it is too long.
    fn run(&'static self, tasks: usize, task: Task) -> bool {
        if tasks >= 1 << LEFT_BITS || self.busy.swap(true, Ordering::Acquire) {
            return false;
        }
        self.done.store(0, Ordering::Relaxed);
        self.task.store((&raw const task).cast_mut().cast(), Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) >> LEFT_BITS) + 1;
        self.state.store(number << LEFT_BITS | tasks as u64, Ordering::Release);
        self.wake(tasks);
        while self.take_one() {}
        let mut looks = 0u32;
        while self.done.load(Ordering::Acquire) < tasks {
            spin_loop();
            looks += 1;
            if looks.is_multiple_of(1 << 12) {
                std::thread::yield_now(); // a helper may wait for this very core
            }
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.busy.store(false, Ordering::Release);
        match panic {
            Some(panic) => resume_unwind(panic),
            None => true,
        }
    }

    /// Makes helpers of all of rayon's threads but one, the caller being a thread itself: if there are none, and there are
    /// enough tasks now, or were in the loops before.
    fn wake(&'static self, tasks: usize) {
        if self.helpers.load(Ordering::Relaxed) > 0 {
            return;
        }
        let unhelped = self.unhelped.load(Ordering::Relaxed) + tasks;
        if unhelped < WORTH_WAKING {
            return self.unhelped.store(unhelped, Ordering::Relaxed);
        }
        self.unhelped.store(0, Ordering::Relaxed);
        self.helpers.store(rayon::current_num_threads() - 1, Ordering::Relaxed);
        rayon::spawn_broadcast(|context| {
            if context.index() > 0 {
                self.help();
                self.helpers.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }

    /// Takes tasks until there have been none for a while, or it has been long enough.
    fn help(&self) {
        let start = Instant::now();
        let mut last = start;
        let mut looks = 0u32;
        while last - start < STAY {
            if self.take_one() {
                last = Instant::now();
                continue;
            }
            spin_loop();
            looks += 1;
            if looks.is_multiple_of(LOOKS) {
                let _ = rayon::yield_now();
                if last.elapsed() > AWAKE {
                    return;
                }
            }
        }
    }

    /// Does one task of the loop under way, if there is one left.
    fn take_one(&self) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let left = state & ((1 << LEFT_BITS) - 1);
            if left == 0 {
                return false;
            }
            let task = self.task.load(Ordering::Relaxed);
            // The state has the loop's number: if it is still the same, so is the loop, and with a task that is not done it
            // goes on.
            match self.state.compare_exchange_weak(state, state - 1, Ordering::AcqRel, Ordering::Acquire) {
                Err(now) => state = now,
                Ok(_) => {
                    // SAFETY: The caller of the loop waits until all tasks are done, this one too.
                    let task: Task = unsafe { *task.cast::<Task>() };
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(left as usize - 1))) {
                        *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                    }
                    self.done.fetch_add(1, Ordering::Release);
                    return true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(tasks: usize) {
        let sum = AtomicUsize::new(0);
        for_each(tasks, |index| {
            let _ = sum.fetch_add(index + 1, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), tasks * (tasks + 1) / 2);
    }

    #[test]
    fn every_task_runs_once() {
        for tasks in 0..200 {
            sum(tasks);
        }
    }

    #[test]
    fn loops_of_many_threads_at_once() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let _ = scope.spawn(|| (0..500).for_each(sum));
            }
        });
    }

    #[test]
    fn chunks_are_all_of_a_slice() {
        let mut items = vec![0; 1000];
        for_each_chunk(&mut items, 7, |index, part| part.fill(index));
        assert!(items.iter().enumerate().all(|(at, &index)| index == at / 7));
    }

    #[test]
    fn a_panic_is_the_callers_and_the_next_loop_works() {
        for _ in 0..20 {
            let panicked = catch_unwind(|| for_each(8, |index| assert_ne!(index, 3, "three")));
            assert!(panicked.is_err());
            sum(8);
        }
    }
}
