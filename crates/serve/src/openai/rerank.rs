//! `/v1/rerank`, as Jina, Cohere and vLLM have it: which of some documents are nearest to a question.
//!
//! Documents are scored by the cosine between their vector and the question's, so any model of embeddings will do.
//! Models that read question and document together (cross-encoders) are not known here.

use super::embeddings::pooling;
use crate::embed;
use crate::error::ApiError;
use crate::fields::{Body, Field, Kind, field};
use crate::http::answer::{self, Outcome};
use crate::http::request::{Call, warn};
use crate::service::{Service, blocking, unique};
use serde_json::{Value, json};
use std::sync::Arc;

/// Fields of a request to rank documents.
pub(crate) const RERANK: &[Field] = &[
    field("model", Kind::Text, "A name of a model of embeddings."),
    field("query", Kind::Text, "What is looked for.").needed(),
    field("documents", Kind::List(2048), "Texts, or objects with a text; 2048 at most.").needed(),
    field("top_n", Kind::Integer(1, i64::MAX as i128), "How many are told of; absent, all."),
    field("return_documents", Kind::Flag, "Whether their texts come back; true by default."),
];

/// Answers.
///
/// # Errors
/// What is wrong with the request.
pub(crate) async fn run(service: Arc<Service>, call: Call) -> Outcome {
    let mut body = Body::read(&call.body, &[RERANK])?;
    let documents = body.take("documents");
    let text = |d: &Value| d.as_str().or_else(|| d.get("text")?.as_str()).map(str::to_string);
    let documents: Option<Vec<String>> =
        documents.as_ref().and_then(Value::as_array).map_or(Some(Vec::new()), |l| l.iter().map(text).collect());
    let wrong = |why| ApiError::field("documents", why);
    let documents = documents.ok_or_else(|| wrong("documents must hold texts, or objects with a text"))?;
    if documents.is_empty() {
        return Err(wrong("documents is empty"));
    }
    service.draining()?;
    let asked = body.text("model").unwrap_or("").to_string();
    let loaded = service.models.get(&asked).await?;
    let pooling = pooling(&service, &loaded)?;
    let query = body.text("query").unwrap_or("").to_string();
    let own = Arc::clone(&loaded);
    let (documents, texts) = blocking(move || {
        let all = std::iter::once(&query).chain(&documents).map(|text| own.model.tokenizer.encode(text, true));
        let texts = all.collect::<lapis::Result<Vec<_>>>()?;
        Ok((documents, texts))
    })
    .await?;
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let vectors = embed::run(&service, &loaded, texts, pooling, &call).await;
    let vectors = vectors.map_err(|e| ApiError { param: e.param.map(|_| "documents".into()), ..e })?;
    let mut scores: Vec<(usize, f64)> = vectors[1..].iter().map(|v| cosine(&vectors[0], v)).enumerate().collect();
    // Of equal ones, the first comes first.
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    scores.truncate(body.count("top_n").unwrap_or(usize::MAX));
    let shown = body.flag("return_documents") != Some(false);
    let result = |&(index, score): &(usize, f64)| {
        let mut result = json!({"index": index, "relevance_score": score});
        if shown {
            result["document"] = json!({"text": documents[index]});
        }
        result
    };
    let mut answer = answer::json(
        200,
        &json!({
            "id": unique("rerank-"), "object": "list", "model": if asked.is_empty() { loaded.id.clone() } else { asked },
            "results": scores.iter().map(result).collect::<Vec<_>>(),
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }),
    );
    warn(&mut answer, &body.warnings);
    Ok(answer)
}

/// The cosine of the angle between two vectors; 0 where one has no length.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { (dot(a, b) / lengths).clamp(-1.0, 1.0) } else { 0.0 }
}
