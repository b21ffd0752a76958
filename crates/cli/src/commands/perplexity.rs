//! `lapis perplexity`: how well a model foresees a text.

use super::kld;
use crate::model::{self, AdapterArguments, Source};
use crate::say;
use lapis::{Error, Result};
use lapis_lm::LanguageModel;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    adapter: AdapterArguments,
    #[command(flatten)]
    text: Text,
    /// Say how far the model is from this one, too
    #[arg(long, value_name = "MODEL")]
    kld: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Accepted; windows are taken in the order of the text
    #[arg(long, hide = true)]
    seed: Option<u64>,
}

/// The text to measure on.
#[derive(clap::Args)]
pub(crate) struct Text {
    /// A text, or .jsonl with a "text" in each line [default: what mlx-lm has fetched, else a text inside lapis]
    #[arg(long)]
    data_path: Option<PathBuf>,
    /// Windows at once
    #[arg(long, default_value_t = 8, value_parser = model::positive)]
    pub(crate) batch_size: usize,
    /// Tokens of a window
    #[arg(long, default_value_t = 512)]
    sequence_length: usize,
    /// Windows to take; -1 takes all
    #[arg(long, default_value_t = 256, allow_negative_numbers = true, value_parser = model::count)]
    num_samples: i64,
}

/// What is measured on where no text is named: how lapis is built.
const OWN: &str = include_str!("../../../../ARCHITECTURE.md");

impl Text {
    /// Its tokens, cut into windows.
    pub(crate) fn windows(&self, model: &LanguageModel) -> Result<Vec<Vec<u32>>> {
        if self.sequence_length < 2 {
            return Err(Error::value(format!("--sequence-length is {}; 2 is the least", self.sequence_length)));
        }
        let fetched = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache/mlx-lm/calibration_v5.txt"));
        let path = self.data_path.clone().or(fetched.filter(|f| f.is_file()));
        let (texts, origin) = match &path {
            Some(path) => (texts(path)?, path.display().to_string()),
            None => (vec![OWN.to_string()], "the text inside lapis".to_string()),
        };
        if self.data_path.is_none() {
            say::note(&format!("measured on {origin}; --data-path names another text"));
        }
        let mut tokens = Vec::new();
        for text in texts {
            tokens.extend(model.tokenizer.encode(&text, true)?);
        }
        let windows = tokens.chunks_exact(self.sequence_length).map(<[u32]>::to_vec);
        let windows: Vec<Vec<u32>> = windows.take(usize::try_from(self.num_samples).unwrap_or(usize::MAX)).collect();
        if windows.is_empty() {
            let (n, length) = (tokens.len(), self.sequence_length);
            return Err(Error::value(format!(
                "{origin} has {n} tokens, no window of {length}; give a smaller --sequence-length"
            )));
        }
        Ok(windows)
    }
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let model = a.adapter.load(&a.source)?;
    let windows = a.text.windows(&model)?;
    let mut progress = say::Progress::new("perplexity", "windows");
    let found = model.perplexity(&windows, a.text.batch_size, |done| progress.at(done, windows.len()))?;
    drop(progress);
    let far = match &a.kld {
        None => None,
        Some(path) => {
            let other = model::load(Some(path), &a.source.hub)?;
            Some(kld::compare(&other, &model, &windows, a.text.batch_size)?)
        }
    };
    if a.json {
        let mut line = json!({"schema": 1, "perplexity": found.value, "error": found.error, "tokens": found.tokens});
        if let Some(far) = &far {
            line["kld"] = kld::report(far);
        }
        println!("{line}");
        return Ok(());
    }
    println!("Perplexity: {:.3} ± {:.3} ({} tokens)", found.value, found.error, found.tokens);
    if let Some(far) = &far {
        print!("{}", kld::table(far));
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
