//! The address of an end, or what redaction has left of it.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr};

use handshake_common::Family;
use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;

/// An address as a record has it. Its text says which of these it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// IPv4 or IPv6.
    Ip(IpAddr),
    /// The network that it is in.
    Network(IpNet),
    /// Its family and its hash.
    Hash(Family, u64),
}

impl Address {
    /// The address itself.
    #[must_use]
    pub const fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(ip),
            Self::Network(_) | Self::Hash(..) => None,
        }
    }

    /// The network with these prefix lengths (IPv4, IPv6) that it is in; the longest known one if that is
    /// larger.
    #[must_use]
    pub fn network(self, (ipv4, ipv6): (u8, u8)) -> Option<IpNet> {
        let known = match self {
            Self::Ip(ip) => IpNet::from(ip),
            Self::Network(network) => network,
            Self::Hash(..) => return None,
        };
        let wanted = if self.family() == Family::Ipv4 { ipv4 } else { ipv6 };
        let network = IpNet::new(known.addr(), known.prefix_len().min(wanted));
        network.ok().map(|network| network.trunc())
    }

    /// Whether it is in the network for certain.
    #[must_use]
    pub fn is_in(self, network: &IpNet) -> bool {
        match self {
            Self::Ip(ip) => network.contains(&ip),
            Self::Network(known) => network.contains(&known),
            Self::Hash(..) => false,
        }
    }

    /// Which kind of address it is.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::Ip(IpAddr::V4(_)) | Self::Network(IpNet::V4(_)) => Family::Ipv4,
            Self::Ip(IpAddr::V6(_)) | Self::Network(IpNet::V6(_)) => Family::Ipv6,
            Self::Hash(family, _) => family,
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip)
    }
}

/// `192.0.2.7`, `192.0.2.0/24`, `ipv4-00c0ffee00c0ffee`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Network(network) => network.fmt(f),
            Self::Hash(family, hash) => write!(f, "{family}-{hash:016x}"),
        }
    }
}

/// A text is no address.
#[derive(Debug, Error)]
#[error("neither an address, nor a network, nor a hash such as ipv4-00c0ffee00c0ffee")]
pub struct NoAddress;

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        let (family, hash) = text.split_once('-').ok_or(NoAddress)?;
        let is_hash = hash.len() == 16 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let family = Family::ALL.iter().find(|known| known.as_str() == family).filter(|_| is_hash);
        Ok(Self::Hash(*family.ok_or(NoAddress)?, u64::from_str_radix(hash, 16).map_err(|_| NoAddress)?))
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Address {
    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn text_says_what_it_is() {
        for text in [
            "192.0.2.7",
            "2001:db8::7",
            "192.0.2.0/24",
            "2001:db8::/48",
            "ipv4-00c0ffee00c0ffee",
            "ipv6-0000000000000000",
        ] {
            assert_eq!(address(text).to_string(), text);
            let json = format!("\"{text}\"");
            assert_eq!(serde_json::from_str::<Address>(&json).unwrap(), address(text));
            assert_eq!(serde_json::to_string(&address(text)).unwrap(), json);
        }
        for text in
            ["", "example.org", "192.0.2.7:80", "ipv4-", "ipv5-00c0ffee00c0ffee", "ipv4-C0FFEE00C0FFEE00"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn network_is_no_smaller_than_what_is_known() {
        let network = |text: &str, lengths| address(text).network(lengths).map(|network| network.to_string());
        assert_eq!(network("192.0.2.7", (24, 48)).unwrap(), "192.0.2.0/24");
        assert_eq!(network("2001:db8:1:2::7", (24, 48)).unwrap(), "2001:db8:1::/48");
        assert_eq!(network("192.0.2.0/24", (16, 48)).unwrap(), "192.0.0.0/16");
        assert_eq!(network("192.0.2.0/24", (32, 48)).unwrap(), "192.0.2.0/24");
        assert_eq!(network("ipv4-00c0ffee00c0ffee", (24, 48)), None);
    }

    #[test]
    fn it_is_in_a_network_only_for_certain() {
        let is_in = |text: &str, network: &str| address(text).is_in(&network.parse().unwrap());
        assert!(is_in("192.0.2.7", "192.0.2.0/24") && !is_in("192.0.2.7", "198.51.100.0/24"));
        assert!(is_in("192.0.2.0/24", "192.0.0.0/16") && is_in("192.0.2.0/24", "192.0.2.0/24"));
        assert!(!is_in("192.0.2.0/24", "192.0.2.0/25") && !is_in("ipv4-00c0ffee00c0ffee", "0.0.0.0/0"));
    }

    proptest! {
        #[test]
        fn no_text_is_two_things(text in "(ipv[46]-)?[0-9a-f.:/]{0,20}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
            }
        }
    }
}
