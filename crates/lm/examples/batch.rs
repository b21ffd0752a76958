//! Many prompts at once, each with its own settings: `cargo run --release -p lapis-lm --example batch -- MODEL`.
//!
//! The engine takes a row of every text in each step, so that weights are read once for all. What a request gets does not
//! depend on its company: the same bits, the same text.

use lapis_lm::template::Chat;
use lapis_lm::{Event, Options, Prefixes, Request, Sampling, Sequence};
use serde_json::json;
use std::collections::BTreeMap;

fn main() -> lapis::Result<()> {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model");
    let model = lapis_lm::load(std::env::args().nth(1).as_deref().unwrap_or(demo))?;
    let asked = ["Tell me a story about a fox", "Tell me a story about a bear", "How do I convert a model?"];
    let prompt = |text: &&str| {
        let messages = json!([{"role": "user", "content": text}]);
        model.chat_prompt(&Chat { messages: &messages, add_generation_prompt: true, ..Chat::default() }, None)
    };
    let prompts = asked.iter().map(prompt).collect::<lapis::Result<Vec<_>>>()?;

    // All with the same settings: one call.
    for text in model.batch_generate(&prompts, &Options { max_tokens: Some(60), ..Options::default() })? {
        println!("{text}\n");
    }

    // Each with its own: the engine itself. Beginnings that prompts share are read once.
    let mut engine = model.engine();
    engine.prefixes = Some(Prefixes::new(64 << 20));
    for (i, prompt) in prompts.iter().enumerate() {
        let sampling = Sampling { temperature: 0.2 * i as f64, seed: 1, ..Sampling::default() };
        let request =
            Request { prompt: prompt.clone(), max_tokens: 60, sampling, eos: model.eos.clone(), ..Request::default() };
        engine.add(request, Sequence::new())?;
    }
    let mut tokens: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    while !engine.is_idle() {
        for event in engine.step()? {
            match event {
                Event::Token { id, choice, .. } => tokens.entry(id).or_default().push(choice.token),
                Event::Failed { error, .. } => return Err(error),
                Event::Started { .. } | Event::Prefill { .. } | Event::Scored { .. } => {}
            }
        }
    }
    for (id, tokens) in tokens {
        println!("{id}: {}\n", model.tokenizer.decode(&tokens, true)?);
    }
    Ok(())
}
