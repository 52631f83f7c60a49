//! The beginning of a server's certificate (RFC 5280 §4.1), which TLS 1.2 and before send in the clear: until
//! when it is valid, and what its key is.

use std::time::SystemTime;

use super::reader::Reader;

/// Handshake type `certificate` (RFC 5246 §7.4.2).
const CERTIFICATE: u8 = 11;

/// What the beginning of a certificate says; the rest of it need not be there. Nothing is verified: that is
/// the client's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The last second in which it is valid: `notAfter`, since the epoch.
    pub not_after: SystemTime,
    /// The key; `None` if it is behind the bytes that are known, or of a type without a name here.
    pub key: Option<PublicKey>,
    /// What the certificate itself is signed with, by the name in its standard; `None` if that has none here.
    pub signature: Option<&'static str>,
}

/// A certificate's key (`SubjectPublicKeyInfo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// Its type, in a word.
    pub kind: &'static str,
    /// Bits of the modulus of RSA.
    pub bits: Option<u16>,
    /// The curve, if it has a name here: that of IANA's registry of groups (RFC 8422 §5.1.1, RFC 8734).
    pub curve: Option<&'static str>,
}

impl Certificate {
    /// Parses the first certificate of a Certificate message including its header, of which only the
    /// beginning need be there. Returns `None` if it is none, is malformed, or ends before `notAfter`.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut reader = Reader(message);
        let [kind, lengths @ ..]: [u8; 10] = reader.array()?;
        let [message, list, length] = [0, 3, 6].map(|at| u24(&lengths, at));
        if kind != CERTIFICATE || list.checked_add(3) != Some(message) || length.checked_add(3)? > list {
            return None;
        }
        Self::read(Der { left: length, bytes: reader.0 })
    }

    /// Reads the DER of a certificate.
    fn read(mut der: Der<'_>) -> Option<Self> {
        let mut certificate = der.enter(tag::SEQUENCE).filter(|_| der.left == 0)?;
        let mut signed = certificate.enter(tag::SEQUENCE)?;
        if signed.next_tag()? == tag::VERSION {
            signed.take(tag::VERSION)?;
        }
        let _serial_number = signed.take(tag::INTEGER)?;
        let signature = signed.enter_whole(tag::SEQUENCE)?.take(tag::OBJECT_IDENTIFIER)?;
        let _issuer = signed.take(tag::SEQUENCE)?;
        let mut validity = signed.enter_whole(tag::SEQUENCE)?;
        let _not_before = validity.time()?;
        Some(Self {
            not_after: validity.time()?,
            key: signed.take(tag::SEQUENCE).and_then(|_subject| signed.key()),
            signature: signature_name(signature),
        })
    }
}

fn u24(bytes: &[u8; 9], at: usize) -> usize {
    bytes[at..at + 3].iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Tags of DER (X.690 §8.1.2).
mod tag {
    pub(super) const INTEGER: u8 = 2;
    pub(super) const BIT_STRING: u8 = 3;
    pub(super) const OBJECT_IDENTIFIER: u8 = 6;
    pub(super) const UTC_TIME: u8 = 23;
    pub(super) const GENERALIZED_TIME: u8 = 24;
    pub(super) const SEQUENCE: u8 = 0x30;
    /// `[0]`, constructed.
    pub(super) const VERSION: u8 = 0xa0;
}

/// The content of an element, or what is known of it.
#[derive(Clone, Copy)]
struct Der<'a> {
    /// Its length that is unread, of which …
    left: usize,
    /// … the first bytes are known.
    bytes: &'a [u8],
}

impl<'a> Der<'a> {
    fn next_tag(&self) -> Option<u8> {
        self.bytes.first().copied().filter(|_| self.left > 0)
    }

    /// Goes past the tag and the length of the next element (X.690 §8.1.3, §10.1) and returns what is known
    /// of its content.
    fn enter(&mut self, tag: u8) -> Option<Self> {
        let mut reader = Reader(self.bytes);
        let (found, first) = (reader.u8()?, reader.u8()?);
        let length = match first {
            short if short < 0x80 => usize::from(short),
            0x81 => usize::from(reader.u8()?),
            0x82 => usize::from(reader.u16()?),
            _ => return None,
        };
        let header = self.bytes.len() - reader.0.len();
        let whole = header + length;
        if found != tag || whole > self.left {
            return None;
        }
        let known = length.min(reader.0.len());
        let content = Self { left: length, bytes: &reader.0[..known] };
        (self.left, self.bytes) = (self.left - whole, &reader.0[known..]);
        Some(content)
    }

