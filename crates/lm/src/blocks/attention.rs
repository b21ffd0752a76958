//! Attention over what a sequence remembers.

use super::{Layered, Norm, Rope};
use crate::batch::{Batch, attend_views};
use crate::weights::At;
use lapis::distributed::Group;
use lapis::ops::fast::{AttentionMask, AttentionOptions, CachedHeads, layer_norm};
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Layer, LayerNorm, Linear, Module, Param, RMSNorm, Split, part_of_rows};

/// Sizes and rules of the heads of a layer.
#[derive(Clone, Debug)]
pub struct Heads {
    /// Query heads.
    pub count: usize,
    /// Heads of keys and values.
    pub keys: usize,
    /// Width of a head.
    pub width: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Positions, if they are turned into angles.
    pub rope: Option<Rope>,
    /// How many of the latest keys a query sees.
    pub window: Option<usize>,
    /// Queries see keys of their own run of so many positions alone.
    pub chunk: Option<usize>,
    /// Soft cap of the scores.
    pub softcap: Option<f64>,
    /// Queries, keys and values stay within this distance of zero.
    pub clip: Option<f64>,
    /// Queries grow with their position.
    pub growth: Option<Growth>,
}

/// Queries are multiplied by `1 + beta ln(1 + floor((position + first) / context))`, for texts longer than the context
/// that positions were made for.
#[derive(Clone, Copy, Debug)]
pub struct Growth {
    /// Factor of the logarithm.
    pub beta: f64,
    /// Positions without growth.
    pub context: f64,
    /// The number of the first position.
    pub first: usize,
}

impl Growth {
    /// Queries (1, heads, rows, width) whose first row is at position `at`.
    fn forward(&self, q: &Array, at: usize) -> Result<Array> {
        let n = q.dim(2);
        let at = at + self.first;
        if ((at + n) as f64) <= self.context {
            return Ok(q.clone());
        }
        let factor = |p: usize| (1.0 + self.beta * (1.0 + (p as f64 / self.context).floor()).ln()) as f32;
        let factors = Array::from_vec((at..at + n).map(factor).collect(), &[n, 1]);
        ops::multiply(q, ops::astype(&factors, q.dtype())?)
    }
}

impl Heads {
    /// Plain heads with scores over the root of their width.
    pub fn new(count: usize, keys: usize, width: usize, rope: Option<Rope>) -> Heads {
        let scale = (width as f64).powf(-0.5);
        Heads { count, keys, width, scale, rope, window: None, chunk: None, softcap: None, clip: None, growth: None }
    }

    /// Rows of queries, then keys, then values, side by side, to rows of each.
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn split(&self, qkv: &Array) -> Result<(Array, Array, Array)> {
        let border = (self.count * self.width) as i64;
        let parts = ops::split(qkv, vec![border, border + (self.keys * self.width) as i64], -1)?;
        let [q, k, v] = <[Array; 3]>::try_from(parts).map_err(|_| Error::shape("[attention] queries, keys, values"))?;
        Ok((q, k, v))
    }

    /// Rows of queries, keys and values, `(rows, heads * width)` or `(rows, heads, width)`, to rows of
    /// `(heads * value width)`.
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn attend(
        &self,
        [q, k, v]: [&Array; 3],
        sinks: Option<&Array>,
        layer: usize,
        batch: &mut Batch,
    ) -> Result<Array> {
        match self.attend_next([q, k, v], None, sinks, layer, batch)? {
            Some(y) => Ok(y),
            None => self.attend_after([q, k, v], |q, k| Ok((q, k)), sinks, layer, batch),
        }
    }

