//! Attention with a cache: the bits of the ops that it takes the place of, its derivatives and mapping, what it refuses.

use crate::check::{check, normal, one};
use lapis::ops::fast::cached::{CachedAttention, CachedRow};
use lapis::ops::fast::rope::Rope;
use lapis::ops::fast::{AttentionOptions, Cache, CachedHeads, Frequencies, KEY_BLOCK, attention_with_cache};
use lapis::prelude::*;
use lapis::scalar::Real;
use lapis::transforms::Decompose;

const HEADS: usize = 6;
const KEYS: usize = 2;
const WIDTH: usize = 16;
const VALUE: usize = 12;

/// Blocks with room for one more than `seen`, the last of `room`.
fn cache(seen: usize, room: usize, dtype: Dtype, seed: u64) -> Cache {
    let blocks = |width: usize, seed: u64| -> Vec<Array> {
        (0..=seen / KEY_BLOCK)
            .map(|i| {
                let rows = if i < seen / KEY_BLOCK { KEY_BLOCK } else { room };
                ops::astype(&normal(&[1, KEYS, rows, width], seed + i as u64), dtype).unwrap()
            })
            .collect()
    };
    Cache { position: seen as i64 + 3, seen, keys: blocks(WIDTH, seed), values: blocks(VALUE, seed + 50) }
}

fn caches(dtype: Dtype) -> Vec<Cache> {
    let sizes = [(0, 64), (5, 64), (63, 64), (511, 512), (512, 64), (1030, 64), (300, 512)];
    sizes.iter().enumerate().map(|(i, &(seen, room))| cache(seen, room, dtype, 100 * i as u64)).collect()
}

fn rows(n: usize, dtype: Dtype) -> [Array; 3] {
    [(HEADS * WIDTH, 1), (KEYS * WIDTH, 2), (KEYS * VALUE, 3)]
        .map(|(width, seed)| ops::astype(&normal(&[n, width], seed), dtype).unwrap())
}

fn bits(a: &Array) -> Vec<u8> {
    let a = ops::contiguous(a, false).unwrap();
    ops::view(&ops::flatten(&a, 0, -1).unwrap(), Dtype::Uint8).unwrap().to_vec().unwrap()
}

#[test]
fn the_bits_are_those_of_the_ops_one_after_the_other() {
    for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16, Dtype::Float64] {
        let cast = |a: Array| ops::astype(&a, dtype).unwrap();
        let weights = [cast(normal(&[WIDTH], 7)), cast(normal(&[WIDTH], 8))];
        let given = ops::abs(&normal(&[4], 9)).unwrap();
        let given = ops::astype(&ops::add(&given, 1.0).unwrap(), Dtype::Float32).unwrap();
        let sinks = cast(normal(&[HEADS], 10));
        let norms = Some([(&weights[0], 1e-6), (&weights[1], 1e-5)]);
        let plain = AttentionOptions { scale: 0.3, ..AttentionOptions::default() };
        let all = AttentionOptions { window: Some(40), softcap: Some(3.0), sinks: Some(&sinks), ..plain };
        for (norms, rope, attention) in [
            (None, None, plain),
            (norms, Some((WIDTH, false, Frequencies::Base(100.0), 0.7)), plain),
            (norms, Some((8, true, Frequencies::Given(&given), 1.0)), all),
            (None, Some((8, false, Frequencies::Given(&given), 1.0)), all),
        ] {
            let heads = CachedHeads { heads: [HEADS, KEYS], norms, rope, attention };
            let [q, k, v] = rows(7, dtype);
            let (y, blocks) = attention_with_cache([&q, &k, &v], &heads, caches(dtype)).unwrap();
            let mut inputs = vec![q.clone(), k.clone(), v.clone()];
            inputs.extend(norms.iter().flatten().map(|n| n.0.clone()));
            let turn = rope.map(|(dims, traditional, frequencies, scale)| {
                let base = match frequencies {
                    Frequencies::Base(base) => Some(Real(base)),
                    Frequencies::Given(all) => {
                        inputs.push(all.clone());
                        None
                    }
                };
                Rope { dims, traditional, base, scale: Real(scale) }
            });
            inputs.extend(attention.sinks.cloned());
            let mut places = Vec::new();
            for c in caches(dtype) {
                places.push(CachedRow { position: c.position, seen: c.seen, blocks: c.keys.len() });
                inputs.extend(c.keys.into_iter().chain(c.values));
            }
            let op = CachedAttention {
                heads: HEADS,
                kv_heads: KEYS,
                norms: norms.map(|all| all.map(|n| Real(n.1))),
                rope: turn,
                scale: Real(attention.scale),
                softcap: attention.softcap.map(Real),
                window: attention.window,
                sinks: attention.sinks.is_some(),
                rows: places,
            };
            let formula = op.decompose(&inputs).unwrap();
            let kernel: Vec<Array> = std::iter::once(y).chain(blocks.into_iter().flatten()).collect();
            assert_eq!(formula.len(), kernel.len());
            for (i, (a, b)) in formula.iter().zip(&kernel).enumerate() {
                assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()), "output {i}");
                assert!(bits(a) == bits(b), "output {i} in {dtype}: {a}\n{b}");
            }
            // A row alone is what it is among others.
            for (i, cache) in caches(dtype).into_iter().enumerate() {
                let own = |a: &Array| ops::slice(a, &[(Some(i as i64), Some(i as i64 + 1), 1)]).unwrap();
                let (alone, _) = attention_with_cache([&own(&q), &own(&k), &own(&v)], &heads, vec![cache]).unwrap();
                assert!(bits(&alone) == bits(&own(&kernel[0])), "row {i} in {dtype}");
            }
        }
    }
}

