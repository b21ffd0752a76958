//! Layers: one file a family. Names of parameters, their shapes, their first values and the order in which those are
//! drawn are MLX's, so that its checkpoints and its seeds mean the same here.

mod attention;
mod conv;
mod distributed;
mod dropout;
mod embedding;
mod linear;
mod lora;
mod mix;
mod norm;
mod pool;
mod positional;
mod recurrent;
mod sequential;
mod split;
mod transformer;
mod upsample;
mod weight;

pub use attention::{Heads, MultiHeadAttention};
pub use conv::{
    Conv1d, Conv2d, Conv3d, ConvOptions, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, ConvTransposeOptions,
};
pub use distributed::{
    AllToShardedLinear, Along, FullShard, FullyShardedModule, ShardedToAllLinear, Sharding, average_gradients,
    clip_grad_norm_sharded, fully_shard, shard_inplace, shard_inplace_along, shard_linear, sum_gradients, sum_params,
};
pub use dropout::{Dropout, Dropout2d, Dropout3d};
pub use embedding::Embedding;
pub use linear::{Bilinear, Identity, Linear};
pub use lora::{LowRank, LowRankShapes, Side, Slot};
pub use mix::{Mix, Owners};
pub use norm::{BatchNorm, BatchNormOptions, GroupNorm, InstanceNorm, LayerNorm, RMSNorm};
pub use pool::{AvgPool1d, AvgPool2d, AvgPool3d, MaxPool1d, MaxPool2d, MaxPool3d};
pub use positional::{ALiBi, RoPE, SinusoidalPositionalEncoding};
pub use recurrent::{GRU, LSTM, RNN};
pub use sequential::{Layer, Sequential};
pub use split::{Split, part_of_rows, split};
pub use transformer::{
    Decoder, Encoder, Transformer, TransformerDecoder, TransformerDecoderLayer, TransformerEncoder,
    TransformerEncoderLayer, TransformerOptions,
};
pub use upsample::{Upsample, UpsampleMode, UpsampleOptions, upsample_cubic, upsample_linear, upsample_nearest};
pub use weight::Weight;

use lapis::{Array, Dtype, Error, Result, ops, random};

/// A function of one array: what layers take as an activation.
pub type Activation = fn(&Array) -> Result<Array>;

/// Uniform in (-k, k): how most weights begin.
pub(crate) fn uniform(k: f64, shape: &[usize]) -> Result<Array> {
    random::uniform(-k, k, shape, Dtype::Float32, None)
}

/// `x * weight + bias` by channel, for what is there.
pub(crate) fn scale_shift(x: &Array, weight: Option<&crate::Param>, bias: Option<&crate::Param>) -> Result<Array> {
    let x = match weight {
        Some(weight) => ops::multiply(weight, x)?,
        None => x.clone(),
    };
    match bias {
        Some(bias) => ops::add(&x, bias),
        None => Ok(x),
    }
}

/// `x @ w.T + bias`.
pub(crate) fn affine(x: &Array, weight: &Array, bias: Option<&Array>) -> Result<Array> {
    let turned = ops::transpose(weight, None)?;
    match bias {
        Some(bias) => ops::addmm(bias, x, &turned, 1.0, 1.0),
        None => ops::matmul(x, &turned),
    }
}

/// An error unless `eps` is positive.
pub(crate) fn check_eps(layer: &str, eps: f64) -> Result<()> {
    if eps > 0.0 {
        return Ok(());
    }
    Err(Error::value(format!("[{layer}] eps must be positive, not {eps}")))
}

/// As Python writes it.
pub(crate) fn truth(b: bool) -> &'static str {
    if b { "True" } else { "False" }
}

/// As Python writes it: `1e-05`, `0.1`, `2.0`.
pub(crate) fn float(x: f64) -> String {
    if x != 0.0 && x.abs() < 1e-4 {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{digits}e-{:0>2}", exponent.trim_start_matches('-'));
    }
    format!("{x:?}")
}

/// As Python writes a tuple: `(3,)`, `(3, 3)`.
pub(crate) fn tuple(numbers: &[usize]) -> String {
    match numbers {
        [one] => format!("({one},)"),
        _ => format!("({})", numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}
