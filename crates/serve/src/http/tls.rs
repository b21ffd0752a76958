//! TLS: a certificate and its key from files, and what those hear who ask without it. Knows nothing of HTTP beyond that one answer.

use super::broken;
use crate::error::{ApiError, Dialect};
use crate::service::Service;
use lapis::{Error, Result};
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// The first byte of a connection in TLS: a record of the handshake.
const HANDSHAKE: u8 = 0x16;

/// What takes connections in TLS 1.2 and 1.3 with the certificates of one file (the server's own first) and the key of another, both PEM.
///
/// # Errors
/// A file that cannot be read, is none, or is not the other's.
pub(super) fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor> {
    let wrong = |flag: &str, path: &Path, what: &dyn Display| {
        Err(Error::value(format!("[serve] --tls-{flag} {}: {what}", path.display())))
    };
    let read = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let chain = match read {
        Ok(chain) if !chain.is_empty() => chain,
        Ok(_) | Err(PemError::NoItemsFound) => {
            let need = "there is no certificate in it; a PEM file is needed, with the server's certificate first and those that vouch for it after it";
            return wrong("cert", cert, &need);
        }
        Err(e) => return wrong("cert", cert, &plain(&e)),
    };
    let secret = match PrivateKeyDer::from_pem_file(key) {
        Ok(secret) => secret,
        Err(PemError::NoItemsFound) => {
            let need = "there is no private key in it; a PEM file is needed (PKCS #8, PKCS #1 or SEC1), with no passphrase on the key";
            return wrong("key", key, &need);
        }
        Err(e) => return wrong("key", key, &plain(&e)),
    };
    let builder =
        ServerConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions();
    let config = builder.and_then(|b| b.with_no_client_auth().with_single_cert(chain, secret));
    let mut config = match config {
        Ok(config) => config,
        Err(e) => {
            return wrong("cert", cert, &format_args!("it cannot be used with the key in {}: {e}", key.display()));
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What is wrong with a file, in words.
fn plain(error: &PemError) -> String {
    match error {
        PemError::Io(e) => e.to_string(),
        other => format!("this is no PEM file: {other}"),
    }
}

/// The connection in TLS; nothing where the other side speaks otherwise. Who speaks HTTP is told why that is refused.
pub(super) async fn open(
    acceptor: TlsAcceptor,
    mut stream: TcpStream,
    service: Arc<Service>,
) -> Option<TlsStream<TcpStream>> {
    let mut first = [0];
    if stream.peek(&mut first).await.ok()? == 0 {
        return None;
    }
    if first[0] == HANDSHAKE {
        return acceptor.accept(stream).await.ok();
    }
    // What was sent is read, or closing would take the answer back.
    let mut rest = [0; 16 << 10];
    drop(stream.read(&mut rest).await);
    let error = ApiError::new(400, "this port speaks TLS: the address begins with https://").code("tls_required");
    drop(stream.write_all(&broken::answer(&service, Dialect::OpenAi, &error)).await);
    drop(stream.shutdown().await);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_do_not_serve_are_named_with_what_is_needed() {
        let dir = std::env::temp_dir().join(format!("lapis-tls-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let pem = |what: &str, base64: &str| format!("-----BEGIN {what}-----\n{base64}\n-----END {what}-----\n");
        let empty = file("empty", "");
        let cert = file("cert", &pem("CERTIFICATE", "aGVsbG8="));
        let key = file("key", &pem("PRIVATE KEY", "aGVsbG8="));
        let locked = file("locked", &pem("ENCRYPTED PRIVATE KEY", "aGVsbG8="));
        let torn = file("torn", "-----BEGIN CERTIFICATE-----\naGVsbG8=\n");
        for (cert, key, words) in [
            (&dir.join("none"), &key, ["--tls-cert", "none: No such file"]),
            (&empty, &key, ["--tls-cert", "no certificate in it"]),
            (&key, &key, ["--tls-cert", "no certificate in it"]),
            (&torn, &key, ["--tls-cert", "no PEM file"]),
            (&cert, &dir.join("none"), ["--tls-key", "none: No such file"]),
            (&cert, &cert, ["--tls-key", "no private key in it"]),
            (&cert, &locked, ["--tls-key", "no passphrase"]),
            (&cert, &key, ["--tls-cert", "cannot be used with the key in"]),
        ] {
            let error = acceptor(cert, key).err().unwrap().to_string();
            assert!(words.iter().all(|w| error.contains(w)), "{words:?}: {error}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
