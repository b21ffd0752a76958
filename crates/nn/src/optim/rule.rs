//! What optimisers share: state by parameter, the step counter, the learning rate, all checks. An optimiser adds a
//! [`Rule`]: its options, its slots and its formula.

use super::{Optimizer, Proposal, Rate};
use crate::Params;
use lapis::shape::show;
use lapis::{Array, Dtype, Error, Result, array, ops};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Index, IndexMut};

const STEP: &str = "step";
const RATE: &str = "learning_rate";

/// The state of one parameter, by slot name: `state["m"]`.
pub struct Slots(Vec<(&'static str, Array)>);

impl Index<&str> for Slots {
    type Output = Array;
    /// # Panics
    /// For a name that the rule's `slots` did not give: a fault of the rule.
    fn index(&self, slot: &str) -> &Array {
        &self.0.iter().find(|(s, _)| *s == slot).expect("a slot of the rule").1
    }
}
impl IndexMut<&str> for Slots {
    fn index_mut(&mut self, slot: &str) -> &mut Array {
        &mut self.0.iter_mut().find(|(s, _)| *s == slot).expect("a slot of the rule").1
    }
}

/// Where in training a rule is applied.
pub struct At<'a> {
    /// The parameter's name.
    pub name: &'a str,
    /// Number of this step, from 1 (uint64).
    pub step: &'a Array,
    /// What the rule's `shared` gave.
    pub shared: &'a [Array],
    rate: Option<&'a Array>,
}

impl At<'_> {
    /// The learning rate of this step.
    ///
    /// # Errors
    /// A value error for an optimiser without one.
    pub fn rate(&self) -> Result<&Array> {
        self.rate.ok_or_else(|| Error::value("[optimizer] this needs a learning rate and none was given"))
    }

    /// The learning rate in the dtype of a gradient.
    ///
    /// # Errors
    /// As [`At::rate`].
    pub fn lr(&self, g: &Array) -> Result<Array> {
        ops::astype(self.rate()?, g.dtype())
    }
}

/// What every optimiser holds: the step, the learning rate and the state of the parameters.
pub struct Base {
    rate: Option<Rate>,
    /// `step`, `learning_rate` and `<parameter>.<slot>`.
    state: Params,
}

impl Base {
    /// At step 0.
    pub fn new(rate: Option<Rate>) -> Base {
        let mut base = Base { rate, state: Params::from([(STEP.to_string(), array(0u64))]) };
        base.refresh();
        base
    }

    /// Whether there is a learning rate.
    pub fn has_rate(&self) -> bool {
        self.rate.is_some()
    }

    fn step(&self) -> &Array {
        &self.state[STEP]
    }

    fn rate_now(&self) -> Option<Array> {
        match self.rate.as_ref()? {
            Rate::Constant(rate) => Some(rate.clone()),
            Rate::Schedule(schedule) => Some(schedule.at(self.step())),
        }
    }

    fn refresh(&mut self) {
        if let Some(rate) = self.rate_now() {
            self.state.insert(RATE.to_string(), rate);
        }
    }

    /// The state of a parameter; zeros where it has none. Faults are added to the list.
    fn slots(&self, name: &str, w: &Array, slots: Shapes, faults: &mut Vec<String>) -> Result<Slots> {
        let mut found = Vec::with_capacity(slots.len());
        let mut missing = Vec::new();
        for (slot, shape) in slots {
            let key = format!("{name}.{slot}");
            match self.state.get(&key) {
                Some(a) if a.shape() == shape => found.push((slot, a.clone())),
                Some(a) => {
                    let (has, needs) = (show(a.shape()), show(&shape));
                    faults.push(format!("the state {key} has shape {has}, the parameter needs {needs}"));
                }
                None => {
                    missing.push(key);
                    // A view of one zero: it costs nothing before the first step, and nothing ever where it stays.
                    found.push((slot, ops::broadcast_to(&ops::full(&[], 0, Some(w.dtype()))?, &shape)?));
                }
            }
        }
        if missing.len() < found.len() {
            faults.extend(missing.into_iter().map(|key| format!("the state {key} is missing")));
        }
        Ok(Slots(found))
    }
}

