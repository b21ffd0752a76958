//! Modules: structs whose fields are parameters, modules and plain values.
//!
//! `#[derive(Module)]` visits the fields; everything else (parameters by name, freezing, files, printing) is written
//! once on top of that visit. Knows no layer.

mod leaf;
mod parameters;
mod plain;
mod print;
mod replace;
mod weights;

pub use leaf::{Buffer, Leaf, LeafMut, Mode, Param};
pub use print::show;

use crate::{Params, Quantize, Split};
use lapis::{Array, Dtype, Result};
use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;

/// A tree of named parameters. Derive it: `#[derive(Module, Clone)]`.
///
/// Names are those of the fields, joined by dots; the entries of a `Vec` are numbered: `layers.0.weight`. `Option` and
/// `Box` add nothing to a name. They are MLX's names, and those in checkpoints.
///
/// An array alone is no module: say whether it is trained.
///
/// ```compile_fail
/// #[derive(lapis_nn::Module)]
/// struct Scale {
///     by: lapis::Array,
/// }
/// ```
///
/// ```
/// #[derive(lapis_nn::Module)]
/// struct Scale {
///     by: lapis_nn::Param,
/// }
/// ```
///
/// What a tree can do is written once, for `dyn Module`: were it compiled anew for each of some hundred types, it would be a third of
/// what a compiler has to do with models.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a Module",
    note = "an array that is trained is a `Param`, state that is not is a `Buffer`; mark other fields with #[plain]"
)]
pub trait Module: Any + Send + Sync + Erased {
    /// Calls `f` with the name of each field and the field.
    fn fields<'a>(&'a self, f: &mut dyn FnMut(&str, &'a dyn Module));

    /// As [`Module::fields`], to change them.
    fn fields_mut(&mut self, f: &mut dyn FnMut(&str, &mut dyn Module));

    /// The parameter, buffer or mode that this is, if it is one.
    fn leaf(&self) -> Option<Leaf<'_>> {
        None
    }

