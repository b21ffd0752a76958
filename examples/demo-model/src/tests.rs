//! What users of the recipe rely on: the commands that the model names are real, the questions of the score are not
//! those of training, a killed run ends like one that was not, and the committed model is as good as it says.

use crate::checkpoint;
use crate::commands::Known;
use crate::dice::Dice;
use crate::howto::{Questions, holds, plain};
use crate::model::{Cache, Config};
use crate::score::{Chat, Score};
use crate::tales::Tales;
use crate::text::{STAGES, Text};
use crate::tokenize::Tokens;
use crate::train::{Recipe, Run};
use lapis::prelude::*;
use lapis_nn::{Module, Params};
use std::path::{Path, PathBuf};

fn tiny() -> Recipe {
    Recipe {
        config: Config {
            vocab_size: 400,
            hidden_size: 64,
            intermediate_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            ..Recipe::full().config
        },
        conversations: 200,
        step_tokens: 64,
        length: 16,
        steps: 5,
        long: 2,
        horizon: 6,
        cooldown: 2,
        warmup: 2,
        save_every: 2,
        ..Recipe::full()
    }
}

/// A folder of its own for a test, empty.
fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("lapis-demo-model-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn bits(params: &Params) -> Vec<(String, Vec<u32>)> {
    let words = |a: &Array| a.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    params.iter().map(|(name, a)| (name.clone(), words(a))).collect()
}

