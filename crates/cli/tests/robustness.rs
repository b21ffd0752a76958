//! Files that are wrong: what the program says of each, in how many lines, and with which exit code.
//!
//! Each case is the demo model with something changed. What the readers of formats refuse byte by byte is in their own
//! tests (`crates/io/tests`, `crates/lm/tests`); here it is what people see.

mod shared;

use serde_json::{Map, Value, json};
use shared::{DEMO, FILES, Folder, err, fed, lapis};
use std::path::Path;
use std::process::Output;

/// A copy of the demo model.
struct Model(Folder);

impl Model {
    fn new(name: &str) -> Model {
        let folder = Folder::new(name);
        for file in FILES {
            std::fs::copy(Path::new(DEMO).join(file), folder.0.join(file)).unwrap();
        }
        Model(folder)
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        self.0.write(file, content);
    }

    fn run(&self, command: &str, arguments: &[&str], input: &[u8]) -> Output {
        fed(&[&[command, "--model", &self.0.at("")], arguments].concat(), input)
    }

    fn generate(&self, arguments: &[&str]) -> Output {
        self.run("generate", &[&["-m", "2", "--verbose", "F"], arguments].concat(), b"")
    }

    /// It is refused with this exit code, in at most six lines that say these parts.
    fn refused(&self, what: &str, code: i32, parts: &[&str]) {
        refused(&self.generate(&[]), what, code, parts);
    }

    /// It works, with these parts on stderr.
    fn works(&self, what: &str, arguments: &[&str], parts: &[&str]) {
        let o = self.generate(arguments);
        let text = err(&o);
        assert!(o.status.success() && !o.stdout.is_empty(), "{what}: {text}");
        parts.iter().for_each(|p| assert!(text.contains(p), "{what}: {text} does not say {p:?}"));
    }
}

fn refused(o: &Output, what: &str, code: i32, parts: &[&str]) {
    let text = err(o);
    assert_eq!(o.status.code(), Some(code), "{what}: {text}");
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("warning: ")).collect();
    assert!(lines.len() <= 6 && text.contains("error[E"), "{what}: {text}");
    assert!(!text.contains("panicked") && !text.contains("backtrace") && !text.contains('\x1b'), "{what}: {text}");
    parts.iter().for_each(|p| assert!(text.contains(p), "{what}: {text} does not say {p:?}"));
}

fn object(file: &str) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(Path::new(DEMO).join(file)).unwrap()).unwrap()
}

/// Header and data of the demo model's weights.
fn weights() -> (Map<String, Value>, Vec<u8>) {
    let file = std::fs::read(Path::new(DEMO).join("model.safetensors")).unwrap();
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (serde_json::from_slice(header).unwrap(), data.to_vec())
}

fn safetensors(header: &Map<String, Value>, data: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).unwrap();
    [&(header.len() as u64).to_le_bytes(), &header[..], data].concat()
}