    /// As [`Module::leaf`], to change it.
    fn leaf_mut(&mut self) -> Option<LeafMut<'_>> {
        None
    }

    /// The name of the type; empty for what only holds others, such as `Vec`.
    fn kind(&self) -> &'static str {
        ""
    }

    /// What stands between the brackets of the printed form: `input_dims=4, output_dims=2, bias=True`.
    fn repr_arguments(&self) -> String {
        String::new()
    }

    /// This module as one that [`quantize`](crate::quantize) can change.
    fn as_quantize(&mut self) -> Option<&mut dyn Quantize> {
        None
    }

    /// This module as one whose parts can lie on several processes.
    fn as_split(&mut self) -> Option<&mut dyn Split> {
        None
    }

    /// Called by [`Module::train`] and [`Module::eval`] after the modes inside were set.
    fn mode_changed(&mut self, _mode: Mode) {}

    // ------------------------------------------------------------------ walks

    /// Calls `f` with the dotted name of each leaf and the leaf.
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&str, Leaf<'a>)) {
        walk(self.erased(), "", f);
    }

    /// As [`Module::visit`], to change them.
    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, LeafMut<'_>)) {
        walk_mut(self.erased_mut(), "", f);
    }

    /// The modules inside this one (not the fields that only hold others), by dotted name; a module comes before what
    /// it holds. This module itself is not among them.
    fn named_modules(&self) -> Vec<(String, &dyn Module)> {
        let mut found = Vec::new();
        inner(self.erased(), "", &mut found);
        found
    }

    /// The nearest modules inside this one by dotted name, through lists and the like: what the printed form shows.
    fn children(&self) -> Vec<(String, &dyn Module)> {
        let mut found = Vec::new();
        nearest(self.erased(), "", &mut found);
        found
    }

    /// The modules inside that hold no module themselves, by dotted name.
    fn leaf_modules(&self) -> Vec<(String, &dyn Module)> {
        leaf_modules(self.erased())
    }

    /// Calls `f` with the dotted name of each module of the tree and the module, to change it: this one first, under
    /// an empty name, and a module before what it holds.
    fn apply_to_modules(&mut self, f: &mut dyn FnMut(&str, &mut dyn Module))
    where
        Self: Sized,
    {
        f("", self);
        replace::apply_inside(self, "", f);
    }

    /// Puts other modules of type `T` in the place of those that are named. Only a field that is a `T` (or an
    /// `Option<T>`) can hold one: fields that take layers of any type are `Box<dyn Layer>`, as those of a `Sequential`.
    ///
    /// # Errors
    /// With `strict`, a value error that lists the names at which there is no module, or one of another type; nothing is
    /// changed then.
    fn update_modules<T: Module>(&mut self, modules: BTreeMap<String, T>, strict: bool) -> Result<()>
    where
        Self: Sized,
    {
        replace::update_modules(self, modules, strict)
    }

    // ------------------------------------------------------------------ parameters

    /// The arrays that `keep`, asked with name and leaf, chooses, after `map` (`Module.filter_and_map`).
    ///
    /// # Errors
    /// What `map` returns.
    fn filter_and_map(
        &self,
        keep: &mut dyn FnMut(&str, &Leaf<'_>) -> bool,
        map: &mut dyn FnMut(&Array) -> Result<Array>,
    ) -> Result<Params> {
        parameters::filter_and_map(self.erased(), keep, map)
    }

    /// All parameters and buffers by name.
    fn parameters(&self) -> Params {
        parameters::all(self.erased())
    }

    /// The parameters that are not frozen.
    fn trainable_parameters(&self) -> Params {
        parameters::trainable(self.erased())
    }

    /// The number of elements of all parameters, packed ones as they are stored.
    fn num_parameters(&self) -> usize {
        parameters::count(self.erased())
    }

    /// Replaces the parameters that `params` names. Shapes are not compared: [`Module::load_params`] does that.
    ///
    /// # Errors
    /// With `strict`, a value error that lists the names this module does not have; nothing is changed then.
    fn update(&mut self, params: &Params, strict: bool) -> Result<()> {
        parameters::update(self.erased_mut(), params, strict)
    }

    /// Replaces every parameter and buffer by what `f` gives for its name and value (`Module.apply`).
    ///
    /// # Errors
    /// What `f` returns; nothing is changed then.
    fn apply(&mut self, f: &mut dyn FnMut(&str, &Array) -> Result<Array>) -> Result<()> {
        parameters::apply(self.erased_mut(), f)
    }

    /// Casts the floating parameters (`Module.set_dtype`). Packed words stay as they are.
    ///
    /// # Errors
    /// A dtype that floating parameters cannot be cast to.
    fn set_dtype(&mut self, dtype: Dtype) -> Result<()> {
        self.set_dtype_where(dtype, &mut |dtype| dtype.is_floating())
    }

    /// Casts the parameters whose dtype is chosen.
    ///
    /// # Errors
    /// A dtype that they cannot be cast to.
    fn set_dtype_where(&mut self, dtype: Dtype, choose: &mut dyn FnMut(Dtype) -> bool) -> Result<()> {
        parameters::cast(self.erased_mut(), dtype, choose)
    }

    // ------------------------------------------------------------------ freezing, modes

    /// Keeps all parameters from training. Freeze a part by calling this on a field.
    fn freeze(&mut self) {
        self.freeze_where(&mut |_| true);
    }

    /// Trains all parameters again, but for those that cannot be trained (packed weights).
    fn unfreeze(&mut self) {
        self.unfreeze_where(&mut |_| true);
    }

    /// Freezes the parameters whose dotted name is chosen; says how many there were. MLX's `keys=["bias"]` is
    /// `|name| lapis_nn::key(name) == "bias"`, `recurse=False` is `|name| !name.contains('.')`, and `strict=True` asks
    /// that the number is not 0.
    fn freeze_where(&mut self, choose: &mut dyn FnMut(&str) -> bool) -> usize {
        parameters::set_frozen(self.erased_mut(), true, choose)
    }

    /// As [`Module::freeze_where`], the other way.
    fn unfreeze_where(&mut self, choose: &mut dyn FnMut(&str) -> bool) -> usize {
        parameters::set_frozen(self.erased_mut(), false, choose)
    }

    /// Sets what dropout and batch normalisation do: modules are made in training mode.
    fn train(&mut self, training: bool) {
        set_mode(self.erased_mut(), if training { Mode::Train } else { Mode::Eval });
    }

    /// Whether nothing inside is in evaluation mode. Only modules that behave differently have a mode.
    fn training(&self) -> bool {
        is_training(self.erased())
    }

    /// `train(false)`.
    fn eval(&mut self) {
        self.train(false);
    }

    // ------------------------------------------------------------------ files

    /// Replaces parameters by those given (`Module.load_weights` with pairs).
    ///
    /// # Errors
    /// With `strict`, one value error that lists every extra and missing name and every differing shape. Nothing is
    /// changed then.
    fn load_params(&mut self, params: &Params, strict: bool) -> Result<()> {
        weights::load(self.erased_mut(), params, strict, None)
    }

    /// Replaces parameters by those of a .safetensors or .npz file.
    ///
    /// # Errors
    /// As [`Module::load_params`], and faults of the file.
    fn load_weights(&mut self, path: &Path, strict: bool) -> Result<()> {
        weights::load_file(self.erased_mut(), path, strict)
    }

    /// Writes all parameters and buffers to a .safetensors or .npz file.
    ///
    /// # Errors
    /// Another suffix; faults of computing and writing.
    fn save_weights(&self, path: &Path) -> Result<()> {
        weights::save(path, self.erased())
    }
}

