//! The program as people call it: what goes to which stream, exit codes, files.

mod shared;

use serde_json::Value;
use shared::{DEMO, FILES, Folder, err, fed, lapis, out};
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[test]
fn the_demo_model_answers_without_a_model() {
    let o = lapis(&["generate", "--prompt", "Tell me a story about a fox"]);
    assert!(o.status.success(), "{}", err(&o));
    let text = out(&o);
    assert!(text.starts_with("==========\n") && text.contains("fox"), "{text}");
    for line in ["Prompt: ", "Generation: ", "Peak memory: ", "Time to first token: "] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!text.contains("Peak memory: 0.000"), "{text}");
    // The same from its folder, with only the text.
    let quiet = lapis(&["generate", "--model", DEMO, "--prompt", "Tell me a story about a fox", "--verbose", "F"]);
    assert!(text.contains(out(&quiet).trim()) && !out(&quiet).contains("==="), "{}", out(&quiet));
}

#[test]
fn a_prompt_comes_from_standard_input_and_json_goes_out() {
    let o = fed(&["generate", "-p", "-", "--json", "-m", "5", "--temp", "0.7", "--seed", "3"], "Tell me a story");
    let line: Value = serde_json::from_str(&out(&o)).unwrap();
    assert_eq!((line["generation_tokens"].as_u64(), line["finish_reason"].as_str()), (Some(5), Some("length")));
    assert!(err(&o).contains("--max-tokens"), "{}", err(&o));
    let again = fed(&["generate", "-p", "-", "--json", "-m", "5", "--temp", "0.7", "--seed", "3"], "Tell me a story");
    let again: Value = serde_json::from_str(&out(&again)).unwrap();
    assert_eq!(line["text"], again["text"]);
}

#[test]
fn replies_follow_a_schema_an_expression_or_a_grammar() {
    let folder = Folder::new("grammars");
    let schema = r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "maximum": 99}}, "required": ["name", "age"], "additionalProperties": false}"#;
    std::fs::write(folder.at("schema.json"), schema).unwrap();
    std::fs::write(folder.at("list.lark"), "start: item (\", \" item)~2\nitem: \"red\" | \"blue\"\n").unwrap();
    let (schema_file, grammar_file) = (folder.at("schema.json"), folder.at("list.lark"));
    let say = |flags: &[&str]| {
        let common =
            ["generate", "--verbose", "F", "--max-tokens", "200", "--temp", "1", "--seed", "5", "--prompt", "hello"];
        lapis(&[&common, flags].concat())
    };
    for flags in [["--json-schema", schema], ["--json-schema", &schema_file]] {
        let plain = say(&flags);
        let person: Value = serde_json::from_str(&out(&plain)).unwrap_or_else(|e| panic!("{e}: {}", err(&plain)));
        assert!(person["name"].is_string() && person["age"].is_i64(), "{person}");
        let guessed = say(&[&flags[..], &["--draft", "ngram"]].concat());
        assert_eq!(out(&guessed), out(&plain));
        let guessed = say(&[&flags[..], &["--draft", &format!("model:{DEMO}")]].concat());
        assert_eq!(out(&guessed), out(&plain));
    }
    let text = out(&say(&["--regex", "(yes|no), [a-z]{3,9}!"]));
    assert!(text.trim_end().ends_with('!') && (text.starts_with("yes, ") || text.starts_with("no, ")), "{text}");
    let text = out(&say(&["--grammar", &grammar_file]));
    assert!(text.trim_end().split(", ").all(|w| ["red", "blue"].contains(&w)), "{text}");
    for (flags, says) in [
        (["--json-schema", "{\"not\": {}}"], "`not` at #"),
        (["--json-schema", "{"], "--json-schema: "),
        (["--json-schema", "nowhere.json"], "nowhere.json"),
        (
            ["--regex", "("],
            "not a usable regex: at 1(8): invalid regex \"(\" (in regex): regex parse error: unclosed group",
        ),
        (["--grammar", "start: nothing"], "not a usable grammar: "),
    ] {
        let o = say(&flags);
        assert!(!o.status.success() && err(&o).contains(says), "{flags:?}: {}", err(&o));
    }
    assert_eq!(say(&["--regex", "a", "--json-schema", schema]).status.code(), Some(2));
}

