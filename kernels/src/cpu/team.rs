//! [`for_each`]: parallel loops that take less time than waking a thread.
//!
//! Waking a sleeping thread takes 5 to 50 us: longer than a layer of a small network, or than half a product with one row. So
//! *helpers*, threads of this module's own, stay awake between the loops of a network, and look for tasks until there has been
//! none for a while. The caller does not depend on them: tasks are taken one by one, and it takes them too. Nor do they
//! depend on rayon's threads, whatever those are busy with; only their number is that of rayon's.
//!
//! Where there are no threads (wasm32), the caller works alone.

use rayon::prelude::*;
use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a helper stays awake after its last task.
const AWAKE: Duration = Duration::from_micros(500);

/// So many tasks without a helper that could have one wake it: what takes no longer than waking it is better done alone.
const WORTH_WAKING: usize = 8;

/// How often a helper looks for tasks before it lets another thread have the core, and looks at the time.
const LOOKS: u32 = 512;

/// How often a caller looks whether all tasks are done before it lets another thread have the core (some hundred microseconds),
/// and how often it does that before it sleeps until they are.
const PATIENCE: [u32; 2] = [1 << 12, 4];

/// Runs `task` with every number below `tasks`, on the caller's thread and on helpers. A panic of a task is the caller's.
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
    /// A [`State`].
    state: AtomicU64,
    /// A [`Task`], on the stack of the loop's caller.
    task: AtomicPtr<()>,
    /// Tasks that are not done.
    undone: AtomicUsize,
    /// The caller, if it sleeps until all are.
    caller: Mutex<Option<Thread>>,
    caller_sleeps: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    helpers: OnceLock<Vec<Helper>>,
    /// Helpers that sleep.
    asleep: AtomicUsize,
    /// Tasks of loops for which helpers slept.
    unhelped: AtomicUsize,
}

struct Helper {
    thread: Thread,
    sleeps: &'static AtomicBool,
}

/// The number of a loop, and which of its tasks nobody has taken yet: so many after the first ones. The caller takes the first of them, helpers the
/// last, so that most threads find in the next loop what they have made in this one.
#[derive(Clone, Copy)]
struct State {
    number: u64,
    taken: u64,
    left: u64,
}

/// Bits of a [`State`] for tasks that are left, and for those that the caller has taken.
const TASK_BITS: u32 = 20;

impl State {
    const fn of(bits: u64) -> Self {
        let tasks = (1 << TASK_BITS) - 1;
        Self { number: bits >> (2 * TASK_BITS), taken: bits >> TASK_BITS & tasks, left: bits & tasks }
    }

    const fn bits(self) -> u64 {
        self.number << (2 * TASK_BITS) | self.taken << TASK_BITS | self.left
    }
}

impl Team {
    const fn new() -> Self {
        Self {
            busy: AtomicBool::new(false),
            state: AtomicU64::new(0),
            task: AtomicPtr::new(null_mut()),
            undone: AtomicUsize::new(0),
            caller: Mutex::new(None),
            caller_sleeps: AtomicBool::new(false),
            panic: Mutex::new(None),
            helpers: OnceLock::new(),
            asleep: AtomicUsize::new(0),
            unhelped: AtomicUsize::new(0),
        }
    }

    /// Runs a loop, unless there is another one or it is too long.
    fn run(&'static self, tasks: usize, task: Task) -> bool {
        if tasks >= 1 << TASK_BITS || self.busy.swap(true, Ordering::Acquire) {
            return false;
        }
        let helpers = self.helpers.get_or_init(|| self.hire());
        self.undone.store(tasks, Ordering::Relaxed);
        self.task.store((&raw const task).cast_mut().cast(), Ordering::Relaxed);
        let number = State::of(self.state.load(Ordering::Relaxed)).number + 1;
        self.state.store(State { number, taken: 0, left: tasks as u64 }.bits(), Ordering::SeqCst);
        self.wake(helpers, tasks);
        while self.take_one(true) {}
        self.wait();
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.busy.store(false, Ordering::Release);
        match panic {
            Some(panic) => resume_unwind(panic),
            None => true,
        }
    }

    /// Starts helpers: with the caller, as many threads as rayon has, or as many as there can be.
    fn hire(&'static self) -> Vec<Helper> {
        let hire = |_| {
            let sleeps: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
            let named = thread::Builder::new().name("dr-kernels".to_string());
            let handle = named.spawn(move || self.help(sleeps)).ok()?;
            Some(Helper { thread: handle.thread().clone(), sleeps })
        };
        (1..rayon::current_num_threads()).map_while(hire).collect()
    }

