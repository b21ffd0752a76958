//! `lapis dwq`: trains the scales and biases of a packed model to foresee what the source does.

use crate::Manner;
use crate::quantizing::{Common, Made, Screen};
use lapis::ops::quantize::Format;
use lapis::{Error, Result};
use lapis_lm::Original;
use lapis_lm::fuse::Base;
use lapis_lm::original::formats_of;
use lapis_train::quant::dwq::{Dwq, Lessons, Teacher, dwq, has_targets, run_of, write_targets};
use lapis_train::quant::{Calibration, Listener};
use serde_json::json;
use std::path::PathBuf;

/// Tokens of a window of text that is held out, at most.
const WINDOW: usize = 512;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// A packed model to begin with [default: the model, packed as --bits and --group-size say]
    #[arg(long)]
    quantized_model: Option<PathBuf>,
    /// Bits a weight
    #[arg(long, default_value_t = 4)]
    bits: usize,
    /// Elements that share a scale
    #[arg(long, default_value_t = 64)]
    group_size: usize,
    /// Samples to learn from, short ones joined to windows of 512 tokens; those that there are come again until so many were seen
    #[arg(long, default_value_t = 2048)]
    num_samples: usize,
    /// Tokens of a sample at most; the rest is cut off
    #[arg(long, default_value_t = 1025)]
    max_seq_length: usize,
    /// How far a step goes, on scales and biases, all the way [default: of each layer, so far as its scales and its width allow,
    /// and less towards the end]
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Samples of a step
    #[arg(long, default_value_t = 4)]
    batch_size: usize,
    /// Text to learn from: rows as those of fine-tuning (.jsonl, .csv, .parquet, a directory, a data set in the hub's cache, owner/name),
    /// or plain text [default: what mlx-lm has fetched, else text inside lapis]
    #[arg(long, visible_alias = "calibration-file")]
    data_path: Option<PathBuf>,
    /// Compute values inside layers again for gradients: less memory, more time
    #[arg(long)]
    grad_checkpoint: bool,
    /// A directory for what the model foresees, to be used again
    #[arg(long)]
    target_dir: Option<PathBuf>,
    /// Write that directory, and stop
    #[arg(long, requires = "target_dir")]
    targets_only: bool,
}

pub(crate) fn run(a: Arguments, manner: Manner) -> Result<()> {
    let format = Format::affine(a.bits, a.group_size)?;
    if a.learning_rate.is_some_and(|rate| rate.is_nan() || rate <= 0.0) || a.max_seq_length < 2 || a.batch_size == 0 {
        return Err(Error::value("--learning-rate and --batch-size are more than 0, --max-seq-length is 2 or more"));
    }
    let how = Dwq {
        samples: a.num_samples,
        max_seq_length: a.max_seq_length,
        batch_size: a.batch_size,
        learning_rate: a.learning_rate,
        seed: a.common.seed,
        recompute: a.grad_checkpoint,
    };
    let mut screen = Screen::default();
    let mut job = a.common.begin("dwq", manner, None)?;
    // What is wrong with the smaller of the two is told first.
    let student = match &a.quantized_model {
        None => None,
        Some(path) => Some(Original::open_packed(Base::Path(&a.common.hub.find(path)?))?),
    };
    if let (Some(student), Some(path)) = (&student, &a.quantized_model) {
        if !student.packed {
            return Err(Error::value(format!("--quantized-model {}: no layer is packed", path.display())));
        }
        if student.language.vocabulary != job.original.language.vocabulary {
            return Err(Error::value(format!(
                "--quantized-model {}: another vocabulary than the model's",
                path.display()
            )));
        }
    }
    let text = Calibration::read(a.data_path.as_deref(), &job.original.language)?;
    let window = WINDOW.min(a.max_seq_length);
    let [_, held_out] = text.windows(window, Some(0), a.common.seed)?;
    let lessons = Lessons::new(&text.samples_before(window, a.max_seq_length), &how)?;

    let mut teacher = Teacher::Model(job.original.model());
    if let Some(dir) = &a.target_dir {
        if !has_targets(dir, &job.original, &lessons, &how)?
            && !write_targets(dir, &job.original, &lessons, &how, &mut screen)?
        {
            job.interrupted();
            return Ok(());
        }
        if a.targets_only {
            println!("Wrote what the model foresees to {}.", dir.display());
            return Ok(());
        }
        teacher = Teacher::Files(dir.clone());
    }
    let mut model = match &student {
        Some(student) => student.model().copied(),
        None => job.original.nearest(&job.original.formats(format)?)?,
    };
    let formats = formats_of(&mut *model);
    let run = run_of(&job.original, &*model, &lessons, &how, a.target_dir.is_some())?;
    let (state, steps) = (job.state(&run)?, lessons.steps());
    let Some(done) = dwq(&mut *model, &teacher, lessons, &how, &state, &mut screen)? else {
        job.interrupted();
        return Ok(());
    };
    screen.clear();
    if done.best >= done.first {
        screen.note("nothing was better than the beginning, which is what is written");
    }
    let settings = json!({
        "bits": a.bits, "group_size": a.group_size, "quantized_model": a.quantized_model.as_ref().map(|p| p.display().to_string()),
        "samples": a.num_samples, "steps": steps, "batch_size": a.batch_size, "max_seq_length": a.max_seq_length,
        "learning_rate": a.learning_rate, "seed": a.common.seed, "validation_before": done.first, "validation_best": done.best,
    });
    // A packed model that was given keeps its own config.
    let base = formats.values().flatten().next().copied().filter(|_| student.is_some()).unwrap_or(format);
    drop(teacher);
    if let Some(student) = student {
        job.write_as(student);
    }
    let (held_out, origin) = (&held_out[..], text.origin.as_str());
    job.finish(Made { model, formats, base, every: false, held_out, origin, against: None, settings }, state)
}
