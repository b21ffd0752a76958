//! One row of logits: its sums, its likeliest tokens, a draw from all of it.
//!
//! Vocabularies have a hundred thousand tokens and a step has many rows, so passes over a whole row are kernels with the same bits
//! on every machine ([`lapis::logits`]). What filters keep is found without sorting the rest.

pub(super) use lapis::logits::exp;
use lapis::logits::{LEAST, largest, mass};
use std::borrow::Cow;

/// Sums are kept of so many tokens each.
const BLOCK: usize = 1024;
/// Tokens whose largest logit is looked at first.
const GROUP: usize = 64;

/// A row of logits that are numbers.
pub(super) struct Row<'a> {
    logits: &'a [f32],
    /// The largest of each [`GROUP`].
    tops: Vec<f32>,
    /// The sum of `exp(logit - peak)` of each [`BLOCK`].
    sums: Vec<f64>,
    /// The first of the largest.
    pub best: usize,
    peak: f32,
    /// Subtracted from a logit, it makes it a log-probability.
    pub norm: f32,
}

impl<'a> Row<'a> {
    /// A row; none if something in it is no number, or nothing in it is finite.
    pub(super) fn new(logits: &'a [f32]) -> Option<Row<'a>> {
        let tops = largest(logits, GROUP)?;
        let peak = maximum(&tops);
        if !peak.is_finite() {
            return None;
        }
        let group = tops.iter().position(|&x| x == peak)?;
        let best = group * GROUP + logits[group * GROUP..].iter().position(|&x| x == peak)?;
        let sums = masses(logits, &tops, peak, 1.0);
        let norm = peak + sums.iter().sum::<f64>().ln() as f32;
        Some(Row { logits, tops, sums, best, peak, norm })
    }

    /// The log-probability of the likeliest token.
    pub(super) fn top(&self) -> f32 {
        self.peak - self.norm
    }

    /// Groups with a token that is at least this likely, and the number of their first: most have none, as their largest says.
    fn groups(&self, level: f32) -> impl Iterator<Item = (usize, &'a [f32])> {
        let groups = self.logits.chunks(GROUP).zip(&self.tops).enumerate();
        groups.filter(move |(_, (_, top))| **top - self.norm >= level).map(|(at, (group, _))| (at * GROUP, group))
    }

    /// All tokens at least this likely, with their log-probabilities.
    pub(super) fn above(&self, level: f32) -> Vec<(u32, f32)> {
        let mut all = Vec::new();
        for (from, group) in self.groups(level) {
            let own = group.iter().enumerate().map(|(i, &x)| ((from + i) as u32, x - self.norm));
            all.extend(own.filter(|k| k.1 >= level));
        }
        all
    }

    /// The log-probabilities of [`Row::above`].
    fn values(&self, level: f32) -> Vec<f32> {
        let mut all = Vec::new();
        for (_, group) in self.groups(level) {
            all.extend(group.iter().map(|&x| x - self.norm).filter(|&x| x >= level));
        }
        all
    }

    /// A log-probability that the `n` likeliest reach, and few others: as many tokens as groups are at least as likely as the least of
    /// their best.
    fn reach(&self, n: usize) -> f32 {
        if n == 0 || n > self.tops.len() {
            return f32::NEG_INFINITY;
        }
        let mut best = self.tops.clone();
        let (_, least, _) = best.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a));
        *least - self.norm
    }

    /// Tokens among which are the `n` likeliest, and all that are as likely as one of them.
    pub(super) fn likely(&self, n: usize) -> Vec<(u32, f32)> {
        self.above(self.reach(n))
    }

    /// The `n` likeliest tokens, the likeliest first, with their log-probabilities.
    pub(super) fn likeliest(&self, n: usize) -> Vec<(u32, f32)> {
        if n == 0 {
            return Vec::new();
        }
        let mut all = self.likely(n);
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if n < all.len() {
            all.select_nth_unstable_by(n - 1, order);
        }
        all.truncate(n);
        all.sort_unstable_by(order);
        all
    }

    /// The smallest set of the likeliest tokens that has at least this share of the mass; equals stay together. Where only the `most`
    /// likeliest of them are wanted and it has more, any set that has those.
    pub(super) fn nucleus(&self, share: f64, most: Option<usize>) -> Vec<(u32, f32)> {
        let enough = most.map(|n| self.reach(n));
        // Few tokens are likely in most places of a text.
        let depths = [3.0, 8.0, f32::INFINITY].map(|depth| self.top() - depth);
        for reach in enough.into_iter().chain(depths) {
            let mut values = self.values(reach);
            if reach == f32::NEG_INFINITY || mass(&values, 0.0, 1.0) >= share {
                return self.above(level(&mut values, share));
            }
            if enough.is_some() {
                return self.above(reach);
            }
        }
        Vec::new()
    }

    /// The token at `place`, from 0 to 1, of the mass at a temperature, and its log-probability at 1.
    pub(super) fn draw(&self, temperature: f64, place: f64) -> (u32, f32) {
        let slope = (1.0 / temperature).min(1e30) as f32;
        let sums = match slope {
            1.0 => Cow::Borrowed(&self.sums),
            _ => Cow::Owned(masses(self.logits, &self.tops, self.peak, slope)),
        };
        let mut left = place * sums.iter().sum::<f64>();
        let mut chosen = self.best;
        for (at, (block, &sum)) in self.logits.chunks(BLOCK).zip(&*sums).enumerate().filter(|(_, (_, sum))| **sum > 0.0)
        {
            if left >= sum {
                left -= sum;
                continue;
            }
            for (i, &x) in block.iter().enumerate() {
                let weight = exp((x - self.peak) * slope);
                if weight > 0.0 {
                    chosen = at * BLOCK + i;
                }
                left -= f64::from(weight);
                if left < 0.0 {
                    break;
                }
            }
            break;
        }
        (chosen as u32, self.logits[chosen] - self.norm)
    }
}

