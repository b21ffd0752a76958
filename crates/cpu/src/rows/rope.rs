//! Rotary position embedding. Moves x and the result once, x with whatever strides its leading axes have; 6 operations
//! a pair of features. Angles are made once a position in f64, so that they are right at any position, and shared by
//! all heads; the tables of the last calls are kept, because the layers of a model ask for the same one.

use super::{Elem, Shared, by_dtype, grain};
use crate::lines::Lines;
use crate::pool;
use crate::simd::{self, Kernel, LANES32, Simd, Vector};
use crate::tape::{Dense, contiguous};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::{Dtype, bf16, f16};
use lapis_core::error::Result;
use lapis_core::ops::fast::rope::Rope;
use std::sync::{Arc, Mutex, PoisonError};

/// Rotates the first `dims` features of every row.
pub(crate) fn rope(op: &Rope, inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    let offsets = contiguous(&inputs[1])?;
    let offsets: Vec<i64> = bytemuck::pod_collect_to_vec(offsets.contiguous_bytes());
    let x = &inputs[0];
    let nd = x.shape.len();
    let (batch, steps, features) = (x.shape[0], x.shape[nd - 2], x.shape[nd - 1]);
    if out.size() == 0 {
        return Ok(());
    }
    let x = if x.strides[nd - 1] == 1 { Dense::Here(x) } else { contiguous(x)? };
    // Rows that share an offset.
    let rows = out.size() / features / if offsets.len() > 1 { batch } else { 1 };
    let turn = Turn::new(op, x.dtype, offsets, steps, inputs.get(2))?;
    let lines = Lines::new(&x, nd - 1);
    let (to, size) = (Shared(out.ptr()), x.dtype.size());
    // Where the heads of a position lie side by side, one position after the other: in the order of memory, and of angles.
    let heads = if x.strides[nd - 2] > x.strides[nd - 3] { x.shape[nd - 3] } else { 1 };
    let each = if heads > 1 { 4 * grain(features) } else { grain(features) };
    pool::for_each_chunk(out.size() / features, each, &|range| {
        for i in range {
            let (line, position, head) = (i / (heads * steps), i / heads % steps, i % heads);
            let row = (line * heads + head) * steps + position;
            let from = match size {
                8 => lines.start::<f64>(row).cast(),
                4 => lines.start::<f32>(row).cast(),
                _ => lines.start::<f16>(row).cast::<u8>(),
            };
            // SAFETY: the row lies in both tensors; tasks write different rows.
            unsafe { turn.row(row / rows * steps + row % steps, from, to.at(row * features * size), features) };
        }
    });
    Ok(())
}

/// What turns rows: of angles made once.
pub(crate) struct Turn {
    dims: usize,
    dtype: Dtype,
    factors: Factors,
}

enum Factors {
    Single(Arc<Table>),
    Double { angles: Vec<(f64, f64)>, traditional: bool },
}

impl Turn {
    /// For rows of a dtype at `offsets`, and `steps - 1` positions after each.
    ///
    /// # Errors
    /// Memory.
    pub(crate) fn new(
        op: &Rope,
        dtype: Dtype,
        offsets: Vec<i64>,
        steps: usize,
        freqs: Option<&Tensor>,
    ) -> Result<Turn> {
        let freqs = freqs.map(contiguous).transpose()?;
        let angles = Angles {
            dims: op.dims,
            base: op.base.map_or(10000.0, |b| b.0).to_bits(),
            freqs: freqs.map(|f| bytemuck::pod_collect_to_vec(f.contiguous_bytes())),
            scale: op.scale.0.to_bits(),
            offsets,
            steps,
        };
        let factors = match dtype {
            Dtype::Float64 => Factors::Double { angles: angles.compute(), traditional: op.traditional },
            _ => Factors::Single(table(angles, dtype, op.traditional)),
        };
        Ok(Turn { dims: op.dims, dtype, factors })
    }

