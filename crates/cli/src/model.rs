//! Which model a command works on, and how tokens are chosen: flags that several commands share.

use crate::hub::HubArguments;
use crate::{Manner, say};
use lapis::io::Bytes;
use lapis::ops::quantize::Format;
use lapis::{Error, Result};
use lapis_lm::template::Template;
use lapis_lm::{Adapter, Checkpoint, Drafter, Files, KvOptions, LanguageModel, Options, PromptCache, Sampling};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The demo model: it is inside the program.
pub(crate) const DEMO: Files = Files {
    name: "demo model",
    config: include_bytes!("../../../examples/demo-model/model/config.json"),
    weights: include_bytes!("../../../examples/demo-model/model/model.safetensors"),
    tokenizer: include_bytes!("../../../examples/demo-model/model/tokenizer.json"),
    tokenizer_config: include_bytes!("../../../examples/demo-model/model/tokenizer_config.json"),
};

/// Which model a command works on, and where it comes from.
#[derive(clap::Args)]
pub(crate) struct Source {
    /// A model: a directory, a .gguf file, or owner/name on the hub [default: the demo model inside the program]
    #[arg(long)]
    pub(crate) model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) hub: HubArguments,
}

impl Source {
    /// The directory of the model, fetched if need be; `None` for the demo model.
    pub(crate) fn find(&self) -> Result<Option<PathBuf>> {
        if self.model.is_none() {
            demo(&self.hub)?;
        }
        self.model.as_ref().map(|path| self.hub.find(path)).transpose()
    }

    /// The model. What is odd about it is said.
    pub(crate) fn load(&self) -> Result<LanguageModel> {
        load(self.model.as_deref(), &self.hub)
    }

    /// The files of the model, without their tokenizer.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint> {
        match self.find()? {
            None => Checkpoint::from_bytes(DEMO.name, DEMO.config, Bytes::copy(DEMO.weights)?),
            Some(dir) => Checkpoint::open(dir),
        }
    }

    /// What the model is called in files.
    pub(crate) fn name(&self) -> String {
        name(self.model.as_deref())
    }

    /// The model that a prompt cache was written for; `--model` may name it again.
    pub(crate) fn cached(self, file: &Path) -> Result<Source> {
        let notes = PromptCache::notes(file)?;
        let shown = file.display();
        let stored = notes.get("model").ok_or_else(|| Error::io(format!("{shown}: the file names no model")))?;
        let model = match &self.model {
            Some(flag) if self.name() != *stored => {
                return Err(Error::value(format!(
                    "--model is {}, but {shown} was written for {stored}; leave --model out",
                    flag.display()
                )));
            }
            _ => (stored != DEMO_NAME).then(|| stored.into()),
        };
        Ok(Source { model, ..self })
    }
}

/// What the model of a flag is called in files.
pub(crate) fn name(path: Option<&Path>) -> String {
    path.map_or(DEMO_NAME.into(), |p| p.display().to_string())
}

/// The model of a flag; without one, the demo model. What is odd about it is said.
pub(crate) fn load(path: Option<&Path>, hub: &HubArguments) -> Result<LanguageModel> {
    let model = match path {
        None => {
            demo(hub)?;
            LanguageModel::from_files(DEMO)?
        }
        Some(path) => lapis_lm::load(hub.find(path)?)?,
    };
    model.warnings.iter().for_each(|line| say::warning(line));
    Ok(model)
}

/// That the demo model is asked for as it is.
fn demo(hub: &HubArguments) -> Result<()> {
    match &hub.revision {
        None => Ok(()),
        Some(_) => Err(Error::value("--revision is for the hub; name a model there with --model owner/name")),
    }
}

/// What fine-tuning made of a model.
#[derive(clap::Args)]
pub(crate) struct AdapterArguments {
    /// An adapter on the model: a directory of LoRA, DoRA or full weights, by mlx-lm or PEFT
    #[arg(long)]
    adapter_path: Option<PathBuf>,
    /// Look for NaN and infinities in the weights first
    #[arg(long)]
    check_tensors: bool,
}