    /// As [`Heads::attend`], with norms of each head of queries and keys, of rows that are one more position of each sequence:
    /// norms, positions, memory and attention at once. Nothing where heads or memory need more than that.
    fn attend_next(
        &self,
        qkv: [&Array; 3],
        norms: Option<[&RMSNorm; 2]>,
        sinks: Option<&Array>,
        layer: usize,
        batch: &mut Batch,
    ) -> Result<Option<Array>> {
        let rope = self.rope.as_ref().map(Rope::as_one);
        let plain = self.clip.is_none() && self.growth.is_none() && self.chunk.is_none();
        let dtype = qkv[0].dtype();
        if !plain || matches!(rope, Some(None)) || norms.iter().flatten().any(|norm| norm.weight.dtype() != dtype) {
            return Ok(None);
        }
        let rows = |x: &Array| if x.ndim() == 2 { Ok(x.clone()) } else { ops::reshape(x, &[x.dim(0) as i64, -1]) };
        let [q, k, v] = qkv.map(rows);
        let (mut q, mut k, v) = (q?, k?, v?);
        if let Some(rope) = self.rope.as_ref().filter(|rope| rope.has_gain()) {
            // Norms of heads would have to come first.
            if norms.is_some() {
                return Ok(None);
            }
            (q, k) = (rope.gained(&q, self.count)?, rope.gained(&k, self.keys)?);
        }
        let heads = CachedHeads {
            heads: [self.count, self.keys],
            norms: norms.map(|all| all.map(|norm| (&*norm.weight, norm.eps))),
            rope: rope.flatten(),
            attention: self.options(sinks),
        };
        batch.attend_next(layer, [&q, &k, &v], &heads)
    }

    /// Of all rows, those whose queries are asked for.
    ///
    /// # Errors
    /// As [`Batch::looked_at`].
    pub fn asked(&self, x: &Array, batch: &Batch) -> Result<Array> {
        if self.chunk.is_none() { batch.looked_at(x) } else { Ok(x.clone()) }
    }

    /// As [`Heads::attend`]; queries and keys, (1, heads, rows, width), pass through `after` once they have their
    /// positions.
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn attend_after(
        &self,
        [q, k, v]: [&Array; 3],
        after: impl Fn(Array, Array) -> Result<(Array, Array)>,
        sinks: Option<&Array>,
        layer: usize,
        batch: &mut Batch,
    ) -> Result<Array> {
        let clipped = |x: &Array| match self.clip {
            Some(most) => ops::clip(x, Some(&-most), Some(&most)),
            None => Ok(x.clone()),
        };
        let [q, k, v] = [q, k, v].map(clipped);
        batch.each(layer, &[&q?, &k?, &v?], |rows, slot| {
            let (mut q, mut k) = (split(&rows[0], self.count)?, split(&rows[1], self.keys)?);
            let v = split(&rows[2], self.keys)?;
            let first = slot.at + k.dim(2) - q.dim(2);
            if let Some(rope) = &self.rope {
                (q, k) = (rope.forward(&q, first)?, rope.forward(&k, slot.at)?);
            }
            if let Some(growth) = &self.growth {
                q = growth.forward(&q, first)?;
            }
            (q, k) = after(q, k)?;
            let options = self.options(sinks);
            joined(&match self.chunk {
                None => slot.attend(&q, &k, &v, &options)?,
                Some(chunk) => slot.attend_in_chunks([&q, &k, &v], chunk, &options)?,
            })
        })
    }

    fn options<'a>(&self, sinks: Option<&'a Array>) -> AttentionOptions<'a> {
        AttentionOptions {
            scale: self.scale,
            mask: AttentionMask::Causal,
            window: self.window,
            softcap: self.softcap,
            sinks,
        }
    }

    /// Rows of queries, as in [`Heads::attend`], on the keys of an earlier layer whose views are
    /// [shared](Batch::share).
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn attend_shared(&self, q: &Array, layer: usize, batch: &Batch) -> Result<Array> {
        batch.each_of(layer, q, |q, at, views| {
            let mut q = split(q, self.count)?;
            if let Some(rope) = &self.rope {
                q = rope.forward(&q, at)?;
            }
            joined(&attend_views(&q, views, &self.options(None))?)
        })
    }
}

/// Rows of heads to (1, heads, rows, width).
fn split(x: &Array, heads: usize) -> Result<Array> {
    // The heads of one row lie as they are.
    if x.dim(0) == 1 {
        return ops::reshape(x, &[1, heads as i64, 1, -1]);
    }
    ops::transpose(&ops::reshape(x, &[1, x.dim(0) as i64, heads as i64, -1])?, Some(&[0, 2, 1, 3]))
}

/// The other way: (1, heads, rows, width) to (rows, heads * width).
fn joined(y: &Array) -> Result<Array> {
    if y.dim(2) == 1 {
        return ops::reshape(y, &[1, -1]);
    }
    ops::reshape(&ops::transpose(y, Some(&[0, 2, 1, 3]))?, &[y.dim(2) as i64, -1])
}

