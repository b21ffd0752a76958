//! Templates rewritten so that the engine's operators are Python's.
//!
//! The template engine adds numbers and texts as it likes; Python's `+`, `~`, `*` and `%` also know lists, tuples, formats
//! and escaped text, and here they must count what they make. So `a + b` becomes `a|_add(b)`, `[a]` becomes
//! `(a,)|_list`, and likewise tuples, dicts and slices: filters of ours. Everything else of an expression stays
//! as it is written. Outside expressions only newlines (`\r\n` is `\n`) and `generation` blocks, which mark what a model is
//! trained on, are touched.

use minijinja::{Error, ErrorKind};

type Result<T> = std::result::Result<T, Error>;

/// Brackets may nest this deeply.
const MAX_DEPTH: usize = 100;
/// A tag may have so many tokens; published templates have up to 60.
const MAX_TOKENS: usize = 1000;
/// A template may have so many `elif`, which nest; published templates have up to 22.
const MAX_BRANCHES: usize = 300;

/// The rewritten template.
pub(super) fn rewrite(source: &str) -> Result<String> {
    let source = normalise(source);
    let mut at = 0;
    rewrite_tags(&source, &mut at).map_err(|e| {
        let before = &source[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |part| part.chars().count()) + 1;
        let what = e.detail().unwrap_or("it cannot be read");
        Error::new(ErrorKind::SyntaxError, format!("{what} (line {line}, column {column})"))
    })
}

/// Rewrites tag by tag; `here` is where the current tag begins.
fn rewrite_tags(source: &str, here: &mut usize) -> Result<String> {
    let mut out = String::with_capacity(source.len() * 2);
    let mut rest = source;
    let mut branches = 0;
    while let Some(at) = rest.find('{') {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        *here = source.len() - tag.len();
        let kind = tag.as_bytes().get(1);
        rest = match kind {
            Some(b'#') => {
                let end = tag.find("#}").map_or(tag.len(), |at| at + 2);
                out.push_str(&tag[..end]);
                &tag[end..]
            }
            Some(b'{' | b'%') => {
                let (tokens, end) = lex(tag, if kind == Some(&b'{') { "}}" } else { "%}" })?;
                let name = tokens.first().map_or("", |t| t.text);
                branches += (name == "elif") as usize;
                if branches > MAX_BRANCHES {
                    let text = format!("the template has more than {MAX_BRANCHES} `elif`");
                    return Err(Error::new(ErrorKind::SyntaxError, text));
                }
                let sign = |c: Option<&u8>| matches!(c, Some(b'-' | b'+')) as usize;
                let begin = 2 + sign(tag.as_bytes().get(2));
                let close = end - 2 - sign(tag.as_bytes().get(end - 3));
                out.push_str(&tag[..begin]);
                match (kind, name) {
                    (Some(b'%'), "generation") => out.push_str(" with"),
                    (Some(b'%'), "endgeneration") => out.push_str(" endwith"),
                    _ => Rewriter { tokens: &tokens, at: 0, depth: 0 }.tag(&mut out, kind == Some(&b'%'))?,
                }
                // Where the tag ends, minus what the last token already took.
                out.push_str(&tag[tokens.last().map_or(close, |t| t.end.min(close))..end]);
                let mut next = &tag[end..];
                if kind == Some(&b'%') && name == "raw" {
                    let end = raw_end(next);
                    out.push_str(&next[..end]);
                    next = &next[end..];
                }
                next
            }
            _ => {
                out.push('{');
                &tag[1..]
            }
        };
    }
    out.push_str(rest);
    Ok(out)
}

