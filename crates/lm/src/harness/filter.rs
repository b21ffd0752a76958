//! Filters: from what a model wrote to what is compared.

use super::task::{Doc, Fields, bad};
use fancy_regex::Regex;
use lapis::{Error, Result};
use serde_json::{Map, Value};

/// One filter of a pipeline over the replies to one question.
#[derive(Clone, Debug)]
pub(super) enum Filter {
    Regex(Pattern),
    /// The letter of a choice: by a pattern, by the text of a choice, or by a letter after a colon.
    MultiChoice(Pattern, Clean),
    Strip,
    Lower,
    Upper,
    Map(Map<String, Value>, String),
    First,
    FirstOf(usize),
    Majority,
}

/// What a pattern finds, and which of what it finds counts.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    regex: Regex,
    /// Which match: from the end where negative.
    select: i64,
    fallback: String,
}

/// What does not count in a comparison.
#[derive(Clone, Debug, Default)]
pub(super) struct Clean {
    pub(super) patterns: Vec<Regex>,
    pub(super) case: bool,
    pub(super) punctuation: bool,
    pub(super) numbers: bool,
}

/// A pattern of a task.
pub(super) fn regex(text: &str) -> Result<Regex> {
    Regex::new(text).map_err(|e| Error::value(format!("[evaluate] {text:?} is no pattern: {e}")))
}

impl Clean {
    /// Of the settings `ignore_case`, `ignore_punctuation`, `ignore_numbers`, `regexes_to_ignore`.
    pub(super) fn of(fields: &Fields<'_>) -> Result<Clean> {
        let patterns = fields.texts("regexes_to_ignore")?.unwrap_or_default();
        Ok(Clean {
            patterns: patterns.iter().map(|p| regex(p)).collect::<Result<_>>()?,
            case: fields.truth("ignore_case")?,
            punctuation: fields.truth("ignore_punctuation")?,
            numbers: fields.truth("ignore_numbers")?,
        })
    }

    /// What is left of a text.
    pub(super) fn apply(&self, text: &str) -> Result<String> {
        let mut text = text.to_string();
        for pattern in &self.patterns {
            let rest = pattern.try_replacen(&text, 0, "").map_err(|e| Error::eval(format!("[evaluate] {e}")))?;
            text = rest.into_owned();
        }
        if self.case {
            text = text.to_lowercase();
        }
        text.retain(|c| !(self.punctuation && c.is_ascii_punctuation() || self.numbers && c.is_ascii_digit()));
        Ok(text)
    }
}

impl Pattern {
    fn of(fields: &Fields<'_>) -> Result<Pattern> {
        Ok(Pattern {
            regex: regex(fields.text("regex_pattern")?.as_deref().unwrap_or(r"#### (\-?[0-9\.\,]+)"))?,
            select: fields.integer("group_select")?.unwrap_or(0),
            fallback: fields.text("fallback")?.unwrap_or_else(|| "[invalid]".into()),
        })
    }

    /// What Python's `findall` gives, the match that is selected: of several groups the first that is not empty.
    fn find(&self, regex: &Regex, text: &str) -> Result<Option<String>> {
        let mut all = Vec::new();
        for found in regex.captures_iter(text) {
            let found = found.map_err(|e| Error::eval(format!("[evaluate] {:?}: {e}", regex.as_str())))?;
            let group = |i: usize| found.get(i).map_or(String::new(), |m| m.as_str().to_string());
            all.push(match found.len() {
                1 => group(0),
                n => (1..n).map(group).find(|g| n == 2 || !g.is_empty()).unwrap_or_else(|| self.fallback.clone()),
            });
        }
        let at = if self.select < 0 { all.len() as i64 + self.select } else { self.select };
        Ok(usize::try_from(at).ok().and_then(|at| all.get(at)).map(|m| m.trim().to_string()))
    }

