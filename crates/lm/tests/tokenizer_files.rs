//! What the files of a tokenizer may say, and what is refused.

use std::fs;
use std::path::PathBuf;

use lapis_lm::template::Chat;
use lapis_lm::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// A byte-level vocabulary: the bytes of ASCII, a few merges, and special tokens.
fn byte_level() -> Value {
    let mut texts: Vec<String> = (33u8..127).map(|b| (b as char).to_string()).collect();
    texts.extend(["Ġ", "Ċ", "Ã", "©", "he", "ll", "hell", "hello", "Ġhe"].map(String::from));
    let vocab: serde_json::Map<String, Value> =
        texts.iter().enumerate().map(|(id, t)| (t.clone(), json!(id))).collect();
    let next = texts.len();
    let added = |id: usize, text: &str, special: bool| json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(next, "<s>", true), added(next + 1, "</s>", true), added(next + 2, "<think>", false), added(next + 3, "</think>", false)],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [next], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": ["h e", "l l", "he ll", "hell o", "Ġ he"]},
    })
}

/// A SentencePiece vocabulary with byte tokens, with or without the trim of the first space.
fn sentence_piece(trim: bool) -> Value {
    let mut vocab = json!({"<unk>": 0, "▁": 1, "a": 2, "▁a": 3, "<0x-1>": 4, "<0xZZ>": 5});
    for byte in 0..256 {
        vocab[format!("<0x{byte:02X}>")] = json!(10 + byte);
    }
    let mut decoders = json!([{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]);
    if trim {
        decoders.as_array_mut().unwrap().push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": ["▁ a"]},
    })
}

fn tokenizer(json: &Value, config: Value) -> lapis::Result<Tokenizer> {
    Tokenizer::from_json(&serde_json::to_vec(json).unwrap(), config)
}

fn refused(json: &Value, part: &str) {
    let error = tokenizer(json, Value::Null).err().unwrap_or_else(|| panic!("{part} was taken"));
    assert!(error.message().contains(part), "{error}");
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut detokenizer = tokenizer.detokenizer();
    let mut out: Vec<String> = ids.iter().map(|id| detokenizer.add(*id).unwrap()).collect();
    out.push(detokenizer.finalize());
    out
}

