//! Modules as text, as MLX prints them.

use super::Module;
use std::fmt::{self, Formatter, Write as _};

/// Writes `Name(arguments)` with the modules inside on lines of their own, indented by two spaces. `derive(Module)`
/// makes this the `Display` of a type.
///
/// # Errors
/// Those of the formatter.
pub fn show<M: Module + ?Sized>(module: &M, f: &mut Formatter<'_>) -> fmt::Result {
    f.write_str(&text(module.erased()))
}

fn text(module: &dyn Module) -> String {
    let mut out = format!("{}({}", module.kind(), module.repr_arguments());
    let inside = module.children();
    for (name, child) in &inside {
        let lines = text(*child).replace('\n', "\n  ");
        write!(out, "\n  ({name}): {lines}").expect("writing to a string");
    }
    out.push_str(if inside.is_empty() { ")" } else { "\n)" });
    out
}

impl fmt::Display for dyn Module {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        show(self, f)
    }
}
