//! The table of elementwise ops. One row is one op: its function, its method, its place in fused groups.
//!
//! All arrays of a row have one shape and, but for the condition of `select`, one dtype: promotion, lifting of
//! integers to float32 and broadcasting happen before, as nodes of their own that fuse as well.

mod transform;

pub(crate) use transform::conj;

use crate::array::Array;
use crate::dtype::{Dtype, Kind};
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::{Op, Operand, Rule, broadcast_to, expect, operand::Arg};
use crate::shape;
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

/// Which kinds of dtype a row takes, as a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Takes(u8);

impl Takes {
    /// Every dtype.
    pub const ALL: Takes = Takes(31);
    /// All but complex64.
    pub const REAL: Takes = Takes(15);
    /// All but bool.
    pub const NUMBER: Takes = Takes(30);
    /// Integers and bool.
    pub const BITS: Takes = Takes(7);
    /// float32 only: the private functions of the random generator.
    pub const FLOAT: Takes = Takes(8);

    const fn has(self, kind: Kind) -> bool {
        let bit = match kind {
            Kind::Bool => 1,
            Kind::Unsigned => 2,
            Kind::Signed => 4,
            Kind::Floating => 8,
            Kind::Complex => 16,
        };
        self.0 & bit != 0
    }
}

/// What a row gives back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gives {
    /// The dtype it computes in.
    Same,
    /// bool.
    Bool,
    /// The dtype it computes in, float32 for complex64.
    Real,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The name users know.
    pub name: &'static str,
    /// Number of inputs.
    pub arity: u8,
    /// Dtypes it takes.
    pub takes: Takes,
    /// Whether integers and bool become float32 first.
    pub lifts: bool,
    /// What it gives.
    pub gives: Gives,
}

/// A row's dtypes in words.
macro_rules! dtypes {
    (ALL) => {
        "Takes every dtype; "
    };
    (REAL) => {
        "Takes every dtype but complex64; "
    };
    (NUMBER) => {
        "Takes every dtype but bool; "
    };
    (BITS) => {
        "Takes integers and bool; "
    };
    (lifts) => {
        "integers and bool become float32 first; "
    };
    (keeps) => {
        ""
    };
    (Same) => {
        "gives the dtype it computes in."
    };
    (Bool) => {
        "gives bool."
    };
    (Real) => {
        "gives the dtype it computes in, float32 for complex64."
    };
}

macro_rules! function {
    ($doc:literal, $variant:ident, $name:ident, 1, $dtypes:expr) => {
        #[doc = concat!($doc, " Elementwise (`mx.", stringify!($name), "`).")]
        ///
        #[doc = $dtypes]
        ///
        /// # Errors
        /// A dtype error for types the op does not take.
        pub fn $name(a: &Array) -> Result<Array> {
            unary(Ew::$variant, a)
        }
        impl Array {
            #[doc = $doc]
            ///
            /// # Panics
            /// On the errors of the function of the same name.
            #[track_caller]
            pub fn $name(&self) -> Array {
                crate::or_panic($name(self))
            }
        }
    };
    ($doc:literal, $variant:ident, $name:ident, 2, $dtypes:expr) => {
        #[doc = concat!($doc, " Elementwise (`mx.", stringify!($name), "`).")]
        ///
        /// Shapes broadcast; dtypes promote, host numbers weakly.
        #[doc = $dtypes]
        ///
        /// # Errors
        /// Shapes that do not broadcast; dtypes the op does not take.
        pub fn $name(a: impl Operand, b: impl Operand) -> Result<Array> {
            binary(Ew::$variant, a.arg(), b.arg())
        }
        impl Array {
            #[doc = $doc]
            ///
            /// # Panics
            /// On the errors of the function of the same name.
            #[track_caller]
            pub fn $name(&self, other: impl Operand) -> Array {
                crate::or_panic($name(self, other))
            }
        }
    };
    // Rows without a function of their own.
    ($doc:literal, $variant:ident, $name:ident, ($arity:tt), $dtypes:expr) => {};
}

macro_rules! arity {
    (($n:tt)) => {
        $n
    };
    ($n:tt) => {
        $n
    };
}

