//! The frame of a model, as [`Decoder`](super::Decoder) is, by names that are data.

use super::{Layered, Named, Norm};
use crate::batch::Batch;
use crate::models::Model;
use crate::weights::At;
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Embedding, Layer, Linear, Module};

/// Names of the parts of a frame.
#[derive(Clone, Copy, Debug)]
pub struct FrameNames {
    /// Everything but the head.
    pub body: &'static str,
    /// The table of tokens.
    pub table: &'static str,
    /// The layers.
    pub layers: &'static str,
    /// The norm after the last one.
    pub norm: &'static str,
    /// The head, from the top.
    pub head: &'static str,
}

impl FrameNames {
    /// `model` with `embed_tokens`, `layers` and a last norm of this name.
    pub const fn model(norm: &'static str) -> FrameNames {
        FrameNames { body: "model", table: "embed_tokens", layers: "layers", norm, head: "lm_head" }
    }

    /// `backbone` with `embeddings` and `norm_f`: Mamba and its kin.
    pub const MAMBA: FrameNames =
        FrameNames { body: "backbone", table: "embeddings", layers: "layers", norm: "norm_f", head: "lm_head" };
}

/// Table, layers, norm.
#[derive(Module, Clone)]
pub struct Trunk<L: Layered> {
    /// The table.
    #[flatten]
    pub table: Named<Embedding>,
    /// The layers.
    #[flatten]
    pub layers: Named<Vec<L>>,
    /// After the last layer.
    #[flatten]
    pub last: Named<Norm>,
}

/// A model of layers `L`.
#[derive(Module, Clone)]
pub struct Backbone<L: Layered> {
    /// Everything but the head.
    #[flatten]
    pub body: Named<Trunk<L>>,
    /// The head; the table, when there is none.
    #[flatten]
    pub head: Option<Named<Linear>>,
    /// Of rows of the table.
    pub first: Option<Norm>,
    /// Factor of the rows of the table.
    pub embedding_scale: f64,
    /// Factor of the logits.
    pub logit_scale: f64,
    /// Soft cap of the logits; 0 for none.
    pub logit_cap: f64,
}

impl<L: Layered> Backbone<L> {
    /// From the top of the names. `head` says whether the head has a bias; without it the table is the head.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn load(
        at: &At,
        names: FrameNames,
        [vocabulary, width, layers]: [usize; 3],
        head: Option<bool>,
        norm: impl Fn(&At, &str) -> Result<Norm>,
        layer: impl Fn(At, usize) -> Result<L>,
    ) -> Result<Backbone<L>> {
        let place = at.at(names.body);
        if head.is_none() {
            at.discard(names.head);
        }
        let linear = |bias| Ok::<_, Error>(Named(names.head, at.linear(names.head, width, vocabulary, bias)?));
        let trunk = Trunk {
            table: Named(names.table, place.embedding(names.table, vocabulary, width)?),
            layers: Named(names.layers, place.list(names.layers, layers, layer)?),
            last: Named(names.norm, norm(&place, names.norm)?),
        };
        Ok(Backbone {
            body: Named(names.body, trunk),
            head: head.map(linear).transpose()?,
            first: None,
            embedding_scale: 1.0,
            logit_scale: 1.0,
            logit_cap: 0.0,
        })
    }
}

impl<L: Layered + Clone> Model for Backbone<L> {
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array> {
        let trunk = &self.body.1;
        let mut x = trunk.table.1.forward(tokens)?;
        if self.embedding_scale != 1.0 {
            x = ops::multiply(&x, ops::full(&[], self.embedding_scale, Some(x.dtype()))?)?;
        }
        if let Some(first) = &self.first {
            x = first.forward(&x)?;
        }
        for (i, layer) in trunk.layers.1.iter().enumerate() {
            if i + 1 == trunk.layers.1.len() && layer.narrows() {
                batch.narrow();
            }
            let place = |e: Error| Error::new(e.kind(), format!("layer {i}: {e}"));
            x = batch.layer(&x, |x, batch| layer.forward(x, i, batch)).map_err(place)?;
        }
        trunk.last.1.forward(&x)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let mut y = match &self.head {
            Some(head) => head.1.forward(hidden)?,
            None => self.body.1.table.1.as_linear(hidden)?,
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
        self.body.1.layers.1.len()
    }
}
