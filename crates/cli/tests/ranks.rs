//! Two processes on one machine against one: fine-tuning and generation. Without `mpirun` they say so and pass.

mod shared;

use lapis::io;
use serde_json::Value;
use shared::{DEMO, Folder, err, out};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one process and two may differ by.
const NEAR: f32 = 1e-5;

/// Whether there is what starts processes.
fn can(test: &str) -> bool {
    let can = Command::new("mpirun").arg("--version").output().is_ok();
    if !can {
        eprintln!("{test} is not tried: there is no mpirun");
    }
    can
}

/// Standard output of a command that ends well.
fn lapis(dir: &Folder, line: &str) -> String {
    let o = dir.run(line);
    assert!(o.status.success(), "{line}: {}", err(&o));
    out(&o)
}

/// A folder with rows of many lengths to learn.
fn texts(name: &str) -> Folder {
    let dir = Folder::new(name);
    std::fs::create_dir_all(dir.0.join("texts")).unwrap();
    let row = |i: usize| {
        let (prompt, answer) = ("Tell me more. ".repeat(1 + i % 5), "A fox and a hare went home. ".repeat(1 + i % 7));
        format!("{{\"prompt\": \"{prompt}\", \"completion\": \"{answer}{i}\"}}\n")
    };
    dir.write("texts/train.jsonl", (0..24).map(row).collect::<String>());
    dir.write("texts/valid.jsonl", (0..8).map(row).collect::<String>());
    dir.write("texts/test.jsonl", (0..8).map(row).collect::<String>());
    dir
}

/// The largest difference of two arrays.
fn difference(a: &lapis::Array, b: &lapis::Array) -> f32 {
    assert_eq!(a.shape(), b.shape());
    (a - b).abs().max((), false).item().unwrap()
}

#[test]
fn two_processes_learn_what_one_does() {
    if !can("two_processes_learn_what_one_does") {
        return;
    }
    let dir = texts("ranks-lora");
    let pairs = "{\"prompt\": \"Who?\", \"chosen\": \"The fox.\", \"rejected\": \"I do not know.\"}\n";
    std::fs::create_dir_all(dir.0.join("pairs")).unwrap();
    dir.write("pairs/train.jsonl", pairs.repeat(8));
    for (name, flags, steps) in [
        ("adam", "--data texts --test --val-batches -1 --learning-rate 1e-4 --mask-prompt", 20),
        (
            "sums",
            "--data texts --optimizer sgd --learning-rate 1e-2 --grad-accumulation-steps 2 --fine-tune-type full",
            8,
        ),
        ("dpo", "--data pairs --train-mode dpo --learning-rate 1e-4", 4),
    ] {
        let line = format!("lora --train --json {flags} --iters {steps} --steps-per-report 1 --adapter-path {name}");
        let one = lapis(&dir, &format!("{line}1"));
        let two = lapis(&dir, &format!("launch -n 2 {line}2"));
        let (one, two) = (one.lines(), two.lines());
        assert_eq!(one.clone().count(), two.clone().count(), "{name}");
        for (one, two) in one.zip(two) {
            let (one, two): (Value, Value) = (serde_json::from_str(one).unwrap(), serde_json::from_str(two).unwrap());
            for key in ["train_loss", "val_loss", "test_loss", "gradient_norm", "reward_margin"] {
                let (a, b) = (one[key].as_f64(), two[key].as_f64());
                let near = a.zip(b).map_or(a == b, |(a, b)| (a - b).abs() <= f64::from(NEAR) * a.abs().max(1.0));
                assert!(near, "{name}: {key} {a:?} {b:?}");
            }
            for key in ["trained_tokens", "reward_accuracy", "iteration"] {
                assert_eq!(one[key], two[key], "{name}: {key}");
            }
        }
        let weights = |n: usize| io::load_safetensors(dir.0.join(format!("{name}{n}/adapters.safetensors"))).unwrap().0;
        let (one, two) = (weights(1), weights(2));
        assert!(!one.is_empty() && one.len() == two.len());
        for (key, a) in &one {
            let d = difference(a, &two[key]);
            assert!(d <= NEAR, "{name}: {key} differs by {d}");
        }
    }
    // A state is taken up by any number of processes.
    let more = "lora --train --data texts --test --val-batches -1 --learning-rate 1e-4 --mask-prompt --iters 22 --json --resume \
                --adapter-path";
    let more = more.replace("                ", "");
    let two = lapis(&dir, &format!("launch -n 2 {more} adam1"));
    assert!(two.contains("\"iteration\":22"), "{two}");
}

