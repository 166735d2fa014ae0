//! Why an image was not fetched. What the client may know stands in the words; the rest only in counters.

/// Why a URL was not fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The URL itself breaks a rule; nothing was asked of anybody.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// It went wrong out there. One text for everything: names that do not exist, names with an address that is not
    /// public, refused and slow connections, wrong answers. Who asks cannot tell one from another.
    #[error(
        "the image could not be fetched; its host must be public and answer in time with status 200 and an image file \
         within the limits of /info, or send the image's bytes"
    )]
    Unreachable,
    /// Too many fetches are in progress (`overloaded`).
    #[error("too many images are being fetched")]
    Overloaded,
    /// The request's own deadline passed first.
    #[error("the deadline passed while an image was fetched")]
    DeadlineExceeded,
}

/// The rule that a URL breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// Longer than what is read.
    #[error("the URL is too long; at most 4096 characters are read")]
    TooLong,
    /// Spaces, control characters, backslashes: read differently by different parsers.
    #[error("the URL holds a space, a control character or a backslash; percent-encode it")]
    Characters,
    /// No URL at all.
    #[error("it is no valid URL; send https://host/path")]
    Malformed,
    /// Neither `https` nor, where that is allowed, `http`.
    #[error("only https URLs are fetched (fetch.allow_http adds http)")]
    Scheme,
    /// Neither 80 nor 443.
    #[error("only ports 443 and 80 are fetched from; leave the port out")]
    Port,
    /// A user name or a password.
    #[error("the URL holds a user name or a password; leave it out")]
    UserInfo,
    /// A fragment, which no server ever sees.
    #[error("the URL holds a fragment; leave out the # and what follows")]
    Fragment,
    /// Not a name as they stand in the DNS.
    #[error(
        "the host is no name of the public DNS: letters, digits and hyphens between dots, no final dot"
    )]
    Host,
    /// An address that is not one of the public internet.
    #[error(
        "the host is an address outside the public internet; only public hosts are fetched from"
    )]
    Address,
    /// Not on the list.
    #[error(
        "the host is not on the list of those that images are fetched from (fetch.allowed_hosts)"
    )]
    NotListed,
}

/// What happened, as `fetch_total` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// A rule forbids it: of the URL, of a redirect's target, or of an address that a name stands for.
    Blocked,
    /// No connection, or no end, in time.
    Timeout,
    /// More bytes than an image file may have.
    TooLarge,
    /// Not a 200 with plain bytes.
    Status,
    /// A redirect too many, or one that leads nowhere.
    Redirect,
    /// Everything between the name and the last byte.
    Unreachable,
}

impl Failure {
    /// The label of a fetch that went well.
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
