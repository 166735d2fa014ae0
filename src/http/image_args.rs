//! The images of a call: each distinct one is parsed once, fetched and decoded once, and awaited by every input that
//! uses it.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use super::call::Endpoint;
use super::error::{ApiError, Code, FieldError};
use super::extract::fields::ImageField;
use super::middleware::context::RequestContext;
use super::models::Model;
use super::state::Services;
use crate::engine::{Admission, Hold};
use crate::fetch::{Fetcher, Target};
use crate::images::ImageSource;
use crate::input::{ImageValue, InputSettings};
use crate::task::{PreparedImage, Preprocessing};
use crate::telemetry::logging::clipped;

/// Base64 up to this length is undone on the spot (about 50 us).
const INLINE_BASE64: usize = 64 << 10;

/// An image of an input, and what the client called it.
#[derive(Debug, Clone)]
pub(crate) struct ImageArg {
    /// What the client sent.
    pub(crate) field: ImageField,
    /// `image`, or `images[3]`.
    pub(crate) path: String,
}

impl ImageArg {
    /// The one image of an input.
    pub(crate) fn single(field: ImageField) -> Self {
        Self { field, path: "image".to_owned() }
    }

    /// The images of an input that takes a list.
    pub(crate) fn list(fields: Vec<ImageField>) -> Vec<Self> {
        let named = fields.into_iter().enumerate();
        named.map(|(index, field)| Self { field, path: format!("images[{index}]") }).collect()
    }
}

/// A prepared image on its way; clones wait for the same.
pub(crate) type SharedImage = Shared<BoxFuture<'static, Result<PreparedImage, ApiError>>>;

/// The distinct images of a call.
pub(crate) struct ImageSet {
    distinct: Vec<Distinct>,
    /// For each input, which images it uses.
    uses: Vec<Vec<usize>>,
}

struct Distinct {
    field: ImageField,
    /// Where it stands first, for errors.
    path: String,
    source: Result<Source, ApiError>,
}

/// Where an image's bytes come from.
#[derive(Debug)]
enum Source {
    Here(ImageSource),
    Url(Fetcher, Target),
}

/// What makes two images of a call the same one.
#[derive(PartialEq, Eq, Hash)]
enum Identity {
    /// The place of its value in memory: an image that stands beside the inputs is shared by all of them.
    Place(usize, usize),
    /// Its URL, so that a host is asked once however often it is named.
    Url(Arc<str>),
}

impl Identity {
    fn of(field: &ImageField) -> Self {
        match field {
            ImageField::Value(text) if ImageValue::is_url(text) => Self::Url(Arc::clone(text)),
            ImageField::Value(_) | ImageField::Bytes(_) => {
                let (place, length) = field.address();
                Self::Place(place, length)
            }
        }
    }
}

impl ImageSet {
    /// Collects the images of the inputs that were planned.
    pub(crate) fn new<E: Endpoint>(batch: bool, plans: &[Result<E, ApiError>]) -> Self {
        let mut places: HashMap<Identity, usize> = HashMap::new();
        let mut distinct = Vec::new();
        let mut uses = Vec::with_capacity(plans.len());
        for (input, plan) in plans.iter().enumerate() {
            let images = plan.as_ref().map(E::images).unwrap_or_default();
            let used = images.into_iter().map(|image| {
                *places.entry(Identity::of(&image.field)).or_insert_with(|| {
                    let path =
                        if batch { format!("inputs[{input}].{}", image.path) } else { image.path };
                    let source = Err(ApiError::internal());
                    distinct.push(Distinct { field: image.field, path, source });
                    distinct.len() - 1
                })
            });
            uses.push(used.collect());
        }
        Self { distinct, uses }
    }

    /// How many different images the call has, as far as URLs and addresses in memory tell.
    pub(crate) fn distinct(&self) -> usize {
        self.distinct.len()
    }

    /// Most bytes that the images take beside the body: what base64 decodes to, and prepared pixels. What is fetched has
    /// a bound of its own, see [`Fetcher::fetch`].
    pub(crate) fn bytes_beside_body(&self, preprocessing: Preprocessing) -> u64 {
        let pixels = u64::from(preprocessing.width) * u64::from(preprocessing.height) * 3;
        self.distinct.iter().map(|image| pixels + file_bytes(&image.field)).sum()
    }

    /// Reads the image values: base64 to bytes, ids, URLs.
    ///
    /// # Errors
    /// `invalid_request` when one is no image value at all; everything else stays with the image.
    pub(crate) async fn parse(
        &mut self,
        settings: &InputSettings,
        fetcher: Option<&Fetcher>,
    ) -> Result<(), ApiError> {
        let length: usize = self.distinct.iter().map(|image| image.field.address().1).sum();
        let fields: Vec<ImageField> =
            self.distinct.iter().map(|image| image.field.clone()).collect();
        let (settings, fetcher) = (settings.clone(), fetcher.cloned());
        let parse = move || {
            let each = fields.iter().map(|field| parse(field, &settings, fetcher.as_ref()));
            each.collect::<Vec<_>>()
        };
        let sources = if length <= INLINE_BASE64 {
            parse()
        } else {
            tokio::task::spawn_blocking(parse).await.map_err(|error| {
                tracing::error!(error = clipped(&error), "parsing image values panicked");
                ApiError::internal()
            })?
        };
        let mut invalid = Vec::new();
        for (image, source) in self.distinct.iter_mut().zip(sources) {
            if let Err(error) = &source
                && error.code == Code::InvalidRequest
            {
                invalid.push(FieldError::new(&*image.path, &*error.detail));
            }
            image.source = source.map_err(|error| error.at(&image.path));
        }
        if invalid.is_empty() {
            Ok(())
        } else {
            Err(ApiError::fields(Code::InvalidRequest, invalid))
        }
    }

