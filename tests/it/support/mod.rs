//! What integration tests share: the whole service on a scripted backend, with or without a socket.

pub(crate) mod answer;
pub(crate) mod app;
pub(crate) mod collector;
pub(crate) mod inputs;
pub(crate) mod log;
pub(crate) mod origin;
pub(crate) mod process;
pub(crate) mod server;

pub(crate) use answer::Answer;
pub(crate) use app::TestApp;
pub(crate) use inputs::{Multipart, base64, png};
pub(crate) use origin::{Names, Origin};
pub(crate) use process::ServerProcess;
pub(crate) use server::TestServer;
