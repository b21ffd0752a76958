//! Runs on the demo model: a loss that falls, an adapter that is read, and a run that is interrupted and goes on (killed: see
//! the command line's `tests/finetune.rs`).

mod shared;

use lapis_lm::fuse::{Base, fuse};
use lapis_lm::gguf::{Kind, export};
use lapis_lm::{Adapter, LanguageModel, Options};
use lapis_train::{Data, Observer, Record, Settings, run};
use shared::Folder;
use std::path::{Path, PathBuf};

fn demo() -> LanguageModel {
    lapis_lm::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/demo-model/model")).unwrap()
}

fn lines(n: usize) -> String {
    let colours = ["green", "blue", "red", "white"];
    let row = |i: usize| {
        format!("{{\"prompt\": \"Which colour has door {i}?\", \"completion\": \"It is {}.\"}}\n", colours[i % 4])
    };
    (0..n).map(row).collect()
}

#[derive(Default)]
struct Watch {
    records: Vec<Record>,
    notes: Vec<String>,
    /// End after so many steps.
    end: Option<usize>,
    done: usize,
}

impl Observer for Watch {
    fn note(&mut self, text: &str) {
        self.notes.push(text.to_string());
    }
    fn step(&mut self, done: usize, _: usize) {
        self.done = done;
    }
    fn record(&mut self, record: &Record) {
        self.records.push(record.clone());
    }
    fn stop(&mut self) -> bool {
        self.end == Some(self.done)
    }
}

fn settings(dir: &Path) -> Settings {
    let mut s = Settings { train: true, iters: 8, batch_size: 2, learning_rate: 1e-3, seed: 3, ..Settings::default() };
    (s.steps_per_report, s.steps_per_eval, s.save_every, s.val_batches) = (2, 4, 4, 2);
    s.lora_parameters.rank = 4;
    s.adapter_path = dir.join("adapters").display().to_string();
    s.mask_prompt = true;
    s
}

fn data(dir: &Path, model: &LanguageModel, s: &Settings) -> Data {
    std::fs::write(dir.join("train.jsonl"), lines(50)).unwrap();
    std::fs::write(dir.join("valid.jsonl"), lines(8)).unwrap();
    std::fs::write(dir.join("test.jsonl"), lines(4)).unwrap();
    Data::read(dir.to_str().unwrap(), model, s, &mut |note| panic!("{note}")).unwrap()
}

#[test]
fn fifty_lines_are_learned() {
    let (dir, model) = (Folder::new("learned"), demo());
    let s = Settings { test: true, report_to: Some("tensorboard".into()), ..settings(&dir) };
    let mut watch = Watch::default();
    let outcome = run(&model, data(&dir, &model, &s), &s, false, &mut watch).unwrap();
    let losses: Vec<f32> = watch.records.iter().filter_map(|r| r.train_loss).collect();
    assert!(losses.len() == 4 && losses[3] < 0.7 * losses[0], "{losses:?}");
    let valid: Vec<f32> = watch.records.iter().filter_map(|r| r.val_loss).collect();
    assert!(valid.len() == 3 && valid[2] < valid[0], "{valid:?}");
    assert!(outcome.test_loss.unwrap() < valid[0]);
    let adapters = dir.join("adapters");
    for file in ["0000004_adapters.safetensors", "0000008_adapters.safetensors", "metrics.jsonl", "training_state.json"]
    {
        assert!(adapters.join(file).is_file(), "{file}");
    }
    let told = |r: &Record| Some((r.val_loss?, r.val_perplexity?));
    assert!(watch.records.iter().filter_map(told).all(|(loss, perplexity)| perplexity == loss.exp()));
    assert!(adapters.join("best_adapters.safetensors").is_file() && !adapters.join(".run.lock").exists());
    let page = std::fs::read_to_string(adapters.join("report.html")).unwrap();
    assert!(page.contains("<polyline") && page.contains("Which colour") && !page.contains("http"), "{page}");
    assert!(
        std::fs::read_dir(&adapters).unwrap().any(|f| f.unwrap().file_name().to_str().unwrap().contains("tfevents"))
    );
    // What was trained is what is read.
    let tuned = model.with_adapter(&Adapter::open(&adapters).unwrap()).unwrap();
    let prompt = tuned.tokenizer.encode_prompt("Which colour has door 3?").unwrap();
    let options = Options { max_tokens: Some(4), ..Options::default() };
    assert_ne!(tuned.generate(&prompt, &options).unwrap(), model.generate(&prompt, &options).unwrap());
    let rows = data(&dir, &model, &s);
    let tested = run(&tuned, rows, &Settings { train: false, ..s }, false, &mut Watch::default()).unwrap();
    assert_eq!(tested.test_loss.unwrap().to_bits(), outcome.test_loss.unwrap().to_bits());
}

