//! The AVX2 level (with FMA and F16C): two registers a vector.

use super::reduce::{add_f32, add_f64, add_i32, add_i64, max_f32, max_f64, min_f32, min_f64};
use super::{Float, Int, Kernel, Mask, Simd, Vector};
use crate::isa::Isa;
use half::{bf16, f16};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Sub};

/// The token; only [`super::dispatch_with`] makes one, after a look at the machine.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

/// Sixteen `f32`.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct F32(pub [__m256; 2]);
/// Eight `f64`.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct F64(pub [__m256d; 2]);
/// Sixteen 32-bit integers.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct I32(pub [__m256i; 2]);
/// Eight 64-bit integers.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct I64(pub [__m256i; 2]);
/// Sixteen truth values, all ones or all zeros.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct M32(pub [__m256i; 2]);
/// Eight truth values, all ones or all zeros.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct M64(pub [__m256i; 2]);

/// Compiles `k` for this level.
///
/// # Safety
/// The machine has the level.
#[target_feature(enable = "avx2,fma,f16c,bmi2")]
pub(super) unsafe fn enter<K: Kernel>(k: K) -> K::Out {
    k.run(Avx2(()))
}

/// An intrinsic call: the token behind every vector vouches for the instructions, the caller for the pointers.
macro_rules! v {
    ($e:expr) => {
        // SAFETY: see the macro.
        unsafe { $e }
    };
}

/// The same for both halves.
macro_rules! both {
    ($type:ident, $f:expr; $($a:expr),*) => {
        v!($type([$f($($a.0[0]),*), $f($($a.0[1]),*)]))
    };
}

macro_rules! binary {
    ($type:ident: $($trait:ident $f:ident $intrinsic:ident),*) => {$(
        impl $trait for $type {
            type Output = Self;
            #[inline(always)]
            fn $f(self, b: Self) -> Self {
                both!($type, $intrinsic; self, b)
            }
        }
    )*};
}

binary!(F32: Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);
binary!(F64: Add add _mm256_add_pd, Sub sub _mm256_sub_pd, Mul mul _mm256_mul_pd, Div div _mm256_div_pd);
binary!(I32: Add add _mm256_add_epi32, Sub sub _mm256_sub_epi32, Mul mul _mm256_mullo_epi32,
    BitAnd bitand _mm256_and_si256, BitOr bitor _mm256_or_si256, BitXor bitxor _mm256_xor_si256);
binary!(I64: Add add _mm256_add_epi64, Sub sub _mm256_sub_epi64, Mul mul mul_i64,
    BitAnd bitand _mm256_and_si256, BitOr bitor _mm256_or_si256, BitXor bitxor _mm256_xor_si256);
binary!(M32: BitAnd bitand _mm256_and_si256, BitOr bitor _mm256_or_si256);
binary!(M64: BitAnd bitand _mm256_and_si256, BitOr bitor _mm256_or_si256);

/// The low 64 bits of products.
#[inline(always)]
unsafe fn mul_i64(a: __m256i, b: __m256i) -> __m256i {
    v!({
        let (ah, bh) = (_mm256_srli_epi64::<32>(a), _mm256_srli_epi64::<32>(b));
        let cross = _mm256_add_epi64(_mm256_mul_epu32(a, bh), _mm256_mul_epu32(ah, b));
        _mm256_add_epi64(_mm256_mul_epu32(a, b), _mm256_slli_epi64::<32>(cross))
    })
}

#[inline(always)]
unsafe fn not(a: __m256i) -> __m256i {
    v!(_mm256_xor_si256(a, _mm256_set1_epi32(-1)))
}

