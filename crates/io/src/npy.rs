//! npy: NumPy's file of one array, versions 1 to 3. bfloat16 is written as `V2`, as MLX does.
//!
//! The format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>. The header is a Python dict
//! literal; only the three keys it must have are read, nothing is ever evaluated or unpickled. Knows no graph.

use crate::raw::{RawTensor, size_of};
use crate::source::Source;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
use std::ops::Range;
use std::sync::Arc;

const MAGIC: &[u8] = b"\x93NUMPY";
const MAX_HEADER: u64 = 1 << 16;

/// The array in `range` of `source`. Bytes after it are left alone, as NumPy does.
///
/// # Errors
/// `Io`: not npy, an unknown version, a header that is too long or lacks a key, an element type that lapis does not
/// have (the message has its `descr`), a shape that does not fit, data cut short. `op` names the caller.
pub fn read(op: &str, name: &str, source: &Arc<Source>, range: Range<u64>) -> Result<RawTensor> {
    let fail = |what: String| {
        let of = if name.is_empty() { String::new() } else { format!("array {name:?}: ") };
        source.error(op, of + &what)
    };
    let len = range.end - range.start;
    let head = source.bytes(range.start..range.start + len.min(12))?;
    if !head.starts_with(MAGIC) {
        return Err(fail("does not start with \\x93NUMPY".into()));
    }
    let version = head.get(6..8).unwrap_or(&[0, 0]);
    let (start, header_len) = match (version[0], head.len()) {
        (1, 10..) => (10, u16::from_le_bytes([head[8], head[9]]) as u64),
        (2 | 3, 12..) => (12, u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as u64),
        (1..=3, _) => return Err(fail(format!("{} bytes are too few for a header", head.len()))),
        _ => return Err(fail(format!("version {}.{}, known are 1.0, 2.0 and 3.0", version[0], version[1]))),
    };
    if header_len > MAX_HEADER || header_len > len - start {
        let most = MAX_HEADER.min(len - start);
        return Err(fail(format!("header length {header_len}, expected at most {most}")));
    }
    let data = range.start + start + header_len;
    let text = source.bytes(range.start + start..data)?;
    let header = Header::parse(&text).map_err(|(at, what)| fail(format!("byte {}: {what}", start + at as u64)))?;
    let (dtype, big_endian) = dtype_of(&header.descr).map_err(fail)?;
    let size = size_of(&header.shape, dtype);
    let size = size.ok_or_else(|| fail(format!("shape {:?} of {dtype} is too large", header.shape)))? as u64;
    if size > range.end - data {
        return Err(fail(format!(
            "shape {:?} of {dtype} needs {size} bytes, {} are left",
            header.shape,
            range.end - data
        )));
    }
    let range = data..data + size;
    let mut tensor = if big_endian {
        let mut bytes = source.read(range)?;
        let width = if dtype == Dtype::Complex64 { 4 } else { dtype.size() };
        bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
        RawTensor::new(name, dtype, header.shape, bytes)?
    } else {
        RawTensor::in_file(name.into(), dtype, header.shape, source, range)
    };
    tensor.column_major = header.fortran_order && tensor.shape.len() > 1;
    Ok(tensor)
}

/// The header for an array, so long that data behind it starts at a multiple of 64.
pub fn header(dtype: Dtype, shape: &[usize], column_major: bool) -> Vec<u8> {
    let order = if column_major { "True" } else { "False" };
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    let comma = if dims.len() == 1 { "," } else { "" };
    let dims = dims.join(", ");
    let mut text = format!("{{'descr': '{}', 'fortran_order': {order}, 'shape': ({dims}{comma}), }}", descr(dtype));
    // Version 2 only for the thousands of axes that nobody has.
    let start = if text.len() < 65000 { 10 } else { 12 };
    let pad = 63 - (start + text.len()) % 64;
    text.push_str(&" ".repeat(pad));
    text.push('\n');
    let mut bytes = MAGIC.to_vec();
    if start == 10 {
        bytes.extend([1, 0]);
        bytes.extend((text.len() as u16).to_le_bytes());
    } else {
        bytes.extend([2, 0]);
        bytes.extend((text.len() as u32).to_le_bytes());
    }
    bytes.extend(text.as_bytes());
    bytes
}

const DESCRS: [(&str, Dtype); 14] = [
    ("b1", Dtype::Bool),
    ("u1", Dtype::Uint8),
    ("u2", Dtype::Uint16),
    ("u4", Dtype::Uint32),
    ("u8", Dtype::Uint64),
    ("i1", Dtype::Int8),
    ("i2", Dtype::Int16),
    ("i4", Dtype::Int32),
    ("i8", Dtype::Int64),
    ("f2", Dtype::Float16),
    ("f4", Dtype::Float32),
    ("f8", Dtype::Float64),
    ("V2", Dtype::Bfloat16),
    ("c8", Dtype::Complex64),
];

