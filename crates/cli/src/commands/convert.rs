//! `lapis convert`: a model to another form.

use crate::hub::HubArguments;
use crate::model::size;
use crate::say;
use crate::writing::Writing;
use lapis::io::atomic::human;
use lapis::ops::quantize::{Format, Mode};
use lapis::{Dtype, Error, Result};
use lapis_lm::card::Card;
use lapis_lm::convert::{Options, Recipe, convert};
use lapis_lm::partial::vacant;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The model to convert: a directory, a .gguf file, or owner/name on the hub
    #[arg(long, visible_alias = "model")]
    hf_path: PathBuf,
    #[command(flatten)]
    hub: HubArguments,
    /// The directory to write, which must not exist
    #[arg(long, default_value = "mlx_model")]
    mlx_path: PathBuf,
    /// Pack the weights
    #[arg(short, long)]
    quantize: bool,
    /// Elements that share a scale [default: that of the mode, affine 64]
    #[arg(long)]
    q_group_size: Option<usize>,
    /// Bits a weight [default: that of the mode, affine 4]
    #[arg(long)]
    q_bits: Option<usize>,
    /// How to pack
    #[arg(long, default_value = "affine", value_parser = ["affine", "mxfp4", "nvfp4", "mxfp8"])]
    q_mode: String,
    /// Two widths by layer
    #[arg(long, value_parser = ["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"])]
    quant_predicate: Option<String>,
    /// The type of what is not packed [default: the config's]
    #[arg(long, value_parser = ["float16", "bfloat16", "float32"])]
    dtype: Option<String>,
    /// Unpack the weights
    #[arg(short, long, conflicts_with = "quantize")]
    dequantize: bool,
    /// Bits of the matrix that makes logits (the embedding, where the two are one)
    #[arg(long, requires = "quantize")]
    lm_head_bits: Option<usize>,
    /// Layers that are packed otherwise, a JSON file: {"model.layers.0.mlp.down_proj": {"bits": 8}, "lm_head": false}
    #[arg(long, requires = "quantize", value_name = "FILE")]
    per_layer: Option<PathBuf>,
    /// Bytes of a file of weights before the next one begins, such as 2GB [default: 5GiB]
    #[arg(long, value_name = "SIZE")]
    max_shard_size: Option<String>,
    /// Say how large the result would be and how long it would take, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Upload the result to this repository: owner/name
    #[arg(long)]
    upload_repo: Option<String>,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let format = Format::new(Mode::from_name(&a.q_mode)?, a.q_bits, a.q_group_size)?;
    let dtype = match a.dtype.as_deref() {
        Some("float16") => Some(Dtype::Float16),
        Some("bfloat16") => Some(Dtype::Bfloat16),
        Some("float32") => Some(Dtype::Float32),
        _ => None,
    };
    if !a.quantize && (a.q_bits.is_some() || a.q_group_size.is_some() || a.quant_predicate.is_some()) {
        return Err(Error::value("convert: --q-bits, --q-group-size and --quant-predicate need -q"));
    }
    let options = Options {
        quantize: a.quantize.then_some(format),
        recipe: a.quant_predicate.as_deref().map(Recipe::from_name).transpose()?,
        dequantize: a.dequantize,
        dtype,
        head_bits: a.lm_head_bits,
        per_layer: a.per_layer.as_deref().map_or(Ok(Map::new()), per_layer)?,
        shard: a.max_shard_size.as_deref().map(size).transpose()?,
        dry_run: a.dry_run,
    };
    // Before anything is fetched.
    vacant(&a.mlx_path)?;
    let upload = match &a.upload_repo {
        Some(name) => Some(super::upload::target(&a.hub, name)?),
        None => None,
    };
    let source = a.hub.find(&a.hf_path)?;
    let Some(report) = convert(&source, &a.mlx_path, &options, Writing::new())? else { return Ok(()) };
    if a.quantize && report.packed_before > 0 {
        let n = report.packed_before;
        say::warning(&format!(
            "{n} layers were packed already and stay as they are; unpack first (convert -d) to pack them anew"
        ));
    }
    if a.dry_run {
        println!("Nothing is written. {} would hold:", a.mlx_path.display());
        println!(
            "  weights    {} ({:.3} bits each, {} of them)",
            human(report.bytes),
            report.bits_per_weight,
            report.parameters
        );
        println!("  files      {}, of {} at most", report.bytes.div_ceil(report.shard.max(1)), human(report.shard));
        println!("  memory     about {} beside the mapped source", human(report.shard));
        if let Some(seconds) = report.seconds {
            println!("  time       about {seconds:.0} s to compute, and what the disk takes");
        }
        return Ok(());
    }
    // A card is no reason to fail: the model is there.
    let (base, text) = match a.hub.named(&a.hf_path)? {
        Some((hub, name)) => (Some(name.repo.clone()), hub.text(&name, "README.md").ok().flatten()),
        None => (None, std::fs::read_to_string(source.join("README.md")).ok()),
    };
    let command: Vec<String> = std::env::args().skip(1).collect();
    let command = format!("lapis {}", command.join(" "));
    let (source, base) = (text.as_deref(), base.as_deref());
    Card { source, base, command: &command, bits_per_weight: report.bits_per_weight, measured: None }
        .write(&a.mlx_path)?;
    match upload {
        Some((hub, name)) => super::upload::upload(&hub, &a.mlx_path, &name),
        None => Ok(()),
    }
}

/// The JSON object of a file.
fn per_layer(file: &Path) -> Result<Map<String, Value>> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(format!("--per-layer {shown}: {e}")))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(all)) => Ok(all),
        Ok(_) => Err(Error::value(format!("--per-layer {shown}: an object of layers is needed"))),
        Err(e) => Err(Error::value(format!("--per-layer {shown}: {e}"))),
    }
}