#[inline(always)]
unsafe fn lt_f32(a: __m256, b: __m256) -> __m256i {
    v!(_mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
}
#[inline(always)]
unsafe fn le_f32(a: __m256, b: __m256) -> __m256i {
    v!(_mm256_castps_si256(_mm256_cmp_ps::<_CMP_LE_OQ>(a, b)))
}
#[inline(always)]
unsafe fn eq_f32(a: __m256, b: __m256) -> __m256i {
    v!(_mm256_castps_si256(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b)))
}
#[inline(always)]
unsafe fn lt_f64(a: __m256d, b: __m256d) -> __m256i {
    v!(_mm256_castpd_si256(_mm256_cmp_pd::<_CMP_LT_OQ>(a, b)))
}
#[inline(always)]
unsafe fn le_f64(a: __m256d, b: __m256d) -> __m256i {
    v!(_mm256_castpd_si256(_mm256_cmp_pd::<_CMP_LE_OQ>(a, b)))
}
#[inline(always)]
unsafe fn eq_f64(a: __m256d, b: __m256d) -> __m256i {
    v!(_mm256_castpd_si256(_mm256_cmp_pd::<_CMP_EQ_OQ>(a, b)))
}
#[inline(always)]
unsafe fn lt_i32(a: __m256i, b: __m256i) -> __m256i {
    v!(_mm256_cmpgt_epi32(b, a))
}
#[inline(always)]
unsafe fn lt_i64(a: __m256i, b: __m256i) -> __m256i {
    v!(_mm256_cmpgt_epi64(b, a))
}
#[inline(always)]
unsafe fn select_f32(m: __m256i, a: __m256, b: __m256) -> __m256 {
    v!(_mm256_blendv_ps(b, a, _mm256_castsi256_ps(m)))
}
#[inline(always)]
unsafe fn select_f64(m: __m256i, a: __m256d, b: __m256d) -> __m256d {
    v!(_mm256_blendv_pd(b, a, _mm256_castsi256_pd(m)))
}
#[inline(always)]
unsafe fn select_int(m: __m256i, a: __m256i, b: __m256i) -> __m256i {
    v!(_mm256_blendv_epi8(b, a, m))
}
#[inline(always)]
unsafe fn min_i64(a: __m256i, b: __m256i) -> __m256i {
    v!(select_int(lt_i64(a, b), a, b))
}
#[inline(always)]
unsafe fn max_i64(a: __m256i, b: __m256i) -> __m256i {
    v!(select_int(lt_i64(b, a), a, b))
}

macro_rules! vector {
    ($type:ident, $elem:ty, $mask:ident, $lanes:literal, pointer $p:ty,
     splat $splat:ident load $load:ident loadn $loadn:ident store $store:ident storen $storen:ident nt $nt:ident
     select $select:ident min $min:ident max $max:ident eq $eq:ident lt $lt:ident) => {
        impl Vector<Avx2> for $type {
            type Elem = $elem;
            type Mask = $mask;
            const LANES: usize = $lanes;

            #[inline(always)]
            fn splat(_: Avx2, x: $elem) -> Self {
                v!($type([$splat(x), $splat(x)]))
            }
            #[inline(always)]
            unsafe fn load(_: Avx2, p: *const $elem) -> Self {
                v!($type([$load(p.cast::<$p>()), $load(p.add($lanes / 2).cast::<$p>())]))
            }
            #[inline(always)]
            unsafe fn load_n(s: Avx2, p: *const $elem, n: usize) -> Self {
                let m = $mask::first(s, n).0;
                v!($type([$loadn(p.cast(), m[0]), $loadn(p.wrapping_add($lanes / 2).cast(), m[1])]))
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut $elem) {
                v!({
                    $store(p.cast::<$p>(), self.0[0]);
                    $store(p.add($lanes / 2).cast::<$p>(), self.0[1])
                })
            }
            #[inline(always)]
            unsafe fn store_n(self, p: *mut $elem, n: usize) {
                let m = $mask::first(Avx2(()), n).0;
                v!({
                    $storen(p.cast(), m[0], self.0[0]);
                    $storen(p.wrapping_add($lanes / 2).cast(), m[1], self.0[1])
                })
            }
            #[inline(always)]
            unsafe fn store_nt(self, p: *mut $elem) {
                v!({
                    $nt(p.cast::<$p>(), self.0[0]);
                    $nt(p.add($lanes / 2).cast::<$p>(), self.0[1])
                })
            }
            #[inline(always)]
            fn select(mask: $mask, a: Self, b: Self) -> Self {
                both!($type, $select; mask, a, b)
            }
            #[inline(always)]
            fn eq(self, b: Self) -> $mask {
                both!($mask, $eq; self, b)
            }
            #[inline(always)]
            fn lt(self, b: Self) -> $mask {
                both!($mask, $lt; self, b)
            }
            #[inline(always)]
            fn min(self, b: Self) -> Self {
                both!($type, $min; self, b)
            }
            #[inline(always)]
            fn max(self, b: Self) -> Self {
                both!($type, $max; self, b)
            }
        }
    };
}

