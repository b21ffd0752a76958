//! `lapis perplexity`: how well a model foresees a text.

use crate::hub::HubArguments;
use crate::model::AdapterArguments;
use crate::say;
use lapis::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A model: a directory, a .gguf file, or owner/name on the hub
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    hub: HubArguments,
    #[command(flatten)]
    adapter: AdapterArguments,
    /// A text, or .jsonl with a "text" in each line
    #[arg(long)]
    data_path: PathBuf,
    /// Windows at once
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// Tokens of a window
    #[arg(long, default_value_t = 512)]
    sequence_length: usize,
    /// Windows to take; -1 takes all
    #[arg(long, default_value_t = 256, allow_negative_numbers = true)]
    num_samples: i64,
    /// Threads to use
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Accepted; windows are taken in the order of the text
    #[arg(long, hide = true)]
    seed: Option<u64>,
    /// Accepted; code in a model repository is never run
    #[arg(long, hide = true)]
    trust_remote_code: bool,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    if let Some(n) = a.threads {
        lapis_cpu::pool::set_threads(n)?;
    }
    if a.sequence_length < 2 {
        return Err(Error::value(format!("--sequence-length is {}; 2 is the least", a.sequence_length)));
    }
    let model = a.adapter.load(Some(&a.model), &a.hub)?;
    let mut tokens = Vec::new();
    for text in texts(&a.data_path)? {
        tokens.extend(model.tokenizer.encode(&text, true)?);
    }
    let windows = tokens.chunks_exact(a.sequence_length).map(<[u32]>::to_vec);
    let windows: Vec<Vec<u32>> = windows.take(usize::try_from(a.num_samples).unwrap_or(usize::MAX)).collect();
    if windows.is_empty() {
        let (path, n, length) = (a.data_path.display(), tokens.len(), a.sequence_length);
        return Err(Error::value(format!(
            "{path} has {n} tokens, no window of {length}; give a smaller --sequence-length"
        )));
    }
    let mut progress = say::Progress::new("perplexity", "windows");
    let found = model.perplexity(&windows, a.batch_size, |done| progress.at(done, windows.len()))?;
    drop(progress);
    if a.json {
        let line = json!({"schema": 1, "perplexity": found.value, "error": found.error, "tokens": found.tokens});
        println!("{line}");
    } else {
        println!("Perplexity: {:.3} ± {:.3} ({} tokens)", found.value, found.error, found.tokens);
    }
    Ok(())
}

fn texts(path: &Path) -> Result<Vec<String>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(format!("{shown}: {e}")))?;
    if path.extension().is_none_or(|e| e != "jsonl") {
        return Ok(vec![text]);
    }
    let line = |(i, line): (usize, &str)| {
        let bad = |why: String| Error::io(format!("{shown}:{}: {why}", i + 1));
        let value: Value = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
        value["text"].as_str().map(str::to_string).ok_or_else(|| bad("no \"text\" in the object".into()))
    };
    text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()).map(line).collect()
}