#[test]
fn blocks_that_others_hold_stay_as_they_are() {
    let [q, k, v] = rows(1, Dtype::Float32);
    let heads = CachedHeads { heads: [HEADS, KEYS], norms: None, rope: None, attention: AttentionOptions::default() };
    let cache = cache(5, 64, Dtype::Float32, 1);
    let held = [cache.keys[0].clone(), cache.values[0].clone()];
    let before = held.each_ref().map(bits);
    let (_, blocks) = attention_with_cache([&q, &k, &v], &heads, vec![cache]).unwrap();
    let [[keys, values]] = blocks.as_slice() else { panic!("one sequence") };
    for (new, old) in [keys, values].into_iter().zip(&before) {
        assert!(bits(new) != *old);
    }
    assert!(held.each_ref().map(bits) == before);
}

#[test]
fn derivatives_and_mapping() {
    let heads = CachedHeads {
        heads: [2, 1],
        norms: None,
        rope: Some((4, false, Frequencies::Base(10.0), 1.0)),
        attention: AttentionOptions { scale: 0.5, ..AttentionOptions::default() },
    };
    let f = |x: &[Array]| {
        let cache = |i: usize, seen: usize| Cache {
            position: seen as i64,
            seen,
            keys: vec![x[i].clone()],
            values: vec![x[i + 1].clone()],
        };
        one(attention_with_cache([&x[0], &x[1], &x[2]], &heads, vec![cache(3, 2), cache(5, 0)]).map(|r| r.0))
    };
    let shapes: [&[usize]; 7] = [&[2, 8], &[2, 4], &[2, 3], &[1, 1, 4, 4], &[1, 1, 4, 3], &[1, 1, 2, 4], &[1, 1, 2, 3]];
    let inputs: Vec<Array> = shapes.iter().zip(30..).map(|(shape, seed)| normal(shape, seed)).collect();
    check("attention with a cache", &f, &inputs);
}

#[test]
fn what_does_not_fit_is_refused() {
    let [q, k, v] = rows(1, Dtype::Float32);
    let heads = CachedHeads { heads: [HEADS, KEYS], norms: None, rope: None, attention: AttentionOptions::default() };
    let why = |qkv: [&Array; 3], heads: &CachedHeads<'_>, cache: Cache| {
        attention_with_cache(qkv, heads, vec![cache]).err().unwrap().to_string()
    };
    let full = why([&q, &k, &v], &heads, Cache { seen: 64, ..cache(5, 64, Dtype::Float32, 1) });
    assert!(full.contains("64 keys leave no room"), "{full}");
    let odd = why([&q, &k, &v], &heads, Cache { values: vec![], ..cache(5, 64, Dtype::Float32, 1) });
    assert!(odd.contains("1 blocks of keys and 0 of values"), "{odd}");
    let other = why([&q, &k, &v], &heads, cache(5, 64, Dtype::Float16, 1));
    assert!(other.contains("float16"), "{other}");
    let wide = why([&q, &q, &v], &heads, cache(5, 64, Dtype::Float32, 1));
    assert!(wide.contains("heads"), "{wide}");
    let rope = Some((WIDTH + 2, false, Frequencies::Base(10.0), 1.0));
    let wide = why([&q, &k, &v], &CachedHeads { rope, ..heads }, cache(5, 64, Dtype::Float32, 1));
    assert!(wide.contains("18 of 16 features"), "{wide}");
}
