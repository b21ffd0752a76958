//! Cases and how they are compared.

use lapis::{Array, Dtype};
use serde_json::Value;

/// f32 results of different orders of summation.
const RELATIVE: f64 = 2e-5;
const ABSOLUTE: f64 = 3e-6;

pub(crate) fn cases(text: &str) -> (u64, Vec<Value>) {
    let file: Value = serde_json::from_str(text).expect("the file is JSON");
    (file["seed"].as_u64().expect("a seed"), file["cases"].as_array().expect("cases").clone())
}

pub(crate) fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_else(|| panic!("{key} is a text"))
}

fn numbers(value: &Value) -> Vec<f64> {
    let number = |v: &Value| v.as_f64().or_else(|| v.as_bool().map(f64::from)).expect("a number");
    value.as_array().expect("numbers").iter().map(number).collect()
}

pub(crate) fn shape(value: &Value) -> Vec<usize> {
    numbers(value).into_iter().map(|n| n as usize).collect()
}

/// The array that a case holds.
pub(crate) fn array(value: &Value) -> Array {
    let (data, shape) = (numbers(&value["data"]), shape(&value["shape"]));
    let exact = Array::from_vec(data, &shape);
    exact.astype(Dtype::from_name(text(value, "dtype")).expect("a dtype"))
}

pub(crate) fn arrays(value: &Value) -> Vec<Array> {
    value.as_array().expect("arrays").iter().map(array).collect()
}

fn values(a: &Array) -> Vec<f64> {
    a.astype(Dtype::Float64).to_vec::<f64>().expect("values")
}

/// The same shape, dtype and values, `exact` or within the tolerance.
pub(crate) fn expect_like(what: &str, got: &Array, want: &Array, exact: bool) {
    assert_eq!(got.shape(), want.shape(), "{what}: shape");
    assert_eq!(got.dtype(), want.dtype(), "{what}: dtype");
    for (i, (g, w)) in values(got).into_iter().zip(values(want)).enumerate() {
        let near = if exact { g == w } else { (g - w).abs() <= ABSOLUTE + RELATIVE * w.abs() };
        assert!(near, "{what}: element {i} is {g}, MLX has {w}");
    }
}
