//! Short-time Fourier transform and its inverse, made of other ops.

use super::{FftNorm, fft, ifft, irfft, rfft};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::view::{permute, reshape_to};
use crate::ops::{
    PadMode, as_strided, astype, divide, full, greater, multiply, pad, real, select, slice, square, sum, swapaxes,
};
use crate::shape::{Shape, row_strides, show};

/// How [`stft`] cuts a signal into frames; [`istft`] needs the same.
#[derive(Clone)]
pub struct Frames {
    /// Samples from one frame to the next; a quarter of the transform unless given.
    pub hop_length: Option<usize>,
    /// Length of the rectangular window that stands for a missing one; the transform's unless given.
    pub win_length: Option<usize>,
    /// A 1-D window, centred in the frame and padded with zeros.
    pub window: Option<Array>,
    /// Whether the signal is padded by half a transform on both ends, so that frames are centred.
    pub center: bool,
    /// With what.
    pub pad_mode: PadMode,
    /// Where the factor 1/n stands.
    pub norm: FftNorm,
    /// Whether only the frequencies from 0 up are kept; by default for real signals.
    pub onesided: Option<bool>,
}

impl Default for Frames {
    fn default() -> Frames {
        Frames {
            hop_length: None,
            win_length: None,
            window: None,
            center: true,
            pad_mode: PadMode::Reflect,
            norm: FftNorm::Backward,
            onesided: None,
        }
    }
}

impl Frames {
    fn hop(&self, op: &str, n_fft: usize) -> Result<usize> {
        match self.hop_length.unwrap_or(n_fft / 4) {
            0 => Err(Error::value(format!("[{op}] a hop of 0 samples"))),
            hop => Ok(hop),
        }
    }

    /// The window as it lies in a frame; `None` for ones.
    fn window(&self, op: &str, n_fft: usize) -> Result<Option<Array>> {
        let window = match (&self.window, self.win_length) {
            (Some(w), _) => astype(w, Dtype::Float32)?,
            (None, Some(len)) if len != n_fft => full(&[len], 1, Some(Dtype::Float32))?,
            _ => return Ok(None),
        };
        if window.ndim() != 1 || window.size() > n_fft {
            let s = show(window.shape());
            return Err(Error::value(format!("[{op}] a window of shape {s} for frames of {n_fft} samples")));
        }
        let missing = n_fft - window.size();
        Ok(Some(pad(&window, [(missing / 2, missing - missing / 2)], PadMode::Constant, 0)?))
    }
}

fn with(lead: &[usize], tail: &[usize]) -> Shape {
    lead.iter().chain(tail).copied().collect()
}

/// Widths that pad the axis `axis` alone.
fn widths(ndim: usize, axis: usize, lo: usize, hi: usize) -> Vec<(usize, usize)> {
    (0..ndim).map(|i| if i == axis { (lo, hi) } else { (0, 0) }).collect()
}

/// Short-time Fourier transform of the last axis (`mx.fft.stft`): complex64 of shape (..., frequencies, frames), where
/// frame t starts at sample `t * hop` of the (padded) signal.
///
/// # Errors
/// A 0-d signal or one shorter than a frame; a window that is not 1-D or longer than `n_fft`; a hop of 0.
pub fn stft(x: &Array, n_fft: usize, frames: &Frames) -> Result<Array> {
    let op = "fft.stft";
    let Some((_, lead)) = x.shape().split_last() else {
        return Err(Error::value(format!("[{op}] the signal is 0-d")));
    };
    if n_fft == 0 {
        return Err(Error::value(format!("[{op}] frames of 0 samples")));
    }
    let hop = frames.hop(op, n_fft)?;
    let window = frames.window(op, n_fft)?;
    let is_complex = x.dtype().is_complex();
    let onesided = frames.onesided.unwrap_or(!is_complex);
    let mut signal = if is_complex { x.clone() } else { astype(x, Dtype::Float32)? };
    if frames.center {
        signal = pad(&signal, widths(x.ndim(), lead.len(), n_fft / 2, n_fft / 2), frames.pad_mode, 0)?;
    }
    let len = signal.shape()[lead.len()];
    if len < n_fft {
        return Err(Error::value(format!("[{op}] {len} samples are too short for frames of {n_fft}")));
    }
    let count = 1 + (len - n_fft) / hop;
    let mut strides = row_strides(signal.shape());
    strides.pop();
    strides.extend([hop as isize, 1]);
    let mut cut = as_strided(&signal, &with(lead, &[count, n_fft]), &strides, 0)?;
    if let Some(window) = window {
        cut = multiply(cut, window)?;
    }
    let spectrum = if onesided { rfft(&cut, None, -1, frames.norm) } else { fft(&cut, None, -1, frames.norm) };
    swapaxes(&spectrum?, -1, -2)
}

