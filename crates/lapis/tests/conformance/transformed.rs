//! The operations of every case under transforms: compiled functions give the bits of eager ones, mapped functions what
//! a loop over the lanes gives.

use crate::call::{self, Call, In, Outcome};
use crate::{RUNNERS, families, load};
use lapis::transforms::{compile, vmap_axes};
use lapis::{Array, Dtype, Error, ErrorKind, Result, ops};
use lapis_testdata::Case;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    RUNNERS.iter().find_map(|(_, run)| run(c))
}

pub(crate) fn arrays(c: &Call) -> Vec<Array> {
    c.inputs.iter().filter_map(|i| if let In::Array(a) = i { Some(a.clone()) } else { None }).collect()
}

/// The call with other arrays in place of its own.
pub(crate) fn with(c: &Call, leaves: &[Array]) -> Outcome {
    let mut leaves = leaves.iter().cloned();
    let place = |i: &In| match i {
        In::Array(_) => leaves.next().map_or(In::Absent, In::Array),
        other => other.clone(),
    };
    let inner = Call { op: c.op, inputs: c.inputs.iter().map(place).collect(), attrs: c.attrs };
    run(&inner).unwrap_or_else(|| Ok(Vec::new()))
}

fn bytes(arrays: &[Array]) -> Result<Vec<Vec<u8>>> {
    arrays.iter().map(Array::to_bytes).collect()
}

/// Every case that succeeds, through `compare`, which gives the outputs that the case is to judge.
fn every_case(compare: impl Fn(&Case, &Call, Vec<Array>) -> Outcome) {
    let mut failed = Vec::new();
    for family in families().unwrap() {
        for case in load(&family).unwrap() {
            let through = |c: &Call| -> Option<Outcome> {
                let outcome = run(c)?.and_then(|direct| match bytes(&direct) {
                    Ok(_) => compare(&case, c, direct),
                    Err(_) => Ok(direct),
                });
                // What no backend has is passed over elsewhere, but not here.
                Some(
                    outcome
                        .map_err(|e| if e.kind() == ErrorKind::Unsupported { Error::eval(e.to_string()) } else { e }),
                )
            };
            let through = RefCell::new(through);
            if let Some(Err(why)) = call::check(&case, |c| through.borrow_mut()(c)) {
                failed.push(format!("{family}.json:{} {} {}: {why}", case.line, case.op, call::describe(&case)));
            }
        }
    }
    let count = failed.len();
    failed.truncate(30);
    assert!(failed.is_empty(), "{count} cases:\n{}", failed.join("\n"));
}

/// What a function traced without values cannot do: results whose shape, and arguments whose meaning, lie in values.
pub(crate) fn needs_values(e: &Error) -> bool {
    e.message().contains("a value was asked for") || e.message().contains("masks as indices")
}

#[test]
fn every_case_compiled_gives_the_same_bits() {
    let same = Cell::new(0);
    every_case(|_, c, direct| {
        let leaves = arrays(c);
        if leaves.is_empty() {
            return Ok(direct);
        }
        let compiled = compile(|x: &Vec<Array>| with(c, x));
        let called = match compiled.call(&leaves) {
            Err(e) if needs_values(&e) => return Ok(direct),
            called => called?,
        };
        if bytes(&direct)? != bytes(&called)? {
            return Err(Error::eval("the compiled function gives other bits"));
        }
        // Once more, from the cache, with other values.
        let others: Vec<Array> = leaves.iter().map(|a| turned(a, 1)).collect::<Result<_>>()?;
        if let Ok(eager) = with(c, &others).and_then(|y| bytes(&y)) {
            if eager != bytes(&compiled.call(&others)?)? {
                return Err(Error::eval("the compiled function gives other bits for other values"));
            }
            same.set(same.get() + 1);
        }
        Ok(called)
    });
    assert!(same.get() > 3500, "only {} cases were compared", same.get());
}

/// The same values in another order, so that indices, masks and keys keep their meaning.
fn turned(a: &Array, by: usize) -> Result<Array> {
    ops::roll(a, [by as i64], ())
}

