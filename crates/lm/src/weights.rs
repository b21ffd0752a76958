//! Tensors by name on their way into layers: shapes are checked, and everything that does not fit is told at once.

use crate::blocks::{Experts, MultiLinear};
use crate::checkpoint::Checkpoint;
use crate::quant::Plan;
use lapis::io::Arrays;
use lapis::ops::quantize::Quantized;
use lapis::shape::show;
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Embedding, LayerNorm, Linear, Param, RMSNorm, Weight};
use std::cell::RefCell;
use std::fmt::Display;

/// The tensors of a checkpoint that no layer has taken yet.
pub struct Weights {
    left: RefCell<Arrays>,
    plan: Plan,
    /// Names and reasons.
    problems: RefCell<Vec<String>>,
}

impl Weights {
    /// Those of a checkpoint, after its model's `sanitize`.
    pub fn new(tensors: Arrays, plan: Plan) -> Weights {
        Weights { left: RefCell::new(tensors), plan, problems: RefCell::default() }
    }

    /// The top of the tree of names.
    pub fn root(&self) -> At<'_> {
        At { weights: self, path: String::new() }
    }

    /// Checks that everything fitted and nothing is left.
    ///
    /// # Errors
    /// All names that are missing, not known or of another shape, together.
    pub fn finish(self, model: &Checkpoint) -> Result<()> {
        let mut problems = self.problems.into_inner();
        problems.extend(
            self.left
                .into_inner()
                .iter()
                .map(|(k, a)| format!("{} {}: not a part of this model", k.escape_debug(), show(a.shape()))),
        );
        if problems.is_empty() {
            return Ok(());
        }
        let (n, kind) = (problems.len(), model.config.get("model_type").and_then(|v| v.as_str()).unwrap_or("?"));
        const SHOWN: usize = 4;
        let more = if n > SHOWN { format!("\n  and {} more", n - SHOWN) } else { String::new() };
        let shown = problems.into_iter().take(SHOWN).collect::<Vec<_>>().join("\n  ");
        let dir = model.dir.display();
        Err(Error::value(format!("[load] {dir}: {n} tensors do not fit a model of type {kind}:\n  {shown}{more}")))
    }
}

/// A place in the tree of names.
#[derive(Clone)]
pub struct At<'a> {
    weights: &'a Weights,
    path: String,
}