/// The largest of all.
fn maximum(values: &[f32]) -> f32 {
    values.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// [`mass`] of each [`BLOCK`] of a row whose groups have these largest logits. What is too far below the peak to weigh anything, as
/// what a grammar forbids, is not looked at.
fn masses(row: &[f32], tops: &[f32], peak: f32, slope: f32) -> Vec<f64> {
    let blocks = row.chunks(BLOCK).zip(tops.chunks(BLOCK / GROUP));
    blocks
        .map(|(block, tops)| if (maximum(tops) - peak) * slope > LEAST { mass(block, peak, slope) } else { 0.0 })
        .collect()
}

/// The log-probability down to which the likeliest have this share of the mass: a search that halves.
fn level(mut values: &mut [f32], share: f64) -> f32 {
    let mut before = 0.0;
    while values.len() > 32 {
        let middle = values.len() / 2;
        values.select_nth_unstable_by(middle, |a, b| b.total_cmp(a));
        let (likely, rest) = values.split_at_mut(middle);
        let sum = mass(likely, 0.0, 1.0);
        if before + sum >= share {
            values = likely;
        } else {
            (before, values) = (before + sum, rest);
        }
    }
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    let reached = |x: &&f32| {
        before += f64::from(exp(**x));
        before >= share
    };
    values.iter().find(reached).or(values.last()).copied().unwrap_or(f32::NEG_INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits without order, some of them alike.
    fn logits(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1013) as f32 / 100.0).sin() * 9.0).collect()
    }

    #[test]
    fn candidates_are_those_that_sorting_finds() {
        for n in [1, 5, 63, 64, 65, 1000, 5000] {
            let logits = logits(n);
            let row = Row::new(&logits).unwrap();
            let mut all = row.above(f32::NEG_INFINITY);
            assert_eq!(all.len(), n);
            let mass: f64 = all.iter().map(|k| f64::from(k.1).exp()).sum();
            assert!((mass - 1.0).abs() < 1e-5, "{mass}");
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            assert_eq!(all[0].0, row.best as u32);
            for k in [1, 2, 7, 64, n] {
                let mut found = row.likely(k);
                found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                let k = k.min(n);
                assert_eq!(found[..k], all[..k], "{k} of {n}");
            }
            for share in [0.1, 0.9, 0.999] {
                let mut found = row.nucleus(share, None);
                assert!(found.is_sorted_by_key(|k| k.0));
                found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                assert_eq!(found, all[..found.len()]);
                for k in [1, 3, 64] {
                    let mut most = row.nucleus(share, Some(k));
                    most.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                    most.truncate(k);
                    assert_eq!(most, found[..k.min(found.len())], "{k} of {share} of {n}");
                }
                let mass = |all: &[(u32, f32)]| all.iter().map(|k| f64::from(k.1).exp()).sum::<f64>();
                let least = found[found.len() - 1].1;
                let alike = found.iter().filter(|k| k.1 == least).count();
                assert!(mass(&found) >= share * (1.0 - 1e-5) && mass(&found[..found.len() - alike]) < share + 1e-5);
            }
        }
    }

    #[test]
    fn draws_are_where_the_masses_say() {
        let logits = logits(3000);
        let row = Row::new(&logits).unwrap();
        for temperature in [0.3, 1.0, 2.0] {
            let weights: Vec<f64> = logits.iter().map(|&x| (f64::from(x - row.peak) / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..500 {
                let place = (f64::from(i) + 0.5) / 500.0;
                let mut left = place * total;
                let want = weights.iter().position(|w| {
                    left -= w;
                    left < 0.0
                });
                assert_eq!(Some(row.draw(temperature, place).0 as usize), want, "{place} at {temperature}");
            }
        }
    }

    #[test]
    fn what_may_not_come_is_never_drawn() {
        let logits = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        let row = Row::new(&logits).unwrap();
        for (place, want) in [(0.0, 1), (0.5, 1), (0.999, 3), (1.0, 1)] {
            assert_eq!(row.draw(1.0, place).0, want, "{place}");
        }
        assert_eq!(row.draw(1e-300, 0.5).0, 1);
        assert!(Row::new(&[f32::NEG_INFINITY]).is_none() && Row::new(&[]).is_none());
    }
}
