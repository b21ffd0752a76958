//! Which standard types can stand in a module: containers of modules, and values without parameters.

use super::{Leaf, LeafMut, Mode, Module};
use crate::{Quantize, Split};
use lapis::{Array, Dtype, Result};
use std::collections::BTreeMap;

impl<M: Module> Module for Vec<M> {
    fn fields<'a>(&'a self, f: &mut dyn FnMut(&str, &'a dyn Module)) {
        self.iter().enumerate().for_each(|(i, m)| f(&i.to_string(), m));
    }
    fn fields_mut(&mut self, f: &mut dyn FnMut(&str, &mut dyn Module)) {
        self.iter_mut().enumerate().for_each(|(i, m)| f(&i.to_string(), m));
    }
}

impl<M: Module, const N: usize> Module for [M; N] {
    fn fields<'a>(&'a self, f: &mut dyn FnMut(&str, &'a dyn Module)) {
        self.iter().enumerate().for_each(|(i, m)| f(&i.to_string(), m));
    }
    fn fields_mut(&mut self, f: &mut dyn FnMut(&str, &mut dyn Module)) {
        self.iter_mut().enumerate().for_each(|(i, m)| f(&i.to_string(), m));
    }
}

impl<M: Module> Module for BTreeMap<String, M> {
    fn fields<'a>(&'a self, f: &mut dyn FnMut(&str, &'a dyn Module)) {
        self.iter().for_each(|(name, m)| f(name, m));
    }
    fn fields_mut(&mut self, f: &mut dyn FnMut(&str, &mut dyn Module)) {
        self.iter_mut().for_each(|(name, m)| f(name, m));
    }
}

impl<M: Module> Module for Option<M> {
    fn fields<'a>(&'a self, f: &mut dyn FnMut(&str, &'a dyn Module)) {
        self.iter().for_each(|m| m.fields(f));
    }
    fn fields_mut(&mut self, f: &mut dyn FnMut(&str, &mut dyn Module)) {
        self.iter_mut().for_each(|m| m.fields_mut(f));
    }
    fn leaf(&self) -> Option<Leaf<'_>> {
        self.as_ref()?.leaf()
    }
    fn leaf_mut(&mut self) -> Option<LeafMut<'_>> {
        self.as_mut()?.leaf_mut()
    }
    fn kind(&self) -> &'static str {
        self.as_ref().map_or("", |m| m.kind())
    }
    fn repr_arguments(&self) -> String {
        self.as_ref().map_or_else(String::new, |m| m.repr_arguments())
    }
    fn as_quantize(&mut self) -> Option<&mut dyn Quantize> {
        self.as_mut()?.as_quantize()
    }
    fn as_split(&mut self) -> Option<&mut dyn Split> {
        self.as_mut()?.as_split()
    }
    fn mode_changed(&mut self, mode: Mode) {
        if let Some(m) = self {
            m.mode_changed(mode);
        }
    }
}

impl<M: Module + ?Sized> Module for Box<M> {
    fn fields<'a>(&'a self, f: &mut dyn FnMut(&str, &'a dyn Module)) {
        (**self).fields(f);
    }
    fn fields_mut(&mut self, f: &mut dyn FnMut(&str, &mut dyn Module)) {
        (**self).fields_mut(f);
    }
    fn leaf(&self) -> Option<Leaf<'_>> {
        (**self).leaf()
    }
    fn leaf_mut(&mut self) -> Option<LeafMut<'_>> {
        (**self).leaf_mut()
    }
    fn kind(&self) -> &'static str {
        (**self).kind()
    }
    fn repr_arguments(&self) -> String {
        (**self).repr_arguments()
    }
    fn as_quantize(&mut self) -> Option<&mut dyn Quantize> {
        (**self).as_quantize()
    }
    fn as_split(&mut self) -> Option<&mut dyn Split> {
        (**self).as_split()
    }
    fn mode_changed(&mut self, mode: Mode) {
        (**self).mode_changed(mode);
    }
}

macro_rules! plain {
    ($($t:ty),* $(,)?) => {$(
        impl Module for $t {
            fn fields<'a>(&'a self, _: &mut dyn FnMut(&str, &'a dyn Module)) {}
            fn fields_mut(&mut self, _: &mut dyn FnMut(&str, &mut dyn Module)) {}
        }
    )*};
}
plain! {
    (), bool, char, u8, u16, u32, u64, usize, i8, i16, i32, i64, isize, f32, f64, String, &'static str, Dtype,
    (usize, usize), (usize, usize, usize), fn(&Array) -> Result<Array>, fn(&Array) -> Array,
}
