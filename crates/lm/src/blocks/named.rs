//! Parts whose names are data: attention, products and layers of models that call them by names of their own. Knows no
//! model.

use super::{Activation, Heads, Layered, Norm};
use crate::batch::Batch;
use crate::weights::At;
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Layer, Linear, Module};

/// A part under a name that is data; to be flattened. Dots in the name lead down, an empty one stays here.
#[derive(Clone)]
pub struct Named<M>(pub &'static str, pub M);

impl<M: Module> Module for Named<M> {
    fn fields<'a>(&'a self, f: &mut dyn FnMut(&str, &'a dyn Module)) {
        f(self.0, &self.1);
    }

    fn fields_mut(&mut self, f: &mut dyn FnMut(&str, &mut dyn Module)) {
        f(self.0, &mut self.1);
    }
}

/// Names of the projections to queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub enum NamedInputs {
    /// One each.
    Apart([&'static str; 3]),
    /// One: all queries, all keys, all values.
    Together(&'static str),
    /// One: for each head of keys, its queries, its key, its value.
    Grouped(&'static str),
}

/// Projections to queries, keys and values and back, under names of their own.
#[derive(Module, Clone)]
pub struct NamedAttention {
    #[flatten]
    q: Named<Linear>,
    #[flatten]
    k: Option<Named<Linear>>,
    #[flatten]
    v: Option<Named<Linear>>,
    #[flatten]
    output: Named<Linear>,
    /// Of each head of queries.
    #[flatten]
    q_norm: Option<Named<Norm>>,
    /// Of each head of keys.
    #[flatten]
    k_norm: Option<Named<Norm>>,
    /// The two stand after positions.
    late: bool,
    /// Of what was attended to, before it goes back.
    #[flatten]
    last: Option<Named<Norm>>,
    #[plain]
    inputs: NamedInputs,
    #[plain]
    heads: Heads,
}

impl NamedAttention {
    /// From a place in the names; `bias` says whether those to queries, keys and values, and the one back, have biases.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(
        at: &At,
        width: usize,
        inputs: NamedInputs,
        output: &'static str,
        heads: Heads,
        bias: [bool; 2],
    ) -> Result<NamedAttention> {
        let (q, k) = (heads.count * heads.width, heads.keys * heads.width);
        let part = |name, n| Ok::<_, Error>(Named(name, at.linear(name, width, n, bias[0])?));
        let (to_q, to_k, to_v) = match inputs {
            NamedInputs::Apart([x, y, z]) => (part(x, q)?, Some(part(y, k)?), Some(part(z, k)?)),
            NamedInputs::Together(x) | NamedInputs::Grouped(x) => (part(x, q + 2 * k)?, None, None),
        };
        let output = Named(output, at.linear(output, q, width, bias[1])?);
        let (q_norm, k_norm, last) = (None, None, None);
        Ok(NamedAttention { q: to_q, k: to_k, v: to_v, output, q_norm, k_norm, late: false, last, inputs, heads })
    }

    /// With norms of each head of queries and keys; `late` ones stand after positions.
    pub fn with_norms(self, q_norm: Named<Norm>, k_norm: Named<Norm>, late: bool) -> NamedAttention {
        NamedAttention { q_norm: Some(q_norm), k_norm: Some(k_norm), late, ..self }
    }

    /// With a norm of what was attended to.
    pub fn with_last(self, last: Named<Norm>) -> NamedAttention {
        NamedAttention { last: Some(last), ..self }
    }

    /// Rows of queries, keys and values.
    fn project(&self, x: &Array) -> Result<(Array, Array, Array)> {
        let first = self.q.1.forward(x)?;
        match (&self.k, &self.v, self.inputs) {
            (Some(k), Some(v), _) => Ok((first, k.1.forward(x)?, v.1.forward(x)?)),
            (_, _, NamedInputs::Grouped(_)) => {
                let (rows, width, group) = (x.dim(0) as i64, self.heads.width, self.heads.count / self.heads.keys);
                let groups = ops::reshape(&first, &[rows, self.heads.keys as i64, -1])?;
                let border = (group * width) as i64;
                let parts = ops::split(&groups, vec![border, border + width as i64], -1)?;
                let flat = |a: &Array| ops::reshape(a, &[rows, -1]);
                let [q, k, v] = &parts[..] else { return Err(Error::shape("[attention] queries, keys, values")) };
                Ok((flat(q)?, flat(k)?, flat(v)?))
            }
            _ => self.heads.split(&first),
        }
    }
}

impl Layered for NamedAttention {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let (q, mut k, v) = self.project(x)?;
        let mut q = self.heads.asked(&q, batch)?;
        let through = |x: Array, norm: &Option<Named<Norm>>| norm.as_ref().map_or(Ok(x.clone()), |n| n.1.forward(&x));
        let y = if self.late {
            let after = |q, k| Ok((through(q, &self.q_norm)?, through(k, &self.k_norm)?));
            self.heads.attend_after([&q, &k, &v], after, None, layer, batch)?
        } else {
            let each = |x: Array, norm: &Option<Named<Norm>>| match norm {
                Some(norm) => norm.1.forward(&ops::reshape(&x, &[x.dim(0) as i64, -1, self.heads.width as i64])?),
                None => Ok(x),
            };
            (q, k) = (each(q, &self.q_norm)?, each(k, &self.k_norm)?);
            self.heads.attend([&q, &k, &v], None, layer, batch)?
        };
        self.output.1.forward(&through(y, &self.last)?)
    }
}

/// Where the gate of a product comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedGate {
    /// There is none.
    None,
    /// A projection of its own.
    Apart(&'static str),
    /// The first half of the product up.
    First,
    /// The second half of the product up.
    Second,
}

/// Up, an activation, down, under names of their own: gated, `down(activation(gate(x)) * up(x))`, or not.
#[derive(Module, Clone)]
pub struct NamedMlp {
    #[flatten]
    gate: Option<Named<Linear>>,
    #[flatten]
    up: Named<Linear>,
    #[flatten]
    down: Named<Linear>,
    /// Before the product down.
    #[flatten]
    last: Option<Named<Norm>>,
    #[plain]
    side: NamedGate,
    activation: Activation,
}

impl NamedMlp {
    /// From a place in the names: `up` and `down`.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(
        at: &At,
        [width, inner]: [usize; 2],
        side: NamedGate,
        [up, down]: [&'static str; 2],
        bias: bool,
        activation: Activation,
    ) -> Result<NamedMlp> {
        let part = |name, i, o| Ok::<_, Error>(Named(name, at.linear(name, i, o, bias)?));
        let both = if matches!(side, NamedGate::First | NamedGate::Second) { 2 * inner } else { inner };
        let gate = match side {
            NamedGate::Apart(name) => Some(part(name, width, inner)?),
            _ => None,
        };
        let (up, down) = (part(up, width, both)?, part(down, inner, width)?);
        Ok(NamedMlp { gate, up, down, last: None, side, activation })
    }

    /// With a norm before the product down.
    pub fn with_last(self, last: Named<Norm>) -> NamedMlp {
        NamedMlp { last: Some(last), ..self }
    }
}

impl Layer for NamedMlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        let up = self.up.1.forward(x)?;
        let mut y = match (&self.gate, self.side) {
            (Some(gate), _) => ops::multiply((self.activation)(&gate.1.forward(x)?)?, up)?,
            (None, side @ (NamedGate::First | NamedGate::Second)) => {
                let halves = ops::split(&up, 2, -1)?;
                let [a, b] = &halves[..] else { return Err(Error::shape("[mlp] two halves")) };
                let (gate, up) = if side == NamedGate::First { (a, b) } else { (b, a) };
                ops::multiply((self.activation)(gate)?, up)?
            }
            _ => (self.activation)(&up)?,
        };
        if let Some(last) = &self.last {
            y = last.1.forward(&y)?;
        }
        self.down.1.forward(&y)
    }
}

