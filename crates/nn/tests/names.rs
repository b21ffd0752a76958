//! Every public name of mlx.nn, mlx.optimizers and mlx.utils has its place, with all of its parameters: a row says what
//! MLX takes (data/names.json, written by generate.py) and makes the same here. What defaults are stands in the rows that
//! spell them out, and in data/layers.json, whose printed forms and values the layers must have.

use lapis::distributed::{self, Group};
use lapis::ops::quantize::{Format, Mode};
use lapis::{Array, Dtype, array, ops};
use lapis_nn::activations::tanh;
use lapis_nn::losses::Reduction::{Mean, None as Whole};
use lapis_nn::optim::{Optimizer, Rule};
use lapis_nn::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn alone() -> Group {
    distributed::init(false).unwrap()
}

fn linear() -> Linear {
    Linear::new(3, 2, true).unwrap()
}

fn sgd() -> optim::Sgd {
    optim::Sgd::new(0.1)
}

fn x() -> Array {
    ops::ones::<f32>(&[2, 3]).unwrap()
}

fn four() -> Format {
    Format::affine(4, 64).unwrap()
}

macro_rules! rows {
    ($($name:literal ($parameters:literal) => $call:expr;)*) => {
        &[$(($name, $parameters, || { let _ = $call; })),*]
    };
}

