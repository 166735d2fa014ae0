//! Emulates AMX in software, for tests on machines without it. On such machines, an AMX instruction raises an
//! illegal-instruction signal. The signal handler then emulates the six instructions that `amx` uses.
//!
//! Source: Intel SDM, volume 2 (encodings, and the pseudo-code of each instruction). The emulator reproduces neither
//! the speed of a real unit nor the rounding within one product of tiles. It adds the products to an f32 sum one after
//! the other, with one rounding each, like a fused multiply-add.

#![expect(unsafe_code, reason = "a signal handler that reads the instruction it interrupts")]

use std::cell::{Cell, RefCell};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Level;

static INSTALLED: AtomicBool = AtomicBool::new(false);
thread_local! {
    static EMULATED: Cell<usize> = const { Cell::new(0) };
}

/// True once [`install`] has made the instructions available. `Level::detect` never returns an emulated level.
pub(super) fn is_installed() -> bool {
    INSTALLED.load(Ordering::Acquire)
}

/// Makes the AMX level usable on this machine by emulation. Does nothing if the CPU has the matrix unit, or if it lacks
/// AVX512-BF16, which the emulator does not provide.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if Level::Amx.is_available() || !Level::Avx512Bf16.is_available() {
            return;
        }
        // SAFETY: the handler is reentrant per thread and accesses only its own thread's registers.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as extern "C" fn(_, _, _) as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0);
        }
        INSTALLED.store(true, Ordering::Release);
    });
}

/// Returns the number of tile products emulated on this thread so far.
pub(super) fn products() -> usize {
    EMULATED.get()
}

#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    bytes: usize,
    /// 16 rows of 16 groups of four bytes.
    groups: [[u32; 16]; 16],
}

const EMPTY: Tile = Tile { rows: 0, bytes: 0, groups: [[0; 16]; 16] };

thread_local! {
    static TILES: RefCell<[Tile; 8]> = const { RefCell::new([EMPTY; 8]) };
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the operating system passes a `ucontext_t` that the handler may change until it returns.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    let done = TILES.with_borrow_mut(|tiles| {
        // SAFETY: `at` points to the instruction that raised the signal.
        unsafe { Instruction::read(at, registers) }.and_then(|instruction| {
            // SAFETY: the memory operands are those of the interrupted instruction.
            unsafe { instruction.execute(tiles) }.then_some(instruction.length)
        })
    });
    match done {
        Some(length) => registers[libc::REG_RIP as usize] += length as i64,
        // The instruction is not one that we emulate: restore the default action, which runs after the return.
        // SAFETY: this only restores the action that the process started with.
        None => unsafe {
            libc::signal(libc::SIGILL, libc::SIG_DFL);
        },
    }
}

struct Instruction {
    /// The prefix as VEX encodes it: 0 is none, 1 is `66`, 2 is `F3`, 3 is `F2`.
    prefix: u8,
    opcode: u8,
    /// True if ModRM.mod is 3: the instruction has no memory operand.
    is_register: bool,
    reg: usize,
    rm: usize,
    vvvv: usize,
    base: usize,
    stride: usize,
    length: usize,
}

impl Instruction {
    /// Decodes an instruction with a three-byte VEX prefix and opcode map `0F 38`; returns `None` for any other
    /// instruction.
    unsafe fn read(at: *const u8, registers: &[i64; 23]) -> Option<Self> {
        // SAFETY: an instruction has at most 15 bytes, and mapped code follows each of our functions.
        let byte = |index: usize| unsafe { *at.add(index) };
        if byte(0) != 0xc4 || byte(1) & 0x1f != 2 {
            return None;
        }
        let (x, b) = (usize::from(byte(1) & 0x40 == 0), usize::from(byte(1) & 0x20 == 0));
        let modrm = byte(4);
        let mut instruction = Self {
            prefix: byte(2) & 3,
            opcode: byte(3),
            is_register: modrm >> 6 == 3,
            reg: usize::from(modrm >> 3 & 7),
            rm: usize::from(modrm & 7),
            vvvv: usize::from(!byte(2) >> 3 & 15),
            base: 0,
            stride: 0,
            length: 5,
        };
        if instruction.is_register {
            return Some(instruction);
        }
        let mut base = instruction.rm;
        if instruction.rm == 4 {
            let sib = byte(5);
            instruction.length += 1;
            base = usize::from(sib & 7);
            let index = usize::from(sib >> 3 & 7) + 8 * x;
            if index != 4 {
                instruction.stride = general(registers, index) << (sib >> 6);
            }
        }
        let displacement = instruction.length;
        let offset = match modrm >> 6 {
            1 => {
                instruction.length += 1;
                isize::from(byte(displacement) as i8)
            }
            2 => {
                instruction.length += 4;
                let bytes = std::array::from_fn(|i| byte(displacement + i));
                i32::from_le_bytes(bytes) as isize
            }
            // Without a displacement, base 5 means no base register; `amx` never uses that form.
            _ if base == 5 => return None,
            _ => 0,
        };
        instruction.base = general(registers, base + 8 * b).wrapping_add_signed(offset);
        Some(instruction)
    }

