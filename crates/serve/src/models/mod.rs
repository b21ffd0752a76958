//! The models of a server: which there are, which are loaded, who comes and who goes.
//!
//! A name is the start-up model's, an alias, a model in the cache of downloads, or a folder below `--models-dir`; no
//! path from outside is ever opened and nothing is fetched. What is asked for is loaded once, however many ask, and the
//! one that nobody has used for longest makes room. A model with an adapter, `model:adapter`, is another model that shares
//! the arrays of the one without.

mod names;
mod room;

use crate::adapters::{Adapters, Generation};
use crate::error::ApiError;
use crate::job::InUse;
use crate::metrics::Metrics;
use crate::service::blocking;
use crate::settings::{Log, Settings, Source};
use lapis::Error;
use lapis_lm::adapter::Mixed;
use lapis_lm::embed::{Pool, Pooling, Reading};
use lapis_lm::engine::disk;
use lapis_lm::fit::Fit;
use lapis_lm::template::Template;
use lapis_lm::{Checkpoint, Disk, DiskPrefixes, LanguageModel, Request, Sequence};
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

pub(crate) use names::Listing;
use names::weights;

/// A model that is loaded.
pub struct Loaded {
    /// Its name.
    pub id: String,
    /// Its number: another one at every loading.
    pub serial: u64,
    /// The network and its tokenizer.
    pub model: LanguageModel,
    /// Prompt and reply together at most.
    pub context: usize,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// What it needs.
    pub fit: Fit,
    /// Beginnings of prompts that are on disk.
    pub prefixes: Option<DiskPrefixes>,
    /// Its config.json.
    pub config: serde_json::Map<String, Value>,
    /// Version and weights, as a short text.
    pub fingerprint: String,
    /// How long it stays without work, where a request said so.
    pub ttl: Mutex<Option<Duration>>,
    /// Requests that use it now.
    pub jobs: AtomicUsize,
    /// The model without the adapter, and the adapter, where there is one.
    pub variant: Option<(Arc<Loaded>, Arc<Generation>)>,
    /// Its rows may stand in one step with those of the model without the adapter.
    pub shares: bool,
    /// What of its adapter goes into the salt of prompts, where prompts of several are remembered together.
    pub salt: u64,
    /// Where it is kept.
    key: String,
}

/// What is to be loaded.
#[derive(Clone)]
enum What {
    Model(Source),
    Variant(Arc<Loaded>, Arc<Generation>),
}

