//! The case files can be read, the views hold the values they say, and the comparison tells near from far.

use lapis_core::dtype::{Dtype, f16};
use lapis_testdata::{
    Expect, Expected, Freedom, Input, Layout, Tolerance, Values, View, compare, families, load, load_printing,
    load_tables, round_f16,
};

#[test]
fn every_file_reads() {
    let names = families().unwrap();
    assert!(!names.is_empty());
    for name in names {
        let cases = load(&name).unwrap();
        assert!(!cases.is_empty(), "{name} is empty");
        for case in cases {
            if case.source == "mlx" || case.source == "numpy" || case.source == "spec" {
                continue;
            }
            panic!("{name}.json:{}: unknown source {}", case.line, case.source);
        }
    }
}

fn elements(view: &View, size: usize) -> Vec<u8> {
    let n: usize = view.shape.iter().product();
    let mut out = Vec::new();
    for i in 0..n {
        let (mut rest, mut at) = (i, view.offset as isize);
        for (&d, &s) in view.shape.iter().zip(&view.strides).rev() {
            at += (rest % d) as isize * s;
            rest /= d;
        }
        let at = at as usize * size;
        out.extend(&view.bytes[at..at + size]);
    }
    out
}

#[test]
fn views_hold_the_values_of_their_input() {
    for name in families().unwrap() {
        for case in load(&name).unwrap() {
            for input in &case.inputs {
                if let (Input::Array(values, _), Some(view)) = (input, input.view()) {
                    assert_eq!(elements(&view, values.dtype.size()), values.bytes, "{name}.json:{}", case.line);
                }
            }
        }
    }
}

#[test]
fn a_strided_view_is_not_contiguous() {
    let values = Values { dtype: Dtype::Int16, shape: vec![2, 2], bytes: vec![1, 0, 2, 0, 3, 0, 4, 0] };
    assert_eq!(View::new(&values, Some(Layout::Transposed)).strides, [1, 2]);
    assert_eq!(View::new(&values, Some(Layout::Strided)).strides, [4, 2]);
    let reversed = View::new(&values, Some(Layout::Reversed));
    assert_eq!((reversed.strides, reversed.offset), (vec![-2, -1], 3));
}

#[test]
fn the_generator_gives_the_documented_numbers() {
    let case = load("reduce").unwrap().into_iter().find(|c| {
        matches!((&c.inputs[0], &c.expect), (Input::Array(v, _), Expect::Outputs(_)) if v.dtype == Dtype::Float32 && v.len() == 5000)
    });
    let Some(Input::Array(values, _)) = case.map(|c| c.inputs[0].clone()) else { panic!("no generated case") };
    let first = f32::from_ne_bytes(values.bytes[..4].try_into().unwrap());
    // Seed 10: state = 10 * 6364136223846793005 + 1442695040888963407 mod 2^64, upper 24 bits to [-1, 1).
    let state = 10u64.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    assert_eq!(first, -1.0 + 2.0 * ((state >> 40) as f32 / 16777216.0));
}

#[test]
fn doubles_round_to_halves_once() {
    // A hair above the midpoint of 1 and the next half: through f32 it would fall onto the tie and round down.
    let above = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
    assert_eq!(round_f16(above), f16::from_bits(0x3c01));
    assert_eq!(round_f16(1.0 + 2f64.powi(-11)), f16::ONE);
}

fn floats(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

fn check(want: &[f32], got: &[f32], tolerance: Tolerance) -> Result<(), String> {
    let expected =
        Expected { dtype: Dtype::Float32, shape: vec![want.len()], bytes: floats(want), step: 1, free: None };
    compare(&expected, &Values { dtype: Dtype::Float32, shape: vec![got.len()], bytes: floats(got) }, &tolerance)
}

#[test]
fn vectors_are_compared_up_to_their_sign() {
    let expected = |free| Expected {
        dtype: Dtype::Float32,
        shape: vec![2, 2],
        bytes: floats(&[1.0, 2.0, 3.0, 4.0]),
        step: 1,
        free,
    };
    let got = |v: &[f32]| Values { dtype: Dtype::Float32, shape: vec![2, 2], bytes: floats(v) };
    let exact = Tolerance::default();
    assert!(compare(&expected(Some(Freedom::Columns)), &got(&[-1.0, 2.0, -3.0, 4.0]), &exact).is_ok());
    assert!(compare(&expected(Some(Freedom::Rows)), &got(&[-1.0, 2.0, -3.0, 4.0]), &exact).is_err());
    assert!(compare(&expected(Some(Freedom::Rows)), &got(&[-1.0, -2.0, 3.0, 4.0]), &exact).is_ok());
    assert!(compare(&expected(Some(Freedom::Order)), &got(&[2.0, 1.0, 3.0, 4.0]), &exact).is_ok());
    assert!(compare(&expected(Some(Freedom::Vectors)), &got(&[-2.0, 1.0, -4.0, 3.0]), &exact).is_ok());
    assert!(compare(&expected(Some(Freedom::Vectors)), &got(&[-2.0, 1.0, -4.0, -3.0]), &exact).is_err());
    assert!(compare(&expected(None), &got(&[-1.0, -2.0, 3.0, 4.0]), &exact).is_err());
}

#[test]
fn the_tables_read() {
    assert_eq!(load_tables().unwrap()["promotion"].as_array().unwrap().len(), 14);
    assert!(load_printing().unwrap().iter().any(|(_, _, text)| text == "array([1, 2, 3], dtype=int32)"));
}

#[test]
fn comparison_knows_bits_ulps_and_nan() {
    let exact = Tolerance::default();
    assert!(check(&[1.0, f32::NAN, -0.0], &[1.0, -f32::NAN, -0.0], exact).is_ok());
    assert!(check(&[0.0], &[-0.0], exact).is_err());
    assert!(check(&[f32::INFINITY], &[f32::MAX], Tolerance { ulp: 4, ..exact }).is_ok());
    assert!(check(&[f32::INFINITY], &[f32::MAX], Tolerance { rtol: 1.0, ..exact }).is_err());
    let next = f32::from_bits(1.0f32.to_bits() + 3);
    assert!(check(&[1.0], &[next], Tolerance { ulp: 3, ..exact }).is_ok());
    let message = check(&[1.0, 2.0], &[next, 2.0], Tolerance { ulp: 2, ..exact }).unwrap_err();
    assert!(message.contains("1 of 2") && message.contains("(3 ulp)"), "{message}");
    assert!(check(&[0.0], &[-1e-8], Tolerance { atol: 1e-7, ..exact }).is_ok());
    assert!(check(&[1.0], &[f32::NAN], Tolerance { atol: 9.0, ..exact }).is_err());
}
