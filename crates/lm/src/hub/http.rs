//! Requests to a hub: retries, redirects that keep the token at home, and errors in words.
//!
//! Knows no cache and no file of a model.

use super::Name;
use lapis::{Error, Result};
use serde_json::Value;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, SendBody};

/// Longest answer that is not a file.
const LONGEST: u64 = 64 << 20;
/// How often a request is made before its failure is reported.
pub(super) const TRIES: u32 = 4;

/// Where requests go and as whom.
pub(super) struct Client {
    agent: Agent,
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    /// The wait before the second try; each further one is twice as long.
    pub(super) patience: Duration,
}

/// What a request gives.
pub(super) type Answer<T> = std::result::Result<T, Fault>;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// An answer other than success: status, the hub's own code (`GatedRepo`, ...) and words, seconds to wait.
    Status(StatusCode, String, String, Option<u64>),
    /// No answer, or one that broke off.
    Transport(String),
}

impl Fault {
    /// Whether another try may help.
    pub(super) fn passes(&self) -> bool {
        match self {
            Fault::Status(status, ..) => matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504),
            Fault::Transport(_) => true,
        }
    }
}

impl From<ureq::Error> for Fault {
    fn from(e: ureq::Error) -> Fault {
        Fault::Transport(e.to_string())
    }
}

/// A request without its body.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) method: &'a str,
    pub(super) url: &'a str,
    pub(super) headers: &'a [(&'a str, String)],
    /// Whether redirects to other hosts are followed.
    pub(super) leave: bool,
}