#[test]
fn safetensors_files() {
    let m = Model::new("safetensors");
    let whole = std::fs::read(Path::new(DEMO).join("model.safetensors")).unwrap();
    let (header, data) = weights();
    let name = "model.safetensors";
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("empty", vec![], "needs 8 bytes for the header's length, has 0"),
        ("length 0", vec![0; 8], "header length 0"),
        ("length 2^64-1", [&[0xff; 8][..], b"{}"].concat(), "header length 18446744073709551615"),
        ("no JSON", [&2u64.to_le_bytes()[..], b"xx"].concat(), "byte 8"),
        ("cut", whole[..whole.len() - 100].to_vec(), "model.norm.weight"),
        ("trailing", [&whole[..], b"xx"].concat(), "the tensors cover"),
        ("GGUF", b"GGUF0000000000".to_vec(), "header length"),
        (
            "reversed",
            safetensors(
                &{
                    let mut h = header.clone();
                    h["model.norm.weight"]["data_offsets"].as_array_mut().unwrap().reverse();
                    h
                },
                &data,
            ),
            "reversed",
        ),
    ];
    for (what, bytes, part) in cases {
        m.write(name, bytes);
        m.refused(what, 2, &[name, part]);
    }
    // A tensor that belongs to no model, with a name that would write to the terminal.
    let mut strange = header.clone();
    let end = data.len();
    strange.insert("evil\x1b[31m\n../x".into(), json!({"dtype": "F32", "shape": [0], "data_offsets": [end, end]}));
    m.write(name, safetensors(&strange, &data));
    m.refused("strange name", 2, &["evil\\u{1b}[31m\\n../x", "not a part of this model"]);
    // NaN: read all the same, and found on demand.
    let at = header["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let mut bad = data.clone();
    bad[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    m.write(name, safetensors(&header, &bad));
    m.refused("NaN", 3, &["not all numbers"]);
    refused(&m.generate(&["--check-tensors"]), "NaN looked for", 3, &["1 tensors", "model.norm.weight: 1"]);
    m.write(name, &whole);
    m.works("no NaN", &["--check-tensors"], &[]);
}

#[test]
fn indexes_of_shards() {
    let m = Model::new("index");
    let (header, _) = weights();
    let (name, index) = ("model.safetensors", "model.safetensors.index.json");
    let names = || header.keys().filter(|k| *k != "__metadata__");
    let map = |f: &dyn Fn(usize, &str) -> String| -> String {
        let all: Map<String, Value> = names().enumerate().map(|(i, k)| (k.clone(), f(i, k).into())).collect();
        json!({"weight_map": all}).to_string()
    };
    let plain = map(&|_, _| name.into());
    m.write(index, &plain);
    m.works("a good index", &[], &[]);
    for (what, text, parts) in [
        ("cut", "{".to_string(), &["index.json", "EOF", "line 1 column 1"][..]),
        ("no map", "{}".into(), &["weight_map"]),
        ("outside", map(&|_, _| "../x.safetensors".into()), &["is no plain file name"]),
        (
            "missing shard",
            map(&|i, _| format!("model{}.safetensors", if i % 2 == 0 { "" } else { "-2" })),
            &["model-2.safetensors", "download"],
        ),
        (
            "tensor not in its shard",
            plain.replacen("model.norm.weight", "model.norm.wait", 1),
            &["model.norm.wait", "is not in"],
        ),
    ] {
        m.write(index, text);
        m.refused(what, 2, parts);
    }
    let whole = std::fs::read(m.0.0.join(name)).unwrap();
    m.write("model-2.safetensors", &whole);
    m.write(index, map(&|i, _| format!("model{}.safetensors", if i % 2 == 0 { "" } else { "-2" })));
    m.refused("in two shards", 2, &["is in \"model.safetensors\" and in \"model-2.safetensors\""]);
    std::fs::remove_file(m.0.0.join(index)).unwrap();
    m.refused("two files without an index", 2, &["is in another file, too"]);
    std::fs::remove_file(m.0.0.join("model-2.safetensors")).unwrap();
    std::fs::rename(m.0.0.join(name), m.0.0.join("model-00001-of-00003.safetensors")).unwrap();
    m.write(index, map(&|_, _| "model-00001-of-00003.safetensors".into()));
    m.refused("number of shards", 2, &["speak of 3 files, the index names 1"]);
    // None of the files that it names, but others: those are read.
    m.write(index, map(&|_, _| "weights.safetensors".into()));
    m.works("another name", &[], &["warning: ", "names files that are not there"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("loop.safetensors", m.0.0.join("loop.safetensors")).unwrap();
        m.write(
            index,
            map(&|i, _| if i == 0 { "loop.safetensors".into() } else { "model-00001-of-00003.safetensors".into() }),
        );
        m.refused("a loop of links", 2, &["loop.safetensors"]);
    }
}

#[test]
fn weights_that_could_run_code_are_never_opened() {
    let m = Model::new("pickle");
    std::fs::remove_file(m.0.0.join("model.safetensors")).unwrap();
    m.refused("no weights", 2, &["holds no model*.safetensors"]);
    for file in ["pytorch_model.bin", "model.pt"] {
        m.write(file, b"\x80\x04.");
        m.refused(file, 2, &[file, "pickle", "safetensors"]);
        std::fs::remove_file(m.0.0.join(file)).unwrap();
    }
    let m = Model::new("code");
    let mark = m.0.0.join("ran");
    m.write("evil.py", format!("open({mark:?}, 'w')\n"));
    let mut config = object("config.json");
    config.insert("model_file".into(), "evil.py".into());
    config.insert("auto_map".into(), json!({"AutoModelForCausalLM": "evil.Model"}));
    m.write("config.json", Value::Object(config.clone()).to_string());
    m.works("code beside a known type", &["--trust-remote-code"], &["--trust-remote-code has no effect"]);
    config.insert("model_type".into(), "evil".into());
    m.write("config.json", Value::Object(config).to_string());
    m.refused("code of an unknown type", 2, &["model_type \"evil\"", "never run", "Nearest: "]);
    assert!(!mark.exists());
}

#[test]
fn configs() {
    let m = Model::new("config");
    for (what, text, parts) in [
        ("empty", &b""[..], &["config.json", "line 1 column 0"][..]),
        ("a list", b"[1]", &["config.json", "not a JSON object"]),
        ("not UTF-8", b"{\"model_type\": \"\xff\"}", &["line 1 column 17"]),
        ("syntax", b"{\"model_type\": \"llama\",\n \"x\": }", &["line 2 column 7"]),
        ("no type", b"{}", &["model_type"]),
        ("type of another kind", b"{\"model_type\": 7}", &["model_type"]),
        ("unknown type", b"{\"model_type\": \"lama\"}", &["\"lama\"", "Nearest: llama"]),
    ] {
        m.write("config.json", text);
        m.refused(what, 2, parts);
    }
    m.write("config.json", "[".repeat(100_000));
    m.refused("deep", 2, &["recursion"]);
    let with = |change: Value| {
        let mut config = object("config.json");
        change.as_object().unwrap().iter().for_each(|(k, v)| drop(config.insert(k.clone(), v.clone())));
        m.write("config.json", Value::Object(config).to_string());
    };
    for (change, parts) in [
        (json!({"num_attention_heads": 5}), &["num_attention_heads", "5", "4"][..]),
        (json!({"hidden_size": 1u64 << 31}), &["hidden_size", "2147483648"]),
        (json!({"num_hidden_layers": 0}), &["num_hidden_layers: 0"]),
        (json!({"num_hidden_layers": -1}), &["num_hidden_layers: -1"]),
        (json!({"rms_norm_eps": -1.0}), &["rms_norm_eps: -1.0 is below zero"]),
        (json!({"rms_norm_eps": "x"}), &["rms_norm_eps", "\"x\""]),
        (json!({"hidden_size": "64"}), &["hidden_size", "\"64\""]),
        (json!({"vocab_size": 0}), &["vocab_size: 0"]),
        (json!({"vocab_size": 1u64 << 30}), &["embed_tokens", "1073741824"]),
        (json!({"rope_theta": -5}), &["rope_theta: -5"]),
        (json!({"tie_word_embeddings": 3}), &["tie_word_embeddings"]),
        (
            json!({"quantization": {"bits": 0, "group_size": 64}}),
            &["config.json: quantization: bits 0", "1, 2, 3, 4, 5, 6, 8"],
        ),
        (json!({"quantization": {"bits": 7, "group_size": 64}}), &["bits 7"]),
        (json!({"quantization": {"bits": 17, "group_size": 64}}), &["bits 17"]),
        (json!({"quantization": {"bits": 4.5, "group_size": 64}}), &["bits is 4.5"]),
        (json!({"quantization": {"bits": 8, "group_size": 0}}), &["group_size 0"]),
        (json!({"quantization": {"bits": 8, "group_size": 7}}), &["group_size 7", "32, 64, 128"]),
        (json!({"quantization": {"bits": 8, "mode": "magic"}}), &["config.json: quantization", "\"magic\"", "affine"]),
        (json!({"quantization": {"bits": 8, "mode": 3}}), &["mode is 3"]),
        (json!({"quantization": {"bits": 8, "group_size": 64, "x.y": {"bits": 7}}}), &["quantization.x.y: bits 7"]),
        (json!({"rope_scaling": {"type": "linear", "factor": 0}}), &["config.json: rope_scaling: factor is 0"]),
        (json!({"rope_scaling": {"type": "linear"}}), &["factor is missing"]),
        (json!({"rope_scaling": {"type": "nonsense", "factor": 2}}), &["\"nonsense\"", "linear, dynamic"]),
        (json!({"rope_scaling": {"type": 3}}), &["type is 3"]),
        (json!({"rope_scaling": 5}), &["rope_scaling"]),
        (json!({"rope_scaling": {"rope_type": "llama3", "factor": 8}}), &["low_freq_factor is missing"]),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
                "original_max_position_embeddings": 64}}),
            &["low_freq_factor is 4", "high_freq_factor"],
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                "original_max_position_embeddings": 0}}),
            &["original_max_position_embeddings is 0"],
        ),
        (json!({"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": "x"}}), &["beta_fast is \"x\""]),
        (json!({"rope_scaling": {"type": "longrope"}}), &["original_max_position_embeddings is missing"]),
        (
            json!({"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 64, "factor": 2, "long_factor": [1, 2]}}),
            &["long_factor has 2 numbers", "16 pairs"],
        ),
        (
            json!({"rope_scaling": {"type": "su", "original_max_position_embeddings": 64, "factor": 2, "long_factor": vec![0; 16]}}),
            &["long_factor has an entry"],
        ),
        (json!({"rope_scaling": {"type": "proportional", "factor": 0}}), &["factor is 0"]),
    ] {
        with(change.clone());
        m.refused(&change.to_string(), 2, parts);
    }
    with(json!({"quantization": {"bits": 8, "group_size": 64, "no.such.layer": {"bits": 4, "group_size": 64}}}));
    m.works("a key that names no layer", &[], &["warning: ", "\"no.such.layer\"", "no such layer"]);
}

