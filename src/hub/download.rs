//! Resolves a hub id to a directory with a complete checkpoint: determines the commit and the files that are needed,
//! and downloads those that the cache does not have.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::cache::{RepositoryCache, is_commit};
use super::checkpoint::{
    PREPROCESSOR_WANTED, TOKENIZER_OPTIONS, TOKENIZER_WANTED, WEIGHTS, WEIGHTS_WANTED, read_index,
};
use super::client::{HubClient, Listing, RemoteFile};
use super::towers::Towers;
use super::{
    CheckpointFiles, CheckpointSource, DownloadProgress, HubError, HubSettings, HubSource, Retry,
    blob,
};

/// Returns the files of a model: searches a directory, or calls [`fetch`] for a hub id.
///
/// # Errors
/// Those of [`CheckpointFiles::resolve`] and of [`fetch`]; `EmbeddedModel` for a demo model.
pub async fn locate(
    source: &CheckpointSource,
    settings: &HubSettings,
    progress: &DownloadProgress,
) -> Result<CheckpointFiles, HubError> {
    match source {
        CheckpointSource::Directory(directory) => CheckpointFiles::resolve(directory),
        CheckpointSource::Hub(hub) => fetch(hub, settings, progress).await,
        CheckpointSource::Demo(name) => Err(HubError::EmbeddedModel { name }),
    }
}

/// Returns the path of one file of a repository. Downloads the file if it is not in the cache.
///
/// # Errors
/// Those of [`fetch`].
pub async fn fetch_file(
    source: &HubSource,
    file: &str,
    settings: &HubSettings,
    progress: &DownloadProgress,
) -> Result<PathBuf, HubError> {
    let cache = RepositoryCache::new(&settings.cache, &source.id);
    let cached = cache.commit(source).map(|commit| cache.snapshot(&commit).join(file));
    if let Some(path) = cached.filter(|path| path.is_file()) {
        return Ok(path);
    }
    if settings.offline {
        return Err(not_cached(source, settings, format!("{file} is missing")));
    }
    let client = HubClient::try_new(settings)?;
    let commit = client.listing(source).await?.commit;
    let remote = RemoteFile { id: &source.id, commit: &commit, file };
    blob::download(&client, &cache, remote, progress).await?;
    cache.write_ref(source.revision(), &commit)?;
    Ok(cache.snapshot(&commit).join(file))
}

/// Ensures that the checkpoint's files are in the cache and returns their paths. Downloads only what serving needs.
///
/// Sends no request if `offline` is set or if the requested commit is in the cache. If the hub cannot be reached, the
/// revision's last known commit is used, with a warning, because a server must be able to start while the hub is down.
///
/// # Errors
/// `Refused`, `NotFound`, `NotCached`, `MissingInRepository`, `Unreachable`, `UnexpectedStatus`, `UnexpectedResponse`,
/// `Interrupted`, `WrongChecksum`, `Client`, `Io`, `InvalidIndex`.
pub async fn fetch(
    source: &HubSource,
    settings: &HubSettings,
    progress: &DownloadProgress,
) -> Result<CheckpointFiles, HubError> {
    let cache = RepositoryCache::new(&settings.cache, &source.id);
    let cached = find_cached(&cache, source, settings);
    if settings.offline {
        return cached;
    }
    // A commit never changes, so a cached one needs no request. A branch or tag may have moved.
    if is_commit(source.revision())
        && let Ok(files) = cached
    {
        return Ok(files);
    }
    let client = HubClient::try_new(settings)?;
    let listing = match client.listing(source).await {
        Err(error) if error.is_transient() => {
            let Ok(files) = cached else { return Err(error) };
            tracing::warn!(model = %source, %error, cause = error.cause(), "the hub cannot be reached; using the cached revision");
            return Ok(files);
        }
        listing => listing?,
    };
    download_all(&client, &cache, source, &listing, progress).await?;
    cache.write_ref(source.revision(), &listing.commit)?;
    snapshot_files(&cache, &listing.commit)
}

/// Asks the hub once whether it has the repository at this revision, and lets this client read it.
///
/// # Errors
/// `Refused`, `NotFound`, `Unreachable`, `UnexpectedStatus`, `UnexpectedResponse`, `Client`.
pub async fn look_up(source: &HubSource, settings: &HubSettings) -> Result<(), HubError> {
    let once = Retry { attempts: 1, ..settings.retry };
    let client = HubClient::try_new(&HubSettings { retry: once, ..settings.clone() })?;
    client.listing(source).await.map(drop)
}

/// Returns the checkpoint in the cache if it is complete; otherwise `NotCached`, which says what is missing.
fn find_cached(
    cache: &RepositoryCache,
    source: &HubSource,
    settings: &HubSettings,
) -> Result<CheckpointFiles, HubError> {
    let commit = cache
        .commit(source)
        .ok_or_else(|| not_cached(source, settings, "it does not have this revision".to_owned()))?;
    snapshot_files(cache, &commit).map_err(|error| not_cached(source, settings, error.to_string()))
}

fn not_cached(source: &HubSource, settings: &HubSettings, reason: String) -> HubError {
    HubError::NotCached {
        id: source.id.clone(),
        revision: source.revision().to_owned(),
        cache: settings.cache.clone(),
        reason,
    }
}

