//! Matrix products of every dtype: one, batched, gathered, with `alpha * a @ b + beta * c`.
//!
//! Floats and complex64 go through packed panels and register-blocked kernels: `micro` (kernels), `pack`
//! (memory to panels), `driver` and `large` (tiles and tasks), `finish` (sums to memory). Integers take the plain way
//! (`plain`).
//! Nothing here knows of arrays or graphs: pointers, sizes and strides in elements.
//!
//! Every element of the output is one sum over k in ascending order in one accumulator (f32 for halves and complex64,
//! f64 for float64), rounded once. Tiles are cut along rows and columns only. So the bits of a row depend neither on the
//! number of rows nor on batch, strides, grouping or threads. They may differ between instruction sets.

mod complex;
pub(crate) mod driver;
pub(crate) mod finish;
mod large;
pub(crate) mod micro;
pub(crate) mod pack;
mod plain;
mod scratch;
pub(crate) mod stream;

use crate::isa::{self, Isa};
use driver::{Along, Product};
use finish::{Finish, Target};
use lapis_core::dtype::{Dtype, bf16, f16};
use micro::{Ahead, Arith, F32, F64};
use pack::{Lanes, Pack};
use smallvec::SmallVec;
use std::any::TypeId;
use std::marker::PhantomData;
use std::ops::Range;

/// A matrix to read: first element and strides in elements, of any sign and zero.
#[derive(Clone, Copy, Debug)]
pub struct MatRef {
    /// First element.
    pub ptr: *const u8,
    /// From one row to the next.
    pub rs: isize,
    /// From one column to the next.
    pub cs: isize,
}

/// A matrix to write: contiguous columns, row stride in elements.
#[derive(Clone, Copy, Debug)]
pub struct MatMut {
    /// First element.
    pub ptr: *mut u8,
    /// From one row to the next.
    pub rs: isize,
}

/// What becomes of the sums.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue {
    /// `a @ b`
    Store,
    /// `alpha * a @ b + beta * c`, computed in the accumulator's type and rounded once. `c` may be the output itself.
    /// The factors are used as f32 unless the dtype is float64.
    Axpby {
        /// Factor of the product.
        alpha: f64,
        /// Factor of `c`.
        beta: f64,
        /// Same size as the output.
        c: MatRef,
    },
}

/// One product of a batch: its first elements. `c` is read with [`Scale`] only.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Left matrix.
    pub a: *const u8,
    /// Right matrix.
    pub b: *const u8,
    /// Output.
    pub out: *mut u8,
    /// What is added.
    pub c: *const u8,
}

// SAFETY: four addresses; every use of them is an unsafe act with its own argument.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

/// The geometry that all entries of a batch share: (row stride, column stride) in elements, columns of the output
/// contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Rows of the output.
    pub m: usize,
    /// Columns of the output.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Strides of `a`, m x k.
    pub a: (isize, isize),
    /// Strides of `b`, k x n.
    pub b: (isize, isize),
    /// Row stride of the output, m x n.
    pub out: isize,
    /// `alpha * a @ b + beta * c` instead of `a @ b`.
    pub scale: Option<Scale>,
}

/// See [`Epilogue::Axpby`].
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Factor of the product.
    pub alpha: f64,
    /// Factor of `c`.
    pub beta: f64,
    /// Strides of `c`, m x n.
    pub c: (isize, isize),
}

/// `out = a @ b` (or [`Epilogue::Axpby`]): `a` m x k, `b` k x n, all of one dtype. k = 0 gives zeros.
///
/// # Safety
/// All elements must be readable, those of the output writable and used by nobody else; the output may overlap `c` only
/// if it is `c`, and neither `a` nor `b`. `isa` must be available on this machine.
pub unsafe fn gemm(
    isa: Isa,
    dtype: Dtype,
    m: usize,
    n: usize,
    k: usize,
    a: MatRef,
    b: MatRef,
    out: MatMut,
    epilogue: Epilogue,
) {
    let (scale, c) = match epilogue {
        Epilogue::Store => (None, std::ptr::null()),
        Epilogue::Axpby { alpha, beta, c } => (Some(Scale { alpha, beta, c: (c.rs, c.cs) }), c.ptr),
    };
    let layout = Layout { m, n, k, a: (a.rs, a.cs), b: (b.rs, b.cs), out: out.rs, scale };
    // SAFETY: handed on.
    unsafe { gemm_batched(isa, dtype, &layout, &[Entry { a: a.ptr, b: b.ptr, out: out.ptr, c }]) }
}