/// How far a model is that is being loaded.
pub(crate) struct Progress {
    began: Instant,
    /// Bytes that were fetched from the hub, of so many.
    fetched: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    fn new() -> Progress {
        Progress { began: Instant::now(), fetched: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Bytes that were fetched, of so many, where it had to be.
    pub(crate) fn fetched(&self) -> Option<(u64, u64)> {
        Some((self.fetched.load(Relaxed), self.bytes.load(Relaxed))).filter(|b| b.1 > 0)
    }

    /// Seconds since it began.
    pub(crate) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}

enum Slot {
    /// Somebody loads it; the channel closes when that has ended.
    Loading(watch::Receiver<()>, Arc<Progress>),
    Ready {
        loaded: Arc<Loaded>,
        used: Instant,
    },
    Failed {
        error: ApiError,
        when: Instant,
    },
}

/// The models of a server.
pub struct Models {
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    disk: Option<Arc<Disk>>,
    pub(crate) adapters: Adapters,
    /// Models with adapters that others have taken the place of, until their requests are over.
    retired: Mutex<Vec<Arc<Loaded>>>,
    slots: Mutex<BTreeMap<String, Slot>>,
    serial: AtomicU64,
    /// Told of models that are let go, by number.
    gone: Box<dyn Fn(u64) + Send + Sync>,
    /// Models loaded since the start, and let go.
    pub loads: AtomicU64,
    /// As [`Models::loads`], let go.
    pub unloads: AtomicU64,
}

/// Context where no config says.
const CONTEXT: usize = 32768;
/// How long a model that failed is not tried again.
const REST: Duration = Duration::from_secs(10);
/// How long a model that is loaded waits for what is on disk of it.
const OPENING: Duration = Duration::from_millis(500);

impl Models {
    /// Those of some settings; `gone` hears of each that is let go.
    ///
    /// # Errors
    /// Adapters that cannot be opened.
    pub fn new(
        settings: Arc<Settings>,
        metrics: Arc<Metrics>,
        disk: Option<Arc<Disk>>,
        gone: impl Fn(u64) + Send + Sync + 'static,
    ) -> lapis::Result<Models> {
        Ok(Models {
            adapters: Adapters::new(&settings)?,
            retired: Mutex::default(),
            settings,
            metrics,
            disk,
            slots: Mutex::default(),
            serial: AtomicU64::new(1),
            gone: Box::new(gone),
            loads: AtomicU64::new(0),
            unloads: AtomicU64::new(0),
        })
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of the start-up model.
    pub fn start(&self) -> &str {
        &self.settings.model.0
    }

    /// The start-up model, if it is loaded.
    pub fn ready(&self) -> Option<Arc<Loaded>> {
        self.loaded(self.start())
    }

    fn loaded(&self, id: &str) -> Option<Arc<Loaded>> {
        match self.slots().get(id) {
            Some(Slot::Ready { loaded, .. }) => Some(Arc::clone(loaded)),
            _ => None,
        }
    }

    /// All that are loaded.
    pub fn all_loaded(&self) -> Vec<Arc<Loaded>> {
        let slots = self.slots();
        let ready = |s: &Slot| if let Slot::Ready { loaded, .. } = s { Some(Arc::clone(loaded)) } else { None };
        slots.values().filter_map(ready).collect()
    }

    /// Why the start-up model could not be loaded.
    pub fn failure(&self) -> Option<ApiError> {
        self.failure_of(self.start())
    }

    /// Why a model could not be loaded, if that is how it is.
    pub(crate) fn failure_of(&self, id: &str) -> Option<ApiError> {
        match self.slots().get(id) {
            Some(Slot::Failed { error, .. }) => Some(error.clone()),
            _ => None,
        }
    }

    /// The model of a name, loaded first if it is not.
    ///
    /// # Errors
    /// A name that there is not, a model that cannot be loaded or takes too long to.
    pub async fn get(self: &Arc<Models>, name: &str) -> Result<Arc<Loaded>, ApiError> {
        self.get_with(name, None).await
    }

    /// As [`Models::get`], with an adapter on it.
    ///
    /// # Errors
    /// Also an adapter that there is not or that does not fit.
    pub async fn get_with(self: &Arc<Models>, name: &str, adapter: Option<&str>) -> Result<Arc<Loaded>, ApiError> {
        let (base, named) = self.split(name).or_else(|e| match self.pullable(name) {
            Some(_) => Ok((name.to_string(), None)),
            None => Err(e),
        })?;
        let known = match (named, adapter) {
            (Some(_), Some(_)) => {
                return Err(ApiError::field(
                    "adapters",
                    "the model's name has an adapter already: name one of the two",
                ));
            }
            (None, None) => {
                let (id, source) = self.find_or_pull(&base)?;
                return self.slot(id.clone(), id, What::Model(source)).await;
            }
            (None, Some(name)) => {
                let denied = |e: ApiError| ApiError { status: if e.status == 404 { 403 } else { e.status }, ..e };
                self.generation(name).await.map_err(|e| denied(e).about("adapters"))
            }
            (Some(name), None) => self.generation(&name).await.map_err(|e| e.about("model")),
        };
        let adapter = known?;
        let (id, source) = self.find(&base)?;
        // While it is in use it is not let go.
        let base = InUse::new(self.slot(id.clone(), id, What::Model(source)).await?);
        let id = format!("{}:{}", base.0.id, adapter.name);
        let key = format!("{id}:{}:{}", adapter.number, base.0.serial);
        self.slot(key, id, What::Variant(Arc::clone(&base.0), adapter)).await
    }

    async fn generation(self: &Arc<Models>, name: &str) -> Result<Arc<Generation>, ApiError> {
        match self.adapters.known(name) {
            Some(known) => Ok(known),
            None => {
                let (models, name) = (Arc::clone(self), name.to_string());
                blocking(move || models.adapters.get(&name)).await
            }
        }
    }

    /// The model and the adapter that a name stands for.
    fn split(&self, name: &str) -> Result<(String, Option<String>), ApiError> {
        if matches!(name, "" | "default" | "default_model") {
            return Ok((self.start().to_string(), self.settings.default_adapter.clone()));
        }
        // A name of its own is nothing with an adapter; what a star stands for may be.
        let whole = name == self.start() || self.settings.aliases.iter().any(|(alias, _)| alias == name);
        match name.rsplit_once(':').filter(|_| !whole) {
            Some((base, adapter)) if self.find(base).is_ok() && self.adapters.has(adapter) => {
                Ok((base.to_string(), Some(adapter.to_string())))
            }
            _ => self.find(name).map(|_| (name.to_string(), None)),
        }
    }

    /// What is kept under a key, loaded first if it is not.
    async fn slot(self: &Arc<Models>, key: String, id: String, what: What) -> Result<Arc<Loaded>, ApiError> {
        let until = tokio::time::Instant::now() + self.settings.load_wait;
        loop {
            let (mut waiting, progress) = {
                let mut slots = self.slots();
                match slots.get_mut(&key) {
                    Some(Slot::Ready { loaded, used }) => {
                        *used = Instant::now();
                        return Ok(Arc::clone(loaded));
                    }
                    Some(Slot::Failed { error, when }) if when.elapsed() < REST => return Err(error.clone()),
                    Some(Slot::Loading(waiting, progress)) => (waiting.clone(), Arc::clone(progress)),
                    _ => {
                        let (sender, receiver) = watch::channel(());
                        let progress = Arc::new(Progress::new());
                        slots.insert(key.clone(), Slot::Loading(receiver.clone(), Arc::clone(&progress)));
                        drop(slots);
                        self.begin(key.clone(), id.clone(), what.clone(), sender, Arc::clone(&progress));
                        (receiver, progress)
                    }
                }
            };
            if tokio::time::timeout_at(until, waiting.changed()).await.is_err() {
                let human = lapis::io::atomic::human;
                let fetched = progress.fetched().map(|(n, of)| format!(", {} of {} fetched", human(n), human(of)));
                let (seconds, fetched) = (progress.seconds(), fetched.unwrap_or_default());
                let why = format!("{id} is still being loaded: {seconds:.0} s so far{fetched}; try again later");
                return Err(ApiError::later(503, 10, why).code("model_loading"));
            }
        }
    }

    fn begin(
        self: &Arc<Models>,
        key: String,
        id: String,
        what: What,
        done: watch::Sender<()>,
        progress: Arc<Progress>,
    ) {
        let (models, own) = (Arc::clone(self), key.clone());
        let work = move || {
            let began = Instant::now();
            let make = || {
                let what = models.fetched(what, &progress)?;
                let needed = match &what {
                    What::Model(Source::Path(path)) => weights(path),
                    What::Model(Source::Files(files)) => files.weights.len() as u64,
                    What::Model(Source::Hub(_)) => 0,
                    What::Variant(_, adapter) => adapter.adapter.bytes,
                };
                match &what {
                    What::Model(source) => models.load(&id, source, needed),
                    What::Variant(base, adapter) => {
                        models.possible(needed, false)?;
                        let loaded = models.adapt(&key, base, adapter)?;
                        models.room(needed).map(|()| loaded)
                    }
                }
            };
            let result = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| {
                models.metrics.faults.fetch_add(1, Relaxed);
                Err(ApiError::new(500, format!("loading {id} broke down")))
            });
            let slot = match result {
                Ok(loaded) => {
                    models.loads.fetch_add(1, Relaxed);
                    let m = &models.metrics;
                    let times = if loaded.variant.is_some() { &m.adapter_time } else { &m.load_time };
                    times.observe(began.elapsed().as_secs_f64());
                    Slot::Ready { loaded: Arc::new(loaded), used: Instant::now() }
                }
                Err(error) => Slot::Failed { error, when: Instant::now() },
            };
            models.slots().insert(key, slot);
            drop(done);
        };
        // A thread of its own: a download may take an hour, and requests are prepared by a few threads.
        if let Err(e) = std::thread::Builder::new().name("load".into()).stack_size(16 << 20).spawn(work) {
            let error = ApiError::later(503, 5, format!("there is no thread to load a model: {e}")).code("no_memory");
            self.slots().insert(own, Slot::Failed { error, when: Instant::now() });
        }
    }

    /// The same in files that are here; what is on the hub is fetched.
    fn fetched(&self, what: What, progress: &Progress) -> Result<What, ApiError> {
        let What::Model(Source::Hub(name)) = &what else { return Ok(what) };
        let missing = || ApiError::new(404, format!("{name} cannot be fetched: there is no cache of downloads"));
        let hub = self.settings.hub.as_ref().ok_or_else(missing)?;
        let path = hub.model(name, false, &|done, total| {
            progress.fetched.store(done, Relaxed);
            progress.bytes.store(total, Relaxed);
            true
        });
        let fail = |e: Error| {
            ApiError::later(503, 30, format!("{name} cannot be fetched: {}", e.message())).code("model_not_loaded")
        };
        Ok(What::Model(Source::Path(path.map_err(fail)?)))
    }

    /// How far a model is that is being loaded.
    pub(crate) fn progress(&self, id: &str) -> Option<Arc<Progress>> {
        match self.slots().get(id) {
            Some(Slot::Loading(_, progress)) => Some(Arc::clone(progress)),
            _ => None,
        }
    }

    /// A model. Nothing goes before its files are known to be a model, and there would be room for it; where memory
    /// holds both, nothing goes before it has taken a step.
    fn load(&self, id: &str, source: &Source, needed: u64) -> Result<Loaded, ApiError> {
        self.possible(needed, true)?;
        let fail = |e: Error| {
            ApiError::later(503, 30, format!("{id} cannot be loaded: {}", e.message())).code("model_not_loaded")
        };
        let (mut model, fit, config) = match source {
            Source::Files(files) => {
                let weights = lapis::io::Bytes::copy(files.weights).map_err(fail)?;
                let mut checkpoint = Checkpoint::from_bytes(files.name, files.config, weights).map_err(fail)?;
                let config = checkpoint.config.clone();
                let fit = Fit::of(&mut checkpoint).map_err(fail)?;
                (LanguageModel::from_files(*files).map_err(fail)?, fit, config)
            }
            Source::Hub(name) => return Err(fail(Error::io(format!("{name} was not fetched")))),
            Source::Path(path) => {
                let mut checkpoint = Checkpoint::open(path).map_err(fail)?;
                let config = checkpoint.config.clone();
                let fit = Fit::of(&mut checkpoint).map_err(fail)?;
                (lapis_lm::load(path).map_err(fail)?, fit, config)
            }
        };
        if self.settings.log != Log::Off {
            model.warnings.iter().for_each(|w| crate::log::line(&format!("warning: {id}: {w}")));
        }
        if let Some(source) = self.settings.chat_template.as_deref() {
            model.tokenizer.set_chat_template(Template::new(source).map_err(fail)?);
        }
        self.room(needed)?;
        let began = Instant::now();
        warm_up(&model).map_err(fail)?;
        self.place()?;
        self.metrics.warm_up.observe(began.elapsed().as_secs_f64());
        let most = model.context.unwrap_or(CONTEXT);
        let text = Value::Object(config.clone()).to_string();
        let fingerprint = self.fingerprint(id, &model, &fit, &text).map_err(fail)?;
        let prefixes = self.prefixes(&model, &text);
        // Of a small model that takes no time, and the first request may find something; others need not wait.
        let _ = prefixes.as_ref().map(|p| p.ready(OPENING));
        Ok(Loaded {
            id: id.to_string(),
            prefixes,
            serial: self.serial.fetch_add(1, Relaxed),
            context: self.settings.max_context.map_or(most, |m| m.min(most)),
            created: seconds(SystemTime::now()),
            fit,
            config,
            fingerprint,
            ttl: Mutex::default(),
            jobs: AtomicUsize::new(0),
            variant: None,
            shares: false,
            salt: 0,
            key: id.to_string(),
            model,
        })
    }

    /// Version and model as a short text, or whatever could change a bit of an answer.
    fn fingerprint(&self, id: &str, model: &LanguageModel, fit: &Fit, config: &str) -> lapis::Result<String> {
        let s = &self.settings;
        let version = env!("CARGO_PKG_VERSION");
        if !s.deterministic {
            let about = format!("{id} {} {config}", fit.weights);
            let digest = ring::digest::digest(&ring::digest::SHA256, about.as_bytes());
            let digest: String = digest.as_ref()[..4].iter().map(|b| format!("{b:02x}")).collect();
            return Ok(format!("lapis-{version}-{digest}"));
        }
        let own = (&s.sampling, s.from_model, s.max_tokens, s.max_context, &s.chat_template, &s.template_args);
        let about = format!("{config} {own:?} {:?}", model.generation);
        let digest = disk::fingerprint(&*model.model, about.as_bytes(), s.kv)?;
        crate::log::line(&format!("fingerprint of {id}: lapis-{version}-{digest}"));
        Ok(format!("lapis-{version}-{digest}"))
    }

    /// Beginnings of prompts of a model that are on disk; `text` is whatever it computes by beside its tensors.
    fn prefixes(&self, model: &LanguageModel, text: &str) -> Option<DiskPrefixes> {
        let of_disk = |disk| DiskPrefixes::new(disk, &model.model, text.as_bytes(), self.settings.kv);
        self.disk.as_ref().filter(|_| model.writes).map(of_disk)
    }

    /// A model with an adapter on it.
    fn adapt(&self, key: &str, base: &Arc<Loaded>, adapter: &Arc<Generation>) -> Result<Loaded, ApiError> {
        let misfit = |e: Error| {
            let error = ApiError::from(e);
            ApiError { status: if error.status == 500 { 400 } else { error.status }, ..error }.code("adapter_mismatch")
        };
        let model = base.model.with_adapter(&adapter.adapter).map_err(misfit)?;
        let digest = lapis_lm::adapter::digest(model.model.module()).map_err(misfit)?;
        // The scale of an adapter is no tensor: its digest tells of it.
        let text = format!("{} {}", Value::Object(base.config.clone()), digest.as_deref().unwrap_or_default());
        // What shares steps shares what is remembered, too, by salts that tell one from the other.
        let shares = Mixed::new(&*base.model.model, &[Some(&*model.model)]).is_some();
        let prefixes = if shares { None } else { self.prefixes(&model, &text) };
        let salt = ring::digest::digest(&ring::digest::SHA256, digest.as_deref().unwrap_or_default().as_bytes());
        let salt = u64::from_le_bytes(salt.as_ref()[..8].try_into().unwrap_or_default());
        let mut fit = base.fit.clone();
        fit.weights = adapter.adapter.bytes;
        Ok(Loaded {
            id: format!("{}:{}", base.id, adapter.name),
            prefixes,
            serial: self.serial.fetch_add(1, Relaxed),
            context: base.context,
            created: adapter.created,
            // Only what it does not share with its base.
            fit,
            config: base.config.clone(),
            fingerprint: format!("{}-{}", base.fingerprint, digest.unwrap_or_else(|| adapter.number.to_string())),
            ttl: Mutex::default(),
            jobs: AtomicUsize::new(0),
            variant: Some((Arc::clone(base), Arc::clone(adapter))),
            shares,
            salt: if shares { salt } else { 0 },
            key: key.to_string(),
            model,
        })
    }
}

/// Takes a step with a model that is not used yet: weights are read and kernels are chosen, so that the first request
/// does not wait for that, nor anybody beside it.
fn warm_up(model: &LanguageModel) -> lapis::Result<()> {
    if !model.writes {
        let pooling = Pooling { pool: Pool::Mean, normalize: false };
        return Reading::new(model, vec![vec![0]], pooling)?.step(1).map(drop);
    }
    let mut engine = model.engine();
    engine.add(Request { prompt: vec![0], max_tokens: 1, ..Request::default() }, Sequence::new())?;
    // A model that can say nothing says so to whoever asks.
    engine.run(|_| true)
}

/// Bytes of the weights of some models, those that they share counted once.
pub(crate) fn weights_of<'a>(models: impl Iterator<Item = &'a Arc<Loaded>>) -> u64 {
    let each = models.flat_map(|l| [Some(l), l.variant.as_ref().map(|v| &v.0)]).flatten();
    each.map(|l| (l.serial, l.fit.weights)).collect::<BTreeMap<_, _>>().values().sum()
}

impl Loaded {
    /// The model whose steps its rows stand in.
    pub fn home(self: &Arc<Loaded>) -> &Arc<Loaded> {
        match &self.variant {
            Some((base, _)) if self.shares => base,
            _ => self,
        }
    }

    /// Bytes of its weights, with those that it shares.
    pub fn bytes(&self) -> u64 {
        self.fit.weights + self.variant.as_ref().map_or(0, |v| v.0.fit.weights)
    }
}

pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