fn snapshot_files(cache: &RepositoryCache, commit: &str) -> Result<CheckpointFiles, HubError> {
    let files = CheckpointFiles::resolve(&cache.snapshot(commit))?;
    Ok(CheckpointFiles { revision: Some(commit.to_owned()), ..files })
}

/// Downloads the needed files that are missing. The small files come first, so that a repository that is not a BLIP
/// checkpoint is rejected before gigabytes are downloaded.
async fn download_all(
    client: &HubClient,
    cache: &RepositoryCache,
    source: &HubSource,
    listing: &Listing,
    progress: &DownloadProgress,
) -> Result<(), HubError> {
    let missing = |missing| HubError::MissingInRepository {
        id: source.id.clone(),
        revision: source.revision().to_owned(),
        missing,
    };
    let wanted = Wanted::among(&listing.files).map_err(missing)?;
    let remote = |file| RemoteFile { id: &source.id, commit: &listing.commit, file };
    for file in &wanted.small {
        blob::download(client, cache, remote(file), progress).await?;
    }
    let config = cache.snapshot(&listing.commit).join("config.json");
    wanted.check(Towers::of(&config)).map_err(missing)?;
    blob::download(client, cache, remote(wanted.weights), progress).await?;
    if wanted.sharded {
        let index = cache.snapshot(&listing.commit).join(wanted.weights);
        for shard in read_index(&index)? {
            let remote = RemoteFile { id: &source.id, commit: &listing.commit, file: &shard };
            blob::download(client, cache, remote, progress).await?;
        }
    }
    Ok(())
}

/// The files of a repository that serving needs.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    small: Vec<&'static str>,
    /// Name of the weight file, or of the index of its shards.
    weights: &'static str,
    sharded: bool,
}

/// Files that hold a tokenizer, the preferred one first.
const TOKENIZERS: [&str; 2] = ["tokenizer.json", "vocab.txt"];
/// Files that hold the image preprocessing. If both exist, both are needed.
const PREPROCESSORS: [&str; 2] = ["preprocessor_config.json", "processor_config.json"];

impl Wanted {
    /// Picks the needed files from a listing. The error names the file that is missing. Whether the repository needs a
    /// tokenizer and image preprocessing is known only once its `config.json` is read; see [`check`](Self::check).
    fn among(files: &BTreeSet<String>) -> Result<Self, &'static str> {
        let has = |name: &&'static str| files.contains(*name);
        let mut small = vec!["config.json"];
        if !files.contains("config.json") {
            return Err("config.json");
        }
        small.extend(TOKENIZERS.into_iter().find(has));
        small.extend(TOKENIZER_OPTIONS.into_iter().filter(has));
        small.extend(PREPROCESSORS.into_iter().filter(has));
        let weights = WEIGHTS.iter().find(|layout| has(&layout.file)).ok_or(WEIGHTS_WANTED)?;
        Ok(Self { small, weights: weights.file, sharded: weights.sharded })
    }

    /// Checks that the files for these towers are there. The error names the file that is missing.
    fn check(&self, towers: Towers) -> Result<(), &'static str> {
        let has_any = |files: [&str; 2]| files.iter().any(|file| self.small.contains(file));
        if towers.text && !has_any(TOKENIZERS) {
            return Err(TOKENIZER_WANTED);
        }
        if towers.vision && !has_any(PREPROCESSORS) {
            return Err(PREPROCESSOR_WANTED);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(files: &[&str]) -> BTreeSet<String> {
        files.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_needed_files_are_wanted_and_safetensors_come_first() {
        let files = listing(&[
            ".gitattributes",
            "README.md",
            "added_tokens.json",
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "pytorch_model.bin",
            "special_tokens_map.json",
            "tf_model.h5",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        ]);
        assert_eq!(
            Wanted::among(&files),
            Ok(Wanted {
                small: vec![
                    "config.json",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "special_tokens_map.json",
                    "added_tokens.json",
                    "preprocessor_config.json"
                ],
                weights: "model.safetensors",
                sharded: false,
            })
        );
    }

    #[test]
    fn a_repository_without_weights_is_named_so() {
        let files = listing(&["config.json", "vocab.txt", "processor_config.json", "model.onnx"]);
        assert_eq!(Wanted::among(&files), Err(WEIGHTS_WANTED));
    }

    #[test]
    fn a_repository_needs_the_files_of_its_towers() {
        let wanted = |file| {
            let files = listing(&["config.json", "model.safetensors", file]);
            Wanted::among(&files).unwrap()
        };
        let (vision, text) = (wanted("processor_config.json"), wanted("vocab.txt"));
        let towers = |vision, text| Towers { vision, text };
        assert_eq!(vision.check(towers(true, false)), Ok(()));
        assert_eq!(vision.check(towers(true, true)), Err(TOKENIZER_WANTED));
        assert_eq!(text.check(towers(false, true)), Ok(()));
        assert_eq!(text.check(towers(true, true)), Err(PREPROCESSOR_WANTED));
    }

    #[test]
    fn tensorflow_weights_are_wanted_where_there_are_no_others() {
        let mut files =
            listing(&["config.json", "vocab.txt", "processor_config.json", "tf_model.h5"]);
        assert_eq!(Wanted::among(&files).unwrap().weights, "tf_model.h5");
        files.insert("pytorch_model.bin".to_owned());
        assert_eq!(Wanted::among(&files).unwrap().weights, "pytorch_model.bin");
    }
}
