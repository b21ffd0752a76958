//! Data sets: rows to tokens.
//!
//! The first row of a file says which format all of them have. A row that cannot be taken is an error that names file and line.

use crate::Settings;
use crate::sources::{Faults, Rows, Slice, Source};
use lapis::{Error, Result};
use lapis_lm::LanguageModel;
use lapis_lm::template::Chat;
use serde_json::{Map, Value, json};

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
    /// Reads the sets that the settings need: those of `hf_dataset`, where they name one, else of `data`, a directory or the name of
    /// a data set in the hub's cache. What is odd and no error is said to `note`.
    ///
    /// # Errors
    /// A file that is missing or empty; a row that is no JSON, of another format, or that the model's template refuses.
    pub fn read(data: &str, model: &LanguageModel, s: &Settings, note: &mut dyn FnMut(&str)) -> Result<Data> {
        let mut sets = Data::default();
        match &s.hf_dataset {
            None => sets.add(&Source::find(data, None)?, model, s, note)?,
            Some(Value::Array(all)) => all.iter().try_for_each(|named| sets.add_named(named, model, s, note))?,
            Some(named) => sets.add_named(named, model, s, note)?,
        }
        for (wanted, samples, split) in [(s.train, &sets.train, "train"), (s.test, &sets.test, "test")] {
            if wanted && samples.is_empty() {
                return Err(Error::value(format!("[lora] hf_dataset gives nothing for the {split} set")));
            }
        }
        Ok(sets)
    }

    /// The splits of a source, by their names.
    fn add(&mut self, source: &Source, model: &LanguageModel, s: &Settings, note: &mut dyn FnMut(&str)) -> Result<()> {
        let needed = |split: &str| {
            let absent = || Error::io(format!("[lora] there is no {} (or .csv, .parquet)", source.file(split)));
            source.split(split)?.ok_or_else(absent)
        };
        if s.train {
            self.train = samples(needed("train")?, model, s, note)?;
            match source.split("valid")? {
                Some(rows) => self.valid = samples(rows, model, s, note)?,
                None => note(&format!(
                    "there is no {}: nothing says how well texts are foreseen that were not learned",
                    source.file("valid")
                )),
            }
        }
        if s.test {
            self.test = samples(needed("test")?, model, s, note)?;
        }
        Ok(())
    }

    /// An entry of mlx-lm's `hf_dataset`: `path`, and splits and keys of its own.
    fn add_named(
        &mut self,
        named: &Value,
        model: &LanguageModel,
        s: &Settings,
        note: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let wrong = |what: String| Error::value(format!("[lora] hf_dataset: {what}"));
        let entries = named.as_object().ok_or_else(|| wrong(format!("{named} is no mapping with path")))?;
        let mut own = s.clone();
        let (mut path, mut subset, mut revision) = (None, None, None);
        let mut splits = ["train[:80%]", "train[-10%:]", "test"].map(String::from);
        for (key, value) in entries.iter().filter(|(_, value)| !value.is_null()) {
            let text = || value.as_str().map(String::from).ok_or_else(|| wrong(format!("{key} is no text")));
            match key.as_str() {
                "path" | "name" if path.is_none() => path = Some(text()?),
                "train_split" => splits[0] = text()?,
                "valid_split" => splits[1] = text()?,
                "test_split" => splits[2] = text()?,
                "prompt_feature" | "completion_feature" | "chat_feature" | "text_feature" => {
                    own.set(key, value.clone())?
                }
                // What `datasets.load_dataset` is given beside the path.
                "config" => {
                    for (key, value) in
                        value.as_object().ok_or_else(|| wrong(format!("config is {value}, no mapping")))?
                    {
                        let text = value.as_str().map(String::from);
                        match (key.as_str(), text) {
                            ("name", text @ Some(_)) => subset = text,
                            ("revision", text @ Some(_)) => revision = text,
                            _ => {
                                return Err(wrong(format!(
                                    "config.{key}: {value} is not read; known are name, revision"
                                )));
                            }
                        }
                    }
                }
                _ => {
                    let known = "path, config, train_split, valid_split, test_split, prompt_feature, completion_feature, chat_feature, text_feature";
                    return Err(wrong(format!("{key} is not read; known are {known}")));
                }
            }
        }
        let path = path.ok_or_else(|| wrong("path is missing: the name of a data set".into()))?;
        let path = revision.map_or(path.clone(), |revision: String| format!("{path}@{revision}"));
        let source = Source::find(&path, subset.as_deref())?;
        for (split, set) in splits
            .iter()
            .zip([&mut self.train, &mut self.valid, &mut self.test])
            .enumerate()
            .filter_map(|(i, pair)| if i == 2 { s.test } else { s.train }.then_some(pair))
        {
            let slice = Slice::parse(split)?;
            let rows =
                source.split(&slice.split)?.ok_or_else(|| wrong(format!("{path} has no split {:?}", slice.split)))?;
            let kept = slice.of(rows.iter().map(|file| file.rows.len()).sum());
            let mut first = 0;
            let part = |mut file: Rows| {
                let n = file.rows.len();
                let own = kept.start.clamp(first, first + n) - first..kept.end.clamp(first, first + n) - first;
                first += n;
                file.rows = file.rows.drain(own).collect();
                file
            };
            let part = rows.into_iter().map(part).filter(|file| !file.rows.is_empty()).collect();
            set.extend(samples(part, model, &own, note)?);
        }
        Ok(())
    }
}

