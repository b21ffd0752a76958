//! Models that other programs packed have the logits of what their codes stand for.
//!
//! Layouts are written here by their definitions, value by value; what they stand for is computed beside.

use lapis::io::Arrays;
use lapis::{Array, Dtype, ops};
use lapis_lm::{Batch, Checkpoint, Sequence, models};
use serde_json::{Map, Value, json};

const WIDTH: usize = 64;
const INNER: usize = 96;
const ROWS: usize = 48;

/// Numbers that follow from a seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn real(&mut self) -> f32 {
        self.next() as f32 / (1u32 << 31) as f32 - 0.5
    }

    fn array(&mut self, shape: &[usize]) -> Array {
        let n = shape.iter().product();
        Array::from_vec((0..n).map(|_| self.real()).collect(), shape)
    }
}

/// A packed layer: codes, and the scale and zero of each group of inputs.
struct Layer {
    out: usize,
    inputs: usize,
    bits: usize,
    /// The group of each input.
    group_of: Vec<usize>,
    /// (out, inputs).
    codes: Vec<u32>,
    /// (out, groups).
    scales: Vec<f32>,
    zeros: Vec<u32>,
}

impl Layer {
    fn random(n: &mut Numbers, [out, inputs]: [usize; 2], bits: usize, group: usize) -> Layer {
        let groups = inputs / group;
        let top = 1u32 << bits;
        Layer {
            out,
            inputs,
            bits,
            group_of: (0..inputs).map(|i| i / group).collect(),
            codes: (0..out * inputs).map(|_| n.next() % top).collect(),
            scales: (0..out * groups).map(|_| (n.next() % 64 + 1) as f32 / 512.0 / top as f32).collect(),
            zeros: (0..out * groups).map(|_| 1 + n.next() % (top - 1)).collect(),
        }
    }

    fn groups(&self) -> usize {
        self.scales.len() / self.out
    }

    /// What it stands for.
    fn values(&self) -> Array {
        let value = |o: usize, i: usize| {
            let g = o * self.groups() + self.group_of[i];
            (self.codes[o * self.inputs + i] as f32 - self.zeros[g] as f32) * self.scales[g]
        };
        let all = (0..self.out).flat_map(|o| (0..self.inputs).map(move |i| value(o, i))).collect();
        Array::from_vec(all, &[self.out, self.inputs])
    }

    fn code(&self, o: usize, i: usize) -> u32 {
        self.codes[o * self.inputs + i]
    }

    fn zero(&self, o: usize, g: usize) -> u32 {
        self.zeros[o * self.groups() + g]
    }

    /// (groups, out).
    fn turned_scales(&self) -> Array {
        let (groups, out) = (self.groups(), self.out);
        let all = (0..groups).flat_map(|g| (0..out).map(move |o| self.scales[o * groups + g])).collect();
        Array::from_vec(all, &[groups, out])
    }
}

/// Numbers of some bits, one after another from the lowest, in words.
fn stream(all: impl Iterator<Item = u32>, bits: usize) -> Vec<i32> {
    let bits_of: Vec<bool> = all.flat_map(|x| (0..bits).map(move |b| x >> b & 1 == 1)).collect();
    let word = |w: &[bool]| w.iter().rev().fold(0u32, |word, &b| word << 1 | u32::from(b)) as i32;
    bits_of.chunks(32).map(word).collect()
}

/// As (columns, rows) what is (rows, columns).
fn turned(all: &[i32], columns: usize) -> Array {
    let rows = all.len() / columns;
    let turned = (0..columns).flat_map(|c| (0..rows).map(move |r| all[r * columns + c])).collect();
    Array::from_vec(turned, &[columns, rows])
}

type Packer = dyn Fn(&Layer, &str, &mut Arrays);

fn awq(l: &Layer, name: &str, tensors: &mut Arrays) {
    // Eight neighbours along the output in a word, in AWQ's order.
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let word =
        |code: &dyn Fn(usize) -> u32| (0..8).fold(0u32, |w, nibble| w | code(ORDER[nibble]) << (4 * nibble)) as i32;
    let packs = l.out / 8;
    let weight = (0..l.inputs).flat_map(|i| (0..packs).map(move |p| word(&|k| l.code(8 * p + k, i)))).collect();
    let zeros = (0..l.groups()).flat_map(|g| (0..packs).map(move |p| word(&|k| l.zero(8 * p + k, g)))).collect();
    tensors.insert(format!("{name}.qweight"), Array::from_vec(weight, &[l.inputs, packs]));
    tensors.insert(format!("{name}.qzeros"), Array::from_vec(zeros, &[l.groups(), packs]));
    tensors.insert(format!("{name}.scales"), l.turned_scales());
}

