//! AWQ (Lin et al. 2023, arXiv 2306.00978): columns of weights that meet large inputs are made larger before they are rounded, and
//! what comes before them smaller; then weights are clipped where that makes the products of a group more exact.
//!
//! Blocks go one after the other, each with the inputs that the source gives it, so that only one block's inputs are in memory. A
//! factor of columns is found by trying `n` powers of their mean inputs: 3 `n` runs of a block.

use super::layers::{install, numbers, set};
use super::state::{digest_of, fingerprint};
use super::{Listener, State, note_plain};
use lapis::ops::quantize::{Format, dequantize, quantize};
use lapis::{Array, Dtype, Error, Result, eval, ops};
use lapis_lm::adapter::place;
use lapis_lm::blocks::divide_norm;
use lapis_lm::original::pack;
use lapis_lm::{Batch, Formats, Model, Original, Sequence};
use lapis_nn::record::{Product, by_path, record};
use lapis_nn::{Params, Side, for_each_packable};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Rows that go through a block at once.
const ROWS: usize = 2048;
/// Inputs of a layer on which clipping is tried, at most.
const FRAMES: usize = 512;
/// Rows of a matrix that are clipped at once.
const CLIPPED: usize = 256;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Awq {
    /// Of layers in blocks: affine.
    pub format: Format,
    /// Of the table of tokens, the head, and what else lies outside blocks.
    pub embed: Format,
    /// Powers that are tried.
    pub grid: usize,
}

impl Awq {
    /// What tells this run from others.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn run(&self, original: &Original, windows: &[Vec<u32>]) -> Result<Value> {
        let form = |f: Format| json!([f.bits(), f.group()]);
        Ok(json!({
            "method": "awq", "format": form(self.format), "embed": form(self.embed), "grid": self.grid,
            "model": fingerprint(original.model())?, "text": digest_of(windows),
        }))
    }

    fn formats(&self, original: &Original) -> Result<Formats> {
        let (inside, outside) = (original.formats(self.format)?, original.formats(self.embed)?);
        Ok(inside
            .into_iter()
            .map(|(path, format)| match place(&path) {
                None => (path.clone(), outside.get(&path).copied().flatten()),
                Some(_) => (path, format),
            })
            .collect())
    }

    /// A matrix as its codes have it.
    fn rounded(&self, w: &Array) -> Result<Array> {
        dequantize(&quantize(w, self.format, None)?, None)
    }
}

/// Layers of one input whose columns share factors, which something before them takes up.
struct Group {
    /// Paths of the layers.
    layers: Vec<String>,
    /// What takes up the factors: a norm, or a linear layer by its rows.
    before: String,
    /// The layer whose output tells how good a factor is; nothing: that of the only layer.
    seen_at: Option<String>,
}

/// What can be made of a block, by the names of its parts.
fn groups(block: &str, names: &[String]) -> Vec<Group> {
    let at = |name: &str| format!("{block}.{name}");
    let has = |name: &str| names.contains(&at(name));
    let all = |parts: &[&str]| parts.iter().all(|p| has(p));
    let layers = |parts: &[&str]| parts.iter().map(|p| at(p)).collect();
    let mut found = Vec::new();
    let before = has("input_layernorm");
    for parts in [&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"][..], &["self_attn.qkv_proj"]] {
        // Where attention and product share a norm, factors of the one would spoil the other.
        if before && all(parts) && (has("post_attention_layernorm") || has("pre_feedforward_layernorm")) {
            let seen_at = Some(at("self_attn.o_proj"));
            found.push(Group { layers: layers(parts), before: at("input_layernorm"), seen_at });
        }
    }
    if all(&["mlp.up_proj", "mlp.down_proj", "mlp.gate_proj"]) {
        found.push(Group { layers: layers(&["mlp.down_proj"]), before: at("mlp.up_proj"), seen_at: None });
    }
    let norm = ["pre_feedforward_layernorm", "post_attention_layernorm"].into_iter().find(|n| has(n));
    for parts in [&["mlp.gate_proj", "mlp.up_proj"][..], &["mlp.gate_up_proj"]] {
        if let Some(norm) = norm.filter(|_| before && all(parts) && has("mlp.down_proj")) {
            found.push(Group { layers: layers(parts), before: at(norm), seen_at: Some(at("mlp.down_proj")) });
        }
    }
    found
}

