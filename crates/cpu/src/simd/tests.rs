//! Every operation at every level against plain Rust on single numbers.

use super::*;
use std::fmt::Debug;

/// Numbers with every kind of trouble, then ordinary ones; a multiple of 16 of them.
fn floats() -> Vec<f32> {
    let mut all = vec![
        0.0,
        1.0,
        0.5,
        1.5,
        2.5,
        0.49999997,
        1e-40,
        1e-45,
        f32::MIN_POSITIVE,
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
        8388607.5,
        8388609.0,
        2147483648.0,
        65504.0,
        65519.996,
        65520.0,
        6e-8,
        2.9802322e-8,
        2.980233e-8,
        3.3895314e38,
        1e20,
        0.1,
    ];
    all.extend(all.clone().iter().map(|x| -x));
    let mut state = 1u32;
    while all.len() < 4096 {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        all.push(if state & 1 == 0 { f32::from_bits(state) } else { (state as i32) as f32 / 1e6 });
    }
    all
}

/// Compares as texts, in which NaN equals NaN and the zeros differ.
fn same<T: Debug>(isa: Isa, what: &str, input: impl Debug, got: T, want: T) {
    let equal = format!("{got:?}") == format!("{want:?}");
    assert!(equal, "{what} at {}: {input:?} gave {got:?}, want {want:?}", isa.name());
}

/// Checks operations of vectors `$a`, `$b`, `$c` against the same on single numbers.
macro_rules! check {
    ($vector:ident $elem:ty, $all:expr, |$s:ident, $a:ident, $b:ident, $c:ident| $($what:literal $got:expr => $want:expr;)*) => {{
        struct Run<'a>(&'a [$elem], &'a mut Vec<Vec<[$elem; 4]>>);
        impl Kernel for Run<'_> {
            type Out = ();
            #[inline(always)]
            fn run<S: Simd>(self, $s: S) {
                let (all, n, lanes) = (self.0, self.0.len(), S::$vector::LANES);
                for i in (0..n).step_by(lanes) {
                    // Rotated copies pair every number with many others over the run.
                    let pick = |k: usize| -> Vec<$elem> { (0..lanes).map(|l| all[(i + l * (1 + k) + k * (7 + i / 16)) % n]).collect() };
                    let (a, b, c) = (pick(0), pick(1), pick(2));
                    // SAFETY: the arrays hold LANES elements.
                    let ($a, $b, $c) = unsafe {
                        (S::$vector::load($s, a.as_ptr()), S::$vector::load($s, b.as_ptr()), S::$vector::load($s, c.as_ptr()))
                    };
                    let _ = ($b, $c);
                    let mut op = 0;
                    $({
                        let mut r = vec![Default::default(); lanes];
                        // SAFETY: as above.
                        unsafe { ($got).store(r.as_mut_ptr()) };
                        if self.1.len() <= op { self.1.push(vec![]); }
                        self.1[op].extend((0..lanes).map(|l| [a[l], b[l], c[l], r[l]]));
                        op += 1;
                        let _ = $what;
                    })*
                    let _ = op;
                }
            }
        }
        let all = $all;
        for isa in isa::available() {
            let mut out = vec![];
            dispatch_with(isa, Run(&all, &mut out));
            let mut ops = out.into_iter();
            $(for [a, b, c, r] in ops.next().unwrap() {
                #[allow(unused_variables)]
                let ($a, $b, $c) = (a, b, c);
                same(isa, $what, (a, b, c), r, $want);
            })*
        }
    }};
}

