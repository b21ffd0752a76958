//! `lapis generate`: text after a prompt.

use crate::grammar::GrammarArguments;
use crate::model::{self, AdapterArguments, DraftArguments, KvArguments, SamplingArguments, Source};
use crate::{Manner, interrupt, ranks, say};
use lapis::{Error, Result};
use lapis_lm::template::{Chat, Template};
use lapis_lm::{Finish, LanguageModel, Options, PromptCache, Response, Sequence};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    adapter: AdapterArguments,
    /// The prompt; `-` reads standard input
    #[arg(short, long, default_value = "hello", allow_hyphen_values = true)]
    prompt: String,
    /// A message of the system, placed first
    #[arg(long)]
    system_prompt: Option<String>,
    /// The beginning of the reply
    #[arg(long)]
    prefill_response: Option<String>,
    /// Tokens to write at most [default: what is left of the context]
    #[arg(short, long, allow_hyphen_values = true)]
    max_tokens: Option<i64>,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    draft: DraftArguments,
    #[command(flatten)]
    grammar: GrammarArguments,
    #[command(flatten)]
    kv: KvArguments,
    /// Take sampling settings from the model's generation_config.json
    #[arg(long, default_value = "off", value_parser = ["auto", "off"])]
    generation_config: String,
    /// More tokens that end the text: their text or id
    #[arg(long, num_args = 1..)]
    extra_eos_token: Vec<String>,
    /// Text that ends the reply (may be given several times)
    #[arg(long)]
    stop: Vec<String>,
    /// Give the prompt to the model as it is
    #[arg(long)]
    ignore_chat_template: bool,
    /// Another chat template: Jinja, or a file of it
    #[arg(long)]
    chat_template: Option<String>,
    /// Variables for the template: a JSON object
    #[arg(long)]
    chat_template_config: Option<String>,
    /// Statistics beside the text
    #[arg(long, default_value = "true")]
    verbose: String,
    /// Tokens of the prompt in a step
    #[arg(long, default_value_t = 2048, value_parser = model::positive)]
    prefill_step_size: usize,
    /// What the model remembers of the beginning, as cache-prompt wrote it; the prompt goes on from there
    #[arg(long)]
    prompt_cache_file: Option<PathBuf>,
    /// Say how likely each token was, and beside it so many of the likeliest (up to 20)
    #[arg(long, num_args = 0..=1, default_missing_value = "0", value_name = "N", value_parser = clap::value_parser!(u8).range(..=20))]
    logprobs: Option<u8>,
    /// Print the text while it is written (the default)
    #[arg(long, conflicts_with = "no_stream")]
    stream: bool,
    /// Print the text once it is complete
    #[arg(long)]
    no_stream: bool,
    /// Use a plain chat template where the model has none
    #[arg(long, conflicts_with = "ignore_chat_template")]
    use_default_chat_template: bool,
    /// Round inputs of layers as their weights are (-qa; models in nvfp4 or mxfp8)
    #[arg(long)]
    quantize_activations: bool,
    /// Pictures, for models that take them
    #[arg(long, num_args = 1.., hide = true)]
    image: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Show control characters of the text as they are
    #[arg(long)]
    raw: bool,
}

/// Roles and texts between the markers that most models know.
const DEFAULT_TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A token with its log-probability, and the likeliest in its place.
struct Likely {
    own: (u32, String, f32),
    top: Vec<(u32, String, f32)>,
}

impl Likely {
    fn of(model: &LanguageModel, r: &Response) -> Result<Likely> {
        let named = |(id, p): (u32, f32)| Ok((id, model.tokenizer.decode(&[id], false)?, p));
        let top = r.top.iter().map(|&t| named(t)).collect::<Result<_>>()?;
        Ok(Likely { own: named((r.token, r.logprob))?, top })
    }

    fn json(&self) -> Value {
        let one = |(id, text, p): &(u32, String, f32)| json!({"token": id, "text": text, "logprob": p});
        let mut line = one(&self.own);
        line["top"] = self.top.iter().map(one).collect();
        line
    }

    fn line(&self) -> String {
        let one = |(_, text, p): &(u32, String, f32)| format!("{p:9.4} {text:?}");
        let all: Vec<String> = std::iter::once(&self.own).chain(&self.top).map(one).collect();
        all.join("  ")
    }
}

