//! What the engine promises: guesses, shared beginnings and company never change what a request gets.

mod shared;

use lapis::{Array, Dtype, Error, Result, ops};
use lapis_lm::engine::{Drafter, Place, Prefixes};
use lapis_lm::{Batch, Checkpoint, Engine, Event, Model, Request, Sampling, Sequence, models};
use lapis_nn::Module;
use serde_json::Value;
use shared::golden::{all, tensors, uniform};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const VOCABULARY: usize = 96;

fn model(golden: &Value) -> Arc<dyn Model> {
    let config = golden["config"].as_object().unwrap().clone();
    let mut checkpoint = Checkpoint::from_parts(config, tensors(&golden["params"])).unwrap();
    Arc::from(models::load(&mut checkpoint).unwrap())
}

/// Tokens that repeat themselves here and there.
fn prompt(seed: u64, len: usize) -> Vec<u32> {
    (0..len as u64).map(|i| (uniform(seed, i % 37 + i / 90 * 1000) * VOCABULARY as f64) as u32).collect()
}

fn request(prompt: &[u32], temperature: f64) -> Request {
    let sampling = Sampling { temperature, seed: 11, ..Default::default() };
    Request { prompt: prompt.to_vec(), max_tokens: 24, sampling, ..Default::default() }
}

/// What each request gets, how many tokens had been guessed, how many tokens of prompts were read.
fn texts(engine: &mut Engine, requests: Vec<Request>) -> (Vec<Vec<u32>>, usize, usize) {
    let ids: Vec<u64> = requests.into_iter().map(|r| engine.add(r, Sequence::new()).unwrap()).collect();
    let (mut texts, mut guessed, mut read) = (BTreeMap::<u64, Vec<u32>>::new(), 0, BTreeMap::<u64, usize>::new());
    engine
        .run(|event| {
            match event {
                Event::Token { id, choice, drafted, .. } => {
                    texts.entry(id).or_default().push(choice.token);
                    guessed += usize::from(drafted);
                }
                Event::Started { .. } | Event::Scored { .. } => {}
                Event::Prefill { id, .. } => *read.entry(id).or_default() += 1,
                Event::Failed { error, .. } => panic!("{error}"),
            }
            true
        })
        .unwrap();
    (ids.iter().map(|id| texts.remove(id).unwrap()).collect(), guessed, read.values().sum())
}

#[test]
fn guesses_change_no_text() {
    let Some((_, llama)) = all().into_iter().find(|(name, _)| name == "llama") else { return };
    let other = model(&llama);
    for (name, golden) in all() {
        let model = model(&golden);
        let requests = || (0..3).map(|i| request(&prompt(i, 20 + 9 * i as usize), 0.7 * i as f64)).collect::<Vec<_>>();
        let mut engine = Engine::new(Arc::clone(&model), VOCABULARY);
        let (want, ..) = texts(&mut engine, requests());
        let drafter = |model: &Arc<dyn Model>| Drafter::Model { model: Arc::clone(model), vocabulary: VOCABULARY };
        for (who, drafter) in [("lookup", Drafter::Lookup), ("another", drafter(&other)), ("itself", drafter(&model))] {
            for count in [1, 4] {
                let mut engine = Engine::new(Arc::clone(&model), VOCABULARY);
                (engine.drafter, engine.draft_tokens) = (Some(drafter.clone()), count);
                let (got, guessed, _) = texts(&mut engine, requests());
                assert_eq!(got, want, "{name}: {count} guesses of {who}");
                // Its own guesses are all right.
                let least = if who == "itself" { 3 * (23 - 24usize.div_ceil(count + 1)) } else { 0 };
                assert!(guessed >= least, "{name}: {guessed} guesses of {who} were right, of {least}");
            }
        }
    }
}

