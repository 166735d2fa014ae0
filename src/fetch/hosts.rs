//! The patterns of `fetch.allowed_hosts`, the hosts that images may come from.

use url::Host;

/// Describes the accepted entries, for error messages.
pub(super) const HOST_PATTERN: &str = "host names like example.org, or *.example.org for all names below it (no scheme, port or path)";

/// An entry of the setting `fetch.allowed_hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostPattern {
    /// Exactly this name or address.
    Exact(Host),
    /// Every name with this suffix. The suffix begins with a dot.
    Below(String),
}

impl HostPattern {
    /// Parses an entry. Internationalised names are converted to their ASCII form, as in DNS.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("*.") {
            None => host(text).map(Self::Exact),
            Some(text) => match host(text)? {
                Host::Domain(name) => Some(Self::Below(format!(".{name}"))),
                Host::Ipv4(_) | Host::Ipv6(_) => None,
            },
        }
    }

    /// True if the pattern matches the host of a URL.
    pub(super) fn matches(&self, host: &Host<&str>) -> bool {
        match (self, host) {
            (Self::Exact(Host::Domain(name)), Host::Domain(given)) => name == given,
            (Self::Exact(Host::Ipv4(address)), Host::Ipv4(given)) => address == given,
            (Self::Exact(Host::Ipv6(address)), Host::Ipv6(given)) => address == given,
            (Self::Below(end), Host::Domain(given)) => given.ends_with(end),
            (Self::Exact(_) | Self::Below(_), Host::Domain(_) | Host::Ipv4(_) | Host::Ipv6(_)) => {
                false
            }
        }
    }
}

fn host(text: &str) -> Option<Host> {
    match Host::parse(text).ok()? {
        Host::Domain(name) if !is_plain_name(&name) => None,
        host @ (Host::Domain(_) | Host::Ipv4(_) | Host::Ipv6(_)) => Some(host),
    }
}

/// True for a plain DNS name: at most 253 characters, labels of 1 to 63 letters, digits, `-` and `_`, no final dot.
/// This is stricter than the rules for URLs, so that no two parsers can read two different hosts from one text.
pub(super) fn is_plain_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(plain)
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_its_host_or_what_lies_below_and_nothing_that_only_looks_alike() {
        let cases = [
            ("example.org", "example.org", true),
            ("Example.ORG", "example.org", true),
            ("example.org", "a.example.org", false),
            ("example.org", "example.org.evil.net", false),
            ("*.example.org", "a.example.org", true),
            ("*.example.org", "b.a.example.org", true),
            ("*.example.org", "example.org", false),
            ("*.example.org", "evilexample.org", false),
            ("*.example.org", "a.example.org.evil.net", false),
            ("bücher.example", "xn--bcher-kva.example", true),
            ("8.8.8.8", "8.8.8.8", true),
            ("8.8.8.8", "8.8.4.4", false),
            ("[2606:4700::1111]", "[2606:4700::1111]", true),
        ];
        for (pattern, host, expected) in cases {
            let read = HostPattern::parse(pattern).unwrap_or_else(|| panic!("{pattern}"));
            let host: Host<String> = Host::parse(host).unwrap();
            let host = match &host {
                Host::Domain(name) => Host::Domain(name.as_str()),
                Host::Ipv4(address) => Host::Ipv4(*address),
                Host::Ipv6(address) => Host::Ipv6(*address),
            };
            assert_eq!(read.matches(&host), expected, "{pattern} {host}");
        }
    }

    #[test]
    fn what_is_no_host_is_no_pattern() {
        let cases = [
            "",
            "*",
            "*.",
            "*.*.example.org",
            "a.*.example.org",
            "https://example.org",
            "example.org/a",
            "example.org:443",
            "example.org.",
            ".example.org",
            "a..example.org",
            "user@example.org",
            "*.8.8.8.8",
        ];
        for text in cases {
            assert_eq!(HostPattern::parse(text), None, "{text}");
        }
    }
}
