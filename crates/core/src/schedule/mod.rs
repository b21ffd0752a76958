//! Evaluation: collect what is lazy, plan it, run it on its streams.
//!
//! `eval` runs on the calling thread when its stream is idle, else queues behind it; `async_eval` always queues.
//! Each stream runs its jobs in order. Graphs that span streams are cut at the borders; a step that reads another
//! stream's result waits for exactly that node.

mod collect;
mod places;
mod plan;
mod replay;
mod run;
pub mod tape;

pub use replay::Replay;

use crate::array::Array;
use crate::error::{Error, Result};
use crate::stream::Stream;
use collect::Graph;
use run::Job;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Computes the arrays now and returns when all are there.
///
/// # Errors
/// The first fault among the arrays; the others are computed all the same.
pub fn eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    let arrays: Vec<&Array> = arrays.into_iter().collect();
    submit(&arrays, true, &mut |_| {});
    result(&arrays)
}

/// Waits for all; the first fault.
fn result(arrays: &[&Array]) -> Result<()> {
    let mut result = Ok(());
    for a in arrays {
        if let Err(error) = a.node.wait()
            && result.is_ok()
        {
            result = Err(Error::clone(error));
        }
    }
    result
}

/// Starts computing the arrays and returns at once; reading one waits for it.
pub fn async_eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) {
    let arrays: Vec<&Array> = arrays.into_iter().collect();
    submit(&arrays, false, &mut |_| {});
}

/// Waits until `stream` has finished all that was submitted to it.
pub fn synchronize(stream: Stream) {
    let queue = queue_of(stream);
    let mut state = queue.lock();
    while state.busy || !state.jobs.is_empty() {
        state = queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Ends the threads of streams that have nothing to do (`mx.clear_streams`). A stream that is used again gets a new one.
pub fn clear_streams() {
    let queues: Vec<Arc<Queue>> = with_queues(|queues| queues.values().cloned().collect());
    for queue in queues {
        let mut state = queue.lock();
        state.ends = state.has_worker;
        drop(state);
        queue.changed.notify_all();
    }
}

/// Claims, plans and queues; runs one job on this thread when `inline` and its stream is idle. `look` sees what was claimed.
fn submit(arrays: &[&Array], inline: bool, look: &mut dyn FnMut(&[Graph])) {
    static SUBMISSION: Mutex<()> = Mutex::new(());
    if arrays.iter().all(|a| a.node.done().is_some()) {
        return;
    }
    let mut mine = None;
    {
        let _one_at_a_time = SUBMISSION.lock().unwrap_or_else(PoisonError::into_inner);
        let graphs = collect::collect(arrays.iter().copied());
        look(&graphs);
        for graph in graphs {
            let queue = queue_of(graph.stream);
            let plan = plan::plan(&graph);
            let job = Job { graph, plan };
            if inline && mine.is_none() {
                mine = queue.try_begin(job).map(|job| (queue, job));
            } else {
                queue.push(job);
            }
        }
    }
    if let Some((queue, job)) = mine {
        run::run(job);
        queue.end();
    }
}

/// The jobs of one stream.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    busy: bool,
    has_worker: bool,
    /// The worker is to end once it has nothing to do.
    ends: bool,
}

type Queues = FxHashMap<Stream, Arc<Queue>>;

fn with_queues<T>(f: impl FnOnce(&mut Queues) -> T) -> T {
    static QUEUES: Mutex<Option<Queues>> = Mutex::new(None);
    let mut queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
    f(queues.get_or_insert_with(Queues::default))
}

fn queue_of(stream: Stream) -> Arc<Queue> {
    let make = || Arc::new(Queue { state: Mutex::default(), changed: Condvar::new() });
    with_queues(|queues| queues.entry(stream).or_insert_with(make).clone())
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the job back to be run by the caller, who must call [`Queue::end`]; queues it if the stream is busy.
    fn try_begin(self: &Arc<Queue>, job: Job) -> Option<Job> {
        let mut state = self.lock();
        if !state.busy && state.jobs.is_empty() {
            state.busy = true;
            return Some(job);
        }
        drop(state);
        self.push(job);
        None
    }

    /// Waits until the stream is idle, and has it; the caller must call [`Queue::end`].
    fn begin(&self) {
        let mut state = self.lock();
        while state.busy || !state.jobs.is_empty() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.busy = true;
    }

    fn end(&self) {
        self.lock().busy = false;
        self.changed.notify_all();
    }

    fn push(self: &Arc<Queue>, job: Job) {
        let mut state = self.lock();
        state.jobs.push_back(job);
        if !state.has_worker {
            let queue = self.clone();
            let spawned = std::thread::Builder::new().name("lapis-stream".into()).spawn(move || queue.work());
            state.has_worker = spawned.is_ok();
            if spawned.is_err() {
                // No thread to be had: the submitter does the work, in order.
                while state.busy {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                while let Some(job) = state.jobs.pop_front() {
                    run::run(job);
                }
                return;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if !state.busy
                && let Some(job) = state.jobs.pop_front()
            {
                state.busy = true;
                drop(state);
                run::run(job);
                state = self.lock();
                state.busy = false;
                self.changed.notify_all();
                continue;
            }
            if state.ends && state.jobs.is_empty() {
                (state.ends, state.has_worker) = (false, false);
                return;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
