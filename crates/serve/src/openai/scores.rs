//! Log-probabilities in OpenAI's two forms.

use crate::job::Scored;
use lapis_lm::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

/// The least that is written: JSON has no minus infinity.
const LEAST: f32 = -9999.0;

fn number(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(LEAST) } else { LEAST }
}

/// A token as text.
pub(crate) fn text(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(&tokenizer.token_bytes(token)).into_owned()
}

/// `logprobs` of a chat: one entry a token.
pub(crate) fn chat(tokenizer: &Tokenizer, scored: &[Scored]) -> Value {
    let entry = |token: u32, logprob: f32| {
        let text = text(tokenizer, token);
        json!({"token": text, "logprob": number(logprob), "bytes": tokenizer.token_bytes(token), "token_id": token})
    };
    let content: Vec<Value> = scored
        .iter()
        .map(|s| {
            let mut one = entry(s.token, s.logprob);
            one["top_logprobs"] = s.top.iter().map(|&(t, l)| entry(t, l)).collect();
            one
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// Where in `text` its tokens begin, in characters. A token that is not written there, such as one that begins every
/// text, takes no place.
pub(crate) fn places(tokenizer: &Tokenizer, tokens: &[u32], text: &str) -> Vec<usize> {
    let mut at = 0;
    // Characters that begin before a place.
    let before = |at: usize| text.as_bytes()[..at].iter().filter(|&&b| b & 0xC0 != 0x80).count();
    tokens
        .iter()
        .map(|&token| {
            let place = before(at);
            let bytes = tokenizer.token_bytes(token);
            if text.as_bytes()[at..].starts_with(&bytes) {
                at += bytes.len();
            }
            place
        })
        .collect()
}

/// `logprobs` of a completion, whose text begins at `offset`.
pub(crate) fn legacy(
    tokenizer: &Tokenizer,
    scored: &[Option<Scored>],
    tokens: &[u32],
    offset: usize,
    top: usize,
) -> Value {
    let (mut at, mut texts, mut offsets) = (offset, Vec::new(), Vec::new());
    for &token in tokens {
        let text = text(tokenizer, token);
        offsets.push(at);
        at += text.chars().count();
        texts.push(text);
    }
    let logprobs: Vec<Value> =
        scored.iter().map(|s| s.as_ref().map_or(Value::Null, |s| json!(number(s.logprob)))).collect();
    let tops: Vec<Value> = scored
        .iter()
        .map(|s| {
            let Some(s) = s else { return Value::Null };
            let mut entry = Map::new();
            for &(t, l) in s.top.iter().take(top) {
                // Of several tokens with the same text, the likeliest counts.
                entry.entry(text(tokenizer, t)).or_insert(json!(number(l)));
            }
            Value::Object(entry)
        })
        .collect();
    json!({"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
}
