//! What TLS says when a handshake fails: alerts (RFC 8446 §6), and the reasons of OpenSSL's error queue.

/// The name of an alert's description.
#[must_use]
pub const fn name(description: u8) -> Option<&'static str> {
    Some(match description {
        0 => "close_notify",
        10 => "unexpected_message",
        20 => "bad_record_mac",
        21 => "decryption_failed",
        22 => "record_overflow",
        30 => "decompression_failure",
        40 => "handshake_failure",
        41 => "no_certificate",
        42 => "bad_certificate",
        43 => "unsupported_certificate",
        44 => "certificate_revoked",
        45 => "certificate_expired",
        46 => "certificate_unknown",
        47 => "illegal_parameter",
        48 => "unknown_ca",
        49 => "access_denied",
        50 => "decode_error",
        51 => "decrypt_error",
        60 => "export_restriction",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        86 => "inappropriate_fallback",
        90 => "user_canceled",
        100 => "no_renegotiation",
        109 => "missing_extension",
        110 => "unsupported_extension",
        111 => "certificate_unobtainable",
        112 => "unrecognized_name",
        113 => "bad_certificate_status_response",
        114 => "bad_certificate_hash_value",
        115 => "unknown_psk_identity",
        116 => "certificate_required",
        120 => "no_application_protocol",
        121 => "ech_required",
        _ => return None,
    })
}

/// OpenSSL adds this to an alert of the peer to make it a reason (`SSL_AD_REASON_OFFSET`, openssl/ssl.h).
const RECEIVED_ALERT: i32 = 1000;

/// The alert of the peer that a reason of OpenSSL's error queue stands for.
#[must_use]
pub fn received(reason: i32) -> Option<&'static str> {
    name(u8::try_from(reason.checked_sub(RECEIVED_ALERT)?).ok()?)
}

/// A reason of OpenSSL's error queue (`SSL_R_…`, openssl/sslerr.h); their numbers are the same from 1.1.1 on.
#[must_use]
pub const fn openssl_reason(reason: i32) -> Option<&'static str> {
    Some(match reason {
        123 => "connection type not set",
        134 => "certificate verify failed",
        155 => "https proxy request",
        156 => "http request",
        159 => "length mismatch",
        176 => "no certificates returned",
        179 => "no certificate assigned",
        183 => "no ciphers available",
        190 => "no method specified",
        191 => "no protocols available",
        193 => "no shared cipher",
        199 => "peer did not return a certificate",
        214 => "problems mapping cipher functions",
        221 => "no suitable key share",
        232 => "tlsv1 alert",
        235 => "no application protocol",
        238 => "bad signature",
        244 => "unexpected message",
        248 => "unknown cipher returned",
        252 => "unknown protocol",
        258 => "unsupported protocol",
        259 => "unsupported ssl version",
        266 => "wrong ssl version",
        267 => "wrong version number",
        292 => "version too low",
        294 => "unexpected eof while reading",
        397 => "ca md too weak",
        399 => "ee key too small",
        _ => return None,
    })
}

/// An error of GnuTLS (gnutls/gnutls.h).
#[must_use]
pub const fn gnutls_error(code: i32) -> Option<&'static str> {
    Some(match code {
        -8 => "unsupported version packet",
        -9 => "unexpected packet length",
        -10 => "invalid session",
        -12 => "fatal alert received",
        -15 => "unexpected packet",
        -21 => "unknown cipher suite",
        -24 => "decryption failed",
        -43 => "certificate error",
        -49 => "no certificate found",
        -53 => "push error",
        -54 => "pull error",
        -87 => "no cipher suites",
        -110 => "premature termination",
        -112 => "certificate required",
        -328 => "session EOF",
        -348 => "certificate verification error",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_of_the_peer_is_a_reason_above_a_thousand() {
        assert_eq!(received(1048), Some("unknown_ca"));
        assert_eq!(received(134), None);
        assert_eq!(received(i32::MIN), None);
        assert_eq!(openssl_reason(134), Some("certificate verify failed"));
    }
}