#[test]
fn a_chat_remembers_and_takes_commands() {
    let o = fed(&["chat"], "hello\n/tokens\n/undo\n/undo\n/set temp x\n/nonsense\n/help\n/quit\n");
    assert!(o.status.success(), "{}", err(&o));
    let (text, errors) = (out(&o), err(&o));
    assert!(text.contains("of 512 tokens") && text.contains("/retry") && text.contains("is no command"), "{text}");
    assert!(errors.contains("no message to take back") && errors.contains("is no number"), "{errors}");
    // What the model remembers changes nothing: the second answer is that of the whole conversation at once.
    let both = fed(&["chat"], "hello\nHow do I quantize a model?\n");
    let one = fed(&["chat"], "hello\nhello\n/undo\nHow do I quantize a model?\n");
    assert_eq!(out(&both).lines().last(), out(&one).lines().last());
}

#[test]
fn a_retry_is_another_reply() {
    let o = fed(&["chat", "--temp", "1", "--seed", "3", "-m", "25"], "Tell me a story\n/retry\n/quit\n");
    let text = out(&o);
    let [first, second] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert_ne!(first, second);
    let o = fed(&["chat", "-m", "3"], "hello\n/retry\n/quit\n");
    assert!(out(&o).contains("/set temp 0.7"), "{}", out(&o));
    // As in mlx-lm, all of a conversation can be had again.
    let say = || out(&fed(&["mlx_lm.chat", "--temp", "1", "-m", "8"], "Tell me a story\n"));
    assert_eq!(say(), say());
}

#[test]
fn a_line_that_is_no_text_does_not_end_a_chat() {
    let o = fed(&["chat", "-m", "3"], b"hello \xff\n/set max-tokens 0\n/tokens\n/quit\n");
    assert!(o.status.success() && out(&o).contains("of 512 tokens"), "{}", err(&o));
    assert!(err(&o).contains("1 is the least"), "{}", err(&o));
}

