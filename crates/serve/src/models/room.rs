//! Room for models: who goes, and when.

use super::{Loaded, Models, Slot};
use crate::error::ApiError;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

impl Models {
    /// Whether there is room for one more, if those go that nobody uses.
    ///
    /// # Errors
    /// There is not.
    pub(super) fn possible(&self, needed: u64, model: bool) -> Result<(), ApiError> {
        let all = self.all_loaded();
        let idle = |l: &&Arc<Loaded>| l.jobs.load(Relaxed) == 0 && !self.settings.pins.contains(&l.id);
        let (may_go, mut stay): (Vec<_>, Vec<_>) = all.iter().partition(idle);
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // What shares the arrays of a model keeps it.
        let on = |loaded: &Arc<Loaded>| loaded.variant.as_ref().map(|v| v.0.serial);
        let kept: Vec<u64> = stay.iter().copied().chain(&retired).filter_map(on).collect();
        stay.extend(may_go.into_iter().filter(|l| kept.contains(&l.serial)));
        let taken: u64 = stay.iter().map(|l| l.fit.weights).sum();
        let models = stay.iter().filter(|l| l.variant.is_none()).count();
        let fits = taken.saturating_add(needed) <= self.settings.memory_limit;
        if fits && (!model || models < self.settings.max_models) { Ok(()) } else { Err(self.full(needed)) }
    }

    fn full(&self, needed: u64) -> ApiError {
        let human = lapis::io::atomic::human;
        let loaded = self.all_loaded();
        let taken: u64 = loaded.iter().map(|l| l.fit.weights).sum();
        let why = format!(
            "no room for another model: it needs {}, {} loaded take {} of {}, and what is idle of them is not enough; \
             unload one (DELETE /admin/models/ID), raise --memory-limit or --max-models, or take one that is packed in \
             fewer bits",
            human(needed),
            loaded.len(),
            human(taken),
            human(self.settings.memory_limit)
        );
        ApiError::later(503, 30, why).code("no_memory")
    }

    /// Makes room for so many bytes: those that nobody uses go, the one unused for longest first.
    ///
    /// # Errors
    /// There is no room, and then nothing went.
    pub(super) fn room(&self, needed: u64) -> Result<(), ApiError> {
        loop {
            self.possible(needed, false)?;
            let taken: u64 = self.all_loaded().iter().map(|l| l.fit.weights).sum();
            if taken.saturating_add(needed) <= self.settings.memory_limit {
                return Ok(());
            }
            let id = self.idlest(|_, _| true).ok_or_else(|| self.full(needed))?;
            self.drop_slot(&id);
        }
    }

    /// Makes a place for one more model, as [`Models::room`] does for bytes.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn place(&self) -> Result<(), ApiError> {
        loop {
            self.possible(0, true)?;
            let models = self.all_loaded().iter().filter(|l| l.variant.is_none()).count();
            if models < self.settings.max_models {
                return Ok(());
            }
            let id = self.idlest(|_, _| true).ok_or_else(|| self.full(0))?;
            self.drop_slot(&id);
        }
    }

    /// The model that has been idle for longest, among those that may go; `may_go` hears how long that is.
    fn idlest(&self, may_go: impl Fn(&Loaded, Duration) -> bool) -> Option<String> {
        let bases = self.bases();
        let slots = self.slots();
        let idle = slots.iter().filter_map(|(id, slot)| match slot {
            Slot::Ready { loaded, used }
                if loaded.jobs.load(Relaxed) == 0
                    && !self.settings.pins.contains(&loaded.id)
                    && !bases.contains(&loaded.serial)
                    && may_go(loaded, used.elapsed()) =>
            {
                Some((*used, id.clone()))
            }
            _ => None,
        });
        idle.min().map(|i| i.1)
    }

    /// Numbers of models that others share the arrays of.
    fn bases(&self) -> Vec<u64> {
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all = self.all_loaded().into_iter().chain(retired);
        all.filter_map(|l| Some(l.variant.as_ref()?.0.serial)).collect()
    }

    /// Lets a model go, and with it those that are it with an adapter; not if any of them works.
    pub fn unload(&self, id: &str) -> bool {
        let all = self.all_loaded();
        let on_it = |l: &&Arc<Loaded>| l.variant.as_ref().is_some_and(|v| v.0.id == id);
        let with: Vec<_> = all.iter().filter(on_it).collect();
        if with.iter().any(|l| l.jobs.load(Relaxed) > 0) {
            return false;
        }
        let gone = with.iter().all(|l| self.drop_slot(&l.key));
        let bases = self.bases();
        let mut own = all.iter().filter(|l| l.id == id);
        gone && own.all(|l| !bases.contains(&l.serial) && self.drop_slot(&l.key))
    }

    /// Models with an adapter of an old generation take no more requests, and go when theirs are over.
    pub fn retire(&self) {
        let old = |l: &Arc<Loaded>| l.variant.as_ref().is_some_and(|v| !self.adapters.is_current(&v.1));
        let moved: Vec<_> = self.all_loaded().into_iter().filter(old).collect();
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slots = self.slots();
        for loaded in moved {
            if slots.remove(&loaded.key).is_some() {
                retired.push(loaded);
            }
        }
        drop(slots);
        // One is this list, one the desk of the engine; whoever is about to use the model has one more.
        retired.retain(|loaded| {
            let over = loaded.jobs.load(Relaxed) == 0 && Arc::strong_count(loaded) <= 2;
            if over {
                self.unloads.fetch_add(1, Relaxed);
                (self.gone)(loaded.serial);
            }
            !over
        });
    }

    fn drop_slot(&self, id: &str) -> bool {
        let mut slots = self.slots();
        let idle = matches!(slots.get(id), Some(Slot::Ready { loaded, .. }) if loaded.jobs.load(Relaxed) == 0);
        if !idle {
            return false;
        }
        if let Some(Slot::Ready { loaded, .. }) = slots.remove(id) {
            self.unloads.fetch_add(1, Relaxed);
            (self.gone)(loaded.serial);
        }
        true
    }

    /// Lets models go that have been idle for too long; the start-up model stays.
    pub fn tidy(&self) {
        self.retire();
        let over = |loaded: &Loaded, idle: Duration| {
            let own = *loaded.ttl.lock().unwrap_or_else(PoisonError::into_inner);
            loaded.key != self.start() && idle >= own.unwrap_or(self.settings.model_ttl)
        };
        while let Some(id) = self.idlest(over) {
            self.drop_slot(&id);
        }
    }
}
