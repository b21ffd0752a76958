//! Activations as signed bytes with one f32 scale a group, for integer products with packed weights.
//!
//! Each group of a row is scaled by its largest magnitude: `x ~ scale * code`, `|code| <= 127`. A group that holds a NaN
//! or an infinity gets that as its scale, so the result is NaN. Codes stand in the order of the weights' panels, in slabs
//! of 256 columns, so that one step of a product reads them front to back.

#[cfg(target_arch = "x86_64")]
use super::activations_avx512;
use super::codes::unpack_row;
use super::halves;
use super::panel::{DEPTH, FP4_BYTES, FP4_OFFSET, order};
use crate::isa::Isa;
use crate::pool;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use std::cell::Cell;
use std::sync::Mutex;

/// Rows of a matrix in f32, f16 or bf16 (little-endian): `rows` rows of `cols` consecutive elements.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [u8],
    dtype: Dtype,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// `stride` is the distance of rows in elements.
    ///
    /// # Errors
    /// Data too short for the sizes; a dtype that is not f32, f16 or bf16.
    pub fn new(op: &str, data: &'a [u8], dtype: Dtype, rows: usize, cols: usize, stride: usize) -> Result<Rows<'a>> {
        super::format::check_float(op, "x", dtype)?;
        let elements = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
        if data.len() < elements * dtype.size() {
            let have = data.len();
            return Err(Error::shape(format!("[{op}] x has {have} bytes, its shape calls for {elements} elements")));
        }
        Ok(Rows { data, dtype, rows, cols, stride })
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from row to row.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// All bytes from the first row on.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.data
    }

    /// The bytes of row `r`.
    #[inline]
    pub(super) fn row(&self, r: usize) -> &'a [u8] {
        &self.data[r * self.stride * self.dtype.size()..][..self.cols * self.dtype.size()]
    }
}

thread_local! {
    /// The last rows of this thread, whose memory the next ones take.
    static SPARE: Cell<Option<Activations>> = const { Cell::new(None) };
}

/// Quantized rows: for each slab of 256 columns, for each row, its codes; and likewise scales and sums of its groups.
#[derive(Default)]
pub(super) struct Activations {
    pub(super) codes: Vec<i8>,
    /// What a code is worth.
    pub(super) scales: Vec<f32>,
    /// The sum of a group's codes: as f32 (bits) where weights have biases; otherwise negated, times the offset of the
    /// weights' bytes, as an integer to start from.
    pub(super) sums: Vec<i32>,
    pub(super) rows: usize,
    /// Groups of a slab.
    pub(super) groups: usize,
}

impl Activations {
    /// Codes that spare rows may have room for.
    const KEPT: usize = 8 << 20;

    /// Room for `rows` rows of `slabs` slabs of `groups` groups or more, with what was there before.
    fn room(slabs: usize, rows: usize, groups: usize) -> Activations {
        fn grow<T: Copy + Default>(of: &mut Vec<T>, len: usize) {
            if of.len() < len {
                of.resize(len, T::default());
            }
        }
        let Activations { mut codes, mut scales, mut sums, .. } = SPARE.take().unwrap_or_default();
        grow(&mut codes, slabs * rows * DEPTH);
        grow(&mut scales, slabs * rows * groups);
        grow(&mut sums, slabs * rows * groups);
        Activations { codes, scales, sums, rows, groups }
    }

    /// Nobody needs them any more.
    pub(super) fn spare(self) {
        if self.codes.capacity() <= Activations::KEPT {
            SPARE.set(Some(self));
        }
    }
}

/// What the sum of a group's codes is wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum {
    /// To be multiplied by the group's bias.
    Bias,
    /// To take back an offset that was added to every weight.
    Offset(i32),
}

impl Sum {
    /// What is kept of it.
    #[inline(always)]
    pub(super) fn of(self, total: i32) -> i32 {
        match self {
            Sum::Bias => (total as f32).to_bits() as i32,
            Sum::Offset(offset) => -offset * total,
        }
    }
}

/// Elements up to which one thread is as good as several.
const SERIAL: usize = 16 << 10;

