//! Tests of time to first token and inter-token latency, as the metrics report them.

use std::time::Duration;

use crate::engine::EngineSettings;
use crate::engine::testing::bench::*;
use crate::task::{Decoded, Task, TaskOutput};

/// Runs one task on a manual clock. The clock moves by 0.5 s before the task is submitted, and the backend moves it by
/// 1 s per image and 10 ms per step. Returns the number of tokens of the first sequence.
fn generate(task: Task) -> (usize, Bench) {
    let bench = Bench::start(EngineSettings::default());
    let (image, step) = (Duration::from_secs(1), Duration::from_millis(10));
    bench.control.set_costs(&bench.clock, step, image, Duration::ZERO);
    let admission = bench.admit(task.shape().rows);
    // The time between a call's admission and its task's submission counts towards the time to first token. In a server
    // it is spent on reading the body and decoding the image.
    bench.clock.advance(Duration::from_millis(500));
    let TaskOutput::Caption(Decoded::Generated(sequences)) =
        wait(admission.submit(CAPTION, task)).unwrap().output
    else {
        panic!("a caption was asked for")
    };
    (sequences[0].tokens.len(), bench)
}

#[test]
fn the_first_token_counts_from_the_call_and_the_others_from_one_another() {
    let (tokens, bench) = generate(caption(1));
    assert!(tokens > 2, "{tokens} tokens tell nothing");
    let first = &bench.metrics.time_to_first_token_seconds;
    let others = &bench.metrics.inter_token_latency_seconds;
    assert_eq!(first.get_sample_count(), 1);
    assert!((first.get_sample_sum() - 1.52).abs() < 1e-9, "{}", first.get_sample_sum());
    let expected = tokens as u64 - 1;
    assert_eq!(others.get_sample_count(), expected);
    let mean = others.get_sample_sum() / expected as f64;
    assert!((mean - 0.01).abs() < 1e-9, "{mean}");
}

#[test]
fn sequences_count_apart_and_beams_as_one() {
    let (_, bench) = generate(caption_with(1, samples(4)));
    assert_eq!(bench.metrics.time_to_first_token_seconds.get_sample_count(), 4);
    let (_, bench) = generate(caption_with(1, beams(3, 2)));
    assert_eq!(bench.metrics.time_to_first_token_seconds.get_sample_count(), 1);
}
