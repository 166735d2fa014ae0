//! Errors of fetching. The messages contain only what the client may know; the exact cause is only counted in metrics.

/// Why a URL was not fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The URL itself breaks a rule; no request was sent.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// The fetch failed at the other end. Possible causes are names that do not exist, names with an address that is
    /// not public, refused or slow connections, and wrong responses. All causes have the same message, so that the
    /// client cannot tell them apart.
    #[error(
        "cannot fetch the image; its host must be public and respond in time with status 200 and an image file within \
         the limits of /info; otherwise send the image's bytes"
    )]
    Unreachable,
    /// Too many fetches are in progress (`overloaded`).
    #[error("too many images are being fetched")]
    Overloaded,
    /// The request's own deadline passed before the file was fetched.
    #[error("the deadline passed while the image was being fetched")]
    DeadlineExceeded,
}

/// The rule that a URL breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// The URL is longer than 4096 bytes.
    #[error("the URL is too long; at most 4096 characters are accepted")]
    TooLong,
    /// The URL has a space, a control character or a backslash, which URL parsers interpret differently.
    #[error("the URL contains a space, a control character or a backslash; percent-encode it")]
    Characters,
    /// The text is not a URL.
    #[error("it is not a valid URL; send https://host/path")]
    Malformed,
    /// The scheme is not `https`. With `fetch.allow_http`, `http` is accepted as well.
    #[error("only https URLs are accepted (fetch.allow_http adds http)")]
    Scheme,
    /// The port is neither 80 nor 443.
    #[error("only ports 443 and 80 are allowed; leave the port out")]
    Port,
    /// The URL has a user name or a password.
    #[error("the URL contains a user name or a password; leave it out")]
    UserInfo,
    /// The URL has a fragment, which no server ever sees.
    #[error("the URL contains a fragment; leave out the # and everything after it")]
    Fragment,
    /// The host is not a plain DNS name.
    #[error(
        "the host is not a valid public DNS name; use letters, digits and hyphens between dots, no final dot"
    )]
    Host,
    /// The host is an address outside the public internet.
    #[error(
        "the host is an address outside the public internet; images are fetched from public hosts only"
    )]
    Address,
    /// The host does not match `fetch.allowed_hosts`.
    #[error("the host is not in the list of allowed hosts (fetch.allowed_hosts)")]
    NotListed,
}

/// Why a fetch failed. This is the value of the label `result` of `fetch_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// A rule rejects the URL, the target of a redirect, or an address that a name resolves to.
    Blocked,
    /// The connection or the whole fetch took too long.
    Timeout,
    /// The body has more bytes than an image file may have, or too many chunks.
    TooLarge,
    /// The response has a status other than 200, or a content encoding.
    Status,
    /// There were too many redirects, or a redirect had no valid target.
    Redirect,
    /// Any other failure, from name resolution to the last byte.
    Unreachable,
}

impl Failure {
    /// The label of a successful fetch.
    pub(super) const OK: &'static str = "ok";

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Timeout => "timeout",
            Self::TooLarge => "too_large",
            Self::Status => "status",
            Self::Redirect => "redirect",
            Self::Unreachable => "unreachable",
        }
    }
}
