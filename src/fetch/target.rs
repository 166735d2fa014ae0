//! [`Target`], a URL whose text satisfies every rule. Every URL of a fetch is checked here: the URL from the client and
//! the targets of redirects.

use std::net::IpAddr;

use url::{Host, Url};

use super::error::{Failure, NotAllowed};
use super::hosts::{HostPattern, is_plain_name};

/// Maximum length of a URL in bytes. Signed URLs of object stores are one to two thousand characters long.
const MAX_URL_BYTES: usize = 4096;

/// The rules that every URL must satisfy.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) allow_http: bool,
    /// Allowed hosts. If the list is empty, every host is allowed.
    pub(super) hosts: Vec<HostPattern>,
    pub(super) ports: Vec<u16>,
    /// Whether an address may be connected to.
    pub(super) is_allowed: fn(IpAddr) -> bool,
}

/// A URL whose text satisfies every rule. The addresses of a host name are checked when the name is resolved.
#[derive(Clone, PartialEq, Eq)]
pub struct Target(Url);

impl Target {
    /// Parses and checks a URL that a client sent.
    pub(super) fn parse(text: &str, rules: &Rules) -> Result<Self, NotAllowed> {
        if text.len() > MAX_URL_BYTES {
            return Err(NotAllowed::TooLong);
        }
        // URL parsers drop tabs and line breaks, and treat a backslash as a slash.
        if text.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\') {
            return Err(NotAllowed::Characters);
        }
        // A parsed URL does not show an empty user name, so search the text itself.
        if authority(text).is_some_and(|authority| authority.contains('@')) {
            return Err(NotAllowed::UserInfo);
        }
        let url = Url::parse(text).map_err(|_| NotAllowed::Malformed)?;
        Self::check(url, rules)
    }

    /// Returns the target of a redirect from this URL to `location`. Every rule is checked again, and a redirect from
    /// https to http is rejected.
    pub(super) fn redirected(&self, location: &[u8], rules: &Rules) -> Result<Self, Failure> {
        let location = std::str::from_utf8(location).map_err(|_| Failure::Redirect)?;
        if location.len() > MAX_URL_BYTES {
            return Err(Failure::Redirect);
        }
        let url = self.0.join(location).map_err(|_| Failure::Redirect)?;
        if self.0.scheme() == "https" && url.scheme() != "https" {
            return Err(Failure::Blocked);
        }
        Self::check(url, rules).map_err(|_| Failure::Blocked)
    }

    fn check(url: Url, rules: &Rules) -> Result<Self, NotAllowed> {
        match url.scheme() {
            "https" => {}
            "http" if rules.allow_http => {}
            _ => return Err(NotAllowed::Scheme),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(NotAllowed::UserInfo);
        }
        if url.fragment().is_some() {
            return Err(NotAllowed::Fragment);
        }
        if !url.port_or_known_default().is_some_and(|port| rules.ports.contains(&port)) {
            return Err(NotAllowed::Port);
        }
        let host = url.host().ok_or(NotAllowed::Host)?;
        let address = match host {
            Host::Ipv4(address) => Some(IpAddr::from(address)),
            Host::Ipv6(address) => Some(IpAddr::from(address)),
            // Names that parse as an address are rejected: the HTTP client would connect to them without asking the
            // resolver.
            Host::Domain(name) if is_plain_name(name) && name.parse::<IpAddr>().is_err() => None,
            Host::Domain(_) => return Err(NotAllowed::Host),
        };
        if address.is_some_and(|address| !(rules.is_allowed)(address)) {
            return Err(NotAllowed::Address);
        }
        if !rules.hosts.is_empty() && !rules.hosts.iter().any(|pattern| pattern.matches(&host)) {
            return Err(NotAllowed::NotListed);
        }
        Ok(Self(url))
    }

    /// Returns the URL for the request.
    pub(super) fn url(&self) -> &Url {
        &self.0
    }

    /// Returns the host, the only part of the URL that may be logged.
    pub(super) fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }
}

impl std::fmt::Debug for Target {
    /// Shows only the host: path and query may contain secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Target").field(&self.host()).finish()
    }
}

