//! Every conformance case (testdata/) through the public API, on the linked backends.
//!
//! A family file names the operations it can call; the cases say what must come out. An operation that no file names
//! is a failure.
//! `LAPIS_SIMD` forces the level of the CPU kernels; [`every_level`] runs all cases at each.

mod binary;
mod call;
mod conv;
mod creation;
mod differentiated;
mod exported;
mod fast;
mod fft;
mod gradients;
mod index;
mod linalg;
mod names;
mod products;
mod quantize;
mod reduce;
mod rng;
mod scan;
mod shape;
mod sort;
mod tables;
mod transformed;
mod unary;

use call::{Call, Outcome};
use lapis_testdata::{Case, families, load};
use std::collections::{BTreeMap, BTreeSet};

/// Calls the operation, if the family has it.
type Runner = fn(&Call) -> Option<Outcome>;

/// The families in the order of their files: each knows its operations.
const RUNNERS: &[(&str, Runner)] = &[
    ("binary", binary::run),
    ("conv", conv::run),
    ("creation", creation::run),
    ("fast", fast::run),
    ("fft", fft::run),
    ("index", index::run),
    ("linalg", linalg::run),
    ("products", products::run),
    ("quantize", quantize::run),
    ("reduce", reduce::run),
    ("rng", rng::run),
    ("scan", scan::run),
    ("shape", shape::run),
    ("sort", sort::run),
    ("unary", unary::run),
];

/// Runs a family; its number of cases and the messages of the failed ones.
fn failures(family: &str) -> (usize, Vec<String>) {
    let cases: Vec<Case> = load(family).unwrap();
    let mut failed = Vec::new();
    for case in &cases {
        let result = call::check(case, |c| RUNNERS.iter().find_map(|(_, run)| run(c)));
        if let Err(why) = result.unwrap_or(Err("no family file names it, or no backend has it".into())) {
            failed.push(format!("{family}.json:{} {} {}: {why}", case.line, case.op, call::describe(case)));
        }
    }
    (cases.len(), failed)
}

/// Fails with the first failures of every operation, so that one broken op does not hide the others.
fn check(family: &str) {
    let (total, failed) = failures(family);
    let mut shown = String::new();
    let mut per_op = BTreeMap::<&str, usize>::new();
    for why in &failed {
        let op = why.split(' ').nth(1).unwrap_or_default();
        let n = per_op.entry(op).or_default();
        *n += 1;
        if *n <= 3 {
            shown.push_str(&format!("\n  {why}"));
        }
    }
    assert!(failed.is_empty(), "{} of {total} cases fail {per_op:?}:{shown}", failed.len());
}

macro_rules! tests {
    ($($family:ident)*) => {$(
        #[test]
        fn $family() {
            super::check(stringify!($family));
        }
    )*};
}

mod family {
    tests!(binary conv creation fast fft index linalg products quantize reduce rng scan shape sort unary);
}

#[test]
fn every_family_of_the_data_is_run() {
    let named: BTreeSet<String> = RUNNERS.iter().map(|(name, _)| (*name).to_string()).collect();
    assert_eq!(families().unwrap().into_iter().collect::<BTreeSet<_>>(), named);
}

/// The levels of this machine.
fn levels() -> Vec<&'static str> {
    let mut levels = vec!["scalar"];
    #[cfg(target_arch = "x86_64")]
    {
        levels.extend(is_x86_feature_detected!("avx2").then_some("avx2"));
        levels.extend(is_x86_feature_detected!("avx512vbmi").then_some("avx512"));
    }
    #[cfg(target_arch = "aarch64")]
    levels.push("neon");
    levels
}

/// All families again in a process of their own.
fn again(variable: &str, value: &str) {
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["family::", "--test-threads=1"])
        .env(variable, value)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{variable}={value}\n{text}");
}

/// With each level of the CPU kernels forced.
#[test]
fn every_level() {
    if std::env::var_os("LAPIS_SIMD").is_some() {
        return;
    }
    levels().into_iter().for_each(|level| again("LAPIS_SIMD", level));
}

/// With operands that lie at odd addresses, as in files of other programs.
#[test]
fn unaligned_operands() {
    again(call::SHIFT, "1");
}
