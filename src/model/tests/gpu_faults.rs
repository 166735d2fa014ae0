//! Faults of a GPU, at every call: what fails returns its error, leaves no state behind, and can be run again. The kernels
//! run on the CPU (see `gpu`).

use std::sync::Arc;

use super::{CPU_F32, Pixels, Reference, spec};
use crate::engine::backend::{
    Backend, BackendError, GroupSpec, SinglePassOutput, SinglePassRow, StepEvent,
};
use crate::gpu::device::{Device as _, DeviceError, Format};
use crate::gpu::host::HostDevice;
use crate::model::BlipBackend;
use crate::model::group::{EncoderStates, Group};
use crate::model::ops::Ops as _;
use crate::model::ops::gpu::GpuOps;
use crate::task::{
    Cutoffs, EarlyStopping, EmbedOutput, GenerationParams, ModelId, Pooling, Strategy, TokenIds,
    TowerId, VisionOutput,
};

const CAPTION: &str = "caption-talkative";
const MODEL: ModelId = ModelId(0);
const KV_BYTES: u64 = 1 << 20;

/// Width of the keys of [`CAPTION`].
const WIDTH: usize = 48;

type States = EncoderStates<GpuOps>;

/// A backend, and the device on which it runs.
struct Tested {
    device: Arc<HostDevice>,
    backend: BlipBackend<GpuOps>,
}

impl Tested {
    /// Returns `None` if there is no C++ compiler.
    fn load(checkpoints: &[&str], kv_bytes: u64) -> Option<Self> {
        let device = Arc::new(HostDevice::try_new()?);
        let ops = GpuOps::new(Arc::clone(&device) as _, Format::F32, kv_bytes);
        let specs: Vec<_> = checkpoints.iter().map(|name| spec(name)).collect();
        let backend = BlipBackend::load(ops, &specs, CPU_F32, |_| {}).unwrap();
        Some(Self { device, backend })
    }

    fn encode(&mut self, images: &[&Pixels]) -> Result<Vec<States>, BackendError> {
        self.backend.encode(VisionOutput::last(TowerId(0)), images)
    }

    fn bits(&self, states: &[States]) -> Vec<Vec<u32>> {
        let of = |states: &States| self.backend.ops.to_host(states.states()).unwrap().concat();
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        states.iter().map(|states| bits(of(states))).collect()
    }

    fn step(&mut self, groups: &mut [Group<GpuOps>]) -> Result<Vec<StepEvent>, BackendError> {
        let mut groups: Vec<_> = groups.iter_mut().collect();
        self.backend.step(MODEL, &mut groups)
    }

    fn free_pages(&self) -> usize {
        self.backend.ops.free_pages(WIDTH)
    }

    /// Opens greedy, sampled and beam searches for these images, in turn.
    fn open(&mut self, states: &[States], max_new_tokens: usize) -> Vec<Group<GpuOps>> {
        let sampled = Strategy::Sample {
            seed: 5,
            num_return_sequences: 1,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            cutoffs: Cutoffs::default(),
        };
        let strategies = [Strategy::Greedy, beams(3), sampled];
        let groups = states.iter().zip(strategies.iter().cycle()).enumerate();
        groups
            .map(|(index, (states, strategy))| {
                // Searches that forbid an early end keep the number of rows.
                let params = GenerationParams {
                    min_new_tokens: if index == 0 { 0 } else { max_new_tokens },
                    strategy: strategy.clone(),
                    ..GenerationParams::greedy(max_new_tokens)
                };
                let prompt = (index == 1).then(|| TokenIds::new([3, 7, 9, 58]));
                self.backend.open(GroupSpec {
                    model: MODEL,
                    states: states.clone(),
                    prompt,
                    params,
                    sequence: 0,
                    explain: None,
                })
            })
            .collect()
    }
}

fn beams(num_beams: usize) -> Strategy {
    Strategy::Beams {
        num_beams,
        num_return_sequences: num_beams,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::Never,
        renormalize_logits: false,
    }
}

fn photos() -> Vec<Pixels> {
    let reference = Reference::read(CAPTION);
    reference.names("vision").iter().map(|photo| reference.pixels(photo)).collect()
}

