//! Decides which IP addresses belong to the public internet. An address is rejected unless it is known to be public.
//!
//! Sources: IANA's registries of special-purpose addresses for IPv4 and IPv6. An IPv6 address that embeds an IPv4
//! address can lead to that IPv4 address (through the kernel, a translator or a tunnel), so the embedded address must
//! be public too.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// IPv4 blocks without public servers: network and prefix length.
const V4_REFUSED: [(Ipv4Addr, u32); 16] = [
    // "This network"; 0.0.0.0 reaches the machine itself.
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    // Shared by providers for carrier-grade NAT; some clouds serve metadata there (100.100.100.200).
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    // Link-local: most clouds serve metadata there (169.254.169.254).
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    // 6to4 relays, retired.
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast, then the reserved block, which includes the broadcast address.
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
    // Formally a public address, but inside Azure the platform's own services answer there.
    (Ipv4Addr::new(168, 63, 129, 16), 32),
];

/// IPv6 blocks inside `2000::/3` without public servers.
const V6_REFUSED: [(Ipv6Addr, u32); 4] = [
    // Protocol assignments: Teredo (2001::/32, a tunnel that can embed any IPv4 address), benchmarks, ORCHID.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    // The old and the new block for documentation.
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    // 6to4, retired (RFC 7526): a tunnel to the IPv4 address that follows the prefix.
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
];

/// Global unicast, the only block that is allocated to the public.
const V6_GLOBAL: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// IPv4-mapped addresses: the kernel connects to the embedded IPv4 address.
const V4_MAPPED: (Ipv6Addr, u32) = (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);
/// The NAT64 prefix, which DNS64 puts before the IPv4 address of an IPv4-only name. The similar prefix `64:ff9b:1::/48`
/// is for use inside a network and is therefore rejected.
const NAT64: (Ipv6Addr, u32) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// True for an address of the public internet whose embedded IPv4 address, if it has one, is public as well.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// True for a public address that is not this machine's own. A URL that leads back to this machine could reach services
/// that listen on all addresses, bypassing a firewall that trusts the machine itself.
///
/// Behind a provider's NAT, the machine has only a private address and does not know its public address. In that case,
/// `fetch.allowed_hosts` or an egress policy must block the public address.
pub(super) fn may_connect(address: IpAddr) -> bool {
    is_public(address) && !is_own(address)
}

/// True if this machine has this address. The test sends no packet: for a packet to one of the machine's own addresses,
/// the system would choose that same address as the source.
fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = || -> io::Result<IpAddr> {
        let socket = UdpSocket::bind((any, 0))?;
        // On a datagram socket, `connect` only chooses the route and the source address; the port does not matter.
        socket.connect((address, 9))?;
        Ok(socket.local_addr()?.ip())
    };
    source().is_ok_and(|source| source == address) || carried_v4(address).is_some_and(is_own)
}

/// Returns the IPv4 address into which a NAT64 translator converts this address; `None` without the NAT64 prefix.
fn carried_v4(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V6(address) if within(address, NAT64) => Some(last_v4(address).into()),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !V4_REFUSED.iter().any(|&(network, length)| {
        let shift = 32 - length;
        address.to_bits() >> shift == network.to_bits() >> shift
    })
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if within(address, V4_MAPPED) || within(address, NAT64) {
        return is_public_v4(last_v4(address));
    }
    within(address, V6_GLOBAL)
        && !V6_REFUSED.iter().any(|&block| within(address, block))
        && (!is_isatap(address) || is_public_v4(last_v4(address)))
}

fn within(address: Ipv6Addr, (network, length): (Ipv6Addr, u32)) -> bool {
    let shift = 128 - length;
    address.to_bits() >> shift == network.to_bits() >> shift
}

/// Returns the IPv4 address in the last 32 bits.
fn last_v4(address: Ipv6Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() as u32)
}

