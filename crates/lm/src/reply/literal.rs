//! Python's literals, and calls with such arguments, as JSON. Nothing is evaluated.

use super::json;

/// Values inside values.
const DEPTH: usize = 64;

/// A whole literal as JSON: `None`, `True`, numbers, strings, lists, tuples, dictionaries.
pub(crate) fn literal(text: &str) -> Option<String> {
    let mut cursor = Cursor { rest: text, words: false };
    let value = cursor.value(DEPTH)?;
    cursor.blanks();
    cursor.rest.is_empty().then_some(value)
}

/// The calls of a list such as `[f(a=1, b="x"), g()]`: names, and arguments as JSON. JSON's words may stand for Python's,
/// and what is no literal at all is text.
pub(super) fn calls(text: &str) -> Option<Vec<(String, String)>> {
    let (begin, end) = (text.find('[')?, text.rfind(']')?);
    let mut cursor = Cursor { rest: text.get(begin + 1..end)?, words: true };
    let mut calls = Vec::new();
    loop {
        cursor.blanks();
        if cursor.rest.is_empty() && !calls.is_empty() {
            return Some(calls);
        }
        let name = cursor.name(true)?.to_owned();
        let mut arguments = Vec::new();
        cursor.take('(')?;
        while cursor.take(')').is_none() {
            let key = cursor.name(false)?;
            cursor.take('=')?;
            let value = cursor.argument();
            arguments.push(format!("{}: {value}", json::quote(key)));
            if cursor.take(',').is_none() {
                cursor.take(')')?;
                break;
            }
        }
        calls.push((name, format!("{{{}}}", arguments.join(", "))));
        if cursor.take(',').is_none() {
            cursor.blanks();
            return cursor.rest.is_empty().then_some(calls);
        }
    }
}

struct Cursor<'a> {
    rest: &'a str,
    /// `true`, `false` and `null` are values too.
    words: bool,
}

