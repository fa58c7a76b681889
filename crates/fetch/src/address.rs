//! Which addresses may be connected to.
//!
//! Public unicast addresses, and what the platform allows. Everything else is inside: the node itself, its metadata
//! service, the cluster's pods and Services, the company's network. The list is that of the IANA special-purpose
//! registries; an address that carries another one (IPv4-mapped, NAT64, 6to4) is judged by the one that it carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of addresses, `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                same_prefix(u32::from(net).into(), u32::from(ip).into(), 32, self.prefix)
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => same_prefix(net.into(), ip.into(), 128, self.prefix),
            _ => false,
        }
    }
}

fn same_prefix(a: u128, b: u128, bits: u32, prefix: u8) -> bool {
    let rest = bits.saturating_sub(prefix.into());
    prefix == 0 || (a ^ b).checked_shr(rest).unwrap_or(0) == 0
}

impl From<IpAddr> for Cidr {
    /// This address alone.
    fn from(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is no range of addresses; write for example 10.0.0.0/8 or fd00::/8");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix <= longest { Ok(Self { address, prefix }) } else { Err(wrong()) }
    }
}

/// What the platform adds to the rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Inside, and may be fetched from all the same.
    pub allowed: Vec<Cidr>,
    /// Never fetched from, whatever else is said: the API server where it has a public address, for one.
    pub refused: Vec<Cidr>,
    /// Nothing is judged, and the environment's proxy is used: of a program that asks for the user who started it.
    pub any: bool,
}

impl Addresses {
    /// What the address is, where it may not be connected to.
    pub fn refusal(&self, ip: IpAddr) -> Option<&'static str> {
        if self.any {
            return None;
        }
        let ip = ip.to_canonical();
        let among = |ranges: &[Cidr]| ranges.iter().any(|range| range.contains(ip));
        if among(&self.refused) {
            return Some("an address that the platform refuses");
        }
        if among(&self.allowed) {
            return None;
        }
        match ip {
            IpAddr::V4(ip) => inside_v4(ip),
            IpAddr::V6(ip) => match carried(ip) {
                Some(carried) => self.refusal(carried.into()),
                None => inside_v6(ip),
            },
        }
    }
}

fn inside_v4(ip: Ipv4Addr) -> Option<&'static str> {
    const INSIDE: [([u8; 4], u8, &str); 14] = [
        ([0, 0, 0, 0], 8, "the own host"),
        ([10, 0, 0, 0], 8, "a private address"),
        ([100, 64, 0, 0], 10, "a shared private address"),
        ([127, 0, 0, 0], 8, "a loopback address"),
        ([169, 254, 0, 0], 16, "a link-local address"),
        ([172, 16, 0, 0], 12, "a private address"),
        ([192, 0, 0, 0], 24, "a reserved address"),
        ([192, 0, 2, 0], 24, "an address of documentation"),
        ([192, 168, 0, 0], 16, "a private address"),
        ([198, 18, 0, 0], 15, "an address of benchmarks"),
        ([198, 51, 100, 0], 24, "an address of documentation"),
        ([203, 0, 113, 0], 24, "an address of documentation"),
        ([224, 0, 0, 0], 4, "a multicast address"),
        ([240, 0, 0, 0], 4, "a reserved address"),
    ];
    let range =
        |(net, prefix, _): &&([u8; 4], u8, &str)| Cidr { address: (*net).into(), prefix: *prefix }.contains(ip.into());
    INSIDE.iter().find(range).map(|(_, _, what)| *what)
}

fn inside_v6(ip: Ipv6Addr) -> Option<&'static str> {
    if ip.is_loopback() {
        return Some("a loopback address");
    }
    let s = ip.segments();
    match s {
        // Only 2000::/3 is public unicast. Teredo can carry any address, and documentation none.
        [0x2001, 0, ..] => Some("a Teredo address"),
        [0x2001, 0xdb8, ..] => Some("an address of documentation"),
        [0x3fff, b, ..] if b < 0x1000 => Some("an address of documentation"),
        [a, ..] if a & 0xe000 == 0x2000 => None,
        [a, ..] if a & 0xfe00 == 0xfc00 => Some("a private address"),
        [a, ..] if a & 0xffc0 == 0xfe80 => Some("a link-local address"),
        [a, ..] if a & 0xff00 == 0xff00 => Some("a multicast address"),
        _ => Some("a reserved address"),
    }
}

/// The IPv4 address that NAT64 and 6to4 lead to.
fn carried(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(of(high, low)),
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(rules: &Addresses, ip: &str) -> bool {
        rules.refusal(ip.parse().unwrap()).is_some()
    }

    #[test]
    fn addresses_inside_are_refused_however_they_are_written() {
        let rules = Addresses::default();
        for ip in [
            "127.0.0.1",
            "127.255.255.255",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::a00:1",
            "2002:a00:1::",
            "2002:7f00:1::1",
            "2001:0:1::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "fec0::1",
            "2001:db8::1",
            "100::1",
        ] {
            assert!(refused(&rules, ip), "{ip}");
        }
    }

    #[test]
    fn public_addresses_are_not() {
        let rules = Addresses::default();
        for ip in [
            "1.1.1.1",
            "8.8.8.8",
            "172.15.255.255",
            "172.32.0.0",
            "100.63.0.1",
            "100.128.0.1",
            "192.169.0.1",
            "223.255.255.254",
            "2606:4700::1111",
            "2a00:1450::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::1",
        ] {
            assert!(!refused(&rules, ip), "{ip}");
        }
    }

    #[test]
    fn platform_allows_and_refuses_ranges_and_a_refusal_wins() {
        let range = |text: &str| text.parse::<Cidr>().unwrap();
        let rules = Addresses {
            allowed: vec![range("10.0.0.0/8"), range("fd00::/8")],
            refused: vec![range("10.96.0.1/32"), range("8.8.0.0/16")],
            any: false,
        };
        for (ip, expect) in [
            ("10.1.1.1", false),
            ("::ffff:10.1.1.1", false),
            ("fd00::1", false),
            ("fc00::1", true),
            ("11.0.0.1", false),
            ("127.0.0.1", true),
            ("10.96.0.1", true),
            ("10.96.0.2", false),
            ("8.8.8.8", true),
            ("64:ff9b::808:808", true),
            ("2002:808:808::1", true),
            ("8.9.0.1", false),
        ] {
            assert_eq!(refused(&rules, ip), expect, "{ip}");
        }
        let all = Addresses { allowed: vec![range("0.0.0.0/0")], ..Addresses::default() };
        assert!(!refused(&all, "127.0.0.1"));
        assert!(refused(&all, "::1"));
    }

    #[test]
    fn ranges_are_written_with_a_prefix() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10/8", "fd00::/129", "a/8", "10.0.0.0/-1"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
