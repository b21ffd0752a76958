//! Load a model, write text: the library's front door.

use crate::adapter::Adapter;
use crate::batch::{Batch, KvOptions, Sequence};
use crate::checkpoint::Checkpoint;
use crate::embed::Pooling;
use crate::engine::{Drafter, Engine, Event, Finish, Prefixes, Request};
use crate::models::{self, Model};
use crate::sample::Sampling;
use crate::template::{Chat, Template};
use crate::tokenizer::Tokenizer;
use lapis::distributed::Group;
use lapis::{Array, Dtype, Error, Result, eval, io, memory, ops};
use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

mod stream;

use stream::StopText;
pub use stream::Stream;

/// Bytes of prompts that are remembered for others that begin alike.
pub(crate) const REMEMBERED: usize = 1 << 30;

/// A model with its tokenizer.
pub struct LanguageModel {
    /// The network.
    pub model: Arc<dyn Model>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Tokens that end a text.
    pub eos: Arc<BTreeSet<u32>>,
    /// Positions that the model was made for, where its config says so.
    pub context: Option<usize>,
    /// Columns of the logits.
    pub vocabulary: usize,
    /// generation_config.json.
    pub generation: Map<String, Value>,
    /// How its rows become a vector of a text, where its files say so.
    pub pooling: Option<Pooling>,
    /// Whether it writes; else it gives embeddings only.
    pub writes: bool,
    /// What is odd about its files and does not keep it from being used: lines for people.
    pub warnings: Vec<String>,
}

/// Loads the model in a directory or a GGUF file.
///
/// ```no_run
/// # fn main() -> lapis::Result<()> {
/// let model = lapis_lm::load("mlx_model")?;
/// let prompt = model.tokenizer.encode_prompt("Once upon a time")?;
/// println!("{}", model.generate(&prompt, &lapis_lm::Options::default())?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// A file that is missing or malformed, an architecture that is not known, tensors that do not fit.
pub fn load(dir: impl AsRef<Path>) -> Result<LanguageModel> {
    let mut checkpoint = Checkpoint::open(&dir)?;
    let tokenizer = checkpoint.tokenizer()?;
    LanguageModel::new(&mut checkpoint, tokenizer)
}

/// Loads a model and puts the adapter in a directory of mlx-lm or PEFT on it.
///
/// # Errors
/// As [`load`] and [`Adapter::open`]; an adapter that does not fit the model.
pub fn load_with_adapter(dir: impl AsRef<Path>, adapter: impl AsRef<Path>) -> Result<LanguageModel> {
    // What is wrong with the smaller of the two is told first.
    let adapter = Adapter::open(adapter)?;
    load(dir)?.with_adapter(&adapter)
}

/// Files of a model inside a program.
#[derive(Clone, Copy)]
pub struct Files {
    /// What it is called in errors.
    pub name: &'static str,
    /// config.json.
    pub config: &'static [u8],
    /// model.safetensors.
    pub weights: &'static [u8],
    /// tokenizer.json.
    pub tokenizer: &'static [u8],
    /// tokenizer_config.json.
    pub tokenizer_config: &'static [u8],
}

/// What to write.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Tokens at most; by default what is left of the context, or 256 where no config says.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the reply; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens of the prompt in a step; by default 2048.
    pub prefill_step: Option<usize>,
    /// Tokens do not end a text.
    pub ignore_eos: bool,
    /// Who guesses what comes next; the text stays the same.
    pub drafter: Option<Drafter>,
    /// Tokens guessed at a time; by default 2.
    pub draft_tokens: Option<usize>,
    /// How keys and values are remembered.
    pub kv: KvOptions,
    /// How many of the likeliest tokens are told of at each place.
    pub top: usize,
    /// Sequences at once at most, of several prompts; by default 32.
    pub max_batch: Option<usize>,
}

/// One step of a reply, in mlx-lm's terms.
#[derive(Clone, Debug)]
pub struct Response {
    /// New text, often a piece of a word, sometimes nothing.
    pub text: String,
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens with their log-probabilities, as many as were asked for.
    pub top: Vec<(u32, f32)>,
    /// Whether it had been guessed.
    pub from_draft: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were remembered from before.
    pub cached_tokens: usize,
    /// Tokens of the prompt a second.
    pub prompt_tps: f64,
    /// Seconds from the start to the first token.
    pub first_token: f64,
    /// Tokens written so far.
    pub generation_tokens: usize,
    /// Tokens written a second.
    pub generation_tps: f64,
    /// The most memory used so far, in 10^9 bytes.
    pub peak_memory: f64,
    /// Why the text ended, at its end.
    pub finish_reason: Option<Finish>,
}

