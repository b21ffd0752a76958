//! Functions with rules of their own, and functions whose inner values are computed again for their gradients.
//!
//! A `Custom` node stands behind the outputs of a traced function and gives them on unchanged. It holds the function
//! as a [`Program`], which knows no values, and the user's rules. Without a rule the program is run again on the inputs
//! and differentiated: that is what `checkpoint` is.

use super::program::Program;
use super::trace::{Keeping, tracers};
use super::tree::{expect_like, expect_shapes};
use super::vjp::pull_back;
use super::vmap::{map_lanes, replay};
use super::{Grads, Lane, Outcome, Site, Transform, Tree, behind};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::{self, Rule};
use crate::shape::Shape;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

type Vjp = dyn Fn(&[Array], &[Array], &[Array]) -> Result<Vec<Array>> + Send + Sync;
type Jvp = dyn Fn(&[Array], &[Array]) -> Result<Vec<Array>> + Send + Sync;
type Vmap = dyn Fn(&[Lane], usize) -> Result<Vec<Lane>> + Send + Sync;

#[derive(Clone, Default)]
struct Rules {
    vjp: Option<Arc<Vjp>>,
    jvp: Option<Arc<Jvp>>,
    vmap: Option<Arc<Vmap>>,
}

struct Function {
    program: Program,
    /// Arguments of the user's function; the inputs behind them were captured.
    arguments: usize,
    rules: Rules,
}

/// The last inputs, unchanged; the inputs before them are what they were computed from.
#[derive(Clone)]
pub struct Custom(Arc<Function>);

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Custom({:p})", Arc::as_ptr(&self.0))
    }
}
impl PartialEq for Custom {
    fn eq(&self, other: &Custom) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
impl Eq for Custom {}
impl Hash for Custom {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl Custom {
    /// Whether the user gave rules; a checkpoint has none.
    pub(crate) fn has_rules(&self) -> bool {
        let Rules { vjp, jvp, vmap } = &self.0.rules;
        vjp.is_some() || jvp.is_some() || vmap.is_some()
    }
}

impl Rule for Custom {
    fn name(&self) -> &'static str {
        "custom_function"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let first = inputs.len() - self.0.program.outputs.len();
        Ok(inputs[first..].iter().map(|a| Aval::new(a.shape(), a.dtype())).collect())
    }
}

impl Transform for Custom {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let Function { program, arguments, rules } = &*self.0;
        let inputs = &at.inputs[..at.inputs.len() - program.outputs.len()];
        let mut grads = at.none();
        let keeping = Keeping::start();
        let cotangents: Vec<Array> = (0..at.outputs.len()).map(|i| at.cotangent(i)).collect::<Result<_>>()?;
        let primals = &inputs[..*arguments];
        if let (Some(vjp), false) = (&rules.vjp, at.forward) {
            let given = vjp(primals, &cotangents, at.outputs)?;
            expect_like("custom_function", "gradient", &given, primals)?;
            given.into_iter().enumerate().for_each(|(i, g)| grads[i] = Some(g));
        } else if let (Some(jvp), true) = (&rules.jvp, at.forward) {
            let zeros = primals.iter().map(|x| ops::zeros_like(x, None)).collect::<Result<Vec<_>>>()?;
            let along = tracers(&zeros)?;
            let moved = jvp(primals, &along)?;
            expect_like("custom_function", "tangent", &moved, at.outputs)?;
            let back = pull_back(&moved, cotangents.into_iter().map(Some).collect(), &along, true)?;
            back.into_iter().enumerate().for_each(|(i, g)| grads[i] = g);
        } else {
            // Computed again, and only once the cotangents are there: until then nothing of it takes memory.
            let inputs = ops::depends(inputs, &cotangents)?;
            let again = tracers(&inputs)?;
            let outputs = program.run(&again);
            // Where the other mode has a rule of the user, what was captured is constant in this one too.
            let ruled = rules.vjp.is_some() || rules.jvp.is_some();
            let free = if ruled { &again[..*arguments] } else { &again };
            let back = pull_back(&outputs, cotangents.into_iter().map(Some).collect(), free, at.forward)?;
            back.into_iter().enumerate().for_each(|(i, g)| grads[i] = g);
        }
        drop(keeping);
        Ok(grads)
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let Function { program, arguments, rules } = &*self.0;
        let (lanes, outputs) = lanes.split_at(lanes.len() - program.outputs.len());
        if let Some(vmap) = &rules.vmap {
            let given = vmap(&lanes[..*arguments], size)?;
            let whole: Vec<Array> = given.iter().map(|l| l.spread(size)).collect::<Result<_>>()?;
            let shapes: Vec<Shape> = outputs.iter().map(|l| behind(size, l.shape())).collect();
            expect_shapes("custom_function", "output of the vmap rule", &whole, &shapes)?;
            return Ok(whole);
        }
        let (inner, flags) = (self.0.clone(), lanes.iter().map(|l| l.mapped).collect::<Vec<_>>());
        let arrays: Vec<Array> = lanes.iter().map(|l| l.array.clone()).collect();
        let whole = move |arrays: &[Array]| {
            let lanes = arrays.iter().zip(&flags).map(|(a, &mapped)| Lane { array: a.clone(), mapped });
            let outputs = replay(&inner.program, &lanes.collect::<Vec<_>>(), size)?;
            outputs.iter().map(|l| l.spread(size)).collect()
        };
        let flags: Vec<bool> = lanes[..*arguments].iter().map(|l| l.mapped).collect();
        apply(&whole, &arrays, *arguments, rules.mapped(flags, size))
    }
}

