//! The kernels behind one interface a level, so that the code that decides the order of work knows no instructions.

use super::kernels::*;
use super::lanes::{Elem, Lanes};

/// The loops above for one instruction set, as functions that can be called without it being enabled.
///
/// # Safety
/// The instruction set must be there; pointers as the functions of the same names say.
pub(super) trait Kernels {
    /// Lanes of a vector.
    const N: usize;
    /// Most rows one call of [`Kernels::dot`] and the others takes.
    const ROWS: usize;

    unsafe fn scale_row<T: Elem>(from: *const T, dim: usize, scale: f32, to: *mut f32);
    /// Keys `0 .. keys` (at most `2 N`) of `dim` elements to a panel `[dim][2 N]`.
    unsafe fn pack_keys<T: Elem>(
        from: *const T,
        stride: isize,
        keys: usize,
        dim: usize,
        to: *mut f32,
        ahead: &mut Ahead,
    );
    unsafe fn pack_values<T: Elem>(from: *const T, stride: isize, keys: usize, width: usize, to: *mut f32);
    /// Scores from packed keys.
    unsafe fn dot(rows: usize, q: *const f32, panel: *const f32, dim: usize, scores: *mut f32);
    /// Floats of a row of spread queries, or 0 where keys of this type cannot be used in place.
    fn spread_len<T: Elem>(dim: usize) -> usize;
    /// One row of `dim` scaled queries, as [`Kernels::dot_in_place`] takes them.
    unsafe fn spread(q: *const f32, dim: usize, to: *mut f32);
    /// Scores of `keys` keys in place; writes whole vectors.
    unsafe fn dot_in_place<T: Elem>(
        rows: usize,
        q: *const f32,
        from: *const T,
        stride: isize,
        keys: usize,
        dim: usize,
        scores: *mut f32,
        ahead: Ahead,
    );
    unsafe fn softmax(s: &Softmax);
    unsafe fn weigh(
        rows: usize,
        weights: *const f32,
        keys: usize,
        values: *const f32,
        acc: *mut f32,
        ld: usize,
        shrink: *const f32,
    );
    /// Values of `width` columns in place; `acc` has room for `width` rounded up to `2 N`.
    unsafe fn weigh_in_place<T: Elem>(
        rows: usize,
        weights: *const f32,
        keys: usize,
        values: *const T,
        stride: isize,
        width: usize,
        acc: *mut f32,
        ld: usize,
        shrink: *const f32,
        ahead: Ahead,
    );
    unsafe fn merge(total: State, part: State, rows: usize, width: usize);
    unsafe fn finish<T: Elem>(state: State, r: usize, ld: usize, sink: Option<f32>, to: *mut T, width: usize) -> f32;
}

