//! Memories as mlx-lm's caches, and back. An outline, what the model remembers of one token, says what is wanted.

use super::layout::{Kind, Stored};
use crate::batch::{Keys, KvOptions, Memory};
use lapis::ops::quantize::{Format, Quantized, dequantize, quantize};
use lapis::shape::show;
use lapis::{Array, Error, Result, ops};

const ALL: (Option<i64>, Option<i64>, i64) = (None, None, 1);

/// Rows of (1, heads, rows, width).
fn rows(a: &Array, from: usize, to: usize) -> Result<Array> {
    ops::slice(a, &[ALL, ALL, (Some(from as i64), Some(to as i64), 1)])
}

/// The memories of one layer as a cache.
pub(super) fn store(memories: &[Memory]) -> Result<Stored> {
    if let [Memory::Keys(keys)] = memories {
        return store_keys(keys);
    }
    if memories.iter().any(|m| matches!(m, Memory::Keys(_))) {
        let parts = memories.chunks(1).map(store).collect::<Result<_>>()?;
        return Ok(Stored { kind: Kind::List, tensors: vec![], numbers: vec![], parts });
    }
    let mut tensors = Vec::new();
    for memory in memories {
        let Memory::State(all) = memory else {
            return Err(Error::value("[prompt_cache] a layer remembers nothing: read at least one token first"));
        };
        for a in all {
            // Batch first, as mlx-lm has it.
            tensors.push(Some(if a.ndim() < 4 { ops::expand_dims(a, 0)? } else { a.clone() }));
        }
    }
    Ok(Stored { kind: Kind::Arrays, tensors, numbers: vec![], parts: vec![] })
}

fn store_keys(keys: &Keys) -> Result<Stored> {
    let mut parts = keys.rows()?;
    if let Some(width) = keys.latent() {
        parts = ops::split(&parts[0], vec![width as i64], -1)?;
    }
    let end = keys.end();
    let kv = keys.options();
    if let Some(chunk) = keys.chunk() {
        let numbers = [end, chunk, keys.first()].map(|n| n as i64).to_vec();
        let tensors = parts.into_iter().map(Some).collect();
        return Ok(Stored { kind: Kind::Chunked, tensors, numbers, parts: vec![] });
    }
    let (keep, bound) = match (keys.window(), kv.max) {
        (Some(window), _) => (0, window),
        (None, Some(max)) => (KvOptions::KEEP, max),
        (None, None) => {
            let (kind, numbers, tensors) = match kv.format.filter(|_| end >= kv.start) {
                None => (Kind::Plain, vec![end], parts),
                Some(format) => {
                    let packed = parts.iter().map(|a| quantize(a, format, None)).collect::<Result<Vec<_>>>()?;
                    let three = packed.into_iter().flat_map(|q| [q.packed, q.scales].into_iter().chain(q.biases));
                    (Kind::Quantized, vec![end, format.group(), format.bits()], three.collect())
                }
            };
            let numbers = numbers.into_iter().map(|n| n as i64).collect();
            return Ok(Stored { kind, tensors: tensors.into_iter().map(Some).collect(), numbers, parts: vec![] });
        }
    };
    // In order of time. mlx-lm expects as many as the window, of which the next token replaces the oldest.
    let held = bound.min(end);
    let cut = |a: &Array| -> Result<Option<Array>> {
        let there = a.dim(2);
        if there >= held {
            let kept = keep.min(held);
            return ops::concatenate(&[rows(a, 0, kept)?, rows(a, there - held + kept, there)?], 2).map(Some);
        }
        let gap = ops::full(&[1, a.dim(1), held - there, a.dim(3)], 0.0, Some(a.dtype()))?;
        ops::concatenate(&[gap, a.clone()], 2).map(Some)
    };
    let tensors = parts.iter().map(cut).collect::<Result<_>>()?;
    let numbers = [end, keep, bound, held].map(|n| n as i64).to_vec();
    Ok(Stored { kind: Kind::Rotating, tensors, numbers, parts: vec![] })
}

type Read<T> = std::result::Result<T, String>;

fn said(e: Error) -> String {
    e.message().to_string()
}

