//! What a run is asked to do: the keys of mlx-lm's YAML files, which are also the flags of the command line and what
//! `adapter_config.json` holds.

use crate::services::NAMES;
use lapis::{Error, Result};
use lapis_lm::{nearest, yaml};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// All settings, with mlx-lm's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The model; none is the demo model.
    pub model: Option<String>,
    /// Train.
    pub train: bool,
    /// Say the loss of the test set.
    pub test: bool,
    /// A directory with `train.jsonl`, `valid.jsonl`, `test.jsonl` (or `.csv`), or a data set in the hub's cache.
    pub data: Option<String>,
    /// Data sets in the hub's cache in place of `data`, with splits and keys of their own: a mapping or a list of such.
    pub hf_dataset: Option<Value>,
    /// `lora`, `dora` or `full`.
    pub fine_tune_type: String,
    /// `adam`, `adamw`, `muon`, `sgd` or `adafactor`.
    pub optimizer: String,
    /// Arguments of optimizers, by their names.
    pub optimizer_config: Map<String, Value>,
    /// `sft` learns texts; `dpo` and `orpo` learn which of two answers is preferred.
    pub train_mode: String,
    /// Of preferences: how far an answer may go from what it was (DPO), the weight of odds (ORPO).
    pub beta: f64,
    /// Of DPO: `sigmoid`, `hinge`, `ipo` or `dpop`.
    pub dpo_loss_type: String,
    /// Of `dpop`: the price of a preferred answer that becomes less likely.
    pub delta: f64,
    /// Of DPO: the model that answers are held against, where it is not `model` itself.
    pub reference_model_path: Option<String>,
    /// Only completions, or the last message of a chat, are learned.
    pub mask_prompt: bool,
    /// The last so many blocks are trained; all, when 0, negative, or more than there are.
    pub num_layers: i64,
    /// Samples in a step.
    pub batch_size: usize,
    /// Steps.
    pub iters: usize,
    /// Batches of a validation; -1 takes all, 0 validates nothing.
    pub val_batches: i64,
    /// Where no schedule is given.
    pub learning_rate: f64,
    /// A schedule.
    pub lr_schedule: Option<ScheduleSettings>,
    /// The learning rate rises from 0 in so many steps, where no schedule is given.
    pub warmup: u64,
    /// Steps between two lines about the loss.
    pub steps_per_report: usize,
    /// Steps between two validations.
    pub steps_per_eval: usize,
    /// Batches whose gradients are averaged for an update.
    pub grad_accumulation_steps: usize,
    /// Weights to begin with.
    pub resume_adapter_file: Option<String>,
    /// The directory of the adapter.
    pub adapter_path: String,
    /// Steps between two saved states.
    pub save_every: usize,
    /// Batches of the test; -1 takes all.
    pub test_batches: i64,
    /// Tokens of a sample at most; the rest is cut off.
    pub max_seq_length: usize,
    /// Compute values inside layers again for gradients, in place of keeping them.
    pub grad_checkpoint: bool,
    /// Give memory back between steps when more than so many bytes are kept for later; 0 keeps all.
    pub clear_cache_threshold: u64,
    /// Who hears of the run: `tensorboard`, `wandb`, `swanlab`, `trackio`, with commas between them.
    pub report_to: Option<String>,
    /// What reports call the run.
    pub project_name: Option<String>,
    /// Of everything random.
    pub seed: u64,
    /// Accepted.
    pub trust_remote_code: bool,
    /// Of changes of low rank.
    pub lora_parameters: LoraParameters,
    /// The key of prompts in rows.
    pub prompt_feature: String,
    /// The key of completions in rows.
    pub completion_feature: String,
    /// The key of messages in rows.
    pub chat_feature: String,
    /// The key of texts in rows.
    pub text_feature: String,
    /// Stop after so many validations without a better one.
    pub patience: Option<usize>,
    /// Keep so many numbered adapter files.
    pub keep_checkpoints: Option<usize>,
    /// What a loss that is no number does: `stop` or `skip`.
    pub on_nan: String,
    /// What becomes of samples that are too long: `cut`, `skip` or `error`.
    pub on_long: String,
    /// A file of prompts, one a line, that are answered at each validation and in the report.
    pub eval_prompts: Option<String>,
    /// Count one target of padding in a row that is shorter than its batch, as mlx-lm does.
    pub exact_reference_loss: bool,
}

/// Of changes of low rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraParameters {
    /// Paths of layers inside a block, or from the top; without, all layers of the blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<String>>,
    /// Columns of the first factor.
    pub rank: usize,
    /// Probability of a zero in the input.
    pub dropout: f64,
    /// The factor of the change.
    pub scale: f64,
}

