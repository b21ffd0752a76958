//! Models by name, against a hub on this machine: fresh, resumed, cached, refused, damaged, shared.

#[allow(dead_code)] // The command line's tests use the rest.
mod server;

use lapis::ErrorKind;
use lapis_lm::hub::{Hub, Name, Settings};
use server::{Fault, Server};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A cache of this test's own, gone at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("lapis-hub-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        Folder(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn settings(endpoint: &str, cache: &Path) -> Settings {
    Settings {
        cache: cache.to_path_buf(),
        endpoint: endpoint.to_string(),
        token: None,
        offline: false,
        links: true,
        answer: Duration::from_secs(5),
        stall: Duration::from_secs(5),
        patience: Duration::from_millis(1),
    }
}

fn hub(server: &Server, cache: &Folder) -> Hub {
    Hub::new(settings(&server.endpoint, &cache.0)).unwrap()
}

fn weights() -> Vec<u8> {
    (0..3_000_000u32).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8).collect()
}

/// A hub with one model, in a branch and another one.
fn model() -> Server {
    let server = Server::start();
    for revision in ["main", "refs/pr/1"] {
        let config = format!("{{\"model_type\": \"llama\", \"revision\": {revision:?}}}");
        server.put("owner/model", revision, "config.json", config.as_bytes(), false);
        server.put("owner/model", revision, "tokenizer.json", b"{}", false);
        server.put("owner/model", revision, "extra/notes.json", b"{}", false);
        server.put("owner/model", revision, "modeling.py", b"raise SystemExit", false);
        server.put("owner/model", revision, "pytorch_model.bin", b"pickle", true);
        server.put("owner/model", revision, "model.safetensors", &weights(), true);
    }
    server
}

fn get(hub: &Hub, name: &str) -> lapis::Result<PathBuf> {
    hub.model(&Name::parse(name).unwrap(), false, &|_, _| true)
}

fn said(result: lapis::Result<PathBuf>) -> (ErrorKind, String) {
    let e = result.unwrap_err();
    (e.kind(), e.message().to_string())
}

/// That a snapshot holds the model and nothing unfinished is left beside it.
fn check(dir: &Path) {
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights());
    assert_eq!(std::fs::read(dir.join("extra/notes.json")).unwrap(), b"{}");
    for absent in ["modeling.py", "pytorch_model.bin"] {
        assert!(!dir.join(absent).exists(), "{absent}");
    }
    let blobs = std::fs::read_dir(dir.join("../../blobs")).unwrap();
    let names: Vec<_> = blobs.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|n| n.len() == 64 || n.len() == 40), "{names:?}");
    assert!(std::fs::read_dir(dir).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().starts_with('.')));
}

#[test]
fn a_model_is_fetched_once_and_then_used_without_a_network() {
    let (server, cache) = (model(), Folder::new("fresh"));
    let hub = hub(&server, &cache);
    let most = AtomicU64::new(0);
    let name = Name::parse("owner/model").unwrap();
    let watch = |done: u64, total: u64| {
        assert!(done <= total);
        most.fetch_max(done, Relaxed);
        true
    };
    let dir = hub.model(&name, false, &watch).unwrap();
    check(&dir);
    assert!(most.load(Relaxed) > weights().len() as u64);
    let commit = server.commit("owner/model", "main");
    assert_eq!(dir, cache.0.join("models--owner--model/snapshots").join(&commit));
    assert_eq!(std::fs::read_to_string(cache.0.join("models--owner--model/refs/main")).unwrap(), commit);
    let link = std::fs::read_link(dir.join("extra/notes.json")).unwrap();
    assert!(link.starts_with("../../../blobs"), "{link:?}");
    assert!(!server.asked().is_empty());
    // Again: nobody is asked.
    assert_eq!(get(&hub, "owner/model").unwrap(), dir);
    assert_eq!(get(&hub, &format!("owner/model@{commit}")).unwrap(), dir);
    assert_eq!(server.asked(), [""; 0]);
    // A refresh asks for the list alone.
    assert_eq!(hub.model(&name, true, &|_, _| true).unwrap(), dir);
    assert_eq!(server.asked().len(), 1);
    assert!(hub.verify(&dir).unwrap().is_empty());
    std::fs::write(dir.join("config.json"), "{ }").unwrap();
    assert_eq!(hub.verify(&dir).unwrap(), [dir.join("config.json")]);
}

