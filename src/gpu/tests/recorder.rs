//! The recorder on the scripted device: whatever a pass does, it computes what direct calls compute.

use std::sync::Arc;

use super::scripted::ScriptedDevice;
use crate::gpu::device::{Address, Argument, Device, DeviceError, Format, Launch, Product};
use crate::gpu::recorder::Recorder;

/// One call of a pass.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Upload { to: u64, value: i64 },
    Mix { to: u64, from: u64, number: i32 },
    Product { x: u64, w: u64, out: u64 },
    Copy { from: u64, to: u64 },
    Download(u64),
    Synchronize,
}

impl Step {
    /// Makes the call. Returns what a download reads.
    fn make(self, device: &dyn Device) -> Result<Option<i64>, DeviceError> {
        match self {
            Self::Upload { to, value } => device.upload(Address(to), &value.to_le_bytes())?,
            Self::Mix { to, from, number } => device.launch(&Launch {
                kernel: "mix",
                grid: [1; 3],
                threads: 32,
                arguments: &[
                    Argument::Address(Address(to)),
                    Argument::Address(Address(from)),
                    Argument::Int(number),
                ],
            })?,
            Self::Product { x, w, out } => {
                let format = Format::F32;
                let [x, w, out] = [x, w, out].map(Address);
                let (m, n, k, bias, residual) = (1, 1, 1, None, None);
                device.product(&Product {
                    format,
                    out_format: format,
                    m,
                    n,
                    k,
                    x,
                    w,
                    bias,
                    residual,
                    out,
                })?;
            }
            Self::Copy { from, to } => device.copy(Address(from), Address(to), 8)?,
            Self::Download(from) => {
                let mut bytes = [0; 8];
                device.download(Address(from), &mut bytes)?;
                return Ok(Some(i64::from_le_bytes(bytes)));
            }
            Self::Synchronize => device.synchronize()?,
        }
        Ok(None)
    }
}

/// A pass that depends on nothing but its input. The uploads are where a decode step has them: between the launches, each
/// to a cell of its own.
fn pass(input: i64) -> Vec<Step> {
    vec![
        Step::Upload { to: 1, value: input },
        Step::Copy { from: 1, to: 10 },
        Step::Mix { to: 10, from: 1, number: 5 },
        Step::Upload { to: 2, value: input * 3 + 1 },
        Step::Product { x: 10, w: 2, out: 11 },
        Step::Mix { to: 11, from: 10, number: 6 },
        Step::Copy { from: 11, to: 12 },
        Step::Mix { to: 12, from: 2, number: 7 },
    ]
}

/// Cells that passes write.
const CELLS: [u64; 5] = [1, 2, 10, 11, 12];

fn cells(device: &ScriptedDevice) -> Vec<i64> {
    CELLS.map(|cell| device.cell(cell)).into()
}

/// Runs a pass with the recorder.
fn run(recorder: &Recorder<u32>, key: u32, steps: &[Step]) -> Result<Vec<i64>, DeviceError> {
    recorder.begin(key);
    let made: Result<Vec<_>, _> = steps.iter().map(|step| step.make(recorder)).collect();
    let ended = recorder.end(made.is_ok());
    let downloads = made?.into_iter().flatten().collect();
    ended.map(|()| downloads)
}

/// Runs a pass without a recorder. Returns the cells and what was downloaded.
fn direct(steps: &[Step]) -> (Vec<i64>, Vec<i64>) {
    let device = ScriptedDevice::default();
    let downloads = steps.iter().filter_map(|step| step.make(&device).unwrap()).collect();
    (cells(&device), downloads)
}

fn recorder() -> (Arc<ScriptedDevice>, Recorder<u32>) {
    let device = Arc::new(ScriptedDevice::default());
    (Arc::clone(&device), Recorder::new(device))
}

/// Runs equal passes until there is a graph.
fn with_graph() -> (Arc<ScriptedDevice>, Recorder<u32>) {
    let (device, recorder) = recorder();
    (0..2).for_each(|input| drop(run(&recorder, 0, &pass(input)).unwrap()));
    assert_eq!(device.graphs(), 1);
    device.take_calls();
    (device, recorder)
}

