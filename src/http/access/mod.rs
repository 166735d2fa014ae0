//! Who may ask, and how often: API keys, rate limits, the client's address behind proxies.
//!
//! - [`ApiKey`], [`ApiKeys`]: keys as hashes, compared in constant time, some of them from a file that is watched.
//! - `bucket`: how often one caller may do something, for a bounded number of callers.
//! - `client`: the address that a request came from.
//! - `document`: what all of this adds to the OpenAPI document.
//! - `settings`: what `config` fills.
//!
//! The layers that ask here are `middleware::{client, authenticate, rate_limit}`. All of it is off by default.

pub(crate) mod bucket;
pub(crate) mod client;
pub(crate) mod document;
mod key;
mod keys;
mod settings;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::Extensions;
pub use key::{ApiKey, ApiKeyError, ApiKeyFileError};
pub use keys::ApiKeys;
pub use settings::{AuthSettings, KeysFile, RateLimitSettings};

use self::bucket::{Allowance, Buckets, Rate};
use self::client::{ClientAddress, Network};
use super::error::{ApiError, Code};
use super::middleware::context::RequestContext;
use crate::fairness::ClientId;
use crate::task::Scope;

/// Failed attempts that an address has at once, before the rate of the setting holds.
const FAILED_ATTEMPTS_BURST: u32 = 20;

/// True for the routes that probes ask: they need no key and have no limit.
pub(crate) fn is_open(route: &str) -> bool {
    ["/health", "/health/live", "/health/ready"].contains(&route)
}

/// True for the routes that need no key: those of probes, and the documents with their page, which are no secret.
pub(crate) fn is_public(route: &str) -> bool {
    is_open(route) || route == "/" || route.starts_with("/docs") || route.starts_with("/openapi")
}

/// What the layers ask.
pub(crate) struct Access {
    /// The keys, where there are any.
    keys: Option<Arc<ApiKeys>>,
    /// Wrong keys, by address.
    failures: Option<Buckets<Network>>,
    /// Requests, by key or address.
    requests: Option<Buckets<Caller>>,
    /// Makes a number of a caller, with keys of its own: nobody can choose an address that meets another's number.
    numbers: RandomState,
}

/// Whose requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// Everyone with this key.
    Key(Scope),
    /// Everyone at this address, where there are no keys.
    Address(Network),
}

impl Caller {
    /// The key that a request came with, else the address.
    pub(crate) fn of(context: &RequestContext, address: ClientAddress) -> Self {
        match context.notes().owner {
            Some(owner) => Self::Key(owner.scope),
            None => Self::Address(Network::of(address.0)),
        }
    }
}

impl Access {
    /// What the settings ask for.
    pub(crate) fn new(auth: Option<&AuthSettings>, limit: Option<RateLimitSettings>) -> Self {
        let failures = auth.and_then(|auth| Rate::per_minute(auth.failed_attempts_per_minute));
        let requests = limit
            .and_then(|limit| Some((Rate::per_second(limit.requests_per_second)?, limit.burst)));
        Self {
            keys: auth.map(|auth| Arc::new(ApiKeys::new(auth))),
            failures: failures.map(|rate| Buckets::new(rate, FAILED_ATTEMPTS_BURST)),
            requests: requests.map(|(rate, burst)| Buckets::new(rate, burst)),
            numbers: RandomState::new(),
        }
    }

    /// The keys; `None` when everyone may ask.
    pub(crate) fn keys(&self) -> Option<&Arc<ApiKeys>> {
        self.keys.as_ref()
    }

    /// True when requests are limited.
    pub(crate) fn limits_requests(&self) -> bool {
        self.requests.is_some()
    }

    /// The key of this secret.
    ///
    /// A right secret always passes, whatever came from its address before: many clients may share one (a proxy, NAT),
    /// and one of them with wrong keys must not lock the others out. That a right guess is told at full speed helps
    /// nobody: a secret has 16 characters at least.
    ///
    /// # Errors
    /// `unauthorized`; `rate_limited` instead where the address has sent too many wrong keys.
    pub(crate) fn authenticate(
        &self,
        keys: &ApiKeys,
        secret: Option<&str>,
        from: Network,
        now: Instant,
    ) -> Result<ApiKey, ApiError> {
        if let Some(key) = secret.and_then(|secret| keys.identify(secret)) {
            return Ok(key);
        }
        let wait = self.failures.as_ref().and_then(|failures| match secret {
            Some(_) => failures.take(from, now).err(),
            // No guess: it costs nothing.
            None => failures.wait(&from, now),
        });
        if let Some(wait) = wait {
            let detail = "too many wrong API keys from this address; send a right one, or wait";
            return Err(limited(detail, wait));
        }
        let detail = match secret {
            Some(_) => "the API key is not one of this server's; ask its operator for one",
            None => "this server wants an API key; send the header authorization: Bearer KEY",
        };
        Err(ApiError::new(Code::Unauthorized, detail))
    }

