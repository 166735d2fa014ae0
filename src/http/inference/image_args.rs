//! The images of a call. Each distinct image is parsed, fetched and decoded once, even if several inputs use it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use crate::engine::{Admission, ReservationGuard};
use crate::fetch::{Fetcher, Target};
use crate::http::blocking::{Jobs, Stop};
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code, FieldError};
use crate::http::extract::image_field::ImageField;
use crate::http::state::Services;
use crate::images::{ImageSource, Resolved};
use crate::input::{ImageValue, InputSettings};
use crate::mutations::{self, Mutation};
use crate::task::{PreparedImage, Preprocessing};
use crate::telemetry::trace::{OpenSpan, Value};

/// Base64 of up to this many bytes in total is decoded on the async thread (about 50 us).
const INLINE_BASE64: usize = 64 << 10;

/// An image of an input, with the field that holds it.
#[derive(Debug, Clone)]
pub(crate) struct ImageArg {
    pub(crate) value: ImageField,
    /// Index in the field `images`; `None` if the field `image` holds it.
    pub(crate) index: Option<usize>,
}

impl ImageArg {
    /// Creates the image of the field `image`.
    pub(crate) fn single(value: ImageField) -> Self {
        Self { value, index: None }
    }

    /// Creates the images of the field `images`.
    pub(crate) fn list(values: Vec<ImageField>) -> Vec<Self> {
        let numbered = values.into_iter().enumerate();
        numbered.map(|(index, value)| Self { value, index: Some(index) }).collect()
    }
}

/// Path of the field that holds an image, for errors: `image`, `images[3]`, or `inputs[2].image` in a batch.
#[derive(Debug, Clone, Copy)]
struct ImagePath {
    /// Position of the input in a batch call; `None` in a single call.
    input: Option<usize>,
    /// Index in the field `images`; `None` for the field `image`.
    index: Option<usize>,
}

impl fmt::Display for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(input) = self.input {
            write!(f, "inputs[{input}].")?;
        }
        match self.index {
            Some(index) => write!(f, "images[{index}]"),
            None => f.write_str("image"),
        }
    }
}

/// A future that resolves to a prepared image. Clones share the work and the result.
pub(crate) type SharedImageFuture = Shared<BoxFuture<'static, Result<PreparedImage, ApiError>>>;

/// The distinct images of a call.
#[derive(Default)]
pub(crate) struct ImageSet {
    distinct: Vec<DistinctImage>,
    /// Index in `distinct` of each image that has been added.
    places: HashMap<Identity, ImageIndex>,
}

/// Index of an image in the [`ImageSet`] of its call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageIndex(usize);

struct DistinctImage {
    value: ImageField,
    /// The first field that holds the image.
    path: ImagePath,
    origin: Result<ImageOrigin, ApiError>,
}

/// Where an image comes from.
#[derive(Debug)]
enum ImageOrigin {
    Here(ImageSource),
    Url(Fetcher, Target),
}

/// Identifies an image within a call. Images with equal identities are processed only once.
#[derive(PartialEq, Eq, Hash)]
enum Identity {
    /// Address and length of the value in memory. If a batch gives a default image outside `inputs`, all inputs that
    /// use it share one value in memory.
    Place(usize, usize),
    /// The number of an empty value among the distinct images. Empty values may have the same address, but each is an
    /// error of its own field.
    Empty(usize),
    /// The URL, so that each URL is fetched only once.
    Url(Arc<String>),
}

impl Identity {
    /// Identifies the image in this field, which is looked up in a set of `distinct` images.
    fn of(field: &ImageField, distinct: usize) -> Self {
        match field {
            _ if field.address().1 == 0 => Self::Empty(distinct),
            ImageField::Value(text) if ImageValue::is_url(text) => Self::Url(Arc::clone(text)),
            ImageField::Value(_) | ImageField::Bytes(_) => {
                let (place, length) = field.address();
                Self::Place(place, length)
            }
        }
    }
}

