//! Dense models as data: what most have in common is read from the usual keys of a config, and a family's file changes
//! what is its own.

use super::Config;
use super::classic::{Classic, Names};
use super::settings::{Settings, wrong};
use crate::blocks::{Activation, Attention, Block, Decoder, HeadNorms, Heads, Mlp, Norm, Norms, PerHead, Residual};
use crate::weights::At;
use lapis::Result;
use lapis_nn::activations::silu;
use serde_json::Value;

/// A dense model. Starts as a Llama.
pub(crate) struct Dense {
    /// The config.
    pub(crate) settings: Settings,
    /// Of the table.
    pub(crate) vocabulary: usize,
    /// Of rows.
    pub(crate) width: usize,
    /// Between the products of a layer.
    pub(crate) inner: usize,
    /// The heads of each layer.
    pub(crate) heads: Vec<Heads>,
    /// Of the projections to queries, keys and values, and of the one back.
    pub(crate) bias: [bool; 2],
    /// Of the products.
    pub(crate) mlp_bias: bool,
    /// The table is the head.
    pub(crate) tied: bool,
    /// All norms.
    pub(crate) norm: Kind,
    /// Added to what norms divide by.
    pub(crate) eps: f64,
    /// Where the norms of a layer stand.
    pub(crate) order: Order,
    /// Of queries and keys.
    pub(crate) head_norms: Over,
    /// Projections to queries, keys and values are one.
    pub(crate) fused: bool,
    /// [`Mlp::load`] and its like.
    pub(crate) mlp: fn(&At, usize, usize, bool, Activation) -> Result<Mlp>,
    /// In the products.
    pub(crate) activation: Activation,
    /// How parts of a layer are added.
    pub(crate) residual: Residual,
    /// Factor of the rows of the table.
    pub(crate) embedding_scale: f64,
    /// Factor of the logits.
    pub(crate) logit_scale: f64,
    /// Soft cap of the logits; 0 for none.
    pub(crate) logit_cap: f64,
}

/// A kind of norm.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Rms,
    RmsPlusOne,
    /// By mean and variance; with a bias?
    Layer(bool),
    LayerPlusOne,
    /// By mean and variance, without weights.
    BareLayer,
}

/// As the variants of [`Norms`].
#[derive(Clone, Copy)]
pub(crate) enum Order {
    Before,
    After,
    Around,
    Between,
    Shared,
}

/// As the variants of [`HeadNorms`].
#[derive(Clone, Copy)]
pub(crate) enum Over {
    None,
    Each,
    Whole,
    Late,
    Own,
    /// [`HeadNorms::Each`] of [`Norm::PerHead`].
    Table,
}

impl Dense {
    /// Reads the usual keys; `defaults` holds those of a family, where they are not Llama's.
    ///
    /// # Errors
    /// Keys that are missing or of another kind.
    pub(crate) fn read(config: &Config, defaults: Value) -> Result<Dense> {
        let s = Settings::new(config, defaults);
        let (width, count): (usize, usize) = (s.need("hidden_size")?, s.need("num_attention_heads")?);
        let keys = s.get("num_key_value_heads")?.unwrap_or(count);
        if keys == 0 || count % keys != 0 {
            return Err(wrong("num_attention_heads", format!("{count} is no multiple of num_key_value_heads, {keys}")));
        }
        let head = s.get("head_dim")?.unwrap_or(width / count);
        let layers = s.need("num_hidden_layers")?;
        let heads = Heads::new(count, keys, head, Some(s.rope(head, "full_attention", "rope_theta", 1e4)?));
        let mut dense = Dense {
            vocabulary: s.need("vocab_size")?,
            width,
            inner: s.need("intermediate_size")?,
            heads: vec![heads; layers],
            bias: [s.is("attention_bias")?; 2],
            mlp_bias: s.is("mlp_bias")?,
            tied: s.get("tie_word_embeddings")?.unwrap_or(true),
            norm: Kind::Rms,
            eps: s.get("rms_norm_eps")?.unwrap_or(1e-5),
            order: Order::Before,
            head_norms: Over::None,
            fused: false,
            mlp: Mlp::load,
            activation: silu,
            residual: Residual::Plain,
            embedding_scale: 1.0,
            logit_scale: 1.0,
            logit_cap: 0.0,
            settings: s,
        };
        dense.slide(None, |_, _| {})?;
        Ok(dense)
    }

    /// Scores of all layers are multiplied by `scale`.
    pub(crate) fn scale_scores(&mut self, scale: f64) {
        self.heads.iter_mut().for_each(|h| h.scale = scale);
    }

    /// The window, if there is one; 0 is none.
    ///
    /// # Errors
    /// A negative one.
    pub(crate) fn window(&self) -> Result<Option<usize>> {
        Ok(self.settings.get("sliding_window")?.filter(|&w| w > 0))
    }

