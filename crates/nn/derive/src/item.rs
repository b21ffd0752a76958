//! What the derive reads of a struct or enum: names, generics, marks on fields.

use proc_macro::{Delimiter, TokenStream, TokenTree};
use std::iter::Peekable;

type Tokens = Peekable<proc_macro::token_stream::IntoIter>;

/// A field that is visited, or left out.
pub(crate) struct Field {
    /// As Rust writes it.
    pub(crate) ident: String,
    /// As parameters are named.
    pub(crate) name: String,
    pub(crate) plain: bool,
    pub(crate) flatten: bool,
}

/// What a type or a variant holds.
pub(crate) enum Shape {
    /// Named fields.
    Struct(Vec<Field>),
    /// One unnamed field.
    Inner,
    /// Nothing.
    Unit,
    Enum(Vec<(String, Shape)>),
}

/// The type that derives.
pub(crate) struct Item {
    pub(crate) name: String,
    /// `<T: Bound, const N: usize>`, without defaults.
    pub(crate) generics: String,
    /// `<T, N>`.
    pub(crate) arguments: String,
    /// `where ...`.
    pub(crate) bounds: String,
    pub(crate) shape: Shape,
    /// The words of `#[module(...)]`.
    pub(crate) marks: Vec<String>,
}

/// The attributes before an item: each as its text without spaces.
fn attributes(tokens: &mut Tokens) -> Vec<String> {
    let mut found = Vec::new();
    while matches!(tokens.peek(), Some(TokenTree::Punct(p)) if p.as_char() == '#') {
        tokens.next();
        if let Some(TokenTree::Group(g)) = tokens.next() {
            found.push(g.stream().into_iter().map(|t| t.to_string().replace(' ', "")).collect());
        }
    }
    found
}

fn skip_visibility(tokens: &mut Tokens) {
    if matches!(tokens.peek(), Some(TokenTree::Ident(i)) if i.to_string() == "pub") {
        tokens.next();
        if matches!(tokens.peek(), Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Parenthesis) {
            tokens.next();
        }
    }
}

/// Splits at commas that no angle brackets enclose.
fn split_commas(tokens: impl IntoIterator<Item = TokenTree>) -> Vec<Vec<TokenTree>> {
    let (mut parts, mut depth, mut dash) = (vec![Vec::new()], 0i32, false);
    for token in tokens {
        if let TokenTree::Punct(p) = &token {
            match p.as_char() {
                '<' => depth += 1,
                '>' if !dash => depth -= 1,
                ',' if depth == 0 => {
                    parts.push(Vec::new());
                    dash = false;
                    continue;
                }
                _ => {}
            }
            dash = p.as_char() == '-';
        } else {
            dash = false;
        }
        parts.last_mut().expect("one part at least").push(token);
    }
    parts.retain(|p| !p.is_empty());
    parts
}

fn text(tokens: &[TokenTree]) -> String {
    tokens.iter().cloned().collect::<TokenStream>().to_string()
}

fn is_punct(token: &TokenTree, c: char) -> bool {
    matches!(token, TokenTree::Punct(p) if p.as_char() == c)
}

/// The declaration and the use of generic parameters: `<T: A>` and `<T>`.
fn generics(tokens: &mut Tokens) -> (String, String) {
    if !matches!(tokens.peek(), Some(t) if is_punct(t, '<')) {
        return (String::new(), String::new());
    }
    tokens.next();
    let (mut inside, mut depth) = (Vec::new(), 1);
    for token in tokens.by_ref() {
        if is_punct(&token, '<') {
            depth += 1;
        } else if is_punct(&token, '>') {
            depth -= 1;
            if depth == 0 {
                break;
            }
        }
        inside.push(token);
    }
    let (mut declared, mut used) = (String::new(), String::new());
    for part in split_commas(inside) {
        let end = part.iter().position(|t| is_punct(t, '=')).unwrap_or(part.len());
        declared += &format!("{}, ", text(&part[..end]));
        let is_const = matches!(&part[0], TokenTree::Ident(i) if i.to_string() == "const");
        let start = usize::from(is_const);
        let stop = part.iter().position(|t| is_punct(t, ':')).unwrap_or(end);
        used += &format!("{}, ", text(&part[start..stop.min(end)]));
    }
    (format!("<{declared}>"), format!("<{used}>"))
}

