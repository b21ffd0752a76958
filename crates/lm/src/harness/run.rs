//! A run of a task: prompts, what the model makes of them, what that is worth.

use super::filter::Filter;
use super::metric::{Item, Metric, words_f1};
use super::prompt::{Manner, inputs, target};
use super::task::{Doc, Kind, Task, bad, written};
use super::{Outcome, Score, Settings};
use crate::generate::{LanguageModel, Options};
use crate::likelihood::{Likelihood, Question};
use crate::sample::Sampling;
use crate::twister::Twister;
use lapis::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What the model made of a row: likelihoods of choices, or replies.
enum Made {
    Likelihoods(Vec<Likelihood>),
    Replies(Vec<String>),
}

/// A row with its contexts.
struct Asked<'a> {
    doc: &'a Doc,
    contexts: Vec<String>,
    continuations: Vec<String>,
}

impl Task {
    /// Runs the task. `each` hears how many questions are done of how many, and says whether to go on.
    ///
    /// # Errors
    /// A row that the task cannot be asked about, by file and line; a prompt beyond the model; being told to stop.
    pub fn run(
        &self,
        model: &LanguageModel,
        settings: &Settings,
        each: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Outcome> {
        let chat = settings.chat.unwrap_or_else(|| model.tokenizer.has_template());
        if chat && !model.tokenizer.has_template() {
            return Err(Error::value("[evaluate] the model has no chat template; leave --apply-chat-template out"));
        }
        let shots = settings.num_fewshot.unwrap_or(self.num_fewshot);
        let manner = Manner { model, chat, multiturn: settings.multiturn, keywords: &settings.keywords, shots };
        let mut dice = Twister::python(settings.seed);
        let count = settings.limit.map_or(self.docs.len(), |limit| limit.of(self.docs.len()));
        let asked = self.docs[..count].iter().map(|doc| self.ask(doc, &manner, &mut dice));
        let asked = asked.collect::<Result<Vec<_>>>()?;
        let mut cut = 0;
        let made = match self.kind {
            Kind::Generate => self.write(model, settings, &asked, chat, &mut cut, each)?,
            _ => self.score(model, settings, &asked, chat, &mut cut, each)?,
        };
        let mut samples = Vec::new();
        let mut scores = Vec::new();
        for (filter, pipeline) in &self.filters {
            let mut items: BTreeMap<usize, Vec<Item>> = BTreeMap::new();
            for (asked, made) in asked.iter().zip(&made) {
                let (found, shown) = self.worth(asked, made, pipeline)?;
                for (i, item) in found.into_iter().enumerate() {
                    items.entry(i).or_default().push(item);
                }
                samples.push(json!({
                    "filter": filter, "doc": Value::Object((*asked.doc.values).clone()), "arguments": asked.contexts,
                    "continuations": asked.continuations, "resps": shown,
                }));
            }
            for (metric, items) in self.metrics.iter().zip(items.values()) {
                let (value, error) = metric.total(items, settings.seed);
                let (metric, higher) = (metric.name.clone(), metric.higher_is_better);
                scores.push(Score { metric, filter: filter.clone(), value, error, higher_is_better: higher });
            }
        }
        Ok(Outcome {
            name: self.name.clone(),
            alias: self.alias.clone(),
            version: self.version,
            shots,
            count,
            rows: self.docs.len(),
            cut,
            scores,
            samples,
        })
    }

    fn ask<'a>(&self, doc: &'a Doc, manner: &Manner<'_>, dice: &mut Twister) -> Result<Asked<'a>> {
        let contexts = match self.kind {
            Kind::Rolling => vec![String::new()],
            _ => self.contexts(doc, manner, dice)?,
        };
        let answer = || target(&self.put, doc).map(|v| written(&v));
        let continuations = match self.kind {
            Kind::Generate => Vec::new(),
            Kind::Likelihood | Kind::Rolling => vec![answer()?],
            Kind::MultipleChoice => {
                // In a chat the reply begins where the template ends.
                let prefix = self.prefix(doc)?;
                let needed = !manner.chat || !prefix.is_empty() && !prefix.ends_with(char::is_whitespace);
                let between = if needed { self.put.target_delimiter.as_str() } else { "" };
                let choices = self.put.choice.as_ref().map_or(Ok(Vec::new()), |c| c.list(doc))?;
                if choices.is_empty() {
                    return Err(bad(doc, "there is nothing to choose from"));
                }
                match inputs(&self.put, doc)? {
                    Some(_) => vec![format!("{between}{}", answer()?)],
                    None => choices.iter().map(|c| format!("{between}{c}")).collect(),
                }
            }
        };
        Ok(Asked { doc, contexts, continuations })
    }

    /// How likely the continuations are; where probabilities without a context are needed, too, they come last.
    fn score(
        &self,
        model: &LanguageModel,
        settings: &Settings,
        asked: &[Asked<'_>],
        chat: bool,
        cut: &mut usize,
        each: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Vec<Made>> {
        let mut questions = Vec::new();
        // Whose they are.
        let mut owners = Vec::new();
        let alone = self.metrics.iter().any(|m| m.name == "acc_mutual_info");
        for (i, one) in asked.iter().enumerate() {
            if self.kind == Kind::Rolling {
                for question in windows(model, one)? {
                    owners.push(i);
                    questions.push(question);
                }
                continue;
            }
            let none = [String::new()];
            for context in one.contexts.iter().chain(if alone { &none[..] } else { &[] }) {
                let (question, shorter) = tokens(model, context, &one.continuations, chat)?;
                *cut += usize::from(shorter);
                owners.push(i);
                questions.push(question);
            }
        }
        let total = questions.len();
        let found = model.likelihoods(&questions, settings.batch_size, |done| each(done, total))?;
        let mut made: Vec<Vec<Likelihood>> = asked.iter().map(|_| Vec::new()).collect();
        for (owner, likelihoods) in owners.into_iter().zip(found) {
            match (self.kind, made[owner].first_mut()) {
                (Kind::Rolling, Some(all)) => all.sum += likelihoods.iter().map(|l| l.sum).sum::<f64>(),
                _ => made[owner].extend(likelihoods),
            }
        }
        Ok(made.into_iter().map(Made::Likelihoods).collect())
    }

    /// Replies.
    fn write(
        &self,
        model: &LanguageModel,
        settings: &Settings,
        asked: &[Asked<'_>],
        chat: bool,
        cut: &mut usize,
        each: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Vec<Made>> {
        let most = settings.max_tokens.or(self.writing.max_tokens).unwrap_or(8192);
        let sampling = Sampling {
            temperature: settings.sampling.temperature.max(self.writing.temperature.unwrap_or(0.0)),
            top_p: if settings.sampling.top_p < 1.0 {
                settings.sampling.top_p
            } else {
                self.writing.top_p.unwrap_or(1.0)
            },
            ..settings.sampling.clone()
        };
        let mut prompts = Vec::new();
        for one in asked {
            let mut prompt = model.tokenizer.encode(&one.contexts[0], !chat)?;
            if let Some(context) = model.context {
                let room = context.saturating_sub(most.min(context / 2)).max(1);
                if prompt.len() > room {
                    *cut += 1;
                    prompt.drain(..prompt.len() - room);
                }
            }
            if prompt.is_empty() {
                prompt.push(beginning(model)?);
            }
            prompts.extend(std::iter::repeat_n(prompt, self.repeats));
        }
        let options = Options {
            max_tokens: Some(most),
            sampling,
            stop: self.writing.until.clone(),
            max_batch: Some(settings.batch_size.max(1)),
            ..Options::default()
        };
        let total = prompts.len();
        let texts = model.batch_generate_with(&prompts, &options, |done| each(done, total))?;
        let thought = |text: String| match model.tokenizer.thinking() {
            Some(markers) => text.split_once(&markers.end).map_or_else(|| text.clone(), |(_, rest)| rest.to_string()),
            None => text,
        };
        let texts: Vec<String> = texts.into_iter().map(thought).collect();
        Ok(texts.chunks(self.repeats).map(|all| Made::Replies(all.to_vec())).collect())
    }

    /// What the answer to a row is worth, one item a metric, and what was answered.
    fn worth(&self, asked: &Asked<'_>, made: &Made, pipeline: &[Filter]) -> Result<(Vec<Item>, Value)> {
        let doc = asked.doc;
        match made {
            Made::Replies(replies) => {
                let mut left = replies.clone();
                for filter in pipeline {
                    left = filter.apply(left, doc)?;
                }
                let reply = left.first().cloned().unwrap_or_default();
                let gold = match (target(&self.put, doc)?, &self.put.choice) {
                    (Value::Number(n), Some(choice)) => {
                        let all = choice.list(doc)?;
                        let at = n.as_u64().and_then(|n| all.get(n as usize));
                        vec![
                            at.cloned()
                                .ok_or_else(|| bad(doc, format!("the answer is choice {n} of {}", all.len())))?,
                        ]
                    }
                    (Value::Array(all), _) => all.iter().map(written).collect(),
                    (other, _) => vec![written(&other)],
                };
                let one = |m: &Metric| match m.name.as_str() {
                    "f1" => Ok(Item::Value(gold.iter().map(|g| words_f1(&reply, g)).fold(0.0, f64::max))),
                    _ => {
                        let own = m.clean.apply(&reply)?;
                        let same = gold.iter().map(|g| m.clean.apply(g)).collect::<Result<Vec<_>>>()?.contains(&own);
                        Ok(Item::Value(f64::from(same)))
                    }
                };
                let items = self.metrics.iter().map(one).collect::<Result<_>>()?;
                Ok((items, json!({"written": replies, "filtered": reply, "target": gold})))
            }
            Made::Likelihoods(all) => {
                let shown: Vec<Value> = all.iter().map(|l| json!([l.sum, l.greedy])).collect();
                let one = all.first().copied().unwrap_or(Likelihood { sum: 0.0, greedy: false });
                let items = match self.kind {
                    Kind::Rolling => {
                        let text = &asked.continuations[0];
                        let words = text.split_whitespace().count().max(1) as f64;
                        let over =
                            |m: &Metric| if m.name == "word_perplexity" { words } else { text.len().max(1) as f64 };
                        self.metrics.iter().map(|m| Item::Spread(one.sum, over(m))).collect()
                    }
                    Kind::Likelihood => {
                        let value = |m: &Metric| if m.name == "acc" { f64::from(one.greedy) } else { one.sum };
                        self.metrics.iter().map(|m| Item::Value(value(m))).collect()
                    }
                    _ => self.choose(doc, all)?,
                };
                Ok((items, Value::Array(shown)))
            }
        }
    }

    /// What the choice of the likeliest is worth.
    fn choose(&self, doc: &Doc, all: &[Likelihood]) -> Result<Vec<Item>> {
        let choices = self.put.choice.as_ref().map_or(Ok(Vec::new()), |c| c.list(doc))?;
        let gold = match inputs(&self.put, doc)? {
            Some(n) => Value::from(n),
            None => target(&self.put, doc)?,
        };
        let which = |value: &Value| {
            let at = match value {
                Value::String(text) => choices.iter().position(|c| c == text),
                other => other.as_u64().map(|n| n as usize).filter(|n| *n < choices.len()),
            };
            at.ok_or_else(|| bad(doc, format!("the answer is {value}, which is none of the {} choices", choices.len())))
        };
        let right: Vec<usize> = match &gold {
            Value::Array(all) => all.iter().map(which).collect::<Result<_>>()?,
            one => vec![which(one)?],
        };
        let own = &all[..choices.len().min(all.len())];
        let best = |score: &dyn Fn(usize, &Likelihood) -> f64| {
            let scores = own.iter().enumerate().map(|(i, l)| score(i, l));
            // The first of equals.
            scores.enumerate().fold((0, f64::NEG_INFINITY), |a, b| if b.1 > a.1 { b } else { a }).0
        };
        let plain = best(&|_, l| l.sum);
        let by = |length: &dyn Fn(&str) -> usize| best(&|i, l| l.sum / length(&choices[i]).max(1) as f64);
        let item = |m: &Metric| match m.name.as_str() {
            "f1" | "mcc" => Item::Classes(right[0] as i64, plain as i64),
            "brier_score" => {
                let top = own.iter().map(|l| l.sum).fold(f64::NEG_INFINITY, f64::max);
                let shares: Vec<f64> = own.iter().map(|l| (l.sum - top).exp()).collect();
                let sum: f64 = shares.iter().sum();
                Item::Chances(right[0] as i64, shares.iter().map(|s| s / sum).collect())
            }
            name => {
                let hit = match name {
                    "acc_norm" => right.contains(&by(&|c| c.chars().count())),
                    "acc_bytes" => right.contains(&by(&str::len)),
                    "acc_mutual_info" => right.contains(&best(&|i, l| l.sum - all[own.len() + i].sum)),
                    "exact_match" => right.iter().any(|&i| own[i].greedy),
                    _ => right.contains(&plain),
                };
                Item::Value(f64::from(hit))
            }
        };
        Ok(self.metrics.iter().map(item).collect())
    }
}

/// A token to begin from where there is no context.
fn beginning(model: &LanguageModel) -> Result<u32> {
    let bos = model.tokenizer.special_tokens().get("bos_token").and_then(Value::as_str);
    let bos = bos.and_then(|t| model.tokenizer.token_id(t));
    let none =
        || Error::value("[evaluate] there is no context, and the tokenizer has no token that begins or ends a text");
    bos.or_else(|| model.eos.iter().next().copied()).ok_or_else(none)
}

/// A context and its continuations in tokens, and whether the context had to be cut from the left to fit the model. Spaces at
/// the end of a context belong to what follows, as they do in tokens.
fn tokens(model: &LanguageModel, context: &str, continuations: &[String], chat: bool) -> Result<(Question, bool)> {
    let (head, spaces) = context.split_at(context.trim_end_matches(' ').len());
    let (head, spaces) = if head.is_empty() { (context, "") } else { (head, spaces) };
    let mut begin = match head.is_empty() {
        true => Vec::new(),
        false => model.tokenizer.encode(head, !chat)?,
    };
    let mut rest = Vec::new();
    for continuation in continuations {
        let whole = model.tokenizer.encode(&format!("{head}{spaces}{continuation}"), !chat && !begin.is_empty())?;
        rest.push(whole.get(begin.len()..).unwrap_or_default().to_vec());
    }
    if begin.is_empty() {
        begin.push(beginning(model)?);
    }
    let longest = rest.iter().map(Vec::len).max().unwrap_or(0);
    // The last token is foreseen and not read.
    let room = model.context.map_or(usize::MAX, |context| (context + 1).saturating_sub(longest));
    let over = begin.len().saturating_sub(room);
    if over == begin.len() {
        let context = model.context.unwrap_or(0);
        return Err(Error::value(format!(
            "[evaluate] a choice has {longest} tokens, the model's context {context}: there is no room for a question"
        )));
    }
    begin.drain(..over);
    Ok((Question { context: begin, continuations: rest }, over > 0))
}

/// A whole text, each token but the first (what the tokenizer puts there, where it does) foreseen once: in windows of the
/// model's context, the later ones with as much before them as has room.
fn windows(model: &LanguageModel, asked: &Asked<'_>) -> Result<Vec<Question>> {
    let tokens = model.tokenizer.encode(&asked.continuations[0], true)?;
    if tokens.len() < 2 {
        return Err(bad(asked.doc, "the text has fewer than two tokens"));
    }
    // The last token is foreseen and not read.
    let most = model.context.unwrap_or(2048).max(2);
    let (mut all, mut done) = (Vec::new(), 1);
    while done < tokens.len() {
        let end = (done + most).min(tokens.len());
        let context = tokens[end.saturating_sub(most + 1)..done].to_vec();
        all.push(Question { context, continuations: vec![tokens[done..end].to_vec()] });
        done = end;
    }
    Ok(all)
}
