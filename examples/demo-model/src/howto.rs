//! Questions that have known answers: how to do something with lapis, and small talk. Templates with words to choose
//! from make many questions of each; `held_out` ones are for the score and never seen in training.

use crate::Result;
use crate::dice::Dice;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What can be asked, and what is answered.
#[derive(Deserialize)]
pub(crate) struct Topic {
    #[cfg(test)]
    pub(crate) name: String,
    /// What every right answer holds; small talk has none.
    #[serde(default)]
    pub(crate) command: String,
    answers: Vec<String>,
    ask: Vec<String>,
    pub(crate) held_out: Vec<String>,
}

/// Topics and the words that stand for `{word}` in their questions.
#[derive(Deserialize)]
pub(crate) struct Questions {
    words: BTreeMap<String, Vec<String>>,
    /// Ways to ask: a template `{how} run it` stands for each of them, with `run it` for `{do}` or `runs it` for `{does}`.
    #[serde(default)]
    frames: Vec<String>,
    #[serde(alias = "intents", alias = "talks")]
    pub(crate) topics: Vec<Topic>,
}

impl Questions {
    /// data/howto.json.
    pub(crate) fn howto() -> Result<Questions> {
        Ok(serde_json::from_str(include_str!("../data/howto.json"))?)
    }

    /// data/talk.json.
    pub(crate) fn talk() -> Result<Questions> {
        Ok(serde_json::from_str(include_str!("../data/talk.json"))?)
    }

    /// A question and its answer. What is not known at all has more questions than any other talk, so topics are drawn
    /// by the number of their templates where `by_size`.
    pub(crate) fn draw(&self, dice: &mut Dice, by_size: bool) -> (String, String) {
        let topic = if by_size {
            let mut at = dice.below(self.topics.iter().map(|t| t.ask.len()).sum());
            let mut topics = self.topics.iter();
            loop {
                match topics.next() {
                    Some(t) if at >= t.ask.len() => at -= t.ask.len(),
                    Some(t) => break t,
                    None => break &self.topics[0],
                }
            }
        } else {
            dice.pick(&self.topics)
        };
        let ask = dice.pick(&topic.ask);
        let template = match ask.strip_prefix("{how} ") {
            Some(task) => framed(dice.pick::<String>(&self.frames), task),
            None => ask.clone(),
        };
        let ask = fill(&template, |word| self.words.get(word).map(|w| dice.pick(w).clone()));
        (ask, dice.pick(&topic.answers).replace("{command}", &topic.command))
    }

    /// Every question that training can see, in plain form.
    #[cfg(test)]
    pub(crate) fn all(&self) -> std::collections::HashSet<String> {
        let mut all = std::collections::HashSet::new();
        for template in self.topics.iter().flat_map(|t| &t.ask) {
            let mut forms = match template.strip_prefix("{how} ") {
                Some(task) => self.frames.iter().map(|f| framed(f, task)).collect(),
                None => vec![template.clone()],
            };
            for (word, choices) in &self.words {
                let slot = format!("{{{word}}}");
                if template.contains(&slot) {
                    forms = forms.iter().flat_map(|f| choices.iter().map(|c| f.replace(&slot, c))).collect();
                }
            }
            all.extend(forms.iter().map(|f| plain(f)));
        }
        all
    }
}

/// A way to ask about a task that begins with its verb.
fn framed(frame: &str, task: &str) -> String {
    let (verb, rest) = task.split_once(' ').unwrap_or((task, ""));
    let does = match verb {
        "have" => "has".to_string(),
        _ if verb.ends_with('y') && !verb.ends_with("ay") && !verb.ends_with("oy") => {
            format!("{}ies", &verb[..verb.len() - 1])
        }
        _ if ["o", "s", "sh", "ch", "x"].iter().any(|e| verb.ends_with(e)) => format!("{verb}es"),
        _ => format!("{verb}s"),
    };
    frame.replace("{do}", task).replace("{does}", format!("{does} {rest}").trim_end())
}

/// Puts what `word` gives in place of each `{word}`; what it does not know stays.
pub(crate) fn fill(template: &str, mut word: impl FnMut(&str) -> Option<String>) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else { break };
        text.push_str(before);
        match word(name) {
            Some(chosen) => text.push_str(&chosen),
            None => text.push_str(&format!("{{{name}}}")),
        }
        rest = after;
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
/// Words alone, in small letters: questions that differ in case and punctuation are the same.
pub(crate) fn plain(question: &str) -> String {
    let kept = question.chars().filter(|c| c.is_alphanumeric() || c.is_whitespace() || "-_".contains(*c));
    kept.collect::<String>().to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether `answer` holds `command`, whatever the white space.
pub(crate) fn holds(answer: &str, command: &str) -> bool {
    let spaced = |s: &str| s.split_whitespace().collect::<Vec<_>>().join(" ");
    let (answer, command) = (spaced(answer), spaced(command));
    // As a whole: what follows must not make it another command.
    answer.match_indices(&command).any(|(at, _)| !answer[at + command.len()..].starts_with([' ', '-', '_']))
}
