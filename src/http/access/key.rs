//! One API key: the id of its owner and the hash of its secret. The secret itself is not stored.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::task::Scope;

/// Minimum length of a secret in characters. Shorter secrets can be guessed.
const MIN_SECRET_LENGTH: usize = 16;
const MAX_SECRET_LENGTH: usize = 256;
const MAX_ID_LENGTH: usize = 64;

/// An API key. Keys with the same id belong to one owner: they share images and limits. For example, an old key and the
/// key that replaces it have the same id and different secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    id: Arc<str>,
    scope: Scope,
    /// SHA-256 hash of the secret.
    digest: [u8; 32],
}

/// Why a text is not an API key. The message never contains the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyError {
    /// The secret is too short or too long, or has a character that is not allowed.
    #[error("a secret must have 16 to 256 characters: letters, digits and -._~+/=")]
    Secret,
    /// The part before the colon is not a valid id.
    #[error("an id, before the colon, must have 1 to 64 characters: letters, digits and ._-")]
    Id,
}

/// Why a file of keys is rejected. The message names the line, but never contains its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyFileError {
    /// The file is not UTF-8 text.
    #[error("it is not valid UTF-8")]
    Encoding,
    /// A line is not a valid key.
    #[error("line {line}: {reason}")]
    Line {
        /// Number of the line, counted from 1.
        line: usize,
        /// Why the line is not a key.
        reason: ApiKeyError,
    },
    /// A secret occurs twice, so its owner would be ambiguous.
    #[error("line {line}: this secret is already on an earlier line")]
    Repeated {
        /// Number of the line on which the secret occurs again, counted from 1.
        line: usize,
    },
    /// The file has only comments and blank lines.
    #[error("it contains no key")]
    Empty,
}

impl ApiKey {
    /// Parses `id:secret`, or a secret alone. In the second case, the id is the first 12 hexadecimal digits of the
    /// secret's hash.
    ///
    /// # Errors
    /// If the text has neither form, or if its id or its secret is not valid.
    pub fn parse(text: &str) -> Result<Self, ApiKeyError> {
        let (id, secret) = match text.split_once(':') {
            Some((id, secret)) => (Some(id), secret),
            None => (None, text),
        };
        let is_secret = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        let length = MIN_SECRET_LENGTH..=MAX_SECRET_LENGTH;
        if !length.contains(&secret.len()) || !secret.bytes().all(is_secret) {
            return Err(ApiKeyError::Secret);
        }
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let is_id = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        match id {
            Some(id) if (1..=MAX_ID_LENGTH).contains(&id.len()) && id.bytes().all(is_id) => {
                let scope = scope(&Sha256::digest(id).into());
                Ok(Self { id: id.into(), scope, digest })
            }
            Some(_) => Err(ApiKeyError::Id),
            None => {
                let [a, b, c, d, e, f, ..] = digest;
                let id = format!("{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}");
                // Hash the digest again, so that the scope reveals no part of the secret's hash.
                let scope = scope(&Sha256::digest(digest).into());
                Ok(Self { id: id.into(), scope, digest })
            }
        }
    }

    /// Parses the content of a key file: one key per line; `#` starts a comment.
    ///
    /// # Errors
    /// If a line is not a key, a secret occurs twice, or there is no key.
    pub fn parse_file(content: &[u8]) -> Result<Vec<Self>, ApiKeyFileError> {
        let text = std::str::from_utf8(content).map_err(|_| ApiKeyFileError::Encoding)?;
        let mut keys: Vec<Self> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let (line, key) = (index + 1, line.split('#').next().unwrap_or_default().trim());
            if key.is_empty() {
                continue;
            }
            let key = Self::parse(key).map_err(|reason| ApiKeyFileError::Line { line, reason })?;
            if keys.iter().any(|known| known.has_secret_of(&key)) {
                return Err(ApiKeyFileError::Repeated { line });
            }
            keys.push(key);
        }
        if keys.is_empty() { Err(ApiKeyFileError::Empty) } else { Ok(keys) }
    }

    /// Returns the id of the key's owner, which appears in the log.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the scope of images and caches that requests with this key use.
    pub(crate) fn scope(&self) -> Scope {
        self.scope
    }

    pub(crate) fn shared_id(&self) -> Arc<str> {
        Arc::clone(&self.id)
    }

    pub(super) fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// True if both keys have the same secret.
    pub fn has_secret_of(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Returns the scope of an owner: the number in the first 8 bytes of `digest`. The scope is never 0, because 0 is
/// [`Scope::EVERYONE`].
fn scope(digest: &[u8; 32]) -> Scope {
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    Scope(u64::from_le_bytes(first).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "secret-of-client-a";
    const B: &str = "secret-of-client-b";

    #[test]
    fn a_key_has_the_id_before_its_colon_or_one_from_its_hash() {
        let named = ApiKey::parse(&format!("team-1:{A}")).unwrap();
        assert_eq!(named.id(), "team-1");
        let unnamed = ApiKey::parse(A).unwrap();
        assert_eq!(unnamed.id().len(), 12);
        assert!(unnamed.has_secret_of(&named));
        assert_ne!(unnamed.scope(), named.scope());
        assert!(!format!("{named:?} {unnamed:?}").contains(A));
    }

    #[test]
    fn secrets_of_one_id_share_a_scope_and_others_do_not() {
        let key = |text: &str| ApiKey::parse(text).unwrap();
        let [old, new] = [A, B].map(|secret| key(&format!("a:{secret}")).scope());
        assert_eq!(old, new);
        let others = [key(&format!("b:{A}")), key(A), key(B)];
        for other in &others {
            assert_ne!(other.scope(), old, "{other:?}");
            assert_ne!(other.scope(), Scope::EVERYONE);
        }
        assert_ne!(others[1].scope(), others[2].scope());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "short", "(hidden)", &format!("{A} {A}"), &"x".repeat(257), "a:", "a:b:c"]
        {
            assert_eq!(ApiKey::parse(text), Err(ApiKeyError::Secret), "{text}");
        }
        for id in ["", "a b", "a/b", &"x".repeat(65)] {
            assert_eq!(ApiKey::parse(&format!("{id}:{A}")), Err(ApiKeyError::Id), "{id}");
        }
    }

    #[test]
    fn a_file_has_one_key_a_line_with_comments_and_blank_lines() {
        let file = format!("# clients\n\na:{A} # since May\r\n  {B}\n");
        let keys = ApiKey::parse_file(file.as_bytes()).unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[0].id(), "a");
        assert!(keys[1].has_secret_of(&ApiKey::parse(B).unwrap()));
    }

    #[test]
    fn a_broken_file_names_its_line_and_not_its_text() {
        let cases: [(&[u8], &str); 4] = [
            (b"# nothing\n\n", "it contains no key"),
            (b"a:secret-of-client-a\nb:oops oops oops oops\n", "line 2"),
            (b"secret-of-client-a\nb:secret-of-client-a\n", "line 2"),
            (b"\xff\xfe", "UTF-8"),
        ];
        for (content, says) in cases {
            let error = ApiKey::parse_file(content).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("oops"), "{error}");
        }
    }
}
