//! The thread pool: one parallel region at a time, tasks claimed one by one, workers that spin briefly and then park.
//!
//! A decode step is hundreds of regions of 10-50 microseconds. So opening a region is one store that spinning workers
//! see at once (sleeping ones are woken along a binary tree), and closing it waits only for workers that joined: one
//! that wakes late finds the region shut and costs nobody anything. An idle pool sleeps and uses no CPU; every spin is
//! bounded, so that a machine with more runnable threads than cores loses at most `SPIN` per thread and region.
//!
//! The pool must not know what its tasks compute. Its promises: every task runs exactly once; a nested region and a
//! region that finds the pool taken run alone on their caller (no deadlock); a panic in a task reaches the caller.
//!
//! `LAPIS_THREADS` sets the number of threads; the default is what affinity mask and cgroup quota leave to the process.

use crate::soon;
use lapis_core::error::{Error, Result};
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// The largest number of threads that can be asked for.
pub const MAX_THREADS: usize = 1024;

/// How long a thread with nothing to do watches for work before it sleeps: longer than the serial gaps between the
/// regions of a decode step, short enough that nobody notices it.
const SPIN: Duration = Duration::from_micros(50);
/// After this much spinning the core is offered to other threads between two looks.
const YIELD_AFTER: Duration = Duration::from_micros(10);
/// Of each worker, for loops of the host that go deeper than kernels do; what is not touched costs nothing.
const STACK: usize = 16 << 20;

/// Threads that take part in a region opened by this thread, the caller included.
///
/// # Panics
/// If `LAPIS_THREADS` is not a number of threads; [`configured_threads`] reports the same as an error.
#[inline]
pub fn threads() -> usize {
    match LIMIT.get() {
        0 => match THREADS.load(Relaxed) {
            0 => configured_threads().unwrap_or_else(|e| panic!("{e}")),
            n => n,
        },
        n => n,
    }
}

/// Sets the number of threads of all later regions of the process, 1 to [`MAX_THREADS`].
pub fn set_threads(n: usize) -> Result<()> {
    if !(1..=MAX_THREADS).contains(&n) {
        return Err(Error::value(format!("[threads] {n} threads asked for: must be 1 to {MAX_THREADS}")));
    }
    THREADS.store(n, Relaxed);
    Ok(())
}

/// The number of threads that the environment asks for: `LAPIS_THREADS`, or else the cores open to this process.
/// A backend calls this when it starts, to report a bad value as an error.
pub fn configured_threads() -> Result<usize> {
    static CONFIGURED: OnceLock<Result<usize>> = OnceLock::new();
    let n = CONFIGURED.get_or_init(|| threads_from(std::env::var("LAPIS_THREADS").ok().as_deref())).clone()?;
    let _ = THREADS.compare_exchange(0, n, Relaxed, Relaxed);
    Ok(n)
}

fn threads_from(variable: Option<&str>) -> Result<usize> {
    let Some(text) = variable else {
        return Ok(std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS)));
    };
    match text.trim().parse() {
        Ok(n) if (1..=MAX_THREADS).contains(&n) => Ok(n),
        _ => Err(Error::value(format!("LAPIS_THREADS={text}: must be a whole number from 1 to {MAX_THREADS}"))),
    }
}

/// Runs `f` with the regions that this thread opens limited to `n` participants (1 to [`MAX_THREADS`], clamped),
/// which may be more than there are cores. For tests, and for callers that share the machine.
pub fn with_threads<R>(n: usize, f: impl FnOnce() -> R) -> R {
    let _restore = Restore::set(&LIMIT, n.clamp(1, MAX_THREADS));
    f()
}

/// Runs `f(0)`, ..., `f(tasks - 1)`, each exactly once, on the pool's threads, and returns when all are done.
///
/// Tasks are claimed one by one in ascending order. A nested call runs on the calling thread, and so does a call that
/// finds the pool taken by another thread. If a task panics, tasks not yet claimed are dropped and the panic is raised
/// again here once the running ones have ended. A single task runs directly and may open a region of its own.
#[inline]
pub fn run(tasks: usize, f: &(dyn Fn(usize) + Sync)) {
    if tasks == 1 {
        f(0);
    } else if tasks > 1 {
        let threads = if INSIDE.get() { 1 } else { threads() };
        if threads == 1 || !POOL.region(tasks, threads, f) {
            let _restore = Restore::set(&INSIDE, true);
            (0..tasks).for_each(f);
        }
    }
}