impl Client {
    pub(super) fn new(endpoint: String, token: Option<String>, answer: Duration, stall: Duration) -> Result<Client> {
        let tls = match own_certificates()? {
            None => TlsConfig::builder().build(),
            Some(all) => TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(all))).build(),
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(answer))
            .timeout_recv_response(Some(answer.max(stall)))
            .timeout_per_read(Some(stall))
            .timeout_per_write(Some(stall))
            .user_agent(concat!("lapis/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        Ok(Client { agent: config.into(), endpoint, token, patience: Duration::from_millis(300) })
    }

    /// One try. Redirects are followed; the token goes to the hub's own host only.
    pub(super) fn once<'a>(&self, ask: Ask<'_>, mut body: Option<SendBody<'a>>) -> Answer<Response<Body>> {
        let mut url = ask.url.to_string();
        for _ in 0..10 {
            let mut request = ureq::http::Request::builder().method(ask.method).uri(&url);
            for (name, value) in ask.headers {
                request = request.header(*name, value);
            }
            if let Some(token) = self.token.as_ref().filter(|_| same_host(&url, &self.endpoint)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let bad = |e: ureq::http::Error| Fault::Transport(format!("{url}: {e}"));
            let response = match body.take() {
                Some(body) => self.agent.run(request.body(body).map_err(bad)?)?,
                None => self.agent.run(request.body(()).map_err(bad)?)?,
            };
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if !status.is_redirection() {
                return Err(fault(response));
            }
            let to = header(&response, "location").map(|to| join(&url, &to));
            let Some(to) = to else { return Err(Fault::Transport(format!("{url}: a redirect to nowhere"))) };
            if !ask.leave && !same_host(&to, &url) {
                return Ok(response);
            }
            if url.starts_with("https:") && !to.starts_with("https:") {
                return Err(Fault::Transport(format!("{url}: a redirect from https to {to} is not followed")));
            }
            url = to;
        }
        Err(Fault::Transport(format!("{}: too many redirects", ask.url)))
    }

    /// With further tries after faults that pass.
    pub(super) fn send(&self, ask: Ask<'_>, body: Option<&[u8]>) -> Answer<Response<Body>> {
        let mut tries = 1;
        loop {
            let mut bytes = body;
            let body = bytes.as_mut().map(|b| SendBody::from_reader(b));
            match self.once(ask, body) {
                Err(fault) if fault.passes() && tries < TRIES => self.wait(&fault, tries),
                other => return other,
            }
            tries += 1;
        }
    }

    /// The pause after the given number of tries.
    pub(super) fn wait(&self, fault: &Fault, tries: u32) {
        let asked = match fault {
            Fault::Status(.., seconds) => seconds.map(|s| Duration::from_secs(s.min(30))),
            Fault::Transport(_) => None,
        };
        std::thread::sleep(asked.unwrap_or(self.patience * 2u32.pow(tries.saturating_sub(1).min(5))));
    }

    /// The JSON at a path of the hub; sent with a body where there is one.
    pub(super) fn json(&self, path: &str, body: Option<&Value>) -> Answer<Value> {
        let text = body.map(Value::to_string);
        self.text_json(path, text.as_deref().map(|t| (t, "application/json")))
    }

    /// As [`Client::json`], with a body of any kind.
    pub(super) fn text_json(&self, path: &str, body: Option<(&str, &str)>) -> Answer<Value> {
        let url = format!("{}{path}", self.endpoint);
        let headers: Vec<_> = body.iter().map(|(_, kind)| ("content-type", kind.to_string())).collect();
        let method = if body.is_some() { "POST" } else { "GET" };
        let ask = Ask { method, url: &url, headers: &headers, leave: true };
        let mut tries = 1;
        loop {
            let mut response = self.send(ask, body.map(|(text, _)| text.as_bytes()))?;
            match response.body_mut().with_config().limit(LONGEST).read_to_vec() {
                Ok(bytes) if bytes.is_empty() => return Ok(Value::Null),
                Ok(bytes) => {
                    return serde_json::from_slice(&bytes)
                        .map_err(|e| Fault::Transport(format!("{url} answers no JSON: {e}")));
                }
                // Only what changes nothing is asked again.
                Err(e) if tries >= TRIES || method != "GET" => return Err(e.into()),
                Err(e) => self.wait(&e.into(), tries),
            }
            tries += 1;
        }
    }

    /// A fault, in the words of somebody who wants the repository `name`.
    pub(super) fn explain(&self, name: &Name, fault: &Fault) -> Error {
        let (endpoint, revision) = (&self.endpoint, &name.revision);
        let page = format!("{endpoint}/{}", name.repo);
        let login = match self.token {
            None => "set HF_TOKEN to a token of yours (huggingface.co/settings/tokens)",
            Some(_) => "check that your token may read it",
        };
        Error::network(match fault {
            Fault::Transport(e) => format!(
                "[hub] cannot reach {endpoint}: {}\n  fix: check the network, HF_ENDPOINT and HTTPS_PROXY, \
                 or give --model a directory",
                plain(e)
            ),
            Fault::Status(status, code, said, wait) => match (status.as_u16(), code.as_str()) {
                (401 | 403, "GatedRepo") => format!(
                    "[hub] {name} is gated: its licence must be accepted first\n  fix: accept it at {page}, then {login}"
                ),
                (404, "RevisionNotFound") => {
                    format!("[hub] {} has no revision {revision}{}", name.repo, self.revisions(name))
                }
                (404, "EntryNotFound") => format!("[hub] {name}: {}", said_or(said, "a file is not there")),
                (401, _) => format!(
                    "[hub] {} is not there for you: it does not exist, or is private or gated{}\n  \
                     fix: check the name; for a private or gated one accept its licence at {page} and {login}",
                    name.repo,
                    self.nearest(name)
                ),
                (403, _) => format!(
                    "[hub] {name} may not be read: {}\n  fix: accept its licence at {page} and {login}",
                    said_or(said, "403 Forbidden")
                ),
                (404, _) => format!("[hub] {name} does not exist on {endpoint}{}", self.nearest(name)),
                (429, _) => format!(
                    "[hub] {endpoint} wants fewer requests{}\n  fix: wait{}",
                    wait.map(|s| format!(" for {s} s")).unwrap_or_default(),
                    if self.token.is_none() { ", or set HF_TOKEN: who is logged in may ask more" } else { "" }
                ),
                _ => format!(
                    "[hub] {endpoint} answers {status} for {name}: {}\n  fix: try again later; what is there is kept",
                    said_or(said, "no reason given")
                ),
            },
        })
    }

    /// Repositories whose names are near, as a line for an error.
    fn nearest(&self, name: &Name) -> String {
        let short = name.repo.rsplit('/').next().unwrap_or(&name.repo);
        let found =
            self.json(&format!("/api/models?search={}&limit=3&sort=downloads&direction=-1", escape(short)), None);
        let found: Vec<String> = match &found {
            Ok(Value::Array(all)) => {
                all.iter()
                    .filter_map(|m| m.get("id")?.as_str())
                    .filter(|id| Name::parse(id).is_ok())
                    .map(str::to_string)
            }
            .collect(),
            _ => Vec::new(),
        };
        if found.is_empty() { String::new() } else { format!("\n  near: {}", found.join(", ")) }
    }

    /// The branches and tags of a repository, as a line for an error.
    fn revisions(&self, name: &Name) -> String {
        let refs = self.json(&format!("/api/models/{}/refs", name.repo), None).unwrap_or_default();
        let names: Vec<&str> = ["branches", "tags"]
            .iter()
            .filter_map(|kind| refs.get(kind)?.as_array())
            .flatten()
            .filter_map(|r| r.get("name")?.as_str())
            .take(12)
            .collect();
        if names.is_empty() { String::new() } else { format!("\n  there are: {}", plain(&names.join(", "))) }
    }
}

