//! Products of integers (wrapping) and bool (`any(a and b)`), which no vector kernel serves: a row block of sums is
//! kept in L1 and the compiler makes vectors of the innermost loop over columns.
//!
//! Does `2 * m * n * k` operations at a few of them a cycle. Must not know of panels.

use super::{Entry, Layout};
use crate::pool;
use lapis_core::dtype::Dtype;

/// The arithmetic of one integer type.
trait Ring: Copy + Sync + 'static {
    const ZERO: Self;
    fn mul_add(self, x: Self, y: Self) -> Self;
    fn axpby(alpha: f64, sum: Self, beta: f64, c: Self) -> Self;
}

macro_rules! ring {
    ($($t:ty),*) => {$(
        impl Ring for $t {
            const ZERO: $t = 0;
            #[inline(always)]
            fn mul_add(self, x: $t, y: $t) -> $t {
                self.wrapping_add(x.wrapping_mul(y))
            }
            fn axpby(alpha: f64, sum: $t, beta: f64, c: $t) -> $t {
                // Through i64, so that a negative factor of an unsigned type wraps as all else does.
                (alpha as i64 as $t).wrapping_mul(sum).wrapping_add((beta as i64 as $t).wrapping_mul(c))
            }
        }
    )*};
}
ring!(u8, u16, u32, u64, i8, i16, i32, i64);

/// One byte, 0 or 1.
#[derive(Clone, Copy)]
struct Bit(u8);

impl Ring for Bit {
    const ZERO: Bit = Bit(0);
    #[inline(always)]
    fn mul_add(self, x: Bit, y: Bit) -> Bit {
        Bit(self.0 | (x.0 & y.0))
    }
    fn axpby(alpha: f64, sum: Bit, beta: f64, c: Bit) -> Bit {
        Bit((alpha != 0.0) as u8 & sum.0 | (beta != 0.0) as u8 & c.0)
    }
}

/// Columns and rows of one task.
const COLS: usize = 256;
const ROWS: usize = 16;
/// Steps of the right side that are copied at a time.
const STEPS: usize = 64;

/// See [`super::gemm_batched`].
pub(super) unsafe fn run(dtype: Dtype, layout: &Layout, entries: &[Entry]) {
    // SAFETY: handed on.
    unsafe {
        match dtype {
            Dtype::Bool => products::<Bit>(layout, entries),
            Dtype::Uint8 => products::<u8>(layout, entries),
            Dtype::Uint16 => products::<u16>(layout, entries),
            Dtype::Uint32 => products::<u32>(layout, entries),
            Dtype::Uint64 => products::<u64>(layout, entries),
            Dtype::Int8 => products::<i8>(layout, entries),
            Dtype::Int16 => products::<i16>(layout, entries),
            Dtype::Int32 => products::<i32>(layout, entries),
            Dtype::Int64 => products::<i64>(layout, entries),
            Dtype::Float16 | Dtype::Float32 | Dtype::Float64 | Dtype::Bfloat16 | Dtype::Complex64 => {
                unreachable!("floats have kernels")
            }
        }
    }
}

unsafe fn products<T: Ring>(layout: &Layout, entries: &[Entry]) {
    let (down, across) = (layout.m.div_ceil(ROWS), layout.n.div_ceil(COLS));
    let tiles = down * across;
    let per_task = (1usize << 17).div_ceil(ROWS.min(layout.m) * COLS.min(layout.n) * layout.k.max(1));
    pool::for_each_chunk(tiles * entries.len(), per_task, &|chunk| {
        for t in chunk {
            let (entry, t) = (&entries[t / tiles], t % tiles);
            // SAFETY: tiles write disjoint parts of the outputs.
            unsafe { tile::<T>(layout, entry, t % down * ROWS, t / down * COLS) };
        }
    });
}

unsafe fn tile<T: Ring>(layout: &Layout, entry: &Entry, row: usize, col: usize) {
    let (rows, cols) = (ROWS.min(layout.m - row), COLS.min(layout.n - col));
    let (a, b) = (entry.a.cast::<T>(), entry.b.cast::<T>());
    let mut sums = [[T::ZERO; COLS]; ROWS];
    let mut panel = vec![[T::ZERO; COLS]; STEPS.min(layout.k)];
    for k0 in (0..layout.k).step_by(STEPS) {
        let steps = STEPS.min(layout.k - k0);
        for (k, line) in panel[..steps].iter_mut().enumerate() {
            for (j, x) in line[..cols].iter_mut().enumerate() {
                // SAFETY: inside b.
                *x = unsafe { *b.offset((k0 + k) as isize * layout.b.0 + (col + j) as isize * layout.b.1) };
            }
        }
        for i in 0..rows {
            for (k, line) in panel[..steps].iter().enumerate() {
                // SAFETY: inside a.
                let x = unsafe { *a.offset((row + i) as isize * layout.a.0 + (k0 + k) as isize * layout.a.1) };
                for (sum, &y) in sums[i][..cols].iter_mut().zip(&line[..cols]) {
                    *sum = sum.mul_add(x, y);
                }
            }
        }
    }
    for i in 0..rows {
        let r = (row + i) as isize;
        for j in 0..cols {
            let c = (col + j) as isize;
            // SAFETY: inside output and `c`.
            unsafe {
                let mut value = sums[i][j];
                if let Some(s) = &layout.scale {
                    let addend = *entry.c.cast::<T>().offset(r * s.c.0 + c * s.c.1);
                    value = T::axpby(s.alpha, value, s.beta, addend);
                }
                *entry.out.cast::<T>().offset(r * layout.out + c) = value;
            }
        }
    }
}