/// Hides the instruction set behind [`Kernels`]: each body is one function compiled with `$features`. The list names
/// for each number of rows how many pairs of vectors [`weigh_in_place`] keeps in registers.
macro_rules! kernels {
    ($(#[$attr:meta])* $lanes:ty, $rows:literal, [$($m:literal: $p:literal),*]) => {
        impl Kernels for $lanes {
            const N: usize = <$lanes as Lanes>::N;
            const ROWS: usize = $rows;

            unsafe fn scale_row<T: Elem>(from: *const T, dim: usize, scale: f32, to: *mut f32) {
                $(#[$attr])*
                unsafe fn go<T: Elem>(from: *const T, dim: usize, scale: f32, to: *mut f32) {
                    // SAFETY: the contract of the trait.
                    unsafe { scale_row::<$lanes, T>(from, dim, scale, to) }
                }
                // SAFETY: the contract of the trait.
                unsafe { go(from, dim, scale, to) }
            }

            unsafe fn pack_keys<T: Elem>(
                from: *const T,
                stride: isize,
                keys: usize,
                dim: usize,
                to: *mut f32,
                ahead: &mut Ahead,
            ) {
                $(#[$attr])*
                unsafe fn go<T: Elem>(
                    from: *const T,
                    stride: isize,
                    keys: usize,
                    dim: usize,
                    to: *mut f32,
                    ahead: &mut Ahead,
                ) {
                    const N: usize = <$lanes as Lanes>::N;
                    // SAFETY: the contract of the trait.
                    unsafe {
                        T::transpose::<$lanes>(from, stride, keys.min(N), dim, to, 2 * N);
                        if keys > N {
                            T::transpose::<$lanes>(
                                from.offset(N as isize * stride), stride, keys - N, dim, to.add(N), 2 * N);
                        } else {
                            for d in 0..dim {
                                <$lanes>::store(to.add(d * 2 * N + N), <$lanes>::splat(0.0));
                            }
                        }
                        ahead.used::<$lanes>(keys * dim * size_of::<T>());
                    }
                }
                // SAFETY: the contract of the trait.
                unsafe { go(from, stride, keys, dim, to, ahead) }
            }

            unsafe fn pack_values<T: Elem>(from: *const T, stride: isize, keys: usize, width: usize, to: *mut f32) {
                $(#[$attr])*
                unsafe fn go<T: Elem>(from: *const T, stride: isize, keys: usize, width: usize, to: *mut f32) {
                    // SAFETY: the contract of the trait.
                    unsafe { pack_values::<$lanes, T>(from, stride, keys, width, to) }
                }
                // SAFETY: the contract of the trait.
                unsafe { go(from, stride, keys, width, to) }
            }

            unsafe fn dot(rows: usize, q: *const f32, panel: *const f32, dim: usize, scores: *mut f32) {
                $(#[$attr])*
                unsafe fn go<const M: usize>(q: *const f32, panel: *const f32, dim: usize, scores: *mut f32) {
                    // SAFETY: the contract of the trait.
                    unsafe { dot::<$lanes, M>(q, panel, dim, scores) }
                }
                // SAFETY: the contract of the trait.
                unsafe {
                    match rows {
                        $($m => go::<$m>(q, panel, dim, scores),)*
                        _ => unreachable!(),
                    }
                }
            }

            fn spread_len<T: Elem>(dim: usize) -> usize {
                if size_of::<T>() == 2 { <$lanes as Lanes>::spread_len(dim) } else { 0 }
            }

            unsafe fn spread(q: *const f32, dim: usize, to: *mut f32) {
                $(#[$attr])*
                unsafe fn go(q: *const f32, dim: usize, to: *mut f32) {
                    // SAFETY: the contract of the trait.
                    unsafe { <$lanes as Lanes>::spread(q, dim, to) }
                }
                // SAFETY: the contract of the trait.
                unsafe { go(q, dim, to) }
            }

            unsafe fn dot_in_place<T: Elem>(
                rows: usize,
                q: *const f32,
                from: *const T,
                stride: isize,
                keys: usize,
                dim: usize,
                scores: *mut f32,
                ahead: Ahead,
            ) {
                $(#[$attr])*
                unsafe fn go<T: Elem, const M: usize>(
                    q: *const f32,
                    from: *const T,
                    stride: isize,
                    keys: usize,
                    dim: usize,
                    scores: *mut f32,
                    ahead: Ahead,
                ) {
                    // SAFETY: the contract of the trait.
                    unsafe { <$lanes as Lanes>::dot_in_place::<T, M>(q, from, stride, keys, dim, scores, ahead) }
                }
                // SAFETY: the contract of the trait.
                unsafe {
                    match rows {
                        $($m => go::<T, $m>(q, from, stride, keys, dim, scores, ahead),)*
                        _ => unreachable!(),
                    }
                }
            }

            unsafe fn softmax(s: &Softmax) {
                $(#[$attr])*
                unsafe fn go(s: &Softmax) {
                    // SAFETY: the contract of the trait.
                    unsafe { softmax::<$lanes>(s) }
                }
                // SAFETY: the contract of the trait.
                unsafe { go(s) }
            }

            unsafe fn weigh(
                rows: usize,
                weights: *const f32,
                keys: usize,
                values: *const f32,
                acc: *mut f32,
                ld: usize,
                shrink: *const f32,
            ) {
                $(#[$attr])*
                unsafe fn go<const M: usize>(
                    weights: *const f32,
                    keys: usize,
                    values: *const f32,
                    acc: *mut f32,
                    ld: usize,
                    shrink: *const f32,
                ) {
                    // SAFETY: the contract of the trait.
                    unsafe { weigh::<$lanes, M>(weights, keys, values, acc, ld, shrink) }
                }
                // SAFETY: the contract of the trait.
                unsafe {
                    match rows {
                        $($m => go::<$m>(weights, keys, values, acc, ld, shrink),)*
                        _ => unreachable!(),
                    }
                }
            }

            unsafe fn weigh_in_place<T: Elem>(
                rows: usize,
                weights: *const f32,
                keys: usize,
                values: *const T,
                stride: isize,
                width: usize,
                acc: *mut f32,
                ld: usize,
                shrink: *const f32,
                ahead: Ahead,
            ) {
                $(#[$attr])*
                unsafe fn go<T: Elem, const M: usize, const P: usize>(
                    weights: *const f32,
                    keys: usize,
                    values: *const T,
                    stride: isize,
                    width: usize,
                    acc: *mut f32,
                    ld: usize,
                    shrink: *const f32,
                    mut ahead: Ahead,
                ) {
                    const PAIR: usize = 2 * <$lanes as Lanes>::N;
                    // SAFETY: the contract of the trait.
                    unsafe {
                        // A few keys at a time for all columns: memory is read from front to back.
                        for k in (0..keys).step_by(16) {
                            let keys = (keys - k).min(16);
                            let (weights, values) = (weights.add(k), values.offset(k as isize * stride));
                            let shrink = if k == 0 { shrink } else { std::ptr::null() };
                            let mut c = 0;
                            while c + P * PAIR <= width {
                                let (values, acc) = (values.add(c), acc.add(c));
                                let ahead = &mut ahead;
                                weigh_in_place::<$lanes, T, M, P>(weights, keys, values, stride, acc, ld, shrink, ahead);
                                c += P * PAIR;
                            }
                            while c + PAIR <= width {
                                let (values, acc) = (values.add(c), acc.add(c));
                                let ahead = &mut ahead;
                                weigh_in_place::<$lanes, T, M, 1>(weights, keys, values, stride, acc, ld, shrink, ahead);
                                c += PAIR;
                            }
                        }
                        let c = width / PAIR * PAIR;
                        if c < width {
                            let mut tail = [0.0f32; BLOCK * PAIR];
                            pack_values::<$lanes, T>(values.add(c), stride, keys, width - c, tail.as_mut_ptr());
                            weigh::<$lanes, M>(weights, keys, tail.as_ptr(), acc.add(c), ld, shrink);
                        }
                    }
                }
                // SAFETY: the contract of the trait.
                unsafe {
                    match rows {
                        $($m => go::<T, $m, $p>(weights, keys, values, stride, width, acc, ld, shrink, ahead),)*
                        _ => unreachable!(),
                    }
                }
            }

            unsafe fn merge(total: State, part: State, rows: usize, width: usize) {
                $(#[$attr])*
                unsafe fn go(total: State, part: State, rows: usize, width: usize) {
                    // SAFETY: the contract of the trait.
                    unsafe { merge::<$lanes>(total, part, rows, width) }
                }
                // SAFETY: the contract of the trait.
                unsafe { go(total, part, rows, width) }
            }

            unsafe fn finish<T: Elem>(
                state: State,
                r: usize,
                ld: usize,
                sink: Option<f32>,
                to: *mut T,
                width: usize,
            ) -> f32 {
                $(#[$attr])*
                unsafe fn go<T: Elem>(
                    state: State,
                    r: usize,
                    ld: usize,
                    sink: Option<f32>,
                    to: *mut T,
                    width: usize,
                ) -> f32 {
                    // SAFETY: the contract of the trait.
                    unsafe { finish::<$lanes, T>(state, r, ld, sink, to, width) }
                }
                // SAFETY: the contract of the trait.
                unsafe { go(state, r, ld, sink, to, width) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,fma,f16c,bmi2")]
    super::lanes::avx512::Avx512,
    12,
    [1: 4, 2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1]
);
#[cfg(target_arch = "x86_64")]
kernels!(
    #[target_feature(enable = "avx2,fma,f16c,bmi2")]
    super::lanes::avx2::Avx2,
    6,
    [1: 4, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1]
);
kernels!(super::lanes::portable::Portable, 4, [1: 2, 2: 1, 3: 1, 4: 1]);
