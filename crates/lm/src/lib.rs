//! Language models: checkpoints, tokenizers, chat templates, generation.
#![forbid(unsafe_code)]

pub mod template;
pub mod tokenizer;