/// Newlines as Jinja reads them.
pub(super) fn normalise(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Where the `endraw` tag of a raw block begins.
fn raw_end(text: &str) -> usize {
    let is_end = |at: usize| text[at + 2..].trim_start_matches(['-', '+']).trim_start().starts_with("endraw");
    text.match_indices("{%").map(|m| m.0).find(|at| is_end(*at)).unwrap_or(text.len())
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Class {
    Name,
    Text,
    Number,
    Symbol,
}

#[derive(Clone, Copy, Debug)]
struct Token<'s> {
    class: Class,
    /// What stands between the token before and this one.
    space: &'s str,
    text: &'s str,
    /// Where it ends in its tag.
    end: usize,
}

/// The tokens of a tag, and where the tag ends.
fn lex<'s>(tag: &'s str, close: &str) -> Result<(Vec<Token<'s>>, usize)> {
    let bytes = tag.as_bytes();
    let mut tokens = Vec::new();
    let mut brackets = 0usize;
    let mut at = 2 + matches!(bytes.get(2), Some(b'-' | b'+')) as usize;
    loop {
        let start = at;
        at += tag[at..].len() - tag[at..].trim_start().len();
        let rest = &tag[at..];
        let signed = rest.strip_prefix(['-', '+']).is_some_and(|r| r.starts_with(close)) as usize;
        if brackets == 0 && rest[signed..].starts_with(close) {
            return Ok((tokens, at + signed + close.len()));
        }
        let Some(c) = rest.chars().next() else {
            return Err(Error::new(ErrorKind::SyntaxError, format!("a tag has no end `{close}`")));
        };
        let (class, len) = match c {
            '\'' | '"' => (Class::Text, quoted(rest, c)?),
            '0'..='9' => (Class::Number, rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())),
            c if c.is_alphabetic() || c == '_' => {
                (Class::Name, rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len()))
            }
            _ => {
                let long = ["**", "//", "==", "!=", "<=", ">="].iter().any(|op| rest.starts_with(op));
                (Class::Symbol, if long { 2 } else { c.len_utf8() })
            }
        };
        match c {
            '(' | '[' | '{' => brackets += 1,
            ')' | ']' | '}' => brackets = brackets.saturating_sub(1),
            _ => {}
        }
        at += len;
        if tokens.len() == MAX_TOKENS {
            return Err(Error::new(ErrorKind::SyntaxError, format!("a tag has more than {MAX_TOKENS} words")));
        }
        tokens.push(Token { class, space: &tag[start..at - len], text: &tag[at - len..at], end: at });
    }
}

/// The length of a quoted text.
fn quoted(rest: &str, quote: char) -> Result<usize> {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Ok(at + 1),
            _ => {}
        }
    }
    Err(Error::new(ErrorKind::SyntaxError, "a text in quotes has no end"))
}

/// Words that stand between expressions.
const WORDS: [&str; 8] = ["and", "or", "not", "in", "if", "else", "recursive", "is"];

struct Rewriter<'t, 's> {
    tokens: &'t [Token<'s>],
    at: usize,
    depth: usize,
}

