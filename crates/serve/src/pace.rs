//! How many rows of prompts a step has room for.
//!
//! Steps are kept short, so that replies keep their pace and short requests do not wait for long ones. What a step of so
//! many rows takes is learnt from the steps themselves: of those without prompts by themselves, because how much longer a
//! step may take is measured by them, and rows of a long prompt are dearer the deeper in it they are. Knows nothing of
//! requests.

/// A step may take so long while nobody writes: so many times what one row takes, which is a part of what a short request
/// that comes then takes itself, between two bounds.
const STEP: (f64, f64, f64) = (4.0, 0.01, 0.12);
/// Each prompt that is read may make a step longer by so much of what the replies alone take: while one of them has only
/// begun and a long prompt is read, so that a short request is over soon, and else. Where all steps are longer alike, a reply keeps its pace.
const SLOWER: (f64, f64) = (0.4, 0.75);
/// A reply of fewer tokens has only begun.
pub(crate) const EARLY: usize = 16;
/// Every so many steps beside prompts the replies have one alone, so that it is known what that takes.
const PROBE: usize = 16;
/// Rows of prompts in a step at least while nobody writes.
const LEAST: usize = 16;
/// Sizes of steps whose times are kept: powers of two from 1 on.
const SIZES: usize = 13;
/// Until more is known, a step takes as long as so many rows more.
const BASE: f64 = 8.0;

/// What steps of one kind take.
#[derive(Clone, Copy, Default)]
struct Times {
    /// Seconds of a step of 1, 2, 4, ... rows; all zero while there was none.
    seconds: [f64; SIZES],
}

impl Times {
    fn is_empty(&self) -> bool {
        self.seconds[0] == 0.0
    }

    /// What a step of so many rows takes.
    fn of(&self, rows: usize) -> f64 {
        let at = (rows.max(1).ilog2() as usize).min(SIZES - 2);
        let (low, high) = (self.seconds[at], self.seconds[at + 1]);
        low + (high - low) * (rows as f64 / (1u64 << at) as f64 - 1.0)
    }

    /// A step of so many rows took so long.
    fn learn(&mut self, rows: usize, seconds: f64) {
        let place = (rows.max(1) as f64).log2();
        if self.is_empty() {
            let row = seconds / (BASE + rows as f64);
            self.seconds = std::array::from_fn(|i| row * (BASE + (1u64 << i) as f64));
            return;
        }
        let off = (seconds / self.of(rows)).clamp(0.25, 4.0) - 1.0;
        for (i, known) in self.seconds.iter_mut().enumerate() {
            // Sizes far from this one learn little of their shape, but that the machine is slower or faster now.
            let far = place - i as f64;
            *known *= 1.0 + off * 0.25 / (1.0 + far * far);
        }
        // More rows never take less than what was just seen, and fewer never more.
        let at = (place as usize).min(SIZES - 1);
        for i in (0..at).rev() {
            self.seconds[i] = self.seconds[i].min(self.seconds[i + 1]);
        }
        for i in at + 1..SIZES {
            self.seconds[i] = self.seconds[i].max(self.seconds[i - 1]);
        }
    }
}

/// What steps of a model take.
#[derive(Default)]
pub(crate) struct Pace {
    /// Of replies alone.
    alone: Times,
    /// With rows of prompts.
    mixed: Times,
    /// Steps beside prompts since the replies had one alone.
    since: usize,
}

impl Pace {
    /// Rows of prompts that the next step has room for: so many requests write, and so many prompts are read.
    /// `early` if one of the replies has only begun, and a long prompt is read. None where replies are to have a step alone.
    pub(crate) fn rows(&mut self, writing: usize, reading: usize, early: bool, most: usize) -> usize {
        let times = if self.mixed.is_empty() { self.alone } else { self.mixed };
        if times.is_empty() {
            return LEAST.min(most);
        }
        let (least, limit) = match writing {
            0 => (LEAST.min(most), self.longest()),
            n => {
                if reading > 0 {
                    self.since += 1;
                }
                if self.alone.is_empty() || self.since >= PROBE {
                    self.since = 0;
                    return 0;
                }
                let slower = if early { SLOWER.0 } else { SLOWER.1 };
                let (alone, prompts) = (self.alone.of(n), reading.max(1) as f64);
                // One prompt has its share however long a step is, many not beyond what a step may take.
                (1, alone * (1.0 + slower * prompts).min((self.longest() / alone).max(1.0 + slower)))
            }
        };
        // The largest number within the limit.
        let (mut fits, mut over) = (0, most + 1);
        while over - fits > 1 {
            let middle = fits.midpoint(over);
            if times.of(writing + middle) <= limit { fits = middle } else { over = middle }
        }
        round(fits.max(least))
    }

