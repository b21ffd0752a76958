//! `lapis chat`: a conversation in the terminal.

use crate::commands::generate::limit;
use crate::hub::HubArguments;
use crate::model::{self, AdapterArguments, DraftArguments, KvArguments, SamplingArguments};
use crate::{Manner, interrupt, say};
use lapis::{Error, Result};
use lapis_lm::template::Chat;
use lapis_lm::{Finish, LanguageModel, Options, Response, Sequence};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A model: a directory, a .gguf file, or owner/name on the hub [default: the demo model inside the program]
    #[arg(long)]
    model: Option<PathBuf>,
    #[command(flatten)]
    hub: HubArguments,
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
    #[arg(long, default_value_t = 2048)]
    prefill_step_size: usize,
    /// Threads to use
    #[arg(long)]
    threads: Option<usize>,
    /// Keep no history of what was typed
    #[arg(long)]
    no_history: bool,
    /// Accepted; code in a model repository is never run
    #[arg(long, hide = true)]
    trust_remote_code: bool,
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
/stats /tokens    what the last reply took; how full the context is
/quit             leave (Ctrl-D, too)
Ctrl-C stops a reply. A line that ends in \\ goes on in the next.";

struct Talk<'a> {
    model: &'a LanguageModel,
    messages: Vec<Value>,
    options: Options,
    arguments: &'a Arguments,
    /// The tokens the model remembers, and what it remembers of them.
    memory: Option<(Vec<u32>, Sequence)>,
    last: Option<Response>,
}

