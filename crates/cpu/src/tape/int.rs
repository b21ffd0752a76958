//! Integer and bool loops. Overflow wraps; division by zero and shifts out of range have one result everywhere.

use super::step::{Args, map1, map2};
use lapis_core::ops::Ew;

/// Integers as the table needs them.
pub(super) trait Int: Copy + PartialOrd + Default + 'static {
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn neg(self) -> Self;
    fn abs(self) -> Self;
    fn sign(self) -> Self;
    fn floor_div(self, b: Self) -> Self;
    fn rem_floor(self, b: Self) -> Self;
    fn pow(self, b: Self) -> Self;
    fn not(self) -> Self;
    fn and(self, b: Self) -> Self;
    fn or(self, b: Self) -> Self;
    fn xor(self, b: Self) -> Self;
    fn shl(self, b: Self) -> Self;
    fn shr(self, b: Self) -> Self;
}

macro_rules! int {
    ($($t:ident)*) => {$(
        #[allow(unused_comparisons)]
        impl Int for $t {
            #[inline(always)]
            fn add(self, b: $t) -> $t {
                self.wrapping_add(b)
            }
            #[inline(always)]
            fn sub(self, b: $t) -> $t {
                self.wrapping_sub(b)
            }
            #[inline(always)]
            fn mul(self, b: $t) -> $t {
                self.wrapping_mul(b)
            }
            #[inline(always)]
            fn neg(self) -> $t {
                self.wrapping_neg()
            }
            #[inline(always)]
            fn abs(self) -> $t {
                if self < 0 { self.wrapping_neg() } else { self }
            }
            #[inline(always)]
            fn sign(self) -> $t {
                (self > 0) as $t - (self < 0) as $t
            }
            #[inline(always)]
            fn floor_div(self, b: $t) -> $t {
                if b == 0 {
                    return 0;
                }
                let (q, r) = (self.wrapping_div(b), self.wrapping_rem(b));
                if r != 0 && (r < 0) != (b < 0) { q.wrapping_sub(1) } else { q }
            }
            #[inline(always)]
            fn rem_floor(self, b: $t) -> $t {
                if b == 0 {
                    return self;
                }
                let r = self.wrapping_rem(b);
                if r != 0 && (r < 0) != (b < 0) { r.wrapping_add(b) } else { r }
            }
            #[inline(always)]
            fn pow(self, b: $t) -> $t {
                if b < 0 {
                    return 0;
                }
                let (mut base, mut e, mut out) = (self, b, 1 as $t);
                while e > 0 {
                    if e & 1 == 1 {
                        out = out.wrapping_mul(base);
                    }
                    base = base.wrapping_mul(base);
                    e >>= 1;
                }
                out
            }
            #[inline(always)]
            fn not(self) -> $t {
                !self
            }
            #[inline(always)]
            fn and(self, b: $t) -> $t {
                self & b
            }
            #[inline(always)]
            fn or(self, b: $t) -> $t {
                self | b
            }
            #[inline(always)]
            fn xor(self, b: $t) -> $t {
                self ^ b
            }
            #[inline(always)]
            fn shl(self, b: $t) -> $t {
                if b < 0 || b as u64 >= u64::from($t::BITS) { 0 } else { self << (b as u32 % $t::BITS) }
            }
            #[inline(always)]
            fn shr(self, b: $t) -> $t {
                if b < 0 || b as u64 >= u64::from($t::BITS) {
                    if self < 0 { !0 } else { 0 }
                } else {
                    self >> (b as u32 % $t::BITS)
                }
            }
        }
    )*};
}
int! {
    u8 u16 u32 u64 i8 i16 i32 i64
}

