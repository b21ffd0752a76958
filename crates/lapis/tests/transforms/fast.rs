//! Norms, rotary embedding, attention, the gated delta rule: their derivatives and mapping, and that each
//! formula is what its kernel computes.

use crate::check::{check, derivatives, mapping, normal, one, same_as, wave, weighed};
use lapis::ops::Rule;
use lapis::ops::fast::attention::{
    Attention, AttentionMask, AttentionOptions, KEY_BLOCK, attention_of_blocks, scaled_dot_product_attention,
};
use lapis::ops::fast::attention_grads::AttentionGrads;
use lapis::ops::fast::delta::{GatedDelta, gated_delta_update};
use lapis::ops::fast::norm::{Norm, layer_norm, rms_norm};
use lapis::ops::fast::rope::{Frequencies, Rope, rope};
use lapis::prelude::*;
use lapis::scalar::Real;
use lapis::transforms::{Decompose, grad, jvp, vjp};

#[test]
fn norms() {
    let (x, w, b) = (|| normal(&[2, 3, 5], 1), || normal(&[5], 2), || normal(&[5], 3));
    check("rms_norm", &|x| one(rms_norm(&x[0], Some(&x[1]), 1e-3)), &[x(), w()]);
    check("rms_norm of one axis", &|x| one(rms_norm(&x[0], Some(&x[1]), 1e-3)), &[w(), b()]);
    check("rms_norm without weight", &|x| one(rms_norm(&x[0], None, 1e-3)), &[x()]);
    check("layer_norm", &|x| one(layer_norm(&x[0], Some(&x[1]), Some(&x[2]), 1e-3)), &[x(), w(), b()]);
    check("layer_norm without bias", &|x| one(layer_norm(&x[0], Some(&x[1]), None, 1e-3)), &[x(), w()]);
    check("layer_norm without weight", &|x| one(layer_norm(&x[0], None, Some(&x[1]), 1e-3)), &[x(), b()]);
    check("bare layer_norm", &|x| one(layer_norm(&x[0], None, None, 1e-3)), &[x()]);
}

#[test]
fn norms_have_the_gradients_of_mlx() {
    let (x, w, b) = (wave(&[3, 8], 0.7), wave(&[8], 0.3), wave(&[8], 0.2));
    let g = grad(|a: &Vec<Array>| weighed(rms_norm(&a[0], Some(&a[1]), 1e-5), &[3, 8]))(&vec![x.clone(), w.clone()]);
    let g = g.unwrap();
    same_as("rms_norm x", &g[0], &[0.5218581, 0.8698764, 0.06325915, -1.095338, -1.032146, 0.1745672], 15.82013);
    same_as("rms_norm w", &g[1], &[0.8938136, 0.1876829, 0.08938581, 0.2674738, -0.3661337, -0.8827862], 3.671809);
    let layer = |a: &Vec<Array>| weighed(layer_norm(&a[0], Some(&a[1]), Some(&a[2]), 1e-5), &[3, 8]);
    let g = grad(layer)(&vec![x, w, b]).unwrap();
    same_as("layer_norm x", &g[0], &[0.4290681, 0.777029, -0.02956833, -1.188077, -1.124768, 0.0820339], 15.33009);
    same_as("layer_norm w", &g[1], &[0.9733574, 0.1431885, -0.01307124, 0.2082043, -0.3259643, -0.7754906], 3.457896);
    same_as("layer_norm b", &g[2], &[0.2846727, 0.6221806, 0.2797647, -0.3683793, -0.6139559, -0.1885957], 3.390771);
}

#[test]
fn rotary_embedding() {
    for traditional in [false, true] {
        let f = |x: &[Array]| one(rope(&ops::square(&x[0])?, 4, traditional, Frequencies::Base(50.0), 0.5, &x[1]));
        check("rope", &f, &[normal(&[2, 2, 3, 6], 4), array([7i64])]);
        check("rope, offset a row", &f, &[normal(&[2, 3, 4], 5), array([7i32, 2])]);
        let f = |x: &[Array]| one(rope(&ops::square(&x[0])?, 4, traditional, Frequencies::Given(&x[1]), 1.0, 3));
        check("rope, frequencies", &f, &[normal(&[2, 3, 6], 6), array([1.0f32, 5.0])]);
    }
    let loss = |x: &Array| weighed(rope(x, 4, false, Frequencies::Base(100.0), 0.5, 7), &[1, 2, 3, 8]);
    let g = grad(loss)(&wave(&[1, 2, 3, 8], 0.7)).unwrap();
    same_as("rope", &g, &[-0.7792425, 0.4331771, 0.4603428, -1.171141, -0.7055403, 0.3115417], 29.98335);
}