#[test]
fn a_list_without_digests_will_do() {
    let (server, cache) = (model(), Folder::new("bare"));
    server.state().bare_list = true;
    check(&get(&hub(&server, &cache), "owner/model").unwrap());
    let log = server.asked();
    assert!(log.iter().any(|l| l.starts_with("HEAD ") && l.ends_with("/model.safetensors")), "{log:?}");
    // The head of a large file does not lead to the store.
    assert!(!log.iter().any(|l| l.starts_with("HEAD /store")), "{log:?}");
}

#[test]
fn what_was_cut_goes_on_where_it_ended() {
    let (server, cache) = (model(), Folder::new("cut"));
    let cuts: Vec<Fault> = (1..=12).map(|i| Fault::Cut(100_000 + 777 * i)).collect();
    server.fail("model.safetensors", &cuts);
    server.fail("config.json", &[Fault::Cut(5), Fault::Status(503, "")]);
    check(&get(&hub(&server, &cache), "owner/model").unwrap());
    let ranges = server.state().ranges.clone();
    assert!(ranges.contains(&"bytes=100777-".to_string()) && ranges.len() == 13, "{ranges:?}");
}

#[test]
fn a_later_process_takes_up_what_an_earlier_one_left() {
    let (server, cache) = (model(), Folder::new("stop"));
    let hub = hub(&server, &cache);
    let name = Name::parse("owner/model").unwrap();
    let (kind, text) = said(hub.model(&name, false, &|done, _| done < 1_000_000));
    assert!(kind == ErrorKind::Io && text.contains("stopped"), "{text}");
    // Nothing says that the model is there.
    assert!(!cache.0.join("models--owner--model/refs/main").exists());
    assert!(hub.cache.snapshot(&name).is_none());
    check(&get(&hub, "owner/model").unwrap());
    let ranges = server.state().ranges.clone();
    let from = ranges.iter().filter_map(|r| r[6..].trim_end_matches('-').parse::<u64>().ok()).max().unwrap();
    assert!(from > 500_000, "{ranges:?}");
}

#[test]
fn a_hub_that_falls_silent_is_asked_again() {
    let (server, cache) = (model(), Folder::new("stall"));
    server.fail("model.safetensors", &[Fault::Stall(1_000_000)]);
    let mut settings = settings(&server.endpoint, &cache.0);
    settings.stall = Duration::from_millis(300);
    let began = std::time::Instant::now();
    check(&get(&Hub::new(settings).unwrap(), "owner/model").unwrap());
    assert!(began.elapsed() < Duration::from_millis(2900));
    let ranges = server.state().ranges.clone();
    assert!(ranges.len() == 1 && ranges[0].len() > "bytes=0-".len(), "{ranges:?}");
}

#[test]
fn wherever_it_is_stopped_the_next_pull_completes() {
    let server = model();
    let total = weights().len() as u64;
    for i in 0..50 {
        let cache = Folder::new("points");
        let hub = hub(&server, &cache);
        let name = Name::parse("owner/model").unwrap();
        let stop = total * i / 49;
        if hub.model(&name, false, &|done, _| done < stop).is_err() {
            assert!(hub.cached(&name).unwrap().is_none(), "stopped at {stop}");
        }
        check(&get(&hub, "owner/model").unwrap());
    }
}

#[test]
fn hubs_that_cannot_go_on_start_again() {
    let (server, cache) = (model(), Folder::new("whole"));
    server.fail("model.safetensors", &[Fault::Cut(2_000_000), Fault::Whole]);
    check(&get(&hub(&server, &cache), "owner/model").unwrap());
    // What was left is longer than the file, or not its beginning.
    for left in [vec![7; 4_000_000], vec![7; 1000]] {
        let cache = Folder::new("left");
        let blobs = cache.0.join("models--owner--model/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{}.incomplete", server::sha256(&weights()))), left).unwrap();
        check(&get(&hub(&server, &cache), "owner/model").unwrap());
    }
}