impl<'s> Rewriter<'_, 's> {
    fn peek(&self) -> Option<Token<'s>> {
        self.tokens.get(self.at).copied()
    }

    /// A tag's tokens. In a statement, `set a = 1, 2` has a tuple without parentheses.
    fn tag(&mut self, out: &mut String, statement: bool) -> Result<()> {
        if statement && let Some(name) = self.peek() {
            self.copy(out);
            if name.text == "macro" || name.text == "call" {
                // Parameters are names: only what follows `=` is an expression, and that never has a tuple.
                while self.peek().is_some_and(|t| t.text != ")") {
                    self.parameter(out)?;
                }
            }
            if name.text == "set" {
                let mut attribute = false;
                while let Some(token) = self.peek().filter(|t| t.text != "=") {
                    attribute |= token.text == ".";
                    self.copy(out);
                }
                if self.peek().is_some() {
                    self.copy(out);
                    let mut value = String::new();
                    let commas = self.expressions(&mut value)?;
                    match (commas, attribute) {
                        (0, false) => out.push_str(&value),
                        (0, true) => *out += &format!(" ({value})|_store "),
                        _ => *out += &format!(" ({value})|_tuple "),
                    }
                }
            }
            if name.text == "for" {
                // The names before `in` are no tuple.
                while self.peek().is_some_and(|t| t.text != "in") {
                    self.copy(out);
                }
            }
        }
        while self.peek().is_some() {
            self.expressions(out)?;
            if self.peek().is_some() {
                self.copy(out);
            }
        }
        Ok(())
    }

    /// One token of a macro's head, and the default value after an `=`.
    fn parameter(&mut self, out: &mut String) -> Result<()> {
        let token = self.peek().map_or("", |t| t.text);
        self.copy(out);
        if token == "=" { self.sum(out) } else { Ok(()) }
    }

    fn copy(&mut self, out: &mut String) {
        if let Some(token) = self.peek() {
            out.push_str(token.space);
            out.push_str(token.text);
            self.at += 1;
        }
    }

    /// Expressions up to a closing bracket; gives the number of commas between them.
    fn expressions(&mut self, out: &mut String) -> Result<usize> {
        let mut commas = 0;
        while let Some(token) = self.peek() {
            if is_separator(token) {
                commas += (token.text == ",") as usize;
                self.copy(out);
            } else if matches!(token.text, ")" | "]" | "}") {
                break;
            } else {
                self.sum(out)?;
            }
        }
        Ok(commas)
    }

    fn sum(&mut self, out: &mut String) -> Result<()> {
        self.binary(out, &["+", "-"], |this, out| {
            this.binary(out, &["~"], |this, out| this.binary(out, &["*", "/", "//", "%"], Self::operand))
        })
    }

    /// A chain of operators of one precedence, from the left.
    fn binary(
        &mut self,
        out: &mut String,
        operators: &[&str],
        mut operand: impl FnMut(&mut Self, &mut String) -> Result<()>,
    ) -> Result<()> {
        let mut left = String::new();
        let (from, mut filters) = (self.at, 0);
        operand(self, &mut left)?;
        while let Some(op) = self.peek().filter(|t| operators.contains(&t.text)) {
            self.at += 1;
            let mut right = String::new();
            operand(self, &mut right)?;
            let lead: String = left.chars().take_while(|c| c.is_whitespace()).collect();
            // A filter binds closer than anything but these.
            let loose = self.tokens[from..self.at].iter().any(|t| matches!(t.text, "is" | "**"));
            let value = left.trim_start();
            let value = if loose && filters == 0 { format!("({value})") } else { value.to_owned() };
            let filter = match op.text {
                "+" => "_add",
                "~" => "_concat",
                "*" => "_mul",
                "%" => "_mod",
                _ => "",
            };
            left = match filter {
                "" => format!("{lead}({value}{}{}{right})", op.space, op.text),
                _ => format!("{lead}{value}|{filter}({right})"),
            };
            filters += 1;
        }
        out.push_str(&left);
        Ok(())
    }

    /// A value with its signs, attributes, calls, filters and tests.
    fn operand(&mut self, out: &mut String) -> Result<()> {
        while self.peek().is_some_and(|t| matches!(t.text, "-" | "+")) {
            // Python's unary plus is nothing.
            match self.peek() {
                Some(t) if t.text == "-" => self.copy(out),
                _ => self.at += 1,
            }
        }
        // Where the value begins, or the argument of a test.
        let (mut begun, mut begin, mut argument) = (false, out.len(), false);
        while let Some(token) = self.peek() {
            match token.text {
                "(" | "[" | "{" if token.class == Class::Symbol => {
                    let filtered = self.bracket(out, begun)?;
                    let next = self.peek().is_some_and(|t| matches!(t.text, "." | "[" | "("));
                    // Attributes, indices and calls bind closer than filters, and so do the arguments of tests.
                    if filtered && (argument || next) {
                        begin += out[begin..].len() - out[begin..].trim_start().len();
                        out.insert(begin, '(');
                        out.push(')');
                    }
                }
                "." | "|" => {
                    self.copy(out);
                    self.copy(out);
                }
                "is" if begun => {
                    self.copy(out);
                    if self.peek().is_some_and(|t| t.text == "not") {
                        self.copy(out);
                    }
                    // The test's name, and an argument without parentheses.
                    self.copy(out);
                    argument = self
                        .peek()
                        .is_some_and(|t| (t.class != Class::Symbol && !is_separator(t)) || matches!(t.text, "[" | "{"));
                    (begun, begin) = (!argument, out.len());
                    continue;
                }
                "**" => {
                    self.copy(out);
                    (begun, begin) = (false, out.len());
                    continue;
                }
                _ if begun => break,
                _ if token.class == Class::Symbol => {
                    self.copy(out);
                    break;
                }
                _ => self.copy(out),
            }
            begun = true;
        }
        Ok(())
    }

    /// A bracket and what it holds: a literal, or after a value a call, an index or a slice. Says whether it became a
    /// filter.
    fn bracket(&mut self, out: &mut String, after_value: bool) -> Result<bool> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::SyntaxError, format!("brackets nest more than {MAX_DEPTH} deep")));
        }
        let Some(open) = self.peek() else { return Ok(false) };
        self.at += 1;
        let (inner, commas, colons) = self.inside()?;
        let close = self.peek();
        self.at += 1;
        self.depth -= 1;
        let tail = close.map_or("", |t| t.space);
        let close = close.map_or("", |t| t.text);
        out.push_str(open.space);
        let empty = inner.trim().is_empty();
        *out += &match (open.text, after_value) {
            ("[", true) if colons > 0 => format!("|_slice({})", slice_arguments(&inner)),
            ("[", false) if empty => "()|_list".into(),
            ("[", false) if commas == 0 => format!("({inner},{tail})|_list"),
            ("[", false) => format!("({inner}{tail})|_list"),
            ("(", false) if commas > 0 || empty => format!("({inner}{tail})|_tuple"),
            ("{", false) => format!("{{{inner}{tail}}}|_dict"),
            _ => {
                *out += &format!("{}{inner}{tail}{close}", open.text);
                return Ok(false);
            }
        };
        Ok(true)
    }

    /// What stands up to the closing bracket, with its commas and colons. A slice's colons are marked.
    fn inside(&mut self) -> Result<(String, usize, usize)> {
        let (mut out, mut commas, mut colons) = (String::new(), 0, 0);
        while let Some(token) = self.peek().filter(|t| !matches!(t.text, ")" | "]" | "}")) {
            if token.text == ":" && token.class == Class::Symbol {
                colons += 1;
                out.push_str(token.space);
                out.push(':');
                self.at += 1;
            } else if is_separator(token) {
                commas += (token.text == ",") as usize;
                self.copy(&mut out);
            } else {
                self.sum(&mut out)?;
            }
        }
        Ok((out, commas, colons))
    }
}

