//! The state of Intel's matrix unit: tiles of sixteen rows of 64 bytes, whose shapes a thread sets before it multiplies.

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod stand_in;

use std::arch::asm;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;

/// The shapes of a thread's tiles, for as long as this lives.
pub(crate) struct Shapes(());

impl Shapes {
    /// For products over `depth` bytes, at most 64 of which are in a tile.
    ///
    /// # Safety
    /// The machine has AMX, and this process may use it (`isa::features().amx`), or a test has something in its place.
    pub(crate) unsafe fn new(depth: usize) -> Shapes {
        // Tiles 0 and 1: activations. 2 to 5: weights. 6 and 7: sums.
        let depth = depth.min(64);
        let mut shapes = [0u8; 64];
        shapes[0] = 1;
        for tile in 0..8 {
            shapes[16 + 2 * tile] = if tile < 2 { depth as u8 } else { 64 };
            shapes[48 + tile] = if (2..6).contains(&tile) { (depth / 4) as u8 } else { ROWS as u8 };
        }
        // SAFETY: the machine has the instruction, and 64 bytes are there to be read.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) shapes.as_ptr(), options(nostack, preserves_flags, readonly),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
        Shapes(())
    }
}

impl Drop for Shapes {
    fn drop(&mut self) {
        // SAFETY: the machine has the instruction. Tiles that are not in use need not be saved with the thread.
        unsafe {
            asm!("tilerelease", options(nostack, preserves_flags, nomem),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}
