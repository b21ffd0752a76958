//! What lies in the pages of a column: levels, which say where values stand in their rows, and values.

use super::schema::{Leaf, Type};
use super::thrift::{Bytes, Read, Thrift};
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use std::io::Read as _;

/// A column of a group of rows.
#[derive(Default)]
pub(super) struct Column {
    /// At which level an entry repeats, and up to which level it is there.
    pub(super) levels: Vec<(u32, u32)>,
    /// Of entries that are there to the last level.
    pub(super) values: Vec<Value>,
}

/// Entries of a group of rows, at most: what is beyond comes from damage.
const MOST: usize = 1 << 27;

impl Column {
    /// Reads `entries` from the pages of a chunk.
    pub(super) fn read(mut chunk: Bytes, leaf: &Leaf, packing: i64, entries: usize) -> Read<Column> {
        let (mut column, mut known) = (Column::default(), Vec::new());
        if entries > MOST {
            return Err(format!("it has {entries} entries"));
        }
        while column.levels.len() < entries {
            let head = Thrift::read(&mut chunk)?;
            let body = Bytes(chunk.take(head.count(3)?)?);
            let kind = head.int(1).unwrap_or(-1);
            let own = match kind {
                0 => head.get(5),
                2 => head.get(7),
                3 => head.get(8),
                // An index says nothing that is needed.
                _ => continue,
            };
            let own = own.ok_or("a page has no header of its own")?;
            let n = own.count(1)?;
            if n > if kind == 2 { MOST } else { entries - column.levels.len() } {
                return Err(format!("a page has {n} values of {entries}"));
            }
            if kind == 2 {
                let data = unpack(body.0, packing, head.count(2)?)?;
                known = plain(&mut Bytes(&data), leaf, n)?;
                continue;
            }
            let unpacked;
            let (repeats, there, mut data);
            if kind == 0 {
                unpacked = unpack(body.0, packing, head.count(2)?)?;
                data = Bytes(&unpacked);
                let mut own = |most: u32| -> Read<Vec<u32>> {
                    if most == 0 {
                        return Ok(vec![0; n]);
                    }
                    let long = u32::from_le_bytes(data.array()?) as usize;
                    runs(Bytes(data.take(long)?), width(most), n)
                };
                (repeats, there) = (own(leaf.repeats)?, own(leaf.there)?);
            } else {
                let mut rest = body;
                let first = rest.take(own.count(6)?)?;
                let second = rest.take(own.count(5)?)?;
                repeats = runs(Bytes(first), width(leaf.repeats), n)?;
                there = runs(Bytes(second), width(leaf.there), n)?;
                let packing = if own.on(7) == Some(false) { 0 } else { packing };
                let long = head.count(2)?.saturating_sub(first.len() + second.len());
                unpacked = unpack(rest.0, packing, long)?;
                data = Bytes(&unpacked);
            }
            let full = there.iter().filter(|&&d| d == leaf.there).count();
            let encoding = own.int(if kind == 0 { 2 } else { 4 }).unwrap_or(-1);
            match encoding {
                0 => column.values.extend(plain(&mut data, leaf, full)?),
                3 if matches!(leaf.kind, Type::Bool) => {
                    data.take(4)?;
                    column.values.extend(runs(data, 1, full)?.into_iter().map(|on| Value::Bool(on == 1)));
                }
                2 | 8 if full == 0 => {}
                2 | 8 => {
                    let bits = u32::from(data.byte()?);
                    for i in runs(data, bits, full)? {
                        let value: &Value = known.get(i as usize).ok_or("a value is not in the dictionary")?;
                        column.values.push(value.clone());
                    }
                }
                other => {
                    let name = match other {
                        5 => "DELTA_BINARY_PACKED",
                        6 => "DELTA_LENGTH_BYTE_ARRAY",
                        7 => "DELTA_BYTE_ARRAY",
                        9 => "BYTE_STREAM_SPLIT",
                        _ => "an unknown way",
                    };
                    return Err(format!("values are written as {name}; PLAIN and dictionaries are read"));
                }
            }
            column.levels.extend(repeats.into_iter().zip(there));
        }
        Ok(column)
    }
}

/// How many bits numbers up to `most` take.
fn width(most: u32) -> u32 {
    32 - most.leading_zeros()
}

