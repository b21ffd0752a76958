//! The files: a head that says what is in them, the tokens, the arrays, and a digest of all of it.
//!
//! ```text
//! "lapiskv\n"  version u32  length of the head u32  head (JSON)  tokens u32 each  arrays, dense  SHA-256 of all before
//! ```
//!
//! All numbers are little-endian, but arrays are in the machine's own order: the machine is part of the folder's name.
//! Whatever is not exactly so is no file of ours. Knows nothing of which files there are.

use super::index::{Chain, Ends, Entry};
use crate::batch::Piece;
use lapis::{Array, Dtype, Result};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"lapiskv\n";
/// Of the format; part of the folder's name, too.
pub(super) const VERSION: u32 = 1;
/// Bytes of a head at most.
const HEAD: usize = 16 << 20;
const DIGEST: usize = 32;

#[derive(Serialize, Deserialize)]
struct Head {
    /// The folder, so that a file in another one is none.
    model: String,
    /// Digest of what comes before the first token.
    parent: String,
    from: usize,
    tokens: usize,
    ends: Ends,
    layers: Vec<Layer>,
}

#[derive(Serialize, Deserialize)]
enum Form {
    None,
    Blocks,
    Keys,
    State,
}

/// A [`Piece`] without the contents of its arrays.
#[derive(Serialize, Deserialize)]
struct Layer {
    form: Form,
    /// Of blocks: latent columns and one, or 0; arrays of a block. Of keys: as they were taken apart.
    numbers: Vec<u64>,
    arrays: Vec<(Dtype, Vec<usize>)>,
}

impl Layer {
    fn of(piece: &Piece) -> Layer {
        let arrays = piece.arrays().map(|a| (a.dtype(), a.shape().to_vec())).collect();
        let (form, numbers) = match piece {
            Piece::None => (Form::None, vec![]),
            Piece::Blocks { latent, blocks } => {
                let count = blocks.first().map_or(0, Vec::len);
                (Form::Blocks, vec![latent.map_or(0, |n| n as u64 + 1), count as u64])
            }
            Piece::Keys { numbers, .. } => (Form::Keys, numbers.clone()),
            Piece::State(_) => (Form::State, vec![]),
        };
        Layer { form, numbers, arrays }
    }

    fn bytes(&self) -> Option<usize> {
        let size = |(dtype, shape): &(Dtype, Vec<usize>)| shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d));
        self.arrays.iter().try_fold(0usize, |n, a| n.checked_add(size(a)?))
    }

    fn piece(&self, bytes: &mut &[u8]) -> Option<Piece> {
        let arrays = self.arrays.iter().map(|(dtype, shape)| {
            let size = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d))?;
            let (own, rest) = bytes.split_at_checked(size)?;
            *bytes = rest;
            Array::from_bytes(own, shape, *dtype).ok()
        });
        let arrays: Vec<Array> = arrays.collect::<Option<_>>()?;
        Some(match self.form {
            Form::None => Piece::None,
            Form::Blocks => {
                let [latent, count] = self.numbers[..] else { return None };
                let count = usize::try_from(count).ok()?.max(1);
                if !arrays.len().is_multiple_of(count) {
                    return None;
                }
                let latent = latent.checked_sub(1).map(usize::try_from).transpose().ok()?;
                Piece::Blocks { latent, blocks: arrays.chunks(count).map(<[Array]>::to_vec).collect() }
            }
            Form::Keys => Piece::Keys { numbers: self.numbers.clone(), arrays },
            Form::State => Piece::State(arrays),
        })
    }
}

/// What passes through on its way to a file is part of the digest.
struct Digesting<W> {
    to: W,
    digest: Context,
}

impl<W: Write> Digesting<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.to.write_all(bytes)
    }
}

fn bytes_of(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|t| t.to_le_bytes()).collect()
}

/// Writes the file of `entry` in the folder `model`.
///
/// # Errors
/// Faults of writing.
pub(super) fn write(to: impl Write, model: &str, entry: &Entry, pieces: &[Piece]) -> io::Result<()> {
    let head = Head {
        model: model.into(),
        parent: entry.chain[0].to_text(),
        from: entry.from,
        tokens: entry.tokens.len(),
        ends: entry.ends,
        layers: pieces.iter().map(Layer::of).collect(),
    };
    let head = serde_json::to_vec(&head)?;
    let mut out = Digesting { to, digest: Context::new(&SHA256) };
    out.put(MAGIC)?;
    out.put(&VERSION.to_le_bytes())?;
    out.put(&(head.len() as u32).to_le_bytes())?;
    out.put(&head)?;
    out.put(&bytes_of(&entry.tokens))?;
    for array in pieces.iter().flat_map(Piece::arrays) {
        let failed = |e: lapis::Error| io::Error::other(e.message().to_string());
        let tensor = array.tensor().map_err(failed)?;
        match tensor.is_row_contiguous() {
            true => out.put(tensor.contiguous_bytes())?,
            false => out.put(&array.to_bytes().map_err(failed)?)?,
        }
    }
    let digest = out.digest.finish();
    out.to.write_all(digest.as_ref())?;
    out.to.flush()
}

/// Bytes that the arrays of pieces take.
pub(super) fn size(pieces: &[Piece]) -> u64 {
    pieces.iter().flat_map(Piece::arrays).map(|a| a.nbytes() as u64).sum()
}

