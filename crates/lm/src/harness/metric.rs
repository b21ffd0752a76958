//! Metrics: what an answer is worth, what all of them come to, and how sure that is.

use super::filter::Clean;
use super::task::{Fields, Kind};
use crate::twister::Twister;
use lapis::{Error, Result};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// What one question gives.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    Value(f64),
    /// The right class and the one that was taken.
    Classes(i64, i64),
    /// A log-likelihood and what it is spread over.
    Spread(f64, f64),
    /// The right class and the probabilities of all.
    Chances(i64, Vec<f64>),
}

/// How what all questions give becomes one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aggregation {
    Mean,
    Median,
    Perplexity,
    WeightedPerplexity,
    BitsPerByte,
    F1,
    Matthews,
    Brier,
}

/// A metric of a task.
#[derive(Clone, Debug)]
pub(super) struct Metric {
    pub(super) name: String,
    aggregation: Aggregation,
    pub(super) higher_is_better: bool,
    /// What does not count where texts are compared.
    pub(super) clean: Clean,
}

/// Name, what it becomes, and whether more is better.
type Row = (&'static str, Aggregation, bool);

/// The metrics of a kind of task; the first ones are taken where a task names none.
fn known(kind: Kind) -> (&'static [Row], usize) {
    use Aggregation::*;
    match kind {
        Kind::MultipleChoice => (
            &[
                ("acc", Mean, true),
                ("acc_norm", Mean, true),
                ("acc_bytes", Mean, true),
                ("acc_mutual_info", Mean, true),
                ("exact_match", Mean, true),
                ("f1", F1, true),
                ("mcc", Matthews, true),
                ("brier_score", Brier, false),
            ],
            2,
        ),
        Kind::Likelihood => (&[("perplexity", Perplexity, false), ("acc", Mean, true)], 2),
        Kind::Rolling => (
            &[
                ("word_perplexity", WeightedPerplexity, false),
                ("byte_perplexity", WeightedPerplexity, false),
                ("bits_per_byte", BitsPerByte, false),
            ],
            3,
        ),
        Kind::Generate => (&[("exact_match", Mean, true), ("f1", Mean, true)], 1),
    }
}

impl Metric {
    /// Those of a task that names none.
    pub(super) fn usual(kind: Kind) -> Vec<Metric> {
        let (all, usual) = known(kind);
        all[..usual].iter().map(Metric::row).collect()
    }

    fn row(&(name, aggregation, higher_is_better): &Row) -> Metric {
        Metric { name: name.into(), aggregation, higher_is_better, clean: Clean::default() }
    }

    /// Of an entry of a task's `metric_list`.
    pub(super) fn of(entry: &Map<String, Value>, kind: Kind) -> Result<Metric> {
        let fields = Fields::new(entry, "metric_list");
        let name = fields.text("metric")?.unwrap_or_default();
        let (all, _) = known(kind);
        let row = all.iter().find(|row| row.0 == name).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|row| row.0).collect();
            let names = names.join(", ");
            Error::unsupported(format!(
                "[evaluate] metric_list: there is no metric {name:?} for such a task; there are {names}"
            ))
        })?;
        let aggregation = match fields.text("aggregation")?.as_deref() {
            None => row.1,
            Some("mean" | "nanmean") => Aggregation::Mean,
            Some("median") => Aggregation::Median,
            Some("perplexity") => Aggregation::Perplexity,
            Some("weighted_perplexity") => Aggregation::WeightedPerplexity,
            Some("bits_per_byte") => Aggregation::BitsPerByte,
            Some("f1") => Aggregation::F1,
            Some("matthews_corrcoef") => Aggregation::Matthews,
            Some("brier_score") => Aggregation::Brier,
            Some(other) => {
                return Err(Error::unsupported(format!("[evaluate] {name}: there is no aggregation {other:?}")));
            }
        };
        let higher_is_better =
            if entry.contains_key("higher_is_better") { fields.truth("higher_is_better")? } else { row.2 };
        Ok(Metric { aggregation, higher_is_better, clean: Clean::of(&fields)?, ..Metric::row(row) })
    }

    /// What all questions come to, and its standard error: of a mean the usual one, else that of a thousand samples with
    /// replacement, drawn from `seed`. `None` for fewer than two questions.
    pub(super) fn total(&self, items: &[Item], seed: u64) -> (f64, Option<f64>) {
        let all: Vec<&Item> = items.iter().collect();
        let value = self.aggregation.of(&all);
        if items.len() < 2 {
            return (value, None);
        }
        if self.aggregation == Aggregation::Mean {
            let values: Vec<f64> = items.iter().map(plain).collect();
            return (value, Some(deviation(&values) / (values.len() as f64).sqrt()));
        }
        let mut dice = Twister::python(seed);
        let again: Vec<f64> = (0..1000)
            .map(|_| {
                let drawn: Vec<&Item> = items.iter().map(|_| &items[dice.below(items.len())]).collect();
                self.aggregation.of(&drawn)
            })
            .collect();
        (value, Some(deviation(&again)))
    }
}

