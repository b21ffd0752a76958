//! `lapis cache-prompt`: what a model remembers of a prompt, as a file.

use crate::model::{self, AdapterArguments, KvArguments, Source};
use crate::{interrupt, say};
use lapis::{Result, memory};
use lapis_lm::prompt_cache::Layout;
use lapis_lm::template::Chat;
use lapis_lm::{Options, PromptCache};
use serde_json::{Map, json};
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    adapter: AdapterArguments,
    /// The file to write
    #[arg(long)]
    prompt_cache_file: PathBuf,
    /// The prompt; `-` reads standard input
    #[arg(long, allow_hyphen_values = true)]
    prompt: String,
    #[command(flatten)]
    kv: KvArguments,
    /// Another token that ends texts, noted in the file
    #[arg(long)]
    eos_token: Option<String>,
    /// The layout of the file: b is mlx-lm 0.32.2 and later, a what came before
    #[arg(long, default_value = "b", value_parser = ["a", "b"])]
    cache_format: String,
    /// Tokens of the prompt in a step
    #[arg(long, default_value_t = 2048, value_parser = model::positive)]
    prefill_step_size: usize,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let prompt = model::text(&a.prompt)?;
    let model = a.adapter.load(&a.source)?;
    let tokens = match model.tokenizer.template() {
        None => model.tokenizer.encode_prompt(&prompt)?,
        Some(_) => {
            let messages = json!([{"role": "user", "content": prompt}]);
            let chat = Chat { messages: &messages, continue_final_message: true, ..Chat::default() };
            model.chat_prompt(&chat, None)?
        }
    };
    interrupt::watch();
    let mut progress = say::Progress::new("prefill", "tok");
    let (began, total) = (Instant::now(), tokens.len());
    let options = Options { prefill_step: Some(a.prefill_step_size), kv: a.kv.options()?, ..Options::default() };
    let sequence = model.read(&tokens, &options, |done| {
        progress.at(done, total);
        !interrupt::seen()
    })?;
    if interrupt::seen() {
        return Ok(());
    }
    let rate = total as f64 / began.elapsed().as_secs_f64();
    say::told(&format!("Processed {total:6} tokens ({rate:6.2} tok/s)"));
    say::told(&format!("Peak memory: {:.3} GB", (memory::peak() + memory::mapped()) as f64 / 1e9));
    let mut config = Map::new();
    config.insert("trust_remote_code".into(), false.into());
    config.extend(a.eos_token.map(|token| ("eos_token".into(), token.into())));
    let notes = [
        ("model".to_string(), a.source.name()),
        ("tokenizer_config".to_string(), serde_json::Value::Object(config).to_string()),
    ];
    let layout = if a.cache_format == "a" { Layout::A } else { Layout::B };
    PromptCache { sequence, tokens, notes: notes.into_iter().collect() }.save(
        &a.prompt_cache_file,
        &*model.model,
        layout,
    )
}
