//! A small transformer learns to write: letters of a made-up text, one after the other.
use lapis::ops::fast::AttentionMask;
use lapis::prelude::*;
use lapis::{Result, random};
use lapis_nn::losses::{CrossEntropy, Reduction, cross_entropy};
use lapis_nn::optim::{AdamW, Optimizer, clip_grad_norm};
use lapis_nn::{Embedding, Layer, Linear, Module, TransformerEncoder, TransformerOptions, value_and_grad};

const LENGTH: usize = 64;
const BATCH: usize = 16;

#[derive(Module, Clone)]
struct Writer {
    letters: Embedding,
    places: Embedding,
    blocks: TransformerEncoder,
    out: Linear,
}

impl Writer {
    fn new(letters: usize, dims: usize) -> Result<Writer> {
        Ok(Writer {
            letters: Embedding::new(letters, dims)?,
            places: Embedding::new(LENGTH, dims)?,
            blocks: TransformerEncoder::new(2, dims, 4, TransformerOptions::default())?,
            out: Linear::new(dims, letters, true)?,
        })
    }
}

impl Layer for Writer {
    /// Letters `[batch, length]` to logits of the letters that follow.
    fn forward(&self, x: &Array) -> Result<Array> {
        let places = ops::arange(0, x.dim(1), 1, Some(Dtype::Int32))?;
        let x = self.letters.forward(x)? + self.places.forward(&places)?;
        self.out.forward(&self.blocks.forward(&x, AttentionMask::Causal)?)
    }
}

/// Sentences that have a grammar, so that there is something to learn.
fn text() -> Result<String> {
    let who = ["the cat", "a dog", "the old owl", "my friend", "the small fox"];
    let does = ["sees", "likes", "follows", "finds", "draws"];
    let what = ["a red ball", "the moon", "an apple", "the river", "two stones"];
    let picks = random::randint(0, 5, &[600, 3], Dtype::Int32, Some(&random::key(7)))?.to_vec::<i32>()?;
    let sentence = |p: &[i32]| format!("{} {} {}. ", who[p[0] as usize], does[p[1] as usize], what[p[2] as usize]);
    Ok(picks.chunks(3).map(sentence).collect())
}

fn main() -> Result<()> {
    random::seed(0);
    let steps: usize = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(300);
    let text = text()?;
    let mut alphabet: Vec<char> = text.chars().collect();
    alphabet.sort_unstable();
    alphabet.dedup();
    let code = |c: char| alphabet.binary_search(&c).map_or(0, |i| i as i32);
    let data = Array::from_vec(text.chars().map(code).collect::<Vec<i32>>(), &[text.chars().count()]);

    let mut model = Writer::new(alphabet.len(), 64)?;
    let mut optimizer = AdamW::new(3e-3);
    println!("{} letters of text, {} parameters", data.size(), model.num_parameters());
    for step in 1..=steps {
        // Windows of the text that start anywhere; the targets are one letter further.
        let starts = random::randint(0, data.size() - LENGTH, &[BATCH, 1], Dtype::Int32, None)?;
        let places = starts + ops::arange(0, LENGTH, 1, Some(Dtype::Int32))?;
        let (x, y) = (ops::take(&data, &places, 0)?, ops::take(&data, &(places + 1), 0)?);
        let (loss, grads) = value_and_grad(&model, |m| {
            cross_entropy(&m.forward(&x)?, &y, CrossEntropy { reduction: Reduction::Mean, ..Default::default() })
        })?;
        let (grads, _) = clip_grad_norm(&grads, 1.0)?;
        optimizer.update(&mut model, &grads)?;
        eval(model.parameters().values().chain(optimizer.state().values()))?;
        if step % 50 == 0 || step == steps {
            println!("step {step:4}: loss {:.3}", loss.item::<f32>()?);
        }
    }

    // Letters drawn one by one, each from what the model expects after those before it.
    let mut written = String::from("the ");
    for _ in 0..150 {
        let seen: Vec<i32> = written.chars().map(code).collect();
        let seen = &seen[seen.len().saturating_sub(LENGTH)..];
        let logits = model.forward(&Array::from_slice(seen, &[1, seen.len()]))?;
        let last = ops::take(&logits, &array([seen.len() as i32 - 1]), 1)?.reshape(&[-1]);
        let next = random::categorical(&(last / 0.5), -1, random::Draws::One, None)?;
        written.push(alphabet[next.item::<u32>()? as usize]);
    }
    println!("\n{written}");
    Ok(())
}
