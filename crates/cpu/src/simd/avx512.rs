//! The AVX-512 level: one register a vector.

use super::reduce::{add_f32, add_f64, add_i32, add_i64, max_f32, max_f64, min_f32, min_f64};
use super::{Float, Int, Kernel, Mask, Simd, Vector};
use crate::isa::Isa;
use half::{bf16, f16};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Sub};

/// The token; only [`super::dispatch_with`] makes one, after a look at the machine.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

/// Sixteen `f32`.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct F32(pub __m512);
/// Eight `f64`.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct F64(pub __m512d);
/// Sixteen 32-bit integers.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct I32(pub __m512i);
/// Eight 64-bit integers.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct I64(pub __m512i);
/// Sixteen truth values.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct M32(pub __mmask16);
/// Eight truth values.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct M64(pub __mmask8);

/// Compiles `k` for this level.
///
/// # Safety
/// The machine has the level.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn enter<K: Kernel>(k: K) -> K::Out {
    k.run(Avx512(()))
}

/// An intrinsic call: the token behind every vector vouches for the instructions, the caller for the pointers.
macro_rules! v {
    ($e:expr) => {
        // SAFETY: see the macro.
        unsafe { $e }
    };
}

macro_rules! binary {
    ($type:ident: $($trait:ident $f:ident $intrinsic:ident),*) => {$(
        impl $trait for $type {
            type Output = Self;
            #[inline(always)]
            fn $f(self, b: Self) -> Self {
                v!($type($intrinsic(self.0, b.0)))
            }
        }
    )*};
}

binary!(F32: Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);
binary!(F64: Add add _mm512_add_pd, Sub sub _mm512_sub_pd, Mul mul _mm512_mul_pd, Div div _mm512_div_pd);
binary!(I32: Add add _mm512_add_epi32, Sub sub _mm512_sub_epi32, Mul mul _mm512_mullo_epi32,
    BitAnd bitand _mm512_and_si512, BitOr bitor _mm512_or_si512, BitXor bitxor _mm512_xor_si512);
binary!(I64: Add add _mm512_add_epi64, Sub sub _mm512_sub_epi64, Mul mul _mm512_mullo_epi64,
    BitAnd bitand _mm512_and_si512, BitOr bitor _mm512_or_si512, BitXor bitxor _mm512_xor_si512);

macro_rules! vector {
    ($type:ident, $elem:ty, $mask:ident, $lanes:literal, $cast:ty,
     splat $splat:ident load $load:ident loadn $loadn:ident store $store:ident storen $storen:ident nt $nt:ident
     select $select:ident min $min:ident max $max:ident eq $eq:expr, lt $lt:expr) => {
        impl Vector<Avx512> for $type {
            type Elem = $elem;
            type Mask = $mask;
            const LANES: usize = $lanes;

            #[inline(always)]
            fn splat(_: Avx512, x: $elem) -> Self {
                v!($type($splat(x)))
            }
            #[inline(always)]
            unsafe fn load(_: Avx512, p: *const $elem) -> Self {
                v!($type($load(p.cast())))
            }
            #[inline(always)]
            unsafe fn load_n(s: Avx512, p: *const $elem, n: usize) -> Self {
                v!($type($loadn($mask::first(s, n).0, p.cast())))
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut $elem) {
                v!($store(p.cast(), self.0))
            }
            #[inline(always)]
            unsafe fn store_n(self, p: *mut $elem, n: usize) {
                v!($storen(p.cast(), $mask::first(Avx512(()), n).0, self.0))
            }
            #[inline(always)]
            unsafe fn store_nt(self, p: *mut $elem) {
                v!($nt(p.cast(), self.0))
            }
            #[inline(always)]
            fn select(mask: $mask, a: Self, b: Self) -> Self {
                v!($type($select(mask.0, b.0, a.0)))
            }
            #[inline(always)]
            fn eq(self, b: Self) -> $mask {
                v!($mask($eq(self.0, b.0)))
            }
            #[inline(always)]
            fn lt(self, b: Self) -> $mask {
                v!($mask($lt(self.0, b.0)))
            }
            #[inline(always)]
            fn min(self, b: Self) -> Self {
                v!($type($min(self.0, b.0)))
            }
            #[inline(always)]
            fn max(self, b: Self) -> Self {
                v!($type($max(self.0, b.0)))
            }
        }
    };
}

vector!(F32, f32, M32, 16, f32,
    splat _mm512_set1_ps load _mm512_loadu_ps loadn _mm512_maskz_loadu_ps store _mm512_storeu_ps
    storen _mm512_mask_storeu_ps nt _mm512_stream_ps select _mm512_mask_blend_ps min _mm512_min_ps max _mm512_max_ps
    eq _mm512_cmp_ps_mask::<_CMP_EQ_OQ>, lt _mm512_cmp_ps_mask::<_CMP_LT_OQ>);
