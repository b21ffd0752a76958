//! Grammars of texts that stand inside JSON strings.
//!
//! Each text and each expression of a Lark grammar becomes one of what JSON writes for it: `"` is `\"`, a line's end is `\n`.
//! Every character has one spelling, so that a text is of the grammar where its spelling is of the new one. Control
//! characters without a short spelling are left out of sets.

use std::collections::HashMap;

use serde_json::Value;

/// Characters that JSON escapes, and the letter that stands for each after a backslash.
const ESCAPED: [(char, char); 7] =
    [('"', '"'), ('\\', '\\'), ('\u{8}', 'b'), ('\u{c}', 'f'), ('\n', 'n'), ('\r', 'r'), ('\t', 't')];

/// Terminals of Lark's `common` whose texts JSON may escape.
const COMMON: [(&str, &str); 10] = [
    ("ESCAPED_STRING", r#""([^"\\]|\\.)*""#),
    ("WS_INLINE", r"[ \t]+"),
    ("WS", r"[ \t\f\r\n]+"),
    ("CR", r"\r"),
    ("LF", r"\n"),
    ("NEWLINE", r"(\r?\n)+"),
    ("SH_COMMENT", r"#[^\n]*"),
    ("CPP_COMMENT", r"\/\/[^\n]*"),
    ("C_COMMENT", r"\/\*[^*]*\*+(?:[^\/*][^*]*\*+)*\/"),
    ("SQL_COMMENT", r"--[^\n]*"),
];

/// Different sets in a grammar; looking into one takes up to a millisecond.
const SETS: usize = 500;

/// Spellings of the sets that were met.
type Sets = HashMap<String, String>;

fn letter(c: char) -> Option<char> {
    ESCAPED.iter().find(|e| e.0 == c).map(|e| e.1)
}

/// The same grammar of texts as a JSON string spells them, without its quotation marks; or what of it cannot be said. What is
/// malformed is left as it is, for the compiler to tell.
pub(super) fn quoted(grammar: &str) -> Result<String, String> {
    let mut out = String::with_capacity(grammar.len() + 64);
    let mut rest = grammar;
    let sets = &mut Sets::new();
    while let Some(c) = rest.chars().next() {
        let next = rest[c.len_utf8()..].trim_start().chars().next();
        let length = match c {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '"' => {
                let Some((first, flagged, length)) = text(rest) else { return Ok(out + rest) };
                let other = rest[length..].trim_start().strip_prefix("..").map(str::trim_start);
                match other.and_then(|other| Some((other, text(other)?))) {
                    Some((other, (last, _, more))) => {
                        out.push_str(&range(&first, &last, sets)?);
                        rest.len() - other.len() + more
                    }
                    None => {
                        out.push_str(&literal(&first, flagged)?);
                        length
                    }
                }
            }
            '/' => {
                let inner = &rest[1..];
                let Some(end) = closing(inner, '/') else { return Ok(out + rest) };
                let flags = inner[end + 1..].chars().take_while(char::is_ascii_lowercase).count();
                let flags = &inner[end + 1..][..flags];
                if flags.contains('x') {
                    return Err("the flag `x` of expressions".into());
                }
                out.push_str(&format!("/{}/{flags}", expression(&inner[..end], flags.contains('s'), sets)?));
                end + 2 + flags.len()
            }
            '%' => {
                let line = &rest[..rest.find('\n').unwrap_or(rest.len())];
                let word = rest[1..].chars().take_while(char::is_ascii_alphabetic).count() + 1;
                match &rest[..word] {
                    "%import" => {
                        import(line[word..].split("//").next().unwrap_or_default().trim(), &mut out, sets)?;
                        line.len()
                    }
                    "%ignore" => {
                        out.push_str("%ignore");
                        word
                    }
                    other => return Err(format!("`{other}`")),
                }
            }
            '@' => return Err("`@`, another grammar's name".into()),
            '<' => return Err("`<...>`, special tokens".into()),
            '~' if !next.is_some_and(|n| n.is_ascii_digit()) => return Err("`~` before what must not be".into()),
            _ => {
                out.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    Ok(out)
}

/// Where an `end` stands that no backslash takes for itself.
fn closing(text: &str, end: char) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let found = c == end && !escaped;
        escaped = c == '\\' && !escaped;
        found.then_some(at)
    })
}

/// A text at the beginning, whether either case will do, and its bytes with both quotation marks.
fn text(rest: &str) -> Option<(String, bool, usize)> {
    let end = closing(rest.strip_prefix('"')?, '"')? + 2;
    // Python's `\x41` is no JSON.
    let (mut json, mut escaped) = (String::new(), false);
    for c in rest[..end].chars() {
        match (escaped, c) {
            (true, 'x') => json.push_str("u00"),
            _ => json.push(c),
        }
        escaped = c == '\\' && !escaped;
    }
    let flagged = rest[end..].starts_with('i');
    Some((serde_json::from_str(&json).ok()?, flagged, end + usize::from(flagged)))
}

/// A text in Lark's syntax.
fn written(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A text of the spelling of another.
fn literal(text: &str, flagged: bool) -> Result<String, String> {
    let mut parts = vec![(String::new(), true)];
    for c in text.chars() {
        match letter(c) {
            Some(letter) => parts.extend([(format!("\\{letter}"), false), (String::new(), true)]),
            None if c < ' ' => return Err(format!("the control character {c:?} in a text")),
            None => parts.last_mut().expect("there is one").0.push(c),
        }
    }
    if !flagged {
        return Ok(written(&parts.into_iter().map(|p| p.0).collect::<String>()));
    }
    // What JSON adds has one case.
    let parts = parts.iter().filter(|p| !p.0.is_empty());
    let parts: Vec<String> = parts.map(|(p, plain)| written(p) + if *plain { "i" } else { "" }).collect();
    Ok(if parts.is_empty() { "\"\"".into() } else { format!("({})", parts.join(" ")) })
}

/// One character from `first` to `last`.
fn range(first: &str, last: &str, sets: &mut Sets) -> Result<String, String> {
    let code = |text: &str| {
        let mut all = text.chars();
        all.next().filter(|_| all.next().is_none()).map(u32::from)
    };
    match (code(first), code(last)) {
        (Some(first), Some(last)) if first <= last => {
            Ok(format!("/{}/", expression(&format!("[\\x{{{first:X}}}-\\x{{{last:X}}}]"), false, sets)?))
        }
        _ => Err(format!("the range from {first:?} to {last:?}")),
    }
}

/// What is imported, as it is or under its new definition.
fn import(line: &str, out: &mut String, sets: &mut Sets) -> Result<(), String> {
    let (path, alias) = line.split_once("->").map_or((line, None), |(path, alias)| (path.trim(), Some(alias.trim())));
    let many = path.strip_prefix("common").and_then(|p| p.trim().strip_prefix('(')?.strip_suffix(')'));
    let names: Vec<&str> = match (many, path.strip_prefix("common.")) {
        (Some(many), _) => many.split(',').map(str::trim).filter(|n| !n.is_empty()).collect(),
        (None, Some(name)) => vec![name],
        _ => return Err(format!("`%import {line}`; what `common` has can be imported")),
    };
    for name in names {
        let alias = alias.unwrap_or(name);
        match COMMON.iter().find(|c| c.0 == name) {
            Some((_, regex)) => out.push_str(&format!("{alias}: /{}/\n", expression(regex, false, sets)?)),
            None => out.push_str(&format!("%import common.{name} -> {alias}\n")),
        }
    }
    Ok(())
}

/// An expression of the spellings of what another matches; `dotall` where a dot takes line ends, too.
fn expression(regex: &str, mut dotall: bool, sets: &mut Sets) -> Result<String, String> {
    let mut out = String::with_capacity(2 * regex.len());
    // Whether dots took line ends outside each group.
    let mut outside = Vec::new();
    let mut rest = regex;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '\\' => match escape(rest, &mut out, sets)? {
                Some(length) => length,
                None => return Ok(out + rest),
            },
            '.' => {
                out.push_str(&set(if dotall { "(?s:.)" } else { "." }, sets)?);
                1
            }
            '[' => {
                let Some(length) = class(rest) else { return Ok(out + rest) };
                out.push_str(&set(&rest[..length], sets)?);
                length
            }
            '(' => {
                outside.push(dotall);
                let flags = rest.strip_prefix("(?").unwrap_or_default();
                let letters = flags.chars().take_while(|c| c.is_ascii_alphabetic() || *c == '-').count();
                let end = flags[letters..].chars().next();
                if letters > 0 && matches!(end, Some(':' | ')')) {
                    let (on, off) = flags[..letters].split_once('-').unwrap_or((&flags[..letters], ""));
                    if on.contains('x') || off.contains('u') {
                        return Err(format!("`(?{}` in an expression", &flags[..letters]));
                    }
                    dotall = (dotall || on.contains('s')) && !off.contains('s');
                    if end == Some(')') {
                        outside.pop();
                    }
                    out.push_str(&rest[..letters + 3]);
                    letters + 3
                } else {
                    out.push('(');
                    1
                }
            }
            ')' => {
                dotall = outside.pop().unwrap_or(dotall);
                out.push(')');
                1
            }
            c => {
                character(c, &rest[..c.len_utf8()], &mut out)?;
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    Ok(out)
}

/// A character that stands for itself, as it was `written`.
fn character(c: char, written: &str, out: &mut String) -> Result<(), String> {
    match letter(c) {
        Some('\\') => out.push_str(r"\\\\"),
        Some(letter) => out.push_str(&format!(r"(?-i:\\{letter})")),
        None if c < ' ' => return Err(format!("the control character {c:?} in an expression")),
        None => out.push_str(written),
    }
    Ok(())
}

/// What a backslash begins; its bytes, if it is well-formed.
fn escape(rest: &str, out: &mut String, sets: &mut Sets) -> Result<Option<usize>, String> {
    let Some(kind) = rest[1..].chars().next() else { return Ok(None) };
    let plain = 1 + kind.len_utf8();
    let braced = || if rest[2..].starts_with('{') { Some(rest.find('}')? + 1) } else { None };
    let (c, length) = match kind {
        'n' => (Some('\n'), plain),
        'r' => (Some('\r'), plain),
        't' => (Some('\t'), plain),
        'f' => (Some('\u{c}'), plain),
        'v' => (Some('\u{b}'), plain),
        'a' => (Some('\u{7}'), plain),
        '"' | '\\' => (Some(kind), plain),
        'x' | 'u' | 'U' => {
            let digits = if kind == 'x' { 2 } else { 4 + 4 * usize::from(kind == 'U') };
            let length = braced().unwrap_or(2 + digits);
            let code = rest.get(2..length).map(|d| d.trim_matches(['{', '}']));
            let code = code.and_then(|d| char::from_u32(u32::from_str_radix(d, 16).ok()?));
            match code {
                Some(c) => (Some(c), length),
                None => return Ok(None),
            }
        }
        'p' | 'P' | 'd' | 'D' | 's' | 'S' | 'w' | 'W' => {
            let named = matches!(kind, 'p' | 'P');
            let length = if named { braced().unwrap_or(3) } else { plain };
            let Some(written) = rest.get(..length) else { return Ok(None) };
            out.push_str(&set(written, sets)?);
            return Ok(Some(length));
        }
        _ => (None, plain),
    };
    match c {
        Some(c) => character(c, &rest[..length], out)?,
        None => out.push_str(&rest[..length]),
    }
    Ok(Some(length))
}

/// Bytes of the set at the beginning, sets inside it included.
fn class(rest: &str) -> Option<usize> {
    let (mut depth, mut escaped, mut fresh) = (0, false, false);
    for (at, c) in rest.char_indices() {
        let first = std::mem::take(&mut fresh);
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => {
                depth += 1;
                fresh = true;
            }
            '^' if first => fresh = true,
            // One that comes first is an element.
            ']' if !first => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// The spellings of what is in a set, or of what a dot takes.
fn set(expression: &str, sets: &mut Sets) -> Result<String, String> {
    if let Some(known) = sets.get(expression) {
        return Ok(known.clone());
    }
    if sets.len() == SETS {
        return Err(format!("a number of sets beyond {SETS}"));
    }
    let wrong = |e| format!("the set {expression}: {e}");
    let holds = fancy_regex::Regex::new(&format!(r"\A(?:{expression})\z")).map_err(|e| wrong(e.to_string()))?;
    let plain = match expression {
        "." | "(?s:.)" => r#"[^"\\\x00-\x1F]"#.to_string(),
        inside => {
            // A bracket that comes first is an element, which some see at the very beginning alone.
            let first = ["[]", "[^]"].into_iter().find(|first| inside.starts_with(first)).unwrap_or_default();
            let inside = match first.strip_suffix(']') {
                Some(begin) => format!("{begin}\\]{}", &inside[first.len()..]),
                None => inside.to_owned(),
            };
            format!(r#"[{inside}&&[^"\\\x00-\x1F]]"#)
        }
    };
    let mut letters = String::new();
    for (c, letter) in ESCAPED {
        if holds.is_match(c.encode_utf8(&mut [0; 4])).map_err(|e| wrong(e.to_string()))? {
            if letter == '\\' {
                letters.push('\\');
            }
            letters.push(letter);
        }
    }
    let spelled = match letters.is_empty() {
        true => plain,
        false => format!(r"(?:{plain}|(?-i:\\[{letters}]))"),
    };
    sets.insert(expression.to_owned(), spelled.clone());
    Ok(spelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the spelling of a text is matched.
    fn spelled(regex: &str, text: &str) -> bool {
        let quoted = format!(r"\A(?:{})\z", expression(regex, false, &mut Sets::new()).unwrap());
        let spelling = Value::from(text).to_string();
        fancy_regex::Regex::new(&quoted).unwrap().is_match(&spelling[1..spelling.len() - 1]).unwrap()
    }

    #[test]
    fn a_spelling_is_matched_where_the_text_is() {
        let texts = [
            "", "a", "A", "\"", "\\", "\n", "a\nb", "a\"b", "\t", "\\n", "n", "é", "ab", "a.b", "]", "/", " ", "\r\n",
            "^",
        ];
        let expressions = [
            "a",
            ".",
            ".*",
            "(?s:.*)",
            "(?s).*",
            "(?s:.).|a",
            r"[^\n]+",
            r"\s*",
            r"\S+",
            r#"["\\]"#,
            r"\\n",
            r"\n",
            "(?i)a",
            r"(?i)a\nb",
            r"a(\n|.)b",
            r"[^\]]",
            "[]a]",
            "[^]a]+",
            r"[[:alpha:]]+",
            r"\x{22}",
            r"\x0a",
            r"\u{5C}",
            r"[\x00-\x{7f}]+",
            r"a\.b",
            r#"a"b|\""#,
            r"\p{Lu}",
            r"\W",
            r"[a-c\w&&[^b]]",
            r"(?P<x>a)b?",
            r"\/",
            r"[\r\n]{2}",
            r"[\^]",
        ];
        for regex in expressions {
            let plain = fancy_regex::Regex::new(&format!(r"\A(?:{regex})\z")).unwrap();
            for text in texts {
                assert_eq!(spelled(regex, text), plain.is_match(text).unwrap(), "{regex} of {text:?}");
            }
        }
    }

    #[test]
    fn grammars_are_rewritten_or_refused() {
        let same = |from: &str, to: &str| assert_eq!(quoted(from).as_deref(), Ok(to), "{from}");
        same("start: \"a\\n\" b~2 # why \"x\"\nb: \"\\x41\"i", "start: \"a\\\\n\" b~2 \nb: (\"A\"i)");
        same("a: \"x\\\"Y\"i", "a: (\"x\"i \"\\\\\\\"\" \"Y\"i)");
        same("%import common.INT\n%ignore \" \"", "%import common.INT -> INT\n\n%ignore \" \"");
        same("%import common (LF, INT)", "LF: /(?-i:\\\\n)/\n%import common.INT -> INT\n");
        same("%import common.LF -> END\n", "END: /(?-i:\\\\n)/\n\n");
        same("a: \"b", "a: \"b");
        same("a: /[b/", "a: /[b/");
        same("a: \"a\" .. \"c\"", "a: /[[\\x{61}-\\x{63}]&&[^\"\\\\\\x00-\\x1F]]/");
        for (refused, why) in [
            ("start: @other", "@"),
            ("start: <|im_end|>", "<...>"),
            ("start: %json {}", "%json"),
            ("%declare A", "%declare"),
            ("start: A\nA: ~\"x\"", "~"),
            ("start: \"\\u0001\"", "control character"),
            ("start: /a b/x", "flag `x`"),
            ("%import other.X", "common"),
            ("a: \"ab\"..\"c\"", "range"),
        ] {
            let said = quoted(refused).expect_err(refused);
            assert!(said.contains(why), "{refused}: {said}");
        }
    }
}