fn gptq(l: &Layer, name: &str, tensors: &mut Arrays, less: u32) {
    let rows: Vec<i32> = l.codes.chunks(l.inputs).flat_map(|row| stream(row.iter().copied(), l.bits)).collect();
    tensors.insert(format!("{name}.qweight"), turned(&rows, l.inputs * l.bits / 32));
    let zeros = (0..l.groups()).flat_map(|g| stream((0..l.out).map(move |o| l.zero(o, g) - less), l.bits)).collect();
    tensors.insert(format!("{name}.qzeros"), Array::from_vec(zeros, &[l.groups(), l.out * l.bits / 32]));
    tensors.insert(format!("{name}.scales"), l.turned_scales());
    let order = l.group_of.iter().map(|&g| g as i32).collect();
    tensors.insert(format!("{name}.g_idx"), Array::from_vec(order, &[l.inputs]));
}

fn compressed(l: &Layer, name: &str, tensors: &mut Arrays, zeros: bool) {
    let rows: Vec<i32> = l.codes.chunks(l.inputs).flat_map(|row| stream(row.iter().copied(), l.bits)).collect();
    tensors.insert(format!("{name}.weight_packed"), Array::from_vec(rows, &[l.out, l.inputs * l.bits / 32]));
    tensors.insert(format!("{name}.weight_scale"), Array::from_vec(l.scales.clone(), &[l.out, l.groups()]));
    let shape = vec![l.out as i64, l.inputs as i64];
    tensors.insert(format!("{name}.weight_shape"), Array::from_vec(shape, &[2]));
    if zeros {
        // Packed along the output: (out * bits / 32, groups).
        let groups = l.groups();
        let all: Vec<i32> = (0..groups).flat_map(|g| stream((0..l.out).map(move |o| l.zero(o, g)), l.bits)).collect();
        let packs = l.out * l.bits / 32;
        tensors.insert(format!("{name}.weight_zero_point"), turned(&all, packs));
    }
}

fn config(quantization: Value) -> Map<String, Value> {
    let config = json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": ROWS, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true, "quantization_config": quantization,
    });
    config.as_object().unwrap().clone()
}

const LAYERS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", WIDTH, WIDTH),
    ("self_attn.k_proj", WIDTH / 2, WIDTH),
    ("self_attn.v_proj", WIDTH / 2, WIDTH),
    ("self_attn.o_proj", WIDTH, WIDTH),
    ("mlp.gate_proj", INNER, WIDTH),
    ("mlp.up_proj", INNER, WIDTH),
    ("mlp.down_proj", WIDTH, INNER),
];

/// What no program packs.
fn rest(n: &mut Numbers) -> Arrays {
    let mut all = Arrays::default();
    for (name, shape) in [
        ("model.embed_tokens.weight", &[ROWS, WIDTH][..]),
        ("model.norm.weight", &[WIDTH]),
        ("model.layers.0.input_layernorm.weight", &[WIDTH]),
        ("model.layers.0.post_attention_layernorm.weight", &[WIDTH]),
    ] {
        all.insert(name.into(), ops::add(&n.array(shape), if shape.len() == 1 { 1.0 } else { 0.0 }).unwrap());
    }
    all
}

fn logits(checkpoint: &mut Checkpoint) -> Vec<f32> {
    let model = models::load(checkpoint).unwrap();
    let tokens: Vec<i32> = (0..10).map(|i| (i * 7) % ROWS as i32).collect();
    let mut sequence = Sequence::new();
    let mut batch = Batch::one(tokens.len(), &mut sequence);
    let hidden = model.hidden(&Array::from_slice(&tokens, &[tokens.len()]), &mut batch).unwrap();
    batch.finish();
    ops::astype(&model.logits(&hidden).unwrap(), Dtype::Float32).unwrap().to_vec().unwrap()
}

/// The largest difference over the largest value.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / largest
}