#[test]
fn content_that_is_not_what_its_digest_says_is_never_published() {
    let (server, cache) = (model(), Folder::new("corrupt"));
    server.fail("model.safetensors", &[Fault::Corrupt]);
    check(&get(&hub(&server, &cache), "owner/model").unwrap());
    let cache = Folder::new("corrupt2");
    server.fail("config.json", &[Fault::Corrupt, Fault::Corrupt]);
    let hub = hub(&server, &cache);
    let (kind, text) = said(get(&hub, "owner/model"));
    assert!(kind == ErrorKind::Network && text.contains("config.json came twice"), "{text}");
    assert!(hub.cache.snapshot(&Name::parse("owner/model").unwrap()).is_none());
    check(&get(&hub, "owner/model").unwrap());
}

#[test]
fn revisions_live_side_by_side_and_share_blobs() {
    let (server, cache) = (model(), Folder::new("revision"));
    let hub = hub(&server, &cache);
    let main = get(&hub, "owner/model").unwrap();
    server.asked();
    let other = get(&hub, "owner/model@refs/pr/1").unwrap();
    check(&other);
    assert!(main != other && std::fs::read_to_string(other.join("config.json")).unwrap().contains("refs/pr/1"));
    assert!(!server.asked().iter().any(|l| l.contains("/store/")));
    assert_eq!(get(&hub, "owner/model@refs/pr/1").unwrap(), other);
    let (kind, text) = said(get(&hub, "owner/model@v9"));
    assert!(kind == ErrorKind::Network && text.contains("no revision v9") && text.contains("refs/pr/1"), "{text}");
    let all = hub.cache.scan();
    assert_eq!((all.len(), all[0].id.as_str(), all[0].revisions.len()), (1, "owner/model", 2));
    // Two configs, the weights, and one blob for the files that are equal.
    assert_eq!(all[0].files, 4);
    hub.cache.remove(&all[0]).unwrap();
    assert!(hub.cache.scan().is_empty());
}

