//! Checkpoints packed by other programs: AWQ, GPTQ, compressed-tensors, fp8, BitNet. Codes are put in MLX's order where MLX has
//! the same quantization, so that no value changes; the rest is unpacked.
//!
//! Tensors are found by their names; the config says what names do not. Knows no architecture.

use lapis::io::Arrays;
use lapis::ops::quantize::{Format, Quantized, dequantize, from_fp8};
use lapis::{Array, Dtype, Error, Result, ops};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

type Config = Map<String, Value>;

/// The block of a config that says how tensors are packed: the most frequent form for all, the others by their places.
pub(crate) fn block(forms: BTreeMap<String, Format>) -> Option<Value> {
    let count = |form: &Format| forms.values().filter(|f| *f == form).count();
    let base = *forms.values().max_by_key(|f| count(f))?;
    let show = |f: Format| json!({"group_size": f.group(), "bits": f.bits(), "mode": f.mode().name()});
    let mut block = show(base);
    let others = forms.into_iter().filter(|(_, form)| *form != base).map(|(place, form)| (place, show(form)));
    block.as_object_mut()?.extend(others);
    Some(block)
}

/// Replaces what other programs packed, and in `configs` what they say of it.
///
/// # Errors
/// A method or layout that is not read; tensors that do not fit each other.
pub(crate) fn apply(configs: [&mut Config; 2], tensors: &mut Arrays, place: &str) -> Result<()> {
    let fault = |what: String| Error::unsupported(format!("[load] {place}: {what}"));
    let own =
        configs[0].get("quantization_config").or_else(|| configs[0].get("text_config")?.get("quantization_config"));
    let settings = own.and_then(Value::as_object).cloned().unwrap_or_default();
    let method = settings.get("quant_method").and_then(Value::as_str).unwrap_or_default();
    // What MLX packs says so itself.
    if configs[0].contains_key("quantization") {
        return Ok(());
    }
    let mut forms = BTreeMap::new();
    let (mut changed, mut main) = (false, None);
    for layer in with(tensors, ".qweight") {
        changed = true;
        let packed = Packed::take(tensors, &layer)?;
        main = Some(packed.scales.dtype());
        let format = match method {
            "awq" => {
                let version = settings.get("version").and_then(Value::as_str).unwrap_or("gemm");
                if !version.eq_ignore_ascii_case("gemm") || number(&settings, "bits").unwrap_or(4) != 4 {
                    return Err(fault(format!("AWQ in the layout {version:?} is not read; 4 bits in \"gemm\" are")));
                }
                packed.awq()?
            }
            "gptq" => packed.gptq(&settings)?,
            _ => {
                return Err(fault(format!(
                    "{layer}.qweight is packed, and quantization_config names neither awq nor gptq (quant_method is {method:?})"
                )));
            }
        };
        format.put(tensors, &layer, &mut forms);
    }
    for layer in with(tensors, ".weight_packed") {
        changed = true;
        let format = settings.get("format").and_then(Value::as_str).unwrap_or("pack-quantized");
        if format != "pack-quantized" {
            return Err(fault(format!("compressed-tensors in the format {format:?} are not read; unpack them first")));
        }
        compressed(tensors, &layer)?.put(tensors, &layer, &mut forms);
    }
    let blocks = settings.get("weight_block_size").and_then(Value::as_array).and_then(|b| b.first()?.as_u64());
    let ternary = method == "bitnet" || configs[0].get("model_type").is_some_and(|kind| kind == "bitnet");
    if ternary {
        // Layers of one class divide by their scale.
        let divide = settings.get("linear_class").and_then(Value::as_str).is_some_and(|class| class != "autobitlinear");
        for layer in with(tensors, ".weight_scale") {
            let Some(bits) = bitnet(tensors, &layer, divide)? else { continue };
            changed = true;
            bits.put(tensors, &layer, &mut forms);
        }
    }
    for end in [".weight_scale_inv", ".weight_scale"] {
        for layer in with(tensors, end) {
            changed |= scaled(tensors, &layer, end, blocks.unwrap_or(128) as usize, &mut forms)?;
        }
    }
    if !changed {
        return Ok(());
    }
    let left = [".weight_shape", ".input_scale", ".activation_scale", ".output_scale", ".weight_g_idx"];
    tensors.retain(|name, _| !left.iter().any(|end| name.ends_with(end)));
    if let Some(main) = main {
        // Rows have one type throughout.
        for a in tensors.values_mut().filter(|a| a.dtype().is_floating() && a.dtype() != main) {
            *a = ops::astype(&*a, main)?;
        }
    }
    let block = block(forms);
    for config in configs {
        for key in ["quantization", "quantization_config"] {
            config.shift_remove(key);
            if let Some(Value::Object(text)) = config.get_mut("text_config") {
                text.shift_remove(key);
            }
            config.extend(block.clone().map(|block| (key.to_string(), block)));
        }
    }
    Ok(())
}

