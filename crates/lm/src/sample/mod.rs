//! From logits to a token: processors, filters, the draw.
//!
//! Works on host slices, one row at a time: a row's outcome depends on its own logits, history, settings, seed and
//! position alone, never on what else is in the batch.

mod row;

use lapis::{Error, Result};
use row::{Row, exp};
use std::collections::HashMap;

/// How tokens are chosen. The default takes the likeliest.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// The smallest set of tokens whose mass reaches this; 0 and 1 are off.
    pub top_p: f64,
    /// At most so many tokens; 0 is off.
    pub top_k: usize,
    /// Tokens at least this likely beside the likeliest; 0 is off.
    pub min_p: f64,
    /// Tokens that `min_p` always keeps.
    pub min_tokens_to_keep: usize,
    /// How often the likeliest tokens are left out.
    pub xtc_probability: f64,
    /// Tokens above this, all but the least of them, are those left out.
    pub xtc_threshold: f64,
    /// Tokens that are never left out.
    pub xtc_keep: Vec<u32>,
    /// The draw's seed; by default 0.
    pub seed: u64,
    /// Added to logits.
    pub logit_bias: HashMap<u32, f32>,
    /// Logits of tokens seen lately: over this where positive, times this where negative; 0 and 1 are off.
    pub repetition_penalty: f64,
    /// How far back the penalty looks.
    pub repetition_context: usize,
    /// Subtracted once for each token seen lately.
    pub presence_penalty: f64,
    /// How far back that penalty looks.
    pub presence_context: usize,
    /// Subtracted for each time a token was seen lately.
    pub frequency_penalty: f64,
    /// How far back that penalty looks.
    pub frequency_context: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            min_tokens_to_keep: 1,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            xtc_keep: Vec::new(),
            seed: 0,
            logit_bias: HashMap::new(),
            repetition_penalty: 1.0,
            repetition_context: 20,
            presence_penalty: 0.0,
            presence_context: 20,
            frequency_penalty: 0.0,
            frequency_context: 20,
        }
    }
}

/// What a text may be: says at each place which tokens may come.
pub trait Constraint: Send {
    /// Makes the logits of all tokens that may not come next minus infinity.
    ///
    /// # Errors
    /// No token may come.
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()>;

    /// This token came.
    ///
    /// # Errors
    /// It may not.
    fn accept(&mut self, token: u32) -> Result<()>;
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// Its log-probability after processors, before filters and temperature.
    pub logprob: f32,
}