/// The errors that later calls survive, in turn.
fn fault(n: usize) -> DeviceError {
    if n.is_multiple_of(2) {
        DeviceError::OutOfMemory("injected".to_owned())
    } else {
        DeviceError::Failed("injected".to_owned())
    }
}

#[track_caller]
fn assert_is(error: &BackendError, fault: &DeviceError) {
    let expected = BackendError::from(fault.clone());
    assert_eq!(format!("{error:?}"), format!("{expected:?}"));
}

/// Returns the events that are left of each group: those of groups that have finished are removed with the groups.
fn live(groups: &mut Vec<Group<GpuOps>>, events: &[StepEvent]) {
    let mut finished = events.iter().map(|event| event.finished.is_some());
    groups.retain(|_| !finished.next().unwrap_or(false));
}

/// Runs groups to their ends. `step` advances them once.
fn run(
    tested: &mut Tested,
    mut groups: Vec<Group<GpuOps>>,
    mut step: impl FnMut(&mut Tested, &mut [Group<GpuOps>]) -> Vec<StepEvent>,
) -> Vec<Vec<StepEvent>> {
    let mut all = Vec::new();
    while !groups.is_empty() {
        let events = step(tested, &mut groups);
        live(&mut groups, &events);
        all.push(events);
    }
    all
}

/// What came of work whose calls failed one after another.
#[derive(Debug)]
struct Survived<T> {
    /// The result of the run that succeeded.
    result: T,
    /// The call that failed without failing the work: one that builds a graph.
    graph_fault: Option<usize>,
}

/// Runs `work` again and again. In each run, one call fails: first the one with number `first`, then every `stride`-th
/// one after it, until no call is left to fail.
fn with_faults<T>(
    tested: &mut Tested,
    (first, stride): (usize, usize),
    mut work: impl FnMut(&mut Tested) -> Result<T, BackendError>,
) -> Survived<T> {
    let mut n = first;
    loop {
        let fault = fault(n / stride);
        tested.device.fail_call(n as u64, fault.clone());
        let result = work(tested);
        let is_left = tested.device.clear_faults();
        match result {
            Ok(result) => return Survived { result, graph_fault: (!is_left).then_some(n) },
            Err(error) => assert_is(&error, &fault),
        }
        n += stride;
    }
}

#[test]
fn an_encoding_that_failed_anywhere_can_be_run_again() {
    let (Some(mut tested), Some(mut fresh)) =
        (Tested::load(&[CAPTION], KV_BYTES), Tested::load(&[CAPTION], KV_BYTES))
    else {
        return;
    };
    let photos = photos();
    let images = [&photos[0], &photos[1]];
    let states = fresh.encode(&images).unwrap();
    let expected = fresh.bits(&states);
    // The calls of the first pass that succeeds are recorded. Those of the second become a graph, whose building may fail
    // as well. The third one is a replay.
    let (mut first, mut runs) = (0, 0);
    while tested.backend.ops.replays() == 0 {
        let stride = if runs == 0 { 5 } else { 9 };
        let work = |tested: &mut Tested| tested.encode(&images);
        let survived = with_faults(&mut tested, (first, stride), work);
        assert_eq!(tested.bits(&survived.result), expected, "run {runs}");
        first = survived.graph_fault.map_or(0, |n| n + stride);
        runs += 1;
        assert!(runs < 15, "no pass is replayed");
    }
    assert!(runs > 2, "the building of the graph did not fail");
    let replays = tested.backend.ops.replays();
    let survived = with_faults(&mut tested, (0, 1), |tested| tested.encode(&images));
    assert_eq!(tested.bits(&survived.result), expected);
    assert!(tested.backend.ops.replays() > replays);
}

