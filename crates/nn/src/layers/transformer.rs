//! The transformer of "Attention Is All You Need", with norms first unless told otherwise.

use super::{Activation, Dropout, Layer, LayerNorm, Linear, MultiHeadAttention};
use crate::Module;
use crate::activations::relu;
use lapis::ops::fast::AttentionMask;
use lapis::transforms;
use lapis::{Array, Result, ops};

/// What all layers of a transformer share; the default is MLX's.
#[derive(Clone, Copy, Debug)]
pub struct TransformerOptions {
    /// Features inside the feed-forward part; default 4 · dims.
    pub mlp_dims: Option<usize>,
    /// Probability of dropout.
    pub dropout: f64,
    /// Between the two layers of the feed-forward part.
    pub activation: Activation,
    /// Whether norms stand before attention and feed-forward part, or behind their sums.
    pub norm_first: bool,
    /// Whether values inside a layer are computed again for gradients, in place of being kept.
    pub checkpoint: bool,
}

impl Default for TransformerOptions {
    fn default() -> Self {
        TransformerOptions { mlp_dims: None, dropout: 0.0, activation: relu, norm_first: true, checkpoint: false }
    }
}

/// Attention of a sequence to itself, then a feed-forward part (`nn.TransformerEncoderLayer`).
#[derive(Module, Clone, Debug)]
pub struct TransformerEncoderLayer {
    /// Of the sequence to itself.
    pub attention: MultiHeadAttention,
    /// Norm of attention.
    pub ln1: LayerNorm,
    /// Norm of the feed-forward part.
    pub ln2: LayerNorm,
    /// dims to mlp_dims.
    pub linear1: Linear,
    /// mlp_dims to dims.
    pub linear2: Linear,
    /// After attention.
    pub dropout1: Dropout,
    /// Inside the feed-forward part.
    pub dropout2: Dropout,
    #[plain]
    activation: Activation,
    norm_first: bool,
}

impl TransformerEncoderLayer {
    /// A layer of `dims` features.
    ///
    /// # Errors
    /// `dims` that the heads do not divide; a dropout outside [0, 1).
    pub fn new(dims: usize, num_heads: usize, options: TransformerOptions) -> Result<TransformerEncoderLayer> {
        let mlp = options.mlp_dims.unwrap_or(4 * dims);
        Ok(TransformerEncoderLayer {
            attention: MultiHeadAttention::new(dims, num_heads)?,
            ln1: LayerNorm::new(dims, 1e-5)?,
            ln2: LayerNorm::new(dims, 1e-5)?,
            linear1: Linear::new(dims, mlp, true)?,
            linear2: Linear::new(mlp, dims, true)?,
            dropout1: Dropout::new(options.dropout)?,
            dropout2: Dropout::new(options.dropout)?,
            activation: options.activation,
            norm_first: options.norm_first,
        })
    }

    /// x (batch, length, dims).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, x: &Array, mask: AttentionMask<'_>) -> Result<Array> {
        let attend = |y: &Array| self.dropout1.forward(&self.attention.forward(y, y, y, mask)?);
        let feed = |y: &Array| {
            let y = (self.activation)(&self.linear1.forward(y)?)?;
            self.linear2.forward(&self.dropout2.forward(&y)?)
        };
        if self.norm_first {
            let x = ops::add(x, attend(&self.ln1.forward(x)?)?)?;
            ops::add(&x, feed(&self.ln2.forward(&x)?)?)
        } else {
            let x = self.ln1.forward(&ops::add(x, attend(x)?)?)?;
            self.ln2.forward(&ops::add(&x, feed(&x)?)?)
        }
    }
}

/// Encoder layers and a norm (`nn.TransformerEncoder`).
#[derive(Module, Clone, Debug)]
pub struct TransformerEncoder {
    /// In order.
    pub layers: Vec<TransformerEncoderLayer>,
    /// Norm of the result.
    pub ln: LayerNorm,
    checkpoint: bool,
}

