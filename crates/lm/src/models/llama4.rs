//! Llama 4: attention in runs of positions, every fourth layer over all of them without positions; one expert for each
//! token beside a shared product. And MobileLLM, its dense sibling.

use super::common::{Common, boxed};
use super::sanitize::{halves, replace};
use super::wrapped::{Wrapped, text, unwrap_text};
use super::{Architecture, Config, all_alike, drop_tied_head, parse};
use crate::blocks::{
    Backbone, FrameNames, GatedExperts, Growth, Heads, Mlp, Named, NamedAttention, NamedBlock, NamedInputs, Norm, Rope,
    swiglu,
};
use crate::weights::At;
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::activations::silu;
use lapis_nn::{Layer, Linear, Module};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    intermediate_size_mlp: usize,
    #[serde(default)]
    use_qk_norm: bool,
    #[serde(flatten)]
    sparse: Option<Sparse>,
    /// Of each layer whether it has positions, in spite of the name.
    no_rope_layers: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct Sparse {
    attention_chunk_size: usize,
    interleave_moe_layer_step: usize,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    /// A switch, or the number of what it does.
    attn_temperature_tuning: Option<Value>,
    #[serde(default = "floor")]
    floor_scale: f64,
    #[serde(default = "tenth")]
    attn_scale: f64,
}

fn floor() -> f64 {
    8192.0
}

fn tenth() -> f64 {
    0.1
}

/// Whether Python would take it for true.
fn truth(value: &Value) -> bool {
    value.as_bool().unwrap_or_else(|| value.as_f64().is_some_and(|n| n != 0.0))
}

fn wrong(key: &str, what: &str) -> Error {
    Error::value(format!("[load] config.json: {key}: {what}"))
}

/// Each token goes to the best expert, times the sigmoid of its logit, and through a product that all share.
#[derive(Module, Clone)]
struct OneExpert {
    experts: GatedExperts,
    router: Linear,
    shared_expert: Mlp,
}

impl OneExpert {
    fn load(at: &At, [experts, width, inner]: [usize; 3]) -> Result<OneExpert> {
        Ok(OneExpert {
            experts: GatedExperts::load(&at.at("experts"), [experts, width, inner], false, swiglu)?,
            router: at.linear("router", width, experts, false)?,
            shared_expert: Mlp::load(&at.at("shared_expert"), width, inner, false, silu)?,
        })
    }
}

impl Layer for OneExpert {
    fn forward(&self, x: &Array) -> Result<Array> {
        let logits = self.router.forward(x)?;
        let best = ops::argmax(&logits, Some(-1), true)?;
        let score = ops::astype(&ops::take_along_axis(&logits, &best, -1)?, Dtype::Float32)?;
        let score = ops::astype(&ops::sigmoid(&score)?, x.dtype())?;
        let y = ops::squeeze(&self.experts.forward(&ops::multiply(x, score)?, &best)?, 1)?;
        ops::add(y, self.shared_expert.forward(x)?)
    }
}

#[derive(Module, Clone)]
#[expect(clippy::large_enum_variant, reason = "one a layer")]
enum FeedForward {
    Dense(Mlp),
    Expert(OneExpert),
}

impl Layer for FeedForward {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            FeedForward::Dense(mlp) => mlp.forward(x),
            FeedForward::Expert(expert) => expert.forward(x),
        }
    }
}

type Block = NamedBlock<NamedAttention, FeedForward>;

impl Args {
    /// Attention of these heads; `late` norms stand after positions.
    fn attention(&self, at: &At, heads: Heads, norms: Option<(f64, bool)>) -> Result<NamedAttention> {
        let (width, inputs) = (self.common.hidden_size, NamedInputs::Apart(["q_proj", "k_proj", "v_proj"]));
        let bias = [self.common.attention_bias; 2];
        let attention = NamedAttention::load(&at.at("self_attn"), width, inputs, "o_proj", heads, bias)?;
        Ok(match norms {
            None => attention,
            Some((eps, late)) => {
                attention.with_norms(Named("q_norm", Norm::Bare(eps)), Named("k_norm", Norm::Bare(eps)), late)
            }
        })
    }