pub(crate) fn run(a: Arguments, manner: Manner) -> Result<()> {
    if let Some(n) = a.threads {
        lapis_cpu::pool::set_threads(n)?;
    }
    let model = a.adapter.load(a.model.as_deref(), &a.hub)?;
    let mut options = Options {
        max_tokens: limit(a.max_tokens, model::default_max_tokens(manner, 256))?,
        sampling: a.sampling.settings(&model, manner == Manner::Own)?,
        prefill_step: Some(a.prefill_step_size),
        kv: a.kv.options()?,
        ..Options::default()
    };
    a.draft.apply(&model, &a.hub, &mut options)?;
    let mut talk = Talk { model: &model, messages: Vec::new(), options, arguments: &a, memory: None, last: None };
    talk.begin(a.system_prompt.clone());
    interrupt::watch();
    let mut lines = Lines::new(!a.no_history)?;
    if lines.on_terminal() {
        println!(
            "A chat with {}. /help lists commands.",
            a.model.as_ref().map_or("the demo model".into(), |m| m.display().to_string())
        );
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
            Err(e) => say::error(&e),
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
            "help" => println!("{HELP}"),
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
                self.say(&text)?;
            }
            "edit" => {
                self.take_back()?;
                self.say(rest)?;
            }
            "set" => self.set(rest)?,
            "stats" => match &self.last {
                Some(last) => println!("{}", statistics(last)),
                None => println!("nothing was written yet"),
            },
            "tokens" => {
                let used = self.memory.as_ref().map_or(0, |m| m.0.len());
                match self.model.context {
                    Some(context) => println!("{used} of {context} tokens of the context are used"),
                    None => println!("{used} tokens are used"),
                }
            }
            "save" => self.save(rest)?,
            "load" => {
                let text = std::fs::read_to_string(rest).map_err(|e| Error::io(format!("{rest}: {e}")))?;
                let all: Value = serde_json::from_str(&text).map_err(|e| Error::io(format!("{rest}: {e}")))?;
                let messages = all["messages"].as_array().filter(|a| a.iter().all(|m| m["role"].is_string()));
                let bad = || Error::io(format!("{rest}: no conversation; /save writes one"));
                self.messages = messages.ok_or_else(bad)?.clone();
            }
            _ => println!("/{} is no command; /help lists them", say::safe(name)),
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
            "max-tokens" => next.max_tokens = Some(whole()?.max(1) as usize),
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
        let text = serde_json::to_vec_pretty(&json!({"messages": self.messages})).unwrap_or_default();
        let mut file = lapis::io::atomic::AtomicFile::create(path, "save", text.len() as u64)?;
        file.write(&text)?;
        file.commit()
    }

    /// One message and its reply. What the model remembers of the conversation so far is used again.
    fn say(&mut self, text: &str) -> Result<()> {
        self.messages.push(json!({"role": "user", "content": text}));
        let reply = self.reply();
        match &reply {
            Ok(reply) => self.messages.push(json!({"role": "assistant", "content": reply})),
            // As if it had not been said.
            Err(_) => drop(self.messages.pop()),
        }
        reply.map(|_| ())
    }

    fn reply(&mut self) -> Result<String> {
        let messages = Value::Array(self.messages.clone());
        let keywords = model::object("--chat-template-config", self.arguments.chat_template_config.as_deref())?;
        let template = model::template(self.arguments.chat_template.as_deref())?;
        let chat =
            Chat { messages: &messages, add_generation_prompt: true, keywords: Some(&keywords), ..Chat::default() };
        let has_template = template.is_some() || self.model.tokenizer.template().is_some();
        let prompt = match has_template {
            true => self.model.chat_prompt(&chat, template.as_ref())?,
            // A model without a template goes on with the text.
            false => self
                .model
                .tokenizer
                .encode_prompt(self.messages[self.messages.len() - 1]["content"].as_str().unwrap_or_default())?,
        };
        let sequence = self.recall(&prompt);
        let mut progress = say::Progress::new("prefill", "tok");
        let stream = self.model.stream(&prompt, &self.options, sequence)?;
        let mut stream = stream.on_prefill(move |done, total| progress.at(done, total));
        let (mut reply, mut failed) = (String::new(), None);
        let mut out = std::io::stdout();
        for response in stream.by_ref() {
            match response {
                Ok(response) => {
                    print!("{}", say::safe(&response.text));
                    drop(out.flush());
                    reply.push_str(&response.text);
                    self.last = Some(response);
                }
                Err(e) => failed = Some(e),
            }
            if interrupt::seen() {
                break;
            }
        }
        println!();
        self.memory = stream.into_memory();
        if let Some(e) = failed {
            return Err(e);
        }
        if let Some(last) = &self.last {
            if std::io::stderr().is_terminal() {
                eprintln!("\x1b[2m{}\x1b[0m", statistics(last));
            }
            if last.finish_reason == Some(Finish::Length) {
                eprintln!("stopped at {} tokens: the limit of --max-tokens or of the context", last.generation_tokens);
            }
        }
        if let (Some(context), Some((tokens, _))) = (self.model.context, &self.memory)
            && tokens.len() * 5 > context * 4
        {
            eprintln!("{} of {context} tokens of the context are used; /reset begins anew", tokens.len());
        }
        Ok(reply)
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

/// Lines from a terminal with editing and history, or from a pipe.
enum Lines {
    Terminal(Box<DefaultEditor>, Option<PathBuf>),
    Pipe,
}

impl Lines {
    fn new(history: bool) -> Result<Lines> {
        if !std::io::stdin().is_terminal() {
            return Ok(Lines::Pipe);
        }
        let mut editor = DefaultEditor::new().map_err(|e| Error::io(format!("terminal: {e}")))?;
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
        let state = state.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/state")));
        let file = state.filter(|_| history).map(|s| s.join("lapis").join("history"));
        if let Some(file) = &file {
            // No history yet is none.
            drop(editor.load_history(file));
        }
        Ok(Lines::Terminal(Box::new(editor), file))
    }

    fn on_terminal(&self) -> bool {
        matches!(self, Lines::Terminal(..))
    }

    /// The next message: lines that end in a backslash go on. `None` at the end.
    fn next(&mut self) -> Result<Option<String>> {
        let mut message = String::new();
        loop {
            let line = match self {
                Lines::Terminal(editor, _) => match editor.readline(if message.is_empty() { ">> " } else { ".. " }) {
                    Ok(line) => line,
                    Err(ReadlineError::Interrupted) if message.is_empty() => return Ok(None),
                    Err(ReadlineError::Interrupted) => {
                        message.clear();
                        continue;
                    }
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(e) => return Err(Error::io(format!("terminal: {e}"))),
                },
                Lines::Pipe => {
                    let mut line = String::new();
                    let read = std::io::stdin().lock().read_line(&mut line);
                    if read.map_err(|e| Error::io(format!("standard input: {e}")))? == 0 {
                        return Ok((!message.is_empty()).then_some(message));
                    }
                    line.trim_end_matches(['\n', '\r']).to_string()
                }
            };
            if let Some(part) = line.strip_suffix('\\') {
                message.push_str(part);
                message.push('\n');
                continue;
            }
            message.push_str(&line);
            if let Lines::Terminal(editor, _) = self {
                drop(editor.add_history_entry(&message));
            }
            return Ok(Some(message));
        }
    }

    fn save(&mut self) {
        if let Lines::Terminal(editor, Some(file)) = self {
            // A history that cannot be kept is no fault of the conversation.
            if let Some(dir) = file.parent() {
                drop(std::fs::create_dir_all(dir));
            }
            drop(editor.save_history(file));
        }
    }
}
