//! What the commands of learned quantization share: the model, the target, progress, the comparison, and what is written.

use crate::hub::HubArguments;
use crate::model::{self, DEMO, size};
use crate::writing::Writing;
use crate::{Manner, interrupt, say};
use lapis::ops::quantize::Format;
use lapis::{Error, Result};
use lapis_lm::card::Card;
use lapis_lm::fuse::Base;
use lapis_lm::original::Packed;
use lapis_lm::partial::vacant;
use lapis_lm::{Formats, Model, Original};
use lapis_train::quant::{Comparison, Listener, State, compare};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Common {
    /// A model: a directory, a .gguf file, or owner/name on the hub [default: the demo model inside the program]
    #[arg(short, long)]
    pub(crate) model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) hub: HubArguments,
    /// The directory to write, which must not exist
    #[arg(long, default_value = "mlx_model")]
    mlx_path: PathBuf,
    /// Bytes of a file of weights before the next one begins, such as 2GB [default: 5GiB]
    #[arg(long, value_name = "SIZE")]
    max_shard_size: Option<String>,
    /// The seed of what is random
    #[arg(long, default_value_t = 123)]
    pub(crate) seed: u64,
    /// Windows of text that was held out, on which the result is compared with the source; 0 compares nothing
    #[arg(long, default_value_t = 32)]
    report_samples: usize,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

/// A run of a method.
pub(crate) struct Job<'a> {
    common: &'a Common,
    pub(crate) method: &'static str,
    model: Option<PathBuf>,
    source: Option<PathBuf>,
    pub(crate) original: Original,
    /// Whose files are written beside the weights, where these are not the source's.
    files: Option<Original>,
    began: Instant,
}

/// What a method has made.
pub(crate) struct Made<'a> {
    pub(crate) model: Box<dyn Model>,
    pub(crate) formats: Formats,
    /// The form that the config names first, and whether it names every layer.
    pub(crate) base: Format,
    pub(crate) every: bool,
    /// Text to compare on, and where it came from.
    pub(crate) held_out: &'a [Vec<u32>],
    pub(crate) origin: &'a str,
    /// What it is compared with, beside the source, and what that is called; nothing: rounding to the nearest codes of the same
    /// formats.
    pub(crate) against: Option<(&'static str, Formats)>,
    /// For the report.
    pub(crate) settings: Value,
}

impl Common {
    /// Loads the model; `usual` is the one of mlx-lm's command.
    pub(crate) fn begin(&self, method: &'static str, manner: Manner, usual: Option<&str>) -> Result<Job<'_>> {
        vacant(&self.mlx_path)?;
        if self.mlx_path.file_name().is_none() {
            return Err(Error::value(format!("--mlx-path {} names no directory", self.mlx_path.display())));
        }
        let model = self.model.clone().or_else(|| usual.filter(|_| manner == Manner::Mlx).map(PathBuf::from));
        let source = model.as_ref().map(|m| self.hub.find(m)).transpose()?;
        let original = Original::open(source.as_deref().map_or(Base::Files(DEMO), Base::Path))?;
        original.language.warnings.iter().for_each(|line| say::warning(line));
        if original.packed {
            say::note(
                "the model is packed already: it is unpacked first, and what is compared with is the packed model",
            );
        }
        interrupt::watch();
        Ok(Job { common: self, method, model, source, original, files: None, began: Instant::now() })
    }
}

impl Job<'_> {
    /// The folder beside the target in which the run keeps what it has done.
    pub(crate) fn state(&self, run: &Value) -> Result<State> {
        let name = self.common.mlx_path.file_name().and_then(|n| n.to_str()).unwrap_or("model");
        let dir = self.common.mlx_path.with_file_name(format!("{name}.{}-state", self.method));
        let state = State::open(&dir, run)?;
        if state.resumed {
            say::note(&format!("going on with the run whose state is in {}", dir.display()));
        }
        Ok(state)
    }

    /// The model of the flag, if there was one.
    pub(crate) fn model(&self) -> Option<&Path> {
        self.model.as_deref()
    }

    /// What people hear when the run was interrupted.
    pub(crate) fn interrupted(&self) {
        say::note("interrupted; the same command goes on from there");
    }

