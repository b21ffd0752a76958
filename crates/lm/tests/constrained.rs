//! Replies under grammars: the demo model and stories260K (`../shared/data/models`) say what they must, alone, in batches
//! and with guesses; real vocabularies (`../shared/data/tokenizers`) become grammars' in a moment.

mod shared;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lapis_cpu::pool;
use lapis_lm::tokenizer::Tokenizer;
use lapis_lm::{Drafter, Event, Files, Grammar, LanguageModel, Options, Request, Sampling, Sequence};
use serde_json::{Value, json};
use shared::shared;

macro_rules! demo {
    ($name:literal) => {
        include_bytes!(concat!("../../../examples/demo-model/model/", $name))
    };
}

fn models() -> Vec<LanguageModel> {
    let demo = Files {
        name: "demo model",
        config: demo!("config.json"),
        weights: demo!("model.safetensors"),
        tokenizer: demo!("tokenizer.json"),
        tokenizer_config: demo!("tokenizer_config.json"),
    };
    let mut all = vec![LanguageModel::from_files(demo).unwrap()];
    all.extend(shared("data/models/stories260K").map(|dir| lapis_lm::load(dir).unwrap()));
    all
}

/// Grammars, and what their texts must be.
fn grammars(tokenizer: &Tokenizer) -> Vec<(&'static str, Grammar, fn(&str) -> bool)> {
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 2, "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
            "born": {"type": "string", "format": "date"},
        },
        "required": ["name", "age", "tags", "born"],
        "additionalProperties": false,
    });
    vec![
        ("schema", Grammar::json_schema(tokenizer, &person).unwrap(), |text| {
            let Ok(Value::Object(all)) = serde_json::from_str(text) else { return false };
            let name = all["name"].as_str().unwrap().chars().count();
            let tags = all["tags"].as_array().unwrap();
            let names: Vec<&String> = all.keys().collect();
            (2..=12).contains(&name)
                && (0..=130).contains(&all["age"].as_i64().unwrap())
                && (1..=3).contains(&tags.len())
                && tags.iter().all(|t| ["red", "green", "blue"].contains(&t.as_str().unwrap()))
                && all["born"].as_str().unwrap().len() == 10
                && names == ["name", "age", "tags", "born"]
        }),
        ("regex", Grammar::regex(tokenizer, r"[A-Z][a-z]{1,8}( [a-z]{1,8}){3}\.").unwrap(), |text| {
            let words: Vec<&str> = text.strip_suffix('.').unwrap_or("").split(' ').collect();
            words.len() == 4 && text.starts_with(|c: char| c.is_ascii_uppercase())
        }),
        ("space", Grammar::regex(tokenizer, "  ?[a-z]{3} x").unwrap(), |text| {
            let bare = text.trim_start();
            text.starts_with(' ') && bare.len() == 5 && bare.ends_with(" x")
        }),
        ("choice", Grammar::choice(tokenizer, &["yes", "no", "perhaps"]).unwrap(), |text| {
            ["yes", "no", "perhaps"].contains(&text)
        }),
        (
            "lark",
            Grammar::lark(tokenizer, "start: \"<\" word (\",\" word)~2 \">\"\nword: /[a-z]{1,6}/\n").unwrap(),
            |text| text.starts_with('<') && text.ends_with('>') && text.matches(',').count() == 2,
        ),
    ]
}

fn sampling(temperature: f64, seed: u64) -> Sampling {
    Sampling { temperature, seed, ..Sampling::default() }
}

/// A reply under a grammar, and how many of its tokens had been guessed.
fn reply(model: &LanguageModel, grammar: &Grammar, sampling: Sampling, drafter: Option<Drafter>) -> (String, usize) {
    let prompt = model.tokenizer.encode_prompt("Once upon a time there was a red, green and blue").unwrap();
    let options = Options { max_tokens: Some(300), sampling, draft_tokens: Some(3), drafter, ..Options::default() };
    let stream = model.stream(&prompt, &options, Sequence::new()).unwrap();
    let (mut text, mut guessed) = (String::new(), 0);
    for step in stream.constrain(grammar.reply(&model.eos, model.tokenizer.thinking(), &prompt)) {
        let step = step.unwrap_or_else(|e| panic!("{e}: {text:?}"));
        text.push_str(&step.text);
        guessed += usize::from(step.from_draft);
    }
    (text, guessed)
}

