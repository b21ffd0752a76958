//! Thrift's compact protocol, in which Parquet writes what it says of itself.

/// Why bytes cannot be read.
pub(super) type Read<T> = std::result::Result<T, String>;

/// Bytes that are taken from the front.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n).ok_or("it ends too early")?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "it ends too early".into())
    }

    pub(super) fn byte(&mut self) -> Read<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Seven bits a byte, the lowest first.
    pub(super) fn varint(&mut self) -> Read<u64> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(n);
            }
        }
        Err("a number is longer than 64 bits".into())
    }

    fn zigzag(&mut self) -> Read<i64> {
        let n = self.varint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    fn length(&mut self) -> Read<usize> {
        let n = self.varint()?;
        // Nothing takes less than a byte.
        usize::try_from(n).ok().filter(|&n| n <= self.0.len()).ok_or(format!("{n} is too long"))
    }
}

/// A value.
pub(super) enum Thrift<'a> {
    Bool(bool),
    Int(i64),
    Bytes(&'a [u8]),
    List(Vec<Thrift<'a>>),
    Struct(Vec<(i64, Thrift<'a>)>),
}

/// How deep values may lie in each other.
const DEPTH: usize = 16;

impl<'a> Thrift<'a> {
    /// The structure at the front.
    pub(super) fn read(bytes: &mut Bytes<'a>) -> Read<Thrift<'a>> {
        Thrift::value(bytes, 12, 0)
    }

    fn value(bytes: &mut Bytes<'a>, kind: u8, depth: usize) -> Read<Thrift<'a>> {
        if depth > DEPTH {
            return Err("values lie too deep in each other".into());
        }
        Ok(match kind {
            1 | 2 => Thrift::Bool(kind == 1),
            3 => Thrift::Int(i64::from(bytes.byte()? as i8)),
            4..=6 => Thrift::Int(bytes.zigzag()?),
            7 => Thrift::Bytes(bytes.take(8)?),
            8 => {
                let n = bytes.length()?;
                Thrift::Bytes(bytes.take(n)?)
            }
            9 | 10 => {
                let head = bytes.byte()?;
                let n = if head >> 4 == 15 { bytes.length()? } else { usize::from(head >> 4) };
                let one = |_| match head & 15 {
                    1 | 2 => Ok(Thrift::Bool(bytes.byte()? == 1)),
                    kind => Thrift::value(bytes, kind, depth + 1),
                };
                Thrift::List((0..n).map(one).collect::<Read<_>>()?)
            }
            12 => {
                let (mut fields, mut id) = (Vec::new(), 0i64);
                loop {
                    let head = bytes.byte()?;
                    if head == 0 {
                        return Ok(Thrift::Struct(fields));
                    }
                    id = if head >> 4 == 0 { bytes.zigzag()? } else { id.wrapping_add(i64::from(head >> 4)) };
                    fields.push((id, Thrift::value(bytes, head & 15, depth + 1)?));
                }
            }
            other => return Err(format!("there is no kind {other} of values")),
        })
    }

    /// A field of a structure.
    pub(super) fn get(&self, id: i64) -> Option<&Thrift<'a>> {
        match self {
            Thrift::Struct(fields) => fields.iter().find(|f| f.0 == id).map(|f| &f.1),
            _ => None,
        }
    }

    pub(super) fn int(&self, id: i64) -> Option<i64> {
        match self.get(id) {
            Some(Thrift::Int(n)) => Some(*n),
            _ => None,
        }
    }

    /// A number that counts something.
    pub(super) fn count(&self, id: i64) -> Read<usize> {
        self.int(id).and_then(|n| usize::try_from(n).ok()).ok_or(format!("field {id} is no number"))
    }

    pub(super) fn on(&self, id: i64) -> Option<bool> {
        match self.get(id) {
            Some(Thrift::Bool(on)) => Some(*on),
            _ => None,
        }
    }

    pub(super) fn text(&self, id: i64) -> Read<String> {
        match self.get(id) {
            Some(Thrift::Bytes(text)) => String::from_utf8(text.to_vec()).map_err(|_| "a name is no text".into()),
            _ => Err(format!("field {id} is no text")),
        }
    }

    pub(super) fn list(&self, id: i64) -> Read<&[Thrift<'a>]> {
        match self.get(id) {
            Some(Thrift::List(all)) => Ok(all),
            _ => Err(format!("field {id} is no list")),
        }
    }
}
