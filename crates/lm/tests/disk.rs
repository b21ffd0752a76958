//! What was read before, on disk: a restart changes no text, and whatever happens to files is a miss.

mod shared;

use lapis::ops::quantize::Format;
use lapis_lm::engine::{Prefixes, disk};
use lapis_lm::{Checkpoint, Disk, DiskPrefixes, Engine, Event, KvOptions, Model, Request, Sampling, Sequence, models};
use serde_json::Value;
use shared::golden::{all, tensors, uniform};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const VOCABULARY: usize = 96;
const SECONDS: Duration = Duration::from_secs(20);

fn model(golden: &Value) -> Arc<dyn Model> {
    let config = golden["config"].as_object().unwrap().clone();
    let mut checkpoint = Checkpoint::from_parts(config, tensors(&golden["params"])).unwrap();
    Arc::from(models::load(&mut checkpoint).unwrap())
}

fn golden(name: &str) -> Option<(Arc<dyn Model>, Value)> {
    all().into_iter().find(|g| g.0 == name).map(|(_, golden)| (model(&golden), golden))
}

fn prompt(seed: u64, len: usize) -> Vec<u32> {
    (0..len as u64).map(|i| (uniform(seed, i) * VOCABULARY as f64) as u32).collect()
}

/// A folder that is empty, and goes in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lapis-disk-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        Folder(path)
    }

    /// Files below it.
    fn files(&self) -> Vec<PathBuf> {
        let below = |dir: &Path| -> Vec<PathBuf> {
            std::fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path()).collect()
        };
        let mut files: Vec<PathBuf> = below(&self.0).iter().flat_map(|dir| below(dir)).collect();
        files.sort();
        files
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A process as far as the folder can tell: a model, nothing in memory, and the folder.
struct Process {
    engine: Engine,
    disk: Arc<Disk>,
}

impl Process {
    fn new(folder: &Folder, model: &Arc<dyn Model>, kv: KvOptions) -> Process {
        Process::with(folder, model, kv, 1 << 30)
    }

    fn with(folder: &Folder, model: &Arc<dyn Model>, kv: KvOptions, limit: u64) -> Process {
        let disk = Arc::new(Disk::open(&folder.0, limit).unwrap());
        let prefixes = DiskPrefixes::new(&disk, model, b"config", kv);
        assert!(prefixes.ready(SECONDS));
        let mut engine = Engine::new(Arc::clone(model), VOCABULARY);
        (engine.prefixes, engine.disk, engine.kv) = (Some(Prefixes::new(1 << 28)), Some(prefixes), kv);
        Process { engine, disk }
    }

    /// The texts of prompts that come at once, and how much of each was known; all of it is on disk then.
    fn ask_all(&mut self, prompts: &[&[u32]], salt: u64) -> Vec<(Vec<u32>, usize)> {
        let mut all: Vec<(u64, Vec<u32>, usize)> = Vec::new();
        for prompt in prompts {
            let sampling = Sampling { temperature: 0.8, seed: 5, ..Default::default() };
            let request = Request { prompt: prompt.to_vec(), max_tokens: 12, sampling, salt, ..Default::default() };
            all.push((self.engine.add(request, Sequence::new()).unwrap(), Vec::new(), 0));
        }
        self.engine
            .run(|event| {
                let own = all.iter_mut().find(|a| a.0 == event.id()).unwrap();
                match event {
                    Event::Started { cached, .. } => own.2 = cached,
                    Event::Token { choice, .. } => own.1.push(choice.token),
                    Event::Failed { error, .. } => panic!("{error}"),
                    _ => {}
                }
                true
            })
            .unwrap();
        assert!(self.disk.flush(SECONDS));
        all.into_iter().map(|a| (a.1, a.2)).collect()
    }

    fn ask(&mut self, prompt: &[u32], salt: u64) -> (Vec<u32>, usize) {
        self.ask_all(&[prompt], salt).remove(0)
    }
}