#[test]
fn settings_of_generation_that_are_broken_are_ignored() {
    let m = Model::new("generation");
    for text in ["{\"eos_token_id\": ", "[1]"] {
        m.write("generation_config.json", text);
        m.works(text, &[], &["warning: ", "generation_config.json", "it is ignored"]);
    }
    m.write("generation_config.json", "{\"temperature\": \"hot\", \"top_k\": -4, \"top_p\": 7}");
    m.works(
        "wrong numbers",
        &["--generation-config", "auto"],
        &["top_k is -4", "temperature is \"hot\"", "top_p is 7"],
    );
}

#[test]
fn tokenizers() {
    let m = Model::new("tokenizer");
    let name = "tokenizer.json";
    let whole = Value::Object(object(name));
    let change = |pointer: &str, value: Value| {
        let mut json = whole.clone();
        *json.pointer_mut(pointer).unwrap() = value;
        json
    };
    let add = |id: u64, content: &str| {
        let mut json = whole.clone();
        json["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": false,
        }));
        json
    };
    let word = whole["model"]["vocab"].as_object().unwrap().keys().nth(300).unwrap().clone();
    let at = format!("/model/vocab/{}", word.replace('~', "~0").replace('/', "~1"));
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    for (what, json, parts) in [
        ("one id twice", change(&at, json!(5)), &["the id 5 belongs to two tokens"][..]),
        ("a negative id", change(&at, json!(-1)), &["-1"]),
        ("a huge id", change(&at, json!(1u64 << 31)), &["2147483648", "16777216"]),
        ("a merge of nothing", change("/model/merges/0", json!("zzqq yyxx")), &["zzqq", "not in the vocabulary"]),
        ("a pattern that does not compile", change("/pre_tokenizer", split("(a")), &["parenthesis"]),
        ("an unknown component", change("/pre_tokenizer", json!({"type": "Magic"})), &["PreTokenizer"]),
        (
            "an unknown model",
            change("/model/type", json!("Magic")),
            &["Magic", "BPE, WordPiece, WordLevel and Unigram"],
        ),
        ("an empty added token", add(3, ""), &["added_tokens", "no text"]),
        ("an added token with a huge id", add(1 << 31, "<zz>"), &["added_tokens", "\"<zz>\"", "2147483648"]),
    ] {
        m.write(name, json.to_string());
        m.refused(what, 2, &[&[name, "is not a usable tokenizer"], parts].concat());
    }
    m.write(name, "{");
    m.refused("cut", 2, &[name]);
    // Tokens that look like bytes and are none; more tokens than the model has rows.
    m.write(name, whole.to_string());
    m.works("<0x-1>", &["-p", "<0x-1> <0xZZ>"], &[]);
    m.write(name, add(2048, "<zz>").to_string());
    m.works("a token too many", &[], &["warning: ", "2049 tokens, the model 2048"]);
    refused(&m.generate(&["-p", "a <zz>"]), "its use", 2, &["token 2048", "vocabulary of 2048"]);
    m.write(name, whole.to_string());
    for text in ["{", "[]"] {
        m.write("tokenizer_config.json", text);
        m.refused(text, 2, &["tokenizer_config.json"]);
    }
    std::fs::remove_file(m.0.0.join(name)).unwrap();
    m.refused("none", 2, &["no tokenizer.json"]);
}