/// What is known of the inputs of a layer.
struct Inputs {
    /// Mean of their magnitudes (in,).
    mean: Array,
    /// Some of them (frames, in).
    some: Array,
    /// `xᵀ x` over all (in, in), of layers whose own output tells.
    sum: Option<Array>,
}

/// The text: windows that go through a block at once, and what the block gets of each.
struct Text {
    windows: Vec<Vec<Vec<u32>>>,
    rows: Vec<Option<Array>>,
}

/// Packs the original; gives the model and how its layers are packed, or nothing when the listener had it stop. Blocks that are
/// done are in `state`, and a run that finds them there goes on to the same bits.
///
/// # Errors
/// Formats that are not affine; a model whose blocks are not made of attention and gated products; faults of files.
pub fn awq(
    original: &Original,
    windows: &[Vec<u32>],
    how: Awq,
    state: &State,
    listener: &mut dyn Listener,
) -> Result<Option<(Box<dyn Model>, Formats)>> {
    if !how.format.has_biases() {
        return Err(Error::value("[awq] awq is for affine codes"));
    }
    let formats = how.formats(original)?;
    note_plain(&formats, how.format, listener);
    let mut model = original.model().copied();
    let blocks = blocks(&mut *model);
    let names: Vec<String> = model.module().named_modules().into_iter().map(|(name, _)| name).collect();
    if !blocks.iter().any(|block| !groups(block, &names).is_empty()) {
        return Err(Error::unsupported(
            "[awq] the blocks of this model are not attention and gated products behind norms of their own, as those of llama, \
             mistral, qwen2, qwen3 and gemma3 are; gptq and dwq take any model",
        ));
    }
    let outside: Formats = formats.iter().filter(|(p, _)| place(p).is_none()).map(|(p, f)| (p.clone(), *f)).collect();
    pack(&mut *model, &outside)?;
    let per = (ROWS / windows.first().map_or(1, Vec::len)).max(1);
    let windows: Vec<Vec<Vec<u32>>> = windows.chunks(per).map(<[_]>::to_vec).collect();
    let mut text = Text { rows: vec![None; windows.len()], windows };
    for (i, block) in blocks.iter().enumerate() {
        listener.at("blocks", i, blocks.len());
        if listener.stop() {
            return Ok(None);
        }
        let part = format!("block-{i:05}");
        let outputs = match state.load(&part)? {
            Some((parts, _)) => {
                // The source's outputs come first: this block is a source's still.
                let outputs = text.through(&mut *model, i, None)?;
                restore(&mut *model, block, parts, &formats)?;
                outputs
            }
            None => {
                let mut one =
                    One { model: &mut *model, index: i, path: block, how, formats: &formats, text: &mut text };
                let outputs = one.learn(&groups(block, &names), listener)?;
                state.save(&part, &inside(&*model, block), &Value::Null)?;
                outputs
            }
        };
        text.rows = outputs.into_iter().map(Some).collect();
    }
    listener.at("blocks", blocks.len(), blocks.len());
    pack(&mut *model, &formats)?;
    Ok(Some((model, formats)))
}

/// Paths of blocks, in order.
fn blocks(model: &mut dyn Model) -> Vec<String> {
    let mut all = BTreeMap::new();
    for_each_packable(model.module_mut(), &mut |path, _| {
        if let Some((block, rest)) = place(path) {
            all.entry(block).or_insert_with(|| path[..path.len() - rest.len() - 1].to_string());
        }
    });
    all.into_values().collect()
}

/// Parameters of a block.
fn inside(model: &dyn Model, block: &str) -> Params {
    let prefix = format!("{block}.");
    model.module().parameters().into_iter().filter(|(name, _)| name.starts_with(&prefix)).collect()
}

/// Puts a block that is done in its place.
fn restore(model: &mut dyn Model, block: &str, mut parts: Params, formats: &Formats) -> Result<()> {
    let prefix = format!("{block}.");
    for (path, format) in formats.iter().filter(|(path, _)| path.starts_with(&prefix)) {
        let Some(format) = format else { continue };
        let names = ["weight", "scales", "biases"].map(|n| (n.to_string(), format!("{path}.{n}")));
        let own = names.into_iter().filter_map(|(n, name)| Some((n, parts.remove(&name)?))).collect();
        install(model, path, own, *format);
    }
    model.module_mut().update(&parts, true)
}