fn cold(model: &Arc<dyn Model>, prompt: &[u32], kv: KvOptions) -> Vec<u32> {
    let folder = Folder::new("none");
    let mut process = Process::new(&folder, model, kv);
    (process.engine.disk, process.engine.prefixes) = (None, None);
    process.ask(prompt, 0).0
}

#[test]
fn a_restart_reads_no_prompt_again_and_changes_no_text() {
    for (name, golden) in all() {
        let most = golden["config"]["n_positions"].as_u64().unwrap_or(1300) as usize - 60;
        let model = model(&golden);
        let folder = Folder::new(&format!("restart-{name}"));
        let long = prompt(1, most);
        let mut longer = long.clone();
        longer.extend(prompt(2, 30));
        let kv = KvOptions::default();
        let want = [cold(&model, &long, kv), cold(&model, &longer, kv)];
        let first = Process::new(&folder, &model, kv).ask(&long, 0);
        assert_eq!(first, (want[0].clone(), 0), "{name}: the first time");
        let again = Process::new(&folder, &model, kv).ask_all(&[&long, &longer, &long], 0);
        let known = if most < disk::LEAST { 0 } else { most - 1 };
        for (i, (text, cached)) in again.into_iter().enumerate() {
            assert_eq!(text, want[i % 2], "{name}: prompt {i} after a restart");
            assert!(cached >= known, "{name}: {cached} of {most} tokens were known");
        }
    }
}

#[test]
fn packed_and_bounded_memories_come_back_too() {
    let Some((_, mut golden)) = golden("llama") else { return };
    let folder = Folder::new("kv");
    // Heads of twice the width, which a group divides.
    for (name, n) in [("num_attention_heads", 2), ("num_key_value_heads", 1), ("head_dim", 32)] {
        golden["config"][name] = n.into();
    }
    let model = model(&golden);
    let packed = KvOptions { format: Some(Format::affine(8, 32).unwrap()), ..Default::default() };
    let bounded = KvOptions { max: Some(300), ..Default::default() };
    let long = prompt(3, 1200);
    for kv in [KvOptions::default(), bounded, packed] {
        let want = cold(&model, &long, kv);
        assert_eq!(
            Process::new(&folder, &model, kv).ask(&long, 0),
            (want.clone(), 0),
            "{kv:?}: settings share nothing"
        );
        assert_eq!(Process::new(&folder, &model, kv).ask(&long, 0), (want, 1199), "{kv:?}");
    }
}

#[test]
fn other_salts_and_other_models_know_nothing() {
    let Some((model, mut golden)) = golden("llama") else { return };
    let folder = Folder::new("salt");
    let long = prompt(4, 700);
    let mut process = Process::new(&folder, &model, KvOptions::default());
    assert_eq!(process.ask(&long, 1).1, 0);
    drop(process);
    let mut process = Process::new(&folder, &model, KvOptions::default());
    assert_eq!([process.ask(&long, 2).1, process.ask(&long, 1).1], [0, 699]);
    // One weight a little different.
    let (_, spec) = golden["params"].as_object_mut().unwrap().iter_mut().next().unwrap();
    spec["scale"] = (spec["scale"].as_f64().unwrap() * 1.001).into();
    let other = self::model(&golden);
    assert_eq!(Process::new(&folder, &other, KvOptions::default()).ask(&long, 1).1, 0);
}

#[test]
fn files_are_shared_where_prompts_begin_alike() {
    let Some((model, _)) = golden("llama") else { return };
    let folder = Folder::new("shared");
    let system = prompt(5, 1100);
    let with = |seed, n| [&system[..], &prompt(seed, n)].concat();
    let (one, two) = (with(6, 300), with(7, 300));
    let kv = KvOptions::default();
    Process::new(&folder, &model, kv).ask(&one, 0);
    let first = disk::usage(&folder.0).bytes;
    let (text, cached) = Process::new(&folder, &model, kv).ask(&two, 0);
    // Up to the last token that is the same.
    let same = one.iter().zip(&two).take_while(|(a, b)| a == b).count();
    assert_eq!((text, cached), (cold(&model, &two, kv), same));
    let second = disk::usage(&folder.0).bytes - first;
    assert!(second < first / 2, "{second} bytes after {first}");
    // A conversation goes on: what a longer file covers goes.
    let mut turn = prompt(8, 300);
    for _ in 0..4 {
        turn.extend(Process::new(&folder, &model, kv).ask(&turn, 9).0);
        turn.extend(prompt(turn.len() as u64, 80));
    }
    let before = disk::usage(&folder.0).files;
    assert!(before <= 2 + 2 + 2, "{before} files");
    let gone = disk::clear(&folder.0);
    assert_eq!((gone.files, folder.files()), (before, vec![]));
}