#[test]
fn frequencies_of_a_rotary_embedding_have_gradients() {
    // One pair at one position p: the angle is p / f, so d(cos)/df = sin(p/f) p / f^2.
    let x = Array::from_vec(vec![1.0f32, 0.0], &[1, 1, 2]);
    let f = |f: &Array| ops::sum(&rope(&x, 2, false, Frequencies::Given(f), 1.0, 3)?, (), false);
    let got = grad(f)(&array([2.0f32])).unwrap().item::<f32>().unwrap();
    let (p, f) = (3.0f32, 2.0f32);
    let want = ((p / f).sin() - (p / f).cos()) * p / (f * f);
    assert!((got - want).abs() < 1e-5, "{got}, not {want}");
}

fn attend(x: &[Array], options: AttentionOptions<'_>) -> Result<Vec<Array>> {
    one(scaled_dot_product_attention(&x[0], &x[1], &x[2], &AttentionOptions { scale: 0.6, ..options }))
}

#[test]
fn attention() {
    let qkv = || vec![normal(&[2, 4, 3, 2], 7), normal(&[2, 2, 4, 2], 8), normal(&[2, 2, 4, 3], 9)];
    let with = |a: Array| qkv().into_iter().chain([a]).collect::<Vec<_>>();
    let none = AttentionOptions::default();
    check("attention", &|x| attend(x, none), &qkv());
    let causal = AttentionOptions { mask: AttentionMask::Causal, ..none };
    check("causal", &|x| attend(x, causal), &qkv());
    check("causal window", &|x| attend(x, AttentionOptions { window: Some(2), ..causal }), &qkv());
    check("soft cap", &|x| attend(x, AttentionOptions { softcap: Some(1.5), ..causal }), &qkv());
    let masked = |x: &[Array]| attend(x, AttentionOptions { mask: AttentionMask::Array(&x[3]), ..none });
    // The first row sees nothing and averages all values.
    let keep = [false, false, false, false, true, false, true, true, false, true, true, true];
    check("bool mask", &masked, &with(Array::from_vec(keep.to_vec(), &[3, 4])));
    check("additive mask", &masked, &with(normal(&[2, 1, 3, 4], 10)));
    let both = |x: &[Array]| {
        attend(x, AttentionOptions { mask: AttentionMask::Array(&x[3]), window: Some(3), softcap: Some(2.0), ..none })
    };
    check("additive mask, window, soft cap", &both, &with(normal(&[3, 4], 11)));
    check("sinks", &|x| attend(x, AttentionOptions { sinks: Some(&x[3]), ..causal }), &with(normal(&[4], 12)));
}

#[test]
fn keys_in_blocks_are_keys() {
    let (q, k, v) = (normal(&[2, 4, 3, 4], 7), normal(&[2, 2, 600, 4], 8), normal(&[2, 2, 600, 3], 9));
    let options = AttentionOptions { scale: 0.4, mask: AttentionMask::Causal, ..AttentionOptions::default() };
    let blocks = |a: &Array| ops::split(a, vec![KEY_BLOCK as i64], 2);
    let whole = |x: &Vec<Array>| one(scaled_dot_product_attention(&x[0], &x[1], &x[2], &options));
    let cut = |x: &Vec<Array>| one(attention_of_blocks(&x[0], &blocks(&x[1])?, &blocks(&x[2])?, &options));
    let (inputs, g) = (vec![q, k.clone(), v.clone()], vec![normal(&[2, 4, 3, 3], 6)]);
    let (a, b) = (vjp(whole, &inputs, &g).unwrap(), vjp(cut, &inputs, &g).unwrap());
    assert_eq!(a.0[0].to_vec::<f64>().unwrap(), b.0[0].to_vec::<f64>().unwrap());
    for (a, b) in a.1.iter().zip(&b.1) {
        let far = ops::max(&ops::abs(&ops::subtract(a, b).unwrap()).unwrap(), (), false).unwrap();
        assert!(far.item::<f64>().unwrap() < 1e-5);
    }
    let why = attention_of_blocks(&inputs[0], &[k.clone(), k], &[v.clone(), v], &options).err().unwrap();
    assert!(why.to_string().contains("(2,2,600,4)"), "{why}");
}