#[test]
fn the_configuration_names_special_tokens() {
    let config = json!({
        "bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": true, "pad_token": null,
        "added_tokens_decoder": {"107": {"content": "<tool>", "special": true}},
        "chat_template": [
            {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"},
            {"name": "tool_use", "template": "tools: {{ messages[0].content }}"},
        ],
    });
    let mut t = tokenizer(&byte_level(), config).unwrap();
    let id = |text: &str| t.token_id(text).unwrap();
    let (bos, eos, hello, tool) = (id("<s>"), id("</s>"), id("hello"), id("<tool>"));
    assert_eq!((t.bos(), t.eos_ids().iter().copied().collect::<Vec<_>>()), (Some("<s>"), vec![eos]));
    assert_eq!(tool, 107);
    assert_eq!(t.vocab_size(), 108);
    assert_eq!(t.token_text(hello).as_deref(), Some("hello"));
    assert_eq!(t.token_text(9999), None);
    assert_eq!(t.encode("hello", false).unwrap(), [hello]);
    assert_eq!(t.encode_prompt("hello").unwrap(), [bos, hello]);
    assert_eq!(t.encode_prompt("<s>hello").unwrap(), [bos, hello]);
    assert_eq!(t.encode("<tool>", false).unwrap(), [tool]);
    assert_eq!(t.decode(&[bos, hello], true).unwrap(), "hello");
    assert_eq!(t.decode(&[bos, hello, 9999], false).unwrap(), "<s>hello");
    let messages = json!([{"content": "Hi"}]);
    let chat = Chat { messages: &messages, special_tokens: Some(t.special_tokens()), ..Chat::default() };
    assert_eq!(t.template().unwrap().render(&chat).unwrap(), "<s>Hi");
    assert_eq!(t.chat_template(true).unwrap().render(&chat).unwrap(), "tools: Hi");
    t.add_eos(tool);
    assert_eq!(t.eos_ids().len(), 2);
}

#[test]
fn thinking_is_found_in_the_vocabulary() {
    let t = tokenizer(&byte_level(), Value::Null).unwrap();
    let thinking = t.thinking().unwrap();
    assert_eq!((thinking.start.as_str(), thinking.end.as_str()), ("<think>", "</think>"));
    for (prompt, open) in
        [("hello", false), ("a<think>b", true), ("<think>a</think>b", false), ("<think></think><think>", true)]
    {
        assert_eq!(thinking.is_open(&t.encode(prompt, false).unwrap()), open, "{prompt}");
    }
    assert!(tokenizer(&sentence_piece(true), Value::Null).unwrap().thinking().is_none());
}

#[test]
fn bytes_wait_until_they_are_text() {
    let t = tokenizer(&byte_level(), Value::Null).unwrap();
    let ids = |texts: &[&str]| texts.iter().map(|text| t.token_id(text).unwrap()).collect::<Vec<_>>();
    // The first space goes, a lone space waits, and é comes when its second byte does.
    assert_eq!(streamed(&t, &ids(&["Ġhe", "Ã", "©", "Ġ", "a", "Ã"])), ["he", "", "é", "", " a", "", "\u{fffd}"]);
    // Rows of a padded embedding have no token.
    assert_eq!(streamed(&t, &[50_000]), ["!", ""]);

    let bytes = |text: &str| text.bytes().map(|b| 10 + u32::from(b)).collect::<Vec<_>>();
    let (trim, keep) = (tokenizer(&sentence_piece(true), Value::Null), tokenizer(&sentence_piece(false), Value::Null));
    let (trim, keep) = (trim.unwrap(), keep.unwrap());
    assert_eq!(streamed(&trim, &[3, 3]), ["a", " a", ""]);
    assert_eq!(streamed(&keep, &[3, 3]), [" a", " a", ""]);
    assert_eq!(streamed(&trim, &bytes("é")), ["", "é", ""]);
    assert_eq!(streamed(&trim, &bytes("é")[..1]), ["", "\u{fffd}"]);
    assert_eq!(streamed(&trim, &[4, 5]), ["<0x-1>", "<0xZZ>", ""]);
    assert!(trim.detokenizer().add(50_000).is_err());
    assert_eq!(trim.encode("a a€", false).unwrap(), [vec![3, 3], bytes("€")].concat());
}

#[test]
fn a_newline_can_be_spelled_otherwise() {
    let mut json = byte_level();
    json["added_tokens"].as_array_mut().unwrap().push(json!({"id": 107, "content": "<n>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": false}));
    let t = tokenizer(&json, json!({"tokenizer_class": "NewlineTokenizer"})).unwrap();
    let ids = t.encode("a\na", false).unwrap();
    assert_eq!(ids[1], 107);
    assert_eq!(t.decode(&ids, false).unwrap(), "a\na");
}

#[test]
fn contradictions_are_refused() {
    refused(&json!([]), "tokenizer.json");
    refused(&json!({}), "tokenizer.json");
    let change = |pointer: &str, value: Value| {
        let mut json = byte_level();
        *json.pointer_mut(pointer).unwrap() = value;
        json
    };
    refused(&change("/model/vocab/hello", json!(3)), "belongs to two tokens");
    refused(&change("/model/vocab/hello", json!(-1)), "-1");
    refused(&change("/model/vocab/hello", json!(4_000_000_000u32)), "4000000000");
    refused(&change("/model/vocab/hello", json!("x")), "\"x\"");
    refused(&change("/model/vocab/hello", json!(1.5)), "1.5");
    refused(&change("/model/vocab", json!({})), "not in the vocabulary");
    refused(&change("/model/merges/0", json!("h é")), "é");
    refused(&change("/model/merges/0", json!("a b")), "ab");
    refused(&change("/model/merges/0", json!("a b c")), "a b c");
    refused(&change("/model/merges/0", json!(["a"])), "two tokens");
    refused(&change("/model/merges/0", json!(7)), "merge");
    refused(&change("/model/merges", json!({})), "merge");
    refused(&change("/model/type", json!("Magic")), "Magic");
    refused(&change("/pre_tokenizer", json!({"type": "Magic"})), "PreTokenizer");
    refused(&change("/decoder", json!({"type": "Magic"})), "tokenizer.json");
    refused(&change("/normalizer", json!({"type": "Magic"})), "tokenizer.json");
    refused(
        &change(
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": false}),
        ),
        "tokenizer.json",
    );
    refused(&change("/version", json!("9")), "9");
    refused(&change("/added_tokens/0", json!({"id": 1})), "tokenizer.json");
    let nested = "[".repeat(200_000);
    assert!(Tokenizer::from_json(nested.as_bytes(), Value::Null).is_err());
    assert!(tokenizer(&byte_level(), json!([])).is_err());
    refused(&change("/added_tokens/3/content", json!("")), "has no text");
    refused(&change("/added_tokens/3/id", json!(1u64 << 31)), "added_tokens: ");
}

/// However a file is cut or bent, there is an error or a tokenizer that works.
#[test]
fn damaged_files_do_not_crash() {
    for json in [byte_level(), sentence_piece(true)] {
        let bytes = serde_json::to_vec(&json).unwrap();
        for end in (0..bytes.len()).step_by(7) {
            assert!(Tokenizer::from_json(&bytes[..end], Value::Null).is_err());
        }
        for at in (0..bytes.len()).step_by(11) {
            for byte in [0u8, b'"', b'9', b'{', 0xff] {
                let mut bent = bytes.clone();
                bent[at] = byte;
                if let Ok(t) = Tokenizer::from_json(&bent, Value::Null) {
                    let ids = t.encode("hello a é\n", true).unwrap_or_default();
                    let _ = t.decode(&ids, true);
                }
            }
        }
    }
}

#[test]
fn a_slow_pattern_is_stopped() {
    let mut json = byte_level();
    json["pre_tokenizer"] =
        json!({"type": "Split", "pattern": {"Regex": "(?:a|a|a)*(?!a)b"}, "behavior": "Isolated", "invert": false});
    let t = tokenizer(&json, Value::Null).unwrap();
    let _ = t.encode(&"a".repeat(5000), false);
}

#[test]
fn a_broken_template_leaves_the_rest_usable() {
    let t = tokenizer(&byte_level(), json!({"chat_template": "a\n{% if %}"})).unwrap();
    assert!(t.template().is_none());
    let error = t.chat_template(false).err().unwrap();
    assert!(error.message().contains("line 2"), "{error}");
    assert!(!t.encode("hello", true).unwrap().is_empty());
    let error = tokenizer(&byte_level(), Value::Null).unwrap().chat_template(false).err().unwrap();
    assert!(error.message().contains("no chat template"), "{error}");
}

#[test]
fn a_folder_has_its_files() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("tokenizer_files");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
    let error = Tokenizer::load(&dir).err().unwrap();
    assert!(error.message().contains("has no tokenizer.json"), "{error}");
    write("tokenizer.json", &byte_level().to_string());
    assert!(Tokenizer::load(&dir).unwrap().template().is_none());
    write("special_tokens_map.json", r#"{"eos_token": {"content": "</s>"}, "bos_token": "no"}"#);
    write("tokenizer_config.json", r#"{"bos_token": "<s>", "chat_template": "config"}"#);
    let t = Tokenizer::load(&dir).unwrap();
    assert_eq!((t.bos(), t.eos_ids().len()), (Some("<s>"), 1));
    assert_eq!(t.template().unwrap().source(), "config");
    write("chat_template.jinja", "file");
    assert_eq!(Tokenizer::load(&dir).unwrap().template().unwrap().source(), "file");
    for bad in ["[1]", "{", "{\"a\": 1,}", "\u{feff}"] {
        write("tokenizer_config.json", bad);
        let error = Tokenizer::load(&dir).err().unwrap();
        assert!(error.message().contains("tokenizer_config.json"), "{error}");
    }
}
