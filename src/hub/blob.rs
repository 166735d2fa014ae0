//! One file into the cache: lock, resume, verify, rename, link. Whatever ends the process, the cache stays valid:
//! bytes gather in `<etag>.incomplete`, and only a whole, verified file gets the blob's name.

use std::path::Path;

use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::cache::{RepositoryCache, create_parent};
use super::client::{HubClient, Metadata, RemoteFile};
use super::progress::FileProgress;
use super::{HubError, Progress};

/// Makes `remote` a file of its snapshot. A file that is there already costs no request.
pub(super) async fn download(
    client: &HubClient,
    cache: &RepositoryCache,
    remote: RemoteFile<'_>,
    progress: &Progress,
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

/// Fills `partial` up to the file's size, over as many connections as it takes.
/// Attempts are counted from the last new byte, so a bad line is fine as long as it moves.
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

/// One connection's worth of bytes, behind those that are there.
async fn append(
    client: &HubClient,
    remote: RemoteFile<'_>,
    metadata: &Metadata,
    partial: &Path,
    bar: &FileProgress,
) -> Result<(), HubError> {
    let io = |action| HubError::io(action, partial);
    let mut file = tokio::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(partial)
        .await
        .map_err(io("open"))?;
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
                    format!("bytes from {offset} were asked for, the answer has {range:?}");
                return Err(HubError::BadAnswer { url: remote.to_string(), reason });
            }
        }
        // What is there does not fit what the hub has: the next attempt starts from nothing.
        StatusCode::RANGE_NOT_SATISFIABLE => {
            restart(&file, partial).await?;
            return Err(cut_short(remote, metadata, 0));
        }
        // A server that knows no ranges sends everything again.
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
    HubError::CutShort { file: remote.to_string(), got, size: metadata.size.unwrap_or(0) }
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

/// Compares size and, where the hub announced one, SHA-256. Damaged bytes are deleted: resuming them would never end well.
async fn verify(
    remote: RemoteFile<'_>,
    metadata: &Metadata,
    partial: &Path,
) -> Result<(), HubError> {
    let got = length(partial);
    if let Some(size) = metadata.size.filter(|&size| size != got) {
        std::fs::remove_file(partial).map_err(HubError::io("delete", partial))?;
        let reason = format!("{got} bytes arrived, {size} were announced");
        return Err(HubError::BadAnswer { url: remote.to_string(), reason });
    }
    let Some(expected) = metadata.sha256() else { return Ok(()) };
    let path = partial.to_owned();
    let actual = tokio::task::spawn_blocking(move || sha256(&path))
        .await
        .expect("hashing a file does not panic")?;
    if actual == expected {
        return Ok(());
    }
    std::fs::remove_file(partial).map_err(HubError::io("delete", partial))?;
    Err(HubError::WrongChecksum { file: remote.to_string(), expected: expected.to_owned(), actual })
}

fn sha256(path: &Path) -> Result<String, HubError> {
    use std::fmt::Write;

    let mut file = std::fs::File::open(path).map_err(HubError::io("open", path))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut HashWriter(&mut hash)).map_err(HubError::io("read", path))?;
    Ok(hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// Lets `io::copy` feed a hash.
struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
