//! URLs that want the server to look where it must not: every spelling of every address outside the public internet.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 addresses of every refused block, metadata services among them.
pub(super) const V4: [Ipv4Addr; 20] = [
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::new(127, 0, 0, 2),
    Ipv4Addr::new(127, 255, 255, 254),
    Ipv4Addr::UNSPECIFIED,
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(10, 0, 0, 1),
    Ipv4Addr::new(172, 16, 0, 1),
    Ipv4Addr::new(192, 168, 0, 1),
    Ipv4Addr::new(100, 64, 0, 1),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv4Addr::new(198, 18, 0, 1),
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(203, 0, 113, 1),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(224, 0, 0, 1),
    Ipv4Addr::new(240, 0, 0, 1),
    Ipv4Addr::BROADCAST,
];

/// IPv6 addresses of no public server that carry no IPv4 one.
pub(super) const V6: [Ipv6Addr; 12] = [
    Ipv6Addr::LOCALHOST,
    Ipv6Addr::UNSPECIFIED,
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 1),
];

/// What the server has to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// 422 `url_not_allowed`: the text tells.
    NotAllowed,
    /// 422 `url_unreachable`: only the world could tell.
    Unreachable,
    /// 400 `invalid_request`: no image value at all.
    Invalid,
}

/// One attempt.
#[derive(Debug, Clone)]
pub(super) struct Vector {
    pub(super) text: String,
    pub(super) expected: Expected,
    /// Where an unguarded client would connect to; `None` where none could (or it is not known).
    pub(super) leads_to: Option<IpAddr>,
}

/// Every address in every spelling, with this port.
pub(super) fn literals(port: u16) -> Vec<Vector> {
    let port = if port == 80 { String::new() } else { format!(":{port}") };
    let mut vectors = Vec::new();
    let mut add = |text: String, leads_to: Option<IpAddr>| {
        vectors.push(Vector { text, expected: Expected::NotAllowed, leads_to });
    };
    for address in V4 {
        for host in spellings(address) {
            add(format!("http://{host}{port}/a.png"), Some(address.into()));
        }
        for host in mapped(address) {
            add(format!("http://[{host}]{port}/a.png"), Some(address.into()));
        }
        for carrier in carriers(address) {
            add(format!("http://[{carrier}]{port}/a.png"), Some(carrier.into()));
        }
        for text in disguises(address, &port) {
            add(text, None);
        }
    }
    for address in V6 {
        for host in spellings_v6(address) {
            add(format!("http://[{host}]{port}/a.png"), Some(address.into()));
        }
        for zone in ["%25lo", "%lo", "%251", "%25eth0"] {
            add(format!("http://[{address}{zone}]{port}/a.png"), None);
        }
    }
    vectors
}

/// Everything that URL parsers take for this address.
fn spellings(address: Ipv4Addr) -> Vec<String> {
    let [a, b, c, d] = address.octets();
    let (bits, low24, low16) =
        (address.to_bits(), address.to_bits() & 0xff_ffff, address.to_bits() & 0xffff);
    let dotted = address.to_string();
    let replaced = |digit: fn(u32) -> u32| -> String {
        let replace = |c: char| match c.to_digit(10) {
            Some(value) => char::from_u32(digit(value)).unwrap(),
            None => c,
        };
        dotted.chars().map(replace).collect()
    };
    vec![
        dotted.clone(),
        format!("{dotted}."),
        bits.to_string(),
        format!("{bits:#x}"),
        format!("0X{bits:X}"),
        format!("{bits:#034x}"),
        format!("0{bits:o}"),
        format!("0000{bits:o}"),
        format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
        format!("0X{a:X}.0X{b:X}.0X{c:X}.0X{d:X}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("000{a:o}.000{b:o}.000{c:o}.000{d:o}"),
        format!("{a}.{low24}"),
        format!("{a:#x}.{low24}"),
        format!("0{a:o}.{low24:#x}"),
        format!("{a}.{b}.{low16}"),
        format!("{a:#x}.0{b:o}.{low16}"),
        format!("{a}.{b:#x}.0{c:o}.{d}"),
        percent(&dotted),
        percent(&bits.to_string()),
        dotted.replace('.', "%2e"),
        dotted.replace('.', "%2E"),
        dotted.replace('.', "\u{3002}"),
        dotted.replace('.', "\u{ff0e}"),
        dotted.replace('.', "\u{ff61}"),
        // Fullwidth, circled, mathematical bold and monospace digits.
        replaced(|digit| 0xff10 + digit),
        replaced(|digit| if digit == 0 { 0x24ea } else { 0x245f + digit }),
        replaced(|digit| 0x1d7ce + digit),
        replaced(|digit| 0x1d7f6 + digit),
        percent(&replaced(|digit| 0xff10 + digit)),
    ]
}

fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        // Writing to a string cannot fail.
        let _ = write!(encoded, "%{byte:02x}");
        encoded
    })
}

