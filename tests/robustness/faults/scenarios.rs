//! What is broken, how, and which refusals that may bring.

use super::fault::{Effect, Injection};

/// Faults that are on together.
pub(crate) struct Scenario {
    pub(crate) faults: &'static [Injection],
    /// Statuses beside 200.
    pub(crate) statuses: &'static [u16],
    /// The connection may end without a reply: the fault lies before the request.
    pub(crate) may_close: bool,
}

impl Scenario {
    pub(crate) fn name(&self) -> String {
        let name =
            |fault: &Injection| format!("{} {:?} 1/{}", fault.place, fault.effect, fault.every);
        self.faults.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

macro_rules! scenarios {
    ($($($place:literal $effect:expr, 1/$every:literal)&+ => [$($status:literal)*] $($close:ident)?;)*) => {
        &[$(Scenario {
            faults: &[$(Injection { place: $place, effect: $effect, every: $every }),+],
            statuses: &[$($status),*],
            may_close: scenarios!(@close $($close)?),
        }),*]
    };
    (@close closes) => { true };
    (@close) => { false };
}

use Effect::{DelayMs, Error, Panic};

/// 422 is what an undecodable picture is told, 500 a failure of ours, 503 what may be tried again.
pub(crate) const SCENARIOS: &[Scenario] = scenarios! {
    "http::accept" Error(""), 1/4 => [] closes;
    "http::accept" DelayMs(5), 1/4 => [];
    "http::admit" Error(""), 1/4 => [503];
    "http::admit" Panic, 1/4 => [500];
    "http::admit" DelayMs(5), 1/4 => [];
    "http::body" Error(""), 1/4 => [400];
    "http::body" Panic, 1/4 => [500];
    "http::body" DelayMs(5), 1/4 => [];
    "http::image_values" Error(""), 1/4 => [500];
    "http::image_values" Panic, 1/4 => [500];
    "http::image_values" DelayMs(5), 1/4 => [];
    "http::tokenize" Error(""), 1/2 => [500];
    "http::tokenize" Panic, 1/2 => [500];
    "http::tokenize" DelayMs(5), 1/2 => [];
    "http::answer" Error(""), 1/4 => [500];
    "http::answer" Panic, 1/4 => [500];
    "http::answer" DelayMs(5), 1/4 => [];
    "http::stream" Error(""), 1/2 => [500];
    "http::stream" Panic, 1/2 => [500];
    "http::stream" DelayMs(5), 1/2 => [];
    "http::metrics" Error(""), 1/2 => [500];
    "http::metrics" Panic, 1/2 => [500];
    "http::metrics" DelayMs(5), 1/2 => [];
    "input::reserve" Error(""), 1/4 => [503];
    "input::reserve" Panic, 1/4 => [422 500];
    "input::reserve" DelayMs(5), 1/4 => [];
    "images::identify" Error(""), 1/4 => [503];
    "images::identify" Panic, 1/4 => [500];
    "images::identify" DelayMs(5), 1/4 => [];
    "images::enqueue" Error(""), 1/4 => [503];
    "images::enqueue" Panic, 1/4 => [500];
    "images::enqueue" DelayMs(5), 1/4 => [];
    "images::inspect" Error(""), 1/4 => [422];
    "images::inspect" Panic, 1/4 => [422];
    "images::inspect" DelayMs(5), 1/4 => [];
    "images::decode" Error(""), 1/4 => [422];
    "images::decode" Panic, 1/4 => [422];
    "images::decode" DelayMs(5), 1/4 => [];
    "images::resize" Error(""), 1/4 => [422];
    "images::resize" Panic, 1/4 => [422];
    "images::resize" DelayMs(5), 1/4 => [];
    "engine::submit" Error(""), 1/4 => [503];
    "engine::submit" Panic, 1/4 => [500];
    "engine::submit" DelayMs(5), 1/4 => [];
    "engine::accept" Error(""), 1/4 => [500];
    "engine::accept" Panic, 1/10 => [503];
    "engine::accept" DelayMs(5), 1/4 => [];
    "engine::turn" Panic, 1/20 => [503];
    "engine::turn" DelayMs(5), 1/10 => [];
    "engine::encode" Error(""), 1/4 => [500];
    "engine::encode" Error("nan"), 1/4 => [500];
    "engine::encode" Error("oom"), 1/4 => [503];
    "engine::encode" Panic, 1/4 => [500];
    "engine::encode" DelayMs(5), 1/4 => [];
    "engine::single_pass" Error(""), 1/2 => [500];
    "engine::single_pass" Error("oom"), 1/2 => [503];
    "engine::single_pass" Panic, 1/2 => [500];
    "engine::single_pass" DelayMs(5), 1/2 => [];
    "engine::open" Error(""), 1/4 => [500];
    "engine::open" Panic, 1/4 => [500];
    "engine::open" DelayMs(5), 1/4 => [];
    "engine::step" Error(""), 1/4 => [500];
    "engine::step" Error("nan"), 1/4 => [500];
    "engine::step" Error("oom"), 1/4 => [503];
    "engine::step" Panic, 1/4 => [500];
    "engine::step" DelayMs(5), 1/4 => [];
    "engine::send" Panic, 1/10 => [503];
    "engine::send" DelayMs(5), 1/4 => [];
    "engine::step" Panic, 1/10 & "engine::probe" Error(""), 1/1 => [500 503];
    "engine::encode" Error(""), 1/10 & "engine::probe" Error(""), 1/2 => [500 503];
    "engine::turn" Panic, 1/20 & "engine::rebuild" DelayMs(20), 1/1 => [503];
    "engine::encode" Panic, 1/3 & "images::decode" Panic, 1/5 & "http::body" DelayMs(5), 1/7 => [422 500];
};
