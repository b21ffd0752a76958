//! `lapis serve`: answers the clients of OpenAI and Anthropic.

use crate::Manner;
use crate::model::{self, DraftArguments, KvArguments};
use lapis::{Error, Result};
use lapis_lm::embed::Pool;
use lapis_lm::engine::disk;
use lapis_serve::{Address, Defaults, Key, Log, ReasoningField, Server, Settings, Source};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Seconds of a year: nobody means more, and clocks hold it.
const YEAR: u64 = 31_536_000;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: model::Source,
    /// The host to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port; 0 takes any
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Listen on a socket file in place of TCP
    #[arg(long)]
    unix_socket: Option<PathBuf>,
    /// Speak TLS: a PEM file with the server's certificate, and those that vouch for it after it
    #[arg(long, value_name = "FILE", requires = "tls_key", conflicts_with = "unix_socket")]
    tls_cert: Option<PathBuf>,
    /// A PEM file with the certificate's private key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// A key that clients must show; others see it in the list of processes: --api-key-file or LAPIS_API_KEY is safer
    #[arg(long)]
    api_key: Option<String>,
    /// A file of keys, one a line, each with a name before a colon if it has one
    #[arg(long)]
    api_key_file: Option<PathBuf>,
    /// A file with the key of /admin
    #[arg(long)]
    admin_key_file: Option<PathBuf>,
    /// Let everybody ask who reaches --host
    #[arg(long)]
    allow_unauthenticated: bool,
    /// Further names that requests may call this host by
    #[arg(long, value_delimiter = ',')]
    allowed_host: Vec<String>,
    /// Further origins of pages that may ask; * is all
    #[arg(long, value_delimiter = ',')]
    allowed_origins: Vec<String>,
    /// A folder of further models
    #[arg(long)]
    models_dir: Option<PathBuf>,
    /// An adapter on the model, for requests that name no model: a directory of LoRA, DoRA or full weights
    #[arg(long)]
    adapter_path: Option<PathBuf>,
    /// An adapter, for requests that name it: NAME=PATH (may be given several times)
    #[arg(long)]
    lora: Vec<String>,
    /// A folder of further adapters
    #[arg(long)]
    adapters_dir: Option<PathBuf>,
    /// A request may name a model on the hub that is not here: it is fetched into the cache
    #[arg(long)]
    allow_pull: bool,
    /// Another name for a model: NAME=MODEL; a name may end in a star ('claude-*=default')
    #[arg(long)]
    alias: Vec<String>,
    /// A model that is never let go
    #[arg(long)]
    pin: Vec<String>,
    /// Loaded models at most
    #[arg(long, default_value_t = 8)]
    max_models: usize,
    /// Minutes after which an idle model is let go
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(..=YEAR))]
    model_ttl: u64,
    /// Seconds that a request waits for its model to be loaded
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(..=YEAR))]
    load_wait: u64,
    /// Prompt and reply together at most
    #[arg(long)]
    max_context: Option<usize>,
    /// Requests that may wait
    #[arg(long, default_value_t = 512)]
    queue_size: usize,
    /// Requests of one key that may run or wait
    #[arg(long, default_value_t = 32, value_name = "N")]
    max_per_key: usize,
    /// Connections at once
    #[arg(long, default_value_t = 256)]
    max_connections: usize,
    /// Seconds that a request may take
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=YEAR))]
    request_timeout: Option<u64>,
    /// Seconds that requests may take to end when the server stops
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=YEAR))]
    drain_timeout: u64,
    /// Sequences that write at once
    #[arg(long, default_value_t = 32)]
    decode_concurrency: usize,
    /// Prompts that are read at once
    #[arg(long, default_value_t = 8)]
    prompt_concurrency: usize,
    /// Tokens of prompts in a step at most
    #[arg(long, default_value_t = 2048)]
    prefill_step_size: usize,
    /// Prompts that are remembered
    #[arg(long)]
    prompt_cache_size: Option<usize>,
    /// Bytes for them, such as 2GB [default: a quarter of what weights leave]
    #[arg(long, value_parser = bytes)]
    prompt_cache_bytes: Option<u64>,
    /// Tokens between places of a prompt that are remembered, for models whose layers cannot forget tokens one by one
    #[arg(long, default_value_t = 1024, value_name = "TOKENS")]
    checkpoint_every: usize,
    /// A folder where prompts are remembered beyond a restart [default: lapis/prefixes in the user's cache]
    #[arg(long, value_name = "DIR")]
    disk_cache: Option<PathBuf>,
    /// Bytes for it, such as 20GB [default: a tenth of what is free, 32 GiB at most]
    #[arg(long, value_parser = bytes)]
    disk_cache_size: Option<u64>,
    /// Remember no prompts on disk
    #[arg(long)]
    no_disk_cache: bool,
    #[command(flatten)]
    kv: KvArguments,
    #[command(flatten)]
    draft: DraftArguments,
    /// Randomness where a request says nothing
    #[arg(long, visible_alias = "temperature")]
    temp: Option<f64>,
    /// Mass of tokens to draw from where a request says nothing
    #[arg(long)]
    top_p: Option<f64>,
    /// Number of tokens to draw from where a request says nothing
    #[arg(long)]
    top_k: Option<usize>,
    /// Least probability beside the likeliest where a request says nothing
    #[arg(long)]
    min_p: Option<f64>,
    /// Tokens to write where a request says nothing [default: what the context holds]
    #[arg(long)]
    max_tokens: Option<usize>,
    /// Sampling from the model's generation_config.json where neither request nor flags say: auto or off
    #[arg(long, default_value = "auto", value_parser = ["auto", "off"])]
    generation_config: String,
    /// How texts become vectors where the model does not say: mean, last, cls or max
    #[arg(long, value_parser = ["mean", "last", "cls", "max"])]
    pooling: Option<String>,
    /// A chat template in place of the model's: Jinja, or a file of it
    #[arg(long)]
    chat_template: Option<String>,
    /// Variables of the template, as JSON
    #[arg(long)]
    chat_template_args: Option<String>,
    /// Take chat templates from requests
    #[arg(long)]
    allow_request_template: bool,
    /// Keep the system block of Claude Code that is another one with every request; nothing of its prompts is then reused
    #[arg(long)]
    keep_billing_header: bool,
    /// Print a fingerprint of all that could change a bit of an answer (version, kernels, weights, settings), and answer with it
    #[arg(long)]
    deterministic: bool,
    /// Fields that thinking comes in: reasoning_content, reasoning, or both
    #[arg(long, default_value = "both", value_parser = ["both", "reasoning_content", "reasoning"])]
    reasoning_field: String,
    /// How the log is written: text or json
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
    /// How much is logged: DEBUG, INFO, WARNING, ERROR or CRITICAL
    #[arg(long, default_value = "INFO", ignore_case = true, value_parser = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])]
    log_level: String,
    /// Write prompts and replies to the log
    #[arg(long)]
    log_content: bool,
    /// Responses that are remembered in memory, for requests with previous_response_id
    #[arg(long, default_value_t = 0, value_name = "N")]
    response_memory: usize,
    /// No page at /
    #[arg(long)]
    no_ui: bool,
    /// Start the server again when it breaks down or stands still
    #[arg(long)]
    supervise: bool,
    /// No /metrics
    #[arg(long)]
    no_metrics: bool,
    /// Taken, without effect
    #[arg(long, hide = true)]
    use_default_chat_template: bool,
}