/// IPv6 spellings of which the kernel makes the IPv4 address.
fn mapped(address: Ipv4Addr) -> Vec<String> {
    let [.., high, low] = address.to_ipv6_mapped().segments();
    vec![
        format!("::ffff:{address}"),
        format!("::FFFF:{address}"),
        format!("::ffff:{high:x}:{low:x}"),
        format!("0:0:0:0:0:ffff:{address}"),
        format!("0000:0000:0000:0000:0000:ffff:{high:04x}:{low:04x}"),
    ]
}

/// IPv6 addresses that carry the IPv4 one: compatible, translated, NAT64, 6to4, Teredo, ISATAP.
pub(super) fn carriers(address: Ipv4Addr) -> Vec<Ipv6Addr> {
    let bits = address.to_bits();
    let (high, low) = ((bits >> 16) as u16, bits as u16);
    vec![
        Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
        Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
        Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
        Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0x2001, 0, 0x0808, 0x0808, 0, 0, !high, !low),
        Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0x5efe, high, low),
        Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0x200, 0x5efe, high, low),
    ]
}

fn spellings_v6(address: Ipv6Addr) -> Vec<String> {
    let groups = address.segments();
    let full: Vec<String> = groups.iter().map(|group| format!("{group:04x}")).collect();
    let upper: Vec<String> = groups.iter().map(|group| format!("{group:X}")).collect();
    vec![address.to_string(), full.join(":"), upper.join(":")]
}

/// URLs whose host only looks like another one.
fn disguises(address: Ipv4Addr, port: &str) -> Vec<String> {
    vec![
        format!("http://example.org@{address}{port}/a.png"),
        format!("http://example.org:80@{address}{port}/a.png"),
        format!("http://@{address}{port}/a.png"),
        format!("http://:@{address}{port}/a.png"),
        format!("http://{address}{port}\\@example.org/a.png"),
        format!("http://example.org\\.{address}{port}/"),
        format!("http://{address}{port}#@example.org/"),
        format!("http://{address}{port}/#.example.org"),
        format!("http://{address} {port}/a.png"),
        format!("http://{address}\t{port}/a.png"),
        format!("http://\n{address}{port}/a.png"),
        format!("http:///{address}{port}/a.png"),
        format!("http:////{address}{port}/a.png"),
        format!("http://\u{ad}{address}{port}/a.png"),
        format!("http://{address}%00.example.org{port}/"),
        format!("http://{address}%0d%0a{port}/"),
        format!("http://[{address}]{port}/a.png"),
        format!("hTtP://{address}{port}/a.png"),
    ]
}

/// URLs of other schemes: no image values, so the server does not even look for a host.
pub(super) fn schemes(port: u16) -> Vec<Vector> {
    let at = format!("127.0.0.1:{port}");
    let texts = [
        "file:///etc/passwd".to_owned(),
        "file://localhost/etc/passwd".to_owned(),
        format!("gopher://{at}/_GET%20/"),
        format!("ftp://{at}/a.png"),
        format!("dict://{at}/x"),
        format!("ldap://{at}/x"),
        format!("ws://{at}/"),
        format!("tftp://{at}/x"),
        format!("jar:http://{at}!/a"),
        format!("view-source:http://{at}/"),
        format!("url:http://{at}/"),
        "javascript:fetch('/')".to_owned(),
        "data:text/html,<script>".to_owned(),
        "data:image/svg+xml,<svg/>".to_owned(),
    ];
    invalid(texts)
}