/// Tokens to write at most: -1 is no limit, 0 an error.
pub(crate) fn limit(asked: Option<i64>, default: Option<usize>) -> Result<Option<usize>> {
    match asked {
        None => Ok(default),
        Some(-1) => Ok(None),
        Some(n) if n > 0 => Ok(Some(n as usize)),
        Some(n) => Err(Error::value(format!("--max-tokens is {n}; give 1 or more, or -1 for no limit"))),
    }
}

pub(crate) fn run(mut a: Arguments, manner: Manner) -> Result<()> {
    let group = ranks::join()?;
    let max_tokens = limit(a.max_tokens, model::default_max_tokens(manner, 100))?;
    let verbose = !["false", "f", "0", "no"].contains(&a.verbose.to_lowercase().as_str()) && !a.json;
    if let Some(file) = &a.prompt_cache_file {
        a.source = a.source.cached(file)?;
    }
    if !a.image.is_empty() {
        let name = a.source.name();
        return Err(Error::unsupported(format!("--image: {name} reads text only; describe the picture in the prompt")));
    }
    let mut model = a.adapter.load(&a.source)?;
    if a.quantize_activations {
        model.round_inputs()?;
    }
    if group.size() > 1 {
        if a.prompt_cache_file.is_some() {
            ranks::alone(group, "--prompt-cache-file")?;
        }
        let (part, n) = (model.split(group)?, group.size());
        say::note(&format!("{n} processes, each with {:.0} % of the model", 100.0 * part));
    }
    if a.use_default_chat_template && !model.tokenizer.has_template() {
        model.tokenizer.set_chat_template(Template::new(DEFAULT_TEMPLATE)?);
    }
    for token in &a.extra_eos_token {
        let id =
            model.tokenizer.token_id(token).or_else(|| token.parse().ok().filter(|n| (*n as usize) < model.vocabulary));
        let id = id.ok_or_else(|| Error::value(format!("--extra-eos-token: the model has no token {token:?}")))?;
        model.add_eos(id);
    }
    let mut prompt = ranks::first(group, tokens(&a, &model)?)?;
    let mut sequence = Sequence::new();
    if let Some(file) = &a.prompt_cache_file {
        let cache = PromptCache::load(file, &*model.model)?;
        prompt = [cache.tokens, prompt].concat();
        sequence = cache.sequence;
        sequence.set_options(a.kv.continued(sequence.options())?);
    }
    let mut sampling = a.sampling.settings(&model, a.generation_config == "auto")?;
    sampling.seed = ranks::first_number(group, sampling.seed)?;
    let prefill_step = Some(a.prefill_step_size);
    let mut options =
        Options { max_tokens, sampling, stop: a.stop, prefill_step, kv: a.kv.options()?, ..Options::default() };
    options.top = a.logprobs.map_or(0, usize::from);
    a.draft.apply(&model, &a.source.hub, &mut options)?;
    interrupt::watch();
    let mut progress = say::Progress::new("prefill", "tok");
    let stream = model.stream(&prompt, &options, sequence)?;
    let mut stream = stream.on_prefill(move |done, total| {
        progress.at(done, total);
        !interrupt::seen()
    });
    if let Some(grammar) = a.grammar.grammar(&model)? {
        stream = stream.constrain(grammar.reply(&model.eos, model.tokenizer.thinking(), &prompt));
    }
    // The others write the same.
    let mut out: Box<dyn Write> =
        if group.rank() == 0 { Box::new(std::io::stdout().lock()) } else { Box::new(std::io::sink()) };
    let shown = |text: &str| if a.raw { text.to_string() } else { say::safe(text) };
    let (mut last, mut text, mut guessed): (Option<Response>, String, usize) = (None, String::new(), 0);
    let mut likely: Vec<Likely> = Vec::new();
    for response in stream {
        let response = response?;
        if verbose && last.is_none() {
            writeln!(out, "==========").map_err(closed)?;
        }
        if a.logprobs.is_some() && response.finish_reason != Some(Finish::Stop) {
            likely.push(Likely::of(&model, &response)?);
        }
        if a.json || a.no_stream {
            text.push_str(&response.text);
        } else {
            write!(out, "{}", shown(&response.text)).and_then(|()| out.flush()).map_err(closed)?;
        }
        guessed += usize::from(response.from_draft);
        last = Some(response);
        if interrupt::seen() {
            break;
        }
    }
    let Some(last) = last else {
        // Interrupted while the prompt was read.
        return if interrupt::seen() { Ok(()) } else { Err(Error::value("nothing was written")) };
    };
    if a.json {
        let mut line = json!({
            "schema": 1, "text": text, "prompt_tokens": last.prompt_tokens, "prompt_tps": last.prompt_tps,
            "cached_tokens": last.cached_tokens,
            "generation_tokens": last.generation_tokens, "generation_tps": last.generation_tps, "drafted_tokens": guessed,
            "time_to_first_token": last.first_token, "peak_memory": last.peak_memory,
            "peak_resident": resident(),
            "finish_reason": match last.finish_reason { Some(Finish::Length) => "length", _ => "stop" },
        });
        if a.logprobs.is_some() {
            line["logprobs"] = likely.iter().map(Likely::json).collect();
        }
        writeln!(out, "{line}").map_err(closed)?;
    } else {
        writeln!(out, "{}", shown(&text)).map_err(closed)?;
        for line in likely.iter().map(Likely::line) {
            writeln!(out, "{line}").map_err(closed)?;
        }
    }
    if verbose {
        writeln!(out, "==========").map_err(closed)?;
        let read = last.prompt_tokens - last.cached_tokens;
        writeln!(out, "Prompt: {read} tokens, {:.3} tokens-per-sec", last.prompt_tps).map_err(closed)?;
        writeln!(out, "Generation: {} tokens, {:.3} tokens-per-sec", last.generation_tokens, last.generation_tps)
            .map_err(closed)?;
        writeln!(out, "Peak memory: {:.3} GB", last.peak_memory).map_err(closed)?;
        writeln!(out, "Time to first token: {:.3} s", last.first_token).map_err(closed)?;
        if options.drafter.is_some() {
            writeln!(out, "Guessed: {guessed} of the tokens").map_err(closed)?;
        }
    }
    if last.finish_reason == Some(Finish::Length) {
        let why = if max_tokens.is_some_and(|n| n <= last.generation_tokens) {
            "--max-tokens"
        } else {
            "the model's context"
        };
        say::note(&format!("stopped at {} tokens: the limit of {why}", last.generation_tokens));
    }
    Ok(())
}

