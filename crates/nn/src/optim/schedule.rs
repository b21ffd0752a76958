//! Learning rates: numbers, or functions of the step. Knows no optimiser.

use lapis::{Array, Error, Result, array, ops};
use std::f64::consts::PI;
use std::sync::Arc;

/// A function of the step (a uint64 array, elementwise) that gives a learning rate (float32).
#[derive(Clone)]
pub struct Schedule(Arc<dyn Fn(&Array) -> Array + Send + Sync>);

impl Schedule {
    /// A schedule of one's own: `Schedule::new(|step| 1e-3 / (step + 1.0).sqrt())`.
    pub fn new(f: impl Fn(&Array) -> Array + Send + Sync + 'static) -> Schedule {
        Schedule(Arc::new(f))
    }

    /// The rate at `step`.
    pub fn at(&self, step: &Array) -> Array {
        (self.0)(step)
    }
}

/// What optimisers take as learning rate: `1e-3`, a 0-d array, or a [`Schedule`].
#[derive(Clone)]
pub enum Rate {
    /// The same at every step.
    Constant(Array),
    /// Evaluated at the number of steps done before each step.
    Schedule(Schedule),
}

impl From<f64> for Rate {
    fn from(rate: f64) -> Rate {
        Rate::Constant(array(rate as f32))
    }
}
impl From<f32> for Rate {
    fn from(rate: f32) -> Rate {
        Rate::Constant(array(rate))
    }
}
impl From<Array> for Rate {
    fn from(rate: Array) -> Rate {
        Rate::Constant(rate)
    }
}
impl From<Schedule> for Rate {
    fn from(schedule: Schedule) -> Rate {
        Rate::Schedule(schedule)
    }
}

fn positive(op: &str, what: &str, n: u64) -> Result<()> {
    if n == 0 { Err(Error::value(format!("[{op}] {what} must be at least 1; 0 was given"))) } else { Ok(()) }
}

/// `init * decay_rate^step`.
pub fn exponential_decay(init: f64, decay_rate: f64) -> Schedule {
    Schedule::new(move |step| init * step_power(decay_rate, step))
}

/// `init * decay_rate^(step div step_size)`.
///
/// # Errors
/// A value error for a step size of 0.
pub fn step_decay(init: f64, decay_rate: f64, step_size: u64) -> Result<Schedule> {
    positive("step_decay", "step_size", step_size)?;
    Ok(Schedule::new(move |step| init * step_power(decay_rate, &step.floor_divide(step_size))))
}

fn step_power(base: f64, step: &Array) -> Array {
    lapis::ops::power(base, step).expect("powers of numbers have no errors")
}

/// From `init` to `end` along half a cosine in `decay_steps` steps, then `end`.
///
/// # Errors
/// A value error for 0 steps.
pub fn cosine_decay(init: f64, decay_steps: u64, end: f64) -> Result<Schedule> {
    positive("cosine_decay", "decay_steps", decay_steps)?;
    Ok(Schedule::new(move |step| {
        let angle = (PI / decay_steps as f64) * step.minimum(decay_steps);
        end + 0.5 * (1.0 + angle.cos()) * (init - end)
    }))
}

/// From `init` to `end` along a line in `steps` steps, then `end`.
///
/// # Errors
/// A value error for 0 steps.
pub fn linear_schedule(init: f64, end: f64, steps: u64) -> Result<Schedule> {
    positive("linear_schedule", "steps", steps)?;
    Ok(Schedule::new(move |step| step.minimum(steps) * ((end - init) / steps as f64) + init))
}

/// One schedule after another: `schedules[i + 1]` begins at step `boundaries[i]` and counts from there.
///
/// # Errors
/// A value error unless there is one schedule more than boundaries.
pub fn join_schedules(schedules: Vec<Schedule>, boundaries: &[u64]) -> Result<Schedule> {
    if schedules.len() != boundaries.len() + 1 {
        return Err(Error::value(format!(
            "[join_schedules] {} schedules need {} boundaries; {} were given",
            schedules.len(),
            schedules.len().saturating_sub(1),
            boundaries.len()
        )));
    }
    let boundaries = boundaries.to_vec();
    Ok(Schedule::new(move |step| {
        let later = boundaries.iter().zip(&schedules[1..]);
        later.fold(schedules[0].at(step), |rate, (&boundary, next)| {
            // Before its boundary a schedule sees steps that have wrapped around; what it gives there is not taken.
            ops::select(&step.less(boundary), rate, next.at(&(step - boundary))).expect("rates have the step's shape")
        })
    }))
}
