//! What a method was worth: bits, perplexity and divergence beside rounding to the nearest code in the same formats, on text
//! that it did not see.

use lapis::Result;
use lapis_lm::convert::bits_per_weight;
use lapis_lm::{Divergence, Formats, Model, Original, divergence};
use serde_json::{Value, json};
use std::fmt::{self, Display, Formatter};

/// A model beside the source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// Bits a weight, scales and all that is not packed included.
    pub bits_per_weight: f64,
    /// `exp` of the mean loss of a token.
    pub perplexity: f64,
    /// Mean KL(source ‖ this) of a token, in nats.
    pub kl: f64,
    /// Its standard error.
    pub kl_error: f64,
    /// How often source and this find the same token likeliest, from 0 to 1.
    pub agreement: f64,
}

impl Compared {
    fn new(model: &dyn Model, d: &Divergence) -> Compared {
        Compared {
            bits_per_weight: bits_per_weight(model.copied().module_mut()),
            perplexity: d.perplexities()[1],
            kl: d.mean(),
            kl_error: d.error(),
            agreement: d.agreement(),
        }
    }

    fn json(&self) -> Value {
        json!({
            "bits_per_weight": self.bits_per_weight, "perplexity": self.perplexity, "kl": self.kl,
            "kl_standard_error": self.kl_error, "top1_agreement": self.agreement,
        })
    }
}

/// The source, the source rounded, and what a method made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Of the source.
    pub source: Compared,
    /// Of the source rounded to the nearest codes.
    pub nearest: Compared,
    /// What the rounded one is called.
    pub against: &'static str,
    /// Of what the method made.
    pub learned: Compared,
    /// The method.
    pub method: &'static str,
    /// Tokens that were compared.
    pub tokens: usize,
}

/// Compares a packed model with its source and with the source rounded to the nearest codes of `formats`, those of the packed
/// model or what else it is to be measured against (`against` is what that is called), on windows of tokens; `each` hears how
/// many of how many are done.
///
/// # Errors
/// As [`divergence()`].
pub fn compare(
    [method, against]: [&'static str; 2],
    original: &Original,
    formats: &Formats,
    learned: &dyn Model,
    windows: &[Vec<u32>],
    mut each: impl FnMut(usize, usize),
) -> Result<Comparison> {
    let (nearest, n) = (original.nearest(formats)?, windows.len());
    let mut each = |done| {
        each(done, 2 * n);
        true
    };
    let near = divergence(original.model(), &*nearest, windows, 1, &mut each)?;
    let far = divergence(original.model(), learned, windows, 1, |done| each(n + done))?;
    let mut source = Compared::new(original.model(), &near);
    (source.perplexity, source.kl, source.kl_error, source.agreement) = (near.perplexities()[0], 0.0, 0.0, 1.0);
    Ok(Comparison {
        source,
        nearest: Compared::new(&*nearest, &near),
        learned: Compared::new(learned, &far),
        method,
        against,
        tokens: near.tokens(),
    })
}

impl Comparison {
    /// As the report's file has it.
    pub fn json(&self) -> Value {
        json!({
            "schema": 1, "method": self.method, "held_out_tokens": self.tokens, "source": self.source.json(),
            "against": self.against, "nearest": self.nearest.json(), "learned": self.learned.json(),
        })
    }
}

impl Display for Comparison {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<18}{:>12}{:>12}{:>20}{:>16}", "", "bits/weight", "perplexity", "KL(source)", "same likeliest")?;
        for (name, c) in [("source", self.source), (self.against, self.nearest), (self.method, self.learned)] {
            let kl = format!("{:.5} ± {:.5}", c.kl, c.kl_error);
            let (bits, perplexity, same) = (c.bits_per_weight, c.perplexity, 100.0 * c.agreement);
            writeln!(f, "{name:<18}{bits:>12.3}{perplexity:>12.3}{kl:>20}{same:>14.1} %")?;
        }
        write!(f, "on {} tokens of text that was held out", self.tokens)
    }
}
