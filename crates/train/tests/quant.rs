//! Learned quantization on the demo model: nearer to the source than rounding, and the same bits after a run was stopped.

mod shared;

use lapis::Array;
use lapis::ops::quantize::Format;
use lapis_lm::fuse::Base;
use lapis_lm::{Formats, Model, Original, divergence};
use lapis_train::Sample;
use lapis_train::quant::dwq::{Dwq, Lessons, Teacher, dwq, has_targets, run_of, write_targets};
use lapis_train::quant::dynamic::{Dynamic, dynamic, sensitivities};
use lapis_train::quant::{Awq, Calibration, Gptq, Listener, State, awq, gptq};
use serde_json::{Value, json};
use shared::Folder;
use std::path::Path;

fn demo() -> Original {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model");
    Original::open(Base::Path(Path::new(dir))).unwrap()
}

/// The state of a run in a folder.
fn kept(folder: &Folder, run: &Value) -> State {
    State::open(&folder.join("state"), run).unwrap()
}

/// Stops a run after so many questions.
struct Stop(usize);

impl Listener for Stop {
    fn stop(&mut self) -> bool {
        self.0 = self.0.wrapping_sub(1);
        self.0 == 0
    }
}

fn text(original: &Original, length: usize, count: usize) -> [Vec<Vec<u32>>; 2] {
    let [windows, held] = Calibration::own(&original.language).unwrap().windows(length, Some(count), 5).unwrap();
    [windows, held[..2].to_vec()]
}

fn kl(original: &Original, model: &dyn Model, held: &[Vec<u32>]) -> f64 {
    divergence(original.model(), model, held, 1, |_| true).unwrap().mean()
}

fn nearest(original: &Original, formats: &Formats, held: &[Vec<u32>]) -> f64 {
    kl(original, &*original.nearest(formats).unwrap(), held)
}

/// Whether two models have the same bits.
fn same(a: &dyn Model, b: &dyn Model) -> bool {
    let (a, b) = (a.module().parameters(), b.module().parameters());
    let bits = |x: &Array| match x.dtype() {
        lapis::Dtype::Uint32 => x.to_vec::<u32>().unwrap(),
        _ => x.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect(),
    };
    a.len() == b.len() && a.iter().zip(&b).all(|((m, x), (n, y))| m == n && bits(x) == bits(y))
}

fn four() -> Format {
    Format::affine(4, 64).unwrap()
}

#[test]
fn gptq_is_nearer_and_goes_on() {
    let original = demo();
    let [windows, held] = text(&original, 128, 8);
    let how = Gptq { format: four(), fallback: Format::affine(6, 64).unwrap() };
    let run = how.run(&original, &windows).unwrap();
    let folder = Folder::new("quant-gptq");
    let (model, formats) = gptq(&original, &windows, how, &kept(&folder, &run), &mut ()).unwrap().unwrap();
    assert_eq!(formats["model.embed_tokens"], Some(how.fallback));
    assert_eq!(formats["model.layers.0.mlp.down_proj"], Some(how.format));
    let (own, near) = (kl(&original, &*model, &held), nearest(&original, &formats, &held));
    assert!(own < 0.9 * near, "{own} {near}");

    // Stopped among the windows, then among the layers.
    let folder = Folder::new("quant-gptq-stopped");
    for after in [4, 14] {
        assert!(gptq(&original, &windows, how, &kept(&folder, &run), &mut Stop(after)).unwrap().is_none());
    }
    let state = kept(&folder, &run);
    assert!(state.resumed);
    let (again, _) = gptq(&original, &windows, how, &state, &mut ()).unwrap().unwrap();
    assert!(same(&*model, &*again));
    let e = State::open(&folder.join("state"), &run).err().unwrap();
    assert!(e.message().contains(&format!("process {} is writing", std::process::id())), "{e}");
    drop(state);
    // Another run does not take up this one's state, and a folder of something else is left alone.
    assert!(!kept(&folder, &json!("another")).resumed);
    std::fs::write(folder.join("state/run.json"), "").unwrap();
    std::fs::remove_file(folder.join("state/run.json")).unwrap();
    assert!(State::open(&folder.join("state"), &run).is_err());
}

