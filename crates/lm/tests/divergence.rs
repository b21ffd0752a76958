//! The divergence of two models is what a plain loop in double precision finds.

use lapis::ops::quantize::Format;
use lapis::{Array, Dtype, ops};
use lapis_lm::{Batch, Checkpoint, Model, Sequence, divergence, models};
use lapis_nn::quantize;

fn demo() -> (Box<dyn Model>, Checkpoint) {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model");
    let mut checkpoint = Checkpoint::open(demo).unwrap();
    (models::load(&mut checkpoint).unwrap(), checkpoint)
}

/// Log-probabilities of each row.
fn foreseen(model: &dyn Model, tokens: &[u32]) -> Vec<Vec<f64>> {
    let n = tokens.len() - 1;
    let inputs = tokens[..n].iter().map(|&t| t as i32).collect();
    let mut text = Sequence::new();
    let hidden = model.hidden(&Array::from_vec(inputs, &[n]), &mut Batch::one(n, &mut text)).unwrap();
    let logits = ops::astype(&model.logits(&hidden).unwrap(), Dtype::Float32).unwrap();
    let normal = |row: &[f32]| {
        let norm = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        row.iter().map(|&x| f64::from(x) - norm).collect()
    };
    logits.to_vec::<f32>().unwrap().chunks(logits.dim(1)).map(normal).collect()
}

#[test]
fn as_a_loop_finds_it() {
    let ((source, checkpoint), (mut other, _)) = (demo(), demo());
    lapis_nn::for_each_packable(other.module_mut(), &mut |_, layer| layer.dequantize().unwrap());
    quantize(other.module_mut(), Format::affine(3, 64).unwrap()).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let texts = ["Tell me a story about a fox who lives in a small village by the sea.", "How do I quantize a model?"];
    let windows: Vec<Vec<u32>> = texts.iter().map(|t| tokenizer.encode(t, true).unwrap()).collect();

    let (mut kl, mut losses, mut agree) = (Vec::new(), [Vec::new(), Vec::new()], 0);
    for window in &windows {
        let (p, q) = (foreseen(&*source, window), foreseen(&*other, window));
        for ((p, q), &next) in p.iter().zip(&q).zip(&window[1..]) {
            kl.push(p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>());
            losses[0].push(-p[next as usize]);
            losses[1].push(-q[next as usize]);
            let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            agree += usize::from(best(p) == best(q));
        }
    }
    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
    let mut done = 0;
    let found = divergence(&*source, &*other, &windows, 2, |n| {
        done = n;
        true
    })
    .unwrap();
    assert_eq!((found.tokens(), found.agree, done), (kl.len(), agree, 2));
    assert!(mean(&kl) > 0.01 && (found.mean() - mean(&kl)).abs() < 1e-4, "{} {}", found.mean(), mean(&kl));
    for (found, losses) in found.perplexities().iter().zip(&losses) {
        let own = mean(losses).exp();
        assert!((found / own - 1.0).abs() < 1e-4, "{found} {own}");
    }
    kl.sort_by(f64::total_cmp);
    assert!((found.quantile(1.0) - kl[kl.len() - 1]).abs() < 1e-3);
    let alone = divergence(&*source, &*other, &windows, 1, |_| true).unwrap();
    assert_eq!(alone.kl, found.kl);

    let same = divergence(&*source, &*source, &windows, 1, |_| true).unwrap();
    assert!(same.mean() < 1e-6 && same.agreement() == 1.0);
    assert!(divergence(&*source, &*other, &[vec![5]], 1, |_| true).is_err());
    assert!(divergence(&*source, &*other, &[vec![5, 70_000, 3]], 1, |_| true).is_err());
}
