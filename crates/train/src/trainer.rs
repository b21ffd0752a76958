//! Steps: gradients of a batch, and what an optimizer makes of them.
//!
//! All that a step depends on is in the trainer and can be saved (`state`): weights, moments, gradients that wait for an update,
//! the order of batches and the place in it. Random draws of a step follow from the seed and its number.
//!
//! Processes of a group share each batch: losses and gradients are sums of what they add, in the order of ranks, so the weights are
//! the same bits on all of them.

use crate::batches::{Cursor, groups};
use crate::loss::loss;
use crate::optimizer::optimizer;
use crate::order::Order;
use crate::preference::{self, Scores};
use crate::prepare::set_training;
use crate::{Batch, Sample, Settings, Trained, prepare};
use lapis::distributed::{self, Group};
use lapis::transforms::value_and_grad;
use lapis::{Array, Dtype, Error, Result, eval, memory, ops, random};
use lapis_lm::Model;
use lapis_nn::optim::{Optimizer, clip_grad_norm};
use lapis_nn::{Params, sum_params};

/// What a step was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Mean loss of a token.
    pub loss: f32,
    /// Length of the gradient of all parameters together.
    pub norm: f32,
    /// Tokens that were foreseen.
    pub tokens: usize,
    /// Of pairs: by how much the preferred answers are ahead, and the part of them that are.
    pub reward: Option<(f32, f32)>,
}

impl Step {
    /// Whether loss and gradient are numbers; a step of which they are none has changed nothing.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.norm.is_finite()
    }
}

/// A model that learns. While it lives, memory is kept for reuse up to what a step needs, unless the settings say less.
pub struct Trainer {
    pub(crate) model: Box<dyn Model>,
    pub(crate) optimizer: Box<dyn Optimizer>,
    pub(crate) settings: Settings,
    pub(crate) samples: Vec<Sample>,
    groups: Vec<Vec<usize>>,
    pub(crate) cursor: Cursor,
    pub(crate) order: Order,
    /// Sums of gradients, in float32, of the batches since the last update.
    pub(crate) sums: Params,
    /// Steps done.
    pub(crate) done: usize,
    /// Tokens foreseen in them.
    pub(crate) tokens: u64,
    /// Loss and tokens of the steps since the last report.
    pub(crate) recent: Vec<(f32, u32)>,
    /// The least loss of validations.
    pub(crate) best: Option<f32>,
    /// Validations since then.
    pub(crate) worse: usize,
    /// Of the last step that was no number: the first of the gradients that were none, and how many there were.
    pub(crate) bad: Option<(String, usize)>,
    trained: Trained,
    /// Who shares the batches.
    pub(crate) group: Group,
    /// What preferences are held against: the model before training, unless it is another one.
    before: Option<Box<dyn Model>>,
    /// What memory was kept for reuse before.
    cache_limit: usize,
}

impl Drop for Trainer {
    fn drop(&mut self) {
        memory::set_cache_limit(self.cache_limit);
    }
}

impl Trainer {
    /// Of a copy of a model, at step 0.
    ///
    /// # Errors
    /// Settings that do not fit the model or the samples.
    pub fn new(model: &dyn Model, samples: Vec<Sample>, settings: &Settings) -> Result<Trainer> {
        if model.is_encoder() {
            return Err(Error::unsupported("[lora] this model gives embeddings and foresees no text"));
        }
        let before = (settings.train_mode == "dpo").then(|| model.copied());
        let group = distributed::init(false)?;
        let mut model = model.copied();
        let groups = groups(&samples, settings.batch_size, group.size(), "train")?;
        let trained = prepare(&mut *model, settings)?;
        Ok(Trainer {
            model,
            optimizer: optimizer(settings)?,
            settings: settings.clone(),
            samples,
            groups,
            cursor: Cursor::default(),
            order: Order::new(settings.seed),
            sums: Params::new(),
            done: 0,
            tokens: 0,
            recent: Vec::new(),
            best: None,
            worse: 0,
            bad: None,
            trained,
            group,
            before,
            cache_limit: memory::cache_limit(),
        })
    }

    /// Holds preferences against another model than the one before training.
    ///
    /// # Errors
    /// A way of training that holds answers against no model.
    pub fn hold_against(&mut self, model: &dyn Model) -> Result<()> {
        if self.before.is_none() {
            let mode = &self.settings.train_mode;
            return Err(Error::value(format!(
                "[lora] reference_model_path: train_mode {mode} holds answers against no model; dpo does"
            )));
        }
        self.before = Some(model.copied());
        Ok(())
    }

    /// How much is trained.
    pub fn trained(&self) -> Trained {
        self.trained
    }

    /// Steps done.
    pub fn done(&self) -> usize {
        self.done
    }

