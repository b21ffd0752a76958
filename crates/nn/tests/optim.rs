//! Optimisers against `mlx.optimizers` (data/optim.json, written by data/optim.py), and what their users rely on:
//! exact resumption, refusals that change nothing, composition with the transforms.

use lapis::transforms::{Tree, compile};
use lapis::{Array, Dtype, ErrorKind, array, eval, io, ops};
use lapis_nn::optim::*;
use lapis_nn::{Module, Param, Params};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::OnceLock;

fn data() -> &'static Value {
    static DATA: OnceLock<Value> = OnceLock::new();
    DATA.get_or_init(|| serde_json::from_str(include_str!("data/optim.json")).expect("the file is JSON"))
}

fn floats(v: &Value) -> Vec<f32> {
    v.as_array().expect("a list").iter().map(|x| x.as_f64().unwrap_or(f64::NAN) as f32).collect()
}

fn params(v: &Value, dtype: Dtype) -> Params {
    let values = v.as_object().expect("arrays by name").iter();
    let shaped = values.map(|(name, v)| {
        let shape: Vec<usize> = floats(&data()["shapes"][name]).iter().map(|&d| d as usize).collect();
        (name.clone(), Array::from_vec(floats(v), &shape).astype(dtype))
    });
    let params: Params = shaped.collect();
    eval(params.values()).unwrap();
    params
}

fn start(dtype: Dtype) -> Params {
    params(&data()["params"], dtype)
}

fn grads(dtype: Dtype) -> Vec<Params> {
    data()["grads"].as_array().unwrap().iter().map(|g| params(g, dtype)).collect()
}

fn flat(params: &Params) -> Vec<f32> {
    params.values().flat_map(|a| a.astype(Dtype::Float32).to_vec::<f32>().unwrap()).collect()
}

fn bits(params: &Params) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
    params.iter().map(|(k, a)| (k.clone(), a.dtype(), a.shape().to_vec(), a.to_bytes().unwrap())).collect()
}

fn close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * w.abs().max(1.0), "{what}[{i}]: {g}, MLX has {w}");
    }
}

fn decay() -> Schedule {
    exponential_decay(1e-1, 0.9)
}

fn warm() -> Schedule {
    let parts = vec![linear_schedule(0.0, 0.1, 5).unwrap(), cosine_decay(0.1, 10, 0.01).unwrap()];
    join_schedules(parts, &[5]).unwrap()
}