/// Everything that training can have: dropout, moments, a schedule, sums of gradients that wait.
fn whole(dir: &Path) -> Settings {
    let mut s = settings(dir);
    s.fine_tune_type = "dora".into();
    s.lora_parameters.dropout = 0.3;
    s.grad_accumulation_steps = 2;
    s.warmup = 3;
    s.num_layers = 2;
    s.optimizer = "adamw".into();
    (s.iters, s.steps_per_eval, s.save_every) = (7, 3, 100);
    s
}

#[test]
fn an_interrupted_run_ends_with_the_same_bits() {
    let (dir, model) = (Folder::new("resumed"), demo());
    let s = whole(&dir);
    let file = |s: &Settings| std::fs::read(Path::new(&s.adapter_path).join("adapters.safetensors")).unwrap();
    let losses = |s: &Settings| -> Vec<(usize, Option<f32>, Option<f32>)> {
        let text = std::fs::read_to_string(Path::new(&s.adapter_path).join("metrics.jsonl")).unwrap();
        let records = text.lines().map(|l| serde_json::from_str::<Record>(l).unwrap());
        records.map(|r| (r.iteration, r.train_loss, r.val_loss)).collect()
    };
    run(&model, data(&dir, &model, &s), &s, false, &mut Watch::default()).unwrap();
    for end in [1, 3, 5] {
        let t = Settings { adapter_path: dir.join(format!("after-{end}")).display().to_string(), ..s.clone() };
        let mut watch = Watch { end: Some(end), ..Watch::default() };
        let outcome = run(&model, data(&dir, &model, &t), &t, false, &mut watch).unwrap();
        assert_eq!(outcome.steps, end);
        assert_ne!(file(&t), file(&s));
        run(&model, data(&dir, &model, &t), &t, true, &mut Watch::default()).unwrap();
        assert!(file(&t) == file(&s), "interrupted after step {end}");
        assert_eq!(losses(&t), losses(&s), "interrupted after step {end}");
    }
    // Another run is no continuation of this one.
    let other = Settings { learning_rate: 2e-3, ..s.clone() };
    let error = run(&model, data(&dir, &model, &other), &other, true, &mut Watch::default()).unwrap_err();
    assert!(error.message().contains("learning_rate is 0.002, it was 0.001"), "{error}");
}

#[test]
fn what_is_no_number_stops_with_the_last_good_state() {
    let (dir, model) = (Folder::new("nan"), demo());
    let s = Settings { learning_rate: 1e30, val_batches: 1, ..settings(&dir) };
    let error = run(&model, data(&dir, &model, &s), &s, false, &mut Watch::default()).unwrap_err();
    assert!(error.message().contains("in step 2; the weights of step 1 are in"), "{error}");
    assert!(error.message().contains("gradients are no numbers, the first that of model.layers.0."), "{error}");
    Adapter::open(&s.adapter_path).unwrap();
    let s = Settings { on_nan: "skip".into(), iters: 3, ..s };
    let mut watch = Watch::default();
    run(&model, data(&dir, &model, &s), &s, false, &mut watch).unwrap();
    assert_eq!(watch.notes.iter().filter(|n| n.contains(": skipped")).count(), 2, "{:?}", watch.notes);
    // Not for ever.
    let mut watch = Watch::default();
    let s = Settings { iters: 50, steps_per_eval: 100, ..s };
    let error = run(&model, data(&dir, &model, &s), &s, false, &mut watch).unwrap_err();
    assert_eq!(watch.notes.iter().filter(|n| n.contains(": skipped")).count(), 10, "{:?}", watch.notes);
    assert!(error.message().contains("in step 12;") && error.message().contains("10 steps before it"), "{error}");
}