/// The standard deviation of a sample.
fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0)).sqrt()
}

fn plain(item: &Item) -> f64 {
    match item {
        Item::Value(x) => *x,
        Item::Classes(right, taken) => f64::from(right == taken),
        Item::Spread(sum, over) => sum / over,
        Item::Chances(right, all) => {
            all.iter().enumerate().map(|(i, p)| (p - f64::from(i as i64 == *right)).powi(2)).sum()
        }
    }
}

impl Aggregation {
    fn of(self, items: &[&Item]) -> f64 {
        let mean = || items.iter().map(|i| plain(i)).sum::<f64>() / items.len() as f64;
        let spread = || {
            let both = items.iter().map(|i| match i {
                Item::Spread(sum, over) => (*sum, *over),
                other => (plain(other), 1.0),
            });
            let (sum, over) = both.fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
            sum / over
        };
        // Of class 1 against all others.
        let classes = |right: bool, taken: bool| {
            let is = |i: &&&Item| matches!(i, Item::Classes(r, t) if ((*r == 1) == right) && ((*t == 1) == taken));
            items.iter().filter(is).count() as f64
        };
        match self {
            Aggregation::Mean | Aggregation::Brier => mean(),
            Aggregation::Median => {
                let mut all: Vec<f64> = items.iter().map(|i| plain(i)).collect();
                all.sort_by(f64::total_cmp);
                all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
            }
            Aggregation::Perplexity => (-mean()).exp(),
            Aggregation::WeightedPerplexity => (-spread()).exp(),
            Aggregation::BitsPerByte => -spread() / std::f64::consts::LN_2,
            Aggregation::F1 => {
                let (hit, wrong) = (classes(true, true), classes(true, false) + classes(false, true));
                if hit == 0.0 { 0.0 } else { 2.0 * hit / (2.0 * hit + wrong) }
            }
            Aggregation::Matthews => matthews(items),
        }
    }
}

/// Matthews' correlation of any number of classes (Gorodkin 2004).
fn matthews(items: &[&Item]) -> f64 {
    let (mut right, mut taken): (HashMap<i64, f64>, HashMap<i64, f64>) = Default::default();
    let mut hits = 0.0;
    for item in items {
        if let Item::Classes(r, t) = item {
            *right.entry(*r).or_default() += 1.0;
            *taken.entry(*t).or_default() += 1.0;
            hits += f64::from(r == t);
        }
    }
    let n = items.len() as f64;
    let both: f64 = right.iter().map(|(k, r)| r * taken.get(k).unwrap_or(&0.0)).sum();
    let square = |all: &HashMap<i64, f64>| n * n - all.values().map(|x| x * x).sum::<f64>();
    let below = (square(&right) * square(&taken)).sqrt();
    if below == 0.0 { 0.0 } else { (hits * n - both) / below }
}