/// `a:b:c` as three arguments, `none` where one is not given.
fn slice_arguments(inner: &str) -> String {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    let mut quote = None;
    let mut escaped = false;
    for c in inner.chars() {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), c) if q == c => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth -= 1,
            (None, ':') if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    let given = parts.iter().map(|part| if part.trim().is_empty() { "none" } else { part.trim() });
    given.collect::<Vec<_>>().join(", ")
}

fn is_separator(token: Token<'_>) -> bool {
    match token.class {
        Class::Symbol => matches!(token.text, "," | ":" | "=" | "==" | "!=" | "<" | ">" | "<=" | ">=" | ";"),
        Class::Name => WORDS.contains(&token.text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn operators_and_literals_become_filters() {
        for (source, expected) in [
            ("a {{ b }} c", "a {{ b }} c"),
            ("{{ a + b ~ c }}", "{{ a|_add( b|_concat( c)) }}"),
            ("{{- a - b + c -}}", "{{- (a - b)|_add( c) -}}"),
            ("{{ x[1:] }}", "{{ x|_slice(1, none) }}"),
            ("{{ x[i + 1] }}", "{{ x[i|_add( 1)] }}"),
            ("{{ x[1:][0] + {'a': 1}.a }}", "{{ (x|_slice(1, none))[0]|_add( ({'a': 1}|_dict).a) }}"),
            ("{{ a is in [1] and b is not in c }}", "{{ a is in ((1,)|_list) and b is not in c }}"),
            ("{{ [] }}", "{{ ()|_list }}"),
            ("{{ [1, 'a:b'] }}", "{{ (1, 'a:b')|_list }}"),
            ("{{ [1] }}", "{{ (1,)|_list }}"),
            ("{{ f(a, b=c * 2) }}", "{{ f(a, b=c|_mul( 2)) }}"),
            ("{% for a, b in x.items() if a is not none %}", "{% for a, b in x.items() if a is not none %}"),
            ("{% set x = a, b %}", "{% set x = ( a, b)|_tuple  %}"),
            ("{% set ns.x = a if b %}", "{% set ns.x = ( a if b)|_store  %}"),
            ("{% macro f(a, b=[]) -%}", "{% macro f(a, b=()|_list) -%}"),
            ("{% call(a, b) f([a]) %}", "{% call(a, b) f((a,)|_list) %}"),
            ("{{ call['x'] + loop.index0 }}", "{{ call['x']|_add( loop.index0) }}"),
            ("{%- generation -%}x{% endgeneration %}", "{%- with -%}x{% endwith %}"),
            ("{% raw %}{{ a + b }}{% endraw %}", "{% raw %}{{ a + b }}{% endraw %}"),
            ("{# a + b #}\r\n", "{# a + b #}\n"),
            ("{{ -a|abs + 1 }}", "{{ -a|abs|_add( 1) }}"),
            ("{{ not a is defined and b in [1] }}", "{{ not a is defined and b in (1,)|_list }}"),
        ] {
            assert_eq!(rewrite(source).unwrap(), expected, "{source}");
        }
    }
}
