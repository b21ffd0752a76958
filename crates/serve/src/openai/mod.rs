//! OpenAI's interface.

pub(crate) mod calls;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod custom;
pub(crate) mod embeddings;
pub(crate) mod models;
pub(crate) mod rerank;
pub(crate) mod responses;
pub(crate) mod scores;
pub(crate) mod tools;