/// Runs `f` on the chunks `0..grain`, `grain..2*grain`, ... of `0..len` in parallel (the last may be shorter).
/// The borders depend on `len` and `grain` alone, never on the number of threads.
pub fn for_each_chunk(len: usize, grain: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
    let grain = grain.max(1);
    run(len.div_ceil(grain), &|i| f(i * grain..len.min((i + 1) * grain)));
}

/// [`for_each_chunk`] over a slice: `f(start, chunk)` owns its part of `out`.
pub fn for_each_chunk_mut<T: Send>(out: &mut [T], grain: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
    let base = SendPtr(out.as_mut_ptr());
    for_each_chunk(out.len(), grain, &|range| {
        // SAFETY: chunks lie inside `out` and do not overlap, and `out` stays borrowed until all tasks have ended.
        f(range.start, unsafe { std::slice::from_raw_parts_mut(base.get().add(range.start), range.len()) })
    });
}

/// A pointer that tasks may share; that they touch disjoint elements is the promise of whoever reads it.
#[derive(Debug)]
pub struct SendPtr<T>(pub *mut T);

impl<T> SendPtr<T> {
    /// The pointer. (A method, so that closures capture the wrapper and not the bare field.)
    #[inline(always)]
    pub fn get(&self) -> *mut T {
        self.0
    }
}

impl<T> Clone for SendPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SendPtr<T> {}

// SAFETY: only carries the address; every use of it is an unsafe act with its own argument.
unsafe impl<T> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SendPtr<T> {}

/// From now on this thread and the pool's threads are such as compute and do not wait for anybody (`SCHED_BATCH` of Linux):
/// threads that wake, like those that answer clients, need not wait for a processor that these have until its time is up.
/// Elsewhere nothing happens.
pub fn give_way() {
    GIVE_WAY.store(true, Relaxed);
    gives_way();
}

/// Makes this thread one that gives way, if the pool's are to.
fn gives_way() {
    if !GIVE_WAY.load(Relaxed) || GIVES_WAY.replace(true) {
        return;
    }
    #[cfg(target_os = "linux")]
    // SAFETY: a policy of this thread alone, with the one priority that it has. Refused, the thread stays as it was.
    unsafe {
        let param = std::mem::zeroed::<libc::sched_param>();
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const param);
    }
}

static GIVE_WAY: AtomicBool = AtomicBool::new(false);
static THREADS: AtomicUsize = AtomicUsize::new(0);
static POOL: Pool = Pool::new();

thread_local! {
    /// Participants of regions opened by this thread; 0 for the process-wide number.
    static LIMIT: Cell<usize> = const { Cell::new(0) };
    /// This thread gives way to others.
    static GIVES_WAY: Cell<bool> = const { Cell::new(false) };
    /// This thread is running a task.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Sets a thread-local cell and puts the old value back when dropped.
struct Restore<T: Copy + 'static>(&'static std::thread::LocalKey<Cell<T>>, T);

impl<T: Copy> Restore<T> {
    fn set(key: &'static std::thread::LocalKey<Cell<T>>, value: T) -> Self {
        Restore(key, key.replace(value))
    }
}

impl<T: Copy> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}

/// A region's state in one word, so that joining is one compare-and-swap: who is in, who may come in, which region.
#[derive(Clone, Copy)]
struct State(u64);

impl State {
    const OPEN: u64 = 1 << 24;
    /// The owner sleeps until the last worker has left.
    const WAITING: u64 = 1 << 25;

    fn opened(epoch: u32, limit: usize) -> State {
        State((epoch as u64) << 32 | State::OPEN | (limit as u64) << 12)
    }
    /// Workers inside.
    fn active(self) -> usize {
        (self.0 & 0xfff) as usize
    }
    /// Workers that may be inside.
    fn limit(self) -> usize {
        (self.0 >> 12 & 0xfff) as usize
    }
    fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }
    /// The number of the region.
    fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[repr(align(128))]
struct Line<T>(T);

#[derive(Clone, Copy)]
struct Job {
    tasks: usize,
    f: *const (dyn Fn(usize) + Sync),
}

struct Worker {
    thread: Thread,
    /// Sleeping, or about to: whoever clears it must wake the thread.
    parked: Line<AtomicBool>,
}

