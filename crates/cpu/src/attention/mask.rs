//! Which keys a query sees, and what array masks add to its scores.

use super::{Attention, Mask};
use crate::attention::kernels::Bias;
use half::{bf16, f16};
use lapis_core::dtype::Dtype;
use std::ops::Range;

/// Element `i` of `dtype`, widened.
///
/// # Safety
/// The element is readable and the dtype real floating.
pub(super) unsafe fn read(ptr: *const u8, dtype: Dtype, i: isize) -> f64 {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            Dtype::Float16 => (*ptr.cast::<f16>().offset(i)).to_f64(),
            Dtype::Bfloat16 => (*ptr.cast::<bf16>().offset(i)).to_f64(),
            Dtype::Float32 => f64::from(*ptr.cast::<f32>().offset(i)),
            _ => *ptr.cast::<f64>().offset(i),
        }
    }
}

/// The keys that position `t` of `queries` sees of `keys`; start and end grow with `t`.
pub(super) fn seen(t: usize, (queries, keys): (usize, usize), causal: bool, window: Option<usize>) -> Range<usize> {
    let at = t as isize + keys as isize - queries as isize;
    let hi = if causal { (at + 1).clamp(0, keys as isize) } else { keys as isize };
    let lo = match window {
        Some(window) => at.saturating_sub(window.min(isize::MAX as usize) as isize).saturating_add(1),
        None => 0,
    };
    (lo.clamp(0, hi) as usize)..(hi as usize)
}

impl Attention<'_> {
    /// The keys that position `t` may see by `causal` and `window`.
    pub(super) fn seen(&self, t: usize) -> Range<usize> {
        seen(t, (self.q_len, self.kv_len), self.causal, self.window)
    }

    pub(super) fn bias_kind(&self) -> Bias {
        match self.mask {
            Mask::None => Bias::None,
            Mask::Keep { .. } => Bias::Keep,
            Mask::Add { .. } => Bias::Add,
        }
    }

    /// The bias of query (b, h, t) for key `key`: for [`Mask::Keep`] plus or minus infinity.
    ///
    /// # Safety
    /// The mask is readable there.
    pub(super) unsafe fn bias(&self, b: usize, h: usize, t: usize, key: usize) -> f64 {
        let at = |s: &[isize; 4]| b as isize * s[0] + h as isize * s[1] + t as isize * s[2] + key as isize * s[3];
        // SAFETY: the caller's promise.
        unsafe {
            match &self.mask {
                Mask::None => 0.0,
                Mask::Keep { ptr, strides } => match *ptr.offset(at(strides)) {
                    0 => f64::NEG_INFINITY,
                    _ => f64::INFINITY,
                },
                Mask::Add { ptr, dtype, strides } => read(*ptr, *dtype, at(strides)),
            }
        }
    }

    /// The biases of `keys` keys from `key` on.
    ///
    /// # Safety
    /// The mask is readable there; `to` has room for `keys`.
    pub(super) unsafe fn bias_row(&self, b: usize, h: usize, t: usize, key: usize, keys: usize, to: *mut f32) {
        let at = |s: &[isize; 4]| b as isize * s[0] + h as isize * s[1] + t as isize * s[2] + key as isize * s[3];
        // SAFETY: the caller's promise.
        unsafe {
            match &self.mask {
                Mask::Keep { ptr, strides } if strides[3] == 1 => {
                    let row = ptr.offset(at(strides));
                    for i in 0..keys {
                        *to.add(i) = if *row.add(i) != 0 { f32::INFINITY } else { f32::NEG_INFINITY };
                    }
                }
                Mask::Add { ptr, dtype: Dtype::Float32, strides } if strides[3] == 1 => {
                    std::ptr::copy_nonoverlapping(ptr.cast::<f32>().offset(at(strides)), to, keys);
                }
                _ => {
                    for i in 0..keys {
                        *to.add(i) = self.bias(b, h, t, key + i) as f32;
                    }
                }
            }
        }
    }

    /// The result of a row none of whose scores is above minus infinity. Dropped scores, being finite, then share
    /// all the weight: the mean of the values of the dropped keys, NaN when there are none.
    ///
    /// # Safety
    /// As for the call.
    pub(super) unsafe fn unseen(&self, b: usize, h: usize, t: usize, column: usize) -> f64 {
        let seen = self.seen(t);
        let dropped = |key: &usize| match self.mask {
            _ if !seen.contains(key) => true,
            // SAFETY: the caller's promise.
            Mask::Keep { .. } => unsafe { self.bias(b, h, t, *key) < 0.0 },
            _ => false,
        };
        let head = h / (self.q_heads / self.kv_heads);
        let (mut sum, mut count) = (0.0, 0.0);
        for key in (0..self.kv_len).filter(dropped) {
            let (v, at) = self.place(1, key);
            let [sb, sh, st] = v.strides;
            let at = b as isize * sb + head as isize * sh + at as isize * st + column as isize;
            // SAFETY: the caller's promise.
            sum += unsafe { read(v.ptr, v.dtype, at) };
            count += 1.0;
        }
        sum / count
    }
}