fn check(device: &ScriptedDevice, recorder: &Recorder<u32>, steps: &[Step], what: &str) {
    let downloads = run(recorder, 0, steps).unwrap();
    assert_eq!((cells(device), downloads), direct(steps), "{what}");
}

#[test]
fn two_equal_passes_are_forwarded_and_the_third_is_one_launch() {
    let (device, recorder) = recorder();
    let forwarded =
        ["upload", "copy", "launch", "upload", "product", "launch", "copy", "launch"].as_slice();
    check(&device, &recorder, &pass(1), "first");
    assert_eq!(device.take_calls(), forwarded);
    check(&device, &recorder, &pass(2), "second");
    assert_eq!(device.take_calls()[..forwarded.len()], *forwarded);
    for input in 3..9 {
        check(&device, &recorder, &pass(input), "replayed");
        assert_eq!(device.take_calls(), ["upload", "upload", "replay"]);
    }
    assert_eq!(recorder.replays(), 6);
}

#[test]
fn a_pass_that_differs_anywhere_computes_what_it_says() {
    let other = Step::Mix { to: 11, from: 1, number: 99 };
    let base = pass(4);
    let mut variants = Vec::new();
    for place in 0..=base.len() {
        let mut inserted = base.clone();
        inserted.insert(place, other);
        variants.push(("inserted", place, inserted));
        variants.push(("cut", place, base[..place].to_vec()));
        if place < base.len() {
            let mut removed = base.clone();
            removed.remove(place);
            variants.push(("removed", place, removed));
            let mut replaced = base.clone();
            replaced[place] = other;
            variants.push(("replaced", place, replaced));
        }
    }
    for (change, place, steps) in variants {
        let (device, recorder) = with_graph();
        // What is left of earlier passes must not matter, so both start from the same cells.
        for step in pass(1) {
            step.make(&*device).unwrap();
        }
        run(&recorder, 0, &steps).unwrap();
        let expected = [pass(1), steps].concat();
        assert_eq!(cells(&device), direct(&expected).0, "{change} at {place}");
        // The graph is still there for passes that do not differ.
        let replays = recorder.replays();
        check(&device, &recorder, &pass(7), "afterwards");
        assert_eq!(recorder.replays(), replays + 1, "{change} at {place}");
    }
}

#[test]
fn reads_in_the_middle_of_a_pass_see_the_work_before_them() {
    for place in 0..=pass(0).len() {
        for read in [Step::Download(10), Step::Download(11), Step::Download(12), Step::Synchronize]
        {
            let (device, recorder) = recorder();
            for input in 0..20 {
                let mut steps = pass(input);
                steps.insert(place, read);
                let before = cells(&device);
                let downloads = run(&recorder, 0, &steps).unwrap();
                let start = CELLS.iter().zip(before);
                let start = start.map(|(&to, value)| Step::Upload { to, value });
                let expected = direct(&[start.collect(), steps].concat());
                assert_eq!((cells(&device), downloads), expected, "{read:?} at {place}");
            }
        }
    }
}

#[test]
fn graphs_that_are_never_launched_are_given_up() {
    let (device, recorder) = recorder();
    let mut steps = pass(1);
    steps.insert(5, Step::Download(11));
    (0..200).for_each(|_| drop(run(&recorder, 0, &steps).unwrap()));
    device.take_calls();
    run(&recorder, 0, &steps).unwrap();
    assert!(!device.take_calls().contains(&"begin_capture"));
    assert_eq!((recorder.replays(), device.graphs()), (0, 0));
}

#[test]
fn a_failed_call_leaves_no_half_state() {
    let failed = DeviceError::Failed("injected".to_owned());
    let memory = DeviceError::OutOfMemory("injected".to_owned());
    let mut different = pass(5);
    different[6] = Step::Mix { to: 12, from: 11, number: 50 };
    // The number of passes before says whether the failing one is recorded, becomes a graph, or is replayed.
    for (before, steps) in [
        (0, pass(5)),
        (1, pass(5)),
        (2, pass(5)),
        (3, pass(5)),
        (2, different.clone()),
        (1, different),
    ] {
        for error in [&failed, &memory] {
            for n in 0.. {
                let (device, recorder) = recorder();
                (0..before).for_each(|input| drop(run(&recorder, 0, &pass(input)).unwrap()));
                device.fail_call(n, error.clone());
                let result = run(&recorder, 0, &steps);
                if device.clear_fault() {
                    assert!(result.is_ok() && n > 2, "the pass made {n} calls");
                    break;
                }
                let is_built = before == 1 && n >= steps.len() && steps == pass(5);
                // A graph that cannot be built is no error of the pass.
                assert_eq!(result.is_ok(), is_built, "{before} {n}: {result:?}");
                if let Err(returned) = result {
                    assert_eq!(returned, *error);
                }
                for input in 6..12 {
                    check(&device, &recorder, &pass(input), "after a fault");
                }
                assert!(recorder.replays() >= 3, "{before} {n}");
                assert!(device.graphs() <= 1);
            }
        }
    }
}

