//! Linear layers whose weight is spread over a group of processes, and sums over the group.
//!
//! Without a launcher a group has one process.

use super::{Layer, Linear, truth};
use crate::{Module, Params};
use lapis::distributed::Group;
use lapis::ops::quantize::Format;
use lapis::shape::show;
use lapis::transforms::custom_function;
use lapis::{Array, Dtype, Error, Result, ops};

/// How a weight is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharding {
    /// By output features: every process sees the whole input and gives a part of the output.
    AllToSharded,
    /// By input features: every process sees a part of the input; outputs are summed.
    ShardedToAll,
}

/// `n` divided by the processes of the group, or an error.
fn share(what: &str, n: usize, group: Group) -> Result<usize> {
    if n.is_multiple_of(group.size()) {
        return Ok(n / group.size());
    }
    Err(Error::value(format!("[shard] {n} {what} features do not divide among {} processes", group.size())))
}

/// This process's part of each parameter: `segments` equal runs along the axis are divided one by one, so that weights
/// that were joined (queries, keys and values) stay so. `None` leaves a parameter whole.
fn shard(params: &Params, along: &Along<'_>, group: Group) -> Result<Params> {
    let part = |(name, a): (&String, &Array)| {
        let Some((axis, segments)) = along(name, a) else { return Ok((name.clone(), a.clone())) };
        let own = |run: &Array| ops::split(run, group.size(), axis).map(|parts| parts[group.rank()].clone());
        let runs = ops::split(a, segments, axis)?;
        let parts: Vec<Array> = runs.iter().map(own).collect::<Result<_>>()?;
        Ok((name.clone(), ops::contiguous(&ops::concatenate(&parts, axis)?, false)?))
    };
    params.iter().map(part).collect()
}

/// The axis and the number of segments by which a parameter, of this name, is divided; `None` leaves it whole.
pub type Along<'a> = dyn Fn(&str, &Array) -> Option<(i32, usize)> + 'a;

impl Sharding {
    /// Along which axis a parameter is divided.
    fn axis(self, name: &str, a: &Array) -> Option<i32> {
        match self {
            Sharding::AllToSharded if crate::key(name) == "bias" => Some(-1),
            Sharding::AllToSharded => Some(a.ndim().saturating_sub(2) as i32),
            Sharding::ShardedToAll if crate::key(name) == "bias" => None,
            Sharding::ShardedToAll => Some(-1),
        }
    }
}

/// Replaces the parameters of a module by this process's part of them (`nn.shard_inplace`).
///
/// # Errors
/// Axes that do not divide.
pub fn shard_inplace<M: Module>(module: &mut M, sharding: Sharding, segments: usize, group: Group) -> Result<()> {
    shard_inplace_along(module, &|name, a| Some((sharding.axis(name, a)?, segments)), group)
}

/// [`shard_inplace`] along axes of one's own.
///
/// # Errors
/// Axes that do not divide.
pub fn shard_inplace_along<M: Module>(module: &mut M, along: &Along<'_>, group: Group) -> Result<()> {
    let parts = shard(&module.parameters(), along, group)?;
    module.update(&parts, true)
}

/// This process's part of a linear layer, plain or packed (`nn.shard_linear`).
///
/// # Errors
/// Axes that do not divide.
pub fn shard_linear(linear: Linear, sharding: Sharding, segments: usize, group: Group) -> Result<Box<dyn Layer>> {
    Ok(match sharding {
        Sharding::AllToSharded => Box::new(AllToShardedLinear::from_linear(linear, segments, group)?),
        Sharding::ShardedToAll => Box::new(ShardedToAllLinear::from_linear(linear, segments, group)?),
    })
}

/// `x`, whose gradient is the sum of the gradients of all processes (`sum_gradients`).
///
/// # Errors
/// Faults of communication.
pub fn sum_gradients(x: &Array, group: Group) -> Result<Array> {
    if group.size() == 1 {
        return Ok(x.clone());
    }
    let same = custom_function(|x: &[Array]| Ok(x.to_vec()));
    let summed = same.vjp(move |_, cotangents, _| Ok(vec![group.all_sum(&cotangents[0])?]));
    let mut outputs = summed.call(std::slice::from_ref(x))?;
    outputs.pop().ok_or_else(|| Error::value("[sum_gradients] nothing came back"))
}