fn descr(dtype: Dtype) -> String {
    let code = DESCRS.iter().find(|(_, d)| *d == dtype).expect("every dtype has a descr").0;
    format!("{}{code}", if dtype.size() == 1 { '|' } else { '<' })
}

/// The dtype, and whether its bytes are the wrong way round.
fn dtype_of(descr: &str) -> std::result::Result<(Dtype, bool), String> {
    let known = || {
        let codes: Vec<_> = DESCRS.iter().map(|(c, _)| *c).collect();
        let hint = if descr.contains('O') { " (Python objects are never loaded)" } else { "" };
        format!("descr {descr:?} is not supported{hint}; known are {}", codes.join(", "))
    };
    let (order, code) = match descr.chars().next() {
        Some(c @ ('<' | '>' | '|' | '=')) => (c, &descr[1..]),
        _ => ('=', descr),
    };
    let dtype = DESCRS.iter().find(|(c, _)| *c == code).map(|(_, d)| *d).ok_or_else(known)?;
    Ok((dtype, order == '>' && dtype.size() > 1))
}

struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

/// A fault at a byte of the header.
type Fault = (usize, String);

impl Header {
    fn parse(text: &[u8]) -> std::result::Result<Header, Fault> {
        let mut p = Parser { text, at: 0 };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        p.expect(b'{')?;
        while !p.eat(b'}') {
            let at = p.at;
            let key = p.string()?;
            p.expect(b':')?;
            let again = match key.as_str() {
                "descr" => descr.replace(p.descr()?).is_some(),
                "fortran_order" => fortran_order.replace(p.boolean()?).is_some(),
                "shape" => shape.replace(p.shape()?).is_some(),
                _ => return Err((at, format!("unknown key {key:?}"))),
            };
            if again {
                return Err((at, format!("key {key:?} twice")));
            }
            if !p.eat(b',') {
                p.expect(b'}')?;
                break;
            }
        }
        p.space();
        if p.at < text.len() {
            return Err((p.at, "text after the header's dict".into()));
        }
        let missing = |key: &str| (0, format!("the header has no key '{key}'"));
        Ok(Header {
            descr: descr.ok_or_else(|| missing("descr"))?,
            fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// The little of Python's literals that headers are made of.
struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn space(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn eat(&mut self, c: u8) -> bool {
        self.space();
        let found = self.text.get(self.at) == Some(&c);
        self.at += found as usize;
        found
    }

    fn expect(&mut self, c: u8) -> std::result::Result<(), Fault> {
        if self.eat(c) { Ok(()) } else { Err((self.at, format!("expected {:?} in the header", c as char))) }
    }

    fn string(&mut self) -> std::result::Result<String, Fault> {
        self.space();
        let quote = match self.text.get(self.at) {
            Some(&q @ (b'\'' | b'"')) => q,
            _ => return Err((self.at, "expected a quoted text in the header".into())),
        };
        let start = self.at + 1;
        let len = self.text[start..].iter().position(|&c| c == quote || c == b'\\');
        let end = len.map(|n| start + n).filter(|&e| self.text[e] == quote);
        let end = end.ok_or_else(|| (start, "a text in the header does not end".to_string()))?;
        self.at = end + 1;
        Ok(String::from_utf8_lossy(&self.text[start..end]).into_owned())
    }

    /// A text; a list stands for a record type, which is named whole.
    fn descr(&mut self) -> std::result::Result<String, Fault> {
        self.space();
        if matches!(self.text.get(self.at), Some(b'[' | b'(')) {
            let rest = String::from_utf8_lossy(&self.text[self.at..]);
            let shown: String = rest.chars().take(60).collect();
            return Err((self.at, format!("descr {shown}... is a record type, which is not supported")));
        }
        self.string()
    }

    fn boolean(&mut self) -> std::result::Result<bool, Fault> {
        self.space();
        for (word, value) in [(&b"True"[..], true), (b"False", false)] {
            if self.text[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err((self.at, "expected True or False".into()))
    }

    fn shape(&mut self) -> std::result::Result<Vec<usize>, Fault> {
        self.expect(b'(')?;
        let mut shape = Vec::new();
        while !self.eat(b')') {
            let start = self.at;
            while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
                self.at += 1;
            }
            let digits = std::str::from_utf8(&self.text[start..self.at]).expect("digits are UTF-8");
            let dim = digits.parse::<usize>().ok().filter(|&d| d <= i64::MAX as usize);
            shape.push(dim.ok_or_else(|| (start, "expected a dimension from 0 to 2^63 - 1".to_string()))?);
            // Python 2 wrote long integers with an L.
            if self.text.get(self.at) == Some(&b'L') {
                self.at += 1;
            }
            if !self.eat(b',') {
                self.expect(b')')?;
                break;
            }
        }
        Ok(shape)
    }
}
