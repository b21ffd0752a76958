//! HTTP: connections, who may ask, bodies, and answers. Knows routes as a table and no model.

pub(crate) mod answer;
mod broken;
pub(crate) mod guard;
mod listen;
pub(crate) mod request;
mod signals;
mod timed;
mod tls;

pub use listen::{Address, Server};
