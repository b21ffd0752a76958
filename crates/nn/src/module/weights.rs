//! Parameters in and out: files, and the error that lists what does not fit.

use super::Module;
use crate::Params;
use lapis::io::{Loaded, Metadata};
use lapis::{Error, Result, io};
use std::fmt::Write as _;
use std::path::Path;

/// `from` says in errors where the parameters are from, if not from the caller.
pub(super) fn load(module: &mut dyn Module, params: &Params, strict: bool, from: Option<&Path>) -> Result<()> {
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
    module.update(params, false)
}

pub(super) fn load_file(module: &mut dyn Module, path: &Path, strict: bool) -> Result<()> {
    load(module, &read(path)?, strict, Some(path))
}

fn read(path: &Path) -> Result<Params> {
    match io::load(path, None)? {
        Loaded::Safetensors(arrays, _) | Loaded::Npz(arrays) => Ok(arrays.into_iter().collect()),
        _ => Err(Error::value(format!("[load_weights] {} is neither .safetensors nor .npz", path.display()))),
    }
}

pub(super) fn save(path: &Path, module: &dyn Module) -> Result<()> {
    let params = &module.parameters();
    match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => io::save_safetensors(path, params, &Metadata::default()),
        Some("npz") => io::save_npz(path, params, false),
        _ => Err(Error::value(format!("[save_weights] {} ends neither in .safetensors nor in .npz", path.display()))),
    }
}
