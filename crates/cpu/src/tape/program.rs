//! A tape and the loop nest it runs over, and the same bound to a thread's memory: where every argument lies is worked
//! out once, not for every tile.

use super::{copy, float, step, wide};
use crate::geometry::Loops;
use crate::isa::{Isa, isa};
use crate::math::{self, Unary};
use crate::simd::{Ahead, Stream};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::ops::Ew;
use lapis_core::schedule::tape::{Instr, Src, Tape};
use smallvec::SmallVec;

/// Bytes of registers, constants and gathered inputs that one tile may take.
const TILE_BYTES: usize = 24 << 10;

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
    /// None where inputs are where [`Program::bind_to`] is told.
    loops: Option<&'a Loops>,
    access: SmallVec<[Access; 8]>,
    /// How many tiles a thread needs, and bytes of the widest element in one.
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
        Program::of(tape, inputs, Some(loops), access.collect())
    }

    /// A tape whose inputs are in wide dtypes: for [`Program::bind_to`].
    pub(crate) fn of_wide(tape: &'a Tape) -> Program<'a> {
        Program::of(tape, &[], None, SmallVec::from_elem(Access::Gathered, tape.inputs.len()))
    }

    fn of(
        tape: &'a Tape,
        inputs: &'a [Tensor],
        loops: Option<&'a Loops>,
        access: SmallVec<[Access; 8]>,
    ) -> Program<'a> {
        let tiles = tape.registers as usize + tape.consts.len() + tape.inputs.len() + 1;
        Program { tape, inputs, loops, access, tiles, tile_width: tape.widest().max(4) }
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

    /// The program on tiles of up to `n` elements in `scratch`. Fills those that do not change: constants and inputs of
    /// one element.
    ///
    /// # Safety
    /// `scratch` holds [`Program::scratch_bytes`] for `n`, and nothing else uses it while the result lives.
    pub(crate) unsafe fn bind(&self, scratch: *mut u8, n: usize, consts: &[u64]) -> Bound<'_> {
        let mut gathers = SmallVec::new();
        let mut streams = SmallVec::new();
        for (i, t) in self.inputs.iter().enumerate() {
            let tile = self.input(scratch, n, i);
            match self.access[i] {
                // SAFETY: an input has at least one element here, and the tile holds `n`.
                Access::Constant => unsafe { copy::gather(t.ptr(), t.dtype, 0, n, tile) },
                Access::Gathered => gathers.push((i, tile)),
                Access::Direct => {}
            }
            if self.access[i] != Access::Constant && self.loops.is_some_and(|loops| loops.is_flat(i + 1)) {
                streams.push(Stream { at: t.ptr(), size: t.dtype.size() });
            }
        }
        let inputs = |i: usize| match self.access[i] {
            Access::Direct => Stream { at: self.inputs[i].ptr(), size: self.tape.inputs[i].size() },
            _ => Stream { at: self.input(scratch, n, i), size: 0 },
        };
        // SAFETY: passed on.
        let bound = unsafe { self.steps(scratch, n, consts, &inputs) };
        Bound { gathers, streams, ..bound }
    }

    /// As [`Program::bind`], of inputs that lie, wide, where each of `inputs` says; where it says nothing, in their
    /// [tiles](Program::input).
    ///
    /// # Safety
    /// As [`Program::bind`].
    pub(crate) unsafe fn bind_to(
        &self,
        scratch: *mut u8,
        n: usize,
        consts: &[u64],
        inputs: &dyn Fn(usize) -> Option<*const u8>,
    ) -> Bound<'_> {
        let place = |i: usize| match inputs(i) {
            Some(at) => Stream { at, size: wide(self.tape.inputs[i]).size() },
            None => Stream { at: self.input(scratch, n, i), size: 0 },
        };
        // SAFETY: passed on.
        unsafe { self.steps(scratch, n, consts, &place) }
    }

    /// The tile of input `i`.
    pub(crate) fn input(&self, scratch: *mut u8, n: usize, i: usize) -> *mut u8 {
        let tile = self.tape.registers as usize + self.tape.consts.len() + i;
        scratch.wrapping_add(tile * self.stride(n))
    }

    /// The instructions at their places, with constants filled in.
    ///
    /// # Safety
    /// As [`Program::bind`].
    unsafe fn steps(&self, scratch: *mut u8, n: usize, consts: &[u64], inputs: &dyn Fn(usize) -> Stream) -> Bound<'_> {
        let stride = self.stride(n);
        let tile = |i: usize| scratch.wrapping_add(i * stride);
        let constant = |i: usize| tile(self.tape.registers as usize + i);
        for (i, (&bits, &dtype)) in consts.iter().zip(&self.tape.consts).enumerate() {
            let bits = if dtype.is_half() { u64::from(widen_bits(bits as u16, dtype).to_bits()) } else { bits };
            // SAFETY: the tile of constant `i` holds `n` elements of its dtype.
            unsafe { splat(constant(i), n, bits, wide(dtype).size()) };
        }
        let place = |src: Src| match src {
            Src::Reg(r) => Stream { at: tile(r as usize), size: 0 },
            Src::Const(c) => Stream { at: constant(c as usize), size: 0 },
            Src::Input(i) => inputs(i as usize),
        };
        let step = |instr: &Instr| Step::new(instr, instr.args.map(place), tile(instr.out as usize));
        let steps: SmallVec<[Step; 8]> = self.tape.instrs.iter().map(step).collect();
        let function = steps.iter().position(|s| s.function.is_some());
        let (gathers, streams) = (SmallVec::new(), SmallVec::new());
        Bound { program: self, isa: isa(), gathers, streams, steps, function, result: place(self.tape.result) }
    }

    /// Gathers `len` elements of input `i` from flat index `start` on, widened, into a tile.
    ///
    /// # Safety
    /// The tile holds `len` elements, and the range lies in the nest.
    unsafe fn gather(&self, i: usize, start: usize, len: usize, tile: *mut u8) {
        let (t, Some(loops)) = (&self.inputs[i], self.loops) else { return };
        let (size, wide_size) = (t.dtype.size() as isize, wide(t.dtype).size());
        let step = loops.strides[i + 1][loops.shape.len() - 1];
        loops.rows(i + 1, start, len, |first, offset, n| {
            // SAFETY: the nest stays inside the tensor; the tile holds `len` elements.
            unsafe {
                let from = t.ptr().offset(offset * size);
                copy::gather(from, t.dtype, step, n, tile.add(first * wide_size));
            }
        });
    }
}

