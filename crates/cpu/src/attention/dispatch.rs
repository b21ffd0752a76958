//! The kernels behind one interface a level, so that the code that decides the order of work knows no instructions.

use super::grads::SIDE;
use super::grads::kernels::{COLUMNS, Product, Row, multiply, soften, write_row};
use super::kernels::*;
use super::lanes::{Elem, Lanes};

/// The loops of `kernels` for one instruction set, as functions that can be called without it being enabled.
///
/// # Safety
/// The instruction set must be there; pointers as the functions of the same names say.
pub(super) trait Kernels {
    /// The kernels in floats of the same vectors, which do what others do not do in their own way; themselves.
    type Plain: Kernels;
    /// Lanes of a vector.
    const N: usize;
    /// Most rows one call of [`Kernels::dot`] and the others takes.
    const ROWS: usize;
    /// Most rows that meet keys where they lie, in one call of [`Kernels::dot_in_place`]; more meet packed ones.
    const SPREAD: usize = Self::ROWS;
    /// Keys that go through [`Kernels::weigh`] together, from multiples of as many on; packed values are filled up to them.
    const TOGETHER: usize = 1;
    /// Keys whose weights, and whose packed values of one column, have the room of a float.
    const PACKED: usize = 1;
    /// Most rows that meet values where they lie, in one call of [`Kernels::weigh_in_place`]; more meet packed ones.
    const IN_PLACE: usize = Self::ROWS;

    /// Runs a task that calls the others.
    fn prepared<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    /// Floats that `rows` rows of packed queries take.
    fn queries_len(rows: usize, dim: usize) -> usize {
        rows * dim
    }

    unsafe fn scale_row<T: Elem>(from: *const T, dim: usize, scale: f32, to: *mut f32) {
        // SAFETY: the same contract.
        unsafe { Self::Plain::scale_row(from, dim, scale, to) }
    }
    /// Rows of queries that go through [`Kernels::dot`] together, `[rows][dim]`, to `[dim][rows]`, chain by chain.
    unsafe fn place_rows(from: *const f32, dim: usize, to: *mut f32, rows: usize) {
        let starts = chains(dim);
        for r in 0..rows {
            for d in 0..dim {
                // SAFETY: the contract of the trait.
                unsafe { *to.add(place(&starts, d) * rows + r) = *from.add(r * dim + d) }
            }
        }
    }
    /// Keys `0 .. keys` (at most `2 N`) of `dim` elements to a panel `[dim][2 N]`.
    unsafe fn pack_keys<T: Elem>(
        from: *const T,
        stride: isize,
        keys: usize,
        dim: usize,
        to: *mut f32,
        ahead: &mut Ahead,
    );
    unsafe fn pack_values<T: Elem>(
        from: *const T,
        stride: isize,
        keys: usize,
        width: usize,
        to: *mut f32,
        ahead: &mut Ahead,
    ) {
        // SAFETY: the same contract.
        unsafe { Self::Plain::pack_values(from, stride, keys, width, to, ahead) }
    }
    /// Scores, times `scale`, from packed keys.
    unsafe fn dot(rows: usize, q: *const f32, panel: *const f32, dim: usize, scale: f32, scores: *mut f32);
    /// Floats of a row of spread queries, or 0 where keys of this type cannot be used in place.
    fn spread_len<T: Elem>(_dim: usize) -> usize {
        0
    }
    /// One row of `dim` queries, as [`Kernels::dot_in_place`] takes them.
    unsafe fn spread(_q: *const f32, _dim: usize, _to: *mut f32) {
        unreachable!("not in place")
    }
    /// Scores, times `scale`, of `keys` keys in place; writes whole vectors.
    unsafe fn dot_in_place<T: Elem>(
        _rows: usize,
        _q: *const f32,
        _from: *const T,
        _stride: isize,
        _keys: usize,
        _dim: usize,
        _scale: f32,
        _scores: *mut f32,
        _ahead: &Ahead,
    ) {
        unreachable!("not in place")
    }
    unsafe fn softmax(s: &Softmax, ahead: &mut Ahead) {
        // SAFETY: the same contract.
        unsafe { Self::Plain::softmax(s, ahead) }
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
        // SAFETY: the same contract.
        unsafe { Self::Plain::weigh(rows, weights, keys, values, acc, ld, shrink) }
    }
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
        ahead: &Ahead,
    ) {
        // SAFETY: the same contract.
        unsafe { Self::Plain::weigh_in_place(rows, weights, keys, values, stride, width, acc, ld, shrink, ahead) }
    }
    unsafe fn merge(total: State, part: State, rows: usize, width: usize) {
        // SAFETY: the same contract.
        unsafe { Self::Plain::merge(total, part, rows, width) }
    }
    unsafe fn finish<T: Elem>(state: State, r: usize, ld: usize, sink: Option<f32>, to: *mut T, width: usize) -> f32 {
        // SAFETY: the same contract.
        unsafe { Self::Plain::finish(state, r, ld, sink, to, width) }
    }
}

/// What gradients need beside [`Kernels`].
///
/// # Safety
/// As there.
pub(super) trait GradKernels: Kernels {
    /// A product of `ROWS` rows whose left side lies in tiles.
    unsafe fn multiply_tiles(p: &Product);
    /// The same, the left side in squares.
    unsafe fn multiply_squares(p: &Product);
    /// The same, the left side in squares with the rows across.
    unsafe fn multiply_across(p: &Product);
    unsafe fn soften(row: &Row);
    unsafe fn write_row<T: Elem>(from: *const f32, width: usize, factor: f32, to: *mut T);
}