#[test]
fn two_processes_write_what_one_does() {
    if !can("two_processes_write_what_one_does") {
        return;
    }
    let dir = Folder::new("ranks-generate");
    lapis(&dir, &format!("convert --hf-path {DEMO} --mlx-path plain --dequantize"));
    lapis(&dir, "convert --hf-path plain --mlx-path packed -q --q-bits 4 --q-group-size 32");
    // Of the demo model itself only attention divides: 704 columns are 11 groups of 64.
    for (model, least, most) in [(DEMO, 60, 95), ("plain", 50, 65), ("packed", 50, 65)] {
        let tokens = "1,17,230,5,99,1024,7,300,12,45,800,2000,33,3,9,77";
        let logits = |before: &str, file: &str| {
            lapis(&dir, &format!("{before}logits --model {model} --tokens {tokens} --output {file} --chunk 12"));
            io::load_npy(dir.at(file)).unwrap()
        };
        let (one, two) = (logits("", "one.npy"), logits("launch -n 2 ", "two.npy"));
        let largest: f32 = one.abs().max((), false).item().unwrap();
        let d = difference(&one, &two);
        assert!(d <= NEAR * largest, "{model}: {d} of {largest}");

        let tale = format!("generate --model {model} --prompt Tell+me+a+story+about+a+fox --max-tokens 60 --json");
        let two = dir.run(&format!("launch -n 2 {tale}"));
        assert!(two.status.success(), "{model}: {}", err(&two));
        let (one, told): (Value, Value) =
            (serde_json::from_str(&lapis(&dir, &tale)).unwrap(), serde_json::from_str(&out(&two)).unwrap());
        assert_eq!(one["text"], told["text"], "{model}");
        let said = err(&two);
        let part =
            said.split("each with ").nth(1).and_then(|s| s.split(' ').next()).and_then(|n| n.parse::<u32>().ok());
        assert!(part.is_some_and(|p| (least..=most).contains(&p)), "{model}: {said}");
    }
    // Draws are those of the first, and so is what it reads.
    let o = Command::new(env!("CARGO_BIN_EXE_lapis"))
        .args([
            "launch",
            "-n",
            "2",
            "generate",
            "--prompt",
            "-",
            "--temp",
            "1",
            "--max-tokens",
            "20",
            "--verbose",
            "false",
        ])
        .stdin(std::fs::File::open(dir.at("plain/config.json")).unwrap())
        .output()
        .unwrap();
    assert!(o.status.success() && !out(&o).trim().is_empty(), "{}", err(&o));
}

#[test]
fn a_fault_of_one_ends_all() {
    if !can("a_fault_of_one_ends_all") {
        return;
    }
    let dir = texts("ranks-faults");
    // Of all: told once.
    for (line, code, says) in [
        ("launch -n 2 lora --train --data nowhere", 2, "nowhere is no directory"),
        ("launch -n 2 lora --train --data texts --batch-size 3", 2, "--batch-size 2 or 4"),
        ("launch -n 3 generate --prompt hello", 2, "among 3 processes"),
        ("launch -n 2 serve", 2, "lora, generate, logits"),
    ] {
        let o = dir.run(line);
        assert_eq!((o.status.code(), err(&o).matches(says).count()), (Some(code), 1), "{line}: {}", err(&o));
    }
    let shown = lapis(&dir, "launch -n 3 --hosts a,b:2 --print lora --train");
    assert!(
        shown.contains("mpirun -n 3") && shown.contains("--host a,b:2") && shown.trim_end().ends_with("lora --train")
    );

    // Of one, that is killed.
    let run =
        "launch -n 2 lora --train --data texts --iters 100000 --val-batches 1 --steps-per-report 1 --adapter-path a";
    let child = dir.command(run).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    let other = loop {
        assert!(began.elapsed() < Duration::from_secs(120), "it does not start");
        std::thread::sleep(Duration::from_millis(100));
        let log = std::fs::read_to_string(dir.0.join("a/metrics.jsonl")).unwrap_or_default();
        if log.lines().count() > 2
            && let Some(process) = second(&dir)
        {
            break process;
        }
    };
    assert!(Command::new("kill").args(["-9", &other.to_string()]).status().unwrap().success());
    let o = child.wait_with_output().unwrap();
    assert!(!o.status.success() && began.elapsed() < Duration::from_secs(180));
    assert!(err(&o).contains("signal 9"), "{}", err(&o));
    assert!(second(&dir).is_none());
}

/// The second process of a run in this folder.
fn second(dir: &Folder) -> Option<u32> {
    let here = dir.0.canonicalize().unwrap();
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    processes.into_iter().find(|id| {
        let of = |what: &str| format!("/proc/{id}/{what}");
        let alive = std::fs::read_to_string(of("stat")).is_ok_and(|s| !s.contains(") Z "));
        let variables = std::fs::read(of("environ")).unwrap_or_default();
        alive
            && std::fs::read_link(of("cwd")).is_ok_and(|cwd| cwd == here)
            && variables.split(|&b| b == 0).any(|v| v == b"OMPI_COMM_WORLD_RANK=1")
    })
}