#[test]
fn the_best_is_kept_and_said_where_it_is_not_the_last() {
    let (dir, model) = (Folder::new("best"), demo());
    let s = Settings { learning_rate: 3e-3, steps_per_eval: 2, iters: 6, ..settings(&dir) };
    run(&model, data(&dir, &model, &s), &s, false, &mut Watch::default()).unwrap();
    let best = Path::new(&s.adapter_path).join("best_adapters.safetensors");
    assert!(best.is_file());
    // The best of another run goes; nothing is better than no step at all with such a rate.
    let s = Settings { learning_rate: 0.5, ..s };
    let mut watch = Watch::default();
    run(&model, data(&dir, &model, &s), &s, false, &mut watch).unwrap();
    assert!(!best.exists() && watch.notes[0].contains("no validation was better than the first"), "{:?}", watch.notes);
    // From weights that were learned, the first validations are the best.
    let s = Settings { learning_rate: 2e-3, warmup: 40, iters: 12, ..s };
    let mut watch = Watch::default();
    run(&model, data(&dir, &model, &s), &s, false, &mut watch).unwrap();
    let valid: Vec<f32> = watch.records.iter().filter_map(|r| r.val_loss).collect();
    let least = valid.iter().copied().fold(f32::INFINITY, f32::min);
    let is_last = valid.last() == Some(&least);
    assert_eq!(
        watch.notes.iter().any(|n| n.contains("--patience stops there")),
        !is_last,
        "{valid:?} {:?}",
        watch.notes
    );
}

#[test]
fn prompts_are_answered_at_each_validation() {
    let (dir, model) = (Folder::new("prompts"), demo());
    std::fs::write(dir.join("prompts.txt"), "Which colour has door 3?\n").unwrap();
    let prompts = Some(dir.join("prompts.txt").display().to_string());
    let s = Settings { eval_prompts: prompts, ..settings(&dir) };
    let mut watch = Watch::default();
    run(&model, data(&dir, &model, &s), &s, false, &mut watch).unwrap();
    let texts: Vec<_> = watch.records.iter().filter(|r| r.val_loss.is_some()).map(|r| r.texts.clone()).collect();
    assert!(texts.len() == 3 && texts.iter().all(|t| t.len() == 1), "{texts:?}");
    assert!(texts[0][0].prompt.contains("door 3") && texts[0] != texts[2], "{texts:?}");
    let page = std::fs::read_to_string(Path::new(&s.adapter_path).join("report.html")).unwrap();
    assert!(page.contains("Texts after step 0") && page.contains("Texts after step 7"), "{page}");
    // What a model writes on the way changes nothing.
    let t = Settings { eval_prompts: None, adapter_path: dir.join("plain").display().to_string(), ..s.clone() };
    run(&model, data(&dir, &model, &t), &t, false, &mut Watch::default()).unwrap();
    let file = |s: &Settings| std::fs::read(Path::new(&s.adapter_path).join("adapters.safetensors")).unwrap();
    assert!(file(&t) == file(&s));
}

#[test]
fn what_would_end_a_run_is_told_before_it_begins() {
    let (dir, model) = (Folder::new("before"), demo());
    let s = Settings { test: true, batch_size: 5, ..settings(&dir) };
    let begin = |s: &Settings| run(&model, data(&dir, &model, s), s, false, &mut Watch::default()).unwrap_err();
    let error = begin(&s);
    assert!(
        error.message().contains("the test set has 4 samples") && error.message().contains("--batch-size 4"),
        "{error}"
    );
    let error = begin(&Settings { batch_size: 9, test: false, ..s.clone() });
    assert!(error.message().contains("the valid set has 8 samples"), "{error}");
    for (odd, says) in [
        (Settings { iters: 0, ..s.clone() }, "iters is 0"),
        (Settings { test_batches: 0, ..s.clone() }, "test_batches is 0; 1 is the least, and -1 takes all"),
    ] {
        assert!(begin(&odd).message().contains(says));
    }
    let adapters = PathBuf::from(&s.adapter_path);
    assert!(!adapters.exists());
    // Two runs at once.
    std::fs::create_dir(&adapters).unwrap();
    let lock = lapis::io::atomic::Lock::take(adapters.join(".run.lock"), "in this directory").unwrap();
    let s = Settings { test: false, batch_size: 2, val_batches: 0, iters: 1, ..s };
    let error = begin(&s);
    assert!(
        error.message().contains(&format!("process {} is writing in this directory", std::process::id())),
        "{error}"
    );
    assert!(!adapters.join("adapter_config.json").exists());
    drop(lock);
    // Nothing is validated where nothing is asked for.
    let mut watch = Watch::default();
    run(&model, data(&dir, &model, &s), &s, false, &mut watch).unwrap();
    assert!(watch.records.len() == 1 && watch.records[0].val_loss.is_none(), "{:?}", watch.records);
}