impl LanguageModel {
    /// From a checkpoint and its tokenizer.
    ///
    /// # Errors
    /// As [`load`].
    pub fn new(checkpoint: &mut Checkpoint, tokenizer: Tokenizer) -> Result<LanguageModel> {
        let model: Arc<dyn Model> = Arc::from(models::load(checkpoint)?);
        let eos = tokenizer.eos_ids().iter().copied().chain(checkpoint.eos_ids()).collect();
        let (tokens, vocabulary) = (tokenizer.vocab_size(), checkpoint.vocabulary()?);
        let mut warnings = std::mem::take(&mut checkpoint.warnings);
        if tokens > vocabulary {
            let dir = checkpoint.dir.display();
            warnings.push(format!(
                "{dir}: the tokenizer has {tokens} tokens, the model {vocabulary}; the last cannot be used"
            ));
        }
        Ok(LanguageModel {
            eos: Arc::new(eos),
            context: checkpoint.context(),
            vocabulary,
            warnings,
            generation: std::mem::take(&mut checkpoint.generation),
            pooling: Pooling::read(&checkpoint.dir)?,
            writes: !model.is_encoder() && !checkpoint.headless,
            model,
            tokenizer,
        })
    }

    /// This model with an adapter on it: another model, which shares every array that the adapter does not replace.
    ///
    /// # Errors
    /// An adapter that does not fit.
    pub fn with_adapter(&self, adapter: &Adapter) -> Result<LanguageModel> {
        let mut model = self.model.copied();
        adapter.apply(&mut *model)?;
        model.module_mut().eval();
        Ok(LanguageModel {
            model: Arc::from(model),
            tokenizer: self.tokenizer.clone(),
            eos: Arc::clone(&self.eos),
            generation: self.generation.clone(),
            warnings: self.warnings.clone(),
            ..*self
        })
    }

    /// A model inside the program.
    ///
    /// # Errors
    /// As [`load`].
    pub fn from_files(files: Files) -> Result<LanguageModel> {
        let weights = io::Bytes::copy(files.weights)?;
        let mut checkpoint = Checkpoint::from_bytes(files.name, files.config, weights)?;
        let config = serde_json::from_slice(files.tokenizer_config)
            .map_err(|e| Error::io(format!("[load] {}/tokenizer_config.json: {e}", files.name)))?;
        LanguageModel::new(&mut checkpoint, Tokenizer::from_json(files.tokenizer, config)?)
    }

    /// One more token that ends texts.
    pub fn add_eos(&mut self, id: u32) {
        Arc::make_mut(&mut self.eos).insert(id);
    }

    /// The tokens of a conversation, as the model's template (or `template`) puts it.
    ///
    /// # Errors
    /// A template that is missing, broken or refuses the messages.
    pub fn chat_prompt(&self, chat: &Chat<'_>, template: Option<&Template>) -> Result<Vec<u32>> {
        self.tokenizer.encode(&self.chat_text(chat, template)?, false)
    }

    /// A conversation as text, as the model's template (or `template`) puts it; messages may be as OpenAI's clients send
    /// them.
    ///
    /// # Errors
    /// As [`LanguageModel::chat_prompt`].
    pub fn chat_text(&self, chat: &Chat<'_>, template: Option<&Template>) -> Result<String> {
        let template = match template {
            Some(template) => template,
            None => self.tokenizer.chat_template(chat.tools.is_some())?,
        };
        // Always given; true exactly where the model can think, unless the caller says otherwise.
        let mut keywords = chat.keywords.cloned().unwrap_or_default();
        keywords.entry("enable_thinking").or_insert(Value::Bool(self.tokenizer.thinking().is_some()));
        let special = self.tokenizer.special_tokens();
        template.converse(&Chat { keywords: Some(&keywords), special_tokens: Some(special), ..chat.clone() })
    }

