//! The frame that most models share: a table of tokens, layers, a norm, a head.

use super::{Attention, Mlp, Norm};
use crate::batch::Batch;
use crate::models::Model;
use crate::weights::At;
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::{Embedding, Layer, Linear, Module};

/// A layer of a decoder.
pub trait Layered: Module {
    /// Rows to rows.
    ///
    /// # Errors
    /// Sizes that do not fit.
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array>;

    /// Whether it gives the rows that are [looked at](Batch::looked_at) alone, once the batch is narrow.
    fn narrows(&self) -> bool {
        false
    }
}

/// The layer of most models: attention and a product, each added to its input, with norms around them.
#[derive(Module, Clone)]
pub struct Block<M: Layer = Mlp> {
    /// Looks at other tokens.
    pub self_attn: Attention,
    /// Looks at each token.
    pub mlp: M,
    /// Before and after the two.
    #[flatten]
    pub norms: Norms,
    /// How they are added.
    #[plain]
    pub residual: Residual,
}

impl<M: Layer> Block<M> {
    /// Each behind a norm, and added as it is.
    ///
    /// # Errors
    /// Those of `norm`.
    pub fn new(at: &At, self_attn: Attention, mlp: M, norm: impl Fn(&At, &str) -> Result<Norm>) -> Result<Block<M>> {
        Ok(Block { self_attn, mlp, norms: Norms::before(at, norm)?, residual: Residual::Plain })
    }
}

/// Where the norms of a layer stand.
#[derive(Module, Clone)]
pub enum Norms {
    /// Before attention and before the product.
    Before {
        /// Before attention.
        input_layernorm: Norm,
        /// Before the product.
        post_attention_layernorm: Norm,
    },
    /// After attention and after the product.
    After {
        /// After attention.
        post_attention_layernorm: Norm,
        /// After the product.
        post_feedforward_layernorm: Norm,
    },
    /// Before and after each.
    Around {
        /// Before attention.
        input_layernorm: Norm,
        /// After attention.
        post_attention_layernorm: Norm,
        /// Before the product.
        pre_feedforward_layernorm: Norm,
        /// After the product.
        post_feedforward_layernorm: Norm,
    },
    /// Before and after each, by the names of GLM 4.
    Between {
        /// Before attention.
        input_layernorm: Norm,
        /// After attention.
        post_self_attn_layernorm: Norm,
        /// Before the product.
        post_attention_layernorm: Norm,
        /// After the product.
        post_mlp_layernorm: Norm,
    },
    /// One before both, which see the same rows.
    Shared {
        /// Before both.
        input_layernorm: Norm,
    },
}

impl Norms {
    /// [`Norms::Before`] from a place in the names.
    ///
    /// # Errors
    /// Those of `norm`.
    pub fn before(at: &At, norm: impl Fn(&At, &str) -> Result<Norm>) -> Result<Norms> {
        Ok(Norms::Before {
            input_layernorm: norm(at, "input_layernorm")?,
            post_attention_layernorm: norm(at, "post_attention_layernorm")?,
        })
    }

    /// Before and after attention, before and after the product.
    fn places(&self) -> [Option<&Norm>; 4] {
        match self {
            Norms::Before { input_layernorm: a, post_attention_layernorm: b } => [Some(a), None, Some(b), None],
            Norms::After { post_attention_layernorm: a, post_feedforward_layernorm: b } => {
                [None, Some(a), None, Some(b)]
            }
            Norms::Around {
                input_layernorm: a,
                post_attention_layernorm: b,
                pre_feedforward_layernorm: c,
                post_feedforward_layernorm: d,
            }
            | Norms::Between {
                input_layernorm: a,
                post_self_attn_layernorm: b,
                post_attention_layernorm: c,
                post_mlp_layernorm: d,
            } => [Some(a), Some(b), Some(c), Some(d)],
            Norms::Shared { input_layernorm: a } => [Some(a), None, None, None],
        }
    }
}

/// How the result of a part of a layer is added to its input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Residual {
    /// As it is.
    Plain,
    /// Times a factor.
    Scaled(f64),
    /// In f16: as f32, kept within the finite numbers of f16.
    Clipped,
}

impl Residual {
    /// `x + y`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn add(self, x: &Array, y: &Array) -> Result<Array> {
        match self {
            Residual::Scaled(factor) => ops::add(x, ops::multiply(y, factor)?),
            Residual::Clipped if x.dtype() == Dtype::Float16 => {
                let wide = |a| ops::astype(a, Dtype::Float32);
                let sum = ops::add(wide(x)?, wide(y)?)?;
                ops::astype(&ops::clip(&sum, Some(&-65504.0), Some(&65504.0))?, Dtype::Float16)
            }
            _ => ops::add(x, y),
        }
    }
}

impl<M: Layer + Clone + 'static> Layered for Block<M> {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let through = |x: Array, norm: Option<&Norm>| norm.map_or(Ok(x.clone()), |norm| norm.forward(&x));
        let [a, b, c, d] = self.norms.places();
        let rows = through(x.clone(), a)?;
        let y = self.self_attn.forward(&rows, layer, batch)?;
        let y = through(batch.looked_at(&y)?, b)?;
        let x = batch.looked_at(x)?;
        if let Norms::Shared { .. } = self.norms {
            return ops::add(ops::add(y, self.mlp.forward(&batch.looked_at(&rows)?)?)?, x);
        }
        let x = self.residual.add(&x, &y)?;
        let y = through(self.mlp.forward(&through(x.clone(), c)?)?, d)?;
        self.residual.add(&x, &y)
    }

    fn narrows(&self) -> bool {
        true
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
        if tied {
            at.discard("lm_head");
        }
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

impl<L: Layered + Clone> Model for Decoder<L> {
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array> {
        let mut x = self.model.embed_tokens.forward(tokens)?;
        if self.embedding_scale != 1.0 {
            let scale = ops::full(&[], self.embedding_scale, Some(x.dtype()))?;
            x = ops::multiply(&x, scale)?;
        }
        for (i, layer) in self.model.layers.iter().enumerate() {
            if i + 1 == self.model.layers.len() && layer.narrows() {
                batch.narrow();
            }
            let place = |e: Error| Error::new(e.kind(), format!("layer {i}: {e}"));
            x = batch.layer(&x, |x, batch| layer.forward(x, i, batch)).map_err(place)?;
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
