//! Training is a function of its seed: twice the same bits, and the same bits from wherever it was stopped.

use lapis::{Array, Dtype, Result, eval, io, ops, random};
use lapis_nn::losses::{CrossEntropy, Reduction, cross_entropy};
use lapis_nn::optim::*;
use lapis_nn::*;
use std::path::{Path, PathBuf};

const STEPS: usize = 7;
type Bits = Vec<(String, Vec<u8>)>;

/// Everything that carries something from step to step: parameters, running statistics, draws of dropout.
#[derive(Module, Clone)]
struct Model {
    table: Embedding,
    norm: BatchNorm,
    blocks: TransformerEncoder,
    out: Linear,
}

impl Layer for Model {
    fn forward(&self, x: &Array) -> Result<Array> {
        let x = self.norm.forward(&self.table.forward(x)?)?;
        self.out.forward(&self.blocks.forward(&x, lapis::ops::fast::AttentionMask::Causal)?)
    }
}

struct Run {
    model: Model,
    optimizer: MultiOptimizer,
    losses: Vec<f32>,
}

impl Run {
    fn new() -> Result<Run> {
        random::seed(11);
        let options = TransformerOptions { dropout: 0.2, checkpoint: true, ..TransformerOptions::default() };
        let model = Model {
            table: Embedding::new(9, 8)?,
            norm: BatchNorm::new(8)?,
            blocks: TransformerEncoder::new(2, 8, 2, options)?,
            out: Linear::new(8, 9, true)?,
        };
        let rate = join_schedules(vec![linear_schedule(0.0, 0.02, 3)?, cosine_decay(0.02, 10, 0.0)?], &[3])?;
        let optimizers: Vec<Box<dyn Optimizer>> = vec![Box::new(Muon::new(rate.clone())), Box::new(AdamW::new(rate))];
        let matrices: Filter = Box::new(|name, g| name.starts_with("blocks") && g.ndim() == 2);
        Ok(Run { model, optimizer: MultiOptimizer::new(optimizers, vec![matrices])?, losses: Vec::new() })
    }

    fn step(&mut self) -> Result<()> {
        // Data come from the same random state as dropout.
        let mut batches = Accumulator::new(2)?;
        let grads = loop {
            let x = random::randint(0, 9, &[3, 6], Dtype::Int32, None)?;
            let y = ops::remainder(&(&x * 2 + 1), 9)?;
            let options = CrossEntropy { reduction: Reduction::Mean, ..CrossEntropy::default() };
            let (loss, grads) = value_and_grad(&self.model, |m| cross_entropy(&m.forward(&x)?, &y, options))?;
            self.losses.push(loss.item::<f32>()?);
            if let Some(grads) = batches.add(grads)? {
                break grads;
            }
        };
        let (grads, _) = clip_grad_norm(&grads, 1.0)?;
        self.optimizer.update(&mut self.model, &grads)?;
        eval(self.model.parameters().values().chain(self.optimizer.state().values()))
    }

    fn bits(&self) -> Bits {
        let all = self.model.parameters().into_iter().chain(self.optimizer.state());
        let all = all.chain([("random".to_string(), random::state())]);
        all.map(|(name, a)| (name, a.to_bytes().unwrap())).collect()
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.model.save_weights(&dir.join("model.safetensors"))?;
        self.optimizer.save(&dir.join("optimizer.safetensors"))?;
        io::save_npy(dir.join("random.npy"), &random::state())
    }

    fn resume(dir: &Path) -> Result<Run> {
        let mut run = Run::new()?;
        run.model.load_weights(&dir.join("model.safetensors"), true)?;
        run.optimizer.load(&dir.join("optimizer.safetensors"))?;
        let io::Loaded::Npy(state) = io::load(dir.join("random.npy"), None)? else { panic!("an npy file") };
        random::set_state(state);
        Ok(run)
    }
}

fn folder() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("lapis-nn-resume-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn training_again_and_from_any_step_gives_the_same_bits() -> Result<()> {
    let dir = folder();
    let mut first = Run::new()?;
    let mut after = Vec::new();
    for step in 0..STEPS {
        let place = dir.join(step.to_string());
        std::fs::create_dir_all(&place).unwrap();
        first.save(&place)?;
        first.step()?;
        after.push(first.bits());
    }
    assert!(first.losses[2 * STEPS - 1] < first.losses[0], "it learns: {:?}", first.losses);

    let mut second = Run::new()?;
    for (step, bits) in after.iter().enumerate() {
        second.step()?;
        assert!(second.bits() == *bits, "the second run differs at step {step}");
    }
    assert_eq!(first.losses, second.losses);

    for stopped in 0..STEPS {
        // What happened in between leaves no trace.
        random::seed(stopped as u64);
        let mut resumed = Run::resume(&dir.join(stopped.to_string()))?;
        for (step, bits) in after.iter().enumerate().skip(stopped) {
            resumed.step()?;
            assert!(resumed.bits() == *bits, "stopped before step {stopped}, the run differs at step {step}");
        }
        assert_eq!(resumed.losses, first.losses[2 * stopped..]);
    }
    std::fs::remove_dir_all(dir).unwrap();
    Ok(())
}
