//! Regular expressions of JSON schemas (ECMA-262) in the dialect that the grammar compiler reads.
//!
//! The two agree on most of the syntax; where the same characters mean something else they are rewritten, and what one
//! of them lacks is refused.

/// Bytes of a pattern.
const MAX_BYTES: usize = 10_000;

/// What ECMA-262 takes for space.
const SPACE: &str = r"\t\n\x0B\x0C\r \u{A0}\u{1680}\u{2000}-\u{200A}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}\u{FEFF}";

/// The pattern of `date`, `time` and `date-time` (RFC 3339): days that exist, leap seconds at the end of a day of UTC only.
pub(super) fn moment(format: &str) -> Option<String> {
    let leap = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29";
    let days = "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)\
                |02-(?:0[1-9]|1[0-9]|2[0-8]))";
    let date = format!("(?:[0-9]{{4}}-{days}|{leap})");
    let hour = "(?:[01][0-9]|2[0-3]):[0-5][0-9]";
    let time = format!(
        "(?:{hour}:[0-5][0-9](?:[.][0-9]{{1,9}})?(?:[zZ]|[+-]{hour})|23:59:60(?:[.][0-9]{{1,9}})?(?:[zZ]|[+-]00:00))"
    );
    match format {
        "date" => Some(format!("^{date}$")),
        "time" => Some(format!("^{time}$")),
        "date-time" => Some(format!("^{date}[tT]{time}$")),
        _ => None,
    }
}

/// The same pattern in the other dialect, or why there is none.
pub(super) fn translate(pattern: &str) -> Result<String, String> {
    if pattern.len() > MAX_BYTES {
        return Err(format!("a pattern may have {MAX_BYTES} bytes"));
    }
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern.chars().peekable();
    // Inside a class, and whether it has an element yet.
    let mut class = false;
    while let Some(c) = rest.next() {
        match c {
            '\\' => escape(&mut rest, class, &mut out)?,
            '[' if !class => {
                class = true;
                out.push('[');
                if rest.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                if rest.peek() == Some(&']') {
                    return Err("an empty class".into());
                }
            }
            ']' if class => {
                class = false;
                out.push(']');
            }
            // These begin operations on classes in the other dialect.
            '[' | '&' | '~' if class => out.extend(['\\', c]),
            '-' if class && rest.peek() == Some(&'-') => return Err("`--` in a class".into()),
            _ if class => out.push(c),
            '.' => out.push_str(r"[^\n\r\u{2028}\u{2029}]"),
            '(' if rest.next_if_eq(&'?').is_some() => match rest.next() {
                Some(':') => out.push_str("(?:"),
                Some('<') if rest.peek().is_some_and(|c| c.is_alphabetic() || matches!(c, '_' | '$')) => {
                    out.push_str("(?:");
                    if !rest.by_ref().any(|c| c == '>') {
                        return Err("a group's name without end".into());
                    }
                }
                _ => return Err("look-around and flags in groups".into()),
            },
            '{' if !rest.peek().is_some_and(char::is_ascii_digit) => return Err("`{` without a number".into()),
            _ => out.push(c),
        }
    }
    if class { Err("a class without end".into()) } else { Ok(out) }
}

fn escape(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, class: bool, out: &mut String) -> Result<(), String> {
    let Some(c) = rest.next() else { return Err("it ends in `\\`".into()) };
    let set = |out: &mut String, negated: bool, inside: &str| {
        out.push('[');
        out.push_str(if negated { "^" } else { "" });
        out.push_str(inside);
        out.push(']');
    };
    match c {
        'd' | 'D' => set(out, c == 'D', "0-9"),
        'w' | 'W' => set(out, c == 'W', "0-9A-Za-z_"),
        's' | 'S' => set(out, c == 'S', SPACE),
        't' | 'n' | 'r' => out.extend(['\\', c]),
        'v' => out.push_str(r"\x0B"),
        'f' => out.push_str(r"\x0C"),
        'b' if class => out.push_str(r"\x08"),
        '0' if !rest.peek().is_some_and(char::is_ascii_digit) => out.push_str(r"\x00"),
        'c' => match rest.next() {
            Some(letter) if letter.is_ascii_alphabetic() => out.push_str(&format!("\\x{:02X}", letter as u8 % 32)),
            _ => return Err("`\\c` without a letter".into()),
        },
        'x' => out.push_str(&format!("\\u{{{:X}}}", hex(rest, 2)?)),
        'u' if rest.next_if_eq(&'{').is_some() => {
            let digits: String = rest.by_ref().take_while(|c| *c != '}').take(8).collect();
            let code = u32::from_str_radix(&digits, 16).map_err(|_| "`\\u{` without a code".to_string())?;
            out.push_str(&format!("\\u{{{code:X}}}"));
        }
        'u' => {
            let mut code = hex(rest, 4)?;
            if (0xd800..0xdc00).contains(&code) {
                let low = match (rest.next(), rest.next()) {
                    (Some('\\'), Some('u')) => hex(rest, 4)?,
                    _ => 0,
                };
                if !(0xdc00..0xe000).contains(&low) {
                    return Err("half of a pair of surrogates".into());
                }
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            }
            out.push_str(&format!("\\u{{{code:X}}}"));
        }
        'p' | 'P' if rest.peek() == Some(&'{') => {
            out.extend(['\\', c]);
            for c in rest.by_ref() {
                out.push(c);
                if c == '}' {
                    break;
                }
            }
        }
        // Itself, in both.
        '^' | '$' | '\\' | '.' | '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '/' | '-' => {
            if c == '/' {
                out.push('/');
            } else {
                out.extend(['\\', c]);
            }
        }
        c if c.is_ascii_punctuation() || c == ' ' => match class {
            true if matches!(c, '&' | '~') => out.extend(['\\', c]),
            _ => out.push(c),
        },
        c => return Err(format!("`\\{c}`")),
    }
    Ok(())
}

fn hex(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, digits: usize) -> Result<u32, String> {
    let mut code = 0;
    for _ in 0..digits {
        let digit = rest.next().and_then(|c| c.to_digit(16));
        code = code * 16 + digit.ok_or_else(|| "an escape without its digits".to_string())?;
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_rewritten_or_refused() {
        let same = |from: &str, to: &str| assert_eq!(translate(from).as_deref(), Ok(to), "{from}");
        same(r"^[a-z]+\.(?:x|y){2,3}$", r"^[a-z]+\.(?:x|y){2,3}$");
        same(r"\d\W", "[0-9][^0-9A-Za-z_]");
        same(r"[\d&&[~]", r"[[0-9]\&\&\[\~]");
        same(r"a/b\/c", "a/b/c");
        same(r"\cA\x41\u0041\u{1F600}\ud83d\ude00", r"\x01\u{41}\u{41}\u{1F600}\u{1F600}");
        same("(?<year>[0-9])", "(?:[0-9])");
        same(".", r"[^\n\r\u{2028}\u{2029}]");
        for refused in
            ["(?=a)", "(?<!a)", "(?i)a", r"\bword", r"(a)\1", r"\A", "[]", "[^]", "a{,3}", "[a", r"\ud83d", "\\"]
        {
            assert!(translate(refused).is_err(), "{refused}");
        }
    }
}