vector!(F64, f64, M64, 8, f64,
    splat _mm512_set1_pd load _mm512_loadu_pd loadn _mm512_maskz_loadu_pd store _mm512_storeu_pd
    storen _mm512_mask_storeu_pd nt _mm512_stream_pd select _mm512_mask_blend_pd min _mm512_min_pd max _mm512_max_pd
    eq _mm512_cmp_pd_mask::<_CMP_EQ_OQ>, lt _mm512_cmp_pd_mask::<_CMP_LT_OQ>);
vector!(I32, i32, M32, 16, i32,
    splat _mm512_set1_epi32 load _mm512_loadu_epi32 loadn _mm512_maskz_loadu_epi32 store _mm512_storeu_epi32
    storen _mm512_mask_storeu_epi32 nt _mm512_stream_si512 select _mm512_mask_blend_epi32
    min _mm512_min_epi32 max _mm512_max_epi32 eq _mm512_cmpeq_epi32_mask, lt _mm512_cmplt_epi32_mask);
vector!(I64, i64, M64, 8, i64,
    splat _mm512_set1_epi64 load _mm512_loadu_epi64 loadn _mm512_maskz_loadu_epi64 store _mm512_storeu_epi64
    storen _mm512_mask_storeu_epi64 nt _mm512_stream_si512 select _mm512_mask_blend_epi64
    min _mm512_min_epi64 max _mm512_max_epi64 eq _mm512_cmpeq_epi64_mask, lt _mm512_cmplt_epi64_mask);

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
const DOWN: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
const UP: i32 = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC;
const ZERO: i32 = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;

macro_rules! float {
    ($type:ident, $int:ident, $mask:ident, $elem:ty, $half:ty,
     fma $fma:ident fms $fms:ident fnma $fnma:ident abs $abs:ident sqrt $sqrt:ident round $round:ident
     le $le:expr, bits $bits:ident from_bits $from_bits:ident to_int $to_int:ident from_int $from_int:ident
     scale $scale:ident xor $xor:ident lower $lower:expr, upper $upper:expr,
     reduce $radd:ident $add:ident $rmax:ident $max:ident $rmin:ident $min:ident) => {
        impl Neg for $type {
            type Output = Self;
            #[inline(always)]
            fn neg(self) -> Self {
                v!($type($xor(self.0, $type::splat(Avx512(()), -0.0).0)))
            }
        }
        impl Float<Avx512> for $type {
            type Int = $int;

            #[inline(always)]
            fn fma(self, b: Self, c: Self) -> Self {
                v!($type($fma(self.0, b.0, c.0)))
            }
            #[inline(always)]
            fn fms(self, b: Self, c: Self) -> Self {
                v!($type($fms(self.0, b.0, c.0)))
            }
            #[inline(always)]
            fn fnma(self, b: Self, c: Self) -> Self {
                v!($type($fnma(self.0, b.0, c.0)))
            }
            #[inline(always)]
            fn abs(self) -> Self {
                v!($type($abs(self.0)))
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                v!($type($sqrt(self.0)))
            }
            #[inline(always)]
            fn round(self) -> Self {
                v!($type($round::<NEAREST>(self.0)))
            }
            #[inline(always)]
            fn floor(self) -> Self {
                v!($type($round::<DOWN>(self.0)))
            }
            #[inline(always)]
            fn ceil(self) -> Self {
                v!($type($round::<UP>(self.0)))
            }
            #[inline(always)]
            fn trunc(self) -> Self {
                v!($type($round::<ZERO>(self.0)))
            }
            #[inline(always)]
            fn le(self, b: Self) -> $mask {
                v!($mask($le(self.0, b.0)))
            }
            #[inline(always)]
            fn bits(self) -> $int {
                v!($int($bits(self.0)))
            }
            #[inline(always)]
            fn from_bits(bits: $int) -> Self {
                v!($type($from_bits(bits.0)))
            }
            #[inline(always)]
            fn to_int(self) -> $int {
                v!($int($to_int(self.0)))
            }
            #[inline(always)]
            fn from_int(i: $int) -> Self {
                v!($type($from_int(i.0)))
            }
            #[inline(always)]
            fn scale(self, n: Self) -> Self {
                v!($type($scale(self.0, n.0)))
            }
            #[inline(always)]
            fn reduce_add(self) -> $elem {
                v!($radd($add($lower(self.0), $upper(self.0))))
            }
            #[inline(always)]
            fn reduce_max(self) -> $elem {
                v!($rmax($max($lower(self.0), $upper(self.0))))
            }
            #[inline(always)]
            fn reduce_min(self) -> $elem {
                v!($rmin($min($lower(self.0), $upper(self.0))))
            }
        }
    };
}

