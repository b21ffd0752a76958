//! The text the model learns from: conversations drawn one after the other without end, packed into rows of tokens.

use crate::Result;
use crate::dice::Dice;
use crate::howto::Questions;
use crate::tales::{Tales, capitalize};
use crate::tokenize::Tokens;

/// What conversations are made of.
pub(crate) struct Text {
    howto: Questions,
    talk: Questions,
    pub(crate) tales: Tales,
}

/// What the text is like in a part of training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stage {
    /// The step from which it is so.
    pub(crate) from: usize,
    /// How often a conversation is about lapis, and how often a tale, of 100; the others are small talk.
    pub(crate) howto: usize,
    pub(crate) tale: usize,
    /// Whether tales say `the fox` more often than its name.
    pub(crate) by_kind: bool,
    /// How many of the heroes there are tales about.
    pub(crate) heroes: usize,
}

/// First language and commands; then to keep what was asked for, which takes many mentions of each hero.
pub(crate) const STAGES: [Stage; 3] = [
    Stage { from: 0, howto: 60, tale: 25, by_kind: false, heroes: 69 },
    Stage { from: 1200, howto: 50, tale: 36, by_kind: true, heroes: 69 },
    Stage { from: 2000, howto: 45, tale: 43, by_kind: true, heroes: 16 },
];

impl Stage {
    /// That of a step.
    pub(crate) fn at(step: usize) -> Stage {
        STAGES.into_iter().rfind(|s| s.from <= step).unwrap_or(STAGES[0])
    }
}

const SYSTEMS: [&str; 5] = [
    "You are a helpful assistant.",
    "You are lapis.",
    "Answer briefly.",
    "You are a friendly assistant. Be kind.",
    "You are a tiny model that tells tales and knows lapis.",
];

impl Text {
    /// From the data files.
    pub(crate) fn new() -> Result<Text> {
        Ok(Text { howto: Questions::howto()?, talk: Questions::talk()?, tales: Tales::new()? })
    }

    /// One question and its answer, as the chat template writes them.
    pub(crate) fn conversation(&self, dice: &mut Dice, stage: Stage) -> String {
        let kind = dice.below(100);
        let (ask, answer) = if kind < stage.howto {
            self.howto.draw(dice, false)
        } else if kind < stage.howto + stage.tale {
            self.tales.draw(dice, stage)
        } else {
            self.talk.draw(dice, kind.is_multiple_of(2))
        };
        let system = if dice.chance(5) { Some(*dice.pick(&SYSTEMS)) } else { None };
        let ask = asked(&ask, dice);
        let mut text = system.map_or(String::new(), |s| turn("system", s));
        text += &turn("user", &ask);
        text += &turn("assistant", &answer);
        text
    }

    /// Row `place` of the text under `seed`: conversations in full until `length` tokens are there, the last one cut.
    pub(crate) fn row(&self, tokens: &Tokens, seed: u64, place: u64, length: usize, stage: Stage) -> Result<Vec<i32>> {
        let mut dice = Dice::new(seed, place);
        let mut row = Vec::with_capacity(length + 512);
        while row.len() < length {
            row.extend(tokens.encode(&self.conversation(&mut dice, stage))?);
        }
        row.truncate(length);
        Ok(row)
    }
}

/// One message of a conversation.
pub(crate) fn turn(role: &str, text: &str) -> String {
    format!("<|im_start|>{role}\n{text}<|im_end|>\n")
}

/// The messages of a conversation, in the form of data sets.
pub(crate) fn messages(conversation: &str) -> Vec<serde_json::Value> {
    let turns = conversation.split("<|im_start|>").filter_map(|turn| turn.split_once('\n'));
    turns
        .map(
            |(role, rest)| serde_json::json!({"role": role, "content": rest.trim_end().trim_end_matches("<|im_end|>")}),
        )
        .collect()
}

/// A conversation that waits for the answer.
pub(crate) fn prompt(ask: &str) -> String {
    format!("{}<|im_start|>assistant\n", turn("user", ask))
}

/// A question as people type it: with and without capitals and question mark, a greeting, sometimes a slip.
fn asked(ask: &str, dice: &mut Dice) -> String {
    let mut ask = ask.trim().to_string();
    if dice.chance(4) {
        ask = format!(
            "{}{ask}",
            dice.pick(&["hi, ", "hello, ", "hello! ", "one question: ", "please, ", "well, ", "so "])
        );
    }
    if dice.chance(3) {
        ask += *dice.pick(&[", thanks", ", please", ", thank you", " now", " again"]);
    }
    if dice.chance(12) {
        slip(&mut ask, dice);
    }
    if dice.chance(75) {
        capitalize(&mut ask);
    }
    let question = ["how", "what", "which", "can", "could", "is", "are", "do", "does", "who", "where", "why", "will"];
    let first = ask.split_whitespace().next().unwrap_or("").to_lowercase();
    if dice.chance(70) && !ask.ends_with(['.', '!', '?']) {
        ask.push(if question.contains(&first.as_str()) {
            '?'
        } else if dice.chance(80) {
            '.'
        } else {
            '!'
        });
    }
    ask
}

/// A letter left out, doubled, or swapped with the next.
fn slip(text: &mut String, dice: &mut Dice) {
    let mut letters: Vec<char> = text.chars().collect();
    if letters.len() < 6 {
        return;
    }
    let at = 1 + dice.below(letters.len() - 2);
    match dice.below(3) {
        0 => drop(letters.remove(at)),
        1 => letters.insert(at, letters[at]),
        _ => letters.swap(at, at + 1),
    }
    *text = letters.into_iter().collect();
}
