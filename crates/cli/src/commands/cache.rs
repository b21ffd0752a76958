//! `lapis cache`: the prompts that servers remember on disk.

use lapis::io::atomic::human;
use lapis::{Error, Result};
use lapis_lm::engine::disk;
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<What>,
    /// The folder [default: lapis/prefixes in the user's cache]
    #[arg(long, value_name = "DIR", global = true)]
    disk_cache: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum What {
    /// Say how much there is, as without a word
    Ls,
    /// Remove all of them
    Clear,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let dir = a.disk_cache.or_else(disk::default_dir);
    let dir = dir.ok_or_else(|| Error::value("cache: there is no home to look into; give --disk-cache DIR"))?;
    let (done, found) = match a.command {
        Some(What::Clear) => ("removed from", disk::clear(&dir)),
        None | Some(What::Ls) => ("in", disk::usage(&dir)),
    };
    if a.json {
        println!("{}", json!({"schema": 1, "dir": dir, "files": found.files, "bytes": found.bytes}));
    } else {
        println!("{} of remembered prompts in {} files {done} {}", human(found.bytes), found.files, dir.display());
    }
    Ok(())
}
