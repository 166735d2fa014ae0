//! The tools of the Model Context Protocol (MCP), with which a language model looks at pictures: caption, ask, match,
//! classify, rank. The protocol itself comes from the official SDK, `rmcp`.
//!
//! ```text
//! arguments of a tool -> arguments (whitelist, files to base64) -> ToolService (a route of the API) -> answer (text, JSON)
//! ```
//!
//! - `server`: lists and calls the tools. `tools`: names, descriptions and schemas.
//! - `arguments`: turns the arguments of a tool into the JSON body of a route. `files`: reads pictures below the folders
//!   that the user allows.
//! - `answer`: turns the JSON answer of a route into what a language model reads.
//! - `service`: the interface to the routes. `stdio`: serves standard input and output.
//!
//! `http::routes::mcp` serves the tools over HTTP, and the command `mcp` over standard input and output.

mod answer;
mod arguments;
mod files;
mod server;
mod service;
mod stdio;
mod tools;

pub use files::{AllowedFolders, FolderError};
pub use server::McpServer;
pub use service::{Answer, ToolService};
pub use stdio::{StdioError, serve_stdio};