#[test]
fn awq_is_nearer_and_goes_on() {
    let original = demo();
    let [windows, held] = text(&original, 128, 4);
    let how = Awq { format: four(), embed: Format::affine(4, 32).unwrap(), grid: 5 };
    let run = how.run(&original, &windows).unwrap();
    let folder = Folder::new("quant-awq");
    let (model, formats) = awq(&original, &windows, how, &kept(&folder, &run), &mut ()).unwrap().unwrap();
    let (own, near) = (kl(&original, &*model, &held), nearest(&original, &formats, &held));
    assert!(own < near, "{own} {near}");
    let folder = Folder::new("quant-awq-stopped");
    assert!(awq(&original, &windows, how, &kept(&folder, &run), &mut Stop(3)).unwrap().is_none());
    let (again, _) = awq(&original, &windows, how, &kept(&folder, &run), &mut ()).unwrap().unwrap();
    assert!(same(&*model, &*again));
}

#[test]
fn dwq_is_nearer_goes_on_and_keeps_targets() {
    let original = demo();
    let [_, held] = text(&original, 128, 1);
    let how = Dwq { samples: 32, max_seq_length: 48, batch_size: 4, learning_rate: None, seed: 3, recompute: false };
    let samples = &Calibration::own(&original.language).unwrap().samples_before(128, 48)[..40];
    let lessons = || Lessons::new(samples, &how).unwrap();
    let student = || original.nearest(&original.formats(four()).unwrap()).unwrap();
    let teacher = Teacher::Model(original.model());
    let run = run_of(&original, &*student(), &lessons(), &how, false).unwrap();

    let (folder, mut model) = (Folder::new("quant-dwq"), student());
    let done = dwq(&mut *model, &teacher, lessons(), &how, &kept(&folder, &run), &mut ()).unwrap().unwrap();
    assert!(done.best < 0.97 * done.first && done.steps == 8, "{done:?}");
    let (own, near) = (kl(&original, &*model, &held), kl(&original, &*student(), &held));
    assert!(own < near, "{own} {near}");

    let (folder, mut again) = (Folder::new("quant-dwq-stopped"), student());
    assert!(dwq(&mut *again, &teacher, lessons(), &how, &kept(&folder, &run), &mut Stop(3)).unwrap().is_none());
    let mut again = student();
    let state = kept(&folder, &run);
    assert_eq!(dwq(&mut *again, &teacher, lessons(), &how, &state, &mut ()).unwrap(), Some(done));
    drop(state);
    assert!(same(&*model, &*again));

    // What the source foresees, in files.
    let dir = folder.join("targets");
    assert!(!has_targets(&dir, &original, &lessons(), &how).unwrap());
    assert!(!write_targets(&dir, &original, &lessons(), &how, &mut Stop(3)).unwrap());
    assert!(!has_targets(&dir, &original, &lessons(), &how).unwrap());
    assert!(write_targets(&dir, &original, &lessons(), &how, &mut ()).unwrap());
    assert!(has_targets(&dir, &original, &lessons(), &how).unwrap());
    let (mut other, state) = (student(), kept(&folder, &json!("files")));
    let files = dwq(&mut *other, &Teacher::Files(dir.clone()), lessons(), &how, &state, &mut ()).unwrap().unwrap();
    assert!(files.best < 0.97 * files.first, "{files:?}");
    drop(state);
    // At a rate of one's own, scales and biases walk at that rate.
    let given = Dwq { learning_rate: Some(1e-4), ..how.clone() };
    let (mut other, state) = (student(), kept(&folder, &json!("given")));
    let rate = dwq(&mut *other, &teacher, lessons(), &given, &state, &mut ()).unwrap().unwrap();
    assert!(rate.first == done.first && rate.best < rate.first && done.best < rate.best, "{rate:?} {done:?}");
    let seed = Dwq { seed: 4, ..how.clone() };
    let error = has_targets(&dir, &original, &Lessons::new(samples, &seed).unwrap(), &seed).unwrap_err();
    assert!(error.message().contains("another seed") && error.message().contains("(samples \""), "{error}");
    assert!(Lessons::new(&samples[..7], &how).is_err());
}

