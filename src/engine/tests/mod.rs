//! Tests of the engine through its handle, on its real thread, with the scripted backend.

mod answers;
mod faults;
mod flights;
mod limits;
mod tokens;
mod warm_up;
mod workers;
