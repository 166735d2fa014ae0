//! Tests that every kind of task is answered correctly, alone and with batch neighbours, and that groups share steps.

use crate::engine::EngineSettings;
use crate::engine::testing::bench::*;
use crate::engine::testing::fake::{FakeCall, FakeMark};
use crate::task::{DecodeMode, Decoded, ModelId, Task, TaskOutput};

fn ask(bench: &Bench, model: ModelId, task: Task) -> TaskOutput {
    let admission = bench.admit(task.shape().rows);
    wait(admission.submit(model, task)).unwrap().output
}

fn every_kind() -> Vec<(ModelId, Task)> {
    let candidates = || DecodeMode::Rank(vec![fake_text(5), fake_text(6), fake_text(7)]);
    vec![
        (CAPTION, caption(1)),
        (CAPTION, prompted(2, &[20, 21, 22])),
        (CAPTION, caption_with(3, beams(3, 2))),
        (CAPTION, caption_with(1, samples(4))),
        (VQA, vqa(1, &[&[30], &[31, 32]], DecodeMode::Generate(beams(2, 1)))),
        (VQA, vqa(4, &[&[30], &[33]], candidates())),
        (RETRIEVAL, similarity(&[1, 5, 1], &[&[40], &[41, 42]], true, true)),
        (RETRIEVAL, similarity(&[6], &[&[40]], true, false)),
        (CLIP, similarity(&[5], &[&[40], &[44]], false, true)),
        (RETRIEVAL, embed_text(&[50, 51])),
    ]
}

fn fake_text(token: u32) -> crate::task::TokenIds {
    crate::engine::testing::fake::text(&[token])
}

#[test]
fn answers_have_the_shape_of_their_tasks() {
    let bench = Bench::start(EngineSettings::default());
    let outputs: Vec<TaskOutput> =
        every_kind().into_iter().map(|(model, task)| ask(&bench, model, task)).collect();
    let count = |decoded: &Decoded| match decoded {
        Decoded::Generated(sequences) => sequences.len(),
        Decoded::Ranked(texts) => texts.len(),
    };
    let lengths: Vec<usize> = outputs
        .iter()
        .map(|output| match output {
            TaskOutput::Caption(decoded) => count(decoded),
            TaskOutput::Vqa(answers) => answers.iter().map(|answer| count(&answer.decoded)).sum(),
            TaskOutput::Similarity(cells) => cells.len() * cells[0].len(),
            TaskOutput::Embed(vector) => vector.as_slice().len(),
        })
        .collect();
    assert_eq!(lengths, [1, 1, 2, 4, 2, 6, 6, 1, 2, 4]);
    let TaskOutput::Similarity(cells) = &outputs[6] else { panic!() };
    assert_eq!(cells[0], cells[2], "the same image twice");
    assert!(cells[0][0].matching.is_some() && cells[0][0].cosine.is_some());
    assert_eq!(cells[0][0].logit, None);
    let TaskOutput::Similarity(cells) = &outputs[8] else { panic!() };
    assert_eq!(cells[0][0].logit, cells[0][0].cosine.map(|cosine| cosine * 100.0));
    assert_eq!(cells[0][0].matching, None);
}

#[test]
fn answers_are_the_same_alone_and_with_batch_neighbours() {
    let alone: Vec<TaskOutput> = {
        let bench = Bench::start(EngineSettings::default());
        every_kind().into_iter().map(|(model, task)| ask(&bench, model, task)).collect()
    };
    let bench = Bench::start(EngineSettings::default());
    bench.control.hold();
    let admissions: Vec<_> =
        every_kind().iter().map(|(_, task)| bench.admit(task.shape().rows)).collect();
    let replies: Vec<_> = every_kind()
        .into_iter()
        .zip(&admissions)
        .map(|((model, task), admission)| admission.submit(model, task))
        .collect();
    bench.control.release();
    for (reply, alone) in replies.into_iter().zip(alone) {
        assert_eq!(wait(reply).unwrap().output, alone);
    }
}

#[test]
fn a_group_joins_while_others_run_and_steps_are_shared() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.set_text_length(12);
    bench.control.hold();
    let admission = bench.admit(16);
    let mut replies = vec![
        admission.submit(CAPTION, caption(1)),
        admission.submit(CAPTION, caption_with(1, beams(3, 1))),
    ];
    // Let four backend calls pass: one vision batch, one step without estimates, and two steps with both groups.
    bench.control.pass(4);
    bench.control.wait_until_held();
    replies.push(admission.submit(CAPTION, prompted(1, &[20, 21, 22])));
    bench.control.release();
    for reply in replies {
        assert!(wait(reply).is_ok());
    }
    let stats = bench.handle.stats();
    assert!(stats.mixed_steps >= 1, "{stats:?}");
    let mixed = bench.control.log().into_iter().filter(|unit| unit.call == FakeCall::Step);
    let joined_late = mixed.filter(|unit| {
        let prompts = unit.items.iter().filter(|marks| marks.contains(&FakeMark::Token(20)));
        prompts.count() == 1 && unit.items.len() == 3
    });
    assert!(joined_late.count() >= 8, "the late group shares the others' remaining steps");
    assert_eq!(stats.images_encoded, 1);
}

#[test]
fn tokens_stream_as_they_come_and_end_with_the_answer() {
    let bench = Bench::start(EngineSettings::default());
    let admission = bench.admit(1);
    let (reply, mut stream) = admission.submit_streaming(CAPTION, caption(9));
    let TaskOutput::Caption(Decoded::Generated(sequences)) = wait(reply).unwrap().output else {
        panic!()
    };
    let mut tokens = Vec::new();
    while let Some(token) = wait(stream.next()) {
        tokens.push(token);
    }
    assert_eq!(tokens, sequences[0].tokens);
}

#[test]
fn a_single_caption_is_not_kept_waiting_by_a_large_call() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.set_text_length(10);
    bench.control.hold();
    let large = bench.admit(64);
    let many: Vec<_> = (0..64).map(|mark| large.submit(CAPTION, caption(mark))).collect();
    bench.control.wait_until_held();
    let single = bench.admit(1);
    let one = single.submit(CAPTION, caption(200));
    bench.control.release();
    assert!(wait(one).is_ok());
    let place = |mark: u8| {
        let marked = |marks: &Vec<FakeMark>| marks.contains(&FakeMark::Image(mark));
        let encodes = bench.control.log().into_iter().filter(|unit| unit.call == FakeCall::Encode);
        encodes.map(|unit| unit.items).position(|items| items.iter().any(marked)).unwrap()
    };
    assert!(place(200) <= 2, "encoded in vision batch {}", place(200));
    for reply in many {
        assert!(wait(reply).is_ok());
    }
}

#[test]
fn a_task_that_the_model_cannot_do_is_an_error() {
    let bench = Bench::start(EngineSettings::default());
    let admission = bench.admit(8);
    let refused = [
        admission.submit(VQA, caption(1)),
        admission.submit(ModelId(9), caption(1)),
        admission.submit(CLIP, similarity(&[1], &[&[2]], true, false)),
    ];
    for reply in refused {
        let error = wait(reply).unwrap_err();
        assert!(matches!(error, crate::engine::EngineError::InferenceFailed(_)), "{error}");
    }
}
