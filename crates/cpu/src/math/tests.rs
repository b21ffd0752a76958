//! Every function at every level: error against `f64`, special values as in C, and the same bits everywhere.

use super::*;
use crate::isa;

/// A thousandth of all `f32`, both signs, every exponent, infinities and NaN among them.
fn samples() -> Vec<f32> {
    let mut all: Vec<f32> = (0..=u32::MAX / 4099).map(|i| f32::from_bits(i.wrapping_mul(4099))).collect();
    for x in [0.0, 1e-45, 1e-40, f32::MIN_POSITIVE, 1.0, f32::MAX, f32::INFINITY, f32::NAN] {
        all.extend([x, -x, x.next_up(), x.next_down(), -x.next_up(), -x.next_down()]);
    }
    // Powers of ten and two, multiples of π/2 (where reduction loses most), both edges of exp.
    for i in -45..39 {
        all.push(10f64.powi(i) as f32);
        all.push(2f64.powi(i) as f32);
        all.push((i as f64 * std::f64::consts::FRAC_PI_2) as f32);
    }
    all.extend([16367173.0 * 2f32.powi(72), 88.72283, 88.72284, -87.33655, -103.27893, -103.97208, -103.97209]);
    all
}

/// The distance of `got` from `want` in units of the last place of `want` as a `f32`.
fn ulps(got: f32, want: f64) -> f64 {
    let rounded = want as f32;
    if got.to_bits() == rounded.to_bits() || got.is_nan() && want.is_nan() {
        return 0.0;
    }
    if !got.is_finite() || !rounded.is_finite() {
        // One step from the largest number to infinity may be a matter of rounding; anything else is wrong.
        let near = got.abs().min(rounded.abs()) == f32::MAX && got.signum() == rounded.signum();
        return if near { 1.0 } else { f64::INFINITY };
    }
    if got == 0.0 && rounded == 0.0 {
        return f64::INFINITY; // the wrong zero
    }
    let exponent = ((want.abs().to_bits() >> 52) as i32 - 1023).max(-126);
    (got as f64 - want).abs() / 2f64.powi(exponent - 23)
}

/// The largest error allowed, in ulp.
fn allowed(f: Unary) -> f64 {
    match f {
        Unary::Exp | Unary::Exp2 | Unary::Erf => 1.0,
        Unary::Tanh => 2.0,
        Unary::Rsqrt => 1.5,
        Unary::Sigmoid => 2.5,
        Unary::Erfinv => 3.0,
        Unary::RandomLog => 0.82,
        Unary::RandomExp | Unary::RandomErf => f64::INFINITY,
        _ => 0.6,
    }
}

#[test]
fn errors_of_one_argument() {
    let x = samples();
    let levels = isa::available();
    for &f in Unary::ALL {
        let mut first = vec![0.0; x.len()];
        unary_slice(levels[0], f, &x, &mut first);
        if allowed(f).is_finite() {
            let worst = x.iter().zip(&first).map(|(&x, &y)| (ulps(y, unary_f64(f, x.into())), x, y));
            let (error, x, y) = worst.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
            println!("{f:?}: {error:.3} ulp at {x:e}");
            assert!(error <= allowed(f), "{f:?}({x:e}) = {y:e}: {error} ulp off, {:e}", unary_f64(f, x.into()));
        }
        for &level in &levels[1..] {
            let mut other = vec![0.0; x.len()];
            unary_slice(level, f, &x, &mut other);
            same_bits(&first, &other, level, &format!("{f:?}"), &x);
        }
    }
}

fn same_bits(a: &[f32], b: &[f32], level: Isa, what: &str, x: &[f32]) {
    for i in 0..a.len() {
        let equal = a[i].to_bits() == b[i].to_bits() || a[i].is_nan() && b[i].is_nan();
        assert!(equal, "{what} of {:e}: {:e} at {}, {:e} at the best level", x[i], b[i], level.name(), a[i]);
    }
}

#[test]
fn errors_of_two_arguments() {
    // All pairs of special and ordinary numbers, then pairs for which powers neither overflow nor vanish.
    let mut some =
        vec![0.0, 1.0, 0.5, 1.5, 2.0, 3.0, 1e-3, 7.0, 1e10, 1e-45, 1e-38, 3e38, 8388609.0, f32::INFINITY, f32::NAN];
    some.extend(some.clone().iter().map(|x: &f32| -x));
    let (mut x, mut y) = (vec![], vec![]);
    for &a in &some {
        for &b in &some {
            x.push(a);
            y.push(b);
        }
    }
    let mut state = 12345u32;
    let mut random = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    for _ in 0..300_000 {
        x.push((random() * 80.0 - 40.0).exp2());
        y.push((random() - 0.5) * 6.0);
    }
    for _ in 0..100_000 {
        x.push((random() - 0.5) * 20.0);
        y.push((random() - 0.5) * 20.0);
    }
    let levels = isa::available();
    for &f in Binary::ALL {
        let mut first = vec![0.0; x.len()];
        binary_slice(levels[0], f, &x, &y, &mut first);
        let mut worst = 0.0;
        for i in 0..x.len() {
            let want = binary_f64(f, x[i].into(), y[i].into());
            let error = ulps(first[i], want);
            assert!(error <= 0.6, "{f:?}({:e}, {:e}) = {:e}: {error} ulp off, {want:e}", x[i], y[i], first[i]);
            worst = error.max(worst);
        }
        println!("{f:?}: {worst:.3} ulp");
        for &level in &levels[1..] {
            let mut other = vec![0.0; x.len()];
            binary_slice(level, f, &x, &y, &mut other);
            same_bits(&first, &other, level, &format!("{f:?}"), &x);
        }
    }
}

#[test]
fn inverse_error_function_in_double_precision() {
    // mpmath, 40 digits.
    for (x, want) in [
        (1e-300, 8.86226925452758e-301),
        (1e-09, 8.86226925452758e-10),
        (0.001, 0.0008862271574665521),
        (0.25, 0.2253120550121781),
        (0.4999, 0.4768250236254278),
        (0.5, 0.4769362762044699),
        (0.7, 0.7328690779592167),
        (0.9, 1.1630871536766743),
        (0.99, 1.8213863677184494),
        (0.999999, 3.458910737275499),
        (0.99999999999, 4.812924058944833),
        (0.9999999999999999, 5.8635847487551676),
    ] {
        for sign in [1.0, -1.0] {
            let y: f64 = sign * unary_f64(Unary::Erfinv, sign * x);
            assert!((y - want).abs() <= 2.0 * f64::EPSILON * want, "{x:e}: {y:e}, want {want:e}");
        }
    }
    assert_eq!(unary_f64(Unary::Erfinv, -1.0), f64::NEG_INFINITY);
    assert!(unary_f64(Unary::Erfinv, 1.1).is_nan());
}
