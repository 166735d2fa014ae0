//! Validates raw values and builds [`Config`]: runs the checks of each folder, and those that compare two settings.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use super::choice::{
    DEVICES, DTYPES, DeviceChoice, LOG_FORMATS, RESIZE_ORDERS, log_format, resize_order,
};
use super::layers::Layers;
use super::raw::{RawConfig, RawModel};
use super::{ComputeSettings, Config, ConfigError, DrainSettings};
use crate::engine::EngineSettings;
use crate::fetch::FetchSettings;
use crate::http::{AccessLogSettings, ConnectionSettings, CorsSettings, HttpSettings, Limits};
use crate::hub::{CheckpointFiles, HubError, HubSettings, ModelSource, Retry, Source, Token};
use crate::images::ImagesSettings;
use crate::input::InputSettings;
use crate::kernels::isa::Level;
use crate::telemetry::logging::{self, LoggingSettings};

/// Upper bound of `compute.threads`, which is more than the number of cores of any machine.
const MAX_THREADS: usize = 1024;
/// Lower bound of `engine.worker_hang_limit_ms`: an idle worker sends a heartbeat only every second, so with a lower
/// limit it could be mistaken for a hanging one.
const MIN_HANG_LIMIT_MILLIS: u64 = 5000;
/// Upper bound of all times in milliseconds: one day. Longer times are probably mistakes in the unit.
const MAX_MILLIS: u64 = 24 * 3600 * 1000;

/// Checks every value and builds the settings of each folder. Returns an error about the first invalid value.
pub(super) fn validate(
    raw: RawConfig,
    layers: &Layers,
    warnings: Vec<String>,
) -> Result<Config, ConfigError> {
    let reader = Reader { raw: &raw, layers };
    check_pairs(&reader)?;
    Ok(Config {
        listen: reader.address("server.listen", &raw.server.listen)?,
        operations_listen: reader.operations_listen()?,
        models: models(&raw.models, layers)?,
        compute: reader.compute()?,
        engine: reader.engine()?,
        images: reader.images()?,
        http: reader.http()?,
        fetch: reader.fetch()?,
        hub: reader.hub()?,
        log: reader.log()?,
        drain: reader.drain()?,
        warnings,
        raw: raw.without_secrets(),
    })
}

/// Builds the validated settings from the raw values. Each folder's settings have their own method.
pub(super) struct Reader<'a> {
    pub(super) raw: &'a RawConfig,
    pub(super) layers: &'a Layers,
}