/// Quantizes the rows for which `wanted(row)` holds, for weights of `bits` bits in groups of `group`.
pub(super) fn activations(
    isa: Isa,
    x: &Rows,
    bits: usize,
    group: usize,
    sum: Sum,
    wanted: &(dyn Fn(usize) -> bool + Sync),
) -> Activations {
    let (slabs, groups) = (x.cols.div_ceil(DEPTH), DEPTH / group);
    let mut all = Activations::room(slabs, x.rows, groups);
    let Activations { codes, scales, sums, .. } = &mut all;
    let order = order(bits);
    #[cfg(target_arch = "x86_64")]
    let places = activations_avx512::places(&order);
    // A task is a run of rows of one slab: columns and rows from where on, and where the results go.
    let step = (1 << 15) / DEPTH;
    let slab = x.rows.max(1);
    let parts =
        codes.chunks_mut(slab * DEPTH).zip(scales.chunks_mut(slab * groups)).zip(sums.chunks_mut(slab * groups));
    let tasks = parts.take(slabs).enumerate().flat_map(|(slab, ((codes, scales), sums))| {
        let parts = codes.chunks_mut(step * DEPTH).zip(scales.chunks_mut(step * groups));
        let parts = parts.zip(sums.chunks_mut(step * groups)).enumerate();
        parts.map(move |(part, ((codes, scales), sums))| (slab * DEPTH, part * step, codes, scales, sums))
    });
    let work = |(first, row, codes, scales, sums): (usize, usize, &mut [i8], &mut [f32], &mut [i32])| {
        let width = (x.cols - first).min(DEPTH);
        for (r, codes) in codes.as_chunks_mut::<DEPTH>().0.iter_mut().enumerate() {
            if !wanted(row + r) {
                continue;
            }
            let size = x.dtype.size();
            let bytes = &x.row(row + r)[first * size..][..width * size];
            let (scales, sums) = (&mut scales[r * groups..][..groups], &mut sums[r * groups..][..groups]);
            #[cfg(target_arch = "x86_64")]
            if isa == Isa::Avx512
                && activations_avx512::takes(x.dtype, group)
                && let Ok(bytes) = bytes.try_into()
            {
                // SAFETY: the level is present (it was passed).
                unsafe { activations_avx512::quantize(x.dtype, bytes, group, sum, &places, codes, scales, sums) };
                continue;
            }
            if width < DEPTH {
                codes.fill(0);
                scales.fill(0.0);
                sums.fill(0);
            }
            quantize(isa, x.dtype, bytes, group, sum, codes, scales, sums);
            permute(isa, &order, codes);
        }
    };
    if x.rows * x.cols <= SERIAL {
        tasks.for_each(work);
    } else {
        let tasks: Vec<_> = tasks.map(|task| Mutex::new(Some(task))).collect();
        let take = |i: usize| tasks[i].lock().unwrap_or_else(|e| e.into_inner()).take();
        pool::run(tasks.len(), &|i| take(i).into_iter().for_each(work));
    }
    all
}

/// Rows that are packed E2M1 codes already (contiguous, `cols` wide), each code as twice its value, with their decoded
/// scales, for E2M1 weights of the same groups. Products of such rows are exact in every group.
pub(super) fn from_fp4(isa: Isa, packed: &[u8], scales: &[f32], rows: usize, cols: usize, group: usize) -> Activations {
    let (slabs, groups) = (cols.div_ceil(DEPTH), DEPTH / group);
    let mut codes = vec![0i8; slabs * rows * DEPTH];
    let mut slab_scales = vec![0f32; slabs * rows * groups];
    let mut sums = vec![0i32; slabs * rows * groups];
    let order = order(4);
    let mut natural = [0u8; DEPTH];
    for row in 0..rows {
        for slab in 0..slabs {
            let (first, at) = (slab * DEPTH, slab * rows + row);
            let width = (cols - first).min(DEPTH);
            let bytes = &packed[(row * cols + first) / 2..][..width / 2];
            unpack_row(isa, 4, bytes, &mut natural[..width]);
            let Ok(codes) = <&mut [i8; DEPTH]>::try_from(&mut codes[at * DEPTH..][..DEPTH]) else { continue };
            for (code, &byte) in codes.iter_mut().zip(&natural[..width]) {
                *code = (FP4_BYTES[byte as usize & 15] as i32 - FP4_OFFSET) as i8;
            }
            for g in 0..width / group {
                let total: i32 = codes[g * group..][..group].iter().map(|&c| c as i32).sum();
                sums[at * groups + g] = -FP4_OFFSET * total;
                slab_scales[at * groups + g] = 0.5 * scales[(row * cols + first) / group + g];
            }
            permute(isa, &order, codes);
        }
    }
    Activations { codes, scales: slab_scales, sums, rows, groups }
}

versions! {
    pub(super) fn quantize(
        dtype: Dtype,
        bytes: &[u8],
        group: usize,
        sum: Sum,
        codes: &mut [i8; DEPTH],
        scales: &mut [f32],
        sums: &mut [i32],
    ) = quantize_body;
}

#[inline(always)]
fn quantize_body(
    dtype: Dtype,
    bytes: &[u8],
    group: usize,
    sum: Sum,
    codes: &mut [i8; DEPTH],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    let mut values = [0.0f32; DEPTH];
    let width = bytes.len() / dtype.size();
    halves::load_body(dtype, bytes, &mut values[..width]);
    // Loops whose ends are known are unrolled, and do not wait for each other.
    match (group, width) {
        (64, DEPTH) => groups(&values, 64, sum, codes, scales, sums),
        (32, DEPTH) => groups(&values, 32, sum, codes, scales, sums),
        _ => groups(&values[..width], group, sum, codes, scales, sums),
    }
}

#[inline(always)]
fn groups(values: &[f32], group: usize, sum: Sum, codes: &mut [i8; DEPTH], scales: &mut [f32], sums: &mut [i32]) {
    for (i, (values, codes)) in values.chunks(group).zip(codes.chunks_mut(group)).enumerate() {
        // As bits, magnitudes order like integers, and NaN is above everything.
        let largest = f32::from_bits(values.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff)));
        let scale = largest * (1.0 / 127.0);
        let inverse = if scale == 0.0 { 0.0 } else { 127.0 / largest };
        let mut total = 0;
        for (code, x) in codes.iter_mut().zip(values) {
            // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
            *code = (x * inverse + 12582912.0).to_bits() as i8;
            total += *code as i32;
        }
        scales[i] = scale;
        sums[i] = sum.of(total);
    }
}

/// Puts each run of 32 codes in the order of the panels.
pub(super) fn permute(isa: Isa, order: &[u8; 32], codes: &mut [i8; DEPTH]) {
    if order[1] == 1 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: the level is present (it was passed).
        return unsafe { activations_avx512::permute(order, codes) };
    }
    let _ = isa;
    for run in codes.as_chunks_mut::<32>().0 {
        *run = order.map(|from| run[from as usize]);
    }
}