fn fields(stream: TokenStream) -> Result<Vec<Field>, String> {
    let field = |part: Vec<TokenTree>| {
        let mut tokens = part.into_iter().collect::<TokenStream>().into_iter().peekable();
        let attributes = attributes(&mut tokens);
        skip_visibility(&mut tokens);
        let Some(TokenTree::Ident(ident)) = tokens.next() else {
            return Err("derive(Module) found a field without a name".to_string());
        };
        let ident = ident.to_string();
        let mut name = ident.trim_start_matches("r#").to_string();
        if let Some(other) = attributes.iter().find_map(|a| a.strip_prefix("name=")) {
            name = other.trim_matches('"').to_string();
        }
        let has = |mark: &str| attributes.iter().any(|a| a == mark);
        Ok(Field { ident, name, plain: has("plain"), flatten: has("flatten") })
    };
    split_commas(stream).into_iter().map(field).collect()
}

fn shape(tokens: &mut Tokens, what: &str) -> Result<Shape, String> {
    match tokens.next() {
        Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Brace => fields(g.stream()).map(Shape::Struct),
        Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Parenthesis => {
            if split_commas(g.stream()).len() == 1 {
                return Ok(Shape::Inner);
            }
            Err(format!("derive(Module): {what} has several unnamed fields; parameters need names"))
        }
        _ => Ok(Shape::Unit),
    }
}

impl Item {
    pub(crate) fn parse(input: TokenStream) -> Result<Item, String> {
        let mut tokens = input.into_iter().peekable();
        let attributes = attributes(&mut tokens);
        skip_visibility(&mut tokens);
        let keyword = tokens.next().map(|t| t.to_string()).unwrap_or_default();
        let name = tokens.next().map(|t| t.to_string()).unwrap_or_default();
        let (generics, arguments) = generics(&mut tokens);
        let mut bounds = Vec::new();
        while !matches!(tokens.peek(), None | Some(TokenTree::Group(_))) && !is_semicolon(tokens.peek()) {
            bounds.extend(tokens.next());
        }
        let shape = match keyword.as_str() {
            "struct" => shape(&mut tokens, &name)?,
            "enum" => {
                let Some(TokenTree::Group(g)) = tokens.next() else {
                    return Err(format!("derive(Module) found no variants in {name}"));
                };
                let variant = |part: Vec<TokenTree>| {
                    let mut tokens = part.into_iter().collect::<TokenStream>().into_iter().peekable();
                    self::attributes(&mut tokens);
                    let variant = tokens.next().map(|t| t.to_string()).unwrap_or_default();
                    let held = self::shape(&mut tokens, &format!("{name}::{variant}"))?;
                    Ok((variant, held))
                };
                Shape::Enum(split_commas(g.stream()).into_iter().map(variant).collect::<Result<_, String>>()?)
            }
            _ => return Err(format!("derive(Module) takes structs and enums; {name} is neither")),
        };
        let marks = attributes.iter().filter_map(|a| a.strip_prefix("module("));
        let marks: Vec<String> =
            marks.flat_map(|m| m.trim_end_matches(')').split(',').map(str::to_string).collect::<Vec<_>>()).collect();
        if let Some(other) =
            marks.iter().find(|m| !["repr", "kind", "quantize", "split", "mode", ""].contains(&m.as_str()))
        {
            return Err(format!(
                "derive(Module): #[module({other})] is not known; repr, kind, quantize, split and mode are"
            ));
        }
        Ok(Item { name, generics, arguments, bounds: text(&bounds), shape, marks })
    }

    pub(crate) fn has(&self, mark: &str) -> bool {
        self.marks.iter().any(|m| m == mark)
    }
}

fn is_semicolon(token: Option<&TokenTree>) -> bool {
    token.is_some_and(|t| is_punct(t, ';'))
}
