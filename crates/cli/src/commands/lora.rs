//! `lapis lora`: fine-tuning.

use crate::model::{AdapterArguments, Source};
use crate::{Manner, interrupt, ranks, say};
use lapis::{Error, Result};
use lapis_train::{Batch, Data, Observer, Record, Settings, Trained, Trainer, Written, run_against as train};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Train
    #[arg(long)]
    train: bool,
    /// Say how well the test set is foreseen, after training or by an adapter that is there
    #[arg(long)]
    test: bool,
    /// A directory with train.jsonl, valid.jsonl, test.jsonl (or .csv), or a data set in the hub's cache, owner/name: rows with "text",
    /// "messages", or "prompt" and "completion"; of preferences "prompt", "chosen" and "rejected"
    #[arg(long)]
    data: Option<String>,
    /// What is trained: changes of low rank, the same with lengths of rows, or the weights themselves [default: lora]
    #[arg(long, value_parser = ["lora", "dora", "full"])]
    fine_tune_type: Option<String>,
    /// adam, adamw, muon, sgd or adafactor [default: adam]
    #[arg(long)]
    optimizer: Option<String>,
    /// Learn texts, or which of two answers is preferred, by DPO or ORPO: lines with "chosen" and "rejected" [default: sft]
    #[arg(long, value_parser = ["sft", "dpo", "orpo"])]
    train_mode: Option<String>,
    /// Of preferences: how far an answer may go from what it was (DPO), the weight of odds (ORPO) [default: 0.1]
    #[arg(long)]
    beta: Option<f64>,
    /// How DPO weighs what a preferred answer is ahead [default: sigmoid]
    #[arg(long, value_parser = ["sigmoid", "hinge", "ipo", "dpop"], alias = "dpo-cpo-loss-type")]
    dpo_loss_type: Option<String>,
    /// Of dpop: the price of a preferred answer that becomes less likely [default: 50]
    #[arg(long)]
    delta: Option<f64>,
    /// Of DPO: the model that answers are held against, a directory or owner/name [default: that of --model]
    #[arg(long)]
    reference_model_path: Option<String>,
    /// Learn completions (of chats the last message) and not prompts
    #[arg(long)]
    mask_prompt: bool,
    /// Train the last so many blocks; -1 trains all [default: 16]
    #[arg(long, allow_negative_numbers = true)]
    num_layers: Option<i64>,
    /// Samples in a step [default: 4]
    #[arg(long)]
    batch_size: Option<u64>,
    /// Steps [default: 1000]
    #[arg(long)]
    iters: Option<u64>,
    /// Batches of a validation; -1 takes all, 0 validates nothing [default: 25]
    #[arg(long, allow_negative_numbers = true)]
    val_batches: Option<i64>,
    /// The learning rate [default: 1e-5]
    #[arg(long, value_parser = rate)]
    learning_rate: Option<f64>,
    /// Steps in which the learning rate rises to its value [default: 0]
    #[arg(long)]
    warmup: Option<u64>,
    /// Steps between two lines about the loss [default: 10]
    #[arg(long)]
    steps_per_report: Option<u64>,
    /// Steps between two validations [default: 200]
    #[arg(long)]
    steps_per_eval: Option<u64>,
    /// Batches whose gradients make one update [default: 1]
    #[arg(long)]
    grad_accumulation_steps: Option<u64>,
    /// Begin with the weights of an adapter file
    #[arg(long)]
    resume_adapter_file: Option<String>,
    /// Go on with the run whose state is in the directory of the adapter, as if it had not been interrupted
    #[arg(long)]
    resume: bool,
    /// The directory of the adapter, of checkpoints and of the report [default: adapters]
    #[arg(long)]
    adapter_path: Option<String>,
    /// Steps between two checkpoints [default: 100]
    #[arg(long)]
    save_every: Option<u64>,
    /// Keep the last so many numbered adapters [default: all]
    #[arg(long)]
    keep_checkpoints: Option<u64>,
    /// Batches of the test; -1 takes all [default: 500]
    #[arg(long, allow_negative_numbers = true)]
    test_batches: Option<i64>,
    /// Tokens of a sample at most; the rest is cut off [default: 2048]
    #[arg(long)]
    max_seq_length: Option<u64>,
    /// Settings in a YAML file: the flags, with _ for -, and lora_parameters, optimizer_config, lr_schedule
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// Compute values inside layers again for gradients: less memory, more time
    #[arg(long)]
    grad_checkpoint: bool,
    /// Give memory back between steps when more than this is kept for later, such as 2GB
    #[arg(long, value_parser = crate::model::size)]
    clear_cache_threshold: Option<u64>,
    /// Who hears of the run beside the files, with commas between them: tensorboard (event files); wandb, swanlab, trackio (by their
    /// Python packages)
    #[arg(long)]
    report_to: Option<String>,
    /// What the report calls the run
    #[arg(long)]
    project_name: Option<String>,
    /// The seed of what is random [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Stop after so many validations without a better one, and keep the best
    #[arg(long)]
    patience: Option<u64>,
    /// What a loss that is no number does [default: stop]
    #[arg(long, value_parser = ["stop", "skip"])]
    on_nan: Option<String>,
    /// What becomes of samples that are longer than --max-seq-length [default: cut]
    #[arg(long, value_parser = ["cut", "skip", "error"])]
    on_long: Option<String>,
    /// Questions, one a line, that the model answers at each validation and in the report
    #[arg(long)]
    eval_prompts: Option<String>,
    /// Count one token of padding in rows that are shorter than their batch, as mlx-lm does
    #[arg(long)]
    exact_reference_loss: bool,
    /// Read model and data, take two steps of which nothing is kept, say what training takes, and stop
    #[arg(long)]
    dry_run: bool,
    /// Print JSON: the lines of metrics.jsonl
    #[arg(long)]
    json: bool,
}

