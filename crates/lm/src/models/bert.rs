//! BERT, RoBERTa, XLM-RoBERTa, DistilBERT: encoders, whose tokens see those after them too. They give embeddings and
//! write nothing.

use super::common::{boxed, multiple};
use super::settings::wrong;
use super::{Architecture, Config, Model, Packing, parse};
use crate::batch::Batch;
use crate::blocks::{Activation, Heads};
use crate::weights::At;
use lapis::io::Arrays;
use lapis::ops::fast::{AttentionOptions, scaled_dot_product_attention};
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::activations::{gelu, gelu_approx, relu, silu};
use lapis_nn::{Embedding, Layer, LayerNorm, Linear, Module};
use serde::Deserialize;
use serde_json::Value;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    sanitize,
    quantize: |path| match path {
        "embeddings.position_embeddings" | "embeddings.token_type_embeddings" => Packing::Never,
        _ => Packing::Base,
    },
    ..Architecture::plain(&NAMES, load)
};

/// The `model_type`s of encoders.
pub(super) const NAMES: [&str; 5] = ["bert", "roberta", "xlm-roberta", "camembert", "distilbert"];

#[derive(Deserialize)]
struct Sizes {
    vocab_size: usize,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    max_position_embeddings: usize,
    /// DistilBERT has none.
    #[serde(default)]
    type_vocab_size: usize,
    #[serde(default = "eps")]
    layer_norm_eps: f64,
    #[serde(alias = "activation", default = "usual")]
    hidden_act: String,
    #[serde(default = "absolute")]
    position_embedding_type: String,
}

fn eps() -> f64 {
    1e-12
}

fn usual() -> String {
    "gelu".into()
}

fn absolute() -> String {
    "absolute".into()
}

/// Rows at the beginning of the table of positions that no token has: RoBERTa counts from behind its padding.
pub(super) fn first_position(config: &Config) -> usize {
    match config.get("model_type").and_then(Value::as_str) {
        Some("roberta" | "xlm-roberta" | "camembert") => {
            config.get("pad_token_id").and_then(Value::as_u64).map_or(2, |pad| pad as usize + 1)
        }
        _ => 0,
    }
}

#[derive(Module, Clone)]
struct Bert {
    embeddings: Embeddings,
    encoder: Encoder,
}

#[derive(Module, Clone)]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Option<Embedding>,
    #[name = "LayerNorm"]
    norm: LayerNorm,
    first: usize,
}

#[derive(Module, Clone)]
struct Encoder {
    layer: Vec<Block>,
}

#[derive(Module, Clone)]
struct Block {
    attention: Attention,
    intermediate: Up,
    output: Output,
    activation: Activation,
}

#[derive(Module, Clone)]
struct Attention {
    #[name = "self"]
    inputs: Inputs,
    output: Output,
    #[plain]
    heads: Heads,
}

#[derive(Module, Clone)]
struct Inputs {
    query: Linear,
    key: Linear,
    value: Linear,
}

#[derive(Module, Clone)]
struct Up {
    dense: Linear,
}

/// A product whose result is added to what went in, and the norm of the sum.
#[derive(Module, Clone)]
struct Output {
    dense: Linear,
    #[name = "LayerNorm"]
    norm: LayerNorm,
}

fn load(config: &Config, at: &At) -> Result<Box<dyn Model>> {
    let c: Sizes = parse(config)?;
    let width = c.hidden_size;
    multiple("hidden_size", width, "num_attention_heads", c.num_attention_heads)?;
    if c.position_embedding_type != "absolute" {
        return Err(wrong("position_embedding_type", format!("{:?} is not supported", c.position_embedding_type)));
    }
    let activation: Activation = match c.hidden_act.as_str() {
        "gelu" => gelu,
        "gelu_new" | "gelu_pytorch_tanh" => gelu_approx,
        "relu" => relu,
        "silu" | "swish" => silu,
        other => return Err(wrong("hidden_act", format!("{other:?} is not known"))),
    };
    let norm = |at: &At| at.layer_norm("LayerNorm", width, c.layer_norm_eps, true);
    let output =
        |at: At, input| Ok::<_, Error>(Output { dense: at.linear("dense", input, width, true)?, norm: norm(&at)? });
    let block = |at: At, _| {
        let own = at.at("attention").at("self");
        let product = |name| own.linear(name, width, width, true);
        Ok(Block {
            attention: Attention {
                inputs: Inputs { query: product("query")?, key: product("key")?, value: product("value")? },
                output: output(at.at("attention").at("output"), width)?,
                heads: Heads::new(c.num_attention_heads, c.num_attention_heads, width / c.num_attention_heads, None),
            },
            intermediate: Up { dense: at.at("intermediate").linear("dense", width, c.intermediate_size, true)? },
            output: output(at.at("output"), c.intermediate_size)?,
            activation,
        })
    };
    let first = at.at("embeddings");
    let kinds = (c.type_vocab_size > 0).then(|| first.embedding("token_type_embeddings", c.type_vocab_size, width));
    boxed(Bert {
        embeddings: Embeddings {
            word_embeddings: first.embedding("word_embeddings", c.vocab_size, width)?,
            position_embeddings: first.embedding("position_embeddings", c.max_position_embeddings, width)?,
            token_type_embeddings: kinds.transpose()?,
            norm: norm(&first)?,
            first: first_position(config),
        },
        encoder: Encoder { layer: at.at("encoder").list("layer", c.num_hidden_layers, block)? },
    })
}