macro_rules! table {
    ($($doc:literal $variant:ident $name:ident $arity:tt $takes:ident $lifts:ident $gives:ident;)*) => {
        /// The elementwise ops.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
        #[repr(u8)]
        pub enum Ew {
            $(#[doc = $doc] $variant,)*
        }

        impl Ew {
            /// Every row, in order.
            pub const ALL: &[Ew] = &[$(Ew::$variant),*];

            const ROWS: &[Row] = &[$(Row {
                name: stringify!($name),
                arity: arity!($arity),
                takes: Takes::$takes,
                lifts: table!(@ $lifts),
                gives: Gives::$gives,
            }),*];
        }

        $(function!($doc, $variant, $name, $arity, concat!(dtypes!($takes), dtypes!($lifts), dtypes!($gives)));)*
    };
    (@ lifts) => { true };
    (@ keeps) => { false };
}

table! {
    "Absolute value; the modulus (float32) of complex numbers." Abs abs 1 ALL keeps Real;
    "`-a`; unsigned integers wrap." Negative negative 1 NUMBER keeps Same;
    "-1, 0 or 1; `z/|z|` for complex numbers." Sign sign 1 ALL keeps Same;
    "`a * a`." Square square 1 ALL keeps Same;
    "Complex conjugate." Conjugate conjugate 1 ALL keeps Same;
    "Real part." Real real 1 ALL keeps Real;
    "Imaginary part; zero for real numbers." Imag imag 1 ALL keeps Real;
    "`e^a`." Exp exp 1 ALL lifts Same;
    "`e^a - 1`, accurate near 0." Expm1 expm1 1 REAL lifts Same;
    "Natural logarithm." Log log 1 ALL lifts Same;
    "Logarithm to base 2." Log2 log2 1 ALL lifts Same;
    "Logarithm to base 10." Log10 log10 1 ALL lifts Same;
    "`ln(1 + a)`, accurate near 0." Log1p log1p 1 ALL lifts Same;
    "Sine." Sin sin 1 ALL lifts Same;
    "Cosine." Cos cos 1 ALL lifts Same;
    "Tangent." Tan tan 1 ALL lifts Same;
    "Hyperbolic sine." Sinh sinh 1 ALL lifts Same;
    "Hyperbolic cosine." Cosh cosh 1 ALL lifts Same;
    "Hyperbolic tangent." Tanh tanh 1 ALL lifts Same;
    "Inverse sine." ArcSin arcsin 1 ALL lifts Same;
    "Inverse cosine." ArcCos arccos 1 ALL lifts Same;
    "Inverse tangent." ArcTan arctan 1 ALL lifts Same;
    "Inverse hyperbolic sine." ArcSinh arcsinh 1 ALL lifts Same;
    "Inverse hyperbolic cosine." ArcCosh arccosh 1 ALL lifts Same;
    "Inverse hyperbolic tangent." ArcTanh arctanh 1 ALL lifts Same;
    "Square root." Sqrt sqrt 1 ALL lifts Same;
    "`1/sqrt(a)`." Rsqrt rsqrt 1 ALL lifts Same;
    "`1/a`." Reciprocal reciprocal 1 ALL lifts Same;
    "Error function." Erf erf 1 REAL lifts Same;
    "Inverse error function: infinite at -1 and 1, NaN outside." ErfInv erfinv 1 REAL lifts Same;
    "Logistic function `1/(1 + e^-a)`." Sigmoid sigmoid 1 REAL lifts Same;
    "Largest integer not above `a`." Floor floor 1 REAL keeps Same;
    "Smallest integer not below `a`." Ceil ceil 1 REAL keeps Same;
    "The integer part." Trunc trunc 1 REAL keeps Same;
    "Nearest integer, halves to even." RoundEven round_even (1) ALL keeps Same;
    "Every bit flipped; logical not for bool." BitwiseInvert bitwise_invert 1 BITS keeps Same;
    "True where `a` is NaN." IsNan isnan 1 ALL keeps Bool;
    "True where `a` is infinite." IsInf isinf 1 ALL keeps Bool;
    "True where `a` is neither infinite nor NaN." IsFinite isfinite 1 ALL keeps Bool;
    "True where `a` is positive infinity." IsPosInf isposinf 1 ALL keeps Bool;
    "True where `a` is negative infinity." IsNegInf isneginf 1 ALL keeps Bool;
    "True where `a` is zero." LogicalNot logical_not 1 ALL keeps Bool;
    "`a` as another dtype." AsType astype (1) ALL keeps Same;
    "Sum." Add add 2 ALL keeps Same;
    "Difference." Subtract subtract 2 ALL keeps Same;
    "Product." Multiply multiply 2 ALL keeps Same;
    "Quotient; integers give float32." Divide divide 2 ALL lifts Same;
    "Quotient rounded toward minus infinity; integers divided by 0 give 0." FloorDivide floor_divide 2 REAL keeps Same;
    "Remainder with the sign of the divisor; for integers `a % 0 = a`." Remainder remainder 2 REAL keeps Same;
    "`a^b`; integers with a negative exponent give 0." Power power 2 ALL keeps Same;
    "The larger; NaN when either is." Maximum maximum 2 ALL keeps Same;
    "The smaller; NaN when either is." Minimum minimum 2 ALL keeps Same;
    "`ln(e^a + e^b)` without overflow." LogAddExp logaddexp 2 ALL lifts Same;
    "The angle of the point (b, a)." ArcTan2 arctan2 2 REAL lifts Same;
    "`a == b`." Equal equal 2 ALL keeps Bool;
    "`a != b`." NotEqual not_equal 2 ALL keeps Bool;
    "`a < b`; complex numbers by real, then imaginary part." Less less 2 ALL keeps Bool;
    "`a <= b`." LessEqual less_equal 2 ALL keeps Bool;
    "`a > b`." Greater greater 2 ALL keeps Bool;
    "`a >= b`." GreaterEqual greater_equal 2 ALL keeps Bool;
    "Both nonzero." LogicalAnd logical_and 2 ALL keeps Bool;
    "At least one nonzero." LogicalOr logical_or 2 ALL keeps Bool;
    "Exactly one nonzero." LogicalXor logical_xor 2 ALL keeps Bool;
    "Bits set in both." BitwiseAnd bitwise_and 2 BITS keeps Same;
    "Bits set in either." BitwiseOr bitwise_or 2 BITS keeps Same;
    "Bits set in exactly one." BitwiseXor bitwise_xor 2 BITS keeps Same;
    "`a << b`; counts outside the width give 0." LeftShift left_shift 2 BITS keeps Same;
    "`a >> b`; counts outside the width give 0, or -1 for negative `a`." RightShift right_shift 2 BITS keeps Same;
    "`x` where the condition holds, else `y`." Select select (3) ALL keeps Same;
    "The logarithm inside the random generator." RandomLog random_log (1) FLOAT keeps Same;
    "The exponential inside the random generator." RandomExp random_exp (1) FLOAT keeps Same;
    "The error function inside the random generator." RandomErf random_erf (1) FLOAT keeps Same;
    "The inverse error function inside the random generator." RandomErfInv random_erfinv (1) FLOAT keeps Same;
}

impl Ew {
    /// Its row.
    #[inline]
    pub const fn row(self) -> &'static Row {
        &Ew::ROWS[self as usize]
    }

    /// The dtype of the result when it computes in `dtype` (`astype` aside).
    pub const fn gives(self, dtype: Dtype) -> Dtype {
        match self.row().gives {
            Gives::Same => dtype,
            Gives::Bool => Dtype::Bool,
            Gives::Real => {
                if dtype.is_complex() {
                    Dtype::Float32
                } else {
                    dtype
                }
            }
        }
    }

    /// The dtype to compute in for arguments that promote to `dtype`.
    fn computes_in(self, dtype: Dtype) -> Result<Dtype> {
        let row = self.row();
        if !row.takes.has(dtype.kind()) || (row.takes == Takes::FLOAT && dtype != Dtype::Float32) {
            return Err(Error::dtype(format!("[{}] {dtype} is not a type it takes", row.name)));
        }
        if matches!(self, Ew::LeftShift | Ew::RightShift) && dtype == Dtype::Bool {
            return Ok(Dtype::Uint8);
        }
        Ok(if row.lifts { dtype.to_inexact() } else { dtype })
    }
}