#[test]
fn offline_opens_no_connection_and_says_what_is_missing() {
    let (server, cache) = (model(), Folder::new("offline"));
    let mut offline = hub(&server, &cache);
    offline.offline = true;
    let (kind, text) = said(get(&offline, "owner/model"));
    assert!(kind == ErrorKind::Network && text.contains("not in the cache") && text.contains("lapis pull"), "{text}");
    let dir = get(&hub(&server, &cache), "owner/model").unwrap();
    server.asked();
    assert_eq!(get(&offline, "owner/model").unwrap(), dir);
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let (_, text) = said(get(&offline, "owner/model"));
    assert!(text.contains("lacks model.safetensors"), "{text}");
    assert_eq!(server.asked(), [""; 0]);
    // With a network only the link is missing: its blob is there.
    check(&get(&hub(&server, &cache), "owner/model").unwrap());
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn what_is_refused_is_explained() {
    let (server, cache) = (model(), Folder::new("refused"));
    let hub = |token: Option<&str>| {
        let mut settings = settings(&server.endpoint, &cache.0);
        settings.token = token.map(str::to_string);
        Hub::new(settings).unwrap()
    };
    let (_, text) = said(get(&hub(None), "owner/modell"));
    assert!(text.contains("does not exist") && text.contains("near: owner/model"), "{text}");
    server.state().token = "secret".into();
    let (kind, text) = said(get(&hub(None), "owner/model"));
    assert!(kind == ErrorKind::Network && text.contains("gated") && text.contains("HF_TOKEN"), "{text}");
    assert!(text.contains("licence") && text.contains("/owner/model"), "{text}");
    let (_, text) = said(get(&hub(Some("wrong")), "owner/model"));
    assert!(text.contains("your token") && !text.contains("wrong"), "{text}");
    // The token goes to the hub and not to the store behind it, which would refuse.
    check(&get(&hub(Some("secret")), "owner/model").unwrap());
    let cases = [(401, "", "private"), (403, "", "licence"), (429, "", "fewer requests"), (500, "", "try again later")];
    for (status, code, part) in cases {
        server.fail("list", &[Fault::Status(status, code); 4]);
        let name = Name::parse("owner/model").unwrap();
        let (kind, text) = said(hub(None).model(&name, true, &|_, _| true));
        assert!(kind == ErrorKind::Network && text.contains(part), "{status}: {text}");
        assert!(text.lines().count() <= 6, "{text}");
    }
    let nobody = Hub::new(settings("http://127.0.0.1:1", &Folder::new("nobody").0)).unwrap();
    let (kind, text) = said(get(&nobody, "owner/model"));
    assert!(kind == ErrorKind::Network && text.contains("cannot reach http://127.0.0.1:1"), "{text}");
}

#[test]
fn repositories_that_are_no_models_and_names_that_leave_the_cache_are_refused() {
    let (server, cache) = (Server::start(), Folder::new("strange"));
    server.put("owner/bin", "main", "config.json", b"{}", false);
    server.put("owner/bin", "main", "pytorch_model.bin", b"x", true);
    let (_, text) = said(get(&hub(&server, &cache), "owner/bin"));
    assert!(text.contains("no model*.safetensors"), "{text}");
    server.put("owner/evil", "main", "../../evil.json", b"{}", false);
    let (_, text) = said(get(&hub(&server, &cache), "owner/evil"));
    assert!(text.contains("no file may be called"), "{text}");
    assert!(
        cache.0.exists() == cache.0.join("models--owner--evil").exists()
            || hub(&server, &cache).cache.scan().is_empty()
    );
}

#[test]
fn copies_serve_where_links_are_off() {
    let (server, cache) = (model(), Folder::new("copies"));
    let mut settings = settings(&server.endpoint, &cache.0);
    settings.links = false;
    let hub = Hub::new(settings).unwrap();
    let dir = get(&hub, "owner/model").unwrap();
    check(&dir);
    assert!(std::fs::read_link(dir.join("config.json")).is_err());
    assert_eq!(get(&hub, "owner/model").unwrap(), dir);
}

#[test]
fn two_at_once_leave_one_valid_copy() {
    let (server, cache) = (model(), Folder::new("two"));
    let dirs: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..3).map(|_| scope.spawn(|| get(&hub(&server, &cache), "owner/model").unwrap())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    check(&dirs[0]);
    // Each file was fetched by one of them.
    let fetched = server.asked().iter().filter(|l| l.starts_with("GET /store/")).count();
    assert_eq!(fetched, 1);
}

#[test]
fn an_outline_has_the_shapes_and_takes_no_room() {
    let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model"));
    let (server, cache) = (Server::start(), Folder::new("outline"));
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let bytes = std::fs::read(demo.join(file)).unwrap();
        server.put("owner/demo", "main", file, &bytes, file.ends_with("safetensors"));
    }
    let hub = hub(&server, &cache);
    let name = Name::parse("owner/demo").unwrap();
    let outline = hub.outline(&name).unwrap();
    let shapes = |dir: &Path| -> Vec<(String, Vec<usize>)> {
        let checkpoint = lapis_lm::Checkpoint::open(dir).unwrap();
        checkpoint.tensors.iter().map(|(n, a)| (n.clone(), a.shape().to_vec())).collect()
    };
    assert_eq!(shapes(outline.dir()), shapes(demo));
    assert!(!outline.dir().join("tokenizer.json").exists());
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let file = outline.dir().join("model.safetensors").metadata().unwrap();
        assert!(file.blocks() * 512 < file.len() / 10, "{} blocks", file.blocks());
    }
    let dir = outline.dir().to_path_buf();
    drop(outline);
    assert!(!dir.exists() && hub.cached(&name).unwrap().is_none());
}