    /// Puts layers behind the window as [`Settings::sliding`] says, and lets `change` do the rest.
    ///
    /// # Errors
    /// `layer_types` that are too few.
    pub(crate) fn slide(&mut self, pattern: Option<usize>, mut change: impl FnMut(&mut Heads, bool)) -> Result<()> {
        let window = self.window()?;
        let sliding = self.settings.sliding(self.heads.len(), pattern)?;
        for (heads, sliding) in self.heads.iter_mut().zip(sliding) {
            heads.window = window.filter(|_| sliding);
            change(heads, sliding);
        }
        Ok(())
    }

    /// All norms are by mean and variance, with `eps` under this key.
    ///
    /// # Errors
    /// Another kind of number there.
    pub(crate) fn layer_norms(&mut self, bias: bool, eps: &str) -> Result<()> {
        self.norm = Kind::Layer(bias);
        self.eps = self.settings.get(eps)?.unwrap_or(1e-5);
        Ok(())
    }

    /// The same, by other names.
    pub(crate) fn classic(&self, names: Names) -> Classic {
        Classic {
            names,
            vocabulary: self.vocabulary,
            width: self.width,
            inner: self.inner,
            layers: self.heads.len(),
            positions: 0,
            heads: self.heads[0].clone(),
            rms: true,
            eps: self.eps,
            bias: [self.bias[0], self.bias[1], self.mlp_bias, false],
            activation: self.activation,
            parallel: false,
        }
    }

    /// The model of tensors.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub(crate) fn load(&self, at: &At) -> Result<Decoder<Block>> {
        let norm = |at: &At, name: &str| self.norm(at, name, self.width);
        let sizes = [self.vocabulary, self.width, self.heads.len()];
        let mut decoder = Decoder::load(at, sizes, self.tied, norm, |at, i| {
            Ok(Block {
                self_attn: self.attention(&at.at("self_attn"), &self.heads[i])?,
                mlp: (self.mlp)(&at.at("mlp"), self.width, self.inner, self.mlp_bias, self.activation)?,
                norms: self.norms(&at)?,
                residual: self.residual,
            })
        })?;
        decoder.embedding_scale = self.embedding_scale;
        decoder.logit_scale = self.logit_scale;
        decoder.logit_cap = self.logit_cap;
        Ok(decoder)
    }

    fn norm(&self, at: &At, name: &str, width: usize) -> Result<Norm> {
        match self.norm {
            Kind::Rms => Norm::rms(at, name, width, self.eps),
            Kind::RmsPlusOne => Norm::rms_plus_one(at, name, width, self.eps),
            Kind::LayerPlusOne => Norm::layer_plus_one(at, name, width, self.eps),
            Kind::BareLayer => Ok(Norm::BareLayer(self.eps)),
            Kind::Layer(bias) => Norm::layer(at, name, width, self.eps, bias),
        }
    }

    fn norms(&self, at: &At) -> Result<Norms> {
        let norm = |name: &str| self.norm(at, name, self.width);
        Ok(match self.order {
            Order::Before => Norms::before(at, |at, name| self.norm(at, name, self.width))?,
            Order::After => Norms::After {
                post_attention_layernorm: norm("post_attention_layernorm")?,
                post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
            },
            Order::Around => Norms::Around {
                input_layernorm: norm("input_layernorm")?,
                post_attention_layernorm: norm("post_attention_layernorm")?,
                pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
                post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
            },
            Order::Between => Norms::Between {
                input_layernorm: norm("input_layernorm")?,
                post_self_attn_layernorm: norm("post_self_attn_layernorm")?,
                post_attention_layernorm: norm("post_attention_layernorm")?,
                post_mlp_layernorm: norm("post_mlp_layernorm")?,
            },
            Order::Shared => Norms::Shared { input_layernorm: norm("input_layernorm")? },
        })
    }

    pub(crate) fn attention(&self, at: &At, heads: &Heads) -> Result<Attention> {
        let load = if self.fused { Attention::load_fused } else { Attention::load };
        let mut attention = load(at, self.width, heads.clone(), self.bias)?;
        let (count, keys, width) = (heads.count, heads.keys, heads.width);
        let own = |name: &str, heads: usize| PerHead::load(&at.at(name), heads, width, self.eps);
        attention.norms = match self.head_norms {
            Over::None => HeadNorms::None,
            Over::Each => {
                HeadNorms::Each { q_norm: self.norm(at, "q_norm", width)?, k_norm: self.norm(at, "k_norm", width)? }
            }
            Over::Late => HeadNorms::Late {
                query_layernorm: self.norm(at, "query_layernorm", width)?,
                key_layernorm: self.norm(at, "key_layernorm", width)?,
            },
            Over::Whole => HeadNorms::Whole {
                q_norm: self.norm(at, "q_norm", count * width)?,
                k_norm: self.norm(at, "k_norm", keys * width)?,
            },
            Over::Table => HeadNorms::Each {
                q_norm: Norm::per_head(at, "q_norm", count, width, self.eps)?,
                k_norm: Norm::per_head(at, "k_norm", keys, width, self.eps)?,
            },
            Over::Own => {
                HeadNorms::Own { q_layernorm: own("q_layernorm", count)?, k_layernorm: own("k_layernorm", keys)? }
            }
        };
        Ok(attention)
    }
}
