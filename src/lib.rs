//! A server for BLIP vision-language models over HTTP: captions, visual question answering, image-text similarity,
//! embeddings.
//!
//! ```text
//! bytes ─ http/extract ─> image value ─ images, input ─> Pixels (u8, 384x384x3)   ┐
//!                                        input ─> TokenIds ───────────────────────┤
//!                                                                     engine/handle: submit(Task) -> reply
//!         worker thread:  waiting images ─ batch ─> vision tower ─> features (cached, bounded in bytes)
//!                         waiting rows   ─ batch ─> text tower   ─> one step: rows join, advance, leave
//! JSON <─ http/routes <─ TaskOutput <─ oneshot ──────────────────────────────────┘
//! ```
//!
//! | folder | what lives there |
//! |---|---|
//! | `task` | the tasks, with their inputs and outputs |
//! | `input` | turns untrusted bytes into model-ready values; synchronous, pure |
//! | `images` | id resolution, decoding pool, pixel cache, single flight |
//! | `fetch` | fetches images by URL, guarded against server-side request forgery |
//! | `engine` | admission control, scheduler, continuous batching, the worker thread, the interface to the model |
//! | `model` | BLIP: configuration, weights, towers, heads, search; runs on candle or on `kernels` |
//! | `gpu` | GPU kernels and the devices that run them |
//! | `kernels` | CPU kernels: matrix products, attention, and the operations between them |
//! | `document` | the small files of a checkpoint: JSON objects and their fields |
//! | `torch` | PyTorch's weight files: a zip archive, a pickle, tensors |
//! | `tensorflow` | TensorFlow's weight files: an HDF5 file, with PyTorch's names and axes for its tensors |
//! | `hub` | finds or downloads weights: directories, the Hugging Face hub, the hub's cache on disk |
//! | `demo` | the demo models, which are embedded in the binary |
//! | `fairness` | fair queueing among clients and calls, and the share of a capacity that each may hold |
//! | `faults` | fault injection for tests, only with the cargo feature `failpoints` |
//! | `mutations` | fixed defects that tests bring back, to show that they are found |
//! | `platform` | the clock and the threads of the process, which a simulation replaces |
//! | `http` | router, endpoints, extractors, errors, OpenAPI |
//! | `mcp` | the tools of the Model Context Protocol: their arguments, files and answers |
//! | `annotate` | runs one task over many pictures: finds them, writes tables and files beside them |
//! | `telemetry` | logging, metrics and traces |
//! | `settings` | how a folder declares its settings: the trait, checks, and the forms in which values are written |
//! | `config` | turns file, environment and flags into validated settings |
//! | `cli` | the commands |
//! | `app` | the composition root: builds the parts from the settings and connects them |

pub mod annotate;
pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
pub mod document;
pub mod engine;
pub mod fairness;
pub mod faults;
pub mod fetch;
pub mod gpu;
pub mod http;
pub mod hub;
pub mod images;
pub mod input;
pub mod kernels;
pub mod mcp;
pub mod model;
mod mutations;
mod platform;
pub mod settings;
pub mod task;
pub mod telemetry;
pub mod tensorflow;
pub mod torch;