impl Rules {
    /// The rules of a function that takes a batch: a gradient of what the lanes share is summed over them.
    fn mapped(&self, flags: Vec<bool>, size: usize) -> Rules {
        let lane = |array: &Array, mapped: bool| Lane { array: array.clone(), mapped };
        let (of_vjp, of_jvp) = (flags.clone(), flags);
        let vjp = self.vjp.clone().map(|rule| -> Arc<Vjp> {
            Arc::new(move |primals, cotangents, outputs| {
                let (n, m) = (primals.len(), cotangents.len());
                let all = primals.iter().zip(&of_vjp).map(|(a, &f)| lane(a, f));
                let rest = cotangents.iter().chain(outputs).map(|a| lane(a, true));
                let lanes: Vec<Lane> = all.chain(rest).collect();
                let grads = map_lanes(&lanes, size, |x| rule(&x[..n], &x[n..n + m], &x[n + m..]))?;
                let whole = |(g, &mapped): (Lane, &bool)| {
                    let g = g.spread(size)?;
                    if mapped { Ok(g) } else { ops::sum(&g, 0, false) }
                };
                grads.into_iter().zip(&of_vjp).map(whole).collect()
            })
        });
        let jvp = self.jvp.clone().map(|rule| -> Arc<Jvp> {
            Arc::new(move |primals, tangents| {
                let n = primals.len();
                let pairs = primals.iter().zip(&of_jvp).chain(tangents.iter().zip(&of_jvp));
                let lanes: Vec<Lane> = pairs.map(|(a, &f)| lane(a, f)).collect();
                map_lanes(&lanes, size, |x| rule(&x[..n], &x[n..]))?.iter().map(|l| l.spread(size)).collect()
            })
        });
        Rules { vjp, jvp, vmap: None }
    }
}

/// Calls `f` and marks its outputs as those of a function with rules.
fn apply(
    f: &dyn Fn(&[Array]) -> Result<Vec<Array>>,
    inputs: &[Array],
    arguments: usize,
    rules: Rules,
) -> Result<Vec<Array>> {
    let keeping = Keeping::start();
    let inner = tracers(inputs)?;
    let outputs = f(&inner)?;
    let (program, captured) = Program::new(&outputs, &inner);
    drop(keeping);
    if outputs.is_empty() {
        return Ok(outputs);
    }
    let all = inputs.iter().cloned().chain(captured).chain(outputs).collect();
    Ok(Array::apply(Custom(Arc::new(Function { program, arguments, rules })), all)?.into_vec())
}

/// A function whose derivatives or mapping the user gives; see [`custom_function`].
pub struct CustomFunction<F> {
    f: F,
    rules: Rules,
}

/// `f` with rules of its own (`mx.custom_function`): add them with [`CustomFunction::vjp`], [`CustomFunction::jvp`] and
/// [`CustomFunction::vmap`]. Reverse mode takes the first, forward mode the second; what is not given follows from `f`, not
/// from the other rule. With a rule for either, captured arrays are constant in both.
pub fn custom_function<F: Fn(&[Array]) -> Result<Vec<Array>>>(f: F) -> CustomFunction<F> {
    CustomFunction { f, rules: Rules::default() }
}

impl<F: Fn(&[Array]) -> Result<Vec<Array>>> CustomFunction<F> {
    /// The gradients of the arguments from (arguments, cotangents, outputs).
    pub fn vjp(
        mut self,
        rule: impl Fn(&[Array], &[Array], &[Array]) -> Result<Vec<Array>> + Send + Sync + 'static,
    ) -> Self {
        self.rules.vjp = Some(Arc::new(rule));
        self
    }

    /// The changes of the outputs from (arguments, tangents); must be linear in the tangents.
    pub fn jvp(mut self, rule: impl Fn(&[Array], &[Array]) -> Result<Vec<Array>> + Send + Sync + 'static) -> Self {
        self.rules.jvp = Some(Arc::new(rule));
        self
    }

    /// The outputs of all lanes from the arguments' lanes and their number.
    pub fn vmap(mut self, rule: impl Fn(&[Lane], usize) -> Result<Vec<Lane>> + Send + Sync + 'static) -> Self {
        self.rules.vmap = Some(Arc::new(rule));
        self
    }

    /// Calls the function.
    ///
    /// # Errors
    /// What the function returns.
    pub fn call(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        apply(&self.f, inputs, inputs.len(), self.rules.clone())
    }
}

/// `f` with the values inside computed again for the gradient, in place of being kept (`mx.checkpoint`): less memory
/// for one more forward pass. Captured arrays have gradients as everywhere.
///
/// # Errors
/// The function returned gives errors: what `f` returns.
pub fn checkpoint<P: Tree, F: Outcome>(f: impl Fn(&P) -> F) -> impl Fn(&P) -> Result<F::Tree> {
    move |primals| {
        let leaves = primals.leaves();
        let tree = std::cell::RefCell::new(None);
        let inner = |arrays: &[Array]| {
            let value = f(&primals.with_leaves(arrays.to_vec())).outcome()?;
            let leaves = value.leaves();
            tree.replace(Some(value));
            Ok(leaves)
        };
        let outputs = apply(&inner, &leaves, leaves.len(), Rules::default())?;
        let tree = tree.take().ok_or_else(|| Error::value("[checkpoint] the function was not called"))?;
        Ok(tree.with_leaves(outputs))
    }
}