#[test]
fn single_precision() {
    check!(F32 f32, floats(), |s, a, b, c|
        "add" a + b => a + b;
        "sub" a - b => a - b;
        "mul" a * b => a * b;
        "div" a / b => a / b;
        "neg" -a => -a;
        "fma" a.fma(b, c) => a.mul_add(b, c);
        "fms" a.fms(b, c) => a.mul_add(b, -c);
        "fnma" a.fnma(b, c) => (-a).mul_add(b, c);
        "abs" a.abs() => a.abs();
        "sqrt" a.sqrt() => a.sqrt();
        "round" a.round() => a.round_ties_even();
        "floor" a.floor() => a.floor();
        "ceil" a.ceil() => a.ceil();
        "trunc" a.trunc() => a.trunc();
        "min" a.min(b) => if a < b { a } else { b };
        "max" a.max(b) => if a > b { a } else { b };
        "lt" S::F32::select(a.lt(b), a, c) => if a < b { a } else { c };
        "gt" S::F32::select(a.gt(b), a, c) => if a > b { a } else { c };
        "le" S::F32::select(a.le(b), a, c) => if a <= b { a } else { c };
        "ge" S::F32::select(a.ge(b), a, c) => if a >= b { a } else { c };
        "eq" S::F32::select(a.eq(b), a, c) => if a == b { a } else { c };
        "nan" S::F32::select(a.is_nan() | !b.is_nan() & c.lt(b), b, c) => if a.is_nan() || c < b { b } else { c };
        "narrow(widen)" s.narrow(s.widen(a)) => a;
        "widen, times" { let (x, y) = (s.widen(a), s.widen(b)); s.narrow([x[0] * y[0], x[1] * y[1]]) } => (a as f64 * b as f64) as f32;
        "bits" S::F32::from_bits(a.bits() ^ b.bits()) => f32::from_bits(a.to_bits() ^ b.to_bits());
    );
    let small: Vec<f32> = (0..4096).map(|i| (i - 2048) as f32 * 0.37 + 0.5 * (i % 2) as f32).collect();
    check!(F32 f32, small, |s, a, b, c|
        "to_int, from_int" S::F32::from_int(a.to_int() * s.i32(1000001)) => (a.round_ties_even() as i32).wrapping_mul(1000001) as f32;
    );
    let whole: Vec<f32> = (0..512).map(|i| (i - 250).min(250) as f32).collect();
    check!(F32 f32, whole, |s, a, b, c|
        "scale" (a * s.f32(0.001) + s.f32(1.3)).scale(b) => ((a * 0.001 + 1.3) as f64 * (b as f64).exp2()) as f32;
    );
}

#[test]
fn double_precision() {
    let all: Vec<f64> = floats().iter().map(|&x| x as f64 * 1.000000123).collect();
    check!(F64 f64, all, |s, a, b, c|
        "add" a + b => a + b;
        "sub" a - b => a - b;
        "mul" a * b => a * b;
        "div" a / b => a / b;
        "neg" -a => -a;
        "fma" a.fma(b, c) => a.mul_add(b, c);
        "fms" a.fms(b, c) => a.mul_add(b, -c);
        "fnma" a.fnma(b, c) => (-a).mul_add(b, c);
        "abs" a.abs() => a.abs();
        "sqrt" a.sqrt() => a.sqrt();
        "round" a.round() => a.round_ties_even();
        "floor" a.floor() => a.floor();
        "ceil" a.ceil() => a.ceil();
        "trunc" a.trunc() => a.trunc();
        "min" a.min(b) => if a < b { a } else { b };
        "max" a.max(b) => if a > b { a } else { b };
        "lt" S::F64::select(a.lt(b), a, c) => if a < b { a } else { c };
        "le" S::F64::select(a.le(b), a, c) => if a <= b { a } else { c };
        "eq" S::F64::select(!a.eq(b), a, c) => if a != b { a } else { c };
        "bits" S::F64::from_bits(a.bits() ^ b.bits()) => f64::from_bits(a.to_bits() ^ b.to_bits());
    );
    let small: Vec<f64> = (0..4096).map(|i| (i - 2048) as f64 * 37e9 + 0.5 * (i % 2) as f64).collect();
    check!(F64 f64, small, |s, a, b, c|
        "to_int, from_int" S::F64::from_int(a.to_int() - s.i64(7)) => (a.round_ties_even() as i64 - 7) as f64;
    );
    let whole: Vec<f64> = (0..4096).map(|i| (i - 2000).min(2000) as f64).collect();
    check!(F64 f64, whole, |s, a, b, c|
        "scale" (a * s.f64(0.0001) + s.f64(1.3)).scale(b) => libm_scale(a * 0.0001 + 1.3, b as i32);
    );
}

/// `x * 2^n` with one rounding, by exact halvings down to the last.
fn libm_scale(x: f64, n: i32) -> f64 {
    let step = |n: i32| f64::from_bits(((n + 1023) as u64) << 52);
    let first = n.clamp(-900, 900);
    let second = (n - first).clamp(-900, 900);
    x * step(first) * step(second) * step(n - first - second)
}

