//! Models by name on the command line, against a hub on this machine.

#[allow(dead_code)] // The library's tests use the rest.
#[path = "../../lm/tests/hub/server.rs"]
mod server;
mod shared;

use serde_json::Value;
use server::{Fault, Server};
use shared::{DEMO, Folder, err, good, out};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A hub, and a home and cache of this test's own.
struct World {
    server: Server,
    home: PathBuf,
    _folder: Folder,
}

impl World {
    fn new(name: &str) -> World {
        let folder = Folder::new(&format!("hub-{name}"));
        let server = Server::start();
        for file in std::fs::read_dir(DEMO).unwrap().flatten() {
            let name = file.file_name().into_string().unwrap();
            let bytes = std::fs::read(file.path()).unwrap();
            server.put("owner/mlx-demo", "main", &name, &bytes, name.ends_with(".safetensors"));
        }
        server.put("owner/mlx-demo", "main", "README.md", b"---\nlicense: mit\n---\n# Demo\n", false);
        World { server, home: folder.0.clone(), _folder: folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapis"));
        command.args(arguments).stdin(Stdio::null()).current_dir(&self.home);
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("HF_") || n.to_lowercase().ends_with("_proxy"))
        {
            command.env_remove(name);
        }
        command.env_remove("XDG_CACHE_HOME").env("HOME", &self.home).env("HF_ENDPOINT", &self.server.endpoint);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn snapshot(&self) -> PathBuf {
        let commit = self.server.commit("owner/mlx-demo", "main");
        self.home.join(".cache/huggingface/hub/models--owner--mlx-demo/snapshots").join(commit)
    }
}

#[test]
fn a_name_is_a_model_wherever_a_directory_is() {
    let world = World::new("names");
    let ask = ["generate", "--model", "owner/mlx-demo", "--prompt", "hello", "--verbose", "F"];
    let said = good(world.run(&ask));
    let local = good(world.run(&["generate", "--model", DEMO, "--prompt", "hello", "--verbose", "F"]));
    assert_eq!(said, local);
    assert!(!world.server.asked().is_empty());
    // From now on nobody is asked, with or without a network.
    assert_eq!(good(world.run(&ask)), local);
    assert_eq!(good(world.run(&[&ask[..], &["--offline"]].concat())), local);
    let logits = ["logits", "--model", "owner/mlx-demo", "--tokens", "1,2", "--output", "x.npy"];
    let o = world.run(&logits);
    assert!(o.status.success() && err(&o) == "wrote x.npy: float32 [1, 2, 2048]\n", "{}", err(&o));
    good(world.run(&["convert", "--hf-path", "owner/mlx-demo", "--mlx-path", "dense", "-d"]));
    assert!(world.home.join("dense/config.json").exists());
    // Of the hub only the card was asked for, whose front matter goes along.
    let asked = world.server.asked();
    assert!(asked.len() == 1 && asked[0].ends_with("/README.md"), "{asked:?}");
    let card = std::fs::read_to_string(world.home.join("dense/README.md")).unwrap();
    assert!(card.contains("license: mit\n") && card.contains("base_model: owner/mlx-demo\n"), "{card}");
    assert!(card.contains("    lapis convert --hf-path owner/mlx-demo"), "{card}");
    // A directory of that name is nearer.
    std::fs::create_dir_all(world.home.join("owner/mlx-demo")).unwrap();
    let o = world.run(&ask);
    assert!(o.status.code() == Some(2) && err(&o).contains("config.json"), "{}", err(&o));
}

#[test]
fn pull_prints_where_the_model_is() {
    let world = World::new("pull");
    let path = good(world.run(&["pull", "owner/mlx-demo"]));
    assert_eq!(Path::new(path.trim()), world.snapshot());
    let line: Value = serde_json::from_str(&good(world.run(&["pull", "owner/mlx-demo@main", "--json"]))).unwrap();
    assert_eq!(line["commit"].as_str(), Some(world.server.commit("owner/mlx-demo", "main").as_str()));
    // A damaged file is found and fetched again.
    let config = world.snapshot().join("config.json");
    let whole = std::fs::read(&config).unwrap();
    std::fs::write(&config, vec![b' '; whole.len()]).unwrap();
    let o = world.run(&["pull", "owner/mlx-demo", "--verify", "--offline"]);
    assert!(o.status.code() == Some(2) && err(&o).contains("config.json"), "{}", err(&o));
    let o = world.run(&["pull", "owner/mlx-demo", "--verify"]);
    assert!(o.status.success() && err(&o).contains("fetched again"), "{}", err(&o));
    assert_eq!(std::fs::read(&config).unwrap(), whole);
    // A new commit is seen by a pull and not by a mere use.
    world.server.put("owner/mlx-demo", "main", "special_tokens_map.json", b"{}", false);
    let old = good(world.run(&["generate", "--model", "owner/mlx-demo", "--verbose", "F", "--offline"]));
    assert_eq!(Path::new(good(world.run(&["pull", "owner/mlx-demo"])).trim()), world.snapshot());
    assert_eq!(good(world.run(&["generate", "--model", "owner/mlx-demo", "--verbose", "F"])), old);
}

#[test]
fn what_goes_wrong_with_the_hub_ends_with_code_five() {
    let world = World::new("wrong");
    let cases: &[(&[&str], &str, i32)] = &[
        (&["generate", "--model", "owner/nothing"], "near: owner/model", 5),
        (&["pull", "owner/mlx-demo", "--revision", "v9"], "no revision v9", 5),
        (&["pull", "owner/mlx-demo", "--offline"], "not in the cache", 5),
        (&["pull", "no name"], "is no name of a repository", 2),
        (&["generate", "--model", "./nothing"], "does not exist", 2),
        (&["generate", "--model", "nothing"], "does not exist", 2),
        (&["generate", "--model", DEMO, "--revision", "main"], "--revision is for the hub", 2),
        (&["pull", "owner/mlx-demo", "--offline", "--refresh"], "forbids", 2),
        (&["upload", "--path", DEMO, "--upload-repo", "owner/new"], "HF_TOKEN", 5),
        (&["convert", "--hf-path", DEMO, "--mlx-path", "unsent", "--upload-repo", "owner/new"], "HF_TOKEN", 5),
        (&["rm", "owner/nothing"], "is not in the cache", 2),
    ];
    for (arguments, part, code) in cases {
        let o = world.run(arguments);
        let text = err(&o);
        assert!(o.status.code() == Some(*code) && text.contains(part), "{arguments:?}: {text}");
        assert!(text.lines().count() <= 6 && !text.contains("panicked"), "{text}");
    }
    assert!(!world.home.join("unsent").exists());
    world.server.state().token = "secret".into();
    let o = world.run(&["pull", "owner/mlx-demo"]);
    assert!(o.status.code() == Some(5) && err(&o).contains("licence"), "{}", err(&o));
    // The token of a file, as other tools leave it.
    std::fs::create_dir_all(world.home.join(".cache/huggingface")).unwrap();
    std::fs::write(world.home.join(".cache/huggingface/token"), "secret\n").unwrap();
    good(world.run(&["pull", "owner/mlx-demo"]));
    let o = world.command(&["pull", "owner/mlx-demo"]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    good(o);
    let o = world.command(&["ls"]).env_remove("HOME").output().unwrap();
    assert!(o.status.code() == Some(2) && err(&o).contains("HF_HUB_CACHE"), "{}", err(&o));
}

#[test]
fn processes_at_once_and_killed_ones_leave_one_valid_copy() {
    let world = World::new("processes");
    let spawn = || {
        let mut command = world.command(&["pull", "owner/mlx-demo"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // Killed at several points.
    world.server.fail("model.safetensors", &[Fault::Cut(1000); 3]);
    for wait in [1, 5, 10, 20, 40] {
        let mut child = spawn();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let children: Vec<_> = (0..3).map(|_| spawn()).collect();
    for child in children {
        assert_eq!(Path::new(good(child.wait_with_output().unwrap()).trim()), world.snapshot());
    }
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        let same = std::fs::read(world.snapshot().join(file)).unwrap();
        assert!(same == std::fs::read(Path::new(DEMO).join(file)).unwrap(), "{file}");
    }
    let blobs = std::fs::read_dir(world.snapshot().join("../../blobs")).unwrap();
    assert!(blobs.flatten().all(|e| !e.file_name().to_string_lossy().ends_with(".incomplete")));
}

#[cfg(unix)]
#[test]
fn an_interrupted_pull_ends_with_130_and_is_resumed() {
    let world = World::new("interrupt");
    world.server.fail("model.safetensors", &[Fault::Stall(1_000_000)]);
    let mut command = world.command(&["pull", "owner/mlx-demo"]);
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let o = child.wait_with_output().unwrap();
    assert!(o.status.code() == Some(130) && err(&o).contains("the next pull goes on"), "{}", err(&o));
    assert!(!world.snapshot().exists());
    assert_eq!(Path::new(good(world.run(&["pull", "owner/mlx-demo"])).trim()), world.snapshot());
    assert!(world.server.state().ranges.iter().any(|r| r.starts_with("bytes=1")));
}

#[test]
fn the_cache_is_listed_and_cleared() {
    let world = World::new("manage");
    assert!(good(world.run(&["manage", "--scan"])).contains("REPO ID"));
    good(world.run(&["pull", "owner/mlx-demo"]));
    let table = good(world.run(&["mlx_lm.manage", "--scan"]));
    let row = table.lines().find(|l| l.contains("owner/mlx-demo")).unwrap();
    assert!(row.contains("model") && row.contains("seconds ago") && row.contains("models--owner--mlx-demo"), "{row}");
    assert!(!good(world.run(&["manage", "--scan", "--pattern", "qwen"])).contains("owner"));
    let list: Value = serde_json::from_str(&good(world.run(&["ls", "--json"]))).unwrap();
    assert!(list["models"][0]["bytes"].as_u64().unwrap() > 100_000);
    assert!(good(world.run(&["ls"])).contains("main"));
    let answer = |text: &str, arguments: &[&str]| {
        let mut child = world.command(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        out(&child.wait_with_output().unwrap())
    };
    for no in ["", "\n", "n\n", "what\nno\n"] {
        assert!(answer(no, &["manage", "--delete"]).contains("Deletion cancelled"), "{no:?}");
        assert!(world.snapshot().exists());
    }
    assert!(good(world.run(&["manage", "--delete", "--pattern", "qwen"])).contains("No models found"));
    assert!(answer("yes\n", &["manage", "--delete"]).contains("Deleting owner/mlx-demo"));
    assert!(!world.snapshot().exists());
    good(world.run(&["pull", "owner/mlx-demo"]));
    good(world.run(&["rm", "owner/mlx-demo", "--yes"]));
    let left = std::fs::read_dir(world.home.join(".cache/huggingface/hub")).unwrap().flatten();
    assert!(left.into_iter().all(|e| !e.file_name().to_string_lossy().starts_with("models--")));
}

#[test]
fn a_model_goes_up_as_one_commit() {
    let world = World::new("upload");
    world.server.state().token = "secret".into();
    let upload = |arguments: &[&str]| world.command(arguments).env("HF_TOKEN", "secret").output().unwrap();
    world.server.state().part = Some(100_000);
    let said = good(upload(&["upload", "--path", DEMO, "--upload-repo", "owner/new"]));
    assert!(said.contains("/owner/new/commit/"), "{said}");
    let weights = std::fs::read(Path::new(DEMO).join("model.safetensors")).unwrap();
    let digest = server::sha256(&weights);
    {
        let state = world.server.state();
        assert!(state.objects[&digest] == weights);
        assert_eq!(state.made[0]["key"], "header");
        let large: Vec<_> = state.made.iter().filter(|l| l["key"] == "lfsFile").collect();
        assert_eq!((large.len(), &large[0]["value"]["oid"]), (1, &Value::from(digest.as_str())));
        assert!(state.made.iter().any(|l| l["value"]["path"] == "config.json" && l["value"]["encoding"] == "base64"));
    }
    // What the store has is not sent again; without parts another way is taken.
    world.server.asked();
    good(upload(&["upload", "--path", DEMO, "--upload-repo", "owner/new"]));
    assert!(!world.server.asked().iter().any(|l| l.starts_with("PUT")));
    world.server.state().part = None;
    let convert = ["convert", "--hf-path", DEMO, "--mlx-path", "dense", "-d", "--upload-repo", "owner/dense"];
    assert!(good(upload(&convert)).contains("/owner/dense/commit/"));
    let dense = std::fs::read(world.home.join("dense/model.safetensors")).unwrap();
    assert!(world.server.state().objects[&server::sha256(&dense)] == dense);
    let o = world.command(&convert).env("HF_TOKEN", "other").output().unwrap();
    assert!(o.status.code() == Some(2) && err(&o).contains("exists"), "{}", err(&o));
    let o = world.command(&["upload", "--path", DEMO, "--upload-repo", "owner/new"]).env("HF_TOKEN", "other").output();
    assert_eq!(o.unwrap().status.code(), Some(5));
}

#[test]
fn a_lock_pins_commits_and_files() {
    let world = World::new("lock");
    good(world.run(&["pull", "owner/mlx-demo", "--lock"]));
    let (old, lock) = (world.snapshot(), world.home.join("lapis.lock"));
    let text = std::fs::read_to_string(&lock).unwrap();
    let digest = server::sha256(&std::fs::read(old.join("tokenizer.json")).unwrap());
    assert!(text.contains(&digest) && text.contains(&world.server.commit("owner/mlx-demo", "main")), "{text}");
    world.server.put("owner/mlx-demo", "main", "more.json", b"{}", false);
    // The branch has moved; what is pinned stays, unless a revision is asked for.
    for arguments in [&["pull", "owner/mlx-demo"][..], &["pull", "owner/mlx-demo", "--verify", "--offline"]] {
        assert_eq!(Path::new(good(world.run(arguments)).trim()), old);
    }
    good(world.run(&["generate", "--model", "owner/mlx-demo", "--verbose", "F", "--offline"]));
    assert!(!world.snapshot().exists());
    assert_eq!(Path::new(good(world.run(&["pull", "owner/mlx-demo@main"])).trim()), world.snapshot());
    // A file that is not the pinned one is found even where no digest names it.
    let path = old.join("config.json");
    let changed = std::fs::read_to_string(&path).unwrap().replace("512", "511");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, changed).unwrap();
    let o = world.run(&["pull", "owner/mlx-demo", "--verify", "--offline"]);
    assert!(o.status.code() == Some(2) && err(&o).contains("not what lapis.lock says"), "{}", err(&o));
    good(world.run(&["pull", "owner/mlx-demo", "--lock"]));
    assert_eq!(Path::new(good(world.run(&["pull", "owner/mlx-demo"])).trim()), world.snapshot());
    for bad in ["{", "{}", "{\"version\": 1, \"models\": {\"owner/mlx-demo\": {\"commit\": \"../x\", \"files\": {}}}}"]
    {
        std::fs::write(&lock, bad).unwrap();
        let o = world.run(&["pull", "owner/mlx-demo"]);
        assert!(o.status.code() == Some(2) && err(&o).contains("lapis.lock"), "{bad}: {}", err(&o));
    }
}

#[test]
fn fit_knows_before_anything_is_fetched() {
    let world = World::new("fit");
    let text = good(world.run(&["fit", "owner/mlx-demo"]));
    assert!(text.contains("llama") && text.contains("512 of 512 tokens"), "{text}");
    let asked = world.server.asked();
    assert!(!asked.iter().any(|l| l.contains("tokenizer")), "{asked:?}");
    // Nothing came into the cache.
    assert!(!world.snapshot().exists());
    let json = |arguments: &[&str], code: i32| -> Value {
        let o = world.run(&[&["fit", "--json"], arguments].concat());
        assert_eq!(o.status.code(), Some(code), "{}", err(&o));
        serde_json::from_str(&out(&o)).unwrap()
    };
    let (far, near) = (json(&["owner/mlx-demo"], 0), json(&[DEMO], 0));
    let bytes = std::fs::metadata(Path::new(DEMO).join("model.safetensors")).unwrap().len();
    for fit in [&far, &near] {
        assert!(fit["weight_bytes"].as_u64().unwrap().abs_diff(bytes) < bytes / 50, "{fit}");
        assert_eq!((fit["longest_context"].as_u64(), fit["fits"].as_bool()), (Some(512), Some(true)));
    }
    assert_eq!(near["here"], true);
    // Too little memory is an answer: exit code 1. With a little more, part of the context fits.
    let tight = json(&[DEMO, "--memory-limit", "1MB"], 1);
    assert_eq!((tight["longest_context"].as_u64(), tight["fits"].as_bool()), (Some(0), Some(false)));
    let half = json(&[DEMO, "--memory-limit", "5.5MB"], 1);
    assert!((1..512).contains(&half["longest_context"].as_u64().unwrap()), "{half}");
    assert_eq!(half["quantize_to_bits"], 6);
    let o = world.run(&["fit", DEMO, "--memory-limit", "much"]);
    assert!(o.status.code() == Some(2) && err(&o).contains("is no size"), "{}", err(&o));
    assert_eq!(world.run(&["fit", DEMO, "--context", "9999"]).status.code(), Some(2));
}