/// What a file of `length` bytes says it is, by its beginning alone. None where it cannot be a file of this folder.
fn head(from: &mut impl Read, length: u64, model: &str) -> Option<(Head, Entry)> {
    let mut first = [0; 16];
    from.read_exact(&mut first).ok()?;
    let number = |at: usize| u32::from_le_bytes([first[at], first[at + 1], first[at + 2], first[at + 3]]);
    let size = number(12) as usize;
    if &first[..8] != MAGIC || number(8) != VERSION || size > HEAD || size as u64 > length {
        return None;
    }
    let mut text = vec![0; size];
    from.read_exact(&mut text).ok()?;
    let head: Head = serde_json::from_slice(&text).ok()?;
    let payload = head.layers.iter().try_fold(0usize, |n, l| n.checked_add(l.bytes()?))?;
    let tokens = head.tokens.checked_mul(4)?;
    let whole = [16, size, tokens, payload, DIGEST].into_iter().try_fold(0usize, usize::checked_add)?;
    if whole as u64 != length || head.model != model {
        return None;
    }
    let mut words = vec![0; tokens];
    from.read_exact(&mut words).ok()?;
    let tokens = words.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
    let entry = Entry::new(Chain::from_text(&head.parent)?, head.from, tokens, head.ends, length)?;
    Some((head, entry))
}

/// The entry of a file, by its beginning.
pub(super) fn peek(mut from: impl Read, length: u64, model: &str) -> Option<Entry> {
    head(&mut from, length, model).map(|(_, entry)| entry)
}

/// The entry of a file and what is in it, all of it checked.
pub(super) fn read(bytes: &[u8], model: &str) -> Option<(Entry, Vec<Piece>)> {
    let (all, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
    if ring::digest::digest(&SHA256, all).as_ref() != digest {
        return None;
    }
    let mut rest = all;
    let (head, entry) = head(&mut rest, bytes.len() as u64, model)?;
    let pieces = head.layers.iter().map(|l| l.piece(&mut rest)).collect::<Option<_>>()?;
    rest.is_empty().then_some((entry, pieces))
}

/// A digest of everything that decides what a model remembers of tokens: weights, config, settings, program, machine.
///
/// # Errors
/// Parameters that cannot be computed.
pub(super) fn identity(model: &dyn crate::Model, about: &[&[u8]]) -> Result<String> {
    let mut digest = Context::new(&SHA256);
    let mut add = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    add(&VERSION.to_le_bytes());
    for part in about {
        add(part);
    }
    for (name, array) in model.module().parameters() {
        add(name.as_bytes());
        add(format!("{} {:?}", array.dtype(), array.shape()).as_bytes());
        let tensor = array.tensor()?;
        match tensor.is_row_contiguous() {
            true => add(tensor.contiguous_bytes()),
            false => add(&array.to_bytes()?),
        }
    }
    let digest = digest.finish();
    Ok(digest.as_ref()[..16].iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Entry, Vec<Piece>) {
        let root = Chain::root("0123", 7);
        let entry = Entry::new(root, 0, vec![3, 1, 4, 1, 5], Ends::Last, 0).unwrap();
        let a = |n: usize| Array::from_vec((0..n).map(|i| i as f32).collect(), &[1, 1, n / 2, 2]);
        let blocks = Piece::Blocks { latent: None, blocks: vec![vec![a(10), a(10)]] };
        (
            entry,
            vec![blocks, Piece::None, Piece::State(vec![a(4)]), Piece::Keys { numbers: vec![5], arrays: vec![a(2)] }],
        )
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let (entry, pieces) = sample();
        let mut bytes = Vec::new();
        write(&mut bytes, "0123", &entry, &pieces).unwrap();
        let (got, read) = super::read(&bytes, "0123").unwrap();
        assert_eq!((got.chain, got.tokens, got.ends), (entry.chain, entry.tokens, entry.ends));
        for (a, b) in pieces.iter().zip(&read) {
            assert_eq!(std::mem::discriminant(a), std::mem::discriminant(b));
            for (a, b) in a.arrays().zip(b.arrays()) {
                assert_eq!((a.shape(), a.to_vec::<f32>().unwrap()), (b.shape(), b.to_vec::<f32>().unwrap()));
            }
        }
        assert!(super::read(&bytes, "0124").is_none(), "the file of another model");
    }

    #[test]
    fn every_bit_and_every_length_of_a_file_counts() {
        let (entry, pieces) = sample();
        let mut bytes = Vec::new();
        write(&mut bytes, "0123", &entry, &pieces).unwrap();
        for i in 0..bytes.len() {
            for bit in 0..8 {
                bytes[i] ^= 1 << bit;
                assert!(super::read(&bytes, "0123").is_none(), "byte {i}, bit {bit}");
                // The beginning alone may look right; it must not break anything.
                drop(peek(&bytes[..], bytes.len() as u64, "0123"));
                bytes[i] ^= 1 << bit;
            }
            assert!(super::read(&bytes[..i], "0123").is_none(), "{i} bytes");
            assert!(peek(&bytes[..i], i as u64, "0123").is_none(), "the beginning of {i} bytes");
        }
        bytes.push(0);
        assert!(super::read(&bytes, "0123").is_none() && peek(&bytes[..], bytes.len() as u64, "0123").is_none());
    }

    /// A file whose digest is right, whatever it says.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - DIGEST);
        let digest = ring::digest::digest(&SHA256, &bytes);
        bytes.extend_from_slice(digest.as_ref());
        bytes
    }

    #[test]
    fn no_head_breaks_the_reader() {
        let (entry, pieces) = sample();
        let mut bytes = Vec::new();
        write(&mut bytes, "0123", &entry, &pieces).unwrap();
        let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        for i in 0..16 + length {
            for byte in [0, b'0', b'9', b'-', b'"', b'}', 0xff] {
                let mut other = bytes.clone();
                other[i] = byte;
                // What is left may be a file, of other numbers: then parts do not fit where they are put together.
                if let Some((_, pieces)) = super::read(&sealed(other), "0123") {
                    drop(crate::Sequence::of_pieces(vec![pieces], 5, crate::KvOptions::default()));
                }
            }
        }
    }
}
