//! `lapis fuse`: an adapter as a part of its model.

use crate::model::{AdapterArguments, DEMO, Source};
use crate::writing::Writing;
use crate::{Manner, say};
use lapis::Result;
use lapis_lm::adapter::peft;
use lapis_lm::card::Card;
use lapis_lm::fuse::{Base, fuse};
use lapis_lm::gguf::{Kind, export, exportable};
use lapis_lm::partial::writable;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// The directory to write, which must not exist
    #[arg(long, default_value = "fused_model")]
    save_path: PathBuf,
    /// The adapter: a directory of LoRA, DoRA or full weights, by mlx-lm or PEFT
    #[arg(long, default_value = "adapters")]
    adapter_path: PathBuf,
    /// Unpack the weights
    #[arg(long, visible_alias = "de-quantize")]
    dequantize: bool,
    /// Write a GGUF file beside the weights, too
    #[arg(long)]
    export_gguf: bool,
    /// Its name, in the directory that is written [default: ggml-model- and the type]
    #[arg(long)]
    gguf_path: Option<PathBuf>,
    /// How its matrices are written
    #[arg(long, default_value = "f16", value_parser = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"])]
    gguf_type: String,
    /// Write the adapter to this directory as PEFT does, and no model
    #[arg(long, conflicts_with_all = ["dequantize", "export_gguf", "upload_repo", "save_path"])]
    export_peft: Option<PathBuf>,
    /// The name of the base model, for the card
    #[arg(long, hide = true)]
    hf_path: Option<String>,
    /// Upload the result to this repository: owner/name
    #[arg(long)]
    upload_repo: Option<String>,
}

/// Packing that takes away more of a change than this is worth a word.
const LOSS: f64 = 0.5;

/// The adapter in PEFT's files.
fn as_peft(a: &Arguments, dir: &Path) -> Result<()> {
    writable(dir)?;
    let adapted = AdapterArguments::of(&a.adapter_path.display().to_string()).load(&a.source)?;
    let mut model = adapted.model.copied();
    let named = a.hf_path.clone().or_else(|| a.source.model.as_ref().map(|m| m.display().to_string()));
    peft::write(&mut *model, named.as_deref(), dir)?;
    say::told(&format!("Saved the adapter to {}.", dir.display()));
    Ok(())
}

pub(crate) fn run(mut a: Arguments, manner: Manner) -> Result<()> {
    let upload = match &a.upload_repo {
        Some(name) => Some(super::upload::target(&a.source.hub, name)?),
        None => None,
    };
    a.source.model = a.source.model.or_else(|| (manner == Manner::Mlx).then(|| "mlx_model".into()));
    if let Some(dir) = &a.export_peft {
        return as_peft(&a, dir);
    }
    let source = a.source.find()?;
    writable(&a.save_path)?;
    let kind = Kind::ALL.iter().find(|k| k.0 == a.gguf_type).map_or(Kind::F16, |k| k.1);
    // A model that cannot be exported is told before one is written.
    if let Some(dir) = source.as_deref().filter(|dir| a.export_gguf && dir.is_dir()) {
        exportable(dir, kind)?;
    }
    say::told("Loading pretrained model");
    let base = source.as_deref().map_or(Base::Files(DEMO), Base::Path);
    let writing = Writing::new();
    let Some(report) = fuse(base, &a.adapter_path, &a.save_path, a.dequantize, writing)? else { return Ok(()) };
    say::told(&format!("Fused {} layers; {:.3} bits per weight.", report.layers, report.bits_per_weight));
    if let Some(loss) = report.loss() {
        let worst = report.losses.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let worst = worst.map_or(String::new(), |(path, x)| format!(", most in {path}: {:.0} %", 100.0 * x));
        let percent = 100.0 * loss;
        say::told(&format!("Packing again differs from the sum by {percent:.0} % of the change (median{worst})."));
        if loss > LOSS {
            say::told(
                "Much of what was learned is lost to rounding: --dequantize keeps it; quantize with more bits afterwards.",
            );
        }
    }
    // A card is no reason to fail: the model is there.
    let (named, text) = match (&a.source.model, &source) {
        (Some(model), Some(dir)) => match a.source.hub.named(model)? {
            Some((hub, name)) => (Some(name.repo.clone()), hub.text(&name, "README.md").ok().flatten()),
            None => (None, std::fs::read_to_string(dir.join("README.md")).ok()),
        },
        _ => (None, None),
    };
    let named = a.hf_path.or(named);
    let command: Vec<String> = std::env::args().skip(1).collect();
    let command = format!("lapis {}", command.join(" "));
    let (source, base) = (text.as_deref(), named.as_deref());
    Card { source, base, command: &command, bits_per_weight: report.bits_per_weight, measured: None }
        .write(&a.save_path)?;
    say::told(&format!("Saved to {}.", a.save_path.display()));
    if a.export_gguf {
        let name = a.gguf_path.unwrap_or_else(|| format!("ggml-model-{}.gguf", a.gguf_type).into());
        let file = a.save_path.join(name);
        if let Some(otherwise) = export(&a.save_path, &file, kind)? {
            say::told(&format!("{}: {otherwise}.", file.display()));
        }
        say::told(&format!("Saved GGUF to {}.", file.display()));
    }
    match upload {
        Some((hub, name)) => super::upload::upload(&hub, &a.save_path, &name),
        None => Ok(()),
    }
}
