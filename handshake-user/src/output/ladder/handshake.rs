//! The flights of a TLS handshake (RFC 8446 §2, RFC 5246 §7.3, RFC 5077 §3.1, RFC 7918), as each end sees
//! them.

use std::time::Duration;

use handshake_common::{Role, TlsClass, TlsOutcome, TlsVersion};

use super::{
    seen,
    step::{
        Direction::{Here, Received, Sent},
        Moment, Step,
    },
};
use crate::{
    event::{ConnectionEvent, Tls},
    join::advice,
    output::text::duration,
    untrusted::Untrusted,
};

/// What a handshake is drawn from, seen from this end.
struct View<'a> {
    tls: &'a Tls,
    role: Role,
    /// The ClientHello at this end.
    hello: Moment,
    /// The end of the handshake at this end.
    ended: Moment,
    rtt: Option<Duration>,
}

/// The handshake. Where the connection is not known, times count from the ClientHello.
pub(super) fn steps(record: &ConnectionEvent) -> Vec<Step> {
    let Some(tls) = &record.tls else { return Vec::new() };
    let Some(role) = tls.role.or(record.role) else {
        return vec![Step::new(Moment::Unknown, Here, format!("TLS handshake, {}", duration(tls.duration)))];
    };
    let view = View::new(record, tls, role);
    let steps = match tls.outcome {
        Some(TlsOutcome::Completed) => view.completed(),
        outcome => view.cut_short(outcome),
    };
    seen::place(steps, tls, role, view.ended)
}

impl<'a> View<'a> {
    fn new(record: &ConnectionEvent, tls: &'a Tls, role: Role) -> Self {
        let opened = record.open.as_ref().and_then(|open| open.duration);
        let rtt = record.open.as_ref().and_then(|open| open.rtt);
        let start = match (tls.start, &record.open) {
            (Some(us), _) => Moment::Measured(us),
            (None, None) if !tls.includes_hello_wait => Moment::Measured(Duration::ZERO),
            _ => Moment::Unknown,
        };
        // Without the ClientHello, the end is known from the setup if both end at the same moment.
        let at_setup = record.setup.and_then(|setup| setup.duration).filter(|_| ends_with_setup(role, tls));
        let ended = match (start, tls.duration) {
            (Moment::Measured(start), Some(us)) => Moment::Measured(start.saturating_add(us)),
            _ => Moment::measured(at_setup).or(Moment::derived(opened).later(tls.duration)),
        };
        // The client speaks as soon as it may; the server's last flight answers it.
        let hello = match (start, tls.includes_hello_wait) {
            (Moment::Unknown, true) => ended.earlier(rtt),
            (Moment::Unknown, false) => Moment::derived(opened),
            (start, _) => start,
        };
        Self { tls, role, hello, ended, rtt }
    }

    /// A flight of the client.
    fn client(&self, at: Moment, what: impl Into<String>) -> Step {
        Step::new(at, if self.role == Role::Client { Sent } else { Received }, what)
    }

    /// A flight of the server.
    fn server(&self, at: Moment, what: impl Into<String>) -> Step {
        Step::new(at, if self.role == Role::Server { Sent } else { Received }, what)
    }

    fn hello(&self) -> Step {
        let early = matches!(self.tls.class, Some(TlsClass::EarlyDataAccepted | TlsClass::EarlyDataRejected));
        let what = if early { "ClientHello + early data" } else { "ClientHello" };
        self.client(self.hello, what)
    }

    fn completed(&self) -> Vec<Step> {
        let mut steps = vec![self.hello()];
        match (self.tls.version, self.tls.class) {
            (Some(TlsVersion::Tls13), Some(class)) if class != TlsClass::FalseStart => {
                self.tls13(class, &mut steps);
            }
            (Some(version), Some(class)) if version != TlsVersion::Tls13 => self.tls12(class, &mut steps),
            _ => {
                steps.push(Step::new(
                    Moment::Unknown,
                    Here,
                    "… flights of which version or class is not known",
                ));
                steps.push(Step::new(self.ended, Here, "TLS handshake complete"));
            }
        }
        steps
    }