#[test]
fn a_lost_device_is_reported_in_every_mode() {
    let lost = DeviceError::Lost("injected".to_owned());
    for before in 0..4 {
        for n in 0..3 {
            let (device, recorder) = recorder();
            (0..before).for_each(|input| drop(run(&recorder, 0, &pass(input)).unwrap()));
            device.fail_call(n, lost.clone());
            for input in 0..4 {
                assert_eq!(run(&recorder, 0, &pass(input)), Err(lost.clone()), "{before} {n}");
            }
        }
    }
    let (device, recorder) = recorder();
    run(&recorder, 0, &pass(1)).unwrap();
    // Eight calls of the pass, then `begin_capture`, six calls of the graph, and `end_capture`.
    device.fail_call(15, lost.clone());
    assert_eq!(run(&recorder, 0, &pass(2)), Err(lost));
}

#[test]
fn a_device_that_builds_no_graphs_is_asked_a_few_times() {
    let (device, recorder) = recorder();
    for input in 0..40 {
        device.fail_call(15, DeviceError::OutOfMemory("injected".to_owned()));
        check(&device, &recorder, &pass(input), "no graph");
        device.clear_fault();
    }
    let captures = device.take_calls().into_iter().filter(|call| *call == "begin_capture").count();
    assert_eq!((captures, device.graphs()), (8, 0));
}

#[test]
fn keys_whose_passes_keep_differing_are_no_longer_recorded() {
    let (device, recorder) = recorder();
    for input in 0..12 {
        let mut steps = pass(input);
        steps.push(Step::Mix { to: 12, from: 1, number: input as i32 });
        check(&device, &recorder, &steps, "differing");
    }
    for input in 0..6 {
        check(&device, &recorder, &pass(input), "given up");
    }
    assert!(!device.take_calls().contains(&"begin_capture"));
    // Other keys are not affected.
    (0..3).for_each(|input| drop(run(&recorder, 1, &pass(input)).unwrap()));
    assert_eq!(recorder.replays(), 1);
}

#[test]
fn a_graph_that_no_longer_fits_is_replaced() {
    let (device, recorder) = with_graph();
    for input in 0..8 {
        let mut steps = pass(input);
        steps[5] = Step::Mix { to: 11, from: 10, number: 60 };
        check(&device, &recorder, &steps, "other calls from now on");
    }
    assert_eq!((recorder.replays(), device.graphs(), recorder.lost_graphs()), (2, 1, 1));
}

#[test]
fn the_number_of_graphs_is_bounded_and_those_in_use_stay() {
    let (device, recorder) = recorder();
    for key in 1..1000 {
        for input in 0..2 {
            run(&recorder, key, &pass(input)).unwrap();
        }
        run(&recorder, 0, &pass(3)).unwrap();
    }
    assert!((200..=256).contains(&device.graphs()), "{} graphs", device.graphs());
    assert_eq!((recorder.replays(), recorder.lost_graphs()), (999 - 2, 0));
    drop(recorder);
    assert_eq!(device.graphs(), 0);
}

#[test]
fn ends_without_a_pass_and_calls_outside_of_passes_are_forwarded() {
    let (device, recorder) = with_graph();
    recorder.end(true).unwrap();
    recorder.end(false).unwrap();
    for step in pass(3) {
        step.make(&recorder).unwrap();
    }
    assert_eq!(cells(&device), direct(&pass(3)).0);
    assert_eq!(device.take_calls().len(), pass(3).len());
    // An empty pass becomes no graph.
    (0..4).for_each(|_| drop(run(&recorder, 5, &[]).unwrap()));
    assert_eq!(device.graphs(), 1);
}
