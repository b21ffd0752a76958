//! A stand-in for the matrix unit, for tests on machines without it: its instructions are illegal there, and the signal that
//! the system sends for each is answered by doing what the unit would have done.
//!
//! It knows the instructions that lapis uses, in the one encoding that they have. The unit takes numbers below the least normal
//! one for zero; so does this.

use crate::isa::{Isa, available, features};
use std::cell::RefCell;
use std::sync::Once;

/// Whether code for the unit can run here: the unit does it, or from now on this.
pub(crate) fn can_run() -> bool {
    static ONCE: Once = Once::new();
    if features().amx {
        return true;
    }
    if available()[0] != Isa::Avx512 {
        return false;
    }
    ONCE.call_once(|| {
        // SAFETY: the handler has the signature that SA_SIGINFO asks for; it is for this test process alone.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
    true
}

extern "C" fn on_illegal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    thread_local! {
        static UNIT: RefCell<Unit> = const { RefCell::new(Unit { shapes: [(0, 0); 8], tiles: [[[0; 64]; 16]; 8] }) };
    }
    // SAFETY: the system hands over the state of the thread, which stands before an instruction.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let at = registers[libc::REG_RIP as usize];
        let code = Code { at: at as *const u8, registers };
        match UNIT.with_borrow_mut(|unit| unit.run(&code)) {
            Some(length) => registers[libc::REG_RIP as usize] = at + length as i64,
            // None of ours: it comes once more, and ends the process.
            None => drop(libc::signal(libc::SIGILL, libc::SIG_DFL)),
        }
    }
}

/// An instruction, and the registers before it.
struct Code<'a> {
    at: *const u8,
    registers: &'a [i64],
}

impl Code<'_> {
    fn byte(&self, i: usize) -> u8 {
        // SAFETY: who calls has seen that the instruction is as long.
        unsafe { *self.at.add(i) }
    }

    fn register(&self, number: u8) -> i64 {
        use libc::*;
        let places = [
            REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11,
            REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        self.registers[places[number as usize] as usize]
    }

    /// Whether register `number` of three bits has a fourth: bit `bit` of the first byte behind the prefix is inverted.
    fn wide(&self, number: u8, bit: u8) -> u8 {
        number & 7 | (!self.byte(1) >> bit & 1) << 3
    }

    /// The address in memory, the index register's value, and the instruction's length.
    fn memory(&self) -> Option<(*mut u8, i64, usize)> {
        let (mode, low) = (self.byte(4) >> 6, self.byte(4) & 7);
        let (mut base, mut index, mut length) = (self.wide(low, 5), 0, 5);
        if low == 4 {
            let parts = self.byte(5);
            base = self.wide(parts, 5);
            let number = self.wide(parts >> 3, 6);
            index = if number == 4 { 0 } else { self.register(number) << (parts >> 6) };
            length = 6;
        }
        let more = match mode {
            // Without a base register: not used.
            0 if base & 7 == 5 => return None,
            0 => 0,
            1 => self.byte(length) as i8 as i64,
            2 => i32::from_le_bytes(std::array::from_fn(|i| self.byte(length + i))) as i64,
            _ => return None,
        };
        length += [0, 1, 4][mode as usize];
        Some((self.register(base).wrapping_add(more) as *mut u8, index, length))
    }
}

/// Tiles, and of each the rows and the bytes of a row.
struct Unit {
    shapes: [(usize, usize); 8],
    tiles: [[[u8; 64]; 16]; 8],
}

