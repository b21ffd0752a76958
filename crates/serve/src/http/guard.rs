//! Who may ask: hosts, origins, keys. A page from elsewhere must not reach a server on this machine.

use crate::error::ApiError;
use crate::service::Owner;
use crate::settings::Settings;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use std::net::IpAddr;
use std::sync::LazyLock;

const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The name in a `Host` or an origin, without its port.
fn host_name(text: &str) -> &str {
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match text.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => text,
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).map(|v| v.to_str().unwrap_or("\u{fffd}"))
}

/// Whether the request calls this host by a name that a page elsewhere cannot bend to it. Matters on loopback, where
/// there may be no key.
///
/// # Errors
/// No host, or several; a name that is not on the list, with the flag that puts it there.
pub(crate) fn check_host(
    headers: &HeaderMap,
    target: Option<&str>,
    settings: &Settings,
    loopback: bool,
) -> Result<(), ApiError> {
    let mut all = headers.get_all(HOST).iter();
    let (Some(host), None) = (all.next(), all.next()) else {
        return Err(ApiError::new(400, "a request must have one Host header"));
    };
    // A target that names a host counts instead of the header; both must be fine.
    for host in [Some(host.to_str().unwrap_or("\u{fffd}")), target].into_iter().flatten() {
        check_name(host, settings, loopback)?;
    }
    Ok(())
}

fn check_name(host: &str, settings: &Settings, loopback: bool) -> Result<(), ApiError> {
    let name = host_name(host).to_ascii_lowercase();
    static OWN: LazyLock<String> =
        LazyLock::new(|| std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned());
    let safe = !loopback
        || name.parse::<IpAddr>().is_ok()
        || matches!(name.as_str(), "localhost" | "host.docker.internal")
        || name.ends_with(".localhost")
        || name.ends_with(".local")
        || !name.is_empty() && name.eq_ignore_ascii_case(&OWN)
        || settings.allowed_hosts.iter().any(|h| h.eq_ignore_ascii_case(&name) || h == "*");
    if safe {
        return Ok(());
    }
    let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(ApiError::new(403, format!("the host {shown:?} is not known; --allowed-host {shown} makes it so"))
        .code("host_not_allowed"))
}

/// What an origin may do.
pub(crate) enum Origin {
    /// There is none: no page asks.
    None,
    /// A page that may ask; its headers say so.
    Allowed(HeaderValue),
}

/// Whether a page of the request's origin may ask.
///
/// # Errors
/// It may not, with the flag that allows it.
pub(crate) fn check_origin(headers: &HeaderMap, settings: &Settings) -> Result<Origin, ApiError> {
    let Some(origin) = headers.get(ORIGIN) else {
        return match header(headers, &SITE) {
            Some("cross-site") => {
                Err(ApiError::new(403, "pages of other sites may not ask").code("origin_not_allowed"))
            }
            _ => Ok(Origin::None),
        };
    };
    let text = origin.to_str().unwrap_or("");
    let listed = |o: &String| o.trim_end_matches('/').eq_ignore_ascii_case(text);
    if settings.allowed_origins.iter().any(listed) {
        return Ok(Origin::Allowed(origin.clone()));
    }
    if settings.allowed_origins.iter().any(|o| o == "*") {
        return Ok(Origin::Allowed(HeaderValue::from_static("*")));
    }
    let near = match text.split_once("://") {
        Some(("http" | "https", rest)) => {
            let own = header(headers, &HOST).is_some_and(|host| host.eq_ignore_ascii_case(rest));
            own || matches!(host_name(rest), "localhost" | "127.0.0.1" | "::1")
        }
        Some(("tauri" | "app" | "vscode-webview", _)) => true,
        _ => false,
    };
    if near {
        return Ok(Origin::Allowed(origin.clone()));
    }
    let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(ApiError::new(403, format!("pages of {shown:?} may not ask; --allowed-origins {shown} lets them"))
        .code("origin_not_allowed"))
}

/// Whether two texts are the same, in a time that does not say where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    let digest = |x: &[u8]| ring::digest::digest(&ring::digest::SHA256, x);
    let (a, b) = (digest(a), digest(b));
    a.as_ref().iter().zip(b.as_ref()).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