/// Layers that have a tensor called so.
fn with(tensors: &Arrays, end: &str) -> Vec<String> {
    tensors.keys().filter_map(|k| k.strip_suffix(end)).map(str::to_string).collect()
}

fn number(settings: &Config, key: &str) -> Option<u64> {
    settings.get(key).and_then(Value::as_u64)
}

/// A layer as MLX has it.
enum Layer {
    Packed(Quantized),
    Plain(Array),
}

impl Layer {
    fn put(self, tensors: &mut Arrays, layer: &str, forms: &mut BTreeMap<String, Format>) {
        let mut put = |leaf: &str, a: Array| drop(tensors.insert(format!("{layer}.{leaf}"), a));
        match self {
            Layer::Plain(weight) => put("weight", weight),
            Layer::Packed(q) => {
                forms.insert(layer.to_string(), q.format);
                put("weight", q.packed);
                put("scales", q.scales);
                if let Some(biases) = q.biases {
                    put("biases", biases);
                }
            }
        }
    }

    /// Affine codes (rows, words) with scales and zeros (rows, groups) in float32, in groups that MLX has. What has no
    /// such groups is unpacked.
    fn affine(name: &str, codes: Array, scales: &Array, zeros: &Array, bits: usize) -> Result<Layer> {
        let shape = |a: &Array| a.shape().to_vec();
        let fail = || {
            let (w, s, z) = (shape(&codes), shape(scales), shape(zeros));
            Error::value(format!("[load] {name}: codes {w:?} of {bits} bits, scales {s:?} and zeros {z:?} do not fit"))
        };
        let (&[rows, words], &[m, groups]) = (codes.shape(), scales.shape()) else { return Err(fail()) };
        let columns = words * 32 / bits;
        if rows != m || groups == 0 || !columns.is_multiple_of(groups) || zeros.shape() != scales.shape() {
            return Err(fail());
        }
        let group = columns / groups;
        let wide = ops::astype(scales, Dtype::Float32)?;
        let biases = ops::negative(&ops::multiply(&wide, ops::astype(zeros, Dtype::Float32)?)?)?;
        let Some(own) = [128, 64, 32].into_iter().find(|g| group.is_multiple_of(*g)) else {
            let codes = whole_codes(&codes, bits)?;
            let each = |a: &Array| ops::repeat(a, group, 1);
            let weight = ops::add(ops::multiply(&codes, each(&wide)?)?, each(&biases)?)?;
            return Ok(Layer::Plain(ops::astype(&weight, scales.dtype())?));
        };
        let fine = |a: &Array| ops::contiguous(&ops::repeat(a, group / own, 1)?, false);
        let biases = ops::astype(&biases, scales.dtype())?;
        let format = Format::affine(bits, own)?;
        let q = Quantized::new(ops::contiguous(&codes, false)?, fine(scales)?, Some(fine(&biases)?), None, format);
        Ok(Layer::Packed(q.map_err(|e| Error::value(format!("[load] {name}: {e}")))?))
    }
}

/// The zeros that nobody stores.
fn half_of_range(like: &Array, bits: usize) -> Result<Array> {
    ops::full(like.shape(), (1u32 << (bits - 1)) as f32, Some(Dtype::Float32))
}

/// Codes (rows, words) as float32 (rows, columns).
fn whole_codes(codes: &Array, bits: usize) -> Result<Array> {
    let (rows, words) = (codes.dim(0), codes.dim(1));
    let format = Format::affine(bits, 32)?;
    let groups = words / bits;
    if groups * bits != words {
        return Err(Error::value(format!("[load] {words} words are no groups of 32 codes of {bits} bits")));
    }
    let (one, zero) = (ops::ones::<f32>(&[rows, groups])?, ops::zeros::<f32>(&[rows, groups])?);
    dequantize(&Quantized::new(ops::contiguous(codes, false)?, one, Some(zero), None, format)?, Some(Dtype::Float32))
}