vector!(F32, f32, M32, 16, pointer f32,
    splat _mm256_set1_ps load _mm256_loadu_ps loadn _mm256_maskload_ps store _mm256_storeu_ps
    storen _mm256_maskstore_ps nt _mm256_stream_ps select select_f32 min _mm256_min_ps max _mm256_max_ps
    eq eq_f32 lt lt_f32);
vector!(F64, f64, M64, 8, pointer f64,
    splat _mm256_set1_pd load _mm256_loadu_pd loadn _mm256_maskload_pd store _mm256_storeu_pd
    storen _mm256_maskstore_pd nt _mm256_stream_pd select select_f64 min _mm256_min_pd max _mm256_max_pd
    eq eq_f64 lt lt_f64);
vector!(I32, i32, M32, 16, pointer __m256i,
    splat _mm256_set1_epi32 load _mm256_loadu_si256 loadn _mm256_maskload_epi32 store _mm256_storeu_si256
    storen _mm256_maskstore_epi32 nt _mm256_stream_si256 select select_int
    min _mm256_min_epi32 max _mm256_max_epi32 eq _mm256_cmpeq_epi32 lt lt_i32);
vector!(I64, i64, M64, 8, pointer __m256i,
    splat _mm256_set1_epi64x load _mm256_loadu_si256 loadn _mm256_maskload_epi64 store _mm256_storeu_si256
    storen _mm256_maskstore_epi64 nt _mm256_stream_si256 select select_int
    min min_i64 max max_i64 eq _mm256_cmpeq_epi64 lt lt_i64);

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
const DOWN: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
const UP: i32 = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC;
const ZERO: i32 = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;

/// 1.5 * 2^52: adding it leaves a whole number in the low bits of the sum.
const MAGIC: f64 = 6755399441055744.0;

#[inline(always)]
unsafe fn f64_to_i64(x: __m256d) -> __m256i {
    v!({
        let magic = _mm256_set1_pd(MAGIC);
        _mm256_sub_epi64(_mm256_castpd_si256(_mm256_add_pd(x, magic)), _mm256_castpd_si256(magic))
    })
}
#[inline(always)]
unsafe fn i64_to_f64(x: __m256i) -> __m256d {
    v!({
        let magic = _mm256_set1_pd(MAGIC);
        _mm256_sub_pd(_mm256_castsi256_pd(_mm256_add_epi64(x, _mm256_castpd_si256(magic))), magic)
    })
}

