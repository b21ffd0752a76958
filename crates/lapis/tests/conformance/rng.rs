//! Random numbers.

use crate::call::{Call, In, Outcome, one};
use lapis::random::{self, Draws, Permuted};
use lapis::scalar::Scalar;
use lapis::{Array, Dtype, Result};

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    if c.op == "random.seed" {
        random::seed(c.attrs.int("seed").unwrap() as u64);
        let draw = |_| random::uniform(0.0, 1.0, &c.sizes("shape")?, Dtype::Float32, None);
        return Some((0..c.attrs.int("draws").unwrap()).map(draw).collect());
    }
    one(drawn(c)?)
}

fn drawn(c: &Call) -> Option<Result<Array>> {
    let dtype = |default| c.attrs.dtype("dtype").unwrap_or(default);
    let float = dtype(Dtype::Float32);
    let shape = || c.sizes("shape");
    let given = || c.attrs.has("shape").then(shape).transpose();
    let or = |i, default: f64| if c.has(i) { c.operand(i) } else { In::Scalar(Scalar::Float(default)) };
    let key = c.inputs.len().checked_sub(1).and_then(|last| c.maybe(last));
    let key = key.as_ref();
    Some(match c.op {
        "random.key" => {
            let seed = c.attrs.get("seed").and_then(|v| v.as_u64()).unwrap();
            Ok(random::key(seed))
        }
        "random.split" => c.count("num").and_then(|n| random::split(&c.array(0), n.unwrap_or(2))),
        "random.uniform" => shape().and_then(|s| random::uniform(or(0, 0.0), or(1, 1.0), &s, float, key)),
        "random.normal" => {
            shape().and_then(|s| random::normal(&s, float, c.maybe(0).as_ref(), c.maybe(1).as_ref(), key))
        }
        "random.multivariate_normal" => {
            shape().and_then(|s| random::multivariate_normal(&c.array(0), &c.array(1), &s, float, key))
        }
        "random.randint" => {
            shape().and_then(|s| random::randint(c.operand(0), c.operand(1), &s, dtype(Dtype::Int32), key))
        }
        "random.bernoulli" => given().and_then(|s| random::bernoulli(or(0, 0.5), s.as_deref(), key)),
        "random.truncated_normal" => {
            given().and_then(|s| random::truncated_normal(&c.array(0), &c.array(1), s.as_deref(), float, key))
        }
        "random.gumbel" => shape().and_then(|s| random::gumbel(&s, float, key)),
        "random.laplace" => {
            let number = |name, default| c.attrs.float(name).unwrap_or(default);
            shape().and_then(|s| random::laplace(&s, float, number("loc", 0.0), number("scale", 1.0), key))
        }
        "random.permutation" => match c.operand(0) {
            In::Scalar(Scalar::Int(n)) => random::permutation(Permuted::Range(n as usize), key),
            _ => random::permutation(Permuted::Array(&c.array(0), c.axis("axis", 0)), key),
        },
        "random.categorical" => given().and_then(|shape| {
            let draws = match (&shape, c.count("num_samples")?) {
                (Some(shape), _) => Draws::Shape(shape),
                (None, Some(n)) => Draws::Samples(n),
                (None, None) => Draws::One,
            };
            random::categorical(&c.array(0), c.axis("axis", -1), draws, key)
        }),
        _ => return None,
    })
}
