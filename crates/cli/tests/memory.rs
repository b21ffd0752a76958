//! How much memory a run takes at most: the weights, what the model remembers, a tenth beside them, and the program.
#![cfg(target_os = "linux")]

use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model");
const WIDTH: u64 = 1024;
const INNER: u64 = 4096;
const HEAD: u64 = 64;
const KEYS: u64 = 8;
const LAYERS: u64 = 24;

/// A Llama in 4 bits whose weights are zeros, which take no room on a disk; the bytes of its file.
fn model(dir: &Path) -> u64 {
    let (mut header, mut end) = (Map::new(), 0u64);
    let mut add = |name: String, dtype: &str, shape: [u64; 2]| {
        let shape: Vec<u64> = shape.into_iter().filter(|&n| n > 0).collect();
        let bytes = shape.iter().product::<u64>() * if dtype == "U32" { 4 } else { 2 };
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    };
    let mut packed = |name: String, output: u64, input: u64| {
        add(format!("{name}.weight"), "U32", [output, input / 8]);
        add(format!("{name}.scales"), "BF16", [output, input / 64]);
        add(format!("{name}.biases"), "BF16", [output, input / 64]);
    };
    packed("model.embed_tokens".into(), 2048, WIDTH);
    for i in 0..LAYERS {
        for (name, output, input) in [
            ("self_attn.q_proj", WIDTH, WIDTH),
            ("self_attn.k_proj", KEYS * HEAD, WIDTH),
            ("self_attn.v_proj", KEYS * HEAD, WIDTH),
            ("self_attn.o_proj", WIDTH, WIDTH),
            ("mlp.gate_proj", INNER, WIDTH),
            ("mlp.up_proj", INNER, WIDTH),
            ("mlp.down_proj", WIDTH, INNER),
        ] {
            packed(format!("model.layers.{i}.{name}"), output, input);
        }
    }
    for i in 0..LAYERS {
        for norm in ["input", "post_attention"] {
            add(format!("model.layers.{i}.{norm}_layernorm.weight"), "BF16", [WIDTH, 0]);
        }
    }
    add("model.norm.weight".into(), "BF16", [WIDTH, 0]);
    let config = json!({
        "model_type": "llama", "vocab_size": 2048, "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": WIDTH / HEAD, "num_key_value_heads": KEYS,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "max_position_embeddings": 4096,
        "quantization": {"bits": 4, "group_size": 64},
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(Path::new(DEMO).join(file), dir.join(file)).unwrap();
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let size = 8 + header.len() as u64 + end;
    file.set_len(size).unwrap();
    size
}

fn run(arguments: &[&str]) -> Value {
    let o = Command::new(env!("CARGO_BIN_EXE_lapis"))
        .args(["generate", "--json", "-m", "8", "--ignore-chat-template"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(o.stdout).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&o.stderr)))
}

#[test]
fn a_run_takes_its_weights_and_what_it_remembers() {
    let dir = std::env::temp_dir().join(format!("lapis-memory-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let weights = model(&dir);
    let program = run(&["-p", "hello"])["peak_resident"].as_u64().unwrap();
    let prompt = "a ".repeat(256);
    let line = run(&["--model", dir.to_str().unwrap(), "-p", &prompt]);
    std::fs::remove_dir_all(&dir).unwrap();
    let tokens = line["prompt_tokens"].as_u64().unwrap() + line["generation_tokens"].as_u64().unwrap();
    let remembered = tokens * LAYERS * 2 * KEYS * HEAD * 2;
    let (peak, most) = (line["peak_resident"].as_u64().unwrap(), (weights + remembered) * 11 / 10 + program);
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let text = format!(
        "peak {:.1} MB: weights {:.1}, remembered of {tokens} tokens {:.1}, program {:.1}, at most {:.1}",
        mb(peak),
        mb(weights),
        mb(remembered),
        mb(program),
        mb(most)
    );
    eprintln!("{text}");
    assert!(peak <= most, "{text}");
}