/// Integer instructions.
///
/// # Safety
/// As `step::step`.
#[inline(always)]
pub(super) unsafe fn step<T: Int>(op: Ew, n: usize, args: Args, out: *mut u8) {
    let [a, b, _] = args.map(|p| p.cast::<T>());
    let zero = T::default();
    // SAFETY: passed on from the caller.
    unsafe {
        match op {
            Ew::Abs => map1(n, a, out, T::abs),
            Ew::Negative => map1(n, a, out, T::neg),
            Ew::Sign => map1(n, a, out, T::sign),
            Ew::Square => map1(n, a, out, |x| x.mul(x)),
            Ew::Conjugate | Ew::Real | Ew::Floor | Ew::Ceil | Ew::Trunc | Ew::RoundEven => map1(n, a, out, |x| x),
            Ew::Imag => map1(n, a, out, |_| zero),
            Ew::BitwiseInvert => map1(n, a, out, T::not),
            Ew::IsNan | Ew::IsInf | Ew::IsPosInf | Ew::IsNegInf => map1(n, a, out, |_| 0u8),
            Ew::IsFinite => map1(n, a, out, |_| 1u8),
            Ew::LogicalNot => map1(n, a, out, |x| u8::from(x == zero)),
            Ew::Add => map2(n, a, b, out, T::add),
            Ew::Subtract => map2(n, a, b, out, T::sub),
            Ew::Multiply => map2(n, a, b, out, T::mul),
            Ew::FloorDivide => map2(n, a, b, out, T::floor_div),
            Ew::Remainder => map2(n, a, b, out, T::rem_floor),
            Ew::Power => map2(n, a, b, out, T::pow),
            Ew::Maximum => map2(n, a, b, out, |x, y| if x > y { x } else { y }),
            Ew::Minimum => map2(n, a, b, out, |x, y| if x < y { x } else { y }),
            Ew::BitwiseAnd => map2(n, a, b, out, T::and),
            Ew::BitwiseOr => map2(n, a, b, out, T::or),
            Ew::BitwiseXor => map2(n, a, b, out, T::xor),
            Ew::LeftShift => map2(n, a, b, out, T::shl),
            Ew::RightShift => map2(n, a, b, out, T::shr),
            _ => compare(op, n, a, b, out),
        }
    }
}

/// Comparisons and logic, the same for every ordered type.
///
/// # Safety
/// As `step::step`.
#[inline(always)]
pub(super) unsafe fn compare<T: Copy + PartialOrd + Default>(op: Ew, n: usize, a: *const T, b: *const T, out: *mut u8) {
    let zero = T::default();
    // SAFETY: passed on from the caller.
    unsafe {
        match op {
            Ew::Equal => map2(n, a, b, out, |x, y| u8::from(x == y)),
            Ew::NotEqual => map2(n, a, b, out, |x, y| u8::from(x != y)),
            Ew::Less => map2(n, a, b, out, |x, y| u8::from(x < y)),
            Ew::LessEqual => map2(n, a, b, out, |x, y| u8::from(x <= y)),
            Ew::Greater => map2(n, a, b, out, |x, y| u8::from(x > y)),
            Ew::GreaterEqual => map2(n, a, b, out, |x, y| u8::from(x >= y)),
            Ew::LogicalAnd => map2(n, a, b, out, |x, y| u8::from((x != zero) & (y != zero))),
            Ew::LogicalOr => map2(n, a, b, out, |x, y| u8::from((x != zero) | (y != zero))),
            Ew::LogicalXor => map2(n, a, b, out, |x, y| u8::from((x != zero) ^ (y != zero))),
            _ => unreachable!("{op:?} has no loop for this dtype"),
        }
    }
}

/// Instructions on bool, held as bytes 0 and 1.
///
/// # Safety
/// As `step::step`.
#[inline(always)]
pub(super) unsafe fn bool_step(op: Ew, n: usize, args: Args, out: *mut u8) {
    let [a, b, _] = args;
    // SAFETY: passed on from the caller.
    unsafe {
        match op {
            Ew::Abs
            | Ew::Sign
            | Ew::Square
            | Ew::Conjugate
            | Ew::Real
            | Ew::Floor
            | Ew::Ceil
            | Ew::Trunc
            | Ew::RoundEven => map1(n, a, out, |x| x),
            Ew::Imag => map1(n, a, out, |_| 0u8),
            Ew::BitwiseInvert | Ew::LogicalNot => map1(n, a, out, |x| x ^ 1),
            Ew::Add | Ew::Maximum | Ew::BitwiseOr => map2(n, a, b, out, |x, y| x | y),
            Ew::Multiply | Ew::Minimum | Ew::BitwiseAnd | Ew::FloorDivide => map2(n, a, b, out, |x, y| x & y),
            Ew::Subtract | Ew::BitwiseXor => map2(n, a, b, out, |x, y| x ^ y),
            Ew::Remainder => map2(n, a, b, out, |x, y| x & (y ^ 1)),
            Ew::Power => map2(n, a, b, out, |x, y| x | (y ^ 1)),
            _ => step::<u8>(op, n, args, out),
        }
    }
}
