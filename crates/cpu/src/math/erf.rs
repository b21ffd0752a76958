//! erf and erfinv.

use super::exp::{clamp, horner64};
use super::in_f64;
use crate::simd::{Float, Simd};

/// The error function, correctly rounded but for rare ties: x times one polynomial in x², in `f64`.
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // From here on the result rounds to ±1.
    let x = clamp(s, x, 3.94);
    in_f64!(s, |x| {
        let z = (x * x).fma(s.f64(1.0 / HALF_RANGE), s.f64(-1.0));
        x * horner64(s, &ERF, z)
    })
}

/// Half of 3.94².
const HALF_RANGE: f64 = 7.7618;
/// erf(x)/x for |x| <= 3.94 in x²/7.7618 - 1; minimax (Remez), 2^-29.8 of erf.
const ERF: [f64; 18] = [
    0.3589082059581122,
    -0.17921393157037957,
    0.1334783112609478,
    -0.10882051818638698,
    0.0905402185361633,
    -0.07421977191394737,
    0.058619646287832505,
    -0.04403172170768948,
    0.03126533077374213,
    -0.020723397618432646,
    0.012633224805729773,
    -0.007509103679929805,
    0.004623345530553977,
    -0.002252365190537858,
    0.0005925979058455683,
    -0.0003560135351372628,
    0.00043225183754132474,
    -0.0001592095639190309,
];