#[test]
fn integers() {
    let all: Vec<i32> =
        (0..4096u32).map(|i| (i.wrapping_mul(2654435761) ^ i << 20).cast_signed() >> (i % 31)).collect();
    check!(I32 i32, all.clone(), |s, a, b, c|
        "add" a + b => a.wrapping_add(b);
        "sub" a - b => a.wrapping_sub(b);
        "mul" a * b => a.wrapping_mul(b);
        "and" a & b => a & b;
        "or" a | b => a | b;
        "xor" a ^ !b => a ^ !b;
        "min" a.min(b) => a.min(b);
        "max" a.max(b) => a.max(b);
        "lt" S::I32::select(a.lt(b), b, c) => if a < b { b } else { c };
        "eq" S::I32::select(a.eq(b), b, c) => if a == b { b } else { c };
        "shl" a.shl(5) => a << 5;
        "shr" a.shr(5) => (a as u32 >> 5) as i32;
        "sar" a.sar(5) => a >> 5;
        "shl_each" a.shl_each(b & s.i32(63)) => ((a as u64) << (b & 63)) as i32 & if b & 63 > 31 { 0 } else { -1 };
        "shr_each" a.shr_each(b & s.i32(63)) => (a as u32 as u64 >> (b & 63)) as i32;
        "rotl" a.rotl(13) => a.rotate_left(13);
        "widen_u32" { let [x, y] = s.widen_u32(a); s.narrow_i64([x.shr(3), y.shr(3)]) } => (a as u32 >> 3) as i32;
        "mul_u32" { let ([x, y], [u, v]) = (s.widen_u32(a), s.widen_u32(b)); s.narrow_i64([s.mul_u32(x, u).shr(32), s.mul_u32(y, v).shr(32)]) }
            => ((a as u32 as u64 * b as u32 as u64) >> 32) as i32;
        "iota" s.iota32() - s.iota32() + a => a;
    );
    let long: Vec<i64> = all.iter().zip(all.iter().rev()).map(|(&a, &b)| (a as i64) << 32 ^ b as i64).collect();
    check!(I64 i64, long, |s, a, b, c|
        "add" a + b => a.wrapping_add(b);
        "sub" a - b => a.wrapping_sub(b);
        "mul" a * b => a.wrapping_mul(b);
        "and" a & b => a & b;
        "or" a | !b => a | !b;
        "xor" a ^ b => a ^ b;
        "min" a.min(b) => a.min(b);
        "max" a.max(b) => a.max(b);
        "lt" S::I64::select(a.lt(b), b, c) => if a < b { b } else { c };
        "shl" a.shl(40) => a << 40;
        "shr" a.shr(40) => (a as u64 >> 40) as i64;
        "sar" a.sar(40) => a >> 40;
        "shl_each" a.shl_each(b & s.i64(127)) => if b & 127 > 63 { 0 } else { a << (b & 63) };
        "shr_each" a.shr_each(b & s.i64(127)) => if b & 127 > 63 { 0 } else { (a as u64 >> (b & 63)) as i64 };
        "rotl" a.rotl(40) => a.rotate_left(40);
    );
}

#[test]
fn conversions_of_every_half() {
    struct Halves<'a>(&'a [u16], &'a mut [f32], &'a mut [f32]);
    impl Kernel for Halves<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for i in (0..self.0.len()).step_by(16) {
                // SAFETY: the slices are multiples of 16 long.
                unsafe {
                    s.load_f16(self.0.as_ptr().add(i).cast()).store(self.1.as_mut_ptr().add(i));
                    s.load_bf16(self.0.as_ptr().add(i).cast()).store(self.2.as_mut_ptr().add(i));
                }
            }
        }
    }
    let all: Vec<u16> = (0..=u16::MAX).collect();
    for isa in isa::available() {
        let (mut half, mut brain) = (vec![0.0; all.len()], vec![0.0; all.len()]);
        dispatch_with(isa, Halves(&all, &mut half, &mut brain));
        for (&h, (&x, &y)) in all.iter().zip(half.iter().zip(&brain)) {
            same(isa, "load_f16", h, x, f16::from_bits(h).to_f32());
            same(isa, "load_bf16", h, y, bf16::from_bits(h).to_f32());
        }
    }
}

