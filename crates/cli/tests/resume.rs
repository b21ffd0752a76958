//! Writing a model that is interrupted: nothing has the target's name, and the same command goes on from what was finished.
#![cfg(unix)]

mod shared;

use serde_json::{Map, Value, json};
use shared::{DEMO, Folder, err, out};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

/// A Llama of many layers whose weights are a pattern, in the folder `big`.
fn model(folder: &Folder) {
    let dir = folder.0.join("big");
    std::fs::create_dir(&dir).unwrap();
    let (mut header, mut end) = (Map::new(), 0u64);
    let mut add = |name: &str, shape: &[u64]| {
        let bytes = shape.iter().product::<u64>() * 2;
        header.insert(name.into(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    };
    add("model.embed_tokens.weight", &[2048, 256]);
    add("model.norm.weight", &[256]);
    for i in 0..24 {
        let layer = |name: &str| format!("model.layers.{i}.{name}.weight");
        for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"] {
            add(&layer(name), &[256, 256]);
        }
        add(&layer("mlp.gate_proj"), &[512, 256]);
        add(&layer("mlp.up_proj"), &[512, 256]);
        add(&layer("mlp.down_proj"), &[256, 512]);
        add(&layer("input_layernorm"), &[256]);
        add(&layer("post_attention_layernorm"), &[256]);
    }
    let config = json!({
        "model_type": "llama", "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 24,
        "num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(Path::new(DEMO).join(file), dir.join(file)).unwrap();
    }
    let mut text = serde_json::to_vec(&header).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut file = std::io::BufWriter::new(std::fs::File::create(dir.join("model.safetensors")).unwrap());
    file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&text).unwrap();
    // Numbers about one, of either sign.
    let word = |i: u64| 0x3f00u16 | (i.wrapping_mul(2_654_435_769) >> 13) as u16 & 0x80ff;
    (0..end / 2).for_each(|i| file.write_all(&word(i).to_le_bytes()).unwrap());
}

/// The one directory in the making of what will be `name`.
fn partial(folder: &Folder, name: &str) -> Option<PathBuf> {
    let begin = format!("{name}.partial-");
    let all = std::fs::read_dir(&folder.0).unwrap().map(|e| e.unwrap().path());
    let mut found = all.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(&begin));
    let first = found.next();
    assert!(found.next().is_none(), "two of them");
    first
}

/// The files that are finished there, with what tells a file from its copy.
fn finished(dir: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read(dir.join("resume.json")).unwrap_or_default();
    let list: Value = serde_json::from_slice(&text).unwrap_or_default();
    let names = list["finished"].as_object().into_iter().flat_map(|all| all.keys().cloned());
    names.filter_map(|name| Some((name.clone(), dir.join(&name).metadata().ok()?.ino()))).collect()
}

/// Starts a command and waits until `count` files of `name` are finished.
fn begin(folder: &Folder, line: &str, name: &str, count: usize) -> Child {
    let mut child = folder.command(line).stdout(std::process::Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while partial(folder, name).is_none_or(|dir| finished(&dir).len() < count) {
        assert!(child.try_wait().unwrap().is_none(), "{line}: it was done before it could be stopped");
        assert!(began.elapsed() < Duration::from_secs(300), "{line}: nothing is finished");
        std::thread::sleep(Duration::from_micros(200));
    }
    child
}

/// The same, killed there; what is finished.
fn killed(folder: &Folder, line: &str, name: &str, count: usize) -> BTreeMap<String, u64> {
    let mut child = begin(folder, line, name, count);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!folder.0.join(name).exists());
    finished(&partial(folder, name).unwrap())
}

/// All files of a model but its card, which has the command in it.
fn contents(folder: &Folder, name: &str) -> BTreeMap<String, Vec<u8>> {
    let all = std::fs::read_dir(folder.0.join(name)).unwrap().map(|e| e.unwrap());
    let all = all.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()));
    all.filter(|(name, _)| name != "README.md" && name != "quantization_report.json").collect()
}

fn good(o: &Output) {
    assert!(o.status.success(), "{}{}", out(o), err(o));
}

/// Asserts that the model is whole, and that the files of `kept` are the very ones.
fn whole(folder: &Folder, name: &str, like: &str, kept: &BTreeMap<String, u64>) {
    assert!(contents(folder, name) == contents(folder, like), "{name} is not {like}");
    for (file, inode) in kept {
        assert_eq!(folder.0.join(name).join(file).metadata().unwrap().ino(), *inode, "{file} was written again");
    }
    let left: Vec<_> = std::fs::read_dir(&folder.0).unwrap().map(|e| e.unwrap().file_name()).collect();
    let of_it = |f: &std::ffi::OsString| f.to_str().unwrap().starts_with(&format!(".{name}"));
    assert!(partial(folder, name).is_none() && !left.iter().any(of_it), "{left:?}");
}