#[test]
fn a_decode_step_that_failed_anywhere_can_be_run_again_in_halves() {
    let (Some(mut tested), Some(mut fresh)) =
        (Tested::load(&[CAPTION], KV_BYTES), Tested::load(&[CAPTION], KV_BYTES))
    else {
        return;
    };
    let photos = photos();
    let pick = |states: Vec<States>| [0, 1, 0, 1].map(|index: usize| states[index].clone());
    let images = [&photos[0], &photos[1]];
    let [states, fresh_states] =
        [&mut tested, &mut fresh].map(|tested| pick(tested.encode(&images).unwrap()));
    let groups = fresh.open(&fresh_states, 7);
    let expected = run(&mut fresh, groups, |tested, groups| tested.step(groups).unwrap());
    let free = tested.free_pages();
    for round in 0..3 {
        let groups = tested.open(&states, 7);
        let mut step = 0;
        let events = run(&mut tested, groups, |tested, groups| {
            step += 1;
            let (first, stride) = ((step + round) % 11, 11);
            // In every second step of a round, the fault makes the engine run the halves.
            if (step + round) % 2 == 0 {
                return with_faults(tested, (first, stride), |tested| tested.step(groups)).result;
            }
            let fault = fault(step);
            tested.device.fail_call(20, fault.clone());
            assert_is(&tested.step(groups).unwrap_err(), &fault);
            let (low, high) = groups.split_at_mut(groups.len() / 2);
            let halves = [low, high].into_iter().filter(|half| !half.is_empty());
            halves.flat_map(|half| tested.step(half).unwrap()).collect()
        });
        assert_eq!(events, expected, "round {round}");
        assert_eq!(tested.free_pages(), free);
    }
    assert!(tested.backend.ops.replays() > 3);
}

#[test]
fn single_passes_that_failed_anywhere_can_be_run_again() {
    let outputs = |tested: &Tested, outputs: Vec<SinglePassOutput<States>>| -> Vec<String> {
        let text = |output| match output {
            SinglePassOutput::EncoderStates { states, .. } => {
                format!("{:?}", tested.bits(&[states]))
            }
            output => format!("{output:?}"),
        };
        outputs.into_iter().map(text).collect()
    };
    let text = || TokenIds::new([3, 17, 40, 58]);
    let output = || EmbedOutput { pooling: Pooling::Projection, layer: None };
    for checkpoint in ["vqa-talkative", "retrieval"] {
        let Some(mut tested) = Tested::load(&[checkpoint], KV_BYTES) else { return };
        let reference = Reference::read(checkpoint);
        let pixels = reference.pixels(&reference.names("vision")[0]);
        let image = tested.encode(&[&pixels]).unwrap().remove(0);
        let question = SinglePassRow::EncodeQuestion {
            image: image.clone(),
            question: text(),
            is_only_text: true,
            explain: None,
        };
        let rows = if checkpoint == "retrieval" {
            vec![
                SinglePassRow::MatchPair {
                    image: image.clone(),
                    text: text(),
                    is_only_text: false,
                },
                SinglePassRow::EmbedImage { image: image.clone(), pooling: Pooling::Projection },
                SinglePassRow::EmbedText { text: text(), output: output() },
                SinglePassRow::EmbedMultimodal { image, text: text(), output: output() },
            ]
        } else {
            let states =
                tested.backend.run_single_pass(MODEL, std::slice::from_ref(&question)).unwrap();
            let [SinglePassOutput::EncoderStates { states, .. }] = &states[..] else { panic!() };
            let candidate =
                SinglePassRow::ScoreCandidate { states: states.clone(), candidate: text() };
            vec![question, candidate]
        };
        let expected = tested.backend.run_single_pass(MODEL, &rows).unwrap();
        let expected = outputs(&tested, expected);
        let survived =
            with_faults(&mut tested, (0, 3), |tested| tested.backend.run_single_pass(MODEL, &rows));
        assert!(survived.graph_fault.is_none());
        assert_eq!(outputs(&tested, survived.result), expected, "{checkpoint}");
    }
}

#[test]
fn after_the_device_is_lost_every_call_says_so() {
    let Some(mut tested) = Tested::load(&[CAPTION], KV_BYTES) else { return };
    let photos = photos();
    let mut states = tested.encode(&[&photos[0]]).unwrap();
    let mut groups = tested.open(&states, 5);
    tested.step(&mut groups).unwrap();
    tested.device.fail_call(9, DeviceError::Lost("injected".to_owned()));
    let is_lost = |error: BackendError| matches!(error, BackendError::DeviceLost(_));
    for _ in 0..3 {
        assert!(is_lost(tested.step(&mut groups).unwrap_err()));
        assert!(is_lost(tested.encode(&[&photos[1]]).unwrap_err()));
        let candidate = TokenIds::new([3, 17, 58]);
        let row = SinglePassRow::ScoreCandidate { states: states[0].clone(), candidate };
        assert!(is_lost(tested.backend.run_single_pass(MODEL, &[row]).unwrap_err()));
    }
    // What is dropped now does no harm.
    groups.clear();
    states.clear();
}

