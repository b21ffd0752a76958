//! Which modes, widths and groups exist, and the sizes that follow from them.

use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};

/// How a group of weights becomes codes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// `value = code * scale + bias`, scale and bias in the dtype of the weights.
    Affine,
    /// E2M1 codes, groups of 32, E8M0 scales.
    Mxfp4,
    /// E4M3 codes, groups of 32, E8M0 scales.
    Mxfp8,
    /// E2M1 codes, groups of 16, E4M3 scales, optionally one f32 scale for the tensor.
    Nvfp4,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 4] = [Mode::Affine, Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4];

    /// MLX's name.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Affine => "affine",
            Mode::Mxfp4 => "mxfp4",
            Mode::Mxfp8 => "mxfp8",
            Mode::Nvfp4 => "nvfp4",
        }
    }

    /// The mode called `name`.
    ///
    /// # Errors
    /// A value error that lists the modes.
    pub fn from_name(name: &str) -> Result<Mode> {
        Mode::ALL.into_iter().find(|m| m.name() == name).ok_or_else(|| {
            Error::value(format!("[quantize] unknown mode {name:?}; known are affine, mxfp4, mxfp8, nvfp4"))
        })
    }
}

/// A mode with its width and group, checked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Format {
    mode: Mode,
    bits: usize,
    group: usize,
}

impl Format {
    /// `bits` and `group` default to those of the mode (affine: 4 and 64).
    ///
    /// # Errors
    /// A value error that names the offending number and the allowed ones.
    pub fn new(mode: Mode, bits: Option<usize>, group: Option<usize>) -> Result<Format> {
        let (widths, groups): (&[usize], &[usize]) = match mode {
            Mode::Affine => (&[4, 1, 2, 3, 5, 6, 8], &[64, 32, 128]),
            Mode::Mxfp4 => (&[4], &[32]),
            Mode::Mxfp8 => (&[8], &[32]),
            Mode::Nvfp4 => (&[4], &[16]),
        };
        let pick = |what: &str, value: Option<usize>, allowed: &[usize]| {
            let value = value.unwrap_or(allowed[0]);
            if allowed.contains(&value) {
                return Ok(value);
            }
            let mut sorted = allowed.to_vec();
            sorted.sort_unstable();
            let sorted: Vec<_> = sorted.iter().map(usize::to_string).collect();
            let name = mode.name();
            Err(Error::value(format!("[quantize] {what} {value} with mode {name}; allowed: {}", sorted.join(", "))))
        };
        Ok(Format { mode, bits: pick("bits", bits, widths)?, group: pick("group_size", group, groups)? })
    }

    /// The mode.
    pub const fn mode(self) -> Mode {
        self.mode
    }

    /// Bits of a code.
    pub const fn bits(self) -> usize {
        self.bits
    }

    /// Consecutive elements that share a scale.
    pub const fn group(self) -> usize {
        self.group
    }

    /// Bytes of `k` packed codes.
    pub const fn row_bytes(self, k: usize) -> usize {
        k * self.bits / 8
    }

    /// Whether groups carry a bias.
    pub const fn has_biases(self) -> bool {
        matches!(self.mode, Mode::Affine)
    }

    /// Bytes of one scale; `dtype` is that of affine scales.
    pub const fn scale_bytes(self, dtype: Dtype) -> usize {
        if self.has_biases() { dtype.size() } else { 1 }
    }

    /// A last axis must be a whole number of groups (and of 32-bit words).
    pub(super) fn check_axis(self, op: &str, k: usize) -> Result<()> {
        if k.is_multiple_of(self.group) {
            return Ok(());
        }
        let group = self.group;
        Err(Error::shape(format!("[{op}] last axis {k} is not a multiple of the group size {group}")))
    }
}

/// A buffer must have exactly the bytes that the sizes call for.
pub(super) fn check_len(op: &str, what: &str, have: usize, want: usize) -> Result<()> {
    if have == want {
        return Ok(());
    }
    Err(Error::shape(format!("[{op}] {what} has {have} bytes, its shape calls for {want}")))
}

/// Weights and activations are floating: f32, f16 or bf16.
pub(super) fn check_float(op: &str, what: &str, dtype: Dtype) -> Result<()> {
    if matches!(dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16) {
        return Ok(());
    }
    Err(Error::dtype(format!("[{op}] {what} is {dtype}; float32, float16 and bfloat16 are taken")))
}

/// Only nvfp4 has a scale for the whole tensor.
pub(super) fn check_global(op: &str, format: Format, global_scale: Option<f32>) -> Result<()> {
    if global_scale.is_none() || format.mode() == Mode::Nvfp4 {
        return Ok(());
    }
    Err(Error::value(format!("[{op}] global_scale goes with mode nvfp4 only, not {}", format.mode().name())))
}