impl Sampling {
    /// Checks every number.
    ///
    /// # Errors
    /// The first one out of its range, with the range.
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        let within = |name: &str, value: f64, low: f64, high: f64| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(Error::value(format!("[sample] {name} is {value}; it lies between {low} and {high}")))
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("xtc_probability", self.xtc_probability, 0.0, 1.0)?;
        within("xtc_threshold", self.xtc_threshold, 0.0, 0.5)?;
        within("repetition_penalty", self.repetition_penalty, 0.0, 100.0)?;
        within("presence_penalty", self.presence_penalty, -100.0, 100.0)?;
        within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)?;
        match self.logit_bias.keys().find(|&&t| t as usize >= vocabulary) {
            Some(t) => {
                Err(Error::index(format!("[sample] logit_bias names token {t} of a vocabulary of {vocabulary}")))
            }
            None => Ok(()),
        }
    }

    /// Whether the likeliest token of the logits as they are is taken.
    pub fn is_plain(&self) -> bool {
        self.temperature == 0.0 && self.takes_logits_as_they_are()
    }

    /// Whether nothing is added to logits before one of them is chosen.
    pub(crate) fn takes_logits_as_they_are(&self) -> bool {
        self.logit_bias.is_empty() && !self.penalizes()
    }

    fn penalizes(&self) -> bool {
        !matches!(self.repetition_penalty, 0.0 | 1.0) || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Chooses after `history`, all tokens before, the prompt's included. `choice` tells replies to one prompt apart.
    ///
    /// # Errors
    /// Logits that are no numbers; those of `constraint`.
    pub fn choose(
        &self,
        logits: &mut [f32],
        history: &[u32],
        choice: u64,
        constraint: Option<&mut dyn Constraint>,
    ) -> Result<Choice> {
        Ok(self.choose_with(logits, history, choice, constraint, 0)?.0)
    }

    /// As [`Sampling::choose`], with the `top` likeliest tokens as the choice was made from them.
    pub(crate) fn choose_with(
        &self,
        logits: &mut [f32],
        history: &[u32],
        choice: u64,
        constraint: Option<&mut dyn Constraint>,
        top: usize,
    ) -> Result<(Choice, Vec<(u32, f32)>)> {
        self.process(logits, history);
        let Some(constraint) = constraint else { return self.draw_with(logits, history, choice, top) };
        constraint.restrict(logits)?;
        let chosen = self.draw_with(logits, history, choice, top)?;
        constraint.accept(chosen.0.token)?;
        Ok(chosen)
    }

    /// From logits as they are now.
    pub(crate) fn draw_with(
        &self,
        logits: &[f32],
        history: &[u32],
        choice: u64,
        top: usize,
    ) -> Result<(Choice, Vec<(u32, f32)>)> {
        let Some(row) = Row::new(logits) else {
            let n = history.len();
            return Err(Error::eval(format!(
                "[sample] the logits of step {n} are not all numbers: the weights are damaged or overflow"
            )));
        };
        Ok((self.draw(&row, history, choice), row.likeliest(top)))
    }

    fn draw(&self, row: &Row, history: &[u32], choice: u64) -> Choice {
        if self.temperature == 0.0 {
            return Choice { token: row.best as u32, logprob: row.top() };
        }
        let mut draw = Draw::new(self.seed, choice, history.len() as u64);
        let Some(mut kept) = self.candidates(row) else {
            let (token, logprob) = row.draw(self.temperature, draw.next());
            return Choice { token, logprob };
        };
        self.filter(&mut kept, &mut draw);
        let top = kept.iter().fold(f32::NEG_INFINITY, |m, k| m.max(k.1));
        let slope = (1.0 / self.temperature).min(1e30) as f32;
        if !kept.is_sorted_by_key(|k| k.0) {
            kept.sort_unstable_by_key(|k| k.0);
        }
        let weights: Vec<f32> = kept.iter().map(|k| exp((k.1 - top) * slope)).collect();
        let mut left = draw.next() * weights.iter().map(|&w| f64::from(w)).sum::<f64>();
        let mut chosen = kept[kept.len() - 1];
        for (&k, &weight) in kept.iter().zip(&weights) {
            left -= f64::from(weight);
            if left < 0.0 {
                chosen = k;
                break;
            }
        }
        Choice { token: chosen.0, logprob: chosen.1 }
    }

    /// Bias, then penalties, in mlx-lm's order.
    fn process(&self, logits: &mut [f32], history: &[u32]) {
        for (&token, &bias) in &self.logit_bias {
            logits[token as usize] += bias;
        }
        let size = logits.len();
        let late = |context: usize| {
            let mut counts: HashMap<u32, u32> = HashMap::new();
            let late = &history[history.len().saturating_sub(context)..];
            for &token in late.iter().filter(|t| (**t as usize) < size) {
                *counts.entry(token).or_default() += 1;
            }
            counts
        };
        let repetition = self.repetition_penalty as f32;
        if repetition != 0.0 && repetition != 1.0 {
            for token in late(self.repetition_context).into_keys() {
                let x = &mut logits[token as usize];
                *x = if *x < 0.0 { *x * repetition } else { *x / repetition };
            }
        }
        if self.presence_penalty != 0.0 {
            for token in late(self.presence_context).into_keys() {
                logits[token as usize] -= self.presence_penalty as f32;
            }
        }
        if self.frequency_penalty != 0.0 {
            for (token, count) in late(self.frequency_context) {
                logits[token as usize] -= self.frequency_penalty as f32 * count as f32;
            }
        }
    }

    /// What top-p keeps, or tokens among which are all that the first other filter keeps; none where nothing is filtered.
    fn candidates(&self, row: &Row) -> Option<Vec<(u32, f32)>> {
        if self.top_p > 0.0 && self.top_p < 1.0 {
            // Top-k right after it needs no more than its own.
            let most = (self.min_p == 0.0 && self.xtc_probability == 0.0 && self.top_k > 0).then_some(self.top_k);
            Some(row.nucleus(self.top_p * (1.0 - 1e-7), most))
        } else if self.min_p > 0.0 && self.min_tokens_to_keep <= 1 {
            Some(row.above(row.top() + self.min_p.ln() as f32))
        } else if self.min_p > 0.0 || self.xtc_probability > 0.0 {
            Some(row.above(f32::NEG_INFINITY))
        } else if self.top_k > 0 {
            Some(row.likely(self.top_k))
        } else {
            None
        }
    }

    /// After top-p: min-p, XTC, top-k, on log-probabilities; what is removed is not made up for.
    fn filter(&self, kept: &mut Vec<(u32, f32)>, draw: &mut Draw) {
        if self.min_p > 0.0 {
            let top = kept.iter().fold(f32::NEG_INFINITY, |m, k| m.max(k.1));
            let least = top + self.min_p.ln() as f32;
            if self.min_tokens_to_keep > 1 {
                kept.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                let n = kept.iter().take_while(|k| k.1 >= least).count().max(self.min_tokens_to_keep);
                kept.truncate(n);
            } else {
                kept.retain(|k| k.1 >= least);
            }
        }
        if self.xtc_probability > 0.0 && draw.next() <= self.xtc_probability {
            let least = (self.xtc_threshold as f32).ln();
            let floor = kept.iter().map(|k| k.1).filter(|&l| l > least).fold(f32::INFINITY, f32::min);
            kept.retain(|k| k.1 <= floor || self.xtc_keep.contains(&k.0));
        }
        if self.top_k > 0 && self.top_k < kept.len() {
            kept.select_nth_unstable_by(self.top_k - 1, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            kept.truncate(self.top_k);
        }
    }
}

/// The `n` likeliest tokens of logits, the likeliest first, with their log-probabilities; none of logits that are no
/// numbers.
pub fn likeliest(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    Row::new(logits).map_or(Vec::new(), |row| row.likeliest(n))
}

/// Numbers in [0, 1) from a counter: threefry2x32 keyed by seed and choice, counted by position and draw.
struct Draw {
    key: [u32; 2],
    position: u64,
    draws: u32,
}

impl Draw {
    fn new(seed: u64, choice: u64, position: u64) -> Draw {
        let key = threefry([seed as u32, (seed >> 32) as u32], choice as u32, (choice >> 32) as u32);
        Draw { key, position, draws: 0 }
    }

    fn next(&mut self) -> f64 {
        let high = (self.position >> 24) as u32 ^ (self.draws << 24);
        let [a, b] = threefry(self.key, self.position as u32, high);
        self.draws += 1;
        ((u64::from(a) << 32 | u64::from(b)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Random123's threefry2x32 in 20 rounds.
fn threefry(key: [u32; 2], c0: u32, c1: u32) -> [u32; 2] {
    const TURNS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1bd1_1bda];
    let (mut a, mut b) = (c0.wrapping_add(keys[0]), c1.wrapping_add(keys[1]));
    for round in 0..5 {
        for turn in TURNS[round % 2] {
            a = a.wrapping_add(b);
            b = b.rotate_left(turn) ^ a;
        }
        a = a.wrapping_add(keys[(round + 1) % 3]);
        b = b.wrapping_add(keys[(round + 2) % 3]).wrapping_add(round as u32 + 1);
    }
    [a, b]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(sampling: &Sampling, probabilities: &[f64]) -> Vec<u32> {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() as f32).collect();
        let row = Row::new(&logits).unwrap();
        let mut rows = sampling.candidates(&row).unwrap();
        sampling.filter(&mut rows, &mut Draw::new(0, 0, 0));
        let mut ids: Vec<u32> = rows.iter().map(|k| k.0).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_the_mass() {
        let p = |top_p| kept(&Sampling { top_p, ..Default::default() }, &[0.5, 0.3, 0.15, 0.05]).len();
        assert_eq!([p(0.79), p(0.8), p(0.81)], [2, 2, 3]);
    }

    #[test]
    fn filters_keep_what_they_say() {
        let p = [0.5, 0.3, 0.15, 0.05];
        assert_eq!(kept(&Sampling { min_p: 0.4, ..Default::default() }, &p), [0, 1]);
        assert_eq!(kept(&Sampling { min_p: 0.9, min_tokens_to_keep: 3, ..Default::default() }, &p), [0, 1, 2]);
        assert_eq!(kept(&Sampling { top_k: 1, ..Default::default() }, &p), [0]);
        assert_eq!(kept(&Sampling { top_k: 99, ..Default::default() }, &p), [0, 1, 2, 3]);
        let xtc = Sampling { xtc_probability: 1.0, xtc_threshold: 0.1, xtc_keep: vec![0], ..Default::default() };
        assert_eq!(kept(&xtc, &p), [0, 2, 3]);
    }

    #[test]
    fn penalties_follow_the_formulas() {
        let s = Sampling {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: HashMap::from([(2, 7.0)]),
            ..Default::default()
        };
        let mut logits = [4.0, -4.0, 1.0, 1.0];
        s.process(&mut logits, &[0, 1, 1]);
        assert_eq!(logits, [4.0 / 2.0 - 0.5 - 0.25, -4.0 * 2.0 - 0.5 - 0.5, 8.0, 1.0]);
    }

    #[test]
    fn penalties_look_back_each_by_its_own_number() {
        let all = Sampling {
            repetition_penalty: 2.0,
            repetition_context: 1,
            presence_penalty: 0.5,
            presence_context: 2,
            frequency_penalty: 0.25,
            frequency_context: 4,
            ..Default::default()
        };
        let mut logits = [4.0, 4.0, 4.0, 4.0];
        all.process(&mut logits, &[3, 0, 0, 1, 2]);
        assert_eq!(logits, [4.0 - 0.25 * 2.0, 4.0 - 0.5 - 0.25, 4.0 / 2.0 - 0.5 - 0.25, 4.0]);
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let p = [0.5f32, 0.3, 0.15, 0.05];
        let s = Sampling { temperature: 1.0, seed: 7, ..Default::default() };
        let mut counts = [0u32; 4];
        let mut history = Vec::new();
        for _ in 0..20_000 {
            let mut row = p.map(f32::ln);
            counts[s.choose(&mut row, &history, 0, None).unwrap().token as usize] += 1;
            history.push(0);
        }
        for (n, p) in counts.iter().zip(p) {
            assert!((*n as f32 / 20_000.0 - p).abs() < 0.01, "{counts:?}");
        }
        let at = |seed| {
            let s = Sampling { temperature: 1.0, seed, ..Default::default() };
            (0..64).map(|i| s.choose(&mut p.map(f32::ln), &history[..i], 0, None).unwrap().token).collect::<Vec<_>>()
        };
        assert_eq!(at(3), at(3));
        assert_ne!(at(3), at(4));
    }

    #[test]
    fn threefry_gives_the_known_answers() {
        assert_eq!(threefry([0, 0], 0, 0), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry([u32::MAX; 2], u32::MAX, u32::MAX), [0x1cb9_96fc, 0xbb00_2be7]);
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let why = Sampling::default().choose(&mut [0.0, bad], &[], 0, None).unwrap_err().to_string();
            assert!(why.contains("not all numbers"), "{why}");
        }
    }
}