struct Pool {
    state: Line<AtomicU64>,
    /// The next task to claim.
    next: Line<AtomicUsize>,
    /// A caller has the pool; it alone writes `job`, opens and closes.
    owned: AtomicBool,
    job: UnsafeCell<Job>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    ended: (Mutex<()>, Condvar),
    /// Filled from the front by the owner.
    workers: [OnceLock<Worker>; MAX_THREADS - 1],
    spawned: AtomicUsize,
}

// SAFETY: `job` is written by the owner while the region is shut and nobody is inside, and read by threads that joined
// an open region (acquire on `state`).
unsafe impl Sync for Pool {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks until `ready` gives something or `SPIN` has passed. Meanwhile, thread `index` asks memory for what it is about to
/// need.
fn spin<R>(index: usize, ready: impl Fn() -> Option<R>) -> Option<R> {
    let mut start = None;
    loop {
        for _ in 0..16 {
            if let Some(r) = ready() {
                return Some(r);
            }
            if !soon::fetch(index) {
                std::hint::spin_loop();
            }
        }
        // Most waits end before the clock is asked.
        let waited = start.get_or_insert_with(Instant::now).elapsed();
        if waited > SPIN {
            return None;
        } else if waited > YIELD_AFTER {
            std::thread::yield_now();
        }
    }
}

impl Pool {
    const fn new() -> Pool {
        Pool {
            state: Line(AtomicU64::new(0)),
            next: Line(AtomicUsize::new(0)),
            owned: AtomicBool::new(false),
            job: UnsafeCell::new(Job { tasks: 0, f: &|_| {} }),
            panic: Mutex::new(None),
            ended: (Mutex::new(()), Condvar::new()),
            workers: [const { OnceLock::new() }; MAX_THREADS - 1],
            spawned: AtomicUsize::new(0),
        }
    }

    fn state(&self) -> State {
        // Sequentially consistent, here and where a region opens: with `parked` it forms the store-then-look pair that
        // makes a lost wake-up impossible.
        State(self.state.0.load(SeqCst))
    }

    /// Runs a region; false, with nothing done, if the pool is taken or there is no worker.
    fn region(&'static self, tasks: usize, threads: usize, f: &(dyn Fn(usize) + Sync)) -> bool {
        if self.owned.load(Relaxed) || self.owned.swap(true, Acquire) {
            return false;
        }
        let limit = self.grow(threads - 1).min(tasks - 1);
        if limit == 0 {
            self.owned.store(false, Release);
            return false;
        }
        // SAFETY: only the lifetime is stretched; `close` below ends all use of `f` before this function returns.
        let f = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(f) };
        let job = Job { tasks, f };
        // SAFETY: this thread owns the pool, the region is shut and nobody is inside.
        unsafe { *self.job.get() = job };
        self.next.0.store(0, Relaxed);
        self.state.0.store(State::opened(self.state().epoch().wrapping_add(1), limit).0, SeqCst);
        self.wake_children(0, limit);
        {
            let _restore = Restore::set(&INSIDE, true);
            self.work(job);
        }
        self.close();
        let panic = lock(&self.panic).take();
        self.owned.store(false, Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
        true
    }