#[rustfmt::skip]
const ROWS: &[(&str, &str, fn())] = rows! {
    "ALiBi" ("") => ALiBi;
    "AllToShardedLinear" ("input_dims, output_dims, bias=True, group=None") => AllToShardedLinear::new(2, 3, true, alone()).unwrap();
    "AvgPool1d" ("kernel_size, stride=None, padding=0") => AvgPool1d::new([2], None, [0]).unwrap();
    "AvgPool2d" ("kernel_size, stride=None, padding=0") => AvgPool2d::new([2, 2], None, [0, 0]).unwrap();
    "AvgPool3d" ("kernel_size, stride=None, padding=0") => AvgPool3d::new([2, 2, 2], None, [0, 0, 0]).unwrap();
    "BatchNorm" ("num_features, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True") => BatchNorm::with(3, BatchNormOptions::default()).unwrap();
    "Bilinear" ("input1_dims, input2_dims, output_dims, bias=True") => Bilinear::new(2, 3, 4, true).unwrap();
    "CELU" ("alpha=1.0") => CELU::default();
    "Conv1d" ("in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True") => Conv1d::with(3, 4, [2], ConvOptions::default()).unwrap();
    "Conv2d" ("in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True") => Conv2d::with(3, 4, [2, 2], ConvOptions::default()).unwrap();
    "Conv3d" ("in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, bias=True") => Conv3d::with(3, 4, [2, 2, 2], ConvOptions::default()).unwrap();
    "ConvTranspose1d" ("in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, output_padding=0, bias=True") => ConvTranspose1d::with(3, 4, [2], ConvTransposeOptions::default()).unwrap();
    "ConvTranspose2d" ("in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, output_padding=0, bias=True") => ConvTranspose2d::with(3, 4, [2, 2], ConvTransposeOptions::default()).unwrap();
    "ConvTranspose3d" ("in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, output_padding=0, bias=True") => ConvTranspose3d::with(3, 4, [2, 2, 2], ConvTransposeOptions::default()).unwrap();
    "Dropout" ("p=0.5") => Dropout::new(0.5).unwrap();
    "Dropout2d" ("p=0.5") => Dropout2d::new(0.5).unwrap();
    "Dropout3d" ("p=0.5") => Dropout3d::new(0.5).unwrap();
    "ELU" ("alpha=1.0") => ELU::default();
    "Embedding" ("num_embeddings, dims") => Embedding::new(3, 4).unwrap();
    "FullyShardedModule" ("module, group=None, compute_dtype=None") => FullyShardedModule::new(linear(), alone(), None).unwrap();
    "GELU" ("approx='none'") => GELU::default();
    "GLU" ("axis=-1") => GLU::default();
    "GRU" ("input_size, hidden_size, bias=True") => GRU::new(3, 4, true).unwrap();
    "GroupNorm" ("num_groups, dims, eps=1e-05, affine=True, pytorch_compatible=False") => GroupNorm::new(2, 4, 1e-5, true, false).unwrap();
    "HardShrink" ("lambd=0.5") => HardShrink::default();
    "HardTanh" ("") => HardTanh;
    "Hardswish" ("") => Hardswish;
    "Identity" ("*args, **kwargs") => Identity;
    "InstanceNorm" ("dims, eps=1e-05, affine=False") => InstanceNorm::new(4, 1e-5, false).unwrap();
    "LSTM" ("input_size, hidden_size, bias=True") => LSTM::new(3, 4, true).unwrap();
    "LayerNorm" ("dims, eps=1e-05, affine=True, bias=True") => LayerNorm::with(4, 1e-5, true, true).unwrap();
    "LeakyReLU" ("negative_slope=0.01") => LeakyReLU::default();
    "Linear" ("input_dims, output_dims, bias=True") => Linear::new(3, 2, true).unwrap();
    "LogSigmoid" ("") => LogSigmoid;
    "LogSoftmax" ("") => LogSoftmax;
    "MaxPool1d" ("kernel_size, stride=None, padding=0") => MaxPool1d::new([2], None, [0]).unwrap();
    "MaxPool2d" ("kernel_size, stride=None, padding=0") => MaxPool2d::new([2, 2], None, [0, 0]).unwrap();
    "MaxPool3d" ("kernel_size, stride=None, padding=0") => MaxPool3d::new([2, 2, 2], None, [0, 0, 0]).unwrap();
    "Mish" ("") => Mish;
    "Module" ("") => { let _: Box<dyn Module> = Box::new(linear()); };
    "MultiHeadAttention" ("dims, num_heads, query_input_dims=None, key_input_dims=None, value_input_dims=None, value_dims=None, value_output_dims=None, bias=False") => MultiHeadAttention::with(8, 2, Heads::default()).unwrap();
    "PReLU" ("num_parameters=1, init=0.25") => PReLU::new(1, 0.25).unwrap();
    "QQLinear" ("input_dims, output_dims, group_size=None, bits=None, mode='nvfp4'") => Linear::rounding(64, 3, Format::new(Mode::Nvfp4, None, None).unwrap()).unwrap();
    "QuantizedAllToShardedLinear" ("input_dims, output_dims, bias=True, group_size=64, bits=4, mode='affine', group=None") => AllToShardedLinear::quantized(64, 3, true, four(), alone()).unwrap();
    "QuantizedEmbedding" ("num_embeddings, dims, group_size=None, bits=None, mode='affine'") => Embedding::quantized(3, 64, four()).unwrap();
    "QuantizedLinear" ("input_dims, output_dims, bias=True, group_size=None, bits=None, mode='affine'") => Linear::quantized(64, 3, true, four()).unwrap();
    "QuantizedShardedToAllLinear" ("input_dims, output_dims, bias=True, group_size=64, bits=4, mode='affine', group=None") => ShardedToAllLinear::quantized(64, 3, true, four(), alone()).unwrap();
    "RMSNorm" ("dims, eps=1e-05") => RMSNorm::new(4, 1e-5).unwrap();
    "RNN" ("input_size, hidden_size, bias=True, nonlinearity=None") => RNN::new(3, 4, true, tanh).unwrap();
    "ReLU" ("") => ReLU;
    "ReLU2" ("") => ReLU2;
    "ReLU6" ("") => ReLU6;
    "RoPE" ("dims, traditional=False, base=10000, scale=1.0") => RoPE::new(8, false, 10000.0, 1.0);
    "SELU" ("") => SELU;
    "Sequential" ("*modules") => Sequential::new().then(ReLU);
    "ShardedToAllLinear" ("input_dims, output_dims, bias=True, group=None") => ShardedToAllLinear::new(2, 3, true, alone()).unwrap();
    "SiLU" ("") => SiLU;
    "Sigmoid" ("") => Sigmoid;
    "SinusoidalPositionalEncoding" ("dims, min_freq=0.0001, max_freq=1, scale=None, cos_first=False, full_turns=False") => SinusoidalPositionalEncoding::with(4, 0.0001, 1.0, None, false, false).unwrap();
    "Softmax" ("") => Softmax;
    "Softmin" ("") => Softmin;
    "Softplus" ("") => Softplus;
    "Softshrink" ("lambd=0.5") => Softshrink::default();
    "Softsign" ("") => Softsign;
    "Step" ("threshold=0.0") => Step::default();
    "Tanh" ("") => Tanh;
    "Transformer" ("dims=512, num_heads=8, num_encoder_layers=6, num_decoder_layers=6, mlp_dims=None, dropout=0.0, activation=relu, custom_encoder=None, custom_decoder=None, norm_first=True, checkpoint=False") => Transformer::new(8, 2, 1, 1, TransformerOptions::default()).unwrap();
    "TransformerDecoder" ("num_layers, dims, num_heads, mlp_dims=None, dropout=0.0, activation=relu, norm_first=True, checkpoint=False") => TransformerDecoder::new(1, 8, 2, TransformerOptions::default()).unwrap();
    "TransformerDecoderLayer" ("dims, num_heads, mlp_dims=None, dropout=0.0, activation=relu, norm_first=True") => TransformerDecoderLayer::new(8, 2, TransformerOptions::default()).unwrap();
    "TransformerEncoder" ("num_layers, dims, num_heads, mlp_dims=None, dropout=0.0, activation=relu, norm_first=True, checkpoint=False") => TransformerEncoder::new(1, 8, 2, TransformerOptions::default()).unwrap();
    "TransformerEncoderLayer" ("dims, num_heads, mlp_dims=None, dropout=0.0, activation=relu, norm_first=True") => TransformerEncoderLayer::new(8, 2, TransformerOptions::default()).unwrap();
    "Upsample" ("scale_factor, mode='nearest', align_corners=False, antialias=False") => Upsample::with(&[2.0], UpsampleOptions::default()).unwrap();
    "average_gradients" ("gradients, group=None, all_reduce_size=33554432, communication_stream=None") => average_gradients(&Params::new(), alone()).unwrap();
    "celu" ("x, alpha=1.0") => activations::celu(&x(), 1.0).unwrap();
    "elu" ("x, alpha=1.0") => activations::elu(&x(), 1.0).unwrap();
    "fully_shard" ("module, group=None, compute_dtype=None") => fully_shard(linear(), alone(), None).unwrap();
    "gelu" ("x") => activations::gelu(&x()).unwrap();
    "gelu_approx" ("x") => activations::gelu_approx(&x()).unwrap();
    "gelu_fast_approx" ("x") => activations::gelu_fast_approx(&x()).unwrap();
    "glu" ("x, axis=-1") => activations::glu(&ops::ones::<f32>(&[2, 4]).unwrap(), -1).unwrap();
    "hard_shrink" ("x, lambd=0.5") => activations::hard_shrink(&x(), 0.5).unwrap();
    "hard_tanh" ("x, min_val=-1.0, max_val=1.0") => activations::hard_tanh(&x(), -1.0, 1.0).unwrap();
    "hardswish" ("x") => activations::hardswish(&x()).unwrap();
    "leaky_relu" ("x, negative_slope=0.01") => activations::leaky_relu(&x(), 0.01).unwrap();
    "log_sigmoid" ("x") => activations::log_sigmoid(&x()).unwrap();
    "log_softmax" ("x, axis=-1") => activations::log_softmax(&x(), -1).unwrap();
    "mish" ("x") => activations::mish(&x()).unwrap();
    "prelu" ("x, alpha") => activations::prelu(&x(), &x()).unwrap();
    "quantize" ("model, group_size=None, bits=None, mode='affine', quantize_input=False, class_predicate=None") => quantize_where(&mut linear(), &mut |_, _| None).unwrap();
    "relu" ("x") => activations::relu(&x()).unwrap();
    "relu2" ("x") => activations::relu2(&x()).unwrap();
    "relu6" ("x") => activations::relu6(&x()).unwrap();
    "selu" ("x") => activations::selu(&x()).unwrap();
    "sigmoid" ("x") => activations::sigmoid(&x()).unwrap();
    "silu" ("x") => activations::silu(&x()).unwrap();
    "softmax" ("x, axis=-1") => activations::softmax(&x(), -1).unwrap();
    "softmin" ("x, axis=-1") => activations::softmin(&x(), -1).unwrap();
    "softplus" ("x") => activations::softplus(&x()).unwrap();
    "softshrink" ("x, lambd=0.5") => activations::softshrink(&x(), 0.5).unwrap();
    "softsign" ("x") => activations::softsign(&x()).unwrap();
    "step" ("x, threshold=0.0") => activations::step(&x(), 0.0).unwrap();
    "tanh" ("x") => activations::tanh(&x()).unwrap();
    "value_and_grad" ("model, fn") => value_and_grad(&linear(), |m| ops::sum(&m.forward(&x())?, (), false)).unwrap();
    "nn.losses.binary_cross_entropy" ("inputs, targets, weights=None, with_logits=True, reduction='mean'") => losses::binary_cross_entropy(&x(), &x(), None, true, Mean).unwrap();
    "nn.losses.cosine_similarity_loss" ("x1, x2, axis=1, eps=1e-08, reduction='none'") => losses::cosine_similarity_loss(&x(), &x(), 1, 1e-8, Whole).unwrap();
    "nn.losses.cross_entropy" ("logits, targets, weights=None, axis=-1, label_smoothing=0.0, reduction='none'") => losses::cross_entropy(&x(), &x(), losses::CrossEntropy::default()).unwrap();
    "nn.losses.gaussian_nll_loss" ("inputs, targets, vars, full=False, eps=1e-06, reduction='mean'") => losses::gaussian_nll_loss(&x(), &x(), &x(), false, 1e-6, Mean).unwrap();
    "nn.losses.hinge_loss" ("inputs, targets, reduction='none'") => losses::hinge_loss(&x(), &x(), Whole).unwrap();
    "nn.losses.huber_loss" ("inputs, targets, delta=1.0, reduction='none'") => losses::huber_loss(&x(), &x(), 1.0, Whole).unwrap();
    "nn.losses.kl_div_loss" ("inputs, targets, axis=-1, reduction='none'") => losses::kl_div_loss(&x(), &x(), -1, Whole).unwrap();
    "nn.losses.l1_loss" ("predictions, targets, reduction='mean'") => losses::l1_loss(&x(), &x(), Mean).unwrap();
    "nn.losses.log_cosh_loss" ("inputs, targets, reduction='none'") => losses::log_cosh_loss(&x(), &x(), Whole).unwrap();
    "nn.losses.margin_ranking_loss" ("inputs1, inputs2, targets, margin=0.0, reduction='none'") => losses::margin_ranking_loss(&x(), &x(), &x(), 0.0, Whole).unwrap();
    "nn.losses.mse_loss" ("predictions, targets, reduction='mean'") => losses::mse_loss(&x(), &x(), Mean).unwrap();
    "nn.losses.nll_loss" ("inputs, targets, axis=-1, reduction='none'") => losses::nll_loss(&x(), &array([0, 1]), -1, Whole).unwrap();
    "nn.losses.smooth_l1_loss" ("predictions, targets, beta=1.0, reduction='mean'") => losses::smooth_l1_loss(&x(), &x(), 1.0, Mean).unwrap();
    "nn.losses.triplet_loss" ("anchors, positives, negatives, axis=-1, p=2, margin=1.0, eps=1e-06, reduction='none'") => losses::triplet_loss(&x(), &x(), &x(), losses::Triplet::default()).unwrap();
    "nn.init.constant" ("value, dtype=mlx.core.float32") => init::constant(1.0, Dtype::Float32)(&x()).unwrap();
    "nn.init.glorot_normal" ("dtype=mlx.core.float32") => init::glorot_normal(Dtype::Float32)(&x(), 1.0).unwrap();
    "nn.init.glorot_uniform" ("dtype=mlx.core.float32") => init::glorot_uniform(Dtype::Float32)(&x(), 1.0).unwrap();
    "nn.init.he_normal" ("dtype=mlx.core.float32") => init::he_normal(Dtype::Float32)(&x(), init::Fan::In, 1.0).unwrap();
    "nn.init.he_uniform" ("dtype=mlx.core.float32") => init::he_uniform(Dtype::Float32)(&x(), init::Fan::In, 1.0).unwrap();
    "nn.init.identity" ("dtype=mlx.core.float32") => init::identity(Dtype::Float32)(&ops::ones::<f32>(&[2, 2]).unwrap()).unwrap();
    "nn.init.normal" ("mean=0.0, std=1.0, dtype=mlx.core.float32") => init::normal(0.0, 1.0, Dtype::Float32)(&x()).unwrap();
    "nn.init.orthogonal" ("gain=1.0, dtype=mlx.core.float32") => init::orthogonal(1.0, Dtype::Float32)(&x()).unwrap();
    "nn.init.sparse" ("sparsity, mean=0.0, std=1.0, dtype=mlx.core.float32") => init::sparse(0.5, 0.0, 1.0, Dtype::Float32)(&x()).unwrap();
    "nn.init.uniform" ("low=0.0, high=1.0, dtype=mlx.core.float32") => init::uniform(0.0, 1.0, Dtype::Float32)(&x()).unwrap();
    "nn.utils.average_gradients" ("gradients, group=None, all_reduce_size=33554432, communication_stream=None") => average_gradients(&Params::new(), alone()).unwrap();
    "nn.utils.checkpoint" ("module, fn=None") => checkpoint(&linear(), &x(), |m, x: &Array| m.forward(x)).unwrap();
    "nn.utils.clip_grad_norm_sharded" ("gradients, max_norm, group=None") => clip_grad_norm_sharded(&Params::new(), 1.0, alone()).unwrap();
    "nn.utils.value_and_grad" ("model, fn") => value_and_grad(&linear(), |m| ops::sum(&m.forward(&x())?, (), false)).unwrap();
    "optimizers.AdaDelta" ("learning_rate, rho=0.9, eps=1e-06") => optim::AdaDelta::new(0.1).rho(0.9).eps(1e-6);
    "optimizers.Adafactor" ("learning_rate=None, eps=(1e-30, 0.001), clip_threshold=1.0, decay_rate=-0.8, beta_1=None, weight_decay=0.0, scale_parameter=True, relative_step=True, warmup_init=False") => optim::Adafactor::with_learning_rate(0.1);
    "optimizers.Adagrad" ("learning_rate, eps=1e-08") => optim::Adagrad::new(0.1).eps(1e-8);
    "optimizers.Adam" ("learning_rate, betas=[0.9, 0.999], eps=1e-08, bias_correction=False") => optim::Adam::new(0.1).betas([0.9, 0.999]).eps(1e-8).bias_correction(false);
    "optimizers.AdamW" ("learning_rate, betas=[0.9, 0.999], eps=1e-08, weight_decay=0.01, bias_correction=False") => optim::AdamW::new(0.1).betas([0.9, 0.999]).eps(1e-8).weight_decay(0.01).bias_correction(false);
    "optimizers.Adamax" ("learning_rate, betas=[0.9, 0.999], eps=1e-08") => optim::Adamax::new(0.1).betas([0.9, 0.999]).eps(1e-8);
    "optimizers.Lion" ("learning_rate, betas=[0.9, 0.99], weight_decay=0.0") => optim::Lion::new(0.1).betas([0.9, 0.99]).weight_decay(0.0);
    "optimizers.MultiOptimizer" ("optimizers, filters=[]") => optim::MultiOptimizer::new(vec![Box::new(optim::Sgd::new(0.1))], vec![]).unwrap();
    "optimizers.Muon" ("learning_rate, momentum=0.95, weight_decay=0.01, nesterov=True, ns_steps=5") => optim::Muon::new(0.1).momentum(0.95).weight_decay(0.01).nesterov(true).ns_steps(5);
    "optimizers.Optimizer" ("schedulers=None") => sgd();
    "optimizers.RMSprop" ("learning_rate, alpha=0.99, eps=1e-08") => optim::RmsProp::new(0.1).alpha(0.99).eps(1e-8);
    "optimizers.SGD" ("learning_rate, momentum=0.0, weight_decay=0.0, dampening=0.0, nesterov=False") => optim::Sgd::new(0.1).momentum(0.0).weight_decay(0.0).dampening(0.0).nesterov(false);
    "optimizers.clip_grad_norm" ("grads, max_norm") => optim::clip_grad_norm(&Params::new(), 1.0).unwrap();
    "optimizers.cosine_decay" ("init, decay_steps, end=0.0") => optim::cosine_decay(0.1, 10, 0.0).unwrap();
    "optimizers.exponential_decay" ("init, decay_rate") => optim::exponential_decay(0.1, 0.9);
    "optimizers.join_schedules" ("schedules, boundaries") => optim::join_schedules(vec![optim::exponential_decay(0.1, 0.9)], &[]).unwrap();
    "optimizers.linear_schedule" ("init, end, steps") => optim::linear_schedule(0.0, 0.1, 10).unwrap();
    "optimizers.step_decay" ("init, decay_rate, step_size") => optim::step_decay(0.1, 0.9, 10).unwrap();
    "nn.distributed.shard_inplace" ("module, sharding, segments=1, group=None") => shard_inplace(&mut linear(), Sharding::AllToSharded, 1, alone()).unwrap();
    "nn.distributed.shard_linear" ("module, sharding, segments=1, group=None") => shard_linear(linear(), Sharding::ShardedToAll, 1, alone()).unwrap();
    "utils.tree_flatten" ("tree, prefix='', is_leaf=None, destination=None") => assert_eq!(tree_flatten(&(x(), vec![x()]))[1].0, "1.0");
    "utils.tree_map" ("fn, tree, *rest, is_leaf=None") => tree_map(&vec![x()], |a| Ok(a.clone())).unwrap();
    "utils.tree_map_with_path" ("fn, tree, *rest, is_leaf=None, path=None") => tree_map_with_path(&vec![x()], |_, a| Ok(a.clone())).unwrap();
    "utils.tree_merge" ("tree_a, tree_b, merge_fn=None") => tree_merge(&Params::new(), &Params::new(), None).unwrap();
    "utils.tree_reduce" ("fn, tree, initializer=None, is_leaf=None") => assert_eq!(tree_reduce(&vec![x()], 0, |n, a| Ok(n + a.size())).unwrap(), 6);
    "utils.tree_unflatten" ("tree") => tree_unflatten(&vec![x()], &Params::from([("0".to_string(), x())])).unwrap();
    "Module.training" ("") => assert!(linear().training());
    "Module.state" ("") => linear().parameters();
    "Module.load_weights" ("file_or_weights, strict=True") => linear().load_params(&linear().parameters(), true).unwrap();
    "Module.save_weights" ("file") => assert!(linear().save_weights(Path::new("no-such-folder/file.npz")).is_err());
    "Module.is_module" ("value") => { fn module<M: Module>() {} module::<Linear>() };
    "Module.filter_and_map" ("filter_fn, map_fn=None, is_leaf_fn=None") => linear().filter_and_map(&mut |_, _| true, &mut |a| Ok(a.clone())).unwrap();
    "Module.parameters" ("") => linear().parameters();
    "Module.trainable_parameters" ("") => linear().trainable_parameters();
    "Module.children" ("") => linear().children();
    "Module.leaf_modules" ("") => linear().leaf_modules();
    "Module.update" ("parameters, strict=True") => linear().update(&Params::new(), true).unwrap();
    "Module.apply" ("map_fn, filter_fn=None") => linear().apply(&mut |_, a| Ok(a.clone())).unwrap();
    "Module.update_modules" ("modules, strict=True") => linear().update_modules::<Linear>(Default::default(), true).unwrap();
    "Module.apply_to_modules" ("apply_fn") => linear().apply_to_modules(&mut |_, _| {});
    "Module.modules" ("") => linear().named_modules();
    "Module.named_modules" ("") => linear().named_modules();
    "Module.freeze" ("recurse=True, keys=None, strict=False") => linear().freeze_where(&mut |name| key(name) == "bias");
    "Module.unfreeze" ("recurse=True, keys=None, strict=False") => linear().unfreeze_where(&mut |name| !name.contains('.'));
    "Module.train" ("mode=True") => linear().train(true);
    "Module.eval" ("") => linear().eval();
    "Module.set_dtype" ("dtype, predicate=floating") => linear().set_dtype_where(Dtype::Float16, &mut |dtype| dtype.is_floating()).unwrap();
    "Optimizer.update" ("model, gradients") => sgd().update(&mut linear(), &Params::new()).unwrap();
    "Optimizer.init" ("parameters") => sgd().init(&Params::new()).unwrap();
    "Optimizer.init_single" ("parameter, state") => Rule::slots(&sgd(), &[2]);
    "Optimizer.apply_gradients" ("gradients, parameters") => sgd().apply(&Params::new(), &Params::new()).unwrap();
    "Optimizer.apply_single" ("gradient, parameter, state") => { let _ = <optim::Sgd as Rule>::step_one; };
    "Optimizer.state" ("") => sgd().state();
    "Optimizer.step" ("") => assert_eq!(sgd().state()["step"].item::<u64>().unwrap(), 0);
    "Optimizer.learning_rate" ("") => sgd().learning_rate().unwrap();
};

#[test]
fn every_name_of_mlx_has_its_place() {
    let names: BTreeMap<String, String> = serde_json::from_str(include_str!("data/names.json")).unwrap();
    let rows: BTreeSet<&str> = ROWS.iter().map(|(name, ..)| *name).collect();
    let missing: Vec<&String> = names.keys().filter(|name| !rows.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "without a place: {missing:?}");
    for (name, parameters, call) in ROWS {
        assert_eq!(names.get(*name).map(String::as_str), Some(*parameters), "{name}");
        call();
    }
}