float!(F32, I32, M32, f32, __m256,
    fma _mm512_fmadd_ps fms _mm512_fmsub_ps fnma _mm512_fnmadd_ps abs _mm512_abs_ps sqrt _mm512_sqrt_ps
    round _mm512_roundscale_ps le _mm512_cmp_ps_mask::<_CMP_LE_OQ>, bits _mm512_castps_si512
    from_bits _mm512_castsi512_ps to_int _mm512_cvtps_epi32 from_int _mm512_cvtepi32_ps scale _mm512_scalef_ps
    xor _mm512_xor_ps lower _mm512_castps512_ps256, upper _mm512_extractf32x8_ps::<1>,
    reduce add_f32 _mm256_add_ps max_f32 _mm256_max_ps min_f32 _mm256_min_ps);
float!(F64, I64, M64, f64, __m256d,
    fma _mm512_fmadd_pd fms _mm512_fmsub_pd fnma _mm512_fnmadd_pd abs _mm512_abs_pd sqrt _mm512_sqrt_pd
    round _mm512_roundscale_pd le _mm512_cmp_pd_mask::<_CMP_LE_OQ>, bits _mm512_castpd_si512
    from_bits _mm512_castsi512_pd to_int _mm512_cvtpd_epi64 from_int _mm512_cvtepi64_pd scale _mm512_scalef_pd
    xor _mm512_xor_pd lower _mm512_castpd512_pd256, upper _mm512_extractf64x4_pd::<1>,
    reduce add_f64 _mm256_add_pd max_f64 _mm256_max_pd min_f64 _mm256_min_pd);

macro_rules! int {
    ($type:ident, $elem:ty, shl $shl:ident shr $shr:ident sar $sar:ident shlv $shlv:ident shrv $shrv:ident
     rolv $rolv:ident splat $splat:ident reduce $reduce:ident $add:ident) => {
        impl Not for $type {
            type Output = Self;
            #[inline(always)]
            fn not(self) -> Self {
                v!($type(_mm512_ternarylogic_epi64::<0x55>(self.0, self.0, self.0)))
            }
        }
        impl Int<Avx512> for $type {
            #[inline(always)]
            fn shl(self, n: u32) -> Self {
                v!($type($shl(self.0, _mm_cvtsi32_si128(n as i32))))
            }
            #[inline(always)]
            fn shr(self, n: u32) -> Self {
                v!($type($shr(self.0, _mm_cvtsi32_si128(n as i32))))
            }
            #[inline(always)]
            fn sar(self, n: u32) -> Self {
                v!($type($sar(self.0, _mm_cvtsi32_si128(n as i32))))
            }
            #[inline(always)]
            fn shl_each(self, n: Self) -> Self {
                v!($type($shlv(self.0, n.0)))
            }
            #[inline(always)]
            fn shr_each(self, n: Self) -> Self {
                v!($type($shrv(self.0, n.0)))
            }
            #[inline(always)]
            fn rotl(self, n: u32) -> Self {
                v!($type($rolv(self.0, $splat(n as $elem))))
            }
            #[inline(always)]
            fn reduce_add(self) -> $elem {
                v!($reduce($add(_mm512_castsi512_si256(self.0), _mm512_extracti64x4_epi64::<1>(self.0))))
            }
        }
    };
}

int!(I32, i32, shl _mm512_sll_epi32 shr _mm512_srl_epi32 sar _mm512_sra_epi32 shlv _mm512_sllv_epi32
    shrv _mm512_srlv_epi32 rolv _mm512_rolv_epi32 splat _mm512_set1_epi32 reduce add_i32 _mm256_add_epi32);
int!(I64, i64, shl _mm512_sll_epi64 shr _mm512_srl_epi64 sar _mm512_sra_epi64 shlv _mm512_sllv_epi64
    shrv _mm512_srlv_epi64 rolv _mm512_rolv_epi64 splat _mm512_set1_epi64 reduce add_i64 _mm256_add_epi64);

macro_rules! mask {
    ($type:ident, $lanes:literal) => {
        impl BitAnd for $type {
            type Output = Self;
            #[inline(always)]
            fn bitand(self, b: Self) -> Self {
                $type(self.0 & b.0)
            }
        }
        impl BitOr for $type {
            type Output = Self;
            #[inline(always)]
            fn bitor(self, b: Self) -> Self {
                $type(self.0 | b.0)
            }
        }
        impl Not for $type {
            type Output = Self;
            #[inline(always)]
            fn not(self) -> Self {
                $type(!self.0)
            }
        }
        impl Mask<Avx512> for $type {
            #[inline(always)]
            fn first(_: Avx512, n: usize) -> Self {
                $type(((1u32 << n.min($lanes)) - 1) as _)
            }
            #[inline(always)]
            fn bits(self) -> u32 {
                self.0.into()
            }
            #[inline(always)]
            fn all(self) -> bool {
                !self.0 == 0
            }
        }
    };
}

