//! What a server may be told.

use lapis_lm::embed::Pool;
use lapis_lm::hub::{Hub, Name};
use lapis_lm::{Drafter, Files, KvOptions};
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::time::Duration;

/// Where a model comes from.
#[derive(Clone)]
pub enum Source {
    /// Inside the program.
    Files(Files),
    /// A directory or a GGUF file.
    Path(PathBuf),
    /// On the hub: it is fetched into the cache first.
    Hub(Name),
}

/// A key that clients show.
#[derive(Clone)]
pub struct Key {
    /// What logs and metrics call it.
    pub name: String,
    /// The key.
    pub secret: String,
}

/// All settings of a server.
#[derive(Clone)]
pub struct Settings {
    /// The host to listen on; `localhost` and `127.0.0.1` mean both loopback addresses.
    pub host: String,
    /// The port; 0 takes any.
    pub port: u16,
    /// A Unix socket to listen on in place of TCP.
    pub unix_socket: Option<PathBuf>,
    /// TLS on the port: files of the certificates and of their key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The model that is loaded at the start, and its name.
    pub model: (String, Source),
    /// Further names for models.
    pub aliases: Vec<(String, String)>,
    /// Models that are never let go.
    pub pins: Vec<String>,
    /// A folder of further models.
    pub models_dir: Option<PathBuf>,
    /// Adapters that are loaded at the start: names and directories.
    pub adapters: Vec<(String, PathBuf)>,
    /// A folder of further adapters.
    pub adapters_dir: Option<PathBuf>,
    /// The adapter, of those, of requests that name no model.
    pub default_adapter: Option<String>,
    /// The cache of downloads whose models may be named.
    pub hub: Option<SharedHub>,
    /// A request may name a model on the hub that is not in the cache; it is fetched.
    pub allow_pull: bool,
    /// Loaded models at most.
    pub max_models: usize,
    /// How long a model may be idle.
    pub model_ttl: Duration,
    /// How long a request waits for its model to be loaded.
    pub load_wait: Duration,
    /// Prompt and reply together at most.
    pub max_context: Option<usize>,
    /// Bytes for weights and what is remembered.
    pub memory_limit: u64,
    /// Keys; with none, everybody is let in.
    pub keys: Vec<Key>,
    /// The key of `/admin`.
    pub admin_key: Option<String>,
    /// Names that a request may call this host by, beside the safe ones.
    pub allowed_hosts: Vec<String>,
    /// Origins of pages that may ask, beside the safe ones.
    pub allowed_origins: Vec<String>,
    /// Requests that may wait.
    pub queue_size: usize,
    /// Requests of one key that may run or wait; without keys there is no such limit.
    pub per_key: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// How long a request may take.
    pub request_timeout: Option<Duration>,
    /// How long requests may take to end when the server stops.
    pub drain_timeout: Duration,
    /// How long a body may stand still.
    pub body_stall: Duration,
    /// Tokens of a reply that has no bound for which room is set aside at a time.
    pub open_tokens: usize,
    /// Sequences that write at once.
    pub decode_concurrency: usize,
    /// Prompts that are read at once.
    pub prompt_concurrency: usize,
    /// Tokens of prompts in a step at most.
    pub prefill_step: usize,
    /// Prompts that are remembered at most.
    pub prompt_cache_size: usize,
    /// Tokens between places of a prompt that are kept where layers cannot forget tokens one by one.
    pub checkpoint_every: usize,
    /// Bytes for remembered prompts.
    pub prompt_cache_bytes: u64,
    /// A folder where prompts are remembered beyond the process, and bytes for it.
    pub disk_cache: Option<(PathBuf, u64)>,
    /// How keys and values are remembered.
    pub kv: KvOptions,
    /// Who guesses what comes next, and how many tokens at a time.
    pub drafter: Option<(Drafter, usize)>,
    /// Sampling where a request says nothing: temperature, top_p, top_k, min_p.
    pub sampling: Defaults,
    /// Take sampling from generation_config.json where neither request nor flags say.
    pub from_model: bool,
    /// Tokens to write where a request does not say.
    pub max_tokens: Option<usize>,
    /// How texts become vectors where the model does not say.
    pub pooling: Option<Pool>,
    /// A chat template in place of the model's.
    pub chat_template: Option<String>,
    /// Variables of the template.
    pub template_args: Map<String, Value>,
    /// Requests may bring a template.
    pub request_template: bool,
    /// Keep the system block that Claude Code changes with every request.
    pub keep_billing: bool,
    /// Fingerprints of answers stand for all that could change a bit of them.
    pub deterministic: bool,
    /// Which fields thinking comes in: `reasoning_content`, `reasoning`, or both.
    pub reasoning_field: ReasoningField,
    /// Responses of `/v1/responses` that are remembered, for requests that go on with them.
    pub response_memory: usize,
    /// Write prompts and replies to the log.
    pub log_content: bool,
    /// Lines of the log.
    pub log: Log,
    /// The page at `/`.
    pub ui: bool,
    /// `/metrics`.
    pub metrics: bool,
}

/// A hub whose cache is looked into.
pub type SharedHub = std::sync::Arc<Hub>;

/// Sampling where a request says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Defaults {
    /// Randomness.
    pub temperature: Option<f64>,
    /// Mass of tokens to draw from.
    pub top_p: Option<f64>,
    /// Number of tokens to draw from.
    pub top_k: Option<usize>,
    /// Least probability beside the likeliest.
    pub min_p: Option<f64>,
}

/// Which fields thinking comes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReasoningField {
    /// Both.
    Both,
    /// `reasoning_content`.
    Content,
    /// `reasoning`.
    Plain,
}

/// Lines of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Log {
    /// None but faults.
    Off,
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Settings {
    /// The defaults for a model.
    pub fn new(name: impl Into<String>, source: Source) -> Settings {
        Settings {
            host: "127.0.0.1".into(),
            port: 8080,
            unix_socket: None,
            tls: None,
            model: (name.into(), source),
            aliases: Vec::new(),
            pins: Vec::new(),
            models_dir: None,
            adapters: Vec::new(),
            adapters_dir: None,
            default_adapter: None,
            hub: None,
            allow_pull: false,
            max_models: 8,
            model_ttl: Duration::from_secs(3600),
            load_wait: Duration::from_secs(60),
            max_context: None,
            memory_limit: lapis_lm::fit::available() / 10 * 9,
            keys: Vec::new(),
            admin_key: None,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            queue_size: 512,
            per_key: 32,
            max_connections: 256,
            request_timeout: None,
            body_stall: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            open_tokens: 4096,
            decode_concurrency: 32,
            prompt_concurrency: 8,
            prefill_step: 2048,
            prompt_cache_size: 64,
            checkpoint_every: 1024,
            prompt_cache_bytes: 0,
            disk_cache: None,
            kv: KvOptions::default(),
            drafter: None,
            sampling: Defaults::default(),
            from_model: true,
            max_tokens: None,
            pooling: None,
            chat_template: None,
            template_args: Map::new(),
            request_template: false,
            keep_billing: false,
            deterministic: false,
            reasoning_field: ReasoningField::Both,
            response_memory: 0,
            log_content: false,
            log: Log::Text,
            ui: true,
            metrics: true,
        }
    }
}