/// Projections to queries, keys and values.
#[derive(Module, Clone)]
#[expect(clippy::large_enum_variant, reason = "one a layer")]
pub enum Inputs {
    /// One each.
    Apart {
        /// To queries.
        q_proj: Linear,
        /// To keys.
        k_proj: Linear,
        /// To values.
        v_proj: Linear,
    },
    /// One for all, whose rows are those of queries, then keys, then values.
    Together {
        /// To all three.
        qkv_proj: Linear,
    },
}

/// Norms of queries and keys; before their positions, where nothing else is said.
#[derive(Module, Clone)]
pub enum HeadNorms {
    /// None.
    None,
    /// The same for each head.
    Each {
        /// Of queries.
        q_norm: Norm,
        /// Of keys.
        k_norm: Norm,
    },
    /// One over all heads.
    Whole {
        /// Of queries.
        q_norm: Norm,
        /// Of keys.
        k_norm: Norm,
    },
    /// The same for each head, after positions.
    Late {
        /// Of queries.
        query_layernorm: Norm,
        /// Of keys.
        key_layernorm: Norm,
    },
    /// A norm of its own for each head.
    Own {
        /// Of queries.
        q_layernorm: PerHead,
        /// Of keys.
        k_layernorm: PerHead,
    },
}

/// A norm for each head, by mean and variance.
#[derive(Module, Clone)]
pub struct PerHead {
    /// One each.
    pub norms: Vec<LayerNorm>,
}

impl PerHead {
    /// From a place in the names: `heads` norms of this width.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn load(at: &At, heads: usize, width: usize, eps: f64) -> Result<PerHead> {
        Ok(PerHead {
            norms: (0..heads)
                .map(|i| at.at("norms").layer_norm(&i.to_string(), width, eps, false))
                .collect::<Result<_>>()?,
        })
    }
}

impl Layer for PerHead {
    /// Rows (rows, heads, width) to the same.
    fn forward(&self, x: &Array) -> Result<Array> {
        let weights: Vec<Array> = self.norms.iter().filter_map(|n| n.weight.as_deref().cloned()).collect();
        let eps = self.norms.first().map_or(0.0, |n| n.eps);
        ops::multiply(ops::stack(&weights, 0)?, layer_norm(x, None, None, eps)?)
    }
}

/// Projections to queries, keys and values and back, with norms of queries and keys where a model has them.
#[derive(Module, Clone)]
#[module(split)]
pub struct Attention {
    /// To queries, keys and values.
    #[flatten]
    pub inputs: Inputs,
    /// Back.
    pub o_proj: Linear,
    /// Of queries and keys.
    #[flatten]
    pub norms: HeadNorms,
    /// One more logit a head.
    pub sinks: Option<Param>,
    #[plain]
    heads: Heads,
}

