//! Where a request comes from: the address of the client, also behind proxies.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::HeaderMap;
use ipnet::IpNet;

/// The header in which proxies name whom they speak for, the nearest last. Not in any RFC, but what
/// ingresses send; RFC 7239 standardises it as `Forwarded`, which is not read.
const FORWARDED_FOR: &str = "x-forwarded-for";
/// The prefix of an IPv6 address that most providers assign to one customer, who can use every address in it
/// (RFC 6177).
const IPV6_PREFIX: u8 = 64;

/// The address of the client that sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Client(pub IpAddr);

impl Client {
    /// The client of a request that came from `peer`. When that is one of the `trusted` proxies, its
    /// header is believed: the last address in it that is not a trusted proxy is the client. What stands
    /// before could have been written by the client itself.
    pub(super) fn of(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
        let mut client = peer.to_canonical();
        let values = headers.get_all(FORWARDED_FOR).iter().rev();
        let mut named = values.flat_map(|value| value.to_str().unwrap_or_default().rsplit(','));
        while is_trusted(&client)
            && let Some(address) = named.next().and_then(address)
        {
            client = address;
        }
        Self(client)
    }

    /// What limits are counted by: the address, or the network that one IPv6 customer has.
    pub(super) fn key(self) -> IpAddr {
        match self.0 {
            IpAddr::V4(_) => self.0,
            IpAddr::V6(address) => {
                let host_bits = 128 - u32::from(IPV6_PREFIX);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> host_bits << host_bits))
            }
        }
    }
}

/// An address as proxies write it: some add the port.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address = text.parse().or_else(|_| text.parse::<std::net::SocketAddr>().map(|a| a.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn client(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, HeaderValue::from_str(value).unwrap());
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|network| network.parse().unwrap()).collect();
        Client::of(peer.parse().unwrap(), &headers, &trusted).0.to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted = &["10.0.0.0/8", "fd00::/8"];
        for (peer, forwarded, expected) in [
            ("192.0.2.1", &[][..], "192.0.2.1"),
            ("192.0.2.1", &["198.51.100.7"], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            ("::ffff:10.0.0.1", &["198.51.100.7:4711"], "198.51.100.7"),
            ("fd00::1", &["[2001:db8::7]:80"], "2001:db8::7"),
            // What the client wrote itself stands before what the proxies added.
            ("10.0.0.1", &["1.1.1.1, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1", &["1.1.1.1", "198.51.100.7", "10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1", &["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ] {
            assert_eq!(client(peer, forwarded, trusted), expected, "{peer} {forwarded:?}");
        }
        assert_eq!(client("10.0.0.1", &["198.51.100.7"], &[]), "10.0.0.1", "no proxy is trusted");
    }

    #[test]
    fn one_ipv6_customer_is_one_client() {
        let key = |address: &str| Client(address.parse().unwrap()).key();
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }
}
