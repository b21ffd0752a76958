//! Published tokenizers give the ids and texts that other programs found.
//!
//! Reads `tokenizers/` of the data beside the repository; compressed files are unpacked with `gzip`.

mod shared;

use std::fs;
use std::path::Path;
use std::process::Command;

use lapis_lm::tokenizer::Tokenizer;
use shared::shared;

/// The tokenizers, with the names of their vectors in `kitoken` and `llama.cpp`.
const TOKENIZERS: [(&str, &[&str], &[&str]); 10] = [
    ("bert-base-cased", &["bert_base_cased"], &[]),
    ("deepseek-v3", &["r1"], &[]),
    ("gpt-oss", &["gpt_oss"], &[]),
    ("gpt2", &["gpt2"], &["gpt-2"]),
    ("llama-2", &["llama2"], &["llama-spm"]),
    ("llama-3.2", &["llama32", "llama33"], &["llama-bpe"]),
    ("mistral-7b-v0.3", &["mistral03"], &[]),
    ("mistral-nemo", &["mistral2410"], &[]),
    ("phi-3-mini", &[], &["phi-3"]),
    ("qwen3", &[], &["qwen2"]),
];

#[test]
fn ids_and_texts_equal_those_of_other_programs() {
    let Some(data) = shared("data/tokenizers") else { return };
    let (mut total, mut wrong) = (0, Vec::new());
    for (name, kitoken, llama_cpp) in TOKENIZERS {
        let tokenizer = load(&data.join(name));
        let mut cases = Vec::new();
        for vectors in kitoken {
            cases.extend(kitoken_cases(&data.join("vectors/kitoken"), vectors));
        }
        for vectors in llama_cpp {
            cases.extend(llama_cpp_cases(&data.join("vectors/llama.cpp"), vectors));
        }
        total += cases.len();
        for (text, ids, output) in cases {
            let found = tokenizer.encode(&text, false).unwrap();
            if found != ids {
                wrong.push(format!("{name}: {text:?} is {found:?}, not {ids:?}"));
            }
            let decoded = tokenizer.decode(&ids, false).unwrap();
            let mut detokenizer = tokenizer.detokenizer();
            let mut streamed: String = ids.iter().map(|id| detokenizer.add(*id).unwrap()).collect();
            streamed += &detokenizer.finalize();
            // Streaming drops the space before the first word.
            let trimmed = decoded.strip_prefix(' ').unwrap_or(&decoded);
            if streamed != decoded && streamed != trimmed {
                wrong.push(format!("{name}: {ids:?} reads {streamed:?} token by token, and {decoded:?} at once"));
            }
            if decoded != output {
                wrong.push(format!("{name}: {ids:?} decodes to {decoded:?}, not {output:?}"));
            }
        }
    }
    println!("{total} vectors, {} differences", wrong.len());
    assert!(total > 1000);
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

/// Loads a tokenizer whose `tokenizer.json` may be compressed.
fn load(dir: &Path) -> Tokenizer {
    if dir.join("tokenizer.json").exists() {
        return Tokenizer::load(dir).unwrap();
    }
    let unpacked = Command::new("gzip").arg("-dc").arg(dir.join("tokenizer.json.gz")).output().unwrap();
    assert!(unpacked.status.success(), "gzip cannot unpack {}", dir.display());
    let config = fs::read(dir.join("tokenizer_config.json"))
        .map_or(serde_json::Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap());
    Tokenizer::from_json(&unpacked.stdout, config).unwrap()
}

/// A text, its ids, and the text of those ids.
type Case = (String, Vec<u32>, String);

/// Three texts, two of them line by line, with the ids of Hugging Face's tokenizers.
fn kitoken_cases(dir: &Path, name: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in ["small", "mixed", "utf8"] {
        let read = |path: String| fs::read_to_string(dir.join(path));
        let lines = |text: &str| -> Vec<String> {
            match kind {
                "utf8" => vec![text.to_owned()],
                "small" => text.split('\n').map(|line| line.replace("\\n", "\n").replace("\\s", " ")).collect(),
                _ => text.split('\n').map(str::to_owned).collect(),
            }
        };
        let texts = lines(&read(format!("{kind}_input.txt")).unwrap());
        // Where a tokenizer changes the text, its own text stands beside.
        let outputs = read(format!("tokenizers/{kind}_output_{name}.txt")).map_or(texts.clone(), |text| lines(&text));
        let ids = read(format!("tokenizers/{kind}_tokens_{name}.txt")).unwrap();
        let ids = ids.split('\n').map(|line| numbers(line, ", "));
        cases.extend(texts.into_iter().zip(ids).zip(outputs).map(|((text, ids), output)| (text, ids, output)));
    }
    cases
}

/// Texts between separators, with the ids of llama.cpp's tests.
fn llama_cpp_cases(dir: &Path, name: &str) -> Vec<Case> {
    let read = |end: &str| fs::read_to_string(dir.join(format!("ggml-vocab-{name}.gguf.{end}"))).unwrap();
    let (texts, ids) = (read("inp"), read("out"));
    let texts = texts.split("\n__ggml_vocab_test__\n").map(str::to_owned);
    texts.zip(ids.split('\n')).map(|(text, ids)| (text.clone(), numbers(ids, " "), text)).collect()
}

fn numbers(line: &str, separator: &str) -> Vec<u32> {
    line.split(separator).filter(|n| !n.trim().is_empty()).map(|n| n.trim().parse().unwrap()).collect()
}