/// A model packed in one way and the same unpacked: the packed one's quantization block.
fn check(what: &str, quantization: Value, layer: &dyn Fn(&mut Numbers, [usize; 2]) -> Layer, pack: &Packer) -> Value {
    let mut numbers = Numbers(1);
    let plain = rest(&mut numbers);
    let (mut theirs, mut values) = (plain.clone(), plain);
    for (name, out, inputs) in LAYERS {
        let (layer, name) = (layer(&mut numbers, [out, inputs]), format!("model.layers.0.{name}"));
        pack(&layer, &name, &mut theirs);
        values.insert(format!("{name}.weight"), layer.values());
    }
    let mut ours = Checkpoint::from_parts(config(quantization), theirs).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut whole = Checkpoint::from_parts(config(Value::Null), values).unwrap();
    let far = difference(&logits(&mut ours), &logits(&mut whole));
    assert!(far < 1e-5, "{what}: {far:.1e}");
    ours.config.get("quantization").cloned().unwrap_or_default()
}

fn form(bits: usize, group: usize) -> Value {
    json!({ "group_size": group, "bits": bits, "mode": "affine" })
}

#[test]
fn awq_and_gptq_keep_their_codes() {
    let method = |name: &str, bits: usize, more: Value| {
        let mut block = json!({ "quant_method": name, "bits": bits, "group_size": 32 });
        block.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        block
    };
    let layer = |bits: usize| move |n: &mut Numbers, shape| Layer::random(n, shape, bits, 32);
    let gemm = method("awq", 4, json!({ "version": "GEMM", "zero_point": true, "modules_to_not_convert": null }));
    assert_eq!(check("awq", gemm.clone(), &layer(4), &awq), form(4, 32));
    // Without zeros they are half of the range.
    let even = |n: &mut Numbers, shape| {
        let mut layer = Layer::random(n, shape, 4, 32);
        layer.zeros.fill(8);
        layer
    };
    let without = |l: &Layer, name: &str, tensors: &mut Arrays| {
        awq(l, name, tensors);
        tensors.swap_remove(&format!("{name}.qzeros"));
    };
    assert_eq!(check("awq without zeros", gemm.clone(), &even, &without), form(4, 32));
    // One group a row: in groups that MLX has.
    let one = |n: &mut Numbers, shape: [usize; 2]| Layer::random(n, shape, 4, shape[1]);
    let block = check("awq, whole rows", gemm, &one, &awq);
    assert_eq!((&block["group_size"], &block["model.layers.0.mlp.down_proj"]), (&json!(64), &form(4, 32)));
    for bits in [2, 3, 4, 8] {
        let first = method("gptq", bits, json!({ "desc_act": false, "sym": false }));
        let pack = |l: &Layer, name: &str, tensors: &mut Arrays| gptq(l, name, tensors, 1);
        assert_eq!(check(&format!("gptq {bits}"), first, &layer(bits), &pack), form(bits, 32));
        let second = method("gptq", bits, json!({ "checkpoint_format": "gptq_v2" }));
        let pack = |l: &Layer, name: &str, tensors: &mut Arrays| gptq(l, name, tensors, 0);
        assert_eq!(check(&format!("gptq_v2 {bits}"), second, &layer(bits), &pack), form(bits, 32));
    }
    // Inputs in the order of their weight: no group of neighbours has one scale, so the layer is unpacked.
    let mixed = |n: &mut Numbers, shape: [usize; 2]| {
        let mut layer = Layer::random(n, shape, 4, 32);
        (0..shape[1]).for_each(|i| layer.group_of.swap(i, n.next() as usize % shape[1]));
        layer
    };
    let pack = |l: &Layer, name: &str, tensors: &mut Arrays| gptq(l, name, tensors, 1);
    assert_eq!(check("gptq by weight", method("gptq", 4, json!({ "desc_act": true })), &mixed, &pack), Value::Null);
    // Groups that MLX does not have.
    let small = |n: &mut Numbers, shape| Layer::random(n, shape, 4, 16);
    assert_eq!(check("gptq of 16", method("gptq", 4, json!({ "group_size": 16 })), &small, &pack), Value::Null);
}

