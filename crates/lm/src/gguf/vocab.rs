//! The tokenizer of a file, as the `tokenizer.json` and `tokenizer_config.json` of a checkpoint.

use super::export::Notes;
use super::{Meta, unigram, unsupported};
use crate::checkpoint::read_object;
use lapis::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;

/// Kinds of tokens, as files number them.
const UNKNOWN: u8 = 2;
const CONTROL: u8 = 3;
const USER: u8 = 4;
const UNUSED: u8 = 5;
const BYTE: u8 = 6;

/// Tokens that end a reply wherever a vocabulary has them.
const ENDS: [&str; 12] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<EOT>",
];

/// `bos_token_id` and `eos_token_id` of a config.
///
/// # Errors
/// Keys that hold no numbers.
pub(super) fn ends(meta: &Meta, config: &mut Map<String, Value>) -> Result<()> {
    let id = |name: &str| meta.size(&format!("tokenizer.ggml.{name}_token_id"));
    if let Some(bos) = id("bos")? {
        config.insert("bos_token_id".into(), bos.into());
    }
    let mut all: Vec<usize> = [id("eos")?, id("eot")?, id("eom")?].into_iter().flatten().collect();
    let tokens = meta.texts("tokenizer.ggml.tokens").unwrap_or_default();
    let kinds = meta.list("tokenizer.ggml.token_type")?.unwrap_or_default();
    for (i, kind) in kinds.iter().enumerate() {
        let ends = |t: &String| match *kind == f64::from(CONTROL) {
            true => ENDS.contains(&&t[..]),
            // Files have it seen, and a call of Gemma 4 ends where its result would begin.
            false => t == "<|tool_response>" && *kind == f64::from(USER),
        };
        if tokens.get(i).is_some_and(ends) {
            all.push(i);
        }
    }
    let mut seen = Vec::new();
    all.retain(|i| {
        !seen.contains(i) && {
            seen.push(*i);
            true
        }
    });
    match &all[..] {
        [] => {}
        [one] => _ = config.insert("eos_token_id".into(), (*one).into()),
        _ => _ = config.insert("eos_token_id".into(), all.into()),
    }
    Ok(())
}

/// The bytes of a `tokenizer.json`, and a `tokenizer_config.json`.
///
/// # Errors
/// A file without a vocabulary, one of a kind that is not known, lists of different lengths.
pub(crate) fn tokenizer(meta: &Meta) -> Result<(Vec<u8>, Map<String, Value>)> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let Some(tokens) = meta.texts(&key("tokens")).filter(|t| !t.is_empty()) else {
        return Err(meta.error("there is no vocabulary (tokenizer.ggml.tokens); the file is no whole model".into()));
    };
    let of_length = |name: &str| -> Result<Option<Vec<f64>>> {
        let Some(list) = meta.list(&key(name))? else { return Ok(None) };
        let (n, m) = (list.len(), tokens.len());
        if n == m { Ok(Some(list)) } else { Err(meta.error(format!("{} has {n} entries for {m} tokens", key(name)))) }
    };
    let kinds = of_length("token_type")?;
    let v = Vocabulary {
        meta,
        tokens,
        kinds: kinds.map_or_else(|| vec![1; tokens.len()], |all| all.into_iter().map(|k| k as u8).collect()),
    };
    match meta.text(&key("model")) {
        Some("gpt2") => v.byte_level(),
        Some("llama") => match of_length("scores")? {
            Some(scores) => v.pieces(v.merges(&scores)),
            None => Err(meta.error(format!("{} is missing", key("scores")))),
        },
        // SentencePiece's pieces with the merges of their own file.
        Some("gemma4") => v.pieces(v.listed_merges()?),
        Some("t5") => v.unigram(of_length("scores")?),
        Some(other) => Err(unsupported(
            meta,
            format!("vocabularies of kind {other:?} are not read; known are gemma4, gpt2, llama, t5"),
        )),
        None => Err(meta.error(format!("{} is missing", key("model")))),
    }
}

/// The chat template of a file, or those with names.
pub(crate) fn templates(meta: &Meta) -> Option<Value> {
    const KEY: &str = "tokenizer.chat_template";
    let default = meta.text(KEY);
    let named = meta.keys().filter_map(|k| k.strip_prefix(KEY)?.strip_prefix('.'));
    let named = named.filter_map(|name| Some((name, meta.text(&format!("{KEY}.{name}"))?)));
    let mut all: Vec<(&str, &str)> = named.collect();
    if all.is_empty() {
        return default.map(Value::from);
    }
    all.extend(default.map(|text| ("default", text)));
    Some(all.into_iter().map(|(name, text)| json!({"name": name, "template": text})).collect())
}

