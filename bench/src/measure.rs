//! How work is timed: in turns with the loop that measures its limit, so that both see the same machine.

use crate::clock::seconds;
use crate::limits;
use lapis::{Array, eval};

/// The result type of benchmarks: lapis's errors and messages of our own.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What holds for every benchmark of a run.
pub(crate) struct Bench {
    pub(crate) threads: usize,
    pub(crate) seconds: f64,
}

/// What bounds a piece of work.
#[derive(Clone, Copy)]
pub(crate) enum Limit {
    /// Operations over the peak of the best instruction for this kind of product.
    Operations { count: f64, peak: limits::Peak },
    /// Bytes that have to come from memory, over the bandwidth of reading.
    Read { bytes: f64 },
    /// `reads` arrays of `bytes` each in, from memory, and one out, over the time a loop without arithmetic takes for
    /// exactly that traffic.
    Stream { reads: usize, bytes: usize },
    /// A goal rather than a property of the machine: microseconds for each of `count` things.
    Goal { count: f64, us: f64 },
}

/// A benchmark's outcome, in the unit of its limit.
pub(crate) struct Measured {
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) limit: f64,
}

impl Limit {
    /// The figure that a run of `secs` seconds stands for.
    fn value(&self, secs: f64) -> f64 {
        match *self {
            Limit::Operations { count, .. } => count / secs / 1e9,
            Limit::Read { bytes } => bytes / secs / 1e9,
            Limit::Stream { reads, bytes } => ((reads + 1) * bytes) as f64 / secs / 1e9,
            Limit::Goal { count, .. } => secs * 1e6 / count,
        }
    }

    fn unit(&self) -> &'static str {
        match self {
            Limit::Operations { .. } => "GFLOP/s",
            Limit::Read { .. } | Limit::Stream { .. } => "GB/s",
            Limit::Goal { .. } => "us/op",
        }
    }

    /// One short measurement of the limit, same unit as `value`.
    fn probe(&self, threads: usize) -> f64 {
        match *self {
            Limit::Operations { peak, .. } => peak.measure(threads),
            Limit::Read { .. } => limits::read(threads),
            Limit::Stream { reads, bytes } => limits::stream(reads, bytes, threads),
            Limit::Goal { us, .. } => us,
        }
    }
}

impl Bench {
    /// Times `work` for about `self.seconds`, at least three times, after a warm-up; half of the time goes to the
    /// limit. Both figures are medians.
    ///
    /// `work` must have its result when it returns (evaluate inside).
    pub(crate) fn time(&self, limit: Limit, mut work: impl FnMut() -> Result<()>) -> Result<Measured> {
        work()?;
        work()?;
        limit.probe(self.threads);
        let (mut times, mut limits) = (Vec::new(), Vec::new());
        let end = seconds() + self.seconds;
        while times.len() < 3 || seconds() < end {
            let probe = seconds();
            limits.push(limit.probe(self.threads));
            let turn = (seconds() - probe).max(5e-3);
            let start = seconds();
            while seconds() - start < turn {
                let once = seconds();
                work()?;
                times.push(seconds() - once);
            }
        }
        Ok(Measured { value: limit.value(median(times)), unit: limit.unit(), limit: median(limits) })
    }
}

impl Bench {
    /// What part of its work, in percent, goes by before `start` returns; what it returns is evaluated then. Medians, as
    /// in [`Bench::time`].
    pub(crate) fn share(&self, goal: f64, mut start: impl FnMut() -> Result<Vec<Vec<Array>>>) -> Result<Measured> {
        let mut shares = Vec::new();
        let end = seconds() + self.seconds;
        while shares.len() < 5 || seconds() < end {
            let began = seconds();
            let work = start()?;
            let started = seconds();
            eval(work.iter().flatten())?;
            shares.push(100.0 * (started - began) / (seconds() - began));
        }
        Ok(Measured { value: median(shares.split_off(2)), unit: "% of work", limit: goal })
    }

    /// What `whole` takes beside `part`, which it contains, in percent of `whole`. In turns; the median of the turns.
    pub(crate) fn beside(
        &self,
        goal: f64,
        mut whole: impl FnMut() -> Result<()>,
        mut part: impl FnMut() -> Result<()>,
    ) -> Result<Measured> {
        let mut shares = Vec::new();
        let end = seconds() + self.seconds;
        while shares.len() < 5 || seconds() < end {
            let times = [
                seconds(),
                {
                    part()?;
                    seconds()
                },
                {
                    whole()?;
                    seconds()
                },
            ];
            shares.push(100.0 * (1.0 - (times[1] - times[0]) / (times[2] - times[1])));
        }
        Ok(Measured { value: median(shares.split_off(2)), unit: "% of work", limit: goal })
    }
}

/// The middle value. `values` must not be empty.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
