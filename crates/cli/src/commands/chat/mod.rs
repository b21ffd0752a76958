//! `lapis chat`: a conversation in the terminal.

use crate::commands::generate::limit;
use crate::model::{self, AdapterArguments, DraftArguments, KvArguments, SamplingArguments, Source};
use crate::{Manner, interrupt, say};
use lapis::{Error, Result};
use lapis_lm::template::Chat;
use lapis_lm::{Finish, LanguageModel, Options, Part, Reply, ReplyOptions, Response, Sequence};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

mod lines;
mod show;

use lines::Lines;
use show::Show;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    adapter: AdapterArguments,
    /// A message of the system, placed first
    #[arg(long)]
    system_prompt: Option<String>,
    /// Tokens of a reply at most [default: what is left of the context]
    #[arg(short, long, allow_hyphen_values = true)]
    max_tokens: Option<i64>,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    draft: DraftArguments,
    #[command(flatten)]
    kv: KvArguments,
    /// Another chat template: Jinja, or a file of it
    #[arg(long)]
    chat_template: Option<String>,
    /// Variables for the template: a JSON object
    #[arg(long)]
    chat_template_config: Option<String>,
    /// Tokens of the prompt in a step
    #[arg(long, default_value_t = 2048, value_parser = model::positive)]
    prefill_step_size: usize,
    /// Print events as JSON, a line each
    #[arg(long)]
    json: bool,
    /// Show what the model thinks while it does
    #[arg(long)]
    think: bool,
    /// Show control characters of the text as they are
    #[arg(long)]
    raw: bool,
    /// Keep no history of what was typed
    #[arg(long)]
    no_history: bool,
}

const HELP: &str = "/help             this list
/system TEXT      a message of the system, placed first (the conversation begins anew)
/reset            begin anew
/undo             take back the last message and its reply
/retry            another reply to the last message
/edit TEXT        another last message
/set NAME VALUE   temp, top-p, top-k, min-p, max-tokens, seed
/save FILE        write the conversation as JSON
/load FILE        read it back
/drop             forget the oldest message and its reply
/think [on|off]   what the model thought before its last reply; show it while it thinks, or not
/model [NAME]     which model this is; go on with another one
/stats /tokens    what the last reply took; how full the context is
/quit             leave (Ctrl-D, too)
@FILE in a message adds the text of a file. Ctrl-C stops a reply. A line that ends in \\ goes on in the next.";

struct Talk<'a> {
    model: Arc<LanguageModel>,
    name: String,
    messages: Vec<Value>,
    options: Options,
    arguments: &'a Arguments,
    /// The tokens the model remembers, and what it remembers of them.
    memory: Option<(Vec<u32>, Sequence)>,
    last: Option<Response>,
    show: Show,
    manner: Manner,
}

pub(crate) fn run(mut a: Arguments, manner: Manner) -> Result<()> {
    // As in mlx-lm: a conversation can be had again.
    a.sampling.seed = a.sampling.seed.or((manner == Manner::Mlx).then_some(0));
    // Before the model is loaded, and not at every message.
    model::template(a.chat_template.as_deref())?;
    let model = a.adapter.load(&a.source)?;
    let mut options = Options {
        max_tokens: limit(a.max_tokens, model::default_max_tokens(manner, 256))?,
        sampling: a.sampling.settings(&model, manner == Manner::Own)?,
        prefill_step: Some(a.prefill_step_size),
        kv: a.kv.options()?,
        ..Options::default()
    };
    a.draft.apply(&model, &a.source.hub, &mut options)?;
    let mut talk = Talk {
        model: Arc::new(model),
        name: a.source.model.as_ref().map_or("the demo model".into(), |m| m.display().to_string()),
        messages: Vec::new(),
        options,
        arguments: &a,
        memory: None,
        last: None,
        show: Show::new(a.json, a.think, a.raw),
        manner,
    };
    talk.begin(a.system_prompt.clone());
    let mut lines = Lines::new(!a.no_history)?;
    // After the editor, which takes Ctrl-C for itself.
    interrupt::watch_keys();
    if lines.on_terminal() {
        talk.show.say(&format!("A chat with {}. /help lists commands.", talk.name));
    }
    while let Some(line) = lines.next()? {
        let line = line.trim();
        let known = |word: &str| manner == Manner::Mlx && line == word;
        let line = if known("q") {
            "/quit"
        } else if known("r") {
            "/reset"
        } else if known("h") {
            "/help"
        } else {
            line
        };
        if line.is_empty() {
            continue;
        }
        let done = match line.strip_prefix('/') {
            Some(command) => talk.command(command),
            None => talk.say(line).map(|()| true),
        };
        match done {
            Ok(true) => {}
            Ok(false) => break,
            // A conversation goes on after an error.
            Err(e) => talk.show.fail(&e),
        }
        interrupt::forget();
    }
    lines.save();
    Ok(())
}

