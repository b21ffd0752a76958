//! Learned quantization as people call it: the lines that the demo model answers with, what they write, and that it is loaded.

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A folder of this test's own, gone at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("lapis-quantize-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        Folder(dir)
    }

    fn run(&self, line: &str) -> Output {
        let arguments = line.split(' ').map(|a| a.replace('+', " "));
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapis"));
        // Without what mlx-lm may have fetched.
        command.args(arguments).current_dir(&self.0).env("HOME", &self.0).stdin(Stdio::null()).output().unwrap()
    }

    /// Standard output of a command that ends well.
    fn lapis(&self, line: &str) -> String {
        let o = self.run(line);
        assert!(o.status.success(), "{line}: {}", String::from_utf8_lossy(&o.stderr));
        String::from_utf8(o.stdout).unwrap()
    }

    /// What a command that fails says.
    fn refused(&self, line: &str) -> String {
        let o = self.run(line);
        assert!(!o.status.success(), "{line}");
        String::from_utf8(o.stderr).unwrap()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.0.join(name)).unwrap()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model");

#[test]
fn each_method_writes_a_model_that_answers() {
    let dir = Folder::new("methods");
    let few = "--sequence-length 128 --num-samples 6 --report-samples 2";
    let printed = dir.lapis(&format!("gptq --model {DEMO} --bits 4 --mlx-path gptq {few}"));
    assert!(
        printed.contains("round to nearest") && printed.contains("conversations that ship with lapis"),
        "{printed}"
    );
    dir.lapis(&format!("awq --bits 4 --mlx-path awq --n-grid 4 {few}"));
    dir.lapis(
        "dwq --bits 4 --mlx-path dwq --quantized-model gptq --num-samples 8 --max-seq-length 128 --report-samples 2 --target-dir \
         targets",
    );
    for method in ["gptq", "awq", "dwq"] {
        let report = dir.json(&format!("{method}/quantization_report.json"));
        let kl = |which: &str| report[which]["kl"].as_f64().unwrap();
        assert!(kl("learned") < kl("nearest"), "{report:#}");
        assert_eq!(report["learned"]["bits_per_weight"], report["nearest"]["bits_per_weight"]);
        let said = dir.lapis(&format!("generate --model {method} --prompt hello --verbose F --max-tokens 8"));
        assert!(!said.trim().is_empty());
        assert!(!dir.0.join(format!("{method}.{method}-state")).exists());
    }
    let config = dir.json("gptq/config.json");
    assert_eq!(config["quantization"]["model.embed_tokens"]["bits"], 6);
    assert_eq!(config["quantization"]["bits"], 4);
    assert_eq!(dir.json("awq/config.json")["quantization"]["model.norm"], false);
    assert!(dir.0.join("targets/train/0000000000.safetensors").is_file());
    let printed =
        dir.lapis("dwq --num-samples 8 --max-seq-length 128 --target-dir targets --targets-only --mlx-path other");
    assert!(printed.contains("targets") && !dir.0.join("other").exists());
    assert!(
        dir.refused("dwq --num-samples 8 --max-seq-length 128 --seed 1 --target-dir targets").contains("another seed")
    );
}

#[test]
fn sensitivities_are_written_and_read() {
    let dir = Folder::new("dynamic");
    let text = "Once upon a time there lived a fox in a forest, and it was afraid of the dark. ".repeat(130);
    std::fs::write(dir.0.join("text.txt"), text).unwrap();
    let printed =
        dir.lapis("dynamic-quant --calibration-file text.txt --target-bpw 5.5 --report-ppl --report-samples 1");
    assert!(printed.contains("Original PPL: ") && printed.contains("text.txt"), "{printed}");
    let bits = dir.json("mlx_model/quantization_report.json")["learned"]["bits_per_weight"].as_f64().unwrap();
    assert!(bits > 5.2 && bits <= 5.5, "{bits}");
    let all = dir.json("lapis_demo_sensitivities.json");
    assert!(all[0][0].is_string() && all[0][1].is_f64(), "{all}");
    let again = "dynamic-quant --calibration-file text.txt --target-bpw 5.5 --report-samples 0 --mlx-path again \
                 --sensitivities lapis_demo_sensitivities.json";
    dir.lapis(again);
    let weights = |name: &str| std::fs::read(dir.0.join(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("mlx_model"), weights("again"));
}

/// A run of many steps on few samples says so, and how far it is, where nobody looks at a terminal.
#[test]
fn rows_that_come_again_are_counted_and_steps_are_told() {
    let dir = Folder::new("again");
    let rows = concat!(env!("CARGO_MANIFEST_DIR"), "/../train/tests/data/cats.parquet");
    let line = format!("dwq --data-path {rows} --max-seq-length 16 --num-samples 240 --report-samples 1 --mlx-path a");
    let o = dir.run(&line);
    let said = String::from_utf8(o.stderr).unwrap();
    assert!(o.status.success() && said.contains("240 samples are asked for and "), "{said}");
    let told: Vec<&str> = said.lines().filter(|l| l.contains("step ") && l.contains(" of 60: loss ")).collect();
    assert!(told.len() == 3 && told[0].contains("step 20 ") && told[0].contains(" tokens/s, peak memory "), "{said}");
    std::fs::create_dir(dir.0.join("rows")).unwrap();
    std::fs::copy(rows, dir.0.join("rows/train.parquet")).unwrap();
    let on = |path: &str| dir.lapis(&format!("perplexity --data-path {path} --sequence-length 16 --json"));
    assert_eq!(on("rows"), on(rows));
    let said = dir.refused("gptq --calibration-file me/dogs --mlx-path b");
    assert!(said.contains("hf download --repo-type dataset me/dogs"), "{said}");
}

#[test]
fn what_cannot_be_done_is_said() {
    let dir = Folder::new("refused");
    std::fs::write(dir.0.join("short.txt"), "Too short.").unwrap();
    std::fs::create_dir(dir.0.join("mlx_model")).unwrap();
    for (line, says) in [
        ("gptq", "mlx_model exists"),
        ("gptq --mlx-path a --model nowhere", "nowhere does not exist"),
        ("gptq --mlx-path a --bits 7", "bits"),
        ("awq --mlx-path a --group-size 48", "group"),
        ("gptq --mlx-path a --calibration-file short.txt", "--sequence-length"),
        ("awq --mlx-path a --calibration-file nowhere.txt", "nowhere.txt"),
        ("awq --mlx-path a --n-grid 0", "--n-grid"),
        ("dwq --mlx-path a --learning-rate 0", "--learning-rate"),
        ("dwq --mlx-path a --data-path short.txt", "--sequence-length"),
        ("dynamic-quant --mlx-path a --low-bits 6", "--high-bits"),
        ("dynamic-quant --mlx-path a --sensitivities short.txt", "short.txt"),
    ] {
        let said = dir.refused(line);
        assert!(said.contains(says), "{line}: {said}");
        assert!(!dir.0.join("a").exists(), "{line}");
    }
    for command in ["gptq", "awq", "dwq", "dynamic_quant"] {
        assert!(dir.lapis(&format!("mlx_lm.{command} --help")).contains("--seed"));
    }
}