#[test]
fn prompts_that_begin_alike_are_read_once_and_get_the_same() {
    for (name, golden) in all() {
        // Where a model takes so many, the prompts go over the ends of two blocks of keys.
        let most = golden["config"]["n_positions"].as_u64().unwrap_or(1100) as usize - 40;
        let model = model(&golden);
        let long = prompt(1, most);
        // A prompt twice, a longer one, one that leaves it, and another.
        let mut left = long[..most - 30].to_vec();
        left.extend(prompt(2, 20));
        let mut longer = long.clone();
        longer.extend(prompt(3, 10));
        let prompts = [long.clone(), long, longer, left, prompt(4, 50)];
        let cold: Vec<Vec<u32>> = prompts
            .iter()
            .map(|p| texts(&mut Engine::new(Arc::clone(&model), VOCABULARY), vec![request(p, 0.8)]).0.remove(0))
            .collect();
        let mut engine = Engine::new(Arc::clone(&model), VOCABULARY);
        (engine.prefixes, engine.prefill_step) = (Some(Prefixes::new(1 << 28)), 100);
        let mut steps = Vec::new();
        for (p, want) in prompts.iter().zip(&cold) {
            let (got, _, read) = texts(&mut engine, vec![request(p, 0.8)]);
            assert_eq!(&got[0], want, "{name}: after what was read before");
            steps.push(read);
        }
        let fewer = steps[2] < steps[0] || steps[0] == 1;
        assert!(steps[1] == 1 && fewer, "{name}: prompts were read in {steps:?} steps");
        // All at once, each beside those it shares with.
        let mut engine = Engine::new(Arc::clone(&model), VOCABULARY);
        (engine.prefixes, engine.max_batch) = (Some(Prefixes::new(1 << 28)), 3);
        let (got, ..) = texts(&mut engine, prompts.iter().map(|p| request(p, 0.8)).collect());
        assert_eq!(got, cold, "{name}: together");
        // With no room nothing is kept.
        let mut engine = Engine::new(Arc::clone(&model), VOCABULARY);
        engine.prefixes = Some(Prefixes::new(1000));
        let (got, ..) = texts(&mut engine, vec![request(&prompts[4], 0.8)]);
        assert_eq!(got[0], cold[4], "{name}: without room");
        assert!(engine.prefixes.is_some_and(|p| p.is_empty()));
    }
}

/// What a scored request gets: its places, its tokens, whether it was over with the prompt.
fn scored(engine: &mut Engine, requests: Vec<Request>) -> Vec<(Vec<Place>, Vec<u32>, bool)> {
    let ids: Vec<u64> = requests.into_iter().map(|r| engine.add(r, Sequence::new()).unwrap()).collect();
    let mut all: Vec<(Vec<Place>, Vec<u32>, bool)> = vec![Default::default(); ids.len()];
    engine
        .run(|event| {
            let i = ids.iter().position(|&id| id == event.id()).unwrap();
            match event {
                Event::Scored { places, over, .. } => {
                    all[i].0.extend(places);
                    all[i].2 = over;
                }
                Event::Token { choice, .. } => all[i].1.push(choice.token),
                Event::Failed { error, .. } => panic!("{error}"),
                _ => {}
            }
            true
        })
        .unwrap();
    all
}

