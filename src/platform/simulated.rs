//! Simulated threads: stackful coroutines that run on one real thread, so that a whole service with its threads is
//! deterministic. A simulated thread runs until it waits; then the tokio runtime of the simulation runs other tasks and
//! other simulated threads. Time is that of the runtime, which is paused: it moves only when everything waits, and then
//! straight to the next timer.
//!
//! The parts that block a real thread (`Monitor`, the inbox of the engine, a backend or decoder that computes) call
//! [`wait_for`] here instead. Locks are never contended, because no simulated thread waits while it holds one.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::{Arc, Condvar};
use std::time::Duration;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use tokio::sync::Notify;
use tokio::task::LocalSet;

/// Stack size of a simulated thread in bytes. Only the pages that are used take memory.
const STACK: usize = 1 << 20;

/// What a simulated thread waits for.
type Wait = Pin<Box<dyn Future<Output = ()>>>;

/// Where a simulated thread leaves the means to yield; set when its code starts to run.
type Slot = Rc<Cell<Option<NonNull<Yielder<(), Wait>>>>>;

thread_local! {
    /// True while this real thread runs a simulation.
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    /// The simulated thread that runs at the moment.
    static CURRENT: RefCell<Option<Slot>> = const { RefCell::new(None) };
    /// Number of simulated threads that have not ended.
    static LIVE: Cell<usize> = const { Cell::new(0) };
}

/// Runs `body` as a simulation on this thread, with paused time.
pub(crate) fn run<T>(body: impl Future<Output = T>) -> T {
    struct Inactive;
    impl Drop for Inactive {
        fn drop(&mut self) {
            ACTIVE.set(false);
        }
    }
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs no resource that can be missing");
    ACTIVE.set(true);
    LIVE.set(0);
    let _inactive = Inactive;
    LocalSet::new().block_on(&runtime, body)
}

/// True if this thread runs a simulation.
pub(crate) fn is_active() -> bool {
    ACTIVE.get()
}

/// Returns the number of simulated threads of this simulation that have not ended.
pub(crate) fn live_threads() -> usize {
    LIVE.get()
}

/// Starts a simulated thread.
pub(crate) fn spawn(body: impl FnOnce() + 'static) {
    let slot = Slot::default();
    let inner = Rc::clone(&slot);
    let stack = DefaultStack::new(STACK).expect("address space for a stack");
    let mut coroutine = Coroutine::with_stack(stack, move |yielder: &Yielder<(), Wait>, ()| {
        inner.set(Some(NonNull::from(yielder)));
        body();
    });
    LIVE.set(LIVE.get() + 1);
    tokio::task::spawn_local(async move {
        loop {
            let outer = CURRENT.replace(Some(Rc::clone(&slot)));
            let step = coroutine.resume(());
            CURRENT.replace(outer);
            match step {
                CoroutineResult::Yield(wait) => wait.await,
                CoroutineResult::Return(()) => break,
            }
        }
        LIVE.set(LIVE.get() - 1);
    });
}

/// Lets the current simulated thread wait for `future`.
///
/// # Panics
/// If the caller is not on a simulated thread.
#[expect(
    unsafe_code,
    reason = "the means to yield is a local variable of the coroutine's first function"
)]
pub(crate) fn wait_for(future: impl Future<Output = ()> + 'static) {
    let slot = CURRENT.with_borrow(Clone::clone).expect("only simulated threads wait here");
    let yielder = slot.get().expect("set when the thread started");
    // SAFETY: the slot belongs to the coroutine that runs at the moment, because `spawn` sets `CURRENT` around each
    // `resume`. Its yielder lives on the coroutine's stack until the coroutine returns.
    let yielder = unsafe { yielder.as_ref() };
    yielder.suspend(Box::pin(future));
}

/// Lets the current simulated thread sleep.
pub(crate) fn sleep(time: Duration) {
    wait_for(tokio::time::sleep(time));
}

/// A condition variable: that of `std`, or one for simulated threads.
#[derive(Debug)]
pub(crate) enum Signal {
    Real(Condvar),
    Simulated(Arc<Notify>),
}

impl Signal {
    pub(crate) fn new() -> Self {
        if is_active() { Self::Simulated(Arc::default()) } else { Self::Real(Condvar::new()) }
    }

    pub(crate) fn notify_one(&self) {
        match self {
            Self::Real(changed) => changed.notify_one(),
            Self::Simulated(changed) => changed.notify_one(),
        }
    }

    pub(crate) fn notify_all(&self) {
        match self {
            Self::Real(changed) => changed.notify_all(),
            Self::Simulated(changed) => changed.notify_waiters(),
        }
    }
}