/// An instruction whose places are known. Tiles are streams of size 0: every tile of the nest finds them where they are.
struct Step {
    op: Ew,
    from: Dtype,
    to: Dtype,
    /// The function of f32 that it is.
    function: Option<Unary>,
    /// The half type that results are rounded to.
    round: Option<Dtype>,
    args: [Stream; 3],
    out: *mut u8,
}

impl Step {
    fn new(instr: &Instr, args: [Stream; 3], out: *mut u8) -> Step {
        let Instr { op, from, to, .. } = *instr;
        let single = wide(from) == Dtype::Float32 && wide(to) == Dtype::Float32;
        let function = float::unary(op).filter(|_| single);
        let round = Some(to).filter(|to| to.is_half() && op != Ew::Select);
        Step { op, from: wide(from), to: wide(to), function, round, args, out }
    }
}

/// A program bound to the memory of one thread.
pub(crate) struct Bound<'p> {
    program: &'p Program<'p>,
    isa: Isa,
    gathers: SmallVec<[(usize, *mut u8); 8]>,
    /// The inputs that are read front to back.
    streams: SmallVec<[Stream; 8]>,
    steps: SmallVec<[Step; 8]>,
    /// The first step that is a function.
    function: Option<usize>,
    result: Stream,
}

impl Bound<'_> {
    /// The same, but for the result, which is not rounded: whoever takes it does.
    pub(crate) fn unrounded(mut self) -> Self {
        self.steps.iter_mut().next_back().into_iter().for_each(|step| step.round = None);
        self
    }

    /// Runs the tape over the flat range `start..start + len` and returns where the result lies: `len` elements of
    /// the wide dtype of the result. With `target`, the last instruction writes there. With `next`, what the tile from
    /// there on reads is fetched meanwhile, so that reading overlaps computing and writing.
    ///
    /// # Safety
    /// `len` is at most that of the tiles; the range lies in the nest; `target` holds `len` elements, none of them an
    /// input's.
    pub(crate) unsafe fn run(
        &self,
        start: usize,
        len: usize,
        target: Option<*mut u8>,
        next: Option<usize>,
    ) -> *const u8 {
        for &(i, tile) in &self.gathers {
            // SAFETY: passed on.
            unsafe { self.program.gather(i, start, len, tile) };
        }
        // A function gives memory time to answer; without one, every instruction has its share of the waiting.
        let ahead = next.map_or(Ahead::NONE, |first| Ahead { streams: &self.streams, first });
        let share = if next.is_some() && self.function.is_none() { len / self.steps.len().max(1) } else { 0 };
        let last = self.steps.len().wrapping_sub(1);
        let mut result = self.result.place(start);
        for (k, step) in self.steps.iter().enumerate() {
            let out = target.filter(|_| k == last).unwrap_or(step.out);
            let args = step.args.map(|a| a.place(start));
            if share > 0 {
                copy::fetch(&ahead, k * share, if k == last { len } else { (k + 1) * share });
            }
            // SAFETY: every place holds `len` elements of the dtype the instruction names.
            unsafe {
                match step.function {
                    Some(f) => {
                        let ahead = if self.function == Some(k) { &ahead } else { &Ahead::NONE };
                        math::unary_f32(self.isa, f, args[0].cast(), out.cast(), len, ahead);
                    }
                    None => step::step(self.isa, step.op, step.from, step.to, len, &args, out),
                }
                if let Some(half) = step.round {
                    copy::round_to(half, out.cast(), len);
                }
            }
            result = out;
        }
        result
    }
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
