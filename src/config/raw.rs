//! Every setting as it is written in a file: section, key, plain value, with units in the names. `config/default.toml`
//! documents each setting; a test compares that file with these structs.
//!
//! Defaults come from the settings types of the folders (`defaults`), so that no number is written twice.

#![expect(clippy::struct_field_names, reason = "keys are complete names: limits.max_rows")]

use serde::{Deserialize, Serialize};

/// Text that is shown instead of a secret.
pub(super) const HIDDEN: &str = "(hidden)";

/// All sections of a settings file. Values are not checked yet.
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
    // Must be last, because in TOML no section may follow an array of tables.
    pub(super) models: Vec<RawModel>,
}

/// Declares sections as structs that reject unknown keys.
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
    /// Section `[server]`: listeners, deadlines, connections.
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

    /// Section `[auth]`. If `keys` and `keys_file` are empty, requests need no key.
    RawAuth {
        keys: Vec<String>,
        keys_file: String,
        failed_attempts_per_minute: u32,
    }

    /// Section `[rate_limit]`. 0 requests per second means no limit.
    RawRateLimit {
        requests_per_second: u32,
        burst: u32,
    }

    /// Section `[limits]`: limits of one call.
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

    /// Section `[compute]`. 0 threads means as many as the CPU quota and affinity allow.
    RawCompute {
        device: String,
        dtype: String,
        cpu_isa: String,
        threads: usize,
    }

    /// Section `[engine]`: admission control, batching, caches.
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

    /// Section `[images]`. 0 decoding threads means a quarter of the cores; 0 as high-water mark means nine tenths of
    /// the memory limit.
    RawImages {
        decode_threads: usize,
        decode_queue: usize,
        decode_budget_bytes: u64,
        memory_high_water_bytes: u64,
        pixel_cache_bytes: u64,
        pixel_cache_ttl_ms: u64,
    }

    /// Section `[input]`: limits of one image and one text.
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

    /// Section `[fetch]`: images fetched by URL.
    RawFetch {
        enabled: bool,
        allowed_hosts: Vec<String>,
        allow_http: bool,
        connect_timeout_ms: u64,
        total_timeout_ms: u64,
        max_redirects: usize,
        max_concurrent: usize,
    }

    /// Section `[hub]`. An empty string means not set.
    RawHub {
        endpoint: String,
        cache: String,
        token: String,
        offline: bool,
        system_proxy: bool,
        attempts: u32,
        retry_pause_ms: u64,
    }

    /// Section `[log]`: format, filter, sampling.
    RawLog {
        format: String,
        filter: String,
        sample_every: u64,
        client_ip: bool,
        max_refusals_per_second: u32,
    }
}

/// One entry of the list `[[models]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) source: String,
}

impl RawConfig {
    /// Formats the settings as a TOML file, with secrets hidden.
    ///
    /// # Panics
    /// Never: settings are plain data.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.clone().without_secrets()).expect("settings are plain data")
    }

    /// Replaces every secret by [`HIDDEN`], which is not a valid secret.
    pub(super) fn without_secrets(mut self) -> Self {
        let token = Some(&mut self.hub.token).filter(|token| !token.is_empty());
        for secret in token.into_iter().chain(&mut self.auth.keys) {
            HIDDEN.clone_into(secret);
        }
        self
    }
}