/// A node of the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Elementwise {
    /// Which row.
    pub op: Ew,
    /// Element type of the result.
    pub to: Dtype,
}

impl Rule for Elementwise {
    fn name(&self) -> &'static str {
        self.op.row().name
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, self.op.row().arity.into())?;
        let first = inputs[0].shape();
        if let Some(other) = inputs.iter().find(|a| a.shape() != first) {
            let (a, b) = (shape::show(first), shape::show(other.shape()));
            return Err(Error::shape(format!("[{}] shapes {a} and {b} differ", self.name())));
        }
        expect::dtype(self.name(), &inputs[0], self.fits(inputs))?;
        Ok(smallvec![Aval::new(first, self.to)])
    }
}

impl Elementwise {
    /// Whether the inputs have the dtypes that the row computes in, and its result that which it gives.
    fn fits(&self, inputs: &[Array]) -> bool {
        let (first, last) = (inputs[0].dtype(), inputs[inputs.len() - 1].dtype());
        match self.op {
            Ew::AsType => true,
            Ew::Select => first == Dtype::Bool && inputs[1].dtype() == last && self.to == last,
            op => first == last && op.computes_in(first).is_ok_and(|d| d == first) && op.gives(first) == self.to,
        }
    }
}

fn node(op: Ew, to: Dtype, inputs: Inputs) -> Array {
    let outs = smallvec![Aval::new(inputs[0].shape(), to)];
    Array::inferred(Op::Elementwise(Elementwise { op, to }), inputs, outs)
}

