//! `lapis fit`: will a model fit, for how long a context, how fast; nothing of its weights is read.

use crate::hub::{HubArguments, Place};
use lapis::{Error, Result};
use lapis_lm::Checkpoint;
use lapis_lm::fit::{Fit, available, bandwidth};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A model: a directory, or owner/name on the hub
    #[arg(required_unless_present = "model")]
    name: Option<PathBuf>,
    /// The same as a flag
    #[arg(long)]
    model: Option<PathBuf>,
    #[command(flatten)]
    hub: HubArguments,
    /// Tokens that must fit [default: 4096, or the model's context where that is shorter]
    #[arg(long)]
    context: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Bits that `convert -q` packs to.
const WIDTHS: [u64; 6] = [8, 6, 5, 4, 3, 2];

/// `limit` is the memory to fit into, in bytes; by default what is free.
pub(crate) fn run(a: Arguments, limit: Option<u64>) -> Result<bool> {
    let model = a.name.or(a.model).unwrap_or_default();
    let place = a.hub.outline(&model)?;
    let mut checkpoint = Checkpoint::open(place.dir())?;
    let kind = checkpoint.config.get("model_type").and_then(Value::as_str).unwrap_or("?").to_string();
    let fit = Fit::of(&mut checkpoint)?;
    drop(checkpoint);
    let speed = bandwidth()?;
    let memory = limit.unwrap_or_else(available);
    let most = fit.context.unwrap_or(32768);
    let wanted = a.context.unwrap_or(4096.min(most));
    if wanted == 0 || fit.context.is_some_and(|c| wanted > c) {
        return Err(Error::value(format!("--context is {wanted}; the model was made for 1 to {most} tokens")));
    }
    let fits = fit.needs(wanted) <= memory;
    let longest = fit.longest(memory).unwrap_or(0);
    let rates: Vec<(usize, f64)> = [1024, longest.min(most)]
        .into_iter()
        .filter(|&n| n <= most && n > 0)
        .map(|n| (n, fit.rate(speed, n)))
        .collect();
    // The widest that has room for the whole context, else for what is wanted.
    let smaller = WIDTHS.iter().filter(|&&bits| bits as f64 + 0.5 < fit.bits_per_weight());
    let best = |tokens: usize| smaller.clone().find(|&&bits| fit.packed(bits).needs(tokens) <= memory).copied();
    let best = if longest == most { None } else { best(most).or_else(|| best(wanted)) };
    if a.json {
        println!(
            "{}",
            json!({
                "schema": 1, "model": model, "model_type": kind, "fits": fits, "context": wanted,
                "parameters": fit.parameters, "bits_per_weight": fit.bits_per_weight(), "weight_bytes": fit.weights,
                "bytes_per_1000_tokens": per_thousand(&fit, most), "needs_bytes": fit.needs(wanted),
                "available_bytes": memory, "model_context": fit.context, "longest_context": longest,
                "bandwidth": speed, "read_bytes_per_token": fit.reads,
                "tokens_per_second": rates.iter().map(|(n, r)| json!({"context": n, "rate": r})).collect::<Vec<_>>(),
                "quantize_to_bits": best, "here": matches!(place, Place::Here(_)),
            })
        );
        return Ok(fits);
    }
    let (millions, bits) = (fit.parameters as f64 / 1e6, fit.bits_per_weight());
    println!("model      {} ({kind}, {millions:.1} million parameters, {bits:.2} bits each)", model.display());
    println!("weights    {}", gigabytes(fit.weights));
    let (each, all) = (gigabytes(per_thousand(&fit, most)), gigabytes(fit.remembered(most)));
    println!("context    {each} for 1000 tokens, {all} for all {most}");
    println!("here       {} free, {:.1} GB/s measured", gigabytes(memory), speed / 1e9);
    match longest {
        0 => println!("fits       not even without a context: {} are needed", gigabytes(fit.needs(1))),
        n => println!("fits       {n} of {most} tokens ({} for {wanted})", gigabytes(fit.needs(wanted))),
    }
    if longest > 0 {
        let rates: Vec<String> = rates.iter().map(|(n, r)| format!("{r:.1} at {n}")).collect();
        println!("decode     about {} tokens, in tokens a second", rates.join(", "));
    }
    if let Some(bits) = best {
        let packed = fit.packed(bits);
        let (size, n) = (gigabytes(packed.weights), packed.longest(memory).unwrap_or(0));
        println!(
            "packed     in {bits} bits it has {size} of weights, and {n} tokens fit: lapis convert -q --q-bits {bits}"
        );
    }
    if !fits {
        println!("does not fit: {} for {wanted} tokens, {} free", gigabytes(fit.needs(wanted)), gigabytes(memory));
    }
    Ok(fits)
}

/// Bytes that a thousand tokens of context take before windows fill.
fn per_thousand(fit: &Fit, most: usize) -> u64 {
    if most < 4096 {
        return fit.remembered(most) * 1000 / most.max(1) as u64;
    }
    fit.remembered(4096).saturating_sub(fit.remembered(2048)) * 1000 / 2048
}

fn gigabytes(bytes: u64) -> String {
    match bytes as f64 / 1e9 {
        n if n >= 10.0 => format!("{n:.1} GB"),
        n if n >= 0.1 => format!("{n:.2} GB"),
        n => format!("{:.1} MB", n * 1e3),
    }
}