#[test]
fn compressed_tensors_keep_their_codes() {
    let block = json!({ "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
        "group_0": { "weights": { "num_bits": 4, "group_size": 32 }, "targets": ["Linear"] } } });
    for bits in [4, 8] {
        let even = |n: &mut Numbers, shape| {
            let mut layer = Layer::random(n, shape, bits, 32);
            layer.zeros.fill(1 << (bits - 1));
            layer
        };
        let pack = |l: &Layer, name: &str, tensors: &mut Arrays| compressed(l, name, tensors, false);
        assert_eq!(check(&format!("compressed {bits}"), block.clone(), &even, &pack), form(bits, 32));
        let any = |n: &mut Numbers, shape| Layer::random(n, shape, bits, 32);
        let pack = |l: &Layer, name: &str, tensors: &mut Arrays| compressed(l, name, tensors, true);
        assert_eq!(check(&format!("compressed {bits} with zeros"), block.clone(), &any, &pack), form(bits, 32));
    }
}

/// The value of an fp8 code: a sign, four bits of exponent, three of mantissa.
fn e4m3(code: u8) -> f32 {
    let (e, m) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let x = if e == 0 { m / 8.0 * 2f32.powi(-6) } else { (1.0 + m / 8.0) * 2f32.powi(e - 7) };
    if code >> 7 == 1 { -x } else { x }
}

#[test]
fn eight_bits_with_scales_become_bfloat16() {
    // (rows, columns) of a layer to the shape of its scales, and the scale of a value.
    type Scales = fn([usize; 2]) -> [usize; 2];
    let kinds: [(&str, &str, Scales, Value); 4] = [
        ("blocks", "weight_scale_inv", |[m, n]| [m.div_ceil(48), n.div_ceil(48)], json!([48, 48])),
        ("all", "weight_scale", |_| [1, 1], Value::Null),
        ("rows", "weight_scale", |[m, _]| [m, 1], Value::Null),
        ("signed rows", "weight_scale", |[m, _]| [m, 1], Value::Null),
    ];
    for (what, leaf, scales, block) in kinds {
        let mut n = Numbers(3);
        let plain = rest(&mut n);
        let (mut theirs, mut values) = (plain.clone(), plain);
        for (name, out, inputs) in LAYERS {
            let name = format!("model.layers.0.{name}");
            let codes: Vec<u8> =
                (0..out * inputs).map(|_| (n.next() % 256) as u8).map(|c| if c & 127 == 127 { 0 } else { c }).collect();
            let [m, k] = scales([out, inputs]);
            let scale: Vec<f32> = (0..m * k).map(|_| (1 + n.next() % 16) as f32 / 65536.0).collect();
            let value = |o: usize, i: usize| {
                let (r, c) = match what {
                    "blocks" => (o / 48, i / 48),
                    "all" => (0, 0),
                    _ => (o, 0),
                };
                let code = codes[o * inputs + i];
                let code = if what == "signed rows" { f32::from(code as i8) } else { e4m3(code) };
                code * scale[r * k + c]
            };
            let all: Vec<f32> =
                (0..out).flat_map(|o| (0..inputs).map(move |i| (o, i))).map(|(o, i)| value(o, i)).collect();
            let all = ops::astype(&Array::from_vec(all, &[out, inputs]), Dtype::Bfloat16).unwrap();
            values.insert(format!("{name}.weight"), all);
            let codes = Array::from_vec(codes, &[out, inputs]);
            let codes = if what == "signed rows" { ops::view(&codes, Dtype::Int8).unwrap() } else { codes };
            theirs.insert(format!("{name}.weight"), codes);
            theirs.insert(format!("{name}.{leaf}"), Array::from_vec(scale, &[m, k]));
            theirs.insert(format!("{name}.input_scale"), Array::from_vec(vec![1f32], &[]));
        }
        let settings = match what {
            "blocks" => json!({ "quant_method": "fp8", "weight_block_size": block }),
            "all" => json!({ "quant_method": "fp8", "activation_scheme": "static" }),
            _ => json!({ "quant_method": "compressed-tensors", "format": "float-quantized" }),
        };
        let mut ours = Checkpoint::from_parts(config(settings), theirs).unwrap();
        assert!(!ours.source.contains_key("quantization_config"), "{what}");
        let mut whole = Checkpoint::from_parts(config(Value::Null), values).unwrap();
        assert_eq!(logits(&mut ours), logits(&mut whole), "{what}");
    }
}