    /// The model as it is now.
    pub fn model(&self) -> &dyn Model {
        &*self.model
    }

    /// What is trained, by name.
    pub fn weights(&self) -> Params {
        self.model.module().trainable_parameters()
    }

    /// Begins with other weights; those that are not given stay.
    ///
    /// # Errors
    /// Names that are not trained, other shapes.
    pub fn set_weights(&mut self, weights: &Params) -> Result<()> {
        let own = self.weights();
        let strange: Vec<&str> = weights.keys().filter(|k| !own.contains_key(*k)).map(String::as_str).collect();
        if !strange.is_empty() {
            let (n, some) = (strange.len(), strange[..strange.len().min(4)].join(", "));
            return Err(Error::value(format!("[lora] {n} of the weights are not trained here: {some}")));
        }
        for (name, given) in weights {
            if given.shape() != own[name].shape() {
                let (given, own) = (given.shape(), own[name].shape());
                return Err(Error::value(format!("[lora] {name} has shape {given:?}; it is trained with {own:?}")));
            }
        }
        self.model.module_mut().update(weights, true)
    }

    /// The batch of the next step.
    pub fn next_batch(&mut self) -> Batch {
        let group = &self.groups[self.cursor.next(self.groups.len(), &mut self.order)];
        let samples: Vec<&Sample> = group.iter().map(|&i| &self.samples[i]).collect();
        Batch::part(&samples, self.settings.max_seq_length, self.settings.exact_reference_loss, self.group)
    }

    /// Loss and gradients of a batch, lazily; of one that is shared, those of all processes.
    ///
    /// # Errors
    /// Those of the model; ops without a derivative.
    pub fn gradients(&mut self, batch: &Batch) -> Result<(Array, Params)> {
        let ((loss, _), grads) = self.derived(batch)?;
        Ok((loss, grads))
    }

