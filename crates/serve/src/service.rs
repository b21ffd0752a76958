//! From what a client asks to a job for the engine: names, templates, tokens, grammars, limits.
//!
//! Every interface makes an [`Ask`] of its own words and gets a [`Ticket`]; nothing behind here knows which interface it
//! was. What takes time happens on a thread of its own and never on the engine's.

use crate::error::ApiError;
use crate::grammars::Grammars;
use crate::http::request::Call;
use crate::job::{InUse, Job, Update};
use crate::metrics::Metrics;
use crate::models::{Loaded, Models};
use crate::openai::responses::Memory;
use crate::record::Record;
use crate::settings::{Log, Settings};
use crate::worker::Command;
use lapis::Error;
use lapis_lm::engine::common;
use lapis_lm::reply::ReplyOptions;
use lapis_lm::template::{Chat, Template};
use lapis_lm::tokenizer::Templates;
use lapis_lm::{Disk, Sampling};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc as sync};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};

/// What is to be continued.
#[derive(Clone)]
pub enum Prompt {
    /// A conversation.
    Chat {
        /// Messages in OpenAI's form.
        messages: Value,
        /// Variables of the template.
        keywords: Map<String, Value>,
        /// A template in place of the model's.
        template: Option<String>,
        /// The last message is gone on with.
        continued: bool,
    },
    /// A text.
    Text(String),
    /// Tokens.
    Tokens(Vec<u32>),
}

/// Whether tools are called.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    /// Never: the model does not hear of tools.
    None,
    /// One at least.
    Required,
    /// This one.
    Named(String),
}

/// Numbers that choose tokens; what is absent is the model's or the server's default.
#[derive(Clone, Default)]
pub struct Wishes {
    /// Randomness.
    pub temperature: Option<f64>,
    /// Mass of tokens to draw from.
    pub top_p: Option<f64>,
    /// Number of tokens to draw from.
    pub top_k: Option<usize>,
    /// Least probability beside the likeliest.
    pub min_p: Option<f64>,
    /// Seed of the draws.
    pub seed: Option<u64>,
    /// The rest, as it is.
    pub rest: Sampling,
}

/// What a client asks for.
#[derive(Clone, Default)]
pub struct Ask {
    /// A name of a model.
    pub model: String,
    /// A name of an adapter on it.
    pub adapter: Option<String>,
    /// What is to be continued.
    pub prompt: Option<Prompt>,
    /// Tokens at most.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub wishes: Wishes,
    /// Texts that end a reply.
    pub stop: Vec<String>,
    /// Replies.
    pub n: usize,
    /// Likeliest tokens to tell of, where log-probabilities are wanted.
    pub top: Option<usize>,
    /// Score the prompt, and tell of so many of the likeliest tokens at each of its places.
    pub scores: Option<usize>,
    /// `response_format`.
    pub format: Option<Value>,
    /// Tools in OpenAI's form.
    pub tools: Vec<Value>,
    /// What inputs of some of them are held to, by name.
    pub grammars: BTreeMap<String, InputGrammar>,
    /// Whether they are called.
    pub tool_choice: ToolChoice,
    /// One call at most.
    pub single_call: bool,
    /// Tokens of thinking at most.
    pub thinking: Option<usize>,
    /// How long the model is to stay loaded without work, in place of what the server was told.
    pub ttl: Option<Duration>,
    /// Narrows what is shared with other requests of the same key.
    pub salt: String,
    /// A further prompt of a request that is counted already.
    pub further: bool,
}

/// A grammar of a tool's one argument, in Lark's syntax.
#[derive(Clone, Debug)]
pub struct InputGrammar {
    /// Its text.
    pub definition: String,
    /// Where it stood in the request.
    pub at: String,
}

/// Whose request it is.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    /// Number of the key; 0 where there are none.
    pub number: u64,
    /// Its name.
    pub name: String,
}

/// A job that was taken: its updates. Dropping it cancels the job.
pub(crate) struct Ticket {
    /// The model.
    pub model: Arc<Loaded>,
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// The seed of the draws.
    pub seed: u64,
    /// When the request came.
    pub came: Instant,
    /// Tokens of a reply at most.
    pub max_tokens: usize,
    /// What was asked for and is not held to.
    pub warnings: Vec<String>,
    record: Arc<Record>,
    updates: mpsc::Receiver<Update>,
    guard: Guard,
    /// When it is given up.
    until: Option<tokio::time::Instant>,
}

