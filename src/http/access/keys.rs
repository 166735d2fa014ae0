//! The set of keys that a server accepts. A secret is looked up in constant time, so that the time does not reveal how
//! close a guess was. `reload` reloads the key file; `middleware::authenticate` looks up secrets.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::{ApiKey, AuthSettings};
use crate::http::reload::{ApplyOutcome, Watched};

/// All keys that the server accepts. The keys from the file can be replaced while the server runs.
pub struct ApiKeys {
    /// Keys from the configuration itself, which never change.
    configured: Vec<ApiKey>,
    file: Option<PathBuf>,
    /// The keys of `configured` and of the file. A reload replaces the whole list, so a request never sees a mixture of
    /// old and new keys.
    current: RwLock<Arc<[ApiKey]>>,
}

impl ApiKeys {
    /// Creates the set of the keys in the configuration and the keys that the file contained at startup.
    pub fn new(settings: &AuthSettings) -> Self {
        let file = settings.keys_file.as_ref();
        let of_file = file.map(|file| file.keys.as_slice()).unwrap_or_default();
        Self {
            configured: settings.keys.clone(),
            file: file.map(|file| file.path.clone()),
            current: RwLock::new(settings.keys.iter().chain(of_file).cloned().collect()),
        }
    }

    /// Returns the key that has this secret. Takes constant time.
    ///
    /// The time does not depend on the bytes of the secret, because hashes are compared. It does not depend on the
    /// position of the right key either, because every key is compared.
    pub fn identify(&self, secret: &str) -> Option<ApiKey> {
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let keys = self.current();
        find(&keys, &digest, |key, presented| key.ct_eq(presented)).cloned()
    }

    fn current(&self) -> Arc<[ApiKey]> {
        // No code panics while it holds this lock, so a poisoned lock cannot occur.
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Watched for ApiKeys {
    fn name(&self) -> &'static str {
        "keys"
    }

    fn advice(&self) -> &'static str {
        "keeping the current ones: put at least one key into auth.keys_file, or stop the server if nobody may use \
         it"
    }

    fn paths(&self) -> Vec<&Path> {
        self.file.iter().map(PathBuf::as_path).collect()
    }

    fn apply(&self, contents: &[Vec<u8>]) -> Result<ApplyOutcome, String> {
        let Some(content) = contents.first() else { return Ok(ApplyOutcome::Unchanged) };
        let of_file = ApiKey::parse_file(content).map_err(|error| error.to_string())?;
        if of_file.iter().any(|key| self.configured.iter().any(|known| known.has_secret_of(key))) {
            return Err("one of its secrets is already in auth.keys".to_owned());
        }
        let keys: Arc<[ApiKey]> = self.configured.iter().cloned().chain(of_file).collect();
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if *current == keys {
            return Ok(ApplyOutcome::Unchanged);
        }
        let count = keys.len();
        *current = keys;
        Ok(ApplyOutcome::Changed(format!("{count} keys are accepted now")))
    }
}

/// Returns the key whose digest equals `digest`, as decided by `equal`. Compares every key, even after a match.
fn find<'a>(
    keys: &'a [ApiKey],
    digest: &[u8; 32],
    mut equal: impl FnMut(&[u8; 32], &[u8; 32]) -> Choice,
) -> Option<&'a ApiKey> {
    // `u64::MAX` is an index that no list reaches; it means "not found".
    let mut place = u64::MAX;
    for (index, key) in (0_u64..).zip(keys) {
        place.conditional_assign(&index, equal(key.digest(), digest));
    }
    keys.get(usize::try_from(place).unwrap_or(usize::MAX))
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKeys").field("file", &self.file).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::access::KeysFile;

    fn secret(index: usize) -> String {
        format!("secret-number-{index:04}")
    }

    fn keys(count: usize) -> Vec<ApiKey> {
        (0..count).map(|index| ApiKey::parse(&secret(index)).unwrap()).collect()
    }

    #[test]
    fn every_key_is_compared_at_whatever_position_the_right_one_is_and_if_there_is_none() {
        let keys = keys(9);
        for presented in [0, 4, 8, 9] {
            let mut compared = 0;
            let digest: [u8; 32] = Sha256::digest(secret(presented)).into();
            let found = find(&keys, &digest, |key, presented| {
                compared += 1;
                key.ct_eq(presented)
            });
            assert_eq!(compared, keys.len(), "{presented}");
            assert_eq!(found, keys.get(presented));
        }
    }

    fn with_file() -> ApiKeys {
        let keys_file = KeysFile { path: "keys".into(), keys: keys(1) };
        let configured = vec![ApiKey::parse("boss:secret-of-the-boss").unwrap()];
        ApiKeys::new(&AuthSettings {
            keys: configured,
            keys_file: Some(keys_file),
            failed_attempts_per_minute: 0,
        })
    }

    #[test]
    fn a_new_file_replaces_the_keys_of_the_old_one_and_no_others() {
        let keys = with_file();
        let content = format!("new:{}", secret(7)).into_bytes();
        assert!(matches!(keys.apply(std::slice::from_ref(&content)), Ok(ApplyOutcome::Changed(_))));
        assert_eq!(keys.apply(&[content]), Ok(ApplyOutcome::Unchanged));
        assert_eq!(keys.identify(&secret(7)).unwrap().id(), "new");
        assert_eq!(keys.identify("secret-of-the-boss").unwrap().id(), "boss");
        assert_eq!(keys.identify(&secret(0)), None);
    }

    #[test]
    fn a_broken_or_empty_file_leaves_every_key_in_place() {
        let keys = with_file();
        for content in ["", "# none", "nonsense", "x:secret-of-the-boss"] {
            assert!(keys.apply(&[content.as_bytes().to_vec()]).is_err(), "{content}");
            assert!(keys.identify(&secret(0)).is_some(), "{content}");
            assert!(keys.identify("secret-of-the-boss").is_some(), "{content}");
        }
    }
}
