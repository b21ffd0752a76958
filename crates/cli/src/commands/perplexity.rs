//! `lapis perplexity`: how well a model foresees a text.

use super::kld;
use crate::model::{self, AdapterArguments, Source};
use crate::{interrupt, say};
use lapis::{Error, Result};
use lapis_lm::LanguageModel;
use lapis_lm::twister::Twister;
use lapis_train::quant::Calibration;
use serde_json::json;
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
}

/// The text to measure on.
#[derive(clap::Args)]
pub(crate) struct Text {
    /// A text; rows as fine-tuning takes them: .jsonl, .csv, .parquet, a directory, or a data set in the hub's cache, owner/name [default: what mlx-lm has fetched, else a text inside lapis]
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
    /// Seed of the order in which rows of .jsonl are taken
    #[arg(long, default_value_t = 123)]
    seed: u64,
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
            Some(path) => (self.texts(path, model)?, path.display().to_string()),
            None => (vec![model.tokenizer.encode(OWN, true)?], "the text inside lapis".to_string()),
        };
        if self.data_path.is_none() {
            say::note(&format!("measured on {origin}; --data-path names another text"));
        }
        let tokens = texts.concat();
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

    /// The tokens of a text, or of rows in the order in which mlx-lm takes them.
    fn texts(&self, path: &Path, model: &LanguageModel) -> Result<Vec<Vec<u32>>> {
        let rows = Calibration::read(Some(path), model)?.samples;
        let order = Twister::new(self.seed).permutation(rows.len());
        Ok(order.into_iter().map(|i| rows[i as usize].tokens.clone()).collect())
    }
}

/// What hears how many of the windows are done, and says whether to go on; what was measured before Ctrl-C counts.
pub(crate) fn listen(what: &'static str, windows: usize) -> impl FnMut(usize) -> bool {
    let mut progress = say::Progress::new(what, "windows");
    interrupt::watch();
    move |done| {
        progress.at(done, windows);
        let goes_on = !interrupt::seen();
        if !goes_on {
            say::note(&format!("interrupted: the figures are of {done} of {windows} windows"));
        }
        goes_on
    }
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let model = a.adapter.load(&a.source)?;
    let windows = a.text.windows(&model)?;
    let found = model.perplexity(&windows, a.text.batch_size, listen("perplexity", windows.len()))?;
    let far = match &a.kld {
        Some(path) if !interrupt::seen() => {
            let other = model::load(Some(path), &a.source.hub)?;
            Some(kld::compare(&other, &model, &windows, a.text.batch_size)?)
        }
        _ => None,
    };
    if a.json {
        let mut line = json!({"schema": 1, "perplexity": found.value, "error": found.error, "tokens": found.tokens});
        if let Some(far) = &far {
            line["kld"] = kld::report(far);
        }
        if interrupt::seen() {
            line["partial"] = json!(true);
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
