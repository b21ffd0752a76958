//! How many rows of prompts a step has room for.
//!
//! Steps are kept short, so that replies keep their pace and short requests do not wait for long ones. What a step of so
//! many rows takes is learnt from the steps themselves. Knows nothing of requests.

/// A step may take so long while nobody writes.
const STEP: f64 = 0.12;
/// Each prompt that is read may make a step longer by so much of what the replies alone take.
const SLOWER: f64 = 0.5;
/// Rows of prompts in a step at least while nobody writes.
const LEAST: usize = 16;
/// Sizes of steps whose times are kept: powers of two from 1 on.
const SIZES: usize = 13;
/// Until more is known, a step takes as long as so many rows more.
const BASE: f64 = 8.0;

/// What steps of a model take.
#[derive(Default)]
pub(crate) struct Pace {
    /// Seconds of a step of 1, 2, 4, ... rows; all zero while there was none.
    seconds: [f64; SIZES],
}

impl Pace {
    /// What a step of so many rows takes.
    fn of(&self, rows: usize) -> f64 {
        let at = (rows.max(1).ilog2() as usize).min(SIZES - 2);
        let (low, high) = (self.seconds[at], self.seconds[at + 1]);
        low + (high - low) * (rows as f64 / (1u64 << at) as f64 - 1.0)
    }

    /// Rows of prompts that the next step has room for: so many requests write, and so many prompts are read.
    pub(crate) fn rows(&self, writing: usize, reading: usize, most: usize) -> usize {
        let (least, limit) = match writing {
            0 => (LEAST.min(most), STEP),
            n => {
                let (alone, prompts) = (self.of(n), reading.max(1) as f64);
                // One prompt has its share however long a step is, many not beyond what a step may take.
                (1, alone * (1.0 + SLOWER * prompts).min((STEP / alone).max(1.0 + SLOWER)))
            }
        };
        if self.seconds[0] == 0.0 {
            return LEAST.min(most);
        }
        // The largest number within the limit.
        let (mut fits, mut over) = (0, most + 1);
        while over - fits > 1 {
            let middle = fits.midpoint(over);
            if self.of(writing + middle) <= limit { fits = middle } else { over = middle }
        }
        fits.max(least)
    }

    /// A step of so many rows took so long.
    pub(crate) fn learn(&mut self, rows: usize, seconds: f64) {
        let place = (rows.max(1) as f64).log2();
        if self.seconds[0] == 0.0 {
            let row = seconds / (BASE + rows as f64);
            self.seconds = std::array::from_fn(|i| row * (BASE + (1u64 << i) as f64));
            return;
        }
        let off = (seconds / self.of(rows)).clamp(0.25, 4.0) - 1.0;
        let mut least = 0.0f64;
        for (i, known) in self.seconds.iter_mut().enumerate() {
            // Sizes far from this one learn little of their shape, but that the machine is slower or faster now.
            let far = place - i as f64;
            *known *= 1.0 + off * 0.25 / (1.0 + far * far);
            // More rows never take less.
            least = least.max(*known);
            *known = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose steps of more than eight rows are dearer than two small ones.
    fn machine(rows: usize) -> f64 {
        0.028 + 0.0015 * rows.min(8) as f64 + 0.004 * rows.saturating_sub(8) as f64
    }

    #[test]
    fn steps_beside_replies_take_half_as_long_again_at_most_on_a_machine_that_changes() {
        let mut pace = Pace::default();
        for (speed, writing) in [(1.0, 1), (3.0, 1), (0.5, 8), (1.0, 2)] {
            for _ in 0..200 {
                let rows = writing + pace.rows(writing, 1, 2048);
                pace.learn(rows, speed * machine(rows));
                pace.learn(writing, speed * machine(writing));
            }
            let rows = pace.rows(writing, 1, 2048);
            let right = (1..).take_while(|&r| machine(writing + r) <= 1.5 * machine(writing)).count();
            assert!(rows.abs_diff(right) <= 1 + right / 3, "{speed} {writing}: {rows} rows, {right} fit");
        }
        // While nobody writes, steps are as long as they may be, but prompts always go on.
        for _ in 0..100 {
            let rows = pace.rows(0, 1, 2048);
            pace.learn(rows, machine(rows));
        }
        let took = machine(pace.rows(0, 1, 2048));
        assert!((0.08..=0.13).contains(&took), "{took}");
        // Beside many prompts one reply does not hold all of them up.
        assert!(pace.rows(1, 8, 2048) > 3 * pace.rows(1, 1, 2048));
        (0..99).for_each(|_| pace.learn(1, 1e9));
        assert_eq!((pace.rows(0, 1, 2048), pace.rows(0, 1, 3)), (LEAST, 3));
        assert!(pace.rows(4, 1, 2048) >= 1);
    }
}