#[test]
fn replies_follow_their_grammar_with_guesses_or_without() {
    for model in models() {
        let mut right = 0;
        for (name, grammar, good) in grammars(&model.tokenizer) {
            // SentencePiece takes every space at the beginning away, and this vocabulary has no two in a token.
            if name == "space" && model.vocabulary == 512 {
                continue;
            }
            for seed in 0..4 {
                let sampling = sampling([0.0, 0.7, 1.0, 1.5][seed as usize], seed);
                let (text, _) = reply(&model, &grammar, sampling.clone(), None);
                assert!(good(&text), "{name}, {seed}: {text:?}");
                let (again, guessed) = reply(&model, &grammar, sampling, Some(Drafter::Lookup));
                assert_eq!(again, text, "{name}, {seed}: with guesses");
                right += guessed;
            }
        }
        eprintln!("{right} guesses were right");
    }
}

#[test]
fn a_batch_of_several_grammars_says_what_each_says_alone() {
    for model in models() {
        let mut all = grammars(&model.tokenizer);
        all.retain(|(name, ..)| *name != "space" || model.vocabulary != 512);
        let prompt = model.tokenizer.encode_prompt("Once upon a time there was a red, green and blue").unwrap();
        let mut engine = model.engine();
        let mut texts = BTreeMap::new();
        for (i, (_, grammar, _)) in all.iter().enumerate() {
            let request = Request {
                prompt: prompt.clone(),
                max_tokens: 300,
                sampling: sampling(0.9, i as u64),
                eos: Arc::clone(&model.eos),
                ..Request::default()
            };
            let id = engine.add(request, Sequence::new()).unwrap();
            engine.constrain(id, grammar.constraint(&model.eos));
            texts.insert(id, (model.tokenizer.detokenizer(), String::new()));
        }
        engine
            .run(|event| {
                match event {
                    Event::Token { id, choice, finish, .. } => {
                        let (detokenizer, text) = texts.get_mut(&id).unwrap();
                        if finish.is_none() {
                            text.push_str(&detokenizer.add(choice.token).unwrap());
                        } else {
                            text.push_str(&detokenizer.finalize());
                        }
                    }
                    Event::Failed { id, error } => panic!("{}: {error}: {:?}", all[id as usize].0, texts[&id].1),
                    Event::Started { .. } | Event::Prefill { .. } | Event::Scored { .. } => {}
                }
                true
            })
            .unwrap();
        for (i, ((_, text), (name, grammar, good))) in texts.values().zip(&all).enumerate() {
            assert!(good(text), "{name}: {text:?}");
            assert_eq!(text, &reply(&model, grammar, sampling(0.9, i as u64), None).0, "{name}");
        }
    }
}

/// What a request gets: each token with its log-probability and the likeliest beside it.
type Reply = Vec<(u32, u32, Vec<(u32, f32)>)>;

/// Replies of a batch of requests, some of them under grammars.
fn replies(model: &LanguageModel, asked: &[(Request, Option<&Grammar>)], drafter: Option<Drafter>) -> Vec<Reply> {
    let mut engine = model.engine();
    engine.drafter = drafter;
    let ids: Vec<u64> = asked
        .iter()
        .map(|(request, grammar)| {
            let id = engine.add(request.clone(), Sequence::new()).unwrap();
            if let Some(grammar) = grammar {
                engine.constrain(id, grammar.constraint(&model.eos));
            }
            id
        })
        .collect();
    let mut replies = vec![Reply::new(); ids.len()];
    engine
        .run(|event| {
            let at = ids.iter().position(|&id| id == event.id()).unwrap();
            match event {
                Event::Token { choice, top, .. } => replies[at].push((choice.token, choice.logprob.to_bits(), top)),
                Event::Failed { error, .. } => panic!("{error}"),
                _ => {}
            }
            true
        })
        .unwrap();
    replies
}