/// A number of bytes with a unit.
fn bytes(text: &str) -> std::result::Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let at = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let unit = match lower[at..].trim().trim_end_matches('b') {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        "ki" => 1024.0,
        "mi" => 1048576.0,
        "gi" => 1073741824.0,
        other => return Err(format!("{other:?} is no unit; KB, MB, GB, KiB, MiB, GiB are")),
    };
    let number: f64 = lower[..at].parse().map_err(|_| "a number such as 12GB is needed".to_string())?;
    Ok((number * unit) as u64)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io(format!("{}: {e}", path.display())))
}

/// Keys by lines, each with a name before a colon if it has one.
fn listed(text: &str) -> Vec<Key> {
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'));
    let key = |(i, line): (usize, &str)| {
        let (name, secret) = match line.split_once(':') {
            Some((name, secret)) => (name.trim().to_string(), secret.trim()),
            None => (format!("key {}", i + 1), line.trim()),
        };
        (!secret.is_empty()).then(|| Key { name, secret: secret.to_string() })
    };
    lines.filter_map(key).collect()
}

/// All keys that were given.
fn keys(a: &Arguments) -> Result<Vec<Key>> {
    let mut keys = Vec::new();
    if let Some(key) = &a.api_key {
        if std::env::var("LAPIS_API_KEY").ok().as_ref() != Some(key) {
            eprintln!("--api-key is seen in the list of processes; --api-key-file or LAPIS_API_KEY is not");
        }
        match key.trim() {
            "" => {}
            // A key may hold a colon; names are of use among several.
            one if one.lines().count() == 1 => keys.push(Key { name: "key 1".into(), secret: one.into() }),
            several => keys.extend(listed(several)),
        }
    }
    if let Some(path) = &a.api_key_file {
        keys.extend(listed(&read(path)?));
        if keys.is_empty() {
            return Err(Error::value(format!("{}: there is no key in it; write one a line", path.display())));
        }
    }
    Ok(keys)
}