#[test]
fn gradients_under_masks_sinks_and_caps_are_those_of_the_whole_formula() {
    // More queries than are taken at a time.
    let inputs = [
        normal(&[1, 4, 300, 6], 7),
        normal(&[1, 2, 330, 6], 8),
        normal(&[1, 2, 330, 5], 9),
        normal(&[1, 4, 300, 330], 10),
        normal(&[4], 11),
    ];
    let cotangent = vec![normal(&[1, 4, 300, 5], 12)];
    let far = |a: &Array, b: &Array| ops::max(&ops::abs(&ops::subtract(a, b).unwrap()).unwrap(), (), false).unwrap();
    let kept = ops::greater(&inputs[3], 0).unwrap();
    for (causal, mask, sinks, softcap, window) in [
        (true, None, false, Some(2.0), None),
        (true, None, true, None, Some(100)),
        (false, Some(&inputs[3]), true, Some(1.5), None),
        (false, Some(&kept), false, None, Some(290)),
    ] {
        let op = Attention {
            scale: Real(0.4),
            softcap: softcap.map(Real),
            causal,
            window,
            mask: mask.is_some(),
            sinks,
            blocks: 1,
            dtype: Dtype::Float64,
        };
        let places: Vec<Array> = inputs[..3].iter().chain(mask).chain(sinks.then(|| &inputs[4])).cloned().collect();
        let formula = |x: &Vec<Array>| op.decompose(x);
        let fast = |x: &Vec<Array>| {
            let mask = match mask {
                Some(_) => AttentionMask::Array(&x[3]),
                None if causal => AttentionMask::Causal,
                None => AttentionMask::None,
            };
            let options = AttentionOptions { scale: 0.4, softcap, mask, window, sinks: sinks.then(|| &x[x.len() - 1]) };
            one(scaled_dot_product_attention(&x[0], &x[1], &x[2], &options))
        };
        let (_, want) = vjp(formula, &places, &cotangent).unwrap();
        let (_, got) = vjp(fast, &places, &cotangent).unwrap();
        for (i, (a, b)) in got.iter().zip(&want).enumerate().filter(|(i, _)| places[*i].dtype() != Dtype::Bool) {
            assert!(far(a, b).item::<f64>().unwrap() < 1e-12, "input {i} of {op:?}");
        }
        // In bfloat16 sums are not rounded on the way.
        let half: Vec<Array> = places
            .iter()
            .map(|a| if a.dtype() == Dtype::Bool { a.clone() } else { a.astype(Dtype::Bfloat16) })
            .collect();
        let exact: Vec<Array> =
            half.iter().map(|a| if a.dtype() == Dtype::Bool { a.clone() } else { a.astype(Dtype::Float64) }).collect();
        let g = vec![cotangent[0].astype(Dtype::Bfloat16)];
        let (_, want) = vjp(formula, &exact, &vec![g[0].astype(Dtype::Float64)]).unwrap();
        let (_, got) = vjp(fast, &half, &g).unwrap();
        for (a, b) in got.iter().zip(&want).filter(|(a, _)| a.dtype() == Dtype::Bfloat16) {
            let a = a.astype(Dtype::Float64);
            assert!(ops::allclose(&a, b, 4e-3, 1e-4, false).unwrap().item::<bool>().unwrap(), "{op:?}:\n{a}\n{b}");
        }
    }
}

#[test]
fn gradients_of_attention_are_mapped_and_moved_forward() {
    let inputs =
        [normal(&[2, 4, 3, 2], 7), normal(&[2, 2, 4, 2], 8), normal(&[2, 2, 4, 3], 9), normal(&[2, 4, 3, 3], 6)];
    for (mask, window) in [(AttentionMask::None, Some(3)), (AttentionMask::Causal, None)] {
        let pulled = |x: &[Array]| {
            let f = |x: &Vec<Array>| attend(x, AttentionOptions { mask, window, ..AttentionOptions::default() });
            Ok(vjp(f, &x[..3].to_vec(), &vec![x[3].clone()])?.1)
        };
        derivatives("gradients of attention", &pulled, &inputs);
        mapping("gradients of attention", &pulled, &inputs);
    }
    // In f32 forward mode and differences agree to three digits.
    let x: Vec<Array> = inputs[..3].iter().map(|a| ops::astype(a, Dtype::Float32).unwrap()).collect();
    let f = |x: &Vec<Array>| attend(x, AttentionOptions { mask: AttentionMask::Causal, ..AttentionOptions::default() });
    let moved = |h: f64| f(&x.iter().map(|a| a * (1.0 + h)).collect()).unwrap().remove(0);
    let difference = (&moved(1e-2) - &moved(-1e-2)) * 50.0;
    let (_, pushed) = jvp(f, &x, &x).unwrap();
    assert!(ops::allclose(&pushed[0], &difference, 1e-3, 1e-3, false).unwrap().item::<bool>().unwrap());
}