/// A batch of products of one geometry, in one parallel region unless they are large. Entries with the same right side
/// (an expert's weights in a gathered product, a broadcast matrix) are computed as one product of all their rows,
/// wherever they stand in the list: `gather_mm` is this function with `a` and `b` of each entry looked up.
///
/// # Safety
/// As for [`gemm`], for every entry; outputs must not overlap.
pub unsafe fn gemm_batched(isa: Isa, dtype: Dtype, layout: &Layout, entries: &[Entry]) {
    // SAFETY: handed on.
    unsafe { gemm_batched_with(isa, isa::features().fast_bf16_dot, dtype, layout, entries) }
}

/// [`gemm_batched`] with the choice whether bfloat16 is multiplied by `vdpbf16ps` (which rounds every pair of products
/// and takes subnormals as zero) or as f32.
unsafe fn gemm_batched_with(isa: Isa, bf16_dot: bool, dtype: Dtype, layout: &Layout, entries: &[Entry]) {
    if layout.m == 0 || layout.n == 0 || entries.is_empty() {
        return;
    }
    // SAFETY: handed on.
    unsafe {
        match dtype {
            Dtype::Float32 => run::<F32, f32>(isa, layout, entries),
            Dtype::Float64 => run::<F64, f64>(isa, layout, entries),
            Dtype::Float16 => run::<F32, f16>(isa, layout, entries),
            #[cfg(target_arch = "x86_64")]
            Dtype::Bfloat16 if bf16_dot && isa == Isa::Avx512 => run::<micro::Dot, bf16>(isa, layout, entries),
            Dtype::Bfloat16 => run::<F32, bf16>(isa, layout, entries),
            Dtype::Complex64 => complex::run(isa, layout, entries),
            _ => plain::run(dtype, layout, entries),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bf16_dot;
}

/// The geometry inside: the output has a column stride too, so that a product can be turned over.
#[derive(Clone, Copy)]
struct Geometry {
    m: usize,
    n: usize,
    k: usize,
    a: (isize, isize),
    b: (isize, isize),
    out: (isize, isize),
    scale: Option<Scale>,
}

/// Columns up to which `a @ b` is computed as the transpose of `b.T @ a.T`: a vector of columns would be mostly empty.
const NARROW: usize = 8;

impl Geometry {
    /// The geometry of `layout`, and whether left and right have changed places (never unless `may_flip`).
    fn new(layout: &Layout, may_flip: bool) -> (Geometry, bool) {
        let &Layout { m, n, k, a, b, out, scale } = layout;
        let flip = |(r, c): (isize, isize)| (c, r);
        if !may_flip || n > NARROW || m <= n {
            return (Geometry { m, n, k, a, b, out: (out, 1), scale }, false);
        }
        let scale = scale.map(|s| Scale { c: flip(s.c), ..s });
        // A single column of a compact output is a contiguous row.
        (Geometry { m: n, n: m, k, a: flip(b), b: flip(a), out: (1, out), scale }, true)
    }
}

/// Entries sorted so that equal right sides are neighbours, left and right in the roles that `flipped` gives them.
fn grouped(entries: &[Entry], flipped: bool) -> SmallVec<[Entry; 4]> {
    let mut all = SmallVec::<[Entry; 4]>::from_slice(entries);
    if flipped {
        all.iter_mut().for_each(|e| (e.a, e.b) = (e.b, e.a));
    }
    if !all.is_sorted_by_key(|e| e.b) {
        all.sort_by_key(|e| e.b);
    }
    all
}

/// The rows of all `rows` entries times their common right side.
struct Group<'a, E> {
    g: &'a Geometry,
    rows: &'a [Entry],
    element: PhantomData<fn() -> E>,
}

unsafe fn run<M: Arith, E: Pack<M> + Finish<M::A>>(isa: Isa, layout: &Layout, entries: &[Entry]) {
    let (g, flipped) = Geometry::new(layout, true);
    let entries = grouped(entries, flipped);
    let jobs: SmallVec<[_; 4]> =
        entries.chunk_by(|x, y| x.b == y.b).map(|rows| Group::<E> { g: &g, rows, element: PhantomData }).collect();
    // SAFETY: handed on.
    unsafe { driver::run::<M>(isa, &jobs) }
}

impl<E> Group<'_, E> {
    /// Entry and row within it of row `r`.
    fn row(&self, r: usize) -> (&Entry, isize) {
        (&self.rows[r / self.g.m], (r % self.g.m) as isize)
    }
}