macro_rules! float {
    ($type:ident, $int:ident, $mask:ident, $elem:ty, bias $bias:literal, digits $digits:literal,
     fma $fma:ident fms $fms:ident fnma $fnma:ident abs $andnot:ident sqrt $sqrt:ident round $round:ident le $le:ident
     bits $bits:ident from_bits $from_bits:ident to_int $to_int:ident from_int $from_int:ident xor $xor:ident
     reduce $radd:ident $add:ident $rmax:ident $max:ident $rmin:ident $min:ident) => {
        impl Neg for $type {
            type Output = Self;
            #[inline(always)]
            fn neg(self) -> Self {
                both!($type, $xor; self, $type::splat(Avx2(()), -0.0))
            }
        }
        impl Float<Avx2> for $type {
            type Int = $int;

            #[inline(always)]
            fn fma(self, b: Self, c: Self) -> Self {
                both!($type, $fma; self, b, c)
            }
            #[inline(always)]
            fn fms(self, b: Self, c: Self) -> Self {
                both!($type, $fms; self, b, c)
            }
            #[inline(always)]
            fn fnma(self, b: Self, c: Self) -> Self {
                both!($type, $fnma; self, b, c)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                both!($type, $andnot; $type::splat(Avx2(()), -0.0), self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                both!($type, $sqrt; self)
            }
            #[inline(always)]
            fn round(self) -> Self {
                both!($type, $round::<NEAREST>; self)
            }
            #[inline(always)]
            fn floor(self) -> Self {
                both!($type, $round::<DOWN>; self)
            }
            #[inline(always)]
            fn ceil(self) -> Self {
                both!($type, $round::<UP>; self)
            }
            #[inline(always)]
            fn trunc(self) -> Self {
                both!($type, $round::<ZERO>; self)
            }
            #[inline(always)]
            fn le(self, b: Self) -> $mask {
                both!($mask, $le; self, b)
            }
            #[inline(always)]
            fn bits(self) -> $int {
                both!($int, $bits; self)
            }
            #[inline(always)]
            fn from_bits(bits: $int) -> Self {
                both!($type, $from_bits; bits)
            }
            #[inline(always)]
            fn to_int(self) -> $int {
                both!($int, $to_int; self)
            }
            #[inline(always)]
            fn from_int(i: $int) -> Self {
                both!($type, $from_int; i)
            }
            #[inline(always)]
            fn scale(self, n: Self) -> Self {
                let s = Avx2(());
                // The common case: results of all lanes are normal, and their exponents sums.
                if n.abs().le(Self::splat(s, $bias as $elem - 3.0)).all() {
                    return Self::from_bits(self.bits() + n.to_int().shl($digits));
                }
                // In two steps, of which only the second can leave the normal range.
                let bias = $int::splat(s, $bias);
                let half = (n * Self::splat(s, 0.5)).floor();
                let (low, high) = ((half.to_int() + bias).shl($digits), ((n - half).to_int() + bias).shl($digits));
                self * Self::from_bits(low) * Self::from_bits(high)
            }
            #[inline(always)]
            fn reduce_add(self) -> $elem {
                v!($radd($add(self.0[0], self.0[1])))
            }
            #[inline(always)]
            fn reduce_max(self) -> $elem {
                v!($rmax($max(self.0[0], self.0[1])))
            }
            #[inline(always)]
            fn reduce_min(self) -> $elem {
                v!($rmin($min(self.0[0], self.0[1])))
            }
        }
    };
}

float!(F32, I32, M32, f32, bias 127, digits 23,
    fma _mm256_fmadd_ps fms _mm256_fmsub_ps fnma _mm256_fnmadd_ps abs _mm256_andnot_ps sqrt _mm256_sqrt_ps
    round _mm256_round_ps le le_f32 bits _mm256_castps_si256 from_bits _mm256_castsi256_ps to_int _mm256_cvtps_epi32
    from_int _mm256_cvtepi32_ps xor _mm256_xor_ps
    reduce add_f32 _mm256_add_ps max_f32 _mm256_max_ps min_f32 _mm256_min_ps);
float!(F64, I64, M64, f64, bias 1023, digits 52,
    fma _mm256_fmadd_pd fms _mm256_fmsub_pd fnma _mm256_fnmadd_pd abs _mm256_andnot_pd sqrt _mm256_sqrt_pd
    round _mm256_round_pd le le_f64 bits _mm256_castpd_si256 from_bits _mm256_castsi256_pd to_int f64_to_i64
    from_int i64_to_f64 xor _mm256_xor_pd
    reduce add_f64 _mm256_add_pd max_f64 _mm256_max_pd min_f64 _mm256_min_pd);

#[inline(always)]
unsafe fn sar_i32(x: __m256i, n: __m128i) -> __m256i {
    v!(_mm256_sra_epi32(x, n))
}
/// There is no such instruction: shift logically, then extend the sign from where it landed.
#[inline(always)]
unsafe fn sar_i64(x: __m256i, n: __m128i) -> __m256i {
    v!({
        let sign = _mm256_srl_epi64(_mm256_set1_epi64x(i64::MIN), n);
        _mm256_sub_epi64(_mm256_xor_si256(_mm256_srl_epi64(x, n), sign), sign)
    })
}

macro_rules! int {
    ($type:ident, $elem:ty, shl $shl:ident shr $shr:ident sar $sar:ident shlv $shlv:ident shrv $shrv:ident
     reduce $reduce:ident $add:ident) => {
        impl Not for $type {
            type Output = Self;
            #[inline(always)]
            fn not(self) -> Self {
                both!($type, not; self)
            }
        }
        impl Int<Avx2> for $type {
            #[inline(always)]
            fn shl(self, n: u32) -> Self {
                v!({
                    let n = _mm_cvtsi32_si128(n as i32);
                    $type([$shl(self.0[0], n), $shl(self.0[1], n)])
                })
            }
            #[inline(always)]
            fn shr(self, n: u32) -> Self {
                v!({
                    let n = _mm_cvtsi32_si128(n as i32);
                    $type([$shr(self.0[0], n), $shr(self.0[1], n)])
                })
            }
            #[inline(always)]
            fn sar(self, n: u32) -> Self {
                v!({
                    let n = _mm_cvtsi32_si128(n as i32);
                    $type([$sar(self.0[0], n), $sar(self.0[1], n)])
                })
            }
            #[inline(always)]
            fn shl_each(self, n: Self) -> Self {
                both!($type, $shlv; self, n)
            }
            #[inline(always)]
            fn shr_each(self, n: Self) -> Self {
                both!($type, $shrv; self, n)
            }
            #[inline(always)]
            fn rotl(self, n: u32) -> Self {
                self.shl(n) | self.shr(<$elem>::BITS - n)
            }
            #[inline(always)]
            fn reduce_add(self) -> $elem {
                v!($reduce($add(self.0[0], self.0[1])))
            }
        }
    };
}

int!(I32, i32, shl _mm256_sll_epi32 shr _mm256_srl_epi32 sar sar_i32 shlv _mm256_sllv_epi32 shrv _mm256_srlv_epi32
    reduce add_i32 _mm256_add_epi32);
int!(I64, i64, shl _mm256_sll_epi64 shr _mm256_srl_epi64 sar sar_i64 shlv _mm256_sllv_epi64 shrv _mm256_srlv_epi64
    reduce add_i64 _mm256_add_epi64);

macro_rules! mask {
    ($type:ident, $lanes:literal, first $splat:ident $gt:ident $low:expr, $high:expr, bits $movemask:ident $cast:ident) => {
        impl Not for $type {
            type Output = Self;
            #[inline(always)]
            fn not(self) -> Self {
                both!($type, not; self)
            }
        }
        impl Mask<Avx2> for $type {
            #[inline(always)]
            fn first(_: Avx2, n: usize) -> Self {
                v!({
                    let n = $splat(n.min($lanes) as _);
                    $type([$gt(n, $low), $gt(n, $high)])
                })
            }
            #[inline(always)]
            fn bits(self) -> u32 {
                v!($movemask($cast(self.0[0])) as u32 | ($movemask($cast(self.0[1])) as u32) << ($lanes / 2))
            }
            #[inline(always)]
            fn all(self) -> bool {
                self.bits() == (1 << $lanes) - 1
            }
        }
    };
}

mask!(M32, 16, first _mm256_set1_epi32 _mm256_cmpgt_epi32 _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
    _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15), bits _mm256_movemask_ps _mm256_castsi256_ps);
