//! Lists and calls the tools.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use rmcp::ErrorData;
use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CustomRequest, CustomResult,
    ErrorCode, Implementation, InitializeResult, JsonObject, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::answer;
use super::arguments::{self, ToolArguments};
use super::files::AllowedFolders;
use super::service::ToolService;
use super::tools::{PictureSources, ToolKind};

/// What a language model reads before it uses the tools.
const INSTRUCTIONS: &str = "These tools look at pictures with BLIP models, which are small and fast. They understand \
     simple English. Start with caption, then ask short questions with ask. An answer contains the picture's id (sha256:...): use it as \
     image in further calls about the same picture, for as long as the server keeps it. Captions and answers can be wrong; match \
     tells how well a sentence describes a picture.";

/// Number of files of a ranking that are read and sent at a time.
const FILES_AT_ONCE: usize = 4;

/// The tools for one client. Clones share the service.
#[derive(Clone)]
pub struct McpServer {
    service: Arc<dyn ToolService>,
    folders: Option<Arc<AllowedFolders>>,
    /// Permits for calls; `None` if the service itself limits them.
    permits: Option<Arc<Semaphore>>,
}

/// Number of calls of the only user of a server that run at a time. The others wait, instead of being refused.
const CALLS_AT_ONCE: usize = 4;

/// What `/info` tells of the server behind the tools.
#[derive(Debug, Default)]
struct Capabilities {
    urls: bool,
    /// The models; `None` if `/info` fails.
    models: Option<Vec<LoadedModel>>,
    /// Maximum number of pictures or texts of a ranking.
    max_rank_candidates: Option<usize>,
}

#[derive(Debug)]
struct LoadedModel {
    name: String,
    role: String,
    /// Whether it is the default of its role.
    is_default: bool,
    /// What it cannot do.
    note: Option<String>,
}

impl McpServer {
    /// Creates the tools on top of a service that limits the calls of its clients.
    pub fn new(service: Arc<dyn ToolService>) -> Self {
        Self { service, folders: None, permits: None }
    }

    /// Creates the tools for the only user of a service. With folders, pictures can be given by path.
    pub fn for_one_user(
        service: Arc<dyn ToolService>,
        folders: Option<Arc<AllowedFolders>>,
    ) -> Self {
        Self { service, folders, permits: Some(Arc::new(Semaphore::new(CALLS_AT_ONCE))) }
    }

    async fn capabilities(&self) -> Capabilities {
        let answer = self.service.request("/info", None).await.ok();
        let answer = answer.filter(|answer| answer.is_success);
        let info = answer.and_then(|answer| serde_json::from_slice::<Value>(&answer.body).ok());
        let Some(info) = info else { return Capabilities::default() };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let models = info["models"].as_array().map_or(&[][..], Vec::as_slice).iter();
        let models = models.filter_map(|model| {
            Some(LoadedModel {
                name: text(&model["name"])?,
                role: text(&model["role"])?,
                is_default: model["default"] == true,
                note: text(&model["note"]),
            })
        });
        let most = info["limits"]["max_rank_candidates"].as_u64();
        Capabilities {
            urls: info["limits"]["fetch_enabled"] == true,
            models: Some(models.collect()),
            max_rank_candidates: most.and_then(|most| usize::try_from(most).ok()),
        }
    }

    fn sources(&self, urls: bool) -> PictureSources {
        PictureSources { folders: self.folders.as_ref().map(|folders| folders.names()), urls }
    }

    /// Returns the tools for which a model is loaded; all of them if `/info` fails.
    async fn tools(&self) -> Vec<Tool> {
        let Capabilities { urls, models, .. } = self.capabilities().await;
        let sources = self.sources(urls);
        let described = |kind: ToolKind| {
            let Some(models) = &models else { return Some(kind.tool(&sources, None)) };
            let mut of_role = models.iter().filter(|model| model.role == kind.role());
            let default = of_role.find(|model| model.is_default)?;
            Some(kind.tool(&sources, default.note.as_deref()))
        };
        ToolKind::ALL.into_iter().filter_map(described).collect()
    }

    /// Calls a tool. An error is a text for the language model.
    async fn call(&self, kind: ToolKind, mut arguments: JsonObject) -> Result<Value, String> {
        // A waiting call holds no file.
        let _permit = match &self.permits {
            Some(permits) => Some(permits.acquire().await.map_err(|_| "the server has ended")?),
            None => None,
        };
        self.service.restore(&mut arguments);
        let ToolArguments { mut fields, path, paths } =
            ToolArguments::try_new(kind, arguments, &self.sources(true))?;
        if let Some(path) = &path {
            fields.insert("image".to_owned(), self.file(path.clone()).await?);
        }
        if !paths.is_empty() {
            let model = fields.get("model").cloned();
            self.check_ranking(model.as_ref(), paths.len()).await?;
            let ids = stream::iter(paths.clone()).map(|path| self.id(path, model.clone()));
            let ids: Vec<Value> = ids.buffered(FILES_AT_ONCE).try_collect().await?;
            fields.insert("images".to_owned(), ids.into());
        }
        let texts = fields.get("texts").and_then(Value::as_array).cloned().unwrap_or_default();
        let has_paths = path.is_some() || !paths.is_empty();
        let mut answer = self.post(kind.path(), fields, has_paths).await?;
        answer::name_results(&mut answer, "path", &paths);
        match kind {
            ToolKind::Rank => {
                let texts = texts.iter().filter_map(Value::as_str).map(str::to_owned);
                answer::name_results(&mut answer, "text", &texts.collect::<Vec<_>>());
            }
            ToolKind::Match => answer["texts"] = texts.into(),
            ToolKind::Caption | ToolKind::Ask | ToolKind::Classify => {}
        }
        Ok(answer)
    }

