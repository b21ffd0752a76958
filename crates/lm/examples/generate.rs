//! Text as it is written: `cargo run --release -p lapis-lm --example generate -- MODEL "Once upon a time"`.
//!
//! MODEL is a directory with config.json, or a .gguf file; without one, the demo model of the repository.

use lapis_lm::{Options, Sampling, Sequence};
use std::io::Write;

fn main() -> lapis::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model");
    let model = lapis_lm::load(arguments.next().as_deref().unwrap_or(demo))?;
    let text = arguments.next().unwrap_or_else(|| "Once upon a time".into());

    let prompt = model.tokenizer.encode_prompt(&text)?;
    let sampling = Sampling { temperature: 0.4, top_p: 0.95, seed: 7, ..Sampling::default() };
    let options = Options { max_tokens: Some(120), sampling, stop: vec!["\n\n".into()], ..Options::default() };
    print!("{text}");
    let mut last = None;
    for step in model.stream(&prompt, &options, Sequence::new())? {
        let step = step?;
        print!("{}", step.text);
        let _ = std::io::stdout().flush();
        last = Some(step);
    }
    if let Some(r) = last {
        println!(
            "\n\n{} tokens, {:.0} a second, the first after {:.3} s",
            r.generation_tokens, r.generation_tps, r.first_token
        );
    }
    Ok(())
}