/// A layer under names of its own: what looks at other tokens and what looks at each, each behind a norm and added to
/// its input.
#[derive(Module, Clone)]
pub struct NamedBlock<M: Layered, P: Layer> {
    /// Looks at other tokens.
    #[flatten]
    pub mixer: Named<M>,
    /// Looks at each token.
    #[flatten]
    pub product: Named<P>,
    /// Before the first.
    #[flatten]
    pub before: Named<Norm>,
    /// Before the second, where it has one of its own.
    #[flatten]
    pub between: Option<Named<Norm>>,
    /// Both see the same rows.
    pub parallel: bool,
}

impl<M: Layered, P: Layer> Layered for NamedBlock<M, P> {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let rows = self.before.1.forward(x)?;
        let y = self.mixer.1.forward(&rows, layer, batch)?;
        let y = batch.looked_at(&y)?;
        let between = |x: &Array| self.between.as_ref().map(|norm| norm.1.forward(x)).transpose();
        let x = &batch.looked_at(x)?;
        if self.parallel {
            let rows = between(x)?.map_or_else(|| batch.looked_at(&rows), Ok)?;
            return ops::add(ops::add(y, self.product.1.forward(&rows)?)?, x);
        }
        let x = ops::add(x, y)?;
        ops::add(&x, self.product.1.forward(&between(&x)?.unwrap_or(x.clone()))?)
    }

    fn narrows(&self) -> bool {
        true
    }
}
