//! A limit of thinking: after so many tokens the model writes the end of its thinking, and then answers.

use lapis::Result;

use crate::sample::Constraint;
use crate::tokenizer::Thinking;

/// Ends thinking that grows too long; see [`Thinking::budget`].
struct Budget {
    marks: Thinking,
    inside: bool,
    /// Tokens of thinking that may still come.
    left: usize,
    /// Tokens of the end that were written because there was no more room.
    closed: usize,
    /// The last tokens, as many as the longer mark has.
    seen: Vec<u32>,
    then: Option<Box<dyn Constraint>>,
}

impl Thinking {
    /// Lets the model think for `tokens` tokens at most in its reply to `prompt`, and holds it to `then` besides.
    pub fn budget(&self, prompt: &[u32], tokens: usize, then: Option<Box<dyn Constraint>>) -> Box<dyn Constraint> {
        let (marks, inside) = (self.clone(), self.is_open(prompt));
        Box::new(Budget { marks, inside, left: tokens, closed: 0, seen: Vec::new(), then })
    }
}

impl Constraint for Budget {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()> {
        if let Some(then) = &mut self.then {
            then.restrict(logits)?;
        }
        if self.inside && self.left == 0 {
            logits.fill(f32::NEG_INFINITY);
            if let Some(logit) = self.marks.end_ids.get(self.closed).and_then(|&id| logits.get_mut(id as usize)) {
                *logit = 0.0;
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        if let Some(then) = &mut self.then {
            then.accept(token)?;
        }
        let most = self.marks.start_ids.len().max(self.marks.end_ids.len());
        self.seen.push(token);
        if self.seen.len() > most {
            self.seen.remove(0);
        }
        if !self.inside {
            self.inside = self.seen.ends_with(&self.marks.start_ids);
        } else if self.seen.ends_with(&self.marks.end_ids) {
            (self.inside, self.closed) = (false, 0);
        } else if self.left == 0 {
            self.closed += 1;
        } else {
            self.left -= 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> Thinking {
        Thinking { start: "<".into(), end: "></".into(), start_ids: vec![1], end_ids: vec![2, 3] }
    }

    /// What greedy sampling writes where every step prefers `wish`.
    fn written(constraint: &mut dyn Constraint, wishes: &[u32]) -> Vec<u32> {
        let one = |wish: u32| {
            let mut logits = vec![0.0; 8];
            logits[wish as usize] = 1.0;
            constraint.restrict(&mut logits).unwrap();
            let best = (0..8).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
            constraint.accept(best).unwrap();
            best
        };
        wishes.iter().copied().map(one).collect()
    }

    #[test]
    fn thinking_ends_when_its_tokens_are_spent() {
        // Open in the prompt: two tokens, then the end of two tokens, then as the model likes.
        assert_eq!(written(&mut *marks().budget(&[5, 1], 2, None), &[7, 7, 7, 7, 7, 6]), [7, 7, 2, 3, 7, 6]);
        // Opened by the model; what comes before does not count.
        assert_eq!(written(&mut *marks().budget(&[5], 1, None), &[7, 7, 1, 6, 6, 6, 6]), [7, 7, 1, 6, 2, 3, 6]);
        // None at all; and enough: the model ends it.
        assert_eq!(written(&mut *marks().budget(&[1], 0, None), &[7, 7, 7]), [2, 3, 7]);
        assert_eq!(written(&mut *marks().budget(&[1], 9, None), &[7, 2, 3, 7, 7]), [7, 2, 3, 7, 7]);
        // Thinking is not begun twice without limit.
        assert_eq!(written(&mut *marks().budget(&[1], 1, None), &[7, 2, 3, 1, 7, 7]), [7, 2, 3, 1, 2, 3]);
    }
}