#[test]
fn early_stopping_keeps_the_best() {
    let (dir, model) = (Folder::new("early"), demo());
    let s = Settings { learning_rate: 0.5, patience: Some(1), steps_per_eval: 1, iters: 20, ..settings(&dir) };
    let mut watch = Watch::default();
    let outcome = run(&model, data(&dir, &model, &s), &s, false, &mut watch).unwrap();
    assert!(outcome.steps < 20 && watch.notes[0].contains("the weights of that one are kept"), "{:?}", watch.notes);
    let read = |name: &str| std::fs::read(Path::new(&s.adapter_path).join(name)).unwrap();
    assert!(read("adapters.safetensors") == read("best_adapters.safetensors"));
}

#[test]
fn bad_rows_and_settings_are_named() {
    let (dir, model) = (Folder::new("bad"), demo());
    let s = settings(&dir);
    let fails = |text: &str| {
        std::fs::write(dir.join("train.jsonl"), text).unwrap();
        Data::read(dir.to_str().unwrap(), &model, &s, &mut |_| {}).unwrap_err().message().to_string()
    };
    let good = lines(2);
    for (line, why) in [
        ("{\"prompt\": ", "EOF while parsing a value in column 11"),
        ("[1]", "no JSON object"),
        ("{\"question\": \"?\"}", "the row has \"question\"; it needs"),
        ("{\"text\": \"a\"}", "a file has one format"),
        ("{\"prompt\": \"a\", \"completion\": 3}", "\"completion\" is no text"),
        ("{\"prompt\": \"a\", \"completion\": \"b\", \"tools\": 3}", "\"tools\" is no list"),
    ] {
        let error = fails(&format!("{good}\n{line}\n"));
        assert!(error.contains("train.jsonl:4: ") && error.contains(why), "{error}");
    }
    let error = fails(&"{\"prompt\": 1}\n".repeat(7));
    let last = error.lines().last().unwrap();
    assert!(
        error.lines().count() == 6 && error.contains("train.jsonl:5: ") && last.contains("7 rows are bad"),
        "{error}"
    );
    assert!(fails("").contains("holds no sample"));
    std::fs::write(dir.join("train.jsonl"), [good.as_bytes(), b"{\"prompt\": \"\xff\"}\n"].concat()).unwrap();
    let error = Data::read(dir.to_str().unwrap(), &model, &s, &mut |_| {}).unwrap_err();
    assert!(error.message().contains("train.jsonl:3: the line is not UTF-8"), "{error}");
    // Some editors write a mark before the text.
    for (name, text) in
        [("train.jsonl", format!("\u{feff}{good}")), ("train.csv", "\u{feff}prompt,completion\na,b\n".into())]
    {
        std::fs::remove_file(dir.join("train.jsonl")).unwrap_or_default();
        std::fs::write(dir.join(name), text).unwrap();
        assert!(!Data::read(dir.to_str().unwrap(), &model, &s, &mut |_| {}).unwrap().train.is_empty(), "{name}");
    }
    std::fs::remove_file(dir.join("train.csv")).unwrap();
    std::fs::write(dir.join("train.jsonl"), "").unwrap();
    std::fs::remove_file(dir.join("train.jsonl")).unwrap();
    assert!(Data::read(dir.to_str().unwrap(), &model, &s, &mut |_| {}).unwrap_err().message().contains("there is no "));

    std::fs::write(dir.join("train.jsonl"), lines(4)).unwrap();
    let mut notes = Vec::new();
    let short = Settings { max_seq_length: 12, mask_prompt: false, ..s.clone() };
    let rows = Data::read(dir.to_str().unwrap(), &model, &short, &mut |note| notes.push(note.to_string())).unwrap();
    assert!(notes.iter().any(|n| n.contains("4 of 4 samples are longer than 12 tokens")), "{notes:?}");
    let (long, path) = (|on: &str| Settings { on_long: on.into(), ..short.clone() }, dir.to_str().unwrap());
    for (on, why) in [("error", "--on-long cut or skip"), ("skip", "holds no sample")] {
        let error = Data::read(path, &model, &long(on), &mut |_| {}).unwrap_err();
        assert!(error.message().contains(why), "{error}");
    }
    let mut odd = s.clone();
    odd.lora_parameters.keys = Some(vec!["self_attn.q_proj".into(), "mlp.q_proj".into()]);
    let error = run(&model, rows.clone(), &odd, false, &mut Watch::default()).unwrap_err();
    assert!(error.message().contains("no layer \"mlp.q_proj\"; it has mlp.down_proj, mlp.gate_proj"), "{error}");
    let odd = Settings { batch_size: 9, ..s.clone() };
    let error = run(&model, rows, &odd, false, &mut Watch::default()).unwrap_err();
    assert!(error.message().contains("give --batch-size 4 or less"), "{error}");
    let mut odd = s;
    let error = odd.set("lora_parameters", serde_json::json!({"rank": 8, "alpha": 16})).unwrap_err();
    assert!(error.message().contains("scale: alpha / rank"), "{error}");
    assert!(odd.set("batchsize", 3.into()).unwrap_err().message().contains("nearest are batch_size, "));
    odd.set("optimizer", "AdamW".into()).unwrap();
    assert_eq!(odd.optimizer, "adamw");
    assert!(odd.set("iters", "many".into()).unwrap_err().message().contains("iters"));
}

