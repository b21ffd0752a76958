//! Models whose layers are the usual ones under names of their own: the names are data.

use super::Model;
use crate::batch::Batch;
use crate::blocks::{Activation, Heads, Layered, Named, NamedAttention, NamedBlock, NamedGate, NamedMlp, Norm};
use crate::weights::At;
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Embedding, Layer, Linear, Module};

pub(crate) use crate::blocks::NamedInputs as Inputs;

type Block = NamedBlock<NamedAttention, NamedMlp>;

/// Names of the parts of a model.
pub(crate) struct Names {
    /// Everything but the head: table, table of positions, layers, last norm.
    pub(crate) body: &'static str,
    pub(crate) table: &'static str,
    pub(crate) positions: Option<&'static str>,
    pub(crate) layers: &'static str,
    pub(crate) norm: &'static str,
    /// From the top; the table, when there is none.
    pub(crate) head: Option<&'static str>,
    /// Of a layer.
    pub(crate) attention: &'static str,
    pub(crate) inputs: Inputs,
    pub(crate) output: &'static str,
    pub(crate) mlp: &'static str,
    /// What is multiplied with the product up, after its activation.
    pub(crate) gate: Option<&'static str>,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    /// Before attention, and before the product where that has one of its own.
    pub(crate) norms: (&'static str, Option<&'static str>),
}

/// The model.
pub(crate) struct Classic {
    pub(crate) names: Names,
    pub(crate) vocabulary: usize,
    pub(crate) width: usize,
    pub(crate) inner: usize,
    pub(crate) layers: usize,
    /// Positions in their table.
    pub(crate) positions: usize,
    pub(crate) heads: Heads,
    /// By the root mean square; else by mean and variance, with biases.
    pub(crate) rms: bool,
    pub(crate) eps: f64,
    /// Of projections to queries, keys and values, of the one back, of the products, of the head.
    pub(crate) bias: [bool; 4],
    pub(crate) activation: Activation,
    /// Attention and product see the same rows.
    pub(crate) parallel: bool,
}

#[derive(Module, Clone)]
struct Loaded {
    #[flatten]
    body: Named<Body>,
    #[flatten]
    head: Option<Named<Linear>>,
}

#[derive(Module, Clone)]
struct Body {
    #[flatten]
    table: Named<Embedding>,
    #[flatten]
    positions: Option<Named<Embedding>>,
    #[flatten]
    layers: Named<Vec<Block>>,
    #[flatten]
    norm: Named<Norm>,
}

impl Classic {
    /// The model of tensors.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub(crate) fn load(&self, at: &At) -> Result<Box<dyn Model>> {
        let (n, body) = (&self.names, at.at(self.names.body));
        let table = |name, rows| Ok::<_, Error>(Named(name, body.embedding(name, rows, self.width)?));
        let head = |name| Ok::<_, Error>(Named(name, at.linear(name, self.width, self.vocabulary, self.bias[3])?));
        if n.head.is_none() {
            at.discard("lm_head");
        }
        let parts = Body {
            table: table(n.table, self.vocabulary)?,
            positions: n.positions.map(|name| table(name, self.positions)).transpose()?,
            layers: Named(n.layers, body.list(n.layers, self.layers, |at, _| self.block(&at))?),
            norm: self.norm(&body, n.norm)?,
        };
        Ok(Box::new(Loaded { body: Named(n.body, parts), head: n.head.map(head).transpose()? }))
    }

    fn norm(&self, at: &At, name: &'static str) -> Result<Named<Norm>> {
        Ok(Named(
            name,
            match self.rms {
                true => Norm::rms(at, name, self.width, self.eps)?,
                false => Norm::layer(at, name, self.width, self.eps, true)?,
            },
        ))
    }

    fn block(&self, at: &At) -> Result<Block> {
        let n = &self.names;
        let (attention, mlp) = (at.at(n.attention), at.at(n.mlp));
        let bias = [self.bias[0], self.bias[1]];
        let attention = NamedAttention::load(&attention, self.width, n.inputs, n.output, self.heads.clone(), bias)?;
        let gate = n.gate.map_or(NamedGate::None, NamedGate::Apart);
        let sizes = [self.width, self.inner];
        Ok(Block {
            mixer: Named(n.attention, attention),
            product: Named(n.mlp, NamedMlp::load(&mlp, sizes, gate, [n.up, n.down], self.bias[2], self.activation)?),
            before: self.norm(at, n.norms.0)?,
            between: n.norms.1.map(|name| self.norm(at, name)).transpose()?,
            parallel: self.parallel,
        })
    }
}

impl Model for Loaded {
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array> {
        let body = &self.body.1;
        let mut x = body.table.1.forward(tokens)?;
        if let Some(positions) = &body.positions {
            x = ops::add(x, positions.1.forward(&batch.positions())?)?;
        }
        for (i, layer) in body.layers.1.iter().enumerate() {
            x = layer.forward(&x, i, batch)?;
        }
        body.norm.1.forward(&x)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        match &self.head {
            Some(head) => head.1.forward(hidden),
            None => self.body.1.table.1.as_linear(hidden),
        }
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