/// The key that a request shows.
fn shown(headers: &HeaderMap) -> Option<&str> {
    let bearer = header(headers, &AUTHORIZATION).and_then(|a| {
        let (scheme, key) = a.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| header(headers, &API_KEY).map(str::trim))
}

/// Whose request it is.
///
/// # Errors
/// No key where one is needed, or a wrong one.
pub(crate) fn check_key(headers: &HeaderMap, settings: &Settings) -> Result<Owner, ApiError> {
    if settings.keys.is_empty() {
        return Ok(Owner { number: 0, name: "-".into() });
    }
    let denied = |why: &str| Err(ApiError::new(401, why).code("invalid_api_key"));
    let Some(key) = shown(headers) else {
        return denied("a key is needed: Authorization: Bearer KEY, or x-api-key: KEY");
    };
    // All are compared, so that time says nothing.
    let mut found = None;
    for (i, known) in settings.keys.iter().enumerate() {
        if same(known.secret.as_bytes(), key.as_bytes()) {
            found = Some(Owner { number: i as u64 + 1, name: known.name.clone() });
        }
    }
    found.map_or_else(|| denied("the key is wrong"), Ok)
}

/// Whether a request may change the server.
///
/// # Errors
/// There is no key for that, or another.
pub(crate) fn check_admin(headers: &HeaderMap, settings: &Settings, unix: bool) -> Result<(), ApiError> {
    match (&settings.admin_key, shown(headers)) {
        (Some(known), Some(key)) if same(known.as_bytes(), key.as_bytes()) => Ok(()),
        (None, _) if unix => Ok(()),
        (None, _) => {
            Err(ApiError::new(403, "start the server with --admin-key-file to use /admin").code("admin_not_allowed"))
        }
        (Some(_), _) => Err(ApiError::new(401, "the admin key is needed").code("invalid_api_key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Source;

    fn settings() -> Settings {
        Settings::new("m", Source::Path("/".into()))
    }

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("localhost:8080"));
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn hosts() {
        let mut settings = settings();
        settings.allowed_hosts.push("box.example".into());
        for good in [
            "127.0.0.1:8080",
            "[::1]:8080",
            "localhost",
            "LOCALHOST:1",
            "a.localhost",
            "printer.local:80",
            "host.docker.internal:8080",
            "192.168.1.5",
            "box.example:8080",
        ] {
            assert!(check_host(&with(HOST, good), None, &settings, true).is_ok(), "{good}");
        }
        for bad in ["evil.com", "evil.com:8080", "localhost.evil.com", "127.0.0.1.evil.com", "", "xlocalhost", "a@b"] {
            assert_eq!(check_host(&with(HOST, bad), None, &settings, true).err().unwrap().status, 403, "{bad}");
            assert!(check_host(&with(HOST, bad), None, &settings, false).is_ok(), "{bad}");
            assert!(check_host(&with(HOST, "localhost"), Some(bad), &settings, true).is_err(), "{bad}");
        }
        let mut twice = with(HOST, "localhost");
        twice.append(HOST, HeaderValue::from_static("localhost"));
        for wrong in [twice, HeaderMap::new()] {
            assert_eq!(check_host(&wrong, None, &settings, false).err().unwrap().status, 400);
        }
    }

    #[test]
    fn origins() {
        let mut settings = settings();
        settings.allowed_origins.push("https://chat.example".into());
        for good in [
            "http://localhost:3000",
            "https://127.0.0.1",
            "http://[::1]:99",
            "tauri://localhost",
            "app://x",
            "vscode-webview://abc",
            "https://chat.example",
            "http://localhost:8080",
        ] {
            assert!(check_origin(&with(ORIGIN, good), &settings).is_ok(), "{good}");
        }
        for bad in [
            "null",
            "https://evil.com",
            "http://localhost.evil.com",
            "chrome-extension://abc",
            "file://",
            "https://chat.example.evil.com",
            "http://127.0.0.1.evil.com",
            "",
            "localhost",
        ] {
            assert!(check_origin(&with(ORIGIN, bad), &settings).is_err(), "{bad}");
        }
        assert!(check_origin(&with(SITE, "cross-site"), &settings).is_err());
        assert!(check_origin(&with(SITE, "same-origin"), &settings).is_ok());
    }
}
