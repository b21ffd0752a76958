//! How arrays look as text: as MLX prints them.
//!
//! `Display` evaluates and shows values; `Debug` shows shape and dtype and computes nothing.

use crate::array::Array;
use crate::dtype::{Dtype, bf16, c64, f16};
use crate::error::Result;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

static PRECISION: AtomicI32 = AtomicI32::new(-1);

/// Decimals shown for floats (`mx.set_printoptions`): `None` is the shortest of up to 6 significant digits.
pub fn set_precision(decimals: Option<u32>) {
    PRECISION.store(decimals.map_or(-1, |d| d.min(60) as i32), Relaxed);
}

/// The present setting of [`set_precision`].
pub fn precision() -> Option<u32> {
    u32::try_from(PRECISION.load(Relaxed)).ok()
}

/// Runs `f` with [`set_precision`] of `decimals`, and restores the setting (`mx.printoptions`). It holds for the whole
/// process, for other threads too.
pub fn with_precision<T>(decimals: Option<u32>, f: impl FnOnce() -> T) -> T {
    struct Restore(Option<u32>);
    impl Drop for Restore {
        fn drop(&mut self) {
            set_precision(self.0);
        }
    }
    let _restore = Restore(precision());
    set_precision(decimals);
    f()
}

/// An axis longer than this shows its first and last [`EDGE`] entries.
const LONGEST: usize = 6;
const EDGE: usize = 3;

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array({}, {})", self.dtype(), crate::shape::show(self.shape()))
    }
}

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match text(self) {
            Ok(text) => f.write_str(&text),
            Err(error) => write!(f, "array(<{error}>, dtype={})", self.dtype()),
        }
    }
}

fn text(a: &Array) -> Result<String> {
    let mut out = String::from("array(");
    let one = values(a)?;
    if a.ndim() == 0 {
        out.push_str(&one(0));
    } else {
        block(&mut out, a.shape(), 0, 0, &one);
    }
    let _ = write!(out, ", dtype={})", a.dtype());
    Ok(out)
}

/// Writes the sub-array of shape `shape[depth..]` that starts at flat index `at`.
fn block(out: &mut String, shape: &[usize], depth: usize, at: usize, one: &dyn Fn(usize) -> String) {
    let n = shape[depth];
    let inner: usize = shape[depth + 1..].iter().product();
    let last = depth + 1 == shape.len();
    let separator = if last { ", ".to_string() } else { format!(",\n{}", " ".repeat(7 + depth)) };
    out.push('[');
    let mut i = 0;
    while i < n {
        if i > 0 {
            out.push_str(&separator);
        }
        if n > LONGEST && i == EDGE {
            out.push_str("...");
            i = n - EDGE;
            continue;
        }
        if last {
            out.push_str(&one(at + i));
        } else {
            block(out, shape, depth + 1, at + i * inner, one);
        }
        i += 1;
    }
    out.push(']');
}

/// A function that shows the element at a row-major index.
fn values(a: &Array) -> Result<Box<dyn Fn(usize) -> String>> {
    macro_rules! show {
        ($t:ty, $f:expr) => {{
            let v = a.to_vec::<$t>()?;
            Box::new(move |i: usize| $f(v[i]))
        }};
    }
    Ok(match a.dtype() {
        Dtype::Bool => show!(bool, |x| if x { "True" } else { "False" }.to_string()),
        Dtype::Uint8 => show!(u8, |x: u8| x.to_string()),
        Dtype::Uint16 => show!(u16, |x: u16| x.to_string()),
        Dtype::Uint32 => show!(u32, |x: u32| x.to_string()),
        Dtype::Uint64 => show!(u64, |x: u64| x.to_string()),
        Dtype::Int8 => show!(i8, |x: i8| x.to_string()),
        Dtype::Int16 => show!(i16, |x: i16| x.to_string()),
        Dtype::Int32 => show!(i32, |x: i32| x.to_string()),
        Dtype::Int64 => show!(i64, |x: i64| x.to_string()),
        Dtype::Float16 => show!(f16, |x: f16| number(x.to_f64())),
        Dtype::Bfloat16 => show!(bf16, |x: bf16| number(x.to_f64())),
        Dtype::Float32 => show!(f32, |x: f32| number(f64::from(x))),
        Dtype::Float64 => show!(f64, number),
        Dtype::Complex64 => show!(c64, |z: c64| {
            let im = number(f64::from(z.im));
            let sign = if im.starts_with('-') { "" } else { "+" };
            format!("{}{sign}{im}j", number(f64::from(z.re)))
        }),
    })
}

fn number(x: f64) -> String {
    match precision() {
        Some(digits) if x.is_finite() => format!("{x:.*}", digits as usize),
        _ => general(x),
    }
}

/// C's `%g`: six significant digits, trailing zeros dropped, an exponent below 1e-4 and from 1e6 on.
fn general(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    if x == 0.0 {
        return if x.is_sign_negative() { "-0" } else { "0" }.into();
    }
    let scientific = format!("{x:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |s: &str| -> String {
        if s.contains('.') { s.trim_end_matches('0').trim_end_matches('.').into() } else { s.into() }
    };
    if (-4..6).contains(&exponent) {
        return trim(&format!("{x:.*}", (5 - exponent) as usize));
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", trim(mantissa), exponent.abs())
}
