//! The gated delta rule: one matrix state a head, updated step by step. The state (Dv x Dk in f32) stays in the cache;
//! 8 operations an element of it and step. Float64 computes in f64, plainly.

use super::{Elem, Shared};
use crate::pool;
use crate::simd::{self, Float, Kernel, LANES32, Simd};
use crate::tape::contiguous;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
use lapis_core::ops::fast::delta::GatedDelta;
use std::borrow::Cow;

/// Computes y and the final state.
pub(crate) fn gated_delta(op: &GatedDelta, inputs: &[Tensor], outputs: &mut [Tensor]) -> Result<()> {
    match outputs[0].dtype {
        Dtype::Float64 => run::<f64>(op, inputs, outputs),
        _ => run::<f32>(op, inputs, outputs),
    }
}

/// What states are made of.
trait Number: Copy + Send + Sync + bytemuck::Pod {
    /// The elements of a contiguous tensor, in place where they are of this type.
    fn widen(t: &Tensor) -> Cow<'_, [Self]>;
    /// # Safety
    /// Element `i` can be written.
    unsafe fn write(self, p: *mut u8, dtype: Dtype, i: usize);
    fn step(step: Step<'_, Self>);
}

fn run<N: Number>(op: &GatedDelta, inputs: &[Tensor], outputs: &mut [Tensor]) -> Result<()> {
    let dtype = outputs[0].dtype;
    // Everything in f32 or f64; the rounding of y is the only one.
    let dense: Vec<_> = inputs.iter().map(contiguous).collect::<Result<_>>()?;
    let widened: Vec<Cow<'_, [N]>> = dense[..5].iter().map(|t| N::widen(t)).collect();
    let [q, k, v, gamma, beta] = &widened[..] else { return Ok(()) };
    let mut rest = dense[5..].iter();
    let start = if op.state { rest.next().map(|t| N::widen(t)) } else { None };
    let mask = if op.mask { rest.next().map(|m| m.contiguous_bytes()) } else { None };

    let (qs, vs) = (&inputs[0].shape, &inputs[2].shape);
    let (batch, steps, hk, dk) = (qs[0], qs[1], qs[2], qs[3]);
    let (hv, dv) = (vs[2], vs[3]);
    let vector_gate = inputs[3].shape.len() == 4;
    let y = Shared(outputs[0].ptr());
    let state = Shared(outputs[1].ptr().cast::<N>());
    pool::run(batch * hv, &|task| {
        let (b, h) = (task / hv, task % hv);
        let kh = h * hk / hv;
        // SAFETY: every head has its own state and its own elements of y.
        let state = unsafe { std::slice::from_raw_parts_mut(state.at(task * dv * dk), dv * dk) };
        match &start {
            Some(start) => state.copy_from_slice(&start[task * dv * dk..(task + 1) * dv * dk]),
            None => state.fill(N::zeroed()),
        }
        let mut row = vec![N::zeroed(); dv];
        for t in 0..steps {
            let at = b * steps + t;
            row.fill(N::zeroed());
            if mask.is_none_or(|m| m[at] != 0) {
                let key = (at * hk + kh) * dk;
                let gate = if vector_gate { (at * hv + h) * dk } else { at * hv + h };
                N::step(Step {
                    state,
                    q: &q[key..key + dk],
                    k: &k[key..key + dk],
                    v: &v[(at * hv + h) * dv..][..dv],
                    gamma: if vector_gate { &gamma[gate..gate + dk] } else { &gamma[gate..gate + 1] },
                    beta: beta[at * hv + h],
                    y: &mut row,
                });
            }
            for (i, &value) in row.iter().enumerate() {
                // SAFETY: as above.
                unsafe { value.write(y.at(0), dtype, (at * hv + h) * dv + i) };
            }
        }
    });
    Ok(())
}

impl Number for f32 {
    fn widen(t: &Tensor) -> Cow<'_, [f32]> {
        let bytes = t.contiguous_bytes();
        match t.dtype {
            Dtype::Float16 => bytemuck::cast_slice::<u8, half::f16>(bytes).iter().map(|x| x.to_f32()).collect(),
            Dtype::Bfloat16 => bytemuck::cast_slice::<u8, half::bf16>(bytes).iter().map(|x| x.to_f32()).collect(),
            _ => Cow::Borrowed(bytemuck::cast_slice(bytes)),
        }
    }
    unsafe fn write(self, p: *mut u8, dtype: Dtype, i: usize) {
        // SAFETY: passed on.
        unsafe {
            match dtype {
                Dtype::Float16 => p.cast::<half::f16>().add(i).write(half::f16::from_f32(self)),
                Dtype::Bfloat16 => p.cast::<half::bf16>().add(i).write(half::bf16::from_f32(self)),
                _ => p.cast::<f32>().add(i).write(self),
            }
        }
    }
    fn step(step: Step<'_, f32>) {
        simd::dispatch(step);
    }
}

