//! What becomes of products before they are results: a fused group of elementwise ops over the rows and columns whose sums a task
//! has just made, so that they never go to memory. A gated product's two sides are a third of what its layer would write.
//!
//! Sums are rounded first as results are: the bits are those of one step after the other.

use super::halves;
use super::panel::COLUMNS;
use super::qmm::{Product, Scratch};
use super::tasks::{TASK_ROWS, Task};
use crate::tape::{Program, with_scratch};
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use lapis_core::schedule::tape::Tape;
use smallvec::SmallVec;

/// Where an input of the group comes from.
pub enum Source<'a> {
    /// The n-th product.
    Product(usize),
    /// Contiguous values, of as many rows and columns as the result.
    Values(&'a [u8]),
}

/// A fused group whose inputs and result are of one half-precision dtype.
pub struct Tail<'a> {
    program: Program<'a>,
    consts: &'a [u64],
    sources: SmallVec<[Source<'a>; 4]>,
}

impl<'a> Tail<'a> {
    /// One source for each input of `tape`.
    pub(crate) fn new(tape: &'a Tape, consts: &'a [u64], sources: SmallVec<[Source<'a>; 4]>) -> Tail<'a> {
        assert_eq!(tape.inputs.len(), sources.len());
        Tail { program: Program::of_wide(tape), consts, sources }
    }

    /// # Errors
    /// A source beyond `products`, or values of other sizes than a result of `bytes`.
    pub(super) fn check(&self, products: usize, bytes: usize) -> Result<()> {
        let fits = |source: &Source| match source {
            Source::Product(p) => *p < products,
            Source::Values(values) => values.len() == bytes,
        };
        if products == 0 || !self.sources.iter().all(fits) {
            let text = format!("[quantized_matmul] a fused group of other things than {products} products");
            return Err(Error::shape(text));
        }
        Ok(())
    }

    /// The blocks of a task, which all of `parts` have: each one's sums, and the group of them. Rows of the result follow each other.
    pub(super) fn run(&self, parts: &[Product], task: &Task, scratch: &mut Scratch) {
        let (elements, last) = (self.program.tile() / COLUMNS * COLUMNS, parts.len() - 1);
        let mut earlier = std::mem::take(&mut scratch.earlier);
        earlier.resize(last * TASK_ROWS, [0.0; COLUMNS]);
        with_scratch(self.program.scratch_bytes(elements), |memory| {
            for block in task.blocks.clone() {
                for (i, part) in parts.iter().enumerate() {
                    let then = match parts.get(i + 1) {
                        Some(next) => Some((next.w, block)),
                        None => Some((parts[0].w, block + 1)).filter(|next| next.1 < task.blocks.end),
                    };
                    part.sum(task, block, then, scratch);
                    if i < last {
                        let to = &mut earlier[i * TASK_ROWS..][..task.pairs.len()];
                        round_rows(part.isa, part.out_dtype, &scratch.sums, to);
                    }
                }
                self.block(parts, task, block, memory, &earlier, &mut scratch.sums);
            }
        });
        scratch.earlier = earlier;
    }

    /// The group of a block, of products that have been rounded, the last of which is rounded here.
    fn block(
        &self,
        parts: &[Product],
        task: &Task,
        block: usize,
        memory: *mut u8,
        earlier: &[[f32; COLUMNS]],
        sums: &mut [[f32; COLUMNS]],
    ) {
        let last = parts.len() - 1;
        let part = &parts[last];
        let (isa, dtype, n, sums) = (part.isa, part.out_dtype, part.n, sums.as_mut_ptr());
        let (rows, column, size) = (self.program.tile() / COLUMNS, block * task.width, dtype.size());
        let place = |i: usize| match self.sources[i] {
            Source::Product(p) if p == last => Some(sums.cast_const().cast()),
            Source::Product(p) => Some(earlier[p * TASK_ROWS..].as_ptr().cast()),
            Source::Values(_) => None,
        };
        // SAFETY: `run` has asked for as much memory, for this call alone.
        let group = unsafe { self.program.bind_to(memory, rows * COLUMNS, self.consts, &place) }.unrounded();
        for (i, pairs) in task.pairs.chunks(rows).enumerate() {
            let (first, count) = (i * rows, pairs.len());
            // SAFETY: there are sums for every row of a task, and they are this call's.
            round_in_place(isa, dtype, unsafe { std::slice::from_raw_parts_mut(sums.add(first), count) });
            for (input, source) in self.sources.iter().enumerate() {
                let Source::Values(bytes) = source else { continue };
                let tile = self.program.input(memory, rows * COLUMNS, input).cast();
                // SAFETY: a tile has room for so many rows, and nobody looks at it now.
                let tile = unsafe { std::slice::from_raw_parts_mut(tile, count) };
                let (from, width) = (&bytes[(pairs[0].out * n + column) * size..], (n - column).min(task.width));
                widen_rows(isa, dtype, from, n * size, width, tile);
            }
            // SAFETY: inputs have these rows, at their places or in their tiles; the result has as many floats.
            let result = unsafe {
                let result = group.run(first * COLUMNS, count * COLUMNS, None, None);
                std::slice::from_raw_parts(result.cast(), count)
            };
            part.store(task, block, pairs, result);
        }
    }
}

versions! {
    fn round_rows(dtype: Dtype, sums: &[[f32; COLUMNS]], to: &mut [[f32; COLUMNS]]) = round_rows_body;
}

#[inline(always)]
fn round_rows_body(dtype: Dtype, sums: &[[f32; COLUMNS]], to: &mut [[f32; COLUMNS]]) {
    for (sums, to) in sums.iter().zip(to) {
        *to = *sums;
        halves::round_body(dtype, to);
    }
}

versions! {
    fn round_in_place(dtype: Dtype, sums: &mut [[f32; COLUMNS]]) = round_in_place_body;
}

#[inline(always)]
fn round_in_place_body(dtype: Dtype, sums: &mut [[f32; COLUMNS]]) {
    halves::round_body(dtype, sums.as_flattened_mut());
}

versions! {
    /// The first `width` values of each row of `to`; rows of `bytes` are `stride` bytes apart.
    fn widen_rows(dtype: Dtype, bytes: &[u8], stride: usize, width: usize, to: &mut [[f32; COLUMNS]]) = widen_rows_body;
}

#[inline(always)]
fn widen_rows_body(dtype: Dtype, bytes: &[u8], stride: usize, width: usize, to: &mut [[f32; COLUMNS]]) {
    for (r, to) in to.iter_mut().enumerate() {
        let row = &bytes[r * stride..][..width * dtype.size()];
        match <&[u8; 2 * COLUMNS]>::try_from(row) {
            Ok(whole) => halves::load_body(dtype, whole, to),
            Err(_) => halves::load_body(dtype, row, &mut to[..width]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::qmm_tests::{Left, Packed};
    use super::super::{Arithmetic, Format, Mode, qmm, qmm_through};
    use super::*;
    use crate::isa;
    use crate::{memory, tape};
    use lapis_core::buffer::Tensor;
    use lapis_core::ops::Ew;
    use lapis_core::schedule::tape::{Instr, Src};

    /// `sigmoid(a) * b + c`, each step rounded.
    fn gated(dtype: Dtype) -> Tape {
        let instr =
            |op, args: [Src; 2], out| Instr { op, from: dtype, to: dtype, args: [args[0], args[1], args[0]], out };
        let [a, b, c] = [0, 1, 2].map(Src::Input);
        let instrs = vec![
            instr(Ew::Sigmoid, [a, a], 0),
            instr(Ew::Multiply, [Src::Reg(0), b], 1),
            instr(Ew::Add, [Src::Reg(1), c], 0),
        ];
        Tape { instrs, inputs: vec![dtype; 3], consts: vec![], result: Src::Reg(0), registers: 2 }
    }

    #[test]
    fn a_group_behind_products_has_the_bits_of_one_after_the_other() {
        let affine = |bits, group| Format::new(Mode::Affine, Some(bits), Some(group)).unwrap();
        let nvfp4 = Format::new(Mode::Nvfp4, None, None).unwrap();
        // Rows that end tiles and tasks anywhere, blocks that are not full, one slab and several.
        let cases = [(affine(4, 64), 40, [96, 320]), (affine(3, 32), 17, [64, 96]), (nvfp4, 530, [160, 288])];
        for (format, m, [n, k]) in cases {
            for dtype in [Dtype::Bfloat16, Dtype::Float16] {
                let [a, b] = [1, 2].map(|seed| Packed::new(seed, format, dtype, false, [1, n, k]));
                let (x, more) = (Left::new(3, dtype, m, k), Left::new(4, dtype, 1, m * n));
                let (tape, bytes) = (gated(dtype), m * n * 2);
                let more = more.rows(0..1).row(0).to_vec();
                let tensor = |bytes: &[u8]| {
                    Tensor::row_major(memory::upload(bytes).unwrap(), SmallVec::from_slice(&[m, n]), dtype)
                };
                for how in [Arithmetic::Fast, Arithmetic::Exact] {
                    for isa in isa::available() {
                        let product = |w: &Packed| {
                            let mut out = vec![0; bytes];
                            qmm(isa, &x.rows(0..m), &w.weights(), true, how, dtype, &mut out).unwrap();
                            tensor(&out)
                        };
                        let mut want = tensor(&vec![0; bytes]);
                        tape::run(&tape, &[product(&a), product(&b), tensor(&more)], &[], &mut want).unwrap();
                        let sources = [Source::Product(0), Source::Product(1), Source::Values(&more)];
                        let tail = Tail::new(&tape, &[], sources.into_iter().collect());
                        let (mut got, weights) = (vec![0; bytes], [a.weights(), b.weights()]);
                        qmm_through(isa, &x.rows(0..m), &weights, true, how, &tail, dtype, &mut got).unwrap();
                        assert!(got == want.contiguous_bytes(), "{format:?} {dtype} {how:?} {isa:?}");
                        let wrong = qmm_through(isa, &x.rows(0..m), &weights[..1], true, how, &tail, dtype, &mut got);
                        assert!(wrong.is_err(), "a product is missing");
                    }
                }
            }
        }
    }
}
