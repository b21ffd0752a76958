//! Models by name: the Hugging Face cache, and downloads into it.
//!
//! [`Hub::model`] finds the directory of `owner/name`: a complete copy in the cache, which any tool may have made, is
//! used as it is and no host is asked; what is missing is fetched, checked and published there. Only data is fetched,
//! and nothing of it is ever run. Knows no architecture and prints nothing.

mod cache;
pub(crate) mod digest;
mod fetch;
mod http;
mod lock;
mod outline;
pub mod share;
mod upload;

pub use cache::{Cache, Repository};
pub(crate) use digest::base64;
pub use lock::Lock;
pub use outline::Outline;

use http::Client;
use lapis::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;

/// Files of a model, as mlx-lm names them; program code is left where it is.
pub const PATTERNS: &[&str] =
    &["*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "tiktoken.model", "*.txt", "*.jsonl", "*.jinja"];

/// Told how many bytes of how many are there; `false` stops, and what is there is kept.
pub type Watch<'a> = &'a (dyn Fn(u64, u64) -> bool + Sync);

/// A repository and a revision of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name {
    /// `owner/name`.
    pub repo: String,
    /// A branch, tag or commit.
    pub revision: String,
}

impl Name {
    /// Reads `owner/name` or `owner/name@revision`.
    ///
    /// # Errors
    /// A text that no repository can have as its name.
    pub fn parse(text: &str) -> Result<Name> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let part = |p: &str| {
            let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            !p.is_empty() && p.bytes().all(good) && !p.starts_with(['.', '-']) && !p.ends_with(['.', '-'])
        };
        let parts = repo.split('/').count();
        if parts > 2 || repo.len() > 96 || !repo.split('/').all(part) || repo.contains("--") || repo.contains("..") {
            return Err(Error::value(format!("[hub] {:?} is no name of a repository: owner/name is", cut(text))));
        }
        Name { repo: repo.into(), revision: "main".into() }.at(Some(revision))
    }

    /// The same repository at another revision, where one is given.
    ///
    /// # Errors
    /// A text that no revision can have as its name.
    pub fn at(mut self, revision: Option<&str>) -> Result<Name> {
        if let Some(revision) = revision {
            // Git's own rules, roughly; a revision becomes a file name under refs/.
            let bad = |c: char| c.is_control() || c.is_whitespace() || "\\:?*[~^@".contains(c);
            let part = |p: &str| p.is_empty() || p.starts_with('.') || p.ends_with(".lock");
            if revision.len() > 200 || revision.contains(bad) || revision.split('/').any(part) {
                return Err(Error::value(format!("[hub] {:?} is no name of a revision", cut(revision))));
            }
            self.revision = revision.to_string();
        }
        Ok(self)
    }

    /// Whether the revision is a commit, which never moves.
    pub fn is_commit(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|b| b.is_ascii_hexdigit())
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.repo),
            revision => write!(f, "{}@{revision}", self.repo),
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

/// A hub and the cache of what came from it.
pub struct Hub {
    /// The cache.
    pub cache: Cache,
    /// No host is asked.
    pub offline: bool,
    client: Client,
}

/// How a hub is reached; [`Settings::from_env`] reads what other tools read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cache's directory.
    pub cache: PathBuf,
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// Who asks, for what is private or gated.
    pub token: Option<String>,
    /// No host is asked.
    pub offline: bool,
    /// Snapshots are links to blobs; otherwise copies.
    pub links: bool,
    /// Longest wait for an answer.
    pub answer: Duration,
    /// Longest wait for further bytes.
    pub stall: Duration,
    /// The wait before the second try.
    pub patience: Duration,
}

impl Settings {
    /// From `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`; `HF_ENDPOINT`; `HF_TOKEN`,
    /// `HUGGING_FACE_HUB_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`; `HF_HUB_OFFLINE`,
    /// `TRANSFORMERS_OFFLINE`; `HF_HUB_DISABLE_SYMLINKS`; `HF_HUB_ETAG_TIMEOUT`, `HF_HUB_DOWNLOAD_TIMEOUT`.
    ///
    /// # Errors
    /// No home directory, an endpoint that is no http address.
    pub fn from_env() -> Result<Settings> {
        let text = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
        let on = |name: &str| {
            text(name).is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.trim().to_lowercase().as_str()))
        };
        let home = || text("HOME").or_else(|| text("USERPROFILE"));
        let expand = |p: String| match (p.strip_prefix('~'), home()) {
            (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => PathBuf::from(home + rest),
            _ => PathBuf::from(p),
        };
        let hf_home = text("HF_HOME")
            .or_else(|| Some(text("XDG_CACHE_HOME")? + "/huggingface"))
            .map(expand)
            .or_else(|| Some(PathBuf::from(home()?).join(".cache/huggingface")));
        let cache = text("HF_HUB_CACHE").or_else(|| text("HUGGINGFACE_HUB_CACHE")).map(expand);
        let cache = cache.or_else(|| Some(hf_home.as_ref()?.join("hub"))).ok_or_else(|| {
            Error::value("[hub] no home directory: set HF_HUB_CACHE to a directory for models, or give --model one")
        })?;
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim().trim_end_matches('/').to_string();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::value(format!("[hub] HF_ENDPOINT is {:?}; https://host is needed", cut(&endpoint))));
        }
        let file = text("HF_TOKEN_PATH").map(expand).or_else(|| Some(hf_home?.join("token")));
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let token =
            token.or_else(|| std::fs::read_to_string(file.filter(|_| !on("HF_HUB_DISABLE_IMPLICIT_TOKEN"))?).ok());
        // A line end in a header would be an error of its own.
        let token = token.map(|t| t.split_whitespace().collect::<String>()).filter(|t| !t.is_empty());
        let seconds = |name: &str| {
            let given = text(name).and_then(|v| v.trim().parse::<u64>().ok()).filter(|&s| s > 0);
            Duration::from_secs(given.unwrap_or(10))
        };
        Ok(Settings {
            cache,
            endpoint,
            token,
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            links: !on("HF_HUB_DISABLE_SYMLINKS"),
            answer: seconds("HF_HUB_ETAG_TIMEOUT"),
            stall: seconds("HF_HUB_DOWNLOAD_TIMEOUT"),
            patience: Duration::from_millis(300),
        })
    }
}

