//! Attempts to deliver a request, the pauses between them, what is said of trouble, and the thread of all
//! that.

use std::{
    fmt::Display,
    io::{self, Write as _},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use hyper::body::Bytes;
use prost::Message;
use rustix::thread::CapabilitySet;
use tokio::runtime;

use super::{
    client::{Answer, Client},
    own::OwnConnections,
    target::{Signal, Target},
};
use crate::{privileges, untrusted::Untrusted};

/// Before the second attempt. It doubles with each, up to the limit; half of it is chance.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long what waits is still sent at the end.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);
/// How often trouble is reported.
const SAY_AGAIN: Duration = Duration::from_mins(1);

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The collector took it, all but so many items.
    Taken { rejected: u64 },
    /// It will not take it.
    Refused,
    /// It answered with success, but not in the way of OTLP. It may have taken it.
    Unconfirmed,
    /// It may take it after this long.
    Again(Duration),
}

/// Delivers the requests of a signal.
pub(super) struct Delivery {
    signal: Signal,
    client: Client,
    pause: Duration,
    said: Option<Instant>,
}

impl Delivery {
    pub(super) const fn new(signal: Signal, target: Target, own: Arc<OwnConnections>) -> Self {
        Self { signal, client: Client::new(target, own), pause: FIRST_PAUSE, said: None }
    }

    /// Sends a request of so many items once. The pause before the next attempt grows with each in vain.
    pub(super) async fn attempt(&mut self, body: &Bytes, items: u64) -> Attempt {
        let attempt = match self.client.post(body).await {
            Ok(Answer::Taken { rejected, message }) => {
                let rejected = rejected.min(items);
                if rejected > 0 || message.is_some() {
                    let (message, what) = (message.unwrap_or_default(), self.signal.items());
                    self.say(&format_args!(
                        "the collector rejected {rejected} of {items} {what}: {message:.200}"
                    ));
                }
                Attempt::Taken { rejected }
            }
            Ok(Answer::Unconfirmed) => {
                self.say(&"the endpoint does not answer as a collector does: is it one?");
                Attempt::Unconfirmed
            }
            Ok(Answer::Refused(status)) => {
                self.say(&format_args!("the collector refused them: {status}"));
                Attempt::Refused
            }
            Ok(Answer::Later(status, asked)) => {
                self.say(&format_args!("the collector cannot take them now: {status}"));
                return self.again(asked);
            }
            Err(trouble) => {
                self.say(&Untrusted::from(trouble.to_string()));
                return self.again(None);
            }
        };
        self.pause = FIRST_PAUSE;
        attempt
    }

    /// Nobody took the request, and there will be no further attempt.
    pub(super) const fn given_up(&mut self) {
        self.pause = FIRST_PAUSE;
    }

    fn again(&mut self, asked: Option<Duration>) -> Attempt {
        let wait = next_pause(self.pause, fastrand::f64()).max(asked.unwrap_or_default());
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Attempt::Again(wait)
    }

    /// Reports trouble now and then.
    fn say(&mut self, what: &dyn Display) {
        if self.said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            self.said = Some(Instant::now());
            tracing::warn!("{} are not exported: {what}", self.signal.subject());
        }
    }
}

/// A message as the body of a request.
pub(super) fn body(message: &impl Message, compresses: bool) -> Bytes {
    let plain = message.encode_to_vec();
    if !compresses {
        return plain.into();
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Into memory it can always be written.
    let _ = encoder.write_all(&plain);
    encoder.finish().unwrap_or_default().into()
}

/// Half of it for certain, and the other half by chance, 0 to 1: collectors of many hosts are not to be asked
/// by all at once.
fn next_pause(pause: Duration, chance: f64) -> Duration {
    pause / 2 + (pause / 2).mul_f64(chance)
}

/// Starts a thread that gives up all its capabilities.
///
/// # Errors
/// When that is not possible.
pub(super) fn start<F: Future<Output = ()>>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    // One thread for names, which may wait long for an answer.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .thread_name("otlp-names")
        .build()?;
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        privileges::keep(CapabilitySet::empty());
        runtime.block_on(work());
        // The thread that asks for names may still wait.
        runtime.shutdown_background();
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_is_half_certain_and_half_chance() {
        let pause = Duration::from_secs(8);
        let pauses = [0.0, 0.5, 1.0].map(|chance| next_pause(pause, chance).as_secs());
        assert_eq!(pauses, [4, 6, 8]);
    }
}