impl AdapterArguments {
    /// Of a directory.
    pub(crate) fn of(dir: &str) -> AdapterArguments {
        AdapterArguments { adapter_path: Some(dir.into()), check_tensors: false }
    }

    /// The model of a flag, with the adapter on it if there is one.
    pub(crate) fn load(&self, source: &Source) -> Result<LanguageModel> {
        // What is wrong with the smaller of the two is told first.
        let model = match self.adapter_path.as_ref().map(Adapter::open).transpose()? {
            None => source.load()?,
            Some(adapter) => source.load()?.with_adapter(&adapter)?,
        };
        let strange = if self.check_tensors { model.strange_parameters()? } else { Vec::new() };
        if strange.is_empty() {
            return Ok(model);
        }
        let (n, name) = (strange.len(), source.name());
        let shown: Vec<String> = strange.iter().take(4).map(|(k, n)| format!("{}: {n}", k.escape_debug())).collect();
        let more = if n > 4 { format!("\n  and {} more tensors", n - 4) } else { String::new() };
        Err(Error::eval(format!("{name}: NaN or infinities in {n} tensors:\n  {}{more}", shown.join("\n  "))))
    }
}

/// What the demo model is called in files.
const DEMO_NAME: &str = "lapis:demo";

/// Who guesses what comes next.
#[derive(clap::Args)]
pub(crate) struct DraftArguments {
    /// A smaller model with the same tokens, whose guesses the model checks several at a time; the text stays the same
    #[arg(long)]
    draft_model: Option<PathBuf>,
    /// Who guesses: ngram, what followed the same words before, in the prompt or the text; model:PATH, as --draft-model
    #[arg(long, value_name = "ngram|model:PATH", value_parser = guesser, conflicts_with = "draft_model")]
    draft: Option<Guesser>,
    /// Tokens guessed at a time
    #[arg(long, default_value_t = 3, value_parser = positive)]
    pub(crate) num_draft_tokens: usize,
}

/// What `--draft` names.
#[derive(Clone)]
enum Guesser {
    Lookup,
    Model(PathBuf),
}

fn guesser(text: &str) -> std::result::Result<Guesser, String> {
    match (text, text.strip_prefix("model:")) {
        ("ngram", _) => Ok(Guesser::Lookup),
        (_, Some(path)) if !path.is_empty() => Ok(Guesser::Model(path.into())),
        ("mtp", _) => {
            Err("heads that a model was trained to guess with (MTP) are left out when lapis reads a checkpoint; \
                           ngram and model:PATH guess for every model, with the same text"
                .into())
        }
        _ => Err("there are ngram and model:PATH".into()),
    }
}

impl DraftArguments {
    /// Who they name.
    pub(crate) fn drafter(&self, hub: &HubArguments) -> Result<Option<Drafter>> {
        Ok(match (&self.draft_model, &self.draft) {
            (Some(path), _) | (None, Some(Guesser::Model(path))) => Some(load(Some(path), hub)?.drafter()),
            (None, Some(Guesser::Lookup)) => Some(Drafter::Lookup),
            (None, None) => None,
        })
    }

    /// Puts them into options for `model`.
    pub(crate) fn apply(&self, model: &LanguageModel, hub: &HubArguments, options: &mut Options) -> Result<()> {
        options.draft_tokens = Some(self.num_draft_tokens);
        options.drafter = self.drafter(hub)?;
        options.drafter.as_ref().map_or(Ok(()), |d| d.check(model.vocabulary))
    }
}

/// How keys and values are remembered.
#[derive(clap::Args)]
pub(crate) struct KvArguments {
    /// Remember this many positions at most, the first 4 and the latest, in layers that look at all
    #[arg(long)]
    max_kv_size: Option<usize>,
    /// Pack what layers that look at all positions remember to so many bits: 2, 3, 4, 6 or 8
    #[arg(long)]
    kv_bits: Option<usize>,
    /// Numbers that share a scale, with --kv-bits [default: 64]
    #[arg(long)]
    kv_group_size: Option<usize>,
    /// The position from which on --kv-bits counts
    #[arg(long, default_value_t = 5000)]
    quantized_kv_start: usize,
}

