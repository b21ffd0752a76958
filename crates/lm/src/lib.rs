//! Language models: checkpoints, tokenizers, chat templates, generation.
//!
//! [`Checkpoint`] opens a directory, [`models::load`] makes a [`Model`] of it, a [`Batch`] says which rows of a step
//! belong to which [`Sequence`].
#![forbid(unsafe_code)]

pub mod adapter;
pub mod batch;
pub mod blocks;
pub mod card;
pub mod checkpoint;
pub mod convert;
pub mod divergence;
pub mod embed;
pub mod engine;
pub mod evaluate;
pub mod fit;
pub mod fuse;
pub mod generate;
pub mod gguf;
pub mod grammar;
pub mod harness;
pub mod hub;
mod imports;
pub mod likelihood;
pub mod models;
mod nearest;
pub mod original;
pub mod partial;
pub mod prompt_cache;
pub mod quant;
pub mod reply;
pub mod sample;
pub mod template;
pub mod tokenizer;
pub mod twister;
pub mod weights;
pub mod yaml;

pub use adapter::Adapter;
pub use batch::{Batch, KvOptions, Sequence};
pub use checkpoint::Checkpoint;
pub use divergence::{Divergence, divergence};
pub use embed::{Pool, Pooling, Reading};
pub use engine::{Disk, DiskPrefixes, Drafter, Engine, Event, Finish, Prefixes, Request};
pub use generate::{Files, LanguageModel, Options, Response, Stream, load, load_with_adapter};
pub use grammar::Grammar;
pub use models::Model;
pub use nearest::nearest;
pub use original::{Formats, Original};
pub use prompt_cache::PromptCache;
pub use reply::{Part, Reply, ReplyOptions};
pub use sample::Sampling;
