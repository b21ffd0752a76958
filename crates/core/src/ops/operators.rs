//! `+ - * / % & | ^ << >> - !` on arrays and numbers. Every combination of value and reference panics with the
//! error of the function it stands for.

use crate::array::Array;
use crate::ops::{self, Operand};
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Rem, Shl, Shr, Sub};

macro_rules! binary {
    ($($trait:ident $method:ident $f:ident;)*) => {$(
        // One generic impl a side, so that literals need no suffix and results have a known type.
        impl<T: Operand> $trait<T> for Array {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: T) -> Array {
                crate::or_panic(ops::$f(&self, other))
            }
        }
        impl<T: Operand> $trait<T> for &Array {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: T) -> Array {
                crate::or_panic(ops::$f(self, other))
            }
        }
        binary!(@ $trait $method $f, f64, Array);
        binary!(@ $trait $method $f, f64, &Array);
        binary!(@ $trait $method $f, i32, Array);
        binary!(@ $trait $method $f, i32, &Array);
    )*};
    (@ $trait:ident $method:ident $f:ident, $a:ty, $b:ty) => {
        impl $trait<$b> for $a {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: $b) -> Array {
                crate::or_panic(ops::$f(self, other))
            }
        }
    };
}

binary! {
    Add add add;
    Sub sub subtract;
    Mul mul multiply;
    Div div divide;
    Rem rem remainder;
    BitAnd bitand bitwise_and;
    BitOr bitor bitwise_or;
    BitXor bitxor bitwise_xor;
    Shl shl left_shift;
    Shr shr right_shift;
}

macro_rules! unary {
    ($($trait:ident $method:ident $f:ident;)*) => {$(
        impl $trait for Array {
            type Output = Array;
            #[track_caller]
            fn $method(self) -> Array {
                crate::or_panic(ops::$f(&self))
            }
        }
        impl $trait for &Array {
            type Output = Array;
            #[track_caller]
            fn $method(self) -> Array {
                crate::or_panic(ops::$f(self))
            }
        }
    )*};
}

unary! {
    Neg neg negative;
    Not not bitwise_invert;
}