    /// Executes the instruction. Returns false if it is not an AMX instruction.
    unsafe fn execute(&self, tiles: &mut [Tile; 8]) -> bool {
        match (self.opcode, self.prefix, self.is_register) {
            // ldtilecfg
            (0x49, 0, false) => {
                // SAFETY: the operand of the interrupted `ldtilecfg` is 64 bytes long.
                let bytes = unsafe { &*(self.base as *const [u8; 64]) };
                for (index, tile) in tiles.iter_mut().enumerate() {
                    *tile = EMPTY;
                    tile.bytes = usize::from(bytes[16 + 2 * index]);
                    tile.rows = usize::from(bytes[48 + index]);
                }
                bytes[0] == 1
            }
            // tilezero
            (0x49, 3, true) => {
                tiles[self.reg].groups = EMPTY.groups;
                true
            }
            // tileloadd, tilestored
            (0x4b, 2 | 3, false) => {
                let tile = &mut tiles[self.reg];
                for (row, groups) in tile.groups.iter_mut().enumerate().take(tile.rows) {
                    let memory = (self.base + row * self.stride) as *mut u32;
                    for (index, group) in groups.iter_mut().enumerate().take(tile.bytes / 4) {
                        // SAFETY: the address is an operand of the interrupted instruction.
                        unsafe {
                            if self.prefix == 3 {
                                *group = memory.add(index).read_unaligned();
                            } else {
                                memory.add(index).write_unaligned(*group);
                            }
                        }
                    }
                }
                tile.rows > 0
            }
            // tdpbf16ps, tdpbusd
            (0x5c, 2, true) | (0x5e, 1, true) => {
                let (a, b) = (tiles[self.rm], tiles[self.vvvv]);
                product(&mut tiles[self.reg], &a, &b, self.opcode == 0x5e);
                EMULATED.set(EMULATED.get() + 1);
                a.bytes / 4 == b.rows
            }
            _ => false,
        }
    }
}

fn product(sums: &mut Tile, a: &Tile, b: &Tile, integers: bool) {
    for row in 0..sums.rows {
        for k in 0..a.bytes / 4 {
            for column in 0..sums.bytes / 4 {
                let sum = &mut sums.groups[row][column];
                let (a, b) = (a.groups[row][k], b.groups[k][column]);
                *sum = if integers {
                    let pairs = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
                    let dot: i32 = pairs.map(|(a, b)| i32::from(a) * i32::from(b as i8)).sum();
                    sum.wrapping_add(dot as u32)
                } else {
                    let half = |bits: u32, odd: bool| {
                        f32::from_bits(if odd { bits & 0xffff_0000 } else { bits << 16 })
                    };
                    let even = f32::from_bits(*sum) + half(a, false) * half(b, false);
                    (even + half(a, true) * half(b, true)).to_bits()
                };
            }
        }
    }
}

/// Returns the value of the general-purpose register with this number in instruction encodings.
fn general(registers: &[i64; 23], number: usize) -> usize {
    use libc::{
        REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RAX, REG_RBP,
        REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP,
    };
    let places = [
        REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9,
        REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
    ];
    registers[places[number] as usize] as usize
}