    /// Parameters that hold NaN or infinities, and how many.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn strange_parameters(&self) -> Result<Vec<(String, usize)>> {
        let mut found = Vec::new();
        for (name, value) in self.model.module().parameters() {
            if !value.dtype().is_floating() {
                continue;
            }
            let strange = ops::logical_not(&ops::isfinite(&value)?)?;
            let count = ops::sum(&ops::astype(&strange, Dtype::Int64)?, (), false)?.item::<i64>()?;
            if count > 0 {
                found.push((name, count as usize));
            }
        }
        Ok(found)
    }

    /// Has inputs of packed linear layers rounded as their weights are (nvfp4 and mxfp8).
    ///
    /// # Errors
    /// A layer packed otherwise, or with a bias, by its name; a model that is in use elsewhere.
    pub fn round_inputs(&mut self) -> Result<()> {
        let shared = || Error::value("[load] the model is in use: its layers cannot be changed");
        crate::quant::round_inputs(Arc::get_mut(&mut self.model).ok_or_else(shared)?)
    }

    /// Keeps this process's part of the model, as [`models::split`].
    ///
    /// # Errors
    /// As there; a model that is in use elsewhere.
    pub fn split(&mut self, group: Group) -> Result<f64> {
        let shared = || Error::value("[load] the model is in use: its layers cannot be changed");
        models::split(Arc::get_mut(&mut self.model).ok_or_else(shared)?, group)
    }

    /// An engine of this model.
    pub fn engine(&self) -> Engine {
        Engine::new(Arc::clone(&self.model), self.vocabulary)
    }

    /// This model as one that guesses for a larger one.
    pub fn drafter(&self) -> Drafter {
        Drafter::Model { model: Arc::clone(&self.model), vocabulary: self.vocabulary }
    }

    /// An engine as options have it.
    fn engine_with(&self, options: &Options) -> Result<Engine> {
        let mut engine = self.engine();
        if let Some(step) = options.prefill_step {
            engine.prefill_step = step.max(1);
        }
        if let Some(drafter) = &options.drafter {
            drafter.check(self.vocabulary)?;
            engine.drafter = Some(drafter.clone());
        }
        engine.kv = options.kv;
        engine.draft_tokens = options.draft_tokens.unwrap_or(engine.draft_tokens);
        engine.max_batch = options.max_batch.unwrap_or(engine.max_batch).max(1);
        Ok(engine)
    }

    /// How many tokens may follow a prompt.
    ///
    /// # Errors
    /// A prompt that is longer than the context; a model that does not write.
    pub fn room(&self, prompt: usize, asked: Option<usize>) -> Result<usize> {
        if !self.writes {
            return Err(Error::unsupported("[generate] this model gives embeddings and writes no text"));
        }
        match self.context {
            Some(context) if prompt >= context => Err(Error::value(format!(
                "[generate] the prompt has {prompt} tokens, the model's context {context}; shorten the prompt"
            ))),
            Some(context) => Ok(asked.unwrap_or(usize::MAX).min(context - prompt)),
            None => Ok(asked.unwrap_or(256)),
        }
    }

    /// A reply as it is written. `sequence` remembers the beginning of the prompt, or nothing.
    ///
    /// # Errors
    /// An empty prompt, one that is too long, numbers out of range.
    pub fn stream(&self, prompt: &[u32], options: &Options, sequence: Sequence) -> Result<Stream<'_>> {
        let max_tokens = self.room(prompt.len(), options.max_tokens)?;
        let mut engine = self.engine_with(options)?;
        engine.keep_ended = true;
        let cached_tokens = sequence.len();
        let request = Request {
            prompt: prompt.to_vec(),
            max_tokens,
            sampling: options.sampling.clone(),
            eos: if options.ignore_eos { Arc::default() } else { Arc::clone(&self.eos) },
            choice: 0,
            top: options.top,
            ..Request::default()
        };
        let id = engine.add(request, sequence)?;
        memory::reset_peak();
        Ok(Stream {
            id,
            engine,
            text: StopText::new(self.tokenizer.detokenizer(), options.stop.clone()),
            prompt_tokens: prompt.len(),
            cached_tokens,
            written: 0,
            began: Instant::now(),
            first: None,
            events: VecDeque::new(),
            over: false,
            remembered: None,
            progress: None,
        })
    }

    /// Reads tokens and gives what the model remembers of them; `progress` hears how many were read, and says whether to
    /// go on.
    ///
    /// # Errors
    /// No tokens, a token beyond the vocabulary, more tokens than the context has.
    pub fn read(&self, tokens: &[u32], options: &Options, mut progress: impl FnMut(usize) -> bool) -> Result<Sequence> {
        if tokens.is_empty() {
            return Err(Error::value("[generate] the prompt is empty: nothing to read"));
        }
        self.room(tokens.len(), None)?;
        if let Some(t) = tokens.iter().find(|&&t| t as usize >= self.vocabulary) {
            let n = self.vocabulary;
            return Err(Error::index(format!("[generate] token {t} is beyond the model's vocabulary of {n}")));
        }
        memory::reset_peak();
        options.kv.check()?;
        let mut sequence = Sequence::with(options.kv);
        for part in tokens.chunks(options.prefill_step.unwrap_or(2048).max(1)) {
            let mut batch = Batch::one(part.len(), &mut sequence);
            let rows = Array::from_vec(part.iter().map(|&t| t as i32).collect(), &[part.len()]);
            self.model.hidden(&rows, &mut batch)?;
            batch.finish();
            eval(sequence.arrays())?;
            if !progress(sequence.len()) {
                break;
            }
        }
        Ok(sequence)
    }

    /// A whole reply.
    ///
    /// # Errors
    /// As [`LanguageModel::stream`].
    pub fn generate(&self, prompt: &[u32], options: &Options) -> Result<String> {
        self.stream(prompt, options, Sequence::new())?.map(|r| r.map(|r| r.text)).collect()
    }

    /// Replies to several prompts, in their order; what each one says does not depend on the others.
    ///
    /// # Errors
    /// As [`LanguageModel::stream`], of the first prompt that fails.
    pub fn batch_generate(&self, prompts: &[Vec<u32>], options: &Options) -> Result<Vec<String>> {
        self.batch_generate_with(prompts, options, |_| true)
    }

    /// As [`LanguageModel::batch_generate`]; `each` hears how many replies are done, and says whether to go on. Prompts that
    /// begin alike share that beginning, and one that comes again is another draw.
    ///
    /// # Errors
    /// As there; being told to stop.
    pub fn batch_generate_with(
        &self,
        prompts: &[Vec<u32>],
        options: &Options,
        mut each: impl FnMut(usize) -> bool,
    ) -> Result<Vec<String>> {
        let mut engine = self.engine_with(options)?;
        let mut prefixes = Prefixes::new(REMEMBERED);
        prefixes.most = 2 * engine.max_batch;
        engine.prefixes = Some(prefixes);
        let (mut texts, mut done) = (Vec::new(), 0);
        let mut drawn: HashMap<&[u32], u64> = HashMap::new();
        for prompt in prompts {
            let choice = drawn.entry(prompt).or_default();
            let request = Request {
                prompt: prompt.clone(),
                max_tokens: self.room(prompt.len(), options.max_tokens.or(Some(128)))?,
                sampling: options.sampling.clone(),
                eos: Arc::clone(&self.eos),
                choice: *choice,
                ..Request::default()
            };
            *choice += 1;
            let id = engine.add(request, Sequence::new())?;
            texts.push((id, StopText::new(self.tokenizer.detokenizer(), options.stop.clone()), String::new()));
        }
        while !engine.is_idle() {
            for event in engine.step()? {
                let id = event.id();
                let Some((_, detokenizer, text)) = texts.iter_mut().find(|t| t.0 == id) else { continue };
                match event {
                    Event::Started { .. } | Event::Prefill { .. } | Event::Scored { .. } => {}
                    Event::Failed { error, .. } => return Err(error),
                    Event::Token { id, choice, finish, .. } => {
                        let (piece, stopped) = detokenizer.add(choice.token, finish)?;
                        text.push_str(&piece);
                        if stopped {
                            engine.end(id);
                        }
                        if stopped || finish.is_some() {
                            done += 1;
                            if !each(done) {
                                return Err(Error::eval("[generate] stopped"));
                            }
                        }
                    }
                }
            }
        }
        Ok(texts.into_iter().map(|t| t.2).collect())
    }
}