impl Unit {
    /// Does what an instruction says; its length.
    unsafe fn run(&mut self, code: &Code) -> Option<usize> {
        const PREFIX: u8 = 0xc4;
        if code.byte(0) != PREFIX || code.byte(1) & 31 != 2 {
            return None;
        }
        let (kind, opcode, operands) = (code.byte(2) & 3, code.byte(3), code.byte(4));
        let tile = (operands >> 3 & 7) as usize;
        let (rows, width) = self.shapes[tile];
        // SAFETY: addresses are those of the program; it promises what the unit asks for.
        unsafe {
            match (opcode, kind) {
                // tilerelease, ldtilecfg
                (0x49, 0) if operands == 0xc0 => self.shapes = [(0, 0); 8],
                (0x49, 0) => {
                    let (from, _, length) = code.memory()?;
                    let shapes = from.cast::<[u8; 64]>().read_unaligned();
                    let of = |t: usize| {
                        let width = u16::from_le_bytes([shapes[16 + 2 * t], shapes[17 + 2 * t]]);
                        (shapes[48 + t] as usize, width as usize)
                    };
                    self.shapes = std::array::from_fn(of);
                    self.tiles = [[[0; 64]; 16]; 8];
                    return Some(length);
                }
                // tilezero
                (0x49, 3) => self.tiles[tile] = [[0; 64]; 16],
                // tileloadd
                (0x4b, 3) => {
                    let (from, apart, length) = code.memory()?;
                    self.tiles[tile] = [[0; 64]; 16];
                    for (r, row) in self.tiles[tile].iter_mut().enumerate().take(rows) {
                        let from = from.wrapping_offset(r as isize * apart as isize);
                        std::ptr::copy_nonoverlapping(from, row.as_mut_ptr(), width);
                    }
                    return Some(length);
                }
                // tilestored
                (0x4b, 2) => {
                    let (to, apart, length) = code.memory()?;
                    for (r, row) in self.tiles[tile].iter().enumerate().take(rows) {
                        let to = to.wrapping_offset(r as isize * apart as isize);
                        std::ptr::copy_nonoverlapping(row.as_ptr(), to, width);
                    }
                    return Some(length);
                }
                // tdpbf16ps, tdpbsud
                (0x5c, 2) | (0x5e, 2) => {
                    let (a, b) = ((operands & 7) as usize, (!code.byte(2) >> 3 & 7) as usize);
                    self.multiply(tile, a, b, if opcode == 0x5c { halves } else { bytes });
                }
                _ => return None,
            }
        }
        Some(5)
    }

    /// `tile` and the products of `a` and `b`, whose words `sum` multiplies.
    fn multiply(
        &mut self,
        tile: usize,
        a: usize,
        b: usize,
        sum: fn([u8; 4], &mut dyn Iterator<Item = [[u8; 4]; 2]>) -> [u8; 4],
    ) {
        let ((rows, width), steps) = (self.shapes[tile], self.shapes[a].1 / 4);
        assert!(self.shapes[a].0 == rows && self.shapes[b] == (steps, width), "shapes of tiles do not agree");
        let word = |row: &[u8; 64], i: usize| -> [u8; 4] { row[4 * i..][..4].try_into().expect("four bytes") };
        for m in 0..rows {
            for n in 0..width / 4 {
                let mut words = (0..steps).map(|k| [word(&self.tiles[a][m], k), word(&self.tiles[b][k], n)]);
                let new = sum(word(&self.tiles[tile][m], n), &mut words);
                self.tiles[tile][m][4 * n..][..4].copy_from_slice(&new);
            }
        }
    }
}

/// Signed bytes with unsigned ones.
fn bytes(old: [u8; 4], words: &mut dyn Iterator<Item = [[u8; 4]; 2]>) -> [u8; 4] {
    let products = words.flat_map(|[a, b]| [0, 1, 2, 3].map(|i| a[i] as i8 as i32 * b[i] as i32));
    products.fold(i32::from_le_bytes(old), i32::wrapping_add).to_le_bytes()
}

/// Pairs of bfloat16: first and second ones apart.
fn halves(old: [u8; 4], words: &mut dyn Iterator<Item = [[u8; 4]; 2]>) -> [u8; 4] {
    let normal = |x: f32| if x.is_subnormal() { 0.0f32.copysign(x) } else { x };
    let half = |word: [u8; 4], i: usize| normal(f32::from_le_bytes([0, 0, word[2 * i], word[2 * i + 1]]));
    let mut sums = [0.0f32; 2];
    for [a, b] in words {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = normal(half(a, i).mul_add(half(b, i), *sum));
        }
    }
    normal(normal(f32::from_le_bytes(old)) + normal(sums[0] + sums[1])).to_le_bytes()
}