mask!(M64, 8, first _mm256_set1_epi64x _mm256_cmpgt_epi64 _mm256_setr_epi64x(0, 1, 2, 3),
    _mm256_setr_epi64x(4, 5, 6, 7), bits _mm256_movemask_pd _mm256_castsi256_pd);

/// The four quarters of a vector of 32-bit elements.
#[inline(always)]
unsafe fn quarters(x: [__m256i; 2]) -> [__m128i; 4] {
    v!([
        _mm256_castsi256_si128(x[0]),
        _mm256_extracti128_si256::<1>(x[0]),
        _mm256_castsi256_si128(x[1]),
        _mm256_extracti128_si256::<1>(x[1]),
    ])
}

/// The low halves of eight 64-bit lanes.
#[inline(always)]
unsafe fn even_i32(x: I64) -> __m256i {
    v!({
        let even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
        let (low, high) = (_mm256_permutevar8x32_epi32(x.0[0], even), _mm256_permutevar8x32_epi32(x.0[1], even));
        _mm256_blend_epi32::<0xf0>(low, high)
    })
}

impl Simd for Avx2 {
    const ISA: Isa = Isa::Avx2;
    type F32 = F32;
    type F64 = F64;
    type I32 = I32;
    type I64 = I64;
    type M32 = M32;
    type M64 = M64;