/// What some parsers take for a URL.
pub(super) fn no_urls(port: u16) -> Vec<Vector> {
    let at = format!("127.0.0.1:{port}");
    let texts = [
        format!("http:{at}/a.png"),
        format!("http:/{at}/a.png"),
        format!("http:\\\\{at}\\a.png"),
        format!("http:\\/\\/{at}/a.png"),
        format!("//{at}/a.png"),
        format!("\\\\{at}\\a.png"),
        format!("{at}/a.png"),
        format!("http;//{at}/a.png"),
        format!("\u{feff}http://{at}/a.png"),
        format!("ｈttp://{at}/a.png"),
    ];
    // White space around an image value is skipped.
    let spaced = [format!(" http://{at}/a.png"), format!("\thttp://{at}/a.png")];
    let refused = |text| Vector { text, expected: Expected::NotAllowed, leads_to: None };
    invalid(texts).into_iter().chain(spaced.map(refused)).collect()
}

fn invalid<const N: usize>(texts: [String; N]) -> Vec<Vector> {
    let vector = |text| Vector { text, expected: Expected::Invalid, leads_to: None };
    texts.into_iter().map(vector).collect()
}

/// Ports of other services on a public host.
pub(super) fn ports() -> Vec<Vector> {
    let ports =
        [0, 1, 21, 22, 23, 25, 53, 81, 110, 389, 445, 2375, 3306, 5432, 6379, 8080, 9200, 65535];
    let vector = |port| Vector {
        text: format!("http://example.org:{port}/a.png"),
        expected: Expected::NotAllowed,
        leads_to: None,
    };
    ports.into_iter().map(vector).collect()
}

/// Names of what stands inside; the test's resolver answers all of them with loopback addresses.
pub(super) fn names(port: u16) -> Vec<Vector> {
    let port = if port == 80 { String::new() } else { format!(":{port}") };
    let names = [
        "localhost",
        "LOCALHOST",
        "LoCaLhOsT",
        "localhost.localdomain",
        "foo.localhost",
        "ip6-localhost",
        "ｌｏｃａｌｈｏｓｔ",
        "%6c%6f%63%61%6c%68%6f%73%74",
        "loc\u{ad}alhost",
        "metadata",
        "metadata.google.internal",
        "instance-data.ec2.internal",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "host.docker.internal",
        "db",
        "127.0.0.1.example.org",
        "127-0-0-1.example.org",
        "0x7f000001.example.org",
        "1.0.0.127.in-addr.example",
    ];
    let to_loopback = Some(Ipv4Addr::LOCALHOST.into());
    let mut vectors: Vec<Vector> = names
        .iter()
        .map(|name| Vector {
            text: format!("http://{name}{port}/a.png"),
            expected: Expected::Unreachable,
            leads_to: to_loopback,
        })
        .collect();
    for name in ["localhost.", "localhost..", ".localhost", "a..localhost", "localhost%00.org", "*"]
    {
        let text = format!("http://{name}{port}/a.png");
        vectors.push(Vector { text, expected: Expected::NotAllowed, leads_to: None });
    }
    vectors
}

/// What a name may stand for so that it is refused: each refused address alone, and hidden among public ones.
pub(super) fn answers() -> Vec<Vec<IpAddr>> {
    let good: [IpAddr; 2] = ["8.8.8.8".parse().unwrap(), "2606:4700:4700::1111".parse().unwrap()];
    let mut bad: Vec<IpAddr> = V4.into_iter().map(IpAddr::from).collect();
    bad.extend(V6.map(IpAddr::from));
    for address in V4 {
        bad.push(address.to_ipv6_mapped().into());
        bad.extend(carriers(address).into_iter().map(IpAddr::from));
    }
    bad.into_iter()
        .flat_map(|bad| {
            [vec![bad], vec![good[0], bad], vec![bad, good[1]], vec![good[0], bad, good[1]]]
        })
        .collect()
}
