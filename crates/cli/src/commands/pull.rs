//! `lapis pull`: a model from the hub into the cache.

use crate::hub::{HubArguments, fetch};
use crate::interrupt;
use lapis::{Error, Result};
use lapis_lm::hub::Name;
use serde_json::json;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// owner/name or owner/name@revision
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    hub: HubArguments,
    /// Read every file again and compare it with its digest
    #[arg(long)]
    verify: bool,
    /// Print one JSON object a model
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    interrupt::watch();
    let hub = a.hub.hub()?;
    for text in &a.names {
        let name = Name::parse(text)?.at(a.hub.revision.as_deref())?;
        // Who pulls wants what the hub has now.
        let mut dir = fetch(&hub, &name, !hub.offline)?;
        if a.verify {
            let wrong = hub.verify(&dir)?;
            if let Some(first) = wrong.first() {
                let (first, n) = (first.display(), wrong.len());
                if hub.offline {
                    return Err(Error::io(format!(
                        "{n} of the files of {name} are damaged, the first is {first}\n  fix: lapis pull --verify {name} \
                         with a network"
                    )));
                }
                eprintln!("{n} of the files of {name} are damaged, the first is {first}; they are fetched again");
                hub.discard(&wrong)?;
                dir = fetch(&hub, &name, true)?;
            }
        }
        if a.json {
            let commit = dir.file_name().unwrap_or_default().to_string_lossy();
            let line =
                json!({"schema": 1, "repo": name.repo, "revision": name.revision, "commit": commit, "path": dir});
            println!("{line}");
        } else {
            println!("{}", dir.display());
        }
    }
    Ok(())
}
