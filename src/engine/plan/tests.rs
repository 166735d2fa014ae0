//! Tests of the plan: which work each task needs, and how its answer is assembled.

use super::*;
use crate::engine::testing::fake;
use crate::task::{
    Decoded, Embedding, FinishReason, MatchLogits, QuestionOutput, ScoredText, Scores, Similarity,
    Strategy, TokenLogprob, Vqa,
};

/// Encoder states that consist only of a name.
type NamedStates = &'static str;

fn plan(model: usize, task: Task) -> Plan {
    Plan::try_new(&fake::models()[model], task).unwrap()
}

fn vqa(mode: DecodeMode) -> Task {
    let questions = vec![fake::text(&[1]), fake::text(&[2])];
    Task::Vqa(Vqa { image: fake::image(1), questions, mode, explain: None })
}

fn similarity(marks: &[u8], texts: usize, matching: bool, cosine: bool) -> Task {
    Task::Similarity(Similarity {
        images: marks.iter().map(|&mark| fake::image(mark)).collect(),
        texts: (0..texts).map(|text| fake::text(&[text as u32])).collect(),
        scores: Scores { matching, match_logits: false, cosine },
    })
}

fn sequence(logprob: f32) -> Sequence {
    let tokens = vec![TokenLogprob { id: 7, logprob }];
    Sequence { tokens, finish_reason: FinishReason::Length, attention: None }
}

fn answered(decoded: Decoded) -> QuestionOutput {
    QuestionOutput { decoded, attention: None }
}

fn scored(logprob: f32) -> ScoredText {
    ScoredText { tokens: vec![TokenLogprob { id: 7, logprob }] }
}

fn slots(work: &[Work<NamedStates>]) -> Vec<Slot> {
    work.iter()
        .map(|work| match work {
            Work::Row { slot, .. } | Work::Group { slot, .. } => *slot,
        })
        .collect()
}

#[test]
fn questions_are_encoded_before_their_answers_begin() {
    let mut plan = plan(1, vqa(DecodeMode::Generate(GenerationParams::greedy(5))));
    let key = plan.images()[0].0;
    assert!(plan.start::<NamedStates>().is_empty());
    let work = plan.image_ready(key, &"image");
    assert_eq!(slots(&work), [Slot::Question(0), Slot::Question(1)]);
    let groups = plan
        .row_done(
            Slot::Question(1),
            SinglePassOutput::EncoderStates { states: "second", attention: None },
        )
        .unwrap();
    let [Work::Group { slot: Slot::Group(1, 0), spec, image: None, question_tokens }] = &groups[..]
    else {
        panic!("{groups:?}")
    };
    assert_eq!(*question_tokens, 3);
    assert_eq!(spec.states, "second");
    plan.row_done(
        Slot::Question(0),
        SinglePassOutput::EncoderStates { states: "first", attention: None },
    )
    .unwrap();
    plan.group_done(Slot::Group(1, 0), vec![sequence(-2.0)]).unwrap();
    assert!(!plan.is_complete());
    plan.group_done(Slot::Group(0, 0), vec![sequence(-1.0)]).unwrap();
    let expected =
        [-1.0, -2.0].map(|logprob| answered(Decoded::Generated(vec![sequence(logprob)])));
    assert_eq!(plan.into_output(), Ok(TaskOutput::Vqa(expected.to_vec())));
}

#[test]
fn candidates_come_back_in_their_order() {
    let mut plan = plan(1, vqa(DecodeMode::Rank(vec![fake::text(&[3]), fake::text(&[4])])));
    for question in [0, 1] {
        let rows = plan
            .row_done(
                Slot::Question(question),
                SinglePassOutput::EncoderStates { states: "q", attention: None },
            )
            .unwrap();
        let expected = [0, 1].map(|candidate| Slot::Candidate(question, candidate));
        assert_eq!(slots(&rows), expected);
    }
    for (slot, value) in [((1, 1), -4.0), ((0, 0), -1.0), ((1, 0), -3.0), ((0, 1), -2.0)] {
        let output = SinglePassOutput::<NamedStates>::Scored(scored(value));
        plan.row_done(Slot::Candidate(slot.0, slot.1), output).unwrap();
    }
    let ranked = |values: [f32; 2]| answered(Decoded::Ranked(values.map(scored).to_vec()));
    let expected = vec![ranked([-1.0, -2.0]), ranked([-3.0, -4.0])];
    assert_eq!(plan.into_output(), Ok(TaskOutput::Vqa(expected)));
}

