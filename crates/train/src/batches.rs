//! Samples to batches: rows of about one length go together.
//!
//! Rows lie one after the other without padding: a model sees them in one row dimension, and attention keeps to each row.

use crate::Sample;
use crate::order::Order;
use lapis::distributed::Group;
use lapis::{Error, Result};
use std::ops::Range;

/// Rows of a step; of pairs, a preferred answer is before the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The tokens of each row.
    pub rows: Vec<Vec<u32>>,
    /// Places of the tokens of each row that are to be foreseen.
    pub counted: Vec<Range<usize>>,
    /// Tokens to be foreseen in the rows of all processes that share the batch.
    pub of: usize,
    /// What the sum of losses is divided by, so that those of all processes add up to the mean of the whole batch.
    pub(crate) divisor: usize,
    /// How many processes share the batch.
    pub(crate) shares: usize,
}

impl Batch {
    /// Of samples, cut to `max` tokens. With `padded`, rows are padded to 1 + 32 k tokens and one token of padding counts, as
    /// in mlx-lm.
    pub fn new(samples: &[&Sample], max: usize, padded: bool) -> Batch {
        let rows = || samples.iter().flat_map(|s| s.rows());
        let longest = rows().map(|s| s.tokens.len()).max().unwrap_or(0);
        let width = (1 + longest.next_multiple_of(32)).min(max);
        let (mut all, mut counted) = (Vec::new(), Vec::new());
        for sample in rows() {
            let mut row = sample.tokens[..sample.tokens.len().min(max)].to_vec();
            let mut end = row.len();
            if padded {
                end = (end + 1).min(width);
                row.resize(width, 0);
            }
            counted.push(sample.offset.clamp(1, end)..end);
            all.push(row);
        }
        let of = counted.iter().map(Range::len).sum();
        Batch { rows: all, counted, of, divisor: of, shares: 1 }
    }

    /// What process `group` computes of a batch: every so manieth sample from its own on, as in mlx-lm. With `padded`, losses are
    /// means of the means of each process, as there.
    pub fn part(samples: &[&Sample], max: usize, padded: bool, group: Group) -> Batch {
        let shares = group.size();
        let part = |rank: usize| {
            let own: Vec<&Sample> = samples.iter().skip(rank).step_by(shares).copied().collect();
            Batch::new(&own, max, padded)
        };
        let own = part(group.rank());
        let of = (0..shares).map(|rank| part(rank).of).sum();
        let divisor = if padded { own.of * shares } else { of };
        Batch { of, divisor, shares, ..own }
    }
}

/// Which samples go together: sorted by length, cut into batches that `shares` processes can share; a rest that fills none is left
/// out.
pub(crate) fn groups(samples: &[Sample], batch_size: usize, shares: usize, name: &str) -> Result<Vec<Vec<usize>>> {
    if !batch_size.is_multiple_of(shares) {
        let (less, more) = (batch_size / shares * shares, batch_size.next_multiple_of(shares));
        let known = if less > 0 { format!("{less} or {more}") } else { more.to_string() };
        return Err(Error::value(format!(
            "[lora] a batch of {batch_size} does not divide among {shares} processes; give --batch-size {known}"
        )));
    }
    if samples.len() < batch_size {
        let n = samples.len();
        return Err(Error::value(format!(
            "[lora] the {name} set has {n} samples, fewer than a batch of {batch_size}; give --batch-size {n} or less"
        )));
    }
    let mut all: Vec<usize> = (0..samples.len()).collect();
    all.sort_by_key(|&i| samples[i].tokens.len());
    Ok(all.chunks_exact(batch_size).map(<[usize]>::to_vec).collect())
}

/// A place in an endless walk over batches: each pass has an order of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Cursor {
    /// The order of this pass.
    pub(crate) pass: Vec<u32>,
    /// Batches of it that were taken.
    pub(crate) taken: usize,
}

impl Cursor {
    /// The next of `n` batches.
    pub(crate) fn next(&mut self, n: usize, order: &mut Order) -> usize {
        if self.taken == self.pass.len() {
            *self = Cursor { pass: order.permutation(n), taken: 0 };
        }
        self.taken += 1;
        self.pass[self.taken - 1] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::{Batch, groups};
    use crate::Sample;
    use lapis::distributed::Group;

    fn sample(n: usize, offset: usize) -> Sample {
        Sample { tokens: (1..=n as u32).collect(), offset, rejected: None }
    }

    #[test]
    fn what_counts() {
        let (a, b) = (sample(5, 0), sample(40, 10));
        let own = Batch::new(&[&a, &b], 64, false);
        assert_eq!((own.rows[0].len(), own.rows[1].len()), (5, 40));
        assert_eq!(own.counted, [1..5, 10..40]);
        assert_eq!(own.of, 34);
        // mlx-lm: 1 + 64 columns, cut to 64; a target at t counts when offset <= t <= length.
        let padded = Batch::new(&[&a, &b], 64, true);
        assert!(padded.rows.iter().all(|r| r.len() == 64));
        assert_eq!(padded.counted, [1..6, 10..41]);
        let cut = Batch::new(&[&a, &b], 16, true);
        assert_eq!(cut.counted, [1..6, 10..16]);
        assert_eq!(Batch::new(&[&a, &b], 16, false).counted, [1..5, 10..16]);
    }

    #[test]
    fn processes_share_a_batch() {
        let all = [sample(5, 0), sample(40, 10), sample(7, 0), sample(9, 0)];
        let all: Vec<&Sample> = all.iter().collect();
        let whole = Batch::new(&all, 64, false);
        let parts = [0, 1].map(|rank| Batch::part(&all, 64, false, Group::new(1, rank, 2)));
        assert_eq!(parts[0].rows, [&whole.rows[0], &whole.rows[2]].map(Clone::clone));
        assert_eq!(parts[1].rows, [&whole.rows[1], &whole.rows[3]].map(Clone::clone));
        assert!(parts.iter().all(|p| (p.of, p.divisor, p.shares) == (whole.of, whole.of, 2)));
        // As in mlx-lm, where each has its own mean, those of 4 + 1 + 6 + 1 and 30 + 1 + 8 + 1 tokens.
        let parts = [0, 1].map(|rank| Batch::part(&all, 64, true, Group::new(1, rank, 2)));
        assert_eq!(parts.map(|p| (p.of, p.divisor)), [(52, 24), (52, 80)]);
    }

    #[test]
    fn by_length_and_whole() {
        let all: Vec<Sample> = [9, 3, 7, 3, 5].map(|n| sample(n, 0)).into();
        assert_eq!(groups(&all, 2, 1, "train").unwrap(), [vec![1, 3], vec![4, 2]]);
        let error = groups(&all, 6, 1, "train").unwrap_err();
        assert!(error.message().contains("--batch-size 5"), "{error}");
        let error = groups(&all, 3, 2, "train").unwrap_err();
        assert!(error.message().contains("--batch-size 2 or 4"), "{error}");
    }
}