impl Text {
    /// What the block gives for each part of the text, or, with `seen_at`, what the layer there gives.
    fn through(&self, model: &mut dyn Model, block: usize, seen_at: Option<&str>) -> Result<Vec<Array>> {
        (0..self.windows.len())
            .map(|i| {
                let ([_, y], products) = self.part(model, i, block)?;
                let seen = |at: &str| products.into_iter().find(|(path, _)| path == at).map(|(_, p)| p.output);
                let y = seen_at.map_or(Some(y), seen).ok_or_else(|| Error::value("[awq] a layer was not run"))?;
                eval([&y])?;
                Ok(y)
            })
            .collect()
    }

    /// What goes in and comes out of the block for a part of the text, and what layers computed. Lazy.
    fn part(&self, model: &mut dyn Model, i: usize, block: usize) -> Result<([Array; 2], Vec<(String, Product)>)> {
        let tokens: Vec<i32> = self.windows[i].iter().flatten().map(|&t| t as i32).collect();
        let n = tokens.len();
        let mut texts = vec![Sequence::whole(); self.windows[i].len()];
        let mut batch = Batch::new(self.windows[i].iter().map(Vec::len).zip(&mut texts));
        batch.only(block, self.rows[i].clone());
        let (_, products) = record(|| model.hidden(&Array::from_vec(tokens, &[n]), &mut batch))?;
        let through = batch.through().ok_or_else(|| {
            Error::unsupported("[awq] layers of this model cannot be run one by one; gptq and dwq take any model")
        })?;
        Ok((through, by_path(model.module_mut(), products)))
    }
}

/// A block that is being packed.
struct One<'a> {
    model: &'a mut dyn Model,
    index: usize,
    path: &'a str,
    how: Awq,
    formats: &'a Formats,
    text: &'a mut Text,
}