/// A learning rate.
fn rate(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0);
    number.ok_or_else(|| "it is a number from 0 on".into())
}

/// The settings of the YAML file, then of the flags.
fn settings(a: &Arguments, manner: Manner) -> Result<Settings> {
    let mut s = Settings::default();
    if manner == Manner::Mlx {
        s.model = Some("Qwen/Qwen3-0.6b".into());
        s.data = Some("mlx-community/WikiSQL".into());
    }
    if let Some(file) = &a.config {
        s.read(file, &mut say::note)?;
    }
    let truth = |on: bool| on.then_some(Value::Bool(true));
    let model = a.source.model.as_ref().map(|m| json!(m.display().to_string()));
    let flags: [(&str, Option<Value>); 37] = [
        ("model", model),
        ("train", truth(a.train)),
        ("test", truth(a.test)),
        ("data", a.data.clone().map(Value::from)),
        ("fine_tune_type", a.fine_tune_type.clone().map(Value::from)),
        ("optimizer", a.optimizer.clone().map(Value::from)),
        ("train_mode", a.train_mode.clone().map(Value::from)),
        ("beta", a.beta.map(Value::from)),
        ("dpo_loss_type", a.dpo_loss_type.clone().map(Value::from)),
        ("delta", a.delta.map(Value::from)),
        ("reference_model_path", a.reference_model_path.clone().map(Value::from)),
        ("mask_prompt", truth(a.mask_prompt)),
        ("num_layers", a.num_layers.map(Value::from)),
        ("batch_size", a.batch_size.map(Value::from)),
        ("iters", a.iters.map(Value::from)),
        ("val_batches", a.val_batches.map(Value::from)),
        ("learning_rate", a.learning_rate.map(Value::from)),
        ("warmup", a.warmup.map(Value::from)),
        ("steps_per_report", a.steps_per_report.map(Value::from)),
        ("steps_per_eval", a.steps_per_eval.map(Value::from)),
        ("grad_accumulation_steps", a.grad_accumulation_steps.map(Value::from)),
        ("resume_adapter_file", a.resume_adapter_file.clone().map(Value::from)),
        ("adapter_path", a.adapter_path.clone().map(Value::from)),
        ("save_every", a.save_every.map(Value::from)),
        ("keep_checkpoints", a.keep_checkpoints.map(Value::from)),
        ("test_batches", a.test_batches.map(Value::from)),
        ("max_seq_length", a.max_seq_length.map(Value::from)),
        ("grad_checkpoint", truth(a.grad_checkpoint)),
        ("clear_cache_threshold", a.clear_cache_threshold.map(Value::from)),
        ("report_to", a.report_to.clone().map(Value::from)),
        ("project_name", a.project_name.clone().map(Value::from)),
        ("seed", a.seed.map(Value::from)),
        ("patience", a.patience.map(Value::from)),
        ("on_nan", a.on_nan.clone().map(Value::from)),
        ("on_long", a.on_long.clone().map(Value::from)),
        ("eval_prompts", a.eval_prompts.clone().map(Value::from)),
        ("exact_reference_loss", truth(a.exact_reference_loss)),
    ];
    for (key, value) in flags {
        value.map_or(Ok(()), |value| s.set(key, value))?;
    }
    Ok(s)
}

