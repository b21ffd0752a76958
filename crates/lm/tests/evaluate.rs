//! Tasks come out as in mlx-lm's `evaluate` on the public harness: the same prompts, likelihoods, replies and figures.

use lapis_lm::harness::{Library, Limit, Settings, Task};
use lapis_lm::likelihood::Question;
use lapis_lm::{LanguageModel, Sampling};
use serde_json::{Map, Value};
use std::path::PathBuf;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

fn demo() -> LanguageModel {
    lapis_lm::load(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model")).unwrap()
}

fn settings() -> Settings {
    Settings {
        batch_size: 4,
        num_fewshot: None,
        max_tokens: None,
        limit: None,
        seed: 123,
        multiturn: false,
        chat: Some(false),
        keywords: Map::new(),
        sampling: Sampling::default(),
    }
}

fn task(name: &str) -> lapis::Result<Task> {
    Library::new(&[PathBuf::from(DATA).join("tasks")], None).unwrap().task(name)
}

/// evaluate.json, made by evaluate.py. Sums of log-probabilities within 1e-3.
#[test]
fn tasks_come_out_as_in_the_harness() {
    let model = demo();
    let wanted: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{DATA}/evaluate.json")).unwrap()).unwrap();
    for want in wanted.as_array().unwrap() {
        let (name, given) = (want["task"].as_str().unwrap(), &want["settings"]);
        let how = Settings {
            num_fewshot: given["num_fewshot"].as_u64().map(|n| n as usize),
            limit: given["limit"].as_u64().map(|n| Limit::Count(n as usize)),
            multiturn: given["fewshot_as_multiturn"] == true,
            chat: Some(given["apply_chat_template"] == true),
            ..settings()
        };
        let found = task(name).unwrap().run(&model, &how, &mut |_, _| true).unwrap();
        let samples = want["samples"].as_array().unwrap();
        assert_eq!(found.samples.len(), samples.len(), "{name} {given}");
        for (own, want) in found.samples.iter().zip(samples) {
            let rolling = name == "roll";
            if !rolling {
                assert_eq!(own["arguments"], want["contexts"], "{name} {given}");
            }
            if own["resps"].is_object() {
                assert_eq!(own["resps"]["written"], want["resps"], "{name} {given}");
                continue;
            }
            for (own, want) in own["resps"].as_array().unwrap().iter().zip(want["resps"].as_array().unwrap()) {
                let (x, y) = (own[0].as_f64().unwrap(), if rolling { want } else { &want[0] }.as_f64().unwrap());
                assert!((x - y).abs() < 1e-3, "{name} {given}: {x} {y}");
                assert!(rolling || own[1] == want[1], "{name} {given}: {own} {want}");
            }
        }
        let own = found.to_json();
        for (key, want) in want["results"].as_object().unwrap() {
            // Of what is no mean, the harness draws other samples, or says nothing.
            if key.contains("_stderr") && !key.starts_with("acc") && !key.starts_with("exact") {
                assert!(own[key].is_f64(), "{name} {key}");
                continue;
            }
            let (x, y) = (own[key].as_f64().unwrap(), want.as_f64().unwrap());
            assert!((x - y).abs() < 1e-3 * y.abs().max(1.0), "{name} {given} {key}: {x} {y}");
        }
    }
}

/// A question's choices have the bits that each has alone, whatever else is asked.
#[test]
fn likelihoods_do_not_depend_on_the_batch() {
    let model = demo();
    let tokens = |text: &str| model.tokenizer.encode(text, false).unwrap();
    let begin = "Once upon a time there was a fox who lived in a village by the sea. ".repeat(4);
    let questions: Vec<Question> = ["The fox", "The owl", "The fox met the owl and"]
        .iter()
        .map(|end| Question {
            context: tokens(&format!("{begin}{end}")),
            continuations: [" was happy", " said hello.", "", " compiled the kernel"].map(tokens).to_vec(),
        })
        .collect();
    let together = model.likelihoods(&questions, 8, |_| true).unwrap();
    for (question, found) in questions.iter().zip(&together) {
        for (continuation, found) in question.continuations.iter().zip(found) {
            let alone = Question { context: question.context.clone(), continuations: vec![continuation.clone()] };
            assert_eq!(model.likelihoods(&[alone], 1, |_| true).unwrap(), [[*found]]);
        }
    }
    assert_eq!((together[0][2].sum, together[0][2].greedy), (0.0, true));
    let e = model.likelihoods(&questions, 1, |done| done < 1).unwrap_err();
    assert!(e.message().contains("stopped"), "{e}");
}

#[test]
fn what_is_wrong_is_named() {
    let fails = |name: &str, parts: &[&str]| {
        let e = task(name).err().unwrap_or_else(|| panic!("{name} is taken")).to_string();
        parts.iter().for_each(|p| assert!(e.contains(p), "{name}: {e:?} does not say {p:?}"));
    };
    fails("nonsense", &["no task \"nonsense\"", "arc_easy", "choose", "lm_eval --model local-completions"]);
    fails("piqa", &["no rows of \"validation\"", "--data-dir", "load_dataset(\"baber/piqa\", split=\"validation\")"]);
    let dir = std::env::temp_dir().join(format!("lapis-evaluate-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let at = |name: &str| dir.join(name).display().to_string();
    std::fs::write(at("broken.jsonl"), "{\"question\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 1}\n{\"quest\n")
        .unwrap();
    fails(&at("broken.jsonl"), &["broken.jsonl:2: "]);
    std::fs::write(at("odd.jsonl"), "{\"a\": 1}\n").unwrap();
    fails(&at("odd.jsonl"), &["odd.jsonl:1: the row has \"a\"; it needs \"question\""]);
    for (text, parts) in [
        ("process_docs: !function utils.f\n", &["process_docs", "!function utils.f", "never run"][..]),
        ("doc_to_text: !function utils.f\n", &["doc_to_text", "never run"]),
        ("output_type: guess\n", &["\"guess\"", "multiple_choice"]),
        ("metric_list: [{metric: bleu}]\n", &["\"bleu\"", "acc_norm"]),
        ("filter_list: [{name: x, filter: [{function: sort}]}]\n", &["\"sort\"", "majority_vote"]),
        ("colour: red\n", &["\"colour\" is not known"]),
        ("doc_to_text: '{{'\n", &["doc_to_text", "not valid Jinja"]),
        ("num_fewshot: -1\n", &["num_fewshot is -1"]),
        ("include: nowhere.yaml\n", &["nowhere.yaml"]),
        ("dataset_kwargs: {data_files: {train: x.jsonl}}\n", &["no file of \"test\""]),
    ] {
        let base = "task: t\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\n\
                    doc_to_target: answer\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n";
        let key = text.split(':').next().unwrap();
        let kept: String = base.lines().filter(|l| !l.starts_with(key)).map(|l| format!("{l}\n")).collect();
        std::fs::write(at("t.yaml"), format!("{kept}{text}")).unwrap();
        std::fs::write(at("rows.jsonl"), "{\"question\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 2}\n")
            .unwrap();
        fails(&at("t.yaml"), parts);
    }
    // What only a row can tell is told with its line.
    let (model, how) = (demo(), settings());
    let wrong = task(&at("rows.jsonl")).unwrap().run(&model, &how, &mut |_, _| true).unwrap_err();
    assert!(wrong.message().contains("rows.jsonl:1: the answer is 2, which is none of the 2 choices"), "{wrong}");
    let how = Settings { num_fewshot: Some(9), ..settings() };
    let wrong = task("choose").unwrap().run(&model, &how, &mut |_, _| true).unwrap_err();
    assert!(wrong.message().contains("9 examples") && wrong.message().contains("--num-shots"), "{wrong}");
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Texts beyond the context are read in windows: each token is foreseen once, and prompts are cut from the left.
#[test]
fn long_texts_are_windows_and_long_prompts_are_cut() {
    let model = demo();
    let dir = std::env::temp_dir().join(format!("lapis-evaluate-long-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let long = "The fox met the owl, and the owl was glad. ".repeat(60);
    let line = |row: Value| format!("{row}\n");
    std::fs::write(dir.join("text.jsonl"), line(serde_json::json!({"text": long}))).unwrap();
    let row = serde_json::json!({"question": long, "choices": ["yes", "no"], "answer": "no"});
    std::fs::write(dir.join("ask.jsonl"), line(row)).unwrap();
    let run =
        |name: &str| task(&dir.join(name).display().to_string()).unwrap().run(&model, &settings(), &mut |_, _| true);
    let rolled = run("text.jsonl").unwrap();
    let bits = rolled.scores.iter().find(|s| s.metric == "bits_per_byte").unwrap();
    // The losses of the first 513 tokens, and of the rest those in a window that ends with the text.
    let tokens = model.tokenizer.encode(&long, true).unwrap();
    let rest = tokens.len() - 513;
    assert!(rest > 0 && rest < 512, "{rest}");
    let windows = [tokens[..513].to_vec(), tokens[rest..].to_vec()];
    let losses = model.losses(&windows, 1, |_| true).unwrap();
    let sum: f64 = losses[..512].iter().chain(&losses[1024 - rest..]).map(|&x| f64::from(x)).sum();
    let want = sum / long.len() as f64 / std::f64::consts::LN_2;
    assert!((bits.value - want).abs() < 1e-4, "{} {want}", bits.value);
    let asked = run("ask.jsonl").unwrap();
    assert_eq!((asked.cut, asked.count, asked.scores[0].error), (1, 1, None));
    std::fs::remove_dir_all(&dir).unwrap();
}

/// As the harness's `mmlu_abstract_algebra` asks: its description, examples of the split `dev`, the letters.
#[test]
fn mmlu_is_asked_as_in_the_harness() {
    let dir = std::env::temp_dir().join(format!("lapis-mmlu-{}", std::process::id()));
    let folder = dir.join("mmlu/abstract_algebra");
    std::fs::create_dir_all(&folder).unwrap();
    let row = |question: &str, answer: u32| {
        format!(
            "{{\"question\": \"{question}\", \"subject\": \"abstract_algebra\", \"choices\": [\"0\", \"4\", \"2\", \"6\"], \"answer\": {answer}}}\n"
        )
    };
    std::fs::write(folder.join("dev.jsonl"), row(" Is one? ", 1) + &row("Is two?", 2)).unwrap();
    std::fs::write(folder.join("test.jsonl"), row("Is three? ", 3)).unwrap();
    let library = Library::new(&[], Some(dir.clone())).unwrap();
    let how = Settings { num_fewshot: Some(1), ..settings() };
    let found = library.task("mmlu_abstract_algebra").unwrap().run(&demo(), &how, &mut |_, _| true).unwrap();
    let choices = "A. 0\nB. 4\nC. 2\nD. 6\nAnswer:";
    let asked = format!(
        "The following are multiple choice questions (with answers) about abstract algebra.\n\nIs one?\n{choices} B\n\nIs three?\n{choices}"
    );
    assert_eq!(found.samples[0]["arguments"], serde_json::json!([asked]));
    assert_eq!(found.samples[0]["continuations"], serde_json::json!([" A", " B", " C", " D"]));
    assert_eq!((found.alias.as_str(), found.scores[0].metric.as_str()), ("abstract algebra", "acc"));
    // Of a group all subjects are needed.
    let error = library.tasks("mmlu_stem").err().unwrap();
    assert!(error.message().contains("mmlu_anatomy: there are no rows of \"test\""), "{error}");
    assert_eq!(library.tasks("mmlu_abstract_algebra").unwrap().len(), 1);
    assert!(library.task("mmlu_cookery").err().unwrap().message().contains("mmlu_SUBJECT"));
    std::fs::remove_dir_all(dir).unwrap();
}