impl Number for f64 {
    fn widen(t: &Tensor) -> Cow<'_, [f64]> {
        Cow::Borrowed(bytemuck::cast_slice(t.contiguous_bytes()))
    }
    unsafe fn write(self, p: *mut u8, _: Dtype, i: usize) {
        // SAFETY: passed on.
        unsafe { p.cast::<f64>().add(i).write(self) }
    }
    fn step(step: Step<'_, f64>) {
        let Step { state, q, k, v, gamma, beta, y } = step;
        for (i, row) in state.chunks_exact_mut(k.len()).enumerate() {
            row.iter_mut().zip(gamma.iter().cycle()).for_each(|(s, g)| *s *= g);
            let known: f64 = row.iter().zip(k).map(|(s, k)| s * k).sum();
            let change = beta * (v[i] - known);
            row.iter_mut().zip(k).for_each(|(s, k)| *s += change * k);
            y[i] = row.iter().zip(q).map(|(s, q)| s * q).sum();
        }
    }
}

/// One step of one head: `S = gamma S; d = beta (v - S k); S = S + d k^T; y = S q`.
struct Step<'a, N> {
    state: &'a mut [N],
    q: &'a [N],
    k: &'a [N],
    v: &'a [N],
    /// One number, or one a column.
    gamma: &'a [N],
    beta: N,
    y: &'a mut [N],
}

impl Kernel for Step<'_, f32> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let dk = self.k.len();
        let one = s.f32(self.gamma.first().copied().unwrap_or(1.0));
        let each = self.gamma.len() == dk && dk > 1;
        for (i, row) in self.state.chunks_exact_mut(dk).enumerate() {
            let p = row.as_mut_ptr();
            // SAFETY: all slices but v and y are `dk` long.
            unsafe {
                let mut dot = s.f32(0.0);
                let mut at = 0;
                while at < dk {
                    let n = LANES32.min(dk - at);
                    let gamma = if each { f32::load(s, self.gamma.as_ptr().add(at), n) } else { one };
                    let decayed = <f32 as Elem>::load(s, p.add(at), n) * gamma;
                    <f32 as Elem>::store(s, p.add(at), n, decayed);
                    dot = decayed.fma(f32::load(s, self.k.as_ptr().add(at), n), dot);
                    at += LANES32;
                }
                let d = s.f32(self.beta * (self.v[i] - dot.reduce_add()));
                let mut y = s.f32(0.0);
                at = 0;
                while at < dk {
                    let n = LANES32.min(dk - at);
                    let next = d.fma(f32::load(s, self.k.as_ptr().add(at), n), f32::load(s, p.add(at), n));
                    <f32 as Elem>::store(s, p.add(at), n, next);
                    y = next.fma(f32::load(s, self.q.as_ptr().add(at), n), y);
                    at += LANES32;
                }
                self.y[i] = y.reduce_add();
            }
        }
    }
}
