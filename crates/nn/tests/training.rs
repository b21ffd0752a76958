//! Modules as a user meets them: gradients, freezing, running statistics, files, packing, random state.

use lapis::ops::quantize::{Format, Mode};
use lapis::{Array, Dtype, array, eval, ops, random};
use lapis_nn::activations::{relu, tanh};
use lapis_nn::losses::{Reduction, mse_loss};
use lapis_nn::*;
use std::path::{Path, PathBuf};

#[derive(Module, Clone)]
struct Mlp {
    up: Linear,
    norm: BatchNorm,
    down: Linear,
}

impl Mlp {
    fn new() -> Mlp {
        random::seed(3);
        Mlp {
            up: Linear::new(4, 8, true).unwrap(),
            norm: BatchNorm::new(8).unwrap(),
            down: Linear::new(8, 2, true).unwrap(),
        }
    }
}

impl Layer for Mlp {
    fn forward(&self, x: &Array) -> lapis::Result<Array> {
        self.down.forward(&relu(&self.norm.forward(&self.up.forward(x)?)?)?)
    }
}

fn data() -> (Array, Array) {
    random::seed(5);
    let x = random::normal(&[16, 4], Dtype::Float32, None, None, None).unwrap();
    let y = ops::multiply(ops::slice(&x, &[(None, None, 1), (None, Some(2), 1)]).unwrap(), 0.5).unwrap();
    eval([&x, &y]).unwrap();
    (x, y)
}

fn loss(model: &Mlp, x: &Array, y: &Array) -> lapis::Result<Array> {
    mse_loss(&model.forward(x)?, y, Reduction::Mean)
}