/// Names without the model's own, DistilBERT's to BERT's, old ones of norms to new ones; heads of tasks are left out.
fn sanitize(_: &Config, tensors: &mut Arrays) -> Result<()> {
    const PARTS: [(&str, &str); 12] = [
        ("transformer.layer.", "encoder.layer."),
        (".attention.q_lin.", ".attention.self.query."),
        (".attention.k_lin.", ".attention.self.key."),
        (".attention.v_lin.", ".attention.self.value."),
        (".attention.out_lin.", ".attention.output.dense."),
        (".sa_layer_norm.", ".attention.output.LayerNorm."),
        (".ffn.lin1.", ".intermediate.dense."),
        (".ffn.lin2.", ".output.dense."),
        (".output_layer_norm.", ".output.LayerNorm."),
        (".LayerNorm.gamma", ".LayerNorm.weight"),
        (".LayerNorm.beta", ".LayerNorm.bias"),
        // Of sentence-transformers' own saving.
        ("auto_model.", ""),
    ];
    let body = |name: &str| name.starts_with("embeddings.") || name.starts_with("encoder.layer.");
    let renamed = std::mem::take(tensors).into_iter().map(|(name, tensor)| {
        let mut name = PARTS.iter().fold(name, |name, (from, to)| name.replace(from, to));
        for model in ["bert.", "roberta.", "distilbert.", "camembert."] {
            name = name.strip_prefix(model).map_or(name.clone(), str::to_string);
        }
        (name, tensor)
    });
    tensors.extend(renamed.filter(|(name, _)| body(name) && !name.ends_with("embeddings.position_ids")));
    tensors.retain(|name, _| name != "embeddings.token_type_ids");
    Ok(())
}

impl Embeddings {
    fn forward(&self, tokens: &Array, batch: &Batch) -> Result<Array> {
        let mut x = self.word_embeddings.forward(tokens)?;
        if let Some(kinds) = &self.token_type_embeddings {
            // A text alone is of the first kind.
            x = ops::add(x, kinds.forward(&ops::zeros::<i32>(&[1])?)?)?;
        }
        let places = ops::add(batch.positions(), ops::full(&[1], self.first as f64, Some(Dtype::Int32))?)?;
        self.norm.forward(&ops::add(x, self.position_embeddings.forward(&places)?)?)
    }
}

impl Attention {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let (q, k, v) = (self.inputs.query.forward(x)?, self.inputs.key.forward(x)?, self.inputs.value.forward(x)?);
        let y = batch.each(layer, &[&q, &k, &v], |rows, slot| {
            if slot.at > 0 {
                return Err(Error::value("[generate] an encoder reads a text at once, and cannot go on with one"));
            }
            let heads = |x: &Array| {
                let x = ops::reshape(x, &[1, x.dim(0) as i64, self.heads.count as i64, -1])?;
                ops::transpose(&x, Some(&[0, 2, 1, 3]))
            };
            let options = AttentionOptions { scale: self.heads.scale, ..AttentionOptions::default() };
            let y = scaled_dot_product_attention(&heads(&rows[0])?, &heads(&rows[1])?, &heads(&rows[2])?, &options)?;
            ops::reshape(&ops::transpose(&y, Some(&[0, 2, 1, 3]))?, &[y.dim(2) as i64, -1])
        })?;
        self.output.forward(&y, x)
    }
}

impl Output {
    fn forward(&self, x: &Array, before: &Array) -> Result<Array> {
        self.norm.forward(&ops::add(self.dense.forward(x)?, before)?)
    }
}

impl Model for Bert {
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array> {
        let mut x = self.embeddings.forward(tokens, batch)?;
        for (i, block) in self.encoder.layer.iter().enumerate() {
            x = block.attention.forward(&x, i, batch)?;
            let inner = (block.activation)(&block.intermediate.dense.forward(&x)?)?;
            x = block.output.forward(&inner, &x)?;
        }
        Ok(x)
    }

    fn logits(&self, _: &Array) -> Result<Array> {
        Err(Error::unsupported("[generate] this model is an encoder: it gives embeddings and writes no text"))
    }

    fn module(&self) -> &dyn Module {
        self
    }

    fn module_mut(&mut self) -> &mut dyn Module {
        self
    }

    fn depth(&self) -> usize {
        self.encoder.layer.len()
    }

    fn is_encoder(&self) -> bool {
        true
    }
}