/// A method of [`Kernels`] whose body is one function compiled with the instruction set enabled.
macro_rules! enabled {
    ([$(#[$attr:meta])*] $name:ident $(<$g:ident: $bound:path>)? ($($arg:ident: $t:ty),* $(,)?) $(-> $r:ty)? $body:block) => {
        unsafe fn $name$(<$g: $bound>)?($($arg: $t),*) $(-> $r)? {
            $(#[$attr])*
            unsafe fn go$(<$g: $bound>)?($($arg: $t),*) $(-> $r)? {
                // SAFETY: the contract of the trait.
                unsafe { $body }
            }
            // SAFETY: the contract of the trait.
            unsafe { go($($arg),*) }
        }
    };
}

/// Hides the instruction set behind [`Kernels`]. The list names for each number of rows how many pairs of vectors
/// [`weigh_in_place`] keeps in registers.
macro_rules! kernels {
    ($attrs:tt $lanes:ty, $rows:literal, [$($m:literal: $p:literal),*]) => {
        impl Kernels for $lanes {
            type Plain = $lanes;
            const N: usize = <$lanes as Lanes>::N;
            const ROWS: usize = $rows;

            enabled!($attrs scale_row<T: Elem>(from: *const T, dim: usize, scale: f32, to: *mut f32) {
                scale_row::<$lanes, T>(from, dim, scale, to)
            });
            enabled!($attrs pack_keys<T: Elem>(
                from: *const T,
                stride: isize,
                keys: usize,
                dim: usize,
                to: *mut f32,
                ahead: &mut Ahead,
            ) {
                pack_keys::<$lanes, T>(from, stride, keys, dim, to, ahead)
            });
            enabled!($attrs pack_values<T: Elem>(
                from: *const T,
                stride: isize,
                keys: usize,
                width: usize,
                to: *mut f32,
                ahead: &mut Ahead,
            ) {
                pack_values::<$lanes, T>(from, stride, keys, width, to);
                ahead.used::<$lanes>(keys * width * size_of::<T>())
            });
            enabled!($attrs dot(rows: usize, q: *const f32, panel: *const f32, dim: usize, scale: f32, scores: *mut f32) {
                match rows {
                    $($m => dot::<$lanes, $m>(q, panel, dim, scale, scores),)*
                    _ => unreachable!(),
                }
            });
            fn spread_len<T: Elem>(dim: usize) -> usize {
                if size_of::<T>() == 2 { <$lanes as Lanes>::spread_len(dim) } else { 0 }
            }
            enabled!($attrs spread(q: *const f32, dim: usize, to: *mut f32) {
                <$lanes as Lanes>::spread(q, dim, to)
            });
            enabled!($attrs dot_in_place<T: Elem>(
                rows: usize,
                q: *const f32,
                from: *const T,
                stride: isize,
                keys: usize,
                dim: usize,
                scale: f32,
                scores: *mut f32,
                ahead: &Ahead,
            ) {
                match rows {
                    $($m => <$lanes as Lanes>::dot_in_place::<T, $m>(q, from, stride, keys, dim, scale, scores, ahead),)*
                    _ => unreachable!(),
                }
            });
            enabled!($attrs softmax(s: &Softmax, ahead: &mut Ahead) {
                softmax::<$lanes, Plain>(s, ahead)
            });
            enabled!($attrs weigh(
                rows: usize,
                weights: *const f32,
                keys: usize,
                values: *const f32,
                acc: *mut f32,
                ld: usize,
                shrink: *const f32,
            ) {
                match rows {
                    $($m => weigh::<$lanes, $m>(weights, keys, values, acc, ld, shrink),)*
                    _ => unreachable!(),
                }
            });
            enabled!($attrs weigh_in_place<T: Elem>(
                rows: usize,
                weights: *const f32,
                keys: usize,
                values: *const T,
                stride: isize,
                width: usize,
                acc: *mut f32,
                ld: usize,
                shrink: *const f32,
                ahead: &Ahead,
            ) {
                match rows {
                    $($m => weigh_columns::<$lanes, T, $m, $p>(
                        weights, keys, values, stride, width, acc, ld, shrink, ahead),)*
                    _ => unreachable!(),
                }
            });
            enabled!($attrs merge(total: State, part: State, rows: usize, width: usize) {
                merge::<$lanes>(total, part, rows, width)
            });
            enabled!($attrs finish<T: Elem>(
                state: State,
                r: usize,
                ld: usize,
                sink: Option<f32>,
                to: *mut T,
                width: usize,
            ) -> f32 {
                finish::<$lanes, T>(state, r, ld, sink, to, width)
            });
        }

        impl GradKernels for $lanes {
            enabled!($attrs multiply_tiles(p: &Product) { multiply::<$lanes, $rows, COLUMNS, 1>(p) });
            enabled!($attrs multiply_squares(p: &Product) { multiply::<$lanes, $rows, SIDE, 1>(p) });
            enabled!($attrs multiply_across(p: &Product) { multiply::<$lanes, $rows, 1, SIDE>(p) });
            enabled!($attrs soften(row: &Row) { soften::<$lanes>(row) });
            enabled!($attrs write_row<T: Elem>(from: *const f32, width: usize, factor: f32, to: *mut T) {
                write_row::<$lanes, T>(from, width, factor, to)
            });
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) use enabled;

#[cfg(target_arch = "x86_64")]
kernels!(
    [#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,fma,f16c,bmi2")]]
    super::lanes::avx512::Avx512,
    12,
    [1: 4, 2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1]
);
#[cfg(target_arch = "x86_64")]
kernels!(
    [#[target_feature(enable = "avx2,fma,f16c,bmi2")]]
    super::lanes::avx2::Avx2,
    6,
    [1: 4, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1]
);
kernels!([] super::lanes::portable::Portable, 4, [1: 2, 2: 1, 3: 1, 4: 1]);