#[test]
fn chats_with_tools_and_texts() {
    let (dir, model) = (Folder::new("formats"), demo());
    let s = settings(&dir);
    let read = |text: &str, s: &Settings| {
        std::fs::write(dir.join("train.jsonl"), text).unwrap();
        Data::read(dir.to_str().unwrap(), &model, s, &mut |_| {}).unwrap().train
    };
    let chat = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Ho\"}], \
                \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {}}}]}\n";
    let rows = read(chat, &s);
    let text = |ids: &[u32]| model.tokenizer.decode(ids, false).unwrap();
    assert_eq!(text(&rows[0].tokens[rows[0].offset..]), "Ho<|im_end|>\n");
    let same = "{\"prompt\": \"Hi\", \"completion\": \"Ho\"}\n";
    assert_eq!(read(same, &s), rows);
    let plain = Settings { mask_prompt: false, ..s };
    let rows = read("{\"text\": \"Once\"}\n", &plain);
    assert_eq!((text(&rows[0].tokens).as_str(), rows[0].offset), ("Once<|im_end|>", 0));
}

/// What a fused model foresees, and the same model as a GGUF file.
#[test]
fn fused_and_exported() {
    let (dir, model) = (Folder::new("fused"), demo());
    let s = Settings { iters: 4, ..settings(&dir) };
    run(&model, data(&dir, &model, &s), &s, false, &mut Watch::default()).unwrap();
    let tuned = model.with_adapter(&Adapter::open(&s.adapter_path).unwrap()).unwrap();
    let window = vec![tuned.tokenizer.encode("Which colour has door 3? It is blue, says the old fox.", false).unwrap()];
    let far = |a: &LanguageModel, b: &LanguageModel| {
        let losses = |m: &LanguageModel| m.losses(&window, 1, |_| true).unwrap();
        losses(a).iter().zip(losses(b)).map(|(a, b)| (a - b).abs()).sum::<f32>() / (window[0].len() - 1) as f32
    };
    assert!(far(&tuned, &model) > 0.1);
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/demo-model/model");
    let plain = dir.join("plain");
    let report = fuse(Base::Path(&base), Path::new(&s.adapter_path), &plain, true, |_: &str| {}).unwrap().unwrap();
    assert_eq!((report.layers, report.loss()), (28, None));
    let fused = lapis_lm::load(&plain).unwrap();
    assert!(far(&tuned, &fused) < 1e-3, "{}", far(&tuned, &fused));
    assert!(fuse(Base::Path(&base), Path::new(&s.adapter_path), &plain, true, |_: &str| {}).is_err());
    // Packed again: rounding takes a part of the change.
    let report =
        fuse(Base::Path(&base), Path::new(&s.adapter_path), &dir.join("packed"), false, |_: &str| {}).unwrap().unwrap();
    let packed = lapis_lm::load(dir.join("packed")).unwrap();
    assert!(report.loss().unwrap() > 0.01 && far(&packed, &fused) < far(&model, &fused), "{:?}", report.loss());
    for (kind, bound) in [(Kind::F32, 1e-3), (Kind::F16, 0.02), (Kind::Q8_0, 0.1)] {
        let file = dir.join("model.gguf");
        export(&plain, &file, kind).unwrap();
        let read = lapis_lm::load(&file).unwrap();
        assert_eq!(
            read.tokenizer.encode("Ho <|im_end|> 12", true).unwrap(),
            fused.tokenizer.encode("Ho <|im_end|> 12", true).unwrap()
        );
        assert!(far(&read, &fused) < bound, "{kind:?}: {}", far(&read, &fused));
    }
}