/// Cancels a job unless it is over.
pub(crate) struct Guard {
    id: u64,
    over: bool,
    service: Arc<Service>,
    /// Whose requests it is counted among.
    owner: Option<u64>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.over {
            let _ = self.service.commands.send(Command::Cancel(self.id));
        }
        let Some(owner) = self.owner else { return };
        let mut owners = self.service.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = owners.get_mut(&owner) {
            *n -= 1;
            if *n == 0 {
                owners.remove(&owner);
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.guard.over {
            self.record.left();
        }
    }
}

impl Ticket {
    /// The next update; an error when the job has come to grief.
    ///
    /// # Errors
    /// What the job came to grief of.
    pub(crate) async fn next(&mut self) -> Result<Update, ApiError> {
        let update = match self.until {
            None => self.updates.recv().await,
            // First of all: a reader that is slow must not have more time.
            Some(until) => tokio::select! {
                biased;
                () = tokio::time::sleep_until(until) => {
                    let error = late(until.into_std().duration_since(self.came));
                    self.record.failed(&error);
                    return Err(error);
                }
                update = self.updates.recv() => update,
            },
        };
        let error = match update {
            Some(Update::Failed(error)) => {
                self.guard.over = true;
                error
            }
            Some(update) => return Ok(update),
            None => {
                let why = "the reply was given up: its reader was too slow, or the server stops";
                ApiError::later(503, 5, why).code("given_up")
            }
        };
        self.record.failed(&error);
        Err(error)
    }

    /// All replies are over.
    pub(crate) fn finished(&mut self) {
        self.guard.over = true;
    }
}

/// Takes what is asked for.
pub struct Service {
    /// Its settings.
    pub settings: Arc<Settings>,
    /// Its models.
    pub models: Arc<Models>,
    /// Its numbers.
    pub metrics: Arc<Metrics>,
    /// Where prompts are remembered beyond the process.
    pub disk: Option<Arc<Disk>>,
    /// Where the engine listens.
    pub commands: sync::Sender<Command>,
    /// Responses that may be gone on with.
    pub(crate) responses: Arc<Memory>,
    /// No new work is taken.
    pub draining: AtomicBool,
    /// Whose turn it is to have a slice of an embedding computed.
    pub(crate) slices: Semaphore,
    next: AtomicU64,
    owners: Mutex<HashMap<u64, usize>>,
    grammars: Grammars,
    /// What systems were told of late, as tokens, by model and text.
    systems: Mutex<Vec<((u64, String), Vec<u32>)>>,
}

/// A conversation by what stands before and after the words of each role.
const ROLES: &str = "{% for m in messages %}{{ role_mapping[m.role] | default('') }}{{ m.content or '' }}\
    {{ role_mapping['stop'] | default('') }}{% endfor %}\
    {% if add_generation_prompt %}{{ role_mapping['assistant'] | default('') | trim }}{% endif %}";

/// What systems were told is kept of so many.
const SYSTEMS: usize = 16;

/// Updates that may wait for a client.
const UPDATES: usize = 1 << 16;

/// A number that nobody can foresee.
pub(crate) fn random() -> u64 {
    use ring::rand::{SecureRandom, SystemRandom};
    let mut bytes = [0; 8];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => std::time::UNIX_EPOCH.elapsed().map_or(1, |d| d.as_nanos() as u64),
    }
}

/// A name that nothing else has.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}{:016x}{:08x}", random(), random() as u32)
}

impl Service {
    /// A service of some settings, and an engine that listens.
    pub fn new(
        settings: Arc<Settings>,
        models: Arc<Models>,
        metrics: Arc<Metrics>,
        disk: Option<Arc<Disk>>,
        commands: sync::Sender<Command>,
    ) -> Service {
        Service {
            responses: Arc::new(Memory::new(settings.response_memory)),
            settings,
            models,
            metrics,
            disk,
            commands,
            draining: AtomicBool::new(false),
            slices: Semaphore::new(1),
            next: AtomicU64::new(1),
            owners: Mutex::default(),
            grammars: Grammars::default(),
            systems: Mutex::default(),
        }
    }

    /// Prompts of other keys, or with another salt, are never shared. It is the same after a restart, wherever the key
    /// then stands among others.
    fn salt(&self, owner: u64, salt: &str) -> u64 {
        let key = usize::try_from(owner).ok().and_then(|n| self.settings.keys.get(n.checked_sub(1)?));
        let secret = ring::digest::digest(&ring::digest::SHA256, key.map_or("", |k| &k.secret).as_bytes());
        let digest = ring::digest::digest(
            &ring::digest::SHA256,
            &[&b"lapis prompts"[..], &[u8::from(key.is_some())], secret.as_ref(), salt.as_bytes()].concat(),
        );
        u64::from_le_bytes(digest.as_ref()[..8].try_into().unwrap_or_default())
    }

