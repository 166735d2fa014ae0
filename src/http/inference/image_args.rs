//! The images of a call. Each distinct image is parsed, fetched and decoded once, even if several inputs use it.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use crate::engine::{Admission, ReservationGuard};
use crate::fetch::{Fetcher, Target};
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code, FieldError};
use crate::http::extract::image_field::ImageField;
use crate::http::state::Services;
use crate::http::state::models::Model;
use crate::images::ImageSource;
use crate::input::{ImageValue, InputSettings};
use crate::task::{PreparedImage, Preprocessing};
use crate::telemetry::logging::clipped;

/// Base64 of up to this many bytes in total is decoded on the async thread (about 50 us).
const INLINE_BASE64: usize = 64 << 10;

/// An image of an input, with the path of the field that holds it.
#[derive(Debug, Clone)]
pub(crate) struct ImageArg {
    pub(crate) field: ImageField,
    /// Path of the field within its input: `image`, or `images[3]`.
    pub(crate) path: String,
}

impl ImageArg {
    /// Creates the only image of an input, from its field `image`.
    pub(crate) fn single(field: ImageField) -> Self {
        Self { field, path: "image".to_owned() }
    }

    /// Creates the images of an input, from its field `images`.
    pub(crate) fn list(fields: Vec<ImageField>) -> Vec<Self> {
        let named = fields.into_iter().enumerate();
        named.map(|(index, field)| Self { field, path: format!("images[{index}]") }).collect()
    }
}

/// A future that resolves to a prepared image. Clones share the work and the result.
pub(crate) type SharedImageFuture = Shared<BoxFuture<'static, Result<PreparedImage, ApiError>>>;

/// The distinct images of a call.
pub(crate) struct ImageSet {
    distinct: Vec<Distinct>,
    /// For each input, the indices of its images in `distinct`.
    uses: Vec<Vec<usize>>,
}

struct Distinct {
    field: ImageField,
    /// Path of the first field that holds the image, for errors.
    path: String,
    source: Result<ImageOrigin, ApiError>,
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
    /// Address and length of the value in memory. They are equal for all inputs that share an image given as a default
    /// outside `inputs`.
    Place(usize, usize),
    /// The URL, so that each URL is fetched only once.
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
    /// Collects the distinct images of all inputs that were planned successfully.
    pub(crate) fn new(batch: bool, inputs: impl ExactSizeIterator<Item = Vec<ImageArg>>) -> Self {
        let mut places: HashMap<Identity, usize> = HashMap::new();
        let mut distinct = Vec::new();
        let mut uses = Vec::with_capacity(inputs.len());
        for (input, images) in inputs.enumerate() {
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

    /// Returns the number of distinct images. Equal images are recognised only by their URL or memory address.
    pub(crate) fn distinct(&self) -> usize {
        self.distinct.len()
    }

    /// Returns an upper bound on the number of bytes of decoded base64 and prepared pixels, which the images need on
    /// top of the request body. Fetched files have their own bound; see [`Fetcher::fetch`].
    pub(crate) fn extra_bytes(&self, preprocessing: Preprocessing) -> u64 {
        let pixels = u64::from(preprocessing.width) * u64::from(preprocessing.height) * 3;
        self.distinct.iter().map(|image| pixels + decoded_bytes_bound(&image.field)).sum()
    }

    /// Parses the image values: base64, ids and URLs.
    ///
    /// # Errors
    /// `invalid_request` when a value is not an image value. Any other error is stored with its image.
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

    /// Returns the number of images that may have to be decoded, which are all images except those given by id.
    pub(crate) fn files(&self) -> usize {
        let is_file = |image: &Distinct| {
            matches!(
                image.source,
                Ok(ImageOrigin::Here(ImageSource::Bytes(_)) | ImageOrigin::Url(..))
            )
        };
        self.distinct.iter().filter(|image| is_file(image)).count()
    }

    /// Creates the futures that fetch and decode the images. A future starts when an input first waits for it.
    pub(crate) fn start_lookup(
        self,
        services: &Services,
        model: &Model,
        context: &RequestContext,
        admission: &Admission,
    ) -> ImageFutures {
        let preprocessing = model.info.preprocessing;
        let (deadline, call) = (admission.deadline(), admission.call());
        let images = self.distinct.into_iter().map(|image| {
            let (pool, context, hold) =
                (services.images.clone(), context.clone(), admission.hold());
            let find = async move {
                let source = match image.source? {
                    ImageOrigin::Here(ImageSource::Bytes(bytes)) => {
                        ImageSource::Bytes(with_reservation(bytes, hold))
                    }
                    ImageOrigin::Here(source @ ImageSource::Id(_)) => source,
                    ImageOrigin::Url(fetcher, target) => {
                        let fetched = fetcher.fetch(target, deadline).await;
                        let fetched =
                            fetched.map_err(|error| ApiError::from(error).at(&image.path))?;
                        context.note(|notes| notes.add_fetch(fetched.took));
                        // These bytes need no reservation: they hold a fetch permit, and the limit on permits bounds
                        // the total size.
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
        ImageFutures { images: images.collect(), uses: self.uses }
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

/// The image futures of a call, by input.
pub(crate) struct ImageFutures {
    images: Vec<SharedImageFuture>,
    uses: Vec<Vec<usize>>,
}

impl ImageFutures {
    /// Returns the futures of an input's images, in order.
    pub(crate) fn of(&self, input: usize) -> Vec<SharedImageFuture> {
        self.uses[input].iter().map(|&image| self.images[image].clone()).collect()
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
    let text: &Arc<str> = match field {
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