/// The name of a model that was given by a path.
fn name(path: Option<&Path>) -> String {
    let Some(path) = path else { return "lapis-demo".into() };
    if !path.exists() {
        return path.display().to_string();
    }
    // No path is told to clients.
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    whole.file_name().map_or("model".into(), |n| n.to_string_lossy().into_owned())
}

/// Where prompts are remembered beyond a restart, and how many bytes of them.
fn disk_cache(a: &Arguments) -> Option<(PathBuf, u64)> {
    if a.no_disk_cache {
        return None;
    }
    // Locks and times of files are not to be relied on everywhere: a network is used only if it was asked for.
    let dir = a.disk_cache.clone().or_else(|| disk::default_dir().filter(|dir| !disk::is_remote(dir)))?;
    let limit = a.disk_cache_size.unwrap_or_else(|| disk::default_limit(&dir));
    Some((dir, limit))
}

fn settings(a: &Arguments, manner: Manner, limit: Option<u64>) -> Result<Settings> {
    let source = a.source.find()?.map_or(Source::Files(model::DEMO), Source::Path);
    let mut s = Settings::new(name(a.source.model.as_deref()), source);
    s.host.clone_from(&a.host);
    (s.port, s.unix_socket) = (a.port, a.unix_socket.clone());
    s.tls = a.tls_cert.clone().zip(a.tls_key.clone());
    s.keys = keys(a)?;
    s.admin_key = a.admin_key_file.as_deref().map(read).transpose()?.map(|k| k.trim().to_string());
    let loopback = a.unix_socket.is_some()
        || matches!(a.host.as_str(), "localhost" | "::1" | "[::1]")
        || a.host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
    if !loopback && s.keys.is_empty() && !a.allow_unauthenticated {
        return Err(Error::value(format!(
            "--host {} is reached from other machines, and there is no key\n  Give --api-key-file FILE or LAPIS_API_KEY, \
             or --allow-unauthenticated if everybody may ask.",
            a.host
        )));
    }
    (s.allowed_hosts, s.allowed_origins) = (a.allowed_host.clone(), a.allowed_origins.clone());
    if let Some(dir) = &a.models_dir {
        if !dir.is_dir() {
            return Err(Error::io(format!("--models-dir {} is no directory", dir.display())));
        }
        s.models_dir = Some(dir.clone());
    }
    if let Some(dir) = &a.adapters_dir {
        if !dir.is_dir() {
            return Err(Error::io(format!("--adapters-dir {} is no directory", dir.display())));
        }
        s.adapters_dir = Some(dir.clone());
    }
    for lora in &a.lora {
        let pair = lora.split_once('=').filter(|(n, p)| !n.is_empty() && !p.is_empty());
        let (name, path) = pair.ok_or_else(|| Error::value(format!("--lora {lora}: NAME=PATH is needed")))?;
        s.adapters.push((name.into(), path.into()));
    }
    if let Some(path) = &a.adapter_path {
        let name = name(Some(path)).trim_start_matches('.').replace([':', '/'], "-");
        s.adapters.push((name.clone(), path.clone()));
        s.default_adapter = Some(name);
    }
    // Without a home there is no cache to look into.
    (s.hub, s.allow_pull) = (a.source.hub.hub().ok().map(Arc::new), a.allow_pull);
    for alias in &a.alias {
        let pair = alias.split_once('=').filter(|(n, m)| !n.is_empty() && !m.is_empty());
        let (name, model) = pair.ok_or_else(|| Error::value(format!("--alias {alias}: NAME=MODEL is needed")))?;
        s.aliases.push((name.into(), model.into()));
    }
    s.pins.clone_from(&a.pin);
    (s.max_models, s.model_ttl) = (a.max_models.max(1), Duration::from_secs(60 * a.model_ttl));
    s.load_wait = Duration::from_secs(a.load_wait);
    s.max_context = a.max_context;
    s.memory_limit = limit.unwrap_or(s.memory_limit);
    (s.queue_size, s.max_connections) = (a.queue_size, a.max_connections.max(1));
    (s.per_key, s.checkpoint_every) = (a.max_per_key.max(1), a.checkpoint_every.max(1));
    (s.keep_billing, s.deterministic) = (a.keep_billing_header, a.deterministic);
    s.request_timeout = a.request_timeout.map(Duration::from_secs);
    s.drain_timeout = Duration::from_secs(a.drain_timeout);
    (s.decode_concurrency, s.prompt_concurrency) = (a.decode_concurrency.max(1), a.prompt_concurrency.max(1));
    s.prefill_step = a.prefill_step_size.max(1);
    s.prompt_cache_size = a.prompt_cache_size.unwrap_or(if manner == Manner::Mlx { 10 } else { s.prompt_cache_size });
    s.prompt_cache_bytes = a.prompt_cache_bytes.unwrap_or(0);
    s.disk_cache = disk_cache(a);
    s.kv = a.kv.options()?;
    s.sampling = Defaults { temperature: a.temp, top_p: a.top_p, top_k: a.top_k, min_p: a.min_p };
    if manner == Manner::Mlx {
        let d = &mut s.sampling;
        (d.temperature, d.top_p) = (d.temperature.or(Some(0.0)), d.top_p.or(Some(1.0)));
        (d.top_k, d.min_p) = (d.top_k.or(Some(0)), d.min_p.or(Some(0.0)));
    }
    s.from_model = a.generation_config == "auto";
    s.max_tokens = a.max_tokens.or(model::default_max_tokens(manner, 512));
    s.pooling = a.pooling.as_deref().and_then(Pool::named);
    s.chat_template = model::template(a.chat_template.as_deref())?.map(|t| t.source().to_string());
    s.template_args = model::object("--chat-template-args", a.chat_template_args.as_deref())?;
    s.request_template = a.allow_request_template;
    s.reasoning_field = match a.reasoning_field.as_str() {
        "reasoning_content" => ReasoningField::Content,
        "reasoning" => ReasoningField::Plain,
        _ => ReasoningField::Both,
    };
    let quiet = ["WARNING", "ERROR", "CRITICAL"].iter().any(|l| a.log_level.eq_ignore_ascii_case(l));
    s.log = match (quiet, a.log_format.as_str()) {
        (true, _) => Log::Off,
        (_, "json") => Log::Json,
        _ => Log::Text,
    };
    (s.ui, s.metrics) = (!a.no_ui, !a.no_metrics);
    (s.log_content, s.response_memory) = (a.log_content, a.response_memory);
    if let Some(drafter) = a.draft.drafter(&a.source.hub)? {
        s.drafter = Some((drafter, a.draft.num_draft_tokens));
    }
    Ok(s)
}