struct Vocabulary<'a> {
    meta: &'a Meta,
    tokens: &'a [String],
    kinds: Vec<u8>,
}

impl Vocabulary<'_> {
    /// Byte pairs: merges of texts whose characters stand for bytes.
    fn byte_level(&self) -> Result<(Vec<u8>, Map<String, Value>)> {
        let name = self.meta.text("tokenizer.ggml.pre").unwrap_or("default");
        let Some(pre) = PRE.iter().find(|p| p.names.contains(&name)) else {
            let known: Vec<&str> = PRE.iter().map(|p| p.names[0]).collect();
            let known = known.join(", ");
            let what = format!("words cut as {name:?} says (tokenizer.ggml.pre) are not known; known are {known}");
            return Err(unsupported(self.meta, what));
        };
        let merges = self.listed_merges()?;
        let cut = |p: &&str| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let mut steps: Vec<Value> = pre.cuts.iter().map(cut).collect();
        steps.push(bytes.clone());
        let parts = Parts {
            normalizer: if pre.composed { json!({"type": "NFC"}) } else { Value::Null },
            pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
            decoder: bytes,
            options: json!({"unk_token": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.whole}),
            merges: Some(merges),
        };
        self.write(parts, pre.begins, |i| self.tokens[i].clone())
    }

    /// Merges as the file has them, as JSON.
    fn listed_merges(&self) -> Result<String> {
        match self.meta.texts("tokenizer.ggml.merges") {
            Some(merges) => Ok(serde_json::to_string(merges).unwrap_or_default()),
            None => Err(self.meta.error("tokenizer.ggml.merges is missing".into())),
        }
    }

    /// SentencePiece's byte pairs.
    fn pieces(&self, merges: String) -> Result<(Vec<u8>, Map<String, Value>)> {
        let prefix = self.meta.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let text = |i: usize| match self.kinds[i] {
            // Tokens that are looked for before spaces are replaced.
            USER => self.tokens[i].replace('▁', " "),
            _ => self.tokens[i].clone(),
        };
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let normalizer = match prefix {
            true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}),
            false => replace,
        };
        let back = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let mut decoders = vec![back, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self.special("unknown")?.or_else(|| self.kinds.iter().position(|&k| k == UNKNOWN));
        let parts = Parts {
            normalizer,
            pre_tokenizer: Value::Null,
            decoder: json!({"type": "Sequence", "decoders": decoders}),
            options: json!({
                "unk_token": unknown.map(|i| &self.tokens[i]), "fuse_unk": true, "byte_fallback": true,
                "ignore_merges": false,
            }),
            merges: Some(merges),
        };
        self.write(parts, true, text)
    }

    /// SentencePiece's unigram models: the likeliest pieces of all that make up the text.
    fn unigram(&self, scores: Option<Vec<f64>>) -> Result<(Vec<u8>, Map<String, Value>)> {
        let Some(scores) = scores else {
            return Err(self.meta.error("tokenizer.ggml.scores is missing".into()));
        };
        let [normalizer, pre_tokenizer, decoder] = unigram::pipeline(self.meta)?;
        let unknown = self.special("unknown")?.or_else(|| self.kinds.iter().position(|&k| k == UNKNOWN));
        // A piece that stands for itself wins where it can.
        let score = |i: usize| if self.kinds[i] == USER { 0.0 } else { scores[i] };
        let pieces: Vec<Value> = (0..self.tokens.len()).map(|i| json!([self.tokens[i], score(i)])).collect();
        let options = json!({"unk_id": unknown, "byte_fallback": false, "vocab": pieces});
        let parts = Parts { normalizer, pre_tokenizer, decoder, options, merges: None };
        self.write(parts, false, |i| self.tokens[i].clone())
    }

    /// All pairs that give a token, those of the best scores first, as JSON.
    fn merges(&self, scores: &[f64]) -> String {
        let normal = |i: &usize| !matches!(self.kinds[*i], UNKNOWN | CONTROL | UNUSED | BYTE | USER);
        let ids: HashMap<&str, usize> =
            (0..self.tokens.len()).filter(normal).map(|i| (&self.tokens[i][..], i)).collect();
        let mut pairs = Vec::new();
        for i in (0..self.tokens.len()).filter(normal) {
            let token = &self.tokens[i];
            for (at, _) in token.char_indices().skip(1) {
                if let (Some(&a), Some(&b)) = (ids.get(&token[..at]), ids.get(&token[at..])) {
                    pairs.push((scores[i], at, i, a, b));
                }
            }
        }
        pairs.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.2.cmp(&y.2)).then(y.1.cmp(&x.1)));
        let mut out = String::from("[");
        for (n, (.., a, b)) in pairs.into_iter().enumerate() {
            let text = |i: usize| serde_json::to_string(&self.tokens[i]).unwrap_or_default();
            let comma = if n > 0 { "," } else { "" };
            // Writing to a String does not fail.
            _ = write!(out, "{comma}[{},{}]", text(a), text(b));
        }
        out + "]"
    }

    /// A token that has a name.
    fn special(&self, name: &str) -> Result<Option<usize>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = self.meta.size(&key)? else { return Ok(None) };
        let n = self.tokens.len();
        if id < n { Ok(Some(id)) } else { Err(self.meta.error(format!("{key} is {id}, there are {n} tokens"))) }
    }

    fn write(
        &self,
        parts: Parts,
        begins: bool,
        text: impl Fn(usize) -> String,
    ) -> Result<(Vec<u8>, Map<String, Value>)> {
        let meta = self.meta;
        let mut config = Map::new();
        for (name, key) in [
            ("bos", "bos_token"),
            ("eos", "eos_token"),
            ("unknown", "unk_token"),
            ("padding", "pad_token"),
            ("seperator", "sep_token"),
        ] {
            if let Some(i) = self.special(name)? {
                config.insert(key.into(), text(i).into());
            }
        }
        let mut around = [None, None];
        let flags = [("add_bos_token", "bos", begins), ("add_eos_token", "eos", false)];
        for (slot, (flag, name, usual)) in around.iter_mut().zip(flags) {
            let add = meta.flag(&format!("tokenizer.ggml.{flag}"))?.unwrap_or(usual);
            *slot = self.special(name)?.filter(|_| add);
            config.insert(flag.into(), slot.is_some().into());
        }
        let step = |i: usize| json!({"SpecialToken": {"id": text(i), "type_id": 0}});
        let mut single: Vec<Value> = around[0].map(step).into_iter().collect();
        single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
        single.extend(around[1].map(step));
        let named =
            around.iter().flatten().map(|&i| (text(i), json!({"id": text(i), "ids": [i], "tokens": [text(i)]})));
        let named: Map<String, Value> = named.collect();
        let mut pair = single.clone();
        pair.push(json!({"Sequence": {"id": "B", "type_id": 1}}));
        let around = match named.is_empty() {
            true => Value::Null,
            false => json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": named}),
        };
        // Files do not say which tokens take the spaces after them along. Those of Phi 3 do.
        let phi3 = self.tokens.iter().any(|t| t == "<|placeholder1|>");
        let strips = |i: usize| phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&&self.tokens[i][..]);
        let added = |i: usize| {
            json!({
                "id": i, "content": text(i), "single_word": false, "lstrip": false, "rstrip": strips(i),
                "normalized": false, "special": self.kinds[i] != USER,
            })
        };
        let added = (0..self.tokens.len()).filter(|&i| matches!(self.kinds[i], CONTROL | USER | UNKNOWN)).map(added);
        let added: Vec<Value> = added.filter(|t| t["content"] != "").collect();
        let mut out = format!(
            "{{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":{},\"normalizer\":{},\
             \"pre_tokenizer\":{},\"post_processor\":{around},\"decoder\":{},\"model\":{{\"type\":{}",
            Value::Array(added),
            parts.normalizer,
            parts.pre_tokenizer,
            parts.decoder,
            match parts.merges {
                Some(_) => {
                    "\"BPE\",\"dropout\":null,\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null"
                }
                None => "\"Unigram\"",
            }
        );
        for (key, value) in parts.options.as_object().into_iter().flatten() {
            _ = write!(out, ",\"{key}\":{value}");
        }
        if let Some(merges) = parts.merges {
            out += ",\"vocab\":{";
            for i in 0..self.tokens.len() {
                let comma = if i > 0 { "," } else { "" };
                _ = write!(out, "{comma}{}:{i}", serde_json::to_string(&text(i)).unwrap_or_default());
            }
            _ = write!(out, "}},\"merges\":{merges}");
        }
        out += "}}";
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        if let Some(templates) = templates(self.meta) {
            config.insert("chat_template".into(), templates);
        }
        Ok((out.into_bytes(), config))
    }
}