/// The most bytes of memory that this process held, files that it reads included, where the system says so.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

/// Whoever read the text is gone: that is no fault.
fn closed(e: std::io::Error) -> Error {
    if e.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    let text = format!("standard output: {e}");
    if e.kind() == std::io::ErrorKind::StorageFull { Error::memory(text) } else { Error::io(text) }
}

fn tokens(a: &Arguments, model: &LanguageModel) -> Result<Vec<u32>> {
    let prompt = match a.prompt.as_str() {
        "-" => model::text("-")?,
        text => text.replace("\\n", "\n").replace("\\t", "\t"),
    };
    let template = model::template(a.chat_template.as_deref())?;
    // One that does not parse is an error, unless it is not asked for.
    let has_template = template.is_some() || model.tokenizer.has_template();
    let cached = a.prompt_cache_file.is_some();
    if cached && (a.ignore_chat_template || !has_template) {
        return model.tokenizer.encode(&prompt, false);
    }
    if a.ignore_chat_template || !has_template {
        return model.tokenizer.encode_prompt(&prompt);
    }
    let mut messages: Vec<Value> = Vec::new();
    if let Some(system) = &a.system_prompt {
        messages.push(json!({"role": "system", "content": system}));
    }
    // After a cache everything before the text of the user was read; a text that nobody writes marks its place.
    const PLACE: &str = "\u{1}";
    messages.push(json!({"role": "user", "content": if cached { PLACE } else { &prompt }}));
    if let Some(begin) = &a.prefill_response {
        messages.push(json!({"role": "assistant", "content": begin}));
    }
    let keywords = model::object("--chat-template-config", a.chat_template_config.as_deref())?;
    let messages = Value::Array(messages);
    let chat = Chat {
        messages: &messages,
        add_generation_prompt: a.prefill_response.is_none(),
        continue_final_message: a.prefill_response.is_some(),
        keywords: Some(&keywords),
        ..Chat::default()
    };
    if !cached {
        return model.chat_prompt(&chat, template.as_ref());
    }
    let text = model.chat_text(&chat, template.as_ref())?;
    let (_, after) = text
        .split_once(PLACE)
        .ok_or_else(|| Error::value("--prompt-cache-file: the chat template does not show what the user says"))?;
    model.tokenizer.encode(&(prompt + after), false)
}