#[test]
fn every_command_is_real() {
    let known = Known::new().unwrap();
    let howto = Questions::howto().unwrap();
    let faults: Vec<String> = howto.topics.iter().filter_map(|t| known.check(&t.command).err()).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    for wrong in [
        "cargo run --release --example quickest",
        "cargo run --release -p lapis-nn --example quickstart",
        "cargo xtask demo-models",
        "LAPIS_SIMDD=avx2 cargo test -p lapis",
    ] {
        assert!(known.check(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn every_answer_names_its_command() {
    let howto = Questions::howto().unwrap();
    let mut dice = Dice::new(1, 1);
    for _ in 0..2000 {
        let (ask, answer) = howto.draw(&mut dice, false);
        assert!(!ask.contains('{') && !answer.contains('{'), "{ask} {answer}");
        assert!(howto.topics.iter().any(|t| holds(&answer, &t.command)), "{answer}");
    }
    // A longer command is another one.
    assert!(holds("Run `a  b`.", "a b") && !holds("Run `a b --c`.", "a b"));
}

#[test]
fn held_out_questions_are_not_in_the_text() {
    let mut all = 0;
    for questions in [Questions::howto().unwrap(), Questions::talk().unwrap()] {
        let seen = questions.all();
        assert!(seen.len() > 100);
        for topic in &questions.topics {
            all += topic.held_out.len();
            for ask in &topic.held_out {
                assert!(!seen.contains(&plain(ask)), "{}: {ask}", topic.name);
            }
        }
    }
    assert!(all >= 100);
}

#[test]
fn tales_hold_together() {
    let tales = Tales::new().unwrap();
    for place in 0..300 {
        let mut dice = Dice::new(3, place);
        let (request, tale) = tales.draw(&mut dice, STAGES[place as usize % STAGES.len()]);
        let words = tale.split_whitespace().count();
        assert!((80..=175).contains(&words), "{words} words: {tale}");
        assert!(!request.contains('{') && !tale.contains('{'), "{request} {tale}");
        // A request without a hero leaves the choice to the tale.
        let asked = tales.heroes.iter().find(|h| request.split(' ').any(|w| w.trim_matches(',') == *h));
        let faults = asked.map(|hero| tales.faults(&tale, hero));
        let whole = |hero: &String| tales.faults(&tale, hero).is_empty();
        assert!(tales.heroes.iter().any(whole) && faults.iter().all(Vec::is_empty), "{request}: {faults:?}: {tale}");
    }
}

#[test]
fn the_text_is_the_same_each_time() {
    let text = Text::new().unwrap();
    let tokens = Tokens::train(&text, 1, 400, 100).unwrap();
    assert_eq!(tokens.json().unwrap(), Tokens::train(&text, 1, 400, 100).unwrap().json().unwrap());
    let row = |place| text.row(&tokens, 1, place, 65, STAGES[0]).unwrap();
    assert_eq!((row(7), row(7).len()), (row(7), 65));
    assert_ne!(row(7), row(8));
    for any in ["Tell me a story", "naïve 象 🦊\n\t  two  spaces", "`lapis serve --port 8080`"] {
        assert_eq!(tokens.decode(&tokens.encode(any).unwrap()).unwrap(), any);
    }
    assert_eq!(tokens.encode("<|im_end|>").unwrap(), [tokens.id("<|im_end|>").unwrap()]);
}

#[test]
fn a_killed_run_ends_with_the_same_bits() {
    let (text, recipe) = (Text::new().unwrap(), tiny());
    let dir = folder("resume");
    let mut straight = Run::new(&recipe, &text).unwrap();
    straight.finish(&text, &dir).unwrap();
    assert_eq!(straight.losses.len(), recipe.steps);
    for killed_at in [1, 3, 4] {
        let dir = folder(&format!("resume-{killed_at}"));
        let mut run = Run::new(&recipe, &text).unwrap();
        for step in 1..=killed_at {
            run.step(&text).unwrap();
            // The last step before the end of the process is not always saved.
            if step % 2 == 1 {
                run.save(&dir).unwrap();
            }
        }
        drop(run);
        let mut run = Run::new(&recipe, &text).unwrap();
        run.resume(&dir).unwrap();
        assert_eq!(run.losses.len(), killed_at - (killed_at + 1) % 2);
        run.finish(&text, &dir).unwrap();
        assert_eq!(run.losses, straight.losses);
        assert_eq!(bits(&run.model.parameters()), bits(&straight.model.parameters()));
        std::fs::remove_dir_all(dir).unwrap();
    }
    // A finished run has nothing left to do.
    let mut run = Run::new(&recipe, &text).unwrap();
    run.resume(&dir).unwrap();
    run.finish(&text, &dir).unwrap();
    assert_eq!(run.losses, straight.losses);
    // The state of another recipe is not taken up and not lost.
    let mut other = Run::new(&Recipe { rate: 1e-3, ..recipe }, &text).unwrap();
    other.resume(&dir).unwrap();
    assert!(other.losses.is_empty() && dir.join("state-of-another-recipe.safetensors").exists());
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let (text, recipe) = (Text::new().unwrap(), tiny());
    let dir = folder("nan");
    let mut run = Run::new(&recipe, &text).unwrap();
    run.step(&text).unwrap();
    run.save(&dir).unwrap();
    let saved = std::fs::read(dir.join("state.safetensors")).unwrap();
    run.model.apply(&mut |_, a| ops::multiply(a, f32::NAN)).unwrap();
    let error = run.finish(&text, &dir).unwrap_err().to_string();
    assert!(error.contains("NaN") && error.contains("at step 2"), "{error}");
    assert_eq!(std::fs::read(dir.join("state.safetensors")).unwrap(), saved);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn training_learns() {
    let text = Text::new().unwrap();
    let mut run = Run::new(&Recipe { steps: 25, step_tokens: 128, warmup: 5, ..tiny() }, &text).unwrap();
    for _ in 0..25 {
        run.step(&text).unwrap();
    }
    let mean = |l: &[f32]| l.iter().sum::<f32>() / l.len() as f32;
    let (first, last) = (mean(&run.losses[..3]), mean(&run.losses[22..]));
    assert!(last < first - 0.5, "{first} to {last}");
    assert!(crate::curve::svg(&run.losses).contains("<polyline"));
}

#[test]
fn what_is_written_is_what_is_read() {
    let text = Text::new().unwrap();
    let run = Run::new(&tiny(), &text).unwrap();
    let dir = folder("checkpoint");
    checkpoint::write(&dir, &run.model, &run.config, &run.tokens, 8).unwrap();
    let (model, config, tokens) = checkpoint::read(&dir).unwrap();
    assert_eq!((&config, tokens.json().unwrap()), (&run.config, run.tokens.json().unwrap()));
    // A prompt at once, or token by token through the cache: the same logits.
    let prompt = tokens.encode("Tell me a story about a fox").unwrap();
    let whole = model.next(&prompt, &mut Cache::default()).unwrap().to_vec::<f32>().unwrap();
    let mut cache = Cache::default();
    let last = prompt.iter().map(|&t| model.next(&[t], &mut cache).unwrap()).last().unwrap().to_vec::<f32>().unwrap();
    let plain = run.model.next(&prompt, &mut Cache::default()).unwrap().to_vec::<f32>().unwrap();
    for ((a, b), c) in whole.iter().zip(&last).zip(&plain) {
        assert!((a - b).abs() < 1e-4 && (a - c).abs() < 0.1, "{a} {b} {c}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_committed_model_is_as_good_as_it_says() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("model");
    let files = std::fs::read_dir(&dir).unwrap();
    let size: u64 = files.map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= 8_000_000, "{size} bytes");
    let score: Score = serde_json::from_str(&std::fs::read_to_string(dir.join("score.json")).unwrap()).unwrap();
    assert_eq!(score.right + score.missed.len(), score.questions);
    assert!(score.right * 100 >= score.questions * 80, "{} of {}", score.right, score.questions);

    let (model, config, tokens) = checkpoint::read(&dir).unwrap();
    let chat = Chat { model, config, tokens };
    // All of them: `cargo xtask demo-model --score`.
    let (asked, wrong) = chat.questions(5).unwrap();
    let missed: Vec<&str> = wrong.iter().map(|m| m.ask.as_str()).collect();
    let unknown: Vec<&&str> = missed.iter().filter(|ask| !score.missed.iter().any(|m| m == **ask)).collect();
    // Another instruction set may round a tie the other way: one answer may differ.
    assert!(asked >= 19 && unknown.len() <= 1, "{unknown:?}");
    let tale = chat.answer("Tell me a story about a fox", 0.0, 0).unwrap();
    let faults = Tales::new().unwrap().faults(&tale, "fox");
    assert!(faults.is_empty(), "{faults:?}: {tale}");
}