/// `count` lanes whose addresses `at` tells, the rest as the first.
pub(crate) fn lanes<E>(count: usize, at: impl Fn(usize) -> *const E) -> Lanes<E> {
    let mut all = [at(0); micro::MAX_COLS];
    for l in 1..count {
        all[l] = at(l);
    }
    all
}

/// A part of a matrix, of two axes (length, stride), one of them contiguous.
fn ahead<E>(first: *const E, lanes: (usize, isize), k: (usize, isize)) -> Ahead {
    let size = size_of::<E>();
    match (lanes, k) {
        ((count, stride), (len, 1)) | ((len, 1), (count, stride)) => {
            Ahead::new(first, count, len * size, stride * size as isize)
        }
        _ => Ahead::NOTHING,
    }
}

impl<M: Arith, E: Pack<M> + Finish<M::A>> Product<M> for Group<'_, E> {
    fn size(&self) -> (usize, usize, usize) {
        (self.rows.len() * self.g.m, self.g.n, self.g.k)
    }

    fn streams(&self) -> Option<Along> {
        match self.g.b {
            (1, _) => Some(Along::K),
            (_, 1) => Some(Along::N),
            _ => None,
        }
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn stream_columns(&self, isa: Isa, mr: usize, lane: usize, count: usize, a: *const M::P, acc: *mut M::A) {
        let cs = self.g.b.1;
        // SAFETY: columns inside the matrix.
        unsafe {
            let base = self.rows[0].b.cast::<E>();
            let lanes = lanes(count, |l| base.offset((lane + l) as isize * cs));
            let width = M::blocks(isa).lanes * stream::column_vectors(isa, mr);
            E::stream_columns(isa, mr, &lanes, width as isize * cs, self.g.k, a, acc);
        }
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn stream_rows(
        &self,
        isa: Isa,
        mr: usize,
        lane: usize,
        count: usize,
        ks: Range<usize>,
        a: *const M::P,
        acc: *mut M::A,
    ) {
        let rs = self.g.b.0;
        // SAFETY: a block inside the matrix.
        unsafe {
            let b = self.rows[0].b.cast::<E>().offset(ks.start as isize * rs).add(lane);
            E::stream_rows(isa, mr, b, rs, ks.len(), count, a, acc, ks.start == 0);
        }
    }

    fn lhs_is_transposed(&self) -> bool {
        self.rows.len() == 1 && self.g.a.0 == 1 && self.g.a.1 != 1
    }

    unsafe fn pack_lhs(&self, isa: Isa, lane: usize, count: usize, w: usize, ks: Range<usize>, dst: *mut M::P) {
        let (rs, cs) = self.g.a;
        let start = ks.start as isize * cs;
        // SAFETY: rows and steps inside the matrices.
        unsafe {
            if count > w {
                let first = self.rows[0].a.cast::<E>().add(lane).offset(start);
                return E::copy(isa, first, cs, ks.len(), count, w, dst);
            }
            let lanes = lanes(count, |l| {
                let (entry, row) = self.row(lane + l);
                entry.a.cast::<E>().offset(row * rs + start)
            });
            let one_entry = lane % self.g.m + count <= self.g.m;
            pack::pack::<M, E>(isa, &lanes, rs == 1 && one_entry, cs, ks.len(), count, w, dst);
        }
    }

    unsafe fn pack_rhs(&self, isa: Isa, lane: usize, count: usize, w: usize, ks: Range<usize>, dst: *mut M::P) {
        let (rs, cs) = self.g.b;
        // SAFETY: columns and steps inside the matrix.
        unsafe {
            let base = self.rows[0].b.cast::<E>().offset(ks.start as isize * rs);
            let lanes = lanes(count, |l| base.offset((lane + l) as isize * cs));
            pack::pack::<M, E>(isa, &lanes, cs == 1, rs, ks.len(), count, w, dst);
        }
    }

    fn lhs_ahead(&self, rows: Range<usize>, ks: Range<usize>) -> Ahead {
        let one_entry = !rows.is_empty() && rows.start % self.g.m + rows.len() <= self.g.m;
        if one_entry {
            let (entry, row) = self.row(rows.start);
            let (rs, cs) = self.g.a;
            let first = entry.a.cast::<E>().wrapping_offset(row * rs + ks.start as isize * cs);
            return ahead(first, (rows.len(), rs), (ks.len(), cs));
        }
        Ahead::NOTHING
    }

    fn rhs_ahead(&self, cols: Range<usize>, ks: Range<usize>) -> Ahead {
        let (rs, cs) = self.g.b;
        let first = self.rows[0].b.cast::<E>().wrapping_offset(cols.start as isize * cs + ks.start as isize * rs);
        ahead(first, (cols.len(), cs), (ks.len(), rs))
    }

    fn sums(&self, rows: &Range<usize>, cols: &Range<usize>) -> Option<(*mut M::A, usize)> {
        let (entry, row) = self.row(rows.start);
        let (rs, cs) = self.g.out;
        let plain = cs == 1 && rs >= 0 && self.g.scale.is_none() && TypeId::of::<E>() == TypeId::of::<M::A>();
        let one_entry = row as usize + rows.len() <= self.g.m;
        let first = entry.out.cast::<M::A>().wrapping_offset(row * rs + cols.start as isize);
        (plain && one_entry).then_some((first, rs as usize))
    }

    fn want(&self, rows: Range<usize>, cols: Range<usize>) {
        let (rs, cs) = self.g.out;
        if cs == 1 {
            for r in rows {
                let (entry, row) = self.row(r);
                let first = entry.out.cast::<E>().wrapping_offset(row * rs).wrapping_add(cols.start);
                for at in (0..cols.len() * size_of::<E>()).step_by(64) {
                    pack::prefetch(first.cast::<u8>().wrapping_add(at));
                }
            }
        }
    }

    unsafe fn put(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, acc: *const M::A, ld: usize) {
        let (rs, cs) = self.g.out;
        let (col, m) = (cols.start as isize, self.g.m);
        let mut r = rows.start;
        while r < rows.end {
            let (entry, row) = self.row(r);
            let count = (rows.end - r).min(m - r % m);
            // SAFETY: the block lies inside output and `c`.
            unsafe {
                let out = entry.out.cast::<E>().offset(row * rs + col * cs);
                let (c, scale) = match &self.g.scale {
                    None => ((std::ptr::null(), 0, 0), None),
                    Some(Scale { alpha, beta, c: (c_rs, c_cs) }) => {
                        let c = entry.c.cast::<E>().offset(row * c_rs + col * c_cs);
                        ((c, *c_rs, *c_cs), Some((*alpha, *beta)))
                    }
                };
                let target = Target { out: (out, rs, cs), c, scale };
                target.put(isa, acc.add((r - rows.start) * ld), ld, count, cols.len());
            }
            r += count;
        }
    }
}

#[cfg(test)]
mod tests;
