//! Hosts in settings: networks, and URLs that name several hosts of one server, separated by commas, as libpq has them:
//! `postgres://user:password@one:5432,two:5432/database`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use url::{ParseError, Position, Url};

/// What stands before the hosts of `url`, the hosts, and what stands after them.
fn divided(url: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let hosts = rest[..end].rfind('@').map_or(0, |at| at + 1);
    let before = scheme.len() + "://".len() + hosts;
    let after = scheme.len() + "://".len() + end;
    Some((&url[..before], &url[before..after], &url[after..]))
}

/// One URL for each host that `url` names, in their order.
pub(crate) fn each(url: &str) -> Vec<String> {
    let Some((before, hosts, after)) = divided(url) else { return vec![url.to_owned()] };
    hosts.split(',').map(|host| format!("{before}{host}{after}")).collect()
}

/// `url` with its path and query, and nothing else, as `edit` leaves them.
pub(crate) fn edited(url: &str, edit: impl FnOnce(&mut Url)) -> Result<String, ParseError> {
    let first = each(url).into_iter().next().unwrap_or_default();
    let mut first: Url = first.parse()?;
    edit(&mut first);
    let (before, hosts, _) = divided(url).unwrap_or_default();
    Ok(format!("{before}{hosts}{}", &first[Position::BeforePath..]))
}

/// Networks, or addresses that stand for themselves.
pub(crate) fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let network = |text: &String| {
        let alone = || text.parse::<IpAddr>().ok().map(IpNet::from);
        text.parse().ok().or_else(alone).ok_or_else(|| {
            D::Error::custom(format!(
                "{text} is no network; accepted: for example 10.0.0.0/8, 192.0.2.7 or fd00::/8"
            ))
        })
    };
    texts.iter().map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_one_host_or_several() {
        assert_eq!(each("amqp://h:5672/%2f"), ["amqp://h:5672/%2f"]);
        assert_eq!(
            each("postgres://u:p@w@a:1,[::1]:2,c/db?sslmode=disable"),
            [
                "postgres://u:p@w@a:1/db?sslmode=disable",
                "postgres://u:p@w@[::1]:2/db?sslmode=disable",
                "postgres://u:p@w@c/db?sslmode=disable"
            ]
        );
        assert_eq!(each("a,b"), ["a,b"]);
    }

    #[test]
    fn path_and_query_are_edited_for_all_hosts() {
        let edit = |url: &mut Url| {
            url.set_path("other");
            url.query_pairs_mut().append_pair("x", "a b");
        };
        let url = edited("postgres://u:p@a:1,b:2/db?y=1", edit).unwrap();
        assert_eq!(url, "postgres://u:p@a:1,b:2/other?y=1&x=a+b");
        assert!(edited("postgres", edit).is_err());
    }
}