/// Rows of a step are chosen from on several threads: whatever stands beside a request, it gets the bits that it gets alone.
#[test]
fn every_way_to_choose_gets_beside_the_others_what_it_gets_alone() {
    let model = models().remove(0);
    let all = grammars(&model.tokenizer);
    let plain = Sampling::default();
    let penalties = || Sampling {
        repetition_penalty: 1.3,
        presence_penalty: 0.4,
        frequency_penalty: 0.2,
        repetition_context: 64,
        ..plain.clone()
    };
    let samplings = [
        plain.clone(),
        Sampling { logit_bias: [(7, -100.0), (300, 2.5)].into(), ..plain.clone() },
        penalties(),
        sampling(1.0, 3),
        sampling(0.6, 4),
        Sampling { top_p: 0.9, ..sampling(1.0, 3) },
        Sampling { top_k: 40, ..sampling(1.3, 5) },
        Sampling { min_p: 0.05, ..sampling(1.0, 6) },
        Sampling { min_p: 0.05, min_tokens_to_keep: 3, ..sampling(1.0, 6) },
        Sampling { xtc_probability: 0.5, ..sampling(1.0, 7) },
        Sampling { temperature: 1.1, seed: 8, top_p: 0.95, top_k: 50, ..penalties() },
    ];
    let asked: Vec<(Request, Option<&Grammar>)> = samplings
        .iter()
        .flat_map(|s| [(s, None), (s, Some(0)), (s, Some(1))])
        .enumerate()
        .map(|(i, (sampling, grammar))| {
            let text = ["Tell me a story about a fox", "Once upon a time there was a red, green and blue"][i % 2];
            let request = Request {
                prompt: model.tokenizer.encode_prompt(text).unwrap(),
                max_tokens: 40,
                sampling: sampling.clone(),
                eos: Arc::clone(&model.eos),
                choice: (i / 6) as u64,
                top: [0, 0, 5][i / 3 % 3],
                ..Request::default()
            };
            (request, grammar.map(|g: usize| &all[g].1))
        })
        .collect();
    let alone: Vec<Reply> = asked.chunks(1).flat_map(|one| replies(&model, one, None)).collect();
    assert!(alone.iter().all(|reply| !reply.is_empty()));
    for (threads, drafter) in [(1, None), (2, None), (5, None), (3, Some(Drafter::Lookup))] {
        let got = pool::with_threads(threads, || replies(&model, &asked, drafter.clone()));
        for (i, (got, want)) in got.iter().zip(&alone).enumerate() {
            assert_eq!(got, want, "request {i} on {threads} threads, guesses of {drafter:?}");
        }
    }
}

#[test]
fn real_vocabularies_spell_json() {
    for folder in ["deepseek-v3", "llama-2"] {
        let Some(dir) = shared(&format!("data/tokenizers/{folder}")) else { return };
        let tokenizer = Tokenizer::load(&dir).unwrap();
        let begun = Instant::now();
        let grammar = Grammar::json_object(&tokenizer).unwrap();
        let first = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        Grammar::json_object(&tokenizer).unwrap();
        let second = begun.elapsed().as_secs_f64();
        let eos = Arc::new(tokenizer.eos_ids().clone());
        let mut constraint = grammar.constraint(&eos);
        let text =
            "{\"name\": \"Zoë 😀 of the 日本 house\", \"list\": [1, 2.5e-3, null, true], \"inner\": {\"a\": \"b\\n\"}}";
        let mut worst = 0f64;
        let ids = tokenizer.encode(text, false).unwrap();
        let count = tokenizer.vocab_size() + 64;
        for id in ids.iter().copied().chain(eos.first().copied()) {
            let mut logits = vec![0.5; count];
            let begun = Instant::now();
            constraint.restrict(&mut logits).unwrap();
            worst = worst.max(begun.elapsed().as_secs_f64());
            assert_eq!(logits[id as usize], 0.5, "{folder}: {id} {:?}", tokenizer.token_text(id));
            assert!(logits[count - 64..].iter().all(|x| *x == f32::NEG_INFINITY));
            constraint.accept(id).unwrap();
        }
        assert!(constraint.accept(ids[0]).is_err());
        eprintln!(
            "{folder}: {count} tokens, vocabulary {first:.3} s, schema {second:.4} s, mask of {} steps at most {:.2} ms",
            ids.len(),
            worst * 1e3
        );
    }
}
