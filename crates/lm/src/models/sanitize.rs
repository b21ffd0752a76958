//! Other names and layouts of tensors to those of mlx-lm. Each rule does something only where it finds its source, so
//! that applying it twice changes nothing.

use lapis::io::Arrays;
use lapis::ops::quantize::{Format, Quantized, dequantize, quantize};
use lapis::{Array, Error, Result, ops};
use std::collections::BTreeMap;

/// `....experts.{e}.{name}.{leaf}` to stacks `....{home}.{name}.{leaf}`, where `w1`, `w2` and `w3` are `gate_proj`,
/// `down_proj` and `up_proj`, and `names` are other pairs of names.
pub(super) fn stack_experts(tensors: &mut Arrays, home: &str, names: &[(&str, &str)]) -> Result<()> {
    const USUAL: [(&str, &str); 3] = [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")];
    let mut stacks: BTreeMap<String, BTreeMap<usize, Array>> = BTreeMap::new();
    let mut rest = Arrays::default();
    for (key, tensor) in std::mem::take(tensors) {
        let parts = key.split_once(".experts.").and_then(|(place, tail)| {
            let (e, tail) = tail.split_once('.')?;
            let (name, leaf) = tail.split_once('.')?;
            let name = names.iter().chain(&USUAL).find(|n| n.0 == name).map_or(name, |n| n.1);
            Some((format!("{place}.{home}.{name}.{leaf}"), e.parse::<usize>().ok()?))
        });
        match parts {
            Some((stack, e)) => drop(stacks.entry(stack).or_default().insert(e, tensor)),
            None => drop(rest.insert(key, tensor)),
        }
    }
    *tensors = rest;
    for (name, stack) in stacks {
        let n = stack.len();
        if let Some((e, _)) = stack.iter().zip(0..).find(|((e, _), i)| **e != *i) {
            return Err(Error::value(format!("[load] {name}: {n} experts are there, one of them with number {}", e.0)));
        }
        tensors.insert(name, ops::stack(&stack.into_values().collect::<Vec<_>>(), 0)?);
    }
    Ok(())
}

/// Drops heads that predict tokens farther on: `mtp` and layers beyond the last.
pub(super) fn drop_beyond(tensors: &mut Arrays, layers: usize) {
    let number = |name: &str| name.strip_prefix("model.layers.")?.split('.').next()?.parse::<usize>().ok();
    tensors.retain(|name, _| !name.split('.').any(|p| p == "mtp") && number(name).is_none_or(|i| i < layers));
}

/// Weights (channels, 1, kernel) of convolutions called `name` to (channels, kernel, 1); whether there were any.
pub(super) fn move_conv(tensors: &mut Arrays, name: &str) -> Result<bool> {
    let end = format!("{name}.weight");
    let mut moved = false;
    for (_, tensor) in tensors.iter_mut().filter(|(key, _)| key.ends_with(&end)) {
        if tensor.ndim() == 3 && tensor.dim(2) != 1 && tensor.dim(1) == 1 {
            *tensor = ops::contiguous(&ops::transpose(tensor, Some(&[0, 2, 1]))?, false)?;
            moved = true;
        }
    }
    Ok(moved)
}

/// Tensors called `....{from}` in parts, with the names of the parts in place of `from`.
pub(super) fn replace<const N: usize>(
    tensors: &mut Arrays,
    from: &str,
    to: [&str; N],
    parts: impl Fn(&Array) -> Result<[Array; N]>,
) -> Result<()> {
    let found: Vec<String> = tensors.keys().filter(|k| k.ends_with(from)).cloned().collect();
    for key in found {
        let Some(tensor) = tensors.swap_remove(&key) else { continue };
        let place = &key[..key.len() - from.len()];
        let parts = parts(&tensor).map_err(|e| Error::new(e.kind(), format!("[load] {key}: {e}")))?;
        tensors.extend(to.iter().zip(parts).map(|(name, part)| (format!("{place}{name}"), part)));
    }
    Ok(())
}

/// Experts that are already stacked, `experts.gate_up_proj` and `experts.down_proj`, to those of `switch_mlp`.
pub(super) fn split_experts(tensors: &mut Arrays) -> Result<()> {
    let both = ["switch_mlp.gate_proj.weight", "switch_mlp.up_proj.weight"];
    replace(tensors, "experts.gate_up_proj", both, |w| halves(w, -2))?;
    replace(tensors, "experts.down_proj", ["switch_mlp.down_proj.weight"], |w| Ok([w.clone()]))
}

/// The two halves of an axis.
pub(super) fn halves(a: &Array, axis: i32) -> Result<[Array; 2]> {
    let parts = ops::split(a, 2, axis)?.iter().map(|p| ops::contiguous(p, false)).collect::<Result<Vec<_>>>()?;
    parts.try_into().map_err(|_| Error::shape("two halves"))
}

/// `kv_b_proj`, rows of keys and of values for each of `heads` heads, to `embed_q` (transposed) and `unembed_out`. A
/// packed one is packed again as it was.
pub(super) fn split_kv_b(tensors: &mut Arrays, heads: usize, keys: usize, latent: usize) -> Result<()> {
    let end = "kv_b_proj.weight";
    let found: Vec<String> = tensors.keys().filter_map(|k| k.strip_suffix(end)).map(str::to_string).collect();
    for place in found {
        let mut take = |leaf: &str| tensors.swap_remove(&format!("{place}kv_b_proj.{leaf}"));
        let (Some(mut w), scales, biases) = (take("weight"), take("scales"), take("biases")) else { continue };
        let mut format = None;
        if let Some(scales) = scales {
            let last = |a: &Array| a.shape().last().copied().unwrap_or(0);
            let f = Format::affine(last(&w) * 32 / latent.max(1), latent / last(&scales).max(1))?;
            w = dequantize(&Quantized::new(w, scales, biases, None, f)?, None)?;
            format = Some(f);
        }
        let w = ops::reshape(&w, &[heads as i64, -1, latent as i64])?;
        let parts = ops::split(&w, vec![keys as i64], 1)?;
        let [k, v] = &parts[..] else { return Err(Error::shape("[load] kv_b_proj: keys and values")) };
        for (name, part) in [("embed_q", ops::matrix_transpose(k)?), ("unembed_out", v.clone())] {
            let part = ops::contiguous(&part, false)?;
            let mut put = |leaf: &str, a: Array| drop(tensors.insert(format!("{place}{name}.{leaf}"), a));
            match format.filter(|f| part.dim(2).is_multiple_of(f.group())) {
                None => put("weight", part),
                Some(format) => {
                    let q = quantize(&part, format, None)?;
                    put("weight", q.packed);
                    put("scales", q.scales);
                    if let Some(biases) = q.biases {
                        put("biases", biases);
                    }
                }
            }
        }
    }
    Ok(())
}