/// `n` numbers of `bits` bits, in runs of one and in groups of eight.
fn runs(mut bytes: Bytes, bits: u32, n: usize) -> Read<Vec<u32>> {
    if bits == 0 {
        return Ok(vec![0; n]);
    }
    if bits > 32 {
        return Err(format!("numbers have {bits} bits"));
    }
    let mut all = Vec::with_capacity(n);
    while all.len() < n {
        let head = bytes.varint()?;
        let left = n - all.len();
        if head & 1 == 0 {
            let mut word = [0; 4];
            let own = bytes.take(bits.div_ceil(8) as usize)?;
            word[..own.len()].copy_from_slice(own);
            let long = usize::try_from(head >> 1).unwrap_or(left).min(left);
            all.resize(all.len() + long, u32::from_le_bytes(word));
            continue;
        }
        // The last group may be cut short.
        let groups = usize::try_from(head >> 1).unwrap_or(left).min(left.div_ceil(8));
        let packed = bytes.take((groups * bits as usize).min(bytes.0.len()))?;
        let (mut word, mut held) = (0u64, 0);
        let before = all.len();
        for &byte in packed {
            if all.len() == n {
                break;
            }
            word |= u64::from(byte) << held;
            held += 8;
            while held >= bits && all.len() < n {
                all.push((word & ((1 << bits) - 1)) as u32);
                word >>= bits;
                held -= bits;
            }
        }
        if all.len() == before {
            return Err("a run is empty".into());
        }
    }
    Ok(all)
}

/// `n` values, one behind the other.
fn plain(data: &mut Bytes, leaf: &Leaf, n: usize) -> Read<Vec<Value>> {
    if matches!(leaf.kind, Type::Bool) {
        let bits = data.take(n.div_ceil(8))?;
        return Ok((0..n).map(|i| Value::Bool(bits[i / 8] >> (i % 8) & 1 == 1)).collect());
    }
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map_or(Value::Null, Value::from);
    let mut one = || -> Read<Value> {
        Ok(match leaf.kind {
            Type::Bool => Value::Null,
            Type::Int32 if leaf.unsigned => u32::from_le_bytes(data.array()?).into(),
            Type::Int32 => i32::from_le_bytes(data.array()?).into(),
            Type::Int64 if leaf.unsigned => u64::from_le_bytes(data.array()?).into(),
            Type::Int64 => i64::from_le_bytes(data.array()?).into(),
            Type::Float => f32::from_le_bytes(data.array()?).into(),
            Type::Double => f64::from_le_bytes(data.array()?).into(),
            Type::Bytes => {
                let long = u32::from_le_bytes(data.array()?) as usize;
                text(data.take(long)?)
            }
            Type::Fixed(long) => text(data.take(long)?),
        })
    };
    let mut all = Vec::new();
    for _ in 0..n {
        all.push(one()?);
    }
    Ok(all)
}

/// What a page was before it was packed.
fn unpack(bytes: &[u8], packing: i64, long: usize) -> Read<Vec<u8>> {
    match packing {
        0 => Ok(bytes.to_vec()),
        _ if bytes.is_empty() && long == 0 => Ok(Vec::new()),
        _ => {
            let out = if packing == 2 { gunzip(bytes, long)? } else { snappy(Bytes(bytes))? };
            if out.len() == long {
                Ok(out)
            } else {
                Err(format!("a page has {} bytes, {long} are announced", out.len()))
            }
        }
    }
}

/// Members of gzip, no more than a byte beyond `long`.
fn gunzip(bytes: &[u8], long: usize) -> Read<Vec<u8>> {
    let mut out = Vec::new();
    let most = (long as u64).saturating_add(1);
    MultiGzDecoder::new(bytes)
        .take(most)
        .read_to_end(&mut out)
        .map_err(|e| format!("a page cannot be unpacked: {e}"))?;
    Ok(out)
}

/// Snappy's format: bytes as they are, and copies of what was written before.
fn snappy(mut bytes: Bytes) -> Read<Vec<u8>> {
    let long = usize::try_from(bytes.varint()?).map_err(|_| "a page is too long")?;
    let mut out = Vec::new();
    while !bytes.0.is_empty() {
        let tag = bytes.byte()?;
        let number = |bytes: &mut Bytes, n: usize| -> Read<usize> {
            let mut word = [0; 8];
            word[..n].copy_from_slice(bytes.take(n)?);
            Ok(u64::from_le_bytes(word) as usize)
        };
        let high = usize::from(tag >> 2);
        let (n, back) = match tag & 3 {
            0 => {
                let n = if high < 60 { high } else { number(&mut bytes, high - 59)? };
                out.extend_from_slice(bytes.take(n + 1)?);
                continue;
            }
            1 => (4 + (high & 7), (high >> 3 << 8) | number(&mut bytes, 1)?),
            2 => (high + 1, number(&mut bytes, 2)?),
            _ => (high + 1, number(&mut bytes, 4)?),
        };
        let from = out.len().checked_sub(back).filter(|_| back > 0).ok_or("a copy begins before the page")?;
        for i in from..from + n {
            out.push(out[i]);
        }
    }
    if out.len() == long { Ok(out) } else { Err(format!("{} bytes are unpacked, {long} are announced", out.len())) }
}