impl Attention {
    /// Projections from a place in the names; `bias` says whether those to queries, keys and values, and the one back,
    /// have biases.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, width: usize, heads: Heads, bias: [bool; 2]) -> Result<Attention> {
        let (q, k) = (heads.count * heads.width, heads.keys * heads.width);
        let inputs = Inputs::Apart {
            q_proj: at.linear("q_proj", width, q, bias[0])?,
            k_proj: at.linear("k_proj", width, k, bias[0])?,
            v_proj: at.linear("v_proj", width, k, bias[0])?,
        };
        let o_proj = at.linear("o_proj", q, width, bias[1])?;
        Ok(Attention { inputs, o_proj, norms: HeadNorms::None, sinks: None, heads })
    }

    /// As [`Attention::load`], of one projection `qkv_proj` to queries, keys and values.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load_fused(at: &At, width: usize, heads: Heads, bias: [bool; 2]) -> Result<Attention> {
        let (q, k) = (heads.count * heads.width, heads.keys * heads.width);
        let inputs = Inputs::Together { qkv_proj: at.linear("qkv_proj", width, q + 2 * k, bias[0])? };
        let o_proj = at.linear("o_proj", q, width, bias[1])?;
        Ok(Attention { inputs, o_proj, norms: HeadNorms::None, sinks: None, heads })
    }

    /// With norms of each head of queries and keys.
    pub fn with_head_norms(self, q_norm: Norm, k_norm: Norm) -> Attention {
        Attention { norms: HeadNorms::Each { q_norm, k_norm }, ..self }
    }

    /// With norms of all heads of queries, and of keys, at once.
    pub fn with_whole_norms(self, q_norm: Norm, k_norm: Norm) -> Attention {
        Attention { norms: HeadNorms::Whole { q_norm, k_norm }, ..self }
    }

    /// With one more logit for each head.
    pub fn with_sinks(self, sinks: Param) -> Attention {
        Attention { sinks: Some(sinks), ..self }
    }

    /// Rows to rows.
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let (q, k, v) = match &self.inputs {
            Inputs::Apart { q_proj, k_proj, v_proj } => {
                (q_proj.forward(&self.heads.asked(x, batch)?)?, k_proj.forward(x)?, v_proj.forward(x)?)
            }
            Inputs::Together { qkv_proj } => {
                let (q, k, v) = self.heads.split(&qkv_proj.forward(x)?)?;
                (self.heads.asked(&q, batch)?, k, v)
            }
        };
        let norms = match &self.norms {
            HeadNorms::None => Some(None),
            HeadNorms::Each { q_norm: Norm::Rms(q), k_norm: Norm::Rms(k) } => Some(Some([q, k])),
            _ => None,
        };
        if let Some(norms) = norms
            && let Some(y) = self.heads.attend_next([&q, &k, &v], norms, self.sinks.as_deref(), layer, batch)?
        {
            return self.o_proj.forward(&y);
        }
        let each = |x: &Array| ops::reshape(x, &[x.dim(0) as i64, -1, self.heads.width as i64]);
        let (q, k) = match &self.norms {
            HeadNorms::None => (q, k),
            HeadNorms::Late { query_layernorm, key_layernorm } => {
                let late = |q, k| Ok((query_layernorm.forward(&q)?, key_layernorm.forward(&k)?));
                let y = self.heads.attend_after([&q, &k, &v], late, self.sinks.as_deref(), layer, batch)?;
                return self.o_proj.forward(&y);
            }
            HeadNorms::Each { q_norm, k_norm } => (q_norm.forward(&each(&q)?)?, k_norm.forward(&each(&k)?)?),
            HeadNorms::Whole { q_norm, k_norm } => (q_norm.forward(&q)?, k_norm.forward(&k)?),
            HeadNorms::Own { q_layernorm, k_layernorm } => {
                (q_layernorm.forward(&each(&q)?)?, k_layernorm.forward(&each(&k)?)?)
            }
        };
        self.o_proj.forward(&self.heads.attend([&q, &k, &v], self.sinks.as_deref(), layer, batch)?)
    }
}

impl HeadNorms {
    /// Whether each head is treated alike, and by itself.
    fn is_alike(&self) -> bool {
        match self {
            HeadNorms::None => true,
            HeadNorms::Each { q_norm: q, k_norm: k } | HeadNorms::Late { query_layernorm: q, key_layernorm: k } => {
                ![q, k].iter().any(|norm| matches!(norm, Norm::PerHead { .. }))
            }
            HeadNorms::Whole { .. } | HeadNorms::Own { .. } => false,
        }
    }
}

impl Split for Attention {
    /// Some of the heads, with their keys and values.
    fn split(&mut self, group: Group) -> Result<bool> {
        let (n, heads) = (group.size(), &mut self.heads);
        let divides = heads.count.is_multiple_of(n) && heads.keys.is_multiple_of(n);
        if !divides || !self.norms.is_alike() || !self.o_proj.columns_divide(n) {
            return Ok(false);
        }
        match &mut self.inputs {
            Inputs::Apart { q_proj, k_proj, v_proj } => {
                for proj in [q_proj, k_proj, v_proj] {
                    proj.keep_rows(&[proj.dims().1], group)?;
                }
            }
            Inputs::Together { qkv_proj } => {
                let (q, k) = (heads.count * heads.width, heads.keys * heads.width);
                qkv_proj.keep_rows(&[q, k, k], group)?;
            }
        }
        self.o_proj.keep_columns(group)?;
        if let Some(sinks) = &mut self.sinks {
            *sinks = Param::new(part_of_rows(sinks, group)?);
        }
        (heads.count, heads.keys) = (heads.count / n, heads.keys / n);
        Ok(true)
    }
}

impl Layered for Attention {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        Attention::forward(self, x, layer, batch)
    }
}
