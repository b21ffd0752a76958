//! Layers: parameters drawn from the same seed, printed form, outputs, and what a forward pass leaves behind.

use crate::case::{array, arrays, cases, expect_like, text};
use lapis::ops::fast::AttentionMask;
use lapis::ops::quantize::{Format, Mode};
use lapis::{Array, Result, ops, random};
use lapis_nn::activations::{gelu, tanh};
use lapis_nn::*;
use serde_json::Value;
use std::cell::RefCell;

thread_local! {
    static AFTER_PARAMETERS: RefCell<Array> = RefCell::new(random::key(0));
}

/// Parameters, text, outputs and gradients of `module` against those of the case.
fn check<M: Module + Clone + std::fmt::Display>(
    case: &Value,
    module: Result<M>,
    call: &dyn Fn(&M, &[Array]) -> Result<Vec<Array>>,
) {
    let name = text(case, "name");
    let mut module = module.unwrap();
    AFTER_PARAMETERS.set(random::state());
    let compare = |module: &M, changed: &Value| {
        let params = module.parameters();
        let all = case["params"].as_object().unwrap().keys().chain(changed.as_object().unwrap().keys());
        let mut names: Vec<&String> = all.collect();
        names.sort();
        names.dedup();
        assert_eq!(params.keys().collect::<Vec<_>>(), names, "{name}: names of parameters");
        for (key, value) in &params {
            // What was drawn is equal bit by bit; running statistics are results.
            let (want, exact) = match changed.get(key) {
                Some(want) => (want, value.dtype().is_integer()),
                None => (&case["params"][key.as_str()], true),
            };
            expect_like(&format!("{name} {key}"), value, &array(want), exact);
        }
    };
    compare(&module, &serde_json::json!({}));
    assert_eq!(module.to_string(), text(case, "repr"), "{name}: printed form");
    module.train(case["train"].as_bool().unwrap());
    let outputs = call(&module, &arrays(&case["inputs"])).unwrap_or_else(|e| panic!("{name}: {e}"));
    let want = arrays(&case["outputs"]);
    if !want.is_empty() {
        assert_eq!(outputs.len(), want.len(), "{name}: number of outputs");
    }
    for (got, want) in outputs.iter().zip(&want) {
        expect_like(name, got, want, false);
    }
    compare(&module, &case["after"]);
    check_gradients(case, &module, call);
}

/// Weights that are the same in every language.
fn counted(a: &Array) -> Array {
    let weights = (0..a.size()).map(|i| ((i * 37 % 11) as f32 - 5.0) / 5.0).collect();
    Array::from_vec(weights, a.shape())
}

fn weighted_sum(a: &Array) -> Result<Array> {
    ops::sum(&ops::multiply(a, counted(a))?, (), false)
}

/// Gradients of a weighted sum of the outputs by parameters and inputs, as weighted sums.
fn check_gradients<M: Module + Clone>(case: &Value, module: &M, call: &dyn Fn(&M, &[Array]) -> Result<Vec<Array>>) {
    let (name, want) = (text(case, "name"), case["grads"].as_object().unwrap());
    if want.is_empty() {
        return;
    }
    // The random state as it was after the parameters were drawn, and the parameters as they were.
    let mut module = module.clone();
    let drawn = case["params"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), array(v))).collect();
    module.update(&drawn, true).unwrap();
    let inputs = arrays(&case["inputs"]);
    let loss = |m: &M, x: &[Array]| -> Result<Array> {
        random::set_state(AFTER_PARAMETERS.with_borrow(Clone::clone));
        let sums: Vec<Array> = call(m, x)?.iter().map(weighted_sum).collect::<Result<_>>()?;
        sums.iter().skip(1).try_fold(sums[0].clone(), |a, b| ops::add(&a, b))
    };
    let (_, mut grads) = value_and_grad(&module, |m| loss(m, &inputs)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let by_input = lapis::transforms::grad(|x: &Vec<Array>| loss(&module, x));
    for (i, g) in by_input(&inputs).unwrap_or_else(|e| panic!("{name}: {e}")).into_iter().enumerate() {
        if inputs[i].dtype().is_floating() {
            grads.insert(format!("input {i}"), g);
        }
    }
    let named: std::collections::BTreeSet<&String> = want.keys().collect();
    assert_eq!(grads.keys().collect::<std::collections::BTreeSet<_>>(), named, "{name}: what has gradients");
    for (key, grad) in &grads {
        let (got, want) = (weighted_sum(grad).unwrap().item::<f32>().unwrap(), want[key].as_f64().unwrap() as f32);
        assert!((got - want).abs() <= 2e-4 * (1.0 + want.abs()), "{name}: gradient by {key} is {got}, MLX has {want}");
    }
}

