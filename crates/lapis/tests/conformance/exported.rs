//! The operations of every case as exported functions: through the text that a file holds and back, then called.

use crate::call::{self, Call, In, Outcome};
use crate::{RUNNERS, families, load};
use lapis::transforms::{Function, Listing};
use lapis::{Array, Error, Result, memory, ops};
use lapis_testdata::Case;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The arrays among the operands.
fn arrays(c: &Call) -> Vec<Array> {
    c.inputs.iter().filter_map(|i| if let In::Array(a) = i { Some(a.clone()) } else { None }).collect()
}

fn run(c: &Call) -> Option<Outcome> {
    RUNNERS.iter().find_map(|(_, run)| run(c))
}

/// The call as a function of its arrays; `None` when nobody names the operation.
fn traced(c: &Call, shapeless: bool) -> Option<Result<Function>> {
    let named = Cell::new(true);
    let mut function = Function::new();
    let f = |leaves: &Vec<Array>| -> Result<Vec<Array>> {
        let mut leaves = leaves.iter().cloned();
        let place = |i: &In| match i {
            In::Array(_) => leaves.next().map_or(In::Absent, In::Array),
            other => other.clone(),
        };
        let inner = Call { op: c.op, inputs: c.inputs.iter().map(place).collect(), attrs: c.attrs };
        let outcome = run(&inner);
        named.set(outcome.is_some());
        outcome.unwrap_or_else(|| Ok(Vec::new()))
    };
    let done = match shapeless {
        true => function.trace_shapeless(f, &arrays(c)),
        false => function.trace(f, &arrays(c)),
    };
    named.get().then(|| done.map(|()| function))
}

fn text(function: &Function) -> String {
    serde_json::to_string(&function.listing()).unwrap()
}

fn read(text: &str, constants: &[Array]) -> Result<Function> {
    let listing: Listing = serde_json::from_str(text).map_err(|e| Error::io(e.to_string()))?;
    Function::from_listing(listing, constants.to_vec())
}

fn bytes(arrays: &[Array]) -> Result<Vec<Vec<u8>>> {
    arrays.iter().map(Array::to_bytes).collect()
}

/// Whether a function cannot be traced as it looks at values.
fn looks_at_values(e: &Error) -> bool {
    e.message().contains("a value was asked for")
}

#[test]
fn every_case_gives_the_same_bits() {
    compare(false, 2000);
}

#[test]
fn every_case_gives_the_same_bits_for_any_size() {
    compare(true, 2000);
}

/// At least so many cases are compared; of those for any size some are refused.
fn compare(shapeless: bool, least: usize) {
    let (mut same, mut failed) = (0, Vec::new());
    for family in families().unwrap() {
        for case in load(&family).unwrap() {
            let exported = |c: &Call| -> Option<Outcome> {
                let direct = run(c)?;
                let Some(function) = direct.is_ok().then(|| traced(c, shapeless)).flatten() else {
                    return Some(direct);
                };
                Some(direct.and_then(|direct| {
                    let function = match function {
                        Ok(function) => function,
                        Err(e) if looks_at_values(&e) || e.message().contains("for any size") => return Ok(direct),
                        Err(e) => return Err(e),
                    };
                    let called = read(&text(&function), function.constants())?.call(&arrays(c))?;
                    // Where evaluation fails both fail; the case says how.
                    if let Ok(direct) = bytes(&direct) {
                        if direct != bytes(&called)? {
                            return Err(Error::eval("the exported function gives other bits"));
                        }
                        same += 1;
                    }
                    Ok(called)
                }))
            };
            let exported = RefCell::new(exported);
            if let Some(Err(why)) = call::check(&case, |c| exported.borrow_mut()(c)) {
                failed.push(format!("{family}.json:{} {} {}: {why}", case.line, case.op, call::describe(&case)));
            }
        }
    }
    failed.truncate(20);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(same > least, "only {same} cases were compared");
}

/// Ops that no public function makes, or that a file does not hold.
const NOT_IN_CASES: &[&str] =
    &["Constant", "Depends", "Tracer", "Placeholder", "Custom", "Collective", "AttentionGrads", "CachedAttention"];