/// Up to the roundings of products that are cut in another way.
fn near(a: &Array, b: &Array) -> Result<bool> {
    if a.shape() != b.shape() || a.dtype() != b.dtype() {
        return Ok(false);
    }
    let (rtol, atol) = match a.dtype() {
        Dtype::Float64 => (1e-10, 1e-12),
        Dtype::Float32 | Dtype::Complex64 => (1e-5, 1e-6),
        Dtype::Float16 | Dtype::Bfloat16 => (1e-2, 1e-3),
        _ => return ops::array_equal(a, b, false)?.item::<bool>(),
    };
    ops::allclose(a, b, rtol, atol, true)?.item::<bool>()
}

#[test]
fn every_case_mapped_is_a_loop() {
    const LANES: usize = 3;
    let same = RefCell::new(BTreeMap::<String, usize>::new());
    every_case(|case, c, direct| {
        let leaves = arrays(c);
        if leaves.is_empty() {
            return Ok(direct);
        }
        // All inputs are mapped; then each alone.
        let masks = [(1usize << leaves.len()) - 1].into_iter().chain((0..leaves.len()).map(|i| 1 << i));
        for mask in masks.take(1 + if leaves.len() > 1 { leaves.len() } else { 0 }) {
            let lane = |l: usize, turn: bool| -> Result<Vec<Array>> {
                let of =
                    |(i, a): (usize, &Array)| if turn && mask >> i & 1 == 1 { turned(a, l) } else { Ok(a.clone()) };
                leaves.iter().enumerate().map(of).collect()
            };
            // Where other values are refused, the lanes are alike.
            let looped = |turn: bool| -> Result<Vec<Vec<Array>>> {
                let each = (0..LANES).map(|l| {
                    let outputs = with(c, &lane(l, turn)?)?;
                    bytes(&outputs)?;
                    Ok(outputs)
                });
                let each = each.collect::<Result<Vec<_>>>()?;
                let shapes = |y: &[Array]| y.iter().map(|a| a.shape().to_vec()).collect::<Vec<_>>();
                match each.iter().all(|y| shapes(y) == shapes(&each[0])) {
                    true => Ok(each),
                    false => Err(Error::shape("lanes of several shapes")),
                }
            };
            let (wanted, turn) = looped(true).map_or_else(|_| (looped(false), false), |y| (Ok(y), true));
            let wanted = wanted?;
            for last in [false, true] {
                let (mut axes, mut stacked) = (Vec::new(), Vec::new());
                for (i, a) in leaves.iter().enumerate() {
                    let axis = if last { a.ndim() as i32 } else { 0 };
                    let mapped = mask >> i & 1 == 1;
                    axes.push(mapped.then_some(axis));
                    let lanes = (0..LANES).map(|l| Ok(lane(l, turn)?.swap_remove(i))).collect::<Result<Vec<_>>>()?;
                    stacked.push(if mapped { ops::stack(&lanes, axis)? } else { a.clone() });
                }
                let got = match vmap_axes(|x: &Vec<Array>| with(c, x), axes, 0)(&stacked) {
                    Err(e) if needs_values(&e) => return Ok(direct),
                    got => got?,
                };
                for (l, wanted) in wanted.iter().enumerate() {
                    for (k, (all, one)) in got.iter().zip(wanted).enumerate() {
                        let part = ops::squeeze(&ops::take(all, &lapis::array([l as i32]), 0)?, 0)?;
                        if !near(&part, one)? {
                            let what = format!("inputs {mask:b}, last {last}, lane {l}, output {k}");
                            return Err(Error::eval(format!("mapped, {what}:\n{part}\n{one}")));
                        }
                    }
                }
            }
        }
        *same.borrow_mut().entry(case.op.clone()).or_default() += 1;
        Ok(direct)
    });
    let same = same.into_inner();
    let total: usize = same.values().sum();
    assert!(total > 3500 && same.len() > 200, "only {total} cases of {} operations were compared", same.len());
}