    /// Images that came as a file or are to be fetched: they may have to be decoded.
    pub(crate) fn files(&self) -> usize {
        let is_file = |image: &Distinct| {
            matches!(image.source, Ok(Source::Here(ImageSource::Bytes(_)) | Source::Url(..)))
        };
        self.distinct.iter().filter(|image| is_file(image)).count()
    }

    /// Starts to find the images; each begins when the first input waits for it.
    pub(crate) fn finder(
        self,
        services: &Services,
        model: &Model,
        context: &RequestContext,
        admission: &Admission,
    ) -> Finder {
        let preprocessing = model.info.preprocessing;
        let (deadline, call) = (admission.deadline(), admission.call());
        let images = self.distinct.into_iter().map(|image| {
            let (pool, context, hold) =
                (services.images.clone(), context.clone(), admission.hold());
            let find = async move {
                let source = match image.source? {
                    Source::Here(ImageSource::Bytes(bytes)) => {
                        ImageSource::Bytes(held(bytes, hold))
                    }
                    Source::Here(source @ ImageSource::Id(_)) => source,
                    Source::Url(fetcher, target) => {
                        let fetched = fetcher.fetch(target, deadline).await;
                        let fetched =
                            fetched.map_err(|error| ApiError::from(error).at(&image.path))?;
                        context.note(|notes| notes.add_fetch(fetched.took));
                        // The bytes are bounded by their place among the fetches, which goes with them.
                        ImageSource::Bytes(fetched.bytes)
                    }
                };
                let resolve = pool.resolve(source, preprocessing, context.scope(), call);
                let resolved = tokio::time::timeout_at(deadline.into(), resolve)
                    .await
                    .map_err(|_| ApiError::deadline_exceeded())?
                    .map_err(|error| ApiError::from(error).at(&image.path))?;
                context.note(|notes| {
                    notes.add_decode(resolved.decode + resolved.preprocess);
                    notes.cached_images += usize::from(resolved.cached);
                    notes.image.get_or_insert(resolved.image.info);
                });
                Ok(resolved.image)
            };
            find.boxed().shared()
        });
        Finder { images: images.collect(), uses: self.uses }
    }
}

/// A file that a decoding thread may hold after its call has ended, and the room that the call has reserved for it: it is
/// given back when the last clone of the bytes is dropped.
struct Held {
    bytes: Bytes,
    _hold: Hold,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn held(bytes: Bytes, hold: Hold) -> Bytes {
    Bytes::from_owner(Held { bytes, _hold: hold })
}

/// Images on their way, by input.
pub(crate) struct Finder {
    images: Vec<SharedImage>,
    uses: Vec<Vec<usize>>,
}

impl Finder {
    /// The images of an input, in order.
    pub(crate) fn of(&self, input: usize) -> Vec<SharedImage> {
        self.uses[input].iter().map(|&image| self.images[image].clone()).collect()
    }
}

/// Most bytes that an image value becomes beside the body: three for every four characters of base64. Ids and URLs count
/// as if they were base64; their length is nothing.
fn file_bytes(field: &ImageField) -> u64 {
    match field {
        ImageField::Bytes(_) => 0,
        ImageField::Value(text) => (text.len() as u64).div_ceil(4) * 3,
    }
}

fn parse(
    field: &ImageField,
    settings: &InputSettings,
    fetcher: Option<&Fetcher>,
) -> Result<Source, ApiError> {
    if crate::faults::at("http::image_values") {
        return Err(ApiError::internal());
    }
    let text: &Arc<str> = match field {
        ImageField::Bytes(bytes) => return Ok(Source::Here(ImageSource::Bytes(bytes.clone()))),
        ImageField::Value(text) => text,
    };
    match (ImageValue::parse(text, settings)?, fetcher) {
        (ImageValue::Bytes(bytes), _) => Ok(Source::Here(ImageSource::Bytes(Bytes::from(bytes)))),
        (ImageValue::Id(id), _) => Ok(Source::Here(ImageSource::Id(id))),
        (ImageValue::Url(url), Some(fetcher)) => {
            Ok(Source::Url(fetcher.clone(), fetcher.target(&url)?))
        }
        (ImageValue::Url(_), None) => Err(ApiError::new(
            Code::FetchDisabled,
            "this server does not fetch images by URL (its setting fetch.enabled is false); send the image's bytes: \
             base64, a data URI or a multipart file",
        )),
    }
}
