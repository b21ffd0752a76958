//! Data sets: rows of JSON to tokens.
//!
//! A directory holds `train.jsonl`, `valid.jsonl` and `test.jsonl`; the first row of a file says which format all of them have. A
//! row that cannot be taken is an error that names file and line.

use crate::Settings;
use lapis::{Error, Result};
use lapis_lm::LanguageModel;
use lapis_lm::template::Chat;
use serde_json::{Map, Value, json};
use std::path::Path;

/// A text to learn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// How many of them are a prompt, which is read and not learned.
    pub offset: usize,
    /// The same with an answer to which this one is preferred.
    pub rejected: Option<Box<Sample>>,
}

impl Sample {
    /// It, and what it is preferred to.
    pub fn rows(&self) -> impl Iterator<Item = &Sample> {
        std::iter::once(self).chain(self.rejected.as_deref())
    }
}

/// The sets of a run; those that it does not need are empty.
#[derive(Clone, Debug, Default)]
pub struct Data {
    /// To learn.
    pub train: Vec<Sample>,
    /// To see how well.
    pub valid: Vec<Sample>,
    /// To see how well at the end.
    pub test: Vec<Sample>,
}

/// What rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Completions,
    Chat,
    Text,
    /// Two answers, of which one is preferred.
    Pairs,
}

impl Format {
    fn of(row: &Map<String, Value>, s: &Settings) -> Option<Format> {
        if s.prefers() {
            return (row.contains_key("chosen") && row.contains_key("rejected")).then_some(Format::Pairs);
        }
        match row {
            r if r.contains_key(&s.prompt_feature) && r.contains_key(&s.completion_feature) => {
                Some(Format::Completions)
            }
            r if r.contains_key(&s.chat_feature) => Some(Format::Chat),
            r if r.contains_key(&s.text_feature) => Some(Format::Text),
            _ => None,
        }
    }

    fn keys(self, s: &Settings) -> String {
        match self {
            Format::Completions => format!("{:?} and {:?}", s.prompt_feature, s.completion_feature),
            Format::Chat => format!("{:?}", s.chat_feature),
            Format::Text => format!("{:?}", s.text_feature),
            Format::Pairs => "\"chosen\" and \"rejected\"".into(),
        }
    }
}

impl Data {
    /// Reads the sets that the settings need. What is odd and no error is said to `note`.
    ///
    /// # Errors
    /// A file that is missing or empty; a row that is no JSON, of another format, or that the model's template refuses.
    pub fn read(dir: &Path, model: &LanguageModel, s: &Settings, note: &mut dyn FnMut(&str)) -> Result<Data> {
        if !dir.is_dir() {
            return Err(Error::io(format!(
                "[lora] {} is no directory; --data takes one with train.jsonl, valid.jsonl and test.jsonl",
                dir.display()
            )));
        }
        let mut data = Data::default();
        let path = |name: &str| dir.join(format!("{name}.jsonl"));
        let needed = |name: &str| {
            let path = path(name);
            match path.is_file() {
                true => Ok(path),
                false => Err(Error::io(format!("[lora] there is no {}", path.display()))),
            }
        };
        if s.train {
            data.train = read(&needed("train")?, model, s, note)?;
            match path("valid") {
                path if path.is_file() => data.valid = read(&path, model, s, note)?,
                path => note(&format!(
                    "there is no {}: nothing says how well texts are foreseen that were not learned",
                    path.display()
                )),
            }
        }
        if s.test {
            data.test = read(&needed("test")?, model, s, note)?;
        }
        Ok(data)
    }
}

/// The samples of a file.
fn read(file: &Path, model: &LanguageModel, s: &Settings, note: &mut dyn FnMut(&str)) -> Result<Vec<Sample>> {
    let shown = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(format!("[lora] {shown}: {e}")))?;
    let samples = parse(&text, &shown, model, s)?;
    let lengths = samples.iter().filter_map(|s| s.rows().map(|r| r.tokens.len()).max());
    let long: Vec<usize> = lengths.filter(|&n| n > s.max_seq_length).collect();
    if let Some(longest) = long.iter().max() {
        note(&format!(
            "{shown}: {} of {} samples are longer than {} tokens, the longest {longest}; they are cut. Split them, or give a larger \
             --max-seq-length",
            long.len(),
            samples.len(),
            s.max_seq_length
        ));
    }
    let before = samples.len();
    let of_use = |sample: &Sample| sample.rows().all(|r| r.offset.max(1) < r.tokens.len().min(s.max_seq_length));
    let samples: Vec<Sample> = samples.into_iter().filter(of_use).collect();
    if samples.len() < before {
        note(&format!(
            "{shown}: {} of {before} samples are left out: nothing in them is to be learned (after the prompt, within {} tokens)",
            before - samples.len(),
            s.max_seq_length
        ));
    }
    match samples.is_empty() {
        true => Err(Error::value(format!("[lora] {shown} holds no sample to learn from"))),
        false => Ok(samples),
    }
}

