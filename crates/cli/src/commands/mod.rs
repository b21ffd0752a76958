//! The commands, one file each.

pub(crate) mod awq;
pub(crate) mod benchmark;
pub(crate) mod cache;
pub(crate) mod cache_prompt;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod convert;
pub(crate) mod doctor;
pub(crate) mod dwq;
pub(crate) mod dynamic_quant;
pub(crate) mod explain;
pub(crate) mod fit;
pub(crate) mod fuse;
pub(crate) mod generate;
pub(crate) mod gptq;
pub(crate) mod logits;
pub(crate) mod lora;
pub(crate) mod man;
pub(crate) mod manage;
pub(crate) mod perplexity;
pub(crate) mod pull;
pub(crate) mod serve;
pub(crate) mod upload;