#[test]
fn too_few_pages_are_out_of_memory_and_fewer_groups_go_on() {
    // A page of one layer takes 2 x 16 x 48 x 4 bytes. Each row needs one for each of two layers. An eighth is added.
    let Some(mut tested) = Tested::load(&[CAPTION], 8 * 6144 * 8 / 9 + 1) else { return };
    assert_eq!(tested.free_pages(), 8);
    let photos = photos();
    let states = vec![tested.encode(&[&photos[0]]).unwrap().remove(0); 6];
    let greedy = |tested: &mut Tested, states: &[States]| -> Vec<Group<GpuOps>> {
        let open = |states: &States| {
            let params = GenerationParams { min_new_tokens: 4, ..GenerationParams::greedy(4) };
            let (model, states, prompt) = (MODEL, states.clone(), None);
            let spec = GroupSpec { model, states, prompt, params, sequence: 0, explain: None };
            tested.backend.open(spec)
        };
        states.iter().map(open).collect()
    };
    let mut groups = greedy(&mut tested, &states);
    for _ in 0..3 {
        let error = tested.step(&mut groups).unwrap_err();
        assert!(matches!(error, BackendError::OutOfMemory(_)), "{error:?}");
        assert_eq!(tested.free_pages(), 8);
    }
    groups.truncate(3);
    let events = run(&mut tested, groups, |tested, groups| tested.step(groups).unwrap());
    let alone = greedy(&mut tested, &states[..1]);
    let alone = run(&mut tested, alone, |tested, groups| tested.step(groups).unwrap());
    for (events, alone) in events.iter().zip(&alone) {
        assert!(events.iter().all(|event| *event == alone[0]));
    }
    assert_eq!(tested.free_pages(), 8);
    // A beam search of 5 rows does not fit either. It says so when its rows part, and can be dropped.
    let params = GenerationParams { strategy: beams(5), ..GenerationParams::greedy(4) };
    let mut group = vec![tested.backend.open(GroupSpec {
        model: MODEL,
        states: states[0].clone(),
        prompt: None,
        params,
        sequence: 0,
        explain: None,
    })];
    tested.step(&mut group).unwrap();
    for _ in 0..2 {
        let error = tested.step(&mut group).unwrap_err();
        assert!(matches!(error, BackendError::OutOfMemory(_)), "{error:?}");
    }
    drop(group);
    assert_eq!(tested.free_pages(), 8);
}

#[test]
fn no_result_depends_on_memory_that_nothing_uses() {
    let (Some(mut tested), Some(mut fresh)) =
        (Tested::load(&[CAPTION], KV_BYTES), Tested::load(&[CAPTION], KV_BYTES))
    else {
        return;
    };
    let photos = photos();
    // Eleven rows, which kernels fill up to sixteen.
    let pick =
        |states: Vec<States>| [0, 1, 0, 0, 1, 0, 1].map(|index: usize| states[index].clone());
    let images = [&photos[0], &photos[1]];
    let fresh_states = pick(fresh.encode(&images).unwrap());
    let groups = fresh.open(&fresh_states, 4);
    let expected = run(&mut fresh, groups, |tested, groups| tested.step(groups).unwrap());
    let fill = |tested: &Tested| {
        // In every format, NaN.
        tested.backend.ops.fill_free(0xff);
    };
    for _ in 0..3 {
        fill(&tested);
        let states = pick(tested.encode(&images).unwrap());
        fill(&tested);
        assert_eq!(tested.bits(&states), fresh.bits(&fresh_states));
        let groups = tested.open(&states, 4);
        let events = run(&mut tested, groups, |tested, groups| {
            fill(tested);
            tested.step(groups).unwrap()
        });
        assert_eq!(events, expected);
    }
    assert!(tested.backend.ops.replays() > 2);
}

