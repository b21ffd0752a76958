//! `/v1/embeddings`.

use crate::embed;
use crate::error::ApiError;
use crate::fields::{Body, Field, Kind, field, nothing};
use crate::http::answer::{self, Outcome};
use crate::http::request::{Call, warn};
use crate::models::Loaded;
use crate::service::{Service, blocking};
use lapis_lm::embed::{Pooling, shorten};
use serde_json::{Value, json};
use std::sync::Arc;

/// Fields of a request for embeddings.
pub(crate) const EMBEDDING: &[Field] = &[
    field("model", Kind::Text, "A name of a model."),
    field("input", Kind::Any, "A text, texts, tokens, or lists of tokens; 2048 at most.").needed(),
    field("encoding_format", Kind::Text, "float, or base64 of little-endian float32."),
    field("dimensions", Kind::Integer(1, 1 << 20), "Numbers of each vector, where the model was made to be cut."),
    nothing("user"),
];

/// Inputs at most.
const INPUTS: usize = 2048;

enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

fn inputs(body: &mut Body) -> Result<Vec<Input>, ApiError> {
    let wrong = |what: String| ApiError::field("input", format!("input {what}"));
    let tokens = |list: &[Value]| -> Option<Input> {
        list.iter().map(|v| v.as_u64().and_then(|n| u32::try_from(n).ok())).collect::<Option<_>>().map(Input::Tokens)
    };
    let list = match body.take("input") {
        Some(Value::String(text)) => return Ok(vec![Input::Text(text)]),
        Some(Value::Array(list)) => list,
        _ => return Err(wrong("must be a text, a list of texts, tokens, or lists of tokens".into())),
    };
    if list.is_empty() {
        return Err(wrong("is empty".into()));
    }
    if list.iter().all(Value::is_number) {
        return Ok(vec![tokens(&list).ok_or_else(|| wrong("holds a number that is no token".into()))?]);
    }
    if list.len() > INPUTS {
        return Err(wrong(format!("has {} entries; {INPUTS} are taken", list.len())));
    }
    if list.iter().any(Value::is_string) && !list.iter().all(Value::is_string) {
        return Err(wrong("must hold texts only, or lists of tokens only".into()));
    }
    let one = |value: Value| match value {
        Value::String(text) => Ok(Input::Text(text)),
        Value::Array(list) => tokens(&list).ok_or_else(|| wrong("holds what is no token".into())),
        _ => Err(wrong("must hold texts only, or lists of tokens only".into())),
    };
    list.into_iter().map(one).collect()
}

/// How many numbers each vector is to have, where that is not all of them.
fn dimensions(asked: Option<usize>, loaded: &Loaded) -> Result<Option<usize>, ApiError> {
    let Some(asked) = asked else { return Ok(None) };
    let number = |name: &&str| loaded.config.get(*name).and_then(Value::as_u64);
    let width = ["hidden_size", "dim", "n_embd", "d_model"].iter().find_map(number).map(|n| n as usize);
    let refuse = |why: String| Err(ApiError::field("dimensions", format!("dimensions is {asked}, and {why}")));
    let own = width.map_or("all".into(), |n| n.to_string());
    if width == Some(asked) {
        return Ok(None);
    }
    if width.is_some_and(|w| asked > w) {
        return refuse(format!("the model's vectors have {own} numbers"));
    }
    let cuts: Option<Vec<u64>> = loaded
        .config
        .get("matryoshka_dimensions")
        .and_then(Value::as_array)
        .map(|l| l.iter().filter_map(Value::as_u64).collect());
    match cuts {
        Some(cuts) if cuts.contains(&(asked as u64)) => Ok(Some(asked)),
        Some(cuts) => refuse(format!("the model's vectors can be cut to one of {cuts:?}")),
        None if loaded.config.get("is_matryoshka") == Some(&Value::Bool(true)) => Ok(Some(asked)),
        None => refuse(format!("the model's vectors have {own} numbers and were not made to be cut")),
    }
}

/// How texts become vectors.
///
/// # Errors
/// A model that does not say, on a server that was not told.
pub(crate) fn pooling(service: &Service, loaded: &Loaded) -> Result<Pooling, ApiError> {
    let flag = service.settings.pooling.map(|pool| Pooling { pool, normalize: true });
    loaded.model.pooling.or(flag).ok_or_else(|| {
        let why = "the model has no files that say how a text's vector is made: start the server with --pooling \
                   mean, last or cls, or take a model for embeddings";
        ApiError::field("model", format!("{}: {why}", loaded.id))
    })
}

/// Answers.
///
/// # Errors
/// What is wrong with the request.
pub(crate) async fn run(service: Arc<Service>, call: Call) -> Outcome {
    let mut body = Body::read(&call.body, &[EMBEDDING])?;
    let packed = match body.text("encoding_format") {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "encoding_format must be float or base64")),
    };
    let inputs = inputs(&mut body)?;
    service.draining()?;
    let asked = body.text("model").unwrap_or("").to_string();
    let loaded = service.models.get(&asked).await?;
    let pooling = pooling(&service, &loaded)?;
    let cut = dimensions(body.count("dimensions"), &loaded)?;
    let own = Arc::clone(&loaded);
    let texts = blocking(move || {
        let tokens = |input| match input {
            Input::Text(text) => own.model.tokenizer.encode(&text, true),
            Input::Tokens(tokens) => Ok(tokens),
        };
        Ok(inputs.into_iter().map(tokens).collect::<lapis::Result<Vec<_>>>()?)
    })
    .await?;
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let mut vectors = embed::run(&service, &loaded, texts, pooling, &call).await?;
    if let Some(n) = cut {
        vectors.iter_mut().for_each(|v| shorten(v, n));
    }
    let entry = |(index, vector): (usize, &Vec<f32>)| {
        let value = if packed { json!(base64(vector)) } else { json!(vector) };
        json!({"object": "embedding", "index": index, "embedding": value})
    };
    let mut answer = answer::json(
        200,
        &json!({
            "object": "list", "data": vectors.iter().enumerate().map(entry).collect::<Vec<_>>(),
            "model": if asked.is_empty() { loaded.id.clone() } else { asked },
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }),
    );
    warn(&mut answer, &body.warnings);
    Ok(answer)
}

/// Numbers as little-endian bytes in base64 (RFC 4648, section 4).
fn base64(vector: &[f32]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0u32, |w, &b| w << 8 | u32::from(b)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let letter = char::from(LETTERS[(word >> (18 - 6 * i)) as usize & 63]);
            text.push(if i <= three.len() { letter } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn numbers_are_packed_as_rfc_4648_says() {
        // As Python's base64.b64encode(struct.pack("<2f", 1.0, -2.5)).
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[0.1, 0.2, 0.3]), "zczMPc3MTD6amZk+");
        assert_eq!(base64(&[]), "");
    }
}