pub(crate) fn unary(op: Ew, a: &Array) -> Result<Array> {
    let dtype = op.computes_in(a.dtype())?;
    Ok(node(op, op.gives(dtype), smallvec![astype(a, dtype)?]))
}

pub(crate) fn binary(op: Ew, a: Arg<'_>, b: Arg<'_>) -> Result<Array> {
    if let (Arg::Array(a), Arg::Array(b)) = (a, b)
        && a.dtype() == b.dtype()
        && a.shape() == b.shape()
        && op.computes_in(a.dtype())? == a.dtype()
    {
        return Ok(node(op, op.gives(a.dtype()), smallvec![a.clone(), b.clone()]));
    }
    let name = op.row().name;
    let dtype = op.computes_in(Arg::promote(name, a, b)?)?;
    let shape = shape::broadcast(name, a.shape(), b.shape())?;
    Ok(node(op, op.gives(dtype), smallvec![a.materialize(dtype, &shape)?, b.materialize(dtype, &shape)?]))
}

/// `a` as an array of `dtype`: floats round to nearest even, float to integer truncates (out of range: modulo the
/// width; NaN and infinities give 0), integers keep the low bits, to bool is "nonzero", complex drops the imaginary
/// part.
///
/// # Errors
/// None today; `Result` like every op.
pub fn astype(a: &Array, dtype: Dtype) -> Result<Array> {
    if a.dtype() == dtype {
        return Ok(a.clone());
    }
    Ok(node(Ew::AsType, dtype, smallvec![a.clone()]))
}

/// `x` where `condition` holds, else `y` (`mx.where`), broadcast together; x and y promote.
///
/// # Errors
/// Shapes that do not broadcast.
pub fn select(condition: &Array, x: impl Operand, y: impl Operand) -> Result<Array> {
    let (x, y) = (x.arg(), y.arg());
    let dtype = Arg::promote("where", x, y)?;
    let shape = shape::broadcast("where", condition.shape(), &shape::broadcast("where", x.shape(), y.shape())?)?;
    let condition = broadcast_to(&astype(condition, Dtype::Bool)?, &shape)?;
    Ok(node(Ew::Select, dtype, smallvec![condition, x.materialize(dtype, &shape)?, y.materialize(dtype, &shape)?]))
}

/// Rounds to `decimals` digits, halves to even (`mx.round`): `round(a * 10^d) / 10^d`. Integers change only for
/// negative `decimals`.
///
/// # Errors
/// None today; `Result` like every op.
pub fn round(a: &Array, decimals: i32) -> Result<Array> {
    if decimals == 0 {
        return unary(Ew::RoundEven, a);
    }
    if !a.dtype().is_inexact() {
        if decimals > 0 {
            return Ok(a.clone());
        }
        let scale = 10f64.powi(-decimals);
        let scaled = unary(Ew::RoundEven, &divide(a, scale)?)?;
        return astype(&multiply(&scaled, scale)?, a.dtype());
    }
    let scale = 10f64.powi(decimals);
    divide(&unary(Ew::RoundEven, &multiply(a, scale)?)?, scale)
}

impl Array {
    /// This array as another dtype; see [`astype`].
    #[track_caller]
    pub fn astype(&self, dtype: Dtype) -> Array {
        crate::or_panic(astype(self, dtype))
    }

    /// Rounded to `decimals` digits; see [`round`].
    #[track_caller]
    pub fn round(&self, decimals: i32) -> Array {
        crate::or_panic(round(self, decimals))
    }
}
