//! `lapis kld`: how far what a model foresees is from what another does.

use super::perplexity::{Text, listen};
use crate::hub::HubArguments;
use crate::{interrupt, model};
use lapis::{Error, Result};
use lapis_lm::{Divergence, LanguageModel, divergence};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The model to compare with: a directory, a .gguf file, or owner/name on the hub
    #[arg(value_name = "MODEL")]
    first: PathBuf,
    /// The model that is compared, such as the same one packed
    #[arg(value_name = "QUANTIZED")]
    second: PathBuf,
    #[command(flatten)]
    hub: HubArguments,
    #[command(flatten)]
    text: Text,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let first = model::load(Some(&a.first), &a.hub)?;
    let second = model::load(Some(&a.second), &a.hub)?;
    let windows = a.text.windows(&first)?;
    let found = compare(&first, &second, &windows, a.text.batch_size)?;
    match a.json {
        true => println!("{}", report(&found)),
        false => print!("{}", table(&found)),
    }
    Ok(())
}

/// How far `second` is from `first` over windows of tokens.
pub(crate) fn compare(
    first: &LanguageModel,
    second: &LanguageModel,
    windows: &[Vec<u32>],
    batch: usize,
) -> Result<Divergence> {
    if let Some(text) = ["The 12 foxes ran, and said: “Hello!”", "fn main() { println!(\"ü\"); }"]
        .iter()
        .find(|t| first.tokenizer.encode(t, false).ok() != second.tokenizer.encode(t, false).ok())
    {
        return Err(Error::value(format!(
            "kld: the models have different tokenizers ({text:?} has other tokens): they cannot be compared token by token"
        )));
    }
    divergence(&*first.model, &*second.model, windows, batch, listen("kld", windows.len()))
}

/// The figures by name.
pub(crate) fn report(d: &Divergence) -> Value {
    let [first, second] = d.perplexities();
    let mut all = json!({
        "schema": 1, "tokens": d.tokens(), "mean_kld": d.mean(), "mean_kld_error": d.error(),
        "median_kld": d.quantile(0.5), "kld_99": d.quantile(0.99), "max_kld": d.quantile(1.0),
        "top1_agreement": d.agreement(), "perplexity": first, "perplexity_other": second,
        "perplexity_ratio": second / first,
    });
    if interrupt::seen() {
        all["partial"] = json!(true);
    }
    all
}

/// The figures for people.
pub(crate) fn table(d: &Divergence) -> String {
    let [first, second] = d.perplexities();
    format!(
        "KL divergence, in nats a token ({} tokens):\n  mean      {:.6} ± {:.6}\n  median    {:.6}\n  99 %      {:.6}\n  \
         max       {:.6}\nTop-1 agreement: {:.2} %\nPerplexity: {first:.3}, compared {second:.3} (ratio {:.4})\n",
        d.tokens(),
        d.mean(),
        d.error(),
        d.quantile(0.5),
        d.quantile(0.99),
        d.quantile(1.0),
        100.0 * d.agreement(),
        second / first
    )
}
