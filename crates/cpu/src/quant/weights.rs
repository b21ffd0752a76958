//! Packed matrices as kernels see them: sizes checked once, then plain pointers into blocks of 64 rows.

use super::codes::{decode_e4m3, decode_e8m0};
use super::format::{Format, Mode, check_axis, check_float, check_global, check_len};
use super::halves;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;

/// One packed matrix, or a stack of them (experts, batches), each `[rows, cols]` with groups along `cols`.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    pub(super) format: Format,
    pub(super) packed: &'a [u8],
    pub(super) scales: &'a [u8],
    pub(super) biases: &'a [u8],
    pub(super) scale_dtype: Dtype,
    /// Factor of every stored scale: nvfp4's `global_scale / 2688`.
    pub(super) factor: f32,
    pub(super) stack: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl<'a> Weights<'a> {
    /// `stack` matrices of `[rows, cols]`; `packed`, `scales` and `biases` are contiguous, `biases` empty outside
    /// affine; `scale_dtype` is that of affine scales and biases.
    ///
    /// # Errors
    /// Buffers whose length does not follow from the sizes, `cols` not a multiple of the group, a dtype that is not
    /// floating, a `global_scale` outside nvfp4.
    pub fn new(
        op: &str,
        format: Format,
        packed: &'a [u8],
        scales: &'a [u8],
        biases: &'a [u8],
        scale_dtype: Dtype,
        global_scale: Option<f32>,
        stack: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Weights<'a>> {
        if format.has_biases() {
            check_float(op, "scales", scale_dtype)?;
        }
        check_global(op, format, global_scale)?;
        check_axis(op, format, cols)?;
        let groups = stack * rows * (cols / format.group());
        check_len(op, "packed codes", packed.len(), format.row_bytes(stack * rows * cols))?;
        check_len(op, "scales", scales.len(), groups * format.scale_bytes(scale_dtype))?;
        check_len(op, "biases", biases.len(), if format.has_biases() { scales.len() } else { 0 })?;
        let factor = global_scale.map_or(1.0, |g| g / 2688.0);
        Ok(Weights { format, packed, scales, biases, scale_dtype, factor, stack, rows, cols })
    }

    /// How a stored scale is decoded.
    pub(super) fn scale_kind(&self) -> ScaleKind {
        match (self.format.mode(), self.scale_dtype) {
            (Mode::Affine, Dtype::Bfloat16) => ScaleKind::Bf16,
            (Mode::Affine, Dtype::Float16) => ScaleKind::F16,
            (Mode::Affine, _) => ScaleKind::F32,
            (Mode::Nvfp4, _) => ScaleKind::E4m3,
            _ => ScaleKind::E8m0,
        }
    }

    /// Bytes of one packed row.
    pub(super) fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols)
    }

    /// Groups of one row.
    pub(super) fn groups(&self) -> usize {
        self.cols / self.format.group()
    }

    /// Rows `row..row + count` of matrix `index`, as far as there are any (at least one).
    pub(super) fn block(&self, index: usize, row: usize, count: usize) -> Block<'_> {
        let first = index * self.rows + row;
        let valid = (self.rows - row).min(count);
        let entry = self.format.scale_bytes(self.scale_dtype) * self.groups();
        let take = |bytes: &'a [u8], each: usize| &bytes[first * each..(first + valid) * each];
        Block {
            packed: take(self.packed, self.row_bytes()),
            stride: self.row_bytes(),
            scales: take(self.scales, entry),
            biases: if self.format.has_biases() { take(self.biases, entry) } else { &[] },
            scale_stride: entry,
            kind: self.scale_kind(),
            factor: self.factor,
            valid,
        }
    }
}

/// Some consecutive rows of one packed matrix.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) packed: &'a [u8],
    /// Bytes from one packed row to the next.
    pub(super) stride: usize,
    pub(super) scales: &'a [u8],
    /// Empty in modes without biases.
    pub(super) biases: &'a [u8],
    /// Bytes from one row's scales (and biases) to the next's.
    pub(super) scale_stride: usize,
    pub(super) kind: ScaleKind,
    /// Factor of every stored scale.
    pub(super) factor: f32,
    /// Rows that exist, at least one.
    pub(super) valid: usize,
}

/// How a stored scale is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ScaleKind {
    F32,
    F16,
    Bf16,
    E8m0,
    E4m3,
}

impl ScaleKind {
    /// Bytes of one scale.
    pub(super) const fn size(self) -> usize {
        match self {
            ScaleKind::F32 => 4,
            ScaleKind::F16 | ScaleKind::Bf16 => 2,
            ScaleKind::E8m0 | ScaleKind::E4m3 => 1,
        }
    }

    /// The scale at the start of `bytes`.
    #[inline(always)]
    pub(super) fn decode(self, bytes: &[u8]) -> f32 {
        match self {
            ScaleKind::F32 => halves::load_one(Dtype::Float32, bytes),
            ScaleKind::F16 => halves::load_one(Dtype::Float16, bytes),
            ScaleKind::Bf16 => halves::load_one(Dtype::Bfloat16, bytes),
            ScaleKind::E8m0 => decode_e8m0(bytes[0]),
            ScaleKind::E4m3 => decode_e4m3(bytes[0]),
        }
    }
}
