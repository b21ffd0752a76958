//! The one error type of lapis: a kind, and a message that names the operation and the offending value.

use std::fmt;
use std::sync::Arc;

/// `Result` with lapis's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of promise was broken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// Shapes that do not fit together.
    Shape,
    /// A dtype that the operation does not take.
    Dtype,
    /// An axis that is out of range or named twice.
    Axis,
    /// An index outside its axis.
    Index,
    /// Any other argument that is out of range.
    Value,
    /// A size that does not fit in 64 bits.
    Overflow,
    /// The memory limit is reached or an allocation failed.
    Memory,
    /// A file could not be read or written, or its content is malformed.
    Io,
    /// A host could not be reached, or refused.
    Network,
    /// A device or stream that is not there.
    Device,
    /// Valid, but not implemented by any linked backend.
    Unsupported,
    /// A fault found while computing, such as a singular matrix.
    Eval,
}

/// An error of lapis. Cheap to clone, so that every array that depends on a failed one can report it.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: Arc<str>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident),* $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(message: impl Into<String>) -> Error {
            Error::new(ErrorKind::$kind, message)
        }
    )*};
}

impl Error {
    /// An error of `kind`; the message starts with the operation in brackets: `[add] ...`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into().into() }
    }

    constructors! {
        /// Shapes that do not fit.
        shape => Shape,
        /// A dtype that is not taken.
        dtype => Dtype,
        /// An axis out of range.
        axis => Axis,
        /// An index out of range.
        index => Index,
        /// Another argument out of range.
        value => Value,
        /// A size beyond 64 bits.
        overflow => Overflow,
        /// Memory exhausted.
        memory => Memory,
        /// A file fault.
        io => Io,
        /// A host that cannot be reached or refuses.
        network => Network,
        /// A missing device.
        device => Device,
        /// Not implemented by the linked backends.
        unsupported => Unsupported,
        /// A fault found while computing.
        eval => Eval,
    }

    /// What was broken.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The text, starting with the operation in brackets.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Error {}
