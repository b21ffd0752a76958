//! JSON read byte by byte.

/// Values inside values.
const DEPTH: usize = 64;

/// Where a reader is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Value,
    FirstItem,
    FirstKey,
    Key,
    Colon,
    After,
    Text,
    Escape,
    Hex(u8),
    Number(Number),
    Word(&'static [u8]),
    End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Number {
    Minus,
    Zero,
    Digits,
    Dot,
    Fraction,
    E,
    Sign,
    Exponent,
}

/// What a byte did to an object's outermost level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// Nothing to tell.
    None,
    /// A key begins with this byte.
    Key,
    /// It ended with this byte.
    KeyEnd,
    /// A value begins with this byte.
    Value,
    /// It ended with this byte.
    ValueEnd,
    /// It ended before this byte.
    ValueOver,
    /// It ended before this byte, and the whole ends with it.
    Last,
    /// The whole ends with this byte.
    End,
}

/// A value being read. Inside strings, control characters are taken as they are.
pub(super) struct Json {
    at: At,
    /// Whether each open bracket is an object's.
    open: Vec<bool>,
    /// The string is a key.
    key: bool,
}

/// This is no JSON, or it nests too deep.
#[derive(Debug)]
pub(super) struct Fault;

impl Json {
    pub(super) fn new() -> Json {
        Json { at: At::Value, open: Vec::new(), key: false }
    }

    /// Whether the value, not a number outside of everything, is whole.
    pub(super) fn is_whole(&self) -> bool {
        self.at == At::End
    }

    /// Whether the next byte is inside a string.
    pub(super) fn in_text(&self) -> bool {
        matches!(self.at, At::Text)
    }

    /// Whether the next byte may begin a value of an object's outermost level.
    pub(super) fn wants_value(&self) -> bool {
        self.at == At::Value && self.open == [true]
    }

    pub(super) fn add(&mut self, byte: u8) -> Result<Event, Fault> {
        if let At::Number(number) = self.at {
            if self.number(number, byte) {
                return Ok(Event::None);
            }
            if !matches!(number, Number::Zero | Number::Digits | Number::Fraction | Number::Exponent) {
                return Err(Fault);
            }
            self.at = if self.open.is_empty() { At::End } else { At::After };
            let outer = self.open.len() == 1;
            return Ok(match self.add(byte)? {
                Event::End => Event::Last,
                _ if outer => Event::ValueOver,
                event => event,
            });
        }
        let (before, depth) = (self.at, self.open.len());
        self.step(byte)?;
        let outer = depth == 1 && self.open.len() == 1;
        Ok(match (before, self.at) {
            (_, At::End) if before != At::End => Event::End,
            (At::FirstKey | At::Key, At::Text) if outer => Event::Key,
            (At::Text, At::Colon) if outer => Event::KeyEnd,
            (At::Value, At::Value) => Event::None,
            (At::Value, _) if depth == 1 => Event::Value,
            (At::After, At::After) => match depth == 2 && self.open.len() == 1 {
                true => Event::ValueEnd,
                false => Event::None,
            },
            (_, At::After) if self.open.len() == 1 => Event::ValueEnd,
            _ => Event::None,
        })
    }

    fn step(&mut self, byte: u8) -> Result<(), Fault> {
        let blank = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        self.at = match (self.at, byte) {
            (At::Text, b'"') => match std::mem::take(&mut self.key) {
                true => At::Colon,
                false => self.after(),
            },
            (At::Text, b'\\') => At::Escape,
            (At::Text, _) => At::Text,
            (At::Escape, b'u') => At::Hex(4),
            (At::Escape, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => At::Text,
            (At::Hex(1), _) if byte.is_ascii_hexdigit() => At::Text,
            (At::Hex(left), _) if byte.is_ascii_hexdigit() => At::Hex(left - 1),
            (At::Word(rest), _) if rest[0] == byte => match &rest[1..] {
                [] => self.after(),
                rest => At::Word(rest),
            },
            (at @ (At::Value | At::FirstItem | At::FirstKey | At::Key | At::Colon | At::After | At::End), _)
                if blank =>
            {
                at
            }
            (At::FirstItem, b']') | (At::FirstKey, b'}') => self.close(byte)?,
            (At::FirstKey | At::Key, b'"') => {
                self.key = true;
                At::Text
            }
            (At::Colon, b':') => At::Value,
            (At::After, b',') => match self.open.last() {
                Some(true) => At::Key,
                _ => At::Value,
            },
            (At::After, b'}' | b']') => self.close(byte)?,
            (At::Value | At::FirstItem, _) => match byte {
                b'{' | b'[' if self.open.len() >= DEPTH => return Err(Fault),
                b'{' => {
                    self.open.push(true);
                    At::FirstKey
                }
                b'[' => {
                    self.open.push(false);
                    At::FirstItem
                }
                b'"' => At::Text,
                b'-' => At::Number(Number::Minus),
                b'0' => At::Number(Number::Zero),
                b'1'..=b'9' => At::Number(Number::Digits),
                b't' => At::Word(b"rue"),
                b'f' => At::Word(b"alse"),
                b'n' => At::Word(b"ull"),
                _ => return Err(Fault),
            },
            _ => return Err(Fault),
        };
        Ok(())
    }

    fn after(&self) -> At {
        if self.open.is_empty() { At::End } else { At::After }
    }

    fn close(&mut self, byte: u8) -> Result<At, Fault> {
        match self.open.pop() {
            Some(object) if object == (byte == b'}') => Ok(self.after()),
            _ => Err(Fault),
        }
    }

    /// Whether the byte belongs to the number.
    fn number(&mut self, number: Number, byte: u8) -> bool {
        use Number::{Digits, Dot, E, Exponent, Fraction, Minus, Sign, Zero};
        self.at = At::Number(match (number, byte) {
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Digits, b'0'..=b'9') => Digits,
            (Zero | Digits, b'.') => Dot,
            (Dot | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Digits | Fraction, b'e' | b'E') => E,
            (E, b'+' | b'-') => Sign,
            (E | Sign | Exponent, b'0'..=b'9') => Exponent,
            _ => return false,
        });
        true
    }
}

/// Appends a byte of JSON, as JSON has it where it is a control character inside a string.
pub(super) fn put(out: &mut Vec<u8>, byte: u8, in_text: bool) {
    match byte {
        b'\n' if in_text => out.extend(b"\\n"),
        b'\t' if in_text => out.extend(b"\\t"),
        b'\r' if in_text => out.extend(b"\\r"),
        0..0x20 if in_text => out.extend(format!("\\u{byte:04x}").bytes()),
        _ => out.push(byte),
    }
}

/// A whole JSON value, with blanks around it taken away and control characters in strings escaped.
pub(super) fn value(text: &str) -> Option<String> {
    let text = text.trim_matches([' ', '\t', '\n', '\r']);
    let mut json = Json::new();
    let mut out = Vec::with_capacity(text.len());
    for &byte in text.as_bytes() {
        let in_text = json.in_text();
        json.add(byte).ok()?;
        put(&mut out, byte, in_text);
    }
    // A number ends with what follows it.
    let whole = json.is_whole() || json.add(b' ').is_ok() && json.is_whole();
    whole.then(|| String::from_utf8(out).ok())?
}

/// As [`value`], of an object.
pub(super) fn object(text: &str) -> Option<String> {
    value(text).filter(|json| json.starts_with('{'))
}

/// A text as JSON.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The text of a JSON string.
pub(super) fn unquote(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}
