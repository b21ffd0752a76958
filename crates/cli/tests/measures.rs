//! Commands that say how good a model is, and those that send it elsewhere.

mod shared;

use serde_json::Value;
use shared::{DEMO, Folder, err, good, lapis, out};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn tasks_are_asked_and_results_are_files() {
    let dir = Folder::new("evaluate");
    let row = |q: &str, right: u8| {
        format!("{{\"question\": {q:?}, \"choices\": [\"a fox\", \"xyzzy\"], \"answer\": {right}}}\n")
    };
    dir.write("quiz.jsonl", [row("Who lived in a house?", 0), row("Who was brave?", 0), row("Nonsense?", 1)].concat());
    dir.write(
        "told.yaml",
        "task: told\ndataset_kwargs: {data_files: {test: told.jsonl}}\ntest_split: test\noutput_type: generate_until\n\
         doc_to_text: prompt\ndoc_to_target: 'Hello'\nfilter_list: [{name: word, filter: [{function: regex, \
         regex_pattern: '^(\\w+)'}, {function: take_first}]}]\ngeneration_kwargs: {until: ['!'], max_gen_toks: 8}\n",
    );
    dir.write("told.jsonl", "{\"prompt\": \"hello\"}\n");
    // A task by its file, and one by its name, which the folder knows.
    let o = dir.run("evaluate --tasks quiz.jsonl told --output-dir results --log-samples --json");
    assert!(o.status.success(), "{}", err(&o));
    let all = json(&out(&o));
    let quiz = &all["results"]["quiz"];
    assert_eq!((quiz["acc,none"].as_f64().unwrap() * 3.0).round(), 2.0, "{quiz}");
    assert!(quiz["acc_stderr,none"].as_f64().unwrap() > 0.3 && quiz["sample_len"] == 3, "{quiz}");
    assert_eq!(all["results"]["told"]["exact_match,word"], 1.0);
    assert_eq!(all["results"]["told"]["exact_match_stderr,word"], "N/A");
    let version = env!("CARGO_PKG_VERSION");
    let file =
        std::fs::read_to_string(dir.0.join(format!("results/eval_lapis_demo_lapis-{version}_quiz_told"))).unwrap();
    assert_eq!(json(&file), all["results"]);
    assert!(file.starts_with("{\n    \"quiz\": {\n        \"alias\": \"quiz\","), "{file}");
    let samples = std::fs::read_to_string(dir.0.join("results/samples_quiz.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 3);
    let o = dir.run("mlx_lm.evaluate --tasks quiz.jsonl --limit 1 --num-shots 0 --output-dir results");
    let text = out(&o);
    assert!(text.starts_with("Results:\n{\n") && text.contains("|quiz "), "{text}{}", err(&o));
    assert!(dir.0.join(format!("results/eval_lapis_demo_lapis-{version}_00_quiz")).is_file());
    for (line, says) in [
        ("evaluate --tasks nonsense", "there is no task \"nonsense\""),
        ("evaluate --tasks quiz.jsonl --limit 0", "--limit is 0"),
        ("evaluate", "--tasks"),
    ] {
        let o = dir.run(line);
        assert!(o.status.code() == Some(2) && err(&o).contains(says), "{line}: {}", err(&o));
    }
}

/// One task is done, the next one is interrupted.
#[cfg(unix)]
#[test]
fn an_interrupted_evaluation_keeps_what_is_done() {
    let dir = Folder::new("partial");
    let row = |question: &str| format!("{{\"question\": {question:?}, \"choices\": [\"a\", \"b\"], \"answer\": 0}}\n");
    // Of this one it is said that it was cut.
    dir.write("first.jsonl", row(&"word ".repeat(600)));
    // This one goes on for long, so that it is not over before the signal comes, however late this test is woken.
    dir.write(
        "second.yaml",
        "task: second\ndataset_kwargs: {data_files: {test: second.jsonl}}\ntest_split: test\noutput_type: generate_until\n\
         doc_to_text: prompt\ndoc_to_target: 'a'\ngeneration_kwargs: {until: ['xyzzy'], max_gen_toks: 400}\n",
    );
    dir.write("second.jsonl", "{\"prompt\": \"Tell me a story.\"}\n".repeat(4000));
    let mut command = dir.command("evaluate --tasks first.jsonl second --batch-size 2 --output-dir results --json");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("first: 1 prompts were longer"), "{said}");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let o = child.wait_with_output().unwrap();
    let results = &json(&out(&o))["results"];
    assert!(results["first"]["partial"] == true && results.get("second").is_none(), "{results}");
    assert_eq!(o.status.code(), Some(130));
    assert_eq!(std::fs::read_dir(dir.0.join("results")).unwrap().count(), 1);
}

#[test]
fn models_are_compared_and_converted_layer_by_layer() {
    let dir = Folder::new("kld");
    dir.write(
        "layers.json",
        "{\"model.layers.0.mlp.down_proj\": {\"bits\": 8}, \"model.layers.1.mlp.up_proj\": false}",
    );
    let dense = format!("convert --hf-path {DEMO} --mlx-path dense -d");
    assert!(dir.run(&dense).status.success());
    let flags = "convert --hf-path dense --mlx-path packed -q --q-bits 3 --lm-head-bits 6 --per-layer layers.json";
    let o = dir.run(&format!("{flags} --dry-run"));
    let dry = out(&o);
    assert!(dry.contains("Nothing is written") && !dir.0.join("packed").exists(), "{dry}{}", err(&o));
    let o = dir.run(flags);
    assert!(o.status.success(), "{}", err(&o));
    let said = out(&o);
    let bits = said.lines().find_map(|l| l.split("model with ").nth(1)).unwrap().split(' ').next().unwrap().to_string();
    assert!(dry.contains(&bits), "{dry} {said}");
    let config = json(&std::fs::read_to_string(dir.0.join("packed/config.json")).unwrap());
    let plan = &config["quantization"];
    assert_eq!(plan["model.layers.0.mlp.down_proj"]["bits"], 8);
    assert_eq!((&plan["model.embed_tokens"]["bits"], &plan["bits"]), (&6.into(), &3.into()));
    assert!(dir.run("generate --model packed --prompt hello -m 4").status.success());
    let far = json(&good(
        dir.run(&format!("kld {DEMO} packed --data-path packed/tokenizer_config.json --sequence-length 64 --json")),
    ));
    let number = |key: &str| far[key].as_f64().unwrap();
    assert!(number("mean_kld") > 1e-4 && number("top1_agreement") > 0.2 && number("top1_agreement") < 1.0, "{far}");
    assert!(number("median_kld") <= number("kld_99") && number("kld_99") <= number("max_kld"), "{far}");
    // A model is no way from itself, and perplexity says the same of both.
    let own = "--data-path dense/tokenizer_config.json --sequence-length 64";
    let o = dir.run(&format!("perplexity --model {DEMO} --kld {DEMO} {own} --json"));
    let line = json(&good(o));
    assert!(line["kld"]["mean_kld"].as_f64().unwrap() < 1e-9 && line["kld"]["top1_agreement"] == 1.0, "{line}");
    assert!((line["kld"]["perplexity"].as_f64().unwrap() / line["perplexity"].as_f64().unwrap() - 1.0).abs() < 1e-3);
    assert!(out(&lapis(&["perplexity", "--num-samples", "1", "--sequence-length", "64"])).starts_with("Perplexity: "));
    for (line, says) in [
        ("convert --hf-path dense --mlx-path x --lm-head-bits 6", "--quantize"),
        ("convert --hf-path dense --mlx-path x -q --lm-head-bits 7", "bits 7"),
        ("convert --hf-path dense --mlx-path x -q --per-layer no.json", "no.json"),
        ("kld dense", "QUANTIZED"),
    ] {
        let o = dir.run(line);
        assert!(o.status.code() == Some(2) && err(&o).contains(says), "{line}: {}", err(&o));
    }
    dir.write("layers.json", "{\"model.layers.9.mlp.down_proj\": {\"bits\": 8}}");
    let o = dir.run("convert --hf-path dense --mlx-path x -q --per-layer layers.json");
    assert!(err(&o).contains("no layer \"model.layers.9.mlp.down_proj\""), "{}", err(&o));
}

/// To this machine, and to another that a program in place of ssh stands for.
#[cfg(unix)]
#[test]
fn a_model_is_shared_with_other_machines() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Folder::new("share");
    let bin = dir.0.join("bin");
    std::fs::create_dir(&bin).unwrap();
    // ssh -o BatchMode=yes -- HOST LINE
    dir.write(
        "bin/ssh",
        "#!/bin/sh\n[ \"$4\" = elsewhere ] || { echo no such machine >&2; exit 255; }\nexec sh -c \"$5\"\n",
    );
    std::fs::set_permissions(bin.join("ssh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_lapis"), bin.join("lapis")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let share = |flags: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lapis"));
        command.args([&["share"], flags].concat()).current_dir(&dir.0).env("PATH", &path).output().unwrap()
    };
    dir.write("hosts.json", "[{\"ssh\": \"localhost\", \"ips\": [\"127.0.0.1\"]}]");
    good(share(&["--path", DEMO, "--hostfile", "hosts.json", "--dst", &dir.at("here")]));
    dir.write("hosts.json", "{\"hosts\": [{\"ssh\": \"elsewhere\"}]}");
    let odd = dir.at("it's there");
    let said = good(share(&["--path", DEMO, "--hostfile", "hosts.json", "--dst", &odd, "--json"]));
    assert_eq!(json(&said)["hosts"][0]["host"], "elsewhere");
    for copy in [dir.at("here"), odd] {
        for file in std::fs::read_dir(DEMO).unwrap().flatten() {
            let copied = std::fs::read(format!("{copy}/{}", file.file_name().to_string_lossy())).unwrap();
            assert_eq!(copied, std::fs::read(file.path()).unwrap(), "{:?}", file.file_name());
        }
    }
    let here = dir.at("here");
    for (hosts, flags, says) in [
        ("[{\"ssh\": \"elsewhere\"}]", ["--path", DEMO, "--dst", &here], "exists"),
        ("[{\"ssh\": \"nowhere\"}]", ["--path", DEMO, "--dst", "x"], "no such machine"),
        ("[{\"ssh\": \"-oProxyCommand=x\"}]", ["--path", DEMO, "--dst", "x"], "no \"ssh\""),
        ("[]", ["--path", DEMO, "--dst", "x"], "a list of hosts"),
        ("[{\"ssh\": \"localhost\"}]", ["--path", &here, "--dst", &here], "no machine but this one"),
    ] {
        dir.write("hosts.json", hosts);
        let o = share(&[&flags[..], &["--hostfile", "hosts.json"]].concat());
        assert!(!o.status.success() && err(&o).contains(says), "{hosts}: {}", err(&o));
    }
    assert!(err(&share(&["--hostfile", "hosts.json"])).contains("--path DIR or --model NAME"));
}

