//! SentencePiece's unigram models, which GGUF calls `t5` after their best-known user: pieces have log-probabilities, and a text becomes
//! the likeliest pieces.

use super::export::Notes;
use super::meta::Meta;
use crate::hub::base64;
use lapis::{Error, Result};
use serde_json::{Value, json};

const CHARACTERS: &str = "tokenizer.ggml.precompiled_charsmap";
const PREFIX: &str = "tokenizer.ggml.add_space_prefix";
const MERGED: &str = "tokenizer.ggml.remove_extra_whitespaces";

/// How text becomes what pieces are looked for in, and back.
#[derive(Debug, Default, PartialEq)]
struct Spaces {
    /// SentencePiece's table of characters that stand for others, in base64.
    characters: Option<String>,
    /// A space goes before the text.
    prefix: bool,
    /// Runs of spaces are one, and none is at the ends.
    merged: bool,
}

impl Spaces {
    /// What the steps of a `tokenizer.json` come to.
    fn of(tokenizer: &Value) -> std::result::Result<Spaces, String> {
        let mut own = Spaces::default();
        for step in steps(&tokenizer["normalizer"], "normalizers") {
            match (step["type"].as_str(), &step["pattern"]) {
                (Some("Precompiled"), _) => own.characters = step["precompiled_charsmap"].as_str().map(String::from),
                (Some("Prepend"), _) if step["prepend"] == "▁" => own.prefix = true,
                (Some("Replace"), pattern) if pattern["String"] == " " && step["content"] == "▁" => {}
                (Some("Replace"), pattern) if pattern["Regex"] == " {2,}" => own.merged = true,
                (Some("Strip"), _) => own.merged = true,
                _ => return Err(format!("the normalizer {step}")),
            }
        }
        for step in steps(&tokenizer["pre_tokenizer"], "pretokenizers") {
            match step["type"].as_str() {
                Some("Metaspace") if step["replacement"] == "▁" => {
                    let never = step["prepend_scheme"] == "never" || step["add_prefix_space"] == false;
                    own.prefix |= !never;
                }
                Some("WhitespaceSplit") => own.merged = true,
                _ => return Err(format!("the pre-tokenizer {step}")),
            }
        }
        Ok(own)
    }

    fn read(meta: &Meta) -> Result<Spaces> {
        let bytes = meta.list(CHARACTERS)?;
        let characters = bytes.map(|all| base64(&all.into_iter().map(|b| b as i64 as u8).collect::<Vec<_>>()));
        let flag = |key: &str| meta.flag(key).map(|on| on.unwrap_or(false));
        Ok(Spaces { characters, prefix: flag(PREFIX)?, merged: flag(MERGED)? })
    }
}

fn steps<'a>(value: &'a Value, inside: &str) -> Vec<&'a Value> {
    match value {
        Value::Null => Vec::new(),
        Value::Object(step) if step.get("type").is_some_and(|t| t == "Sequence") => {
            step.get(inside).and_then(Value::as_array).into_iter().flatten().flat_map(|s| steps(s, inside)).collect()
        }
        step => vec![step],
    }
}

/// Normalizer, pre-tokenizer and decoder of a file.
pub(super) fn pipeline(meta: &Meta) -> Result<[Value; 3]> {
    let spaces = Spaces::read(meta)?;
    let mut normalizers = Vec::new();
    if let Some(characters) = &spaces.characters {
        normalizers.push(json!({"type": "Precompiled", "precompiled_charsmap": characters}));
    }
    if spaces.merged {
        normalizers.push(json!({"type": "Strip", "strip_left": true, "strip_right": true}));
        normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
    }
    let scheme = if spaces.prefix { "always" } else { "never" };
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    Ok([json!({"type": "Sequence", "normalizers": normalizers}), metaspace.clone(), metaspace])
}

/// Notes on a `tokenizer.json` with such a model, whose pieces have these texts and kinds; gives what readers of the file will do
/// otherwise.
///
/// # Errors
/// Steps for which such files have no words.
pub(super) fn describe(tokenizer: &Value, tokens: usize, notes: &mut Notes) -> Result<Option<&'static str>> {
    let spaces = Spaces::of(tokenizer).map_err(|what| {
        Error::unsupported(format!("[export_gguf] {what} of the unigram tokenizer has no words in GGUF"))
    })?;
    let model = &tokenizer["model"];
    let pieces = model["vocab"].as_array().into_iter().flatten();
    let mut scores: Vec<f32> = pieces.map(|piece| piece[1].as_f64().unwrap_or(0.0) as f32).collect();
    scores.resize(tokens, 0.0);
    notes.text("tokenizer.ggml.model", "t5");
    notes.text("tokenizer.ggml.pre", "default");
    notes.floats("tokenizer.ggml.scores", &scores)?;
    notes.flag(PREFIX, spaces.prefix)?;
    notes.flag(MERGED, spaces.merged)?;
    if let Some(text) = &spaces.characters {
        let bytes = bytes(text).ok_or_else(|| {
            Error::value("[export_gguf] tokenizer.json: precompiled_charsmap is not written in base64".to_string())
        })?;
        notes.bytes(CHARACTERS, &bytes)?;
    }
    let fallback =
        "characters that the tokenizer has no piece for are bytes here; llama.cpp reads them as the unknown token";
    Ok((model["byte_fallback"] == true).then_some(fallback))
}

/// What base64 stands for.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut word, mut held) = (Vec::new(), 0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (word, held) = (word << 6 | u32::from(six), held + 6);
        if held >= 8 {
            held -= 8;
            out.push((word >> held) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_both_ways() {
        for n in 0..9u8 {
            let all: Vec<u8> = (0..n).map(|i| i.wrapping_mul(91)).collect();
            assert_eq!(bytes(&base64(&all)), Some(all));
        }
        assert_eq!(bytes("a b"), None);
    }
}
