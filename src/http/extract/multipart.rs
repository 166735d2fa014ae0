//! Parses `multipart/form-data` bodies as they arrive, with a size limit for each part. `extract::read` calls this.
//!
//! A part that has a file name or an image type contains an image. Every other part contains text, whatever its type:
//! even a part of type `application/json` is not parsed as JSON. An empty part without a file name means that the field
//! is absent. A part with a file name is an image even if it has no bytes, so that the images after it keep their places.
//!
//! Between two parts, multer buffers the bytes that have arrived, and searches the whole buffer again whenever more
//! bytes arrive. Without limits, this would take quadratic time. Therefore this file limits the number of bytes before
//! the first boundary and in the header of a part, and passes multer one piece at a time.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream;
use multer::{Field, Multipart};

use super::body::{BodyReader, make_room};
use super::disposition::Disposition;
use super::form::{Form, SEVERAL_IMAGES};
use super::request::Request;
use super::scalar::FormValue;
use crate::http::error::{ApiError, Code};
use crate::http::settings::HttpSettings;
use crate::telemetry::logging::clipped;

/// Maximum length of a field name in bytes. All known names are shorter.
const MAX_NAME_BYTES: usize = 64;

/// List fields that clients also send to endpoints that do not have them. Such an endpoint rejects the field as
/// unknown, but only after it has read the whole body. If a value of the field causes an error before that, the error
/// names the value as an item of a list, such as `texts[1]`.
const LISTS_OF_OTHER_ENDPOINTS: [&str; 5] =
    ["images", "texts", "questions", "candidates", "scores"];

/// Maximum number of bytes in the header of a part, or before the first boundary. Reading fails once more bytes than
/// this have arrived. Browsers and client libraries write less than 1 KiB.
const MAX_PART_HEAD_BYTES: usize = 64 << 10;