    /// The same of an element that is known to its end.
    fn enter_whole(&mut self, tag: u8) -> Option<Self> {
        self.enter(tag).filter(|content| content.bytes.len() == content.left)
    }

    /// Its content.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.enter_whole(tag).map(|content| content.bytes)
    }

    /// A date as certificates have it (RFC 5280 §4.1.2.5): in UTC, to the second; years until 2049 have two
    /// digits.
    fn time(&mut self) -> Option<SystemTime> {
        let tag = self.next_tag()?;
        let text = str::from_utf8(self.take(tag)?).ok()?.strip_suffix('Z')?;
        let full = match (tag, text.len()) {
            (tag::UTC_TIME, 12) if text < "50" => format!("20{text}"),
            (tag::UTC_TIME, 12) => format!("19{text}"),
            (tag::GENERALIZED_TIME, 14) => text.to_owned(),
            _ => return None,
        };
        if !full.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (year, month, day) = (&full[..4], &full[4..6], &full[6..8]);
        let (hour, minute, second) = (&full[8..10], &full[10..12], &full[12..]);
        humantime::parse_rfc3339(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z")).ok()
    }

    /// A `SubjectPublicKeyInfo`.
    fn key(&mut self) -> Option<PublicKey> {
        let mut info = self.enter(tag::SEQUENCE)?;
        let mut algorithm = info.enter_whole(tag::SEQUENCE)?;
        let kind = key_kind(algorithm.take(tag::OBJECT_IDENTIFIER)?)?;
        let (mut bits, mut curve) = (None, None);
        match kind {
            "rsa" | "rsa_pss" => bits = info.enter(tag::BIT_STRING).and_then(Self::modulus),
            "ecdsa" => curve = algorithm.take(tag::OBJECT_IDENTIFIER).and_then(curve_name),
            _ => {}
        }
        Some(PublicKey { kind, bits, curve })
    }

    /// The bits of the modulus of an RSA key (RFC 8017 §A.1.1), whose first bytes are enough for that.
    fn modulus(mut self) -> Option<u16> {
        const UNUSED_BITS: usize = 1;
        (self.left, self.bytes) = (self.left.checked_sub(UNUSED_BITS)?, self.bytes.strip_prefix(&[0])?);
        let modulus = self.enter(tag::SEQUENCE)?.enter(tag::INTEGER)?;
        let mut bytes = modulus.bytes.iter().copied();
        // A zero comes first where the highest bit is set, or the number would be negative.
        let (first, length) = match bytes.next()? {
            0 => (bytes.next()?, modulus.left - 1),
            positive @ 1..0x80 => (positive, modulus.left),
            _ => return None,
        };
        let bits = (8 * length).checked_sub(usize::try_from(first.leading_zeros()).ok()?)?;
        u16::try_from(bits).ok()
    }
}

/// The type of a key by its object identifier (RFC 3279 §2.3, RFC 4055 §1.2, RFC 5480 §2.1.1, RFC 8410 §3,
/// RFC 9881 §2).
const fn key_kind(identifier: &[u8]) -> Option<&'static str> {
    Some(match identifier {
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01" => "rsa",
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a" => "rsa_pss",
        b"\x2a\x86\x48\xce\x3d\x02\x01" => "ecdsa",
        b"\x2a\x86\x48\xce\x38\x04\x01" => "dsa",
        b"\x2b\x65\x70" => "ed25519",
        b"\x2b\x65\x71" => "ed448",
        b"\x60\x86\x48\x01\x65\x03\x04\x03\x11" => "ml_dsa_44",
        b"\x60\x86\x48\x01\x65\x03\x04\x03\x12" => "ml_dsa_65",
        b"\x60\x86\x48\x01\x65\x03\x04\x03\x13" => "ml_dsa_87",
        _ => return None,
    })
}

/// A named curve by its object identifier (RFC 5480 §2.1.1.1, RFC 5639 §4.1).
const fn curve_name(identifier: &[u8]) -> Option<&'static str> {
    Some(match identifier {
        b"\x2a\x86\x48\xce\x3d\x03\x01\x07" => "secp256r1",
        b"\x2b\x81\x04\x00\x22" => "secp384r1",
        b"\x2b\x81\x04\x00\x23" => "secp521r1",
        b"\x2b\x81\x04\x00\x0a" => "secp256k1",
        b"\x2b\x24\x03\x03\x02\x08\x01\x01\x07" => "brainpoolP256r1",
        b"\x2b\x24\x03\x03\x02\x08\x01\x01\x0b" => "brainpoolP384r1",
        b"\x2b\x24\x03\x03\x02\x08\x01\x01\x0d" => "brainpoolP512r1",
        _ => return None,
    })
}