pub(crate) fn run(mut a: Arguments, manner: Manner) -> Result<()> {
    let group = ranks::join()?;
    let s = settings(&a, manner)?;
    if s.trust_remote_code {
        say::note("--trust-remote-code has no effect: code in a model repository is never run");
    }
    s.check()?;
    let data = match (&s.data, &s.hf_dataset) {
        (Some(data), _) => data.as_str(),
        (None, Some(_)) => "",
        (None, None) => {
            return Err(Error::value(
                "--data is missing: name a directory with train.jsonl and valid.jsonl, lines such as {\"text\": \"...\"}",
            ));
        }
    };
    a.source.model = s.model.as_ref().map(PathBuf::from);
    let model = match s.train || s.adapter_path.is_empty() {
        true => a.source.load()?,
        false => AdapterArguments::of(&s.adapter_path).load(&a.source)?,
    };
    let reference = s.reference_model_path.as_ref().filter(|_| s.train);
    let reference = reference.map(|path| crate::model::load(Some(Path::new(path)), &a.source.hub)).transpose()?;
    let data = Data::read(data, &model, &s, &mut |text| say::note(&format!("note: {text}")))?;
    let begins = summary(&data, &s);
    if a.dry_run {
        ranks::alone(group, "--dry-run")?;
        return dry(&model, data, &s);
    }
    interrupt::watch();
    let mut screen = Screen::new(a.json, s.iters, begins);
    let outcome = train(&model, reference.as_ref(), data, &s, a.resume, &mut screen)?;
    screen.clear();
    if interrupt::seen() && s.train && outcome.steps < s.iters {
        say::note(&format!("interrupted after step {}; --resume goes on from there", outcome.steps));
    }
    match outcome.test_loss.filter(|_| group.rank() == 0) {
        Some(loss) if a.json => println!("{}", json!({"test_loss": loss, "test_perplexity": loss.exp()})),
        Some(loss) => println!("Test loss {loss:.3}, Test ppl {:.3}.", loss.exp()),
        None => {}
    }
    if let Some(report) = outcome.report.filter(|_| !a.json) {
        say::told(&format!("Report: {}", report.display()));
    }
    Ok(())
}

fn count(samples: &[lapis_train::Sample]) -> String {
    let tokens: usize = samples.iter().flat_map(|s| s.rows()).map(|s| s.tokens.len()).sum();
    format!("{} samples, {tokens} tokens", samples.len())
}

/// What is to be learned, in a line.
fn summary(data: &Data, s: &Settings) -> String {
    let mut text =
        format!("Training data: {}, seen once in {} steps", count(&data.train), data.train.len() / s.batch_size);
    if !data.valid.is_empty() {
        text += &format!("; to validate: {}", count(&data.valid));
    }
    text
}

/// Says what would be trained.
fn dry(model: &lapis_lm::LanguageModel, data: Data, s: &Settings) -> Result<()> {
    println!("train: {}", count(&data.train));
    println!("valid: {}", count(&data.valid));
    println!("test: {}", count(&data.test));
    if s.train {
        let samples = data.train.len();
        let mut longest: Vec<_> = data.train.iter().collect();
        longest.sort_by_key(|sample| std::cmp::Reverse(sample.tokens.len()));
        longest.truncate(s.batch_size);
        let longest = Batch::new(&longest, s.max_seq_length, s.exact_reference_loss);
        let mut trainer = Trainer::new(&*model.model, data.train, s)?;
        println!("{}", trained(&trainer.trained()));
        println!("steps: {} see every sample once, {} are asked for", samples.div_ceil(s.batch_size), s.iters);
        // The largest step there can be says what memory all of them need; the next one, without what only the first does, how
        // long they take.
        trainer.step(&longest)?;
        let batch = trainer.next_batch();
        let began = Instant::now();
        trainer.step(&batch)?;
        let (time, bytes) = (began.elapsed().as_secs_f64(), lapis::memory::peak() + lapis::memory::mapped());
        println!("memory: {:.3} GB in a step of the longest samples", bytes as f64 / 1e9);
        println!("time: {time:.3} s a step, {} in all", clock(time * s.iters as f64));
    }
    Ok(())
}

/// Seconds for people.
fn clock(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m}:{s:02}"),
        (h, m, s) => format!("{h}:{m:02}:{s:02}"),
    }
}