    /// Turns a row of `features` by angle number `angle`: `steps` of the first offset, then of the next. `y` may be `x`.
    ///
    /// # Safety
    /// The angle exists; the row can be read at `x` and written at `y`, which is `x` or apart from it.
    pub(crate) unsafe fn row(&self, angle: usize, x: *const u8, y: *mut u8, features: usize) {
        let dims = self.dims;
        match &self.factors {
            Factors::Single(table) => {
                let own = &table.factors[angle * 2 * dims..][..2 * dims];
                let turn = Row { x, y, own, traditional: table.traditional, features };
                by_dtype!(self.dtype, turn_row(turn), ());
            }
            Factors::Double { angles, traditional } => {
                let half = dims / 2;
                let (x, y) = (x.cast::<f64>(), y.cast::<f64>());
                // SAFETY: the caller's promises.
                unsafe {
                    for (j, &(cos, sin)) in angles[angle * half..][..half].iter().enumerate() {
                        let (a, b) = if *traditional { (2 * j, 2 * j + 1) } else { (j, j + half) };
                        let (p, q) = (*x.add(a), *x.add(b));
                        *y.add(a) = p * cos - q * sin;
                        *y.add(b) = p * sin + q * cos;
                    }
                    y.add(dims).copy_from(x.add(dims), features - dims);
                }
            }
        }
    }
}

struct Row<'a> {
    x: *const u8,
    y: *mut u8,
    own: &'a [f32],
    traditional: bool,
    features: usize,
}

fn turn_row<T: Elem>(row: Row<'_>) {
    let Row { own, traditional, features, .. } = row;
    let (x, y, dims) = (row.x.cast::<T>(), row.y.cast::<T>(), own.len() / 2);
    simd::dispatch(Rotate { x, y, own, traditional });
    // SAFETY: `Turn::row` is told that the row can be read and written.
    unsafe { y.add(dims).copy_from(x.add(dims), features - dims) };
}

/// Everything that angles depend on; numbers that are compared are bits.
#[derive(Clone, PartialEq)]
struct Angles {
    dims: usize,
    base: u64,
    /// Bits of f32, one a pair, in place of `base`.
    freqs: Option<Vec<u32>>,
    scale: u64,
    offsets: Vec<i64>,
    steps: usize,
}

impl Angles {
    /// Cosine and sine of every (offset, step, pair).
    fn compute(&self) -> Vec<(f64, f64)> {
        let half = self.dims / 2;
        let frequency = |j: usize| match &self.freqs {
            Some(freqs) => 1.0 / f64::from(f32::from_bits(freqs[j])),
            None => libm::pow(f64::from_bits(self.base), -2.0 * j as f64 / self.dims as f64),
        };
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        let scale = f64::from_bits(self.scale);
        let mut table = vec![(0.0, 0.0); self.offsets.len() * self.steps * half];
        pool::for_each_chunk_mut(&mut table, 16 * half, &|first, part| {
            for (i, slot) in part.iter_mut().enumerate() {
                let (row, j) = ((first + i) / half, (first + i) % half);
                let position = self.offsets[row / self.steps] as f64 + (row % self.steps) as f64;
                let (sin, cos) = libm::sincos(position * scale * frequencies[j]);
                *slot = (cos, sin);
            }
        });
        table
    }
}

/// Factors of a row's features for every (offset, step), rounded to the dtype of x: `dims` of the feature itself, then
/// `dims` of its partner. Features of a pair lie side by side if `traditional`, else half a row apart.
struct Table {
    angles: Angles,
    dtype: Dtype,
    traditional: bool,
    factors: Vec<f32>,
}

/// Tables of so many calls are kept, if they have no more than `LONGEST` factors: 16 MiB at most.
const KEPT: usize = 4;
const LONGEST: usize = 1 << 20;
static LATEST: Mutex<Vec<Arc<Table>>> = Mutex::new(Vec::new());