impl Reader<'_> {
    fn compute(&self) -> Result<ComputeSettings, ConfigError> {
        let raw = &self.raw.compute;
        Ok(ComputeSettings {
            device: self.device()?,
            dtype: raw.dtype.parse().map_err(|_| self.layers.invalid("compute.dtype", DTYPES))?,
            cpu_isa: self.cpu_isa()?,
            threads: self.threads()?,
        })
    }

    /// Returns the instruction set, which must be available on this CPU; `None` means `auto`.
    fn cpu_isa(&self) -> Result<Option<Level>, ConfigError> {
        let text = self.raw.compute.cpu_isa.as_str();
        if text == "auto" {
            return Ok(None);
        }
        let levels = || Level::ALL.into_iter().filter(|level| level.is_available());
        levels().find(|level| level.name() == text).map(Some).ok_or_else(|| {
            let names: Vec<&str> = levels().map(Level::name).collect();
            let accepted = format!("auto, or what this CPU supports: {}", names.join(", "));
            self.layers.invalid("compute.cpu_isa", accepted)
        })
    }

    /// Returns the device, which this build must support.
    fn device(&self) -> Result<DeviceChoice, ConfigError> {
        let refused = |accepted| self.layers.invalid("compute.device", accepted);
        match self.raw.compute.device.parse().map_err(|_| refused(DEVICES))? {
            DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => {
                Err(refused("auto, cpu (for CUDA, build with --features cuda)"))
            }
            device @ (DeviceChoice::Auto | DeviceChoice::Cpu | DeviceChoice::Cuda(_)) => Ok(device),
        }
    }

    fn threads(&self) -> Result<Option<NonZeroUsize>, ConfigError> {
        match self.raw.compute.threads {
            threads if threads > MAX_THREADS => Err(self
                .layers
                .invalid("compute.threads", "0 to 1024 (0: what CPU quota and affinity allow)")),
            threads => Ok(NonZeroUsize::new(threads)),
        }
    }

    fn engine(&self) -> Result<EngineSettings, ConfigError> {
        let raw = &self.raw.engine;
        if raw.worker_hang_limit_ms < MIN_HANG_LIMIT_MILLIS {
            let accepted = "5000 or more: an idle worker sends a heartbeat every second";
            return Err(self.layers.invalid("engine.worker_hang_limit_ms", accepted));
        }
        let settings = EngineSettings {
            capacity_rows: raw.capacity_rows,
            capacity_bytes: raw.capacity_bytes,
            max_queue_wait: self.time("engine.max_queue_wait_ms", raw.max_queue_wait_ms)?,
            unit_time: self.time("engine.unit_time_ms", raw.unit_time_ms)?,
            linger: self.time("engine.linger_ms", raw.linger_ms)?,
            vision_share_percent: raw.vision_share_percent,
            max_batch_images: raw.max_batch_images,
            max_batch_rows: raw.max_batch_rows,
            max_batch_tokens: raw.max_batch_tokens,
            feature_cache_bytes: raw.feature_cache_bytes,
            max_pinned_feature_bytes: raw.max_pinned_feature_bytes,
            feature_cache_ttl: self
                .time("engine.feature_cache_ttl_ms", raw.feature_cache_ttl_ms)?,
            max_kv_bytes: raw.max_kv_bytes,
            worker_hang_limit: self
                .time("engine.worker_hang_limit_ms", raw.worker_hang_limit_ms)?,
            worker_rebuild_interval: self
                .time("engine.worker_rebuild_interval_ms", raw.worker_rebuild_interval_ms)?,
        };
        settings.check().map_err(|error| self.refused("engine", error.field, error.accepted))?;
        Ok(settings)
    }

    fn images(&self) -> Result<ImagesSettings, ConfigError> {
        let raw = &self.raw.images;
        let settings = ImagesSettings {
            decode_threads: match raw.decode_threads {
                0 => ImagesSettings::default().decode_threads,
                threads => threads,
            },
            decode_queue: raw.decode_queue,
            decode_budget_bytes: raw.decode_budget_bytes,
            memory_high_water_bytes: match raw.memory_high_water_bytes {
                0 => None,
                bytes => Some(bytes),
            },
            pixel_cache_bytes: raw.pixel_cache_bytes,
            pixel_cache_ttl: self.time("images.pixel_cache_ttl_ms", raw.pixel_cache_ttl_ms)?,
        };
        settings.check().map_err(|error| self.refused("images", error.name, error.accepted))?;
        Ok(settings)
    }

    fn input(&self) -> Result<InputSettings, ConfigError> {
        let raw = &self.raw.input;
        let resize_order = resize_order(&raw.resize_order)
            .map_err(|_| self.layers.invalid("input.resize_order", RESIZE_ORDERS))?;
        let settings = InputSettings {
            max_image_bytes: raw.max_image_bytes,
            max_pixels: raw.max_pixels,
            max_side: raw.max_side,
            max_decoded_bytes: raw.max_decoded_bytes,
            alpha_background: raw.alpha_background,
            resize_order,
            max_text_chars: raw.max_text_chars,
            max_text_bytes: raw.max_text_bytes,
        };
        settings.check().map_err(|error| self.refused("input", error.name, error.accepted))?;
        Ok(settings)
    }

    /// Returns the allowed hosts. Each must be a host name or an address, without scheme and port.
    fn allowed_hosts(&self) -> Result<Vec<String>, ConfigError> {
        let hosts = &self.raw.server.allowed_hosts;
        let is_host = |host: &String| {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            !host.is_empty() && (host.chars().all(is_name) || host.parse::<Ipv6Addr>().is_ok())
        };
        if hosts.iter().all(is_host) {
            return Ok(hosts.clone());
        }
        let accepted = "host names or addresses without scheme and port: vision.example.org";
        Err(self.layers.invalid("server.allowed_hosts", accepted))
    }

    fn http(&self) -> Result<HttpSettings, ConfigError> {
        let server = &self.raw.server;
        let origins = &server.cors_allowed_origins;
        let cors = CorsSettings { allowed_origins: origins.clone() };
        let settings = HttpSettings {
            limits: self.limits(),
            input: self.input()?,
            deadline: self.time("server.deadline_ms", server.deadline_ms)?,
            connections: self.connections()?,
            docs: server.docs,
            cors: (!origins.is_empty()).then_some(cors),
            allowed_hosts: self.allowed_hosts()?,
            on_loopback: self.address("server.listen", &server.listen)?.ip().is_loopback(),
            access_log: AccessLogSettings {
                sample_every: self.raw.log.sample_every,
                client_ip: self.raw.log.client_ip,
                max_refusals_per_second: self.raw.log.max_refusals_per_second,
            },
            auth: self.auth()?,
            rate_limit: self.rate_limit(),
            trusted_proxies: self.trusted_proxies()?,
            tls: self.tls()?,
            operations_listener: self.operations_listen()?.is_some(),
            ..HttpSettings::default()
        };
        settings.validate().map_err(|error| {
            let (section, field) = match error.setting.split_once('.') {
                Some((section @ ("limits" | "auth" | "rate_limit"), field)) => (section, field),
                Some(("cors", _)) => ("server", "cors_allowed_origins"),
                Some((_, field)) => ("server", field),
                None => ("server", error.setting),
            };
            self.refused(section, field, error.accepted)
        })?;
        Ok(settings)
    }

    fn limits(&self) -> Limits {
        let raw = &self.raw.limits;
        Limits {
            max_body_bytes: raw.max_body_bytes,
            max_images: raw.max_images,
            max_texts: raw.max_texts,
            max_questions: raw.max_questions,
            max_candidates: raw.max_candidates,
            max_batch_inputs: raw.max_batch_inputs,
            max_rows: raw.max_rows,
            max_new_tokens: raw.max_new_tokens,
            max_body_frames: raw.max_body_frames,
            max_text_parts: raw.max_text_parts,
        }
    }

    fn connections(&self) -> Result<ConnectionSettings, ConfigError> {
        let raw = &self.raw.server;
        Ok(ConnectionSettings {
            max_connections: raw.max_connections,
            header_read_timeout: self
                .time("server.header_read_timeout_ms", raw.header_read_timeout_ms)?,
            keep_alive: self.time("server.keep_alive_ms", raw.keep_alive_ms)?,
            max_headers: raw.max_headers,
            max_head_bytes: raw.max_head_bytes,
            body_idle_timeout: self
                .time("server.body_idle_timeout_ms", raw.body_idle_timeout_ms)?,
            body_total_timeout: self
                .time("server.body_total_timeout_ms", raw.body_total_timeout_ms)?,
            write_timeout: self.time("server.write_timeout_ms", raw.write_timeout_ms)?,
            drain_timeout: self.time("server.drain_timeout_ms", raw.drain_timeout_ms)?,
        })
    }

    fn fetch(&self) -> Result<FetchSettings, ConfigError> {
        let raw = &self.raw.fetch;
        let settings = FetchSettings {
            enabled: raw.enabled,
            allowed_hosts: raw.allowed_hosts.clone(),
            allow_http: raw.allow_http,
            connect_timeout: self.time("fetch.connect_timeout_ms", raw.connect_timeout_ms)?,
            total_timeout: self.time("fetch.total_timeout_ms", raw.total_timeout_ms)?,
            max_redirects: raw.max_redirects,
            max_concurrent: raw.max_concurrent,
        };
        settings.check().map_err(|error| self.refused("fetch", error.name, error.accepted))?;
        Ok(settings)
    }

    fn hub(&self) -> Result<HubSettings, ConfigError> {
        let raw = &self.raw.hub;
        let endpoint = raw.endpoint.trim_end_matches('/');
        if !(endpoint.starts_with("https://") || endpoint.starts_with("http://")) {
            let accepted = "a URL that starts with https:// or http://";
            return Err(self.layers.invalid("hub.endpoint", accepted));
        }
        if raw.attempts == 0 {
            return Err(self.layers.invalid("hub.attempts", "1 or more"));
        }
        let first_pause = self.time("hub.retry_pause_ms", raw.retry_pause_ms)?;
        Ok(HubSettings {
            endpoint: endpoint.to_owned(),
            cache: raw.cache.clone().into(),
            token: Token::new(&raw.token),
            offline: raw.offline,
            use_system_proxy: raw.system_proxy,
            retry: Retry { attempts: raw.attempts, first_pause },
        })
    }

    fn log(&self) -> Result<LoggingSettings, ConfigError> {
        let raw = &self.raw.log;
        let format =
            log_format(&raw.format).map_err(|_| self.layers.invalid("log.format", LOG_FORMATS))?;
        let settings = LoggingSettings { format, filter: raw.filter.clone() };
        logging::check(&settings).map_err(|_| {
            let accepted = "a level (off, error, warn, info, debug, trace) or directives like info,blip_server::engine=debug";
            self.layers.invalid("log.filter", accepted)
        })?;
        Ok(settings)
    }

    fn drain(&self) -> Result<DrainSettings, ConfigError> {
        let raw = &self.raw.server;
        Ok(DrainSettings {
            delay: self.time("server.drain_delay_ms", raw.drain_delay_ms)?,
            timeout: self.time("server.drain_timeout_ms", raw.drain_timeout_ms)?,
        })
    }

    /// Parses `text`, the address in the setting `path`; see [`read_address`].
    pub(super) fn address(&self, path: &str, text: &str) -> Result<SocketAddr, ConfigError> {
        read_address(text).ok_or_else(|| {
            let accepted = "an address and a port: 127.0.0.1:8080, localhost:8080, [::1]:8080, \
                            or :8080 for every address of this machine";
            self.layers.invalid(path, accepted)
        })
    }

    fn time(&self, path: &str, millis: u64) -> Result<Duration, ConfigError> {
        if millis > MAX_MILLIS {
            let accepted = "milliseconds, at most 86400000 (one day)";
            return Err(self.layers.invalid(path, accepted));
        }
        Ok(Duration::from_millis(millis))
    }

    /// Converts the failed check of a folder into an error about the setting. The name of a setting that is a time ends
    /// in `_ms`. The field name in a folder's error does not, so the ending is added here.
    fn refused(&self, section: &str, field: &str, accepted: &str) -> ConfigError {
        let path = format!("{section}.{field}");
        let path = if self.layers.has(&path) { path } else { path + "_ms" };
        self.layers.invalid(&path, accepted)
    }
}