    pub(crate) fn draining(&self) -> Result<(), ApiError> {
        match self.draining.load(Relaxed) {
            true => Err(ApiError::stopping()),
            false => Ok(()),
        }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// What is wrong with it; a queue that is full.
    pub(crate) async fn submit(self: &Arc<Service>, mut ask: Ask, call: &Call) -> Result<Ticket, ApiError> {
        self.draining()?;
        let model = InUse::new(self.loaded(&ask).await?);
        if !model.0.model.writes {
            return Err(silent(&model.0.id));
        }
        if ask.ttl.is_some() {
            *model.0.ttl.lock().unwrap_or_else(PoisonError::into_inner) = ask.ttl;
        }
        let (owner, came) = (&call.owner, call.record.came);
        let guard = if ask.further { self.guard(None) } else { self.enter(owner)? };
        let (service, salt) = (Arc::clone(self), self.salt(owner.number, &ask.salt));
        let (number, record) = (owner.number, Arc::clone(&call.record));
        let (job, updates, warnings) = blocking(move || {
            let loaded = Arc::clone(&model.0);
            let prompt = service.prompt(&loaded, &ask)?;
            let system = service.system(&loaded, &ask, &prompt);
            let max_tokens = service.room(&loaded, prompt.len(), ask.max_tokens)?;
            let sampling = service.sampling(&loaded, &ask.wishes)?;
            let told = |time: Duration, warnings: &[String]| {
                service.metrics.grammar_time.observe(time.as_secs_f64());
                for warning in warnings.iter().filter(|_| service.settings.log != Log::Off) {
                    crate::log::line(&format!("{}: {}", record.id, warning.escape_default()));
                }
            };
            let held = service.grammars.of(&loaded, &ask, told)?;
            let (grammar, warnings) = held.map(|h| (h.grammar, h.warnings)).unzip();
            let (sender, updates) = mpsc::channel(UPDATES);
            let (raw, goes_on) = match &ask.prompt {
                Some(Prompt::Chat { continued, .. }) => (false, *continued),
                _ => (true, true),
            };
            let tools = if ask.tool_choice == ToolChoice::None { Vec::new() } else { std::mem::take(&mut ask.tools) };
            let reply =
                ReplyOptions { stop: std::mem::take(&mut ask.stop), tools, single_call: ask.single_call, raw, goes_on };
            let job = Job {
                model,
                prompt,
                system,
                n: ask.n.max(1),
                max_tokens,
                sampling,
                top: ask.top.unwrap_or(0),
                scores: ask.scores,
                grammar,
                reply,
                thinking: ask.thinking,
                owner: number,
                record,
                salt,
                updates: sender,
            };
            Ok((job, updates, warnings))
        })
        .await?;
        job.record.asks(&job.model.0.id, job.prompt.len());
        let ticket = Ticket {
            record: Arc::clone(&job.record),
            model: Arc::clone(&job.model.0),
            prompt: job.prompt.clone(),
            seed: job.sampling.seed,
            max_tokens: job.max_tokens,
            warnings: warnings.as_deref().unwrap_or_default().to_vec(),
            came,
            updates,
            guard,
            until: self.settings.request_timeout.and_then(|limit| came.checked_add(limit)).map(Into::into),
        };
        let queued = self.metrics.queued.fetch_add(1, Relaxed);
        if queued >= self.settings.queue_size {
            self.metrics.queued.fetch_sub(1, Relaxed);
            let most = self.settings.queue_size;
            return Err(
                ApiError::later(429, 2, format!("{most} requests wait already; try again later")).code("queue_full")
            );
        }
        if self.commands.send(Command::Run(ticket.guard.id, Box::new(job))).is_err() {
            return Err(ApiError::stopping());
        }
        Ok(ticket)
    }

    /// The model of a request, loaded first if it is not. What its small files say against the prompt is said before that.
    ///
    /// # Errors
    /// A name that there is not; a model that cannot be loaded, writes no text, or has no template for a conversation.
    pub(crate) async fn loaded(self: &Arc<Service>, ask: &Ask) -> Result<Arc<Loaded>, ApiError> {
        if let Some(prompt) = &ask.prompt
            && let Some(path) = self.models.asleep(&ask.model)
        {
            let bare = match prompt {
                Prompt::Chat { template, keywords, .. } => template.is_none() && !keywords.contains_key("role_mapping"),
                _ => false,
            };
            let by_model = bare && self.settings.chat_template.is_none();
            let (name, tools) = (ask.model.clone(), offers(ask));
            blocking(move || {
                let config = lapis_lm::checkpoint::read_object(&path.join("config.json")).unwrap_or_default();
                if lapis_lm::models::is_encoder(&config) {
                    return Err(silent(&name));
                }
                // Files that cannot be read are told of as what keeps the model from being loaded.
                match Templates::load(&path) {
                    Ok(all) if by_model => all.get(tools).map(drop).map_err(untold),
                    _ => Ok(()),
                }
            })
            .await?;
        }
        self.models.get_with(&ask.model, ask.adapter.as_deref()).await
    }

    /// Counts a request of an owner.
    pub(crate) fn enter(self: &Arc<Service>, owner: &Owner) -> Result<Guard, ApiError> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let count = owners.entry(owner.number).or_default();
        if owner.number > 0 && *count >= self.settings.per_key {
            let most = self.settings.per_key;
            return Err(
                ApiError::later(429, 2, format!("{most} requests of this key run or wait already")).code("key_limit")
            );
        }
        *count += 1;
        Ok(self.guard(Some(owner.number)))
    }