/// So an op without a case is found: the other tests here and beside this file go through all cases.
#[test]
fn every_op_of_the_registry_is_in_a_case() {
    let found = RefCell::new(BTreeSet::new());
    for case in families().unwrap().iter().flat_map(|family| load(family).unwrap()) {
        let _ = call::check(&case, |c| {
            let listing = serde_json::to_value(traced(c, false)?.ok()?.listing()).unwrap();
            for step in listing["traces"][0]["steps"].as_array().unwrap() {
                let op = &step["op"];
                let name = op.as_str().or_else(|| op.as_object()?.keys().next().map(String::as_str));
                found.borrow_mut().insert(name.unwrap().to_string());
            }
            None
        });
    }
    let found = found.into_inner();
    let missing: Vec<&str> = ops::Op::ALL.iter().copied().filter(|op| !found.contains(*op)).collect();
    assert_eq!(missing, NOT_IN_CASES);
}

// ------------------------------------------------------------------ hostile listings

/// Numbers that find the ends of ranges.
const ODD: [u64; 9] = [0, 1, 2, 3, 5, 33, 1000, 1 << 62, u64::MAX];

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides.max(1)
    }
}

/// Every number below `value`.
fn numbers<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Number(_) => found.push(value),
        Value::Array(list) => list.iter_mut().for_each(|v| numbers(v, found)),
        Value::Object(map) => map.values_mut().for_each(|v| numbers(v, found)),
        _ => {}
    }
}

fn changed(listing: &Value, ops: &[Value], dice: &mut Dice) -> Value {
    let mut listing = listing.clone();
    let traces = listing["traces"].as_array_mut().unwrap();
    let steps = traces[0]["steps"].as_array_mut().unwrap();
    if !steps.is_empty() && dice.roll(3) == 0 {
        let at = dice.roll(steps.len());
        steps[at]["op"] = ops[dice.roll(ops.len())].clone();
    }
    let mut found = Vec::new();
    numbers(&mut traces[0], &mut found);
    let at = dice.roll(found.len());
    if let Some(number) = found.get_mut(at) {
        let odd = ODD[dice.roll(ODD.len())];
        **number = if dice.roll(8) == 0 { json!(-1) } else { json!(odd) };
    }
    listing
}

/// A few cases of every operation.
fn samples() -> Vec<Case> {
    let mut taken = BTreeMap::<String, usize>::new();
    let mut all = Vec::new();
    for family in families().unwrap() {
        for case in load(&family).unwrap() {
            let count = taken.entry(case.op.clone()).or_default();
            *count += 1;
            if *count <= 8 {
                all.push(case);
            }
        }
    }
    all
}

/// In a process of its own: it lowers the memory limit, and a fault of a kernel would end it. `LAPIS_TEST_ROUNDS` sets
/// how many changes each listing sees.
#[test]
fn changed_listings_are_refused_or_run() {
    if std::env::var_os("LAPIS_TEST_HOSTILE").is_none() {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["exported::changed_listings_are_refused_or_run", "--exact", "--nocapture"])
            .env("LAPIS_TEST_HOSTILE", "1")
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        assert!(run.status.success(), "{}\n{out}\n{err}", run.status);
        return;
    }
    memory::set_limit(memory::active() + (64 << 20));
    let functions = RefCell::new(Vec::new());
    for case in samples() {
        let _ = call::check(&case, |c| {
            for function in [traced(c, false), traced(c, true)].into_iter().flatten().flatten() {
                let listing = serde_json::to_value(function.listing()).unwrap();
                functions.borrow_mut().push((call::describe(&case), listing, function, arrays(c)));
            }
            None
        });
    }
    let functions = functions.into_inner();
    let steps = |listing: &Value| listing["traces"][0]["steps"].as_array().unwrap().clone();
    let ops: Vec<Value> = functions.iter().flat_map(|(_, l, ..)| steps(l)).map(|s| s["op"].clone()).collect();
    let rounds = std::env::var("LAPIS_TEST_ROUNDS").map_or(40, |n| n.parse().unwrap());
    let (mut dice, mut run, mut refused) = (Dice(0x2545_f491_4f6c_dd1d), 0, 0);
    for (name, listing, function, arguments) in &functions {
        for _ in 0..rounds {
            let listing = changed(listing, &ops, &mut dice);
            let text = listing.to_string();
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let called = read(&text, function.constants())?.call(arguments)?;
                bytes(&called)
            }));
            match outcome {
                Ok(Ok(_)) => run += 1,
                Ok(Err(_)) => refused += 1,
                Err(panic) => {
                    let why = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                    panic!("{why}: a panic in {name}: {text}")
                }
            }
        }
    }
    assert!(run > 500 && refused > 5000, "{run} ran, {refused} were refused");
}
