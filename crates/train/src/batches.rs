//! Samples to batches: rows of about one length go together.
//!
//! Rows lie one after the other without padding: a model sees them in one row dimension, and attention keeps to each row.

use crate::Sample;
use crate::order::Order;
use lapis::{Error, Result};
use std::ops::Range;

/// Rows of a step; of pairs, a preferred answer is before the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The tokens of each row.
    pub rows: Vec<Vec<u32>>,
    /// Places of the tokens of each row that are to be foreseen.
    pub counted: Vec<Range<usize>>,
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
        Batch { rows: all, counted }
    }

    /// Tokens that are to be foreseen.
    pub fn targets(&self) -> usize {
        self.counted.iter().map(Range::len).sum()
    }
}

/// Which samples go together: sorted by length, cut into batches; a rest that fills none is left out.
pub(crate) fn groups(samples: &[Sample], batch_size: usize, name: &str) -> Result<Vec<Vec<usize>>> {
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

    fn sample(n: usize, offset: usize) -> Sample {
        Sample { tokens: (1..=n as u32).collect(), offset, rejected: None }
    }

    #[test]
    fn what_counts() {
        let (a, b) = (sample(5, 0), sample(40, 10));
        let own = Batch::new(&[&a, &b], 64, false);
        assert_eq!((own.rows[0].len(), own.rows[1].len()), (5, 40));
        assert_eq!(own.counted, [1..5, 10..40]);
        assert_eq!(own.targets(), 34);
        // mlx-lm: 1 + 64 columns, cut to 64; a target at t counts when offset <= t <= length.
        let padded = Batch::new(&[&a, &b], 64, true);
        assert!(padded.rows.iter().all(|r| r.len() == 64));
        assert_eq!(padded.counted, [1..6, 10..41]);
        let cut = Batch::new(&[&a, &b], 16, true);
        assert_eq!(cut.counted, [1..6, 10..16]);
        assert_eq!(Batch::new(&[&a, &b], 16, false).counted, [1..5, 10..16]);
    }

    #[test]
    fn by_length_and_whole() {
        let all: Vec<Sample> = [9, 3, 7, 3, 5].map(|n| sample(n, 0)).into();
        assert_eq!(groups(&all, 2, "train").unwrap(), [vec![1, 3], vec![4, 2]]);
        let error = groups(&all, 6, "train").unwrap_err();
        assert!(error.message().contains("--batch-size 5"), "{error}");
    }
}
