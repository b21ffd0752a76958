//! Complex functions against values computed with 40 digits, branch cuts, infinities.

use lapis_core::dtype::c64;
use lapis_cpu::math::{Binary, Unary, binary_c64, unary_c64};
use std::f32::consts::PI;
const INFINITY: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

fn function(name: &str) -> Unary {
    *Unary::ALL.iter().find(|f| format!("{f:?}") == name).expect("a function")
}

/// Both parts within 1 ulp of the larger one's last place and the smaller one within 4 of its own.
fn check(what: &str, got: c64, re: f64, im: f64) {
    for (got, want) in [(got.re, re), (got.im, im)] {
        let near = (got as f64 - want).abs() <= 2.5e-7 * want.abs() + 1e-45;
        assert!(near, "{what}: {got:e}, want {want:e}");
    }
}

#[test]
fn values() {
    for line in include_str!("../testdata/complex.txt").lines().filter(|l| !l.starts_with('#')) {
        let (name, numbers) = line.split_once(' ').expect("a row");
        let v: Vec<f64> = numbers.split(' ').map(|t| t.parse().expect("a number")).collect();
        let z = c64::new(v[0] as f32, v[1] as f32);
        if name == "Pow" {
            check(line, binary_c64(Binary::Pow, z, c64::new(v[2] as f32, v[3] as f32)), v[4], v[5]);
        } else {
            check(line, unary_c64(function(name), z), v[2], v[3]);
        }
    }
}

#[test]
fn both_sides_of_the_cuts() {
    let at = |f, re, im| unary_c64(f, c64::new(re, im));
    let near =
        |z: c64, re: f32, im: f32| assert!((z.re - re).abs() < 1e-6 && (z.im - im).abs() < 1e-6, "{z}, want {re} {im}");
    for side in [1.0, -1.0] {
        let zero = 0f32.copysign(side);
        near(at(Unary::Log, -1.0, zero), 0.0, PI * side);
        near(at(Unary::Sqrt, -4.0, zero), 0.0, 2.0 * side);
        near(at(Unary::Asin, 2.0, zero), PI / 2.0, 1.316958 * side);
        near(at(Unary::Asin, -2.0, zero), -PI / 2.0, 1.316958 * side);
        near(at(Unary::Acos, 2.0, zero), 0.0, -1.316958 * side);
        near(at(Unary::Acos, -2.0, zero), PI, -1.316958 * side);
        near(at(Unary::Acosh, -2.0, zero), 1.316958, PI * side);
        near(at(Unary::Atanh, 2.0, zero), 0.549306, PI / 2.0 * side);
        near(at(Unary::Asinh, zero, 2.0), 1.316958 * side, PI / 2.0);
        near(at(Unary::Atan, zero, 2.0), PI / 2.0 * side, 0.549306);
    }
    // Real numbers stay real.
    for f in [Unary::Exp, Unary::Sin, Unary::Cos, Unary::Tan, Unary::Sinh, Unary::Cosh, Unary::Tanh, Unary::Asinh] {
        let z = at(f, 0.75, 0.0);
        assert!(z.im == 0.0, "{f:?}: {z}");
    }
}

#[test]
fn infinities_and_zeros() {
    let at = |f, re, im| unary_c64(f, c64::new(re, im));
    let same = |z: c64, re: f32, im: f32| {
        let equal = |a: f32, b: f32| a == b && a.signum() == b.signum() || a.is_nan() && b.is_nan();
        assert!(equal(z.re, re) && equal(z.im, im), "{z}, want {re} {im}")
    };
    same(at(Unary::Exp, -INFINITY, 1.0), 0.0, 0.0);
    same(at(Unary::Exp, -INFINITY, NAN), 0.0, 0.0);
    same(at(Unary::Exp, INFINITY, 0.0), INFINITY, 0.0);
    same(at(Unary::Exp, 0.0, 0.0), 1.0, 0.0);
    same(at(Unary::Exp, NAN, 0.0), NAN, 0.0);
    same(at(Unary::Log, 0.0, 0.0), -INFINITY, 0.0);
    same(at(Unary::Log, -INFINITY, NAN), INFINITY, NAN);
    same(at(Unary::Sqrt, NAN, INFINITY), INFINITY, INFINITY);
    same(at(Unary::Sqrt, -INFINITY, -1.0), 0.0, -INFINITY);
    same(at(Unary::Sqrt, 0.0, -0.0), 0.0, -0.0);
    same(at(Unary::Tanh, INFINITY, 1.0), 1.0, 0.0);
    same(at(Unary::Tanh, -INFINITY, 1.0), -1.0, 0.0);
    same(at(Unary::Sinh, INFINITY, 0.0), INFINITY, 0.0);
    same(at(Unary::Cosh, INFINITY, 0.0), INFINITY, 0.0);
    same(at(Unary::Cosh, 0.0, 0.0), 1.0, 0.0);
    same(at(Unary::Sin, 0.0, -0.0), 0.0, -0.0);
    same(at(Unary::Cos, 0.0, 0.0), 1.0, -0.0);
    same(at(Unary::Reciprocal, INFINITY, 3.0), 0.0, -0.0);
    same(at(Unary::Acos, INFINITY, 0.0), 0.0, -INFINITY);
    same(at(Unary::Atanh, INFINITY, 0.0), 0.0, PI / 2.0);
    let pow = |z, w| binary_c64(Binary::Pow, z, w);
    let zero = c64::new(0.0, 0.0);
    same(pow(zero, zero), 1.0, 0.0);
    same(pow(zero, c64::new(2.0, 1.0)), 0.0, 0.0);
    assert!(pow(zero, c64::new(-1.0, 0.0)).re.is_nan());
    same(pow(c64::new(3.0, 4.0), c64::new(2.0, 0.0)), -7.0, 24.0);
    let log_sum = binary_c64(Binary::LogAddExp, c64::new(1.0, 0.5), c64::new(-INFINITY, 0.0));
    same(log_sum, 1.0, 0.5);
    let log_sum = binary_c64(Binary::LogAddExp, c64::new(1.0, 0.5), c64::new(1.0, 0.5));
    assert!((log_sum - c64::new(1.0 + std::f32::consts::LN_2, 0.5)).norm() < 1e-6);
}