#[test]
fn gradients_of_attention_are_those_of_the_formula_in_f64() {
    let shapes = [
        ([2, 4, 100, 32], [2, 2, 130, 32], 32),
        ([1, 2, 97, 64], [1, 2, 97, 64], 64),
        ([1, 6, 33, 80], [1, 2, 201, 80], 80),
        ([1, 3, 70, 128], [1, 1, 70, 128], 128),
        ([2, 1, 1, 7], [2, 1, 5, 7], 3),
    ];
    for (dtype, tolerance) in [(Dtype::Float32, 1e-5), (Dtype::Bfloat16, 1e-2), (Dtype::Float16, 2e-3)] {
        for (q, k, dv) in shapes {
            let (v, g) = ([k[0], k[1], k[2], dv], [q[0], q[1], q[2], dv]);
            let inputs = [normal(&q, 50), normal(&k, 51), normal(&v, 52), normal(&g, 53)];
            let narrow = inputs.map(|a| ops::astype(&a, dtype).unwrap());
            let exact: Vec<Array> = narrow.iter().map(|a| ops::astype(a, Dtype::Float64).unwrap()).collect();
            for (causal, window) in [(false, None), (true, None), (true, Some(40))] {
                let scale = 1.0 / (q[3] as f64).sqrt();
                let op = AttentionGrads { scale: Real(scale), causal, window };
                let mask = if causal { AttentionMask::Causal } else { AttentionMask::None };
                let options = AttentionOptions { scale, mask, window, ..AttentionOptions::default() };
                let f = |x: &Vec<Array>| one(scaled_dot_product_attention(&x[0], &x[1], &x[2], &options));
                let (_, pulled) = vjp(f, &narrow[..3].to_vec(), &vec![narrow[3].clone()]).unwrap();
                for (a, b) in pulled.iter().zip(op.decompose(&exact).unwrap()) {
                    assert_eq!((a.shape(), a.dtype()), (b.shape(), dtype));
                    let a = ops::astype(a, Dtype::Float64).unwrap();
                    let close = ops::allclose(&a, &b, tolerance, tolerance, false).unwrap().item::<bool>().unwrap();
                    assert!(close, "{dtype}, q {q:?}, k {k:?}, causal {causal}, window {window:?}:\n{a}\n{b}");
                }
            }
        }
    }
}

#[test]
fn operands_of_several_dtypes_have_gradients_of_theirs() {
    let x = vec![
        ops::astype(&normal(&[1, 2, 3, 4], 54), Dtype::Bfloat16).unwrap(),
        ops::astype(&normal(&[1, 2, 3, 4], 55), Dtype::Float32).unwrap(),
        ops::astype(&normal(&[1, 2, 3, 4], 56), Dtype::Float16).unwrap(),
    ];
    let loss = |x: &Vec<Array>| ops::sum(&attend(x, AttentionOptions::default())?[0], (), false);
    let dtypes: Vec<Dtype> = grad(loss)(&x).unwrap().iter().map(Array::dtype).collect();
    assert_eq!(dtypes, [Dtype::Bfloat16, Dtype::Float32, Dtype::Float16]);
}

