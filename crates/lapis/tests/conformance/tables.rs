//! The tables: promotion, result dtypes, printed text.

use crate::RUNNERS;
use crate::call::{Call, In, array};
use lapis::dtype::{isdtype, issubdtype};
use lapis::scalar::Scalar;
use lapis::{Array, Dtype, ops, print};
use lapis_testdata::{Attrs, Input, load_printing, load_tables};
use serde_json::Value;

fn names(tables: &Value) -> Vec<Dtype> {
    let list = tables["dtypes"].as_array().unwrap();
    list.iter().map(|v| Dtype::from_name(v.as_str().unwrap()).unwrap()).collect()
}

fn ones(dtype: Dtype) -> In {
    In::Array(ops::full(&[2, 2], 1.0, Some(dtype)).unwrap())
}

/// The dtype of an operation's first result; `None` when it is refused.
fn result(op: &str, inputs: Vec<In>) -> Option<&'static str> {
    let call = Call { op, inputs, attrs: &Attrs::default() };
    let outcome = RUNNERS.iter().find_map(|(_, run)| run(&call)).unwrap_or_else(|| panic!("{op} is not named"));
    outcome.ok().map(|arrays: Vec<Array>| arrays[0].dtype().name())
}

fn agrees(what: &str, want: &Value, got: Option<&str>, wrong: &mut Vec<String>) {
    if want.as_str() != got {
        wrong.push(format!("{what}: {} expected, got {}", want, got.unwrap_or("an error")));
    }
}

#[test]
fn promotion() {
    let tables = load_tables().unwrap();
    let names = names(&tables);
    for (a, row) in names.iter().zip(tables["promotion"].as_array().unwrap()) {
        for (b, want) in names.iter().zip(row.as_array().unwrap()) {
            assert_eq!(a.promote(*b).name(), want.as_str().unwrap(), "{a} with {b}");
        }
    }
}

#[test]
fn categories_and_kinds() {
    use lapis::dtype::Category::*;
    let categories = [Generic, Number, Integer, SignedInteger, UnsignedInteger, Inexact, Floating, ComplexFloating];
    let tables = load_tables().unwrap();
    for (name, row) in tables["categories"].as_object().unwrap() {
        let category = categories.into_iter().find(|c| format!("{c:?}").to_lowercase() == *name).unwrap();
        for (&dtype, want) in names(&tables).iter().zip(row.as_array().unwrap()) {
            assert_eq!(issubdtype(dtype, category), want.as_bool().unwrap(), "{dtype} in {name}");
            assert!(issubdtype(dtype, dtype) && !issubdtype(category, dtype));
        }
    }
    for (kind, row) in tables["kinds"].as_object().unwrap() {
        for (&dtype, want) in names(&tables).iter().zip(row.as_array().unwrap()) {
            assert_eq!(isdtype(dtype, kind).unwrap(), want.as_bool().unwrap(), "{dtype} is {kind}");
        }
    }
    assert!(isdtype(Dtype::Bool, "boolean").is_err());
}

#[test]
fn result_dtypes() {
    let tables = load_tables().unwrap();
    let mut wrong = Vec::new();
    for (group, count) in [("unary", 1), ("binary", 2), ("reduce", 1)] {
        for (op, row) in tables[group].as_object().unwrap() {
            for (&dtype, want) in names(&tables).iter().zip(row.as_array().unwrap()) {
                let got = result(op, vec![ones(dtype); count]);
                agrees(&format!("{op} {dtype}"), want, got, &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn host_numbers_are_weak() {
    let tables = load_tables().unwrap();
    let mut wrong = Vec::new();
    for row in tables["scalar"].as_array().unwrap() {
        let (op, value) = (row["op"].as_str().unwrap(), &row["scalar"]);
        let scalar = match value {
            Value::Bool(b) => Scalar::Bool(*b),
            Value::Number(n) if n.is_i64() => Scalar::Int(n.as_i64().unwrap().into()),
            Value::Number(n) => Scalar::Float(n.as_f64().unwrap()),
            _ => Scalar::Complex(lapis::dtype::c64::new(0.0, 1.0)),
        };
        for (&dtype, want) in names(&tables).iter().zip(row["result"].as_array().unwrap()) {
            let got = result(op, vec![ones(dtype), In::Scalar(scalar)]);
            agrees(&format!("{op} {dtype} {value}"), want, got, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn printed_text() {
    let mut wrong = Vec::new();
    for (input, precision, text) in load_printing().unwrap() {
        let Input::Array(values, _) = &input else { panic!("an array is printed") };
        print::set_precision(precision.map(|p| p as u32));
        let got = array(values.dtype, &input.view().unwrap()).to_string();
        print::set_precision(None);
        if got != text {
            wrong.push(format!("precision {precision:?}\n  expected {text}\n  got      {got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