#[test]
fn rounding_to_halves() {
    struct Round<'a>(&'a [f32], &'a mut [f16], &'a mut [bf16]);
    impl Kernel for Round<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for i in (0..self.0.len()).step_by(16) {
                // SAFETY: the slices are multiples of 16 long.
                unsafe {
                    let x = S::F32::load(s, self.0.as_ptr().add(i));
                    s.store_f16(self.1.as_mut_ptr().add(i), x);
                    s.store_bf16(self.2.as_mut_ptr().add(i), x);
                }
            }
        }
    }
    // Every 16-bit upper half with lower halves around the ties of both formats.
    let lows = [0, 1, 0x0fff, 0x1000, 0x1001, 0x2000, 0x3000, 0x7fff, 0x8000, 0x8001, 0xf000, 0xffff];
    let mut all: Vec<f32> = vec![];
    for high in 0..=u16::MAX {
        all.extend(lows.iter().map(|&low| f32::from_bits((high as u32) << 16 | low)));
    }
    for isa in isa::available() {
        let (mut half, mut brain) = (vec![f16::ZERO; all.len()], vec![bf16::ZERO; all.len()]);
        dispatch_with(isa, Round(&all, &mut half, &mut brain));
        for (&x, (&h, &b)) in all.iter().zip(half.iter().zip(&brain)) {
            same(isa, "store_f16", x, h.to_f32(), f16::from_f32_const(x).to_f32());
            same(isa, "store_bf16", x, b.to_f32(), bf16::from_f32(x).to_f32());
        }
    }
}

#[test]
fn parts_touch_nothing_else() {
    struct Part(usize);
    impl Kernel for Part {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            macro_rules! part {
                ($vector:ty, $elem:ty) => {{
                    let lanes = <$vector>::LANES;
                    let n = self.0.min(lanes);
                    let from: Vec<$elem> = (1..=n as u8).map(<$elem>::from).collect();
                    let mut to = vec![<$elem>::from(99u8); lanes + 1];
                    let mut all = to.clone();
                    // SAFETY: `from` holds `n` elements, `to` and `all` more than LANES.
                    unsafe {
                        let x = <$vector>::load_n(s, from.as_ptr(), n);
                        x.store_n(to.as_mut_ptr(), n);
                        x.store(all.as_mut_ptr());
                    }
                    assert_eq!(to[..n], from, "{:?}", S::ISA);
                    assert!(to[n..].iter().all(|&v| v == <$elem>::from(99u8)));
                    assert!(all[n..lanes].iter().all(|&v| v == <$elem>::from(0u8)));
                }};
            }
            part!(S::F32, f32);
            part!(S::F64, f64);
            part!(S::I32, i32);
            part!(S::I64, i64);
            let (mut h, mut b) = ([f16::ONE; 20], [bf16::ONE; 20]);
            // SAFETY: the arrays hold more than 16 elements.
            unsafe {
                let twice = |x: S::F32| x + x;
                s.store_f16_n(h.as_mut_ptr(), self.0, twice(s.load_f16_n(h.as_ptr(), self.0)));
                s.store_bf16_n(b.as_mut_ptr(), self.0, twice(s.load_bf16_n(b.as_ptr(), self.0)));
                assert_eq!(s.load_f16_n(h.as_ptr(), self.0).reduce_add(), 2.0 * self.0 as f32);
                assert_eq!(s.load_bf16_n(b.as_ptr(), self.0).reduce_add(), 2.0 * self.0 as f32);
            }
            for i in 0..20 {
                let want = if i < self.0 { 2.0 } else { 1.0 };
                assert_eq!((h[i].to_f32(), b[i].to_f32()), (want, want));
            }
            assert_eq!(S::M32::first(s, self.0).bits(), (1 << self.0) - 1);
            assert_eq!(S::M32::first(s, self.0).all(), self.0 == 16);
            assert_eq!(S::M64::first(s, self.0.min(8)).any(), self.0 > 0);
            assert_eq!(S::M64::first(s, self.0.min(8)).all(), self.0 >= 8);
        }
    }
    for isa in isa::available() {
        for n in 0..=16 {
            dispatch_with(isa, Part(n));
        }
    }
}