    /// What a step may take however many prompts wait.
    fn longest(&self) -> f64 {
        let (times, least, most) = STEP;
        let one = if self.alone.is_empty() { self.mixed.of(1) } else { self.alone.of(1) };
        (times * one).clamp(least, most)
    }

    /// A step of so many rows took so long; `replies` if none of them was a prompt's.
    pub(crate) fn learn(&mut self, rows: usize, replies: bool, seconds: f64) {
        let times = if replies { &mut self.alone } else { &mut self.mixed };
        times.learn(rows, seconds);
    }
}

/// The next smaller of few numbers, eight to an octave: graphs of equal shapes are planned once, and what is learnt from
/// step to step must not make another shape of each.
fn round(rows: usize) -> usize {
    let unit = 1 << rows.max(1).ilog2().saturating_sub(3);
    rows / unit * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose steps of more than eight rows are dearer than two small ones.
    fn machine(rows: usize) -> f64 {
        0.028 + 0.0015 * rows.min(8) as f64 + 0.004 * rows.saturating_sub(8) as f64
    }

    /// Steps as a worker takes them; what the last with prompts had of their rows.
    fn steps(pace: &mut Pace, n: usize, writing: usize, early: bool, took: impl Fn(usize, usize) -> f64) -> usize {
        let mut last = 0;
        for _ in 0..n {
            let rows = pace.rows(writing, 1, early, 2048);
            pace.learn(writing + rows, rows == 0, took(writing, rows));
            last = if rows > 0 { rows } else { last };
        }
        last
    }

    #[test]
    fn steps_beside_replies_take_so_much_longer_at_most_on_a_machine_that_changes() {
        let mut pace = Pace::default();
        for (speed, writing, early) in [(1.0, 1, true), (3.0, 1, false), (0.5, 8, true), (1.0, 2, false)] {
            let longer = 1.0 + if early { SLOWER.0 } else { SLOWER.1 };
            let rows = steps(&mut pace, 1000, writing, early, |w, r| speed * machine(w + r));
            let right = (1..).take_while(|&r| machine(writing + r) <= longer * machine(writing)).count();
            assert!(rows.abs_diff(right) <= 1 + right / 3, "{speed} {writing}: {rows} rows, {right} fit");
        }
        // While nobody writes, steps are as long as they may be, but prompts always go on.
        let rows = steps(&mut pace, 100, 0, false, |_, r| machine(r));
        let took = machine(rows);
        assert!((0.08..=0.13).contains(&took), "{took}");
        // Beside many prompts one reply does not hold all of them up.
        assert!(pace.rows(1, 8, true, 2048) > 2 * pace.rows(1, 1, true, 2048));
        (0..99).for_each(|_| pace.learn(1, false, 1e9));
        assert_eq!((pace.rows(0, 1, false, 2048), pace.rows(0, 1, false, 3)), (LEAST, 3));
        assert!(pace.rows(4, 1, false, 2048) >= 1);
    }

    #[test]
    fn a_prompt_that_gets_dearer_the_deeper_it_is_read_does_not_slow_replies_down() {
        let mut pace = Pace::default();
        steps(&mut pace, 1000, 4, false, |w, r| machine(w + r));
        for depth in 0..200 {
            let deep = 1.0 + depth as f64 / 50.0;
            steps(&mut pace, 10, 4, false, |w, r| machine(w) + deep * 0.004 * r as f64);
        }
        let rows = steps(&mut pace, 10, 4, false, |w, r| machine(w) + 5.0 * 0.004 * r as f64);
        let longer = 1.0 + 0.02 * rows as f64 / machine(4);
        assert!((1.3..=2.0).contains(&longer) || rows == 1, "{rows} rows: {longer} times as long");
    }
}