/// The optimisers of data/optim.py by the same names.
fn make(case: &str) -> Box<dyn Optimizer> {
    match case {
        "sgd" => Box::new(Sgd::new(0.1)),
        "sgd_decay" => Box::new(Sgd::new(0.1).weight_decay(0.05)),
        "sgd_momentum" => Box::new(Sgd::new(0.1).momentum(0.9).weight_decay(0.05)),
        "sgd_dampening" => Box::new(Sgd::new(0.1).momentum(0.9).dampening(0.3)),
        "sgd_nesterov" => Box::new(Sgd::new(0.1).momentum(0.8).nesterov(true).weight_decay(0.05)),
        "sgd_schedule" => Box::new(Sgd::new(warm()).momentum(0.9)),
        "rmsprop" => Box::new(RmsProp::new(0.01)),
        "rmsprop_options" => Box::new(RmsProp::new(0.01).alpha(0.9).eps(1e-3)),
        "adagrad" => Box::new(Adagrad::new(0.1)),
        "adagrad_eps" => Box::new(Adagrad::new(decay()).eps(1e-2)),
        "adadelta" => Box::new(AdaDelta::new(1.0)),
        "adadelta_options" => Box::new(AdaDelta::new(0.5).rho(0.8).eps(1e-3)),
        "adam" | "adam_bf16" => Box::new(Adam::new(0.01)),
        "adam_corrected" => Box::new(Adam::new(0.01).betas([0.8, 0.95]).eps(1e-4).bias_correction(true)),
        "adam_corrected_bf16" => Box::new(Adam::new(0.01).bias_correction(true)),
        "adam_schedule" => Box::new(Adam::new(warm()).bias_correction(true)),
        "adamw" => Box::new(AdamW::new(0.01)),
        "adamw_corrected" => Box::new(AdamW::new(decay()).weight_decay(0.1).bias_correction(true)),
        "adamax" => Box::new(Adamax::new(0.01)),
        "adamax_options" => Box::new(Adamax::new(0.01).betas([0.7, 0.9]).eps(1e-3)),
        "lion" => Box::new(Lion::new(0.01)),
        "lion_decay" => Box::new(Lion::new(decay()).betas([0.8, 0.9]).weight_decay(0.1)),
        "adafactor" => Box::new(Adafactor::new()),
        "adafactor_warmup" => Box::new(Adafactor::new().warmup_init(true).decay_rate(-0.5)),
        "adafactor_rate" => {
            let own = Adafactor::with_learning_rate(decay()).relative_step(false).scale_parameter(false);
            Box::new(own.weight_decay(0.05))
        }
        "adafactor_moment" => {
            let own = Adafactor::with_learning_rate(0.05).relative_step(false).beta_1(Some(0.9));
            Box::new(own.clip_threshold(0.5).eps([1e-12, 0.1]))
        }
        "muon" => Box::new(Muon::new(0.02)),
        "muon_plain" => Box::new(Muon::new(decay()).momentum(0.8).weight_decay(0.0).nesterov(false).ns_steps(3)),
        "multi" => {
            let optimizers: Vec<Box<dyn Optimizer>> =
                vec![Box::new(Muon::new(0.02)), Box::new(Sgd::new(0.1).momentum(0.9)), Box::new(Adam::new(0.01))];
            let matrices: Filter = Box::new(|name, g| name.starts_with("layers") && g.ndim() == 2);
            let bias: Filter = Box::new(|name, _| name == "bias");
            Box::new(MultiOptimizer::new(optimizers, vec![matrices, bias]).unwrap())
        }
        _ => panic!("no optimiser for {case}"),
    }
}

fn dtype_of(case: &str) -> Dtype {
    if case.ends_with("bf16") { Dtype::Bfloat16 } else { Dtype::Float32 }
}

fn cases() -> impl Iterator<Item = (&'static String, &'static Value)> {
    data()["cases"].as_object().unwrap().iter()
}

#[test]
fn optim_steps_and_states_are_those_of_mlx() {
    for (case, want) in cases() {
        let dtype = dtype_of(case);
        let mut w = start(dtype);
        let mut optimizer = make(case);
        optimizer.init(&w).unwrap();
        for (t, (g, want)) in grads(dtype).iter().zip(want["steps"].as_array().unwrap()).enumerate() {
            w = optimizer.apply(g, &w).unwrap();
            eval(w.values().chain(optimizer.state().values())).unwrap();
            assert!(w.values().all(|a| a.dtype() == dtype), "{case}");
            close(&format!("{case}, step {t}"), &flat(&w), &floats(want), tolerance(dtype));
        }
        let (state, want) = (optimizer.state(), want["state"].as_object().unwrap());
        assert_eq!(state.keys().collect::<BTreeSet<_>>(), want.keys().collect::<BTreeSet<_>>(), "{case}");
        for (name, a) in &state {
            let what = format!("{case}: {name}");
            assert_eq!(a.dtype(), Dtype::from_name(want[name]["dtype"].as_str().unwrap()).unwrap(), "{what}");
            assert_eq!(a.shape().len(), want[name]["shape"].as_array().unwrap().len(), "{what}");
            let got = a.astype(Dtype::Float32).to_vec::<f32>().unwrap();
            close(&what, &got, &floats(&want[name]["values"]), tolerance(dtype));
        }
    }
}

/// Two roundings of bf16 in 20 steps may fall the other way.
fn tolerance(dtype: Dtype) -> f32 {
    if dtype == Dtype::Bfloat16 { 1.0 / 256.0 } else { 1e-6 }
}