impl KvArguments {
    /// As the library takes them.
    pub(crate) fn options(&self) -> Result<KvOptions> {
        let group = self.kv_group_size.unwrap_or(64);
        let format = match self.kv_bits {
            Some(bits @ (2 | 3 | 4 | 6 | 8)) => Some(Format::affine(bits, group)?),
            Some(bits) => return Err(Error::value(format!("--kv-bits is {bits}; give 2, 3, 4, 6 or 8"))),
            None => None,
        };
        let kv = KvOptions { format, start: self.quantized_kv_start, max: self.max_kv_size };
        kv.check().map(|()| kv)
    }

    /// What goes on from a file remembers as the file does, with these flags where it does not say.
    pub(crate) fn continued(&self, stored: KvOptions) -> Result<KvOptions> {
        let own = self.options()?;
        let Some(format) = stored.format else { return Ok(KvOptions { max: stored.max, ..own }) };
        let (bits, group) = (format.bits(), format.group());
        for (flag, given, stored) in [("bits", self.kv_bits, bits), ("group-size", self.kv_group_size, group)] {
            if let Some(given) = given
                && given != stored
            {
                return Err(Error::value(format!(
                    "--kv-{flag} is {given}, the prompt cache was written with {stored}"
                )));
            }
        }
        Ok(stored)
    }
}

/// How tokens are chosen.
#[derive(clap::Args)]
pub(crate) struct SamplingArguments {
    /// Randomness; 0 takes the likeliest token [default: 0]
    #[arg(long, visible_alias = "temperature", allow_negative_numbers = true)]
    pub(crate) temp: Option<f64>,
    /// Draw from the smallest set of tokens with this mass [default: 1]
    #[arg(long, allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Draw from at most this many tokens; 0 is no limit [default: 0]
    #[arg(long, allow_negative_numbers = true)]
    top_k: Option<i64>,
    /// Draw from tokens this likely beside the likeliest
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f64,
    /// Tokens that --min-p always keeps
    #[arg(long, default_value_t = 1, value_parser = positive)]
    min_tokens_to_keep: usize,
    /// How often the likeliest tokens are left out
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    xtc_probability: f64,
    /// Tokens more likely than this are those left out, but for the least of them
    #[arg(long, default_value_t = 0.1, allow_negative_numbers = true)]
    xtc_threshold: f64,
    /// The seed of the draws [default: another one each time; of mlx_lm.chat 0]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Make tokens seen lately less likely; 1 is off
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// How many tokens back penalties look
    #[arg(long, default_value_t = 20)]
    repetition_context_size: usize,
    /// Subtracted once from the logit of each token seen lately
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f64,
    /// Subtracted from the logit for each time a token was seen lately
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f64,
    /// Added to logits: a JSON object of token id to number
    #[arg(long)]
    logit_bias: Option<String>,
}

impl SamplingArguments {
    /// The settings for a model; `from_model` takes what flags do not say from its generation_config.json.
    pub(crate) fn settings(&self, model: &LanguageModel, from_model: bool) -> Result<Sampling> {
        let config = |key: &str| {
            let value = model.generation.get(key).filter(|_| from_model)?;
            let number = value.as_f64().filter(|&x| match key {
                "top_p" => (0.0..=1.0).contains(&x),
                _ => (0.0..1e9).contains(&x),
            });
            if number.is_none() {
                say::warning(&format!("generation_config.json: {key} is {value}, which is none; it is ignored"));
            }
            number
        };
        // `do_sample: false` means the likeliest token, whatever stands beside it.
        let greedy = from_model && model.generation.get("do_sample") == Some(&Value::Bool(false));
        let temperature = if greedy { None } else { config("temperature") };
        let top_k = self.top_k.or(config("top_k").map(|k| k as i64)).unwrap_or(0);
        let top_k = usize::try_from(top_k).map_err(|_| Error::value(format!("--top-k is {top_k}; 0 is no limit")))?;
        let logit_bias = match &self.logit_bias {
            None => Default::default(),
            Some(text) => serde_json::from_str(text)
                .map_err(|e| Error::value(format!("--logit-bias: {e}; an object of token id to number is needed")))?,
        };
        let mut xtc_keep: Vec<u32> = model.eos.iter().copied().collect();
        xtc_keep.extend(model.tokenizer.encode("\n", false)?);
        Ok(Sampling {
            temperature: self.temp.or(temperature).unwrap_or(0.0),
            top_p: self.top_p.or(config("top_p")).unwrap_or(1.0),
            top_k,
            min_p: self.min_p,
            min_tokens_to_keep: self.min_tokens_to_keep,
            xtc_probability: self.xtc_probability,
            xtc_threshold: self.xtc_threshold,
            xtc_keep,
            seed: self.seed.unwrap_or_else(clock_seed),
            logit_bias,
            repetition_penalty: self.repetition_penalty,
            repetition_context: self.repetition_context_size,
            presence_penalty: self.presence_penalty,
            presence_context: self.repetition_context_size,
            frequency_penalty: self.frequency_penalty,
            frequency_context: self.repetition_context_size,
        })
    }
}