macro_rules! layers {
    ($($(#[$doc:meta])* $name:ident $sharding:ident $sizes:expr, $whole:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Module, Clone, Debug)]
        #[module(repr, kind)]
        pub struct $name {
            #[flatten]
            linear: Linear,
            #[plain]
            group: Group,
        }

        impl $name {
            /// This process's part of a layer from `input` to `output` features.
            ///
            /// # Errors
            /// Features that do not divide among the processes.
            pub fn new(input: usize, output: usize, bias: bool, group: Group) -> Result<$name> {
                let (own_input, own_output) = $sizes(input, output, group)?;
                let linear = Linear::with_bound((1.0 / input as f64).sqrt(), own_input, own_output, bias)?;
                Ok($name { linear, group })
            }

            /// The same, packed, with a bias of zeros.
            ///
            /// # Errors
            /// Features that do not divide among the processes or into groups.
            pub fn quantized(input: usize, output: usize, bias: bool, format: Format, group: Group) -> Result<$name> {
                let (own_input, own_output) = $sizes(input, output, group)?;
                Ok($name { linear: Linear::quantized(own_input, own_output, bias, format)?, group })
            }

            /// This process's part of a layer, plain or packed, that all processes have (`nn.shard_linear`).
            ///
            /// # Errors
            /// Axes that do not divide.
            pub fn from_linear(mut linear: Linear, segments: usize, group: Group) -> Result<$name> {
                shard_inplace(&mut linear, Sharding::$sharding, segments, group)?;
                Ok($name { linear, group })
            }

            fn repr(&self) -> String {
                let (input, output) = self.linear.dims();
                let (input, output) = $whole(input, output, self.group.size());
                let bias = truth(self.linear.bias.is_some());
                let mut text = format!("input_dims={input}, output_dims={output}, bias={bias}");
                if let Some(f) = self.linear.weight.format() {
                    text += &format!(", group_size={}, bits={}, mode={}", f.group(), f.bits(), f.mode().name());
                }
                text
            }

            fn shown_kind(&self) -> &'static str {
                match self.linear.weight.format() {
                    Some(_) => concat!("Quantized", stringify!($name)),
                    None => stringify!($name),
                }
            }
        }
    )*};
}

layers! {
    /// The whole input to this process's part of the output (`nn.AllToShardedLinear`, `nn.QuantizedAllToShardedLinear`).
    AllToShardedLinear AllToSharded
        |input, output, group| Ok::<_, Error>((input, share("output", output, group)?)),
        |input, output, n| (input, output * n);
    /// This process's part of the input to the whole output, summed over the group (`nn.ShardedToAllLinear`,
    /// `nn.QuantizedShardedToAllLinear`).
    ShardedToAllLinear ShardedToAll
        |input, output, group| Ok::<_, Error>((share("input", input, group)?, output)),
        |input, output, n| (input * n, output);
}

impl Layer for AllToShardedLinear {
    fn forward(&self, x: &Array) -> Result<Array> {
        self.linear.forward(&sum_gradients(x, self.group)?)
    }
}

impl Layer for ShardedToAllLinear {
    fn forward(&self, x: &Array) -> Result<Array> {
        let part = self.linear.weight.project(x, None)?;
        super::scale_shift(&self.group.all_sum(&part)?, None, self.linear.bias.as_ref())
    }
}

/// Bytes of parameters that are summed at once, at least; each sum costs a round among the processes.
const TOGETHER: usize = 32 << 20;

/// The sums of parameters or gradients over all processes. Those of one dtype travel together.
///
/// # Errors
/// Faults of communication.
pub fn sum_params(params: &Params, group: Group) -> Result<Params> {
    if group.size() == 1 {
        return Ok(params.clone());
    }
    let mut all: Vec<(&String, &Array)> = params.iter().collect();
    all.sort_by_key(|(_, a)| a.dtype());
    let mut sums = Params::new();
    let mut rest = &all[..];
    while let Some((_, first)) = rest.first() {
        let (mut bytes, mut n) = (0, 0);
        while n < rest.len() && rest[n].1.dtype() == first.dtype() && bytes < TOGETHER {
            bytes += rest[n].1.nbytes();
            n += 1;
        }
        let (these, after) = rest.split_at(n);
        rest = after;
        let flat: Vec<Array> = these.iter().map(|(_, a)| ops::flatten(a, 0, -1)).collect::<Result<_>>()?;
        let sum = group.all_sum(&ops::concatenate(&flat, 0)?)?;
        let mut end = 0;
        let borders: Vec<i64> = these[..n - 1]
            .iter()
            .map(|(_, a)| {
                end += a.size() as i64;
                end
            })
            .collect();
        for ((name, a), part) in these.iter().zip(ops::split(&sum, borders, 0)?) {
            sums.insert((*name).clone(), ops::reshape(&part, a.shape())?);
        }
    }
    Ok(sums)
}

/// The mean of the gradients of all processes (`nn.average_gradients`).
///
/// # Errors
/// Faults of communication.
pub fn average_gradients(gradients: &Params, group: Group) -> Result<Params> {
    let mean = |(name, g): (String, Array)| Ok((name, ops::divide(g, group.size())?));
    match group.size() {
        1 => Ok(gradients.clone()),
        _ => sum_params(gradients, group)?.into_iter().map(mean).collect(),
    }
}