#[test]
fn prompts_are_scored_as_a_plain_pass_and_log_softmax_do() {
    for (name, golden) in all() {
        let model = model(&golden);
        let tokens = prompt(5, 41);
        // By hand, in f64 from logits in f32.
        let mut sequence = Sequence::new();
        let mut batch = Batch::one(tokens.len(), &mut sequence);
        let rows = Array::from_vec(tokens.iter().map(|&t| t as i32).collect(), &[tokens.len()]);
        let logits = model.logits(&model.hidden(&rows, &mut batch).unwrap()).unwrap();
        let logits = ops::astype(&logits, Dtype::Float32).unwrap().to_vec::<f32>().unwrap();
        let softmax = |row: &[f32]| -> Vec<f64> {
            let norm = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            row.iter().map(|&x| f64::from(x) - norm).collect()
        };
        let want: Vec<Vec<f64>> = logits.chunks(logits.len() / tokens.len()).map(softmax).collect();
        let ask = |scores, max_tokens| Request { scores, max_tokens, ..request(&tokens, 0.0) };
        let mut first = None;
        for (step, kept) in [(2048, false), (7, false), (16, true)] {
            let mut engine = Engine::new(Arc::clone(&model), VOCABULARY);
            engine.prefill_step = step;
            engine.prefixes = kept.then(|| Prefixes::new(1 << 30));
            let plain = texts(&mut engine, vec![request(&tokens, 0.0)]).0.remove(0);
            // Beside others that read, write, and take nothing from those before.
            let got = scored(&mut engine, vec![ask(Some(0), 0), ask(Some(3), 6), ask(None, 6), ask(Some(2), 0)]);
            for (i, (places, written, over)) in got.iter().enumerate() {
                let (top, count) = [(0, 0), (3, 6), (0, 6), (2, 0)][i];
                assert_eq!((written, *over), (&plain[..count].to_vec(), count == 0), "{name} {step} {i}");
                let expected = if i == 2 { 0 } else { tokens.len() - 1 };
                assert_eq!(places.len(), expected, "{name} {step} {i}");
                for (j, place) in places.iter().enumerate() {
                    let row = &want[j];
                    assert_eq!(place.token, tokens[j + 1]);
                    let off = (f64::from(place.logprob) - row[place.token as usize]).abs();
                    assert!(off < 2e-5, "{name} {step}: {off} at {j}");
                    assert_eq!(place.top.len(), top);
                    let mut order: Vec<f64> = row.clone();
                    order.sort_by(|a, b| b.total_cmp(a));
                    for (t, want) in place.top.iter().zip(order) {
                        assert!(
                            (f64::from(t.1) - want).abs() < 2e-5 && (row[t.0 as usize] - want).abs() < 2e-5,
                            "{name}"
                        );
                    }
                }
            }
            // The same bits whatever the slices.
            assert_eq!(first.get_or_insert_with(|| got.clone()), &got, "{name} {step}");
        }
    }
}

#[test]
fn a_prompt_of_one_token_has_nothing_to_score() {
    let Some((_, golden)) = all().into_iter().find(|(name, _)| name == "llama") else { return };
    let mut engine = Engine::new(model(&golden), VOCABULARY);
    let ask = Request { scores: Some(5), max_tokens: 0, ..request(&[3], 0.0) };
    assert_eq!(scored(&mut engine, vec![ask]), [(vec![], vec![], true)]);
    assert!(engine.is_idle());
    assert!(engine.add(Request { max_tokens: 0, ..request(&[3], 0.0) }, Sequence::new()).is_err());
}

#[test]
fn short_prompts_go_first_and_long_ones_still_go_on() {
    let Some((_, golden)) = all().into_iter().find(|(name, _)| name == "llama") else { return };
    let model = model(&golden);
    let (long, short) = (prompt(6, 120), prompt(7, 10));
    let alone = |p: &[u32]| texts(&mut Engine::new(Arc::clone(&model), VOCABULARY), vec![request(p, 0.8)]).0.remove(0);
    let (want_long, want_short) = (alone(&long), alone(&short));
    let mut engine = Engine::new(Arc::clone(&model), VOCABULARY);
    (engine.prefill_step, engine.short_prompt, engine.max_prompts) = (10, 16, 1);
    let first = engine.add(request(&long, 0.8), Sequence::new()).unwrap();
    engine.step().unwrap();
    // A short one every other step: each is read in the step that follows, or in the one after that.
    let (mut read, mut later, mut got) = (10, Vec::new(), BTreeMap::<u64, Vec<u32>>::new());
    for step in 0.. {
        if step % 2 == 0 && step < 40 {
            later.push((engine.add(request(&short, 0.8), Sequence::new()).unwrap(), step));
        }
        let (before, said, mut prompts) = (read, engine.reads_short(), BTreeSet::new());
        if before < 119 {
            assert_eq!(engine.reads(), if said { engine.work().1 } else { 1 }, "{step}");
        }
        for event in engine.step().unwrap() {
            if let Event::Prefill { id, .. } = event {
                prompts.insert(id);
            }
            match event {
                Event::Prefill { id, done } if id == first => read = done,
                Event::Token { id, choice, .. } => {
                    let text = got.entry(id).or_default();
                    if let Some((_, came)) = later.iter().find(|l| l.0 == id)
                        && text.is_empty()
                    {
                        assert!(step <= came + 1, "it came at {came} and was read at {step}");
                    }
                    text.push(choice.token);
                }
                _ => {}
            }
        }
        assert!(step % 2 == 0 || read == 120 || read > before, "the long one waits at {step}");
        assert_eq!(said, !prompts.is_empty() && !prompts.contains(&first), "{prompts:?} at {step}");
        if engine.is_idle() {
            break;
        }
    }
    assert_eq!(got[&first], want_long);
    assert!(later.iter().all(|(id, _)| got[id] == want_short));
}