#[test]
fn gradients_of_attention_refuse_what_does_not_fit() {
    let op = AttentionGrads { scale: Real(1.0), causal: true, window: None };
    let zeros = |shape: &[usize]| ops::zeros::<f32>(shape).unwrap();
    let (q, k, v, g) = (zeros(&[1, 4, 3, 8]), zeros(&[1, 2, 5, 8]), zeros(&[1, 2, 5, 6]), zeros(&[1, 4, 3, 6]));
    let with = |i: usize, a: Array| {
        let mut all = vec![q.clone(), k.clone(), v.clone(), g.clone()];
        all[i] = a;
        all
    };
    let shapes: Vec<_> = op.infer(&with(0, q.clone())).unwrap().iter().map(|a| a.shape.to_vec()).collect();
    assert_eq!(shapes, [q.shape(), k.shape(), v.shape()]);
    for (i, shape) in [
        (0, &[1, 3, 3, 8][..]),
        (0, &[1, 4, 3, 7]),
        (0, &[2, 4, 3, 8]),
        (0, &[4, 3, 8]),
        (1, &[1, 0, 5, 8]),
        (1, &[1, 2, 4, 8]),
        (2, &[1, 1, 5, 6]),
        (3, &[1, 4, 3, 8]),
        (3, &[1, 2, 3, 6]),
    ] {
        assert!(op.infer(&with(i, zeros(shape))).is_err(), "input {i} of shape {shape:?}");
    }
    assert!(op.infer(&with(3, ops::astype(&g, Dtype::Float16).unwrap())).is_err());
    assert!(op.infer(&[q.clone(), k.clone(), v.clone()]).is_err());
    // The first two queries of five would see nothing.
    let many = [zeros(&[1, 2, 5, 8]), zeros(&[1, 2, 3, 8]), zeros(&[1, 2, 3, 6]), zeros(&[1, 2, 5, 6])];
    assert!(op.infer(&many).unwrap_err().to_string().contains("some see none"));
    assert!(AttentionGrads { causal: false, ..op.clone() }.infer(&many).is_ok());
    assert!(AttentionGrads { causal: false, window: Some(0), ..op }.infer(&many).is_err());
}

#[test]
fn queries_without_keys_have_gradients() {
    // The first three queries see nothing and average all values.
    let qkv = vec![normal(&[1, 2, 5, 3], 57), normal(&[1, 2, 2, 3], 58), normal(&[1, 2, 2, 3], 59)];
    let causal = AttentionOptions { mask: AttentionMask::Causal, ..AttentionOptions::default() };
    check("causal with more queries than keys", &|x| attend(x, causal), &qkv);
    check("an empty window", &|x| attend(x, AttentionOptions { window: Some(0), ..causal }), &qkv);
}

#[test]
fn attention_has_the_gradients_of_mlx() {
    const SHAPE: [usize; 4] = [1, 4, 3, 8];
    fn attend(a: &[Array], mask: AttentionMask<'_>, sinks: Option<&Array>) -> Result<Array> {
        let options = AttentionOptions { scale: 0.5, mask, sinks, ..AttentionOptions::default() };
        weighed(scaled_dot_product_attention(&a[0], &a[1], &a[2], &options), &SHAPE)
    }
    let qkv = || vec![wave(&SHAPE, 0.7), wave(&[1, 2, 5, 8], 0.9), wave(&[1, 2, 5, 8], 1.3)];
    let g = grad(|a: &Vec<Array>| attend(a, AttentionMask::Causal, None))(&qkv()).unwrap();
    same_as("q", &g[0], &[0.03978162, 0.2248752, 0.2397878, 0.07323364, -0.1487422, -0.258153], 23.2136);
    same_as("k", &g[1], &[-0.02440827, 0.07649922, 0.1414281, 0.1398412, 0.07248465, -0.02896255], 17.36375);
    same_as("v", &g[2], &[0.5530879, 0.1518736, -0.4153095, -0.5286388, -0.06426775, 0.4703361], 21.77112);
    let with = |a: Array| qkv().into_iter().chain([a]).collect::<Vec<_>>();
    let g = grad(|a: &Vec<Array>| attend(a, AttentionMask::Array(&a[3]), None))(&with(wave(&[3, 5], 0.37))).unwrap();
    same_as("k under a mask", &g[1], &[0.2068897, 0.3425993, 0.317179, 0.1425847, -0.09906952, -0.2941299], 13.92732);
    same_as("mask", &g[3], &[0.8211046, -1.455244, 0.3461777, 2.960834, -2.672872, -1.169141], 21.12945);
    let g = grad(|a: &Vec<Array>| attend(a, AttentionMask::None, Some(&a[3])))(&with(wave(&[4], 0.8))).unwrap();
    same_as("q beside sinks", &g[0], &[0.1973728, 0.2769967, 0.146995, -0.09424955, -0.264168, -0.2341692], 23.72906);
    same_as("sinks", &g[3], &[-0.3259209, 0.242937, -0.01165132, -0.1212167], 0.701726);
}

