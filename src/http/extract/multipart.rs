//! `multipart/form-data`: parts with a file name or of an image's type are image bytes, the others are text, whatever
//! their type (also `application/json`: the text is not read as JSON). Empty parts are absent fields. Parts are read as
//! they arrive, each within its own bound.
//!
//! Between two parts the parser keeps what it has and searches all of it again whenever more arrives, so what may
//! stand there (the preamble, a part's head) is bounded here, and it is handed one piece at a time.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream;
use multer::{Field, Multipart};

use super::body::BodyReader;
use super::disposition::Disposition;
use super::form::{Form, Value};
use super::request::Request;
use crate::http::error::{ApiError, Code};
use crate::http::settings::HttpSettings;
use crate::telemetry::logging::clipped;

/// Longer than any field's name.
const MAX_NAME_BYTES: usize = 64;

/// Bytes after which no further piece is read for one part's head, or before the first boundary; browsers and client
/// libraries write less than 1 KiB.
const MAX_PART_HEAD_BYTES: usize = 64 << 10;

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
    let head_bytes = &AtomicUsize::new(0);
    let form = {
        let pieces = stream::unfold((&mut *reader, false), |(reader, again)| async move {
            if again {
                // The parser takes all that is ready before it looks at any of it.
                tokio::task::yield_now().await;
            }
            match next_piece(reader, head_bytes).await {
                Ok(piece) => piece.map(|piece| (Ok(piece), (reader, true))),
                Err(error) => {
                    reader.failure = Some(error);
                    Some((Err(std::io::Error::other("the body could not be read")), (reader, true)))
                }
            }
        });
        let mut parts = Parts::new(R::BATCH, settings, head_bytes);
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

/// The next piece of the body, unless a head has had its share.
async fn next_piece(
    reader: &mut BodyReader<'_>,
    head_bytes: &AtomicUsize,
) -> Result<Option<bytes::Bytes>, ApiError> {
    if head_bytes.load(Ordering::Relaxed) > MAX_PART_HEAD_BYTES {
        let detail = format!(
            "the head of a part, or what stands before the first boundary, exceeds {MAX_PART_HEAD_BYTES} bytes; \
             let the client library write the body"
        );
        return Err(ApiError::invalid(detail).closing());
    }
    let piece = reader.next().await?;
    head_bytes.fetch_add(piece.as_ref().map_or(0, bytes::Bytes::len), Ordering::Relaxed);
    Ok(piece)
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
    /// Bytes that arrived since the end of the last part.
    head_bytes: &'a AtomicUsize,
}

impl<'a> Parts<'a> {
    fn new(batch: bool, settings: &'a HttpSettings, head_bytes: &'a AtomicUsize) -> Self {
        let form = if batch { Form::of_batch() } else { Form::default() };
        Self { form, image_files: 0, list_files: 0, texts: 0, batch, settings, head_bytes }
    }

    async fn read(&mut self, mut multipart: Multipart<'_>) -> Result<(), ApiError> {
        while let Some(field) = multipart.next_field().await.map_err(|error| malformed(&error))? {
            self.head_bytes.store(0, Ordering::Relaxed);
            // Multer takes a file name that is not UTF-8 for none.
            let head = Disposition::of(field.headers());
            let known = |head: &Disposition| (1..=MAX_NAME_BYTES).contains(&head.name.len());
            let Some(head) = head.filter(known) else {
                return Err(ApiError::invalid(
                    "each part of a multipart body needs a field's name",
                ));
            };
            let value = if head.is_file() {
                self.file(&head.name, field).await?
            } else {
                self.text(&head, field).await?
            };
            let name = head.name;
            self.form.push(&name, value);
        }
        Ok(())
    }

    async fn file(&mut self, name: &str, field: Field<'_>) -> Result<Value, ApiError> {
        self.count_file(name)?;
        let max = self.settings.input.max_image_bytes;
        let Some(bytes) = self.collect(field, max).await? else {
            return Err(super::image_file_too_large(&self.form.next_place(name), max));
        };
        if bytes.is_empty() {
            // A file input of an HTML form in which nothing was chosen.
            *self.files(name) -= 1;
        }
        Ok(Value::File(bytes.into()))
    }

    /// The count of files under a name.
    fn files(&mut self, name: &str) -> &mut usize {
        if self.batch && name == "image" { &mut self.image_files } else { &mut self.list_files }
    }

    /// Refuses one file too many under the name and limit that JSON has for it.
    fn count_file(&mut self, name: &str) -> Result<(), ApiError> {
        let limits = &self.settings.limits;
        let (field, max, setting) = match name {
            "image" if self.batch => ("inputs", limits.max_batch_inputs, "limits.max_batch_inputs"),
            // A repeated `image` of a single call is refused later, with its plural.
            "image" | "images" => ("images", limits.max_images, "limits.max_images"),
            other => {
                let detail = "files are images: the part is named image (or images, repeated, where several are taken)";
                return Err(ApiError::field(Code::InvalidRequest, other, detail).closing());
            }
        };
        let count = self.files(name);
        *count += 1;
        if *count <= max {
            return Ok(());
        }
        let detail = format!("at most {max} are taken in one call ({setting})");
        Err(ApiError::field(Code::BatchTooLarge, field, detail).closing())
    }

    async fn text(&mut self, head: &Disposition, field: Field<'_>) -> Result<Value, ApiError> {
        self.texts += 1;
        let max_parts = self.settings.limits.max_text_parts;
        if self.texts > max_parts {
            let detail = format!("more than {max_parts} text parts (limits.max_text_parts)");
            return Err(ApiError::new(Code::BatchTooLarge, detail).closing());
        }
        // An image value may be base64, and then as long as the body allows.
        let is_image = matches!(&*head.name, "image" | "images");
        let max = if is_image { usize::MAX } else { self.settings.input.max_text_bytes };
        let place = self.form.next_place(&head.name);
        let bytes = self.collect(field, max).await?.ok_or_else(|| {
            ApiError::field(Code::TextTooLong, &*place, format!("at most {max} bytes")).closing()
        })?;
        if head.foreign_charset && !bytes.is_ascii() {
            let detail = "text parts are read as UTF-8; send this one with charset=utf-8";
            return Err(ApiError::field(Code::InvalidRequest, &*place, detail));
        }
        String::from_utf8(bytes)
            .map(Value::Text)
            .map_err(|_| ApiError::field(Code::InvalidRequest, &*place, "text parts are UTF-8"))
    }

    /// A part's bytes, or `None` when there are more than `max`.
    async fn collect(&self, mut field: Field<'_>, max: usize) -> Result<Option<Vec<u8>>, ApiError> {
        let mut bytes = Vec::new();
        while let Some(piece) = field.chunk().await.map_err(|error| malformed(&error))? {
            self.head_bytes.store(0, Ordering::Relaxed);
            if bytes.len() + piece.len() > max {
                return Ok(None);
            }
            bytes.extend_from_slice(&piece);
        }
        self.head_bytes.store(0, Ordering::Relaxed);
        Ok(Some(bytes))
    }
}

/// Multer's reasons are all about the body's shape; its words are for programmers.
fn malformed(error: &multer::Error) -> ApiError {
    tracing::debug!(error = clipped(error), "malformed multipart body");
    ApiError::invalid(
        "the multipart body is malformed or incomplete; let the client library write it",
    )
    .closing()
}