impl Talk<'_> {
    fn begin(&mut self, system: Option<String>) {
        self.messages.clear();
        self.messages.extend(system.map(|s| json!({"role": "system", "content": s})));
        self.last = None;
    }

    /// Runs a command; false ends the conversation.
    fn command(&mut self, command: &str) -> Result<bool> {
        let (name, rest) = command.split_once(char::is_whitespace).map_or((command, ""), |(n, r)| (n, r.trim()));
        match name {
            "quit" | "exit" => return Ok(false),
            "help" => self.show.say(HELP),
            "reset" => {
                let system =
                    self.messages.first().filter(|m| m["role"] == "system").and_then(|m| m["content"].as_str());
                let system = system.map(str::to_string);
                self.begin(system);
            }
            "system" => self.begin((!rest.is_empty()).then(|| rest.to_string())),
            "undo" => drop(self.take_back()?),
            "retry" => {
                let text = self.take_back()?;
                // The same seed at the same place draws the same.
                let s = &mut self.options.sampling;
                s.seed = s.seed.wrapping_add(1);
                if s.temperature == 0.0 {
                    self.show.say("at temperature 0 there is one reply; /set temp 0.7 allows others");
                }
                self.say(&text)?;
            }
            "edit" => {
                self.take_back()?;
                self.say(rest)?;
            }
            "set" => self.set(rest)?,
            "stats" => match &self.last {
                Some(last) => self.show.say(&statistics(last)),
                None => self.show.say("nothing was written yet"),
            },
            "tokens" => {
                let used = self.memory.as_ref().map_or(0, |m| m.0.len());
                match self.model.context {
                    Some(context) => self.show.say(&format!("{used} of {context} tokens of the context are used")),
                    None => self.show.say(&format!("{used} tokens are used")),
                }
            }
            "save" => self.save(rest)?,
            "load" => self.load(rest)?,
            "drop" => self.drop_oldest()?,
            "think" => match rest {
                "on" => self.show.think(true),
                "off" => self.show.think(false),
                "" => self.show.thoughts(),
                _ => return Err(Error::value("/think takes on, off or nothing")),
            },
            "model" if rest.is_empty() => self.show.say(&self.name),
            "model" => self.change_model(Path::new(rest))?,
            _ => self.show.say(&format!("/{} is no command; /help lists them", say::safe(name))),
        }
        Ok(true)
    }

    /// Removes the last message of the user and what followed, and gives it.
    fn take_back(&mut self) -> Result<String> {
        let at = self.messages.iter().rposition(|m| m["role"] == "user");
        let at = at.ok_or_else(|| Error::value("there is no message to take back"))?;
        let text = self.messages[at]["content"].as_str().unwrap_or_default().to_string();
        self.messages.truncate(at);
        Ok(text)
    }

    fn set(&mut self, rest: &str) -> Result<()> {
        let (name, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let bad = || Error::value(format!("/set {name}: {value:?} is no number; as in /set temp 0.7"));
        let number = || value.trim().parse::<f64>().map_err(|_| bad());
        let whole = || value.trim().parse::<u64>().map_err(|_| bad());
        let mut next = self.options.clone();
        let s = &mut next.sampling;
        match name {
            "temp" | "temperature" => s.temperature = number()?,
            "top-p" => s.top_p = number()?,
            "min-p" => s.min_p = number()?,
            "top-k" => s.top_k = whole()? as usize,
            "seed" => s.seed = whole()?,
            "max-tokens" => match whole()? {
                0 => return Err(Error::value("/set max-tokens: 1 is the least")),
                n => next.max_tokens = Some(n as usize),
            },
            _ => return Err(Error::value("/set knows temp, top-p, top-k, min-p, max-tokens, seed")),
        }
        next.sampling.check(self.model.vocabulary)?;
        self.options = next;
        Ok(())
    }

    fn save(&self, path: &str) -> Result<()> {
        if path.is_empty() {
            return Err(Error::value("/save needs the name of a file"));
        }
        let s = &self.options.sampling;
        let settings = json!({
            "temp": s.temperature, "top-p": s.top_p, "min-p": s.min_p, "top-k": s.top_k, "seed": s.seed,
            "max-tokens": self.options.max_tokens,
        });
        let all = json!({"messages": self.messages, "settings": settings});
        let text = serde_json::to_vec_pretty(&all).unwrap_or_default();
        let mut file = lapis::io::atomic::AtomicFile::create(path, "save", text.len() as u64)?;
        file.write(&text)?;
        file.commit()
    }

    fn load(&mut self, path: &str) -> Result<()> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(format!("{path}: {e}")))?;
        let all: Value = serde_json::from_str(&text).map_err(|e| Error::io(format!("{path}: {e}")))?;
        let messages = all["messages"].as_array().filter(|a| a.iter().all(|m| m["role"].is_string()));
        let bad = || Error::io(format!("{path}: no conversation; /save writes one"));
        let messages = messages.ok_or_else(bad)?.clone();
        let before = self.options.clone();
        for (name, value) in all["settings"].as_object().into_iter().flatten().filter(|(_, v)| v.is_number()) {
            if let Err(e) = self.set(&format!("{name} {value}")) {
                self.options = before;
                return Err(Error::new(e.kind(), format!("{path}: {}", e.message())));
            }
        }
        self.messages = messages;
        Ok(())
    }

    /// Forgets the oldest message of the user and what followed it.
    fn drop_oldest(&mut self) -> Result<()> {
        let asks: Vec<usize> = (0..self.messages.len()).filter(|&i| self.messages[i]["role"] == "user").collect();
        let [first, rest @ ..] = &asks[..] else { return Err(Error::value("there is no message to forget")) };
        let end = rest.first().copied().unwrap_or(self.messages.len());
        self.messages.drain(first..&end);
        Ok(())
    }

    /// Goes on with another model, which reads the conversation anew.
    fn change_model(&mut self, path: &Path) -> Result<()> {
        let model = model::load(Some(path), &self.arguments.source.hub)?;
        let mut options = self.options.clone();
        let own = self.arguments.sampling.settings(&model, self.manner == Manner::Own)?;
        (options.sampling, options.drafter) = (own, None);
        (self.options, self.memory, self.last) = (options, None, None);
        self.name = path.display().to_string();
        self.model = Arc::new(model);
        Ok(())
    }

    /// One message and its reply. What the model remembers of the conversation so far is used again.
    fn say(&mut self, text: &str) -> Result<()> {
        self.messages.push(json!({"role": "user", "content": attached(text)?}));
        let reply = self.reply();
        match &reply {
            Ok(reply) => self.messages.push(reply.clone()),
            // As if it had not been said.
            Err(_) => drop(self.messages.pop()),
        }
        reply.map(|_| ())
    }

    /// The model's answer, as a message.
    fn reply(&mut self) -> Result<Value> {
        let messages = Value::Array(self.messages.clone());
        let keywords = model::object("--chat-template-config", self.arguments.chat_template_config.as_deref())?;
        let template = model::template(self.arguments.chat_template.as_deref())?;
        let chat =
            Chat { messages: &messages, add_generation_prompt: true, keywords: Some(&keywords), ..Chat::default() };
        let model = Arc::clone(&self.model);
        let has_template = template.is_some() || model.tokenizer.has_template();
        let prompt = match has_template {
            true => model.chat_prompt(&chat, template.as_ref())?,
            // A model without a template goes on with the text.
            false => model
                .tokenizer
                .encode_prompt(self.messages[self.messages.len() - 1]["content"].as_str().unwrap_or_default())?,
        };
        if let Some(context) = model.context.filter(|&c| prompt.len() >= c) {
            return Err(Error::value(format!(
                "the conversation has {} tokens, the model's context {context}.\n  /drop forgets the oldest message and its \
                 reply, /reset all of them",
                prompt.len()
            )));
        }
        let sequence = self.recall(&prompt);
        let mut progress = say::Progress::new("prefill", "tok");
        let stream = model.stream(&prompt, &self.options, sequence)?;
        let mut stream = stream.on_prefill(move |done, total| {
            progress.at(done, total);
            !interrupt::seen()
        });
        let options = ReplyOptions { goes_on: !has_template, ..ReplyOptions::default() };
        let mut reader = Reply::new(&model.tokenizer, &prompt, options);
        let (mut text, mut reasoning, mut failed) = (String::new(), String::new(), None);
        self.show.begin();
        self.last = None;
        for response in stream.by_ref() {
            let taken = response.and_then(|r| Ok((reader.add(r.token, r.finish_reason)?, r)));
            match taken {
                Ok((taken, response)) => {
                    for part in &taken.parts {
                        match part {
                            Part::Text(t) => text.push_str(t),
                            Part::Reasoning(t) => reasoning.push_str(t),
                            _ => {}
                        }
                        self.show.part(part);
                    }
                    self.last = Some(response);
                }
                Err(e) => failed = Some(e),
            }
            if failed.is_some() || interrupt::seen() {
                break;
            }
        }
        self.show.end(self.last.as_ref());
        self.memory = stream.into_memory();
        if let Some(e) = failed {
            return Err(e);
        }
        if self.last.is_none() && interrupt::seen() {
            return Err(Error::value("stopped before the reply began; the message is taken back"));
        }
        if let Some(last) = self.last.as_ref().filter(|r| r.finish_reason == Some(Finish::Length)) {
            let n = last.generation_tokens;
            say::note(&format!("stopped at {n} tokens: the limit of --max-tokens or of the context"));
        }
        if let (Some(context), Some((tokens, _))) = (model.context, &self.memory)
            && tokens.len() * 5 > context * 4
        {
            let n = tokens.len();
            say::note(&format!("{n} of {context} tokens of the context are used; /drop and /reset make room"));
        }
        let mut message = json!({"role": "assistant", "content": text});
        if !reasoning.is_empty() {
            message["reasoning_content"] = reasoning.into();
        }
        Ok(message)
    }

    /// What the model remembers of the longest common beginning of `prompt` and what it saw.
    fn recall(&mut self, prompt: &[u32]) -> Sequence {
        let Some((tokens, mut sequence)) = self.memory.take() else { return Sequence::new() };
        let same = tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // One token at least is read, for its logits.
        let keep = same.min(prompt.len() - 1).min(sequence.len());
        if sequence.truncate(keep) { sequence } else { Sequence::new() }
    }
}

fn statistics(r: &Response) -> String {
    let (n, tps, prompt, peak) = (r.generation_tokens, r.generation_tps, r.prompt_tps, r.peak_memory);
    format!("{n} tokens · {tps:.1} tok/s · prompt {prompt:.1} tok/s · peak {peak:.2} GB")
}

/// A message with the texts of the files that it names as `@FILE`; a name without a file is a name.
fn attached(text: &str) -> Result<String> {
    /// Bytes of a file at most.
    const MOST: u64 = 1 << 20;
    let mut all = text.to_string();
    for name in text.split_whitespace().filter_map(|word| word.strip_prefix('@')) {
        let Ok(meta) = std::fs::metadata(name) else { continue };
        if !meta.is_file() {
            continue;
        }
        if meta.len() > MOST {
            return Err(Error::value(format!("@{name}: the file has {} bytes, {MOST} can be added", meta.len())));
        }
        let content = std::fs::read_to_string(name).map_err(|e| Error::io(format!("@{name}: {e}")))?;
        all += &format!("\n\n{name}:\n{content}");
    }
    Ok(all)
}
