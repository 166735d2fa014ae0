//! `multipart/form-data`: parts with a file name are image bytes, the others are text. Parts are read as they
//! arrive, each within its own bound.

use futures_util::stream;
use multer::{Field, Multipart};

use super::body::BodyReader;
use super::form::{Form, Value};
use super::request::Request;
use crate::http::error::{ApiError, Code};
use crate::http::settings::HttpSettings;

/// Longer than any field's name.
const MAX_NAME_BYTES: usize = 64;

/// Reads a multipart body.
///
/// # Errors
/// `invalid_request`, naming the field; `payload_too_large`, `text_too_long`, `batch_too_large`; what the reader
/// refuses.
pub(super) async fn parse<R: Request>(
    boundary: &str,
    reader: &mut BodyReader<'_>,
    settings: &HttpSettings,
) -> Result<R, ApiError> {
    let form = {
        let pieces = stream::unfold(&mut *reader, |reader| async {
            match reader.next().await {
                Ok(piece) => piece.map(|piece| (Ok(piece), reader)),
                Err(error) => {
                    reader.failure = Some(error);
                    Some((Err(std::io::Error::other("the body could not be read")), reader))
                }
            }
        });
        let mut parts = Parts::new(R::BATCH, settings);
        parts.read(Multipart::new(pieces, boundary)).await.map(|()| parts.form)
    };
    // Why reading failed says more than that the multipart was cut short by it.
    if let Some(failure) = reader.failure.take() {
        return Err(failure);
    }
    let form = form?;
    // What follows the last boundary means nothing, but unread it would end the connection.
    while reader.next().await?.is_some() {}
    super::json::parse_form(form)
}

/// The parts read so far.
struct Parts<'a> {
    form: Form,
    /// Files named `image`, each an input of a batch.
    image_files: usize,
    /// Files named `images`.
    list_files: usize,
    texts: usize,
    batch: bool,
    settings: &'a HttpSettings,
}

impl<'a> Parts<'a> {
    fn new(batch: bool, settings: &'a HttpSettings) -> Self {
        let form = if batch { Form::of_batch() } else { Form::default() };
        Self { form, image_files: 0, list_files: 0, texts: 0, batch, settings }
    }

    async fn read(&mut self, mut multipart: Multipart<'_>) -> Result<(), ApiError> {
        while let Some(field) = multipart.next_field().await.map_err(|error| malformed(&error))? {
            let name = field.name().unwrap_or_default().to_owned();
            if name.is_empty() || name.len() > MAX_NAME_BYTES {
                return Err(ApiError::invalid(
                    "each part of a multipart body needs a field's name",
                ));
            }
            let value = if field.file_name().is_some() {
                self.file(&name, field).await?
            } else {
                self.text(&name, field).await?
            };
            self.form.push(&name, value);
        }
        Ok(())
    }

    async fn file(&mut self, name: &str, field: Field<'_>) -> Result<Value, ApiError> {
        self.count_file(name)?;
        let max = self.settings.input.max_image_bytes;
        let bytes = collect(field, max).await?;
        bytes
            .map(|bytes| Value::File(bytes.into()))
            .ok_or_else(|| super::image_file_too_large(&self.form.next_place(name), max))
    }

    /// Refuses one file too many under the name and limit that JSON has for it.
    fn count_file(&mut self, name: &str) -> Result<(), ApiError> {
        let limits = &self.settings.limits;
        let images = (&mut self.list_files, "images", limits.max_images, "limits.max_images");
        let (count, field, max, setting) = match name {
            "image" if self.batch => {
                let max = limits.max_batch_inputs;
                (&mut self.image_files, "inputs", max, "limits.max_batch_inputs")
            }
            // A repeated `image` of a single call is refused later, with its plural.
            "image" | "images" => images,
            other => {
                let detail = "files are images: the part is named image (or images, repeated, where several are taken)";
                return Err(ApiError::field(Code::InvalidRequest, other, detail).closing());
            }
        };
        *count += 1;
        if *count <= max {
            return Ok(());
        }
        let detail = format!("at most {max} are taken in one call ({setting})");
        Err(ApiError::field(Code::BatchTooLarge, field, detail).closing())
    }

    async fn text(&mut self, name: &str, field: Field<'_>) -> Result<Value, ApiError> {
        self.texts += 1;
        let max_parts = self.settings.limits.max_text_parts;
        if self.texts > max_parts {
            let detail = format!("more than {max_parts} text parts (limits.max_text_parts)");
            return Err(ApiError::new(Code::BatchTooLarge, detail).closing());
        }
        // An image value may be base64, and then as long as the body allows.
        let is_image = matches!(name, "image" | "images");
        let max = if is_image { usize::MAX } else { self.settings.input.max_text_bytes };
        let bytes = collect(field, max).await?.ok_or_else(|| {
            ApiError::field(Code::TextTooLong, name, format!("at most {max} bytes")).closing()
        })?;
        String::from_utf8(bytes)
            .map(Value::Text)
            .map_err(|_| ApiError::field(Code::InvalidRequest, name, "text parts are UTF-8"))
    }
}

/// A part's bytes, or `None` when there are more than `max`.
async fn collect(mut field: Field<'_>, max: usize) -> Result<Option<Vec<u8>>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(|error| malformed(&error))? {
        if bytes.len() + piece.len() > max {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes))
}

/// Multer's reasons are all about the body's shape; its words are for programmers.
fn malformed(error: &multer::Error) -> ApiError {
    tracing::debug!(%error, "malformed multipart body");
    ApiError::invalid(
        "the multipart body is malformed or incomplete; let the client library write it",
    )
    .closing()
}