/// The tensors of a layer of AWQ or GPTQ.
struct Packed {
    name: String,
    words: Array,
    zeros: Option<Array>,
    scales: Array,
    order: Option<Array>,
}

impl Packed {
    fn take(tensors: &mut Arrays, layer: &str) -> Result<Packed> {
        let mut take = |leaf: &str| tensors.swap_remove(&format!("{layer}.{leaf}"));
        let words = |a: Array| {
            let matrix = a.ndim() == 2 && matches!(a.dtype(), Dtype::Int32 | Dtype::Uint32);
            let fault = || Error::value(format!("[load] {layer}.qweight and qzeros are matrices of 32-bit words"));
            if matrix { ops::view(&a, Dtype::Uint32) } else { Err(fault()) }
        };
        let (packed, zeros, scales, order) = (take("qweight"), take("qzeros"), take("scales"), take("g_idx"));
        let (Some(packed), Some(scales)) = (packed, scales) else {
            return Err(Error::value(format!("[load] {layer}.scales is missing beside its qweight")));
        };
        if scales.ndim() != 2 || !scales.dtype().is_floating() {
            return Err(Error::value(format!("[load] {layer}.scales is no matrix of numbers")));
        }
        Ok(Packed { name: layer.into(), words: words(packed)?, zeros: zeros.map(words).transpose()?, scales, order })
    }

    /// 4 bits, packed along the output in the order 0, 4, 1, 5, 2, 6, 3, 7 of nibbles.
    fn awq(self) -> Result<Layer> {
        let nibbles = |a: &Array| -> Result<Array> {
            let shifts = Array::from_vec([0u32, 4, 1, 5, 2, 6, 3, 7].map(|i| 4 * i).to_vec(), &[8]);
            let all = ops::bitwise_and(ops::right_shift(&ops::expand_dims(a, -1)?, &shifts)?, 15u32)?;
            ops::transpose(&ops::flatten(&all, 1, 2)?, None)
        };
        let codes = nibbles(&self.words)?;
        let (rows, columns) = (codes.dim(0) as i64, codes.dim(1) as i64);
        if columns % 8 != 0 {
            return Err(Error::value(format!("[load] {}: {columns} inputs are no multiple of 8", self.name)));
        }
        let shifts = Array::from_vec((0..8u32).map(|i| 4 * i).collect::<Vec<_>>(), &[8]);
        let words = ops::left_shift(&ops::reshape(&codes, &[rows, columns / 8, 8])?, &shifts)?;
        let words = ops::astype(&ops::sum(&words, -1, false)?, Dtype::Uint32)?;
        let scales = ops::contiguous(&ops::transpose(&self.scales, None)?, false)?;
        let zeros = match &self.zeros {
            Some(zeros) => ops::astype(&nibbles(zeros)?, Dtype::Float32)?,
            None => half_of_range(&scales, 4)?,
        };
        Layer::affine(&self.name, words, &scales, &zeros, 4)
    }

    /// 2, 3, 4 or 8 bits, packed along the input, zeros along the output. Inputs may belong to groups in any order:
    /// then the layer is unpacked.
    fn gptq(self, settings: &Config) -> Result<Layer> {
        let bits = number(settings, "bits").unwrap_or(4) as usize;
        if ![2, 3, 4, 8].contains(&bits) {
            return Err(Error::unsupported(format!("[load] {}: GPTQ of {bits} bits; read are 2, 3, 4, 8", self.name)));
        }
        let codes = ops::contiguous(&ops::transpose(&self.words, None)?, false)?;
        let scales = ops::contiguous(&ops::transpose(&self.scales, None)?, false)?;
        let second = settings.get("checkpoint_format").and_then(Value::as_str) == Some("gptq_v2");
        let zeros = match &self.zeros {
            Some(zeros) => {
                let stored = ops::transpose(&whole_codes(zeros, bits)?, None)?;
                if second { stored } else { ops::add(&stored, 1.0)? }
            }
            None => half_of_range(&scales, bits)?,
        };
        let columns = codes.dim(1) * 32 / bits;
        let groups = scales.dim(1).max(1);
        let Some(order) = &self.order else { return Layer::affine(&self.name, codes, &scales, &zeros, bits) };
        let order: Vec<i32> = ops::astype(order, Dtype::Int32)?.to_vec()?;
        let group = columns.div_ceil(groups);
        if order.len() != columns || order.iter().any(|&g| g < 0 || g as usize >= groups) {
            let n = order.len();
            return Err(Error::value(format!(
                "[load] {}.g_idx: {n} numbers for {columns} inputs in {groups} groups",
                self.name
            )));
        }
        if order.iter().enumerate().all(|(i, &g)| g as usize == i / group) {
            return Layer::affine(&self.name, codes, &scales, &zeros, bits);
        }
        let order = Array::from_vec(order, &[columns]);
        let each = |a: &Array| ops::take(&ops::astype(a, Dtype::Float32)?, &order, 1);
        let weight = ops::multiply(ops::subtract(&whole_codes(&codes, bits)?, each(&zeros)?)?, each(&scales)?)?;
        Ok(Layer::Plain(ops::astype(&weight, scales.dtype())?))
    }
}

