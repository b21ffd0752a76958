//! What converters to GGUF do to values, and how it is undone. Packed rows are moved as they are.

use super::families::Family;
use lapis::{Array, Dtype, Result, ops};
use serde_json::{Map, Value};

/// A tensor as checkpoints have it. `name` is that in the file, `a` the whole or one of its packed parts.
///
/// # Errors
/// Sizes that do not fit.
pub(super) fn undo(family: &Family, config: &Map<String, Value>, name: &str, a: Array) -> Result<Array> {
    let (stem, _) = name.rsplit_once('.').unwrap_or((name, ""));
    let stem = stem.rsplit('.').next().unwrap_or(stem);
    let heads = |key: &str| config.get(key).and_then(Value::as_u64).unwrap_or(1).max(1) as i64;
    match stem {
        "attn_q" if family.turned => halves(&a, heads("num_attention_heads")),
        "attn_k" if family.turned => halves(&a, heads("num_key_value_heads")),
        _ if family.plus_one && stem.ends_with("norm") => ops::subtract(ops::astype(&a, Dtype::Float32)?, 1.0),
        _ => Ok(a),
    }
}

/// A tensor of a checkpoint as files have it; `name` is that in the file.
///
/// # Errors
/// Sizes that do not fit.
pub(super) fn redo(family: &Family, config: &Map<String, Value>, name: &str, a: Array) -> Result<Array> {
    let (stem, _) = name.rsplit_once('.').unwrap_or((name, ""));
    let stem = stem.rsplit('.').next().unwrap_or(stem);
    let count = config.get("num_attention_heads").and_then(Value::as_u64).unwrap_or(1).max(1);
    let keys = config.get("num_key_value_heads").and_then(Value::as_u64).unwrap_or(count).max(1);
    match stem {
        "attn_q" if family.turned => neighbours(&a, count as i64),
        "attn_k" if family.turned => neighbours(&a, keys as i64),
        _ if family.plus_one && stem.ends_with("norm") => ops::add(ops::astype(&a, Dtype::Float32)?, 1.0),
        _ => Ok(a),
    }
}

/// Rows of each head in pairs half a head apart to rows in pairs of neighbours.
fn neighbours(a: &Array, heads: i64) -> Result<Array> {
    let pairs = ops::reshape(a, &[heads, 2, -1, a.size() as i64 / a.dim(0).max(1) as i64])?;
    let turned = ops::contiguous(&ops::transpose(&pairs, Some(&[0, 2, 1, 3]))?, false)?;
    ops::reshape(&turned, &a.shape().iter().map(|&d| d as i64).collect::<Vec<_>>())
}

/// Rows of each head in pairs of neighbours to rows in pairs half a head apart.
fn halves(a: &Array, heads: i64) -> Result<Array> {
    let pairs = ops::reshape(a, &[heads, -1, 2, a.size() as i64 / a.dim(0).max(1) as i64])?;
    let turned = ops::contiguous(&ops::transpose(&pairs, Some(&[0, 2, 1, 3]))?, false)?;
    ops::reshape(&turned, &a.shape().iter().map(|&d| d as i64).collect::<Vec<_>>())
}