    /// Loss, how far preferred answers are ahead, and gradients.
    fn derived(&mut self, batch: &Batch) -> Result<((Array, Option<Array>), Params)> {
        let before = scores_before(self.before.as_deref(), batch, &self.settings)?;
        set_training(&mut *self.model, true);
        // Every step has draws of its own, whatever came before it.
        let place = (self.done as u64 + 1) | (self.group.rank() as u64) << 40;
        random::seed(self.settings.seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (model, s) = (&self.model, &self.settings);
        let run = value_and_grad(|weights: &Params| {
            let mut copy = model.copied();
            copy.module_mut().update(weights, true)?;
            cost(&*copy, before.as_ref(), batch, s, s.grad_checkpoint)
        });
        let ((loss, ahead), grads) = run(&self.weights())?;
        let ahead = ahead.map(|ahead| self.group.all_gather(&ahead)).transpose()?;
        Ok(((self.group.all_sum(&loss)?, ahead), sum_params(&grads, self.group)?))
    }

    /// One step. Nothing has changed where loss or gradients are no numbers.
    ///
    /// # Errors
    /// Faults of computing.
    pub fn step(&mut self, batch: &Batch) -> Result<Step> {
        let ((loss, ahead), grads) = self.derived(batch)?;
        let (_, norm) = clip_grad_norm(&grads, f64::INFINITY)?;
        eval(grads.values().chain([&loss, &norm]).chain(&ahead))?;
        let tokens = batch.of;
        let reward = ahead.map(|ahead| -> Result<_> {
            let ahead = ops::astype(&ahead, Dtype::Float32)?.to_vec::<f32>()?;
            let n = ahead.len().max(1) as f32;
            Ok((ahead.iter().sum::<f32>() / n, ahead.iter().filter(|&&x| x > 0.0).count() as f32 / n))
        });
        let reward = reward.transpose()?;
        let step = Step { loss: loss.item::<f32>()?, norm: norm.item::<f32>()?, tokens, reward };
        self.bad = if step.is_finite() { None } else { first_bad(&grads)? };
        if step.is_finite() {
            let every = self.settings.grad_accumulation_steps;
            let last = (self.done + 1).is_multiple_of(every);
            if every == 1 {
                self.update(grads)?;
            } else {
                self.add(grads)?;
                if last {
                    let own = self.weights();
                    let average = |(name, sum): (String, Array)| {
                        let dtype = own.get(&name).map_or(Dtype::Float32, Array::dtype);
                        Ok((name, ops::astype(&ops::divide(&sum, every as f32)?, dtype)?))
                    };
                    let average = std::mem::take(&mut self.sums).into_iter().map(average).collect::<Result<_>>()?;
                    drop(own);
                    self.update(average)?;
                }
            }
            self.recent.push((step.loss, tokens as u32));
            self.tokens += tokens as u64;
        }
        self.done += usize::from(step.is_finite() || self.settings.on_nan == "skip");
        // What a step frees the next one takes: pages that come from the system are cleared first, a fifth of a step's time.
        match self.settings.clear_cache_threshold as usize {
            0 if memory::cache_limit() < memory::peak() => drop(memory::set_cache_limit(memory::peak())),
            limit if limit > 0 && memory::cached() > limit => memory::clear_cache(),
            _ => {}
        }
        Ok(step)
    }

    fn add(&mut self, grads: Params) -> Result<()> {
        for (name, g) in grads {
            let g = ops::astype(&g, Dtype::Float32)?;
            let sum = match self.sums.remove(&name) {
                Some(sum) => ops::add(sum, g)?,
                None => g,
            };
            self.sums.insert(name, sum);
        }
        eval(self.sums.values())
    }

    fn update(&mut self, grads: Params) -> Result<()> {
        self.optimizer.update(self.model.module_mut(), &grads)?;
        drop(grads);
        let (weights, state) = (self.weights(), self.optimizer.state());
        eval(weights.values().chain(state.values()))
    }

    /// The learning rate of the last step.
    ///
    /// # Errors
    /// Faults of computing.
    pub fn learning_rate(&self) -> Result<f32> {
        self.optimizer.learning_rate().map_or(Ok(0.0), |rate| ops::astype(&rate, Dtype::Float32)?.item::<f32>())
    }

    /// The mean loss of a token of samples (of a pair, where pairs are learned), of which `batches` batches are taken, or all.
    ///
    /// # Errors
    /// Fewer samples than a batch; faults of computing.
    pub fn validate(
        &mut self,
        samples: &[Sample],
        batches: Option<usize>,
        each: impl FnMut(usize, usize),
    ) -> Result<f32> {
        set_training(&mut *self.model, false);
        let model = (&*self.model, self.before.as_deref());
        evaluate(model, samples, &self.settings, batches, &mut self.order, self.group, each)
    }
}

/// The first of the gradients that are no numbers, with blocks in their order, and how many there are.
fn first_bad(grads: &Params) -> Result<Option<(String, usize)>> {
    let mut bad = Vec::new();
    for (name, gradient) in grads {
        if !gradient.all_finite()? {
            bad.push(name);
        }
    }
    let numbered = |name: &String| -> Vec<(u64, String)> {
        name.split('.').map(|part| part.parse().map_or((0, part.to_string()), |n| (n, String::new()))).collect()
    };
    let first = bad.iter().min_by_key(|name| numbered(name));
    Ok(first.map(|first| (first.to_string(), bad.len())))
}

/// The scores of a batch by the model before training, where they are needed.
fn scores_before(before: Option<&dyn Model>, batch: &Batch, s: &Settings) -> Result<Option<Scores>> {
    before.map(|model| preference::reference(model, batch, s)).transpose()
}

/// The loss of a batch; of pairs, how far preferred answers are ahead, too.
fn cost(
    model: &dyn Model,
    before: Option<&Scores>,
    batch: &Batch,
    s: &Settings,
    recompute: bool,
) -> Result<(Array, Option<Array>)> {
    if !s.prefers() {
        return Ok((loss(model, batch, recompute)?, None));
    }
    let (loss, ahead) = preference::loss(model, before, batch, s, recompute)?;
    Ok((loss, Some(ahead)))
}

/// The mean loss of a token of samples (of a pair), of which `batches` batches are taken, or all; `each` hears how many are
/// done, of how many.
///
/// # Errors
/// Fewer samples than a batch; faults of computing.
pub(crate) fn evaluate(
    (model, before): (&dyn Model, Option<&dyn Model>),
    samples: &[Sample],
    s: &Settings,
    batches: Option<usize>,
    order: &mut Order,
    group: Group,
    mut each: impl FnMut(usize, usize),
) -> Result<f32> {
    let groups = groups(samples, s.batch_size, group.size(), "valid or test")?;
    let (mut sum, mut weights) = (0.0f64, 0usize);
    let pass = order.permutation(groups.len());
    let n = batches.map_or(groups.len(), |n| n.min(groups.len()));
    for (i, &place) in pass[..n].iter().enumerate() {
        let rows: Vec<&Sample> = groups[place as usize].iter().map(|&i| &samples[i]).collect();
        let batch = Batch::part(&rows, s.max_seq_length, s.exact_reference_loss, group);
        let before = scores_before(before, &batch, s)?;
        let [own, all] = if s.prefers() { [rows.len(); 2] } else { [batch.divisor, batch.of] };
        sum += f64::from(cost(model, before.as_ref(), &batch, s, false)?.0.item::<f32>()?) * own as f64;
        weights += all;
        each(i + 1, n);
    }
    let sum = group.all_sum(&Array::from_vec(vec![sum], &[]))?.item::<f64>()?;
    Ok((sum / weights.max(1) as f64) as f32)
}