    fn of_choices(&self, clean: &Clean, reply: &str, doc: &Doc) -> Result<String> {
        if let Some(found) = self.find(&self.regex, reply)?.filter(|f| !f.is_empty()) {
            return Ok(found);
        }
        let choices = doc.values.get("choices").and_then(Value::as_array);
        let choices = choices.ok_or_else(|| bad(doc, "multi_choice_regex needs a list \"choices\""))?;
        let letter = |i: usize| char::from(b'A' + (i % 26) as u8);
        let mut texts = Vec::new();
        for (i, choice) in choices.iter().filter_map(Value::as_str).enumerate() {
            texts.push((clean.apply(choice.trim())?, letter(i)));
        }
        let known = texts.clone();
        // The longest first, so that a choice that begins another does not hide it.
        texts.sort_by_key(|(text, _)| std::cmp::Reverse(text.chars().count()));
        let any: Vec<String> = texts.iter().map(|(text, _)| fancy_regex::escape(text).into_owned()).collect();
        if let Some(found) = self.find(&regex(&any.join("|"))?, &clean.apply(reply)?)?.filter(|f| !f.is_empty()) {
            let of = known.iter().rev().find(|(text, _)| *text == found);
            return Ok(of.map_or(found, |(_, letter)| format!("({letter})")));
        }
        let letters: Vec<String> = known.iter().map(|(_, letter)| letter.to_string()).collect();
        let found = self.find(&regex(&format!(r":[\s]*({})", letters.join("|")))?, reply)?;
        Ok(found.filter(|f| !f.is_empty()).map_or_else(|| self.fallback.clone(), |letter| format!("({letter})")))
    }
}

impl Filter {
    /// Of an entry of a task's `filter`.
    pub(super) fn of(entry: &Map<String, Value>) -> Result<Filter> {
        let fields = Fields::new(entry, "a filter");
        let name = fields.text("function")?.unwrap_or_default();
        Ok(match name.as_str() {
            "regex" => Filter::Regex(Pattern::of(&fields)?),
            "multi_choice_regex" => Filter::MultiChoice(Pattern::of(&fields)?, Clean::of(&fields)?),
            "remove_whitespace" => Filter::Strip,
            "lowercase" => Filter::Lower,
            "uppercase" => Filter::Upper,
            "map" => {
                let table = entry.get("mapping_dict").and_then(Value::as_object).cloned().unwrap_or_default();
                Filter::Map(table, entry.get("default_value").map_or("None".into(), super::task::written))
            }
            "take_first" => Filter::First,
            "take_first_k" => Filter::FirstOf(usize::try_from(fields.integer("k")?.unwrap_or(1)).unwrap_or(1).max(1)),
            "majority_vote" => Filter::Majority,
            _ => {
                return Err(Error::unsupported(format!(
                    "[evaluate] there is no filter {name:?}; there are regex, multi_choice_regex, remove_whitespace, lowercase, \
                     uppercase, map, take_first, take_first_k, majority_vote"
                )));
            }
        })
    }

    /// What becomes of the replies to a question.
    pub(super) fn apply(&self, replies: Vec<String>, doc: &Doc) -> Result<Vec<String>> {
        let each = |f: &dyn Fn(&str) -> Result<String>| replies.iter().map(|r| f(r)).collect::<Result<Vec<_>>>();
        match self {
            Filter::Regex(p) => each(&|r| Ok(p.find(&p.regex, r)?.unwrap_or_else(|| p.fallback.clone()))),
            Filter::MultiChoice(p, clean) => each(&|r| p.of_choices(clean, r, doc)),
            Filter::Strip => each(&|r| Ok(r.trim().to_string())),
            Filter::Lower => each(&|r| Ok(r.to_lowercase())),
            Filter::Upper => each(&|r| Ok(r.to_uppercase())),
            Filter::Map(table, default) => {
                each(&|r| Ok(table.get(r).map_or_else(|| default.clone(), super::task::written)))
            }
            Filter::First => Ok(replies.into_iter().take(1).collect()),
            Filter::FirstOf(k) => Ok(replies.into_iter().take(*k).collect()),
            Filter::Majority => {
                let count = |r: &String| replies.iter().filter(|other| *other == r).count();
                // The first of those that are most.
                let best = replies.iter().rev().max_by_key(|r| count(r)).cloned();
                Ok(best.into_iter().collect())
            }
        }
    }
}