/// What a certificate is signed with, by its object identifier (RFC 3279 §2.2, RFC 4055 §5, RFC 5758 §3, RFC
/// 8410 §3, RFC 9881 §2).
const fn signature_name(identifier: &[u8]) -> Option<&'static str> {
    Some(match identifier {
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04" => "md5WithRSAEncryption",
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05" => "sha1WithRSAEncryption",
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a" => "id-RSASSA-PSS",
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b" => "sha256WithRSAEncryption",
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c" => "sha384WithRSAEncryption",
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d" => "sha512WithRSAEncryption",
        b"\x2a\x86\x48\xce\x3d\x04\x01" => "ecdsa-with-SHA1",
        b"\x2a\x86\x48\xce\x3d\x04\x03\x02" => "ecdsa-with-SHA256",
        b"\x2a\x86\x48\xce\x3d\x04\x03\x03" => "ecdsa-with-SHA384",
        b"\x2a\x86\x48\xce\x3d\x04\x03\x04" => "ecdsa-with-SHA512",
        b"\x2b\x65\x70" => "id-Ed25519",
        b"\x2b\x65\x71" => "id-Ed448",
        b"\x60\x86\x48\x01\x65\x03\x04\x03\x11" => "id-ml-dsa-44",
        b"\x60\x86\x48\x01\x65\x03\x04\x03\x12" => "id-ml-dsa-65",
        b"\x60\x86\x48\x01\x65\x03\x04\x03\x13" => "id-ml-dsa-87",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";
    const EC: &[u8] = b"\x2a\x86\x48\xce\x3d\x02\x01";
    const P384: &[u8] = b"\x2b\x81\x04\x00\x22";
    const SHA384: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c";

    fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
        let header = match content.len() {
            ..0x80 => vec![tag, low],
            0x80..0x100 => vec![tag, 0x81, low],
            _ => vec![tag, 0x82, high, low],
        };
        [header, content].concat()
    }

    fn key(identifier: &[u8], parameters: &[u8], bits: &[u8]) -> Vec<u8> {
        let algorithm =
            element(tag::SEQUENCE, &[&element(tag::OBJECT_IDENTIFIER, &[identifier]), parameters]);
        element(tag::SEQUENCE, &[&algorithm, &element(tag::BIT_STRING, &[&[0], bits])])
    }

    /// An RSA key with this modulus.
    fn rsa(modulus: &[u8]) -> Vec<u8> {
        let numbers = [element(tag::INTEGER, &[modulus]), element(tag::INTEGER, &[&[1, 0, 1]])].concat();
        key(RSA, &[5, 0], &element(tag::SEQUENCE, &[&numbers]))
    }

    /// A Certificate message with a certificate of version 3 and another behind it.
    fn message(not_after: &[u8], key: &[u8]) -> Vec<u8> {
        let name = element(tag::SEQUENCE, &[&[0x31; 150]]);
        let signed = element(
            tag::SEQUENCE,
            &[
                &element(tag::VERSION, &[&element(tag::INTEGER, &[&[2]])]),
                &element(tag::INTEGER, &[&[7; 20]]),
                &element(tag::SEQUENCE, &[&element(tag::OBJECT_IDENTIFIER, &[SHA384]), &[5, 0]]),
                &name,
                &element(tag::SEQUENCE, &[&element(tag::UTC_TIME, &[b"260131120000Z"]), not_after]),
                &name,
                key,
                &element(0xa3, &[&[9; 300]]),
            ],
        );
        let certificate = element(tag::SEQUENCE, &[&signed, &[3; 100]]);
        let three = |length: usize| u32::try_from(length).unwrap().to_be_bytes()[1..].to_vec();
        let list = [three(certificate.len()), certificate, three(2), vec![0x30, 0]].concat();
        [vec![CERTIFICATE], three(list.len() + 3), three(list.len()), list].concat()
    }

    fn utc(text: &str) -> Vec<u8> {
        element(tag::UTC_TIME, &[text.as_bytes()])
    }

    fn generalized(text: &str) -> Vec<u8> {
        element(tag::GENERALIZED_TIME, &[text.as_bytes()])
    }

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn what_is_behind_the_known_bytes_is_unknown_and_never_another() {
        let message = message(&utc("361122040950Z"), &rsa(&[&[0, 0x80][..], &[1; 255]].concat()));
        let whole = Certificate::parse(&message).unwrap();
        let key = PublicKey { kind: "rsa", bits: Some(2048), curve: None };
        assert_eq!(
            whole,
            Certificate {
                not_after: at("2036-11-22T04:09:50Z"),
                key: Some(key),
                signature: Some("sha384WithRSAEncryption"),
            }
        );
        let mut known = Vec::new();
        for length in 0..message.len() {
            let part = Certificate::parse(&message[..length]);
            let bits = part.map(|part| part.key.map(|key| key.bits));
            let expected =
                bits.map(|bits| Certificate { key: bits.map(|bits| PublicKey { bits, ..key }), ..whole });
            assert_eq!(part, expected, "{length} bytes");
            known.push(bits);
        }
        known.dedup();
        assert_eq!(known, [None, Some(None), Some(Some(None)), Some(Some(Some(2048)))]);
    }

    #[test]
    fn keys_have_a_type_and_a_size_or_a_curve() {
        let of = |key: &[u8]| {
            let PublicKey { kind, bits, curve } =
                Certificate::parse(&message(&utc("361122040950Z"), key))?.key?;
            Some((kind, bits, curve))
        };
        let curve = element(tag::OBJECT_IDENTIFIER, &[P384]);
        assert_eq!(of(&key(EC, &curve, &[4; 97])), Some(("ecdsa", None, Some("secp384r1"))));
        // Parameters in full instead of a name (RFC 5480 §2.1.1 forbids them).
        assert_eq!(of(&key(EC, &element(tag::SEQUENCE, &[&curve]), &[4; 97])), Some(("ecdsa", None, None)));
        assert_eq!(of(&key(b"\x2b\x65\x70", &[], &[1; 32])), Some(("ed25519", None, None)));
        assert_eq!(of(&key(b"\x2b\x65\x72", &[], &[1; 32])), None, "no name here");
        assert_eq!(of(&rsa(&[&[0, 0xff][..], &[1; 383]].concat())), Some(("rsa", Some(3072), None)));
        assert_eq!(of(&rsa(&[&[0x7f][..], &[1; 127]].concat())), Some(("rsa", Some(1023), None)));
        for no_modulus in [&[][..], &[0], &[0x80, 1]] {
            assert_eq!(of(&rsa(no_modulus)), Some(("rsa", None, None)), "{no_modulus:?}");
        }
    }

    #[test]
    fn dates_are_those_of_the_standard_or_unknown() {
        let of = |date: &[u8]| Some(Certificate::parse(&message(date, &rsa(&[1])))?.not_after);
        assert_eq!(of(&utc("491231235959Z")), Some(at("2049-12-31T23:59:59Z")));
        assert_eq!(of(&utc("991231235959Z")), Some(at("1999-12-31T23:59:59Z")));
        assert_eq!(of(&generalized("20500101000000Z")), Some(at("2050-01-01T00:00:00Z")));
        let never = at("9999-12-31T23:59:59Z");
        assert_eq!(of(&generalized("99991231235959Z")), Some(never), "without an end (RFC 5280 §4.1.2.5)");
        assert_eq!(humantime::format_rfc3339_seconds(never).to_string(), "9999-12-31T23:59:59Z");
        for wrong in ["3611220409Z", "361122040950", "361322040950Z", "36112204095+Z", "361122040950+0100"] {
            assert_eq!(of(&utc(wrong)), None, "{wrong}");
        }
        assert_eq!(of(&generalized("20500101000000.5Z")), None);
        assert_eq!(of(&utc("500101000000Z")), None, "before the epoch");
    }

    #[test]
    fn lengths_that_contradict_each_other_are_no_certificate() {
        let message = message(&utc("361122040950Z"), &rsa(&[1]));
        assert!(Certificate::parse(&message).is_some());
        // The type; the lengths of the message, the list, the certificate, its DER and its version.
        for at in [0, 3, 6, 9, 13, 19] {
            for value in [message[at].wrapping_add(1), 0x80] {
                let mut wrong = message.clone();
                wrong[at] = value;
                assert_eq!(Certificate::parse(&wrong), None, "byte {at} = {value}");
            }
        }
        let none = [&[CERTIFICATE, 0, 0, 3][..], &[0; 3], &[1; 40]].concat();
        assert_eq!(Certificate::parse(&none), None, "an empty list");
    }
}