    /// Claims and runs tasks until none is left.
    fn work(&self, job: Job) {
        // SAFETY: a region ends only after every thread has come back from here.
        let f = unsafe { &*job.f };
        let claim = || {
            let i = self.next.0.fetch_add(1, Relaxed);
            (i < job.tasks).then_some(i)
        };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| std::iter::from_fn(claim).for_each(f))) {
            self.next.0.store(job.tasks, Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }

    /// Lets nobody in any more and waits for those inside.
    fn close(&self) {
        let empty = || (State(self.state.0.load(Acquire)).active() == 0).then_some(());
        if State(self.state.0.fetch_and(!State::OPEN, AcqRel)).active() == 0 || spin(0, empty).is_some() {
            return;
        }
        let mut guard = lock(&self.ended.0);
        self.state.0.fetch_or(State::WAITING, AcqRel);
        while empty().is_none() {
            guard = self.ended.1.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes sure of `wanted` workers and returns how many there are, at most `wanted`: fewer if the system refuses.
    fn grow(&'static self, wanted: usize) -> usize {
        let mut spawned = self.spawned.load(Acquire);
        while spawned < wanted {
            let index = spawned + 1;
            let builder = std::thread::Builder::new().name(format!("lapis-{index}")).stack_size(STACK);
            let Ok(handle) = builder.spawn(move || self.serve(index)) else { break };
            let worker = Worker { thread: handle.thread().clone(), parked: Line(AtomicBool::new(false)) };
            let _ = self.workers[index - 1].set(worker);
            spawned = index;
            self.spawned.store(spawned, Release);
        }
        spawned.min(wanted)
    }

    /// Wakes the workers below `index` in the tree (the caller is 0, the workers count from 1) if they sleep.
    fn wake_children(&self, index: usize, limit: usize) {
        for child in [2 * index + 1, 2 * index + 2] {
            if child <= limit
                && let Some(worker) = self.workers[child - 1].get()
                && worker.parked.0.load(SeqCst)
                && worker.parked.0.swap(false, SeqCst)
            {
                worker.thread.unpark();
            }
        }
    }

    /// The life of a worker.
    fn serve(&self, index: usize) {
        INSIDE.set(true);
        gives_way();
        let mut seen = 0;
        loop {
            let state = self.await_region(index, seen);
            seen = state.epoch();
            if state.has(State::OPEN) {
                self.wake_children(index, state.limit());
                self.join(seen);
            }
        }
    }

    /// Waits for a region other than `seen`.
    fn await_region(&self, index: usize, seen: u32) -> State {
        let fresh = || Some(self.state()).filter(|s| s.epoch() != seen);
        if let Some(state) = spin(index, fresh) {
            return state;
        }
        let Some(Worker { parked, .. }) = self.workers[index - 1].get() else {
            // The owner has started this thread and not yet entered it in the table.
            std::thread::yield_now();
            return self.state();
        };
        parked.0.store(true, SeqCst);
        loop {
            if let Some(state) = fresh() {
                parked.0.store(false, SeqCst);
                return state;
            }
            std::thread::park();
            gives_way();
        }
    }

    /// Takes part in region `epoch` unless it is shut or full.
    fn join(&self, epoch: u32) {
        let mut state = self.state();
        while state.epoch() == epoch && state.has(State::OPEN) && state.active() < state.limit() {
            match self.state.0.compare_exchange_weak(state.0, state.0 + 1, AcqRel, Acquire) {
                Err(now) => state = State(now),
                Ok(_) => {
                    // SAFETY: this thread is inside an open region, so `job` is valid and not written.
                    self.work(unsafe { *self.job.get() });
                    let left = State(self.state.0.fetch_sub(1, AcqRel));
                    if left.active() == 1 && left.has(State::WAITING) {
                        drop(lock(&self.ended.0));
                        self.ended.1.notify_all();
                    }
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};
    use std::thread::{ThreadId, current};

    /// Runs `tasks` tasks and returns how often each ran.
    fn counts(tasks: usize) -> Vec<usize> {
        let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        run(tasks, &|i| {
            counts[i].fetch_add(1, Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    fn message(payload: Box<dyn Any + Send>) -> String {
        payload.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[test]
    fn every_task_runs_once() {
        for n in [1, 2, 3, 8] {
            with_threads(n, || {
                for tasks in [0, 1, 2, 3, 7, 64, 1000] {
                    assert_eq!(counts(tasks), vec![1; tasks], "{n} threads");
                }
            });
        }
    }

    #[test]
    fn many_short_regions() {
        with_threads(4, || {
            for round in 0..20_000 {
                let sum = AtomicUsize::new(0);
                run(5, &|i| {
                    sum.fetch_add(i + round, Relaxed);
                });
                assert_eq!(sum.into_inner(), 10 + 5 * round);
            }
        });
    }

    #[test]
    fn regions_after_a_pause_wake_the_sleepers() {
        for pause in [1, 30, 60, 200, 3000] {
            for _ in 0..20 {
                std::thread::sleep(Duration::from_micros(pause));
                with_threads(3, || assert_eq!(counts(6), vec![1; 6]));
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn threads_that_compute_give_way() {
        // SAFETY: asks the system how this thread is scheduled.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let given = std::thread::spawn(move || {
            let before = policy();
            give_way();
            assert_eq!([before, policy()], [libc::SCHED_OTHER, libc::SCHED_BATCH]);
            // A worker takes part when it has slept, at the latest.
            let until = Instant::now() + Duration::from_secs(20);
            while Instant::now() < until {
                std::thread::sleep(Duration::from_micros(200));
                let seen = Mutex::new(HashMap::new());
                with_threads(2, || {
                    run(2, &|_| {
                        lock(&seen).insert(current().id(), policy());
                        std::thread::sleep(Duration::from_micros(300));
                    })
                });
                let seen = seen.into_inner().unwrap();
                if seen.len() == 2 && seen.values().all(|&p| p == libc::SCHED_BATCH) {
                    return true;
                }
            }
            false
        });
        assert!(given.join().unwrap());
    }

    #[test]
    fn callers_at_the_same_time_are_all_served() {
        std::thread::scope(|s| {
            for caller in 0..6 {
                s.spawn(move || {
                    with_threads(1 + caller % 4, || {
                        for _ in 0..2000 {
                            assert_eq!(counts(9), vec![1; 9]);
                        }
                    })
                });
            }
        });
    }

    #[test]
    fn nested_regions_run_on_their_thread() {
        with_threads(4, || {
            let done = AtomicUsize::new(0);
            run(8, &|_| {
                let here = current().id();
                run(5, &|_| {
                    assert_eq!(current().id(), here);
                    run(2, &|_| {
                        done.fetch_add(1, Relaxed);
                    });
                });
            });
            assert_eq!(done.into_inner(), 80);
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for n in [1, 2, 4] {
            with_threads(n, || {
                for bad in [0, 13, 63] {
                    let hit = catch_unwind(|| run(64, &|i| assert!(i != bad, "task {i} broke")));
                    assert_eq!(message(hit.unwrap_err()), format!("task {bad} broke"));
                    assert!(!INSIDE.get());
                    assert_eq!(counts(64), vec![1; 64]);
                }
                let all = catch_unwind(|| run(64, &|i| panic!("task {i}")));
                assert!(message(all.unwrap_err()).starts_with("task "));
                assert_eq!(counts(9), vec![1; 9]);
            });
        }
    }

    #[test]
    fn participants_are_limited() {
        for n in [1, 2, 3] {
            let seen: Mutex<HashSet<ThreadId>> = Mutex::default();
            with_threads(n, || {
                assert_eq!(threads(), n);
                run(200, &|_| {
                    lock(&seen).insert(current().id());
                    std::thread::sleep(Duration::from_micros(20));
                })
            });
            assert!(lock(&seen).len() <= n, "{} threads took part, {n} allowed", lock(&seen).len());
        }
    }

    #[test]
    fn slow_workers_are_waited_for() {
        with_threads(3, || {
            let done = AtomicUsize::new(0);
            run(3, &|i| {
                std::thread::sleep(Duration::from_millis(5 * i as u64));
                done.fetch_add(1, Relaxed);
            });
            assert_eq!(done.into_inner(), 3);
        });
    }

    #[test]
    fn chunk_borders_do_not_depend_on_threads() {
        let borders = |n| {
            let all: Mutex<Vec<Range<usize>>> = Mutex::default();
            with_threads(n, || for_each_chunk(1003, 100, &|r| lock(&all).push(r)));
            let mut all = lock(&all).clone();
            all.sort_by_key(|r| r.start);
            all
        };
        let one = borders(1);
        assert_eq!((one.len(), one[10].clone()), (11, 1000..1003));
        assert_eq!(one, borders(2));
        assert_eq!(one, borders(5));
        let mut out = vec![0; 1003];
        for_each_chunk_mut(&mut out, 64, &|start, chunk| {
            for (i, v) in chunk.iter_mut().enumerate() {
                *v = start + i;
            }
        });
        assert!(out.iter().enumerate().all(|(i, &v)| i == v));
        for_each_chunk(0, 0, &|_| panic!("nothing to do"));
    }

    #[test]
    fn bad_thread_counts_are_named() {
        assert_eq!(threads_from(Some("3")).unwrap(), 3);
        assert_eq!(threads_from(Some(" 8 ")).unwrap(), 8);
        assert!(threads_from(None).unwrap() >= 1);
        for bad in ["0", "-1", "two", "", "1.5", "1025", "99999999999999999999"] {
            let text = threads_from(Some(bad)).unwrap_err().to_string();
            assert_eq!(text, format!("LAPIS_THREADS={bad}: must be a whole number from 1 to 1024"));
        }
        assert!(set_threads(0).is_err() && set_threads(MAX_THREADS + 1).is_err());
    }
}