impl TransformerEncoder {
    /// `num_layers` layers of `dims` features.
    ///
    /// # Errors
    /// As [`TransformerEncoderLayer::new`].
    pub fn new(
        num_layers: usize,
        dims: usize,
        num_heads: usize,
        options: TransformerOptions,
    ) -> Result<TransformerEncoder> {
        let layer = |_| TransformerEncoderLayer::new(dims, num_heads, options);
        let layers = (0..num_layers).map(layer).collect::<Result<_>>()?;
        Ok(TransformerEncoder { layers, ln: LayerNorm::new(dims, 1e-5)?, checkpoint: options.checkpoint })
    }

    /// x (batch, length, dims).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, x: &Array, mask: AttentionMask<'_>) -> Result<Array> {
        let mut x = x.clone();
        for layer in &self.layers {
            x = if self.checkpoint {
                transforms::checkpoint(|x: &Array| layer.forward(x, mask))(&x)?
            } else {
                layer.forward(&x, mask)?
            };
        }
        self.ln.forward(&x)
    }
}

/// Attention of a sequence to itself and to another, then a feed-forward part (`nn.TransformerDecoderLayer`).
#[derive(Module, Clone, Debug)]
pub struct TransformerDecoderLayer {
    /// Of the sequence to itself.
    pub self_attention: MultiHeadAttention,
    /// Of the sequence to the other.
    pub cross_attention: MultiHeadAttention,
    /// Norm of the first attention.
    pub ln1: LayerNorm,
    /// Norm of the second attention.
    pub ln2: LayerNorm,
    /// Norm of the feed-forward part.
    pub ln3: LayerNorm,
    /// dims to mlp_dims.
    pub linear1: Linear,
    /// mlp_dims to dims.
    pub linear2: Linear,
    /// After the first attention.
    pub dropout1: Dropout,
    /// After the second attention.
    pub dropout2: Dropout,
    /// Inside the feed-forward part.
    pub dropout3: Dropout,
    #[plain]
    activation: Activation,
    norm_first: bool,
}

impl TransformerDecoderLayer {
    /// A layer of `dims` features.
    ///
    /// # Errors
    /// `dims` that the heads do not divide; a dropout outside [0, 1).
    pub fn new(dims: usize, num_heads: usize, options: TransformerOptions) -> Result<TransformerDecoderLayer> {
        let mlp = options.mlp_dims.unwrap_or(4 * dims);
        Ok(TransformerDecoderLayer {
            self_attention: MultiHeadAttention::new(dims, num_heads)?,
            cross_attention: MultiHeadAttention::new(dims, num_heads)?,
            ln1: LayerNorm::new(dims, 1e-5)?,
            ln2: LayerNorm::new(dims, 1e-5)?,
            ln3: LayerNorm::new(dims, 1e-5)?,
            linear1: Linear::new(dims, mlp, true)?,
            linear2: Linear::new(mlp, dims, true)?,
            dropout1: Dropout::new(options.dropout)?,
            dropout2: Dropout::new(options.dropout)?,
            dropout3: Dropout::new(options.dropout)?,
            activation: options.activation,
            norm_first: options.norm_first,
        })
    }

    /// x (batch, length, dims) over memory (batch, other length, dims).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(
        &self,
        x: &Array,
        memory: &Array,
        x_mask: AttentionMask<'_>,
        memory_mask: AttentionMask<'_>,
    ) -> Result<Array> {
        let attend = |y: &Array| self.dropout1.forward(&self.self_attention.forward(y, y, y, x_mask)?);
        let look = |y: &Array| self.dropout2.forward(&self.cross_attention.forward(y, memory, memory, memory_mask)?);
        let feed = |y: &Array| {
            let y = (self.activation)(&self.linear1.forward(y)?)?;
            self.linear2.forward(&self.dropout3.forward(&y)?)
        };
        if self.norm_first {
            let x = ops::add(x, attend(&self.ln1.forward(x)?)?)?;
            let x = ops::add(&x, look(&self.ln2.forward(&x)?)?)?;
            ops::add(&x, feed(&self.ln3.forward(&x)?)?)
        } else {
            let x = self.ln1.forward(&ops::add(x, attend(x)?)?)?;
            let x = self.ln2.forward(&ops::add(&x, look(&x)?)?)?;
            self.ln3.forward(&ops::add(&x, feed(&x)?)?)
        }
    }
}