#[test]
fn mistakes_are_short_errors_with_code_two() {
    let folder = Folder::new("mistakes");
    let no_model = folder.at("none");
    let cases: &[(&[&str], &str)] = &[
        (&["generate", "--model", &no_model], "does not exist"),
        (&["generate", "-m", "0"], "--max-tokens is 0"),
        (&["generate", "--temp", "-1"], "temperature is -1"),
        (&["generate", "--top-p", "2"], "top_p is 2"),
        (&["generate", "--top-k", "-3"], "--top-k is -3"),
        (&["generate", "--logit-bias", "{\"9999\": 1}"], "token 9999"),
        (&["generate", "--logit-bias", "7"], "object"),
        (&["generate", "--chat-template", "{% if"], "template"),
        (&["generate", "--chat-template", "nosuch.jinja"], "nosuch.jinja"),
        (&["chat", "--chat-template", "nosuch.jinja"], "nosuch.jinja"),
        (&["generate", "--seed", "-1"], "--seed"),
        (&["evaluate", "--tasks", "x", "--limit", "-1"], "--limit is -1"),
        (&["evaluate", "--tasks", "x", "--batch-size", "0"], "1 is the least"),
        (&["generate", "--prefill-step-size", "0"], "1 is the least"),
        (&["generate", "--draft", "ngram", "--num-draft-tokens", "0"], "1 is the least"),
        (&["generate", "--draft", "mtp"], "ngram and model:PATH guess for every model"),
        (&["generate", "--draft", "model:"], "there are ngram and model:PATH"),
        (&["perplexity", "--num-samples", "0"], "-1 takes all"),
        (&["perplexity", "--num-samples", "-5"], "-1 takes all"),
        (&["dynamic-quant", "--target-bpw", "nan"], "--target-bpw is NaN"),
        (&["generate", "--kv-bits", "8", "--quantized-kv-start", "0"], "32 columns"),
        (&["generate", "--revision", "main"], "--model owner/name"),
        (&["generate", "--system-prompt", "x", "--ignore-chat-template"], "--system-prompt cannot be used with"),
        (&["fit", "x", "--model", "y"], "--model cannot be used with NAME"),
        (&["generate", "--extra-eos-token", "no such token"], "no such token"),
        (&["generate", "--modle", "x"], "--model"),
        (&["generat"], "generate"),
        (&["logits", "--model", DEMO, "--tokens", "1,x", "--output", "/dev/null"], "\"x\" is no token id"),
        (&["logits", "--model", DEMO, "--tokens", "1,2;3", "--output", "/dev/null"], "one length"),
        (&["logits", "--model", DEMO, "--tokens", "1,2048", "--output", "/dev/null"], "2048 tokens, from 0 on"),
        (&["convert", "--hf-path", DEMO, "--mlx-path", DEMO], "exists"),
        #[cfg(target_os = "linux")]
        (&["convert", "--hf-path", DEMO, "--mlx-path", "/proc/x/y", "-q"], "/proc/x/y"),
        #[cfg(target_os = "linux")]
        (&["fuse", "--save-path", "/proc/x/y"], "/proc/x/y"),
        (&["convert", "--hf-path", DEMO, "--mlx-path", &no_model, "--q-bits", "4"], "need -q"),
        (&["convert", "--hf-path", DEMO, "--mlx-path", &no_model, "-q", "--q-bits", "7"], "bits 7"),
    ];
    for (arguments, part) in cases {
        let o = lapis(arguments);
        let text = err(&o);
        assert_eq!(o.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(part) && !text.contains("panicked"), "{arguments:?}: {text}");
        assert!(text.lines().count() <= 9, "{arguments:?}: {text}");
        assert!(out(&o).is_empty(), "{arguments:?}");
    }
    assert!(!folder.0.join("none").exists());
}

#[cfg(unix)]
#[test]
fn words_that_are_not_utf_8_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::new("words");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapis"));
    command.args(["logits", "--tokens", "1,2", "--output"]).arg(std::ffi::OsStr::from_bytes(b"b\xff.npy"));
    let o = command.current_dir(&folder.0).output().unwrap();
    assert!(o.status.code() == Some(2) && err(&o).contains("is not UTF-8"), "{}", err(&o));
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
}

#[test]
fn instruction_sets_that_are_not_here_are_named() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapis"));
    let o = command.args(["generate", "--prompt", "hello"]).env("LAPIS_SIMD", "mmx").output().unwrap();
    let said = err(&o);
    assert!(o.status.code() == Some(2) && said.contains("LAPIS_SIMD=mmx: this machine runs "), "{said}");
    assert!(out(&o).is_empty() && !said.contains("panicked"), "{said}");
}

