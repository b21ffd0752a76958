//! Digests by which the hub names content: SHA-256 of large files, git's SHA-1 of small ones; and base64.

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use std::io::Read;
use std::path::Path;

/// The digest of a stream, of the kind that a name (an ETag) has; names of other kinds are not checked.
pub(crate) struct Digest(Option<Context>);

impl Digest {
    /// For content of `size` bytes that is called `name`.
    pub(super) fn of(name: &str, size: u64) -> Digest {
        let hex = name.bytes().all(|b| b.is_ascii_hexdigit());
        Digest(match name.len() {
            64 if hex => Some(Context::new(&SHA256)),
            40 if hex => {
                // Git's name of a file: its bytes after this header.
                let mut sha = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                sha.update(format!("blob {size}\0").as_bytes());
                Some(sha)
            }
            _ => None,
        })
    }

    pub(crate) fn sha256() -> Digest {
        Digest(Some(Context::new(&SHA256)))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        if let Some(context) = &mut self.0 {
            context.update(bytes);
        }
    }

    /// All bytes of a reader, as long as `go` says so; whether that was to the end.
    pub(crate) fn read(&mut self, mut from: impl Read, mut go: impl FnMut(usize) -> bool) -> std::io::Result<bool> {
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            self.update(&buffer[..n]);
            if !go(n) {
                return Ok(false);
            }
        }
    }

    /// In hexadecimal.
    pub(crate) fn finish(self) -> Option<String> {
        Some(self.0?.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Whether the content is what `name` says.
    pub(super) fn is(self, name: &str) -> bool {
        self.finish().is_none_or(|digest| digest.eq_ignore_ascii_case(name))
    }
}

/// Whether a file's content is what `name` says.
pub(super) fn file_is(path: &Path, name: &str) -> std::io::Result<bool> {
    let file = std::fs::File::open(path)?;
    let mut digest = Digest::of(name, file.metadata()?.len());
    digest.read(file, |_| true)?;
    Ok(digest.is(name))
}

/// Base64 with padding (RFC 4648, section 4).
pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |w, &b| w << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_git_and_sha256sum() {
        // `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`.
        for name in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            let mut digest = Digest::of(name, 6);
            digest.update(b"hello\n");
            assert!(digest.is(name));
            let mut other = Digest::of(name, 6);
            other.update(b"hullo\n");
            assert!(!other.is(name));
        }
        assert!(Digest::of("\"weak\"", 6).is("\"weak\""));
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
