//! Functions of `c64`, computed in `f64` so that squares do not overflow and cancellation costs nothing that is kept.
//!
//! Branch cuts and signed zeros follow Kahan, "Branch cuts for complex elementary functions" (1987); infinities and NaN
//! follow Annex G of the C standard where a user can tell the difference.

use super::{Binary, Unary};
use lapis_core::dtype::c64;
use num_complex::Complex;
use std::f64::consts::{FRAC_PI_2, LN_2, LN_10};

type C = Complex<f64>;

/// `f(z)`; NaN for the functions that have no complex form (expm1, erf, erfinv, sigmoid, those of random).
pub fn unary_c64(f: Unary, z: c64) -> c64 {
    let z = wide(z);
    let w = match f {
        Unary::Exp => exp(z),
        Unary::Exp2 => exp(z * LN_2),
        Unary::Log => log(z),
        Unary::Log2 => log(z) / LN_2,
        Unary::Log10 => log(z) / LN_10,
        Unary::Log1p => log1p(z),
        Unary::Sin => over_i(sinh(times_i(z))),
        Unary::Cos => cosh(times_i(z)),
        Unary::Tan => over_i(tanh(times_i(z))),
        Unary::Asin => asin(z),
        Unary::Acos => acos(z),
        Unary::Atan => over_i(atanh(times_i(z))),
        Unary::Sinh => sinh(z),
        Unary::Cosh => cosh(z),
        Unary::Tanh => tanh(z),
        Unary::Asinh => over_i(asin(times_i(z))),
        Unary::Acosh => acosh(z),
        Unary::Atanh => atanh(z),
        Unary::Sqrt => sqrt(z),
        Unary::Rsqrt => reciprocal(sqrt(z)),
        Unary::Reciprocal => reciprocal(z),
        Unary::Expm1
        | Unary::Erf
        | Unary::Erfinv
        | Unary::Sigmoid
        | Unary::RandomLog
        | Unary::RandomExp
        | Unary::RandomErf => C::new(f64::NAN, f64::NAN),
    };
    narrow(w)
}

/// `f(z, w)`; NaN for atan2, which has no complex form.
pub fn binary_c64(f: Binary, z: c64, w: c64) -> c64 {
    let (z, w) = (wide(z), wide(w));
    narrow(match f {
        Binary::Pow => pow(z, w),
        Binary::Atan2 => C::new(f64::NAN, f64::NAN),
        Binary::LogAddExp => logaddexp(z, w),
    })
}

fn wide(z: c64) -> C {
    C::new(z.re.into(), z.im.into())
}

fn narrow(z: C) -> c64 {
    c64::new(z.re as f32, z.im as f32)
}

fn times_i(z: C) -> C {
    C::new(-z.im, z.re)
}

fn over_i(z: C) -> C {
    C::new(z.im, -z.re)
}

fn is_infinite(z: C) -> bool {
    z.re.is_infinite() || z.im.is_infinite()
}

/// a·b, but 0 when b is 0 and a infinite.
fn times(a: f64, b: f64) -> f64 {
    if a.is_infinite() && b == 0.0 { b.copysign(b * a.signum()) } else { a * b }
}

fn exp(z: C) -> C {
    let size = libm::exp(z.re);
    if size == 0.0 && !z.im.is_finite() {
        return C::new(0.0, 0.0);
    }
    if z.im == 0.0 {
        return C::new(size, z.im);
    }
    if z.re == f64::INFINITY && !z.im.is_finite() {
        return C::new(f64::INFINITY, f64::NAN);
    }
    C::new(size * libm::cos(z.im), size * libm::sin(z.im))
}

fn log(z: C) -> C {
    C::new(log_size(z), libm::atan2(z.im, z.re))
}

/// ln |z|.
fn log_size(z: C) -> f64 {
    if is_infinite(z) {
        return f64::INFINITY;
    }
    let square = z.re * z.re + z.im * z.im;
    if square > 0.5 && square < 2.0 {
        // |z|² - 1 from exact parts, with the error of their sum.
        let (a, b) = ((z.re - 1.0) * (z.re + 1.0), z.im * z.im);
        let sum = a + b;
        let part = sum - a;
        let error = (a - (sum - part)) + (b - part);
        0.5 * libm::log1p(sum + error)
    } else {
        0.5 * libm::log(square)
    }
}

fn log1p(z: C) -> C {
    if is_infinite(z) || z.norm_sqr() > 0.25 {
        return log(z + 1.0);
    }
    C::new(0.5 * libm::log1p(z.re * (2.0 + z.re) + z.im * z.im), libm::atan2(z.im, 1.0 + z.re))
}

fn sinh(z: C) -> C {
    let (sin, cos) = (libm::sin(z.im), libm::cos(z.im));
    if z.im == 0.0 {
        return C::new(libm::sinh(z.re), z.im);
    }
    if z.re == 0.0 {
        return C::new(z.re, sin);
    }
    C::new(times(libm::sinh(z.re), cos), times(libm::cosh(z.re), sin))
}