#[test]
fn help_and_versions_go_to_standard_output() {
    for arguments in [&["--help"][..], &["generate", "--help"], &["--version"]] {
        let o = lapis(arguments);
        assert!(o.status.success() && !o.stdout.is_empty() && o.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_converted_model_says_the_same() {
    let folder = Folder::new("convert");
    let (dense, packed) = (folder.at("dense"), folder.at("packed"));
    let o = lapis(&["convert", "--hf-path", DEMO, "--mlx-path", &dense, "-d"]);
    assert!(o.status.success() && out(&o).contains("[INFO] Dequantizing"), "{}", err(&o));
    let o = lapis(&["convert", "--hf-path", &dense, "--mlx-path", &packed, "-q", "--q-bits", "8"]);
    assert!(o.status.success() && out(&o).contains("bits per weight"), "{}", err(&o));
    let say = |model: &str| out(&lapis(&["generate", "--model", model, "-p", "hello", "--verbose", "F"]));
    assert_eq!(say(&dense), say(DEMO));
    assert_eq!(say(&packed), say(DEMO));
    for file in ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"] {
        assert!(PathBuf::from(&packed).join(file).exists(), "{file}");
    }
    let o =
        lapis(&["convert", "--hf-path", DEMO, "--mlx-path", &folder.at("again"), "-q", "--q-bits", "4", "--dry-run"]);
    assert!(o.status.success() && err(&o).contains("packed already"), "{}", err(&o));
    // Nothing unfinished is left.
    let left: Vec<_> = std::fs::read_dir(&folder.0).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_killed_conversions_left_goes() {
    let folder = Folder::new("left");
    for name in ["out.partial-00112233445566ff", "out.partial-1", "out.partial-old", "other.partial-00112233445566ff"] {
        std::fs::create_dir(folder.at(name)).unwrap();
        folder.write(&format!("{name}/model.safetensors"), "half of it");
    }
    assert_eq!(err(&lapis(&["perplexity", "-q", "--num-samples", "1", "--sequence-length", "8"])), "");
    assert_eq!(err(&lapis(&["-q", "perplexity", "--num-samples", "1", "--sequence-length", "8"])), "");
    let o = lapis(&["convert", "--quiet", "--hf-path", DEMO, "--mlx-path", &folder.at("out"), "-d"]);
    assert!(o.status.success() && o.stdout.is_empty() && o.stderr.is_empty(), "{}{}", out(&o), err(&o));
    let left = std::fs::read_dir(&folder.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut left: Vec<String> = left.collect();
    left.sort();
    assert_eq!(left, ["other.partial-00112233445566ff", "out", "out.partial-1", "out.partial-old"]);
}

#[test]
fn what_servers_remember_is_listed_with_or_without_a_word() {
    let folder = Folder::new("remembered");
    let none = folder.at("none");
    for words in [&["cache"][..], &["cache", "ls"]] {
        let o = lapis(&[words, &["--disk-cache", &none, "--json"]].concat());
        let line: Value = serde_json::from_str(&out(&o)).unwrap_or_else(|e| panic!("{e}: {}", err(&o)));
        assert_eq!(line["files"], 0);
    }
}

#[test]
fn logits_are_the_same_in_chunks() {
    let folder = Folder::new("logits");
    let (a, b) = (folder.at("a.npy"), folder.at("b.npy"));
    let tokens = "1,2,3,4,5,6,7;9,8,7,6,5,4,3";
    assert!(lapis(&["logits", "--model", DEMO, "--tokens", tokens, "--output", &a]).status.success());
    assert!(lapis(&["logits", "--model", DEMO, "--tokens", tokens, "--output", &b, "--chunk", "2"]).status.success());
    assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
}

/// MLX writes headers of any length, so that what follows lies anywhere.
#[test]
fn weights_may_lie_at_any_byte() {
    let folder = Folder::new("unaligned");
    let logits = |model: &str, name: &str| {
        let to = folder.at(name);
        let o = lapis(&["logits", "--model", model, "--tokens", "1,2,3;9,8,7", "--output", &to]);
        assert!(o.status.success(), "{}", err(&o));
        std::fs::read(to).unwrap()
    };
    let want = logits(DEMO, "a.npy");
    let file = std::fs::read(format!("{DEMO}/model.safetensors")).unwrap();
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    for spaces in 1..4 {
        let model = folder.at(&format!("model{spaces}"));
        std::fs::create_dir(&model).unwrap();
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(format!("{DEMO}/{name}"), format!("{model}/{name}")).unwrap();
        }
        let header = [header.trim_ascii_end(), &b"        "[..spaces]].concat();
        let moved = [&(header.len() as u64).to_le_bytes(), &header[..], data].concat();
        std::fs::write(format!("{model}/model.safetensors"), moved).unwrap();
        assert_eq!(logits(&model, "b.npy"), want, "{} bytes of a header", header.len());
    }
}

#[cfg(unix)]
#[test]
fn called_by_mlx_lms_names_it_is_that_command() {
    let folder = Folder::new("names");
    let link = folder.at("mlx_lm.generate");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_lapis"), &link).unwrap();
    let o = Command::new(&link).args(["--prompt", "hello", "--max-t", "3"]).output().unwrap();
    assert!(o.status.success() && out(&o).contains("Generation: 3 tokens"), "{}", err(&o));
    let o = lapis(&["mlx_lm.generate", "--prompt", "hello", "--max-tokens", "3"]);
    assert!(out(&o).contains("Generation: 3 tokens"), "{}", err(&o));
}

#[test]
fn flags_come_from_variables_and_files_too() {
    let folder = Folder::new("settings");
    let (user, project) = (folder.0.join("user/lapis"), folder.0.join("project"));
    std::fs::create_dir_all(&user).unwrap();
    std::fs::create_dir_all(&project).unwrap();
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapis"));
        command
            .args(arguments)
            .stdin(Stdio::null())
            .current_dir(&project)
            .env("XDG_CONFIG_HOME", folder.0.join("user"));
        command.envs(variables.iter().copied()).output().unwrap()
    };
    let tokens = |arguments: &[&str], variables: &[(&str, &str)]| {
        let o = run(&[&["generate", "--json", "--prompt", "Tell me a story"], arguments].concat(), variables);
        let line: Value = serde_json::from_str(&out(&o)).unwrap_or_else(|_| panic!("{}", err(&o)));
        line["generation_tokens"].as_u64().unwrap()
    };
    std::fs::write(user.join("config.toml"), "max-tokens = 9\n[generate]\nmax_tokens = 8\n").unwrap();
    assert_eq!(tokens(&[], &[]), 8);
    std::fs::write(project.join("lapis.toml"), "[generate]\nmax-tokens = 7\n").unwrap();
    assert_eq!(tokens(&[], &[]), 7);
    assert_eq!(tokens(&[], &[("LAPIS_MAX_TOKENS", "6")]), 6);
    assert_eq!(tokens(&["-m", "5"], &[("LAPIS_MAX_TOKENS", "6")]), 5);
    assert_eq!(tokens(&["--max-tokens=4"], &[("LAPIS_JSON", "0")]), 4);
    let shown = out(&run(&["config", "show", "--origin"], &[("LAPIS_TEMP", "0.5")]));
    assert!(
        shown.contains("temp = 0.5   # LAPIS_TEMP") && shown.contains("generate.max-tokens = 7   # lapis.toml"),
        "{shown}"
    );
    assert!(shown.starts_with("max-tokens = 9   # ") && !shown.contains("= 8"), "{shown}");
    for (text, part) in [
        ("max-token = 3", "max-token: there is no such flag"),
        ("[generat]\ntemp = 1", "no command \"generat\""),
        ("temp = [1]", "temp: a text, a number or true"),
        ("temp = ", "lapis.toml"),
        ("yes = true", "yes: there is no such flag"),
        ("[generate]\ntemp = \"warm\"", "warm"),
    ] {
        std::fs::write(project.join("lapis.toml"), text).unwrap();
        let o = run(&["generate"], &[]);
        assert!(o.status.code() == Some(2) && err(&o).contains(part), "{text}: {}", err(&o));
        // Help is to be had all the same.
        assert!(run(&["--help"], &[]).status.success());
    }
}

#[test]
fn errors_have_codes_that_are_explained() {
    let o = lapis(&["generate", "--model", "/nowhere"]);
    assert!(err(&o).starts_with("error[E0301]: "), "{}", err(&o));
    let o = lapis(&["explain", "e0301"]);
    assert!(o.status.success() && out(&o).contains("exit code 2"), "{}", out(&o));
    assert!(out(&o).lines().all(|l| l.len() <= 80));
    assert!(out(&lapis(&["explain"])).lines().count() >= 12);
    assert_eq!(lapis(&["explain", "E9999"]).status.code(), Some(2));
}

#[cfg(unix)]
#[test]
fn a_reader_that_has_gone_is_no_fault() {
    for arguments in [&["explain"][..], &["generate", "--prompt", "hello"], &["doctor"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lapis"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let o = child.wait_with_output().unwrap();
        assert!(o.status.success() && err(&o).is_empty(), "{arguments:?}: {}", err(&o));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_the_output_is_an_error_and_no_fault() {
    for arguments in [&["doctor"][..], &["explain"], &["generate", "-m", "2"], &["perplexity", "--num-samples", "1"]] {
        let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
        let run = |c: &mut Command| c.args(arguments).stdin(Stdio::null()).output().unwrap();
        let o = run(Command::new(env!("CARGO_BIN_EXE_lapis")).stdout(full()));
        assert!(o.status.code() == Some(4) && err(&o).contains("No space left"), "{arguments:?}: {}", err(&o));
        assert!(!err(&o).contains("panicked"), "{}", err(&o));
        // Not ended by a signal.
        assert!(run(Command::new(env!("CARGO_BIN_EXE_lapis")).stderr(full())).status.code().is_some());
    }
}

#[test]
fn a_text_goes_on_from_a_prompt_cache() {
    let folder = Folder::new("prompt-cache");
    let file = folder.at("begun");
    let whole = out(&lapis(&["generate", "--prompt", "Tell me a story about a fox", "--verbose", "F"]));
    for format in ["a", "b"] {
        let begin = ["cache-prompt", "--prompt", "Tell me a story about", "--prompt-cache-file", &file];
        let o = lapis(&[&begin[..], &["--cache-format", format]].concat());
        assert!(o.status.success() && out(&o).contains("tokens"), "{}", err(&o));
        let o = lapis(&["generate", "--prompt-cache-file", &file, "--prompt", " a fox", "--verbose", "F"]);
        assert_eq!(out(&o), whole, "{}", err(&o));
    }
    let o = lapis(&["generate", "--prompt-cache-file", &file, "--model", DEMO]);
    assert!(!o.status.success() && err(&o).contains("was written for"), "{}", err(&o));
}

#[test]
fn a_chat_folds_what_the_model_thinks() {
    let folder = Folder::new("thinking");
    for name in FILES {
        std::fs::copy(format!("{DEMO}/{name}"), folder.at(name)).unwrap();
    }
    // Markers of thinking in the place of two that the template does not use; the reply begins inside it.
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let text = std::fs::read_to_string(folder.at(name)).unwrap();
        let text = text.replace("<|endoftext|>", "<think>").replace("<|im_start|>", "</think>");
        std::fs::write(folder.at(name), text).unwrap();
    }
    std::fs::write(folder.at("chat_template.jinja"), "{{ messages[-1].content }}<think>").unwrap();
    let dir = folder.0.display().to_string();
    let chat = |flags: &[&str], input: &str| fed(&[&["chat", "--model", &dir, "-m", "6"], flags].concat(), input);
    let folded = chat(&[], "Tell me a story\n/quit\n");
    assert!(out(&folded).trim().is_empty() && err(&folded).contains("thought in "), "{folded:?}");
    let asked = chat(&[], "Tell me a story\n/think\n/quit\n");
    let thoughts = out(&asked).trim().to_string();
    assert!(!thoughts.is_empty(), "{asked:?}");
    let shown = chat(&["--think"], "Tell me a story\n/quit\n");
    assert_eq!(out(&shown).trim(), thoughts);
    let events = chat(&["--json"], "Tell me a story\n/quit\n");
    let events: Vec<Value> = out(&events).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let all: String = events.iter().filter(|e| e["event"] == "reasoning").filter_map(|e| e["text"].as_str()).collect();
    assert_eq!(all.trim(), thoughts);
    let end = events.last().unwrap();
    assert!(end["event"] == "end" && end["generation_tokens"].as_u64().is_some_and(|n| n > 0 && n <= 6), "{end}");
}

#[test]
fn a_chat_is_kept_with_its_settings_and_takes_files() {
    let folder = Folder::new("chat");
    let (kept, notes) = (folder.at("kept.json"), folder.at("notes.txt"));
    std::fs::write(&notes, "the fox is red").unwrap();
    let o = fed(
        &["chat"],
        &format!("/set temp 0.5\n/set max-tokens 4\nhello @{notes}\nhello\n/drop\n/save {kept}\n/quit\n"),
    );
    assert!(o.status.success(), "{}", err(&o));
    let saved: Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
    assert_eq!((saved["settings"]["temp"].as_f64(), saved["settings"]["max-tokens"].as_u64()), (Some(0.5), Some(4)));
    // The oldest message is gone with its reply.
    assert_eq!((saved["messages"].as_array().unwrap().len(), &saved["messages"][0]["content"]), (2, &"hello".into()));
    let again = folder.at("again.json");
    let o = fed(&["chat"], &format!("/load {kept}\n/model\nabout @{notes}\n/save {again}\n/quit\n"));
    let saved: Value = serde_json::from_slice(&std::fs::read(&again).unwrap()).unwrap();
    assert_eq!(saved["settings"]["max-tokens"], 4, "{}", err(&o));
    let message = saved["messages"][2]["content"].as_str().unwrap();
    assert!(message.starts_with("about @") && message.ends_with(":\nthe fox is red"), "{message}");
    assert!(out(&o).contains("the demo model"));
    std::fs::write(&kept, r#"{"messages": [{"role": "user", "content": "x"}], "settings": {"top-p": 7}}"#).unwrap();
    let o = fed(&["chat"], &format!("/load {kept}\n/load nowhere.json\n/quit\n"));
    assert!(err(&o).contains("top_p is 7") && err(&o).contains("nowhere.json"), "{}", err(&o));
    // What does not fit the context is an error with ways out, and the conversation goes on.
    let o = fed(&["chat"], &format!("{}\nhello\n/quit\n", "word ".repeat(600)));
    assert!(err(&o).contains("context 512") && err(&o).contains("/drop") && !out(&o).trim().is_empty(), "{}", err(&o));
}

#[test]
fn tokens_come_with_their_likelihood() {
    let say = |flags: &[&str]| lapis(&[&["generate", "-m", "4", "--prompt", "hello"], flags].concat());
    let line: Value = serde_json::from_str(&out(&say(&["--json", "--logprobs", "3"]))).unwrap();
    let all = line["logprobs"].as_array().unwrap();
    assert_eq!(all.len(), 4);
    assert_eq!(all.iter().filter_map(|t| t["text"].as_str()).collect::<String>(), line["text"].as_str().unwrap());
    for token in all {
        // The likeliest is chosen, and stands first.
        let top = token["top"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["token"], &top[0]["logprob"]), (3, &token["token"], &token["logprob"]));
        let mass: f64 = top.iter().map(|t| t["logprob"].as_f64().unwrap().exp()).sum();
        assert!(mass > 0.0 && mass <= 1.0 + 1e-6, "{token}");
    }
    let text = out(&say(&["--logprobs", "--verbose", "F"]));
    assert_eq!(text.lines().count(), 5, "{text}");
    assert_eq!(out(&say(&["--no-stream", "--verbose", "F"])), out(&say(&["--verbose", "F"])));
}

#[test]
fn a_benchmark_stands_beside_what_the_machine_allows() {
    let flags = ["benchmark", "-p", "16,32", "-g", "4", "-b", "1,2", "-n", "2"];
    let o = lapis(&[&flags[..], &["--json", "--warm"]].concat());
    let all: Value = serde_json::from_str(&out(&o)).unwrap_or_else(|e| panic!("{e}: {}", err(&o)));
    let rows = all["rows"].as_array().unwrap();
    let settings: Vec<_> = rows.iter().map(|r| (r["prompt_tokens"].as_u64(), r["batch_size"].as_u64())).collect();
    assert_eq!(settings, [(16, 1), (16, 2), (32, 1), (32, 2)].map(|(p, b)| (Some(p), Some(b))));
    for key in ["memory", "f32", "int8"] {
        assert!(all["limits"][key].as_f64().is_some_and(|x| x > 1e8), "{all}");
    }
    for row in rows {
        for (rate, limit) in [("generation_tps", "decode_limit_tps"), ("prompt_tps", "prefill_limit_tps_bytes")] {
            let (rate, limit) = (row[rate].as_f64().unwrap(), row[limit].as_f64().unwrap());
            assert!(rate > 0.0 && limit > 0.0, "{row}");
        }
        assert!(row["trials"].as_array().unwrap().len() == 2 && row["first_token_warm"].as_f64().is_some(), "{row}");
    }
    let table = out(&lapis(&[&flags[..], &["--markdown"]].concat()));
    assert_eq!(table.lines().count(), 6, "{table}");
    assert!(table.lines().all(|l| l.matches('|').count() == 8), "{table}");
    let plain = out(&lapis(&["benchmark", "-p", "16", "-g", "4", "-n", "1"]));
    assert!(
        plain.starts_with("Trial 1:  prompt_tps=") && plain.contains("Averages: ") && plain.contains("Limits (prompt ")
    );
}

#[test]
fn shells_and_manuals_know_all_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = out(&lapis(&["completions", shell]));
        assert!(script.contains("cache-prompt") && script.contains("prefill-step-size"), "{shell}");
    }
    let folder = Folder::new("man");
    let dir = folder.at("pages");
    assert!(lapis(&["man", "--output-dir", &dir]).status.success());
    let page = std::fs::read_to_string(format!("{dir}/lapis-generate.1")).unwrap();
    assert!(page.contains(".TH lapis-generate 1") && page.contains("max\\-tokens"), "{page}");
    assert_eq!(out(&lapis(&["man", "generate"])), page);
    assert!(std::fs::read_dir(&dir).unwrap().count() > 15);
}

/// Inputs are rounded as the weights are: other numbers, near those without.
#[test]
fn inputs_of_layers_are_rounded_on_demand() {
    let folder = Folder::new("rounded");
    let (dense, packed) = (folder.at("dense"), folder.at("packed"));
    assert!(lapis(&["convert", "--hf-path", DEMO, "--mlx-path", &dense, "-d"]).status.success());
    let o = lapis(&["convert", "--hf-path", &dense, "--mlx-path", &packed, "-q", "--q-mode", "mxfp8"]);
    assert!(o.status.success(), "{}", err(&o));
    let say = |flags: &[&str]| {
        let common = ["generate", "--model", &packed, "-p", "hello", "--json", "--logprobs", "-m", "6"];
        let o = lapis(&[&common, flags].concat());
        let line: Value = serde_json::from_str(&out(&o)).unwrap_or_else(|e| panic!("{e}: {}", err(&o)));
        line["logprobs"].clone()
    };
    let (plain, rounded) = (say(&[]), say(&["-qa"]));
    assert_eq!(plain[0]["token"], rounded[0]["token"]);
    let far = (plain[0]["logprob"].as_f64().unwrap() - rounded[0]["logprob"].as_f64().unwrap()).abs();
    assert!(far > 0.0 && far < 0.3, "{far}");
    assert!(lapis(&["benchmark", "--model", &packed, "-qa", "-p", "8", "-g", "2", "-n", "1"]).status.success());
}