/// Reads and parses a multipart body.
///
/// # Errors
/// `invalid_request`, with the field; `payload_too_large`, `text_too_long`, `batch_too_large`; the errors of
/// [`BodyReader::next`].
pub(super) async fn parse<R: Request>(
    boundary: &str,
    reader: &mut BodyReader<'_>,
    settings: &HttpSettings,
) -> Result<R, ApiError> {
    let head_bytes = &AtomicUsize::new(0);
    let form = {
        let pieces = stream::unfold((&mut *reader, false), |(reader, again)| async move {
            if again {
                // Multer reads all pieces that are ready before it parses any of them. Return `Pending` after each
                // piece, so that multer parses the piece before it reads the next one.
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
        let mut parts = Parts::new::<R>(settings, head_bytes);
        parts.read(Multipart::new(pieces, boundary)).await.map(|()| parts.form)
    };
    // If reading failed, return the cause: it says more than the parse error that follows from it.
    if let Some(failure) = reader.failure.take() {
        return Err(failure);
    }
    let form = form?;
    // Read the bytes after the last boundary, although they are ignored: a connection with unread bytes cannot be
    // reused.
    while reader.next().await?.is_some() {}
    super::json::parse_form(form)
}

/// Returns the next piece of the body; `None` at the end. Fails if more than [`MAX_PART_HEAD_BYTES`] have arrived since
/// the end of the previous part's content, or since the beginning of the body.
async fn next_piece(
    reader: &mut BodyReader<'_>,
    head_bytes: &AtomicUsize,
) -> Result<Option<bytes::Bytes>, ApiError> {
    if head_bytes.load(Ordering::Relaxed) > MAX_PART_HEAD_BYTES {
        let detail = format!(
            "the header of a part, or the text before the first boundary, exceeds {MAX_PART_HEAD_BYTES} bytes; \
             let the client library write the body"
        );
        return Err(ApiError::invalid(detail).close_connection());
    }
    let piece = reader.next().await?;
    head_bytes.fetch_add(piece.as_ref().map_or(0, bytes::Bytes::len), Ordering::Relaxed);
    Ok(piece)
}

/// The parts that have been read so far, with a counter for each kind of part.
struct Parts<'a> {
    form: Form,
    /// Number of files named `image` in a batch call. Each is one input.
    image_files: usize,
    /// Number of all other files: those named `images`, and those named `image` in a single call.
    list_files: usize,
    texts: usize,
    batch: bool,
    /// True if the request has a list field of this name.
    has_list: fn(&str) -> bool,
    settings: &'a HttpSettings,
    /// Number of bytes that have arrived since the end of the previous part's content; shared with [`next_piece`].
    head_bytes: &'a AtomicUsize,
}

impl<'a> Parts<'a> {
    fn new<R: Request>(settings: &'a HttpSettings, head_bytes: &'a AtomicUsize) -> Self {
        let form = if R::BATCH { Form::of_batch() } else { Form::default() };
        Self {
            form,
            image_files: 0,
            list_files: 0,
            texts: 0,
            batch: R::BATCH,
            has_list: R::is_list,
            settings,
            head_bytes,
        }
    }

    async fn read(&mut self, mut multipart: Multipart<'_>) -> Result<(), ApiError> {
        while let Some(field) = multipart.next_field().await.map_err(|error| malformed(&error))? {
            self.head_bytes.store(0, Ordering::Relaxed);
            // Do not use the parser of multer: it ignores a file name that is not UTF-8.
            let head = Disposition::of(field.headers());
            let Some(head) = head.filter(|head| !head.name.is_empty()) else {
                return Err(ApiError::invalid("each part of a multipart body needs a field name"));
            };
            if head.name.len() > MAX_NAME_BYTES {
                return Err(ApiError::invalid(format!(
                    "the field name of a part has {} bytes; at most {MAX_NAME_BYTES} are allowed",
                    head.name.len()
                )));
            }
            let value = if head.is_file() {
                self.file(&head, field).await?
            } else {
                self.text(&head, field).await?
            };
            let name = head.name;
            self.form.push(&name, value);
        }
        Ok(())
    }

    async fn file(&mut self, head: &Disposition, field: Field<'_>) -> Result<FormValue, ApiError> {
        let name = head.name.as_str();
        self.count_file(name)?;
        let max = self.settings.input.max_image_bytes;
        let Some(bytes) = self.collect(field, max).await? else {
            return Err(super::image_file_too_large(&self.next_path(name), max));
        };
        if bytes.is_empty() && !head.names_file() {
            // An HTML form sends an empty file without a name for a file input without a selection. The field is absent.
            *self.files(name) -= 1;
            return Ok(FormValue::Text(String::new()));
        }
        Ok(FormValue::File(bytes.into()))
    }

    /// Returns the path by which error messages refer to the next value of a field.
    fn next_path(&self, name: &str) -> String {
        let is_list = (self.has_list)(name) || LISTS_OF_OTHER_ENDPOINTS.contains(&name);
        self.form.next_path(name, is_list)
    }

    /// Returns the counter for files with this name.
    fn files(&mut self, name: &str) -> &mut usize {
        if self.batch && name == "image" { &mut self.image_files } else { &mut self.list_files }
    }

    /// Counts a file. If there are too many, returns an error with the same field and limit as for JSON.
    fn count_file(&mut self, name: &str) -> Result<(), ApiError> {
        let limits = &self.settings.limits;
        let has_images = (self.has_list)("images");
        let takes_one = !self.batch && !has_images;
        let (field, max, setting) = match name {
            "image" if self.batch => ("inputs", limits.max_batch_inputs, "limits.max_batch_inputs"),
            // A repeated `image` in a single call is rejected later, with a hint to use `images` or /batch.
            "image" | "images" => ("images", limits.max_images, "limits.max_images"),
            other => {
                let several = match (self.batch, has_images) {
                    (true, _) => " (repeated, for several inputs)",
                    (false, true) => " (or images, repeated, for several)",
                    (false, false) => "; to send several, use this path followed by /batch",
                };
                let detail = format!("a file must be an image, in a part named image{several}");
                return Err(ApiError::field(Code::InvalidRequest, other, detail).close_connection());
            }
        };
        let count = self.files(name);
        *count += 1;
        if *count <= max {
            return Ok(());
        }
        if takes_one {
            let detail = format!("given more than {max} times; {SEVERAL_IMAGES}");
            return Err(ApiError::field(Code::InvalidRequest, name, detail).close_connection());
        }
        let detail = format!("at most {max} are allowed per request ({setting})");
        Err(ApiError::field(Code::BatchTooLarge, field, detail).close_connection())
    }

    async fn text(&mut self, head: &Disposition, field: Field<'_>) -> Result<FormValue, ApiError> {
        self.texts += 1;
        let max_parts = self.settings.limits.max_text_parts;
        if self.texts > max_parts {
            let detail = format!("more than {max_parts} text parts (limits.max_text_parts)");
            return Err(ApiError::new(Code::BatchTooLarge, detail).close_connection());
        }
        // An image that is sent as base64 text is bounded only by the size limit of the body.
        let is_image = matches!(&*head.name, "image" | "images");
        let max = if is_image { usize::MAX } else { self.settings.input.max_text_bytes };
        let place = self.next_path(&head.name);
        let bytes = self.collect(field, max).await?.ok_or_else(|| {
            ApiError::field(Code::TextTooLong, &*place, format!("at most {max} bytes"))
                .close_connection()
        })?;
        if head.foreign_charset && !bytes.is_ascii() {
            let detail =
                "text parts are read as UTF-8; encode this one as UTF-8 and declare charset=utf-8";
            return Err(ApiError::field(Code::InvalidRequest, &*place, detail));
        }
        String::from_utf8(bytes)
            .map(FormValue::Text)
            .map_err(|_| ApiError::field(Code::InvalidRequest, &*place, "is not valid UTF-8"))
    }

    /// Returns the bytes of a part; `None` if there are more than `max`.
    async fn collect(&self, mut field: Field<'_>, max: usize) -> Result<Option<Vec<u8>>, ApiError> {
        let mut bytes = Vec::new();
        while let Some(piece) = field.chunk().await.map_err(|error| malformed(&error))? {
            self.head_bytes.store(0, Ordering::Relaxed);
            if bytes.len() + piece.len() > max {
                return Ok(None);
            }
            make_room(&mut bytes, piece.len())?;
            bytes.extend_from_slice(&piece);
        }
        self.head_bytes.store(0, Ordering::Relaxed);
        Ok(Some(bytes))
    }
}

/// Converts a multer error into an error for the client. All multer errors concern the syntax of the body and are
/// worded for programmers, so the message goes only to the log.
fn malformed(error: &multer::Error) -> ApiError {
    tracing::debug!(error = clipped(error), "malformed multipart body");
    ApiError::invalid(
        "the multipart body is malformed or incomplete; let the client library write it",
    )
    .close_connection()
}