mask!(M32, 16);
mask!(M64, 8);

impl Simd for Avx512 {
    const ISA: Isa = Isa::Avx512;
    type F32 = F32;
    type F64 = F64;
    type I32 = I32;
    type I64 = I64;
    type M32 = M32;
    type M64 = M64;

    #[inline(always)]
    fn iota32(self) -> I32 {
        v!(I32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)))
    }
    #[inline(always)]
    fn widen(self, x: F32) -> [F64; 2] {
        v!([F64(_mm512_cvtps_pd(_mm512_castps512_ps256(x.0))), F64(_mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(x.0)))])
    }
    #[inline(always)]
    fn narrow(self, [a, b]: [F64; 2]) -> F32 {
        v!(F32(_mm512_insertf32x8::<1>(_mm512_castps256_ps512(_mm512_cvtpd_ps(a.0)), _mm512_cvtpd_ps(b.0))))
    }
    #[inline(always)]
    fn widen_i32(self, x: I32) -> [F64; 2] {
        let (a, b) = v!((_mm512_castsi512_si256(x.0), _mm512_extracti32x8_epi32::<1>(x.0)));
        v!([F64(_mm512_cvtepi32_pd(a)), F64(_mm512_cvtepi32_pd(b))])
    }
    #[inline(always)]
    fn widen_u32(self, x: I32) -> [I64; 2] {
        let (a, b) = v!((_mm512_castsi512_si256(x.0), _mm512_extracti32x8_epi32::<1>(x.0)));
        v!([I64(_mm512_cvtepu32_epi64(a)), I64(_mm512_cvtepu32_epi64(b))])
    }
    #[inline(always)]
    fn narrow_i64(self, [a, b]: [I64; 2]) -> I32 {
        let (a, b) = v!((_mm512_cvtepi64_epi32(a.0), _mm512_cvtepi64_epi32(b.0)));
        v!(I32(_mm512_inserti32x8::<1>(_mm512_castsi256_si512(a), b)))
    }
    #[inline(always)]
    fn mul_u32(self, a: I64, b: I64) -> I64 {
        v!(I64(_mm512_mul_epu32(a.0, b.0)))
    }
    #[inline(always)]
    fn lookup16(self, table: &[f32; 16], i: I32) -> F32 {
        v!(F32(_mm512_permutexvar_ps(i.0, _mm512_loadu_ps(table.as_ptr()))))
    }
    #[inline(always)]
    fn lookup16_f64(self, table: &[f64; 16], i: I64) -> F64 {
        let (a, b) = v!((_mm512_loadu_pd(table.as_ptr()), _mm512_loadu_pd(table.as_ptr().add(8))));
        v!(F64(_mm512_permutex2var_pd(a, i.0, b)))
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> F32 {
        v!(F32(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> F32 {
        v!(F32(from_bf16(_mm256_loadu_si256(p.cast()))))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16, x: F32) {
        v!(_mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<NEAREST>(x.0)))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, x: F32) {
        v!(_mm256_storeu_si256(p.cast(), to_bf16(x)))
    }
    #[inline(always)]
    unsafe fn load_f16_n(self, p: *const f16, n: usize) -> F32 {
        v!(F32(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(M32::first(self, n).0, p.cast()))))
    }
    #[inline(always)]
    unsafe fn load_bf16_n(self, p: *const bf16, n: usize) -> F32 {
        v!(F32(from_bf16(_mm256_maskz_loadu_epi16(M32::first(self, n).0, p.cast()))))
    }
    #[inline(always)]
    unsafe fn store_f16_n(self, p: *mut f16, n: usize, x: F32) {
        v!(_mm256_mask_storeu_epi16(p.cast(), M32::first(self, n).0, _mm512_cvtps_ph::<NEAREST>(x.0)))
    }
    #[inline(always)]
    unsafe fn store_bf16_n(self, p: *mut bf16, n: usize, x: F32) {
        v!(_mm256_mask_storeu_epi16(p.cast(), M32::first(self, n).0, to_bf16(x)))
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

/// The upper halves of singles.
#[inline(always)]
unsafe fn from_bf16(x: __m256i) -> __m512 {
    v!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x))))
}

/// Round to nearest even in integers: `vcvtneps2bf16` would flush subnormals.
#[inline(always)]
unsafe fn to_bf16(x: F32) -> __m256i {
    v!({
        let bits = _mm512_castps_si512(x.0);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x.0, x.0);
        let bits = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits))
    })
}
