//! The frame that most models share: a table of tokens, layers, a norm, a head.

use super::{Attention, Mlp, Norm};
use crate::batch::Batch;
use crate::models::Model;
use crate::weights::At;
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Embedding, Layer, Linear, Module};

/// A layer of a decoder.
pub trait Layered: Module {
    /// Rows to rows.
    ///
    /// # Errors
    /// Sizes that do not fit.
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array>;
}

/// The layer of most models: attention and a gated product, each behind a norm and added to its input.
#[derive(Module, Clone)]
pub struct Block {
    /// Looks at other tokens.
    pub self_attn: Attention,
    /// Looks at each token.
    pub mlp: Mlp,
    /// Before attention.
    pub input_layernorm: Norm,
    /// Before the product.
    pub post_attention_layernorm: Norm,
}

impl Layered for Block {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let x = ops::add(x, self.self_attn.forward(&self.input_layernorm.forward(x)?, layer, batch)?)?;
        ops::add(&x, self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?)
    }
}

/// Table, layers, norm.
#[derive(Module, Clone)]
pub struct Body<L: Layered> {
    /// The table.
    pub embed_tokens: Embedding,
    /// The layers.
    pub layers: Vec<L>,
    /// After the last layer.
    pub norm: Norm,
}

/// A whole model of layers `L`.
#[derive(Module, Clone)]
pub struct Decoder<L: Layered> {
    /// Everything but the head.
    pub model: Body<L>,
    /// The head; the table, when there is none.
    pub lm_head: Option<Linear>,
    /// Factor of the rows of the table, rounded to their type.
    pub embedding_scale: f64,
    /// Factor of the logits.
    pub logit_scale: f64,
    /// Soft cap of the logits, after the factor; 0 for none.
    pub logit_cap: f64,
}

impl<L: Layered> Decoder<L> {
    /// From the top of the names: `layer` builds one.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn load(
        at: &At,
        [vocabulary, width, layers]: [usize; 3],
        tied: bool,
        norm: impl Fn(&At, &str) -> Result<Norm>,
        layer: impl Fn(At, usize) -> Result<L>,
    ) -> Result<Decoder<L>> {
        let body = at.at("model");
        Ok(Decoder {
            model: Body {
                embed_tokens: body.embedding("embed_tokens", vocabulary, width)?,
                layers: body.list("layers", layers, layer)?,
                norm: norm(&body, "norm")?,
            },
            lm_head: (!tied).then(|| at.linear("lm_head", width, vocabulary, false)).transpose()?,
            embedding_scale: 1.0,
            logit_scale: 1.0,
            logit_cap: 0.0,
        })
    }
}

impl<L: Layered> Model for Decoder<L> {
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array> {
        let mut x = self.model.embed_tokens.forward(tokens)?;
        if self.embedding_scale != 1.0 {
            let scale = ops::full(&[], self.embedding_scale, Some(x.dtype()))?;
            x = ops::multiply(&x, scale)?;
        }
        for (i, layer) in self.model.layers.iter().enumerate() {
            let place = |e: Error| Error::new(e.kind(), format!("layer {i}: {e}"));
            x = layer.forward(&x, i, batch).map_err(place)?;
        }
        self.model.norm.forward(&x)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let mut y = match &self.lm_head {
            Some(head) => head.forward(hidden)?,
            None => self.model.embed_tokens.as_linear(hidden)?,
        };
        if self.logit_scale != 1.0 {
            y = ops::multiply(&y, self.logit_scale)?;
        }
        if self.logit_cap != 0.0 {
            y = ops::multiply(ops::tanh(&ops::divide(&y, self.logit_cap)?)?, self.logit_cap)?;
        }
        Ok(y)
    }

    fn module(&self) -> &dyn Module {
        self
    }

    fn module_mut(&mut self) -> &mut dyn Module {
        self
    }

    fn depth(&self) -> usize {
        self.model.layers.len()
    }
}
