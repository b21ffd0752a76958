//! `lapis pull`: a model from the hub into the cache.

use crate::hub::{HubArguments, LOCK, fetch};
use crate::interrupt;
use lapis::{Error, Result};
use lapis_lm::hub::{Hub, Lock, Name};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// owner/name or owner/name@revision
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    hub: HubArguments,
    /// Read every file again and compare it with its digest, and with lapis.lock where that names the model
    #[arg(long)]
    verify: bool,
    /// Pin what was fetched in lapis.lock: commands run here use that commit from then on
    #[arg(long)]
    lock: bool,
    /// Print one JSON object a model
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    interrupt::watch();
    let hub = a.hub.hub()?;
    let mut lock = Lock::open(LOCK)?;
    for text in &a.names {
        let meant = Name::parse(text)?.at(a.hub.revision.as_deref())?;
        let name = if a.lock { meant.clone() } else { a.hub.pinned(text, meant.clone())? };
        // Who pulls wants what the hub has now; a commit is what it was.
        let mut dir = fetch(&hub, &name, !hub.offline && !name.is_commit())?;
        if a.verify {
            dir = verified(&hub, &name, dir, if a.lock { None } else { Some(&lock) })?;
        }
        if a.lock {
            lock.pin(&meant, &dir)?;
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

/// The snapshot, with files that are damaged fetched once more.
fn verified(hub: &Hub, name: &Name, dir: PathBuf, lock: Option<&Lock>) -> Result<PathBuf> {
    let wrong = hub.verify(&dir)?;
    if let Some(first) = wrong.first() {
        let (first, n) = (first.display(), wrong.len());
        if hub.offline {
            return Err(Error::io(format!(
                "{n} of the files of {name} are damaged, the first is {first}\n  fix: lapis pull --verify {name} with a \
                 network"
            )));
        }
        eprintln!("{n} of the files of {name} are damaged, the first is {first}; they are fetched again");
        hub.discard(&wrong)?;
        fetch(hub, name, true)?;
    }
    // Another commit than the pinned one is not held against it.
    let commit = |dir: &Path| dir.file_name().map(|n| n.to_string_lossy().into_owned());
    if let Some(lock) = lock.filter(|l| l.commit(&name.repo).map(str::to_string) == commit(&dir))
        && let Some(first) = lock.differs(&name.repo, &dir)?.first()
    {
        let first = first.display();
        return Err(Error::io(format!(
            "{first} is not what {LOCK} says\n  fix: find out who changed it; `lapis pull --lock {}` pins what is there now",
            name.repo
        )));
    }
    Ok(dir)
}
