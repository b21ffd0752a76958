//! Where a model comes from: a directory, the cache, or the hub.

use crate::interrupt;
use lapis::io::atomic::human;
use lapis::{Error, Result};
use lapis_lm::hub::{Hub, Lock, Name, Outline};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

/// The file that pins models, in the directory where a command runs.
pub(crate) const LOCK: &str = "lapis.lock";

/// Flags of every command that takes a model.
#[derive(clap::Args, Default)]
pub(crate) struct HubArguments {
    /// A branch, tag or commit of a model on the hub
    #[arg(long)]
    pub(crate) revision: Option<String>,
    /// Use what is in the cache and no network
    #[arg(long)]
    pub(crate) offline: bool,
    /// Ask the hub whether the model has changed
    #[arg(long)]
    pub(crate) refresh: bool,
}

impl HubArguments {
    /// The hub of the environment, as these flags have it.
    pub(crate) fn hub(&self) -> Result<Hub> {
        let mut hub = Hub::from_env()?;
        hub.offline |= self.offline;
        if hub.offline && self.refresh {
            return Err(Error::value("--refresh asks the hub, and --offline (or HF_HUB_OFFLINE) forbids it"));
        }
        Ok(hub)
    }

    /// The name at the commit that lapis.lock pins it to, where no revision is given.
    pub(crate) fn pinned(&self, text: &str, name: Name) -> Result<Name> {
        if self.revision.is_some() || text.contains('@') {
            return Ok(name);
        }
        let commit = Lock::open(LOCK)?.commit(&name.repo).map(str::to_string);
        name.at(commit.as_deref())
    }

    /// What is known of a model without its weights: the directory where it is here, else its outline from the hub.
    pub(crate) fn outline(&self, model: &Path) -> Result<Place> {
        if let Some((hub, name)) = self.named(model)?
            && hub.cached(&name)?.is_none()
        {
            return hub.outline(&name).map(Place::Far);
        }
        self.find(model).map(Place::Here)
    }

    /// The directory of a model: the path if it exists, else what the name stands for.
    pub(crate) fn find(&self, model: &Path) -> Result<PathBuf> {
        match self.named(model)? {
            None => Ok(model.to_path_buf()),
            Some((hub, name)) => fetch(&hub, &name, self.refresh),
        }
    }

    /// The name that a model is given by; `None` for a path that exists.
    pub(crate) fn named(&self, model: &Path) -> Result<Option<(Hub, Name)>> {
        if model.exists() {
            return match &self.revision {
                None => Ok(None),
                Some(_) => Err(Error::value(format!("--revision is for the hub; {} is a directory", model.display()))),
            };
        }
        let absent = || {
            let shown = model.display();
            Error::io(format!(
                "{shown} does not exist\n  Give --model a directory with config.json, tokenizer.json and safetensors \
                 files,\n  or the name of a model on the hub: owner/name"
            ))
        };
        let text = model.to_str().ok_or_else(absent)?;
        if Name::parse(text).is_err() && !text.contains('@') {
            return Err(absent());
        }
        let name = self.pinned(text, Name::parse(text)?.at(self.revision.as_deref())?)?;
        let hub = self.hub()?;
        if hub.may_be_name(text) { Ok(Some((hub, name))) } else { Err(absent()) }
    }
}

/// Where a model is.
pub(crate) enum Place {
    /// In a directory.
    Here(PathBuf),
    /// On the hub: its outline.
    Far(Outline),
}

impl Place {
    pub(crate) fn dir(&self) -> &Path {
        match self {
            Place::Here(dir) => dir,
            Place::Far(outline) => outline.dir(),
        }
    }
}

/// The directory of a model, with a line on a terminal that says how far it is.
pub(crate) fn fetch(hub: &Hub, name: &Name, refresh: bool) -> Result<PathBuf> {
    let meter = Meter::new(&name.to_string());
    hub.model(name, refresh, &|done, total| {
        meter.at(done, total);
        !interrupt::seen()
    })
}

/// A line about bytes, on a terminal.
pub(crate) struct Meter {
    what: String,
    began: Instant,
    /// When the line was last written, and how many bytes were there at the beginning.
    shown: Mutex<(Option<Instant>, Option<u64>)>,
    on: bool,
}

impl Meter {
    pub(crate) fn new(what: &str) -> Meter {
        let off = std::env::var("HF_HUB_DISABLE_PROGRESS_BARS").is_ok_and(|v| !["", "0"].contains(&v.as_str()));
        let on = std::io::stderr().is_terminal() && !off;
        Meter { what: what.to_string(), began: Instant::now(), shown: Mutex::new((None, None)), on }
    }

    pub(crate) fn at(&self, done: u64, total: u64) {
        if !self.on {
            return;
        }
        let mut shown = self.shown.lock().unwrap_or_else(|e| e.into_inner());
        let first = *shown.1.get_or_insert(done);
        let seconds = self.began.elapsed().as_secs_f64();
        if seconds < 0.3 || shown.0.is_some_and(|t| t.elapsed().as_millis() < 100) {
            return;
        }
        shown.0 = Some(Instant::now());
        let rate = done.saturating_sub(first) as f64 / seconds;
        let left = total.saturating_sub(done) as f64 / rate.max(1.0);
        let percent = 100 * done / total.max(1);
        let (what, done, total, rate) = (&self.what, human(done), human(total), human(rate as u64));
        eprint!("\r\x1b[K{what} {done}/{total} · {percent} % · {rate}/s · ETA {left:.0} s");
        drop(std::io::stderr().flush());
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.shown.lock().unwrap_or_else(|e| e.into_inner()).0.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