/// Codes of `compressed-tensors`: along the input, the lowest first, half of the range added to them.
fn compressed(tensors: &mut Arrays, layer: &str) -> Result<Layer> {
    let mut take = |leaf: &str| tensors.swap_remove(&format!("{layer}.{leaf}"));
    let (packed, scales, shape) = (take("weight_packed"), take("weight_scale"), take("weight_shape"));
    let (zeros, order) = (take("weight_zero_point"), take("weight_g_idx"));
    let (Some(packed), Some(scales)) = (packed, scales) else {
        return Err(Error::value(format!("[load] {layer}.weight_scale is missing beside its weight_packed")));
    };
    if order.is_some() {
        let what = format!("[load] {layer}.weight_g_idx: inputs in any order are not read; unpack them first");
        return Err(Error::unsupported(what));
    }
    let codes = ops::view(&packed, Dtype::Uint32)?;
    let columns = match shape {
        Some(shape) => ops::astype(&shape, Dtype::Int64)?.to_vec::<i64>()?.last().copied().unwrap_or(0).max(0) as usize,
        None => codes.shape().last().copied().unwrap_or(0) * 8,
    };
    let last = codes.shape().last().copied().unwrap_or(0);
    let bits = (last * 32).checked_div(columns).unwrap_or(0);
    if ![4, 8].contains(&bits) || codes.ndim() != 2 || scales.ndim() != 2 {
        return Err(Error::unsupported(format!(
            "[load] {layer}.weight_packed: {:?} for {columns} inputs; 4 and 8 bits are read",
            codes.shape()
        )));
    }
    let zeros = match zeros {
        // Packed along the output.
        Some(zeros) if matches!(zeros.dtype(), Dtype::Int32 | Dtype::Uint32) => {
            let along = ops::transpose(&ops::view(&zeros, Dtype::Uint32)?, None)?;
            let shifts: Vec<u32> = (0..32 / bits as u32).map(|i| i * bits as u32).collect();
            let n = shifts.len();
            let one = ops::right_shift(&ops::expand_dims(&along, -1)?, Array::from_vec(shifts, &[n]))?;
            let all = ops::flatten(&ops::bitwise_and(&one, (1u32 << bits) - 1)?, 1, 2)?;
            let rows = (None, Some(codes.dim(0) as i64), 1);
            ops::slice(&ops::transpose(&all, None)?, &[rows, (None, None, 1)])?
        }
        Some(zeros) => ops::add(&ops::astype(&zeros, Dtype::Float32)?, 1 << (bits - 1))?,
        None => half_of_range(&scales, bits)?,
    };
    Layer::affine(layer, codes, &scales, &zeros, bits)
}