    fn model(
        &self,
        at: &At,
        head: &'static str,
        tied: bool,
        parts: impl Fn(&At, usize) -> Result<(NamedAttention, FeedForward)>,
    ) -> Result<Backbone<Block>> {
        let c = &self.common;
        let norm = |at: &At, name: &str| c.norm(at, name, c.hidden_size);
        let named = |at: &At, name| Ok::<_, Error>(Named(name, norm(at, name)?));
        let names = FrameNames { head, ..FrameNames::model("norm") };
        let all = [c.vocab_size, c.hidden_size, c.num_hidden_layers];
        Backbone::load(at, names, all, (!tied).then_some(false), norm, |at, i| {
            let (attention, product) = parts(&at, i)?;
            Ok(NamedBlock {
                mixer: Named("self_attn", attention),
                product: Named("feed_forward", product),
                before: named(&at, "input_layernorm")?,
                between: Some(named(&at, "post_attention_layernorm")?),
                parallel: false,
            })
        })
    }

    /// With runs of positions and experts.
    fn sparse(&self, at: &At) -> Result<Backbone<Block>> {
        let c = &self.common;
        let missing = || wrong("attention_chunk_size", "missing, or what else Llama 4 has: numbers of experts");
        let s = self.sparse.as_ref().ok_or_else(missing)?;
        if s.attention_chunk_size == 0 || s.interleave_moe_layer_step == 0 || s.floor_scale.is_nan() {
            return Err(wrong("attention_chunk_size", "it and interleave_moe_layer_step are not above zero"));
        }
        if s.num_experts_per_tok != 1 {
            return Err(Error::unsupported(format!(
                "[load] config.json: num_experts_per_tok: {}; Llama 4 sends a token to one expert",
                s.num_experts_per_tok
            )));
        }
        let rope = Rope::new(c.head(), c.base(), true, c.rope_scaling.as_ref(), c.max_position_embeddings)?;
        let growth = Growth { beta: s.attn_scale, context: s.floor_scale, first: 1 };
        let grows = s.attn_temperature_tuning.as_ref().is_none_or(truth);
        self.model(at, "lm_head", false, |at, i| {
            let mut heads = c.heads()?;
            let everything = (i + 1) % 4 == 0;
            heads.rope = (!everything).then(|| rope.clone());
            heads.chunk = (!everything).then_some(s.attention_chunk_size);
            heads.growth = Some(growth).filter(|_| everything && grows);
            let attention = self.attention(at, heads, (self.use_qk_norm && !everything).then_some((1e-6, true)))?;
            let place = at.at("feed_forward");
            let sparse = i % s.interleave_moe_layer_step == s.interleave_moe_layer_step - 1;
            let product = match sparse {
                true => FeedForward::Expert(OneExpert::load(
                    &place,
                    [s.num_local_experts, c.hidden_size, c.intermediate_size],
                )?),
                false => FeedForward::Dense(Mlp::load(&place, c.hidden_size, self.intermediate_size_mlp, false, silu)?),
            };
            Ok((attention, product))
        })
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["llama4"],
    sanitize: |config, tensors| {
        unwrap_text(config, tensors)?;
        let turned = |w: &Array| ops::contiguous(&ops::matrix_transpose(w)?, false);
        let both = ["experts.gate_proj.weight", "experts.up_proj.weight"];
        replace(tensors, "experts.gate_up_proj", both, |w| halves(&turned(w)?, -2))?;
        replace(tensors, "experts.down_proj", ["experts.down_proj.weight"], |w| Ok([turned(w)?]))
    },
    quantize: all_alike,
    load: |config, at| {
        let a: Args = parse(&text(config, json!({}))?)?;
        boxed(Wrapped { language_model: a.sparse(&at.at("language_model"))? })
    },
};

pub(super) const TEXT: Architecture = Architecture {
    sanitize: |config, tensors| {
        drop_tied_head(parse::<Args>(config)?.common.tie_word_embeddings, tensors);
        Ok(())
    },
    ..Architecture::plain(&["llama4_text"], dense)
};

fn dense(config: &Config, at: &At) -> Result<Box<dyn super::Model>> {
    let a: Args = parse(config)?;
    let c = &a.common;
    let turned = a.no_rope_layers.as_deref().unwrap_or_default();
    if turned.len() < c.num_hidden_layers {
        let what = format!("{} entries for {} layers", turned.len(), c.num_hidden_layers);
        return Err(wrong("no_rope_layers", &what));
    }
    boxed(a.model(at, "output", c.tie_word_embeddings, |at, i| {
        let mut heads = c.heads()?;
        let rope = Rope::plain(c.head(), c.base(), true);
        heads.rope = truth(&turned[i]).then_some(rope);
        let attention = a.attention(at, heads, a.use_qk_norm.then_some((c.rms_norm_eps, false)))?;
        let product = Mlp::load(&at.at("feed_forward"), c.hidden_size, a.intermediate_size_mlp, false, silu)?;
        Ok((attention, FeedForward::Dense(product)))
    })?)
}