/// Gradients whose parts lie on all processes, scaled so that their common norm is at most `max_norm`, and that norm
/// (`nn.clip_grad_norm_sharded`).
///
/// # Errors
/// Faults of communication.
pub fn clip_grad_norm_sharded(gradients: &Params, max_norm: f64, group: Group) -> Result<(Params, Array)> {
    let zero = lapis::array(0.0f32);
    let add = |sum: Array, g: &Array| ops::add(&sum, ops::sum(&ops::square(g)?, (), false)?);
    let norm = ops::sqrt(&group.all_sum(&gradients.values().try_fold(zero, add)?)?)?;
    let factor = ops::minimum(ops::divide(max_norm, ops::add(&norm, 1e-6)?)?, 1.0)?;
    let scaled = |(name, g): (&String, &Array)| Ok((name.clone(), ops::multiply(g, &factor)?));
    Ok((gradients.iter().map(scaled).collect::<Result<_>>()?, norm))
}

// ------------------------------------------------------------------ whole modules

/// A module of which every process holds a part of each parameter, along axis 0 (`nn.FullyShardedModule`). Parameters
/// are gathered for the forward pass; gradients are averaged over the group, and each process keeps its part of them.
#[derive(Module, Clone, Debug)]
#[module(repr)]
pub struct FullyShardedModule<M: Module> {
    /// With this process's part of the parameters.
    pub module: M,
    #[plain]
    group: Group,
    #[plain]
    compute_dtype: Option<Dtype>,
}

impl<M: Module> FullyShardedModule<M> {
    fn repr(&self) -> String {
        format!("num_sharded_params={}", self.module.parameters().len())
    }
}

impl<M: Module + Clone> FullyShardedModule<M> {
    /// This process's part of a module that all processes have. With a `compute_dtype` the gathered parameters are cast
    /// to it for the forward pass.
    ///
    /// # Errors
    /// Parameters without axes, or whose axis 0 does not divide: all are named.
    pub fn new(mut module: M, group: Group, compute_dtype: Option<Dtype>) -> Result<FullyShardedModule<M>> {
        let n = group.size();
        let whole = |a: &Array| a.ndim() > 0 && a.shape()[0].is_multiple_of(n);
        let mut wrong = Vec::new();
        for (name, a) in module.parameters().iter().filter(|(_, a)| !whole(a)) {
            wrong.push(format!("{name} {}", show(a.shape())));
        }
        if !wrong.is_empty() {
            return Err(Error::value(format!(
                "[FullyShardedModule] axis 0 does not divide among {n} processes: {}",
                wrong.join(", ")
            )));
        }
        shard_inplace_along(&mut module, &|_, _| Some((0, 1)), group)?;
        Ok(FullyShardedModule { module, group, compute_dtype })
    }

    /// What `f` gives for the module with all of its parameters, such as `|m| m.as_linear(x)`.
    ///
    /// # Errors
    /// What `f` returns; faults of communication.
    pub fn call<T>(&self, f: impl FnOnce(&M) -> Result<T>) -> Result<T> {
        let mut whole = self.module.clone();
        let gathered = |(name, part): (String, Array)| Ok((name, self.gather(&part)?));
        whole.update(&self.module.parameters().into_iter().map(gathered).collect::<Result<_>>()?, true)?;
        let value = f(&whole)?;
        crate::grad::copy_buffers(&whole, &self.module);
        Ok(value)
    }

    fn gather(&self, part: &Array) -> Result<Array> {
        let (group, dtype) = (self.group, part.dtype());
        let part = match self.compute_dtype {
            Some(to) if dtype.is_floating() => ops::astype(part, to)?,
            _ => part.clone(),
        };
        if group.size() == 1 {
            return Ok(part);
        }
        let gather = custom_function(move |x: &[Array]| Ok(vec![group.all_gather(&x[0])?]));
        let gather = gather.vjp(move |_, g, _| Ok(vec![ops::divide(group.sum_scatter(&g[0])?, group.size())?]));
        gather.call(&[part])?.pop().ok_or_else(|| Error::value("[FullyShardedModule] nothing came back"))
    }
}

impl<M: Layer + Clone> Layer for FullyShardedModule<M> {
    fn forward(&self, x: &Array) -> Result<Array> {
        self.call(|module| module.forward(x))
    }
}

/// What [`fully_shard`] gives: in a group of one the module as it was, with its names.
#[derive(Module, Clone, Debug)]
pub enum FullShard<M: Module> {
    /// The module itself.
    Whole(M),
    /// This process's part.
    Part(FullyShardedModule<M>),
}

impl<M: Layer + Clone> Layer for FullShard<M> {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            FullShard::Whole(module) => module.forward(x),
            FullShard::Part(module) => module.forward(x),
        }
    }
}

/// This process's part of a module (`nn.fully_shard`).
///
/// # Errors
/// As [`FullyShardedModule::new`].
pub fn fully_shard<M: Module + Clone>(module: M, group: Group, compute_dtype: Option<Dtype>) -> Result<FullShard<M>> {
    if group.size() == 1 {
        return Ok(FullShard::Whole(module));
    }
    Ok(FullShard::Part(FullyShardedModule::new(module, group, compute_dtype)?))
}
