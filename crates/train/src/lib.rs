//! Fine-tuning: what a model is made to learn, and how it goes.
//!
//! [`Settings`] says what is asked for, [`data`] reads samples, [`prepare`] chooses what is trained, [`Trainer`] takes steps and
//! keeps a state that can be taken up at any of them, [`run`] is the whole of it. Knows no architecture and no terminal.
#![forbid(unsafe_code)]

mod batches;
pub mod data;
mod loss;
mod optimizer;
mod order {
    //! The order of batches: NumPy's, so that a run can be compared with mlx-lm's.
    pub(crate) use lapis_lm::twister::Twister as Order;
}
mod parquet;
mod preference;
mod prepare;
pub mod quant;
mod report;
mod run;
mod services;
mod settings;
mod sources;
mod state;
mod subsets;
mod tensorboard;
mod trainer;

pub use batches::Batch;
pub use data::{Data, Sample};
pub use prepare::{Trained, prepare};
pub use report::{Record, Report, Written};
pub use run::{Observer, Outcome, run, run_against};
pub use settings::{LoraParameters, ScheduleSettings, Settings};
pub use trainer::{Step, Trainer};