    /// The client speaks last.
    fn tls13(&self, class: TlsClass, steps: &mut Vec<Step>) {
        if advice::was_retried(self.tls) {
            let (asked, again) = match self.role {
                Role::Client => (self.hello.later(self.rtt), self.hello.later(self.rtt)),
                Role::Server => (self.hello.about(), self.hello.later(self.rtt)),
            };
            steps.push(self.server(asked, "HelloRetryRequest"));
            steps.push(self.client(again, "ClientHello, another key share"));
        }
        let (flight, answer) = match class {
            TlsClass::Resumed => ("ServerHello (resumed) … Finished", "Finished"),
            TlsClass::EarlyDataAccepted => {
                ("ServerHello (takes early data) … Finished", "EndOfEarlyData, Finished")
            }
            TlsClass::EarlyDataRejected => ("ServerHello (no early data) … Finished", "Finished"),
            _ => ("ServerHello, Certificate … Finished", "Finished"),
        };
        steps.push(self.server(self.flight_of_server(), flight));
        steps.push(self.client(self.ended, answer).remark("complete"));
    }

    /// Who spoke first speaks last in a full handshake; resumed, the client does.
    fn tls12(&self, class: TlsClass, steps: &mut Vec<Step>) {
        if class == TlsClass::Resumed {
            steps.push(self.server(self.flight_of_server(), "ServerHello (resumed), Finished"));
            steps.push(self.client(self.ended, "Finished").remark("complete"));
            return;
        }
        let (flight, keys) = match self.role {
            Role::Client => (self.hello.later(self.rtt), self.hello.later(self.rtt)),
            Role::Server => (self.ended.earlier(self.rtt), self.ended.about()),
        };
        steps.push(self.server(flight, "ServerHello, Certificate … ServerHelloDone"));
        let what = if class == TlsClass::FalseStart {
            "ClientKeyExchange, Finished + data"
        } else {
            "ClientKeyExchange, Finished"
        };
        steps.push(self.client(keys, what));
        steps.push(self.server(self.ended, "Finished").remark("complete"));
    }

    /// The flight that the client's last one answers.
    fn flight_of_server(&self) -> Moment {
        match self.role {
            Role::Client => self.ended.about(),
            Role::Server => self.ended.earlier(self.rtt),
        }
    }

    fn cut_short(&self, outcome: Option<TlsOutcome>) -> Vec<Step> {
        let alert = self.tls.alert.as_ref().map_or("?", Untrusted::raw);
        let error = self.tls.error.as_ref().map_or(alert, Untrusted::raw);
        let mut steps = vec![self.hello()];
        steps.push(match outcome {
            Some(TlsOutcome::Failed) if self.tls.alert.is_some() => match self.tls.alert_from {
                Some(Role::Client) => self.client(self.ended, format!("alert {alert}")).remark("failed"),
                Some(Role::Server) => self.server(self.ended, format!("alert {alert}")).remark("failed"),
                None => Step::new(self.ended, Here, format!("failed: alert {alert}")),
            },
            Some(TlsOutcome::Failed) if self.tls.error.is_some() => {
                Step::new(self.ended, Here, format!("failed: {error}"))
            }
            Some(TlsOutcome::Abandoned) => Step::new(self.ended, Here, "abandoned"),
            Some(TlsOutcome::Failed) => Step::new(self.ended, Here, "failed"),
            Some(TlsOutcome::Completed) | None => Step::new(self.ended, Here, "how it ended is not known"),
        });
        steps
    }
}

/// Whether the client may send application data only from the end of the handshake, as this end sees it.
fn ends_with_setup(role: Role, tls: &Tls) -> bool {
    match (role, tls.version, tls.class) {
        (_, None, _) | (_, _, None | Some(TlsClass::EarlyDataAccepted | TlsClass::FalseStart)) => false,
        (Role::Server, Some(version), Some(TlsClass::Full)) => version == TlsVersion::Tls13,
        _ => true,
    }
}