/// The samples of lines of JSON; `shown` is what errors call them.
pub(crate) fn parse(text: &str, shown: &str, model: &LanguageModel, s: &Settings) -> Result<Vec<Sample>> {
    let (mut format, mut samples) = (None, Vec::new());
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |why: &str| Error::value(format!("[lora] {shown}:{}: {why}", i + 1));
        let row: Value = serde_json::from_str(line).map_err(|e| bad(&e.to_string()))?;
        let Value::Object(row) = row else { return Err(bad("the line is no JSON object")) };
        let own = Format::of(&row, s).ok_or_else(|| {
            let known = match s.prefers() {
                true => format!("{}, as --train-mode {} asks for", Format::Pairs.keys(s), s.train_mode),
                false => [Format::Completions, Format::Chat, Format::Text].map(|f| f.keys(s)).join("; or "),
            };
            let has = row.keys().map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ");
            let pairs = row.contains_key("chosen") && row.contains_key("rejected") && !s.prefers();
            let hint = if pairs { " (--train-mode dpo or orpo learns from pairs)" } else { "" };
            bad(&format!("the row has {has}; it needs {known}{hint}"))
        })?;
        let first = *format.get_or_insert(own);
        if own != first {
            let (own, first) = (own.keys(s), first.keys(s));
            return Err(bad(&format!("the row has {own}, those before {first}: a file has one format")));
        }
        samples.push(sample(&row, own, model, s).map_err(|e| bad(untitled(e.message())))?);
    }
    Ok(samples)
}

/// An error without the name of the op.
fn untitled(message: &str) -> &str {
    message.split_once("] ").filter(|(op, _)| op.starts_with('[')).map_or(message, |(_, rest)| rest)
}

fn sample(row: &Map<String, Value>, format: Format, model: &LanguageModel, s: &Settings) -> Result<Sample> {
    let text = |key: &String| row[key].as_str().ok_or_else(|| Error::value(format!("[lora] {key:?} is no text")));
    let tools = match row.get("tools") {
        None | Some(Value::Null) => None,
        Some(tools @ Value::Array(_)) => Some(tools),
        Some(_) => return Err(Error::value("[lora] \"tools\" is no list")),
    };
    let messages = match format {
        Format::Text => {
            if s.mask_prompt {
                return Err(Error::value("[lora] --mask-prompt needs prompts, and a text has none"));
            }
            let mut tokens = model.tokenizer.encode(text(&s.text_feature)?, true)?;
            if let Some(&end) = model.tokenizer.eos_ids().iter().next()
                && tokens.last().is_none_or(|t| !model.tokenizer.eos_ids().contains(t))
            {
                tokens.push(end);
            }
            return Ok(Sample { tokens, ..Sample::default() });
        }
        Format::Pairs => {
            let before = before(row, s)?;
            let answer = |key: &str| match &row[key] {
                Value::String(text) => Ok(vec![json!({"role": "assistant", "content": text})]),
                Value::Array(messages) if !messages.is_empty() => Ok(messages.clone()),
                _ => Err(Error::value(format!("[lora] {key:?} is neither a text nor a list of messages"))),
            };
            let one = |key| answered(model, tools, [&before[..], &answer(key)?].concat(), true);
            let rejected = Some(Box::new(one("rejected")?));
            return Ok(Sample { rejected, ..one("chosen")? });
        }
        Format::Completions => {
            let (prompt, completion) = (text(&s.prompt_feature)?, text(&s.completion_feature)?);
            json!([{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}])
        }
        Format::Chat => row[&s.chat_feature].clone(),
    };
    match messages {
        Value::Array(messages) if !messages.is_empty() => answered(model, tools, messages, s.mask_prompt),
        _ => Err(Error::value(format!("[lora] {:?} is no list of messages", s.chat_feature))),
    }
}

/// What comes before the answers of a pair: a message of the system, and a question or messages; nothing, where the answers
/// are whole conversations.
fn before(row: &Map<String, Value>, s: &Settings) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    if let Some(system) = row.get("system").filter(|v| !v.is_null()) {
        let system = system.as_str().ok_or_else(|| Error::value("[lora] \"system\" is no text"))?;
        all.push(json!({"role": "system", "content": system}));
    }
    match row.get(&s.prompt_feature) {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => all.push(json!({"role": "user", "content": text})),
        Some(Value::Array(messages)) => all.extend(messages.iter().cloned()),
        Some(_) => {
            let key = &s.prompt_feature;
            return Err(Error::value(format!("[lora] {key:?} is neither a text nor a list of messages")));
        }
    }
    Ok(all)
}

/// A conversation; with `masked`, all before its last message is read and not learned.
fn answered(model: &LanguageModel, tools: Option<&Value>, mut messages: Vec<Value>, masked: bool) -> Result<Sample> {
    let whole = Value::Array(messages.clone());
    let tokens = model.chat_prompt(&Chat { messages: &whole, tools, ..Chat::default() }, None)?;
    let mut offset = 0;
    if masked {
        let last = messages.pop();
        let add_generation_prompt = last.is_some_and(|m| m["role"] == "assistant");
        let before = Value::Array(messages);
        offset = model
            .chat_prompt(&Chat { messages: &before, tools, add_generation_prompt, ..Chat::default() }, None)?
            .len();
    }
    Ok(Sample { tokens, offset, rejected: None })
}
