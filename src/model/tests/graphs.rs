//! Tests of passes that became graphs: they compute what direct passes compute.

use super::{Pixels, Reference, Tested, load, skipped};
use crate::engine::backend::{Backend, GroupSpec, StepEvent};
use crate::model::ops::Ops as _;
use crate::task::{EarlyStopping, GenerationParams, ModelId, Strategy, TowerId, VisionOutput};

const CHECKPOINT: &str = "caption-talkative";

/// Encodes an image.
fn encode(backend: &mut Tested, pixels: &Pixels) -> <Tested as Backend>::EncoderStates {
    backend.encode(VisionOutput::last(TowerId(0)), &[pixels]).unwrap().remove(0)
}

/// Returns the features as bits.
fn bits(backend: &Tested, states: &<Tested as Backend>::EncoderStates) -> Vec<u32> {
    let rows = backend.ops.to_host(states.states()).unwrap();
    rows.iter().flatten().map(|value| value.to_bits()).collect()
}

/// Runs groups together until all have finished, and returns their events.
fn decode(
    backend: &mut Tested,
    images: &[<Tested as Backend>::EncoderStates],
    params: &GenerationParams,
) -> Vec<Vec<StepEvent>> {
    let mut groups: Vec<_> = images
        .iter()
        .map(|states| {
            backend.open(GroupSpec {
                model: ModelId(0),
                states: states.clone(),
                prompt: None,
                params: params.clone(),
                sequence: 0,
                explain: None,
            })
        })
        .collect();
    let mut events = vec![Vec::new(); groups.len()];
    loop {
        let is_live =
            |events: &Vec<StepEvent>| events.last().is_none_or(|event| event.finished.is_none());
        let live: Vec<usize> = (0..groups.len()).filter(|&index| is_live(&events[index])).collect();
        if live.is_empty() {
            return events;
        }
        let mut stepping: Vec<_> = groups
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| live.contains(index))
            .map(|(_, group)| group)
            .collect();
        let stepped = backend.step(ModelId(0), &mut stepping).unwrap();
        for (index, event) in live.into_iter().zip(stepped) {
            events[index].push(event);
        }
    }
}

#[test]
fn images_encoded_by_a_graph_have_the_bits_of_the_first_pass() {
    if skipped() {
        return;
    }
    let reference = Reference::read(CHECKPOINT);
    let photos: Vec<Pixels> =
        reference.names("vision").iter().map(|photo| reference.pixels(photo)).collect();
    let mut fresh = load(&[CHECKPOINT]);
    let mut used = load(&[CHECKPOINT]);
    for _ in 0..4 {
        encode(&mut used, &photos[1]);
    }
    let replays = used.ops.replays();
    assert!(replays > 0, "no pass became a graph");
    for photo in &photos {
        let (direct, graph) = (encode(&mut fresh, photo), encode(&mut used, photo));
        assert_eq!(bits(&fresh, &direct), bits(&used, &graph));
    }
    assert_eq!(used.ops.replays(), replays + photos.len() as u64);
}

#[test]
fn decode_steps_by_graphs_give_the_events_of_direct_ones() {
    if skipped() {
        return;
    }
    let reference = Reference::read(CHECKPOINT);
    let names = reference.names("vision");
    let greedy = GenerationParams::greedy(6);
    let beams = GenerationParams {
        strategy: Strategy::Beams {
            num_beams: 3,
            num_return_sequences: 2,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
            renormalize_logits: false,
        },
        ..greedy.clone()
    };
    // Nine rows, which are filled up to sixteen. Captions may end at different steps, which changes the number of rows.
    for (count, params) in [(9, greedy), (3, beams)] {
        let images = |backend: &mut Tested| -> Vec<_> {
            (0..count)
                .map(|index| encode(backend, &reference.pixels(&names[index % names.len()])))
                .collect()
        };
        let mut used = load(&[CHECKPOINT]);
        let of_used = images(&mut used);
        decode(&mut used, &of_used, &params);
        decode(&mut used, &of_used, &params);
        let before = used.ops.replays();
        let by_graphs = decode(&mut used, &of_used, &params);
        let replays = used.ops.replays() - before;
        assert!(replays > 3, "{replays} steps ran as graphs");
        let usage = used.device_usage().unwrap();
        assert_eq!((usage.graph_launches, usage.kv_pages_used), (used.ops.replays(), 0));
        assert!(usage.used_bytes > 0 && usage.used_bytes <= usage.allocated_bytes);
        assert!(usage.allocated_bytes <= usage.total_bytes);
        let mut fresh = load(&[CHECKPOINT]);
        let of_fresh = images(&mut fresh);
        assert_eq!(by_graphs, decode(&mut fresh, &of_fresh, &params));
    }
}