#[test]
fn a_conversion_that_is_killed_goes_on_where_it_ended() {
    let folder = Folder::new("resume-kill");
    model(&folder);
    let line = |to: &str| format!("convert --hf-path big --mlx-path {to} -q --max-shard-size 400KB");
    good(&folder.run(&line("once")));
    let files = contents(&folder, "once").keys().filter(|f| f.ends_with(".safetensors")).count();
    assert!(files > 20, "{files}");
    for count in [1, 4] {
        let kept = killed(&folder, &line("out"), "out", count);
        let o = folder.run(&line("out"));
        good(&o);
        let text = format!("[INFO] Going on with an interrupted run: {} file", kept.len());
        assert!(kept.len() >= count && kept.len() < files && out(&o).contains(&text), "{}", out(&o));
        whole(&folder, "out", "once", &kept);
        std::fs::remove_dir_all(folder.0.join("out")).unwrap();
    }
    // A file that is damaged meanwhile is made anew, and others stay.
    let mut kept = killed(&folder, &line("out"), "out", 3);
    let (file, _) = kept.pop_first().unwrap();
    let path = partial(&folder, "out").unwrap().join(&file);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let o = folder.run(&line("out"));
    assert!(out(&o).contains(&format!("{file} is damaged and made anew")), "{}", out(&o));
    whole(&folder, "out", "once", &kept);
}

#[test]
fn other_settings_and_another_source_begin_anew() {
    let folder = Folder::new("resume-other");
    model(&folder);
    let line = |to: &str, how: &str| format!("convert --hf-path big --mlx-path {to} {how} --max-shard-size 400KB");
    let anew = |o: &Output| {
        good(o);
        assert!(out(o).contains("is of an interrupted run with other settings or another source"), "{}", out(o));
        assert!(!out(o).contains("Going on"), "{}", out(o));
    };
    good(&folder.run(&line("once", "-q --q-bits 8")));
    killed(&folder, &line("out", "-q"), "out", 2);
    anew(&folder.run(&line("out", "-q --q-bits 8")));
    whole(&folder, "out", "once", &BTreeMap::new());
    std::fs::remove_dir_all(folder.0.join("out")).unwrap();
    killed(&folder, &line("out", "-q --q-bits 8"), "out", 2);
    let weights = std::fs::File::options().append(true).open(folder.0.join("big/model.safetensors")).unwrap();
    weights.set_modified(std::time::SystemTime::now()).unwrap();
    anew(&folder.run(&line("out", "-q --q-bits 8")));
    whole(&folder, "out", "once", &BTreeMap::new());
}

#[test]
fn ctrl_c_ends_a_conversion_at_a_good_place() {
    let folder = Folder::new("resume-signal");
    model(&folder);
    let line = |to: &str| format!("convert --hf-path big --mlx-path {to} -d --max-shard-size 400KB");
    good(&folder.run(&line("once")));
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let mut child = begin(&folder, &line("out"), "out", 2);
        // While it writes, a second one is told who the first is.
        let o = folder.run(&line("out"));
        let busy = format!("process {} is writing this directory", child.id());
        assert!(!o.status.success() && err(&o).contains(&busy), "{}", err(&o));
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(!folder.0.join("out").exists());
        let dir = partial(&folder, "out").unwrap();
        let kept = finished(&dir);
        // What was not finished is not there.
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), kept.len() + 1);
        good(&folder.run(&line("out")));
        whole(&folder, "out", "once", &kept);
        std::fs::remove_dir_all(folder.0.join("out")).unwrap();
    }
}

#[test]
fn a_quantizer_that_is_killed_while_it_writes_goes_on() {
    let folder = Folder::new("resume-gptq");
    let line = |to: &str| {
        format!(
            "gptq --model {DEMO} --bits 4 --mlx-path {to} --sequence-length 64 --num-samples 2 --report-samples 0 --max-shard-size 60KB"
        )
    };
    good(&folder.run(&line("once")));
    let kept = killed(&folder, &line("out"), "out", 2);
    let o = folder.run(&line("out"));
    good(&o);
    assert!(out(&o).contains("Going on with an interrupted run"), "{}", out(&o));
    whole(&folder, "out", "once", &kept);
}
