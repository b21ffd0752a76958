//! Parameters in and out: updates, files, and the error that lists what does not fit.

use super::{LeafMut, Module};
use crate::Params;
use lapis::io::{Loaded, Metadata};
use lapis::{Error, Result, io};
use std::fmt::Write as _;
use std::path::Path;

pub(super) fn update<M: Module + ?Sized>(module: &mut M, params: &Params, strict: bool) -> Result<()> {
    if strict {
        let own = module.parameters();
        let extra: Vec<&str> = params.keys().filter(|k| !own.contains_key(*k)).map(String::as_str).collect();
        if !extra.is_empty() {
            let names = extra.join(", ");
            return Err(Error::value(format!("[update] the module has no parameter called {names}")));
        }
    }
    module.visit_mut(&mut |path, leaf| {
        let Some(value) = params.get(path) else { return };
        match leaf {
            LeafMut::Param(p) => p.set(value.clone()),
            LeafMut::Buffer(b) => b.set(value.clone()),
            LeafMut::Mode(_) => {}
        }
    });
    Ok(())
}

/// `from` says in errors where the parameters are from, if not from the caller.
pub(super) fn load<M: Module + ?Sized>(
    module: &mut M,
    params: &Params,
    strict: bool,
    from: Option<&Path>,
) -> Result<()> {
    if strict {
        let own = module.parameters();
        let mut wrong = String::new();
        let mut list = |title: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                write!(wrong, "\n{title}:\n  {}", lines.join("\n  ")).expect("writing to a string");
            }
        };
        let shown = |name: &String, a: &lapis::Array| format!("{name} {}", lapis::shape::show(a.shape()));
        let extra = params.iter().filter(|(k, _)| !own.contains_key(*k));
        list("not in the module", extra.map(|(k, a)| shown(k, a)).collect());
        let missing = own.iter().filter(|(k, _)| !params.contains_key(*k));
        list("not given", missing.map(|(k, a)| shown(k, a)).collect());
        let differing = own.iter().filter_map(|(k, a)| {
            let given = params.get(k).filter(|g| g.shape() != a.shape())?;
            Some(format!("{}, given {}", shown(k, a), lapis::shape::show(given.shape())))
        });
        list("of another shape", differing.collect());
        if !wrong.is_empty() {
            let of = from.map_or_else(String::new, |path| format!(" of {}", path.display()));
            return Err(Error::value(format!("[load_weights] the weights{of} do not fit the module{wrong}")));
        }
    }
    update(module, params, false)
}

pub(super) fn read(path: &Path) -> Result<Params> {
    match io::load(path, None)? {
        Loaded::Safetensors(arrays, _) | Loaded::Npz(arrays) => Ok(arrays.into_iter().collect()),
        _ => Err(Error::value(format!("[load_weights] {} is neither .safetensors nor .npz", path.display()))),
    }
}

pub(super) fn save(path: &Path, params: &Params) -> Result<()> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => io::save_safetensors(path, params, &Metadata::default()),
        Some("npz") => io::save_npz(path, params, false),
        _ => Err(Error::value(format!("[save_weights] {} ends neither in .safetensors nor in .npz", path.display()))),
    }
}