fn trained(t: &Trained) -> String {
    let (million, of) = (t.numbers as f64 / 1e6, t.of as f64 / 1e6);
    let blocks = match t.blocks == t.depth {
        true => format!("all {} blocks", t.depth),
        false => format!("{} of {} blocks", t.blocks, t.depth),
    };
    format!("Trainable parameters: {:.3}% ({million:.3}M/{of:.3}M), in {blocks}", 100.0 * million / of)
}

/// The last of the losses as blocks of that height.
fn spark(losses: &[f32]) -> String {
    let last = &losses[losses.len().saturating_sub(16)..];
    let (low, high) = last.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &x| (l.min(x), h.max(x)));
    let height = |x: f32| if high > low { ((x - low) / (high - low) * 7.0).round() as usize } else { 0 };
    last.iter().map(|&x| ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][height(x).min(7)]).collect()
}

/// What people see of a run.
struct Screen {
    json: bool,
    live: bool,
    iters: usize,
    began: Instant,
    /// Steps that were done before.
    first: usize,
    shown: bool,
    /// What is told before the first step.
    begins: String,
    losses: Vec<f32>,
}

impl Screen {
    fn new(json: bool, iters: usize, begins: String) -> Screen {
        let live = std::io::stderr().is_terminal() && !json && !say::is_quiet();
        Screen { json, live, iters, began: Instant::now(), first: 0, shown: false, begins, losses: Vec::new() }
    }

    fn line(&mut self, text: &str) {
        if self.live {
            eprint!("\r\x1b[K{text}");
            drop(std::io::stderr().flush());
            self.shown = true;
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprint!("\r\x1b[K");
        }
    }

    /// The time that is left, after so many steps.
    fn left(&self, done: usize) -> String {
        let steps = done.saturating_sub(self.first).max(1) as f64;
        clock(self.began.elapsed().as_secs_f64() / steps * self.iters.saturating_sub(done) as f64)
    }
}

impl Observer for Screen {
    fn note(&mut self, text: &str) {
        self.clear();
        say::note(&format!("note: {text}"));
    }

    fn begin(&mut self, t: &Trained, done: usize) {
        (self.began, self.first) = (Instant::now(), done);
        if !self.json {
            say::told(&self.begins);
            say::told(&trained(t));
            let from = if done > 0 { format!(", from step {done} on") } else { String::new() };
            say::told(&format!("Starting training..., iters: {}{from}", self.iters));
        }
    }

    fn step(&mut self, done: usize, of: usize) {
        let loss =
            self.losses.last().map_or(String::new(), |loss| format!(" · loss {loss:.3} {}", spark(&self.losses)));
        self.line(&format!("step {done}/{of} · {} % · {} left{loss}", 100 * done / of.max(1), self.left(done)));
    }

    fn validating(&mut self, done: usize, of: usize) {
        self.line(&format!("validation {done}/{of}"));
    }

    fn record(&mut self, r: &Record) {
        self.clear();
        if self.json {
            println!("{}", serde_json::to_string(r).unwrap_or_default());
            return;
        }
        if let (Some(loss), Some(time)) = (r.val_loss, r.val_time) {
            let perplexity = r.val_perplexity.map_or(String::new(), |x| format!("Val ppl {x:.3}, "));
            say::told(&format!("Iter {}: Val loss {loss:.3}, {perplexity}Val took {time:.3}s", r.iteration));
        }
        for Written { prompt, text } in &r.texts {
            say::told(&say::safe(&format!("  {} -> {}", prompt.trim(), text.trim().replace('\n', " "))));
        }
        if let Some(loss) = r.train_loss {
            self.losses.push(loss);
            let reward = match (r.reward_margin, r.reward_accuracy) {
                (Some(margin), Some(accuracy)) => format!("Margin {margin:.3}, Accuracy {accuracy:.3}, "),
                _ => String::new(),
            };
            say::told(&format!(
                "Iter {}: Train loss {loss:.3}, {reward}Learning Rate {:.3e}, It/sec {:.3}, Tokens/sec {:.3}, Trained Tokens {}, Peak mem {:.3} \
                 GB, {} left",
                r.iteration,
                r.learning_rate.unwrap_or(0.0),
                r.iterations_per_second.unwrap_or(0.0),
                r.tokens_per_second.unwrap_or(0.0),
                r.trained_tokens.unwrap_or(0),
                r.peak_memory.unwrap_or(0.0),
                self.left(r.iteration)
            ));
        }
    }

    fn saved(&mut self, file: &Path) {
        self.clear();
        if !self.json {
            say::told(&format!("Saved adapter weights to {}.", file.display()));
        }
    }

    fn stop(&mut self) -> bool {
        interrupt::seen()
    }
}
