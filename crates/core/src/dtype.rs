//! The fourteen element types, how they promote, and the Rust types that stand for them.
//!
//! Knows nothing of arrays. The promotion table is the one of MLX (`mx.result_type`).

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

pub use half::{bf16, f16};
/// A complex number of two `f32`.
#[allow(non_camel_case_types)]
pub type c64 = num_complex::Complex<f32>;

/// The type of an array's elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Dtype {
    /// One byte, 0 or 1.
    Bool = 0,
    /// Unsigned 8-bit integer.
    Uint8 = 1,
    /// Unsigned 16-bit integer.
    Uint16 = 2,
    /// Unsigned 32-bit integer.
    Uint32 = 3,
    /// Unsigned 64-bit integer.
    Uint64 = 4,
    /// Signed 8-bit integer.
    Int8 = 5,
    /// Signed 16-bit integer.
    Int16 = 6,
    /// Signed 32-bit integer.
    Int32 = 7,
    /// Signed 64-bit integer.
    Int64 = 8,
    /// IEEE half precision.
    Float16 = 9,
    /// IEEE single precision.
    Float32 = 10,
    /// IEEE double precision.
    Float64 = 11,
    /// The upper half of a single.
    Bfloat16 = 12,
    /// Two singles: real part, imaginary part.
    Complex64 = 13,
}

/// The families of element types.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `bool_`.
    Bool,
    /// Unsigned integers.
    Unsigned,
    /// Signed integers.
    Signed,
    /// Real floating types.
    Floating,
    /// Complex floating types.
    Complex,
}

use Dtype::*;

impl Dtype {
    /// Every dtype, in the order of its number.
    pub const ALL: [Dtype; 14] = [
        Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Float16, Float32, Float64, Bfloat16, Complex64,
    ];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Bool | Uint8 | Int8 => 1,
            Uint16 | Int16 | Float16 | Bfloat16 => 2,
            Uint32 | Int32 | Float32 => 4,
            Uint64 | Int64 | Float64 | Complex64 => 8,
        }
    }

    /// The family this type belongs to.
    pub const fn kind(self) -> Kind {
        match self {
            Bool => Kind::Bool,
            Uint8 | Uint16 | Uint32 | Uint64 => Kind::Unsigned,
            Int8 | Int16 | Int32 | Int64 => Kind::Signed,
            Float16 | Float32 | Float64 | Bfloat16 => Kind::Floating,
            Complex64 => Kind::Complex,
        }
    }

    /// The smallest category it lies in.
    pub const fn category(self) -> Category {
        match self.kind() {
            Kind::Bool => Category::Generic,
            Kind::Unsigned => Category::UnsignedInteger,
            Kind::Signed => Category::SignedInteger,
            Kind::Floating => Category::Floating,
            Kind::Complex => Category::ComplexFloating,
        }
    }

    /// Signed or unsigned integer (not bool).
    pub const fn is_integer(self) -> bool {
        matches!(self.kind(), Kind::Signed | Kind::Unsigned)
    }

    /// Real floating type.
    pub const fn is_floating(self) -> bool {
        matches!(self.kind(), Kind::Floating)
    }

    /// Real or complex floating type.
    pub const fn is_inexact(self) -> bool {
        matches!(self.kind(), Kind::Floating | Kind::Complex)
    }

    /// `complex64`.
    pub const fn is_complex(self) -> bool {
        matches!(self, Complex64)
    }

    /// float16 or bfloat16: stored in two bytes, computed in f32.
    pub const fn is_half(self) -> bool {
        matches!(self, Float16 | Bfloat16)
    }

    /// The name MLX and NumPy use, without a module: `float32`, `bool`.
    pub const fn name(self) -> &'static str {
        match self {
            Bool => "bool",
            Uint8 => "uint8",
            Uint16 => "uint16",
            Uint32 => "uint32",
            Uint64 => "uint64",
            Int8 => "int8",
            Int16 => "int16",
            Int32 => "int32",
            Int64 => "int64",
            Float16 => "float16",
            Float32 => "float32",
            Float64 => "float64",
            Bfloat16 => "bfloat16",
            Complex64 => "complex64",
        }
    }

    /// The dtype called `name` (`float32`, `bool` or `bool_`).
    ///
    /// # Errors
    /// A dtype error for another name.
    pub fn from_name(name: &str) -> Result<Dtype> {
        let plain = name.strip_suffix('_').unwrap_or(name);
        Dtype::ALL.into_iter().find(|d| d.name() == plain).ok_or_else(|| {
            let all: Vec<_> = Dtype::ALL.iter().map(|d| d.name()).collect();
            Error::dtype(format!("[dtype] unknown dtype {name:?}; known are {}", all.join(", ")))
        })
    }

    /// The type that holds the result of combining `self` and `other` (symmetric).
    ///
    /// Matches `mx.result_type`: bool gives way, integers widen (mixed signs to the narrowest signed type that
    /// holds both, `uint64` with a signed type to float32), floats win over integers, f16 with bf16 is f32.
    pub const fn promote(self, other: Dtype) -> Dtype {
        if self as u8 == other as u8 {
            return self;
        }
        match (self.kind(), other.kind()) {
            (Kind::Bool, _) => other,
            (_, Kind::Bool) => self,
            (Kind::Complex, _) | (_, Kind::Complex) => Complex64,
            (Kind::Floating, Kind::Floating) => {
                if self.size() == other.size() {
                    Float32
                } else if self.size() > other.size() {
                    self
                } else {
                    other
                }
            }
            (Kind::Floating, _) => self,
            (_, Kind::Floating) => other,
            (Kind::Signed, Kind::Signed) | (Kind::Unsigned, Kind::Unsigned) => {
                if self.size() > other.size() {
                    self
                } else {
                    other
                }
            }
            (Kind::Signed, Kind::Unsigned) => signed_with_unsigned(self, other),
            (Kind::Unsigned, Kind::Signed) => signed_with_unsigned(other, self),
        }
    }

    /// The dtype of a floating result: integers and bool become float32, others keep.
    pub const fn to_inexact(self) -> Dtype {
        if self.is_inexact() { self } else { Float32 }
    }

    /// Whether promoting `self` with `to` gives `to` (`mx.can_cast`).
    pub fn can_cast(self, to: Dtype) -> bool {
        self.promote(to) == to
    }
}