/// A model with a fault: a step breaks down when all is computed, if a token is in it.
#[derive(Clone)]
struct Trap {
    inner: Arc<dyn Model>,
    token: i32,
    panics: bool,
}

impl Model for Trap {
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array> {
        let hidden = self.inner.hidden(tokens, batch)?;
        match tokens.to_vec::<i32>()?.contains(&self.token) {
            true if self.panics => panic!("the trap"),
            true => Err(Error::value("the trap")),
            false => Ok(hidden),
        }
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        self.inner.logits(hidden)
    }

    fn module(&self) -> &dyn Module {
        self.inner.module()
    }

    fn module_mut(&mut self) -> &mut dyn Module {
        unreachable!("nobody changes it")
    }

    fn depth(&self) -> usize {
        self.inner.depth()
    }
}

/// Requests whose prompts and texts lack the last token.
fn harmless(seed: u64, len: usize) -> Request {
    let last = VOCABULARY as u32 - 1;
    let tokens: Vec<u32> = prompt(seed, len).into_iter().map(|t| t.min(last - 1)).collect();
    let mut request = request(&tokens, 0.7);
    request.sampling.logit_bias.insert(last, -1e9);
    request
}

/// A request that breaks a step ends by itself; those beside it get what they get alone.
#[test]
fn a_fault_is_one_requests_own() {
    let goldens = all();
    for (name, golden) in
        goldens.iter().filter(|(name, _)| ["llama", "gemma3_text", "mamba2", "qwen3_next"].contains(&&**name))
    {
        let inner = model(golden);
        let requests = || (0..4).map(|i| harmless(i, 20 + 9 * i as usize)).collect::<Vec<_>>();
        let (want, ..) = texts(&mut Engine::new(Arc::clone(&inner), VOCABULARY), requests());
        for (panics, drafts) in [(true, false), (false, false), (true, true)] {
            let trap = Trap { inner: Arc::clone(&inner), token: VOCABULARY as i32 - 1, panics };
            let mut engine = Engine::new(Arc::new(trap), VOCABULARY);
            engine.prefixes = Some(Prefixes::new(1 << 20));
            engine.drafter = drafts.then_some(Drafter::Lookup);
            let ids: Vec<u64> = requests().into_iter().map(|r| engine.add(r, Sequence::new()).unwrap()).collect();
            let (mut got, mut failed, mut bad, mut steps) = (BTreeMap::<u64, Vec<u32>>::new(), Vec::new(), None, 0);
            while !engine.is_idle() {
                if steps == 5 {
                    let mut fatal = harmless(9, 12);
                    fatal.prompt.push(VOCABULARY as u32 - 1);
                    bad = Some(engine.add(fatal, Sequence::new()).unwrap());
                }
                steps += 1;
                assert!(steps < 500, "{name}: no end");
                let stepped = catch_unwind(AssertUnwindSafe(|| engine.step().unwrap()));
                for event in stepped.unwrap_or_else(|_| engine.recover(&Error::io("it broke down"))) {
                    match event {
                        Event::Token { id, choice, .. } => got.entry(id).or_default().push(choice.token),
                        Event::Failed { id, .. } => failed.push(id),
                        _ => {}
                    }
                }
            }
            assert_eq!(failed, [bad.unwrap()], "{name}");
            let got: Vec<Vec<u32>> = ids.iter().map(|id| got.remove(id).unwrap()).collect();
            assert!(got == want, "{name}: another text beside a fault");
        }
    }
}