#[test]
fn damaged_files_are_misses_and_go() {
    let Some((model, _)) = golden("llama") else { return };
    let (folder, kv) = (Folder::new("damage"), KvOptions::default());
    let long = prompt(10, 1500);
    let want = Process::new(&folder, &model, kv).ask(&long, 0).0;
    let whole: Vec<(PathBuf, Vec<u8>)> =
        folder.files().into_iter().map(|p| (p.clone(), std::fs::read(&p).unwrap())).collect();
    assert!(!whole.is_empty());
    for trial in 0..24u64 {
        for (path, bytes) in &whole {
            std::fs::write(path, bytes).unwrap();
        }
        let (path, bytes) = &whole[trial as usize % whole.len()];
        let mut process = None;
        if trial % 3 == 0 {
            // While somebody has it in mind.
            process = Some(Process::new(&folder, &model, kv));
        }
        let at = match trial % 4 {
            0 => (uniform(11, trial) * 40.0) as usize,
            _ => (uniform(12, trial) * bytes.len() as f64) as usize,
        };
        let mut bad = bytes.clone();
        match trial % 5 {
            0 => bad.truncate(at),
            1 => bad.extend([0; 7]),
            2 => bad.fill(0),
            _ => bad[at] ^= 1 << (trial % 8),
        }
        std::fs::write(path, &bad).unwrap();
        let mut process = process.unwrap_or_else(|| Process::new(&folder, &model, kv));
        let (text, cached) = process.ask(&long, 0);
        assert_eq!(text, want, "trial {trial}");
        assert!(cached < 1499 && process.disk.counts().damaged.load(Relaxed) == 1, "trial {trial}: {cached}");
        assert!(
            std::fs::read(path).map_or(true, |now| now == *bytes),
            "trial {trial}: the damaged file is still there"
        );
    }
    // Strange names and folders are left alone.
    let folder_of = whole[0].0.parent().unwrap();
    std::fs::write(folder_of.join("letter.txt"), "dear").unwrap();
    std::fs::write(folder_of.join(format!("{}-0.kv", "0".repeat(32))), "dear").unwrap();
    std::fs::write(folder.0.join("notes"), "dear").unwrap();
    let mut process = Process::new(&folder, &model, kv);
    assert_eq!(process.ask(&long, 0), (want, 1499));
    disk::clear(&folder.0);
    assert!(folder_of.join("letter.txt").exists() && folder.0.join("notes").exists());
}

#[test]
fn a_file_that_vanishes_is_a_miss() {
    let Some((model, _)) = golden("llama") else { return };
    let (folder, kv) = (Folder::new("vanish"), KvOptions::default());
    let long = prompt(13, 900);
    let want = Process::new(&folder, &model, kv).ask(&long, 0).0;
    let mut process = Process::new(&folder, &model, kv);
    disk::clear(&folder.0);
    assert_eq!(process.ask(&long, 0), (want, 0));
    assert_eq!(process.disk.counts().damaged.load(Relaxed), 0);
}