/// A header as text.
pub(super) fn header(response: &Response<Body>, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_string)
}

/// An answer that is no success, as a fault.
pub(super) fn fault(mut response: Response<Body>) -> Fault {
    let said = header(&response, "x-error-message");
    let code = header(&response, "x-error-code").unwrap_or_default();
    let wait = header(&response, "retry-after").and_then(|s| s.trim().parse().ok());
    let said = said.unwrap_or_else(|| {
        let mut text = Vec::new();
        // What cannot be read is left out: it is only words.
        drop(response.body_mut().as_reader().take(2000).read_to_end(&mut text));
        let object: Option<Value> = serde_json::from_slice(&text).ok();
        let said = object.as_ref().and_then(|o| o.get("error")?.as_str());
        said.unwrap_or_default().to_string()
    });
    Fault::Status(response.status(), code, plain(&said), wait)
}

/// One line without control characters, not too long.
fn plain(text: &str) -> String {
    let line: String = text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
    line.chars().take(200).collect()
}

fn said_or<'a>(said: &'a str, other: &'a str) -> &'a str {
    if said.is_empty() { other } else { said }
}

/// `scheme://host:port` of a URL.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |i| i + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |i| start + i);
    &url[..end]
}

fn same_host(a: &str, b: &str) -> bool {
    origin(a).eq_ignore_ascii_case(origin(b))
}

/// Where a Location header leads from `base`.
pub(super) fn join(base: &str, to: &str) -> String {
    if to.starts_with("http://") || to.starts_with("https://") {
        return to.to_string();
    }
    if to.starts_with("//") {
        let scheme = base.split("//").next().unwrap_or("https:");
        return format!("{scheme}{to}");
    }
    if to.starts_with('/') {
        return format!("{}{to}", origin(base));
    }
    let path = base.split(['?', '#']).next().unwrap_or(base);
    let folder = path.rfind('/').filter(|&i| i >= origin(base).len()).map_or(path, |i| &path[..i]);
    format!("{folder}/{to}")
}

/// Percent-encodes what is not safe inside one part of a path or query.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(b)),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// Certificates of this machine's own choice, as other tools name them.
fn own_certificates() -> Result<Option<Vec<Certificate<'static>>>> {
    let named = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
    let Some((variable, path)) = named.iter().find_map(|v| Some((v, std::env::var_os(v).filter(|p| !p.is_empty())?)))
    else {
        return Ok(None);
    };
    let shown = std::path::Path::new(&path).display().to_string();
    let pem = std::fs::read(&path).map_err(|e| Error::io(format!("[hub] {variable}: {shown}: {e}")))?;
    let all: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(c)) => Some(c),
            _ => None,
        })
        .collect();
    if all.is_empty() {
        return Err(Error::io(format!("[hub] {variable}: {shown} holds no certificate in PEM")));
    }
    Ok(Some(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_browsers_go() {
        let base = "https://hub.test:8080/a/b/c?x=1";
        assert_eq!(join(base, "/d"), "https://hub.test:8080/d");
        assert_eq!(join(base, "d"), "https://hub.test:8080/a/b/d");
        assert_eq!(join(base, "//other/d"), "https://other/d");
        assert_eq!(join(base, "http://other/d"), "http://other/d");
        assert!(same_host(base, "https://hub.test:8080/z") && !same_host(base, "https://hub.test/z"));
        // A host that only begins alike is another one.
        assert!(!same_host("https://hub.test.evil/", "https://hub.test"));
        assert_eq!(escape("refs/pr/1 ü"), "refs%2Fpr%2F1%20%C3%BC");
    }
}
