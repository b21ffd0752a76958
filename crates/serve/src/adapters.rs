//! The adapters of a server: which names there are, where they come from, which generation is the current one.
//!
//! A name was given at the start or by the operator, or is a directory below `--adapters-dir`; no path from outside is
//! opened. Every loading is another generation, which never changes; those who have one keep it. Puts nothing on a model.

use crate::error::ApiError;
use crate::models::seconds;
use crate::settings::Settings;
use lapis_lm::Adapter;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// An adapter as it was loaded once.
pub struct Generation {
    /// What it is called.
    pub name: String,
    /// Its number: another one at every loading.
    pub number: u64,
    /// What it changes.
    pub adapter: Adapter,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
}

/// The adapters of a server.
pub(crate) struct Adapters {
    root: Option<PathBuf>,
    known: Mutex<BTreeMap<String, Arc<Generation>>>,
    next: AtomicU64,
}

/// The files of an adapter.
const FILES: [&str; 3] = ["adapter_config.json", "adapters.safetensors", "adapter_model.safetensors"];

impl Adapters {
    /// Opens those that are given at the start.
    ///
    /// # Errors
    /// An adapter that cannot be opened; a name that is none, or that two have.
    pub(crate) fn new(settings: &Settings) -> lapis::Result<Adapters> {
        let root = settings.adapters_dir.as_deref().map(Path::canonicalize).transpose();
        let root = root.map_err(|e| lapis::Error::io(format!("[serve] the folder of adapters: {e}")))?;
        let adapters = Adapters { root, known: Mutex::default(), next: AtomicU64::new(1) };
        for (name, path) in &settings.adapters {
            if !is_name(name) {
                return Err(lapis::Error::value(format!("[serve] {name:?} is no name of an adapter: no colon, no ..")));
            }
            let adapter = Adapter::open(path)?;
            if adapters.known(name).is_some() {
                return Err(lapis::Error::value(format!("[serve] two adapters are called {name}")));
            }
            adapters.add(name, adapter);
        }
        Ok(adapters)
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Generation>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self, name: &str, mut adapter: Adapter) -> Arc<Generation> {
        adapter.name = name.to_string();
        // No path is told to clients.
        adapter.base = adapter.base.and_then(|b| b.trim_end_matches('/').rsplit('/').next().map(str::to_string));
        let number = self.next.fetch_add(1, Relaxed);
        Arc::new(Generation { name: name.to_string(), number, adapter, created: seconds(SystemTime::now()) })
    }

    fn add(&self, name: &str, adapter: Adapter) -> Arc<Generation> {
        let made = self.make(name, adapter);
        self.all().insert(name.to_string(), Arc::clone(&made));
        made
    }

    /// The current generation of a name, if it is loaded.
    pub(crate) fn known(&self, name: &str) -> Option<Arc<Generation>> {
        self.all().get(name).cloned()
    }

    /// Whether nothing has taken the place of a generation.
    pub(crate) fn is_current(&self, generation: &Generation) -> bool {
        self.known(&generation.name).is_some_and(|g| g.number == generation.number)
    }

    /// All that are loaded.
    pub(crate) fn list(&self) -> Vec<Arc<Generation>> {
        self.all().values().cloned().collect()
    }

    /// Whether a name stands for an adapter, loaded or not.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.known(name).is_some() || self.path(name).is_some()
    }

    /// Names of all adapters that may be asked for.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.all().keys().cloned().collect();
        if let Some(root) = &self.root {
            let below = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
            for path in below(root) {
                let inner: Vec<PathBuf> =
                    if path.join(FILES[0]).is_file() { vec![path] } else { below(&path).collect() };
                let found = inner.iter().filter_map(|p| p.strip_prefix(root).ok()?.to_str());
                names.extend(found.filter(|name| self.path(name).is_some()).map(str::to_string));
            }
        }
        names.sort();
        names.dedup();
        names
    }

    /// The directory of a name below the folder of adapters: nothing on the way leads out of it.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let root = self.root.as_ref()?;
        if !is_name(name) {
            return None;
        }
        let inside = |path: PathBuf| path.canonicalize().ok().filter(|p| p.starts_with(root));
        let dir = inside(root.join(name)).filter(|dir| dir != root)?;
        let files = FILES.map(|file| dir.join(file));
        let all_inside = files.iter().filter(|f| f.symlink_metadata().is_ok()).all(|f| inside(f.clone()).is_some());
        (files[0].is_file() && all_inside).then_some(dir)
    }

    /// The current generation of a name; what lies below the folder of adapters is opened if it is not yet. Reads files.
    ///
    /// # Errors
    /// A name that there is not (404); files that are no adapter.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Generation>, ApiError> {
        if let Some(known) = self.known(name) {
            return Ok(known);
        }
        let made = self.make(name, self.open(name)?);
        // Of several that open it at once, the first one's counts.
        Ok(Arc::clone(self.all().entry(name.to_string()).or_insert(made)))
    }

    fn open(&self, place: &str) -> Result<Adapter, ApiError> {
        let shown: String = place.chars().filter(|c| !c.is_control()).take(100).collect();
        let Some(dir) = self.path(place) else {
            let names = self.names();
            let there = if names.is_empty() { "none".to_string() } else { names.join(", ") };
            return Err(ApiError::new(404, format!("there is no adapter {shown:?} here; there is {there}"))
                .code("adapter_not_found"));
        };
        Adapter::open(&dir).map_err(|e| {
            let root = self.root.as_ref().map_or(String::new(), |root| format!("{}/", root.display()));
            let error = ApiError::from(e);
            ApiError { message: error.message.replace(&root, ""), status: 400, ..error }.code("adapter_broken")
        })
    }

    /// Loads an adapter below the folder of adapters under a name, in place of one that has it; `expected` is the number
    /// of the generation that it may take the place of, 0 for none. Reads files.
    ///
    /// # Errors
    /// A name that is none, a place that there is not, files that are no adapter; another generation than expected.
    pub(crate) fn load(&self, name: &str, place: &str, expected: Option<u64>) -> Result<Arc<Generation>, ApiError> {
        if !is_name(name) {
            let why = "name is no name of an adapter: letters and digits, parts joined by /, no colon, no part that begins \
                       with a dot";
            return Err(ApiError::field("name", why));
        }
        let made = self.make(name, self.open(place)?);
        let mut all = self.all();
        let now = all.get(name).map_or(0, |g| g.number);
        if let Some(expected) = expected.filter(|&e| e != now) {
            let why = format!("the generation of {name} is {now}, not {expected}: somebody else has changed it");
            return Err(ApiError::new(409, why).code("generation_conflict"));
        }
        all.insert(name.to_string(), Arc::clone(&made));
        Ok(made)
    }

    /// Forgets a name; whether it was known.
    pub(crate) fn remove(&self, name: &str) -> bool {
        self.all().remove(name).is_some()
    }
}

/// Whether a text can be a name: parts of a path that lead nowhere but down, and no colon.
fn is_name(name: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', ':']) && !part.contains(char::is_control)
    };
    name.len() <= 256 && name.split('/').all(plain)
}