/// Another seed every time.
fn clock_seed() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64)
}

/// The text of a flag; `-` is standard input.
pub(crate) fn text(flag: &str) -> Result<String> {
    if flag != "-" {
        return Ok(flag.to_string());
    }
    std::io::read_to_string(std::io::stdin()).map_err(|e| Error::io(format!("standard input: {e}")))
}

/// The template of a flag: Jinja, or a file of it.
pub(crate) fn template(flag: Option<&str>) -> Result<Option<Template>> {
    let Some(text) = flag else { return Ok(None) };
    // A template without a brace would say the same whatever is asked.
    if !text.contains('{') {
        let source = std::fs::read_to_string(text).map_err(|e| Error::io(format!("--chat-template {text}: {e}")))?;
        return Template::new(&source).map(Some);
    }
    Template::new(text).map(Some)
}

/// The JSON object of a flag.
pub(crate) fn object(flag: &str, text: Option<&str>) -> Result<Map<String, Value>> {
    match text.map(serde_json::from_str) {
        None => Ok(Map::new()),
        Some(Ok(Value::Object(object))) => Ok(object),
        Some(Ok(_)) => Err(Error::value(format!("{flag}: a JSON object is needed"))),
        Some(Err(e)) => Err(Error::value(format!("{flag}: {e}"))),
    }
}

/// Tokens to write where no flag says.
pub(crate) fn default_max_tokens(manner: Manner, mlx: usize) -> Option<usize> {
    (manner == Manner::Mlx).then_some(mlx)
}

/// A number of things, one at least.
pub(crate) fn positive(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("1 is the least".into()),
        Ok(n) => Ok(n),
        Err(e) => Err(e.to_string()),
    }
}

/// A number of things, one at least, or -1 for all.
pub(crate) fn count(text: &str) -> std::result::Result<i64, String> {
    match text.parse() {
        Ok(n @ (-1 | 1..)) => Ok(n),
        Ok(_) => Err("1 is the least, and -1 takes all".into()),
        Err(e) => Err(e.to_string()),
    }
}

/// A size: bytes, or with `M`/`MB`, `G`/`GB` (powers of ten) or `KiB`, `MiB`, `GiB`.
pub(crate) fn size(text: &str) -> Result<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = match unit.trim().to_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1048576.0,
        "gib" => 1073741824.0,
        _ => f64::NAN,
    };
    match number.parse::<f64>().map(|n| n * unit) {
        Ok(n) if n.is_finite() => Ok(n as u64),
        _ => Err(Error::value(format!("{text:?} is no size; 8GB, 500MB or 7.5GiB are"))),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes() {
        let good = [("12", 12), ("1.5GB", 1_500_000_000), ("2 MiB", 2 << 20), ("3k", 3000)];
        good.iter().for_each(|(text, bytes)| assert_eq!(size(text).unwrap(), *bytes, "{text}"));
        for text in ["2 miles", "x", "", "1e999"] {
            assert!(size(text).unwrap_err().message().contains("is no size"), "{text}");
        }
    }
}
