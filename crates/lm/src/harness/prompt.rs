//! Prompts: a description, examples with their answers, the question; as plain text or as a chat.

use super::task::{Doc, Field, Put, Task, bad, python, written};
use crate::generate::LanguageModel;
use crate::template::Chat;
use crate::twister::Twister;
use lapis::{Error, Result};
use serde_json::{Map, Value, json};

/// A part of a conversation; `after` follows it in plain text.
#[derive(Clone, Debug)]
struct Turn {
    role: &'static str,
    text: String,
    after: String,
}

impl Turn {
    fn new(role: &'static str, text: impl Into<String>, after: impl Into<String>) -> Turn {
        Turn { role, text: text.into(), after: after.into() }
    }
}

/// How prompts are put.
pub(super) struct Manner<'a> {
    pub(super) model: &'a LanguageModel,
    /// As the model's chat template has it.
    pub(super) chat: bool,
    /// Examples are turns of their own.
    pub(super) multiturn: bool,
    pub(super) keywords: &'a Map<String, Value>,
    pub(super) shots: usize,
}

/// The answer to a question: its text, or which choice it is.
pub(super) fn target(put: &Put, doc: &Doc) -> Result<Value> {
    let column = matches!(&put.target, Field::Text(name, _) if doc.values.contains_key(name));
    Ok(match put.target.value(doc)? {
        Value::String(text) if !column => literal(text, put.choice.is_some(), true),
        Value::Bool(b) if put.choice.is_some() => Value::from(u8::from(b)),
        other => other,
    })
}

/// A text that a template wrote: which choice it names, or a list.
fn literal(text: String, choices: bool, lists: bool) -> Value {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let list = lists && text.len() >= 2 && text.starts_with('[') && text.ends_with(']');
    match (digits && choices, list) {
        (true, _) => text.parse::<u64>().map_or(Value::String(text), Value::from),
        (_, true) => python(&text).unwrap_or(Value::String(text)),
        _ => Value::String(text),
    }
}

/// Which of several contexts is the right one, where choices stand before the answer (`doc_to_text` is their number).
pub(super) fn inputs(put: &Put, doc: &Doc) -> Result<Option<usize>> {
    if put.choice.is_none() {
        return Ok(None);
    }
    let value = match put.text.value(doc)? {
        Value::String(text) => match &put.text {
            Field::Text(name, _) if doc.values.contains_key(name) => Value::String(text),
            _ => literal(text, true, false),
        },
        other => other,
    };
    Ok(value.as_u64().map(|n| n as usize))
}

/// Two texts with `between`, unless there is a space already.
fn joined(a: &str, b: &str, between: &str) -> String {
    let space = a.is_empty() || b.is_empty() || a.ends_with(char::is_whitespace) || b.starts_with(char::is_whitespace);
    format!("{a}{}{b}", if space { "" } else { between })
}

/// A question, with its answer where there is one.
fn turns(question: &str, answer: Option<String>, prefix: &str, between: &str, after: &str) -> Vec<Turn> {
    let answered = answer.as_deref().is_some_and(|a| !a.is_empty());
    let needed = !prefix.is_empty() && joined(question, prefix, " ").len() > question.len() + prefix.len();
    let follows = if answered && prefix.is_empty() || needed { between } else { "" };
    let mut all = vec![Turn::new("user", question, follows)];
    match answer {
        Some(answer) if answered => all.push(Turn::new("assistant", joined(prefix, &answer, " "), after)),
        _ if !prefix.is_empty() => all.push(Turn::new("assistant", prefix, "")),
        _ => {}
    }
    all
}

impl Task {
    /// The prefix of replies to a question.
    pub(super) fn prefix(&self, doc: &Doc) -> Result<String> {
        self.put.prefix.as_ref().map_or(Ok(String::new()), |p| p.text(doc))
    }

