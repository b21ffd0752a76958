//! Fused elementwise groups: a tape runs over tiles that stay in the first-level cache.
//!
//! Moves each input and the output once; intermediate values live in registers of one tile. Half precision is held
//! as f32 in registers and rounded after every instruction, so that results do not depend on what was fused. Large
//! outputs are written past the cache.

mod cast;
mod complex;
mod copy;
mod float;
mod int;
mod scratch;
mod step;

pub(crate) use scratch::with_scratch;

use crate::geometry::Loops;
use crate::isa::isa;
use crate::math;
use crate::moves::copy;
use crate::pool;
use crate::simd::Ahead;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
use lapis_core::ops::Ew;
use lapis_core::schedule::tape::{Instr, Src, Tape};
use smallvec::SmallVec;

/// Bytes of registers, constants and gathered inputs that one tile may take.
const TILE_BYTES: usize = 24 << 10;
/// Bytes of the output that a tile computes when it is written past the cache: small, because what is fetched for the
/// next tile should arrive before it is needed and not be driven out again (2 KiB: 89 % of a copy, 8 KiB: 70 %).
const STREAMED_TILE: usize = 2 << 10;
/// Elements a task of the pool computes.
const GRAIN: usize = 32 << 10;
/// Outputs from this size on are written past the cache.
const STREAMING: usize = 4 << 20;

/// The dtype a value has in a register: halves are held as f32.
pub(crate) fn wide(dtype: Dtype) -> Dtype {
    if dtype.is_half() { Dtype::Float32 } else { dtype }
}

#[derive(Clone, Copy, PartialEq)]
enum Access {
    /// In place, at the flat index.
    Direct,
    /// One element for all.
    Constant,
    /// Gathered (and widened) into a tile first.
    Gathered,
}

/// A tape ready to run over a loop nest. Operand 0 of the nest is the output (or the first input, for reductions),
/// operand `i + 1` the tape's input `i`.
pub(crate) struct Program<'a> {
    tape: &'a Tape,
    inputs: &'a [Tensor],
    loops: &'a Loops,
    access: SmallVec<[Access; 8]>,
    /// Where each input begins, and bytes of its elements; no bytes for inputs that are not read front to back.
    flat: SmallVec<[(usize, usize); 8]>,
    /// Where tiles of registers, constants and gathered inputs start, in bytes, for tiles of one element.
    tiles: usize,
    tile_width: usize,
}

