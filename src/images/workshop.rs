//! The work on one file, on a pool thread: header, permit, decode, resize. Decoders may panic; nobody outside sees it.

use super::budget::ByteBudget;
use super::{Key, Prepared};
use crate::input::{
    ImageHeader, InputError, InputSettings, Picture, inspect, resize, sniff_format,
};
use crate::task::{ImageFormat, PreparedImage};
use crate::telemetry::metrics::{GaugeGuard, Metrics};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// [`crate::input::decode`], or what a test puts in its place.
pub(super) type Decode =
    dyn Fn(&[u8], &ImageHeader, &InputSettings) -> Result<Picture, InputError> + Send + Sync;

/// What all decoding threads share.
pub(super) struct Workshop {
    pub(super) decode: Box<Decode>,
    pub(super) settings: InputSettings,
    pub(super) budget: ByteBudget,
    pub(super) metrics: Arc<Metrics>,
}

impl Workshop {
    pub(super) fn new(
        settings: InputSettings,
        budget_bytes: u64,
        metrics: Arc<Metrics>,
        decode: Box<Decode>,
    ) -> Self {
        metrics.panics_total.with_label_values(&["decode"]);
        for format in ImageFormat::ALL {
            metrics.image_format_total.with_label_values(&[format.name()]);
        }
        Self { decode, settings, budget: ByteBudget::new(budget_bytes), metrics }
    }

    /// Prepares a file.
    pub(super) fn prepare(&self, file: &[u8], key: Key) -> Result<Prepared, InputError> {
        let work = || self.try_prepare(file, key);
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            self.metrics.panics_total.with_label_values(&["decode"]).inc();
            tracing::error!(image.id = %key.id, image.bytes = file.len(), "a decoder panicked");
            let format = sniff_format(file)?;
            let problem = "the decoder failed on it".to_owned();
            Err(InputError::UndecodableImage { format, problem })
        })
    }

    fn try_prepare(&self, file: &[u8], key: Key) -> Result<Prepared, InputError> {
        let Key { scope, id, preprocessing } = key;
        let inspecting = Instant::now();
        injected("images::inspect", file)?;
        let header = inspect(file, &self.settings)?;
        let inspected = inspecting.elapsed();
        let _permit = self.budget.acquire(header.working_bytes);
        let _in_use = GaugeGuard::new(&self.metrics.decode_permits_in_use);

        let decoding = Instant::now();
        injected("images::decode", file)?;
        let picture = (self.decode)(file, &header, &self.settings)?;
        let decode = inspected + decoding.elapsed();

        let resizing = Instant::now();
        injected("images::resize", file)?;
        let pixels = Arc::new(resize(&picture, preprocessing, self.settings.resize_order));
        let preprocess = resizing.elapsed();

        let stages = &self.metrics.stage_duration_seconds;
        stages.with_label_values(&["decode"]).observe(decode.as_secs_f64());
        stages.with_label_values(&["preprocess"]).observe(preprocess.as_secs_f64());
        let pixel_count = f64::from(picture.width()) * f64::from(picture.height());
        self.metrics.image_pixels.observe(pixel_count);
        self.metrics.image_format_total.with_label_values(&[header.format.name()]).inc();

        let info = picture.info(id, header.format);
        let image = PreparedImage { info, scope, preprocessing, pixels };
        Ok(Prepared { image, decode, preprocess })
    }
}

/// The error that `faults` injects into this place, if it does now.
fn injected(place: &str, file: &[u8]) -> Result<(), InputError> {
    if !crate::faults::at(place) {
        return Ok(());
    }
    let format = sniff_format(file)?;
    Err(InputError::UndecodableImage { format, problem: "an injected fault".to_owned() })
}
