//! Matrix-product ops onto [`crate::gemm`]: which matrices, where they lie, nothing of how they are multiplied.
//!
//! Moves no elements itself: transposed, broadcast and strided operands go to the products as they are, and a batch is
//! one call, in which entries with one right side become one tall product.

use crate::gemm::{self, Entry, Layout, MatMut, MatRef, Scale};
use crate::isa::isa;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use lapis_core::ops::matmul::AddMM;
use smallvec::SmallVec;

/// Positions of all elements of a strided array in row-major order, in elements.
pub(crate) fn offsets(shape: &[usize], strides: &[isize]) -> SmallVec<[isize; 4]> {
    let mut out = SmallVec::from_slice(&[0]);
    for (&d, &s) in shape.iter().zip(strides) {
        out = out.iter().flat_map(|&o: &isize| (0..d as isize).map(move |i| o + i * s)).collect();
    }
    out
}

/// A batch of matrices in memory.
struct Matrices {
    ptr: *const u8,
    /// Bytes from the first element to each matrix.
    at: SmallVec<[isize; 4]>,
    rows: usize,
    columns: usize,
    strides: (isize, isize),
}

impl Matrices {
    fn new(t: &Tensor) -> Matrices {
        let lead = t.shape.len() - 2;
        let size = t.dtype.size() as isize;
        Matrices {
            ptr: t.ptr(),
            at: offsets(&t.shape[..lead], &t.strides[..lead]).into_iter().map(|o| o * size).collect(),
            rows: t.shape[lead],
            columns: t.shape[lead + 1],
            strides: (t.strides[lead], t.strides[lead + 1]),
        }
    }

    /// First element of matrix `i`.
    fn get(&self, i: usize) -> *const u8 {
        self.ptr.wrapping_offset(self.at[i])
    }
}

fn layout(a: &Matrices, b: &Matrices, scale: Option<Scale>) -> Layout {
    let (m, n) = (a.rows, b.columns);
    Layout { m, n, k: a.columns, a: a.strides, b: b.strides, out: n as isize, scale }
}

/// `a @ b`, batch by batch.
pub(crate) fn matmul(inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    let (a, b, o) = (Matrices::new(&inputs[0]), Matrices::new(&inputs[1]), Matrices::new(out));
    let entry = |i| Entry { a: a.get(i), b: b.get(i), out: o.get(i).cast_mut(), c: std::ptr::null() };
    let entries: SmallVec<[Entry; 4]> = (0..o.at.len()).map(entry).collect();
    // SAFETY: the op's inference gave `out` the size of the product; tensors lie inside their buffers and outputs
    // belong to this call alone; `isa()` is available.
    unsafe { gemm::gemm_batched(isa(), out.dtype, &layout(&a, &b, None), &entries) };
    Ok(())
}

/// `alpha * a @ b + beta * c`, batch by batch; inputs c, a, b.
pub(crate) fn addmm(op: &AddMM, inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    let (c, a, b) = (Matrices::new(&inputs[0]), Matrices::new(&inputs[1]), Matrices::new(&inputs[2]));
    let o = Matrices::new(out);
    let entry = |i| Entry { a: a.get(i), b: b.get(i), out: o.get(i).cast_mut(), c: c.get(i) };
    let entries: SmallVec<[Entry; 4]> = (0..o.at.len()).map(entry).collect();
    let scale = Scale { alpha: op.alpha.0, beta: op.beta.0, c: c.strides };
    // SAFETY: as in `matmul`; c has the shape of the output.
    unsafe { gemm::gemm_batched(isa(), out.dtype, &layout(&a, &b, Some(scale)), &entries) };
    Ok(())
}

/// `a[lhs] @ b[rhs]` for every pair of indices; inputs a, b, lhs, rhs.
pub(crate) fn gather_mm(inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    let (a, b, o) = (Matrices::new(&inputs[0]), Matrices::new(&inputs[1]), Matrices::new(out));
    let lhs = indices("gather_mm", "lhs", &inputs[2], a.at.len())?;
    let rhs = indices("gather_mm", "rhs", &inputs[3], b.at.len())?;
    let entry = |i: usize| {
        let (a, b) = (a.get(lhs[i]), b.get(rhs[i]));
        Entry { a, b, out: o.get(i).cast_mut(), c: std::ptr::null() }
    };
    let entries: SmallVec<[Entry; 4]> = (0..o.at.len()).map(entry).collect();
    // SAFETY: as in `matmul`; the indices were checked against the batches.
    unsafe { gemm::gemm_batched(isa(), out.dtype, &layout(&a, &b, None), &entries) };
    Ok(())
}

/// `a[:, s..e] @ b[s..e, :]` for every segment; inputs a, b, segments.
pub(crate) fn segmented_mm(inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    let (a, b, o) = (Matrices::new(&inputs[0]), Matrices::new(&inputs[1]), Matrices::new(out));
    let bounds = integers(&inputs[2]);
    let size = out.dtype.size() as isize;
    for (i, segment) in bounds.chunks_exact(2).enumerate() {
        let (start, end) = (segment[0], segment[1]);
        if start < 0 || end > a.columns as i128 {
            let k = a.columns;
            return Err(Error::index(format!(
                "[segmented_mm] segment {i}, {start} to {end}, reaches outside 0 to {k}"
            )));
        }
        let k = (end - start).max(0) as usize;
        let start = start as isize * size * isize::from(k > 0);
        let left = MatRef { ptr: a.ptr.wrapping_offset(start * a.strides.1), rs: a.strides.0, cs: a.strides.1 };
        let right = MatRef { ptr: b.ptr.wrapping_offset(start * b.strides.0), rs: b.strides.0, cs: b.strides.1 };
        let to = MatMut { ptr: o.get(i).cast_mut(), rs: o.columns as isize };
        // SAFETY: the segment lies inside both matrices; the output as in `matmul`.
        unsafe {
            gemm::gemm(isa(), out.dtype, o.rows, o.columns, k, left, right, to, gemm::Epilogue::Store);
        }
    }
    Ok(())
}

/// The values of an integer array in row-major order.
fn integers(t: &Tensor) -> Vec<i128> {
    let at = offsets(&t.shape, &t.strides);
    let bytes = t.buffer.bytes();
    macro_rules! read {
        ($($dtype:ident $t:ty),*) => {
            match t.dtype {
                $(Dtype::$dtype => {
                    let get = |o: isize| {
                        let first = (t.offset as isize + o * size_of::<$t>() as isize) as usize;
                        i128::from(bytemuck::pod_read_unaligned::<$t>(&bytes[first..first + size_of::<$t>()]))
                    };
                    at.into_iter().map(get).collect()
                })*
                _ => Vec::new(),
            }
        };
    }
    read!(Uint8 u8, Uint16 u16, Uint32 u32, Uint64 u64, Int8 i8, Int16 i16, Int32 i32, Int64 i64)
}

/// Flat positions in a batch of `count` matrices.
fn indices(op: &str, side: &str, t: &Tensor, count: usize) -> Result<Vec<usize>> {
    let checked = |v: i128| {
        let inside = usize::try_from(v).ok().filter(|&i| i < count);
        let text = || format!("[{op}] {side} index {v} is out of range for a batch of {count} matrices");
        inside.ok_or_else(|| Error::index(text()))
    };
    integers(t).into_iter().map(checked).collect()
}
