//! Prompts that outlive a server.

mod common;

use common::{DEMO, JSON, ask, get, post, server};
use lapis_lm::Files;
use lapis_serve::{Key, Settings, Source};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A folder that goes in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lapis-serve-disk-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// The demo model, with room for long prompts.
fn model() -> Source {
    let mut config: Value = serde_json::from_slice(DEMO.config).unwrap();
    config["max_position_embeddings"] = 4096.into();
    Source::Files(Files { config: config.to_string().leak().as_bytes(), ..DEMO })
}

fn settings(settings: &mut Settings, folder: &Folder) {
    settings.model.1 = model();
    settings.disk_cache = Some((folder.0.clone(), 1 << 30));
    let key = |name: &str| Key { name: name.into(), secret: format!("secret of {name}") };
    settings.keys = vec![key("one"), key("two")];
    settings.admin_key = Some("admin".into());
}

/// The text of a reply to a prompt, and tokens of it that were known.
fn say(address: std::net::SocketAddr, key: &str, prompt: &str, salt: &str) -> (String, u64) {
    let body = json!({"prompt": prompt, "max_tokens": 8, "temperature": 0, "cache_salt": salt});
    let headers = format!("{JSON}Authorization: Bearer secret of {key}\r\n");
    let (status, _, text) = ask(address, "POST", "/v1/completions", &headers, &body.to_string());
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let known = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    (answer["choices"][0]["text"].as_str().unwrap().to_string(), known)
}

#[test]
fn prompts_are_known_after_a_restart_to_those_who_sent_them() {
    let folder = Folder::new("restart");
    let prompt = "The fox and the hare went into the wood. ".repeat(60);
    let admin = |address, method| {
        let (status, _, text) = ask(address, method, "/admin/cache", "Authorization: Bearer admin\r\n", "");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let (first, address) = server(|s| settings(s, &folder));
    let (text, known) = say(address, "one", &prompt, "a");
    assert_eq!(known, 0);
    first.stop();
    // The other key comes first now; that changes nobody's prompts.
    let (second, address) = server(|s| {
        settings(s, &folder);
        s.keys.reverse();
    });
    assert_eq!(say(address, "two", &prompt, "a"), (text.clone(), 0), "another key");
    assert_eq!(say(address, "one", &prompt, "b"), (text.clone(), 0), "another salt");
    let (again, known) = say(address, "one", &prompt, "a");
    assert!(again == text && known > 256, "{known} tokens were known");
    let told = admin(address, "GET");
    assert_eq!(told["disk"]["hits"], 1);
    assert_eq!(told["disk"]["dir"], json!(folder.0));
    let metrics = ask(address, "GET", "/metrics", "Authorization: Bearer secret of one\r\n", "").2;
    assert!(metrics.contains("\nlapis_prefix_disk_hits_total 1\n"), "{metrics}");
    assert!(metrics.contains("\nlapis_prefix_disk_misses_total 2\n"), "{metrics}");
    assert!(second.service.disk.as_ref().unwrap().flush(std::time::Duration::from_secs(10)));
    let gone = admin(address, "DELETE");
    assert!(gone["disk"]["files"].as_u64() >= Some(3), "{gone}");
    second.stop();
    let (third, address) = server(|s| settings(s, &folder));
    assert_eq!(say(address, "one", &prompt, "a"), (text, 0), "after all was cleared");
    third.stop();
}

#[test]
fn a_folder_that_cannot_be_used_is_done_without() {
    let folder = Folder::new("broken");
    std::fs::write(&folder.0, "a file").unwrap();
    let (server, address) = server(|s| s.disk_cache = Some((folder.0.clone(), 1 << 30)));
    assert!(server.service.disk.is_none());
    assert_eq!(post(address, "/v1/completions", &json!({"prompt": "a", "max_tokens": 2})).0, 200);
    assert_eq!(get(address, "/health").0, 200);
    server.stop();
    std::fs::remove_file(&folder.0).unwrap();
}
