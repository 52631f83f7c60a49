//! Which connections are exported: a share of all, chosen by their ids, and each that failed or was slow.
//!
//! The choice is OpenTelemetry's consistent probability sampling: a trace is kept if the last 56 bits of its
//! id reach a threshold, and `tracestate` names the threshold, so that whoever counts traces knows how many
//! each stands for.

use std::{
    fmt::{self, Display},
    num::ParseFloatError,
    str::FromStr,
    time::Duration,
};

use handshake_common::Stage;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{ids::Ids, spans::failed};
use crate::event::ConnectionEvent;

/// Values that the randomness of a trace can have.
const RANGE: u64 = 1 << 56;

/// Not a share.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ShareError {
    /// Not a number.
    #[error("{0}")]
    NoNumber(#[from] ParseFloatError),
    /// Too small, or too large.
    #[error("not between 0 and 1")]
    OutOfBounds,
}

/// A share of all, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Share(f64);

impl Share {
    /// All.
    pub const ALL: Self = Self(1.0);

    /// Randomness from here on is kept.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 2^56, and a rounding of one in 2^53 does not matter"
    )]
    fn threshold(self) -> u64 {
        ((1.0 - self.0) * RANGE as f64) as u64
    }
}

impl TryFrom<f64> for Share {
    type Error = ShareError;

    fn try_from(share: f64) -> Result<Self, ShareError> {
        if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err(ShareError::OutOfBounds) }
    }
}

impl From<Share> for f64 {
    fn from(share: Share) -> Self {
        share.0
    }
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        text.parse::<f64>()?.try_into()
    }
}

impl Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which connections are exported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The share of those that neither failed nor were slow.
    pub share: Share,
    /// An opening, a TLS handshake or a setup that took longer is slow.
    pub slow: Option<Duration>,
}

impl Sampling {
    /// The `tracestate` of a connection that is exported; `None`: it is not.
    pub(super) fn keeps(&self, event: &ConnectionEvent) -> Option<String> {
        if self.share == Share::ALL {
            return Some(String::new());
        }
        if self.is_notable(event) {
            return Some("ot=th:0".to_owned());
        }
        let threshold = self.share.threshold();
        (Ids::of(event).randomness() >= threshold).then(|| format!("ot=th:{}", hexadecimal(threshold)))
    }

    fn is_notable(&self, event: &ConnectionEvent) -> bool {
        let open = event.open.as_ref().and_then(|open| open.duration);
        let tls = event.tls.as_ref().and_then(|tls| tls.duration);
        let setup = event.setup.and_then(|setup| setup.duration);
        let is_slow =
            self.slow.is_some_and(|slow| [open, tls, setup].into_iter().flatten().any(|took| took > slow));
        // Of what comes after the close, what the close said decides.
        let stages = [Stage::Open, Stage::Tls, Stage::Close];
        is_slow || stages.into_iter().any(|stage| failed(event, stage).is_some())
    }
}

/// Of 14 digits, without the zeros at the end.
fn hexadecimal(threshold: u64) -> String {
    let text = format!("{threshold:014x}");
    match text.trim_end_matches('0') {
        "" => "0".to_owned(),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use handshake_common::{CloseStyle, Outcome, Role, TlsClass, TlsOutcome, TlsVersion};

    use super::*;
    use crate::event::{
        ConnectionId,
        testing::{closed, opened, waited, with_tls},
    };

    fn sampling(share: f64) -> Sampling {
        Sampling { share: share.try_into().unwrap(), slow: Some(Duration::from_secs(1)) }
    }

    #[test]
    fn share_is_kept_and_says_what_it_stands_for() {
        let kept = (0..10_000).filter_map(|number| {
            let mut event = closed(Role::Client);
            event.id = ConnectionId::of_socket(number, 0);
            sampling(0.25).keeps(&event)
        });
        let kept: Vec<_> = kept.collect();
        assert!((2_350..2_650).contains(&kept.len()), "{}", kept.len());
        // (1 - 1/4) * 2^56 = 0xc0000000000000
        assert!(kept.iter().all(|state| state == "ot=th:c"));
    }

    #[test]
    fn nothing_and_all_are_shares() {
        let event = closed(Role::Client);
        assert_eq!(sampling(0.0).keeps(&event), None);
        assert_eq!(sampling(1.0).keeps(&event), Some(String::new()));
        assert!(Share::try_from(1.5).is_err() && Share::try_from(f64::NAN).is_err());
        assert!("-1".parse::<Share>().is_err() && "all".parse::<Share>().is_err());
    }

    #[test]
    fn failed_and_slow_connections_are_always_kept() {
        let mut refused = opened(Role::Client);
        refused.open.as_mut().unwrap().outcome = Some(Outcome::Refused);
        let mut alert = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        alert.tls.as_mut().unwrap().outcome = Some(TlsOutcome::Failed);
        let mut slow = closed(Role::Client);
        slow.open.as_mut().unwrap().duration = Some(Duration::from_millis(1001));
        let mut silent = closed(Role::Server);
        silent.close.as_mut().unwrap().style = Some(CloseStyle::TimedOut);
        for event in [refused, alert, slow.clone(), silent] {
            assert_eq!(sampling(0.0).keeps(&event).as_deref(), Some("ot=th:0"), "{event:?}");
        }
        assert_eq!(Sampling { slow: None, ..sampling(0.0) }.keeps(&slow), None);
    }

    #[test]
    fn what_follows_the_close_is_chosen_as_the_close_was() {
        for number in 0..100 {
            let (mut close, mut wait) = (closed(Role::Client), waited(Role::Client));
            close.id = ConnectionId::of_socket(number, 0);
            wait.id = close.id.clone();
            assert_eq!(sampling(0.5).keeps(&close), sampling(0.5).keeps(&wait));
        }
    }
}
