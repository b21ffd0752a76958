//! Functions of `f64`: the `libm` crate (musl's functions in Rust, the same bits on every machine), and the few it lacks.

use super::{Binary, Unary};
use std::f64::consts::FRAC_2_SQRT_PI;

/// `f(x)`, within 2 ulp.
pub fn unary_f64(f: Unary, x: f64) -> f64 {
    match f {
        Unary::Exp | Unary::RandomExp => libm::exp(x),
        Unary::Exp2 => libm::exp2(x),
        Unary::Expm1 => libm::expm1(x),
        Unary::Log | Unary::RandomLog => libm::log(x),
        Unary::Log2 => libm::log2(x),
        Unary::Log10 => libm::log10(x),
        Unary::Log1p => libm::log1p(x),
        Unary::Sin => libm::sin(x),
        Unary::Cos => libm::cos(x),
        Unary::Tan => libm::tan(x),
        Unary::Asin => libm::asin(x),
        Unary::Acos => libm::acos(x),
        Unary::Atan => libm::atan(x),
        Unary::Sinh => libm::sinh(x),
        Unary::Cosh => libm::cosh(x),
        Unary::Tanh => libm::tanh(x),
        Unary::Asinh => libm::asinh(x),
        // libm gives finite values for large negative numbers.
        Unary::Acosh => {
            if x < 1.0 {
                f64::NAN
            } else {
                libm::acosh(x)
            }
        }
        Unary::Atanh => libm::atanh(x),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Reciprocal => 1.0 / x,
        Unary::Erf | Unary::RandomErf => libm::erf(x),
        Unary::Erfinv => erfinv(x),
        Unary::Sigmoid => sigmoid(x),
    }
}

/// `f(x, y)`, within 2 ulp.
pub fn binary_f64(f: Binary, x: f64, y: f64) -> f64 {
    match f {
        Binary::Pow => libm::pow(x, y),
        Binary::Atan2 => libm::atan2(x, y),
        Binary::LogAddExp => logaddexp(x, y),
    }
}

fn sigmoid(x: f64) -> f64 {
    let e = libm::exp(-x.abs());
    if x < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) }
}

fn logaddexp(x: f64, y: f64) -> f64 {
    let larger = if x > y { x } else { y };
    if x.is_nan() || y.is_nan() {
        x + y
    } else if larger.is_infinite() {
        larger
    } else {
        larger + libm::log1p(libm::exp(-(x - y).abs()))
    }
}

/// Newton's method with Halley's correction, on erf near 0 and on erfc in the tails.
fn erfinv(x: f64) -> f64 {
    let size = x.abs();
    if size >= 1.0 || x.is_nan() {
        return if size == 1.0 { x * f64::INFINITY } else { f64::NAN };
    }
    let tail = 1.0 - size;
    // Winitzki's approximation, to 2e-3.
    let l = libm::log1p(-size * size);
    let a = 0.147;
    let b = 2.0 / (std::f64::consts::PI * a) + 0.5 * l;
    let mut y = (l * l / a / (b + (b * b - l / a).sqrt()) / l.abs().max(f64::MIN_POSITIVE)).abs().sqrt();
    if size < 1e-8 {
        return x / FRAC_2_SQRT_PI;
    }
    for _ in 0..4 {
        let error = if size < 0.5 { libm::erf(y) - size } else { tail - libm::erfc(y) };
        let step = error / (FRAC_2_SQRT_PI * libm::exp(-y * y));
        y -= step / (1.0 + y * step);
    }
    y.copysign(x)
}
