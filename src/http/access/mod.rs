//! Access control: API keys, rate limits, and the client's address behind proxies. All of it is off by default.
//!
//! - [`ApiKey`], [`ApiKeys`]: keys as hashes, compared in constant time. Keys can come from a file, which is reloaded
//!   when it changes.
//! - `bucket`: rate limiting by token buckets, for a bounded number of callers.
//! - `client`: the address that a request came from.
//! - `settings`: the settings, which `config` fills.
//!
//! The layers `middleware::{client, authenticate, rate_limit}` call this module and turn its results into responses.
//! `openapi::access` adds access control to the OpenAPI document.

pub(crate) mod bucket;
pub(crate) mod client;
mod key;
mod keys;
mod settings;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::Extensions;
pub use key::{ApiKey, ApiKeyError, ApiKeyFileError};
pub use keys::ApiKeys;
pub use settings::{AuthSettings, KeysFile, RateLimitSettings};

use self::bucket::{Allowance, Buckets, Rate};
use self::client::{ClientAddress, Network};
use super::context::RequestContext;
use super::error::{ApiError, Code};
use crate::fairness::ClientId;
use crate::platform;
use crate::task::Scope;

/// Number of wrong keys that an address may send at once, before `failed_attempts_per_minute` applies.
const FAILED_ATTEMPTS_BURST: u32 = 20;

/// True for the health routes, which probes call. They need no key and have no rate limit.
pub(crate) fn is_open(route: &str) -> bool {
    ["/health", "/health/live", "/health/ready"].contains(&route)
}

/// True for the routes that need no key: the health routes, the API documents, and the pages for people with their assets.
/// None of these are secret. The calls that a page makes need a key.
pub(crate) fn is_public(route: &str) -> bool {
    is_open(route)
        || ["/", "/status"].contains(&route)
        || ["/assets/", "/docs", "/openapi"].iter().any(|start| route.starts_with(start))
}

/// True for the routes that a rate limit counts. Health and metrics are not counted, because monitoring must still work when
/// the server is flooded.
pub(crate) fn is_limited(route: &str) -> bool {
    !is_open(route) && route != "/metrics"
}

/// The API keys and rate limits of a server; part of the router's state.
pub(crate) struct Access {
    /// `None` if the server has no keys. Requests then need no key.
    keys: Option<Arc<ApiKeys>>,
    /// Token buckets for wrong keys, one per network; `None` if their number is not limited.
    failures: Option<Buckets<Network>>,
    /// Token buckets for requests: one per key owner and, for requests without a key, one per network; `None` if there
    /// is no rate limit.
    requests: Option<Buckets<Caller>>,
    /// Random number that is hashed with a caller to its [`ClientId`], so that nobody can choose an address whose id
    /// collides with that of another caller.
    client_id_salt: u64,
}

/// The party whose requests one rate limit counts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// Everyone who uses keys of this owner.
    Key(Scope),
    /// Everyone in this network who sends requests without a key.
    Address(Network),
}

impl Caller {
    /// Returns the owner of the request's key, or the network of `address` if the request has no key.
    pub(crate) fn of(context: &RequestContext, address: ClientAddress) -> Self {
        match context.notes().owner {
            Some(owner) => Self::Key(owner.scope),
            None => Self::Address(Network::of(address.0)),
        }
    }
}

impl Access {
    /// Creates the keys and limits that the settings define. All buckets are full.
    pub(crate) fn new(auth: Option<&AuthSettings>, limit: Option<RateLimitSettings>) -> Self {
        let failures = auth.and_then(|auth| Rate::per_minute(auth.failed_attempts_per_minute));
        let requests = limit
            .and_then(|limit| Some((Rate::per_second(limit.requests_per_second)?, limit.burst)));
        Self {
            keys: auth.map(|auth| Arc::new(ApiKeys::new(auth))),
            failures: failures.map(|rate| Buckets::new(rate, FAILED_ATTEMPTS_BURST)),
            requests: requests.map(|(rate, burst)| Buckets::new(rate, burst)),
            client_id_salt: platform::random(),
        }
    }

    /// Returns the keys; `None` if requests need no key.
    pub(crate) fn keys(&self) -> Option<&Arc<ApiKeys>> {
        self.keys.as_ref()
    }

    /// True if the server limits the rate of requests.
    pub(crate) fn limits_requests(&self) -> bool {
        self.requests.is_some()
    }

    /// Returns the key that has this secret.
    ///
    /// A valid secret always passes, however many wrong keys came from its address: many clients may share an address
    /// (a proxy, NAT), and a client that sends wrong keys must not lock out the others. As a result, a correct guess is
    /// never delayed. This does not help an attacker, because a secret of at least 16 characters is too long to guess.
    ///
    /// # Errors
    /// `unauthorized`; or `rate_limited` if the address has sent too many wrong keys.
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
            // A request without a secret is not a guess, so it takes no token.
            None => failures.wait(&from, now),
        });
        if let Some(wait) = wait {
            let detail = "too many wrong API keys from this address; send a valid key, or wait";
            return Err(limited(detail, wait));
        }
        let detail = match secret {
            Some(_) => "the API key is not valid; ask the operator of this server for a key",
            None => "this server requires an API key; send the header authorization: Bearer KEY",
        };
        Err(ApiError::new(Code::Unauthorized, detail))
    }

    /// Returns the client to which fair queueing and admission control attribute a request: the owner of its key, or
    /// its network if it has no key.
    pub(crate) fn client_id(&self, extensions: &Extensions, context: &RequestContext) -> ClientId {
        let address = extensions.get().copied().unwrap_or(ClientAddress(None));
        let mut hasher = DefaultHasher::new();
        (self.client_id_salt, Caller::of(context, address)).hash(&mut hasher);
        ClientId::from_hash(hasher.finish())
    }

    /// Returns how much of the rate limit the caller has left; `None` if there is no limit.
    pub(crate) fn allowance(&self, caller: Caller, now: Instant) -> Option<Allowance> {
        self.requests.as_ref().map(|requests| requests.allowance(&caller, now))
    }

    /// Counts a request against its caller's rate limit.
    ///
    /// # Errors
    /// `rate_limited`, with the time to wait.
    pub(crate) fn admit(&self, caller: Caller, now: Instant) -> Result<(), ApiError> {
        let Some(requests) = &self.requests else { return Ok(()) };
        requests.take(caller, now).map_err(|wait| {
            let whose = match caller {
                Caller::Key(_) => "with this API key",
                Caller::Address(_) => "from this address",
            };
            limited(
                format!("too many requests {whose}; wait, then send requests more slowly"),
                wait,
            )
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
        // A valid key neither takes a token nor gives one back.
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