/// Inverse of [`stft`] (`mx.fft.istft`): float32 of shape (..., samples). Frames are transformed back, windowed, added
/// where they overlap, and divided by the sum of the squared windows (0 where that is 0). `n_fft` is derived from the
/// number of frequencies unless given (even for one-sided spectra, which are the default); the signal is cut or padded
/// with zeros to `length`.
///
/// # Errors
/// Fewer than two axes; else as [`stft`].
pub fn istft(
    spectrum: &Array,
    n_fft: impl Into<Option<usize>>,
    length: impl Into<Option<usize>>,
    frames: &Frames,
) -> Result<Array> {
    let op = "fft.istft";
    let [lead @ .., frequencies, count] = spectrum.shape() else {
        let s = show(spectrum.shape());
        return Err(Error::value(format!("[{op}] needs shape (..., frequencies, frames), not {s}")));
    };
    let onesided = frames.onesided.unwrap_or(true);
    let derived = if onesided { 2 * frequencies.saturating_sub(1) } else { *frequencies };
    let n_fft = n_fft.into().unwrap_or(derived);
    if n_fft == 0 || *count == 0 {
        let s = show(spectrum.shape());
        return Err(Error::value(format!("[{op}] nothing to invert in shape {s} with frames of {n_fft} samples")));
    }
    let hop = frames.hop(op, n_fft)?;
    let window = frames.window(op, n_fft)?;
    let spectrum = swapaxes(spectrum, -1, -2)?;
    let mut parts = if onesided {
        irfft(&spectrum, n_fft, -1, frames.norm)?
    } else {
        real(&ifft(&spectrum, n_fft, -1, frames.norm)?)?
    };
    let weight = match window {
        Some(window) => {
            parts = multiply(&parts, &window)?;
            square(&window)?
        }
        None => full(&[n_fft], 1, Some(Dtype::Float32))?,
    };
    let weight = crate::ops::broadcast_to(&weight, &[*count, n_fft])?;
    let (sum, weight) = (overlap_add(&parts, hop)?, overlap_add(&weight, hop)?);
    let safe = select(&greater(&weight, 0)?, &weight, 1)?;
    let signal = select(&greater(&weight, 0)?, &divide(&sum, &safe)?, 0)?;

    let total = n_fft + hop * (count - 1);
    let start = if frames.center { n_fft / 2 } else { 0 };
    let length = length.into().unwrap_or(total.saturating_sub(2 * start));
    let end = total.min(start.saturating_add(length));
    let mut ranges = vec![(None, None, 1); lead.len()];
    ranges.push((Some(start as i64), Some(end as i64), 1));
    let signal = slice(&signal, &ranges)?;
    let missing = length - (end - start.min(end));
    pad(&signal, widths(signal.ndim(), lead.len(), 0, missing), PadMode::Constant, 0)
}

/// (..., frames, n) to (..., n + hop * (frames - 1)): the sum of the frames, each `hop` after the one before.
///
/// A frame is cut into pieces of one hop; piece j of frame t belongs to hop t + j. Padding the frames axis by the
/// number of pieces and reading the pieces-by-frames matrix with rows one shorter shifts piece j by j frames.
fn overlap_add(parts: &Array, hop: usize) -> Result<Array> {
    let (ndim, shape) = (parts.ndim(), parts.shape());
    let [lead @ .., count, n] = shape else { return Ok(parts.clone()) };
    let (count, n) = (*count, *n);
    let pieces = n.div_ceil(hop);
    let whole = pad(parts, widths(ndim, ndim - 1, 0, pieces * hop - n), PadMode::Constant, 0)?;
    let cut = reshape_to(&whole, with(lead, &[count, pieces, hop]))?;
    let order = (0..lead.len()).chain([ndim - 1, ndim - 2, ndim]).collect();
    let wide = pad(&permute(&cut, order)?, widths(ndim + 1, ndim - 1, 0, pieces), PadMode::Constant, 0)?;
    let flat = reshape_to(&wide, with(lead, &[pieces * (count + pieces), hop]))?;
    let mut ranges = vec![(None, None, 1); lead.len()];
    ranges.push((None, Some((pieces * (count + pieces - 1)) as i64), 1));
    let shifted = reshape_to(&slice(&flat, &ranges)?, with(lead, &[pieces, count + pieces - 1, hop]))?;
    let added = sum(&shifted, lead.len() as i32, false)?;
    let signal = reshape_to(&added, with(lead, &[(count + pieces - 1) * hop]))?;
    let mut ranges = vec![(None, None, 1); lead.len()];
    ranges.push((None, Some((n + hop * (count - 1)) as i64), 1));
    slice(&signal, &ranges)
}