    fn guard(self: &Arc<Service>, owner: Option<u64>) -> Guard {
        Guard { id: self.next.fetch_add(1, Relaxed), over: false, service: Arc::clone(self), owner }
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// A template that refuses the messages, an empty prompt, tokens that there are not.
    pub fn prompt(&self, loaded: &Loaded, ask: &Ask) -> Result<Vec<u32>, ApiError> {
        let model = &loaded.model;
        let tokens = match &ask.prompt {
            None => return Err(ApiError::field("prompt", "prompt is missing")),
            Some(Prompt::Text(text)) => model.tokenizer.encode_prompt(text)?,
            Some(Prompt::Tokens(tokens)) => tokens.clone(),
            Some(Prompt::Chat { .. }) => {
                let text = self.chat_text(loaded, ask, true)?;
                model.tokenizer.encode(&text, false)?
            }
        };
        let wrong = |what: String| Err(ApiError::field("prompt", what));
        if tokens.is_empty() {
            return wrong("the prompt is empty".into());
        }
        match tokens.iter().find(|&&t| t as usize >= model.vocabulary) {
            Some(t) => wrong(format!("token {t} is beyond the model's vocabulary of {}", model.vocabulary)),
            None => Ok(tokens),
        }
    }

    /// Tokens at the beginning of a prompt that are what the system is told, and the tools: what the next turn begins
    /// with, whatever is said in it.
    fn system(&self, loaded: &Loaded, ask: &Ask, prompt: &[u32]) -> usize {
        let Some(Prompt::Chat { messages, keywords, template, .. }) = &ask.prompt else { return 0 };
        let list = messages.as_array().map_or(&[][..], Vec::as_slice);
        let told = |m: &&Value| matches!(m.get("role").and_then(Value::as_str), Some("system" | "developer"));
        let count = list.iter().take_while(told).count();
        if count == 0 || count == list.len() {
            return 0;
        }
        let key = (loaded.serial, json!([list[..count], ask.tools, keywords, template]).to_string());
        let known = |all: &mut Vec<((u64, String), Vec<u32>)>| {
            let at = all.iter().position(|(k, _)| *k == key)?;
            let entry = all.remove(at);
            all.push(entry);
            all.last().map(|(_, tokens)| common(prompt, tokens))
        };
        let all = || self.systems.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = known(&mut all()) {
            return n;
        }
        let alone = Prompt::Chat {
            messages: list[..count].into(),
            keywords: keywords.clone(),
            template: template.clone(),
            continued: false,
        };
        let (tools, tool_choice) = (ask.tools.clone(), ask.tool_choice.clone());
        let alone = Ask { prompt: Some(alone), tools, tool_choice, ..Ask::default() };
        // A template that does not take a system alone has none.
        let text = self.chat_text(loaded, &alone, false).unwrap_or_default();
        let tokens = loaded.model.tokenizer.encode(&text, false).unwrap_or_default();
        let n = common(prompt, &tokens);
        let mut all = all();
        all.push((key, tokens));
        if all.len() > SYSTEMS {
            all.remove(0);
        }
        n
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// A template that refuses the messages.
    pub fn chat_text(&self, loaded: &Loaded, ask: &Ask, reply: bool) -> Result<String, ApiError> {
        let Some(Prompt::Chat { messages, keywords, template, continued }) = &ask.prompt else {
            return Err(ApiError::field("messages", "messages is missing"));
        };
        let bare = loaded.model.tokenizer.template().is_none() && keywords.contains_key("role_mapping");
        let own = match template {
            None => bare.then(|| Template::new(ROLES)).transpose()?,
            Some(_) if !self.settings.request_template => {
                let why = "chat_template is taken only by a server that was started with --allow-request-template";
                return Err(ApiError::field("chat_template", why));
            }
            Some(source) => Some(Template::new(source).map_err(|e| ApiError::field("chat_template", e.message()))?),
        };
        let mut variables = self.settings.template_args.clone();
        variables.extend(keywords.clone());
        let tools = Value::Array(ask.tools.clone());
        let chat = Chat {
            messages,
            tools: offers(ask).then_some(&tools),
            add_generation_prompt: reply && !continued,
            continue_final_message: *continued,
            keywords: Some(&variables),
            ..Chat::default()
        };
        loaded.model.chat_text(&chat, own.as_ref()).map_err(untold)
    }

    /// Tokens of a reply at most.
    fn room(&self, loaded: &Loaded, prompt: usize, asked: Option<usize>) -> Result<usize, ApiError> {
        let context = loaded.context;
        if prompt > context || prompt == context && asked != Some(0) {
            let why = format!("the prompt has {prompt} tokens, and the model's context is {context}: shorten it");
            return Err(ApiError::field("messages", why).code("context_length_exceeded"));
        }
        let room = asked.or(self.settings.max_tokens).unwrap_or(usize::MAX).min(context - prompt);
        let need = loaded.fit.remembered(prompt) + loaded.fit.working + loaded.bytes();
        if need > self.settings.memory_limit {
            let human = lapis::io::atomic::human;
            let (need, limit) = (human(need), human(self.settings.memory_limit));
            return Err(ApiError::field("messages", format!("the prompt needs {need} of memory; there is {limit}")));
        }
        Ok(room)
    }

    fn sampling(&self, loaded: &Loaded, wishes: &Wishes) -> Result<Sampling, ApiError> {
        let generation = &loaded.model.generation;
        let own = |key: &str| generation.get(key).and_then(Value::as_f64).filter(|_| self.settings.from_model);
        let greedy = self.settings.from_model && generation.get("do_sample") == Some(&json!(false));
        let flags = &self.settings.sampling;
        let temperature = wishes.temperature.or(flags.temperature).or(if greedy { None } else { own("temperature") });
        let vocabulary = loaded.model.vocabulary;
        let mut xtc_keep: Vec<u32> = Vec::new();
        if wishes.rest.xtc_probability > 0.0 {
            xtc_keep = loaded.model.eos.iter().copied().collect();
            xtc_keep.extend(loaded.model.tokenizer.encode("\n", false)?);
        }
        let sampling = Sampling {
            temperature: temperature.unwrap_or(0.0),
            top_p: wishes.top_p.or(flags.top_p).or(own("top_p")).unwrap_or(1.0),
            top_k: wishes.top_k.or(flags.top_k).or(own("top_k").map(|k| k as usize)).unwrap_or(0).min(vocabulary),
            min_p: wishes.min_p.or(flags.min_p).or(own("min_p")).unwrap_or(0.0),
            seed: wishes.seed.unwrap_or_else(random),
            xtc_keep,
            ..wishes.rest.clone()
        };
        if let Some(id) = sampling.logit_bias.keys().find(|&&id| id as usize >= vocabulary) {
            let why = format!("logit_bias names token {id}, and the model has {vocabulary}");
            return Err(ApiError::field("logit_bias", why));
        }
        sampling.check(vocabulary)?;
        Ok(sampling)
    }
}

/// Whether the model hears of tools.
fn offers(ask: &Ask) -> bool {
    !ask.tools.is_empty() && ask.tool_choice != ToolChoice::None
}

/// A conversation that cannot be put into words for the model: whatever a template stumbles over was in the request.
fn untold(error: Error) -> ApiError {
    let error = ApiError::from(error);
    ApiError { status: if error.status == 500 { 400 } else { error.status }, ..error }.about("messages")
}

/// What is told who asks a model for text that writes none.
fn silent(id: &str) -> ApiError {
    ApiError::field("model", format!("{id} gives embeddings and writes no text: it answers /v1/embeddings"))
}

/// What is told whose request took longer than `--request-timeout`.
pub(crate) fn late(limit: Duration) -> ApiError {
    ApiError::later(503, 5, format!("the request took longer than {} s", limit.as_secs_f64())).code("timeout")
}

/// Runs what takes time on a thread of its own.
///
/// # Errors
/// Those of `work`; a fault of it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(ApiError::new(500, "the request could not be prepared")),
    }
}
