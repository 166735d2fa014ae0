//! Downloads one file into the cache: lock, resume, verify, rename, link. However the process ends, the cache stays
//! valid: bytes are collected in `<etag>.incomplete`, and only a complete, verified file gets the name of the blob.

use std::io;
use std::path::Path;

use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::cache::{RepositoryCache, create_parent, open_no_link};
use super::client::{Checksum, HubClient, Metadata, RemoteFile};
use super::progress::FileProgress;
use super::{DownloadProgress, HubError};

/// Downloads `remote` into its snapshot. If the file is already there, sends no request.
pub(super) async fn download(
    client: &HubClient,
    cache: &RepositoryCache,
    remote: RemoteFile<'_>,
    progress: &DownloadProgress,
) -> Result<(), HubError> {
    if cache.snapshot(remote.commit).join(remote.file).exists() {
        return Ok(());
    }
    let metadata = client.metadata(remote).await?;
    let blob = cache.blob(&metadata.etag);
    let _lock = cache.lock(&metadata.etag).await?;
    if !blob.exists() {
        let partial = cache.partial(&metadata.etag);
        create_parent(&partial)?;
        let bar = progress.file(remote.file, metadata.size);
        gather(client, remote, &metadata, &partial, &bar).await?;
        verify(remote, &metadata, &partial).await?;
        std::fs::rename(&partial, &blob).map_err(HubError::io("rename", &partial))?;
        bar.finish();
    }
    cache.link(remote.commit, remote.file, &metadata.etag)
}

/// Appends to `partial` until it has the file's size, over any number of connections. Each new byte resets the count of
/// failed attempts, so that a bad connection is tolerated as long as it makes progress.
async fn gather(
    client: &HubClient,
    remote: RemoteFile<'_>,
    metadata: &Metadata,
    partial: &Path,
    bar: &FileProgress,
) -> Result<(), HubError> {
    let retry = client.retry();
    let mut failures = 0;
    loop {
        let before = length(partial);
        match append(client, remote, metadata, partial, bar).await {
            Err(error) if error.is_transient() => {
                failures = if length(partial) > before { 1 } else { failures + 1 };
                if failures >= retry.attempts {
                    return Err(error);
                }
                tracing::warn!(%error, cause = error.cause(), file = remote.file, failures, "download interrupted; resuming");
                tokio::time::sleep(retry.pause(failures)).await;
            }
            done => return done,
        }
    }
}

/// Opens one connection and appends the bytes that it delivers to `partial`.
async fn append(
    client: &HubClient,
    remote: RemoteFile<'_>,
    metadata: &Metadata,
    partial: &Path,
    bar: &FileProgress,
) -> Result<(), HubError> {
    let io = |action| HubError::io(action, partial);
    let mut file = tokio::fs::File::from_std(open_no_link(partial, |options| {
        options.create(true).append(true)
    })?);
    let mut offset = file.metadata().await.map_err(io("read"))?.len();
    match metadata.size {
        Some(size) if offset == size => return Ok(()),
        Some(size) if offset > size => offset = restart(&file, partial).await?,
        _ => {}
    }
    let mut response = client.open(remote, offset).await?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            if !range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-"))) {
                let reason =
                    format!("bytes from {offset} were requested, the response has {range:?}");
                return Err(HubError::UnexpectedResponse { url: remote.to_string(), reason });
            }
        }
        // The bytes on disk do not match the hub's file, so the next attempt starts from the first byte.
        StatusCode::RANGE_NOT_SATISFIABLE => {
            restart(&file, partial).await?;
            return Err(cut_short(remote, metadata, 0));
        }
        // A server without support for ranges sends the whole file again.
        _ if offset > 0 => offset = restart(&file, partial).await?,
        _ => {}
    }
    bar.at(offset);
    loop {
        let chunk = match response.chunk().await {
            Ok(chunk) => chunk,
            Err(error) => {
                file.flush().await.map_err(io("write"))?;
                let source = error.without_url();
                return Err(HubError::Unreachable { url: remote.to_string(), source });
            }
        };
        let Some(chunk) = chunk else { break };
        file.write_all(&chunk).await.map_err(io("write"))?;
        offset += chunk.len() as u64;
        bar.at(offset);
    }
    file.flush().await.map_err(io("write"))?;
    file.sync_all().await.map_err(io("write"))?;
    match metadata.size {
        Some(size) if offset < size => Err(cut_short(remote, metadata, offset)),
        _ => Ok(()),
    }
}

