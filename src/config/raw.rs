//! Every setting as it is written in a file: section, key, plain value, units in the name.
//! `config/default.toml` says what each one means; a test holds that file against these structs.
//!
//! Defaults are taken from the settings types of the folders (`defaults`), so that no number stands twice.

#![expect(clippy::struct_field_names, reason = "keys of a file are whole names: limits.max_rows")]

use serde::{Deserialize, Serialize};

/// What is shown of a secret.
pub(super) const HIDDEN: &str = "(hidden)";

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    pub(super) server: RawServer,
    pub(super) auth: RawAuth,
    pub(super) rate_limit: RawRateLimit,
    pub(super) limits: RawLimits,
    pub(super) compute: RawCompute,
    pub(super) engine: RawEngine,
    pub(super) images: RawImages,
    pub(super) input: RawInput,
    pub(super) fetch: RawFetch,
    pub(super) hub: RawHub,
    pub(super) log: RawLog,
    // Last: an array of tables ends every other section in TOML.
    pub(super) models: Vec<RawModel>,
}

/// Declares sections: structs that refuse unknown keys.
macro_rules! sections {
    ($($(#[doc = $doc:literal])+ $name:ident { $($key:ident: $kind:ty,)+ })+) => {$(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $(pub(super) $key: $kind,)+
        }
    )+};
}

sections! {
    /// `[server]`
    RawServer {
        listen: String,
        operations_listen: String,
        tls_certificate: String,
        tls_key: String,
        trusted_proxies: Vec<String>,
        deadline_ms: u64,
        drain_delay_ms: u64,
        drain_timeout_ms: u64,
        docs: bool,
        cors_allowed_origins: Vec<String>,
        allowed_hosts: Vec<String>,
        max_connections: usize,
        header_read_timeout_ms: u64,
        keep_alive_ms: u64,
        max_headers: usize,
        max_head_bytes: usize,
        body_idle_timeout_ms: u64,
        body_total_timeout_ms: u64,
        write_timeout_ms: u64,
    }

    /// `[auth]`; no keys and an empty path stand for "open".
    RawAuth {
        keys: Vec<String>,
        keys_file: String,
        failed_attempts_per_minute: u32,
    }

    /// `[rate_limit]`; 0 requests stand for "no limit".
    RawRateLimit {
        requests_per_second: u32,
        burst: u32,
    }

    /// `[limits]`
    RawLimits {
        max_body_bytes: u64,
        max_images: usize,
        max_texts: usize,
        max_questions: usize,
        max_candidates: usize,
        max_batch_inputs: usize,
        max_rows: usize,
        max_new_tokens: usize,
        max_body_frames: usize,
        max_text_parts: usize,
    }

    /// `[compute]`; 0 threads stands for "as many as allowed".
    RawCompute {
        device: String,
        dtype: String,
        cpu_isa: String,
        threads: usize,
    }

    /// `[engine]`
    RawEngine {
        capacity_rows: usize,
        capacity_bytes: u64,
        max_queue_wait_ms: u64,
        unit_time_ms: u64,
        linger_ms: u64,
        vision_share_percent: u8,
        max_batch_images: usize,
        max_batch_rows: usize,
        max_batch_tokens: usize,
        feature_cache_bytes: u64,
        max_pinned_feature_bytes: u64,
        feature_cache_ttl_ms: u64,
        max_kv_bytes: u64,
        worker_hang_limit_ms: u64,
        worker_rebuild_interval_ms: u64,
    }

    /// `[images]`; 0 decoding threads stands for "a quarter of the cores", 0 bytes of memory for "nine tenths of the limit".
    RawImages {
        decode_threads: usize,
        decode_queue: usize,
        decode_budget_bytes: u64,
        memory_high_water_bytes: u64,
        pixel_cache_bytes: u64,
        pixel_cache_ttl_ms: u64,
    }

    /// `[input]`
    RawInput {
        max_image_bytes: usize,
        max_pixels: u64,
        max_side: u32,
        max_decoded_bytes: u64,
        alpha_background: [u8; 3],
        resize_order: String,
        max_text_chars: usize,
        max_text_bytes: usize,
    }

    /// `[fetch]`
    RawFetch {
        enabled: bool,
        allowed_hosts: Vec<String>,
        allow_http: bool,
        connect_timeout_ms: u64,
        total_timeout_ms: u64,
        max_redirects: usize,
        max_concurrent: usize,
    }

    /// `[hub]`; empty texts stand for "not given".
    RawHub {
        endpoint: String,
        cache: String,
        token: String,
        offline: bool,
        system_proxy: bool,
        attempts: u32,
        retry_pause_ms: u64,
    }

    /// `[log]`
    RawLog {
        format: String,
        filter: String,
        sample_every: u64,
        client_ip: bool,
        max_refusals_per_second: u32,
    }
}

/// `[[models]]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) source: String,
}

impl RawConfig {
    /// As a TOML file, secrets hidden.
    ///
    /// # Panics
    /// Never: settings are plain data.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.clone().without_secrets()).expect("settings are plain data")
    }

    /// The same with every secret replaced by a word that no secret can be.
    pub(super) fn without_secrets(mut self) -> Self {
        let token = Some(&mut self.hub.token).filter(|token| !token.is_empty());
        for secret in token.into_iter().chain(&mut self.auth.keys) {
            HIDDEN.clone_into(secret);
        }
        self
    }
}
