//! Layers, activations, losses and initialisers against MLX: data/*.json, written by generate.py.

mod case;
mod functions;
mod layers;
