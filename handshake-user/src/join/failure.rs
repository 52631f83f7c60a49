//! Why a handshake failed, in the words of the library that says so: the reasons of OpenSSL's error queue,
//! and GnuTLS's errors. Alerts have their names in [`handshake_common::tls::wire::alert`].

use crate::tls::wire::alert;

/// OpenSSL adds this to an alert of the peer to make it a reason (`SSL_AD_REASON_OFFSET`, openssl/ssl.h).
const RECEIVED_ALERT: i32 = 1000;

/// The alert of the peer that a reason of OpenSSL's error queue stands for.
#[must_use]
pub(super) fn received(reason: i32) -> Option<&'static str> {
    alert::name(u8::try_from(reason.checked_sub(RECEIVED_ALERT)?).ok()?)
}

/// A reason of OpenSSL's error queue (`SSL_R_…`, openssl/sslerr.h); their numbers are the same from 1.1.1 on.
#[must_use]
pub(super) const fn openssl_reason(reason: i32) -> Option<&'static str> {
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
pub(super) const fn gnutls_error(code: i32) -> Option<&'static str> {
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
