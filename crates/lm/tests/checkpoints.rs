//! Real checkpoints against what the programs they come from write. They lie in `../shared/data/models`.

mod shared;

use lapis_lm::{Checkpoint, Options, Sampling, Sequence, load};
use serde_json::Value;
use shared::shared;
use std::path::PathBuf;

fn folder(name: &str) -> Option<PathBuf> {
    shared(&format!("data/models/{name}"))
}

fn golden(dir: &std::path::Path, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join(file)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn greedy_tokens_are_those_of_the_original_programs() {
    for name in ["stories260K", "babyllama105"] {
        let Some(dir) = folder(name) else { return };
        let golden = golden(&dir, "golden.json");
        let model = load(&dir).unwrap();
        let prompt = model.tokenizer.encode_prompt(golden["prompt"].as_str().unwrap()).unwrap();
        assert_eq!(prompt, ids(&golden["prompt_ids"]), "{name}");
        let want = ids(&golden["greedy_ids"]);
        let options = Options { max_tokens: Some(want.len()), ignore_eos: true, ..Options::default() };
        let stream = model.stream(&prompt, &options, Sequence::new()).unwrap();
        let got: Vec<u32> = stream.map(|r| r.unwrap().token).collect();
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn the_text_is_that_of_llama2_c() {
    let Some(dir) = folder("stories260K") else { return };
    let golden = golden(&dir, "llama2c_expected.json");
    let model = load(&dir).unwrap();
    let prompt = model.tokenizer.encode_prompt("").unwrap();
    let steps = golden["steps"].as_u64().unwrap() as usize;
    let options = Options { max_tokens: Some(steps), ..Options::default() };
    let text = model.generate(&prompt, &options).unwrap();
    assert_eq!(text.trim(), golden["expected_stdout"].as_str().unwrap().trim());
}

#[test]
fn a_reply_depends_on_nothing_but_itself() {
    let Some(dir) = folder("stories260K") else { return };
    let model = load(&dir).unwrap();
    let sampling = Sampling { temperature: 0.9, top_p: 0.95, seed: 11, ..Sampling::default() };
    let options = Options { max_tokens: Some(60), sampling, ..Options::default() };
    let texts = ["Once upon a time", "The dog", "Lily and Tom went to the park. They saw a big tree", "A"];
    let prompts: Vec<Vec<u32>> = texts.iter().map(|t| model.tokenizer.encode_prompt(t).unwrap()).collect();
    let alone: Vec<String> = prompts.iter().map(|p| model.generate(p, &options).unwrap()).collect();
    assert_eq!(model.batch_generate(&prompts, &options).unwrap(), alone);
    for step in [1, 3, 1000] {
        let options = Options { prefill_step: Some(step), ..options.clone() };
        assert_eq!(model.generate(&prompts[2], &options).unwrap(), alone[2], "prefill step {step}");
    }
    // From what was remembered of an earlier text.
    let mut stream = model.stream(&prompts[2], &options, Sequence::new()).unwrap();
    stream.by_ref().for_each(drop);
    let (tokens, mut sequence) = stream.into_memory().unwrap();
    let same = tokens.iter().zip(&prompts[2]).take_while(|(a, b)| a == b).count();
    assert!(sequence.truncate(same.min(prompts[2].len() - 1)));
    let again: String = model.stream(&prompts[2], &options, sequence).unwrap().map(|r| r.unwrap().text).collect();
    assert_eq!(again, alone[2]);
}

#[test]
fn reading_a_prompt_can_be_stopped() {
    let model = load(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model")).unwrap();
    let options = Options { prefill_step: Some(8), ..Options::default() };
    let prompt: Vec<u32> = (100..164).collect();
    let mut heard = Vec::new();
    let mut stream = model.stream(&prompt, &options, Sequence::new()).unwrap().on_prefill(|done, _| {
        heard.push(done);
        heard.len() < 2
    });
    assert!(stream.next().is_none());
    let (tokens, sequence) = stream.into_memory().unwrap();
    assert!(heard.len() == 2 && heard[1] < prompt.len(), "{heard:?}");
    // What was read by then is remembered.
    assert_eq!((tokens, sequence.len()), (prompt, heard[1]));
}

#[test]
fn texts_to_stop_at_are_not_part_of_the_reply() {
    let Some(dir) = folder("stories260K") else { return };
    let model = load(&dir).unwrap();
    let prompt = model.tokenizer.encode_prompt("Once upon a time").unwrap();
    let options = |stop: &str| Options { max_tokens: Some(80), stop: vec![stop.into()], ..Options::default() };
    let whole = model.generate(&prompt, &Options { max_tokens: Some(80), ..Options::default() }).unwrap();
    for stop in ["Lily", "big, red", "girl named Lily. She"] {
        let at = whole.find(stop).unwrap();
        assert_eq!(model.generate(&prompt, &options(stop)).unwrap(), whole[..at], "{stop}");
    }
    assert_eq!(model.generate(&prompt, &options("nowhere to be found")).unwrap(), whole);
}

#[test]
fn requests_out_of_range_are_errors_that_name_it() {
    let Some(dir) = folder("stories260K") else { return };
    let model = load(&dir).unwrap();
    let why = |prompt: &[u32], options: &Options| {
        model.stream(prompt, options, Sequence::new()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let with = |sampling| Options { sampling, ..Options::default() };
    assert!(why(&[], &Options::default()).contains("empty"));
    assert!(why(&[512], &Options::default()).contains("token 512"));
    assert!(why(&[1; 600], &Options::default()).contains("600 tokens"));
    assert!(why(&[1], &Options { max_tokens: Some(0), ..Options::default() }).contains("max_tokens"));
    assert!(why(&[1], &with(Sampling { top_p: 1.5, ..Sampling::default() })).contains("top_p is 1.5"));
    assert!(why(&[1], &with(Sampling { temperature: f64::NAN, ..Sampling::default() })).contains("temperature"));
    let bias = Sampling { logit_bias: [(512, 1.0)].into(), ..Sampling::default() };
    assert!(why(&[1], &with(bias)).contains("logit_bias names token 512"));
}

#[test]
fn a_directory_that_is_no_model_says_what_is_missing() {
    let dir = std::env::temp_dir().join(format!("lapis-lm-{}", std::process::id()));
    let open = |config: &str| {
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.json"), config).unwrap();
        let why = Checkpoint::open(&dir).err().map(|e| e.to_string()).unwrap_or_default();
        std::fs::remove_dir_all(&dir).unwrap();
        why
    };
    assert!(Checkpoint::open("/nowhere/at/all").err().unwrap().to_string().contains("does not exist"));
    assert!(open("").contains("damaged"));
    assert!(open("[1]").contains("not a JSON object"));
    assert!(open("{}").contains("model_type"));
    let why = open(r#"{"model_type": "lama"}"#);
    assert!(why.contains("Nearest: llama"), "{why}");
    assert!(open(r#"{"model_type": "nonsense", "auto_map": {}}"#).contains("never run"));
    assert!(open(r#"{"model_type": "llama", "quantization": 7}"#).contains("not an object"));
    assert!(open(r#"{"model_type": "llama", "quantization": {"bits": 7, "group_size": 64}}"#).contains("bits 7"));
    assert!(open(r#"{"model_type": "llama", "quantization": {"bits": 4, "group_size": 7}}"#).contains("group_size 7"));
    for method in ["hqq", "aqlm", "exl2", "bitsandbytes"] {
        let block = format!(r#"{{"quant_method": "{method}", "bits": 4, "group_size": 128}}"#);
        let why = open(&format!(r#"{{"model_type": "llama", "quantization_config": {block}}}"#));
        assert!(why.contains(method) && why.contains("Use an MLX conversion"), "{why}");
    }
    assert!(open(r#"{"model_type": "llama"}"#).contains("nothing to load"));
}
