//! `lapis awq`: scales weights by what their inputs need, clips them, then packs them.

use crate::Manner;
use crate::quantizing::{Common, Made, Screen};
use lapis::ops::quantize::Format;
use lapis::{Error, Result};
use lapis_train::quant::{Awq, Calibration, awq};
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
    /// Bits a weight of layers in blocks
    #[arg(long, default_value_t = 4)]
    bits: usize,
    /// Their elements that share a scale
    #[arg(long, default_value_t = 64)]
    group_size: usize,
    /// Bits a weight of the table of tokens and the head
    #[arg(long, default_value_t = 4)]
    embed_bits: usize,
    /// Their elements that share a scale
    #[arg(long, default_value_t = 32)]
    embed_group_size: usize,
    /// Windows of the text to look at; -1 takes all
    #[arg(long, default_value_t = 128, allow_negative_numbers = true)]
    num_samples: i64,
    /// Tokens of a window
    #[arg(long, default_value_t = 512)]
    sequence_length: usize,
    /// Scales that are tried for each group of layers
    #[arg(long, default_value_t = 20)]
    n_grid: usize,
}

pub(crate) fn run(a: Arguments, manner: Manner) -> Result<()> {
    if a.n_grid == 0 {
        return Err(Error::value("--n-grid is 0; 1 is the least"));
    }
    let (format, embed) = (Format::affine(a.bits, a.group_size)?, Format::affine(a.embed_bits, a.embed_group_size)?);
    let how = Awq { format, embed, grid: a.n_grid };
    let job = a.common.begin("awq", manner, Some("mlx-community/Qwen2.5-7B-Instruct-bf16"))?;
    let text = Calibration::read(a.calibration_file.as_deref(), &job.original.language)?;
    let count = usize::try_from(a.num_samples).ok();
    let [windows, held_out] = text.windows(a.sequence_length, count, a.common.seed)?;
    let state = job.state(&how.run(&job.original, &windows)?)?;
    let Some((model, formats)) = awq(&job.original, &windows, how, &state, &mut Screen::default())? else {
        job.interrupted();
        return Ok(());
    };
    let settings = json!({
        "bits": a.bits, "group_size": a.group_size, "embed_bits": a.embed_bits, "embed_group_size": a.embed_group_size,
        "windows": windows.len(), "sequence_length": a.sequence_length, "n_grid": a.n_grid, "seed": a.common.seed,
    });
    let (held_out, origin) = (&held_out[..], text.origin.as_str());
    job.finish(Made { model, formats, base: format, every: true, held_out, origin, against: None, settings }, state)
}
