//! Host numbers beside arrays: weak in promotion, exact in value.

use crate::dtype::{Dtype, Kind, c64};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::hash::{Hash, Hasher};

const TWO_63: f64 = 9_223_372_036_854_775_808.0;

/// A number from the host program.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Scalar {
    /// A truth value.
    Bool(bool),
    /// An integer; wide enough for every integer dtype.
    Int(#[serde(with = "text")] i128),
    /// A real number.
    Float(#[serde(with = "text")] f64),
    /// A complex number.
    Complex(#[serde(with = "pair")] c64),
}

impl Scalar {
    /// The dtype it has when no array is near: bool, int32 (int64 or uint64 when it does not fit), float32, complex64.
    pub fn dtype(self) -> Dtype {
        match self {
            Scalar::Bool(_) => Dtype::Bool,
            Scalar::Int(v) if i32::try_from(v).is_ok() => Dtype::Int32,
            Scalar::Int(v) if i64::try_from(v).is_ok() => Dtype::Int64,
            Scalar::Int(_) => Dtype::Uint64,
            Scalar::Float(_) => Dtype::Float32,
            Scalar::Complex(_) => Dtype::Complex64,
        }
    }

    /// The dtype it takes beside an array of `dtype`: the array's, unless its own kind is higher.
    ///
    /// # Errors
    /// A value error for an integer that does not fit an integer dtype.
    pub fn dtype_beside(self, op: &str, dtype: Dtype) -> Result<Dtype> {
        let out = match (self, dtype.kind()) {
            (Scalar::Bool(_), _) => dtype,
            (Scalar::Int(v), Kind::Bool | Kind::Signed | Kind::Unsigned) => {
                let held = if dtype == Dtype::Bool { Dtype::Int32 } else { dtype };
                let (lo, hi) = crate::dtype::iinfo(held)?;
                if v < lo || v > hi {
                    return Err(Error::value(format!("[{op}] the integer {v} does not fit {held} ({lo} to {hi})")));
                }
                held
            }
            (Scalar::Int(_), _) => dtype,
            (Scalar::Float(_), Kind::Bool | Kind::Signed | Kind::Unsigned) => Dtype::Float32,
            (Scalar::Float(_), _) => dtype,
            (Scalar::Complex(_), _) => Dtype::Complex64,
        };
        Ok(out)
    }

    /// As a double (the real part of a complex number).
    pub fn as_f64(self) -> f64 {
        match self {
            Scalar::Bool(b) => f64::from(u8::from(b)),
            Scalar::Int(v) => v as f64,
            Scalar::Float(v) => v,
            Scalar::Complex(c) => f64::from(c.re),
        }
    }

    /// The bytes of this number as an element of `dtype`, in the low bytes of the result (little-endian machines).
    /// Casts follow the rules of arrays: integers keep the low bits, floats round to nearest even.
    pub fn to_bits(self, dtype: Dtype) -> u64 {
        let f = self.as_f64();
        match dtype {
            Dtype::Bool => match self {
                Scalar::Complex(c) => u64::from(c.re != 0.0 || c.im != 0.0),
                Scalar::Int(v) => u64::from(v != 0),
                _ => u64::from(f != 0.0),
            },
            Dtype::Float16 => u64::from(half::f16::from_f64(f).to_bits()),
            Dtype::Bfloat16 => u64::from(half::bf16::from_f64(f).to_bits()),
            Dtype::Float32 => u64::from((f as f32).to_bits()),
            Dtype::Float64 => f.to_bits(),
            Dtype::Complex64 => {
                let c = if let Scalar::Complex(c) = self { c } else { c64::new(f as f32, 0.0) };
                u64::from(c.re.to_bits()) | u64::from(c.im.to_bits()) << 32
            }
            _ => {
                let v = match self {
                    Scalar::Int(v) => v as u64,
                    Scalar::Bool(b) => u64::from(b),
                    // 2^63 in magnitude is where the rule of casts ends, but for what a uint64 holds.
                    _ if dtype == Dtype::Uint64 && (TWO_63..2.0 * TWO_63).contains(&f) => f as u64,
                    _ if f.abs() < TWO_63 || (dtype == Dtype::Int64 && f == -TWO_63) => f as i64 as u64,
                    _ => 0,
                };
                let bits = dtype.size() * 8;
                if bits == 64 { v } else { v & ((1u64 << bits) - 1) }
            }
        }
    }

    fn key(self) -> (u8, u128) {
        match self {
            Scalar::Bool(b) => (0, u128::from(b)),
            Scalar::Int(v) => (1, v as u128),
            Scalar::Float(v) => (2, u128::from(v.to_bits())),
            Scalar::Complex(c) => (3, u128::from(c.re.to_bits()) << 32 | u128::from(c.im.to_bits())),
        }
    }
}

impl PartialEq for Scalar {
    /// Equal bits: NaN equals itself, 0 and -0 differ.
    fn eq(&self, other: &Scalar) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Scalar {}
impl Hash for Scalar {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// A real attribute of an op, compared and hashed by its bits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Real(#[serde(with = "text")] pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Real) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}
impl Eq for Real {}
impl Hash for Real {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// Numbers as text, which is exact and has infinities and NaN.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Debug;
    use std::str::FromStr;

    pub(super) fn serialize<T: Debug, S: Serializer>(number: &T, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{number:?}"))
    }

    pub(super) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|_| D::Error::custom(format!("{text:?} is not a number")))
    }
}

/// A complex number as two numbers.
mod pair {
    use super::{Real, c64};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(z: &c64, to: S) -> Result<S::Ok, S::Error> {
        [Real(z.re.into()), Real(z.im.into())].serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<c64, D::Error> {
        <[Real; 2]>::deserialize(from).map(|[re, im]| c64::new(re.0 as f32, im.0 as f32))
    }
}

macro_rules! from {
    ($($t:ty => $v:ident as $as:ty),* $(,)?) => {$(
        impl From<$t> for Scalar {
            fn from(v: $t) -> Scalar {
                Scalar::$v(v as $as)
            }
        }
    )*};
}
from!(bool => Bool as bool, i8 => Int as i128, i16 => Int as i128, i32 => Int as i128, i64 => Int as i128,
    u8 => Int as i128, u16 => Int as i128, u32 => Int as i128, u64 => Int as i128, usize => Int as i128,
    isize => Int as i128, f32 => Float as f64, f64 => Float as f64);
impl From<c64> for Scalar {
    fn from(v: c64) -> Scalar {
        Scalar::Complex(v)
    }
}
impl From<half::f16> for Scalar {
    fn from(v: half::f16) -> Scalar {
        Scalar::Float(v.to_f64())
    }
}
impl From<half::bf16> for Scalar {
    fn from(v: half::bf16) -> Scalar {
        Scalar::Float(v.to_f64())
    }
}
