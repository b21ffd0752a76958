//! `lapis manage`, `ls` and `rm`: what the cache has, and what is taken out of it.

use lapis::{Error, Result};
use lapis_lm::hub::{Cache, Hub, Repository};
use serde_json::json;
use std::io::{BufRead, Write};
use std::time::SystemTime;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// List the models of the cache
    #[arg(long)]
    scan: bool,
    /// Delete models, after asking
    #[arg(long)]
    delete: bool,
    /// A part of the names of the models meant
    #[arg(long, default_value = "mlx")]
    pattern: String,
    /// Delete without asking
    #[arg(long)]
    yes: bool,
}

#[derive(clap::Args)]
pub(crate) struct List {
    /// A part of the names of the models meant
    #[arg(default_value = "")]
    pattern: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Remove {
    /// owner/name
    #[arg(required = true)]
    names: Vec<String>,
    /// Delete without asking
    #[arg(long, short)]
    yes: bool,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let cache = Hub::from_env()?.cache;
    let found = matching(&cache, &a.pattern);
    if a.scan {
        println!("Scanning Hugging Face cache for models with pattern \"{}\".", a.pattern);
        println!("{}", full_table(&found));
    }
    if a.delete {
        println!("Deleting models matching pattern \"{}\"", a.pattern);
        if found.is_empty() {
            println!("No models found matching pattern \"{}\"", a.pattern);
            return Ok(());
        }
        println!("\nFound the following models:");
        delete(&cache, &found, a.yes)?;
    }
    if !a.scan && !a.delete {
        return Err(Error::value("manage: give --scan or --delete"));
    }
    Ok(())
}

pub(crate) fn list(a: List) -> Result<()> {
    let cache = Hub::from_env()?.cache;
    let found = matching(&cache, &a.pattern);
    if a.json {
        let seconds = |t: Option<SystemTime>| Some(t?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs());
        let models: Vec<_> = found
            .iter()
            .map(|r| {
                json!({
                    "id": r.id, "type": r.kind, "bytes": r.size, "files": r.files, "path": r.path,
                    "accessed": seconds(r.accessed), "modified": seconds(r.modified), "revisions": r.revisions,
                })
            })
            .collect();
        println!("{}", json!({"schema": 1, "cache": cache.root, "models": models}));
        return Ok(());
    }
    let rows = found.iter().filter(|r| r.kind == "model").map(|r| {
        let refs: Vec<&str> = r.revisions.values().flatten().map(String::as_str).collect();
        vec![r.id.clone(), size(r.size), since(r.modified), refs.join(", ")]
    });
    println!("{}", table(rows.collect(), &["MODEL", "SIZE", "CHANGED", "REVISIONS"]));
    Ok(())
}

pub(crate) fn remove(a: Remove) -> Result<()> {
    let cache = Hub::from_env()?.cache;
    let all = cache.scan();
    let mut found = Vec::new();
    for name in &a.names {
        let Some(repository) = all.iter().find(|r| r.id == *name && r.kind == "model") else {
            let near: Vec<&str> = all
                .iter()
                .map(|r| r.id.as_str())
                .filter(|id| id.to_lowercase().contains(&name.to_lowercase()))
                .collect();
            let near = if near.is_empty() { String::new() } else { format!("\n  near: {}", near.join(", ")) };
            return Err(Error::value(format!("{name} is not in the cache {}{near}", cache.root.display())));
        };
        found.push(repository.clone());
    }
    delete(&cache, &found, a.yes)
}

fn matching(cache: &Cache, pattern: &str) -> Vec<Repository> {
    let mut all = cache.scan();
    all.retain(|r| r.id.contains(pattern));
    all
}

fn delete(cache: &Cache, found: &[Repository], yes: bool) -> Result<()> {
    let rows = found.iter().map(|r| vec![r.id.clone(), size(r.size), r.path.display().to_string()]);
    println!("{}", table(rows.collect(), &["REPO ID", "SIZE", "LOCAL PATH"]));
    if !yes && !asked("\nAre you sure you want to delete these models?")? {
        println!("\nDeletion cancelled - no changes made.");
        return Ok(());
    }
    for repository in found {
        println!("\nDeleting {}...", repository.id);
        cache.remove(repository)?;
    }
    println!("\nModel(s) deleted successfully.");
    Ok(())
}

/// Whether somebody says yes; nothing, no and the end of input are no.
fn asked(question: &str) -> Result<bool> {
    loop {
        print!("{question} (y/n) ");
        drop(std::io::stdout().flush());
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        if read.map_err(|e| Error::io(format!("standard input: {e}")))? == 0 {
            return Ok(false);
        }
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" | "1" => return Ok(true),
            "n" | "no" | "0" | "" => return Ok(false),
            _ => println!("Invalid input. Must be one of: yes/no/y/n or empty for no"),
        }
    }
}

fn full_table(found: &[Repository]) -> String {
    let rows = found.iter().map(|r| {
        let (kind, path) = (r.kind.clone(), r.path.display().to_string());
        let size = format!("{:>12}", size(r.size));
        vec![r.id.clone(), kind, size, format!("{:>8}", r.files), since(r.accessed), since(r.modified), path]
    });
    let heads = ["REPO ID", "REPO TYPE", "SIZE ON DISK", "NB FILES", "LAST_ACCESSED", "LAST_MODIFIED", "LOCAL PATH"];
    table(rows.collect(), &heads)
}

/// Columns under heads and lines.
fn table(rows: Vec<Vec<String>>, heads: &[&str]) -> String {
    let heads: Vec<String> = heads.iter().map(|h| h.to_string()).collect();
    let width = |i: usize| rows.iter().chain([&heads]).map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let lines: Vec<String> = widths.iter().map(|w| "-".repeat(*w)).collect();
    let line = |row: &Vec<String>| {
        let cells =
            row.iter().zip(&widths).map(|(cell, w)| format!("{}{} ", cell, " ".repeat(w - cell.chars().count())));
        cells.collect::<String>()
    };
    [&heads, &lines].into_iter().chain(&rows).map(line).collect::<Vec<_>>().join("\n")
}

/// `1.2G`: powers of a thousand, as the hub's own tools write sizes.
fn size(bytes: u64) -> String {
    let mut n = bytes as f64;
    for unit in ["", "K", "M", "G", "T"] {
        if n < 1000.0 {
            return format!("{n:.1}{unit}");
        }
        n /= 1000.0;
    }
    format!("{n:.1}P")
}

/// `2 hours ago`.
fn since(time: Option<SystemTime>) -> String {
    let Some(seconds) = time.and_then(|t| t.elapsed().ok()).map(|d| d.as_secs_f64()) else {
        return "a few seconds ago".into();
    };
    if seconds < 20.0 {
        return "a few seconds ago".into();
    }
    let (day, units) = (86400.0, [("second", 1.0, 59.0), ("minute", 60.0, 59.0), ("hour", 3600.0, 23.0)]);
    let more =
        [("day", day, 6.0), ("week", 7.0 * day, 6.0), ("month", 30.0 * day, 11.0), ("year", 365.0 * day, f64::MAX)];
    for (unit, length, most) in units.into_iter().chain(more) {
        let n = (seconds / length).round_ties_even();
        if n <= most {
            return format!("{n} {unit}{} ago", if n > 1.0 { "s" } else { "" });
        }
    }
    "long ago".into()
}
