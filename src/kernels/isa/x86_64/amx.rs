//! The matrix unit of Intel's server processors (AMX): checks whether this process may use it, and multiplies tiles.
//!
//! A group is four bytes of one operand (two bf16 values or four 8-bit integers; see `isa::lanes::Isa`). A tile
//! register holds 16 rows of 64 bytes, that is, of 16 groups. `tdpbf16ps` and `tdpbusd` multiply a register of 16 rows
//! x 16 groups with a register of 16 groups x 16 columns, and add the result to a register of 16 x 16 sums. The packed
//! operands already have this layout: a tile of `gemm::rows` consists of blocks of `[rows][16 groups]`, and a panel of
//! `gemm::weights` consists of blocks of `[16 groups][32 columns]`.
//!
//! Stable Rust does not have the intrinsics, so this file uses inline assembly. One assembly block contains everything
//! from the first load to the last store, because the compiler does not know the contents of tile registers and must
//! not insert code in between. Source: Intel SDM, volume 2, and the optimisation manual's chapter on AMX.

#![expect(unsafe_code, reason = "inline assembly")]

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::cell::Cell;
use std::sync::OnceLock;

use crate::kernels::isa::MatrixTile;

/// Whether this process may use the matrix unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Support {
    /// The CPU has no matrix unit, or the operating system does not support it.
    Absent,
    /// The CPU has the unit, but the operating system did not let this process use it.
    Refused,
    /// The unit is present, and this process may use it.
    Usable,
}

impl Support {
    /// Returns whether this process may use the matrix unit. The first call requests the permission from the operating
    /// system; threads that are started afterwards inherit it.
    pub(super) fn of_this_process() -> Self {
        static SUPPORT: OnceLock<Support> = OnceLock::new();
        *SUPPORT.get_or_init(|| {
            if !is_present() {
                Self::Absent
            } else if request() {
                Self::Usable
            } else {
                Self::Refused
            }
        })
    }
}

/// True if CPUID leaf 7 reports the unit (AMX-BF16, AMX-TILE and AMX-INT8 in EDX) and the operating system saves both
/// states of the unit (XCR0 bits 17 and 18).
fn is_present() -> bool {
    const NEEDED: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const STATES: u64 = 1 << 17 | 1 << 18;
    if !is_x86_feature_detected!("xsave") || !is_x86_feature_detected!("avx512f") {
        return false;
    }
    // Leaf 7 exists on every CPU with AVX-512.
    let leaf = __cpuid_count(7, 0);
    // SAFETY: XSAVE was detected, and the standard library reports it only if the operating system has set OSXSAVE.
    leaf.edx & NEEDED == NEEDED && unsafe { _xgetbv(0) } & STATES == STATES
}

/// Requests the tile state with `arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`, and returns whether Linux granted it.
/// Linux gives the 8 KB of state only to a process that requests it (Documentation/arch/x86/xstate.rst).
fn request() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_PRCTL: usize = 158;
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XTILEDATA: usize = 18;
        let result: isize;
        // SAFETY: this system call neither reads nor writes memory of ours.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    {
        false
    }
}

/// Number of rows of a tile register: half of the rows of the largest tile.
const HALF: usize = 16;

/// Operand of `ldtilecfg`: the palette is 1; `bytes` holds the bytes per row of each register, and `rows` the number of
/// rows.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

thread_local! {
    /// Number of tile rows that this thread's registers are configured for; 0 before the first configuration. The
    /// registers stay configured, because configuring takes about as long as six products. So no other code on these
    /// threads may use the unit.
    static CONFIGURED: Cell<usize> = const { Cell::new(0) };
}

/// Configures the tile registers for a tile of `rows` rows: registers 0 to 3 hold the sums (upper left, upper right,
/// lower left, lower right), 4 and 5 the rows, and 6 and 7 the weights.
fn configure(rows: usize) {
    if CONFIGURED.get() == rows {
        return;
    }
    let mut configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        bytes: [0; 16],
        rows: [0; 16],
    };
    let upper = rows.min(HALF) as u8;
    let lower = rows.saturating_sub(HALF) as u8;
    for (register, rows) in [upper, upper, lower, lower, upper, lower, 16, 16].iter().enumerate() {
        configuration.rows[register] = *rows;
        configuration.bytes[register] = if *rows > 0 { 64 } else { 0 };
    }
    // SAFETY: the caller has proof that the unit is usable. The operand is 64 bytes long and outlives the instruction.
    unsafe {
        asm!(
            "ldtilecfg [{}]",
            in(reg) &raw const configuration,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }
    CONFIGURED.set(rows);
}