    /// The contexts of a question: one, or one a choice where choices stand before the answer.
    pub(super) fn contexts(&self, doc: &Doc, manner: &Manner<'_>, dice: &mut Twister) -> Result<Vec<String>> {
        let mut before = Vec::new();
        if let Some(description) = &self.description {
            let text = description.text(doc)?;
            if !text.is_empty() {
                before.push(Turn::new("system", text, ""));
            }
        }
        for example in self.examples(doc, manner.shots, dice)? {
            before.extend(self.example(&example)?);
        }
        let prefix = self.prefix(doc)?;
        if inputs(&self.put, doc)?.is_some() {
            let choices = self.put.choice.as_ref().map_or(Ok(Vec::new()), |c| c.list(doc))?;
            let one = |choice: &String| {
                let own = turns(choice, None, &prefix, "", "");
                render([before.clone(), own].concat(), &prefix, manner)
            };
            return choices.iter().map(one).collect();
        }
        let question = self.put.text.text(doc)?;
        let own = turns(&question, None, &prefix, &self.put.target_delimiter, "");
        Ok(vec![render([before, own].concat(), &prefix, manner)?])
    }

    /// A row with its answer.
    fn example(&self, doc: &Doc) -> Result<Vec<Turn>> {
        let put = &self.shots.put;
        let mut choices = put.choice.as_ref().map(|c| c.list(doc)).transpose()?;
        let question = match inputs(put, doc)? {
            Some(n) => {
                let of = choices.take().unwrap_or_default();
                of.get(n).cloned().ok_or_else(|| bad(doc, format!("there is no choice {n}")))?
            }
            None => put.text.text(doc)?,
        };
        let answer = match (target(put, doc)?, choices) {
            (Value::Number(n), Some(choices)) => {
                let at = n.as_u64().and_then(|n| choices.get(n as usize));
                at.cloned().ok_or_else(|| bad(doc, format!("the answer is choice {n} of {}", choices.len())))?
            }
            (Value::Array(all), _) => all.first().map(written).unwrap_or_default(),
            (other, _) => written(&other),
        };
        let prefix = put.prefix.as_ref().map_or(Ok(String::new()), |p| p.text(doc))?;
        Ok(turns(&question, Some(answer), &prefix, &put.target_delimiter, &put.delimiter))
    }

    /// Rows for examples before a question, which is none of them.
    fn examples(&self, doc: &Doc, count: usize, dice: &mut Twister) -> Result<Vec<Doc>> {
        let all = &self.shots.docs;
        let other = |d: &&Doc| !self.shots.among || d.values != doc.values;
        let needed = count + usize::from(self.shots.among && !self.shots.first);
        if count == 0 {
            return Ok(Vec::new());
        }
        if needed > all.len() {
            return Err(Error::value(format!(
                "[evaluate] {}: {count} examples are asked for, and there are {}; give a smaller --num-shots",
                self.name,
                all.len()
            )));
        }
        if self.shots.first {
            return Ok(all.iter().filter(other).take(count).cloned().collect());
        }
        let drawn: Vec<&Doc> = dice.sample(all.len(), needed).into_iter().map(|i| &all[i]).collect();
        let mut drawn: Vec<Doc> = drawn.into_iter().filter(other).take(count).cloned().collect();
        if drawn.len() < count {
            // The question stands among the rows more than once.
            let pool: Vec<&Doc> = all.iter().filter(other).collect();
            drawn = dice.sample(pool.len(), count).into_iter().map(|i| pool[i].clone()).collect();
        }
        Ok(drawn)
    }
}

/// Turns as one text.
fn render(mut all: Vec<Turn>, prefix: &str, manner: &Manner<'_>) -> Result<String> {
    if !manner.chat {
        return Ok(all.iter().flat_map(|t| [t.text.as_str(), &t.after]).collect());
    }
    if !manner.multiturn {
        all = single(all);
    }
    let messages: Vec<Value> = all.iter().map(|t| json!({"role": t.role, "content": t.text})).collect();
    let messages = Value::Array(messages);
    let begin = prefix.is_empty();
    let chat = Chat {
        messages: &messages,
        add_generation_prompt: begin,
        continue_final_message: !begin,
        keywords: Some(manner.keywords),
        ..Chat::default()
    };
    manner.model.chat_text(&chat, None)
}

/// Examples and question as one message of the user.
fn single(mut all: Vec<Turn>) -> Vec<Turn> {
    let system = if all.first().is_some_and(|t| t.role == "system") { Some(all.remove(0)) } else { None };
    let reply = if all.last().is_some_and(|t| t.role == "assistant") { all.pop() } else { None };
    if let Some(last) = all.last_mut() {
        last.after.clear();
    }
    let whole: String = all.iter().flat_map(|t| [t.text.as_str(), &t.after]).collect();
    system.into_iter().chain([Turn::new("user", whole, "")]).chain(reply).collect()
}
