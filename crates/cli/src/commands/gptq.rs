//! `lapis gptq`: packs weights column by column, so that later columns take up the error of those before.

use crate::quantizing::{Common, Made, Screen};
use crate::{Manner, model};
use lapis::Result;
use lapis::ops::quantize::Format;
use lapis_train::quant::{Calibration, Gptq, gptq};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Text to look at, or rows as those of fine-tuning: .jsonl, .csv, .parquet, a directory, a data set in the hub's cache, owner/name
    /// [default: what mlx-lm has fetched, else text inside lapis]
    #[arg(long)]
    calibration_file: Option<PathBuf>,
    /// Bits a weight of linear layers and experts
    #[arg(long, default_value_t = 4)]
    bits: usize,
    /// Their elements that share a scale
    #[arg(long, default_value_t = 64)]
    group_size: usize,
    /// Bits a weight of what else is packed, such as the table of tokens
    #[arg(long, default_value_t = 6)]
    fallback_bits: usize,
    /// Its elements that share a scale
    #[arg(long, default_value_t = 64)]
    fallback_group_size: usize,
    /// Windows of the text to look at; -1 takes all
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_parser = model::count)]
    num_samples: i64,
    /// Tokens of a window
    #[arg(long, default_value_t = 512)]
    sequence_length: usize,
}

pub(crate) fn run(a: Arguments, manner: Manner) -> Result<()> {
    let format = Format::affine(a.bits, a.group_size)?;
    let how = Gptq { format, fallback: Format::affine(a.fallback_bits, a.fallback_group_size)? };
    let job = a.common.begin("gptq", manner, Some("Qwen/Qwen3-0.6B-base"))?;
    let text = Calibration::read(a.calibration_file.as_deref(), &job.original.language)?;
    let count = usize::try_from(a.num_samples).ok();
    let [windows, held_out] = text.windows(a.sequence_length, count, a.common.seed)?;
    let state = job.state(&how.run(&job.original, &windows)?)?;
    let Some((model, formats)) = gptq(&job.original, &windows, how, &state, &mut Screen::default())? else {
        job.interrupted();
        return Ok(());
    };
    let settings = json!({
        "bits": a.bits, "group_size": a.group_size, "fallback_bits": a.fallback_bits,
        "fallback_group_size": a.fallback_group_size, "windows": windows.len(), "sequence_length": a.sequence_length,
        "seed": a.common.seed,
    });
    let (held_out, origin) = (&held_out[..], text.origin.as_str());
    job.finish(Made { model, formats, base: format, every: false, held_out, origin, against: None, settings }, state)
}
