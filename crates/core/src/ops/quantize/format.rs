//! Modes of quantization with their widths and groups.

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::shape::show;
use serde::{Deserialize, Deserializer, Serialize};

/// How a group of weights becomes codes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
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
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Format {
    pub(super) mode: Mode,
    pub(super) bits: usize,
    pub(super) group: usize,
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Format, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Parts {
            mode: Mode,
            bits: usize,
            group: usize,
        }
        let Parts { mode, bits, group } = Parts::deserialize(from)?;
        Format::new(mode, Some(bits), Some(group)).map_err(serde::de::Error::custom)
    }
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

    /// Affine codes of `bits` (1, 2, 3, 4, 5, 6 or 8) in groups of `group` (32, 64 or 128).
    ///
    /// # Errors
    /// A value error for other numbers.
    pub fn affine(bits: usize, group: usize) -> Result<Format> {
        Format::new(Mode::Affine, Some(bits), Some(group))
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

    pub(super) fn check_axis(self, op: &str, shape: &[usize]) -> Result<()> {
        match shape {
            [_, .., k] if k.is_multiple_of(self.group.max(32 / self.bits)) && *k > 0 => Ok(()),
            _ => Err(Error::shape(format!(
                "[{op}] shape {}: at least two axes are needed, the last a multiple of the group size {}",
                show(shape),
                self.group
            ))),
        }
    }
}
