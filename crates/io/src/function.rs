//! Functions as files: a safetensors file of their constants with the traces in its metadata. docs/export-format.md
//! describes it. Knows no ops: what a trace may hold is checked by [`Function::from_listing`].

use crate::arrays::{IntoSource, row_major, spec};
use crate::raw::RawTensor;
use crate::safetensors::{self, Metadata, Spec};
use crate::source::Source;
use flate2::Crc;
use lapis_core::array::Array;
use lapis_core::error::{Error, Result};
use lapis_core::transforms::{Function, Outcome, Tree};
use std::path::Path;

const OP: &str = "import_function";
/// The value of `format` in the metadata.
const FORMAT: &str = "lapis.function";
/// The version that is written, and the last one that is read.
const VERSION: u32 = 1;

/// Traces `f` for arguments like `example` and writes it to `path` (`mx.export_function`). Several traces in one file:
/// [`Function::trace`] for each, then [`save_function`].
///
/// # Errors
/// As [`Function::trace`] and [`save_function`].
pub fn export_function<P: Tree, F: Outcome>(path: impl AsRef<Path>, f: impl Fn(&P) -> F, example: &P) -> Result<()> {
    let mut function = Function::new();
    function.trace(f, example)?;
    save_function(path, &function)
}

/// Writes a function and its constants.
///
/// # Errors
/// `Io` when writing fails: the old file is then as it was.
pub fn save_function(path: impl AsRef<Path>, function: &Function) -> Result<()> {
    let constants = function.constants();
    let names: Vec<String> = (0..constants.len()).map(|i| i.to_string()).collect();
    let specs: Vec<Spec> = names.iter().zip(constants).map(|(name, a)| spec(&(name, a))).collect();
    let listing = serde_json::to_string(&function.listing());
    let listing = listing.map_err(|e| Error::unsupported(format!("[export_function] {e}")))?;
    let mut sum = Crc::new();
    sum.update(listing.as_bytes());
    for a in constants {
        sum.update(&row_major(a)?);
    }
    let entry = |key: &str, value: String| (key.to_string(), value);
    let metadata: Metadata = [
        entry("format", FORMAT.into()),
        entry("version", VERSION.to_string()),
        entry("checksum", format!("{:08x}", sum.sum())),
        entry("function", listing),
    ]
    .into_iter()
    .collect();
    safetensors::write(path, &specs, &metadata, |i| row_major(&constants[i]))
}

/// The function of a file that [`export_function`] or [`save_function`] wrote (`mx.import_function`). Its constants lie
/// in the mapped file.
///
/// # Errors
/// `Io` for a file that cannot be read, is malformed or damaged, was written by a later version, or holds a trace that
/// makes no sense, naming the trace and its step.
pub fn import_function(file: impl IntoSource) -> Result<Function> {
    let source = file.into_source()?;
    let (tensors, metadata) = safetensors::read(&source)?;
    let entry = |key: &str| {
        metadata
            .get(key)
            .ok_or_else(|| source.error(OP, format!("the metadata has no {key}: not an exported function")))
    };
    if entry("format")? != FORMAT {
        return Err(source.error(OP, format!("format {:?}, expected {FORMAT:?}", entry("format")?)));
    }
    let version = entry("version")?;
    if version.parse() != Ok(VERSION) {
        return Err(source.error(OP, format!("version {version:?}; this lapis reads version {VERSION}")));
    }
    let listing = entry("function")?;
    check_sum(&source, entry("checksum")?, listing, &tensors)?;
    for (i, tensor) in tensors.iter().enumerate() {
        if tensor.name != i.to_string() {
            return Err(source.error(OP, format!("constant {i} is called {:?}", tensor.name)));
        }
    }
    let constants: Vec<Array> = tensors.iter().map(RawTensor::to_array).collect::<Result<_>>()?;
    let listing = serde_json::from_str(listing).map_err(|e| source.error(OP, format!("function: {e}")))?;
    let prefix = format!("[{OP}] ");
    Function::from_listing(listing, constants)
        .map_err(|e| source.error(OP, e.message().strip_prefix(&prefix).unwrap_or(e.message())))
}

/// Damage that still parses would be another function.
fn check_sum(source: &Source, wanted: &str, listing: &str, tensors: &[RawTensor]) -> Result<()> {
    let mut sum = Crc::new();
    sum.update(listing.as_bytes());
    for tensor in tensors {
        sum.update(&tensor.bytes()?);
    }
    let found = format!("{:08x}", sum.sum());
    if found != wanted {
        return Err(source.error(OP, format!("checksum {found}, {wanted:?} was written: the file is damaged")));
    }
    Ok(())
}
