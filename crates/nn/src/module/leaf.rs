//! The leaves of a module: parameters, buffers, the training mode.

use super::Module;
use lapis::Array;
use lapis::ops::Operand;
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

/// A leaf, to look at.
#[derive(Debug)]
pub enum Leaf<'a> {
    /// A parameter.
    Param(&'a Param),
    /// State that is not trained.
    Buffer(&'a Buffer),
    /// Whether the module trains.
    Mode(Mode),
}

/// A leaf, to change.
#[derive(Debug)]
pub enum LeafMut<'a> {
    /// A parameter.
    Param(&'a mut Param),
    /// State that is not trained.
    Buffer(&'a Buffer),
    /// Whether the module trains.
    Mode(&'a mut Mode),
}

impl Leaf<'_> {
    /// The array, if the leaf has one.
    pub fn value(&self) -> Option<Array> {
        match self {
            Leaf::Param(p) => Some(p.value().clone()),
            Leaf::Buffer(b) => Some(b.get()),
            Leaf::Mode(_) => None,
        }
    }
}

macro_rules! leaf {
    ($t:ty, $shared:expr, $exclusive:expr) => {
        impl Module for $t {
            fn fields<'a>(&'a self, _: &mut dyn FnMut(&str, &'a dyn Module)) {}
            fn fields_mut(&mut self, _: &mut dyn FnMut(&str, &mut dyn Module)) {}
            fn leaf(&self) -> Option<Leaf<'_>> {
                let make: fn(&$t) -> Leaf<'_> = $shared;
                Some(make(self))
            }
            fn leaf_mut(&mut self) -> Option<LeafMut<'_>> {
                let make: fn(&mut $t) -> LeafMut<'_> = $exclusive;
                Some(make(self))
            }
        }
    };
}
leaf!(Param, |p| Leaf::Param(p), |p| LeafMut::Param(p));
leaf!(Buffer, |b| Leaf::Buffer(b), |b| LeafMut::Buffer(b));
leaf!(Mode, |m| Leaf::Mode(*m), |m| LeafMut::Mode(m));

// ------------------------------------------------------------------ parameters

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Training {
    Yes,
    Frozen,
    Never,
}

/// A parameter: an array, which it can be used as, and whether it is trained.
#[derive(Clone)]
pub struct Param {
    value: Array,
    training: Training,
}

impl Param {
    /// A parameter that is trained.
    pub fn new(value: Array) -> Param {
        Param { value, training: Training::Yes }
    }

    /// A parameter that `unfreeze` leaves frozen: packed words and their scales.
    pub fn fixed(value: Array) -> Param {
        Param { value, training: Training::Never }
    }

    /// The array.
    pub fn value(&self) -> &Array {
        &self.value
    }

    /// Replaces the array.
    pub fn set(&mut self, value: Array) {
        self.value = value;
    }

    /// Whether it is left out of training.
    pub fn is_frozen(&self) -> bool {
        self.training != Training::Yes
    }

    /// Keeps it from training.
    pub fn freeze(&mut self) {
        if self.training == Training::Yes {
            self.training = Training::Frozen;
        }
    }

    /// Trains it again, unless it is [`Param::fixed`].
    pub fn unfreeze(&mut self) {
        if self.training == Training::Frozen {
            self.training = Training::Yes;
        }
    }
}

impl From<Array> for Param {
    fn from(value: Array) -> Param {
        Param::new(value)
    }
}

impl Deref for Param {
    type Target = Array;
    fn deref(&self) -> &Array {
        &self.value
    }
}

impl AsRef<Array> for Param {
    fn as_ref(&self) -> &Array {
        &self.value
    }
}

impl Operand for Param {
    fn arg(&self) -> lapis::ops::operand::Arg<'_> {
        self.value.arg()
    }
}

impl std::fmt::Debug for Param {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Param({:?}, {:?}, {:?})", self.value.dtype(), self.value.shape(), self.training)
    }
}

// ------------------------------------------------------------------ state

/// State that a forward pass may change although it borrows the module, such as running statistics. It is saved with
/// the parameters and never trained.
pub struct Buffer(Mutex<Array>);

impl Buffer {
    /// State with a first value.
    pub fn new(value: Array) -> Buffer {
        Buffer(Mutex::new(value))
    }

    /// The value now.
    pub fn get(&self) -> Array {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the value.
    pub fn set(&self, value: Array) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl Clone for Buffer {
    /// A buffer of its own with the same value.
    fn clone(&self) -> Buffer {
        Buffer::new(self.get())
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.get();
        write!(f, "Buffer({:?}, {:?})", value.dtype(), value.shape())
    }
}

/// Whether a module trains; set in the whole tree by [`Module::train`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Training: dropout drops, batch normalisation uses the batch.
    #[default]
    Train,
    /// Evaluation.
    Eval,
}

impl Mode {
    /// Whether this is training.
    pub fn is_training(self) -> bool {
        self == Mode::Train
    }
}
