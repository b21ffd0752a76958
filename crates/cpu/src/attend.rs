//! Attention on tensors: finds pointers and strides and calls [`crate::attention`].

use crate::attention::{self, Mask, Operand, Target};
use crate::isa::isa;
use crate::tape::{Dense, contiguous};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
use lapis_core::ops::fast::attention::Attention;
use lapis_core::ops::fast::attention_grads::AttentionGrads;
use smallvec::SmallVec;

/// Computes softmax(scale * q * k^T + mask) * v.
pub(crate) fn attention(op: &Attention, inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    let (blocks, rest) = inputs[1..].split_at(2 * op.blocks);
    let (keys, values) = blocks.split_at(op.blocks);
    let q = dense_rows(&inputs[0])?;
    let (keys, values) = (all_dense(keys)?, all_dense(values)?);
    let (k, v) = (&keys[0], &values[0]);
    let later: SmallVec<[[Operand; 2]; 8]> =
        keys[1..].iter().zip(&values[1..]).map(|(k, v)| [operand(k), operand(v)]).collect();
    let mut parts = rest.iter();
    let mask = if op.mask { parts.next() } else { None };
    let sinks = if op.sinks { parts.next().map(contiguous).transpose()? } else { None };
    let mask = match mask {
        None => Mask::None,
        Some(m) => {
            let strides = [m.strides[0], m.strides[1], m.strides[2], m.strides[3]];
            if m.dtype == Dtype::Bool {
                Mask::Keep { ptr: m.ptr(), strides }
            } else {
                Mask::Add { ptr: m.ptr(), dtype: m.dtype, strides }
            }
        }
    };
    let call = attention::Attention {
        batch: q.shape[0],
        q_heads: q.shape[1],
        kv_heads: k.shape[1],
        q_len: q.shape[2],
        kv_len: keys.iter().map(|k| k.shape[2]).sum(),
        dim: q.shape[3],
        v_dim: v.shape[3],
        q: operand(&q),
        k: operand(k),
        v: operand(v),
        later: &later,
        out: out.ptr(),
        out_dtype: out.dtype,
        out_strides: lead(out),
        scale: op.scale.0,
        softcap: op.softcap.map(|c| c.0),
        causal: op.causal,
        window: op.window,
        mask,
        sinks: sinks.as_ref().map(|s| (s.ptr().cast_const(), s.dtype)),
    };
    // SAFETY: the op checked shapes and dtypes; strides are those of live tensors; the output is ours alone.
    unsafe { attention::attention(isa(), &call) };
    Ok(())
}

/// Computes the gradients of attention by q, k and v.
pub(crate) fn attention_grads(op: &AttentionGrads, inputs: &[Tensor], outputs: &mut [Tensor]) -> Result<()> {
    let [q, k, v, g] = inputs else { return Ok(()) };
    let (q, k, v, g) = (dense_rows(q)?, dense_rows(k)?, dense_rows(v)?, dense_rows(g)?);
    let target = |t: &Tensor| Target { ptr: t.ptr(), strides: lead(t) };
    let call = attention::Grads {
        batch: q.shape[0],
        q_heads: q.shape[1],
        kv_heads: k.shape[1],
        q_len: q.shape[2],
        kv_len: k.shape[2],
        dim: q.shape[3],
        v_dim: v.shape[3],
        q: operand(&q),
        k: operand(&k),
        v: operand(&v),
        g: operand(&g),
        dq: target(&outputs[0]),
        dk: target(&outputs[1]),
        dv: target(&outputs[2]),
        scale: op.scale.0,
        causal: op.causal,
        window: op.window,
    };
    // SAFETY: the op checked shapes and dtypes; strides are those of live tensors; the outputs are ours alone.
    unsafe { attention::attention_grads(isa(), &call) };
    Ok(())
}

pub(crate) fn operand(t: &Tensor) -> Operand {
    Operand { ptr: t.ptr(), dtype: t.dtype, strides: lead(t) }
}

/// Strides of the first three axes.
fn lead(t: &Tensor) -> [isize; 3] {
    [t.strides[0], t.strides[1], t.strides[2]]
}

/// `t` with a contiguous last axis: itself, or a copy.
pub(crate) fn dense_rows(t: &Tensor) -> Result<Dense<'_>> {
    if t.strides[3] == 1 || t.shape[3] == 1 { Ok(Dense::Here(t)) } else { contiguous(t) }
}

fn all_dense(all: &[Tensor]) -> Result<SmallVec<[Dense<'_>; 4]>> {
    all.iter().map(dense_rows).collect()
}