async fn restart(file: &tokio::fs::File, partial: &Path) -> Result<u64, HubError> {
    file.set_len(0).await.map_err(HubError::io("truncate", partial))?;
    Ok(0)
}

fn cut_short(remote: RemoteFile<'_>, metadata: &Metadata, got: u64) -> HubError {
    HubError::Interrupted { file: remote.to_string(), got, size: metadata.size.unwrap_or(0) }
}

/// Returns the length of a file in bytes; 0 if there is no file.
fn length(path: &Path) -> u64 {
    path.symlink_metadata().map_or(0, |metadata| metadata.len())
}

/// A function that computes the checksum of a file, in hexadecimal digits.
type Hash = fn(&Path) -> Result<String, HubError>;

/// Functions that compute the SHA-256 checksums that a hub may send.
const SHA256_CANDIDATES: &[Hash] = &[sha256];
/// Functions that compute the SHA-1 checksums that a hub may send. The Hugging Face hub uses the first.
const SHA1_CANDIDATES: &[Hash] = &[git_sha1, sha1];

/// Compares the file with the size and the checksum that the hub sent, if it sent them. If one differs, deletes the
/// file, because resuming a damaged download can never succeed.
async fn verify(
    remote: RemoteFile<'_>,
    metadata: &Metadata,
    partial: &Path,
) -> Result<(), HubError> {
    let got = length(partial);
    if let Some(size) = metadata.size.filter(|&size| size != got) {
        std::fs::remove_file(partial).map_err(HubError::io("delete", partial))?;
        let reason = format!("{got} bytes were received, {size} were announced");
        return Err(HubError::UnexpectedResponse { url: remote.to_string(), reason });
    }
    let Some(checksum) = metadata.checksum() else {
        tracing::warn!(file = %remote, etag = metadata.etag, "the hub announces no checksum for this file; it is not verified");
        return Ok(());
    };
    let (algorithm, hashes, expected): (_, &'static [Hash], _) = match checksum {
        Checksum::Sha256(expected) => ("SHA-256", SHA256_CANDIDATES, expected),
        Checksum::Sha1(expected) => ("git SHA-1", SHA1_CANDIDATES, expected),
    };
    let path = partial.to_owned();
    let found = tokio::task::spawn_blocking(move || {
        hashes.iter().map(|hash| hash(&path)).collect::<Result<Vec<_>, _>>()
    });
    let found = found.await.expect("hashing a file does not panic")?;
    if found.iter().any(|actual| actual == expected) {
        return Ok(());
    }
    let actual = found.into_iter().next().unwrap_or_default();
    std::fs::remove_file(partial).map_err(HubError::io("delete", partial))?;
    Err(HubError::WrongChecksum {
        file: remote.to_string(),
        algorithm,
        expected: expected.to_owned(),
        actual,
    })
}

fn sha256(path: &Path) -> Result<String, HubError> {
    hash_file(Sha256::new(), path)
}

/// Computes the blob id that git gives to a file: the SHA-1 of a header with the file's length, followed by the
/// content.
fn git_sha1(path: &Path) -> Result<String, HubError> {
    hash_file(Sha1::new_with_prefix(format!("blob {}\0", length(path))), path)
}

fn sha1(path: &Path) -> Result<String, HubError> {
    hash_file(Sha1::new(), path)
}

/// Hashes the file and returns the result in hexadecimal digits.
fn hash_file<D: Digest>(mut hash: D, path: &Path) -> Result<String, HubError> {
    use std::fmt::Write;

    let mut file = open_no_link(path, |options| options.read(true))?;
    io::copy(&mut file, &mut HashWriter(&mut hash)).map_err(HubError::io("read", path))?;
    Ok(hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// Lets `io::copy` write into a hash.
struct HashWriter<'a, D>(&'a mut D);

impl<D: Digest> io::Write for HashWriter<'_, D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
