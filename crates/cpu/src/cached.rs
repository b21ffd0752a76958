//! Attention of one row of each of several sequences to what their caches hold, with all that a layer does before it, in one
//! parallel region: a task takes a head of keys of a sequence, normalises and turns the queries that share it and the new key, writes key
//! and value into the cache, and attends.

use crate::attend::{dense_rows, operand};
use crate::attention::{self, Attention, Mask, Operand};
use crate::isa::isa;
use crate::memory;
use crate::rows::{Shared, norm, rope};
use crate::soon;
use crate::tape::{Dense, contiguous};
use lapis_core::buffer::{Buffer, Tensor};
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use lapis_core::ops::fast::attention::KEY_BLOCK;
use lapis_core::ops::fast::cached::CachedAttention;
use smallvec::SmallVec;

/// Keys of a head that are asked for before anything else is done.
const FIRST_KEYS: usize = 64;

/// Computes rows, and writes keys and values into the last blocks, which `outputs` hold as they were.
pub(crate) fn attention(op: &CachedAttention, inputs: &[Tensor], outputs: &mut [Tensor]) -> Result<()> {
    let parts = op.parts(inputs);
    let [q, k, v] = parts.rows.map(contiguous);
    let (q, k, v) = (q?, k?, v?);
    let n = op.rows.len();
    let width = |x: &Tensor, heads: usize| x.size() / (n * heads).max(1);
    let (dim, v_dim, size) = (width(&q, op.heads), width(&v, op.kv_heads), q.dtype.size());
    let sinks = parts.sinks.map(contiguous).transpose()?;
    let (out, last) = outputs.split_at_mut(1);
    let (out, last) = (&out[0], &*last);

    type Blocks<'a> = SmallVec<[Dense<'a>; 2]>;
    let mut caches: SmallVec<[[Blocks; 2]; 4]> = SmallVec::with_capacity(n);
    for (i, (row, cache)) in op.rows.iter().zip(&parts.caches).enumerate() {
        let mut blocks: [Blocks; 2] = Default::default();
        for (which, blocks) in blocks.iter_mut().enumerate() {
            let last = &last[2 * i + which];
            // The op saw to that when it was built; it may have been advanced since.
            if row.seen / KEY_BLOCK + 1 != row.blocks || row.seen % KEY_BLOCK >= last.shape[2] {
                let text = format!("[attention_with_cache] {} keys leave no room in {} blocks", row.seen, row.blocks);
                return Err(Error::shape(text));
            }
            for full in &cache[which][..row.blocks - 1] {
                blocks.push(dense_rows(full)?);
            }
            blocks.push(Dense::Here(last));
        }
        caches.push(blocks);
    }

    let norms = match (op.norms, parts.norms) {
        (Some(eps), Some(weights)) => {
            let [q, k] = weights.map(contiguous);
            Some([(eps[0].0, q?), (eps[1].0, k?)])
        }
        _ => None,
    };
    let positions = || op.rows.iter().map(|row| row.position).collect();
    let turn =
        op.rope.as_ref().map(|by| rope::Turn::new(by, q.dtype, positions(), 1, parts.frequencies)).transpose()?;
    // Queries as they are, or room for what becomes of them.
    let changes = norms.is_some() || turn.is_some();
    let made: Option<Buffer> = changes.then(|| memory::allocate(q.nbytes())).transpose()?;
    let queries = Shared(made.as_ref().map_or(q.ptr(), Buffer::ptr));
    let new = New { dtype: q.dtype, norms: norms.as_ref(), turn: turn.as_ref() };

    let later: SmallVec<[SmallVec<[[Operand; 2]; 2]>; 4]> = caches
        .iter()
        .map(|[keys, values]| keys[1..].iter().zip(&values[1..]).map(|(k, v)| [operand(k), operand(v)]).collect())
        .collect();
    let calls = op.rows.iter().zip(&caches).zip(&later).enumerate().map(|(i, ((row, cache), later))| Attention {
        batch: 1,
        q_heads: op.heads,
        kv_heads: op.kv_heads,
        q_len: 1,
        kv_len: row.seen + 1,
        dim,
        v_dim,
        q: Operand {
            ptr: queries.at(i * op.heads * dim * size),
            dtype: q.dtype,
            strides: [(op.heads * dim) as isize, dim as isize, dim as isize],
        },
        k: operand(&cache[0][0]),
        v: operand(&cache[1][0]),
        later,
        out: out.ptr().wrapping_add(i * op.heads * v_dim * out.dtype.size()),
        out_dtype: out.dtype,
        out_strides: [(op.heads * v_dim) as isize, v_dim as isize, v_dim as isize],
        scale: op.scale.0,
        softcap: op.softcap.map(|cap| cap.0),
        causal: true,
        window: op.window,
        mask: Mask::None,
        sinks: sinks.as_ref().map(|s| (s.ptr().cast_const(), s.dtype)),
    });
    let calls: SmallVec<[Attention; 4]> = calls.collect();
    let (from, group) = ([&q, &k, &v].map(|x| Shared(x.ptr())), op.heads / op.kv_heads.max(1));
    let before = |i: usize, head: usize| {
        // Memory gives the first keys that are seen while the new ones are made.
        let seen = op.rows[i].seen;
        let first = op.window.map_or(0, |window| (seen + 1).saturating_sub(window));
        let keys = operand(&caches[i][0][first / KEY_BLOCK]);
        let at = head as isize * keys.strides[1] + (first % KEY_BLOCK) as isize * keys.strides[2];
        let bytes = seen.saturating_sub(first).min(FIRST_KEYS) * dim * size;
        soon::ask_for(keys.ptr.wrapping_offset(at * size as isize), bytes);
        let place = |which: usize, width: usize| {
            let block = &last[2 * i + which];
            let at = head * block.shape[2] + op.rows[i].seen % KEY_BLOCK;
            block.ptr().wrapping_add(at * width * size)
        };
        let key = i * op.kv_heads + head;
        let at = key * group * dim * size;
        // SAFETY: the op checked shapes and dtypes, and that there is room in the last blocks, which are ours alone; no two calls
        // are for the same head of the same sequence.
        unsafe {
            if changes {
                new.head(0, i, from[0].at(at), queries.at(at), [group, dim]);
            }
            new.head(1, i, from[1].at(key * dim * size), place(0, dim), [1, dim]);
            place(1, v_dim).copy_from_nonoverlapping(from[2].at(key * v_dim * size), v_dim * size);
        }
    };
    // SAFETY: as above; strides are those of live tensors.
    unsafe { attention::attention_of_each(isa(), &calls, &before) };
    Ok(())
}

/// What becomes of queries and keys.
struct New<'a> {
    dtype: Dtype,
    /// Of each: eps and weight.
    norms: Option<&'a [(f64, Dense<'a>); 2]>,
    turn: Option<&'a rope::Turn>,
}

impl New<'_> {
    /// `rows` heads of queries (`which` 0) or keys (1) of sequence `i`, from `x` to `out`.
    ///
    /// # Safety
    /// They can be read and written, and do not overlap.
    unsafe fn head(&self, which: usize, i: usize, x: *const u8, out: *mut u8, [rows, dim]: [usize; 2]) {
        let bytes = dim * self.dtype.size();
        // SAFETY: the caller's promise; a norm's weight has the width of a head.
        unsafe {
            let mut from = x;
            if let Some((eps, weight)) = self.norms.map(|norms| &norms[which]) {
                norm::few(self.dtype, *eps, x, weight.ptr(), out, [rows, dim]);
                from = out;
            }
            match self.turn {
                Some(turn) => {
                    (0..rows).for_each(|row| turn.row(i, from.add(row * bytes), out.add(row * bytes), dim));
                }
                None if from == x => out.copy_from_nonoverlapping(x, rows * bytes),
                None => {}
            }
        }
    }
}
