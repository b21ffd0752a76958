//! Numbers of ops that follow from sizes of arguments: found by comparing two traces, filled in for a call.
//!
//! An op in which such numbers stand is text: JSON, with `{"$size": ...}` in the place of each.

use super::traces::UNIT;
use crate::error::{Error, Result};
use crate::ops::Op;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

/// `times` the product of some sizes, `over` a number that must divide that, `plus` a number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    times: i64,
    /// Numbers of sizes; one that is squared stands twice.
    sizes: Vec<usize>,
    over: i64,
    plus: i64,
    writes: Writes,
}

/// What becomes of the number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Writes {
    /// A size.
    Number,
    /// The text of an integer.
    Integer,
    /// The text of a real number.
    Real,
    /// The text of one over it.
    Reciprocal,
}

impl Expression {
    fn at(&self, sizes: &[usize]) -> Option<i64> {
        let product =
            self.sizes.iter().try_fold(self.times, |n, &s| n.checked_mul(i64::try_from(*sizes.get(s)?).ok()?));
        let product = product.filter(|&n| self.over > 0 && n % self.over == 0)?;
        (product / self.over).checked_add(self.plus)
    }

    fn write(&self, sizes: &[usize]) -> Option<Value> {
        let n = self.at(sizes)?;
        Some(match self.writes {
            Writes::Number => json!(n),
            Writes::Integer => json!(n.to_string()),
            Writes::Real => json!(format!("{:?}", n as f64)),
            Writes::Reciprocal => json!(format!("{:?}", 1.0 / n as f64)),
        })
    }
}

/// The op whose numbers are `ops[i]`'s for `sizes[i]`; `None` when no expression gives them.
pub(super) fn explained(ops: [&Op; 2], sizes: [&[usize]; 2]) -> Option<Arc<str>> {
    let [a, b] = ops.map(|op| serde_json::to_value(op).ok());
    let form = both(&a?, &b?, sizes)?;
    Some(form.to_string().into())
}

fn both(a: &Value, b: &Value, sizes: [&[usize]; 2]) -> Option<Value> {
    match (a, b) {
        (a, b) if a == b => Some(a.clone()),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).map(|(a, b)| both(a, b, sizes)).collect()
        }
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
            a.iter().map(|(key, a)| Some((key.clone(), both(a, b.get(key)?, sizes)?))).collect()
        }
        (Value::Number(a), Value::Number(b)) => found([a.as_i64()?, b.as_i64()?], sizes, Writes::Number),
        (Value::String(a), Value::String(b)) => {
            if let (Ok(a), Ok(b)) = (a.parse::<i64>(), b.parse::<i64>()) {
                return found([a, b], sizes, Writes::Integer);
            }
            let numbers = [a.parse::<f64>().ok()?, b.parse::<f64>().ok()?];
            let whole = |x: f64| (x.fract() == 0.0 && x.abs() < 1e15).then_some(x as i64);
            if let [Some(a), Some(b)] = numbers.map(whole) {
                return found([a, b], sizes, Writes::Real);
            }
            let over = |x: f64| whole((1.0 / x).round()).filter(|&n| 1.0 / n as f64 == x);
            let [Some(a), Some(b)] = numbers.map(over) else { return None };
            found([a, b], sizes, Writes::Reciprocal)
        }
        _ => None,
    }
}

/// The expression that gives both numbers: the simplest one.
fn found(numbers: [i64; 2], sizes: [&[usize]; 2], writes: Writes) -> Option<Value> {
    let near = (0..=64).flat_map(|n| [n, -n]);
    let expression = near.filter_map(|plus| product(numbers, sizes, plus)).next().or_else(|| line(numbers, sizes))?;
    Some(json!({ "$size": Expression { writes, ..expression } }))
}

/// A product of sizes, which are a unit times a prime each, and a ratio; `plus` a number.
fn product(numbers: [i64; 2], sizes: [&[usize]; 2], plus: i64) -> Option<Expression> {
    let factors = |n: i64, sizes: &[usize]| {
        let (mut rest, mut of) = (n.checked_sub(plus)?, Vec::new());
        for (i, &size) in sizes.iter().enumerate() {
            let prime = (size / UNIT) as i64;
            while rest != 0 && rest % prime == 0 {
                of.push(i);
                rest /= prime;
            }
        }
        Some((rest, of))
    };
    let (a, b) = (factors(numbers[0], sizes[0])?, factors(numbers[1], sizes[1])?);
    if a != b || a.1.is_empty() {
        return None;
    }
    let (rest, sizes) = a;
    let units = (UNIT as i64).checked_pow(u32::try_from(sizes.len()).ok()?)?;
    let common = greatest_common_divisor(rest.unsigned_abs(), units.unsigned_abs()) as i64;
    Some(Expression { times: rest / common, sizes, over: units / common, plus, writes: Writes::Number })
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// A multiple of one size, plus any number.
fn line(numbers: [i64; 2], sizes: [&[usize]; 2]) -> Option<Expression> {
    (0..sizes[0].len()).find_map(|i| {
        let [a, b] = sizes.map(|s| s[i] as i64);
        let rise = numbers[1].checked_sub(numbers[0])?;
        let times = (rise % (b - a) == 0).then(|| rise / (b - a)).filter(|t| (1..=16).contains(&t.abs()))?;
        let plus = numbers[0].checked_sub(times * a)?;
        Some(Expression { times, sizes: vec![i], over: 1, plus, writes: Writes::Number })
    })
}

/// The op of a form for these sizes.
///
/// # Errors
/// A size below zero or beyond 64 bits; what is no op.
pub(super) fn filled(form: &str, sizes: &[usize]) -> Result<Op> {
    let fail = |what: String| Error::value(format!("[sizes] {what}"));
    let mut value: Value = serde_json::from_str(form).map_err(|e| fail(e.to_string()))?;
    fill(&mut value, sizes)
        .ok_or_else(|| fail(format!("a number of {form} does not exist for the sizes {sizes:?}")))?;
    serde_json::from_value(value).map_err(|e| fail(e.to_string()))
}

fn fill(value: &mut Value, sizes: &[usize]) -> Option<()> {
    match value {
        Value::Array(list) => list.iter_mut().try_for_each(|v| fill(v, sizes)),
        Value::Object(map) => match map.get("$size") {
            Some(expression) => {
                let expression = Expression::deserialize(expression).ok()?;
                *value = expression.write(sizes)?;
                Some(())
            }
            None => map.values_mut().try_for_each(|v| fill(v, sizes)),
        },
        _ => Some(()),
    }
}

/// Whether numbers that follow from sizes stand in an op.
pub(super) fn has_sizes(op: &Value) -> bool {
    match op {
        Value::Array(list) => list.iter().any(has_sizes),
        Value::Object(map) => map.contains_key("$size") || map.values().any(has_sizes),
        _ => false,
    }
}