    /// Wakes as many helpers as `tasks` can have, if there are enough tasks now, or were in the loops before.
    fn wake(&self, helpers: &[Helper], tasks: usize) {
        let asleep = self.asleep.load(Ordering::SeqCst).min(helpers.len());
        let missing = (tasks - 1).min(helpers.len()).saturating_sub(helpers.len() - asleep);
        if missing == 0 {
            return;
        }
        let unhelped = self.unhelped.load(Ordering::Relaxed) + tasks;
        if unhelped < WORTH_WAKING {
            return self.unhelped.store(unhelped, Ordering::Relaxed);
        }
        self.unhelped.store(0, Ordering::Relaxed);
        let sleepers = helpers.iter().filter(|helper| helper.sleeps.load(Ordering::SeqCst));
        for helper in sleepers.take(missing) {
            helper.sleeps.store(false, Ordering::SeqCst);
            helper.thread.unpark();
        }
    }

    /// Waits until all tasks are done.
    fn wait(&self) {
        let all_done = || self.undone.load(Ordering::SeqCst) == 0;
        for _ in 0..PATIENCE[1] {
            for _ in 0..PATIENCE[0] {
                if all_done() {
                    return;
                }
                spin_loop();
            }
            thread::yield_now(); // a helper may wait for this very core
        }
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while !all_done() {
            thread::park();
        }
        self.caller_sleeps.store(false, Ordering::SeqCst);
    }

    /// Takes tasks until there have been none for a while, then sleeps until it is woken, for ever.
    fn help(&self, sleeps: &AtomicBool) {
        let mut last = Instant::now();
        let mut looks = 0u32;
        loop {
            if self.take_one(false) {
                (last, looks) = (Instant::now(), 0);
                continue;
            }
            spin_loop();
            looks += 1;
            if !looks.is_multiple_of(LOOKS) {
                continue;
            }
            thread::yield_now();
            if last.elapsed() < AWAKE {
                continue;
            }
            sleeps.store(true, Ordering::SeqCst);
            self.asleep.fetch_add(1, Ordering::SeqCst);
            // Either a caller sees that this helper sleeps, or the helper sees its tasks.
            while sleeps.load(Ordering::SeqCst) && self.left() == 0 {
                thread::park();
            }
            sleeps.store(false, Ordering::SeqCst);
            self.asleep.fetch_sub(1, Ordering::SeqCst);
            last = Instant::now();
        }
    }

    /// Tasks that nobody has taken.
    fn left(&self) -> u64 {
        State::of(self.state.load(Ordering::SeqCst)).left
    }

    /// Does one task of the loop under way, if there is one left: the first, or the last.
    fn take_one(&self, first: bool) -> bool {
        let mut bits = self.state.load(Ordering::Acquire);
        loop {
            let State { number, taken, left } = State::of(bits);
            if left == 0 {
                return false;
            }
            let index = if first { taken } else { taken + left - 1 };
            let now = State { number, taken: taken + u64::from(first), left: left - 1 }.bits();
            let task = self.task.load(Ordering::Relaxed);
            // The state has the loop's number: if it is still the same, so is the loop, and with a task that is not done it
            // goes on.
            match self.state.compare_exchange_weak(bits, now, Ordering::AcqRel, Ordering::Acquire) {
                Err(found) => bits = found,
                Ok(_) => {
                    // SAFETY: The caller of the loop waits until all tasks are done, this one too.
                    let task: Task = unsafe { *task.cast::<Task>() };
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(index as usize))) {
                        *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                    }
                    if self.undone.fetch_sub(1, Ordering::SeqCst) == 1
                        && self.caller_sleeps.load(Ordering::SeqCst)
                        && let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner)
                    {
                        // If it is another loop's caller by now, it looks and sleeps again.
                        caller.unpark();
                    }
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

    /// Tasks that wait for each other need as many threads at once.
    #[test]
    fn helpers_come_although_all_of_rayons_threads_are_busy() {
        if rayon::current_num_threads() < 2 {
            return;
        }
        // Not the one that other tests use meanwhile.
        static TEAM: Team = Team::new();
        let over = AtomicBool::new(false);
        let alone = AtomicBool::new(true);
        rayon::in_place_scope(|scope| {
            scope.spawn_broadcast(|_, _| {
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let (caller, start) = (thread::current().id(), Instant::now());
            while alone.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(20) {
                assert!(TEAM.run(WORTH_WAKING, &|_| {
                    if thread::current().id() != caller {
                        alone.store(false, Ordering::Relaxed);
                    }
                    thread::sleep(Duration::from_millis(1));
                }));
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(!alone.into_inner());
    }

    /// After a pause, and with a last task that takes so long that the caller sleeps.
    #[test]
    fn sleepers_are_woken() {
        for pause in [0, 2, 0] {
            thread::sleep(Duration::from_millis(pause));
            let done = AtomicUsize::new(0);
            for_each(20, |index| {
                if index == 0 {
                    thread::sleep(Duration::from_millis(20));
                }
                let _ = done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 20);
        }
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
