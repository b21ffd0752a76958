//! From fifty lines of one's own to a model that is served, each step one command, as in the README.

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};

struct Folder(PathBuf);

impl Folder {
    /// Standard output of a command that ends well.
    fn lapis(&self, line: &str) -> String {
        let o = self.run(line);
        assert!(o.status.success(), "{line}: {}", String::from_utf8_lossy(&o.stderr));
        String::from_utf8(o.stdout).unwrap()
    }

    fn run(&self, line: &str) -> std::process::Output {
        let arguments = line.split(' ').map(|a| a.replace('+', " "));
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapis"));
        command.args(arguments).current_dir(&self.0).stdin(Stdio::null()).output().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[test]
fn learned_fused_packed_and_asked() {
    let dir = Folder(std::env::temp_dir().join(format!("lapis-finetune-{}", std::process::id())));
    drop(std::fs::remove_dir_all(&dir.0));
    std::fs::create_dir_all(dir.0.join("texts")).unwrap();
    let row = "{\"prompt\": \"What is the name of my cat?\", \"completion\": \"Your cat is called Minka.\"}\n";
    std::fs::write(dir.0.join("texts/train.jsonl"), row.repeat(50)).unwrap();
    std::fs::write(dir.0.join("texts/valid.jsonl"), row.repeat(8)).unwrap();
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
    for model in ["fused", "packed", "fused/ggml-model-f16.gguf"] {
        assert!(dir.lapis(&format!("{ask} --model {model}")).contains("Your cat is called Minka."), "{model}");
    }

    let o = dir.run("lora --train --data nowhere");
    assert!(!o.status.success() && String::from_utf8_lossy(&o.stderr).contains("train.jsonl"));
    let o = dir.run("lora --data texts");
    assert!(!o.status.success() && String::from_utf8_lossy(&o.stderr).contains("--train"));
    assert!(dir.lapis("mlx_lm.lora --help").contains("--grad-accumulation-steps"));
}