    /// What is written has the files of another model beside its weights.
    pub(crate) fn write_as(&mut self, other: Original) {
        self.files = Some(other);
    }

    /// Compares, writes, and removes the state.
    pub(crate) fn finish(&self, made: Made<'_>, state: State) -> Result<()> {
        let held_out = &made.held_out[..made.held_out.len().min(self.common.report_samples)];
        let comparison = match held_out {
            [] => None,
            held_out => {
                let mut progress = say::Progress::new("comparison", "windows");
                let each = |done, of| progress.at(done, of);
                let (name, formats) = match &made.against {
                    Some((name, formats)) => (*name, formats),
                    None => ("round to nearest", &made.formats),
                };
                Some(compare([self.method, name], &self.original, formats, &*made.model, held_out, each)?)
            }
        };
        let mut report =
            comparison.as_ref().map_or_else(|| json!({"schema": 1, "method": self.method}), Comparison::json);
        report["model"] = json!(model::name(self.model.as_deref()));
        report["calibration"] = json!(made.origin);
        report["settings"] = made.settings;
        report["seconds"] = json!(self.began.elapsed().as_secs_f64());
        report["lapis"] = json!(env!("CARGO_PKG_VERSION"));
        let files = self.files.as_ref().unwrap_or(&self.original);
        let target = &self.common.mlx_path;
        let more = &[("quantization_report.json", format!("{report:#}\n").into_bytes())];
        let shard = self.common.max_shard_size.as_deref().map(size).transpose()?;
        let packed = Packed { base: made.base, every: made.every, more, shard, run: &state.run };
        let Some(bits_per_weight) = files.save(made.model, packed, target, &mut Writing::new())? else { return Ok(()) };
        self.card(target, bits_per_weight, comparison.as_ref())?;
        state.finish()?;
        if self.common.json {
            println!("{report}");
            return Ok(());
        }
        println!("Quantized model with {bits_per_weight:.3} bits per weight, on {}.", made.origin);
        if let Some(comparison) = comparison {
            println!("{comparison}");
        }
        println!("Saved to {}.", target.display());
        Ok(())
    }

    fn card(&self, target: &Path, bits_per_weight: f64, comparison: Option<&Comparison>) -> Result<()> {
        let (base, text) = match (&self.model, &self.source) {
            (Some(model), Some(dir)) => match self.common.hub.named(model)? {
                Some((hub, name)) => (Some(name.repo.clone()), hub.text(&name, "README.md").ok().flatten()),
                None => (None, std::fs::read_to_string(dir.join("README.md")).ok()),
            },
            _ => (None, None),
        };
        let command: Vec<String> = std::env::args().skip(1).collect();
        let command = format!("lapis {}", command.join(" "));
        let measured = comparison.map(|c| {
            let (own, source) = (&c.learned, &c.source);
            format!(
                "On {} tokens that the method did not see: perplexity {:.3} (the source: {:.3}), mean KL from the source {:.4} nats a token, \
                 the same likeliest token {:.1} % of the time.",
                c.tokens,
                own.perplexity,
                source.perplexity,
                own.kl,
                100.0 * own.agreement
            )
        });
        let (source, base, measured) = (text.as_deref(), base.as_deref(), measured.as_deref());
        Card { source, base, command: &command, bits_per_weight, measured }.write(target)
    }
}

/// A line on a terminal for each stage.
#[derive(Default)]
pub(crate) struct Screen(Option<(&'static str, say::Progress)>);

impl Screen {
    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }
}

impl Listener for Screen {
    fn note(&mut self, text: &str) {
        self.0 = None;
        say::note(&format!("note: {text}"));
    }

    fn at(&mut self, stage: &'static str, done: usize, of: usize) {
        if self.0.as_ref().is_none_or(|(name, _)| *name != stage) {
            self.0 = None;
            self.0 = Some((stage, say::Progress::new(stage, stage)));
        }
        if let Some((_, progress)) = &mut self.0 {
            progress.at(done, of);
        }
    }

    fn stop(&mut self) -> bool {
        interrupt::seen()
    }
}