/// The F1 of the words of a reply against a reference, as SQuAD has it: small letters, no punctuation, no articles.
pub(super) fn words_f1(reply: &str, reference: &str) -> f64 {
    let words = |text: &str| -> Vec<String> {
        let kept: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
        kept.split_whitespace().filter(|w| !["a", "an", "the"].contains(w)).map(str::to_string).collect()
    };
    let (reply, reference) = (words(reply), words(reference));
    if reply.is_empty() || reference.is_empty() {
        return f64::from(reply == reference);
    }
    let mut left: HashMap<&String, usize> = HashMap::new();
    reference.iter().for_each(|w| *left.entry(w).or_default() += 1);
    let mut same = 0.0;
    for word in &reply {
        if let Some(n) = left.get_mut(word).filter(|n| **n > 0) {
            *n -= 1;
            same += 1.0;
        }
    }
    if same == 0.0 { 0.0 } else { 2.0 * same / (reply.len() + reference.len()) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(name: &str, kind: Kind, items: &[Item]) -> (f64, Option<f64>) {
        let entry = serde_json::json!({"metric": name});
        Metric::of(entry.as_object().unwrap(), kind).unwrap().total(items, 1)
    }

    /// scikit-learn's `f1_score` and `matthews_corrcoef`, NumPy's `std(ddof=1)`.
    #[test]
    fn totals_are_those_of_other_programs() {
        let classes: Vec<Item> =
            [(1, 1), (0, 1), (1, 0), (1, 1), (0, 0), (0, 0), (1, 1)].map(|(r, t)| Item::Classes(r, t)).to_vec();
        let near = |(value, _): (f64, Option<f64>), want: f64| assert!((value - want).abs() < 1e-12, "{value} {want}");
        near(total("f1", Kind::MultipleChoice, &classes), 0.75);
        near(total("mcc", Kind::MultipleChoice, &classes), 0.416_666_666_666_666_7);
        let three: Vec<Item> = [(0, 1), (2, 2), (1, 1), (2, 0), (0, 0)].map(|(r, t)| Item::Classes(r, t)).to_vec();
        near(total("mcc", Kind::MultipleChoice, &three), 0.437_5);
        let values: Vec<Item> = [1.0, 0.0, 0.0, 1.0, 1.0].map(Item::Value).to_vec();
        let (mean, error) = total("acc", Kind::MultipleChoice, &values);
        assert!((mean - 0.6).abs() < 1e-12 && (error.unwrap() - 0.244_948_974_278_317_8).abs() < 1e-12, "{error:?}");
        let spread = [Item::Spread(-12.0, 4.0), Item::Spread(-3.0, 2.0)];
        near(total("word_perplexity", Kind::Rolling, &spread), (15.0f64 / 6.0).exp());
        near(total("bits_per_byte", Kind::Rolling, &spread), 2.5 / std::f64::consts::LN_2);
        // A thousand samples come near what a formula says: the perplexity times the error of the mean.
        let logs: Vec<Item> = (0..200).map(|i| Item::Value(-1.0 - f64::from(i % 7) / 10.0)).collect();
        let (perplexity, error) = total("perplexity", Kind::Likelihood, &logs);
        let plain: Vec<f64> = logs.iter().map(plain).collect();
        let formula = perplexity * deviation(&plain) / 200f64.sqrt();
        assert!((error.unwrap() / formula - 1.0).abs() < 0.1, "{error:?} {formula}");
        near(total("brier_score", Kind::MultipleChoice, &[Item::Chances(1, vec![0.25, 0.75])]), 0.125);
    }

    /// The official script of SQuAD 1.1.
    #[test]
    fn words_are_compared_as_squad_does() {
        for (reply, reference, want) in [
            ("The cat sat.", "a cat", 2.0 / 3.0),
            ("the the", "an", 1.0),
            ("x x y", "x y y", 2.0 / 3.0),
            ("dog", "cat", 0.0),
        ] {
            assert!((words_f1(reply, reference) - want).abs() < 1e-12, "{reply} {reference}");
        }
    }
}