impl<'a> Program<'a> {
    pub(crate) fn new(tape: &'a Tape, inputs: &'a [Tensor], loops: &'a Loops) -> Program<'a> {
        let access = inputs.iter().enumerate().map(|(i, t)| {
            if loops.is_constant(i + 1) {
                Access::Constant
            } else if loops.is_flat(i + 1) && !t.dtype.is_half() {
                Access::Direct
            } else {
                Access::Gathered
            }
        });
        let flat = inputs.iter().enumerate().map(|(i, t)| {
            let read = loops.is_flat(i + 1) && !loops.is_constant(i + 1);
            (t.ptr() as usize, if read { t.dtype.size() } else { 0 })
        });
        let flat = flat.collect();
        let tiles = tape.registers as usize + tape.consts.len() + inputs.len() + 1;
        let widest = tape.widest().max(4);
        Program { tape, inputs, loops, access: access.collect(), flat, tiles, tile_width: widest }
    }

    /// Elements of a tile.
    pub(crate) fn tile(&self) -> usize {
        (TILE_BYTES / (self.tiles * self.tile_width)).clamp(128, 4096) & !63
    }

    /// Bytes of scratch for tiles of `n` elements.
    pub(crate) fn scratch_bytes(&self, n: usize) -> usize {
        self.tiles * self.stride(n)
    }

    fn stride(&self, n: usize) -> usize {
        (n * self.tile_width).next_multiple_of(64)
    }

    fn register(&self, scratch: *mut u8, n: usize, i: u16) -> *mut u8 {
        scratch.wrapping_add(i as usize * self.stride(n))
    }

    fn constant(&self, scratch: *mut u8, n: usize, i: u16) -> *mut u8 {
        scratch.wrapping_add((self.tape.registers as usize + i as usize) * self.stride(n))
    }

    fn gathered(&self, scratch: *mut u8, n: usize, i: u16) -> *mut u8 {
        scratch.wrapping_add((self.tape.registers as usize + self.tape.consts.len() + i as usize) * self.stride(n))
    }

    /// Fills the tiles that do not change: constants and inputs of one element.
    ///
    /// # Safety
    /// `scratch` holds [`Program::scratch_bytes`] for `n`.
    pub(crate) unsafe fn prepare(&self, scratch: *mut u8, n: usize, consts: &[u64]) {
        for (i, (&bits, &dtype)) in consts.iter().zip(&self.tape.consts).enumerate() {
            let bits = if dtype.is_half() { u64::from(widen_bits(bits as u16, dtype).to_bits()) } else { bits };
            // SAFETY: the tile of constant `i` holds `n` elements of its dtype.
            unsafe { splat(self.constant(scratch, n, i as u16), n, bits, wide(dtype).size()) };
        }
        for (i, t) in self.inputs.iter().enumerate() {
            if self.access[i] == Access::Constant {
                // SAFETY: an input has at least one element here, and the tile holds `n`.
                unsafe { self.load(i, 0, n, self.gathered(scratch, n, i as u16)) };
                let _ = t;
            }
        }
    }

    /// Gathers `len` elements of input `i` from flat index `start` on, widened, into a tile.
    ///
    /// # Safety
    /// The tile holds `len` elements, and the range lies in the nest (any length for constant inputs).
    unsafe fn load(&self, i: usize, start: usize, len: usize, tile: *mut u8) {
        let t = &self.inputs[i];
        if self.access[i] == Access::Constant {
            // SAFETY: element 0 exists; the tile holds `len` elements.
            unsafe { copy::gather(t.ptr(), t.dtype, 0, len, tile) };
            return;
        }
        let (size, wide_size) = (t.dtype.size() as isize, wide(t.dtype).size());
        let step = self.loops.strides[i + 1][self.loops.shape.len() - 1];
        self.loops.rows(i + 1, start, len, |first, offset, n| {
            // SAFETY: the nest stays inside the tensor; the tile holds `len` elements.
            unsafe {
                let from = t.ptr().offset(offset * size);
                copy::gather(from, t.dtype, step, n, tile.add(first * wide_size));
            }
        });
    }

    /// What the tile from flat index `start` on reads in one piece.
    fn ahead(&self, start: usize) -> SmallVec<[Ahead; 8]> {
        let read = self.flat.iter().filter(|&&(_, size)| size > 0);
        read.map(|&(base, size)| Ahead { at: (base + start * size) as *const u8, size }).collect()
    }

    /// Runs the tape over the flat range `start..start + len` and returns where the result lies: `len` elements of
    /// the wide dtype of the result. With `target`, the last instruction writes there. With `next`, what the tile from
    /// there on reads is fetched meanwhile, so that reading overlaps computing and writing.
    ///
    /// # Safety
    /// `scratch` was prepared for tiles of `n >= len` elements; the range lies in the nest; `target` holds `len`
    /// elements, none of them an input's.
    pub(crate) unsafe fn tile_at(
        &self,
        scratch: *mut u8,
        n: usize,
        start: usize,
        len: usize,
        target: Option<*mut u8>,
        next: Option<usize>,
    ) -> *const u8 {
        for i in 0..self.inputs.len() {
            if self.access[i] == Access::Gathered {
                // SAFETY: passed on.
                unsafe { self.load(i, start, len, self.gathered(scratch, n, i as u16)) };
            }
        }
        let place = |src: Src| -> *const u8 {
            match src {
                Src::Reg(r) => self.register(scratch, n, r),
                Src::Const(c) => self.constant(scratch, n, c),
                Src::Input(i) => match self.access[i as usize] {
                    Access::Direct => {
                        let (base, size) = self.flat[i as usize];
                        (base + start * size) as *const u8
                    }
                    _ => self.gathered(scratch, n, i),
                },
            }
        };
        let last = self.tape.instrs.len().wrapping_sub(1);
        let mut result = place(self.tape.result);
        // A function gives memory time to answer; without one, every instruction has its share of the waiting.
        let mut ahead = next.map(|next| self.ahead(next)).unwrap_or_default();
        let function = |i: &Instr| wide(i.from) == Dtype::Float32 && i.from == i.to && float::unary(i.op).is_some();
        let shares = if self.tape.instrs.iter().any(function) { 0 } else { self.tape.instrs.len() };
        for (k, instr) in self.tape.instrs.iter().enumerate() {
            let out = match target {
                Some(target) if k == last => target,
                _ => self.register(scratch, n, instr.out),
            };
            let args = instr.args.map(place);
            for a in ahead.iter().filter(|_| shares > 0) {
                let (from, to) = (len * k / shares, len * (k + 1) / shares);
                copy::fetch(a.at.wrapping_add(from * a.size), (to - from) * a.size);
            }
            // SAFETY: every place holds `len` elements of the dtype the instruction names.
            unsafe {
                match float::unary(instr.op) {
                    Some(f) if !ahead.is_empty() && function(instr) => {
                        math::unary_f32(isa(), f, args[0].cast(), out.cast(), len, &std::mem::take(&mut ahead));
                    }
                    _ => step::step(isa(), instr.op, wide(instr.from), wide(instr.to), len, args, out),
                }
                if instr.to.is_half() && instr.op != Ew::Select {
                    copy::round_to(instr.to, out.cast(), len);
                }
            }
            result = out;
        }
        result
    }
}

/// `t` itself when it is row-major, else a row-major copy.
pub(crate) fn contiguous(t: &Tensor) -> Result<Tensor> {
    if t.is_row_contiguous() {
        return Ok(t.clone());
    }
    let out = Tensor::row_major(crate::memory::allocate(t.nbytes())?, t.shape.clone(), t.dtype);
    if t.size() > 0 {
        copy(&out, t);
    }
    Ok(out)
}

/// Runs `tape` into `output`; see `Backend::tape`.
pub(crate) fn run(tape: &Tape, inputs: &[Tensor], consts: &[u64], output: &mut Tensor) -> Result<()> {
    let len = output.size();
    if len == 0 {
        return Ok(());
    }
    if tape.instrs.is_empty() {
        if let (Src::Input(i), [..]) = (tape.result, inputs) {
            copy(output, &inputs[i as usize]);
        }
        return Ok(());
    }
    let mut operands: SmallVec<[&[isize]; 8]> = SmallVec::new();
    operands.push(&output.strides);
    operands.extend(inputs.iter().map(|t| &*t.strides));
    let loops = Loops::new(&output.shape, &operands);
    let program = Program::new(tape, inputs, &loops);
    let in_place = inputs.iter().any(|t| t.buffer.same(&output.buffer));
    let streaming = !in_place && output.nbytes() >= STREAMING;
    let half = output.dtype.is_half();
    let most = if streaming { STREAMED_TILE / output.dtype.size() } else { len.next_multiple_of(16) };
    let tile = program.tile().min(most);
    let (size, base) = (output.dtype.size(), output.ptr() as usize);
    pool::for_each_chunk(len, GRAIN, &|range| {
        with_scratch(program.scratch_bytes(tile), |scratch| {
            // SAFETY: the scratch is large enough, tiles stay inside the range, chunks of the output do not overlap.
            unsafe {
                program.prepare(scratch, tile, consts);
                let mut at = range.start;
                while at < range.end {
                    let n = tile.min(range.end - at);
                    let out = (base as *mut u8).add(at * size);
                    let next = streaming.then_some(at + n);
                    if half || streaming || in_place {
                        let result = program.tile_at(scratch, tile, at, n, None, next);
                        copy::store(result, output.dtype, out, n, streaming);
                    } else {
                        program.tile_at(scratch, tile, at, n, Some(out), next);
                    }
                    at += n;
                }
                if streaming {
                    copy::fence();
                }
            }
        });
    });
    Ok(())
}

fn widen_bits(bits: u16, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Float16 => half::f16::from_bits(bits).to_f32(),
        _ => half::bf16::from_bits(bits).to_f32(),
    }
}

/// Writes `n` elements of `size` bytes that all hold `bits`.
///
/// # Safety
/// The tile holds them.
unsafe fn splat(tile: *mut u8, n: usize, bits: u64, size: usize) {
    // SAFETY: the caller vouches for `n` elements; tiles are aligned to 64.
    unsafe {
        match size {
            1 => std::slice::from_raw_parts_mut(tile, n).fill(bits as u8),
            2 => std::slice::from_raw_parts_mut(tile.cast::<u16>(), n).fill(bits as u16),
            4 => std::slice::from_raw_parts_mut(tile.cast::<u32>(), n).fill(bits as u32),
            _ => std::slice::from_raw_parts_mut(tile.cast::<u64>(), n).fill(bits),
        }
    }
}