/// Parses an IP address and a port. `localhost` means 127.0.0.1; without an address, `:PORT` means 0.0.0.0.
pub(super) fn read_address(text: &str) -> Option<SocketAddr> {
    let port = |digits: &str| {
        let only_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<u16>().ok().filter(|_| only_digits)
    };
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, digits) = text.rsplit_once(':')?;
    let ip = match host {
        "" => Ipv4Addr::UNSPECIFIED,
        "localhost" => Ipv4Addr::LOCALHOST,
        _ => return None,
    };
    port(digits).map(|port| SocketAddr::from((ip, port)))
}

fn models(raw: &[RawModel], layers: &Layers) -> Result<Vec<ModelSource>, ConfigError> {
    let mut names = BTreeSet::new();
    let mut models = Vec::new();
    for (index, model) in raw.iter().enumerate() {
        let setting = format!("models.{index}");
        let named = sources(model).map_err(|reason| ConfigError::Model {
            origin: layers.origin(&setting),
            setting: setting.clone(),
            reason: Box::new(reason),
        })?;
        for model in named {
            if !names.insert(model.name.clone()) {
                return Err(ConfigError::Invalid {
                    origin: layers.origin(&setting),
                    setting,
                    value: format!("\"{}\"", model.name),
                    accepted: "unique names; name a model with NAME=SRC".to_owned(),
                });
            }
            models.push(model);
        }
    }
    Ok(models)
}

