//! Short children's tales told on request: a hero with a name, a trouble, somebody who helps, an end. The parts are
//! data/tales.json; what keeps a tale together is that all its sentences are about the same hero, trouble and helper.

use crate::Result;
use crate::dice::Dice;
use crate::howto::fill;
use crate::text::Stage;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Every tale ends with this.
pub(crate) const END: &str = "The end.";

#[derive(Deserialize)]
struct Problem {
    name: String,
    ask: Vec<String>,
    set: Vec<String>,
    hurt: Vec<String>,
    #[serde(rename = "try")]
    attempt: Vec<String>,
    advice: Vec<String>,
    solve: Vec<String>,
    moral: Vec<String>,
}

/// The parts that tales are made of.
#[derive(Deserialize)]
pub(crate) struct Tales {
    pub(crate) heroes: Vec<String>,
    she: Vec<String>,
    he: Vec<String>,
    natures: Vec<String>,
    places: Vec<String>,
    settings: BTreeMap<String, String>,
    openings: Vec<String>,
    /// Tales begin by saying again what was asked for.
    echoes: Vec<String>,
    habits: Vec<String>,
    loves: Vec<String>,
    likes: Vec<String>,
    helpers: Vec<String>,
    arrivals: Vec<String>,
    closings: Vec<String>,
    problems: Vec<Problem>,
    things: Vec<String>,
    requests: Vec<String>,
    free: Vec<String>,
}

impl Tales {
    /// data/tales.json.
    pub(crate) fn new() -> Result<Tales> {
        Ok(serde_json::from_str(include_str!("../data/tales.json"))?)
    }

    /// A request and the tale told. What the request names (hero, trouble, place, name) is what the tale has.
    pub(crate) fn draw(&self, dice: &mut Dice, stage: Stage) -> (String, String) {
        let late = stage.by_kind;
        let hero = dice.pick(&self.heroes[..stage.heroes.min(self.heroes.len())]).clone();
        let nature = dice.pick(&self.natures).clone();
        let her = dice.chance(50);
        let name = dice.pick(if her { &self.she } else { &self.he }).clone();
        let place = dice.pick(&self.places).clone();
        let problem = dice.pick(&self.problems);
        let thing = dice.pick(&self.things).clone();
        let helper = loop {
            let helper = dice.pick(&self.helpers).clone();
            if !helper.ends_with(&hero) {
                break helper;
            }
        };

        let mut subject = with_article(&if dice.chance(25) { format!("{nature} {hero}") } else { hero.clone() });
        if dice.chance(15) {
            subject += &format!(" {} {name}", dice.pick(&["called", "named"]));
        }
        if dice.chance(35) {
            subject += &format!(" {}", dice.pick(&problem.ask).replace("{a_thing}", &with_article(&thing)));
        } else if dice.chance(20) {
            subject += &format!(" {}", self.settings[&place]);
        }
        let free = dice.chance(10);
        let mut request = dice.pick(if free { &self.free } else { &self.requests }).replace("{a_hero}", &subject);
        if dice.chance(4) {
            request += " in one paragraph";
        }

        let pronoun = |word: &str| {
            let (she, he) = match word {
                "he" => ("she", "he"),
                "him" => ("her", "him"),
                "his" => ("her", "his"),
                "He" => ("She", "He"),
                "His" => ("Her", "His"),
                "himself" => ("herself", "himself"),
                _ => return None,
            };
            Some((if her { she } else { he }).to_string())
        };
        let love = dice.pick(&self.loves).clone();
        let like = dice.pick(&self.likes).clone();
        let sentence = |dice: &mut Dice, choices: &[String], by_kind: bool| {
            let template = dice.pick(choices).clone();
            let mut first = true;
            let mut text = fill(&template, |word| {
                let other = by_kind
                    && if late {
                        word == "name" && dice.chance(60)
                    } else {
                        std::mem::take(&mut first) && dice.chance(20)
                    };
                Some(match word {
                    "name" if other => format!("the {hero}"),
                    "name" => name.clone(),
                    "a_hero" => with_article(&format!("{nature} {hero}")),
                    "setting" => self.settings[&place].clone(),
                    "love" => love.clone(),
                    "likes" => like.clone(),
                    "a_helper" => with_article(&helper),
                    "helper_kind" => helper.clone(),
                    "thing" => thing.clone(),
                    word => return pronoun(word),
                })
            });
            capitalize(&mut text);
            text
        };
        let p = problem;
        let parts = [
            format!("{} {subject}.", dice.pick(&self.echoes)),
            sentence(dice, &self.openings, false),
            sentence(dice, &self.habits, late),
            sentence(dice, &p.set, late),
            sentence(dice, &p.hurt, true),
            sentence(dice, &p.attempt, true),
            sentence(dice, &self.arrivals, false),
            sentence(dice, &p.advice, false),
            sentence(dice, &p.solve, true),
            sentence(dice, &p.moral, late),
            sentence(dice, &self.closings, late),
            END.to_string(),
        ];
        (request, parts.join(" "))
    }

    /// Whether heroes are called so.
    pub(crate) fn is_name(&self, word: &str) -> bool {
        self.she.iter().chain(&self.he).any(|n| n == word)
    }

    /// The troubles, by what a request says of them: for the score.
    pub(crate) fn troubles(&self) -> Vec<(&str, &str)> {
        let plain = |p: &&Problem| !p.ask[0].contains('{');
        self.problems.iter().filter(plain).map(|p| (p.name.as_str(), p.ask[0].as_str())).collect()
    }
}

/// `a fox`, `an owl`.
pub(crate) fn with_article(noun: &str) -> String {
    format!(
        "{} {noun}",
        if noun.starts_with(['a', 'e', 'i', 'o', 'u']) && !noun.starts_with("uni") { "an" } else { "a" }
    )
}

/// Makes the first letter a capital.
pub(crate) fn capitalize(text: &mut String) {
    if let Some(first) = text.get(..1) {
        let first = first.to_uppercase();
        text.replace_range(..1, &first);
    }
}