/// The samples of the files of a set.
fn samples(files: Vec<Rows>, model: &LanguageModel, s: &Settings, note: &mut dyn FnMut(&str)) -> Result<Vec<Sample>> {
    let shown = match &files[..] {
        [] => return Ok(Vec::new()),
        [file] => file.shown.clone(),
        [file, rest @ ..] => format!("{} and {} more", file.shown, rest.len()),
    };
    let mut samples = Vec::new();
    for file in files {
        samples.extend(parse(file, model, s)?);
    }
    let most = s.max_seq_length;
    let length = |s: &Sample| s.rows().map(|r| r.tokens.len()).max().unwrap_or(0);
    let long: Vec<usize> = samples.iter().map(length).filter(|&n| n > most).collect();
    if let Some(longest) = long.iter().max() {
        let (n, all) = (long.len(), samples.len());
        let what = format!("{shown}: {n} of {all} samples are longer than {most} tokens, the longest {longest}");
        let help = "Split them, or give a larger --max-seq-length";
        match s.on_long.as_str() {
            "error" => return Err(Error::value(format!("[lora] {what}\n  {help}, or --on-long cut or skip"))),
            "skip" => samples.retain(|s| length(s) <= most),
            _ => {}
        }
        let done = if s.on_long == "skip" { "left out" } else { "cut" };
        note(&format!("{what}; they are {done}. {help}"));
    }
    let before = samples.len();
    let of_use = |sample: &Sample| sample.rows().all(|r| r.offset.max(1) < r.tokens.len().min(most));
    let samples: Vec<Sample> = samples.into_iter().filter(of_use).collect();
    if samples.len() < before {
        note(&format!(
            "{shown}: {} of {before} samples are left out: nothing in them is to be learned (after the prompt, within {most} tokens)",
            before - samples.len()
        ));
    }
    match samples.is_empty() {
        true => Err(Error::value(format!("[lora] {shown} holds no sample to learn from"))),
        false => Ok(samples),
    }
}

/// The samples of a file's rows.
pub(crate) fn parse(file: Rows, model: &LanguageModel, s: &Settings) -> Result<Vec<Sample>> {
    let (mut format, mut samples, mut faults) = (None, Vec::new(), Faults::of(&file.shown));
    for (line, row) in &file.rows {
        let parsed = Format::of(row, s).ok_or_else(|| unknown(row, s)).and_then(|own| {
            let first = *format.get_or_insert(own);
            if own != first {
                let (own, first) = (own.keys(s), first.keys(s));
                return Err(format!("the row has {own}, those before {first}: a file has one format"));
            }
            sample(row, own, model, s).map_err(|e| untitled(e.message()).to_string())
        });
        match parsed {
            Ok(sample) => samples.push(sample),
            Err(why) => faults.add(*line, &why),
        }
    }
    faults.none()?;
    Ok(samples)
}

/// Why a row has no format.
fn unknown(row: &Map<String, Value>, s: &Settings) -> String {
    let known = match s.prefers() {
        true => format!("{}, as --train-mode {} asks for", Format::Pairs.keys(s), s.train_mode),
        false => [Format::Completions, Format::Chat, Format::Text].map(|f| f.keys(s)).join("; or "),
    };
    let has = row.keys().map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ");
    let pairs = row.contains_key("chosen") && row.contains_key("rejected") && !s.prefers();
    let hint = if pairs { " (--train-mode dpo or orpo learns from pairs)" } else { "" };
    format!("the row has {has}; it needs {known}{hint}")
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
