//! The server of lapis: OpenAI's and Anthropic's interfaces over one engine.
//!
//! A request goes through `http/` (who may ask, how much), a file of its interface (`openai/`, ...: its words), `service`
//! (model, template, tokens, grammar, room) to the `worker`, the one thread that computes; updates come back through a
//! channel, and the interface puts them into its own words again. Nothing here knows a kernel or an architecture.
#![forbid(unsafe_code)]

mod adapters;
mod admin;
mod anthropic;
mod dashboard;
mod desk;
mod embed;
mod error;
mod fields;
mod grammars;
mod http;
mod job;
mod log;
mod metrics;
mod models;
mod ollama;
mod openai;
mod openapi;
mod pace;
mod record;
mod reply;
mod routes;
mod sampling;
mod schemas;
mod service;
mod settings;
mod state;
mod supervise;
mod tokens;
mod watchdog;
mod web;
mod worker;

pub use http::{Address, Server};
pub use settings::{Defaults, Key, Log, ReasoningField, Settings, SharedHub, Source};
pub use supervise::{is_supervisor, supervise};
