//! Event files of TensorBoard: records of protocol buffers with checksums (tensorflow's `record_writer.h`, `event.proto`).

use crate::report::Record;
use lapis::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that grows.
pub(crate) struct EventFile {
    file: File,
    path: PathBuf,
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

/// CRC-32C (Castagnoli), bit by bit: events are short.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// As record files store it.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A field of bytes.
fn field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    varint(bytes.len() as u64, out);
    out.extend(bytes);
}

/// An event at a time, with field 2 (step) and another.
fn event(step: u64, number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend(now().to_le_bytes());
    out.push(2 << 3);
    varint(step, &mut out);
    field(number, bytes, &mut out);
    out
}

fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

fn scalars(step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, x) in values {
        let mut value = Vec::new();
        field(1, tag.as_bytes(), &mut value);
        value.push(2 << 3 | 5);
        value.extend((*x as f32).to_le_bytes());
        field(1, &value, &mut summary);
    }
    event(step, 5, &summary)
}

impl EventFile {
    /// A new one in a directory.
    pub(crate) fn create(dir: &Path) -> Result<EventFile> {
        let path = dir.join(format!("events.out.tfevents.{}.lapis.{}", now() as u64, std::process::id()));
        let file = File::create(&path).map_err(|e| Error::io(format!("[lora] {}: {e}", path.display())))?;
        let mut this = EventFile { file, path };
        this.write(&event(0, 3, b"brain.Event:2"))?;
        Ok(this)
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&framed(event)).map_err(|e| Error::io(format!("[lora] {}: {e}", self.path.display())))
    }

    pub(crate) fn record(&mut self, record: &Record) -> Result<()> {
        let all = [
            ("train/loss", record.train_loss.map(f64::from)),
            ("train/learning_rate", record.learning_rate.map(f64::from)),
            ("train/gradient_norm", record.gradient_norm.map(f64::from)),
            ("train/tokens_per_second", record.tokens_per_second),
            ("train/peak_memory", record.peak_memory),
            ("train/reward_margin", record.reward_margin.map(f64::from)),
            ("train/reward_accuracy", record.reward_accuracy.map(f64::from)),
            ("valid/loss", record.val_loss.map(f64::from)),
            ("valid/perplexity", record.val_perplexity.map(f64::from)),
        ];
        let all: Vec<(&str, f64)> = all.into_iter().filter_map(|(tag, x)| Some((tag, x?))).collect();
        self.write(&scalars(record.iteration as u64, &all))
    }
}

#[cfg(test)]
mod tests {
    use super::{crc, framed, masked};

    #[test]
    fn checksums() {
        // RFC 3720, B.4.
        assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc(b"123456789"), 0xe306_9283);
        assert_eq!(framed(b"ab").len(), 8 + 4 + 2 + 4);
        assert_ne!(masked(b"ab"), crc(b"ab").to_le_bytes());
    }
}