/// True for an ISATAP address (RFC 5214), which is a tunnel to the IPv4 address in its last 32 bits. Its form is
/// `...:0:5efe:a.b.c.d`, with any prefix, and with the universal and group bits set or not.
fn is_isatap(address: Ipv6Addr) -> bool {
    let [.., high, low, _, _] = address.segments();
    high & !0x0300 == 0 && low == 0x5efe
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    #[test]
    fn the_machines_own_addresses_are_known_and_no_others() {
        for own in ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1"] {
            assert!(is_own(ip(own)), "{own}");
        }
        for foreign in ["8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8"] {
            assert!(!is_own(ip(foreign)), "{foreign}");
        }
        // The local address of a connected socket. Without NAT, it is also the address that others see.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("8.8.8.8:9").is_ok() {
            assert!(is_own(socket.local_addr().unwrap().ip()));
        }
    }

    #[test]
    fn public_addresses_pass() {
        let cases = [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "168.63.129.17",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "191.255.255.255",
            "192.0.1.0",
            "192.0.3.0",
            "192.88.98.255",
            "192.88.100.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.99.255",
            "198.51.101.0",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2001:db7:ffff::1",
            "2001:db9::1",
            "2003::1",
            "2606:4700::1111",
            "2a00:1450:4001:80b::200e",
            "3ffe:ffff::1",
            // The embedded IPv4 address is public.
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2606:4700::5efe:8.8.8.8",
            // Looks like ISATAP but is not.
            "2606:4700::1:5efe:10.0.0.1",
        ];
        let refused: Vec<_> = cases.into_iter().filter(|text| !is_public(ip(text))).collect();
        assert!(refused.is_empty(), "{refused:?}");
    }

    #[test]
    fn both_ends_of_every_refused_ipv4_block_are_refused_alone_and_inside_ipv6() {
        for (network, length) in V4_REFUSED {
            let last = network.to_bits() | u32::MAX.checked_shr(length).unwrap_or(0);
            for v4 in [network, Ipv4Addr::from_bits(last)] {
                assert!(!is_public(v4.into()), "{v4}");
                for v6 in carriers(v4) {
                    assert!(!is_public(v6.into()), "{v6} carries {v4}");
                }
            }
        }
    }

    /// Returns IPv6 addresses of all kinds that lead to this IPv4 address.
    fn carriers(v4: Ipv4Addr) -> Vec<Ipv6Addr> {
        let bits = v4.to_bits();
        let (high, low) = ((bits >> 16) as u16, bits as u16);
        vec![
            v4.to_ipv6_mapped(),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 1, high, low >> 8, low << 8, 0, 0),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, 0x0808, 0x0808, 0, 0, !high, !low),
            Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0x5efe, high, low),
            Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0x200, 0x5efe, high, low),
            Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0x300, 0x5efe, high, low),
        ]
    }

    #[test]
    fn ipv6_addresses_of_no_public_server_are_refused() {
        let cases = [
            "::",
            "::1",
            "::2",
            "100::1",
            "1fff:ffff::1",
            "2001::1",
            "2001:1ff:ffff::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            "2002::1",
            "2002:808:808::1",
            "3fff::1",
            "3fff:fff:ffff::1",
            "4000::1",
            "5f00::1",
            "64:ff9b:1::808:808",
            "64:ff9b:2::1",
            "fc00::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fdff:ffff::1",
            "fe80::1",
            "fe80::a9fe:a9fe",
            "fec0::1",
            "ff02::1",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ];
        let passed: Vec<_> = cases.into_iter().filter(|text| is_public(ip(text))).collect();
        assert!(passed.is_empty(), "{passed:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn no_ipv4_address_that_the_standard_library_calls_special_is_public(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from_bits(bits);
            let special = v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
                || v4.is_unspecified();
            prop_assert!(!(special && is_public(v4.into())), "{}", v4);
        }

        #[test]
        fn an_ipv6_address_that_carries_a_refused_ipv4_one_is_refused(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from_bits(bits);
            if !is_public(v4.into()) {
                for v6 in carriers(v4) {
                    prop_assert!(!is_public(v6.into()), "{} carries {}", v6, v4);
                }
            }
        }
    }
}