fn pairs(n: usize) -> String {
    let row = |i: usize| {
        format!(
            "{{\"prompt\": \"Which colour has door {i}?\", \"chosen\": \"It is green.\", \"rejected\": \"I do not know that.\"}}\n"
        )
    };
    (0..n).map(row).collect()
}

#[test]
fn preferences_are_learned_and_taken_up_again() {
    let model = demo();
    for mode in ["dpo", "orpo"] {
        let dir = Folder::new(mode);
        std::fs::write(dir.join("train.jsonl"), pairs(20)).unwrap();
        std::fs::write(dir.join("valid.jsonl"), pairs(4)).unwrap();
        let s = Settings { train_mode: mode.into(), mask_prompt: false, ..settings(&dir) };
        let read = |s: &Settings| Data::read(dir.to_str().unwrap(), &model, s, &mut |note| panic!("{note}")).unwrap();
        let mut watch = Watch::default();
        run(&model, read(&s), &s, false, &mut watch).unwrap();
        let margins: Vec<(f32, f32)> =
            watch.records.iter().filter_map(|r| Some((r.reward_margin?, r.reward_accuracy?))).collect();
        let (first, last) = (margins[0], margins[margins.len() - 1]);
        assert!(last.0 > first.0 && last.0 > 0.0 && last.1 == 1.0, "{mode}: {margins:?}");
        let valid: Vec<f32> = watch.records.iter().filter_map(|r| r.val_loss).collect();
        assert!(valid[valid.len() - 1] < valid[0], "{mode}: {valid:?}");
        let t = Settings { adapter_path: dir.join("again").display().to_string(), ..s.clone() };
        run(&model, read(&t), &t, false, &mut Watch { end: Some(3), ..Watch::default() }).unwrap();
        run(&model, read(&t), &t, true, &mut Watch::default()).unwrap();
        let file = |s: &Settings| std::fs::read(Path::new(&s.adapter_path).join("adapters.safetensors")).unwrap();
        assert!(file(&t) == file(&s), "{mode}: resumed");
    }
}

#[test]
fn pairs_come_as_texts_or_messages_and_bad_ones_are_named() {
    let (dir, model) = (Folder::new("pairs"), demo());
    let s = Settings { train_mode: "dpo".into(), ..settings(&dir) };
    let read = |text: &str, s: &Settings| {
        std::fs::write(dir.join("train.jsonl"), text).unwrap();
        Data::read(dir.to_str().unwrap(), &model, s, &mut |_| {}).map(|d| d.train)
    };
    let question = r#"{"role": "user", "content": "Which colour?"}"#;
    let answer = |text: &str| format!(r#"{{"role": "assistant", "content": "{text}"}}"#);
    let (good, bad) = (answer("Green."), answer("No."));
    let forms = [
        r#"{"prompt": "Which colour?", "chosen": "Green.", "rejected": "No."}"#.to_string(),
        format!(r#"{{"prompt": [{question}], "chosen": [{good}], "rejected": [{bad}]}}"#),
        format!(r#"{{"chosen": [{question}, {good}], "rejected": [{question}, {bad}]}}"#),
    ];
    let all: Vec<_> = forms.iter().map(|row| read(row, &s).unwrap()).collect();
    let rejected = all[0][0].rejected.as_deref().unwrap();
    assert_eq!(all[0][0].tokens[..all[0][0].offset], rejected.tokens[..rejected.offset]);
    assert!(all[0][0].offset > 0 && all[0] == all[1] && all[0] == all[2], "{all:?}");
    let said = |text: &str, s: &Settings| read(text, s).unwrap_err().message().to_string();
    let e = said(&format!("{}\n{}", forms[0], r#"{"prompt": "a", "completion": "b"}"#), &s);
    assert!(e.contains("train.jsonl:2") && e.contains("--train-mode dpo"), "{e}");
    let e = said(r#"{"prompt": "a", "chosen": 1, "rejected": "b"}"#, &s);
    assert!(e.contains("train.jsonl:1") && e.contains("\"chosen\" is neither a text nor a list"), "{e}");
    let e = said(&forms[0], &settings(&dir));
    assert!(e.contains("--train-mode dpo or orpo"), "{e}");
    let bad = |s: Settings| s.check().unwrap_err().message().to_string();
    assert!(bad(Settings { beta: 0.0, ..s.clone() }).contains("beta is 0"));
    assert!(bad(Settings { train: false, test: true, ..s }).contains("before training"));
}