/// The table, from a former call or made now. No lock is held while it is made: threads that want the same one at the
/// same time each make it.
fn table(angles: Angles, dtype: Dtype, traditional: bool) -> Arc<Table> {
    let latest = || LATEST.lock().unwrap_or_else(PoisonError::into_inner);
    let fits = |t: &Arc<Table>| t.dtype == dtype && t.traditional == traditional && t.angles == angles;
    if let Some(found) = latest().iter().find(|t| fits(t)) {
        return found.clone();
    }
    let round = |x: f64| match dtype {
        Dtype::Float16 => f16::from_f32(x as f32).to_f32(),
        Dtype::Bfloat16 => bf16::from_f32(x as f32).to_f32(),
        _ => x as f32,
    };
    let (dims, half) = (angles.dims, angles.dims / 2);
    let values = angles.compute();
    let mut factors = vec![0.0; values.len() * 4];
    for (row, values) in factors.chunks_exact_mut(2 * dims).zip(values.chunks_exact(half)) {
        for (j, &(cos, sin)) in values.iter().enumerate() {
            let (a, b) = if traditional { (2 * j, 2 * j + 1) } else { (j, j + half) };
            let (cos, sin) = (round(cos), round(sin));
            (row[a], row[b]) = (cos, cos);
            (row[dims + a], row[dims + b]) = (-sin, sin);
        }
    }
    let made = Arc::new(Table { angles, dtype, traditional, factors });
    if made.factors.len() <= LONGEST {
        let mut latest = latest();
        latest.insert(0, made.clone());
        latest.truncate(KEPT);
    }
    made
}

/// One row: each feature times its own factor plus its partner times the other.
struct Rotate<'a, T> {
    x: *const T,
    y: *mut T,
    own: &'a [f32],
    traditional: bool,
}

impl<T: Elem> Kernel for Rotate<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let dims = self.own.len() / 2;
        let (own, other) = (self.own.as_ptr(), self.own[dims..].as_ptr());
        let half = dims / 2;
        // SAFETY: whoever made this vouches for `dims` features; there are as many factors of each kind.
        unsafe {
            if self.traditional {
                for at in (0..dims).step_by(LANES32) {
                    let n = LANES32.min(dims - at);
                    let x = T::load(s, self.x.add(at), n);
                    let mut swapped = [0.0; LANES32];
                    x.store(swapped.as_mut_ptr());
                    for pair in swapped.as_chunks_mut::<2>().0 {
                        pair.swap(0, 1);
                    }
                    let partner = S::F32::load(s, swapped.as_ptr());
                    let y = x * f32::load(s, own.add(at), n) + partner * f32::load(s, other.add(at), n);
                    T::store(s, self.y.add(at), n, y);
                }
            } else {
                for at in (0..half).step_by(LANES32) {
                    let n = LANES32.min(half - at);
                    let (cos, sin) = (f32::load(s, own.add(at), n), f32::load(s, other.add(half + at), n));
                    let (a, b) = (T::load(s, self.x.add(at), n), T::load(s, self.x.add(half + at), n));
                    T::store(s, self.y.add(at), n, a * cos - b * sin);
                    T::store(s, self.y.add(half + at), n, a * sin + b * cos);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn angles(base: f64, offset: i64, steps: usize) -> Angles {
        Angles { dims: 8, base: base.to_bits(), freqs: None, scale: 1f64.to_bits(), offsets: vec![offset, 3], steps }
    }

    #[test]
    fn every_thread_gets_its_own_angles_from_the_shared_tables() {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for i in 0..200 {
                        let (base, offset) = (100.0 + f64::from(thread % 2), i / 3 % 7);
                        let table = table(angles(base, offset, 5), Dtype::Float32, thread == 3);
                        // Row (offset, step 4), pair 1: features 2 and 3 if traditional, else 1 and 5.
                        let (sin, cos) = ((offset + 4) as f64 / base.powf(0.25)).sin_cos();
                        let (a, b) = if thread == 3 { (2, 3) } else { (1, 5) };
                        let row = &table.factors[4 * 16..5 * 16];
                        for (got, want) in [(row[a], cos), (row[b], cos), (row[8 + a], -sin), (row[8 + b], sin)] {
                            assert!((f64::from(got) - want).abs() < 1e-7, "{got} in place of {want}");
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn few_and_short_tables_are_kept() {
        for offset in 0..20 {
            table(angles(10.0, offset, 1), Dtype::Float16, false);
        }
        table(angles(10.0, 0, LONGEST / 16), Dtype::Float16, false);
        let latest = LATEST.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(latest.len() <= KEPT && latest.iter().all(|t| t.factors.len() <= LONGEST));
    }
}