fn layer<M: Layer + Clone + std::fmt::Display>(case: &Value, module: Result<M>) {
    check(case, module, &|m, x| Ok(vec![m.forward(&x[0])?]));
}

fn one(x: Result<Array>) -> Result<Vec<Array>> {
    Ok(vec![x?])
}

fn both((a, b): (Array, Array)) -> Vec<Array> {
    vec![a, b]
}

fn alone() -> lapis::distributed::Group {
    lapis::distributed::init(false).unwrap()
}

fn run(case: &Value) {
    let none = AttentionMask::None;
    let eps = 1e-5;
    let pools = |case: &Value, name: &str| match name {
        "MaxPool1d(3, 2, 1)" => layer(case, MaxPool1d::new([3], Some([2]), [1])),
        "MaxPool2d(2)" => layer(case, MaxPool2d::new([2, 2], None, [0, 0])),
        "MaxPool2d((3, 2), (2, 1), (1, 0))" => layer(case, MaxPool2d::new([3, 2], Some([2, 1]), [1, 0])),
        "MaxPool3d(2, 1)" => layer(case, MaxPool3d::new([2; 3], Some([1; 3]), [0; 3])),
        "AvgPool1d(3, 2, 1)" => layer(case, AvgPool1d::new([3], Some([2]), [1])),
        "AvgPool2d(2)" => layer(case, AvgPool2d::new([2, 2], None, [0, 0])),
        "AvgPool2d((3, 2), (2, 1), (1, 0))" => layer(case, AvgPool2d::new([3, 2], Some([2, 1]), [1, 0])),
        "AvgPool3d(2, 1)" => layer(case, AvgPool3d::new([2; 3], Some([1; 3]), [0; 3])),
        other => panic!("a layer that the test does not know: {other}"),
    };
    let upsample = |factors: &[f64], mode, align_corners, antialias| {
        layer(case, Upsample::with(factors, UpsampleOptions { mode, align_corners, antialias }))
    };
    let affine = |bits, group| Format::affine(bits, group).unwrap();
    match text(case, "name") {
        "Linear(3, 4)" => layer(case, Linear::new(3, 4, true)),
        "Linear(3, 4, bias=False)" => layer(case, Linear::new(3, 4, false)),
        "Bilinear(3, 2, 4)" => check(case, Bilinear::new(3, 2, 4, true), &|m, x| one(m.forward(&x[0], &x[1]))),
        "Identity()" => layer(case, Ok(Identity)),
        "Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))" => {
            let (first, second) = (Linear::new(3, 4, true).unwrap(), Linear::new(4, 2, true).unwrap());
            layer(case, Ok(Sequential::new().then(first).then(ReLU).then(second)));
        }
        "Embedding(5, 3)" => layer(case, Embedding::new(5, 3)),
        "Embedding(5, 3).as_linear" => check(case, Embedding::new(5, 3), &|m, x| one(m.as_linear(&x[0]))),
        "Conv1d(4, 6, 3)" => layer(case, Conv1d::new(4, 6, [3])),
        "Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bias=False)" => {
            let options = ConvOptions { stride: [2], padding: [1], dilation: [2], groups: 2, bias: false };
            layer(case, Conv1d::with(4, 6, [3], options));
        }
        "Conv2d(4, 6, 3)" => layer(case, Conv2d::new(4, 6, [3, 3])),
        "Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2)" => {
            let options = ConvOptions { stride: [2, 1], padding: [1, 0], groups: 2, ..ConvOptions::default() };
            layer(case, Conv2d::with(4, 6, [3, 2], options));
        }
        "Conv3d(2, 3, 2, padding=1)" => {
            layer(case, Conv3d::with(2, 3, [2; 3], ConvOptions { padding: [1; 3], ..ConvOptions::default() }));
        }
        "ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1)" => {
            let o = ConvTransposeOptions { stride: [2], padding: [1], output_padding: [1], ..Default::default() };
            layer(case, ConvTranspose1d::with(4, 3, [3], o));
        }
        "ConvTranspose2d(4, 3, (2, 3), stride=(2, 1))" => {
            let options = ConvTransposeOptions { stride: [2, 1], ..Default::default() };
            layer(case, ConvTranspose2d::with(4, 3, [2, 3], options));
        }
        "ConvTranspose3d(2, 2, 2, bias=False)" => {
            layer(
                case,
                ConvTranspose3d::with(2, 2, [2; 3], ConvTransposeOptions { bias: false, ..Default::default() }),
            );
        }
        "LayerNorm(3)" => layer(case, LayerNorm::new(3, eps)),
        "LayerNorm(3, eps=1e-3, bias=False)" => layer(case, LayerNorm::with(3, 1e-3, true, false)),
        "LayerNorm(3, affine=False)" => layer(case, LayerNorm::with(3, eps, false, true)),
        "RMSNorm(3)" => layer(case, RMSNorm::new(3, eps)),
        "InstanceNorm(4)" => layer(case, InstanceNorm::new(4, eps, false)),
        "InstanceNorm(4, affine=True)" => layer(case, InstanceNorm::new(4, eps, true)),
        "GroupNorm(2, 4)" => layer(case, GroupNorm::new(2, 4, eps, true, false)),
        "GroupNorm(2, 4, affine=False, pytorch_compatible=True)" => {
            layer(case, GroupNorm::new(2, 4, eps, false, true));
        }
        "BatchNorm(4)" | "BatchNorm(4) eval" => layer(case, BatchNorm::new(4)),
        "BatchNorm(4, momentum=0.3, affine=False)" => {
            layer(case, BatchNorm::with(4, BatchNormOptions { momentum: 0.3, affine: false, ..Default::default() }));
        }
        "BatchNorm(4, track_running_stats=False)" => {
            layer(case, BatchNorm::with(4, BatchNormOptions { track_running_stats: false, ..Default::default() }));
        }
        "Dropout(0.4)" | "Dropout(0.4) eval" => layer(case, Dropout::new(0.4)),
        "Dropout2d(0.4)" => layer(case, Dropout2d::new(0.4)),
        "Dropout3d(0.4)" => layer(case, Dropout3d::new(0.4)),
        name if name.contains("Pool") => pools(case, name),
        "Upsample(2)" => layer(case, Upsample::new(2.0)),
        "Upsample((1.5, 0.7))" => upsample(&[1.5, 0.7], UpsampleMode::Nearest, false, false),
        "Upsample(1.6, mode='linear')" => upsample(&[1.6], UpsampleMode::Linear, false, false),
        "Upsample((2, 1.5), mode='linear', align_corners=True)" => {
            upsample(&[2.0, 1.5], UpsampleMode::Linear, true, false);
        }
        "Upsample(0.6, mode='linear', antialias=True)" => upsample(&[0.6], UpsampleMode::Linear, false, true),
        "Upsample((2, 1.5), mode='cubic')" => upsample(&[2.0, 1.5], UpsampleMode::Cubic, false, false),
        "Upsample(2.5, mode='cubic', align_corners=True)" => upsample(&[2.5], UpsampleMode::Cubic, true, false),
        "Upsample(0.6, mode='cubic', antialias=True)" => upsample(&[0.6], UpsampleMode::Cubic, false, true),
        "RNN(3, 4)" => layer(case, RNN::new(3, 4, true, tanh)),
        "RNN(3, 4, bias=False) from" => {
            check(case, RNN::new(3, 4, false, tanh), &|m, x| one(m.forward_from(&x[0], Some(&x[1]))));
        }
        "GRU(3, 4)" => layer(case, GRU::new(3, 4, true)),
        "GRU(3, 4) from" => check(case, GRU::new(3, 4, true), &|m, x| one(m.forward_from(&x[0], Some(&x[1])))),
        "GRU(3, 4, bias=False) from" => {
            check(case, GRU::new(3, 4, false), &|m, x| one(m.forward_from(&x[0], Some(&x[1]))));
        }
        "LSTM(3, 4)" => check(case, LSTM::new(3, 4, true), &|m, x| m.forward(&x[0]).map(both)),
        "LSTM(3, 4, bias=False) from" => {
            let call = |m: &LSTM, x: &[Array]| m.forward_from(&x[0], Some(&x[1]), Some(&x[2])).map(both);
            check(case, LSTM::new(3, 4, false), &call);
        }
        "MultiHeadAttention(8, 2)" => {
            check(case, MultiHeadAttention::new(8, 2), &|m, x| one(m.forward(&x[0], &x[1], &x[2], none)));
        }
        "MultiHeadAttention(8, 2) masked" => {
            let call = |m: &MultiHeadAttention, x: &[Array]| {
                let mask = MultiHeadAttention::create_additive_causal_mask(3, lapis::Dtype::Float32)?;
                expect_like("mask", &mask, &x[3], true);
                one(m.forward(&x[0], &x[1], &x[2], AttentionMask::Array(&x[3])))
            };
            check(case, MultiHeadAttention::new(8, 2), &call);
        }
        name if name.starts_with("MultiHeadAttention(8, 2, key_input_dims=6") => {
            let sizes = Heads {
                key_input_dims: Some(6),
                value_input_dims: Some(4),
                value_dims: Some(6),
                value_output_dims: Some(3),
                bias: true,
                ..Heads::default()
            };
            let module = MultiHeadAttention::with(8, 2, sizes);
            check(case, module, &|m, x| one(m.forward(&x[0], &x[1], &x[2], none)));
        }
        "TransformerEncoder(2, 8, 2, mlp_dims=6)" => {
            let options = TransformerOptions { mlp_dims: Some(6), ..TransformerOptions::default() };
            let call = |m: &TransformerEncoder, x: &[Array]| one(m.forward(&x[0], AttentionMask::Array(&x[1])));
            check(case, TransformerEncoder::new(2, 8, 2, options), &call);
        }
        "TransformerEncoder(1, 8, 2, dropout=0.2, activation=nn.gelu, norm_first=False)" => {
            let options =
                TransformerOptions { dropout: 0.2, activation: gelu, norm_first: false, ..Default::default() };
            let call = |m: &TransformerEncoder, x: &[Array]| one(m.forward(&x[0], AttentionMask::Array(&x[1])));
            check(case, TransformerEncoder::new(1, 8, 2, options), &call);
        }
        "TransformerDecoder(1, 8, 2)" => {
            let call = |m: &TransformerDecoder, x: &[Array]| {
                one(m.forward(&x[0], &x[1], AttentionMask::Array(&x[2]), AttentionMask::None))
            };
            check(case, TransformerDecoder::new(1, 8, 2, TransformerOptions::default()), &call);
        }
        "Transformer(8, 2, 1, 1, mlp_dims=6, norm_first=False, checkpoint=True)" => {
            let options =
                TransformerOptions { mlp_dims: Some(6), norm_first: false, checkpoint: true, ..Default::default() };
            let call = |m: &Transformer, x: &[Array]| {
                one(m.forward(&x[0], &x[1], AttentionMask::None, AttentionMask::Array(&x[2]), AttentionMask::None))
            };
            check(case, Transformer::new(8, 2, 1, 1, options), &call);
        }
        "RoPE(8)" => check(case, Ok(RoPE::new(8, false, 10000.0, 1.0)), &|m, x| one(m.forward(&x[0], 0))),
        "RoPE(4, traditional=True, base=100, scale=0.5)" => {
            check(case, Ok(RoPE::new(4, true, 100.0, 0.5)), &|m, x| one(m.forward(&x[0], 3)));
        }
        "SinusoidalPositionalEncoding(6)" => {
            check(case, SinusoidalPositionalEncoding::new(6), &|m, x| one(m.forward(&x[0])));
        }
        name if name.starts_with("SinusoidalPositionalEncoding(6, 0.01, 2") => {
            let module = SinusoidalPositionalEncoding::with(6, 0.01, 2.0, Some(1.0), true, true);
            check(case, module, &|m, x| one(m.forward(&x[0])));
        }
        "ALiBi()" => check(case, Ok(ALiBi), &|m, x| one(m.forward(&x[0], 0, None))),
        "ALiBi() offset" => check(case, Ok(ALiBi), &|m, x| one(m.forward(&x[0], 3, Some(&x[1])))),
        "QuantizedLinear(64, 8)" => layer(case, Linear::quantized(64, 8, true, affine(4, 64))),
        "QuantizedLinear(64, 8, bias=False, bits=4, mode='mxfp4')" => {
            layer(case, Linear::quantized(64, 8, false, Format::new(Mode::Mxfp4, None, None).unwrap()));
        }
        "QuantizedEmbedding(4, 64, group_size=32, bits=8)" => layer(case, Embedding::quantized(4, 64, affine(8, 32))),
        "QuantizedEmbedding(4, 64).as_linear" => {
            check(case, Embedding::quantized(4, 64, affine(4, 64)), &|m, x| one(m.as_linear(&x[0])));
        }
        "QQLinear(64, 8)" => layer(case, Linear::rounding(64, 8, Format::new(Mode::Nvfp4, None, None).unwrap())),
        "AllToShardedLinear(3, 4)" => layer(case, AllToShardedLinear::new(3, 4, true, alone())),
        "ShardedToAllLinear(3, 4)" => layer(case, ShardedToAllLinear::new(3, 4, true, alone())),
        "QuantizedAllToShardedLinear(64, 8)" => {
            layer(case, AllToShardedLinear::quantized(64, 8, true, affine(4, 64), alone()));
        }
        "QuantizedShardedToAllLinear(64, 8, bias=False)" => {
            layer(case, ShardedToAllLinear::quantized(64, 8, false, affine(4, 64), alone()));
        }
        "PReLU(3, 0.1)" => layer(case, PReLU::new(3, 0.1)),
        "GELU('tanh')" => layer(case, Ok(GELU { approx: GeluApprox::from_name("tanh").unwrap() })),
        other => panic!("a layer that the test does not know: {other}"),
    }
}

#[test]
fn layers_are_mlxs() {
    let (seed, all) = cases(include_str!("../data/layers.json"));
    let mut failed = Vec::new();
    for case in &all {
        random::seed(seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(case)));
        if outcome.is_err() {
            failed.push(text(case, "name"));
        }
    }
    assert!(failed.is_empty(), "{} of {} differ: {failed:#?}", failed.len(), all.len());
}