/// A set of dtypes, as MLX arranges them: every category but [`Category::Generic`] lies within another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Category {
    /// Every dtype; that of bool.
    Generic,
    /// Every dtype but bool.
    Number,
    /// Signed and unsigned integers.
    Integer,
    /// Signed integers.
    SignedInteger,
    /// Unsigned integers.
    UnsignedInteger,
    /// Real and complex floating types.
    Inexact,
    /// Real floating types.
    Floating,
    /// Complex floating types.
    ComplexFloating,
}

impl Category {
    /// The category around this one.
    const fn around(self) -> Option<Category> {
        match self {
            Category::Generic => None,
            Category::Number => Some(Category::Generic),
            Category::Integer | Category::Inexact => Some(Category::Number),
            Category::SignedInteger | Category::UnsignedInteger => Some(Category::Integer),
            Category::Floating | Category::ComplexFloating => Some(Category::Inexact),
        }
    }
}

/// A dtype or a category: what [`issubdtype`] compares.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// One dtype.
    Dtype(Dtype),
    /// A set of dtypes.
    Category(Category),
}

impl From<Dtype> for Class {
    fn from(dtype: Dtype) -> Class {
        Class::Dtype(dtype)
    }
}

impl From<Category> for Class {
    fn from(category: Category) -> Class {
        Class::Category(category)
    }
}

/// Whether `a` is `b` or lies within it (`mx.issubdtype`). Nothing but itself lies within a dtype.
pub fn issubdtype(a: impl Into<Class>, b: impl Into<Class>) -> bool {
    let (mut a, b) = (a.into(), b.into());
    loop {
        if a == b {
            return true;
        }
        let around = match a {
            Class::Dtype(dtype) => Some(dtype.category()),
            Class::Category(category) => category.around(),
        };
        match around {
            Some(category) => a = Class::Category(category),
            None => return false,
        }
    }
}

/// Whether `dtype` is of the array API's kind `kind` (`mx.isdtype`): `bool`, `signed integer`, `unsigned integer`,
/// `integral`, `real floating`, `complex floating` or `numeric`.
///
/// # Errors
/// A value error for another kind.
pub fn isdtype(dtype: Dtype, kind: &str) -> Result<bool> {
    Ok(match kind {
        "bool" => dtype == Bool,
        "signed integer" => dtype.kind() == Kind::Signed,
        "unsigned integer" => dtype.kind() == Kind::Unsigned,
        "integral" => dtype.is_integer(),
        "real floating" => dtype.is_floating(),
        "complex floating" => dtype.is_complex(),
        "numeric" => dtype != Bool,
        _ => {
            let known = "bool, signed integer, unsigned integer, integral, real floating, complex floating, numeric";
            return Err(Error::value(format!("[isdtype] unknown kind {kind:?}; known are {known}")));
        }
    })
}

/// The dtype that holds a combination of all of `dtypes` (`mx.result_type`).
///
/// # Errors
/// A value error for an empty list.
pub fn result_type(dtypes: impl IntoIterator<Item = Dtype>) -> Result<Dtype> {
    dtypes.into_iter().reduce(Dtype::promote).ok_or_else(|| Error::value("[result_type] needs at least one dtype"))
}