/// Figures of `mlx_lm.perplexity` on the same packed model, whose order of rows is NumPy's.
#[test]
fn perplexity_takes_rows_in_mlx_lms_order() {
    let dir = Folder::new("rows");
    let names = ["Minka", "Otto", "Lena", "Fritz", "Anna", "Ella", "Karl", "Rosa"];
    let rows = |row: &dyn Fn(usize, &str) -> String| {
        names.iter().enumerate().map(|(i, name)| row(i, name) + "\n").collect::<String>()
    };
    let chat = rows(&|i, name| {
        let tale = format!("Once upon a time there was {name}, who lived in a house with {} cats.", i + 2);
        serde_json::json!({"messages": [
            {"role": "user", "content": format!("Tell me a story about {name}")}, {"role": "assistant", "content": tale},
        ]})
        .to_string()
    });
    let pairs = rows(&|i, name| {
        serde_json::json!({"prompt": format!("Who is {name}?"), "completion": format!("{name} is cat number {i}.")})
            .to_string()
    });
    dir.write("chat.jsonl", chat);
    dir.write("pairs.jsonl", pairs);
    for (file, seed, wanted) in
        [("chat", "", 139.013), ("chat", " --seed 7", 153.399), ("pairs", "", 75.705), ("pairs", " --seed 7", 89.024)]
    {
        let flags = format!("--data-path {file}.jsonl --num-samples 3 --sequence-length 24{seed} --json");
        let found = json(&good(dir.run(&format!("perplexity --model {DEMO} {flags}"))));
        let value = found["perplexity"].as_f64().unwrap();
        assert!((value / wanted - 1.0).abs() < 2e-3, "{file} {seed}: {value}, and {wanted} there");
    }
    dir.write("odd.jsonl", "{\"nothing\": 1}\n");
    let o = dir.run("perplexity --data-path odd.jsonl --json");
    assert!(!o.status.success() && err(&o).contains("odd.jsonl"), "{}", err(&o));
}

/// What was measured before Ctrl-C counts.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupted_measurement_keeps_its_figures() {
    let dir = Folder::new("halfway");
    dir.write("long.txt", "The fox went over the hill and far away. ".repeat(20_000));
    for line in ["perplexity", &format!("kld {DEMO} {DEMO}")] {
        let flags = "--data-path long.txt --num-samples -1 --sequence-length 64 --batch-size 1 --json";
        let mut command = dir.command(&format!("{line} {flags}"));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Until the program catches the signal: its bit is the second.
        let caught = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:")).unwrap().trim().to_string();
            u64::from_str_radix(&mask, 16).unwrap() & 0b10 != 0
        };
        while !caught() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let o = child.wait_with_output().unwrap();
        assert_eq!(o.status.code(), Some(130), "{line}: {}", err(&o));
        let found = json(&out(&o));
        assert!(found["partial"] == true && found["tokens"].as_u64().unwrap() >= 63, "{found}");
        assert!(err(&o).contains("interrupted: the figures are of"), "{}", err(&o));
    }
}
