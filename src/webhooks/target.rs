//! Where a webhook's requests may go. Whoever registers one has floodgate send requests, from inside of its network:
//! only to public addresses, therefore, unless the settings allow others.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// The longest URL of an endpoint, in bytes.
const MAX_URL_BYTES: usize = 2048;

/// What is not public of IPv4: IANA's registry of special-purpose addresses, and multicast (RFC 5771).
const NOT_PUBLIC_V4: [&str; 15] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];
/// What is public of IPv6 (RFC 4291 section 2.4), and what of it is not, by the same registry. 6to4 and Teredo hold
/// addresses of IPv4.
const PUBLIC_V6: &str = "2000::/3";
const NOT_PUBLIC_V6: [&str; 4] = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];

/// Where requests may go.
#[derive(Debug, Clone, Default)]
pub struct Networks {
    allowed: Vec<IpNet>,
}

impl Networks {
    /// To public addresses, and to `allowed` besides.
    pub fn besides_public(allowed: Vec<IpNet>) -> Self {
        Self { allowed }
    }

    /// Whether requests may go to `address`, or why not; without TLS only to the networks that were allowed.
    pub fn check(&self, address: IpAddr, with_tls: bool) -> Result<(), String> {
        let address = address.to_canonical();
        if self.allowed.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        match (is_public(address), with_tls) {
            (true, true) => Ok(()),
            (true, false) => Err(format!(
                "leads to {address} over http, and that is not in webhooks.allowed_networks"
            )),
            (false, _) => Err(format!(
                "leads to {address}, which is not public and not in webhooks.allowed_networks"
            )),
        }
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let is_in = |net: &&str| net.parse::<Ipv4Net>().is_ok_and(|net| net.contains(&address));
            !NOT_PUBLIC_V4.iter().any(is_in)
        }
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let is_in = |net: &str| net.parse::<Ipv6Net>().is_ok_and(|net| net.contains(&address));
    is_in(PUBLIC_V6) && !NOT_PUBLIC_V6.iter().any(|net| is_in(net))
}

/// The address of an endpoint: an absolute URL, `https`, or `http` into an allowed network. It may hold a token, so it is
/// not logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Target(Url);

/// Why a text is no address of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadTarget(String);

impl Target {
    /// Checks what can be known without looking the host up.
    pub fn parse(text: &str, networks: &Networks) -> Result<Self, BadTarget> {
        let refused = |why: String| Err(BadTarget(format!("url {why}")));
        if text.len() > MAX_URL_BYTES {
            return refused(format!("is longer than {MAX_URL_BYTES} bytes"));
        }
        let Ok(url) = Url::parse(text) else {
            return refused(
                "is not a URL; accepted: such as https://shop.example/events".to_owned(),
            );
        };
        if !url.username().is_empty() || url.password().is_some() {
            return refused("has a user or a password, which is not accepted".to_owned());
        }
        match url.scheme() {
            "https" => {}
            "http" if !networks.allowed.is_empty() => {}
            scheme => return refused(format!("begins with {scheme}:; accepted: https:")),
        }
        if url.host().is_none() {
            return refused("names no host".to_owned());
        }
        let target = Self(url);
        target.allowed_by(networks)?;
        Ok(target)
    }

    /// Whether it has TLS.
    pub fn has_tls(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Refuses one that has an address as its host to which no requests may go. A name has to be looked up.
    pub fn allowed_by(&self, networks: &Networks) -> Result<(), BadTarget> {
        let address = match self.0.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            _ => return Ok(()),
        };
        networks.check(address, self.has_tls()).map_err(|why| BadTarget(format!("url {why}")))
    }

    /// From the database, where only checked ones are. Where it leads is checked when it is used.
    pub(crate) fn stored(text: &str) -> Result<Self, url::ParseError> {
        Url::parse(text).map(Self)
    }

    /// The URL.
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// Its host and port, which may be shown.
    pub fn place(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        self.0.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_allowed_and_those_of_the_settings() {
        let none = Networks::default();
        for public in
            ["1.1.1.1", "172.15.0.1", "172.32.0.1", "198.20.0.1", "2606:4700::1111", "2a00::1"]
        {
            let address = public.parse().unwrap();
            assert!(none.check(address, true).is_ok(), "{public}");
            assert!(none.check(address, false).is_err(), "{public} without TLS");
        }
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "fc00::1",
            "fe80::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:a00:1::",
            "::127.0.0.1",
        ] {
            assert!(none.check(private.parse().unwrap(), true).is_err(), "{private}");
        }
        let ours = Networks::besides_public(vec!["10.1.0.0/16".parse().unwrap()]);
        for address in ["10.1.2.3", "::ffff:10.1.2.3"] {
            assert!(ours.check(address.parse().unwrap(), false).is_ok(), "{address}");
        }
        assert!(ours.check("10.2.0.1".parse().unwrap(), true).is_err());
    }

    #[test]
    fn a_target_is_checked_as_far_as_its_text_says() {
        let (none, ours) =
            (Networks::default(), Networks::besides_public(vec!["10.0.0.0/8".parse().unwrap()]));
        for good in [
            "https://shop.example/a?token=b",
            "https://1.1.1.1",
            "https://[2606:4700::1111]:8443/x",
        ] {
            assert!(Target::parse(good, &none).is_ok(), "{good}");
        }
        assert!(Target::parse("http://shop.internal/a", &ours).is_ok());
        assert!(Target::parse("http://10.0.0.1/a", &ours).is_ok());
        for (bad, why) in [
            ("shop.example", "such as https://"),
            ("http://shop.example", "accepted: https:"),
            ("ftp://shop.example", "accepted: https:"),
            ("https://u:p@shop.example", "password"),
            ("https://127.0.0.1/", "not public"),
            ("https://0x7f.1/", "127.0.0.1"),
            ("https://[::ffff:127.0.0.1]/", "not public"),
            ("https://2130706433/", "127.0.0.1"),
        ] {
            let error = Target::parse(bad, &none).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(
            Target::parse("http://1.1.1.1/", &ours).unwrap_err().to_string().contains("over http")
        );
        let long = format!("https://shop.example/{}", "x".repeat(2048));
        assert!(Target::parse(&long, &none).is_err());
    }
}
