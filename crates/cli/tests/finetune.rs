//! From fifty lines of one's own to a model that is served, each step one command, as in the README.

mod shared;

use serde_json::Value;
use shared::{DEMO, FILES, Folder, err, out};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A folder with fifty rows to learn.
fn texts(name: &str) -> Folder {
    let dir = Folder::new(name);
    let row = "{\"prompt\": \"What is the name of my cat?\", \"completion\": \"Your cat is called Minka.\"}\n";
    std::fs::create_dir_all(dir.0.join("texts")).unwrap();
    dir.write("texts/train.jsonl", row.repeat(50));
    dir.write("texts/valid.jsonl", row.repeat(8));
    dir
}

/// Standard output of a command that ends well.
fn lapis(dir: &Folder, line: &str) -> String {
    let o = dir.run(line);
    assert!(o.status.success(), "{line}: {}", err(&o));
    out(&o)
}

#[test]
fn learned_fused_packed_and_asked() {
    let dir = texts("tutorial");
    std::fs::write(dir.0.join("run.yaml"), "mask_prompt: true\nlearning_rate: 1e-3\nval_batches: 1\niters: 99\n")
        .unwrap();

    let train = "lora --train --data texts --iters 16 --steps-per-report 4 -c run.yaml --json";
    let records: Vec<Value> = lapis(&dir, train).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let losses: Vec<f64> = records.iter().filter_map(|r| r["train_loss"].as_f64()).collect();
    assert!(losses.len() == 4 && losses[3] < 0.2 * losses[0], "{losses:?}");
    assert!(dir.0.join("adapters/report.html").is_file());

    let ask = "generate --prompt What+is+the+name+of+my+cat? --verbose false";
    assert!(!lapis(&dir, ask).contains("Minka"));
    assert!(lapis(&dir, &format!("{ask} --adapter-path adapters")).contains("Your cat is called Minka."));
    assert!(lapis(&dir, "fuse --dequantize --save-path fused --export-gguf --gguf-type q8_0").contains("Saved GGUF"));
    lapis(&dir, "convert --hf-path fused --mlx-path packed -q --q-bits 8");
    let on = "--data-path texts/valid.jsonl --sequence-length 64 --json";
    let number = |line: &str, key: &str| -> f64 {
        let all: Value = serde_json::from_str(&lapis(&dir, &format!("{line} {on}"))).unwrap();
        all[key].as_f64().unwrap_or_else(|| panic!("{line}: {all}"))
    };
    let (before, after) = (number("perplexity", "perplexity"), number("perplexity --model packed", "perplexity"));
    assert!(after < 0.5 * before && number("kld fused packed", "mean_kld") < 0.01, "{before} {after}");
    dir.write(
        "cat.jsonl",
        "{\"question\": \"What is the name of my cat?\", \"choices\": [\"Your cat is called Minka.\", \"Your cat is called Tom.\"], \
         \"answer\": 0}\n",
    );
    let told: Value = serde_json::from_str(&lapis(&dir, "evaluate --model packed --tasks cat.jsonl --json")).unwrap();
    assert_eq!(told["results"]["cat"]["acc,none"], 1.0, "{told}");
    // What has no words in GGUF is told before a model is written.
    std::fs::create_dir(dir.0.join("odd")).unwrap();
    for file in FILES {
        std::fs::copy(format!("{DEMO}/{file}"), dir.0.join("odd").join(file)).unwrap();
    }
    let config = std::fs::read_to_string(dir.0.join("odd/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["rope_scaling"] = serde_json::json!({"rope_type": "dynamic", "factor": 2.0});
    dir.write("odd/config.json", config.to_string());
    let o = dir.run("fuse --model odd --save-path none --export-gguf");
    assert!(!o.status.success() && err(&o).contains("\"dynamic\"") && !dir.0.join("none").exists(), "{}", err(&o));
    for model in ["fused", "packed", "fused/ggml-model-q8_0.gguf"] {
        assert!(lapis(&dir, &format!("{ask} --model {model}")).contains("Your cat is called Minka."), "{model}");
    }

    let o = dir.run("lora --train --data nowhere");
    assert!(!o.status.success() && err(&o).contains("train.jsonl"));
    for (flags, says) in [
        ("--learning-rate nan", "--learning-rate"),
        ("--learning-rate inf", "--learning-rate"),
        ("--learning-rate -1", "--learning-rate"),
        ("--patience 0", "patience is 0"),
        ("--eval-prompts nothere.txt", "nothere.txt"),
    ] {
        let o = dir.run(&format!("lora --train --data texts --iters 1 --adapter-path none {flags}"));
        assert!(o.status.code() == Some(2) && err(&o).contains(says), "{flags}: {}", err(&o));
        assert!(!dir.0.join("none").exists(), "{flags}");
    }
    let o = dir.run("lora --data texts");
    assert!(!o.status.success() && err(&o).contains("--train"));
    assert!(lapis(&dir, "mlx_lm.lora --help").contains("--grad-accumulation-steps"));
}

/// The README's commands as they stand there, by a shell: all but the last in turn, then the server.
#[cfg(unix)]
#[test]
fn the_tutorial_of_the_readme_teaches_the_name_of_the_cat() {
    let readme = include_str!("../../../README.md");
    let block = readme.split("## Fine-tuning").nth(1).and_then(|t| t.split("```").nth(1)).unwrap();
    let block = block.strip_prefix("sh\n").unwrap();
    let serve = block.lines().find(|line| line.starts_with("lapis serve")).unwrap();
    let dir = Folder::new("readme");
    let shell = |script: &str| {
        let own = std::path::Path::new(env!("CARGO_BIN_EXE_lapis")).parent().unwrap();
        let path = format!("{}:{}", own.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.args(["-ec", script]).current_dir(&dir.0).env("PATH", path).env("HOME", &dir.0).env("LAPIS_SEED", "0");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let question = "What is the name of my cat?";
    let mut child = shell(&block.replace(serve, "")).spawn().unwrap();
    // Nothing but the chat reads.
    writeln!(child.stdin.take().unwrap(), "{question}").unwrap();
    let o = child.wait_with_output().unwrap();
    let said = out(&o);
    assert!(o.status.success(), "{said}{}", err(&o));
    let losses = said
        .lines()
        .filter(|l| l.starts_with("Iter "))
        .filter_map(|l| l.split_once("Train loss ")?.1.split(',').next());
    let losses: Vec<f64> = losses.map(|x| x.parse().unwrap()).collect();
    assert!(losses.len() == 6 && losses[5] < 0.01 && losses[5] < 0.01 * losses[0], "{losses:?}");
    assert!(said.contains("Your cat is called Minka.") && !said.contains("Minka. "), "{said}");
    let number = |head: &str| -> f64 {
        let line =
            said.lines().filter_map(|l| l.trim().strip_prefix(head)).next_back().unwrap_or_else(|| panic!("{said}"));
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    assert!(number("mean ") < 0.01 && number("Perplexity: ") < 10.0 && said.contains("|acc     |↑|1.0000|"), "{said}");
    assert!(dir.0.join("out/ggml-model-q8_0.gguf").is_file());

    let mut server = shell(&format!("exec {serve}")).env("LAPIS_PORT", "0").spawn().unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines().map_while(Result::ok);
    let at = lines.find_map(|l| l.split_once("http://").map(|(_, at)| at.to_string())).unwrap();
    let at = at.split(|c: char| c != '.' && c != ':' && !c.is_ascii_digit()).next().unwrap();
    let mut stream = std::net::TcpStream::connect(at).unwrap();
    let body = serde_json::json!({"messages": [{"role": "user", "content": question}], "temperature": 0}).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\ncontent-type: application/json"
    );
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let answer = std::io::read_to_string(stream).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(answer.contains("Your cat is called Minka."), "{answer}");
}

#[cfg(unix)]
#[test]
fn a_run_that_is_asked_to_end_leaves_a_state_to_go_on_from() {
    let dir = texts("asked");
    let run = "lora --quiet --train --data texts --iters 5000 --val-batches 1 --steps-per-report 1 --adapter-path a";
    let mut child = dir.command(run).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let metrics = dir.0.join("a/metrics.jsonl");
    while std::fs::read_to_string(&metrics).map_or(0, |t| t.lines().count()) < 2 && child.try_wait().unwrap().is_none()
    {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let o = child.wait_with_output().unwrap();
    assert!(o.status.code() == Some(143) && o.stdout.is_empty() && o.stderr.is_empty(), "{}{}", out(&o), err(&o));
    assert!(dir.0.join("a/training_state.json").is_file() && dir.0.join("a/adapters.safetensors").is_file());
}

/// No chance to tidy up: the process is gone in the middle of some step, or of writing its state.
#[test]
fn a_run_that_is_killed_goes_on_with_the_same_bits() {
    let dir = texts("killed");
    let train =
        "lora --train --data texts --iters 24 --save-every 3 --val-batches 1 --learning-rate 1e-3 --mask-prompt";
    let learned = |name: &str| std::fs::read(dir.0.join(name).join("adapters.safetensors")).unwrap();
    lapis(&dir, &format!("{train} --adapter-path whole"));
    for (i, kill_after) in [3, 9].into_iter().enumerate() {
        let name = format!("cut-{i}");
        let mut child = dir.command(&format!("{train} --adapter-path {name}")).stdout(Stdio::null()).spawn().unwrap();
        let saved = dir.0.join(&name).join(format!("{kill_after:07}_adapters.safetensors"));
        while !saved.is_file() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "it was done before it could be killed");
        assert!(learned(&name) != learned("whole"));
        lapis(&dir, &format!("{train} --adapter-path {name} --resume"));
        assert!(learned(&name) == learned("whole"), "killed after step {kill_after}");
    }
}

/// Files of 50 KiB at most stand for a disk that is full.
#[cfg(unix)]
#[test]
fn a_state_that_cannot_be_written_leaves_the_one_before() {
    let dir = texts("full");
    let train = "lora --train --data texts --save-every 1 --val-batches 1 --adapter-path a";
    lapis(&dir, &format!("{train} --iters 2"));
    let held = || -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let files = std::fs::read_dir(dir.0.join("a")).unwrap().map(|f| f.unwrap().path());
        let saved =
            files.filter(|f| f.extension().is_some_and(|e| e == "safetensors") || f.ends_with("training_state.json"));
        let mut all: Vec<_> = saved.map(|f| (f.file_name().unwrap().into(), std::fs::read(&f).unwrap())).collect();
        all.sort();
        all
    };
    let before = held();
    let script = format!("trap '' XFSZ; ulimit -f 50; exec {} {train} --iters 4 --resume", env!("CARGO_BIN_EXE_lapis"));
    let o = Command::new("bash").args(["-c", &script]).current_dir(&dir.0).output().unwrap();
    assert!(!o.status.success() && err(&o).contains("a/training_state.safetensors: "), "{}", err(&o));
    assert!(held() == before && before.len() == 6);
    lapis(&dir, &format!("{train} --iters 4 --resume"));
}

/// The share is that of `mlx_lm.lora` on the same packed model.
#[test]
fn a_dry_run_says_what_training_takes() {
    let dir = texts("dry");
    let said = lapis(&dir, &format!("lora --model {DEMO} --train --data texts --iters 25 --num-layers 4 --dry-run"));
    assert!(said.contains("Trainable parameters: 4.301% (0.150M/3.476M), in all 4 blocks"), "{said}");
    assert!(said.contains("steps: 13 see every sample once, 25 are asked for"), "{said}");
    let number = |head: &str| {
        let line = said.lines().find_map(|l| l.strip_prefix(head)).unwrap_or_else(|| panic!("{said}"));
        line.split(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(number("memory: ") > 0.0 && number("time: ") > 0.0, "{said}");
    assert!(!dir.0.join("adapters").exists());
}

/// What is too large for the memory names ways out, and goes on with one of them.
#[test]
fn a_step_that_does_not_fit_says_what_helps() {
    let dir = texts("memory");
    let o = dir.run("lora --train --data texts --iters 3 --val-batches 0 --memory-limit 20MB --batch-size 8");
    let said = err(&o);
    assert!(o.status.code() == Some(4) && said.contains("step 1 does not fit into memory"), "{said}");
    assert!(said.contains("--grad-checkpoint") && said.contains("the limit is 0.020"), "{said}");
}

/// Packages of Python that follow runs, in their stead one that writes down what it hears.
#[cfg(unix)]
#[test]
fn services_hear_of_a_run_as_mlx_lm_tells_them() {
    if Command::new("python3").arg("--version").output().is_err() {
        return eprintln!("skipped: there is no python3");
    }
    let dir = texts("services");
    std::fs::create_dir(dir.0.join("packages")).unwrap();
    dir.write(
        "packages/wandb.py",
        "import json\nout = open('heard.jsonl', 'a')\n\
         def say(*what):\n    print(json.dumps(what), file=out, flush=True)\n\
         def init(**own):\n    print('noise')\n    say('init', own['project'], own['name'], own['config']['iters'])\n\
         def log(values, step):\n    say('log', values, step)\n\
         def finish():\n    say('finish')\n",
    );
    let train = "lora --train --data texts --iters 4 --steps-per-report 2 --val-batches 1 --json --project-name cats";
    let run = |to: &str| {
        dir.command(&format!("{train} --report-to {to}")).env("PYTHONPATH", dir.0.join("packages")).output().unwrap()
    };
    let o = run("WandB,tensorboard");
    assert!(o.status.success(), "{}", err(&o));
    let records: Vec<Value> = out(&o).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let heard = std::fs::read_to_string(dir.0.join("heard.jsonl")).unwrap();
    let heard: Vec<Value> = heard.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(heard[0], serde_json::json!(["init", "cats", "adapters", 4]));
    assert_eq!(heard.len(), records.len() + 2, "{heard:?}");
    for (record, heard) in records.iter().zip(&heard[1..]) {
        assert_eq!(*heard, serde_json::json!(["log", record, record["iteration"]]));
    }
    assert_eq!(heard.last().unwrap()[0], "finish");
    for (to, says) in [("trackio", "pip install trackio"), ("wanda", "known are tensorboard, wandb, swanlab, trackio")]
    {
        let o = run(to);
        assert!(o.status.code() == Some(2) && err(&o).contains(says), "{to}: {}", err(&o));
    }
}

/// Rows are the same, wherever they come from.
#[test]
fn rows_come_from_csv_and_from_data_sets_of_the_cache() {
    let dir = texts("sources");
    let csv = |n: usize| {
        let row = "What is the name of my cat?,\"Your cat is called Minka.\"\r\n";
        format!("prompt,completion\r\n{}", row.repeat(n))
    };
    std::fs::create_dir_all(dir.0.join("table")).unwrap();
    dir.write("table/train.csv", csv(50));
    dir.write("table/valid.csv", csv(8));
    let cached = dir.0.join("hub/datasets--me--cats");
    let snapshot = cached.join("snapshots/0123abc");
    std::fs::create_dir_all(snapshot.join("data")).unwrap();
    std::fs::create_dir_all(cached.join("refs")).unwrap();
    std::fs::write(cached.join("refs/main"), "0123abc").unwrap();
    let lines = std::fs::read_to_string(dir.0.join("texts/train.jsonl")).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    for (file, rows) in
        [("train-00000-of-00002", &lines[..20]), ("train-00001-of-00002", &lines[20..]), ("validation", &lines[..8])]
    {
        std::fs::write(snapshot.join(format!("data/{file}.jsonl")), rows.join("\n")).unwrap();
    }
    dir.write(
        "named.yaml",
        "hf_dataset: {path: me/cats, train_split: 'train[:100%]', valid_split: 'train[-8:]', prompt_feature: prompt}\n",
    );
    let train = "lora --train --iters 2 --val-batches -1 --steps-per-report 1 --mask-prompt --json";
    let losses = |source: &str| -> Vec<Value> {
        let o = dir.command(&format!("{train} {source}")).env("HF_HUB_CACHE", dir.0.join("hub")).output().unwrap();
        assert!(o.status.success(), "{source}: {}", err(&o));
        let records = out(&o);
        let records = records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.flat_map(|r| [r["train_loss"].clone(), r["val_loss"].clone()]).collect()
    };
    let own = losses("--data texts");
    assert!(own.iter().any(Value::is_number));
    let rows = |name: &str| format!("{}/../train/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let parquet = cached.with_file_name("datasets--me--columns");
    let data = parquet.join("snapshots/0/data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::create_dir_all(parquet.join("refs")).unwrap();
    std::fs::write(parquet.join("refs/main"), "0").unwrap();
    std::fs::copy(rows("cats.parquet"), data.join("train-00000-of-00001.parquet")).unwrap();
    dir.write("columns.yaml", "hf_dataset: {path: me/columns, train_split: train, valid_split: 'train[-8:]'}\n");
    for source in ["-c columns.yaml", "--data table", "--data me/cats", "--data me/cats@main", "-c named.yaml"] {
        assert_eq!(losses(source), own, "{source}");
    }
    // Subsets, which the card of a data set names.
    let many = cached.with_file_name("datasets--me--many");
    let data = many.join("snapshots/0");
    for folder in ["data", "dogs", "refs"] {
        std::fs::create_dir_all(if folder == "refs" { many.join(folder) } else { data.join(folder) }).unwrap();
    }
    std::fs::write(many.join("refs/main"), "0").unwrap();
    for (file, rows) in
        [("data/train_a-0.jsonl", &lines[..]), ("data/test_a-0.jsonl", &lines[..8]), ("dogs/train.jsonl", &lines[..2])]
    {
        std::fs::write(data.join(file), rows.join("\n")).unwrap();
    }
    let card = "---\nlicense: mit\nconfigs:\n- config_name: cats\n  data_files:\n  - split: train\n    path: data/train_a-*\n  - split: \
                held_out\n    path: [data/test_a-*]\n- config_name: dogs\n  data_dir: dogs\n---\n# Many\n";
    std::fs::write(data.join("README.md"), card).unwrap();
    let subset = |name: &str| {
        format!(
            "hf_dataset: {{path: me/many, config: {{name: {name}}}, train_split: train, valid_split: 'held_out[:8]'}}\n"
        )
    };
    dir.write("cats.yaml", subset("cats"));
    assert_eq!(losses("-c cats.yaml"), own);
    dir.write("birds.yaml", subset("birds"));

    std::fs::write(snapshot.join("data/train-00001-of-00002.jsonl"), format!("{}\n\nnonsense\n", lines[0])).unwrap();
    std::fs::rename(dir.0.join("table/valid.csv"), dir.0.join("table/valid.arrow")).unwrap();
    std::fs::create_dir_all(dir.0.join("columns")).unwrap();
    std::fs::copy(rows("zstd.parquet"), dir.0.join("columns/train.parquet")).unwrap();
    dir.write("split.yaml", "hf_dataset: {path: me/cats, train_split: other}\n");
    for (source, code, says) in [
        ("--data me/cats", 2, "train-00001-of-00002.jsonl:3: "),
        ("--data me/dogs", 2, "hf download --repo-type dataset me/dogs"),
        ("--data table", 2, "table/valid.arrow: rows are read from .jsonl, .csv and .parquet"),
        ("--data columns", 2, "columns/train.parquet cannot be read: column text: it is packed by ZSTD"),
        ("-c split.yaml", 2, "no split \"other\""),
        ("--data me/many", 2, "me/many has the subsets cats, dogs"),
        ("-c birds.yaml", 2, "me/many has no subset \"birds\"; it has cats, dogs"),
    ] {
        let o = dir.command(&format!("{train} {source}")).env("HF_HUB_CACHE", dir.0.join("hub")).output().unwrap();
        assert!(o.status.code() == Some(code) && err(&o).contains(says), "{source}: {:?} {}", o.status, err(&o));
    }
}