/// Returns the models of one entry; the entry `demo` stands for several models. A directory is checked here, so that a
/// typo is reported before any port is bound.
fn sources(model: &RawModel) -> Result<Vec<ModelSource>, HubError> {
    let sources = ModelSource::several(model.name.as_deref(), &model.source)?;
    for model in &sources {
        if let Source::Directory(path) = &model.source {
            CheckpointFiles::resolve(path)?;
        }
    }
    Ok(sources)
}

/// Checks pairs of settings, in which the first must not exceed the second.
fn check_pairs(reader: &Reader<'_>) -> Result<(), ConfigError> {
    let RawConfig { server, limits, engine, input, fetch, .. } = reader.raw;
    let pairs = [
        // A call that the queue cannot hold at all could never be admitted.
        (
            "limits.max_rows",
            limits.max_rows as u64,
            "engine.capacity_rows",
            engine.capacity_rows as u64,
        ),
        (
            "limits.max_body_bytes",
            limits.max_body_bytes,
            "engine.capacity_bytes",
            engine.capacity_bytes,
        ),
        // A raw body is the most compact encoding of an image, so an image never fits into a body that is smaller than
        // the image.
        (
            "input.max_image_bytes",
            input.max_image_bytes as u64,
            "limits.max_body_bytes",
            limits.max_body_bytes,
        ),
        // A request must not be admitted if it may have to wait longer than its deadline.
        (
            "engine.max_queue_wait_ms",
            engine.max_queue_wait_ms,
            "server.deadline_ms",
            server.deadline_ms,
        ),
        (
            "fetch.connect_timeout_ms",
            fetch.connect_timeout_ms,
            "fetch.total_timeout_ms",
            fetch.total_timeout_ms,
        ),
        (
            "server.body_idle_timeout_ms",
            server.body_idle_timeout_ms,
            "server.body_total_timeout_ms",
            server.body_total_timeout_ms,
        ),
    ];
    for (small, value, large, most) in pairs {
        if value > most {
            let origin = reader.layers.origin(large);
            let accepted = format!("at most {large}, which is {most} ({origin})");
            return Err(reader.layers.invalid(small, accepted));
        }
    }
    Ok(())
}