struct Scratch(PathBuf);
impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("lapis-optim-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }
}
impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// After every step a fresh optimiser takes up the saved state and does the next step: the same bits, so by induction
/// stopping anywhere makes no difference.
#[test]
fn optim_stopping_and_resuming_changes_no_bit() {
    let scratch = Scratch::new("resume");
    for (case, _) in cases() {
        let dtype = dtype_of(case);
        let (mut w, mut optimizer) = (start(dtype), make(case));
        let mut resumed = make(case);
        for (t, g) in grads(dtype).iter().enumerate() {
            let file = scratch.0.join(format!("{case}-{t}.safetensors"));
            let next = optimizer.apply(g, &w).unwrap();
            let again = resumed.apply(g, &w).unwrap();
            assert_eq!(bits(&next), bits(&again), "{case}, step {t}");
            assert_eq!(bits(&optimizer.state()), bits(&resumed.state()), "{case}, step {t}");
            w = next;
            optimizer.save(&file).unwrap();
            resumed = make(case);
            if t % 2 == 0 {
                resumed.init(&w).unwrap();
            }
            resumed.load(&file).unwrap();
        }
    }
}

#[test]
fn optim_schedules_are_those_of_mlx() {
    let steps: Vec<u64> = floats(&data()["schedule_steps"]).iter().map(|&t| t as u64).collect();
    let linear = || linear_schedule(0.0, 1.0, 10).unwrap();
    let three = vec![linear(), step_decay(1.0, 0.5, 4).unwrap(), cosine_decay(0.5, 9, 0.0).unwrap()];
    let schedules = [
        ("exponential", decay()),
        ("step", step_decay(0.1, 0.5, 7).unwrap()),
        ("cosine", cosine_decay(0.1, 30, 0.02).unwrap()),
        ("linear", linear_schedule(0.0, 0.3, 17).unwrap()),
        ("joined", warm()),
        ("three", join_schedules(three, &[10, 25]).unwrap()),
    ];
    assert_eq!(schedules.len(), data()["schedules"].as_object().unwrap().len());
    for (name, schedule) in schedules {
        let want = floats(&data()["schedules"][name]);
        let single: Vec<f32> = steps.iter().map(|&t| schedule.at(&array(t)).item().unwrap()).collect();
        close(name, &single, &want, 1e-6);
        let all = schedule.at(&array(steps.clone()));
        assert_eq!((all.dtype(), all.to_vec::<f32>().unwrap()), (Dtype::Float32, single), "{name}");
    }
    for error in [
        step_decay(0.1, 0.5, 0).err(),
        cosine_decay(0.1, 0, 0.0).err(),
        linear_schedule(0.0, 1.0, 0).err(),
        join_schedules(vec![], &[]).err(),
        join_schedules(vec![decay()], &[3]).err(),
    ] {
        assert_eq!(error.unwrap().kind(), ErrorKind::Value);
    }
}

#[test]
fn optim_schedules_are_read_before_the_step_counts() {
    let w = start(Dtype::Float32);
    let g = &grads(Dtype::Float32)[0];
    let mut sgd = Sgd::new(Schedule::new(|step| (step + 1.0) * 0.5));
    let rate = |o: &Sgd| o.learning_rate().unwrap().item::<f32>().unwrap();
    assert_eq!(rate(&sgd), 0.5);
    for t in 0..3 {
        sgd.apply(g, &w).unwrap();
        assert_eq!(rate(&sgd), 0.5 * (t + 1) as f32);
        assert_eq!(sgd.state()["step"].item::<u64>().unwrap(), t + 1);
    }
    sgd.set_learning_rate(7.0.into());
    assert_eq!(rate(&sgd), 7.0);
    sgd.apply(g, &w).unwrap();
    assert_eq!(rate(&sgd), 7.0);
    assert!(Adafactor::new().learning_rate().is_none());
}

#[test]
fn optim_clip_grad_norm_is_that_of_mlx() {
    let g = &grads(Dtype::Float32)[0];
    for want in data()["clip"].as_array().unwrap() {
        let max_norm = want["max_norm"].as_f64().unwrap();
        let (clipped, norm) = clip_grad_norm(g, max_norm).unwrap();
        close("norm", &[norm.item().unwrap()], &[want["norm"].as_f64().unwrap() as f32], 1e-6);
        close("clipped", &flat(&clipped), &flat(&params(&want["grads"], Dtype::Float32)), 1e-6);
    }
    // 300 squared is more than float16 holds.
    for dtype in [Dtype::Float16, Dtype::Bfloat16] {
        let g = Params::from([("w".to_string(), ops::full(&[64], 300, Some(dtype)).unwrap())]);
        let (clipped, norm) = clip_grad_norm(&g, 8.0).unwrap();
        assert_eq!(norm.item::<f32>().unwrap(), 2400.0);
        assert_eq!(clipped["w"].dtype(), dtype);
        assert_eq!(flat(&clipped), [1.0; 64]);
    }
    assert_eq!(clip_grad_norm(&Params::new(), 1.0).unwrap().1.item::<f32>().unwrap(), 0.0);
    for bad in [-1.0, f64::NAN] {
        assert_eq!(clip_grad_norm(g, bad).err().unwrap().kind(), ErrorKind::Value);
    }
}

