//! How good the model is: held-out questions with known commands, and tales that must hold together.

use crate::Result;
use crate::howto::{Questions, holds};
use crate::model::{Cache, Config, Llama};
use crate::tales::{END, Tales, with_article};
use crate::text::prompt;
use crate::tokenize::{END_OF_TURN, Tokens};
use lapis::prelude::*;
use lapis::random::{self, Draws};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Heroes that tales are asked about, each with and without a trouble: those of the last stage of training.
const HEROES: usize = 16;

/// A model that answers.
pub(crate) struct Chat {
    pub(crate) model: Llama,
    pub(crate) config: Config,
    pub(crate) tokens: Tokens,
}

/// What a model reached: kept as score.json beside its weights.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Score {
    /// Held-out questions, and how many answers hold the command asked for.
    pub(crate) questions: usize,
    pub(crate) right: usize,
    /// The questions answered wrong.
    pub(crate) missed: Vec<String>,
    /// Tales asked for, and how many hold together: the likeliest words, and words drawn at temperature 0.6.
    pub(crate) tales: usize,
    pub(crate) whole_likeliest: usize,
    pub(crate) whole_drawn: usize,
}

/// A question that was answered wrong.
pub(crate) struct Miss {
    pub(crate) ask: String,
    pub(crate) wanted: String,
    pub(crate) got: String,
}

impl Chat {
    /// The answer to one question: at temperature 0 the likeliest tokens, else drawn with `seed`.
    pub(crate) fn answer(&self, ask: &str, temperature: f64, seed: u64) -> Result<String> {
        let end = self.tokens.id(END_OF_TURN)?;
        let mut cache = Cache::default();
        let (mut next, mut said) = (self.tokens.encode(&prompt(ask))?, Vec::new());
        let keys = random::split(&random::key(seed), self.config.max_position_embeddings)?;
        loop {
            let logits = self.model.next(&next, &mut cache)?;
            let token = if temperature == 0.0 {
                ops::argmax(&logits, Some(-1), false)?
            } else {
                let key = ops::reshape(&ops::take(&keys, &array([said.len() as i32]), 0)?, &[2])?;
                random::categorical(&ops::divide(&logits, temperature)?, -1, Draws::One, Some(&key))?
            };
            eval(cache.arrays().chain([&token]))?;
            let token = token.item::<u32>()? as i32;
            if token == end || !Llama::has_room(&self.config, &cache) {
                return self.tokens.decode(&said);
            }
            said.push(token);
            next = vec![token];
        }
    }

    /// Asks every `every`th held-out question: how many were asked, and those answered wrong.
    pub(crate) fn questions(&self, every: usize) -> Result<(usize, Vec<Miss>)> {
        let howto = Questions::howto()?;
        let all = howto.topics.iter().flat_map(|t| t.held_out.iter().map(|q| (q, &t.command)));
        let (mut asked, mut wrong) = (0, Vec::new());
        for (ask, command) in all.step_by(every) {
            asked += 1;
            let got = self.answer(ask, 0.0, 0)?;
            if !holds(&got, command) {
                wrong.push(Miss { ask: ask.clone(), wanted: command.clone(), got });
            }
        }
        Ok((asked, wrong))
    }

    /// Asks for tales: how many, and what is wrong with which.
    pub(crate) fn tales(&self, tales: &Tales, temperature: f64) -> Result<(usize, Vec<Miss>)> {
        let troubles = tales.troubles();
        let mut wrong = Vec::new();
        for (i, hero) in tales.heroes.iter().take(HEROES).flat_map(|h| [h, h]).enumerate() {
            let trouble = if i % 2 == 1 { format!(" {}", troubles[i % troubles.len()].1) } else { String::new() };
            let ask = format!("Tell me a story about {}{trouble}.", with_article(hero));
            let got = self.answer(&ask, temperature, i as u64)?;
            let faults = tales.faults(&got, hero);
            if !faults.is_empty() {
                wrong.push(Miss { ask, wanted: faults.join(", "), got });
            }
        }
        Ok((2 * HEROES, wrong))
    }
}

impl Chat {
    /// Asks everything and prints every miss and the score.
    pub(crate) fn score(&self, tales: &Tales) -> Result<Score> {
        let show = |misses: &[Miss]| {
            for miss in misses {
                println!("asked: {}\n  wanted: {}\n  got: {}", miss.ask, miss.wanted, miss.got);
            }
        };
        let (questions, wrong) = self.questions(1)?;
        show(&wrong);
        let right = questions - wrong.len();
        println!("held-out questions answered right: {right} of {questions}");
        let mut whole = [0; 2];
        let mut told = 0;
        for (whole, temperature) in whole.iter_mut().zip([0.0, 0.6]) {
            let (count, wrong) = self.tales(tales, temperature)?;
            show(&wrong);
            (told, *whole) = (count, count - wrong.len());
            println!("tales that hold together at temperature {temperature}: {whole} of {count}");
        }
        let missed = wrong.into_iter().map(|m| m.ask).collect();
        Ok(Score { questions, right, missed, tales: told, whole_likeliest: whole[0], whole_drawn: whole[1] })
    }
}

impl Tales {
    /// What keeps a text from being a tale of `hero` that holds together.
    pub(crate) fn faults(&self, tale: &str, hero: &str) -> Vec<String> {
        let mut faults = Vec::new();
        let words: Vec<&str> = tale.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
        if words.len() < 80 {
            faults.push(format!("{} words", words.len()));
        }
        // The first sentence says it again; the tale itself must be about it.
        if words.iter().filter(|w| **w == hero).count() < 2 {
            faults.push(format!("no {hero}"));
        }
        if !tale.trim_end().ends_with(END) {
            faults.push("no end".into());
        }
        let mut seen = HashSet::new();
        // Short ones such as `asked the owl` may come again.
        let mut long = tale.split(['.', '?', '!']).map(str::trim).filter(|s| s.split(' ').count() > 5);
        if long.any(|s| !seen.insert(s)) {
            faults.push("a sentence twice".into());
        }
        let named: HashSet<&str> = words.iter().copied().filter(|w| self.is_name(w)).collect();
        if named.len() != 1 {
            faults.push(format!("{} names", named.len()));
        }
        faults
    }
}
