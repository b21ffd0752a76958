//! The commands, one file each.

pub(crate) mod benchmark;
pub(crate) mod chat;
pub(crate) mod convert;
pub(crate) mod doctor;
pub(crate) mod generate;
pub(crate) mod logits;
pub(crate) mod perplexity;