    /// Checks what the route would refuse only after all files have been read and sent.
    async fn check_ranking(&self, model: Option<&Value>, count: usize) -> Result<(), String> {
        let Capabilities { models, max_rank_candidates, .. } = self.capabilities().await;
        if max_rank_candidates.is_some_and(|most| count > most) {
            let most = max_rank_candidates.unwrap_or_default();
            return Err(format!(
                "paths: {count} given, at most {most} are allowed (limits.max_rank_candidates)"
            ));
        }
        let (Some(models), Some(asked)) = (models, model) else { return Ok(()) };
        let can_rank: Vec<_> =
            models.into_iter().filter(|model| model.role == ToolKind::Rank.role()).collect();
        if can_rank.iter().any(|model| *asked == *model.name) {
            return Ok(());
        }
        let names: Vec<_> = can_rank.into_iter().map(|model| model.name).collect();
        Err(format!("model: the loaded models that can rank are: {}", names.join(", ")))
    }

    /// Sends a picture alone, and returns its id. So a ranking of many large files needs no larger body than one file. The
    /// server keeps what it computed, so no work is done twice.
    async fn id(&self, path: String, model: Option<Value>) -> Result<Value, String> {
        let mut fields = JsonObject::new();
        fields.insert("image".to_owned(), self.file(path.clone()).await?);
        fields.extend(model.map(|model| ("model".to_owned(), model)));
        let sent = self.post("/embeddings", fields, true).await;
        let mut answer = sent.map_err(|error| format!("{path}: {error}"))?;
        Ok(answer["image"]["id"].take())
    }

    async fn file(&self, path: String) -> Result<Value, String> {
        let Some(folders) = self.folders.clone() else {
            return Err("path: this server reads no files".to_owned());
        };
        let read = move || arguments::base64_of(&path, &folders);
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|_| Err("path: the file could not be read".to_owned()))
    }

    async fn post(
        &self,
        path: &'static str,
        fields: JsonObject,
        has_paths: bool,
    ) -> Result<Value, String> {
        let body = serde_json::to_vec(&fields).map_err(|error| error.to_string())?;
        drop(fields);
        let answer = self.service.request(path, Some(body)).await?;
        if !answer.is_success {
            return Err(answer::problem(&answer, has_paths));
        }
        serde_json::from_slice(&answer.body).map_err(|error| error.to_string())
    }
}

impl ServerHandler for McpServer {
    fn get_info(&self) -> ServerConfig {
        let about = Implementation::new("blip-server", env!("CARGO_PKG_VERSION"))
            .with_title("BLIP: captions, answers and matches for pictures");
        InitializeResult::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(about)
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.tools().await))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(kind) = ToolKind::of(&request.name) else {
            let known: Vec<&str> = ToolKind::ALL.into_iter().map(ToolKind::name).collect();
            let text =
                format!("there is no tool {:?}; there are {}", request.name, known.join(", "));
            return Err(ErrorData::invalid_params(text, Some(json!({"tools": known}))));
        };
        let call = self.call(kind, request.arguments.unwrap_or_default());
        let called = tokio::select! {
            called = call => called,
            // The client has cancelled the call or is gone, or the command ends.
            () = context.ct.cancelled() => Err("cancelled".to_owned()),
        };
        let result: CallToolResult = match called {
            Ok(answer) => answer::succeeded(kind, answer),
            Err(text) => answer::failed(text),
        };
        Ok(result.into())
    }

    /// Answers requests of other methods. The SDK passes requests of known methods here if their `params` have another shape.
    async fn on_custom_request(
        &self,
        request: CustomRequest,
        _context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        Err(match request.method.as_str() {
            "tools/call" => ErrorData::invalid_params(
                "params: needs name (text) and arguments (an object, not text)",
                None,
            ),
            "initialize" => ErrorData::invalid_params(
                "params: needs protocolVersion, capabilities and clientInfo",
                None,
            ),
            "tools/list" | "ping" | "server/discover" => {
                ErrorData::invalid_params("params: must be an object", None)
            }
            _ => {
                let text = "this server has tools only: tools/list and tools/call";
                ErrorData::new(ErrorCode::METHOD_NOT_FOUND, text, None)
            }
        })
    }
}