/// Returns the part of a URL between `//` and the path.
fn authority(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("://")?;
    let rest = rest.trim_start_matches('/');
    rest.split(['/', '?', '#']).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::is_public;

    fn rules() -> Rules {
        Rules { allow_http: true, hosts: Vec::new(), ports: vec![80, 443], is_allowed: is_public }
    }

    fn parse(text: &str) -> Result<Target, NotAllowed> {
        Target::parse(text, &rules())
    }

    #[test]
    fn public_urls_pass() {
        let cases = [
            "https://example.org",
            "https://example.org/a.png?size=2&sign=a%2Fb",
            "HTTPS://EXAMPLE.ORG:443/a.png",
            "http://example.org:80/a.png",
            "https://my_bucket.example.org/@user/a.png",
            "https://bücher.example/ü.png",
            "https://8.8.8.8/a.png",
            "https://[2606:4700::1111]/a.png",
        ];
        for text in cases {
            assert!(parse(text).is_ok(), "{text}: {:?}", parse(text));
        }
    }

    #[test]
    fn each_rule_refuses_by_its_name() {
        let long = format!("https://example.org/{}", "a".repeat(MAX_URL_BYTES));
        let label = format!("https://{}.org/", "a".repeat(64));
        let name = format!("https://{}org/", "abcdefg.".repeat(32));
        let cases = [
            (long.as_str(), NotAllowed::TooLong),
            ("https://example.org/a b", NotAllowed::Characters),
            ("https://exam\tple.org/", NotAllowed::Characters),
            ("https://example.org\\@10.0.0.1/", NotAllowed::Characters),
            ("https://", NotAllowed::Malformed),
            ("https://exa<mple.org/", NotAllowed::Malformed),
            ("https://[fe80::1%25eth0]/", NotAllowed::Malformed),
            ("ftp://example.org/", NotAllowed::Scheme),
            ("file:///etc/passwd", NotAllowed::Scheme),
            ("https://example.org:22/", NotAllowed::Port),
            ("https://example.org:8443/", NotAllowed::Port),
            ("https://example.org:0/", NotAllowed::Port),
            ("https://user@example.org/", NotAllowed::UserInfo),
            ("https://user:word@example.org/", NotAllowed::UserInfo),
            ("https://@example.org/", NotAllowed::UserInfo),
            ("https://example.org/#a", NotAllowed::Fragment),
            ("https://example.org./", NotAllowed::Host),
            ("https://a..example.org/", NotAllowed::Host),
            ("https://exa!mple.org/", NotAllowed::Host),
            (&label, NotAllowed::Host),
            (&name, NotAllowed::Host),
            ("https://127.0.0.1/", NotAllowed::Address),
            ("https://0x7f.1/", NotAllowed::Address),
            ("https://[::ffff:10.0.0.1]/", NotAllowed::Address),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn plain_http_is_refused_unless_it_is_allowed() {
        let strict = Rules { allow_http: false, ..rules() };
        assert_eq!(Target::parse("http://example.org/", &strict), Err(NotAllowed::Scheme));
        assert!(Target::parse("https://example.org/", &strict).is_ok());
    }

    #[test]
    fn a_list_of_hosts_allows_no_other() {
        let listed = Rules { hosts: vec![HostPattern::parse("*.example.org").unwrap()], ..rules() };
        assert!(Target::parse("https://a.example.org/", &listed).is_ok());
        let refused = Target::parse("https://example.net/", &listed);
        assert_eq!(refused, Err(NotAllowed::NotListed));
        // An address that is not public is rejected even if it is listed.
        let listed = Rules { hosts: vec![HostPattern::parse("10.0.0.1").unwrap()], ..rules() };
        assert_eq!(Target::parse("https://10.0.0.1/", &listed), Err(NotAllowed::Address));
    }

    #[test]
    fn every_rule_holds_for_a_redirect_and_tls_is_never_left() {
        let from = |text: &str| parse(text).unwrap();
        let to = |from: &Target, location: &str| from.redirected(location.as_bytes(), &rules());
        let secure = from("https://example.org/a/b.png?x=1");
        assert_eq!(to(&secure, "c.png"), Ok(from("https://example.org/a/c.png")));
        assert_eq!(to(&secure, "/c.png"), Ok(from("https://example.org/c.png")));
        assert_eq!(to(&secure, "//cdn.example/c"), Ok(from("https://cdn.example/c")));
        let plain = from("http://example.org/a");
        assert_eq!(to(&plain, "https://example.org/a"), Ok(from("https://example.org/a")));
        assert_eq!(to(&plain, "http://cdn.example/a"), Ok(from("http://cdn.example/a")));
        let blocked = [
            "http://example.org/",
            "https://127.0.0.1/",
            "//169.254.169.254/",
            "https://user@example.org/",
            "https://example.org:8080/",
            "ftp://example.org/",
            "file:///etc/passwd",
            "data:image/png;base64,AAAA",
            "#here",
        ];
        for location in blocked {
            assert_eq!(to(&secure, location), Err(Failure::Blocked), "{location}");
        }
        assert_eq!(to(&secure, "https://[::1"), Err(Failure::Redirect));
        assert_eq!(secure.redirected(b"\xff", &rules()), Err(Failure::Redirect));
    }

    #[test]
    fn a_target_shows_its_host_and_nothing_behind_it() {
        let target = parse("https://example.org/secret?key=word").unwrap();
        assert_eq!(format!("{target:?}"), "Target(\"example.org\")");
    }
}