/// The memories of a layer that looks like `outline`, and how many tokens it has seen, where it says so.
pub(super) fn restore(stored: Stored, outline: &[Memory]) -> Read<(Vec<Memory>, Option<usize>)> {
    let kind = stored.kind.name();
    match (outline, stored.kind) {
        ([Memory::Keys(_)], Kind::Arrays | Kind::List) => {
            Err(format!("a {kind} in the file, keys and values in the model"))
        }
        ([Memory::Keys(keys)], _) => {
            let keys = restore_keys(stored, keys)?;
            let end = keys.end();
            Ok((vec![Memory::Keys(keys)], Some(end)))
        }
        (_, Kind::Arrays) => Ok((restore_states(stored.tensors, outline)?, None)),
        (_, Kind::List) if stored.parts.len() == outline.len() => {
            let (mut memories, mut end) = (Vec::new(), None);
            for (part, like) in stored.parts.into_iter().zip(outline.chunks(1)) {
                let (mut own, seen) = restore(part, like)?;
                memories.append(&mut own);
                end = end.or(seen);
            }
            Ok((memories, end))
        }
        _ => Err(format!("a {kind} in the file, the state of a recurrence in the model")),
    }
}

fn restore_states(tensors: Vec<Option<Array>>, outline: &[Memory]) -> Read<Vec<Memory>> {
    let count = |m: &Memory| if let Memory::State(all) = m { all.len() } else { 0 };
    let want: usize = outline.iter().map(count).sum();
    if want != tensors.len() {
        return Err(format!("{} arrays in the file, {want} in the model", tensors.len()));
    }
    let mut tensors = tensors.into_iter();
    let mut restore = |like: &Array| -> Read<Array> {
        let Some(tensor) = tensors.next().flatten() else { return Err("a state is missing".into()) };
        let fits =
            tensor.shape().strip_prefix(&[1]).is_some_and(|s| s == like.shape()) || tensor.shape() == like.shape();
        if !fits || !tensor.dtype().is_floating() {
            let [have, need] = [&tensor, like].map(|a| format!("{} of {}", show(a.shape()), a.dtype()));
            return Err(format!("a state {have} in the file, {need} in the model"));
        }
        let shape: Vec<i64> = like.shape().iter().map(|&d| d as i64).collect();
        let cast = ops::reshape(&tensor, &shape).and_then(|a| ops::astype(&a, like.dtype()));
        cast.and_then(|a| ops::contiguous(&a, false)).map_err(said)
    };
    let each = |m: &Memory| match m {
        Memory::State(all) => all.iter().map(&mut restore).collect::<Read<_>>().map(Memory::State),
        _ => Ok(Memory::Empty),
    };
    outline.iter().map(each).collect()
}