impl ImageSet {
    /// Adds an image of an input, unless it is in the set already. `input` is the position of the input in a batch
    /// call; `None` in a single call.
    pub(crate) fn add(&mut self, input: Option<usize>, image: ImageArg) -> ImageIndex {
        let ImageArg { value, index } = image;
        *self.places.entry(Identity::of(&value, self.distinct.len())).or_insert_with(|| {
            let path = ImagePath { input, index };
            let origin = Err(ApiError::internal());
            self.distinct.push(DistinctImage { value, path, origin });
            ImageIndex(self.distinct.len() - 1)
        })
    }

    /// Returns the number of distinct images. Equal images are recognised only by their URL or memory address.
    pub(crate) fn distinct(&self) -> usize {
        self.distinct.len()
    }

    /// Returns an upper bound on the number of bytes of decoded base64 and of pixels in each of the `preprocessings`, which
    /// the images need on top of the request body. Fetched files have their own bound; see [`Fetcher::fetch`].
    pub(crate) fn extra_bytes(&self, preprocessings: &HashSet<Preprocessing>) -> u64 {
        let pixels = |size: &Preprocessing| u64::from(size.width) * u64::from(size.height) * 3;
        let pixels: u64 = preprocessings.iter().map(pixels).sum();
        self.distinct.iter().map(|image| pixels + decoded_bytes_bound(&image.value)).sum()
    }

    /// Parses the image values: base64, ids and URLs.
    ///
    /// # Errors
    /// `invalid_request` when a value is not an image value. Any other error is stored with its image.
    pub(crate) async fn parse(
        &mut self,
        (settings, fetcher): (&InputSettings, Option<&Fetcher>),
        (jobs, admission): (&Jobs, &Admission),
    ) -> Result<(), ApiError> {
        let length: usize = self.distinct.iter().map(|image| image.value.address().1).sum();
        let values: Vec<ImageField> =
            self.distinct.iter().map(|image| image.value.clone()).collect();
        let (settings, fetcher) = (settings.clone(), fetcher.cloned());
        let parse = move |stop: &Stop| {
            let each = values.iter().map(|value| parse(value, &settings, fetcher.as_ref()));
            each.take_while(|_| !stop.is_set()).collect::<Vec<_>>()
        };
        let origins = if length <= INLINE_BASE64 {
            parse(&Stop::default())
        } else {
            jobs.run(admission, "parsing image values", parse).await?
        };
        let mut invalid = Vec::new();
        for (image, origin) in self.distinct.iter_mut().zip(origins) {
            if let Err(error) = &origin
                && error.code == Code::InvalidRequest
            {
                invalid.push(FieldError::new(image.path.to_string(), &*error.detail));
            }
            image.origin = origin.map_err(|error| error.at(&image.path.to_string()));
        }
        if invalid.is_empty() {
            Ok(())
        } else {
            Err(ApiError::fields(Code::InvalidRequest, invalid))
        }
    }

    /// Returns the number of images that may have to be decoded, which are all images except those given by id.
    pub(crate) fn files(&self) -> usize {
        let is_file = |image: &DistinctImage| {
            matches!(
                image.origin,
                Ok(ImageOrigin::Here(ImageSource::Bytes(_)) | ImageOrigin::Url(..))
            )
        };
        self.distinct.iter().filter(|image| is_file(image)).count()
    }

