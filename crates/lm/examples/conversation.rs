//! A conversation that reads every message once: `cargo run --release -p lapis-lm --example conversation -- MODEL`.
//!
//! The chat template puts all messages into one prompt; what the model remembers of the last one is carried over as far as
//! the two begin alike.

use lapis_lm::engine::common;
use lapis_lm::template::Chat;
use lapis_lm::{Options, Sequence};
use serde_json::{Value, json};

fn main() -> lapis::Result<()> {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model");
    let model = lapis_lm::load(std::env::args().nth(1).as_deref().unwrap_or(demo))?;
    let (mut messages, mut memory) = (Vec::new(), (Vec::new(), Sequence::new()));
    for question in ["Tell me a story about a fox", "How do I quantize a model?"] {
        messages.push(json!({"role": "user", "content": question}));
        let all = Value::Array(messages.clone());
        let chat = Chat { messages: &all, add_generation_prompt: true, ..Chat::default() };
        let prompt = model.chat_prompt(&chat, None)?;

        // One token at least is read, for what comes next.
        let (tokens, mut sequence) = memory;
        if !sequence.truncate(common(&tokens, &prompt).min(prompt.len() - 1)) {
            sequence = Sequence::new();
        }
        let (known, mut reply) = (sequence.len(), String::new());
        let options = Options { max_tokens: Some(100), ..Options::default() };
        let mut stream = model.stream(&prompt, &options, sequence)?;
        for step in stream.by_ref() {
            reply.push_str(&step?.text);
        }
        println!("> {question}\n{reply}\n[{} tokens of the prompt, {known} of them known]\n", prompt.len());
        memory = stream.into_memory().unwrap_or_default();
        messages.push(json!({"role": "assistant", "content": reply}));
    }
    Ok(())
}
