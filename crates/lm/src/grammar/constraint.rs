//! One text under a grammar.

use std::collections::BTreeSet;
use std::sync::Arc;

use lapis::{Error, Result};
use llguidance::TokenParser;
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::SimpleVob;

use super::short;
use super::tokens::Tokens;
use crate::sample::Constraint;

/// Where a text is in its grammar.
pub(super) struct Masked {
    pub(super) tokens: Arc<Tokens>,
    pub(super) parser: TokenParser,
    pub(super) eos: Arc<BTreeSet<u32>>,
    /// Nothing was written.
    pub(super) fresh: bool,
    /// The text has ended.
    pub(super) over: bool,
}

impl Masked {
    pub(super) fn new(tokens: Arc<Tokens>, parser: TokenParser, eos: Arc<BTreeSet<u32>>) -> Masked {
        Masked { tokens, parser, eos, fresh: true, over: false }
    }

    /// Runs the parser, whose panics become errors.
    fn parse<T>(
        &mut self,
        step: impl FnOnce(&mut TokenParser, &Tokens) -> std::result::Result<T, String>,
    ) -> Result<T> {
        let (parser, tokens) = (&mut self.parser, &*self.tokens);
        let run = std::panic::AssertUnwindSafe(|| Ok(step(parser, tokens)));
        let result = catch_unwind(run).unwrap_or_else(|e| Err(e.to_string()));
        result.map_err(|e| Error::eval(format!("[grammar] {}", short(&e))))
    }

    /// The tokens that may come; nothing where only the end may.
    fn mask(&mut self) -> Result<Option<SimpleVob>> {
        if self.over || self.parser.stopped() {
            return Ok(None);
        }
        let fresh = self.fresh;
        self.parse(|parser, tokens| {
            let Some(first) = tokens.first.as_ref().filter(|_| fresh) else {
                return parser.compute_mask().map(Some).map_err(|e| e.to_string());
            };
            let mut mask = parser.parser.with_recognizer(|r| first.mask.compute_bias(r, &[]));
            if let Some(why) = parser.parser.get_error() {
                return Err(why.message());
            }
            first.spaces.iter().for_each(|&token| mask.allow_token(token));
            if parser.is_accepting() {
                mask.allow_token(tokens.end());
            }
            Ok(Some(mask))
        })
    }
}

impl Constraint for Masked {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()> {
        let mask = self.mask()?;
        let ends = mask.as_ref().is_none_or(|mask| mask.is_allowed(self.tokens.end()));
        let eos: Vec<(usize, f32)> =
            self.eos.iter().filter_map(|&t| Some((t as usize, *logits.get(t as usize)?))).collect();
        let known = self.tokens.count.min(logits.len());
        let mut any = false;
        if let Some(mask) = &mask {
            for (word, logits) in mask.as_slice().iter().zip(logits[..known].chunks_mut(32)) {
                match *word {
                    0 => logits.fill(f32::NEG_INFINITY),
                    u32::MAX => any = true,
                    bits => {
                        for (i, logit) in logits.iter_mut().enumerate() {
                            match bits >> i & 1 {
                                0 => *logit = f32::NEG_INFINITY,
                                _ => any = true,
                            }
                        }
                    }
                }
            }
            logits[known..].fill(f32::NEG_INFINITY);
        } else {
            logits.fill(f32::NEG_INFINITY);
        }
        for &(token, logit) in &eos {
            logits[token] = if ends { logit } else { f32::NEG_INFINITY };
        }
        if any || ends && !eos.is_empty() {
            return Ok(());
        }
        Err(Error::eval(match ends {
            true => "[grammar] the text is whole, and the model has no token that ends it",
            false => "[grammar] no token of the model goes on as the grammar wants",
        }))
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        let refused = || Error::value(format!("[grammar] token {token} may not come here"));
        if self.eos.contains(&token) {
            let ends = self.over || self.parser.stopped() || self.parse(|parser, _| Ok(parser.is_accepting()))?;
            self.over |= ends;
            return if ends { Ok(()) } else { Err(refused()) };
        }
        if self.over || self.parser.stopped() || token as usize >= self.tokens.count {
            return Err(refused());
        }
        let fresh = std::mem::replace(&mut self.fresh, false);
        self.parse(|parser, tokens| {
            let first = tokens.first.as_ref().filter(|_| fresh);
            if first.is_some_and(|first| first.spaces.contains(&token)) {
                return Ok(());
            }
            match first.and_then(|first| first.rest[token as usize].as_deref()) {
                Some(rest) => tokens.feed(parser, rest)?,
                None => _ = parser.consume_token(token).map_err(|e| e.to_string())?,
            }
            parser.check_stop().map(|_| ()).map_err(|e| e.to_string())
        })
    }
}

/// Leaves the text free until `end` has come, a model's thinking; it may not end before that.
pub(super) struct Afterwards {
    pub(super) end: Vec<u32>,
    pub(super) seen: Vec<u32>,
    pub(super) then: Masked,
}

impl Afterwards {
    fn waits(&self) -> bool {
        self.seen.len() < self.end.len() || self.seen != self.end
    }
}

impl Constraint for Afterwards {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()> {
        if !self.waits() {
            return self.then.restrict(logits);
        }
        for &token in self.then.eos.iter() {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        if !self.waits() {
            return self.then.accept(token);
        }
        if self.then.eos.contains(&token) {
            return Err(Error::value(format!("[grammar] token {token} may not come here")));
        }
        self.seen.push(token);
        if self.seen.len() > self.end.len() {
            self.seen.remove(0);
        }
        Ok(())
    }
}