/// What was put aside in the middle goes on as if nothing had been.
#[test]
fn a_pause_changes_nothing() {
    for (name, golden) in all() {
        let model = model(&golden);
        let requests = || {
            let mut all: Vec<Request> = (0..3).map(|i| request(&prompt(i, 30), 0.7)).collect();
            all[2].scores = Some(2);
            all
        };
        let run = |pauses: &[(usize, usize, usize)]| {
            let mut engine = Engine::new(Arc::clone(&model), VOCABULARY);
            engine.prefill_step = 16;
            let ids: Vec<u64> = requests().into_iter().map(|r| engine.add(r, Sequence::new()).unwrap()).collect();
            let (mut texts, mut scores) = (vec![Vec::new(); 3], Vec::new());
            for step in 0.. {
                for &(which, from, to) in pauses {
                    if step == from {
                        engine.pause(ids[which]);
                    } else if step == to {
                        engine.resume(ids[which]);
                    }
                }
                if engine.is_idle() {
                    break;
                }
                for event in engine.step().unwrap() {
                    match event {
                        Event::Token { id, choice, .. } => texts[id as usize].push(choice.token),
                        Event::Scored { places, .. } => scores.extend(places),
                        _ => {}
                    }
                }
            }
            (texts, scores)
        };
        let want = run(&[]);
        assert_eq!(want.1.len(), 29, "{name}");
        let got = run(&[(0, 8, 20), (1, 1, 3), (2, 2, 4), (2, 12, 14)]);
        assert!(got == want, "{name}: a pause changed something");
    }
}

/// What systems were told outlives what was said to them, wherever room is short.
#[test]
fn what_a_system_was_told_is_remembered_for_longest() {
    let goldens = all();
    for (name, golden) in goldens.iter().filter(|(name, _)| ["llama", "mamba2", "qwen3_next"].contains(&&**name)) {
        let told = prompt(50, 600);
        let ask = |seed: u64, len: usize| {
            let tokens = [&told[..], &prompt(seed, len)].concat();
            Request { system: told.len(), max_tokens: 4, ..request(&tokens, 0.0) }
        };
        let cached = |engine: &mut Engine, request: Request| {
            let (mut cached, _) = (0, engine.add(request, Sequence::new()).unwrap());
            engine
                .run(|event| {
                    if let Event::Started { cached: n, .. } = event {
                        cached = n;
                    }
                    true
                })
                .unwrap();
            cached
        };
        let mut engine = Engine::new(model(golden), VOCABULARY);
        engine.prefixes = Some(Prefixes::new(1 << 30));
        assert_eq!(cached(&mut engine, ask(1, 700)), 0, "{name}");
        // The other conversation with the same system begins where the system's part ends.
        assert_eq!(cached(&mut engine, ask(2, 700)), 600, "{name}");
        // Others come, with room for little more than one of them.
        let one = engine.prefixes.as_ref().unwrap().bytes() / 2;
        engine.prefixes.as_mut().unwrap().set_limit(2 * one);
        for seed in 3..7 {
            let other = Request { max_tokens: 4, ..request(&prompt(seed, 900), 0.0) };
            cached(&mut engine, other);
        }
        assert!(engine.prefixes.as_ref().unwrap().bytes() <= 2 * one, "{name}");
        assert_eq!(cached(&mut engine, ask(8, 30)), 600, "{name}: the system's part is gone");
    }
}
