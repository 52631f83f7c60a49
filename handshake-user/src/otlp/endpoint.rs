//! The URL of a collector.

use std::{
    fmt::{self, Display},
    str::FromStr,
};

use hyper::Uri;
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

/// Why a text is no URL of a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// Not a URL, or one of another scheme.
    #[error("not a URL such as http://collector:4318 or https://collector:4318")]
    NoUrl,
    /// It would be shown with the configuration.
    #[error("no user or password belongs in it; see OTEL_EXPORTER_OTLP_HEADERS")]
    HasUser,
}

/// The URL of a collector.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Endpoint {
    /// Whether connections begin with a TLS handshake.
    pub is_tls: bool,
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// It begins with a slash; a query is part of it.
    pub path: String,
}

impl Endpoint {
    /// The URL below this one at which collectors take a signal, `traces` or `metrics`.
    pub(super) fn of_signal(mut self, name: &str) -> Self {
        self.path = format!("{}/v1/{name}", self.path.trim_end_matches('/'));
        self
    }

    /// Host and port, as the header `Host` has them.
    #[must_use]
    pub fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let uri: Uri = text.parse().map_err(|_| EndpointError::NoUrl)?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(EndpointError::NoUrl),
        };
        let authority = uri.authority().ok_or(EndpointError::NoUrl)?;
        if authority.as_str().contains('@') {
            return Err(EndpointError::HasUser);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(EndpointError::NoUrl);
        }
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { is_tls, host, port, path })
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// The URL of a collector, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct OptionalEndpoint(Option<Endpoint>);

impl OptionalEndpoint {
    /// The URL.
    #[must_use]
    pub fn into_endpoint(self) -> Option<Endpoint> {
        self.0
    }
}

impl FromStr for OptionalEndpoint {
    type Err = EndpointError;

    /// An empty text is none.
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        Ok(Self(if text.is_empty() { None } else { Some(text.parse()?) }))
    }
}

impl TryFrom<String> for OptionalEndpoint {
    type Error = EndpointError;

    fn try_from(text: String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl Serialize for OptionalEndpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(endpoint) => serializer.collect_str(endpoint),
            None => serializer.serialize_str(""),
        }
    }
}

impl Display for OptionalEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(endpoint) => endpoint.fmt(f),
            None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_taken_apart_and_written_again() {
        for (text, traces) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("https://collector", "https://collector:443/v1/traces"),
            ("http://[::1]:4318/", "http://[::1]:4318/v1/traces"),
            ("http://10.0.0.1/otlp/", "http://10.0.0.1:80/otlp/v1/traces"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string().parse(), Ok(endpoint.clone()));
            assert_eq!(endpoint.of_signal("traces").to_string(), traces);
        }
        assert_eq!("http://[::1]:4318".parse::<Endpoint>().unwrap().host, "::1");
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["collector:4318", "grpc://collector:4317", "http://", "/v1/traces", "http://a b", "4318"]
        {
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointError::NoUrl), "{text}");
        }
        assert_eq!("http://a:b@c:1".parse::<Endpoint>(), Err(EndpointError::HasUser));
        assert_eq!("".parse::<OptionalEndpoint>(), Ok(OptionalEndpoint::default()));
    }
}