    /// Whose request it is, for turns and shares: its key's, else its address's.
    pub(crate) fn client_of(&self, extensions: &Extensions, context: &RequestContext) -> ClientId {
        let address = extensions.get().copied().unwrap_or(ClientAddress(None));
        ClientId(self.numbers.hash_one(Caller::of(context, address)))
    }

    /// What a caller has left of its rate; `None` where there is no limit.
    pub(crate) fn allowance(&self, caller: Caller, now: Instant) -> Option<Allowance> {
        self.requests.as_ref().map(|requests| requests.allowance(&caller, now))
    }

    /// Counts a request.
    ///
    /// # Errors
    /// `rate_limited`.
    pub(crate) fn admit(&self, caller: Caller, now: Instant) -> Result<(), ApiError> {
        let Some(requests) = &self.requests else { return Ok(()) };
        requests.take(caller, now).map_err(|wait| {
            let whose = match caller {
                Caller::Key(_) => "with this API key",
                Caller::Address(_) => "from this address",
            };
            limited(format!("too many requests {whose}; wait, then go on more slowly"), wait)
        })
    }
}

fn limited(detail: impl Into<std::borrow::Cow<'static, str>>, wait: Duration) -> ApiError {
    ApiError::new(Code::RateLimited, detail).retry_after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRONG: Option<&str> = Some("wrong-wrong-wrong");

    fn access(failed_attempts_per_minute: u32) -> Access {
        let keys = vec![ApiKey::parse("a:right-right-right-a").unwrap()];
        let auth = AuthSettings { keys, keys_file: None, failed_attempts_per_minute };
        Access::new(Some(&auth), None)
    }

    fn network(last: u8) -> Network {
        Network::of(Some([192, 0, 2, last].into()))
    }

    #[test]
    fn an_address_that_guessed_too_often_waits_and_right_keys_and_other_addresses_do_not() {
        let access = access(60);
        let keys = access.keys().unwrap();
        let now = Instant::now();
        let ask = |secret, last, now| {
            access.authenticate(keys, secret, network(last), now).map_err(|error| error.code)
        };
        for _ in 0..FAILED_ATTEMPTS_BURST {
            assert_eq!(ask(WRONG, 1, now).unwrap_err(), Code::Unauthorized);
        }
        let right = Some("right-right-right-a");
        assert_eq!(ask(WRONG, 1, now).unwrap_err(), Code::RateLimited);
        assert_eq!(ask(None, 1, now).unwrap_err(), Code::RateLimited);
        assert_eq!(ask(right, 1, now).unwrap().id(), "a");
        assert_eq!(ask(WRONG, 2, now).unwrap_err(), Code::Unauthorized);
        // A right key takes no token and gives none.
        assert_eq!(ask(WRONG, 1, now).unwrap_err(), Code::RateLimited);
        let later = now + Duration::from_secs(1);
        assert_eq!(ask(None, 1, later).unwrap_err(), Code::Unauthorized);
        assert_eq!(ask(WRONG, 1, later).unwrap_err(), Code::Unauthorized);
        assert_eq!(ask(WRONG, 1, later).unwrap_err(), Code::RateLimited);
    }

    #[test]
    fn a_request_without_a_key_is_no_guess_and_right_keys_cost_nothing() {
        let access = access(60);
        let keys = access.keys().unwrap();
        let now = Instant::now();
        for secret in [None, Some("right-right-right-a")].repeat(100) {
            let asked = access.authenticate(keys, secret, network(1), now);
            assert_ne!(asked.map_err(|error| error.code), Err(Code::RateLimited));
        }
    }

    #[test]
    fn zero_counts_no_failures() {
        let access = access(0);
        let keys = access.keys().unwrap();
        for _ in 0..100 {
            let refused = access.authenticate(keys, WRONG, network(1), Instant::now());
            assert_eq!(refused.unwrap_err().code, Code::Unauthorized);
        }
    }
}
