//! Grammars of llama.cpp (GBNF) in Lark's syntax.
//!
//! Both write texts, groups, `|`, `*`, `+`, `?` and counts alike. What differs: `::=` for `:`, `root` for `start`, names with
//! `-`, sets of characters that stand bare, `.` for any character, and rules that end where the next one begins.

/// The same grammar in Lark's syntax; none where it does not begin with a rule of GBNF.
pub(super) fn lark(text: &str) -> Option<String> {
    let name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let first = text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#'))?;
    let begins = first.starts_with(name) && first.trim_start_matches(name).trim_start().starts_with("::=");
    begins.then_some(())?;
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '"' => closed(rest, '"'),
            '[' => closed(rest, ']'),
            '{' => closed(rest, '}'),
            ':' if rest.starts_with("::=") => 3,
            c if name(c) => rest.find(|c| !name(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (word, after) = rest.split_at(length);
        match c {
            '#' => {}
            '[' => out.push_str(&set(word)),
            ':' if word == "::=" => out.push(':'),
            '.' => out.push_str("/(?s:.)/"),
            c if c.is_whitespace() => out.push(' '),
            c if name(c) => {
                if after.trim_start().starts_with("::=") {
                    out.push('\n');
                }
                match word {
                    "root" => out.push_str("start"),
                    // Names of rules are small letters there, and `start` is taken. Two names stay two.
                    _ => {
                        out.push_str("g_");
                        for c in word.chars() {
                            match c {
                                '-' => out.push_str("_m"),
                                '_' => out.push_str("__"),
                                c if c.is_ascii_uppercase() => out.extend(['_', 'c', c.to_ascii_lowercase()]),
                                c => out.push(c),
                            }
                        }
                    }
                }
            }
            _ => out.push_str(word),
        }
        rest = after;
    }
    Some(out)
}

/// Bytes of what begins `text` up to `end`, which a backslash takes for itself.
fn closed(text: &str, end: char) -> usize {
    let mut escaped = false;
    let found = text.char_indices().skip(1).find(|&(_, c)| {
        let found = c == end && !escaped;
        escaped = c == '\\' && !escaped;
        found
    });
    found.map_or(text.len(), |(at, c)| at + c.len_utf8())
}

/// A set of characters as a regular expression. In those, brackets and doubled signs inside a set mean more.
fn set(word: &str) -> String {
    let inner = word.strip_prefix('[').and_then(|w| w.strip_suffix(']')).unwrap_or(word);
    let (not, inner) = inner.strip_prefix('^').map_or(("", inner), |rest| ("^", rest));
    let (mut out, mut escaped) = (format!("/[{not}"), false);
    for c in inner.chars() {
        if !escaped && "[/&~^".contains(c) {
            out.push('\\');
        }
        escaped = c == '\\' && !escaped;
        out.push(c);
    }
    out + "]/"
}
