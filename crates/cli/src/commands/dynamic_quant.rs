//! `lapis dynamic-quant`: more bits for the layers whose rounding changes most what a model foresees.

use crate::quantizing::{Common, Made, Screen};
use crate::{Manner, model, say};
use lapis::ops::quantize::Format;
use lapis::{Dtype, Error, Result};
use lapis_lm::divergence;
use lapis_train::quant::dynamic::{Dynamic, dynamic, read_sensitivities, sensitivities, write_sensitivities};
use lapis_train::quant::{Calibration, Listener};
use serde_json::json;
use std::path::PathBuf;

/// Tokens of a window.
const WINDOW: usize = 512;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Text to look at, or rows as those of fine-tuning: .jsonl, .csv, .parquet, a directory, a data set in the hub's cache, owner/name
    /// [default: what mlx-lm has fetched, else text inside lapis]
    #[arg(long)]
    calibration_file: Option<PathBuf>,
    /// How much each layer gains, from a file that an earlier run wrote
    #[arg(long)]
    sensitivities: Option<PathBuf>,
    /// Bits a weight of the whole model
    #[arg(long, default_value_t = 5.0)]
    target_bpw: f64,
    /// Bits a weight of most layers
    #[arg(long, default_value_t = 4)]
    low_bits: usize,
    /// Their elements that share a scale
    #[arg(long, default_value_t = 64)]
    low_group_size: usize,
    /// Bits a weight of the layers that gain most
    #[arg(long, default_value_t = 5)]
    high_bits: usize,
    /// Their elements that share a scale
    #[arg(long, default_value_t = 64)]
    high_group_size: usize,
    /// Say the perplexity of the text that was looked at, before and after
    #[arg(long)]
    report_ppl: bool,
    /// Compute values inside layers again for gradients: less memory, more time
    #[arg(long)]
    grad_checkpoint: bool,
    /// The type of the sums of gradients
    #[arg(long, default_value = "float32", value_parser = ["float32", "bfloat16"])]
    accumulation_dtype: String,
}

pub(crate) fn run(a: Arguments, manner: Manner) -> Result<()> {
    let low = Format::affine(a.low_bits, a.low_group_size)?;
    let sums = if a.accumulation_dtype == "bfloat16" { Dtype::Bfloat16 } else { Dtype::Float32 };
    let how =
        Dynamic { low, high: Format::affine(a.high_bits, a.high_group_size)?, sums, recompute: a.grad_checkpoint };
    if a.low_bits > a.high_bits {
        return Err(Error::value(format!("--low-bits {} is more than --high-bits {}", a.low_bits, a.high_bits)));
    }
    if !(a.target_bpw.is_finite() && a.target_bpw > 0.0) {
        return Err(Error::value(format!("--target-bpw is {}; it is a number above 0", a.target_bpw)));
    }
    let given = a.sensitivities.as_deref().map(read_sensitivities).transpose()?;
    let job = a.common.begin("dynamic-quant", manner, Some("Qwen/Qwen3-0.6B-base"))?;
    let text = Calibration::read(a.calibration_file.as_deref(), &job.original.language)?;
    let [windows, held_out] = text.windows(WINDOW, None, a.common.seed)?;
    let state = job.state(&how.run(&job.original, &windows)?)?;
    let mut screen = Screen::default();
    let all = match given {
        Some(all) => all,
        None => {
            let Some(all) = sensitivities(&job.original, &windows, how, &state, &mut screen)? else {
                job.interrupted();
                return Ok(());
            };
            let name = model::name(job.model()).replace(['/', ':'], "_");
            let file = PathBuf::from(format!("{name}_sensitivities.json"));
            write_sensitivities(&file, &all)?;
            say::note(&format!("wrote {}; --sensitivities takes it", file.display()));
            all
        }
    };
    let (model, formats, chosen) = dynamic(&job.original, &all, a.target_bpw, how, &mut screen)?;
    screen.note(&format!("{chosen} of {} layers have {} bits", formats.len(), a.high_bits));
    if a.report_ppl {
        let n = windows.len();
        let found = divergence(job.original.model(), &*model, &windows, 1, |done| {
            screen.at("windows", done, n);
            true
        })?;
        screen.clear();
        let [before, after] = found.perplexities();
        println!("Original PPL: {before:.3}\nQuantized PPL: {after:.3}");
    }
    let settings = json!({
        "target_bpw": a.target_bpw, "low_bits": a.low_bits, "low_group_size": a.low_group_size, "high_bits": a.high_bits,
        "high_group_size": a.high_group_size, "high_layers": chosen, "layers": formats.len(), "windows": windows.len(),
        "sequence_length": WINDOW, "seed": a.common.seed,
    });
    let against = Some(("all at low bits", job.original.formats(low)?));
    let (held_out, origin) = (&held_out[..], text.origin.as_str());
    job.finish(Made { model, formats, base: low, every: false, held_out, origin, against, settings }, state)
}