    #[inline(always)]
    fn iota32(self) -> I32 {
        v!(I32([_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)]))
    }
    #[inline(always)]
    fn widen(self, x: F32) -> [F64; 2] {
        v!({
            let [a, b, c, d] = quarters(x.bits().0);
            let [a, b, c, d] = [_mm_castsi128_ps(a), _mm_castsi128_ps(b), _mm_castsi128_ps(c), _mm_castsi128_ps(d)];
            [F64([_mm256_cvtps_pd(a), _mm256_cvtps_pd(b)]), F64([_mm256_cvtps_pd(c), _mm256_cvtps_pd(d)])]
        })
    }
    #[inline(always)]
    fn narrow(self, [a, b]: [F64; 2]) -> F32 {
        v!(F32([
            _mm256_set_m128(_mm256_cvtpd_ps(a.0[1]), _mm256_cvtpd_ps(a.0[0])),
            _mm256_set_m128(_mm256_cvtpd_ps(b.0[1]), _mm256_cvtpd_ps(b.0[0])),
        ]))
    }
    #[inline(always)]
    fn widen_i32(self, x: I32) -> [F64; 2] {
        v!({
            let [a, b, c, d] = quarters(x.0);
            [F64([_mm256_cvtepi32_pd(a), _mm256_cvtepi32_pd(b)]), F64([_mm256_cvtepi32_pd(c), _mm256_cvtepi32_pd(d)])]
        })
    }
    #[inline(always)]
    fn widen_u32(self, x: I32) -> [I64; 2] {
        v!({
            let [a, b, c, d] = quarters(x.0);
            [
                I64([_mm256_cvtepu32_epi64(a), _mm256_cvtepu32_epi64(b)]),
                I64([_mm256_cvtepu32_epi64(c), _mm256_cvtepu32_epi64(d)]),
            ]
        })
    }
    #[inline(always)]
    fn narrow_i64(self, [a, b]: [I64; 2]) -> I32 {
        v!(I32([even_i32(a), even_i32(b)]))
    }
    #[inline(always)]
    fn mul_u32(self, a: I64, b: I64) -> I64 {
        both!(I64, _mm256_mul_epu32; a, b)
    }
    #[inline(always)]
    fn lookup16(self, table: &[f32; 16], i: I32) -> F32 {
        let i = i & self.i32(15);
        v!(F32([_mm256_i32gather_ps::<4>(table.as_ptr(), i.0[0]), _mm256_i32gather_ps::<4>(table.as_ptr(), i.0[1])]))
    }
    #[inline(always)]
    fn lookup16_f64(self, table: &[f64; 16], i: I64) -> F64 {
        let i = i & self.i64(15);
        v!(F64([_mm256_i64gather_pd::<8>(table.as_ptr(), i.0[0]), _mm256_i64gather_pd::<8>(table.as_ptr(), i.0[1])]))
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> F32 {
        let p: *const __m128i = p.cast();
        v!(F32([_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1)))]))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> F32 {
        let p: *const __m128i = p.cast();
        v!({
            let (a, b) = (_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(1))));
            F32::from_bits(I32([_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b)]))
        })
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16, x: F32) {
        let p: *mut __m128i = p.cast();
        v!({
            _mm_storeu_si128(p, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0[0]));
            _mm_storeu_si128(p.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0[1]))
        })
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, x: F32) {
        let bits = x.bits();
        let rounded = bits + (bits.shr(16) & self.i32(1)) + self.i32(0x7fff);
        let bits = I32::select(x.is_nan(), bits | self.i32(0x40_0000), rounded).shr(16);
        v!({
            let packed = _mm256_packus_epi32(bits.0[0], bits.0[1]);
            _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed))
        })
    }
    #[inline(always)]
    fn fence(self) {
        v!(_mm_sfence())
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        v!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }
    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        v!(_mm_prefetch::<_MM_HINT_T1>(p.cast()))
    }
}