/// Decoder layers and a norm (`nn.TransformerDecoder`).
#[derive(Module, Clone, Debug)]
pub struct TransformerDecoder {
    /// In order.
    pub layers: Vec<TransformerDecoderLayer>,
    /// Norm of the result.
    pub ln: LayerNorm,
    checkpoint: bool,
}

impl TransformerDecoder {
    /// `num_layers` layers of `dims` features.
    ///
    /// # Errors
    /// As [`TransformerDecoderLayer::new`].
    pub fn new(
        num_layers: usize,
        dims: usize,
        num_heads: usize,
        options: TransformerOptions,
    ) -> Result<TransformerDecoder> {
        let layer = |_| TransformerDecoderLayer::new(dims, num_heads, options);
        let layers = (0..num_layers).map(layer).collect::<Result<_>>()?;
        Ok(TransformerDecoder { layers, ln: LayerNorm::new(dims, 1e-5)?, checkpoint: options.checkpoint })
    }

    /// x (batch, length, dims) over memory (batch, other length, dims).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(
        &self,
        x: &Array,
        memory: &Array,
        x_mask: AttentionMask<'_>,
        memory_mask: AttentionMask<'_>,
    ) -> Result<Array> {
        let mut x = x.clone();
        for layer in &self.layers {
            x = if self.checkpoint {
                let run = |(x, memory): &(Array, Array)| layer.forward(x, memory, x_mask, memory_mask);
                transforms::checkpoint(run)(&(x, memory.clone()))?
            } else {
                layer.forward(&x, memory, x_mask, memory_mask)?
            };
        }
        self.ln.forward(&x)
    }
}

/// What can stand as the encoder of a [`Transformer`].
pub trait Encoder: Module {
    /// The memory of a source (batch, length, dims).
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn encode(&self, source: &Array, mask: AttentionMask<'_>) -> Result<Array>;
}

/// What can stand as the decoder of a [`Transformer`].
pub trait Decoder: Module {
    /// The result for a target (batch, length, dims) and the memory of a source.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn decode(
        &self,
        target: &Array,
        memory: &Array,
        target_mask: AttentionMask<'_>,
        memory_mask: AttentionMask<'_>,
    ) -> Result<Array>;
}

impl Encoder for TransformerEncoder {
    fn encode(&self, source: &Array, mask: AttentionMask<'_>) -> Result<Array> {
        self.forward(source, mask)
    }
}

impl Decoder for TransformerDecoder {
    fn decode(
        &self,
        target: &Array,
        memory: &Array,
        target_mask: AttentionMask<'_>,
        memory_mask: AttentionMask<'_>,
    ) -> Result<Array> {
        self.forward(target, memory, target_mask, memory_mask)
    }
}

/// An encoder and a decoder (`nn.Transformer`), MLX's or such of one's own.
#[derive(Module, Clone, Debug)]
pub struct Transformer<E: Module = TransformerEncoder, D: Module = TransformerDecoder> {
    /// Reads the source.
    pub encoder: E,
    /// Writes the target.
    pub decoder: D,
}

impl Transformer {
    /// MLX's defaults: 512 features, 8 heads, 6 and 6 layers.
    ///
    /// # Errors
    /// As [`TransformerEncoderLayer::new`].
    pub fn new(
        dims: usize,
        num_heads: usize,
        num_encoder_layers: usize,
        num_decoder_layers: usize,
        options: TransformerOptions,
    ) -> Result<Transformer> {
        Ok(Transformer::of(
            TransformerEncoder::new(num_encoder_layers, dims, num_heads, options)?,
            TransformerDecoder::new(num_decoder_layers, dims, num_heads, options)?,
        ))
    }
}

impl<E: Encoder, D: Decoder> Transformer<E, D> {
    /// Of these parts (`custom_encoder`, `custom_decoder`).
    pub fn of(encoder: E, decoder: D) -> Transformer<E, D> {
        Transformer { encoder, decoder }
    }

    /// The decoder's result for a source and a target (batch, length, dims).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(
        &self,
        source: &Array,
        target: &Array,
        source_mask: AttentionMask<'_>,
        target_mask: AttentionMask<'_>,
        memory_mask: AttentionMask<'_>,
    ) -> Result<Array> {
        let memory = self.encoder.encode(source, source_mask)?;
        self.decoder.decode(target, &memory, target_mask, memory_mask)
    }
}