/// Slot names and shapes.
pub type Shapes = Vec<(&'static str, Vec<usize>)>;

/// An optimiser that treats every parameter by itself. Whoever implements this is an [`Optimizer`].
pub trait Rule: Send {
    /// The name that errors start with.
    fn title(&self) -> &'static str;

    /// The shared part.
    fn base(&self) -> &Base;

    /// The shared part.
    fn base_mut(&mut self) -> &mut Base;

    /// Whether the options are in range.
    ///
    /// # Errors
    /// A value error that names the option.
    fn check(&self) -> Result<()>;

    /// The slots of a parameter of this shape and their shapes; they begin as zeros of the parameter's dtype.
    fn slots(&self, shape: &[usize]) -> Shapes;

    /// Small arrays that the updates of all parameters share, computed once a step.
    ///
    /// # Errors
    /// Whatever the ops find.
    fn shared(&self, _step: &Array) -> Result<Vec<Array>> {
        Ok(Vec::new())
    }

    /// The new value of one parameter `w` with gradient `g`; replaces the slots.
    ///
    /// # Errors
    /// Whatever the ops find.
    fn step_one(&self, at: &At, g: &Array, w: &Array, state: &mut Slots) -> Result<Array>;
}

/// One error for all faults, if there are any.
pub(super) fn refuse(title: &str, faults: &[String]) -> Result<()> {
    if faults.is_empty() { Ok(()) } else { Err(Error::value(format!("[{title}] {}", faults.join("; ")))) }
}

/// An error unless `ok`.
pub(super) fn demand(ok: bool, title: &str, what: &str, value: impl std::fmt::Debug) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::value(format!("[{title}] {what}; {value:?} was given"))) }
}

impl<R: Rule> Optimizer for R {
    fn init(&mut self, params: &Params) -> Result<()> {
        self.check()?;
        let (mut faults, mut fresh) = (Vec::new(), Params::new());
        for (name, w) in params {
            if !w.dtype().is_inexact() {
                faults.push(format!("the parameter {name} is {}, not a float", w.dtype()));
                continue;
            }
            let slots = self.base().slots(name, w, self.slots(w.shape()), &mut faults)?;
            fresh.extend(slots.0.into_iter().map(|(slot, a)| (format!("{name}.{slot}"), a)));
        }
        refuse(self.title(), &faults)?;
        self.base_mut().state.extend(fresh);
        Ok(())
    }

    fn propose(&self, grads: &Params, params: &Params) -> Result<Proposal> {
        self.check()?;
        let base = self.base();
        let mut faults = Vec::new();
        let mut work = Vec::with_capacity(grads.len());
        for (name, g) in grads {
            let Some(w) = params.get(name) else {
                faults.push(format!("the gradient {name} has no parameter"));
                continue;
            };
            for (what, a) in [("gradient", g), ("parameter", w)] {
                if !a.dtype().is_inexact() {
                    faults.push(format!("the {what} {name} is {}, not a float", a.dtype()));
                }
            }
            if g.shape() == w.shape() {
                work.push((name, g, w, base.slots(name, w, self.slots(w.shape()), &mut faults)?));
            } else {
                let (g, w) = (show(g.shape()), show(w.shape()));
                faults.push(format!("the gradient {name} has shape {g}, the parameter {w}"));
            }
        }
        let rate = base.rate_now();
        if let Some(rate) = &rate
            && (rate.ndim() != 0 || !rate.dtype().is_inexact())
        {
            faults.push(format!("the learning rate must be one float; it is {} {}", rate.dtype(), show(rate.shape())));
        }
        refuse(self.title(), &faults)?;

        let step = next(base.step())?;
        let shared = self.shared(&step)?;
        let mut proposal = Proposal { params: Params::new(), state: Params::new() };
        for (name, g, w, mut slots) in work {
            let at = At { name, step: &step, shared: &shared, rate: rate.as_ref() };
            proposal.params.insert(name.clone(), self.step_one(&at, g, w, &mut slots)?);
            proposal.state.extend(slots.0.into_iter().map(|(slot, a)| (format!("{name}.{slot}"), a)));
        }
        proposal.state.insert(STEP.to_string(), step);
        proposal.state.extend(rate.map(|rate| (RATE.to_string(), rate)));
        Ok(proposal)
    }