impl Hub {
    /// The hub of some settings. Nothing is opened yet.
    ///
    /// # Errors
    /// Certificates named by `SSL_CERT_FILE` that cannot be read.
    pub fn new(settings: Settings) -> Result<Hub> {
        let mut client = Client::new(settings.endpoint, settings.token, settings.answer, settings.stall)?;
        client.patience = settings.patience;
        Ok(Hub { cache: Cache { root: settings.cache, links: settings.links }, offline: settings.offline, client })
    }

    /// The hub that the environment names.
    ///
    /// # Errors
    /// As [`Settings::from_env`] and [`Hub::new`].
    pub fn from_env() -> Result<Hub> {
        Hub::new(Settings::from_env()?)
    }

    /// The directory of a model: from the cache where it is complete, else what is missing is fetched first.
    /// With `refresh`, the hub is asked whether the revision has moved.
    ///
    /// # Errors
    /// `Network` for a host that cannot be reached or refuses; `Io` for a cache that cannot be written, content that
    /// is not what its digest says, and a download that was stopped.
    pub fn model(&self, name: &Name, refresh: bool, watch: Watch<'_>) -> Result<PathBuf> {
        if (!refresh || self.offline)
            && let Some(dir) = self.cached(name)?
        {
            return Ok(dir);
        }
        self.fetch(name, watch)
    }

    /// The copy of a model in the cache, where it is complete.
    ///
    /// # Errors
    /// Offline, a copy that is not there or not complete.
    pub fn cached(&self, name: &Name) -> Result<Option<PathBuf>> {
        let local = self.cache.snapshot(name);
        match local {
            Some(dir) if cache::missing(&dir).is_empty() => Ok(Some(dir)),
            local if self.offline => self.offline_model(name, local).map(Some),
            _ => Ok(None),
        }
    }

    /// What there is without a network.
    fn offline_model(&self, name: &Name, local: Option<PathBuf>) -> Result<PathBuf> {
        let why = "no network is used (--offline or HF_HUB_OFFLINE)";
        let Some(dir) = local else {
            let at = if name.revision == "main" { String::new() } else { format!(" at revision {}", name.revision) };
            return Err(Error::network(format!(
                "[hub] {}{at} is not in the cache {}, and {why}\n  fix: `lapis pull {name}` with a network",
                name.repo,
                self.cache.root.display()
            )));
        };
        let missing = cache::missing(&dir);
        if missing.is_empty() {
            return Ok(dir);
        }
        let shown = missing.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
        let more = if missing.len() > 4 { format!(" and {} more", missing.len() - 4) } else { String::new() };
        Err(Error::network(format!(
            "[hub] {name}: the copy in {} lacks {shown}{more}, and {why}\n  fix: `lapis pull {name}` with a network",
            dir.display()
        )))
    }

    /// Whether a text may name a repository rather than a path: `owner/name`, or a name that the cache has.
    pub fn may_be_name(&self, text: &str) -> bool {
        Name::parse(text).is_ok_and(|name| name.repo.contains('/') || self.cache.folder(&name.repo).is_dir())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_paths_are_not_names() {
        let name = Name::parse("mlx-community/Qwen3-0.6B-4bit@refs/pr/1").unwrap();
        assert_eq!((name.repo.as_str(), name.revision.as_str()), ("mlx-community/Qwen3-0.6B-4bit", "refs/pr/1"));
        assert_eq!(Name::parse("gpt2").unwrap().to_string(), "gpt2");
        for bad in ["", "/a/b", "a/b/c", "./a", "../b", "a/..", "a/b@", "a/b@../x", "a/b@x y", "a b/c", "~/x", "a--b/c"]
        {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }
}
