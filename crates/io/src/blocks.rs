//! Files that are written a block of 2 MiB at a time.
//!
//! Linux keeps what was written in pieces as large as the writes were, and maps a piece of 2 MiB as one page. Weights read
//! from such pages come a tenth faster than from pages of 4 KiB.

use std::io::{Result, Write};

/// Where blocks begin, in a file and in the memory it is mapped to.
pub const BLOCK: usize = 2 << 20;

/// Gathers what goes to the end of a file, and hands it on in whole blocks. What is left of one waits for [`Write::flush`]:
/// dropped before, it is lost.
#[derive(Debug)]
pub struct Blocks<W> {
    to: W,
    held: Vec<u8>,
    /// Bytes from here to the end of a block.
    room: usize,
}

impl<W: Write> Blocks<W> {
    /// For a file of `len` bytes, at whose end `to` stands.
    pub fn new(to: W, len: u64) -> Blocks<W> {
        Blocks { to, held: Vec::new(), room: BLOCK - (len % BLOCK as u64) as usize }
    }

    /// The file. It lacks what was not flushed.
    pub fn get_ref(&self) -> &W {
        &self.to
    }

    fn hand_on(&mut self) -> Result<()> {
        let result = self.to.write_all(&self.held);
        self.held.clear();
        result
    }
}

impl<W: Write> Write for Blocks<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = match bytes.len() {
            // Whole blocks need no stop.
            n if self.room == BLOCK && n >= BLOCK => {
                let whole = n / BLOCK * BLOCK;
                self.to.write_all(&bytes[..whole])?;
                return Ok(whole);
            }
            n => n.min(self.room),
        };
        self.held.extend_from_slice(&bytes[..count]);
        self.room -= count;
        if self.room == 0 {
            self.room = BLOCK;
            self.hand_on()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        self.hand_on()?;
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps the sizes of what is written to it.
    #[derive(Default)]
    struct Sizes(Vec<usize>, Vec<u8>);

    impl Write for Sizes {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            self.0.push(bytes.len());
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whatever_comes_goes_on_in_blocks() {
        let bytes: Vec<u8> = (0..7 * BLOCK + 5).map(|i| (i / 7 % 251) as u8).collect();
        for (before, cuts) in
            [(0, vec![1, 3 * BLOCK, 2 * BLOCK]), (10, vec![BLOCK - 10, BLOCK, 100_000]), (BLOCK, vec![])]
        {
            let mut out = Blocks::new(Sizes::default(), before as u64);
            let mut rest = &bytes[..];
            for cut in cuts {
                out.write_all(&rest[..cut]).unwrap();
                rest = &rest[cut..];
            }
            out.write_all(rest).unwrap();
            out.flush().unwrap();
            let Sizes(sizes, got) = out.get_ref();
            assert_eq!(*got, bytes);
            let mut at = before;
            for (i, size) in sizes.iter().enumerate() {
                assert!(i == 0 || at % BLOCK == 0, "a write of {size} bytes at {at}");
                at += size;
            }
        }
    }
}