const fn signed_with_unsigned(signed: Dtype, unsigned: Dtype) -> Dtype {
    if signed.size() > unsigned.size() {
        return signed;
    }
    match unsigned {
        Uint8 => Int16,
        Uint16 => Int32,
        Uint32 => Int64,
        _ => Float32,
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that can be the element of an array.
///
/// `bool` is stored as one byte 0 or 1 and travels as `u8` where bytes are reinterpreted; every other element is
/// plain old data.
pub trait Element: sealed::Sealed + Copy + Send + Sync + fmt::Debug + PartialEq + 'static {
    /// The dtype of arrays of this type.
    const DTYPE: Dtype;
    /// The bytes of a slice of elements.
    fn as_bytes(data: &[Self]) -> &[u8];
    /// Elements read from bytes of this dtype. `bytes.len()` must be a multiple of the element size.
    fn read(bytes: &[u8]) -> Vec<Self>;
    /// The elements in place, when the bytes are aligned for this type (`None` for bool).
    fn try_cast(bytes: &[u8]) -> Option<&[Self]>;
    /// As [`Element::try_cast`], for writing.
    fn try_cast_mut(bytes: &mut [u8]) -> Option<&mut [Self]>;
}

macro_rules! elements {
    ($($t:ty => $d:ident),* $(,)?) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: Dtype = $d;
            fn as_bytes(data: &[Self]) -> &[u8] {
                bytemuck::cast_slice(data)
            }
            fn read(bytes: &[u8]) -> Vec<Self> {
                bytemuck::allocation::pod_collect_to_vec(bytes)
            }
            fn try_cast(bytes: &[u8]) -> Option<&[Self]> {
                bytemuck::try_cast_slice(bytes).ok()
            }
            fn try_cast_mut(bytes: &mut [u8]) -> Option<&mut [Self]> {
                bytemuck::try_cast_slice_mut(bytes).ok()
            }
        }
    )*};
}
elements!(u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64, i8 => Int8, i16 => Int16, i32 => Int32,
    i64 => Int64, f16 => Float16, f32 => Float32, f64 => Float64, bf16 => Bfloat16, c64 => Complex64);

impl sealed::Sealed for bool {}
impl Element for bool {
    const DTYPE: Dtype = Bool;
    fn as_bytes(data: &[Self]) -> &[u8] {
        bytemuck::cast_slice(data)
    }
    fn read(bytes: &[u8]) -> Vec<Self> {
        bytes.iter().map(|&b| b != 0).collect()
    }
    fn try_cast(_: &[u8]) -> Option<&[Self]> {
        None
    }
    fn try_cast_mut(_: &mut [u8]) -> Option<&mut [Self]> {
        None
    }
}

/// The limits of a floating type, as `mx.finfo` gives them (complex64 answers for float32).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FloatInfo {
    /// Bits of the type.
    pub bits: u32,
    /// Largest finite value.
    pub max: f64,
    /// Lowest finite value.
    pub min: f64,
    /// Distance from 1 to the next larger value.
    pub eps: f64,
    /// Smallest positive normal value.
    pub smallest_normal: f64,
}

/// The limits of a floating dtype.
///
/// # Errors
/// [`Kind::Floating`] and complex64 only; other dtypes are a dtype error.
pub fn finfo(dtype: Dtype) -> Result<FloatInfo> {
    let info = |bits, max: f64, eps, smallest_normal| FloatInfo { bits, max, min: -max, eps, smallest_normal };
    Ok(match dtype {
        Float16 => info(16, 65504.0, f16::EPSILON.to_f64(), f16::MIN_POSITIVE.to_f64()),
        Bfloat16 => info(16, bf16::MAX.to_f64(), bf16::EPSILON.to_f64(), bf16::MIN_POSITIVE.to_f64()),
        Float32 | Complex64 => info(32, f32::MAX as f64, f32::EPSILON as f64, f32::MIN_POSITIVE as f64),
        Float64 => info(64, f64::MAX, f64::EPSILON, f64::MIN_POSITIVE),
        _ => return Err(Error::dtype(format!("[finfo] {dtype} is not a floating type"))),
    })
}

/// Smallest and largest value of an integer dtype, as `mx.iinfo` gives them.
///
/// # Errors
/// A dtype error for anything but integers.
pub fn iinfo(dtype: Dtype) -> Result<(i128, i128)> {
    let bits = dtype.size() as u32 * 8;
    match dtype.kind() {
        Kind::Unsigned => Ok((0, (1i128 << bits) - 1)),
        Kind::Signed => Ok((-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)),
        _ => Err(Error::dtype(format!("[iinfo] {dtype} is not an integer type"))),
    }
}
