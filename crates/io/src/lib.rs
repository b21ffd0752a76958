//! Array files: safetensors, npy, npz, gguf; and files of exported functions.
//!
//! Every file is hostile until shown otherwise: sizes are checked against the bytes at hand before anything is
//! allocated, names are keys and never paths, and the answer is an error of kind `Io` that names file, place,
//! what was expected and what was found, or the right arrays. Files are mapped and used in place where alignment
//! allows; they are written beside their target and renamed. Knows nothing of models.
//!
//! The layers: [`source`] (bytes of a file), one module a format that turns bytes into [`RawTensor`]s and back,
//! [`arrays`] and [`function`] on top.

pub mod arrays;
pub mod atomic;
pub mod blocks;
pub mod bytes;
pub mod function;
pub mod gguf;
pub mod npy;
pub mod npz;
pub mod raw;
pub mod safetensors;
pub mod settle;
pub mod shards;
pub mod source;

pub use arrays::{
    Arrays, Format, GgufMetadata, GgufValue, IntoSource, Loaded, load, load_gguf, load_npy, load_npz, load_safetensors,
    save_gguf, save_npy, save_npz, save_safetensors,
};
pub use bytes::Bytes;
pub use function::{export_function, import_function, save_function};
pub use raw::RawTensor;
pub use safetensors::Metadata;
pub use settle::{settle, settle_now};
pub use shards::{Shards, load_sharded, save_sharded};
pub use source::{ReadMode, Source};
