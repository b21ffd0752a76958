//! Attention in f64, row by row: for results of dtype float64, where exactness and not speed is asked for.

use super::mask::read;
use super::{Attention, Mask};
use crate::pool;

/// # Safety
/// As `super::attention`.
pub(super) unsafe fn attention(a: &Attention) {
    pool::run(a.batch * a.q_heads, &|i| {
        let (b, h) = (i / a.q_heads, i % a.q_heads);
        let mut scores = Vec::with_capacity(a.kv_len);
        let mut sums = vec![0.0; a.v_dim];
        for t in 0..a.q_len {
            // SAFETY: the caller's promises.
            unsafe { row(a, b, h, t, &mut scores, &mut sums) };
        }
    });
}

unsafe fn row(a: &Attention, b: usize, h: usize, t: usize, scores: &mut Vec<f64>, sums: &mut [f64]) {
    let kv_head = h / (a.q_heads / a.kv_heads);
    let base = |s: [isize; 3], h: usize, t: usize| b as isize * s[0] + h as isize * s[1] + t as isize * s[2];
    let seen = a.seen(t);
    scores.clear();
    // SAFETY: the caller's promises.
    unsafe {
        let q = base(a.q.strides, h, t);
        for key in seen.clone() {
            let (from, at) = a.place(0, key);
            let k = base(from.strides, kv_head, at);
            let product = |d| read(a.q.ptr, a.q.dtype, q + d) * read(from.ptr, from.dtype, k + d);
            let mut score = a.scale * (0..a.dim as isize).map(product).sum::<f64>();
            if let Some(cap) = a.softcap {
                score = cap * (score / cap).tanh();
            }
            let bias = a.bias(b, h, t, key);
            scores.push(match a.mask {
                Mask::None => score,
                Mask::Keep { .. } if bias < 0.0 => f64::NEG_INFINITY,
                Mask::Keep { .. } => score,
                Mask::Add { .. } => score + bias,
            });
        }
        let sink = a.sinks.map_or(f64::NEG_INFINITY, |(ptr, dtype)| read(ptr, dtype, h as isize));
        let max = scores.iter().copied().fold(sink, f64::max);
        let origin = if max == f64::NEG_INFINITY { 0.0 } else { max };
        let mut total = (sink - origin).exp();
        sums.fill(0.0);
        for (key, score) in seen.zip(&*scores) {
            let weight = (score - origin).exp();
            total += weight;
            let (from, at) = a.place(1, key);
            let v = base(from.strides, kv_head, at);
            for (c, sum) in sums.iter_mut().enumerate() {
                *sum += weight * read(from.ptr, from.dtype, v + c as isize);
            }
        }
        let out = a.out.cast::<f64>().offset(base(a.out_strides, h, t));
        for (c, sum) in sums.iter().enumerate() {
            *out.add(c) = if total == 0.0 { a.unseen(b, h, t, c) } else { sum / total + 0.0 };
        }
    }
}