impl Default for LoraParameters {
    fn default() -> Self {
        LoraParameters { keys: None, rank: 8, dropout: 0.0, scale: 20.0 }
    }
}

/// A schedule of learning rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduleSettings {
    /// A function of `lapis_nn::optim`: `cosine_decay`, `exponential_decay`, `linear_schedule`, `step_decay`.
    pub name: String,
    /// Its arguments.
    pub arguments: Vec<f64>,
    /// Steps from `warmup_init` to the first argument.
    #[serde(default)]
    pub warmup: u64,
    /// Where the warm-up begins.
    #[serde(default)]
    pub warmup_init: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            model: None,
            train: false,
            test: false,
            data: None,
            hf_dataset: None,
            fine_tune_type: "lora".into(),
            optimizer: "adam".into(),
            optimizer_config: Map::new(),
            train_mode: "sft".into(),
            beta: 0.1,
            dpo_loss_type: "sigmoid".into(),
            delta: 50.0,
            reference_model_path: None,
            mask_prompt: false,
            num_layers: 16,
            batch_size: 4,
            iters: 1000,
            val_batches: 25,
            learning_rate: 1e-5,
            lr_schedule: None,
            warmup: 0,
            steps_per_report: 10,
            steps_per_eval: 200,
            grad_accumulation_steps: 1,
            resume_adapter_file: None,
            adapter_path: "adapters".into(),
            save_every: 100,
            test_batches: 500,
            max_seq_length: 2048,
            grad_checkpoint: false,
            clear_cache_threshold: 0,
            report_to: None,
            project_name: None,
            seed: 0,
            trust_remote_code: false,
            lora_parameters: LoraParameters::default(),
            prompt_feature: "prompt".into(),
            completion_feature: "completion".into(),
            chat_feature: "messages".into(),
            text_feature: "text".into(),
            patience: None,
            keep_checkpoints: None,
            on_nan: "stop".into(),
            on_long: "cut".into(),
            eval_prompts: None,
            exact_reference_loss: false,
        }
    }
}

/// Keys that say where and how often something is written, not what is learned: a run may be taken up with others.
const FREE: &[&str] = &[
    "model",
    "train",
    "test",
    "data",
    "hf_dataset",
    "iters",
    "steps_per_report",
    "resume_adapter_file",
    "adapter_path",
    "save_every",
    "test_batches",
    "grad_checkpoint",
    "clear_cache_threshold",
    "report_to",
    "project_name",
    "trust_remote_code",
    "patience",
    "keep_checkpoints",
    "on_nan",
    "eval_prompts",
];

impl Settings {
    /// Sets a key.
    ///
    /// # Errors
    /// A key that there is not, with those that are near; a value of another kind.
    pub fn set(&mut self, key: &str, mut value: Value) -> Result<()> {
        let mut all = self.to_map();
        if !all.contains_key(key) {
            let near = nearest(all.keys().map(String::as_str), key).join(", ");
            return Err(Error::value(format!("[lora] there is no setting {key:?}; nearest are {near}")));
        }
        if let (true, Value::String(name)) = (key == "optimizer", &mut value) {
            name.make_ascii_lowercase();
        }
        if key == "lora_parameters"
            && let Some(given) = value.as_object()
        {
            if !given.contains_key("scale") {
                let hint = match given.contains_key("alpha") {
                    true => "; alpha is not known here: write scale: alpha / rank",
                    false => "",
                };
                return Err(Error::value(format!(
                    "[lora] lora_parameters lacks scale, the factor of the change{hint}"
                )));
            }
            let known = ["keys", "rank", "dropout", "scale"];
            if let Some(odd) = given.keys().find(|k| !known.contains(&k.as_str())) {
                let known = known.join(", ");
                return Err(Error::value(format!("[lora] lora_parameters has no {odd:?}; known are {known}")));
            }
        }
        // null is as if nothing were said.
        if value.is_null() {
            return Ok(());
        }
        all.insert(key.to_string(), value);
        *self = serde_json::from_value(Value::Object(all)).map_err(|e| Error::value(format!("[lora] {key}: {e}")))?;
        Ok(())
    }

    /// Sets the keys of a YAML file. Those of mlx-lm that have no meaning here are said to `note`.
    ///
    /// # Errors
    /// A file that cannot be read or is no mapping; as [`Settings::set`].
    pub fn read(&mut self, file: &Path, note: &mut dyn FnMut(&str)) -> Result<()> {
        let shown = file.display();
        for (key, value) in yaml::read(file)? {
            if key == "config" || key == "wandb" {
                note(&format!("{shown}: {key} has no effect"));
                continue;
            }
            self.set(&key.replace('-', "_"), value).map_err(|e| Error::value(format!("{e} (in {shown})")))?;
        }
        Ok(())
    }

