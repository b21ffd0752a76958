//! Replies that outgrow the room that was set aside for them: one waits, and goes on with the same bits.

mod common;

use common::{DEMO, get, post, server};
use lapis::io::Bytes;
use lapis_lm::fit::Fit;
use lapis_lm::{Checkpoint, LanguageModel};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PROMPTS: [&str; 2] = ["Once upon a time there was a fox", "A long time ago there lived an owl"];
const OPEN: usize = 16;

fn ask(prompt: &str) -> Value {
    json!({"prompt": prompt, "max_tokens": 200, "seed": 5, "temperature": 0.8, "logit_bias": {"2": -100}})
}

fn text(answer: (u16, Value)) -> String {
    assert_eq!(answer.0, 200, "{}", answer.1);
    answer.1["choices"][0]["text"].as_str().unwrap().to_string()
}

#[test]
fn replies_that_outgrow_their_room_wait_and_go_on() {
    let mut checkpoint = Checkpoint::from_bytes(DEMO.name, DEMO.config, Bytes::copy(DEMO.weights).unwrap()).unwrap();
    let fit = Fit::of(&mut checkpoint).unwrap();
    let tokenizer = LanguageModel::from_files(DEMO).unwrap().tokenizer;
    let at_first = |prompt: &str| fit.remembered(tokenizer.encode_prompt(prompt).unwrap().len() + OPEN) + fit.working;
    // Room for both as they begin, and not for more.
    let limit = fit.weights + PROMPTS.map(at_first).iter().sum::<u64>();
    let (_server, at) = server(|s| {
        s.open_tokens = OPEN;
        s.memory_limit = limit;
    });
    let want = PROMPTS.map(|prompt| text(post(at, "/v1/completions", &ask(prompt))));
    let told = |name: &str| -> f64 {
        get(at, "/metrics").2.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok()).unwrap()
    };
    assert_eq!(told("lapis_paused_total"), 0.0);
    let mut paused = 0.0;
    // They begin together soon enough but for a slow machine.
    for _ in 0..5 {
        let got = std::thread::scope(|scope| {
            PROMPTS
                .map(|prompt| scope.spawn(move || text(post(at, "/v1/completions", &ask(prompt)))))
                .map(|reply| reply.join().unwrap())
        });
        assert_eq!(got, want);
        paused = told("lapis_paused_total");
        if paused > 0.0 {
            break;
        }
    }
    assert!(paused > 0.0, "nothing waited");
    // What a reply gives back is counted a moment after its end is sent.
    let until = Instant::now() + Duration::from_secs(20);
    while told("lapis_reserved_bytes") != 0.0 {
        assert!(Instant::now() < until, "room is kept");
    }
}
