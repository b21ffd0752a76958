//! Training: a step is a batch of rows of the endless text. All that a step depends on is its number and the state, so
//! a run that was killed goes on from the last saved state and ends with the same bits.

use crate::Result;
use crate::model::{Config, Llama};
use crate::progress::Progress;
use crate::text::{STAGES, Stage, Text};
use crate::tokenize::Tokens;
use lapis::io::{Metadata, load_safetensors, save_safetensors};
use lapis::prelude::*;
use lapis::random;
use lapis_nn::optim::{
    AdamW, MultiOptimizer, Muon, Optimizer, Schedule, clip_grad_norm, cosine_decay, join_schedules, linear_schedule,
};
use lapis_nn::{Module, Params, value_and_grad};
use std::path::Path;

/// All numbers of a run.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// Sizes; the vocabulary is what the tokenizer learns at most.
    pub(crate) config: Config,
    /// Conversations that the tokenizer learns from.
    pub(crate) conversations: u64,
    /// Tokens a step: rows of `length`, and for the last `long` steps half as many rows of twice the length, from which
    /// the model learns the later half of its context. Attention over short rows costs half.
    pub(crate) step_tokens: usize,
    pub(crate) length: usize,
    pub(crate) steps: usize,
    pub(crate) long: usize,
    /// Highest learning rate, reached after the warm-up: of AdamW for the table and the norms, with its decay, and of
    /// Muon for the matrices of the layers.
    pub(crate) rate: f64,
    pub(crate) muon_rate: f64,
    pub(crate) warmup: u64,
    /// The rate falls along half a cosine that would end at step `horizon`, and over the last `cooldown` steps to 0.
    pub(crate) horizon: u64,
    pub(crate) cooldown: u64,
    pub(crate) decay: f64,
    /// Steps between two saved states.
    pub(crate) save_every: usize,
    pub(crate) seed: u64,
    /// Bits of the weights that are written.
    pub(crate) bits: usize,
}

impl Recipe {
    /// The model that ships.
    pub(crate) fn full() -> Recipe {
        Recipe {
            config: Config {
                vocab_size: 2048,
                hidden_size: 256,
                intermediate_size: 704,
                num_hidden_layers: 4,
                num_attention_heads: 8,
                num_key_value_heads: 4,
                max_position_embeddings: 512,
                rms_norm_eps: 1e-5,
                rope_theta: 10000.0,
            },
            conversations: 20_000,
            step_tokens: 2048,
            length: 256,
            steps: 2800,
            long: 400,
            rate: 2e-3,
            muon_rate: 0.02,
            warmup: 100,
            horizon: 3800,
            cooldown: 400,
            decay: 0.1,
            save_every: 100,
            seed: 20,
            bits: 8,
        }
    }

    /// What the result depends on, as one number: a saved state fits the recipe that made it and no other.
    fn fingerprint(&self, tokens: &Tokens) -> Result<String> {
        let data =
            [include_str!("../data/howto.json"), include_str!("../data/talk.json"), include_str!("../data/tales.json")];
        let numbers = format!("{:?}{STAGES:?}", Recipe { save_every: 0, bits: 0, ..self.clone() });
        let json = tokens.json()?;
        let bytes = [numbers.as_str(), &json].into_iter().chain(data).flat_map(str::bytes);
        // FNV-1a.
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Ok(format!("{hash:016x}"))
    }

    fn schedule(&self, rate: f64) -> Result<Schedule> {
        let rise = linear_schedule(rate / 100.0, rate, self.warmup)?;
        let fall = cosine_decay(rate, self.horizon.saturating_sub(self.warmup).max(1), rate / 50.0)?;
        let whole = join_schedules(vec![rise, fall], &[self.warmup])?;
        let (steps, cooldown) = (self.steps as u64, self.cooldown);
        let rest = join_schedules(
            vec![linear_schedule(1.0, 1.0, 1)?, linear_schedule(1.0, 0.0, cooldown)?],
            &[steps.saturating_sub(cooldown)],
        )?;
        Ok(Schedule::new(move |step| whole.at(step) * rest.at(step)))
    }
}

/// A run at some step.
pub(crate) struct Run {
    recipe: Recipe,
    pub(crate) tokens: Tokens,
    pub(crate) config: Config,
    pub(crate) model: Llama,
    optimizer: MultiOptimizer,
    /// The loss of each step done.
    pub(crate) losses: Vec<f32>,
}