#[test]
fn models_of_different_widths_decode_in_turn() {
    const OTHER: ModelId = ModelId(1);
    let checkpoints = [CAPTION, "caption-varied"];
    let Some(mut tested) = Tested::load(&checkpoints, KV_BYTES) else { return };
    let decode = |tested: &mut Tested, models: &[ModelId]| -> Vec<Vec<StepEvent>> {
        let mut groups = Vec::new();
        for &model in models {
            let tower = tested.backend.models()[model.0].vision_tower().tower;
            let reference = Reference::read(checkpoints[model.0]);
            let pixels = reference.pixels(&reference.names("vision")[0]);
            let states = tested.backend.encode(VisionOutput::last(tower), &[&pixels]).unwrap();
            let params = GenerationParams {
                min_new_tokens: 4,
                strategy: beams(2),
                ..GenerationParams::greedy(4)
            };
            let (states, prompt) = (states[0].clone(), None);
            groups.push(tested.backend.open(GroupSpec {
                model,
                states,
                prompt,
                params,
                sequence: 0,
                explain: None,
            }));
        }
        let mut events = vec![Vec::new(); models.len()];
        while events[0].last().is_none_or(|event: &StepEvent| event.finished.is_none()) {
            for ((&model, group), events) in models.iter().zip(&mut groups).zip(&mut events) {
                events.extend(tested.backend.step(model, &mut [group]).unwrap());
            }
        }
        events
    };
    let alone = [MODEL, OTHER].map(|model| decode(&mut tested, &[model]).remove(0));
    for _ in 0..3 {
        assert_eq!(decode(&mut tested, &[MODEL, OTHER]), alone);
    }
    assert!(tested.backend.ops.replays() > 4);
}

#[test]
fn calls_without_work_and_images_of_another_size() {
    let Some(mut tested) = Tested::load(&[CAPTION], KV_BYTES) else { return };
    let photos = photos();
    assert!(tested.encode(&[]).unwrap().is_empty());
    assert!(tested.backend.run_single_pass(MODEL, &[]).unwrap().is_empty());
    for _ in 0..3 {
        assert!(tested.step(&mut []).unwrap().is_empty());
    }
    let side = photos[0].width();
    let other = |side: u32| Pixels::new(side, side, vec![0; 3 * (side * side) as usize]);
    for wrong in [other(side - 8), other(side + 8)] {
        for images in [vec![&wrong], vec![&photos[0], &wrong], vec![&wrong, &photos[0]]] {
            let error = tested.encode(&images).unwrap_err();
            assert!(error.to_string().contains("another size"), "{error}");
        }
    }
    tested.encode(&[&photos[0]]).unwrap();
}

#[test]
fn more_images_than_a_pass_takes_are_encoded_in_order() {
    let Some(mut tested) = Tested::load(&[CAPTION], KV_BYTES) else { return };
    let photos = photos();
    let images: Vec<&Pixels> = (0..66).map(|index| &photos[usize::from(index % 5 == 0)]).collect();
    let states = tested.encode(&images).unwrap();
    let bits = tested.bits(&states);
    // The passes have 64 and 2 images. The first image is the one photograph, the second the other.
    for (index, image) in bits.iter().enumerate() {
        assert!(*image == bits[usize::from(index % 5 != 0)], "image {index}");
    }
    assert!(bits[0] != bits[1]);
    let lone = tested.encode(&[images[65]]).unwrap();
    assert_eq!(tested.bits(&lone)[0], bits[65]);
}

#[test]
fn a_dropped_backend_returns_all_memory_and_graphs() {
    let Some(mut tested) = Tested::load(&[CAPTION], KV_BYTES) else { return };
    let photos = photos();
    let mut free = Vec::new();
    for _ in 0..4 {
        let states = tested.encode(&[&photos[0]]).unwrap();
        let groups = tested.open(&states, 3);
        run(&mut tested, groups, |tested, groups| tested.step(groups).unwrap());
        free.push(tested.device.memory_info().unwrap().free);
    }
    assert_eq!(free[0], free[3], "memory grows");
    let Tested { device, backend } = tested;
    assert!(device.graphs() > 0);
    drop(backend);
    let info = device.memory_info().unwrap();
    assert_eq!((info.free, device.graphs()), (info.total, 0));
}