    fn accept(&mut self, proposal: Proposal) -> Params {
        self.base_mut().state.extend(proposal.state);
        proposal.params
    }

    fn state(&self) -> Params {
        self.base().state.clone()
    }

    fn check_state(&self, state: &Params) -> Result<()> {
        let base = self.base();
        let mut faults = Vec::new();
        let own = [(STEP, true, "one uint64"), (RATE, base.state.contains_key(RATE), "one float")];
        for (name, here, is) in own {
            match state.get(name) {
                Some(a) if here => {
                    let fits = if name == STEP { a.dtype() == Dtype::Uint64 } else { a.dtype().is_inexact() };
                    if !fits || a.ndim() != 0 {
                        faults.push(format!("{name} must be {is}; it is {} of shape {}", a.dtype(), show(a.shape())));
                    }
                }
                None if here => faults.push(format!("{name} is missing")),
                Some(_) => faults.push(format!("{name} is unknown")),
                None => {}
            }
        }
        let entries = |state: &Params| -> BTreeMap<String, Array> {
            state.iter().filter(|(k, _)| *k != STEP && *k != RATE).map(|(k, a)| (k.clone(), a.clone())).collect()
        };
        let (known, given) = (entries(&base.state), entries(state));
        for (key, a) in given.iter().filter(|(_, a)| !a.dtype().is_inexact()) {
            faults.push(format!("{key} is {}, not a float", a.dtype()));
        }
        if known.is_empty() {
            self.check_slots(&given, &mut faults);
        } else {
            faults.extend(known.keys().filter(|k| !given.contains_key(*k)).map(|k| format!("{k} is missing")));
            for (key, a) in &given {
                match known.get(key) {
                    None => faults.push(format!("{key} is unknown")),
                    Some(b) if a.shape() != b.shape() => {
                        faults.push(format!("{key} has shape {}, not {}", show(a.shape()), show(b.shape())));
                    }
                    Some(_) => {}
                }
            }
        }
        refuse(self.title(), &faults).map_err(|e| Error::value(format!("{e}; the state is refused")))
    }

    fn set_state(&mut self, state: &Params) -> Result<()> {
        self.check_state(state)?;
        let base = self.base_mut();
        base.state = state.clone();
        if let (Some(Rate::Constant(rate)), Some(given)) = (&mut base.rate, state.get(RATE)) {
            *rate = given.clone();
        }
        Ok(())
    }

    fn learning_rate(&self) -> Option<Array> {
        self.base().state.get(RATE).cloned()
    }

    fn set_learning_rate(&mut self, rate: Rate) {
        let base = self.base_mut();
        base.rate = Some(rate);
        base.refresh();
    }
}

/// The check of a state before any parameter is known: every parameter in it has all slots of the rule and no others.
trait CheckSlots: Rule {
    fn check_slots(&self, given: &Params, faults: &mut Vec<String>) {
        let names = |shape: &[usize]| self.slots(shape).into_iter().map(|(slot, _)| slot).collect::<BTreeSet<_>>();
        let (vector, matrix) = (names(&[1]), names(&[1, 1]));
        let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for key in given.keys() {
            match key.rsplit_once('.') {
                Some((param, slot)) if vector.contains(slot) || matrix.contains(slot) => {
                    found.entry(param).or_default().insert(slot);
                }
                _ => faults.push(format!("{key} is unknown")),
            }
        }
        for (param, slots) in found {
            // Which of the two it is shows in what is there.
            let all = if slots.is_subset(&vector) { &vector } else { &matrix };
            faults.extend(all.difference(&slots).map(|slot| format!("{param}.{slot} is missing")));
            faults.extend(slots.difference(all).map(|slot| format!("{param}.{slot} is unknown")));
        }
    }
}
impl<R: Rule> CheckSlots for R {}

/// The step after this one: counted at once where the value is there, so that no chain of sums grows; else (inside
/// `compile`) as a part of the graph.
fn next(step: &Array) -> Result<Array> {
    if step.is_evaluated() { Ok(array(step.item::<u64>()?.wrapping_add(1))) } else { ops::add(step, 1) }
}
