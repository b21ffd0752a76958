//! Attention of one row of each of several sequences to what their caches hold, with all that a layer does before it: heads
//! normalised and turned by the kernels that do so elsewhere, keys and values written, then one parallel region for all.

use crate::attend::{dense_rows, operand};
use crate::attention::{self, Attention, Mask, Operand};
use crate::isa::isa;
use crate::memory;
use crate::rows::{norm, rope};
use crate::tape::contiguous;
use lapis_core::buffer::Tensor;
use lapis_core::error::{Error, Result};
use lapis_core::ops::fast::attention::KEY_BLOCK;
use lapis_core::ops::fast::cached::CachedAttention;
use lapis_core::ops::fast::norm::Norm;
use smallvec::{SmallVec, smallvec};

/// Computes rows, and writes keys and values into the last blocks, which `outputs` hold as they were.
pub(crate) fn attention(op: &CachedAttention, inputs: &[Tensor], outputs: &mut [Tensor]) -> Result<()> {
    let parts = op.parts(inputs);
    let [q, k, v] = parts.rows;
    let of_heads = |x: &Tensor, heads: usize| -> Result<Tensor> {
        let (x, n) = (contiguous(x)?, op.rows.len());
        let shape = smallvec![n, heads, 1, x.size() / (n * heads).max(1)];
        Ok(Tensor { offset: x.offset, ..Tensor::row_major(x.buffer, shape, x.dtype) })
    };
    let turned = |x: &Tensor, heads: usize, which: usize| -> Result<Tensor> {
        let mut x = of_heads(x, heads)?;
        let fresh = |x: &Tensor| -> Result<Tensor> {
            Ok(Tensor::row_major(memory::allocate(x.nbytes())?, x.shape.clone(), x.dtype))
        };
        if let (Some(eps), Some(weights)) = (op.norms, parts.norms) {
            let op = Norm { eps: eps[which], centred: false, weight: true, bias: false };
            let mut out = fresh(&x)?;
            norm::norm(&op, &[x, weights[which].clone()], &mut out)?;
            x = out;
        }
        if let Some(by) = &op.rope {
            let positions = op.rows.iter().map(|row| row.position).collect();
            let mut out = fresh(&x)?;
            rope::turn(by, &x, positions, parts.frequencies, &mut out)?;
            x = out;
        }
        Ok(x)
    };
    let (q, k, v) = (turned(q, op.heads, 0)?, turned(k, op.kv_heads, 1)?, of_heads(v, op.kv_heads)?);
    let sinks = parts.sinks.map(contiguous).transpose()?;
    let (out, last) = outputs.split_at_mut(1);

    let mut caches: Vec<[SmallVec<[Tensor; 2]>; 2]> = Vec::with_capacity(op.rows.len());
    for (i, (row, cache)) in op.rows.iter().zip(&parts.caches).enumerate() {
        let mut blocks: [SmallVec<[Tensor; 2]>; 2] = Default::default();
        for (which, new) in [&k, &v].into_iter().enumerate() {
            let last = &last[2 * i + which];
            // The op saw to that when it was built; it may have been advanced since.
            if row.seen / KEY_BLOCK + 1 != row.blocks || row.seen % KEY_BLOCK >= last.shape[2] {
                let text = format!("[attention_with_cache] {} keys leave no room in {} blocks", row.seen, row.blocks);
                return Err(Error::shape(text));
            }
            write(new, i, last, row.seen % KEY_BLOCK);
            let full = cache[which][..row.blocks - 1].iter();
            blocks[which] = full.map(dense_rows).collect::<Result<_>>()?;
            blocks[which].push(last.clone());
        }
        caches.push(blocks);
    }
    let later: Vec<SmallVec<[[Operand; 2]; 4]>> = caches
        .iter()
        .map(|[keys, values]| keys[1..].iter().zip(&values[1..]).map(|(k, v)| [operand(k), operand(v)]).collect())
        .collect();
    let row_of = |t: &Tensor, i: usize| t.ptr().wrapping_add(i * t.nbytes() / op.rows.len());
    let width = v.shape[3] as isize;
    let calls = op.rows.iter().zip(&caches).zip(&later).enumerate().map(|(i, ((row, cache), later))| Attention {
        batch: 1,
        q_heads: op.heads,
        kv_heads: op.kv_heads,
        q_len: 1,
        kv_len: row.seen + 1,
        dim: q.shape[3],
        v_dim: v.shape[3],
        q: Operand { ptr: row_of(&q, i), ..operand(&q) },
        k: operand(&cache[0][0]),
        v: operand(&cache[1][0]),
        later,
        out: row_of(&out[0], i),
        out_dtype: out[0].dtype,
        out_strides: [op.heads as isize * width, width, width],
        scale: op.scale.0,
        softcap: op.softcap.map(|cap| cap.0),
        causal: true,
        window: op.window,
        mask: Mask::None,
        sinks: sinks.as_ref().map(|s| (s.ptr().cast_const(), s.dtype)),
    });
    let calls: Vec<Attention> = calls.collect();
    // SAFETY: the op checked shapes and dtypes; strides are those of live tensors; the output is ours alone.
    unsafe { attention::attention_of_each(isa(), &calls) };
    Ok(())
}

/// Row `i` of `new` (rows, heads, 1, width) to place `at` of `block` (1, heads, room, width); both row-major.
fn write(new: &Tensor, i: usize, block: &Tensor, at: usize) {
    let (heads, bytes) = (new.shape[1], new.shape[3] * new.dtype.size());
    let room = block.shape[2];
    for head in 0..heads {
        // SAFETY: the op checked that `at` lies in the block, which is ours alone, and that heads and widths are equal.
        unsafe {
            let from = new.ptr().add((i * heads + head) * bytes);
            block.ptr().add((head * room + at) * bytes).copy_from_nonoverlapping(from, bytes);
        }
    }
}
