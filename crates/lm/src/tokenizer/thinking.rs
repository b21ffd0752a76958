//! The markers a model writes around its thinking, found in its vocabulary.

use lapis::Result;

use super::Tokenizer;

/// The texts, and their ids, that begin and end thinking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Thinking {
    /// What begins thinking.
    pub start: String,
    /// What ends thinking.
    pub end: String,
    /// The ids of `start`, at least one.
    pub start_ids: Vec<u32>,
    /// The ids of `end`, at least one.
    pub end_ids: Vec<u32>,
}

/// Markers that are one token each.
const SINGLE: [(&str, &str); 6] = [
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
];

impl Thinking {
    /// The first markers that the vocabulary has.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Option<Thinking>> {
        let has = |texts: &[&str]| texts.iter().all(|text| tokenizer.token_id(text).is_some());
        for (start, end) in SINGLE {
            if let (Some(start_id), Some(end_id)) = (tokenizer.token_id(start), tokenizer.token_id(end)) {
                let (start_ids, end_ids) = (vec![start_id], vec![end_id]);
                return Ok(Some(Thinking { start: start.into(), end: end.into(), start_ids, end_ids }));
            }
        }
        let (start, end) = if has(&["<|channel>", "<channel|>"]) {
            ("<|channel>thought", "<channel|>")
        } else if has(&["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"]) {
            ("<|open|>think<|sep|>", "<|close|>think<|sep|>")
        } else {
            return Ok(None);
        };
        let (start_ids, end_ids) = (tokenizer.encode(start, false)?, tokenizer.encode(end, false)?);
        if start_ids.is_empty() || end_ids.is_empty() {
            return Ok(None);
        }
        Ok(Some(Thinking { start: start.into(), end: end.into(), start_ids, end_ids }))
    }

    /// Whether text after `prompt` is inside thinking: its last start marker comes after its last end marker.
    pub fn is_open(&self, prompt: &[u32]) -> bool {
        let last = |ids: &[u32]| prompt.windows(ids.len()).rposition(|window| window == ids);
        last(&self.start_ids).is_some_and(|start| last(&self.end_ids).is_none_or(|end| start > end))
    }
}
