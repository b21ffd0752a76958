//! The files of a tokenizer: what each may hold, which wins, and how a broken one is refused.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use lapis::{Error, Result};
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::model::{Inner, size};

/// A tokenizer file that is larger is not read; the largest published one has 35 MiB.
const MAX_BYTES: u64 = 512 << 20;
/// The longest vocabulary that is taken.
const MAX_TOKENS: usize = 10_000_000;
/// The largest id that is taken.
const MAX_ID: u64 = 1 << 24;

/// The bytes of `tokenizer.json`, and the configuration with the other files merged in.
pub(super) fn read(dir: &Path) -> Result<(Vec<u8>, Map<String, Value>)> {
    let Some(json) = bytes(&dir.join("tokenizer.json"))? else {
        let hint = match dir.join("tokenizer.model").exists() {
            true => "; tokenizer.model alone is not read: convert it with transformers' `save_pretrained`",
            false => "; a checkpoint's folder should hold it: download the model again",
        };
        return Err(Error::io(format!("[tokenizer] {} has no tokenizer.json{hint}", dir.display())));
    };
    Ok((json, config(dir)?))
}

/// `tokenizer_config.json` with the other files merged in.
pub(super) fn config(dir: &Path) -> Result<Map<String, Value>> {
    let mut config = object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    for (name, token) in object(&dir.join("special_tokens_map.json"))?.unwrap_or_default() {
        let slot = config.entry(name).or_insert(Value::Null);
        if slot.is_null() {
            *slot = token;
        }
    }
    if let Some(source) = bytes(&dir.join("chat_template.jinja"))? {
        let source = String::from_utf8(source)
            .map_err(|e| Error::io(format!("[tokenizer] {}/chat_template.jinja is not UTF-8: {e}", dir.display())))?;
        config.insert("chat_template".into(), source.into());
    } else if !config.contains_key("chat_template")
        && let Some(mut file) = object(&dir.join("chat_template.json"))?
        && let Some(template) = file.remove("chat_template")
    {
        config.insert("chat_template".into(), template);
    }
    Ok(config)
}

/// A file's bytes, or none when it is not there.
fn bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    let fault = |e: std::io::Error| Error::io(format!("[tokenizer] cannot read {}: {e}", path.display()));
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fault(e)),
    };
    let size = file.metadata().map_err(fault)?.len();
    if size > MAX_BYTES {
        return Err(Error::io(format!(
            "[tokenizer] {} has {size} bytes; a tokenizer's file may have {MAX_BYTES}",
            path.display()
        )));
    }
    let mut out = Vec::with_capacity(size as usize);
    file.take(MAX_BYTES).read_to_end(&mut out).map_err(fault)?;
    Ok(Some(out))
}

/// A JSON file that holds an object, or none when it is not there.
fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = bytes(path)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(Error::io(format!("[tokenizer] {} must hold a JSON object", path.display()))),
        Err(e) => Err(Error::io(format!("[tokenizer] {} is not valid JSON: {e}", path.display()))),
    }
}

/// Runs code of `tokenizers`, which panics on some malformed files, and makes an error of the panic.
pub(super) fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizer's data contradict themselves".into()),
    }
}

/// The tokenizer of `json`, with the tokens that only the configuration names.
pub(super) fn parse(json: &[u8], config: &Map<String, Value>, origin: &str) -> Result<Inner> {
    let refuse = |why: String| Error::io(format!("[tokenizer] {origin} is not a usable tokenizer: {why}"));
    let mut inner = guarded(|| serde_json::from_slice::<Inner>(json).map_err(Into::into)).map_err(refuse)?;
    let size = size(&inner);
    if size == 0 || size > MAX_TOKENS {
        return Err(refuse(format!("its vocabulary has {size} tokens; 1 to {MAX_TOKENS} are taken")));
    }
    check_added(json).map_err(refuse)?;
    // Prompts are never cut or filled up here, whatever the training script left in the file.
    inner.with_padding(None);
    guarded(|| inner.with_truncation(None).map(|_| ())).map_err(refuse)?;
    add_tokens(&mut inner, config);
    Ok(inner)
}

/// Added tokens have a text, and an id that a vocabulary can have.
fn check_added(json: &[u8]) -> std::result::Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Token {
        id: u64,
        content: String,
    }
    // They stand at the top of the file; megabytes of vocabulary after them need not be read again.
    const KEY: &str = "\"added_tokens\"";
    let text = std::str::from_utf8(json).map_err(|e| e.to_string())?;
    let after = |at: usize| text[at + KEY.len()..].trim_start().strip_prefix(':').map(str::trim_start);
    let list = text.match_indices(KEY).find_map(|(at, _)| after(at).filter(|list| list.starts_with('[')));
    let list = list.and_then(|list| serde_json::Deserializer::from_str(list).into_iter::<Vec<Token>>().next());
    for token in list.transpose().map_err(|e| e.to_string())?.unwrap_or_default() {
        if token.content.is_empty() {
            return Err(format!("added_tokens: the token with id {} has no text", token.id));
        }
        if token.id > MAX_ID {
            return Err(format!(
                "added_tokens: {:?} has the id {}; ids up to {MAX_ID} are taken",
                token.content, token.id
            ));
        }
    }
    Ok(())
}

/// Adds the tokens of the configuration's `added_tokens_decoder` that the tokenizer does not know, as long as each gets
/// the id that it names.
fn add_tokens(inner: &mut Inner, config: &Map<String, Value>) {
    let Some(Value::Object(added)) = config.get("added_tokens_decoder") else { return };
    let mut missing: Vec<(u32, &str, &Value)> = added
        .iter()
        .filter_map(|(id, token)| Some((id.parse().ok()?, token.get("content")?.as_str()?, token)))
        .filter(|(_, content, _)| !content.is_empty() && inner.token_to_id(content).is_none())
        .collect();
    missing.sort_by_key(|token| token.0);
    for (id, content, token) in missing {
        if id as usize != size(inner) {
            return;
        }
        let flag = |name: &str| token.get(name).and_then(Value::as_bool);
        let special = flag("special").unwrap_or(false);
        let token = AddedToken::from(content, special)
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .single_word(flag("single_word").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special));
        inner.add_tokens(&[token]);
    }
}

/// The named special tokens. A token is written as its text or as an object with `content`.
pub(super) fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let text = |token: &Value| token.as_str().or_else(|| token.get("content")?.as_str()).map(Value::from);
    let named = config.iter().filter(|(name, _)| name.ends_with("_token") && !name.starts_with("add_"));
    named.filter_map(|(name, token)| Some((name.clone(), text(token)?))).collect()
}

/// Whether decoded text loses the spaces before punctuation. For byte pairs that would corrupt the text, so there the
/// configuration is not followed, as transformers does.
pub(super) fn cleans_up(inner: &Inner, config: &Map<String, Value>) -> bool {
    let asked = config.get("clean_up_tokenization_spaces").and_then(Value::as_bool).unwrap_or(false);
    asked && !inner.get_model().is_bpe()
}