/// q, k, v, gamma, beta, state of the gated delta rule: 1 row, 3 steps, 1 key head of size 2, 2 heads of size 3.
fn delta(vector_gate: bool) -> Vec<Array> {
    let near_one = |shape: &[usize], seed| ops::sigmoid(&normal(shape, seed)).unwrap();
    let gate: &[usize] = if vector_gate { &[1, 3, 2, 2] } else { &[1, 3, 2] };
    let (q, k, v) = (normal(&[1, 3, 1, 2], 13), normal(&[1, 3, 1, 2], 14), normal(&[1, 3, 2, 3], 15));
    vec![q, k, v, near_one(gate, 16), near_one(&[1, 3, 2], 17), normal(&[1, 2, 3, 2], 18)]
}

#[test]
fn gated_delta_rule() {
    let run = |x: &[Array], state: Option<&Array>, mask: Option<&Array>| {
        Ok(gated_delta_update(&x[0], &x[1], &x[2], &x[3], &x[4], state, mask)?.to_vec())
    };
    for vector_gate in [false, true] {
        let all = delta(vector_gate);
        let bare = |x: &[Array]| run(x, None, None);
        derivatives("from zero", &bare, &all[..5]);
        check("with a state", &|x| run(x, Some(&x[5]), None), &all);
        let mask = array([true, false, true]).reshape(&[1, 3]);
        let masked: Vec<Array> = all[..5].iter().cloned().chain([mask]).collect();
        derivatives("with a mask", &|x| run(x, None, Some(&x[5])), &masked);
        mapping("with a mask", &|x| run(x, None, Some(&x[5])), &masked);
    }
}

#[test]
fn long_gated_delta_rules_have_the_gradients_of_the_whole_formula() {
    // Several runs of steps, the last one short.
    const T: usize = 150;
    let near_one = |shape: &[usize], seed| ops::sigmoid(&normal(shape, seed)).unwrap();
    let small = |shape: &[usize], seed| ops::multiply(&normal(shape, seed), 0.5).unwrap();
    let mask = ops::greater(&normal(&[2, T], 23), -1.0).unwrap();
    for (state, masked) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut x = vec![small(&[2, T, 1, 3], 13), small(&[2, T, 1, 3], 14), small(&[2, T, 2, 2], 15)];
        x.extend([near_one(&[2, T, 2], 16), near_one(&[2, T, 2], 17)]);
        x.extend(state.then(|| small(&[2, 2, 2, 3], 18)));
        let op = GatedDelta { state, mask: masked };
        let with_mask = |x: &Vec<Array>| x.iter().cloned().chain(masked.then(|| mask.clone())).collect::<Vec<_>>();
        let formula = |x: &Vec<Array>| op.decompose(&with_mask(x));
        let fast = |x: &Vec<Array>| {
            let mask = masked.then_some(&mask);
            Ok(gated_delta_update(&x[0], &x[1], &x[2], &x[3], &x[4], x.get(5), mask)?.to_vec())
        };
        let g = vec![normal(&[2, T, 2, 2], 19), normal(&[2, 2, 2, 3], 20)];
        let (_, want) = vjp(formula, &x, &g).unwrap();
        let (_, got) = vjp(fast, &x, &g).unwrap();
        for (i, (a, b)) in got.iter().zip(&want).enumerate() {
            let same = ops::allclose(a, b, 1e-10, 1e-12, false).unwrap().item::<bool>().unwrap();
            assert!(same, "input {i}, state {state}, mask {masked}");
        }
    }
}

/// The kernel and the formula give the same, up to roundings of the dtype.
fn formula_is_kernel(name: &str, op: &impl Decompose, inputs: &[Array], kernel: &[Array]) {
    let formula = op.decompose(inputs).unwrap();
    assert_eq!(formula.len(), kernel.len(), "{name}");
    for (a, b) in formula.iter().zip(kernel) {
        assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()), "{name}");
        let tolerance = if a.dtype() == Dtype::Bfloat16 { 1e-2 } else { 2e-5 };
        let close = ops::allclose(a, b, tolerance, tolerance * 0.1, true).unwrap().item::<bool>().unwrap();
        assert!(close, "{name} in {:?}:\n{a}\n{b}", a.dtype());
    }
}