fn one(name: &str, a: Array) -> Params {
    Params::from([(name.to_string(), a)])
}

#[test]
fn optim_accumulation_averages_and_tells_when_to_step() {
    let all = grads(Dtype::Float32);
    let mut accumulator = Accumulator::new(4).unwrap();
    for round in all[..8].chunks(4) {
        for g in &round[..3] {
            assert!(accumulator.add(g.clone()).unwrap().is_none());
            eval(accumulator.pending()).unwrap();
        }
        let average = accumulator.add(round[3].clone()).unwrap().unwrap();
        let want: Vec<f32> = (0..flat(&average).len())
            .map(|i| (round.iter().map(|g| f64::from(flat(g)[i])).sum::<f64>() / 4.0) as f32)
            .collect();
        close("average", &flat(&average), &want, 1e-6);
    }
    assert!(accumulator.finish().unwrap().is_none());
    accumulator.add(all[0].clone()).unwrap();
    let error = accumulator.add(one("b", array([1.0f32]))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
    for name in all[0].keys().map(String::as_str).chain(["b is new"]) {
        assert!(error.message().contains(name), "{error}");
    }
    assert_eq!(flat(&accumulator.finish().unwrap().unwrap()), flat(&all[0]), "the refused batch left no trace");

    // 256 + 1 is 256 in bfloat16.
    let mut accumulator = Accumulator::new(3).unwrap();
    let half = |x: f32| one("w", array([x]).astype(Dtype::Bfloat16));
    accumulator.add(half(256.0)).unwrap();
    accumulator.add(half(1.0)).unwrap();
    let average = accumulator.add(half(1.0)).unwrap().unwrap();
    assert_eq!((average["w"].dtype(), flat(&average)), (Dtype::Bfloat16, vec![86.0]));
    assert!(Accumulator::new(0).is_err());
}

/// The error of `result` names all of `names`.
fn refused<T>(result: lapis::Result<T>, names: &[&str]) {
    let error = result.err().expect("an error");
    assert_eq!(error.kind(), ErrorKind::Value, "{error}");
    names.iter().for_each(|name| assert!(error.message().contains(name), "{name} is not in: {error}"));
}

#[test]
fn optim_refusals_name_everything_and_change_nothing() {
    for (case, _) in cases() {
        let dtype = dtype_of(case);
        let (w, g) = (start(dtype), &grads(dtype)[0]);
        let mut optimizer = make(case);
        let w = optimizer.apply(g, &w).unwrap();
        let before = bits(&optimizer.state());
        let mut wrong = g.clone();
        wrong.insert("layers.7.bias".into(), ops::full(&[2], 1, Some(dtype)).unwrap());
        wrong.insert("layers.2.weight".into(), ops::full(&[3, 2, 5], 1, Some(dtype)).unwrap());
        refused(optimizer.apply(&wrong, &w), &["layers.7.bias", "layers.2.weight", "(3,2,5)", "(3,2,2)"]);
        wrong = g.clone();
        wrong.insert("bias".into(), array([1, 2]));
        refused(optimizer.apply(&wrong, &w), &["bias", "int32"]);

        let state = optimizer.state();
        let slot = state.keys().find(|k| k.contains("layers.0.weight")).unwrap().clone();
        let mut broken = state.clone();
        broken.remove(&slot);
        let other = broken.keys().find(|k| k.contains("layers.1.weight")).unwrap().clone();
        broken.insert(other.clone(), ops::full(&[9], 0, Some(dtype)).unwrap());
        // The error of a MultiOptimizer says which optimiser found names to be wrong, then the names as that knows them.
        let own = |key: &String| key.trim_start_matches("states.0.").to_string();
        refused(optimizer.set_state(&broken), &[&own(&slot), "missing", &own(&other), "(9,)"]);
        let mut more = state.clone();
        let unknown = slot.replace("layers.0", "layers.8");
        more.insert(unknown.clone(), state[&slot].clone());
        refused(optimizer.set_state(&more), &[&own(&unknown), "unknown"]);
        refused(make(case).set_state(&Params::new()), &["step is missing"]);
        assert_eq!(bits(&optimizer.state()), before, "{case}");

        // A state of other shapes is found when the parameters come, if they were not known before.
        let mut fresh = make(case);
        let mut other_shape = state.clone();
        other_shape.insert(slot.clone(), ops::full(&[1, 9], 0, Some(dtype)).unwrap());
        fresh.set_state(&other_shape).unwrap();
        refused(fresh.apply(g, &w), &[&own(&slot), "(1,9)"]);
    }
}

#[test]
fn optim_a_state_of_another_optimiser_is_refused() {
    let (w, g) = (start(Dtype::Float32), &grads(Dtype::Float32)[0]);
    let mut adam = Adam::new(0.1);
    adam.apply(g, &w).unwrap();
    refused(Sgd::new(0.1).set_state(&adam.state()), &["bias.m", "layers.0.weight.m", "unknown"]);
    let mut lion = Lion::new(0.1);
    lion.apply(g, &w).unwrap();
    refused(Adam::new(0.1).set_state(&lion.state()), &["bias.v is missing", "layers.2.weight.v is missing"]);
    refused(Adafactor::new().set_state(&lion.state()), &["learning_rate is unknown", "bias.m is unknown"]);
    let mut state = adam.state();
    state.insert("step".into(), array(3i32));
    state.insert("learning_rate".into(), array([0.1f32]));
    refused(adam.set_state(&state), &["step must be one uint64", "int32", "learning_rate must be one float", "(1,)"]);
    refused(make("multi").set_state(&adam.state()), &["bias.m is unknown"]);
}

#[test]
fn optim_options_out_of_range_are_refused() {
    let wrong: Vec<Box<dyn Optimizer>> = vec![
        Box::new(Sgd::new(0.1).nesterov(true)),
        Box::new(Sgd::new(0.1).nesterov(true).momentum(0.9).dampening(0.1)),
        Box::new(RmsProp::new(0.1).alpha(-0.1)),
        Box::new(RmsProp::new(0.1).eps(0.0)),
        Box::new(Adagrad::new(0.1).eps(0.0)),
        Box::new(AdaDelta::new(0.1).rho(-1.0)),
        Box::new(AdaDelta::new(0.1).eps(f64::NAN)),
        Box::new(Adam::new(0.1).betas([1.0, 0.9])),
        Box::new(AdamW::new(0.1).betas([0.9, -0.1])),
        Box::new(Adamax::new(0.1).eps(-1.0)),
        Box::new(Lion::new(0.1).betas([0.9, 1.0])),
        Box::new(Adafactor::new().relative_step(false)),
        Box::new(Adam::new(array([0.1f32, 0.2]))),
    ];
    for mut optimizer in wrong {
        refused(optimizer.apply(&grads(Dtype::Float32)[0], &start(Dtype::Float32)), &[]);
    }
    assert!(MultiOptimizer::new(vec![], vec![]).is_err());
    assert!(MultiOptimizer::new(vec![make("sgd")], vec![Box::new(|_, _| true)]).is_err());
}

#[test]
fn optim_one_refusal_in_a_multi_optimizer_stops_all() {
    let optimizers: Vec<Box<dyn Optimizer>> = vec![make("adam"), Box::new(Adam::new(0.1).betas([2.0, 0.9]))];
    let mut multi = MultiOptimizer::new(optimizers, vec![Box::new(|name, _| name == "bias")]).unwrap();
    let before = bits(&multi.state());
    refused(multi.apply(&grads(Dtype::Float32)[0], &start(Dtype::Float32)), &["optimizer 1", "betas"]);
    assert_eq!(bits(&multi.state()), before);
}

#[test]
fn optim_parameters_without_gradient_stay_and_may_come_later() {
    let (w, all) = (start(Dtype::Float32), grads(Dtype::Float32));
    let mut adam = Adam::new(0.1);
    let bias = one("bias", all[0]["bias"].clone());
    assert_eq!(adam.apply(&bias, &w).unwrap().keys().collect::<Vec<_>>(), ["bias"]);
    assert_eq!(adam.state().len(), 4);
    assert_eq!(adam.apply(&all[1], &w).unwrap().len(), 4);
    assert_eq!(adam.state().len(), 10);
    assert!(adam.apply(&Params::new(), &w).unwrap().is_empty());
    assert_eq!(adam.state()["step"].item::<u64>().unwrap(), 3);
}

#[test]
fn optim_nan_flows_into_its_own_parameter_only() {
    let w = Params::from([("a".to_string(), array([1.0f32, 2.0])), ("b".to_string(), array([3.0f32]))]);
    let g = Params::from([("a".to_string(), array([f32::NAN, 1.0])), ("b".to_string(), array([1.0f32]))]);
    let (_, norm) = clip_grad_norm(&g, 1.0).unwrap();
    assert!(norm.item::<f32>().unwrap().is_nan());
    let new = flat(&Adam::new(0.1).apply(&g, &w).unwrap());
    assert!(new[0].is_nan() && new[1].is_finite() && new[2].is_finite());
}

/// A training step with the state as argument and result, traced once: the step counter is then part of the graph.
#[test]
fn optim_works_inside_compile() {
    let step = compile(|(w, g, state): &(Params, Params, Params)| {
        let mut adam = Adam::new(warm()).bias_correction(true);
        adam.set_state(state)?;
        let w = adam.apply(g, w)?;
        Ok::<_, lapis::Error>((w, adam.state()))
    });
    let mut plain = Adam::new(warm()).bias_correction(true);
    let mut w = start(Dtype::Float32);
    plain.init(&w).unwrap();
    let (mut compiled, mut state) = (w.clone(), plain.state());
    for g in grads(Dtype::Float32).iter().take(5) {
        w = plain.apply(g, &w).unwrap();
        (compiled, state) = step.call(&(compiled, g.clone(), state)).unwrap();
        eval(state.leaves().iter().chain(compiled.values())).unwrap();
        assert_eq!(bits(&compiled), bits(&w));
        assert_eq!(bits(&state), bits(&plain.state()));
    }
}

#[derive(Module)]
struct Line {
    slope: Param,
    offset: Option<Param>,
}

#[test]
fn optim_update_trains_a_model_and_refuses_as_a_whole() {
    let mut line = Line { slope: Param::new(array([1.0f32])), offset: Some(Param::new(array([2.0f32]))) };
    let mut sgd = Sgd::new(0.5);
    let mut g = one("slope", array([1.0f32]));
    sgd.update(&mut line, &g).unwrap();
    assert_eq!(flat(&line.parameters()), [2.0, 0.5]);
    g.insert("curve".into(), array([1.0f32]));
    let before = bits(&sgd.state());
    refused(sgd.update(&mut line, &g), &["curve"]);
    assert_eq!((flat(&line.parameters()), bits(&sgd.state())), (vec![2.0, 0.5], before));
    for _ in 0..40 {
        let grads = line.parameters().into_iter().map(|(k, w)| (k, w * 0.5)).collect();
        sgd.update(&mut line, &grads).unwrap();
    }
    assert!(flat(&line.parameters()).iter().all(|w| w.abs() < 1e-3));
}

#[test]
fn optim_files_hold_what_mlx_writes() {
    let scratch = Scratch::new("names");
    let file = scratch.0.join("state.safetensors");
    let mut multi = make("multi");
    multi.apply(&grads(Dtype::Float32)[0], &start(Dtype::Float32)).unwrap();
    multi.save(&file).unwrap();
    let (arrays, _) = io::load_safetensors(&file).unwrap();
    assert_eq!(arrays["states.2.step"].dtype(), Dtype::Uint64);
    assert_eq!(arrays["states.2.step"].shape(), [0usize; 0]);
    assert_eq!(arrays["states.0.layers.0.weight.v"].shape(), [3, 2]);
}
