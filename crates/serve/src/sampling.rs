//! Fields about tokens that several interfaces share.

use crate::error::ApiError;
use crate::fields::{Body, Field, Kind, field};
use crate::service::Wishes;
use lapis_lm::Sampling;
use std::collections::HashMap;

/// How tokens are chosen.
pub(crate) const SAMPLING: &[Field] = &[
    field("temperature", Kind::Number(0.0, 100.0), "Randomness; 0 takes the likeliest token."),
    field("top_p", Kind::Number(0.0, 1.0), "Draw from the smallest set of tokens with this mass."),
    field("top_k", Kind::Integer(0, i64::MAX as i128), "Draw from at most this many tokens; 0 is no limit."),
    field("min_p", Kind::Number(0.0, 1.0), "Draw from tokens this likely beside the likeliest."),
    field("seed", Kind::Integer(-(1 << 63), (1 << 64) - 1), "Seed of the draws."),
    field("repetition_penalty", Kind::Number(0.0, 100.0), "Makes tokens seen lately less likely; 1 is off."),
    field(
        "repetition_context_size",
        Kind::Integer(0, i64::MAX as i128),
        "How many tokens back it looks; 20 by default.",
    ),
    field("presence_penalty", Kind::Number(-100.0, 100.0), "Subtracted once from logits of tokens seen lately."),
    field("presence_context_size", Kind::Integer(0, i64::MAX as i128), "How many tokens back it looks; 20 by default."),
    field("frequency_penalty", Kind::Number(-100.0, 100.0), "Subtracted for each time a token was seen lately."),
    field(
        "frequency_context_size",
        Kind::Integer(0, i64::MAX as i128),
        "How many tokens back it looks; 20 by default.",
    ),
    field("xtc_probability", Kind::Number(0.0, 1.0), "How often the likeliest tokens are left out."),
    field("xtc_threshold", Kind::Number(0.0, 0.5), "Tokens more likely than this are those left out."),
    field("logit_bias", Kind::Object, "Added to logits: token id to number, 1024 at most."),
];

/// What a body says of that.
///
/// # Errors
/// A bias of something that is no token, or too many of them.
pub(crate) fn wishes(body: &Body) -> Result<Wishes, ApiError> {
    let plain = Sampling::default();
    let rest = Sampling {
        repetition_penalty: body.number("repetition_penalty").unwrap_or(1.0),
        repetition_context: body.count("repetition_context_size").unwrap_or(plain.repetition_context),
        presence_penalty: body.number("presence_penalty").unwrap_or(0.0),
        presence_context: body.count("presence_context_size").unwrap_or(plain.presence_context),
        frequency_penalty: body.number("frequency_penalty").unwrap_or(0.0),
        frequency_context: body.count("frequency_context_size").unwrap_or(plain.frequency_context),
        xtc_probability: body.number("xtc_probability").unwrap_or(0.0),
        xtc_threshold: body.number("xtc_threshold").unwrap_or(plain.xtc_threshold),
        logit_bias: bias(body)?,
        ..plain
    };
    Ok(Wishes {
        temperature: body.number("temperature"),
        top_p: body.number("top_p"),
        top_k: body.count("top_k"),
        min_p: body.number("min_p"),
        // Every number of 64 bits is a seed of its own but for the sign.
        seed: body.integer("seed").map(|n| n as u64),
        rest,
    })
}

fn bias(body: &Body) -> Result<HashMap<u32, f32>, ApiError> {
    let wrong = |what: String| ApiError::field("logit_bias", format!("logit_bias {what}"));
    let Some(given) = body.get("logit_bias").and_then(|v| v.as_object()) else { return Ok(HashMap::new()) };
    if given.len() > 1024 {
        return Err(wrong(format!("has {} entries; 1024 are taken", given.len())));
    }
    let one = |(id, bias): (&String, &serde_json::Value)| {
        let shown: String = id.chars().take(20).collect();
        let id = id.parse::<u32>().map_err(|_| wrong(format!("names {shown:?}, which is no token id")))?;
        // One this large orders tokens as any larger one does, and sums stay finite.
        let bias = bias.as_f64().filter(|b| b.is_finite()).map(|b| b.clamp(-1e30, 1e30) as f32);
        Ok((id, bias.ok_or_else(|| wrong(format!("of token {id} is no finite number")))?))
    };
    given.iter().map(one).collect()
}