#[test]
fn fp8_with_scales_of_powers_of_two_stays_packed() {
    let mut n = Numbers(5);
    let plain = rest(&mut n);
    let (mut theirs, mut values) = (plain.clone(), plain);
    for (name, out, inputs) in LAYERS {
        let name = format!("model.layers.0.{name}");
        let codes: Vec<u8> = (0..out * inputs).map(|_| (n.next() % 127) as u8).collect();
        let scales: Vec<u8> = (0..out / 32 * inputs / 32).map(|_| 113 + (n.next() % 4) as u8).collect();
        let scale = |o: usize, i: usize| 2f32.powi(i32::from(scales[o / 32 * (inputs / 32) + i / 32]) - 127);
        let all = (0..out * inputs).map(|at| e4m3(codes[at]) * scale(at / inputs, at % inputs)).collect();
        values.insert(format!("{name}.weight"), Array::from_vec(all, &[out, inputs]));
        theirs.insert(format!("{name}.weight"), Array::from_vec(codes, &[out, inputs]));
        theirs.insert(format!("{name}.weight_scale_inv"), Array::from_vec(scales, &[out / 32, inputs / 32]));
    }
    let settings = json!({ "quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [32, 32] });
    let mut ours = Checkpoint::from_parts(config(settings), theirs).unwrap();
    assert_eq!(ours.config["quantization"], json!({ "group_size": 32, "bits": 8, "mode": "mxfp8" }));
    let mut whole = Checkpoint::from_parts(config(Value::Null), values).unwrap();
    let far = difference(&logits(&mut ours), &logits(&mut whole));
    assert!(far < 1e-5, "{far:.1e}");
}

#[test]
fn what_does_not_fit_is_said() {
    let words = |m: usize, n: usize| Array::from_vec(vec![0i32; m * n], &[m, n]);
    let ones = |m: usize, n: usize| ops::ones::<f32>(&[m, n]).unwrap();
    let open = |settings: Value, tensors: Vec<(&str, Array)>| {
        let tensors = tensors.into_iter().map(|(name, a)| (format!("l.{name}"), a)).collect();
        Checkpoint::from_parts(config(settings), tensors).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let settings = |method: &str, more: Value| {
        let mut block = json!({ "quant_method": method, "bits": 4, "group_size": 32 });
        block.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        block
    };
    let awq = || settings("awq", Value::Null);
    let gptq = |more| settings("gptq", more);
    for (settings, tensors, what) in [
        (awq(), vec![("qweight", words(32, 4))], "l.scales is missing"),
        (awq(), vec![("qweight", ones(32, 4)), ("scales", ones(1, 32))], "32-bit words"),
        (awq(), vec![("qweight", words(32, 4)), ("scales", ones(1, 16))], "do not fit"),
        (awq(), vec![("qweight", words(32, 4)), ("qzeros", words(2, 4)), ("scales", ones(1, 32))], "do not fit"),
        (awq(), vec![("qweight", words(12, 4)), ("scales", ones(1, 32))], "12 inputs are no multiple of 8"),
        (
            settings("awq", json!({ "version": "gemv" })),
            vec![("qweight", words(32, 4)), ("scales", ones(1, 32))],
            "\"gemv\" is not read",
        ),
        (gptq(json!({ "bits": 5 })), vec![("qweight", words(4, 32)), ("scales", ones(1, 32))], "GPTQ of 5 bits"),
        (gptq(Value::Null), vec![("qweight", words(4, 32)), ("scales", ones(3, 32))], "do not fit"),
        (
            gptq(Value::Null),
            vec![("qweight", words(4, 32)), ("scales", ones(1, 32)), ("g_idx", Array::from_vec(vec![1i32; 32], &[32]))],
            "l.g_idx: 32 numbers for 32 inputs in 1 groups",
        ),
        (Value::Null, vec![("qweight", words(4, 32)), ("scales", ones(1, 32))], "names neither awq nor gptq"),
        (
            json!({ "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized" }),
            vec![("weight_packed", words(4, 32)), ("weight_scale", ones(4, 2))],
            "\"nvfp4-pack-quantized\" are not read",
        ),
        (
            json!({ "quant_method": "compressed-tensors" }),
            vec![("weight_packed", words(4, 32))],
            "weight_scale is missing",
        ),
        (
            json!({ "quant_method": "fp8" }),
            vec![("weight", Array::from_vec(vec![0u8; 64], &[8, 8])), ("weight_scale_inv", ones(2, 2))],
            "with scales [2, 2]",
        ),
        (json!({ "quant_method": "hqq" }), vec![], "\"hqq\" are not read; known are awq, bitnet"),
    ] {
        let why = open(settings, tensors);
        assert!(why.contains(what) && why.lines().count() <= 6, "{why:?} does not say {what:?}");
    }
}
