//! What kernels check of a format before they touch memory.

use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};

pub use lapis_core::ops::quantize::{Format, Mode};

/// A last axis must be a whole number of groups (and of 32-bit words).
pub(super) fn check_axis(op: &str, format: Format, k: usize) -> Result<()> {
    let group = format.group();
    if k.is_multiple_of(group) {
        return Ok(());
    }
    Err(Error::shape(format!("[{op}] last axis {k} is not a multiple of the group size {group}")))
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
