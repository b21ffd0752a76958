//! `lapis logits`: the numbers themselves, for comparing implementations.

use crate::model::Source;
use crate::{ranks, say};
use lapis::{Array, Dtype, Error, Result, eval, io, ops};
use lapis_lm::{Batch, Sequence, models};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Token ids of one or several sequences of one length: "1,2,3;4,5,6"
    #[arg(long)]
    tokens: String,
    /// Where to write float32 (sequences, tokens, vocabulary): a .npy file
    #[arg(long)]
    output: PathBuf,
    /// Feed this many tokens at a time through the cache
    #[arg(long)]
    chunk: Option<usize>,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let group = ranks::join()?;
    let sequences = a.tokens.split(';').filter(|s| !s.trim().is_empty()).map(ids).collect::<Result<Vec<_>>>()?;
    let length = sequences.first().map_or(0, Vec::len);
    if length == 0 || sequences.iter().any(|s| s.len() != length) {
        return Err(Error::value("--tokens: sequences of one length are needed, one token at least"));
    }
    let mut checkpoint = a.source.checkpoint()?;
    let vocabulary = checkpoint.vocabulary()?;
    if let Some(id) = sequences.iter().flatten().find(|&&id| id as usize >= vocabulary) {
        return Err(Error::index(format!("--tokens: the model has {vocabulary} tokens, from 0 on, and no {id}")));
    }
    let mut model = models::load(&mut checkpoint)?;
    models::split(&mut *model, group)?;
    let mut rows = Vec::new();
    for tokens in &sequences {
        let mut sequence = Sequence::new();
        let mut parts = Vec::new();
        for part in tokens.chunks(a.chunk.unwrap_or(length).max(1)) {
            let mut batch = Batch::one(part.len(), &mut sequence);
            let hidden = model.hidden(&Array::from_slice(part, &[part.len()]), &mut batch)?;
            batch.finish();
            let logits = ops::astype(&model.logits(&hidden)?, Dtype::Float32)?;
            eval(sequence.arrays().chain([&logits]))?;
            parts.push(logits);
        }
        rows.push(ops::concatenate(&parts, 0)?);
    }
    let all = ops::stack(&rows, 0)?;
    if group.rank() > 0 {
        return all.eval();
    }
    io::save_npy(&a.output, &all)?;
    // As it is called by now.
    let suffix = if a.output.extension().is_some_and(|e| e == "npy") { "" } else { ".npy" };
    say::note(&format!("wrote {}{suffix}: float32 {:?}", a.output.display(), all.shape()));
    Ok(())
}

fn ids(text: &str) -> Result<Vec<i32>> {
    let id = |t: &str| {
        let bad =
            || Error::value(format!("--tokens: {t:?} is no token id; ids are whole numbers from 0, as in \"1,2,3\""));
        t.trim().parse::<i32>().ok().filter(|n| *n >= 0).ok_or_else(bad)
    };
    text.split(',').map(id).collect()
}