fn restore_keys(stored: Stored, outline: &Keys) -> Read<Keys> {
    let kind = stored.kind.name();
    let there = |t: Option<Array>| t.ok_or("no keys: nothing was read".to_string());
    let mut parts: Vec<Array> = stored.tensors.into_iter().map(there).collect::<Read<_>>()?;
    let sizes: Option<Vec<usize>> = stored.numbers.iter().map(|&n| usize::try_from(n).ok()).collect();
    let sizes = sizes.ok_or_else(|| format!("a {kind} with negative numbers: {:?}", stored.numbers))?;
    let want = outline.rows().map_err(said)?;
    if stored.kind == Kind::Quantized {
        parts = unpack(parts, sizes[1], sizes[2], &want[0])?;
    }
    let [keys, values] = &parts[..] else { return Err("keys and values are needed".into()) };
    if keys.ndim() != 4 || values.ndim() != 4 || keys.dim(2) != values.dim(2) {
        return Err(format!("keys {} beside values {}", show(keys.shape()), show(values.shape())));
    }
    let there = keys.dim(2);
    let offset = sizes.first().copied().unwrap_or(there);
    let mut kv = KvOptions::default();
    if stored.kind == Kind::Quantized {
        kv.format = Some(Format::affine(sizes[2], sizes[1]).map_err(said)?);
    }
    if let (Some(chunk), true) = (outline.chunk(), stored.kind != Kind::Chunked) {
        return Err(format!("a {kind} in the file, keys in runs of {chunk} in the model"));
    }
    let (first, parts) = match stored.kind {
        Kind::Rotating => {
            let (keep, max, index) = (sizes[1], sizes[2], sizes[3]);
            if index > there || keep > there || there.min(offset) < max.min(offset) {
                return Err(format!("a ring of {max} at {index} after {offset} tokens, but {there} keys"));
            }
            let ordered =
                parts.iter().map(|a| in_time(a, keep, index, offset)).collect::<Result<Vec<_>>>().map_err(said)?;
            let held = ordered[0].dim(2);
            if held > offset {
                return Err(format!("{held} keys after {offset} tokens"));
            }
            let ring = outline.window().is_none() && keep == KvOptions::KEEP && max > keep;
            if ring {
                kv.max = Some(max);
            }
            let first = if ring && offset > held { offset - held + keep } else { offset - held };
            if first > 0 && !ring && (keep > 0 || outline.window().is_none_or(|window| window > held + 1)) {
                let window = outline.window().map_or("all".to_string(), |w| w.to_string());
                return Err(format!("a ring of {max} keys with {keep} kept in the file; the model looks at {window}"));
            }
            (first, ordered)
        }
        Kind::Chunked => {
            let [chunk, start] = sizes[sizes.len() - 2..] else { return Err(format!("a {kind} without its numbers")) };
            let end = if sizes.len() > 2 { offset } else { start + there };
            if outline.chunk() != Some(chunk) || end < start || end - start > there {
                let own = outline.chunk().map_or("all".to_string(), |n| n.to_string());
                let text = format!("{there} keys of positions {start} to {end} in runs of {chunk} in the file");
                return Err(format!("{text}; the model looks at {own}"));
            }
            let first = end.saturating_sub(1) / chunk.max(1) * chunk;
            if first < start {
                return Err(format!("keys from position {start} on; the model looks at those from {first} on"));
            }
            let cut = |a: &Array| rows(a, first - start, end - start);
            (first, parts.iter().map(cut).collect::<Result<_>>().map_err(said)?)
        }
        _ if offset > there => return Err(format!("{offset} tokens, but {there} keys")),
        _ => (0, parts.iter().map(|a| rows(a, 0, offset)).collect::<Result<_>>().map_err(said)?),
    };
    let parts = match outline.latent() {
        Some(_) => vec![ops::concatenate(&parts, -1).map_err(said)?],
        None => parts,
    };
    for (have, want) in parts.iter().zip(&want) {
        let same = have.dim(0) == 1 && have.dim(1) == want.dim(1) && have.dim(3) == want.dim(3);
        if !same || have.dtype() != want.dtype() {
            let [have, want] = [have, want].map(|a| format!("{} heads of {} {}", a.dim(1), a.dim(3), a.dtype()));
            return Err(format!("{have} in the file, {want} in the model"));
        }
    }
    outline.with_rows(first, &parts, kv).map_err(said)
}

/// Rows of a ring in the order of time.
fn in_time(a: &Array, keep: usize, index: usize, offset: usize) -> Result<Array> {
    let there = a.dim(2);
    if index == there {
        Ok(a.clone())
    } else if index < offset {
        ops::concatenate(&[rows(a, 0, keep)?, rows(a, index, there)?, rows(a, keep.min(index), index)?], 2)
    } else {
        rows(a, 0, index)
    }
}

/// Keys and values of codes, scales and biases of each.
fn unpack(parts: Vec<Array>, group: usize, bits: usize, like: &Array) -> Read<Vec<Array>> {
    let format = Format::affine(bits, group).map_err(said)?;
    let unpack = |part: &[Array]| -> Result<Array> {
        let [packed, scales, biases] = part else { return Err(Error::shape("codes, scales and biases")) };
        let packed = Quantized::new(packed.clone(), scales.clone(), Some(biases.clone()), None, format)?;
        dequantize(&packed, Some(like.dtype()))
    };
    parts.chunks(3).map(unpack).collect::<Result<_>>().map_err(said)
}