    /// All keys.
    pub fn to_map(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        }
    }

    /// What the weights depend on: a state goes on under settings that agree in this.
    pub(crate) fn binding(&self) -> Map<String, Value> {
        let mut all = self.to_map();
        all.retain(|key, _| !FREE.contains(&key.as_str()));
        all
    }

    /// Whether these can be carried out.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn check(&self) -> Result<()> {
        let fail = |what: String| Err(Error::value(format!("[lora] {what}")));
        if !self.train && !self.test {
            return fail("neither train nor test is asked for; give --train, --test or both".into());
        }
        for (key, value, known) in [
            ("fine_tune_type", &self.fine_tune_type, &["lora", "dora", "full"][..]),
            ("optimizer", &self.optimizer, &["adam", "adamw", "muon", "sgd", "adafactor"]),
            ("on_nan", &self.on_nan, &["stop", "skip"]),
            ("on_long", &self.on_long, &["cut", "skip", "error"]),
            ("train_mode", &self.train_mode, &["sft", "dpo", "orpo"]),
            ("dpo_loss_type", &self.dpo_loss_type, &["sigmoid", "hinge", "ipo", "dpop"]),
        ] {
            if !known.contains(&value.as_str()) {
                return fail(format!("{key} is {value:?}; known are {}", known.join(", ")));
            }
        }
        for (key, value) in [
            ("batch_size", self.batch_size),
            ("steps_per_report", self.steps_per_report),
            ("steps_per_eval", self.steps_per_eval),
            ("grad_accumulation_steps", self.grad_accumulation_steps),
            ("save_every", self.save_every),
            ("lora_parameters.rank", self.lora_parameters.rank),
        ] {
            if value == 0 {
                return fail(format!("{key} is 0; 1 is the least"));
            }
        }
        for (key, wanted, zero) in
            [("iters", self.train, self.iters == 0), ("test_batches", self.test, self.test_batches == 0)]
        {
            if wanted && zero {
                let all = if key == "iters" { "" } else { ", and -1 takes all" };
                return fail(format!("{key} is 0; 1 is the least{all}"));
            }
        }
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return fail(format!("beta is {}; it is a number above 0", self.beta));
        }
        if !(self.delta >= 0.0 && self.delta.is_finite()) {
            return fail(format!("delta is {}; it is a number from 0 on", self.delta));
        }
        if self.reference_model_path.is_some() && self.train_mode != "dpo" {
            let mode = &self.train_mode;
            return fail(format!("reference_model_path is of train_mode dpo; {mode} holds answers against no model"));
        }
        if self.train_mode == "dpo" && !self.train {
            return fail(
                "train_mode dpo holds answers against the model before training, which a test alone does not have"
                    .into(),
            );
        }
        if !(self.learning_rate >= 0.0 && self.learning_rate.is_finite()) {
            return fail(format!("learning_rate is {}; it is a number from 0 on", self.learning_rate));
        }
        for (key, value) in [("patience", self.patience), ("keep_checkpoints", self.keep_checkpoints)] {
            if value == Some(0) {
                return fail(format!("{key} is 0; 1 is the least"));
            }
        }
        if let Some(file) = &self.eval_prompts
            && let Err(e) = std::fs::File::open(file)
        {
            return Err(Error::io(format!("[lora] eval_prompts: {file}: {e}")));
        }
        if self.max_seq_length < 2 {
            return fail(format!("max_seq_length is {}; 2 is the least", self.max_seq_length));
        }
        if !(0.0..1.0).contains(&self.lora_parameters.dropout) {
            return fail(format!("lora_parameters.dropout is {}; it lies in [0, 1)", self.lora_parameters.dropout));
        }
        if let Some(odd) = self.reporters().find(|r| r != "tensorboard" && !NAMES.contains(&r.as_str())) {
            let names = NAMES.join(", ");
            return fail(format!(
                "report_to is {odd:?}; known are tensorboard, {names} (metrics.jsonl and report.html are always written)"
            ));
        }
        Ok(())
    }

    /// Whether samples are pairs of answers.
    pub(crate) fn prefers(&self) -> bool {
        self.train_mode != "sft"
    }

    /// Who hears of the run.
    pub(crate) fn reporters(&self) -> impl Iterator<Item = String> {
        let all = self.report_to.iter().flat_map(|all| all.split(','));
        all.map(|name| name.trim().to_lowercase()).filter(|name| !name.is_empty())
    }
}