/// A module of any size as one of unknown type; every module is.
pub trait Erased {
    /// This module.
    fn erased(&self) -> &dyn Module;
    /// This module, to change it.
    fn erased_mut(&mut self) -> &mut dyn Module;
}

impl<M: Module> Erased for M {
    fn erased(&self) -> &dyn Module {
        self
    }
    fn erased_mut(&mut self) -> &mut dyn Module {
        self
    }
}

/// The last part of a dotted name.
pub fn key(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

fn walk<'a>(module: &'a dyn Module, path: &str, f: &mut dyn FnMut(&str, Leaf<'a>)) {
    if let Some(leaf) = module.leaf() {
        f(path, leaf);
    }
    module.fields(&mut |name, field| walk(field, &join(path, name), f));
}

fn walk_mut(module: &mut dyn Module, path: &str, f: &mut dyn FnMut(&str, LeafMut<'_>)) {
    if let Some(leaf) = module.leaf_mut() {
        f(path, leaf);
    }
    module.fields_mut(&mut |name, field| walk_mut(field, &join(path, name), f));
}

fn inner<'a>(module: &'a dyn Module, path: &str, found: &mut Vec<(String, &'a dyn Module)>) {
    module.fields(&mut |name, field| {
        let path = join(path, name);
        if !field.kind().is_empty() {
            found.push((path.clone(), field));
        }
        inner(field, &path, found);
    });
}

fn nearest<'a>(module: &'a dyn Module, path: &str, found: &mut Vec<(String, &'a dyn Module)>) {
    module.fields(&mut |name, field| {
        let path = join(path, name);
        if field.kind().is_empty() {
            nearest(field, &path, found);
        } else {
            found.push((path, field));
        }
    });
}

fn leaf_modules(module: &dyn Module) -> Vec<(String, &dyn Module)> {
    let mut found = module.named_modules();
    found.retain(|(_, module)| module.children().is_empty());
    found
}

fn set_mode(module: &mut dyn Module, mode: Mode) {
    if let Some(LeafMut::Mode(m)) = module.leaf_mut() {
        *m = mode;
    }
    module.fields_mut(&mut |_, field| set_mode(field, mode));
    module.mode_changed(mode);
}

fn is_training(module: &dyn Module) -> bool {
    let mut training = true;
    module.visit(&mut |_, leaf| training &= !matches!(leaf, Leaf::Mode(Mode::Eval)));
    training
}
