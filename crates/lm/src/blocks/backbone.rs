//! The frame of a model, as [`Decoder`](super::Decoder) is, by other names.

use super::{Layered, Norm};
use crate::batch::Batch;
use crate::models::Model;
use crate::weights::At;
use lapis::{Array, Error, Result};
use lapis_nn::{Embedding, Layer, Linear, Module};

/// The table of tokens.
#[derive(Module, Clone)]
pub enum Table {
    /// By its usual name.
    Tokens {
        /// The table.
        embed_tokens: Embedding,
    },
    /// By another.
    Plain {
        /// The table.
        embeddings: Embedding,
    },
}

/// After the last layer.
#[derive(Module, Clone)]
pub enum Last {
    /// By one name.
    Final {
        /// The norm.
        norm_f: Norm,
    },
    /// By another.
    Embedding {
        /// The norm.
        embedding_norm: Norm,
    },
}

/// Table, layers, norm.
#[derive(Module, Clone)]
pub struct Trunk<L: Layered> {
    /// The table.
    #[flatten]
    pub table: Table,
    /// The layers.
    pub layers: Vec<L>,
    /// After the last layer.
    #[flatten]
    pub last: Last,
}

/// Everything but the head.
#[derive(Module, Clone)]
pub enum Frame<L: Layered> {
    /// By one name.
    Backbone {
        /// The layers.
        backbone: Trunk<L>,
    },
    /// By another.
    Model {
        /// The layers.
        model: Trunk<L>,
    },
}

/// A model of layers `L`.
#[derive(Module, Clone)]
pub struct Backbone<L: Layered> {
    /// Everything but the head.
    #[flatten]
    pub frame: Frame<L>,
    /// The head; the table, when there is none.
    pub lm_head: Option<Linear>,
}

impl<L: Layered> Backbone<L> {
    /// `backbone` with `embeddings` and `norm_f`: Mamba and its kin.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn load(
        at: &At,
        [vocabulary, width, layers]: [usize; 3],
        tied: bool,
        eps: f64,
        layer: impl Fn(At, usize) -> Result<L>,
    ) -> Result<Backbone<L>> {
        let place = at.at("backbone");
        let backbone = Trunk {
            table: Table::Plain { embeddings: place.embedding("embeddings", vocabulary, width)? },
            layers: place.list("layers", layers, layer)?,
            last: Last::Final { norm_f: Norm::rms(&place, "norm_f", width, eps)? },
        };
        let lm_head = (!tied).then(|| at.linear("lm_head", width, vocabulary, false)).transpose()?;
        Ok(Backbone { frame: Frame::Backbone { backbone }, lm_head })
    }

    /// `model` with `embed_tokens` and `embedding_norm`, whose table is the head: LFM 2.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn load_model(
        at: &At,
        [vocabulary, width, layers]: [usize; 3],
        eps: f64,
        layer: impl Fn(At, usize) -> Result<L>,
    ) -> Result<Backbone<L>> {
        let place = at.at("model");
        let model = Trunk {
            table: Table::Tokens { embed_tokens: place.embedding("embed_tokens", vocabulary, width)? },
            layers: place.list("layers", layers, layer)?,
            last: Last::Embedding { embedding_norm: Norm::rms(&place, "embedding_norm", width, eps)? },
        };
        Ok(Backbone { frame: Frame::Model { model }, lm_head: None })
    }

    fn trunk(&self) -> &Trunk<L> {
        match &self.frame {
            Frame::Backbone { backbone: trunk } | Frame::Model { model: trunk } => trunk,
        }
    }

    fn table(&self) -> &Embedding {
        match &self.trunk().table {
            Table::Tokens { embed_tokens: table } | Table::Plain { embeddings: table } => table,
        }
    }
}

impl<L: Layered + Clone> Model for Backbone<L> {
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array> {
        let mut x = self.table().forward(tokens)?;
        for (i, layer) in self.trunk().layers.iter().enumerate() {
            let place = |e: Error| Error::new(e.kind(), format!("layer {i}: {e}"));
            x = batch.layer(&x, |x, batch| layer.forward(x, i, batch)).map_err(place)?;
        }
        match &self.trunk().last {
            Last::Final { norm_f: norm } | Last::Embedding { embedding_norm: norm } => norm.forward(&x),
        }
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => self.table().as_linear(hidden),
        }
    }

    fn module(&self) -> &dyn Module {
        self
    }

    fn module_mut(&mut self) -> &mut dyn Module {
        self
    }

    fn depth(&self) -> usize {
        self.trunk().layers.len()
    }
}