/// What differs between kinds of vocabularies.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    options: Value,
    /// Of byte pairs: merges, as JSON.
    merges: Option<String>,
}

/// How text is cut into words before pairs are merged.
struct Pre {
    /// What files call it.
    names: &'static [&'static str],
    /// Patterns, one after another: what they match stands alone.
    cuts: &'static [&'static str],
    /// A word that is a token stays whole.
    whole: bool,
    /// BOS begins a text where the file says nothing.
    begins: bool,
    /// Characters are composed (NFC).
    composed: bool,
}

const fn pre(names: &'static [&'static str], cuts: &'static [&'static str]) -> Pre {
    Pre { names, cuts, whole: false, begins: false, composed: false }
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const GPT4: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &[&str] = &[
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

/// The known ones.
const PRE: &[Pre] = &[
    pre(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    pre(
        &["gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "jais", "trillion", "granite-docling"],
        &[GPT2],
    ),
    Pre { composed: true, ..pre(&["olmo", "mpt"], &[GPT2]) },
    Pre {
        whole: true,
        begins: true,
        ..pre(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"], &[GPT4])
    },
    pre(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[GPT4]),
    Pre { whole: true, ..pre(&["glm4", "glm5"], &[GPT4]) },
    Pre { composed: true, ..pre(&["qwen2", "deepseek-r1-qwen", "kormo", "megrez"], &[QWEN2]) },
    pre(&["stablelm2", "hunyuan", "solar-open"], &[QWEN2]),
    pre(&["qwen35"], &[QWEN35]),
    pre(&["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"], &[r"\p{N}", GPT2]),
    pre(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    Pre { whole: true, begins: true, ..pre(&["tekken"], &[TEKKEN]) },
    pre(&["gpt-4o", "llama4", "kanana2", "minimax-m2"], &[GPT4O]),
    pre(&["deepseek-v3", "hunyuan-dense", "joyai-llm"], DEEPSEEK3),
    pre(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\u{d7ff}]+", r"\p{N}"]),
    pre(
        &["seed-coder"],
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    pre(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"],
    ),
];

// ------------------------------------------------------------------ back

/// What a directory says of its tokenizer, as files have it; `rows` is how many tokens the model has. Gives what readers will do
/// otherwise.
///
/// # Errors
/// A tokenizer that such files have no words for.
pub(super) fn describe(
    dir: &Path,
    config: &Map<String, Value>,
    rows: usize,
    notes: &mut Notes,
) -> Result<Option<&'static str>> {
    let wrong = |what: String| Error::unsupported(format!("[export_gguf] {}: {what}", dir.display()));
    let tokenizer = Value::Object(read_object(&dir.join("tokenizer.json"))?);
    let settings = match dir.join("tokenizer_config.json") {
        path if path.is_file() => read_object(&path)?,
        _ => Map::new(),
    };
    let model = &tokenizer["model"];
    let vocabulary: Vec<(&str, Option<u64>)> = match (model["type"].as_str(), &model["vocab"]) {
        (Some("BPE"), Value::Object(all)) => all.iter().map(|(text, id)| (&text[..], id.as_u64())).collect(),
        (Some("Unigram"), Value::Array(all)) => {
            (0..).zip(all).filter_map(|(id, piece)| Some((piece[0].as_str()?, Some(id)))).collect()
        }
        (kind, _) => {
            let kind = kind.unwrap_or("no name");
            return Err(wrong(format!("a tokenizer of type {kind} is not written as GGUF; known are BPE and Unigram")));
        }
    };
    let likeliest = model["type"] == "Unigram";
    let pieces = model["byte_fallback"] == true;
    let mut tokens: Vec<(String, u8)> = (0..rows).map(|i| (format!("[PAD{i}]"), UNUSED)).collect();
    let mut put = |id: Option<u64>, text: &str, kind: u8| {
        if let Some(slot) = id.and_then(|id| tokens.get_mut(id as usize)) {
            *slot = (text.to_string(), kind);
        }
    };
    let unknown = match likeliest {
        true => model["unk_id"].as_u64().and_then(|id| Some(model["vocab"][id as usize][0].as_str()?.to_string())),
        false => model["unk_token"].as_str().filter(|_| pieces).map(String::from),
    };
    for (text, id) in vocabulary {
        let byte = pieces && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let unknown = unknown.as_deref() == Some(text);
        put(
            id,
            text,
            if byte {
                BYTE
            } else if unknown {
                UNKNOWN
            } else {
                1
            },
        );
    }
    for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let text = token["content"].as_str().unwrap_or_default();
        let kind = if unknown.as_deref() == Some(text) {
            UNKNOWN
        } else if token["special"] == true {
            CONTROL
        } else {
            USER
        };
        put(token["id"].as_u64(), text, kind);
    }
    let pair = |merge: &Value| match merge {
        Value::Array(both) => both.iter().map(|t| t.as_str().unwrap_or_default()).collect::<Vec<_>>().join(" "),
        text => text.as_str().unwrap_or_default().to_string(),
    };
    let merges: Vec<String> = model["merges"].as_array().into_iter().flatten().map(pair).collect();
    let mut otherwise = None;
    if likeliest {
        otherwise = unigram::describe(&tokenizer, tokens.len(), notes)?;
    } else if pieces {
        notes.text("tokenizer.ggml.model", "llama");
        notes.text("tokenizer.ggml.pre", "default");
        // What is merged first has the best score.
        let mut ranks = HashMap::new();
        for (rank, merge) in merges.iter().enumerate() {
            ranks.entry(merge.replacen(' ', "", 1)).or_insert(-(rank as f32) - 1.0);
        }
        let lowest = -(merges.len() as f32) - 1.0;
        let score =
            |(text, kind): &(String, u8)| if *kind == 1 { ranks.get(text).copied().unwrap_or(lowest) } else { 0.0 };
        notes.floats("tokenizer.ggml.scores", &tokens.iter().map(score).collect::<Vec<_>>())?;
        let begins = tokenizer["normalizer"].to_string().contains("Prepend")
            || tokenizer["pre_tokenizer"]["prepend_scheme"] == "first";
        notes.flag("tokenizer.ggml.add_space_prefix", begins)?;
    } else {
        let own = cuts(&tokenizer["pre_tokenizer"]);
        let whole = model["ignore_merges"] == true;
        let composed = tokenizer["normalizer"].to_string().contains("NFC");
        let same = |p: &&Pre| p.cuts == own;
        let exact = PRE.iter().filter(same).find(|p| p.whole == whole && p.composed == composed);
        let Some(pre) = exact.or_else(|| PRE.iter().find(same)) else {
            return Err(wrong(format!("words are cut in a way that GGUF has no name for: {own:?}")));
        };
        notes.text("tokenizer.ggml.model", "gpt2");
        notes.text("tokenizer.ggml.pre", pre.names[0]);
        notes.texts("tokenizer.ggml.merges", merges);
    }
    let id = |key: &str| {
        let named = settings.get(&format!("{key}_token")).map(|t| t.get("content").unwrap_or(t));
        let found = named.and_then(Value::as_str).and_then(|text| tokens.iter().position(|t| t.0 == text));
        let number = config.get(&format!("{key}_token_id")).map(|v| v.get(0).unwrap_or(v)).and_then(Value::as_u64);
        found.or(number.map(|n| n as usize)).filter(|&n| n < rows)
    };
    let named = |key: &str| id(key).or_else(|| tokens.iter().position(|t| key == "unk" && t.1 == UNKNOWN));
    for (key, name) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        if let Some(id) = named(key) {
            notes.word(format!("tokenizer.ggml.{name}_token_id"), id as u32)?;
        }
    }
    // Readers have defaults of their own, which differ.
    let around = tokenizer["post_processor"].to_string();
    for key in ["bos", "eos"] {
        let text = id(key).map(|id| Value::from(&tokens[id].0[..]).to_string());
        let is_put = around.contains("TemplateProcessing") && text.is_some_and(|text| around.contains(&text));
        let flag = format!("add_{key}_token");
        let said = settings.get(&flag).and_then(Value::as_bool);
        notes.flag(&format!("tokenizer.ggml.{flag}"), said.unwrap_or(is_put))?;
    }
    let template = std::fs::read_to_string(dir.join("chat_template.jinja")).ok();
    if let Some(template) = template.as_deref().or(settings.get("chat_template").and_then(Value::as_str)) {
        notes.text("tokenizer.chat_template", template);
    }
    let (texts, kinds): (Vec<String>, Vec<i32>) =
        tokens.into_iter().map(|(text, kind)| (text, i32::from(kind))).unzip();
    notes.texts("tokenizer.ggml.tokens", texts);
    notes.words("tokenizer.ggml.token_type", &kinds)?;
    Ok(otherwise)
}

/// The patterns by which a tokenizer cuts words.
fn cuts(pre: &Value) -> Vec<String> {
    match pre["type"].as_str() {
        Some("Sequence") => pre["pretokenizers"].as_array().into_iter().flatten().flat_map(cuts).collect(),
        Some("Split") => pre["pattern"]["Regex"].as_str().map(str::to_string).into_iter().collect(),
        Some("Digits") if pre["individual_digits"] == true => vec![r"\p{N}".into()],
        Some("ByteLevel") if pre["use_regex"] == true => vec![GPT2.into()],
        _ => Vec::new(),
    }
}