/// A pattern that would take exponential time ends, one way or the other.
#[test]
fn slow_patterns_end() {
    let m = Model::new("slow");
    let mut json = Value::Object(object("tokenizer.json"));
    json["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(?:(?:a|a)+)+(?!a|b)c"}, "behavior": "Isolated", "invert": false});
    m.write("tokenizer.json", json.to_string());
    let began = std::time::Instant::now();
    let o = m.generate(&["-p", &"a".repeat(300)]);
    assert!(o.status.code() == Some(0) || o.status.code() == Some(2), "{}", err(&o));
    assert!(began.elapsed().as_secs() < 20);
}

#[test]
fn templates() {
    let m = Model::new("template");
    let name = "chat_template.jinja";
    m.write(name, "a\n{% if x");
    m.works("raw completion", &["--ignore-chat-template"], &[]);
    m.refused("a template that does not parse", 2, &["does not parse", "line 2", "--chat-template"]);
    let o = m.run("chat", &[], b"hello\n/quit\n");
    assert!(o.status.success() && err(&o).contains("line 2"), "{}", err(&o));
    for (what, template, parts) in [
        ("its own refusal", "{{ raise_exception('no way') }}", &["no way", "line 1"][..]),
        (
            "endless",
            "{% for i in range(1000000) %}{% for j in range(1000000) %}x{% endfor %}{% endfor %}",
            &["the chat template says"],
        ),
        ("recursion", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", &["recursion"]),
        ("objects of Python", "{{ ''.__class__.__mro__[1].__subclasses__() }}", &["undefined"]),
        ("files", "{% include '/etc/passwd' %}", &["template"]),
    ] {
        m.write(name, template);
        m.refused(what, 2, parts);
    }
    let reserved = ["--chat-template-config", "{\"messages\": []}"];
    m.write(name, "{{ messages[0].content }}");
    refused(&m.generate(&reserved), "a reserved name", 2, &["`messages` is reserved"]);
}

#[test]
fn prompts() {
    let m = Model::new("prompt");
    let huge = "word ".repeat(7 << 20);
    let o = m.run("generate", &["-p", "-"], huge.as_bytes());
    refused(&o, "35 MB through a template", 2, &["the messages have 367001", "16 MiB"]);
    let o = m.run("generate", &["-p", "-", "--ignore-chat-template"], &huge.as_bytes()[..1 << 20]);
    refused(&o, "a megabyte", 2, &["tokens, the model's context 512"]);
    let o = m.run("generate", &["-p", "-"], b"ab\xff\xfe\xed\xa0\x80 c");
    refused(&o, "no UTF-8", 2, &["standard input", "UTF-8"]);
    refused(&m.generate(&["-p", "", "--ignore-chat-template"]), "nothing", 2, &["the prompt is empty"]);
}

#[test]
fn caches_of_prompts() {
    let m = Model::new("cache");
    let file = m.0.0.join("begun.safetensors");
    let flags = ["--prompt-cache-file", file.to_str().unwrap()];
    let o = m.run("cache-prompt", &[&flags[..], &["--prompt", "Tell me"]].concat(), b"");
    assert!(o.status.success(), "{}", err(&o));
    let whole = std::fs::read(&file).unwrap();
    let go = || m.generate(&flags);
    assert!(go().status.success(), "{}", err(&go()));
    for (what, bytes) in [
        ("empty", vec![]),
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("no cache", std::fs::read(m.0.0.join("model.safetensors")).unwrap()),
    ] {
        std::fs::write(&file, bytes).unwrap();
        refused(&go(), what, 2, &["begun.safetensors"]);
    }
    // Of another model: its last norm differs.
    std::fs::write(&file, &whole).unwrap();
    let (header, mut data) = weights();
    let at = header["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    data[at] ^= 1;
    m.write("model.safetensors", safetensors(&header, &data));
    refused(&go(), "another model", 2, &["fingerprint", "begun.safetensors"]);
}

#[test]
fn gguf_files() {
    let m = Model::new("gguf");
    let file = m.0.at("model.gguf");
    let run = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        lapis(&["generate", "--model", &file])
    };
    let head = |version: u32, tensors: u64, keys: u64| {
        [b"GGUF".as_slice(), &version.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
    };
    for (what, bytes, part) in [
        ("empty", vec![], "the magic needs 4 bytes"),
        ("wrong magic", b"GGML0000".to_vec(), "magic \"GGML\""),
        ("big-endian", [b"GGUF".as_slice(), &3u32.to_be_bytes(), &[0; 16]].concat(), "big-endian"),
        ("version 1", head(1, 0, 0), "version 1"),
        ("version 4", head(4, 0, 0), "version 4"),
        ("2^64-1 tensors", head(3, u64::MAX, 0), "do not fit"),
        ("2^64-1 keys", head(3, 0, u64::MAX), "do not fit"),
        ("no architecture", head(3, 0, 0), "general.architecture"),
    ] {
        refused(&run(&bytes), what, 2, &["model.gguf", part]);
    }
}

/// Contradictory or unknown flags, and where output goes.
#[test]
fn flags() {
    for (arguments, part) in [
        (&["generate", "--stream", "--no-stream"][..], "cannot be used with"),
        (&["generate", "--logprobs", "21"], "21"),
        (&["generate", "--image", "x.png"], "reads text only"),
        (&["generate", "-qa"], "model.layers.0.self_attn.q_proj cannot be rounded"),
        (&["generate", "--memory-limit", "much"], "\"much\" is no size"),
        (&["generate", "--memory-limit", "1KB"], "memory"),
        (&["benchmark", "-p", "0"], "1 at least"),
        (&["benchmark", "-p", "600"], "context, 512"),
        (&["benchmark", "--markdown", "--json"], "cannot be used with"),
        (&["completions", "csh"], "bash"),
        (&["man", "nonsense"], "generate"),
    ] {
        let o = lapis(arguments);
        let text = err(&o);
        let code = if part == "memory" { 4 } else { 2 };
        assert!(o.status.code() == Some(code) && text.contains(part), "{arguments:?}: {text}");
        assert!(text.lines().count() <= 9 && !text.contains("panicked"), "{arguments:?}: {text}");
    }
    let o = lapis(&["generate", "-m", "3", "--quiet", "--verbose", "F"]);
    assert!(o.status.success() && o.stderr.is_empty(), "{}", err(&o));
}