    /// Returns the futures that fetch and decode the images. A future starts when an input first waits for it.
    pub(crate) fn start_lookup<'a>(
        self,
        services: &'a Services,
        context: &'a RequestContext,
        admission: &'a Admission,
    ) -> ImageFutures<'a> {
        let (deadline, is_bulk) = (admission.deadline(), admission.is_bulk());
        let files = self.distinct.into_iter().map(|image| {
            let (path, context, hold) = (image.path, context.clone(), admission.hold());
            let is_url = matches!(image.origin, Ok(ImageOrigin::Url(..)));
            let find = async move {
                match image.origin? {
                    ImageOrigin::Here(ImageSource::Bytes(bytes))
                        if !mutations::is_active(Mutation::AbandonedDecodesStay) =>
                    {
                        Ok(ImageSource::Bytes(with_reservation(bytes, hold)))
                    }
                    ImageOrigin::Here(source) => Ok(source),
                    ImageOrigin::Url(fetcher, target) => {
                        let fetch = || {
                            let (fetcher, target) = (fetcher.clone(), target.clone());
                            async move {
                                let fetched = fetcher.fetch(target, deadline).await;
                                fetched.map_err(|error| ApiError::from(error).at(&path.to_string()))
                            }
                        };
                        let mut span = context.spans.open("fetch");
                        let fetched = when_not_overloaded(is_bulk, fetch).await;
                        let fetched = or_failed(&mut span, fetched)?;
                        span.end_after_wait("fetch.wait", (fetched.began, fetched.took));
                        context.note(|notes| notes.add_fetch(fetched.took));
                        // These bytes need no reservation: they hold a fetch permit, and the limit on permits bounds
                        // the total size.
                        Ok(ImageSource::Bytes(fetched.bytes))
                    }
                }
            };
            ImageFile { path, is_url, source: find.boxed().shared() }
        });
        ImageFutures {
            services,
            context,
            admission,
            files: files.collect(),
            prepared: HashMap::new(),
        }
    }
}

/// An image file together with the call's reservation for it. A decoding thread may hold the file after the call has
/// ended, so the reservation is released only when the last clone of the bytes is dropped.
struct ReservedBytes {
    bytes: Bytes,
    _hold: ReservationGuard,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn with_reservation(bytes: Bytes, hold: ReservationGuard) -> Bytes {
    Bytes::from_owner(ReservedBytes { bytes, _hold: hold })
}

/// The images of an [`ImageSet`], as futures that are shared by all inputs that need the same image.
pub(crate) struct ImageFutures<'a> {
    services: &'a Services,
    context: &'a RequestContext,
    admission: &'a Admission,
    files: Vec<ImageFile>,
    /// The futures of prepared images that were asked for.
    prepared: HashMap<(usize, Preprocessing), SharedImageFuture>,
}

/// The file of one image: fetched if it is given by URL, not decoded.
struct ImageFile {
    path: ImagePath,
    is_url: bool,
    source: Shared<BoxFuture<'static, Result<ImageSource, ApiError>>>,
}

impl ImageFutures<'_> {
    /// Returns the future of an image of the set, prepared for models with this preprocessing.
    pub(crate) fn get(
        &mut self,
        image: ImageIndex,
        preprocessing: Preprocessing,
    ) -> SharedImageFuture {
        let Self { services, context, admission, files, prepared } = self;
        let start = || prepare(&files[image.0], preprocessing, services, context, admission);
        prepared.entry((image.0, preprocessing)).or_insert_with(start).clone()
    }
}

/// Returns the future that decodes and resizes an image.
fn prepare(
    file: &ImageFile,
    preprocessing: Preprocessing,
    services: &Services,
    context: &RequestContext,
    admission: &Admission,
) -> SharedImageFuture {
    let (deadline, call) = (admission.deadline(), admission.call());
    let (pool, context, path) = (services.images.clone(), context.clone(), file.path);
    let (source, is_url, is_bulk) = (file.source.clone(), file.is_url, admission.is_bulk());
    let prepare = async move {
        let source = source.await?;
        let resolve = || {
            let (pool, source, scope) = (pool.clone(), source.clone(), context.scope());
            async move {
                let resolved = pool.resolve(source, preprocessing, scope, call).await;
                resolved.map_err(|error| ApiError::from(error).at(&path.to_string()))
            }
        };
        let mut span = context.spans.open("decode");
        // A fetched file holds a permit, which others need.
        let resolve = when_not_overloaded(is_bulk && !is_url, resolve);
        let resolved = tokio::time::timeout_at(deadline.into(), resolve).await;
        let resolved = resolved.unwrap_or_else(|_| Err(ApiError::deadline_exceeded()));
        let resolved = or_failed(&mut span, resolved)?;
        end_decode(span, &resolved);
        context.note(|notes| {
            notes.add_decode(resolved.decode + resolved.preprocess);
            notes.cached_images += usize::from(resolved.cached);
            notes.image.get_or_insert(resolved.image.info);
        });
        Ok(resolved.image)
    };
    prepare.boxed().shared()
}

