//! `#[derive(Module)]`: the parameter tree of a struct or enum from its fields.
//!
//! Written on token trees alone, so that building a model needs no parser crate. Knows nothing of arrays: the code it
//! writes names each field and hands it to `lapis_nn::Module`.

mod item;

use item::{Field, Item, Shape};
use proc_macro::TokenStream;

/// Implements `lapis_nn::Module` and `Display` (as `repr` in MLX).
///
/// Every field is visited under its own name. On fields: `#[plain]` leaves a field out (numbers, strings and function
/// pointers need no mark), `#[flatten]` visits the fields of a field under no name of their own, `#[name = "Wx"]`
/// gives another name. On the type: `#[module(repr)]` when its `fn repr(&self) -> String` says what stands in the
/// brackets of the printed form, `#[module(kind)]` when its `fn shown_kind(&self) -> &'static str` says what stands
/// before them, `#[module(quantize)]` when it implements `lapis_nn::Quantize`, `#[module(split)]` when it implements
/// `lapis_nn::Split`, `#[module(mode)]` when its `fn set_mode(&mut self, mode: Mode)` is to be called by `train` and `eval`.
///
/// Enums: a variant with one unnamed field is that field, a variant with named fields has those, one without fields
/// has no parameters.
#[proc_macro_derive(Module, attributes(plain, flatten, name, module))]
pub fn derive_module(input: TokenStream) -> TokenStream {
    let code = match Item::parse(input) {
        Ok(item) => implement(&item),
        Err(message) => format!("::core::compile_error!({message:?});"),
    };
    code.parse().expect("the derive writes valid tokens")
}

/// The statements that visit `fields`; `access` gives the expression of a field.
fn visits(fields: &[Field], mutable: bool, access: impl Fn(&str) -> String) -> String {
    let (suffix, reference) = if mutable { ("_mut", "&mut ") } else { ("", "&") };
    let visit = |field: &Field| {
        let (name, at) = (&field.name, access(&field.ident));
        if field.flatten {
            return format!("::lapis_nn::Module::fields{suffix}({reference}{at}, __f);\n");
        }
        format!("__f({name:?}, {reference}{at});\n")
    };
    fields.iter().filter(|f| !f.plain).map(visit).collect()
}

fn body(item: &Item, mutable: bool) -> String {
    let (suffix, reference) = if mutable { ("_mut", "&mut ") } else { ("", "&") };
    match &item.shape {
        Shape::Struct(fields) => visits(fields, mutable, |ident| format!("self.{ident}")),
        Shape::Enum(variants) => {
            let arm = |(variant, shape): &(String, Shape)| match shape {
                Shape::Struct(fields) => {
                    let names: String = fields.iter().filter(|f| !f.plain).map(|f| format!("{}, ", f.ident)).collect();
                    let visits = visits(fields, mutable, |ident| format!("*{ident}"));
                    format!("Self::{variant} {{ {names} .. }} => {{ {visits} }}\n")
                }
                Shape::Inner => {
                    format!("Self::{variant}(inner) => ::lapis_nn::Module::fields{suffix}({reference}*inner, __f),\n")
                }
                _ => format!("Self::{variant} => {{}}\n"),
            };
            format!("match self {{ {} }}", variants.iter().map(arm).collect::<String>())
        }
        Shape::Inner => format!("::lapis_nn::Module::fields{suffix}({reference}self.0, __f);"),
        Shape::Unit => String::new(),
    }
}

/// A method that an enum or a newtype passes on to what it holds.
fn passed_on(item: &Item, signature: &str, call: &str, reference: &str, otherwise: &str) -> String {
    let body = match &item.shape {
        Shape::Inner => format!("::lapis_nn::Module::{call}({reference}self.0)"),
        Shape::Enum(variants) => {
            let inner = variants.iter().filter(|(_, s)| matches!(s, Shape::Inner));
            let arms: String = inner
                .map(|(v, _)| format!("Self::{v}(inner) => ::lapis_nn::Module::{call}({reference}*inner),\n"))
                .collect();
            let all = variants.iter().all(|(_, s)| matches!(s, Shape::Inner));
            let rest = if all { String::new() } else { format!("_ => {otherwise},") };
            format!("match self {{ {arms} {rest} }}")
        }
        _ => return String::new(),
    };
    format!("fn {signature} {{ {body} }}\n")
}

fn implement(item: &Item) -> String {
    let Item { name, generics, arguments, bounds, shape, .. } = item;
    let option = "::core::option::Option";
    let string = "::std::string::String";
    let mut extra = String::new();
    let mut method = |signature: &str, own: Option<String>, call: &str, reference: &str, otherwise: &str| {
        extra += &match own {
            Some(body) => format!("fn {signature} {{ {body} }}\n"),
            None => passed_on(item, signature, call, reference, otherwise),
        };
    };
    let own = |mark: &str, body: &str| item.has(mark).then(|| body.to_string());
    let none = format!("{option}::None");
    let kind = match shape {
        Shape::Struct(_) | Shape::Unit => Some(format!("{name:?}")),
        _ => None,
    };
    method(&format!("leaf(&self) -> {option}<::lapis_nn::Leaf<'_>>"), None, "leaf", "&", &none);
    method(&format!("leaf_mut(&mut self) -> {option}<::lapis_nn::LeafMut<'_>>"), None, "leaf_mut", "&mut ", &none);
    let own_kind = own("kind", "self.shown_kind()").or(kind);
    method("kind(&self) -> &'static ::core::primitive::str", own_kind, "kind", "&", "\"\"");
    let repr = format!("repr_arguments(&self) -> {string}");
    method(&repr, own("repr", "self.repr()"), "repr_arguments", "&", &format!("{string}::new()"));
    let hook = format!("as_quantize(&mut self) -> {option}<&mut dyn ::lapis_nn::Quantize>");
    let itself = format!("{option}::Some(self)");
    method(&hook, own("quantize", &itself), "as_quantize", "&mut ", &none);
    let hook = format!("as_split(&mut self) -> {option}<&mut dyn ::lapis_nn::Split>");
    method(&hook, own("split", &itself), "as_split", "&mut ", &none);
    if item.has("mode") {
        extra += "fn mode_changed(&mut self, mode: ::lapis_nn::Mode) { self.set_mode(mode); }\n";
    }
    let (shared, exclusive) = (body(item, false), body(item, true));
    format!(
        "#[automatically_derived]
        #[allow(unused_variables, clippy::all)]
        impl {generics} ::lapis_nn::Module for {name} {arguments} {bounds} {{
            fn fields<'__a>(
                &'__a self,
                __f: &mut dyn ::core::ops::FnMut(&::core::primitive::str, &'__a dyn ::lapis_nn::Module),
            ) {{ {shared} }}
            fn fields_mut(
                &mut self,
                __f: &mut dyn ::core::ops::FnMut(&::core::primitive::str, &mut dyn ::lapis_nn::Module),
            ) {{ {exclusive} }}
            {extra}
        }}
        #[automatically_derived]
        impl {generics} ::core::fmt::Display for {name} {arguments} {bounds} {{
            fn fmt(&self, formatter: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{
                ::lapis_nn::show(self, formatter)
            }}
        }}"
    )
}
