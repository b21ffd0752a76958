//! The folder of the model: what mlx-lm and lapis read. Written whole or not at all, file by file.

use crate::Result;
use crate::model::{Config, Llama};
use crate::tokenize::{END_OF_TURN, Tokens};
use lapis::io::{Metadata, atomic::AtomicFile, save_safetensors};
use lapis::ops::quantize::Mode;
use lapis_nn::{Module, Packing, quantize};
use serde_json::{Value, json};
use std::path::Path;

const GROUP: usize = 64;
const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
                        + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}\
                        {{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Packs the weights and writes the folder.
pub(crate) fn write(dir: &Path, model: &Llama, config: &Config, tokens: &Tokens, bits: usize) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut packed = model.clone();
    quantize(&mut packed, Packing::new(Mode::Affine, Some(bits), Some(GROUP))?)?;
    let metadata = Metadata::from_iter([("format".to_string(), "mlx".to_string())]);
    save_safetensors(dir.join("model.safetensors"), &packed.parameters(), &metadata)?;

    let end = tokens.id(END_OF_TURN)?;
    let pad = tokens.id("<|endoftext|>")?;
    let mut all = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "float32",
        "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true, "rope_traditional": false,
        "eos_token_id": end, "pad_token_id": pad,
        "quantization": { "group_size": GROUP, "bits": bits, "mode": "affine" },
        "quantization_config": { "group_size": GROUP, "bits": bits, "mode": "affine" },
    });
    if let (Value::Object(all), Value::Object(sizes)) = (&mut all, serde_json::to_value(config)?) {
        all.extend(sizes);
    }
    write_json(&dir.join("config.json"), &all)?;
    // A tale is told differently each time; questions have one answer.
    let sampling =
        json!({ "eos_token_id": end, "pad_token_id": pad, "do_sample": true, "temperature": 0.6, "top_p": 0.9 });
    write_json(&dir.join("generation_config.json"), &sampling)?;
    let special = |id: i32, text: &str| {
        let token = json!({ "content": text, "lstrip": false, "normalized": false, "rstrip": false,
                            "single_word": false, "special": true });
        (id.to_string(), token)
    };
    let start = "<|im_start|>";
    let added = [special(pad, "<|endoftext|>"), special(tokens.id(start)?, start), special(end, END_OF_TURN)];
    let tokenizer = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TURN, "pad_token": "<|endoftext|>",
        "bos_token": null, "add_bos_token": false, "clean_up_tokenization_spaces": false,
        "model_max_length": config.max_position_embeddings, "chat_template": TEMPLATE,
        "added_tokens_decoder": Value::Object(added.into_iter().collect()),
    });
    write_json(&dir.join("tokenizer_config.json"), &tokenizer)?;
    write_text(&dir.join("tokenizer.json"), &tokens.json()?)
}

/// The model, its sizes and its tokenizer.
pub(crate) fn read(dir: &Path) -> Result<(Llama, Config, Tokens)> {
    let text = std::fs::read_to_string(dir.join("config.json"))?;
    let all: Value = serde_json::from_str(&text)?;
    let config: Config = serde_json::from_value(all.clone())?;
    let bits = all["quantization"]["bits"].as_u64().ok_or("config.json names no bits")? as usize;
    let group = all["quantization"]["group_size"].as_u64().ok_or("config.json names no group size")? as usize;
    let mut model = Llama::new(&config)?;
    quantize(&mut model, Packing::new(Mode::Affine, Some(bits), Some(group))?)?;
    model.load_weights(&dir.join("model.safetensors"), true)?;
    Ok((model, config, Tokens::read(&dir.join("tokenizer.json"))?))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_text(path, &format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Replaces a file as a whole.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    let mut file = AtomicFile::create(path, "demo-model", text.len() as u64)?;
    file.write(text.as_bytes())?;
    Ok(file.commit()?)
}