/// Serves; `limit` bounds weights and all that is remembered.
pub(crate) fn run(a: Arguments, manner: Manner, limit: Option<u64>) -> Result<u8> {
    if a.supervise && lapis_serve::is_supervisor() {
        return lapis_serve::supervise();
    }
    let settings = settings(&a, manner, limit)?;
    let (keys, limit, model) = (settings.keys.len(), settings.memory_limit, settings.model.0.clone());
    let server = Server::start(settings)?;
    banner(&server, &model, keys, limit);
    Ok(server.until_signalled())
}

/// Where the server is, and how it is asked.
fn banner(server: &Server, model: &str, keys: usize, limit: u64) {
    let human = lapis::io::atomic::human;
    let mut first = None;
    let scheme = if server.service.settings.tls.is_some() { "https" } else { "http" };
    for address in &server.addresses {
        let (shown, flag) = match address {
            Address::Tcp(a) => (format!("{scheme}://{a}"), format!("{scheme}://{a}/v1/chat/completions")),
            Address::Unix(path) => {
                let path = path.display();
                (format!("unix:{path}"), format!("--unix-socket {path} http://localhost/v1/chat/completions"))
            }
        };
        eprintln!("lapis listens on {shown}");
        first.get_or_insert(flag);
    }
    let locked = match keys {
        0 => "none: whoever reaches it may ask".into(),
        n => format!("{n}"),
    };
    // A model that is yet to be fetched is not known.
    let known = server.service.models.listing("").ok().filter(|m| m.bytes > 0);
    let about = known.map_or(String::new(), |m| {
        let packed = m.quantization.map_or(String::new(), |q| format!(" · {q}"));
        let context = m.context.map_or(String::new(), |n| format!(" · context {n}"));
        format!("{packed}{context} · weights {}", human(m.bytes))
    });
    eprintln!("model {model}{about} · memory {} · keys {locked}", human(limit));
    match &server.service.disk {
        Some(cache) => {
            let (dir, used) = (cache.dir().display(), disk::usage(cache.dir()).bytes);
            eprintln!("prompts are remembered in {dir} · {} of {}", human(used), human(cache.limit()));
        }
        None => eprintln!("prompts are not remembered on disk"),
    }
    if let Some(url) = first {
        let key = if keys > 0 { " -H 'Authorization: Bearer KEY'" } else { "" };
        eprintln!(
            "\n  curl {url}{key} -H 'Content-Type: application/json' \\\n    -d '{{\"messages\": [{{\"role\": \"user\", \
             \"content\": \"Tell me a story about a fox\"}}]}}'\n"
        );
    }
}
