//! Does the work on one file: reads the header, takes a permit from the byte budget, decodes and resizes. Panics of
//! decoders are caught here.

use super::budget::ByteBudget;
use super::{Key, Prepared};
use crate::input::{
    ImageHeader, InputError, InputSettings, Stop, inspect, is_quick_to_inspect, resize,
    sniff_format,
};
use crate::platform;
use crate::task::{ImageFormat, ImageId, ImageInfo, Pixels, PreparedImage};
use crate::telemetry::metrics::{GaugeGuard, Metrics};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// [`crate::input::decode`], or its replacement in a test.
pub(crate) type Decode = dyn Fn(&[u8], &ImageHeader, &InputSettings, Stop<'_>) -> Result<Pixels, InputError>
    + Send
    + Sync;

/// Decoder, settings, byte budget and metrics that all decoding threads share.
pub(super) struct FileProcessor {
    pub(super) decode: Box<Decode>,
    pub(super) settings: InputSettings,
    pub(super) budget: ByteBudget,
    pub(super) metrics: Arc<Metrics>,
}

impl FileProcessor {
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

    /// Reads a file's header and checks it against every limit.
    pub(super) fn inspect(&self, file: &[u8], id: ImageId) -> Result<ImageHeader, InputError> {
        self.catch_panic(file, id, || {
            injected("images::inspect", file)?;
            inspect(file, &self.settings)
        })
    }

    /// Reads the header of a small file on the caller's thread if the format's reader takes only microseconds. Returns
    /// `None` for the other formats, whose readers may inflate metadata first.
    pub(super) fn inspect_here(
        &self,
        file: &[u8],
        id: ImageId,
    ) -> Option<Result<ImageHeader, InputError>> {
        is_quick_to_inspect(file).then(|| self.inspect(file, id))
    }

    /// Decodes and resizes a file. Reads its header first if `header` is `None`. Polls `stop` during the decode; if
    /// `stop` returns true, the work ends with [`InputError::Stopped`].
    pub(super) fn prepare(
        &self,
        file: &[u8],
        key: Key,
        header: Option<ImageHeader>,
        stop: Stop<'_>,
    ) -> Result<Prepared, InputError> {
        let header = header.map_or_else(|| self.inspect(file, key.id), Ok)?;
        self.catch_panic(file, key.id, || self.try_prepare(file, key, &header, stop))
    }

    /// Runs `work` on a file. If the decoder panics, returns an `UndecodableImage` error for the file.
    fn catch_panic<T>(
        &self,
        file: &[u8],
        id: ImageId,
        work: impl FnOnce() -> Result<T, InputError>,
    ) -> Result<T, InputError> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            self.metrics.panics_total.with_label_values(&["decode"]).inc();
            tracing::error!(image.id = %id, image.bytes = file.len(), "a decoder panicked");
            let format = sniff_format(file)?;
            let problem = "the decoder failed on it".to_owned();
            Err(InputError::UndecodableImage { format, problem })
        })
    }

    fn try_prepare(
        &self,
        file: &[u8],
        key: Key,
        header: &ImageHeader,
        stop: Stop<'_>,
    ) -> Result<Prepared, InputError> {
        let Key { scope, id, preprocessing } = key;
        let _permit = self.budget.acquire(header.working_bytes);
        // All waiters may have left during the wait for the permit.
        if stop() {
            return Err(InputError::Stopped);
        }
        let _in_use = GaugeGuard::new(&self.metrics.decode_permits_in_use);

        let decoding = platform::now();
        injected("images::decode", file)?;
        let picture = (self.decode)(file, header, &self.settings, stop)?;
        let decode = platform::elapsed(decoding);

        let resizing = platform::now();
        injected("images::resize", file)?;
        let pixels = Arc::new(resize(&picture, preprocessing, self.settings.resize_order)?);
        let preprocess = platform::elapsed(resizing);

        let stages = &self.metrics.stage_duration_seconds;
        stages.with_label_values(&["decode"]).observe(decode.as_secs_f64());
        stages.with_label_values(&["preprocess"]).observe(preprocess.as_secs_f64());
        let (width, height, format) = (picture.width(), picture.height(), header.format);
        self.metrics.image_pixels.observe(f64::from(width) * f64::from(height));
        self.metrics.image_format_total.with_label_values(&[format.name()]).inc();

        let info = ImageInfo { id, width, height, format };
        let image = PreparedImage { info, scope, preprocessing, pixels };
        Ok(Prepared { image, began: decoding, decode, preprocess })
    }
}

/// Returns an error if `faults` injects one at this place now.
fn injected(place: &str, file: &[u8]) -> Result<(), InputError> {
    if !crate::faults::at(place) {
        return Ok(());
    }
    let format = sniff_format(file)?;
    Err(InputError::UndecodableImage { format, problem: "an injected fault".to_owned() })
}