fn close(a: &Array, b: &Array, tolerance: f64) -> bool {
    ops::allclose(a, b, tolerance, tolerance, false).unwrap().item::<bool>().unwrap()
}

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("lapis-nn-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

// ------------------------------------------------------------------ gradients

#[test]
fn gradients_are_those_of_finite_differences() {
    let (model, (x, y)) = (Mlp::new(), data());
    let (_, grads) = value_and_grad(&model, |m| loss(m, &x, &y)).unwrap();
    assert_eq!(grads.keys().collect::<Vec<_>>(), model.trainable_parameters().keys().collect::<Vec<_>>());
    let start = model.parameters();
    for (name, grad) in &grads {
        assert_eq!(grad.shape(), start[name].shape());
        // Along one direction, in f64.
        let value = start[name].astype(Dtype::Float64);
        let along = ops::cos(&ops::reshape(&ops::arange(0, value.size(), 1, None).unwrap(), value.shape()).unwrap());
        let along = along.unwrap().astype(Dtype::Float64);
        let at = |step: f64| {
            let mut moved = model.clone();
            moved.set_dtype(Dtype::Float64).unwrap();
            let value = ops::add(&value, ops::multiply(&along, step).unwrap()).unwrap();
            moved.update(&Params::from([(name.clone(), value)]), true).unwrap();
            loss(&moved, &x.astype(Dtype::Float64), &y.astype(Dtype::Float64)).unwrap().item::<f64>().unwrap()
        };
        let numeric = (at(1e-6) - at(-1e-6)) / 2e-6;
        let exact = ops::sum(&ops::multiply(grad, &along).unwrap(), (), false).unwrap().item::<f64>().unwrap();
        assert!((numeric - exact).abs() < 1e-4, "{name}: {exact}, by differences {numeric}");
    }
}

#[test]
fn training_lowers_the_loss_and_moves_running_statistics() {
    let (mut model, (x, y)) = (Mlp::new(), data());
    let mut losses = Vec::new();
    for _ in 0..60 {
        let (loss, grads) = value_and_grad(&model, |m| loss(m, &x, &y)).unwrap();
        let mut params = model.trainable_parameters();
        for (name, p) in &mut params {
            *p = ops::subtract(&*p, ops::multiply(&grads[name], 0.1).unwrap()).unwrap();
        }
        model.update(&params, true).unwrap();
        eval(model.parameters().values()).unwrap();
        losses.push(loss.item::<f32>().unwrap());
    }
    assert!(losses[59] < losses[0] / 20.0, "{losses:?}");
    let mean = model.norm.running_mean.as_ref().unwrap().get();
    let seen = ops::mean(&model.up.forward(&x).unwrap(), 0, false).unwrap();
    assert!(close(&mean, &seen, 0.05), "the running mean follows the batches");
    model.eval();
    let alone = model.forward(&ops::slice(&x, &[(None, Some(1), 1), (None, None, 1)]).unwrap()).unwrap();
    let first = ops::slice(&model.forward(&x).unwrap(), &[(None, Some(1), 1), (None, None, 1)]).unwrap();
    assert!(close(&alone, &first, 1e-6), "in evaluation a sample does not depend on its batch");
}

#[test]
fn frozen_parameters_have_no_gradient_and_what_else_the_function_gives_passes_through() {
    let (mut model, (x, y)) = (Mlp::new(), data());
    model.up.freeze();
    let run = |m: &Mlp| -> lapis::Result<(Array, Array)> {
        let out = m.forward(&x)?;
        Ok((mse_loss(&out, &y, Reduction::Mean)?, out))
    };
    let ((loss, out), grads) = value_and_grad(&model, run).unwrap();
    assert_eq!(grads.into_keys().collect::<Vec<_>>(), ["down.bias", "down.weight", "norm.bias", "norm.weight"]);
    assert_eq!((loss.ndim(), out.shape()), (0, [16, 2].as_slice()));
    let not_scalar = value_and_grad(&model, |m| m.forward(&x)).unwrap_err();
    assert!(not_scalar.message().contains("scalar"), "{not_scalar}");
}

#[test]
fn checkpoint_gives_the_same_gradients() {
    let (model, (x, y)) = (Mlp::new(), data());
    let plain = value_and_grad(&model, |m| loss(m, &x, &y)).unwrap();
    let again = value_and_grad(&model, |m| {
        let hidden = checkpoint(&m.up, &x, |up, x| tanh(&up.forward(x)?))?;
        mse_loss(&m.down.forward(&hidden)?, &y, Reduction::Mean)
    });
    let direct =
        value_and_grad(&model, |m| mse_loss(&m.down.forward(&tanh(&m.up.forward(&x)?)?)?, &y, Reduction::Mean));
    let ((a, again), (b, direct)) = (again.unwrap(), direct.unwrap());
    assert_eq!(a.item::<f32>().unwrap(), b.item::<f32>().unwrap());
    assert!(again.iter().all(|(name, g)| close(g, &direct[name], 1e-6)));
    assert!(plain.0.item::<f32>().unwrap().is_finite());
}

#[test]
fn values_that_are_not_finite_are_named() {
    let good = Params::from([("a".to_string(), array([1.0f32])), ("b.c".to_string(), array([2.0f32]))]);
    check_finite(&good).unwrap();
    let mut bad = good;
    bad.insert("b.c".to_string(), array([f32::NAN]));
    bad.insert("d".to_string(), array([1.0, f32::INFINITY]));
    let error = check_finite(&bad).unwrap_err();
    assert!(error.message().ends_with("in b.c, d"), "{error}");
}

#[test]
fn a_loss_that_is_no_number_is_named_and_leaves_no_trace() {
    let (model, (x, y)) = (Mlp::new(), data());
    let bits = |m: &Mlp| m.parameters().values().map(|a| a.to_bytes().unwrap()).collect::<Vec<_>>();
    let before = bits(&model);
    let bad = ops::multiply(&x, f32::NAN).unwrap();
    let error = finite_value_and_grad(&model, |m| loss(m, &bad, &y)).unwrap_err();
    for part in ["[value_and_grad] the loss is NaN", "down.weight", "up.weight"] {
        assert!(error.message().contains(part), "{part} is not in: {error}");
    }
    // A loss that is finite with a gradient that is not: the square root at 0.
    let flat = finite_value_and_grad(&model, |m| ops::sqrt(&ops::multiply(loss(m, &x, &y)?, 0)?)).unwrap_err();
    assert!(flat.message().contains("the loss is 0; [check_finite]") && flat.message().contains("up.weight"), "{flat}");
    assert_eq!(bits(&model), before, "running statistics as well");
    let (value, grads) = finite_value_and_grad(&model, |m| loss(m, &x, &y)).unwrap();
    let (plain, same) = value_and_grad(&Mlp::new(), |m| loss(m, &x, &y)).unwrap();
    assert_eq!(value.item::<f32>().unwrap(), plain.item::<f32>().unwrap());
    assert!(grads.iter().all(|(name, g)| close(g, &same[name], 0.0)));
    assert!(bits(&model) != before, "running statistics follow a good step");
}

// ------------------------------------------------------------------ parameters and files

#[test]
fn weights_survive_both_formats() {
    let dir = scratch("formats");
    let (x, _) = data();
    let model = Mlp::new();
    model.forward(&x).unwrap();
    for file in ["model.safetensors", "model.npz"] {
        let path = dir.join(file);
        model.save_weights(&path).unwrap();
        let mut other = Mlp::new();
        other.apply(&mut |_, a| ops::zeros_like(a, None)).unwrap();
        other.load_weights(&path, true).unwrap();
        for (name, value) in model.parameters() {
            assert!(ops::array_equal(&value, &other.parameters()[&name], false).unwrap().item::<bool>().unwrap());
        }
    }
    assert!(model.save_weights(Path::new("model.bin")).unwrap_err().message().contains("model.bin"));
    assert!(Mlp::new().load_weights(&dir.join("nowhere.npz"), true).is_err());
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn weights_that_do_not_fit_are_listed_and_nothing_is_changed() {
    let mut model = Mlp::new();
    let before = model.parameters();
    let mut given = before.clone();
    given.remove("up.bias");
    given.insert("head.weight".to_string(), array([1.0f32]));
    given.insert("down.weight".to_string(), ops::zeros::<f32>(&[3, 8]).unwrap());
    given.insert("norm.bias".to_string(), ops::ones::<f32>(&[8]).unwrap());
    let error = model.load_params(&given, true).unwrap_err().to_string();
    let (own, other) = (lapis::shape::show(&[2, 8]), lapis::shape::show(&[3, 8]));
    for part in ["head.weight", "up.bias", "down.weight", &own, &other] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert!(!error.contains("norm"), "{error}");
    assert!(model.parameters().iter().all(|(name, a)| a.is_same(&before[name])));
    // Not strict: what fits by name is taken.
    given.remove("down.weight");
    model.load_params(&given, false).unwrap();
    assert_eq!(model.parameters()["norm.bias"].to_vec::<f32>().unwrap(), [1.0; 8]);
}

#[test]
fn updates_name_what_the_module_does_not_have() {
    let mut model = Mlp::new();
    let extra = Params::from([("up.scale".to_string(), array([1.0f32]))]);
    let error = model.update(&extra, true).unwrap_err();
    assert!(error.message().contains("up.scale"), "{error}");
    model.update(&extra, false).unwrap();
}

#[test]
fn set_dtype_casts_floating_parameters_only() {
    let mut model = Linear::new(64, 4, true).unwrap();
    quantize(&mut model, Format::affine(4, 64).unwrap()).unwrap();
    model.set_dtype(Dtype::Bfloat16).unwrap();
    let dtypes: Vec<Dtype> = model.parameters().values().map(Array::dtype).collect();
    assert_eq!(dtypes, [Dtype::Bfloat16, Dtype::Bfloat16, Dtype::Bfloat16, Dtype::Uint32]);
}

// ------------------------------------------------------------------ packing

#[derive(Module, Clone)]
struct Lm {
    embed: Embedding,
    blocks: Vec<Linear>,
    head: Option<Linear>,
}

impl Lm {
    fn new() -> Lm {
        random::seed(1);
        Lm {
            embed: Embedding::new(10, 64).unwrap(),
            blocks: (0..2).map(|_| Linear::new(64, 64, true).unwrap()).collect(),
            head: Some(Linear::new(64, 10, false).unwrap()),
        }
    }
    fn forward(&self, ids: &Array) -> lapis::Result<Array> {
        let x = self.blocks.iter().try_fold(self.embed.forward(ids)?, |x, b| b.forward(&x))?;
        self.head.as_ref().map_or_else(|| self.embed.as_linear(&x), |head| head.forward(&x))
    }
}

#[test]
fn packing_a_model_keeps_its_names_and_nearly_its_values() {
    let ids = array([1i32, 7, 9]);
    let model = Lm::new();
    let mut packed = model.clone();
    quantize(&mut packed, Packing::new(Mode::Affine, Some(8), None).unwrap()).unwrap();
    let names: Vec<String> = packed.parameters().into_keys().filter(|n| n.starts_with("blocks.0")).collect();
    assert_eq!(names, ["blocks.0.bias", "blocks.0.biases", "blocks.0.scales", "blocks.0.weight"]);
    assert!(packed.head.as_ref().unwrap().is_quantized() && packed.embed.is_quantized());
    assert!(packed.to_string().contains("(blocks.1): QuantizedLinear(input_dims=64, output_dims=64, bias=True"));
    let (a, b) = (model.forward(&ids).unwrap(), packed.forward(&ids).unwrap());
    assert!(close(&a, &b, 0.02));
    assert_eq!(packed.embed.forward(&array(3i32)).unwrap().shape(), [64]);
    // What is packed is never trained; the biases that were there still are.
    packed.unfreeze();
    let trained: Vec<String> = packed.trainable_parameters().into_keys().collect();
    assert_eq!(trained, ["blocks.0.bias", "blocks.1.bias"]);
    // Packing again finds nothing to do.
    quantize(&mut packed, Format::affine(4, 64).unwrap()).unwrap();
    assert_eq!(packed.blocks[0].weight.format(), Some(Format::affine(8, 64).unwrap()));
}

#[test]
fn packing_asks_for_each_layer_and_says_which_one_failed() {
    let mut model = Lm::new();
    let mut seen = Vec::new();
    let (four, eight) = (Format::affine(4, 32).unwrap(), Format::affine(8, 64).unwrap());
    quantize_where(&mut model, &mut |path, layer| {
        seen.push(format!("{path} {}", layer.kind()));
        match path {
            "embed" => None,
            "head" => Some(eight.into()),
            _ => Some(four.into()),
        }
    })
    .unwrap();
    assert_eq!(seen, ["embed Embedding", "blocks.0 Linear", "blocks.1 Linear", "head Linear"]);
    let formats: Vec<_> = model.blocks.iter().chain(&model.head).map(|l| l.weight.format()).collect();
    assert_eq!(formats, [Some(four), Some(four), Some(eight)]);
    let mut odd = vec![Linear::new(64, 8, true).unwrap(), Linear::new(20, 8, true).unwrap()];
    let error = quantize(&mut odd, four).unwrap_err();
    assert!(error.message().starts_with("1: "), "{error}");
}

#[test]
fn weights_of_a_packed_model_load_into_a_packed_model() {
    let dir = scratch("packed");
    let path = dir.join("model.safetensors");
    let format = Format::new(Mode::Mxfp4, None, None).unwrap();
    let mut model = Lm::new();
    quantize(&mut model, format).unwrap();
    model.save_weights(&path).unwrap();
    let mut other = Lm::new();
    let error = other.load_weights(&path, true).unwrap_err();
    assert!(error.message().contains("embed.scales") && error.message().contains("model.safetensors"), "{error}");
    quantize(&mut other, format).unwrap();
    other.load_weights(&path, true).unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn layers_that_round_their_inputs_train_on_numbers_and_evaluate_on_codes() {
    let packing = Packing::new(Mode::Nvfp4, None, None).unwrap().with_input().unwrap();
    assert!(Packing::new(Mode::Affine, None, None).unwrap().with_input().is_err());
    random::seed(2);
    let plain = Linear::new(64, 16, false).unwrap();
    let mut layer = plain.clone();
    quantize(&mut layer, packing).unwrap();
    let x = random::normal(&[3, 64], Dtype::Float32, None, None, None).unwrap();
    let trained = layer.forward(&x).unwrap();
    let (_, grads) = value_and_grad(&layer, |m| ops::sum(&m.forward(&x)?, (), false)).unwrap();
    let (_, exact) = value_and_grad(&plain, |m| ops::sum(&m.forward(&x)?, (), false)).unwrap();
    assert!(close(&grads["weight"], &exact["weight"], 1e-5));
    layer.eval();
    assert_eq!(layer.parameters()["weight"].dtype(), Dtype::Uint32);
    assert!(layer.trainable_parameters().is_empty());
    assert!(close(&layer.forward(&x).unwrap(), &trained, 1e-6), "the same product in both modes");
    layer.train(true);
    assert_eq!(layer.trainable_parameters()["weight"].shape(), [16, 64]);
    let mut biased = Linear::new(64, 16, true).unwrap();
    assert!(quantize(&mut biased, packing).is_err());
    assert!(quantize(&mut Embedding::new(4, 64).unwrap(), packing).is_err());
}

// ------------------------------------------------------------------ misuse

#[test]
fn what_layers_cannot_do_is_an_error() {
    let x = ops::ones::<f32>(&[2, 3]).unwrap();
    let says = |e: lapis::Result<Array>, word: &str| {
        let e = e.unwrap_err();
        assert!(e.message().contains(word), "{e}");
    };
    assert!(Dropout::new(1.0).is_err() && Dropout::new(-0.1).is_err() && Dropout::new(f64::NAN).is_err());
    assert!(LayerNorm::new(3, 0.0).is_err() && RMSNorm::new(3, -1.0).is_err());
    assert!(GroupNorm::new(2, 3, 1e-5, true, false).is_err());
    assert!(MultiHeadAttention::new(8, 3).is_err());
    assert!(MaxPool1d::new([0], None, [0]).is_err());
    assert!(Upsample::new(0.0).is_err());
    assert!(SinusoidalPositionalEncoding::new(3).is_err());
    assert!(Conv1d::with(3, 4, [2], ConvOptions { groups: 2, ..ConvOptions::default() }).is_err());
    says(Linear::new(4, 2, true).unwrap().forward(&x), &lapis::shape::show(&[2, 3]));
    says(Dropout2d::new(0.5).unwrap().forward(&x), "Dropout2d");
    says(InstanceNorm::new(3, 1e-5, false).unwrap().forward(&x), "InstanceNorm");
    says(BatchNorm::new(3).unwrap().forward(&ops::ones::<f32>(&[1, 3]).unwrap()), "BatchNorm");
    says(MaxPool2d::new([2, 2], None, [0, 0]).unwrap().forward(&x), "MaxPool2d");
    says(MaxPool1d::new([5], None, [0]).unwrap().forward(&ops::ones::<f32>(&[1, 3, 2]).unwrap()), "longer");
    says(RNN::new(3, 2, true, tanh).unwrap().forward(&ops::ones::<f32>(&[0, 3]).unwrap()), "RNN");
    says(Upsample::new(2.0).unwrap().forward(&x), "Upsample");
    assert!(GLU::default().forward(&x).is_err());
}
