//! The pipeline of every inference call, single or batch: read, plan, reserve, tokenize, find images, submit, answer.
//!
//! - `endpoint`: the trait that each endpoint implements. `arity`: how many images an input of an endpoint has.
//! - `start`: prepares a call, with the `plans` of its inputs. `call`: runs the inputs. `reply`: writes the response.
//! - `candidates`: texts that are scored instead of generated.
//! - `explanation`: where in the image the model looked.
//! - `image_args`: the images of a call. Each distinct image is fetched and decoded once.
//! - `generation`: the generation parameters of an input, with the tokens of their words.
//! - `task_spans`: what a trace shows of a task.
//! - `text`: the texts of a call, tokenized within the model's limits.
//! - `sequences`: how answers describe generated sequences, and checks on the model's output.

pub(crate) mod arity;
pub(crate) mod call;
pub(crate) mod candidates;
pub(crate) mod endpoint;
pub(crate) mod explanation;
pub(crate) mod generation;
pub(crate) mod image_args;
mod plans;
pub(crate) mod reply;
pub(crate) mod sequences;
pub(crate) mod start;
pub(crate) mod task_spans;
pub(crate) mod text;