impl Run {
    /// At step 0: the tokenizer is learned, the weights are random.
    pub(crate) fn new(recipe: &Recipe, text: &Text) -> Result<Run> {
        let recipe = recipe.clone();
        let tokens = Tokens::train(text, recipe.seed, recipe.config.vocab_size, recipe.conversations)?;
        let config = Config { vocab_size: tokens.size(), ..recipe.config.clone() };
        random::seed(recipe.seed);
        let model = Llama::new(&config)?;
        let adam = AdamW::new(recipe.schedule(recipe.rate)?).betas([0.9, 0.95]).weight_decay(recipe.decay);
        let muon = Muon::new(recipe.schedule(recipe.muon_rate)?).weight_decay(0.0);
        let matrices = |name: &str, a: &Array| name.contains("layers") && a.ndim() == 2;
        let optimizer =
            MultiOptimizer::new(vec![Box::new(muon), Box::new(adam.bias_correction(true))], vec![Box::new(matrices)])?;
        Ok(Run { recipe, tokens, config, model, optimizer, losses: Vec::new() })
    }

    /// Takes up the state in `dir` if there is one of this recipe; one of another recipe is put aside.
    pub(crate) fn resume(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join("state.safetensors");
        if !path.exists() {
            return Ok(());
        }
        let (arrays, metadata) = load_safetensors(path.as_path())?;
        if metadata.get("recipe") != Some(&self.recipe.fingerprint(&self.tokens)?) {
            drop(arrays);
            let aside = dir.join("state-of-another-recipe.safetensors");
            eprintln!("{} is of another recipe: it is now {}", path.display(), aside.display());
            return Ok(std::fs::rename(path, aside)?);
        }
        let (mut weights, mut moments) = (Params::new(), Params::new());
        for (name, array) in arrays {
            match name.split_once('/') {
                Some(("weights", name)) => drop(weights.insert(name.to_string(), array)),
                Some(("optimizer", name)) => drop(moments.insert(name.to_string(), array)),
                _ => self.losses = array.to_vec()?,
            }
        }
        self.model.load_params(&weights, true)?;
        self.optimizer.init(&self.model.trainable_parameters())?;
        Ok(self.optimizer.set_state(&moments)?)
    }

    /// Writes the state; the old one stays until the new one is whole.
    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        let mut all = Params::new();
        all.extend(self.model.parameters().into_iter().map(|(n, a)| (format!("weights/{n}"), a)));
        all.extend(self.optimizer.state().into_iter().map(|(n, a)| (format!("optimizer/{n}"), a)));
        all.insert("losses".into(), Array::from_slice(&self.losses, &[self.losses.len()]));
        let metadata = Metadata::from_iter([("recipe".to_string(), self.recipe.fingerprint(&self.tokens)?)]);
        Ok(save_safetensors(dir.join("state.safetensors"), &all, &metadata)?)
    }

    /// One step. An error where loss or gradients are no numbers: this run is of no use then, the saved state is.
    pub(crate) fn step(&mut self, text: &Text) -> Result<()> {
        let Recipe { step_tokens, length, steps, long, seed, .. } = self.recipe;
        let step = self.losses.len();
        let length = if step + long < steps { length } else { 2 * length };
        let batch = step_tokens / length;
        let mut rows = Vec::with_capacity(batch * (length + 1));
        for row in 0..batch {
            let place = (step * step_tokens + row) as u64;
            rows.extend(text.row(&self.tokens, seed, place, length + 1, Stage::at(step))?);
        }
        let rows = Array::from_vec(rows, &[batch, length + 1]);
        let part = |from: i64| ops::slice(&rows, &[(None, None, 1), (Some(from), Some(from + length as i64), 1)]);
        let (x, y) = (part(0)?, part(1)?);
        let (loss, grads) = value_and_grad(&self.model, |m| {
            let logits = m.forward(&x, None)?;
            ops::mean(&ops::fast::cross_entropy(&logits, &y)?, (), false)
        })?;
        let (grads, norm) = clip_grad_norm(&grads, 1.0)?;
        self.optimizer.update(&mut self.model, &grads)?;
        drop(grads);
        let (params, state) = (self.model.parameters(), self.optimizer.state());
        eval(params.values().chain(state.values()).chain([&loss, &norm]))?;
        let (loss, norm) = (loss.item::<f32>()?, norm.item::<f32>()?);
        // Gradients too: otherwise spoiled weights could be saved before their loss is seen.
        if !loss.is_finite() || !norm.is_finite() {
            return Err(format!(
                "the loss is {loss}, the gradients' norm {norm} at step {}: the last saved state is as it was",
                step + 1
            )
            .into());
        }
        self.losses.push(loss);
        Ok(())
    }

    /// Steps until the last of the recipe, saving now and then.
    pub(crate) fn finish(&mut self, text: &Text, dir: &Path) -> Result<()> {
        let Recipe { step_tokens, steps, save_every, .. } = self.recipe;
        let mut progress = Progress::new(steps, step_tokens, self.losses.len());
        while self.losses.len() < steps {
            self.step(text)?;
            let done = self.losses.len();
            progress.show(&self.losses);
            if done.is_multiple_of(save_every) || done == steps {
                self.save(dir)?;
            }
        }
        Ok(())
    }
}