impl<'a> At<'a> {
    /// One step down; an empty name stays here.
    pub fn at(&self, name: impl Display) -> At<'a> {
        let name = name.to_string();
        let path = match (self.path.as_str(), name.as_str()) {
            (path, "") => path.to_string(),
            ("", _) => name,
            (path, name) => format!("{path}.{name}"),
        };
        At { weights: self.weights, path }
    }

    /// Whether a tensor is there.
    pub fn has(&self, name: &str) -> bool {
        self.weights.left.borrow().contains_key(&self.at(name).path)
    }

    /// `n` parts of a list.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn list<T>(&self, name: &str, n: usize, f: impl Fn(At<'a>, usize) -> Result<T>) -> Result<Vec<T>> {
        (0..n).map(|i| f(self.at(name).at(i), i)).collect()
    }

    /// Leaves out everything below a name: no part of the model, and no fault.
    pub fn discard(&self, name: &str) {
        let place = self.at(name).path + ".";
        self.weights.left.borrow_mut().retain(|name, _| !name.starts_with(&place));
    }

    fn take(&self, name: &str) -> Option<Array> {
        // The order of what is left does not matter.
        self.weights.left.borrow_mut().swap_remove(&self.at(name).path)
    }

    fn problem(&self, name: &str, what: impl Display) {
        self.weights.problems.borrow_mut().push(format!("{}: {what}", self.at(name).path));
    }

    /// A tensor of this shape; zeros, and a note of it, when there is none.
    ///
    /// # Errors
    /// A shape too large to exist.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Array> {
        match self.take(name) {
            Some(a) if a.shape() == shape => Ok(a),
            Some(a) => {
                self.problem(name, format!("shape {}, the model needs {}", show(a.shape()), show(shape)));
                ops::zeros::<f32>(&[])
            }
            None => {
                self.problem(name, format!("missing, shape {}", show(shape)));
                ops::zeros::<f32>(&[])
            }
        }
    }

    /// A parameter.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn param(&self, name: &str, shape: &[usize]) -> Result<Param> {
        self.tensor(name, shape).map(Param::new)
    }

    /// The matrix, or stack of matrices, at this place: plain or packed.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn matrix(&self, shape: &[usize]) -> Result<Weight> {
        let Some((&columns, lead)) = shape.split_last() else {
            return Err(Error::shape("[load] a matrix has two axes at least"));
        };
        if !self.has("scales") {
            return Ok(Weight::dense(self.tensor("weight", shape)?));
        }
        let (Some(packed), Some(scales)) = (self.take("weight"), self.take("scales")) else {
            self.problem("weight", "missing beside its scales");
            return Ok(Weight::dense(ops::zeros::<f32>(&[])?));
        };
        let biases = self.take("biases");
        let global_scale = self.take("global_scale");
        let fits = packed.ndim() == shape.len() && packed.shape()[..lead.len()] == *lead;
        let format = match self.weights.plan.format(&self.path, &packed, &scales, columns) {
            Ok(format) if fits => format,
            Ok(_) => {
                self.problem("weight", format!("packed {}, the model needs {}", show(packed.shape()), show(shape)));
                return Ok(Weight::dense(ops::zeros::<f32>(&[])?));
            }
            Err(e) => {
                self.weights.problems.borrow_mut().push(e.to_string());
                return Ok(Weight::dense(ops::zeros::<f32>(&[])?));
            }
        };
        match Quantized::new(packed, scales, biases, global_scale, format) {
            Ok(q) => Ok(Weight::packed(q)),
            Err(e) => {
                self.problem("weight", e);
                Ok(Weight::dense(ops::zeros::<f32>(&[])?))
            }
        }
    }

    /// A linear layer `name`.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn linear(&self, name: &str, input: usize, output: usize, bias: bool) -> Result<Linear> {
        let at = self.at(name);
        let weight = at.matrix(&[output, input])?;
        let bias = bias.then(|| at.tensor("bias", &[output])).transpose()?;
        Ok(Linear::from_parts(weight, bias))
    }

    /// A table `name`.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn embedding(&self, name: &str, number: usize, width: usize) -> Result<Embedding> {
        Ok(Embedding::from_weight(self.at(name).matrix(&[number, width])?))
    }

    /// The linear layers of `n` experts.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn experts(&self, name: &str, n: usize, input: usize, output: usize, bias: bool) -> Result<Experts> {
        let at = self.at(name);
        let bias = |at: &At| bias.then(|| at.param("bias", &[n, output])).transpose();
        Ok(Experts { weight: at.matrix(&[n, output, input])?, bias: bias(&at)?, change: None })
    }

    /// One matrix a head.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn multi_linear(&self, name: &str, heads: usize, input: usize, output: usize) -> Result<MultiLinear> {
        Ok(MultiLinear { weight: self.at(name).matrix(&[heads, output, input])? })
    }

    /// A norm by the root mean square.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn rms_norm(&self, name: &str, width: usize, eps: f64) -> Result<RMSNorm> {
        Ok(RMSNorm { weight: self.at(name).param("weight", &[width])?, eps })
    }

    /// A norm by mean and variance, with a bias if there is one.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn layer_norm(&self, name: &str, width: usize, eps: f64, bias: bool) -> Result<LayerNorm> {
        let at = self.at(name);
        let weight = Some(at.param("weight", &[width])?);
        let bias = bias.then(|| at.param("bias", &[width])).transpose()?;
        LayerNorm::from_parts(width, eps, weight, bias)
    }
}