#[test]
fn the_folder_stays_within_its_limit() {
    let Some((model, _)) = golden("llama") else { return };
    let (folder, kv) = (Folder::new("limit"), KvOptions::default());
    let one = {
        Process::new(&folder, &model, kv).ask(&prompt(20, 600), 0);
        disk::usage(&folder.0).bytes
    };
    let limit = 4 * one;
    let mut process = Process::with(&folder, &model, kv, limit);
    for seed in 21..31 {
        // Of use again and again, so it stays.
        let mut first = Process::with(&folder, &model, kv, limit);
        assert_eq!(first.ask(&prompt(20, 600), 0).1, 599, "{seed}");
        process.ask(&prompt(seed, 600), 0);
        assert!(disk::usage(&folder.0).bytes <= limit);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(process.disk.counts().evicted.load(Relaxed) >= 6);
    // Without room nothing is kept, and nothing breaks.
    let folder = Folder::new("no-room");
    let mut process = Process::with(&folder, &model, kv, 1000);
    process.ask(&prompt(20, 600), 0);
    assert_eq!((folder.files(), process.disk.counts().dropped.load(Relaxed) > 0), (vec![], true));
}

#[test]
fn processes_share_a_folder() {
    let Some((model, _)) = golden("llama") else { return };
    let (folder, kv) = (Folder::new("two"), KvOptions::default());
    let prompts: Vec<Vec<u32>> = (0..3).map(|i| prompt(40 + i, 560)).collect();
    let want: Vec<Vec<u32>> = prompts.iter().map(|p| cold(&model, p, kv)).collect();
    let one = disk::LEAST as u64 * 512;
    std::thread::scope(|scope| {
        for k in 0..3u64 {
            let (folder, model, prompts, want) = (&folder, &model, &prompts, &want);
            scope.spawn(move || {
                for round in 0..6 {
                    // One has little room, and lets the others' files go.
                    let mut process = Process::with(folder, model, kv, if k == 2 { one } else { 1 << 30 });
                    let i = (k as usize + round) % prompts.len();
                    assert_eq!(process.ask(&prompts[i], 0).0, want[i]);
                    assert_eq!(process.disk.counts().damaged.load(Relaxed), 0);
                }
            });
        }
    });
    assert!(folder.files().iter().all(|p| p.extension().is_some_and(|e| e == "kv")), "{:?}", folder.files());
}

#[test]
fn half_written_files_go_unless_somebody_writes_them() {
    let Some((model, _)) = golden("llama") else { return };
    let (folder, kv) = (Folder::new("half"), KvOptions::default());
    Process::new(&folder, &model, kv).ask(&prompt(50, 600), 0);
    let inside = folder.files()[0].parent().unwrap().to_path_buf();
    let (dead, held) = (inside.join(".new-1-1"), inside.join(".new-2-1"));
    std::fs::write(&dead, "half").unwrap();
    let file = std::fs::File::create(&held).unwrap();
    file.lock().unwrap();
    Process::new(&folder, &model, kv).ask(&prompt(51, 600), 0);
    assert!(!dead.exists() && held.exists());
}

#[test]
fn a_disk_that_fails_is_told_of_and_changes_nothing() {
    let Some((model, _)) = golden("llama") else { return };
    let (folder, kv) = (Folder::new("fails"), KvOptions::default());
    std::fs::write(&folder.0, "a file").unwrap();
    assert!(Disk::open(&folder.0, 1 << 30).is_err() && Disk::open(folder.0.join("below"), 1 << 30).is_err());
    std::fs::remove_file(&folder.0).unwrap();
    let mut process = Process::new(&folder, &model, kv);
    let long = prompt(52, 600);
    let want = cold(&model, &long, kv);
    // The folder goes, and something else has its name.
    std::fs::remove_dir_all(&folder.0).unwrap();
    std::fs::write(&folder.0, "a file").unwrap();
    assert_eq!(process.ask(&long, 0), (want, 0));
    assert!(process.disk.trouble().is_some() && process.disk.trouble().is_none());
    assert!(process.disk.counts().dropped.load(Relaxed) > 0);
    std::fs::remove_file(&folder.0).unwrap();
}

#[cfg(unix)]
#[test]
fn only_the_owner_reads_files() {
    use std::os::unix::fs::PermissionsExt;
    let Some((model, _)) = golden("llama") else { return };
    let folder = Folder::new("modes");
    Process::new(&folder, &model, KvOptions::default()).ask(&prompt(53, 600), 0);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let file = &folder.files()[0];
    assert_eq!([mode(&folder.0), mode(file.parent().unwrap()), mode(file)], [0o700, 0o700, 0o600]);
}
