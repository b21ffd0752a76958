//! Steps that are like the one before: each request that runs writes one more token, and nothing else has changed. What the
//! model does then is the same but for tokens, positions, and what is remembered, so the graph is not built again.

use super::likeliest::Likeliest;
use super::rows::Rows;
use super::{Engine, Running};
use lapis::ops::Op;
use lapis::{Array, Replay, Result, eval};

/// What the next step may be, and how to repeat the last one.
#[derive(Default)]
pub(super) struct Steady {
    /// What the next step is if it is like the last one.
    next: Option<Kind>,
    replay: Option<Replay>,
    /// Steps that were repeated.
    repeated: u64,
}

/// What two steps have in common of which one may repeat the other.
#[derive(PartialEq)]
pub(super) struct Kind {
    /// Each request, and the tokens that it has read.
    requests: Vec<(u64, usize)>,
    /// Of each request, how many blocks of keys each layer has.
    blocks: Vec<Vec<usize>>,
    /// A row takes the likeliest token and nothing else.
    plain: bool,
}

impl Kind {
    /// That of the next step.
    fn next(mut self) -> Kind {
        self.requests.iter_mut().for_each(|(_, seen)| *seen += 1);
        self
    }
}

/// How a step is computed.
pub(super) enum Way {
    /// It was, as the last one.
    Repeated(Likeliest),
    /// By its graph; what of it may change in the next step is named where that may repeat it.
    Built { kind: Option<Kind>, inputs: Option<Vec<(u64, u32)>> },
}

impl Engine {
    /// Steps so far that repeated the one before, with no graph of their own.
    pub fn repeated(&self) -> u64 {
        self.steady.repeated
    }

    /// The kind of the step that has these rows, if it may be like another: of each request that takes part one row, for the token
    /// after it.
    fn kind(&self, rows: &[Rows]) -> Option<Kind> {
        let all = || rows.iter().map(|r| &self.running[r.index]);
        let one = |r: &Rows| r.count == 1 && r.guessed.is_empty() && r.first.is_some();
        // Scores are told of rows of the prompt.
        let writes = |r: &Running| r.request.scores.is_none() || r.sequence.len() >= r.request.prompt.len();
        if self.mixed.is_some() || !rows.iter().all(one) || !all().all(writes) {
            return None;
        }
        let blocks = all().map(|r| r.sequence.joins()).collect::<Option<_>>()?;
        let requests = all().map(|r| (r.id, r.sequence.len())).collect();
        Some(Kind { requests, blocks, plain: all().any(Running::is_plain) })
    }

    /// Repeats the last step for these rows and tokens, if this one is like it.
    pub(super) fn repeat(&mut self, rows: &[Rows], tokens: &Array) -> Result<Way> {
        let Steady { next, replay, .. } = &mut self.steady;
        let (expected, replay) = (next.take(), replay.take());
        let kind = self.kind(rows);
        if kind.is_none() || kind != expected {
            return Ok(Way::Built { kind, inputs: None });
        }
        let Some(mut replay) = replay else {
            // More room is no part of what is repeated.
            for r in rows {
                self.running[r.index].sequence.make_room()?;
            }
            let lasts = || rows.iter().flat_map(|r| self.running[r.index].sequence.lasts());
            eval(lasts())?;
            let inputs = std::iter::once(tokens).chain(lasts()).map(Array::id).collect();
            return Ok(Way::Built { kind, inputs: Some(inputs) });
        };
        let mut inputs = vec![tokens.clone()];
        for r in rows {
            self.running[r.index].sequence.lend(&mut inputs)?;
        }
        let advance = |op: &mut Op| {
            if let Op::CachedAttention(op) = op {
                op.advance();
            }
        };
        let mut results = replay.run(inputs, advance)?.into_iter();
        for r in rows {
            self.running[r.index].sequence.join(&mut results);
        }
        self.steady = Steady { next: kind.map(Kind::next), replay: Some(replay), repeated: self.steady.repeated + 1 };
        Likeliest::of(results).map(Way::Repeated)
    }
}

impl Steady {
    /// Nothing of the last step is kept.
    pub(super) fn forget(&mut self) {
        (self.next, self.replay) = (None, None);
    }

    /// A step was built that is of this kind, if it may be repeated at all.
    pub(super) fn keep(&mut self, kind: Option<Kind>, replay: Option<Replay>) {
        (self.next, self.replay) = (kind.map(Kind::next), replay);
    }
}