#[test]
fn formulas_are_what_kernels_compute() {
    for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float64] {
        let cast = |a: Array| ops::astype(&a, dtype).unwrap();
        let (x, w, b) = (cast(normal(&[4, 33], 19)), cast(normal(&[33], 20)), cast(normal(&[33], 21)));
        for centred in [false, true] {
            let op = Norm { eps: Real(1e-5), centred, weight: true, bias: centred };
            let (inputs, kernel) = match centred {
                false => (vec![x.clone(), w.clone()], rms_norm(&x, Some(&w), 1e-5)),
                true => (vec![x.clone(), w.clone(), b.clone()], layer_norm(&x, Some(&w), Some(&b), 1e-5)),
            };
            formula_is_kernel("norm", &op, &inputs, &[kernel.unwrap()]);
        }
        let x = cast(normal(&[2, 3, 5, 12], 22));
        let (offsets, freqs) = (array([100i64, 3]), array([1.0f32, 3.0, 10.0, 50.0]));
        for traditional in [false, true] {
            let op = Rope { dims: 8, traditional, base: Some(Real(100.0)), scale: Real(0.7) };
            let kernel = rope(&x, 8, traditional, Frequencies::Base(100.0), 0.7, &offsets).unwrap();
            formula_is_kernel("rope", &op, &[x.clone(), offsets.clone()], &[kernel]);
            let kernel = rope(&x, 8, traditional, Frequencies::Given(&freqs), 0.7, &offsets).unwrap();
            let op = Rope { base: None, ..op };
            formula_is_kernel("rope", &op, &[x.clone(), offsets.clone(), freqs.clone()], &[kernel]);
        }
        let qkv = [normal(&[2, 4, 7, 8], 23), normal(&[2, 2, 9, 8], 24), normal(&[2, 2, 9, 6], 25)].map(cast);
        let mask = ops::greater(&normal(&[2, 4, 7, 9], 26), 0.0).unwrap();
        let sinks = cast(normal(&[4], 27));
        let op = Attention {
            scale: Real(0.3),
            softcap: Some(Real(3.0)),
            causal: false,
            window: Some(4),
            mask: true,
            sinks: true,
            blocks: 1,
            dtype,
        };
        let options = AttentionOptions {
            scale: 0.3,
            softcap: Some(3.0),
            window: Some(4),
            mask: AttentionMask::Array(&mask),
            sinks: Some(&sinks),
        };
        let kernel = scaled_dot_product_attention(&qkv[0], &qkv[1], &qkv[2], &options).unwrap();
        let inputs: Vec<Array> = qkv.iter().cloned().chain([mask.clone(), sinks.clone()]).collect();
        formula_is_kernel("attention", &op, &inputs, &[kernel]);
        let op = Attention { softcap: None, causal: true, window: None, mask: false, sinks: false, ..op };
        let options = AttentionOptions { scale: 0.3, mask: AttentionMask::Causal, ..AttentionOptions::default() };
        let kernel = scaled_dot_product_attention(&qkv[0], &qkv[1], &qkv[2], &options).unwrap();
        formula_is_kernel("causal attention", &op, &qkv, &[kernel]);
        let inputs: Vec<Array> = qkv.iter().cloned().chain([cast(normal(&[2, 4, 7, 6], 28))]).collect();
        let loss = |x: &Vec<Array>| one(scaled_dot_product_attention(&x[0], &x[1], &x[2], &options));
        let (_, kernel) = vjp(loss, &qkv.to_vec(), &inputs[3..].to_vec()).unwrap();
        let op = AttentionGrads { scale: Real(0.3), causal: true, window: None };
        formula_is_kernel("gradients of attention", &op, &inputs, &kernel);

        let mut inputs = delta(true);
        inputs.iter_mut().take(3).for_each(|a| *a = cast(a.clone()));
        let gates = if dtype == Dtype::Float64 { dtype } else { Dtype::Float32 };
        inputs.iter_mut().skip(3).for_each(|a| *a = ops::astype(a, gates).unwrap());
        inputs.push(array([true, true, false]).reshape(&[1, 3]));
        let [q, k, v, gamma, beta, state, mask] = &inputs[..] else { unreachable!() };
        let kernel = gated_delta_update(q, k, v, gamma, beta, Some(state), Some(mask)).unwrap();
        formula_is_kernel("gated delta", &GatedDelta { state: true, mask: true }, &inputs, &kernel);
    }
}