fn cosh(z: C) -> C {
    let (sin, cos) = (libm::sin(z.im), libm::cos(z.im));
    let (sinh, cosh) = (libm::sinh(z.re), libm::cosh(z.re));
    // A zero on either axis keeps its sign whatever the other factor is.
    let im = if z.re == 0.0 || z.im == 0.0 { 0.0f64.copysign(z.re * z.im.signum()) } else { sinh * sin };
    C::new(times(cosh, cos), im)
}

fn tanh(z: C) -> C {
    if z.re.abs() > 20.0 {
        let im = if z.im.is_finite() { 4.0 * libm::sin(z.im) * libm::cos(z.im) } else { 0.0 };
        return C::new(1f64.copysign(z.re), im * libm::exp(-2.0 * z.re.abs()));
    }
    if z.im == 0.0 {
        return C::new(libm::tanh(z.re), z.im);
    }
    let (sin, cos, sinh) = (libm::sin(z.im), libm::cos(z.im), libm::sinh(z.re));
    let below = sinh * sinh + cos * cos;
    C::new(sinh * libm::cosh(z.re) / below, sin * cos / below)
}

fn sqrt(z: C) -> C {
    let (x, y) = (z.re, z.im);
    if x == 0.0 && y == 0.0 {
        return C::new(0.0, y);
    }
    if y.is_infinite() {
        return C::new(f64::INFINITY, y);
    }
    if x.is_infinite() {
        let small = if y.is_nan() { y } else { 0.0 };
        return if x > 0.0 { C::new(x, small.copysign(y)) } else { C::new(small, f64::INFINITY.copysign(y)) };
    }
    let t = (((x * x + y * y).sqrt() + x.abs()) / 2.0).sqrt();
    if x < 0.0 { C::new(y.abs() / (2.0 * t), t.copysign(y)) } else { C::new(t, y / (2.0 * t)) }
}

fn asin(z: C) -> C {
    if is_infinite(z) {
        return C::new(libm::atan2(z.re, z.im.abs()), f64::INFINITY.copysign(z.im));
    }
    let (below, above) = (sqrt(C::new(1.0 - z.re, -z.im)), sqrt(C::new(1.0 + z.re, z.im)));
    let re = libm::atan2(z.re, (below * above).re);
    C::new(re, libm::asinh((below.conj() * above).im).copysign(z.im))
}

fn acos(z: C) -> C {
    if is_infinite(z) {
        return C::new(libm::atan2(z.im.abs(), z.re), -f64::INFINITY.copysign(z.im));
    }
    let (below, above) = (sqrt(C::new(1.0 - z.re, -z.im)), sqrt(C::new(1.0 + z.re, z.im)));
    let re = 2.0 * libm::atan2(below.re, above.re);
    C::new(re, libm::asinh((above.conj() * below).im))
}

fn acosh(z: C) -> C {
    if is_infinite(z) {
        return C::new(f64::INFINITY, libm::atan2(z.im, z.re));
    }
    let (below, above) = (sqrt(C::new(z.re - 1.0, z.im)), sqrt(C::new(z.re + 1.0, z.im)));
    C::new(libm::asinh((below.conj() * above).re), 2.0 * libm::atan2(below.im, above.re))
}

fn atanh(z: C) -> C {
    let (x, y) = (z.re, z.im);
    if is_infinite(z) {
        return C::new(0f64.copysign(x), FRAC_PI_2.copysign(y));
    }
    let square = (1.0 - x.abs()) * (1.0 - x.abs()) + y * y;
    let re = 0.25 * libm::log1p(4.0 * x.abs() / square);
    let im = 0.5 * libm::atan2(2.0 * y, (1.0 - x) * (1.0 + x) - y * y);
    C::new(re.copysign(x), im)
}

fn reciprocal(z: C) -> C {
    if is_infinite(z) {
        return C::new(0f64.copysign(z.re), 0f64.copysign(-z.im));
    }
    if z.re == 0.0 && z.im == 0.0 {
        return C::new(f64::INFINITY.copysign(z.re), f64::NAN);
    }
    let square = z.re * z.re + z.im * z.im;
    C::new(z.re / square, -z.im / square)
}

/// Small whole exponents by multiplication, so that powers of whole numbers are whole.
fn pow(z: C, w: C) -> C {
    if w.re == 0.0 && w.im == 0.0 {
        return C::new(1.0, 0.0);
    }
    if z.re == 0.0 && z.im == 0.0 {
        let grows = w.re <= 0.0 || w.re.is_nan();
        return if grows { C::new(f64::NAN, f64::NAN) } else { C::new(0.0, 0.0) };
    }
    if w.im == 0.0 && w.re.fract() == 0.0 && w.re.abs() <= 64.0 {
        let p = z.powu(w.re.abs() as u32);
        let p = if w.re < 0.0 { reciprocal(p) } else { p };
        if p.re.is_finite() && p.im.is_finite() && p.norm_sqr() > 0.0 {
            return p;
        }
    }
    exp(log(z) * w)
}

fn logaddexp(z: C, w: C) -> C {
    let (small, large) = if z.re < w.re || (z.re == w.re && z.im < w.im) { (z, w) } else { (w, z) };
    if is_infinite(large) && large.re == f64::INFINITY || small.re == f64::NEG_INFINITY {
        return large;
    }
    large + log1p(exp(small - large))
}
