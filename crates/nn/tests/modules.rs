//! The tree of modules as a user changes it, transformers of parts of one's own, modules spread over a group, and
//! functions on trees.

use lapis::distributed::{self, Group};
use lapis::ops::fast::AttentionMask;
use lapis::ops::quantize::Format;
use lapis::{Array, Dtype, Result, array, ops, random};
use lapis_nn::*;
use std::collections::BTreeMap;

fn x(shape: &[usize]) -> Array {
    let n: usize = shape.iter().product();
    Array::from_vec((0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>(), shape)
}

fn same(a: &Array, b: &Array) -> bool {
    ops::array_equal(a, b, false).unwrap().item::<bool>().unwrap()
}

#[derive(Module, Clone)]
struct Model {
    body: Sequential,
    head: Linear,
    extra: Option<Linear>,
}

impl Model {
    fn new() -> Model {
        random::seed(1);
        let linear = || Linear::new(3, 3, true).unwrap();
        Model { body: Sequential::new().then(linear()).then(ReLU).then(linear()), head: linear(), extra: None }
    }
}

impl Layer for Model {
    fn forward(&self, x: &Array) -> Result<Array> {
        self.head.forward(&self.body.forward(x)?)
    }
}

fn names(modules: &[(String, &dyn Module)]) -> Vec<String> {
    modules.iter().map(|(name, module)| format!("{name}:{}", module.kind())).collect()
}

#[test]
fn modules_are_found_by_name() {
    let mut model = Model::new();
    assert_eq!(names(&model.children()), ["body:Sequential", "head:Linear"]);
    let leaves = ["body.layers.0:Linear", "body.layers.1:ReLU", "body.layers.2:Linear", "head:Linear"];
    assert_eq!(names(&model.leaf_modules()), leaves);
    let mut seen = Vec::new();
    model.apply_to_modules(&mut |name, module| {
        seen.push(name.to_string());
        if name == "body.layers.0" {
            module.freeze();
        }
    });
    assert_eq!(seen, ["", "body", "body.layers.0", "body.layers.1", "body.layers.2", "head"]);
    let trained: Vec<String> = model.trainable_parameters().into_keys().collect();
    assert_eq!(trained, ["body.layers.2.bias", "body.layers.2.weight", "head.bias", "head.weight"]);
    let biases = model.filter_and_map(&mut |name, _| key(name) == "bias", &mut |a| Ok(a * 0.0)).unwrap();
    assert_eq!(biases.keys().collect::<Vec<_>>(), ["body.layers.0.bias", "body.layers.2.bias", "head.bias"]);
    assert!(model.training());
    let mut dropout = Sequential::new().then(Dropout::new(0.5).unwrap());
    dropout.eval();
    assert!(!dropout.training());
}

#[test]
fn modules_are_replaced_where_their_type_fits() {
    let mut model = Model::new();
    // A layer of any type stands in a Sequential: the second product becomes its input.
    let layers = BTreeMap::from([("body.layers.2".to_string(), Box::new(Identity) as Box<dyn Layer>)]);
    let before = model.parameters();
    model.update_modules(layers, true).unwrap();
    assert_eq!(names(&model.leaf_modules())[2], "body.layers.2:Identity");
    let wide = Linear::new(3, 5, false).unwrap();
    model.update_modules(BTreeMap::from([("head".to_string(), wide.clone())]), true).unwrap();
    let expected = activations::relu(
        &(ops::matmul(&x(&[2, 3]), &before["body.layers.0.weight"].t()).unwrap() + &before["body.layers.0.bias"]),
    )
    .unwrap();
    let expected = ops::matmul(&expected, &wide.parameters()["weight"].t()).unwrap();
    let close = ops::allclose(&model.forward(&x(&[2, 3])).unwrap(), &expected, 1e-6, 1e-6, false).unwrap();
    assert!(close.item::<bool>().unwrap());

    // What is not there, and what cannot hold the type: both are named, nothing is changed.
    let before = model.to_string();
    let wrong = ["head", "tail", "body", "body.layers.0", "extra"].map(|name| (name.to_string(), wide.clone()));
    let error = model.update_modules(BTreeMap::from(wrong.clone()), true).unwrap_err().to_string();
    for part in ["no module called extra, tail", "body (Sequential)", "body.layers.0 (Linear)", "cannot be a"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert_eq!(model.to_string(), before);
    // Not strict: what fits is replaced.
    model.extra = Some(wide.clone());
    let narrow = Linear::new(1, 1, false).unwrap();
    let some = ["extra", "tail"].map(|name| (name.to_string(), narrow.clone()));
    model.update_modules(BTreeMap::from(some), false).unwrap();
    assert_eq!(model.extra.unwrap().dims(), (1, 1));
}

// ------------------------------------------------------------------ transformers

/// Adds a table to the source.
#[derive(Module, Clone, Debug)]
struct Shift {
    by: Param,
}

impl Encoder for Shift {
    fn encode(&self, source: &Array, _: AttentionMask<'_>) -> Result<Array> {
        ops::add(source, &self.by)
    }
}

/// What there is of the target where the mask keeps it, weighed by the memory.
#[derive(Module, Clone)]
struct Weigh;

impl Decoder for Weigh {
    fn decode(&self, target: &Array, memory: &Array, mask: AttentionMask<'_>, _: AttentionMask<'_>) -> Result<Array> {
        assert!(matches!(mask, AttentionMask::Causal), "the target's mask comes first");
        ops::multiply(target, memory)
    }
}

#[test]
fn a_transformer_takes_encoders_and_decoders_of_ones_own() {
    let (source, target, none) = (x(&[1, 3, 8]), x(&[1, 3, 8]) * 0.5, AttentionMask::None);
    let by = || Shift { by: Param::new(x(&[8])) };
    let own = Transformer::of(by(), Weigh);
    let got = own.forward(&source, &target, none, AttentionMask::Causal, none).unwrap();
    assert!(same(&got, &(&target * (&source + &x(&[8])))));
    assert_eq!(own.parameters().into_keys().collect::<Vec<_>>(), ["encoder.by"]);

    random::seed(4);
    let whole = Transformer::new(8, 2, 1, 1, TransformerOptions::default()).unwrap();
    let half = Transformer::of(by(), whole.decoder.clone());
    let got = half.forward(&source, &target, none, AttentionMask::Causal, none).unwrap();
    let memory = &source + &x(&[8]);
    assert!(same(&got, &whole.decoder.forward(&target, &memory, AttentionMask::Causal, none).unwrap()));
    let (_, grads) = value_and_grad(&half, |m| {
        ops::sum(&m.forward(&source, &target, none, AttentionMask::Causal, none)?.square(), (), false)
    })
    .unwrap();
    assert!(grads["encoder.by"].abs().max((), false).item::<f32>().unwrap() > 0.0);
}

// ------------------------------------------------------------------ groups

fn alone() -> Group {
    distributed::init(false).unwrap()
}

#[test]
fn a_module_spread_over_a_group_of_one_is_the_module() {
    random::seed(2);
    let plain = Model::new();
    let spread = FullyShardedModule::new(plain.clone(), alone(), None).unwrap();
    assert!(spread.to_string().starts_with("FullyShardedModule(num_sharded_params=6"), "{spread}");
    assert!(spread.parameters().contains_key("module.head.weight"));
    assert!(same(&spread.forward(&x(&[2, 3])).unwrap(), &plain.forward(&x(&[2, 3])).unwrap()));
    let loss = |y: Result<Array>| ops::sum(&y?.square(), (), false);
    let (_, a) = value_and_grad(&plain, |m| loss(m.forward(&x(&[2, 3])))).unwrap();
    let (_, b) = value_and_grad(&spread, |m| loss(m.forward(&x(&[2, 3])))).unwrap();
    assert!(a.iter().all(|(name, g)| same(g, &b[&format!("module.{name}")])));

    // Computed in bfloat16; parameters and gradients stay as they are.
    let half = FullyShardedModule::new(plain.clone(), alone(), Some(Dtype::Bfloat16)).unwrap();
    let y = half.forward(&x(&[2, 3]).astype(Dtype::Bfloat16)).unwrap();
    assert_eq!((y.dtype(), half.parameters()["module.head.weight"].dtype()), (Dtype::Bfloat16, Dtype::Float32));
    let (_, g) = value_and_grad(&half, |m| loss(m.forward(&x(&[2, 3]).astype(Dtype::Bfloat16)))).unwrap();
    assert!(g.values().all(|g| g.dtype() == Dtype::Float32));

    // As in MLX a group of one leaves the module and its names alone.
    let whole = fully_shard(plain.clone(), alone(), None).unwrap();
    assert_eq!(whole.parameters().keys().collect::<Vec<_>>(), plain.parameters().keys().collect::<Vec<_>>());
    assert_eq!(whole.to_string(), plain.to_string());
    assert!(same(&whole.forward(&x(&[2, 3])).unwrap(), &plain.forward(&x(&[2, 3])).unwrap()));

    // Other calls than forward, and statistics that a forward pass leaves behind.
    let table = FullyShardedModule::new(Embedding::new(4, 3).unwrap(), alone(), None).unwrap();
    assert_eq!(table.call(|m| m.as_linear(&x(&[2, 3]))).unwrap().shape(), [2, 4]);
    let norm = FullyShardedModule::new(BatchNorm::new(3).unwrap(), alone(), None).unwrap();
    norm.forward(&x(&[5, 3])).unwrap();
    assert!(norm.parameters()["module.running_mean"].abs().max((), false).item::<f32>().unwrap() > 0.0);
    let error = FullyShardedModule::new(Shift { by: Param::new(array(1.0f32)) }, alone(), None).unwrap_err();
    assert!(error.message().contains("by ()"), "{error}");
}

#[test]
fn linear_layers_are_spread_by_either_axis() {
    let linear = Linear::new(4, 6, true).unwrap();
    for sharding in [Sharding::AllToSharded, Sharding::ShardedToAll] {
        let part = shard_linear(linear.clone(), sharding, 2, alone()).unwrap();
        assert!(same(&part.forward(&x(&[2, 4])).unwrap(), &linear.forward(&x(&[2, 4])).unwrap()));
        assert!(shard_linear(linear.clone(), sharding, 5, alone()).is_err(), "5 segments of 4 or 6");
    }
    let mut own = linear.clone();
    shard_inplace_along(&mut own, &|name, _| (key(name) == "weight").then_some((0, 3)), alone()).unwrap();
    assert!(own.parameters().iter().all(|(name, a)| same(a, &linear.parameters()[name])));
}

#[test]
fn parts_of_linear_layers_make_the_whole() {
    random::seed(4);
    let plain = Linear::new(128, 12, true).unwrap();
    let mut packed = plain.clone();
    lapis_nn::quantize(&mut packed, Format::affine(4, 32).unwrap()).unwrap();
    let x = x(&[3, 128]);
    for linear in [plain, packed] {
        let product = |part: &Linear, x: &Array| part.weight.project(x, None).unwrap();
        let whole = product(&linear, &x);
        let (mut sum, mut rows) = (ops::zeros_like(&whole, None).unwrap(), Vec::new());
        for rank in 0..2 {
            let group = Group::new(1, rank, 2);
            assert!(linear.columns_divide(2) && !linear.columns_divide(3));
            let mut part = linear.clone();
            part.keep_columns(group).unwrap();
            let own = &ops::split(&x, 2, -1).unwrap()[rank];
            sum = sum + product(&part, own);
            // Two runs of rows, of 8 and 4: each has its half of both.
            let mut part = linear.clone();
            part.keep_rows(&[8, 4], group).unwrap();
            assert_eq!(part.bias.as_deref().unwrap().size(), 6);
            rows.push(product(&part, &x));
        }
        assert!((sum - &whole).abs().max((), false).item::<f32>().unwrap() < 1e-5);
        let runs: Vec<Array> = rows.iter().flat_map(|a| ops::split(a, vec![4], -1).unwrap()).collect();
        let again = ops::concatenate(&[&runs[0], &runs[2], &runs[1], &runs[3]].map(Clone::clone), -1).unwrap();
        assert!(same(&again, &whole));
        let mut changed = linear.clone();
        changed.change = Some(Box::new(LowRank::new(Side::Linear, &linear.weight, 2, 1.0, 0.0, false).unwrap()));
        assert!(changed.keep_rows(&[12], Group::new(1, 0, 2)).unwrap_err().message().contains("lapis fuse"));
    }
}

// ------------------------------------------------------------------ trees

#[test]
fn trees_are_taken_apart_and_put_together() {
    let tree = (vec![array(1.0f32), array(2.0f32)], BTreeMap::from([("a", array(3.0f32)), ("b", array(4.0f32))]));
    let flat = tree_flatten(&tree);
    assert_eq!(flat.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["0.0", "0.1", "1.a", "1.b"]);
    let mut leaves: Params = flat.into_iter().map(|(path, a)| (path, a * 10.0)).collect();
    let back = tree_unflatten(&tree, &leaves).unwrap();
    let number = |a: &Array| a.item::<f32>().unwrap();
    assert_eq!((number(&back.0[1]), number(&back.1["a"])), (20.0, 30.0));
    leaves.remove("0.1");
    leaves.insert("2".into(), array(0.0f32));
    let error = tree_unflatten(&tree, &leaves).unwrap_err();
    assert!(error.message().contains("missing: 0.1; not in the tree: 2"), "{error}");

    let squares = tree_map(&tree, ops::square).unwrap();
    assert_eq!(tree_reduce(&squares, 0.0, |sum, a| Ok(sum + a.item::<f32>()?)).unwrap(), 30.0);
    let named = tree_map_with_path(&tree, |path, a| if path == "1.b" { ops::negative(a) } else { Ok(a.clone()) });
    assert_eq!(number(&named.unwrap().1["b"]), -4.0);

    let (a, b) = (Params::from([("x".into(), array(1.0f32))]), Params::from([("y".into(), array(2.0f32))]));
    assert_eq!(tree_merge(&a, &b, None).unwrap().into_keys().collect::<Vec<_>>(), ["x", "y"]);
    assert!(tree_merge(&a, &a, None).unwrap_err().message().contains("both trees have x"));
    let sum = tree_merge(&a, &a, Some(&|a, b| ops::add(a, b))).unwrap();
    assert_eq!(number(&sum["x"]), 2.0);
}
