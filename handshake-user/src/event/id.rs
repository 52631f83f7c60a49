//! The id of a connection: a number until somebody writes it down.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::untrusted::Untrusted;

/// Identifies a connection among the records of one host. An id of this program's own is kept as the numbers
/// that it consists of, so that it costs nothing where nobody reads it; its text is made by `Display`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(Form);

/// Each id has exactly one form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Form {
    /// `1007`, `1007.2`: the socket's number, and the ordinal of the connection among those of the socket,
    /// which begins with 0.
    Socket(u64, u16),
    /// `tls-1007`: a TLS handshake whose socket is unknown, by the number of its session.
    Session(u64),
    /// An id in a record that this program did not write.
    Foreign(Untrusted),
}

/// What precedes the number of a session.
const SESSION: &str = "tls-";

impl ConnectionId {
    /// The id of the connection that is the `ordinal`-th of its socket, counted from 0. The number is the
    /// socket's cookie, or the program's own where the kernel gives none.
    #[must_use]
    pub const fn of_socket(number: u64, ordinal: u16) -> Self {
        Self(Form::Socket(number, ordinal))
    }

    /// The id of a TLS handshake whose socket is unknown.
    #[must_use]
    pub const fn of_session(number: u64) -> Self {
        Self(Form::Session(number))
    }

    /// Bytes that it takes beside its own size.
    #[must_use]
    pub(crate) fn heap_size(&self) -> usize {
        match &self.0 {
            Form::Foreign(text) => text.raw().len(),
            Form::Socket(..) | Form::Session(_) => 0,
        }
    }
}

/// A foreign id is escaped.
impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Socket(number, 0) => write!(f, "{number:x}"),
            Form::Socket(number, ordinal) => write!(f, "{number:x}.{ordinal}"),
            Form::Session(number) => write!(f, "{SESSION}{number:x}"),
            Form::Foreign(text) => text.fmt(f),
        }
    }
}

/// Text that this program would not have written, such as `01007`, is a foreign id: it stays as it is.
impl From<&str> for ConnectionId {
    fn from(text: &str) -> Self {
        Self(own(text).unwrap_or_else(|| Form::Foreign(text.into())))
    }
}

fn own(text: &str) -> Option<Form> {
    if let Some(number) = text.strip_prefix(SESSION) {
        return Some(Form::Session(hexadecimal(number)?));
    }
    let Some((number, ordinal)) = text.split_once('.') else {
        return Some(Form::Socket(hexadecimal(text)?, 0));
    };
    let is_decimal = ordinal.bytes().all(|byte| byte.is_ascii_digit()) && !ordinal.starts_with('0');
    Some(Form::Socket(hexadecimal(number)?, ordinal.parse().ok().filter(|_| is_decimal)?))
}

/// The number, if this is how it is written: in small letters, without a sign or leading zeros.
fn hexadecimal(text: &str) -> Option<u64> {
    let is_canonical = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && (text == "0" || !text.starts_with('0'));
    u64::from_str_radix(text, 16).ok().filter(|_| is_canonical)
}

impl Serialize for ConnectionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            // Not escaped: the text itself.
            Form::Foreign(text) => text.serialize(serializer),
            Form::Socket(..) | Form::Session(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for ConnectionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Untrusted::deserialize(deserializer)?;
        Ok(Self(own(text.raw()).unwrap_or(Form::Foreign(text))))
    }
}

impl JsonSchema for ConnectionId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ConnectionId".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        String::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn id_is_written_as_documented() {
        assert_eq!(ConnectionId::of_socket(0x1007, 0).to_string(), "1007");
        assert_eq!(ConnectionId::of_socket(0x1007, 12).to_string(), "1007.12");
        assert_eq!(ConnectionId::of_session(0x1007).to_string(), "tls-1007");
        assert_eq!(ConnectionId::from("a\x1b\n").to_string(), "a\\x1b\\n");
    }

    #[test]
    fn only_canonical_text_is_an_id_of_our_own() {
        for text in ["0", "1007", "ffffffffffffffff", "1007.1", "1007.65535", "tls-0", "tls-1007"] {
            assert!(!matches!(ConnectionId::from(text).0, Form::Foreign(_)), "{text}");
        }
        for text in [
            "",
            "00",
            "01007",
            "+1007",
            "A",
            "1007.",
            "1007.0",
            "1007.01",
            "1007.+1",
            "1007.65536",
            ".1",
            "tls-",
            "tls-01",
            "tls-1.1",
            "10000000000000000",
            "1007 ",
            "é",
        ] {
            assert!(matches!(ConnectionId::from(text).0, Form::Foreign(_)), "{text}");
        }
    }

    fn ids_of_our_own() -> impl Strategy<Value = ConnectionId> {
        prop_oneof![
            (any::<u64>(), any::<u16>())
                .prop_map(|(number, ordinal)| ConnectionId::of_socket(number, ordinal)),
            any::<u64>().prop_map(ConnectionId::of_session),
        ]
    }

    proptest! {
        #[test]
        fn displayed_id_is_parsed_as_itself(id in ids_of_our_own()) {
            prop_assert_eq!(ConnectionId::from(id.to_string().as_str()), id.clone());
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(&json, &format!("\"{id}\""));
            prop_assert_eq!(serde_json::from_str::<ConnectionId>(&json).unwrap(), id);
        }

        #[test]
        fn any_text_is_serialised_as_it_was_read(text in prop_oneof![
            any::<String>(), "(tls-)?[0-9a-fA-F]{0,18}([.][0-9]{0,6})?",
        ]) {
            let json = serde_json::to_string(&text).unwrap();
            let id = serde_json::from_str::<ConnectionId>(&json).unwrap();
            prop_assert_eq!(&id, &ConnectionId::from(text.as_str()));
            prop_assert_eq!(serde_json::to_string(&id).unwrap(), json);
        }
    }
}
