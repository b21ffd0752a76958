//! Models whose layers are the usual ones under names of their own: the names are data.

use super::Model;
use crate::batch::Batch;
use crate::blocks::{Activation, Heads, Norm};
use crate::weights::At;
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Embedding, Layer, Linear, Module};

/// A part under a name that is data; to be flattened.
#[derive(Clone)]
struct Named<M>(&'static str, M);

impl<M: Module> Module for Named<M> {
    fn fields<'a>(&'a self, f: &mut dyn FnMut(&str, &'a dyn Module)) {
        f(self.0, &self.1);
    }

    fn fields_mut(&mut self, f: &mut dyn FnMut(&str, &mut dyn Module)) {
        f(self.0, &mut self.1);
    }
}

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

/// Projections to queries, keys and values.
#[derive(Clone, Copy)]
pub(crate) enum Inputs {
    Apart([&'static str; 3]),
    /// One: all queries, all keys, all values.
    Together(&'static str),
    /// One: for each head of keys, its queries, its key, its value.
    Grouped(&'static str),
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

#[derive(Module, Clone)]
struct Block {
    #[flatten]
    attention: Named<Attention>,
    #[flatten]
    mlp: Named<Mlp>,
    #[flatten]
    before: Named<Norm>,
    #[flatten]
    between: Option<Named<Norm>>,
    parallel: bool,
}

#[derive(Module, Clone)]
struct Attention {
    #[flatten]
    q: Named<Linear>,
    #[flatten]
    k: Option<Named<Linear>>,
    #[flatten]
    v: Option<Named<Linear>>,
    #[flatten]
    output: Named<Linear>,
    #[plain]
    inputs: Inputs,
    #[plain]
    heads: Heads,
}

#[derive(Module, Clone)]
struct Mlp {
    #[flatten]
    gate: Option<Named<Linear>>,
    #[flatten]
    up: Named<Linear>,
    #[flatten]
    down: Named<Linear>,
    activation: Activation,
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
        let (n, h) = (&self.names, &self.heads);
        let (q, k) = (h.count * h.width, h.keys * h.width);
        let (a, m) = (at.at(n.attention), at.at(n.mlp));
        let attention =
            |name, i, o, back| Ok::<_, Error>(Named(name, a.linear(name, i, o, self.bias[usize::from(back)])?));
        let product = |name, i, o| Ok::<_, Error>(Named(name, m.linear(name, i, o, self.bias[2])?));
        let (q, k, v) = match n.inputs {
            Inputs::Apart([x, y, z]) => (
                attention(x, self.width, q, false)?,
                Some(attention(y, self.width, k, false)?),
                Some(attention(z, self.width, k, false)?),
            ),
            Inputs::Together(x) | Inputs::Grouped(x) => (attention(x, self.width, q + 2 * k, false)?, None, None),
        };
        let output = attention(n.output, h.count * h.width, self.width, true)?;
        Ok(Block {
            attention: Named(n.attention, Attention { q, k, v, output, inputs: n.inputs, heads: h.clone() }),
            mlp: Named(
                n.mlp,
                Mlp {
                    gate: n.gate.map(|name| product(name, self.width, self.inner)).transpose()?,
                    up: product(n.up, self.width, self.inner)?,
                    down: product(n.down, self.inner, self.width)?,
                    activation: self.activation,
                },
            ),
            before: self.norm(at, n.norms.0)?,
            between: n.norms.1.map(|name| self.norm(at, name)).transpose()?,
            parallel: self.parallel,
        })
    }
}

impl Attention {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let first = self.q.1.forward(x)?;
        let (q, k, v) = match (&self.k, &self.v, self.inputs) {
            (Some(k), Some(v), _) => (first, k.1.forward(x)?, v.1.forward(x)?),
            (_, _, Inputs::Grouped(_)) => {
                let (rows, width, group) = (x.dim(0) as i64, self.heads.width, self.heads.count / self.heads.keys);
                let groups = ops::reshape(&first, &[rows, self.heads.keys as i64, -1])?;
                let border = (group * width) as i64;
                let parts = ops::split(&groups, vec![border, border + width as i64], -1)?;
                let flat = |a: &Array| ops::reshape(a, &[rows, -1]);
                let [q, k, v] = &parts[..] else { return Err(Error::shape("[attention] queries, keys, values")) };
                (flat(q)?, flat(k)?, flat(v)?)
            }
            _ => self.heads.split(&first)?,
        };
        self.output.1.forward(&self.heads.attend([&q, &k, &v], None, layer, batch)?)
    }
}

impl Layer for Mlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        let up = self.up.1.forward(x)?;
        let y = match &self.gate {
            Some(gate) => ops::multiply((self.activation)(&gate.1.forward(x)?)?, up)?,
            None => (self.activation)(&up)?,
        };
        self.down.1.forward(&y)
    }
}

impl Block {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let rows = self.before.1.forward(x)?;
        let y = self.attention.1.forward(&rows, layer, batch)?;
        let between = |x: &Array| self.between.as_ref().map(|norm| norm.1.forward(x)).transpose();
        if self.parallel {
            let rows = between(x)?.unwrap_or(rows);
            return ops::add(ops::add(y, self.mlp.1.forward(&rows)?)?, x);
        }
        let x = ops::add(x, y)?;
        ops::add(&x, self.mlp.1.forward(&between(&x)?.unwrap_or(x.clone()))?)
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