impl<'a> Cursor<'a> {
    fn blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
    }

    /// Reads a character after blanks.
    fn take(&mut self, c: char) -> Option<()> {
        self.blanks();
        self.rest = self.rest.strip_prefix(c)?;
        Some(())
    }

    fn split(&mut self, at: usize) -> &'a str {
        let (word, rest) = self.rest.split_at(at);
        self.rest = rest;
        word
    }

    fn name(&mut self, dots: bool) -> Option<&'a str> {
        self.blanks();
        let part = |c: char| c.is_alphanumeric() || c == '_' || dots && (c == '.' || c == '-');
        let end = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        (end > 0 && !self.rest.starts_with(|c: char| c.is_ascii_digit())).then(|| self.split(end))
    }

    /// The value of an argument; what is no literal is text up to the next comma or the end of the call.
    fn argument(&mut self) -> String {
        let before = self.rest;
        if let Some(value) = self.value(DEPTH) {
            self.blanks();
            if self.rest.starts_with([',', ')']) {
                return value;
            }
        }
        self.rest = before;
        let end = self.rest.find([',', ')']).unwrap_or(self.rest.len());
        let text = self.split(end).trim();
        literal(text).unwrap_or_else(|| json::quote(text))
    }

    fn value(&mut self, depth: usize) -> Option<String> {
        let depth = depth.checked_sub(1)?;
        self.blanks();
        match self.rest.chars().next()? {
            '[' => self.items(']', depth).map(|(items, _)| format!("[{}]", items.join(", "))),
            '(' => {
                let (mut items, comma) = self.items(')', depth)?;
                // One value in brackets is that value.
                if items.len() == 1 && !comma { items.pop() } else { Some(format!("[{}]", items.join(", "))) }
            }
            '{' => self.dictionary(depth),
            '+' | '-' | '.' | '0'..='9' => self.number(),
            '"' | '\'' => self.strings(),
            _ => {
                if let Some(rest) = self.rest.strip_prefix(['r', 'R', 'u', 'U'])
                    && rest.starts_with(['"', '\''])
                {
                    return self.strings();
                }
                match self.name(false)? {
                    "None" => Some("null".into()),
                    "True" => Some("true".into()),
                    "False" => Some("false".into()),
                    word @ ("true" | "false" | "null") if self.words => Some(word.into()),
                    _ => None,
                }
            }
        }
    }

    /// Values up to a bracket, and whether a comma follows the last.
    fn items(&mut self, end: char, depth: usize) -> Option<(Vec<String>, bool)> {
        self.split(1);
        let mut items = Vec::new();
        let mut comma = false;
        while self.take(end).is_none() {
            if !items.is_empty() && !comma {
                return None;
            }
            items.push(self.value(depth)?);
            comma = self.take(',').is_some();
        }
        Some((items, comma))
    }

    fn dictionary(&mut self, depth: usize) -> Option<String> {
        self.split(1);
        let mut items = Vec::new();
        let mut comma = true;
        while self.take('}').is_none() {
            if !comma {
                return None;
            }
            let key = match self.value(depth)? {
                key if key.starts_with('"') => key,
                key if key.starts_with(['[', '{']) => return None,
                key => json::quote(&key),
            };
            self.take(':')?;
            items.push(format!("{key}: {}", self.value(depth)?));
            comma = self.take(',').is_some();
        }
        Some(format!("{{{}}}", items.join(", ")))
    }

    fn number(&mut self) -> Option<String> {
        let signs = self.rest.len() - self.rest.trim_start_matches(['+', '-', ' ']).len();
        let minus = self.split(signs).matches('-').count() % 2 == 1;
        let exponent =
            |i: usize| i > 0 && matches!(self.rest.as_bytes()[i - 1], b'e' | b'E') && !self.rest.starts_with("0x");
        let part = |(i, c): (usize, char)| {
            c.is_ascii_alphanumeric() || matches!(c, '_' | '.') || matches!(c, '+' | '-') && exponent(i)
        };
        let end = self.rest.char_indices().find(|&x| !part(x)).map_or(self.rest.len(), |(i, _)| i);
        let word = self.split(end);
        // An underscore stands between digits.
        let (first, last) = (word.chars().next()?, word.chars().last()?);
        if first == '_' || last == '_' || word.contains("__") {
            return None;
        }
        let digits = word.replace('_', "");
        let radix = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0x") => 16,
            Some("0o") => 8,
            Some("0b") => 2,
            _ => 10,
        };
        let plain = if radix != 10 {
            i128::from_str_radix(&digits[2..], radix).ok()?.to_string()
        } else if json::value(&digits).is_some_and(|_| first.is_ascii_digit()) {
            digits
        } else if digits.bytes().all(|b| b == b'0') {
            "0".into()
        } else {
            // `1.`, `.5`: JSON wants digits on both sides. Other letters are no number, and leading zeros no integer.
            let float =
                digits.contains(['.', 'e', 'E']) && digits.starts_with(|c: char| c == '.' || c.is_ascii_digit());
            let x = digits.parse::<f64>().ok().filter(|x| float && x.is_finite())?;
            serde_json::Number::from_f64(x)?.to_string()
        };
        Some(if minus { format!("-{plain}") } else { plain })
    }

    /// Strings, one after the other, are one.
    fn strings(&mut self) -> Option<String> {
        let mut text = String::new();
        loop {
            let raw = self.rest.starts_with(['r', 'R']);
            if self.rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
                self.split(1);
            }
            self.string(raw, &mut text)?;
            self.blanks();
            if !self.rest.starts_with(['"', '\'']) {
                return Some(json::quote(&text));
            }
        }
    }

    fn string(&mut self, raw: bool, text: &mut String) -> Option<()> {
        let mark = self.rest.chars().next()?;
        let triple = [mark; 3].iter().collect::<String>();
        let long = self.rest.starts_with(&triple);
        self.split(if long { 3 } else { 1 });
        loop {
            let c = self.rest.chars().next()?;
            if long && self.rest.starts_with(&triple) || !long && c == mark {
                self.split(if long { 3 } else { 1 });
                return Some(());
            }
            self.split(c.len_utf8());
            match c {
                '\\' if raw => {
                    text.push('\\');
                    let next = self.rest.chars().next()?;
                    text.push(next);
                    self.split(next.len_utf8());
                }
                '\\' => self.escape(text)?,
                '\n' if !long && !self.words => return None,
                _ => text.push(c),
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Option<()> {
        let c = self.rest.chars().next()?;
        self.split(c.len_utf8());
        let mut code = |digits: usize| {
            let code = u32::from_str_radix(self.rest.get(..digits)?, 16).ok()?;
            self.rest = &self.rest[digits..];
            Some(code)
        };
        let c = match c {
            '\n' => return Some(()),
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'v' => '\u{b}',
            '\\' | '\'' | '"' => c,
            'x' => char::from_u32(code(2)?)?,
            'U' => char::from_u32(code(8)?)?,
            'u' => match code(4)? {
                // Two halves of a character, as JSON spells it.
                high @ 0xd800..0xdc00 if self.rest.starts_with("\\u") => {
                    let low = u32::from_str_radix(self.rest.get(2..6)?, 16).ok()?;
                    self.rest = &self.rest[6..];
                    char::decode_utf16([high as u16, low as u16]).next()?.ok()?
                }
                code => char::from_u32(code)?,
            },
            '0'..='7' => {
                let more = self.rest.bytes().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let digits = format!("{c}{}", self.split(more));
                char::from_u32(u32::from_str_radix(&digits, 8).ok()?)?
            }
            _ => {
                text.push('\\');
                c
            }
        };
        text.push(c);
        Some(())
    }
}