/// Ends the span of an image that has been prepared. A cached image has none.
fn end_decode(mut span: OpenSpan, resolved: &Resolved) {
    let Some(began) = resolved.began else { return span.discard() };
    let info = resolved.image.info;
    span.set("blip.image.format", || Value::Name(info.format.name()));
    span.set("blip.image.width", || Value::Count(info.width.into()));
    span.set("blip.image.height", || Value::Count(info.height.into()));
    span.end_after_wait("decode.wait", (began, resolved.decode + resolved.preprocess));
}

/// Returns `result`, and ends the span if it is an error.
fn or_failed<T>(span: &mut OpenSpan, result: Result<T, ApiError>) -> Result<T, ApiError> {
    result.inspect_err(|error| span.fail(error.code.name()))
}

/// Time after which work that may wait tries again for the first time, and the longest such time.
const RETRY_AFTER: Duration = Duration::from_millis(500);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(8);

/// Makes an attempt, and for bulk work repeats it until it fails for another reason than an overloaded server: too little
/// memory, a full queue of decodes, or too many fetches.
async fn when_not_overloaded<T, A: Future<Output = Result<T, ApiError>>>(
    is_bulk: bool,
    attempt: impl Fn() -> A,
) -> Result<T, ApiError> {
    let mut pause = RETRY_AFTER;
    loop {
        match attempt().await {
            Err(error) if is_bulk && error.code == Code::Overloaded => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_RETRY_AFTER);
            }
            result => return result,
        }
    }
}

/// Returns an upper bound on the number of bytes that an image value needs on top of the body: three bytes for every
/// four characters of base64. Ids and URLs are counted as if they were base64; they are too short to matter.
fn decoded_bytes_bound(field: &ImageField) -> u64 {
    match field {
        ImageField::Bytes(_) => 0,
        ImageField::Value(text) => (text.len() as u64).div_ceil(4) * 3,
    }
}

fn parse(
    field: &ImageField,
    settings: &InputSettings,
    fetcher: Option<&Fetcher>,
) -> Result<ImageOrigin, ApiError> {
    if crate::faults::at("http::image_values") {
        return Err(ApiError::internal());
    }
    let text: &Arc<String> = match field {
        ImageField::Bytes(bytes) => {
            return Ok(ImageOrigin::Here(ImageSource::Bytes(bytes.clone())));
        }
        ImageField::Value(text) => text,
    };
    match (ImageValue::parse(text, settings)?, fetcher) {
        (ImageValue::Bytes(bytes), _) => {
            Ok(ImageOrigin::Here(ImageSource::Bytes(Bytes::from(bytes))))
        }
        (ImageValue::Id(id), _) => Ok(ImageOrigin::Here(ImageSource::Id(id))),
        (ImageValue::Url(url), Some(fetcher)) => {
            Ok(ImageOrigin::Url(fetcher.clone(), fetcher.target(&url)?))
        }
        (ImageValue::Url(_), None) => Err(ApiError::new(
            Code::FetchDisabled,
            "this server does not fetch images by URL (its setting fetch.enabled is false); send the image's bytes: \
             base64, a data URI or a multipart file",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn only_bulk_work_waits_while_the_server_is_overloaded() {
        let attempts = Cell::new(0);
        let attempt = || {
            attempts.set(attempts.get() + 1);
            std::future::ready(match attempts.get() {
                1..=3 => Err(ApiError::new(Code::Overloaded, "full")),
                4 => Ok(4),
                _ => Err(ApiError::new(Code::UrlUnreachable, "gone")),
            })
        };
        let error = when_not_overloaded(false, attempt).await.unwrap_err();
        assert_eq!((error.code, attempts.get()), (Code::Overloaded, 1));
        assert_eq!(when_not_overloaded(true, attempt).await.unwrap(), 4);
        let error = when_not_overloaded(true, attempt).await.unwrap_err();
        assert_eq!((error.code, attempts.get()), (Code::UrlUnreachable, 5));
    }
}
