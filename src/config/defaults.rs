//! Default values of every section of a settings file, converted from the defaults of each folder's own settings type.

use std::time::Duration;

use super::raw::{
    RawAuth, RawCompute, RawEngine, RawFetch, RawHub, RawImages, RawInput, RawLimits, RawLog,
    RawRateLimit, RawServer,
};
use crate::engine::EngineSettings;
use crate::fetch::FetchSettings;
use crate::http::HttpSettings;
use crate::hub::Retry;
use crate::images::ImagesSettings;
use crate::input::InputSettings;
use crate::telemetry::logging::LoggingSettings;

impl Default for RawServer {
    fn default() -> Self {
        let http = HttpSettings::default();
        let connections = http.connections;
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            operations_listen: String::new(),
            tls_certificate: String::new(),
            tls_key: String::new(),
            trusted_proxies: Vec::new(),
            deadline_ms: millis(http.deadline),
            drain_delay_ms: 0,
            drain_timeout_ms: millis(connections.drain_timeout),
            docs: http.docs,
            cors_allowed_origins: http.cors.map(|cors| cors.allowed_origins).unwrap_or_default(),
            allowed_hosts: http.allowed_hosts,
            max_connections: connections.max_connections,
            header_read_timeout_ms: millis(connections.header_read_timeout),
            keep_alive_ms: millis(connections.keep_alive),
            max_headers: connections.max_headers,
            max_head_bytes: connections.max_head_bytes,
            body_idle_timeout_ms: millis(connections.body_idle_timeout),
            body_total_timeout_ms: millis(connections.body_total_timeout),
            write_timeout_ms: millis(connections.write_timeout),
        }
    }
}

impl Default for RawAuth {
    fn default() -> Self {
        // This allows one failed attempt per second in the long run: enough for a client whose key was just replaced,
        // but far too few for guessing keys.
        Self { keys: Vec::new(), keys_file: String::new(), failed_attempts_per_minute: 60 }
    }
}

impl Default for RawRateLimit {
    fn default() -> Self {
        Self { requests_per_second: 0, burst: 20 }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        let limits = HttpSettings::default().limits;
        Self {
            max_body_bytes: limits.max_body_bytes,
            max_images: limits.max_images,
            max_texts: limits.max_texts,
            max_questions: limits.max_questions,
            max_candidates: limits.max_candidates,
            max_batch_inputs: limits.max_batch_inputs,
            max_rows: limits.max_rows,
            max_new_tokens: limits.max_new_tokens,
            max_body_frames: limits.max_body_frames,
            max_text_parts: limits.max_text_parts,
        }
    }
}

impl Default for RawCompute {
    fn default() -> Self {
        Self {
            device: "auto".to_owned(),
            dtype: "auto".to_owned(),
            cpu_isa: "auto".to_owned(),
            threads: 0,
        }
    }
}

impl Default for RawEngine {
    fn default() -> Self {
        let engine = EngineSettings::default();
        Self {
            capacity_rows: engine.capacity_rows,
            capacity_bytes: engine.capacity_bytes,
            max_queue_wait_ms: millis(engine.max_queue_wait),
            unit_time_ms: millis(engine.unit_time),
            linger_ms: millis(engine.linger),
            vision_share_percent: engine.vision_share_percent,
            max_batch_images: engine.max_batch_images,
            max_batch_rows: engine.max_batch_rows,
            max_batch_tokens: engine.max_batch_tokens,
            feature_cache_bytes: engine.feature_cache_bytes,
            max_pinned_feature_bytes: engine.max_pinned_feature_bytes,
            feature_cache_ttl_ms: millis(engine.feature_cache_ttl),
            max_kv_bytes: engine.max_kv_bytes,
            worker_hang_limit_ms: millis(engine.worker_hang_limit),
            worker_rebuild_interval_ms: millis(engine.worker_rebuild_interval),
        }
    }
}

impl Default for RawImages {
    fn default() -> Self {
        let images = ImagesSettings::default();
        Self {
            // 0 means automatic: the value depends on the machine, so the file cannot name it.
            decode_threads: 0,
            decode_queue: images.decode_queue,
            decode_budget_bytes: images.decode_budget_bytes,
            // 0 means automatic, for the same reason as above.
            memory_high_water_bytes: 0,
            pixel_cache_bytes: images.pixel_cache_bytes,
            pixel_cache_ttl_ms: millis(images.pixel_cache_ttl),
        }
    }
}

impl Default for RawInput {
    fn default() -> Self {
        let input = InputSettings::default();
        Self {
            max_image_bytes: input.max_image_bytes,
            max_pixels: input.max_pixels,
            max_side: input.max_side,
            max_decoded_bytes: input.max_decoded_bytes,
            alpha_background: input.alpha_background,
            resize_order: input.resize_order.name().to_owned(),
            max_text_chars: input.max_text_chars,
            max_text_bytes: input.max_text_bytes,
        }
    }
}

impl Default for RawFetch {
    fn default() -> Self {
        let fetch = FetchSettings::default();
        Self {
            enabled: fetch.enabled,
            allowed_hosts: fetch.allowed_hosts,
            allow_http: fetch.allow_http,
            connect_timeout_ms: millis(fetch.connect_timeout),
            total_timeout_ms: millis(fetch.total_timeout),
            max_redirects: fetch.max_redirects,
            max_concurrent: fetch.max_concurrent,
        }
    }
}

impl Default for RawHub {
    fn default() -> Self {
        let retry = Retry::default();
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            cache: String::new(),
            token: String::new(),
            offline: false,
            system_proxy: true,
            attempts: retry.attempts,
            retry_pause_ms: millis(retry.first_pause),
        }
    }
}

impl Default for RawLog {
    fn default() -> Self {
        let access = HttpSettings::default().access_log;
        Self {
            format: "auto".to_owned(),
            filter: LoggingSettings::default().filter,
            sample_every: access.sample_every,
            client_ip: access.client_ip,
            max_refusals_per_second: access.max_refusals_per_second,
        }
    }
}

/// Converts to whole milliseconds, the unit of times in settings files.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("defaults are hours at most")
}