/// Short samples follow one another until they fill a window, so that places far back are learned, too; long ones stay alone.
#[test]
fn short_samples_are_joined() {
    let sample =
        |n: u32, length: u32| Sample { tokens: (0..length).map(|i| 100 * n + i).collect(), ..Sample::default() };
    let samples = vec![sample(1, 5), sample(2, 30), sample(3, 6), sample(4, 9), sample(5, 40)];
    let text = Calibration { samples, origin: "a test".into() };
    // 90 tokens are 9 windows of 10, of which the last is held out.
    let found: Vec<Vec<u32>> = text.samples_before(10, 25).into_iter().map(|s| s.tokens).collect();
    let long = |range: std::ops::Range<u32>| range.collect::<Vec<u32>>();
    assert_eq!(found[0], long(200..225));
    assert_eq!(found[1], [long(100..105), long(225..230)].concat());
    assert_eq!(found[2], [long(300..306), long(400..404)].concat());
    assert_eq!(found[3], long(500..525));
    assert_eq!(found.len(), 4);
}

#[test]
fn bits_go_where_they_help() {
    let original = demo();
    let [windows, held] = text(&original, 64, 8);
    let [low, high] = [3, 6].map(|bits| Format::affine(bits, 64).unwrap());
    let how = Dynamic { low, high, sums: lapis::Dtype::Float32, recompute: true };
    let run = how.run(&original, &windows).unwrap();
    let folder = Folder::new("quant-dynamic");
    let all = sensitivities(&original, &windows, how, &kept(&folder, &run), &mut ()).unwrap().unwrap();
    let stopped = Folder::new("quant-dynamic-stopped");
    assert!(sensitivities(&original, &windows, how, &kept(&stopped, &run), &mut Stop(2)).unwrap().is_none());
    let again = sensitivities(&original, &windows, how, &kept(&stopped, &run), &mut ()).unwrap().unwrap();
    assert_eq!(all, again);

    let (mut model, formats, chosen) = dynamic(&original, &all, 5.0, how, &mut ()).unwrap();
    let bits = lapis_lm::convert::bits_per_weight(model.module_mut());
    assert!(chosen > 0 && chosen < formats.len() && bits > 4.3 && bits <= 5.0, "{chosen} {bits}");
    let own = kl(&original, &*model, &held);
    assert!(own < nearest(&original, &original.formats(low).unwrap(), &held));
    // The layers that gain least, in their place, are worth less.
    let turned = all.iter().map(|(path, x)| (path.clone(), -x)).collect();
    let (other, ..) = dynamic(&original, &turned, 5.0, how, &mut ()).unwrap();
    assert!(own < kl(&original, &*other, &held));

    for (target, number) in [(2.0, 0), (9.0, formats.len())] {
        assert_eq!(dynamic(&original, &all, target, how, &mut ()).unwrap().2, number);
    }
    let error = dynamic(&original, &all[1..].to_vec(), 5.0, how, &mut ()).err().unwrap();
    assert!(error.message().contains("another model"), "{error}");
}

#[test]
fn text_that_is_too_short_says_so() {
    let original = demo();
    let folder = Folder::new("quant-text");
    let file = folder.join("short.txt");
    std::fs::write(&file, "Once upon a time there was a fox.").unwrap();
    let text = Calibration::read(Some(&file), &original.language).unwrap();
    let error = text.windows(64, None, 0).unwrap_err();
    assert!(error.message().contains("short.txt") && error.message().contains("--sequence-length"), "{error}");
    let [windows, held] = text.windows(3, Some(2), 0).unwrap();
    assert!(windows.len() == 2 && held.len() == 1);
    assert!(windows.iter().all(|w| !held.contains(w)));
    assert!(Calibration::read(Some(&folder.join("nowhere")), &original.language).is_err());
}
