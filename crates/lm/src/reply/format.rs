//! The formats in which models write calls: which one a model uses, and what reads it.

use super::Calls;
use super::objects::{Objects, Rules};
use crate::tokenizer::Tokenizer;

/// How a model writes calls of tools.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `<tool_call>{"name": ..., "arguments": ...}</tool_call>`: Hermes, Qwen and many others.
    JsonTools,
}

impl Format {
    /// The format of a model: what `tool_parser_type` in tokenizer_config.json says, else what the chat template shows,
    /// else what the vocabulary has.
    pub fn of(tokenizer: &Tokenizer) -> Option<Format> {
        let template = tokenizer.template_sources();
        if template.iter().any(|t| t.contains("<tool_call>")) {
            return Some(Format::JsonTools);
        }
        None
    }

    /// Markers that calls begin with.
    pub(super) fn begins(&self) -> &'static [&'static str] {
        &["<tool_call>"]
    }

    /// Markers that say nothing to a reader.
    pub(super) fn silent(&self) -> &'static [&'static str] {
        &[]
    }

    /// What reads the calls after a marker.
    pub(super) fn calls(self, _marker: &str) -> Box<dyn Calls> {
        Box::new(Objects::new(&HERMES))
    }

    /// What a call begins with that stands at the beginning of a reply without a marker, and what reads it.
    pub(super) fn bare(self) -> Option<(&'static str, Box<dyn Calls>)> {
        None
    }
}

static HERMES: Rules = Rules { end: &["</tool_call>"], between: &[], head: None, bare: false, holds: false };