/// The loop over blocks of 16 groups, for both kinds of groups. `$dot` is the multiply instruction. `both halves` adds
/// the lines that only tiles of more than 16 rows need.
macro_rules! product {
    ($dot:literal, $tile:ident, one half) => {
        product!(@ $tile, concat!(
            "test {add:e}, {add:e}\n jz 3f\n",
            "tileloadd tmm0, [{sums} + {stride}*2]\n tileloadd tmm1, [{sums} + {stride}*2 + 64]\n",
            "jmp 2f\n 3:\n tilezero tmm0\n tilezero tmm1\n 2:\n",
            "tileloadd tmm4, [{a} + {stride}]\n",
            "tileloadd tmm6, [{b} + {stride}*2]\n tileloadd tmm7, [{b} + {stride}*2 + 64]\n",
            $dot, " tmm0, tmm4, tmm6\n", $dot, " tmm1, tmm4, tmm7\n",
            "add {a}, {step}\n add {b}, 2048\n dec {blocks}\n jnz 2b\n",
            "tilestored [{sums} + {stride}*2], tmm0\n tilestored [{sums} + {stride}*2 + 64], tmm1\n",
            "/* {lower} */",
        ))
    };
    ($dot:literal, $tile:ident, both halves) => {
        product!(@ $tile, concat!(
            "test {add:e}, {add:e}\n jz 3f\n",
            "tileloadd tmm0, [{sums} + {stride}*2]\n tileloadd tmm1, [{sums} + {stride}*2 + 64]\n",
            "tileloadd tmm2, [{lower} + {stride}*2]\n tileloadd tmm3, [{lower} + {stride}*2 + 64]\n",
            "jmp 2f\n 3:\n tilezero tmm0\n tilezero tmm1\n tilezero tmm2\n tilezero tmm3\n 2:\n",
            "tileloadd tmm4, [{a} + {stride}]\n",
            "tileloadd tmm6, [{b} + {stride}*2]\n tileloadd tmm7, [{b} + {stride}*2 + 64]\n",
            $dot, " tmm0, tmm4, tmm6\n", $dot, " tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{a} + {stride} + 1024]\n",
            $dot, " tmm2, tmm5, tmm6\n", $dot, " tmm3, tmm5, tmm7\n",
            "add {a}, {step}\n add {b}, 2048\n dec {blocks}\n jnz 2b\n",
            "tilestored [{sums} + {stride}*2], tmm0\n tilestored [{sums} + {stride}*2 + 64], tmm1\n",
            "tilestored [{lower} + {stride}*2], tmm2\n tilestored [{lower} + {stride}*2 + 64], tmm3\n",
        ))
    };
    (@ $tile:ident, $lines:expr) => {
        asm!(
            $lines,
            add = in(reg) u32::from($tile.add),
            sums = in(reg) $tile.sums,
            lower = in(reg) $tile.sums.wrapping_add(HALF * 32),
            // Number of bytes from one row of a tile to the next; the rows of a panel and of the sums are twice as far
            // apart.
            stride = in(reg) 64usize,
            step = in(reg) $tile.rows * 64,
            a = inout(reg) $tile.a => _,
            b = inout(reg) $tile.b => _,
            blocks = inout(reg) $tile.blocks => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// Multiplies one tile of rows with one panel of 32 columns.
///
/// # Safety
/// This process may use the matrix unit. The pointers are valid as [`MatrixTile`] requires, for 1 to 32 rows and at
/// least one block.
#[inline]
pub(super) unsafe fn multiply(tile: MatrixTile) {
    debug_assert!((1..=2 * HALF).contains(&tile.rows) && tile.blocks > 0);
    configure(tile.rows);
    // SAFETY: the caller upholds this function's contract, and the registers are configured for exactly this number of
    // rows.
    unsafe {
        match (tile.integers, tile.rows > HALF) {
            (false, false) => product!("tdpbf16ps", tile, one half),
            (false, true) => product!("tdpbf16ps", tile, both halves),
            (true, false) => product!("tdpbusd", tile, one half),
            (true, true) => product!("tdpbusd", tile, both halves),
        }
    }
}