/// Four weights a byte, -1, 0 or 1 plus one, each from a quarter of the rows of its own; one scale for all. None where
/// the weight is not packed so.
fn bitnet(tensors: &mut Arrays, layer: &str, divide: bool) -> Result<Option<Layer>> {
    let key = format!("{layer}.weight");
    let packed = |w: &&Array| w.dtype() == Dtype::Uint8 && w.ndim() == 2;
    let Some(bytes) = tensors.get(&key).filter(packed).cloned() else { return Ok(None) };
    let Some(scale) = tensors.swap_remove(&format!("{layer}.weight_scale")) else { return Ok(None) };
    let (rows, columns) = (4 * bytes.dim(0), bytes.dim(1));
    if scale.size() != 1 || !columns.is_multiple_of(32) {
        let text = format!("[load] {key}: {rows} rows of {columns} ternary weights with {} scales", scale.size());
        return Err(Error::unsupported(format!("{text}; read are rows of a multiple of 32 with one scale")));
    }
    let bytes = ops::astype(&bytes, Dtype::Uint32)?;
    let quarter = |i: u32| ops::bitwise_and(ops::right_shift(&bytes, 2 * i)?, 3u32);
    let codes = ops::concatenate(&(0..4).map(quarter).collect::<Result<Vec<_>>>()?, 0)?;
    let shifts = Array::from_vec((0..16u32).map(|i| 2 * i).collect::<Vec<_>>(), &[16]);
    let words = ops::left_shift(&ops::reshape(&codes, &[rows as i64, columns as i64 / 16, 16])?, &shifts)?;
    let words = ops::astype(&ops::sum(&words, -1, false)?, Dtype::Uint32)?;
    let scale =
        if divide { ops::divide(ops::ones::<f32>(&[1])?, ops::astype(&scale, Dtype::Float32)?)? } else { scale };
    let dtype = tensors.values().map(Array::dtype).find(|d| d.is_floating()).unwrap_or(scale.dtype());
    let group = [128, 64, 32].into_iter().find(|g| columns.is_multiple_of(*g)).unwrap_or(32);
    let scales = ops::broadcast_to(&ops::reshape(&ops::astype(&scale, dtype)?, &[1, 1])?, &[rows, columns / group])?;
    let scales = ops::contiguous(&scales, false)?;
    let one = ops::full(scales.shape(), 1.0, Some(Dtype::Float32))?;
    Layer::affine(layer, words, &scales, &one, 2).map(Some)
}

/// Weights of 8 bits with scales for all of them, for rows or for blocks: to bfloat16, but to mode mxfp8 where scales are
/// powers of two for 32 values. Whether there was such a weight.
fn scaled(
    tensors: &mut Arrays,
    layer: &str,
    end: &str,
    block: usize,
    forms: &mut BTreeMap<String, Format>,
) -> Result<bool> {
    let key = format!("{layer}.weight");
    let Some(w) = tensors.get(&key).filter(|w| matches!(w.dtype(), Dtype::Uint8 | Dtype::Int8)).cloned() else {
        return Ok(false);
    };
    let Some(scale) = tensors.swap_remove(&format!("{layer}{end}")) else { return Ok(false) };
    let misfit = |w: &Array, s: &Array| {
        let (w, s) = (w.shape(), s.shape());
        Error::shape(format!("[load] {key}: a weight {w:?} with scales {s:?}, blocks of {block}"))
    };
    if scale.dtype() == Dtype::Uint8 {
        let (&[rows, columns], &[m, groups]) = (w.shape(), scale.shape()) else { return Err(misfit(&w, &scale)) };
        if columns != 32 * groups || m == 0 || !rows.is_multiple_of(m) {
            return Err(misfit(&w, &scale));
        }
        let scales = ops::contiguous(&ops::repeat(&scale, rows / m, 0)?, false)?;
        let format = Format::new(lapis::ops::quantize::Mode::Mxfp8, None, None)?;
        let q = Quantized::new(ops::view(&w, Dtype::Uint32)?, scales, None, None, format)?;
        Layer::Packed(q).put(tensors, layer, forms);
        return Ok(true);
    }
    let scale = ops::astype(&scale, Dtype::Float32)?;
    let scale = match (w.shape(), scale.shape()) {
        _ if scale.size() == 1 => ops::reshape(&scale, &[] as &[i64])?,
        (&[rows, ..], &[m]) if rows == m && w.ndim() == 2 => ops::expand_dims(&scale, -1)?,
        (&[rows, _], &[m, 1]) if rows == m => scale,
        (&[rows, columns], &[m, n]) if m == rows.div_ceil(block) && n == columns.div_ceil(block) => {
            let all = ops::repeat(&ops::repeat(&scale, block, 0)?, block, 1)?;
            ops::slice(&all, &[(None, Some(rows as i64), 1), (None, Some(columns as i64), 1)])?
        }
        _ => return Err(misfit(&w, &scale)),
    };
    let values = match w.dtype() {
        Dtype::Uint8 => from_fp8(&w, Dtype::Float32)?,
        _ => ops::astype(&w, Dtype::Float32)?,
    };
    tensors.insert(key, ops::astype(&ops::multiply(&values, &scale)?, Dtype::Bfloat16)?);
    Ok(true)
}
