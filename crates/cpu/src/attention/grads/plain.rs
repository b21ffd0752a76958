//! The gradients in f64, row by row: for operands of dtype float64, where exactness and not speed is asked for.

use super::Grads;
use crate::attention::mask::seen;
use crate::pool;

/// # Safety
/// As `super::attention_grads`, with operands of dtype float64.
pub(super) unsafe fn grads(a: &Grads) {
    pool::run(a.batch * a.kv_heads, &|i| {
        let (b, head) = (i / a.kv_heads, i % a.kv_heads);
        let group = a.q_heads / a.kv_heads;
        // SAFETY: the caller's promises; the results of a key head, and of the queries that use it, are this task's.
        unsafe {
            for t in 0..a.kv_len {
                a.dk.at::<f64>(b, head, t).write_bytes(0, a.dim);
                a.dv.at::<f64>(b, head, t).write_bytes(0, a.v_dim);
            }
            for row in 0..a.q_len * group {
                query(a, b, head, head * group + row % group, row / group);
            }
        }
    });
}

unsafe fn dot(a: *const f64, b: *const f64, n: usize) -> f64 {
    // SAFETY: the caller promises `n` elements.
    (0..n).map(|i| unsafe { *a.add(i) * *b.add(i) }).sum()
}

/// `to += x * from`
unsafe fn add(to: *mut f64, x: f64, from: *const f64, n: usize) {
    for i in 0..n {
        // SAFETY: the caller promises `n` elements.
        unsafe { *to.add(i) += x * *from.add(i) }
    }
}

/// What one query gets and gives.
unsafe fn query(a: &Grads, b: usize, head: usize, h: usize, t: usize) {
    let keys = seen(t, (a.q_len, a.kv_len), a.causal, a.window);
    // SAFETY: the caller's promises.
    unsafe {
        let (q, g, dq) = (a.q.at::<f64>(b, h, t), a.g.at::<f64>(b, h, t), a.dq.at::<f64>(b, h, t));
        let scores = keys.clone().map(|key| a.scale * dot(q, a.k.at(b, head, key), a.dim));
        let mut weights: Vec<f64> = scores.collect();
        let top = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        weights.iter_mut().for_each(|w| *w = (*w - top).exp());
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
        let changes: Vec<f64> = keys.clone().map(|key| dot(g, a.v.at(b, head, key), a.v_dim)).collect();
        let along: f64 = weights.iter().zip(&changes).map(|(w, c)| w * c).sum();
        dq.write_bytes(0, a.dim);
        for ((key, weight), change) in keys.zip(weights).zip(changes) {
            let score = a.scale * weight * (change - along);
            add(a.dv.at(b, head, key), weight, g, a.v_dim);
            add(a.dk.at(b, head, key), score, q, a.dim);
            add(dq, score, a.k.at(b, head, key), a.dim);
        }
    }
}