#[test]
fn reductions_go_by_halves_at_every_level() {
    struct Reduce;
    impl Kernel for Reduce {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let x: Vec<f32> = (0..16).map(|i| 1.1f32.powi(3 * i) * if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
            let d: Vec<f64> = x.iter().take(8).map(|&x| x as f64 / 3.0).collect();
            let i: Vec<i32> = (0..16).map(|i| i * 7 - 3).collect();
            let halves = |mut x: Vec<f64>, add: fn(f64, f64) -> f64| {
                while x.len() > 1 {
                    let (low, high) = x.split_at(x.len() / 2);
                    x = low.iter().zip(high).map(|(&a, &b)| add(a, b)).collect();
                }
                x[0]
            };
            // SAFETY: the vectors hold LANES elements.
            let (vx, vd, vi) =
                unsafe { (S::F32::load(s, x.as_ptr()), S::F64::load(s, d.as_ptr()), S::I32::load(s, i.as_ptr())) };
            let wide = x.iter().map(|&x| x as f64).collect();
            assert_eq!(vx.reduce_add(), halves(wide, |a, b| (a as f32 + b as f32) as f64) as f32);
            assert_eq!(vd.reduce_add(), halves(d.clone(), |a, b| a + b));
            assert_eq!(vx.reduce_max(), x.iter().copied().fold(f32::MIN, f32::max));
            assert_eq!(vx.reduce_min(), x.iter().copied().fold(f32::MAX, f32::min));
            assert_eq!(vd.reduce_max(), d.iter().copied().fold(f64::MIN, f64::max));
            assert_eq!(vd.reduce_min(), d.iter().copied().fold(f64::MAX, f64::min));
            assert_eq!(vi.reduce_add(), i.iter().sum::<i32>());
            assert_eq!(s.i64(3).reduce_add(), 24);
            let table: [f32; 16] = std::array::from_fn(|i| (i * i) as f32);
            let table64 = table.map(f64::from);
            assert_eq!(s.lookup16(&table, s.iota32() + s.i32(16)).reduce_add(), 1240.0);
            assert_eq!(s.lookup16_f64(&table64, s.widen_u32(s.iota32())[1]).reduce_add(), 1240.0 - 140.0);
            assert_eq!(s.narrow(s.widen_i32(s.iota32() - s.i32(8))).reduce_add(), -8.0);
        }
    }
    for isa in isa::available() {
        dispatch_with(isa, Reduce);
    }
}

#[test]
fn stores_past_the_caches_arrive() {
    #[repr(align(64))]
    struct Aligned([f32; 32]);
    struct Stream<'a>(&'a mut Aligned);
    impl Kernel for Stream<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            // SAFETY: aligned, 32 elements.
            unsafe {
                s.f32(1.5).store_nt(self.0.0.as_mut_ptr());
                s.f32(2.5).store_nt(self.0.0.as_mut_ptr().add(16));
            }
            s.fence();
        }
    }
    for isa in isa::available() {
        let mut out = Aligned([0.0; 32]);
        dispatch_with(isa, Stream(&mut out));
        assert_eq!(out.0.iter().sum::<f32>(), 64.0);
    }
}

#[test]
fn maps_cover_any_length() {
    #[derive(Clone, Copy)]
    struct Twice;
    impl Map1 for Twice {
        #[inline(always)]
        fn call<S: Simd>(self, _: S, x: S::F32) -> S::F32 {
            x + x
        }
    }
    impl Map2 for Twice {
        #[inline(always)]
        fn call<S: Simd>(self, _: S, x: S::F32, y: S::F32) -> S::F32 {
            x + y
        }
    }
    struct Run<'a>(&'a [f32], &'a mut [f32], &'a mut [f32]);
    impl Kernel for Run<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            map1(s, Twice, self.0, self.1);
            map2(s, Twice, self.0, self.0, self.2);
        }
    }
    for isa in isa::available() {
        for n in 0..70 {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
            dispatch_with(isa, Run(&x, &mut a, &mut b));
            assert!(x.iter().zip(&a).all(|(x, a)| 2.0 * x == *a) && a == b);
        }
    }
}
