//! `lapis config`: which flags are set by variables and files, and where.

use crate::settings::{self, Entry};
use clap::Command;
use lapis::Result;
use serde_json::json;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to say
    #[arg(value_parser = ["show", "path"], default_value = "show")]
    what: String,
    /// Say where each value comes from
    #[arg(long)]
    origin: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(a: Arguments, command: &Command, entries: &[Entry]) -> Result<()> {
    if a.what == "path" {
        settings::files().iter().for_each(|f| println!("{}", f.display()));
        return Ok(());
    }
    // Name of command, flag, value, origin.
    let mut rows: Vec<[String; 4]> = Vec::new();
    let mut flags: Vec<String> = std::iter::once(command)
        .chain(command.get_subcommands())
        .flat_map(|c| c.get_arguments())
        .filter_map(|a| a.get_long().map(str::to_string))
        .collect();
    flags.sort();
    flags.dedup();
    for flag in flags {
        let name = settings::variable(&flag);
        if let Ok(value) = std::env::var(&name) {
            rows.push([String::new(), flag, value, name]);
        }
    }
    for e in entries {
        let same = |r: &[String; 4]| r[1] == e.key && (r[0].is_empty() || r[0] == e.command);
        // What counts more stands before.
        if !rows.iter().any(same) {
            rows.push([e.command.clone(), e.key.clone(), e.value.clone(), e.file.display().to_string()]);
        }
    }
    rows.sort();
    if a.json {
        let all = rows.iter().map(|[c, k, v, o]| json!({"command": c, "flag": k, "value": v, "origin": o}));
        println!("{}", json!({"schema": 1, "settings": all.collect::<Vec<_>>()}));
        return Ok(());
    }
    for [command, key, value, origin] in rows {
        let place = if command.is_empty() { String::new() } else { format!("{command}.") };
        let origin = if a.origin { format!("   # {origin}") } else { String::new() };
        println!("{place}{key} = {value}{origin}");
    }
    Ok(())
}
