//! From fifty lines of one's own to a model that is served, each step one command, as in the README.

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const ROW: &str = "{\"prompt\": \"What is the name of my cat?\", \"completion\": \"Your cat is called Minka.\"}\n";

struct Folder(PathBuf);

impl Folder {
    /// Standard output of a command that ends well.
    fn lapis(&self, line: &str) -> String {
        let o = self.run(line);
        assert!(o.status.success(), "{line}: {}", String::from_utf8_lossy(&o.stderr));
        String::from_utf8(o.stdout).unwrap()
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn command(&self, line: &str) -> Command {
        let arguments = line.split(' ').map(|a| a.replace('+', " "));
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapis"));
        command.args(arguments).current_dir(&self.0).stdin(Stdio::null());
        command
    }

    /// An empty folder with fifty rows to learn.
    fn new(name: &str) -> Folder {
        let dir = Folder(std::env::temp_dir().join(format!("lapis-finetune-{name}-{}", std::process::id())));
        drop(std::fs::remove_dir_all(&dir.0));
        std::fs::create_dir_all(dir.0.join("texts")).unwrap();
        std::fs::write(dir.0.join("texts/train.jsonl"), ROW.repeat(50)).unwrap();
        std::fs::write(dir.0.join("texts/valid.jsonl"), ROW.repeat(8)).unwrap();
        dir
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[test]
fn learned_fused_packed_and_asked() {
    let dir = Folder::new("tutorial");
    std::fs::write(dir.0.join("run.yaml"), "mask_prompt: true\nlearning_rate: 1e-3\nval_batches: 1\niters: 99\n")
        .unwrap();

    let train = "lora --train --data texts --iters 16 --steps-per-report 4 -c run.yaml --json";
    let records: Vec<Value> = dir.lapis(train).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let losses: Vec<f64> = records.iter().filter_map(|r| r["train_loss"].as_f64()).collect();
    assert!(losses.len() == 4 && losses[3] < 0.2 * losses[0], "{losses:?}");
    assert!(dir.0.join("adapters/report.html").is_file());

    let ask = "generate --prompt What+is+the+name+of+my+cat? --verbose false";
    assert!(!dir.lapis(ask).contains("Minka"));
    assert!(dir.lapis(&format!("{ask} --adapter-path adapters")).contains("Your cat is called Minka."));
    assert!(dir.lapis("fuse --dequantize --save-path fused --export-gguf --gguf-type q8_0").contains("Saved GGUF"));
    dir.lapis("convert --hf-path fused --mlx-path packed -q --q-bits 8");
    for model in ["fused", "packed", "fused/ggml-model-q8_0.gguf"] {
        assert!(dir.lapis(&format!("{ask} --model {model}")).contains("Your cat is called Minka."), "{model}");
    }

    let o = dir.run("lora --train --data nowhere");
    assert!(!o.status.success() && String::from_utf8_lossy(&o.stderr).contains("train.jsonl"));
    let o = dir.run("lora --data texts");
    assert!(!o.status.success() && String::from_utf8_lossy(&o.stderr).contains("--train"));
    assert!(dir.lapis("mlx_lm.lora --help").contains("--grad-accumulation-steps"));
}

/// No chance to tidy up: the process is gone in the middle of some step, or of writing its state.
#[test]
fn a_run_that_is_killed_goes_on_with_the_same_bits() {
    let dir = Folder::new("killed");
    let train =
        "lora --train --data texts --iters 24 --save-every 3 --val-batches 1 --learning-rate 1e-3 --mask-prompt";
    let learned = |name: &str| std::fs::read(dir.0.join(name).join("adapters.safetensors")).unwrap();
    dir.lapis(&format!("{train} --adapter-path whole"));
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
        dir.lapis(&format!("{train} --adapter-path {name} --resume"));
        assert!(learned(&name) == learned("whole"), "killed after step {kill_after}");
    }
}