#[test]
fn an_image_given_twice_is_computed_once_and_answered_twice() {
    let mut plan = plan(2, similarity(&[1, 2, 1], 1, true, true));
    assert_eq!(plan.images().len(), 2);
    assert_eq!(slots(&plan.start()), [Slot::Text(0)]);
    let keys: Vec<FeatureKey> = plan.images().iter().map(|(key, _)| *key).collect();
    for (place, key) in keys.into_iter().enumerate() {
        let work = plan.image_ready(key, &"image");
        assert_eq!(slots(&work), [Slot::Image(place), Slot::Pair(place, 0)]);
        let vector = Embedding::new(vec![3.0, 4.0 * place as f32]);
        plan.row_done(Slot::Image(place), SinglePassOutput::<NamedStates>::Embedding(vector))
            .unwrap();
        // The probabilities are 1/4 and 1/2.
        let logits = MatchLogits { no_match: [3f32.ln(), 0.0][place], is_match: 0.0 };
        let output = SinglePassOutput::<NamedStates>::MatchLogits(logits);
        plan.row_done(Slot::Pair(place, 0), output).unwrap();
    }
    let text = SinglePassOutput::<NamedStates>::Embedding(Embedding::new(vec![2.0, 0.0]));
    plan.row_done(Slot::Text(0), text).unwrap();
    let Ok(TaskOutput::Similarity(cells)) = plan.into_output() else { panic!() };
    let scores: Vec<_> = cells.iter().map(|row| (row[0].matching, row[0].cosine)).collect();
    let first = (Some(0.25), Some(1.0));
    assert_eq!(scores, [first, (Some(0.5), Some(0.6)), first]);
}

#[test]
fn samples_are_groups_of_their_own_in_the_order_drawn() {
    let strategy = Strategy::Sample {
        seed: 1,
        num_return_sequences: 3,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        cutoffs: crate::task::Cutoffs::default(),
    };
    let params = GenerationParams { strategy, ..GenerationParams::greedy(5) };
    let mode = DecodeMode::Generate(params);
    let caption = crate::task::Caption { image: fake::image(1), prompt: None, mode, explain: None };
    let mut plan = plan(0, Task::Caption(caption));
    let key = plan.images()[0].0;
    let work = plan.image_ready(key, &"image");
    let sequences: Vec<usize> = work
        .iter()
        .map(|work| match work {
            Work::Group { spec, .. } => spec.sequence,
            Work::Row { .. } => panic!("a caption has groups only"),
        })
        .collect();
    assert_eq!(sequences, [0, 1, 2]);
    for drawn in [2_u8, 0, 1] {
        let slot = Slot::Group(0, drawn.into());
        plan.group_done(slot, vec![sequence(-f32::from(drawn))]).unwrap();
    }
    let expected = [0.0, -1.0, -2.0].map(sequence).to_vec();
    assert_eq!(plan.into_output(), Ok(TaskOutput::Caption(Decoded::Generated(expected))));
}

#[test]
fn what_is_not_finite_or_has_no_direction_is_an_error() {
    let mut pairs = plan(2, similarity(&[1], 1, true, true));
    let nan = MatchLogits { no_match: 0.0, is_match: f32::NAN };
    let nan = SinglePassOutput::<NamedStates>::MatchLogits(nan);
    assert_eq!(pairs.row_done(Slot::Pair(0, 0), nan).unwrap_err(), PlanError::NonFinite("match"));
    let zero = SinglePassOutput::<NamedStates>::Embedding(Embedding::new(vec![0.0, 0.0]));
    assert_eq!(pairs.row_done(Slot::Text(0), zero).unwrap_err(), PlanError::ZeroNorm);
    let infinite = SinglePassOutput::<NamedStates>::Embedding(Embedding::new(vec![f32::INFINITY]));
    let error = pairs.row_done(Slot::Image(0), infinite).unwrap_err();
    assert_eq!(error, PlanError::NonFinite("an embedding"));
    let mut answers = plan(1, vqa(DecodeMode::Generate(GenerationParams::greedy(5))));
    let error = answers.group_done(Slot::Group(0, 0), vec![sequence(f32::NAN)]).unwrap_err();
    assert_eq!(error, PlanError::NonFinite("log-probabilities"));
}

#[test]
fn vectors_of_different_lengths_are_an_error_not_a_panic() {
    let mut plan = plan(2, similarity(&[1], 1, false, true));
    for (slot, vector) in [(Slot::Image(0), vec![1.0, 2.0]), (Slot::Text(0), vec![1.0])] {
        let output = SinglePassOutput::<NamedStates>::Embedding(Embedding::new(vector));
        plan.row_done(slot, output).unwrap();
    }
    assert!(matches!(plan.into_output(), Err(PlanError::Misfit(_))));
}
