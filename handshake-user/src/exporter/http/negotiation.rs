//! Which of the forms of `/metrics` a client wants, from its `Accept` and `Accept-Encoding`
//! (RFC 9110 §12.4, §12.5). Nothing is refused: a client that accepts none of them gets plain text.

use hyper::{
    HeaderMap,
    header::{ACCEPT, ACCEPT_ENCODING, HeaderName},
};

use crate::exporter::metrics::Format;

/// One form of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    pub(super) format: Format,
    pub(super) gzip: bool,
}

impl Variant {
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        Self { format: format(headers), gzip: gzip(headers) }
    }
}

/// How much something is wanted, in thousandths.
type Weight = u16;

/// How well a media range names a format: by all types, a type's subtypes, its name, or its version as well.
type Precision = u8;

fn format(headers: &HeaderMap) -> Format {
    let mut text = (0, 0);
    let mut open_metrics = (0, 0);
    for (range, parameters, weight) in elements(headers, &ACCEPT) {
        let of = |kind, subtypes, version| {
            let precision = matched(range, parameters.clone(), (kind, subtypes), version);
            precision.map_or((0, 0), |precision| (precision, weight))
        };
        text = text.max(of("text/plain", "text/*", "0.0.4"));
        open_metrics = open_metrics.max(of("application/openmetrics-text", "application/*", "1.0.0"));
    }
    // The most precise range decides on a type, and the weights on the types; of equal ones, the precision.
    let rank = |(precision, weight): (Precision, Weight)| (weight, precision);
    if open_metrics.1 > 0 && rank(open_metrics) > rank(text) { Format::OpenMetrics } else { Format::Text }
}

fn matched<'h>(
    range: &str,
    mut parameters: impl Iterator<Item = &'h str>,
    (kind, subtypes): (&str, &str),
    version: &str,
) -> Option<Precision> {
    if range == "*/*" {
        return Some(1);
    }
    if range.eq_ignore_ascii_case(subtypes) {
        return Some(2);
    }
    if !range.eq_ignore_ascii_case(kind) {
        return None;
    }
    match parameters.find_map(|parameter| value(parameter, "version")) {
        None => Some(3),
        Some(named) => (named.trim_matches('"') == version).then_some(4),
    }
}

fn gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    for (coding, _, weight) in elements(headers, &ACCEPT_ENCODING) {
        let place = match coding {
            "*" => &mut any,
            _ if ["gzip", "x-gzip"].iter().any(|name| coding.eq_ignore_ascii_case(name)) => &mut gzip,
            _ if coding.eq_ignore_ascii_case("identity") => &mut identity,
            _ => continue,
        };
        *place = (*place).max(Some(weight));
    }
    let gzip = gzip.or(any).unwrap_or(0);
    gzip > 0 && gzip >= identity.unwrap_or(0)
}

/// The elements of a list: what is named, its parameters, and its weight. One that is not well formed counts
/// for nothing. The HTTP layer bounds the headers.
fn elements<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = (&'h str, impl Iterator<Item = &'h str> + Clone, Weight)> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|element| {
        let mut parts = element.split(';').map(str::trim);
        let named = parts.next()?;
        let weight = match parts.clone().find_map(|parameter| value(parameter, "q")) {
            Some(weight) => weight_of(weight)?,
            None => 1000,
        };
        Some((named, parts, weight))
    })
}

fn value<'h>(parameter: &'h str, name: &str) -> Option<&'h str> {
    let (found, value) = parameter.split_once('=')?;
    found.trim_end().eq_ignore_ascii_case(name).then_some(value.trim_start())
}

/// `0`, `1`, or a fraction of at most three digits.
fn weight_of(text: &str) -> Option<Weight> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = fraction.len() <= 3 && fraction.bytes().all(|digit| digit.is_ascii_digit());
    let thousandths: Weight = format!("{fraction:0<3}").parse().ok().filter(|_| is_number)?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn headers(name: &HeaderName, values: &[&str]) -> HeaderMap {
        let values = values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap()));
        values.fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        })
    }

    #[test]
    fn openmetrics_is_for_clients_that_prefer_it() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for (accept, expected) in [
            (&[prometheus_2][..], Format::OpenMetrics),
            (&[prometheus_3], Format::OpenMetrics),
            (
                &["text/plain;q=0.5", "application/openmetrics-text ; Version = \"1.0.0\" ; q=0.501"],
                Format::OpenMetrics,
            ),
            (&["APPLICATION/OPENMETRICS-TEXT, */*"], Format::OpenMetrics),
            (&["application/openmetrics-text;q=0.001,text/plain;q=0"], Format::OpenMetrics),
            (&["application/*, text/plain;q=0.9"], Format::OpenMetrics),
            (&[], Format::Text),
            (&[browser], Format::Text),
            (&["*/*"], Format::Text),
            (&["text/plain, application/openmetrics-text"], Format::Text),
            // The precise range decides, whatever a vaguer one says.
            (&["*/*, application/openmetrics-text;q=0"], Format::Text),
            (&["application/openmetrics-text;q=0.1, application/*, text/plain;q=0.5"], Format::Text),
            // Versions that are not served.
            (&["application/openmetrics-text;version=0.0.1"], Format::Text),
            (&["application/openmetrics-text;version=2.0.0,text/plain;q=0.1"], Format::Text),
            (
                &[
                    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
                ],
                Format::Text,
            ),
        ] {
            assert_eq!(format(&headers(&ACCEPT, accept)), expected, "{accept:?}");
        }
    }

    #[test]
    fn gzip_is_for_clients_that_accept_it() {
        for (accept, expected) in [
            (&["gzip"][..], true),
            (&["deflate, GZIP;q=0.5, br"], true),
            (&["x-gzip"], true),
            (&["*"], true),
            (&["br", "gzip;q=1.0"], true),
            (&["identity;q=0.5, *;q=0.5"], true),
            (&[], false),
            (&["deflate"], false),
            (&["gzip;q=0"], false),
            (&["*, gzip;q=0.000"], false),
            (&["identity, gzip;q=0.9"], false),
            (&["gzipped"], false),
        ] {
            assert_eq!(gzip(&headers(&ACCEPT_ENCODING, accept)), expected, "{accept:?}");
        }
    }

    #[test]
    fn elements_that_are_not_well_formed_count_for_nothing() {
        let weights = ["1", "1.000", "0.5", "0.", "1.", "0"];
        assert_eq!(weights.map(weight_of), [1000, 1000, 500, 0, 1000, 0].map(Some));
        for bad in ["", "2", "1.001", "0.5555", "-1", "+0.1", "0.+5", ".5", "1e-1", "NaN", "0,5", "0.5 "] {
            assert_eq!(weight_of(bad), None, "{bad}");
        }
        for accept in [
            "application/openmetrics-text;q=2",
            "application/openmetrics-text;q=",
            "application/openmetrics-text;q",
            ";;;,,,;q=1;=;",
            "application/openmetrics-text\t;\tq=0",
        ] {
            let expected = if accept.ends_with(";q") { Format::OpenMetrics } else { Format::Text };
            assert_eq!(format(&headers(&ACCEPT, &[accept])), expected, "{accept:?}");
        }
        let long = "application/openmetrics-text;q=0.1,".repeat(400);
        assert_eq!(format(&headers(&ACCEPT, &[&long])), Format::OpenMetrics);
        let mut obscure = HeaderMap::new();
        obscure.insert(ACCEPT, HeaderValue::from_bytes(b"application/openmetrics-text;\xff").unwrap());
        assert_eq!(format(&obscure), Format::Text);
    }
}