impl One<'_> {
    /// Packs the block; gives what it gave before.
    fn learn(&mut self, groups: &[Group], listener: &mut dyn Listener) -> Result<Vec<Array>> {
        let (outputs, mut inputs) = self.look(groups)?;
        let before = self.model.copied();
        self.round()?;
        let plain = self.model.copied();
        let rounding = distance(&outputs, &self.text.through(self.model, self.index, None)?)?;
        self.put(&*before)?;
        for group in groups {
            self.scale(group, &mut inputs)?;
        }
        self.clip(&inputs)?;
        self.round()?;
        let learned = distance(&outputs, &self.text.through(self.model, self.index, None)?)?;
        if learned.is_nan() || learned > rounding {
            listener.note(&format!("{}: rounding to the nearest codes was better, and is kept", self.path));
            self.put(&*plain)?;
        }
        Ok(outputs)
    }

    /// Takes over what another copy of the model has in this block.
    fn put(&mut self, from: &dyn Model) -> Result<()> {
        let parts = inside(from, self.path);
        let prefix = format!("{}.", self.path);
        let mut weights = BTreeMap::new();
        for_each_packable(from.copied().module_mut(), &mut |path, layer| {
            if path.starts_with(&prefix) {
                weights.insert(path.to_string(), layer.matrix().clone());
            }
        });
        for_each_packable(self.model.module_mut(), &mut |path, layer| {
            if let Some(weight) = weights.remove(path) {
                *layer.matrix_mut() = weight;
            }
        });
        self.model.module_mut().update(&parts, true)
    }

    /// Rounds the layers of the block.
    fn round(&mut self) -> Result<()> {
        let prefix = format!("{}.", self.path);
        let own = self.formats.iter().filter(|(path, _)| path.starts_with(&prefix)).map(|(p, f)| (p.clone(), *f));
        pack(self.model, &own.collect())
    }

    /// Whether the layer at a path is one of those that this method packs.
    fn is_own(&self, path: &str) -> bool {
        self.formats.get(path).copied().flatten() == Some(self.how.format)
    }

    /// Runs the block as it is: what it gives, and what its linear layers get.
    fn look(&mut self, groups: &[Group]) -> Result<(Vec<Array>, BTreeMap<String, Inputs>)> {
        let alone: Vec<&String> = groups.iter().filter(|g| g.seen_at.is_none()).flat_map(|g| &g.layers).collect();
        let total: usize = self.text.windows.iter().flatten().map(Vec::len).sum();
        let stride = total.div_ceil(FRAMES) as i64;
        let (mut outputs, mut inputs) = (Vec::new(), BTreeMap::<String, Inputs>::new());
        for i in 0..self.text.windows.len() {
            let ([x, y], products) = self.text.part(self.model, i, self.index)?;
            for (path, product) in products {
                if product.which.is_some() || !self.is_own(&path) {
                    continue;
                }
                let x =
                    ops::astype(&ops::reshape(&product.input, &[-1, product.input.dim(-1) as i64])?, Dtype::Float32)?;
                let mean = ops::divide(&ops::sum(&ops::abs(&x)?, 0, false)?, total as f64)?;
                let some = ops::slice(&x, &[(None, None, stride)])?;
                let sum = match alone.contains(&&path) {
                    true => Some(ops::matmul(&ops::transpose(&x, None)?, &x)?),
                    false => None,
                };
                let next = match inputs.remove(&path) {
                    None => Inputs { mean, some, sum },
                    Some(old) => Inputs {
                        mean: ops::add(old.mean, mean)?,
                        some: ops::concatenate(&[old.some, some], 0)?,
                        sum: old.sum.zip(sum).map(|(a, b)| ops::add(a, b)).transpose()?,
                    },
                };
                inputs.insert(path, next);
            }
            let all = inputs.values().flat_map(|i| [&i.mean, &i.some].into_iter().chain(i.sum.as_ref()));
            eval(all.chain([&x, &y]))?;
            // The first block's come from the table.
            self.text.rows[i].get_or_insert(x);
            outputs.push(y);
        }
        Ok((outputs, inputs))
    }

    /// Finds the factors of a group, and puts them into its layers and what is before them.
    fn scale(&mut self, group: &Group, inputs: &mut BTreeMap<String, Inputs>) -> Result<()> {
        if !group.layers.iter().all(|path| self.is_own(path) && inputs.contains_key(path)) {
            return Ok(());
        }
        let weights: Vec<Array> = group.layers.iter().map(|p| numbers(self.model, p)).collect::<Result<_>>()?;
        let first = &inputs[&group.layers[0]];
        let wanted = match &group.seen_at {
            Some(at) => Some(self.text.through(self.model, self.index, Some(at))?),
            None => None,
        };
        let mut best: Option<(f64, Array)> = None;
        for step in 0..self.how.grid {
            let factors = factors(&first.mean, step as f64 / self.how.grid as f64)?;
            let tried: Vec<Array> = weights
                .iter()
                .map(|w| {
                    let scaled = ops::multiply(ops::astype(w, Dtype::Float32)?, &factors)?;
                    ops::astype(&ops::divide(&self.how.rounded(&scaled)?, &factors)?, w.dtype())
                })
                .collect::<Result<_>>()?;
            let error = match (&wanted, group.seen_at.as_deref()) {
                (Some(wanted), Some(at)) => {
                    group.layers.iter().zip(tried).for_each(|(path, w)| set(self.model, path, w));
                    distance(wanted, &self.text.through(self.model, self.index, Some(at))?)?
                }
                _ => {
                    // |x dᵀ|² over all inputs is that of d with their sum.
                    let sum = first.sum.as_ref().ok_or_else(|| Error::value("[awq] inputs were not summed"))?;
                    let wide = |a: &Array| ops::astype(a, Dtype::Float32);
                    let d = ops::subtract(wide(&tried[0])?, wide(&weights[0])?)?;
                    let error = ops::sum(&ops::multiply(ops::matmul(&d, sum)?, &d)?, (), false)?;
                    f64::from(error.item::<f32>()?)
                }
            };
            if best.as_ref().is_none_or(|(least, _)| error < *least) {
                best = Some((error, factors));
            }
        }
        let Some((_, factors)) = best else { return Ok(()) };
        for (path, w) in group.layers.iter().zip(&weights) {
            let scaled = ops::multiply(ops::astype(w, Dtype::Float32)?, &factors)?;
            set(self.model, path, ops::astype(&scaled, w.dtype())?);
        }
        self.take_up(&group.before, &factors)?;
        for path in &group.layers {
            if let Some(own) = inputs.get_mut(path) {
                own.mean = ops::divide(&own.mean, &factors)?;
                own.some = ops::divide(&own.some, &factors)?;
            }
        }
        Ok(())
    }

    /// Has a norm, or a linear layer, give its rows divided by factors.
    fn take_up(&mut self, before: &str, factors: &Array) -> Result<()> {
        if divide_norm(self.model.module_mut(), before, factors)? {
            return Ok(());
        }
        let w = numbers(self.model, before)?;
        let column = ops::expand_dims(factors, 1)?;
        let divided = ops::divide(&ops::astype(&w, Dtype::Float32)?, &column)?;
        set(self.model, before, ops::astype(&divided, w.dtype())?);
        let name = format!("{before}.bias");
        if let Some(bias) = self.model.module().parameters().get(&name) {
            let divided = ops::astype(&ops::divide(bias, factors)?, bias.dtype())?;
            self.model.module_mut().update(&Params::from([(name, divided)]), true)?;
        }
        Ok(())
    }

    /// Clips the weights of all linear layers but those to queries and keys.
    fn clip(&mut self, inputs: &BTreeMap<String, Inputs>) -> Result<()> {
        for (path, own) in inputs {
            let linear = super::layers::with_layer(self.model, path, |layer| {
                layer.slot().is_some_and(|slot| matches!(slot.side, Side::Linear))
            });
            if linear != Some(true) || ["q_proj", "k_proj", "qkv_proj"].iter().any(|n| path.ends_with(n)) {
                continue;
            }
            let w = numbers(self.model, path)?;
            let parts = (0..w.dim(0)).step_by(CLIPPED).map(|from| {
                let to = (from + CLIPPED).min(w.dim(0)) as i64;
                self.clipped(&ops::slice(&w, &[(Some(from as i64), Some(to), 1)])?, &own.some)
            });
            let parts: Vec<Array> = parts.collect::<Result<_>>()?;
            set(self.model, path, ops::concatenate(&parts, 0)?);
        }
        Ok(())
    }

    /// Rows of a matrix, each group clipped at the bound with the least error of its products with `x` (frames, in).
    fn clipped(&self, w: &Array, x: &Array) -> Result<Array> {
        let (rows, columns, group) = (w.dim(0) as i64, w.dim(1) as i64, self.how.format.group() as i64);
        let wide = ops::astype(w, Dtype::Float32)?;
        let grouped = ops::reshape(&wide, &[rows, columns / group, group])?;
        // (groups, frames, group), and what each group adds to the products: (groups, frames, rows).
        let x = ops::transpose(&ops::reshape(x, &[-1, columns / group, group])?, Some(&[1, 0, 2]))?;
        let products = |w: &Array| ops::matmul(&x, &ops::transpose(w, Some(&[1, 2, 0]))?);
        let wanted = products(&grouped)?;
        let most = ops::max(&ops::abs(&grouped)?, -1, true)?;
        let mut best: Option<[Array; 2]> = None;
        for step in 0..(self.how.grid / 2).max(1) {
            let bound = ops::multiply(&most, 1.0 - step as f64 / self.how.grid as f64)?;
            let within = ops::minimum(&ops::maximum(&grouped, &ops::negative(&bound)?)?, &bound)?;
            let rounded = self.how.rounded(&ops::reshape(&within, &[rows, columns])?)?;
            let got = products(&ops::reshape(&rounded, &[rows, columns / group, group])?)?;
            let error = ops::mean(&ops::square(&ops::subtract(&wanted, &got)?)?, 1, false)?;
            let error = ops::expand_dims(&ops::transpose(&error, None)?, 2)?;
            let next = match best {
                None => [error, bound],
                Some([least, old]) => {
                    let better = ops::less(&error, &least)?;
                    [ops::select(&better, &error, &least)?, ops::select(&better, &bound, &old)?]
                }
            };
            eval(&next)?;
            best = Some(next);
        }
        let Some([_, bound]) = best else { return Ok(w.clone()) };
        let within = ops::minimum(&ops::maximum(&grouped, &ops::negative(&bound)?)?, &bound)?;
        let within = ops::astype(&ops::reshape(&within, &[rows, columns])?, w.dtype())?;
        eval([&within])?;
        Ok(within)
    }
}

/// Factors of columns: their mean inputs to a power, around 1.
fn factors(mean: &Array, power: f64) -> Result<Array> {
    let s = ops::maximum(&ops::power(mean, power)?, 1e-4)?;
    let middle = ops::sqrt(&ops::multiply(ops::max(&s, (), false)?, ops::min(&s, (), false)?)?)?;
    ops::divide(&s, &middle)
}

/// The mean of the squares of differences.
fn distance(a: &[Array], b: &[Array]) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for (a, b) in a.iter().zip(b) {
        let d = ops::subtract(ops::astype(a, Dtype::Float32)?, ops::astype(b, Dtype::Float32)?)?;
        sum += f64::from(ops::sum(&ops::square(&d)?, (), false)?.item::<f32>()?);
        count += a.size();
    }
    Ok(sum / count.max(1) as f64)
}
