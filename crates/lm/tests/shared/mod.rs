//! Data that does not belong to the repository: a folder `shared` beside it, or what `LAPIS_SHARED` names.

#[allow(dead_code, reason = "not every test reads goldens")]
pub(crate) mod golden;

use std::path::PathBuf;

/// `name` in that folder; where it is absent, says so.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");
    let path = std::env::var_os("LAPIS_SHARED").map_or_else(|| PathBuf::from(beside), PathBuf::from).join(name);
    if !path.exists() {
        eprintln!("skipped: no {}", path.display());
        return None;
    }
    Some(path)
}
