//! Deliberate defects, one per test. `tests/sanitizers/run.sh` runs each of them in a process of its own and fails if
//! the sanitizer does not report it, because then its silence about the other tests would mean nothing. All of them are
//! ignored in ordinary runs: they have undefined behaviour.

#![expect(unsafe_code, reason = "defects that only unsafe code can have")]

use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::disjoint::DisjointMutPtr;
use super::isa::{Isa, Kernel, Level, MatrixTile};
use super::pool::Pool;

/// Loads or stores one vector. Its last lane is beyond the end of `memory`.
struct BeyondTheEnd<'a> {
    memory: &'a mut Vec<f32>,
    is_store: bool,
}

impl Kernel for BeyondTheEnd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.memory.resize(I::LANES - 1, 0.0);
        self.memory.shrink_to_fit();
        let memory = black_box(self.memory.as_mut_ptr());
        // SAFETY: none. This is the defect.
        unsafe {
            if self.is_store {
                isa.store(memory, isa.splat(1.0));
            } else {
                black_box(isa.sum(isa.load(memory)));
            }
        }
    }
}

/// Multiplies on the matrix unit, with a panel that ends within its last row.
struct PanelTooShort;

impl Kernel for PanelTooShort {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        if !I::MATRIX_UNIT {
            return;
        }
        let (a, b, mut sums) = (vec![0; 16], vec![0; 16 * 32 - 1], vec![0; 32]);
        let tile = MatrixTile {
            integers: true,
            rows: 1,
            a: a.as_ptr(),
            b: b.as_ptr(),
            blocks: 1,
            sums: sums.as_mut_ptr(),
            add: false,
        };
        // SAFETY: none. This is the defect.
        unsafe { isa.matrix_tile(tile) }
    }
}

/// Runs `kernel` at the level with this name if the level `applies`, or says that it does not.
fn run_at(name: &str, applies: fn(Level) -> bool, kernel: impl Kernel<Output = ()>) {
    Level::ALL.into_iter().for_each(Level::emulate);
    match Level::ALL.into_iter().find(|level| level.name() == name && applies(*level)) {
        Some(level) => level.run(kernel),
        None => eprintln!("not planted: {name} cannot show this defect on this machine"),
    }
}

macro_rules! beyond_the_end {
    ($($module:ident: $name:literal),*) => {$(
        mod $module {
            use super::{BeyondTheEnd, Level, run_at};

            #[test]
            #[ignore = "a planted defect"]
            fn address_load() {
                run_at($name, Level::is_available, BeyondTheEnd { memory: &mut Vec::new(), is_store: false });
            }

            #[test]
            #[ignore = "a planted defect"]
            fn address_store() {
                run_at($name, Level::is_available, BeyondTheEnd { memory: &mut Vec::new(), is_store: true });
            }
        }
    )*};
}

beyond_the_end! {
    portable: "portable",
    avx2: "avx2",
    avx512: "avx512",
    avx512_vnni: "avx512-vnni",
    avx512_bf16: "avx512-bf16",
    amx: "amx"
}

/// Only the emulator's accesses can be checked: no sanitizer sees those of a real matrix unit, or of inline assembly.
#[test]
#[ignore = "a planted defect"]
fn address_matrix_tile() {
    run_at("amx", Level::is_emulated, PanelTooShort);
}

#[test]
#[ignore = "a planted defect"]
fn leak_memory() {
    std::mem::forget(black_box(vec![1u8; 1000]));
}

/// Two parts of one job write to the same value. Each waits for the other, so that two threads take part; the relaxed
/// counter orders nothing.
#[test]
#[ignore = "a planted defect"]
fn thread_two_parts_write_one_value() {
    let mut value = 0u32;
    let shared = DisjointMutPtr(&raw mut value);
    let arrived = AtomicUsize::new(0);
    Pool::new(2).run(2, &|_| {
        arrived.fetch_add(1, Ordering::Relaxed);
        while arrived.load(Ordering::Relaxed) < 2 {
            std::hint::spin_loop();
        }
        // SAFETY: the pointer is valid, but not for two threads. This is the defect.
        unsafe { *shared.pointer() += 1 };
    });
    black_box(value);
}

/// Branches on a value that was never written.
#[test]
#[ignore = "a planted defect"]
fn memory_never_written() {
    let layout = Layout::new::<[u8; 16]>();
    // SAFETY: the memory is valid, but its values are not initialised. This is the defect.
    unsafe {
        let memory = alloc(layout);
        if *black_box(memory) == 7 {
            eprintln!("it was 7");
        }
        dealloc(memory, layout);
    }
}
