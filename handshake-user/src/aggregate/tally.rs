//! What happened to some connections in some time: counts, and how long their setups took.

use std::time::Duration;

use handshake_common::{CloseStyle, Outcome, Stage, TlsClass, TlsOutcome, TlsVersion};
use hdrhistogram::Histogram;

use crate::{
    event::{ConnectionEvent, Tls, micros},
    join::advice,
};

/// Longest setup that is told from longer ones, microseconds: an hour.
const MAX_US: u64 = 3_600_000_000;
/// Significant decimal digits of durations: a quantile is at most 1 % above the duration that it stands for.
const DIGITS: u8 = 2;

/// Counts by a closed list of words, with slot 0 for what is unknown.
type By<const SLOTS: usize> = [u64; SLOTS];

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    openings: By<{ Outcome::SLOTS }>,
    syn_retransmits: u64,
    handshakes: By<{ TlsOutcome::SLOTS }>,
    /// Completed ones.
    negotiated: [By<{ TlsClass::SLOTS }>; TlsVersion::SLOTS],
    closings: By<{ CloseStyle::SLOTS }>,
    setups: u64,
    paid: RoundTrips,
    /// Allocates for its first duration only.
    durations: Option<Box<Histogram<u32>>>,
}

/// Round trips of the setups for which they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrips {
    /// How many setups those are.
    pub setups: u64,
    /// That they took.
    pub taken: u64,
    /// The fewest that the same ends could have taken.
    pub possible: u64,
}

impl Tally {
    /// What one event adds.
    pub(super) fn of(event: &ConnectionEvent) -> Self {
        let mut tally = Self::default();
        match (event.stage, &event.open, &event.tls, &event.close) {
            (Stage::Open, Some(open), ..) => {
                tally.openings[usize::from(Outcome::code_of(open.outcome))] = 1;
                tally.syn_retransmits = open.syn_retransmits.into();
            }
            (Stage::Tls, _, Some(tls), _) => tally.handshake(tls),
            (Stage::Close, .., Some(close)) => {
                tally.closings[usize::from(CloseStyle::code_of(close.style))] = 1;
            }
            _ => {}
        }
        if tells_setup(event) {
            tally.set_up(event);
        }
        tally
    }

    /// What the end of an opening that succeeded adds.
    pub(super) fn established(syn_retransmits: u16) -> Self {
        let mut tally = Self { syn_retransmits: syn_retransmits.into(), ..Self::default() };
        tally.openings[usize::from(Outcome::Established.code())] = 1;
        tally
    }

    fn handshake(&mut self, tls: &Tls) {
        self.handshakes[usize::from(TlsOutcome::code_of(tls.outcome))] = 1;
        if tls.outcome == Some(TlsOutcome::Completed) {
            let version = &mut self.negotiated[usize::from(TlsVersion::code_of(tls.version))];
            version[usize::from(TlsClass::code_of(tls.class))] = 1;
        }
    }

    fn set_up(&mut self, event: &ConnectionEvent) {
        self.setups = 1;
        if let (Some(taken), Some(possible)) = (advice::taken(event), advice::possible(event)) {
            self.paid = RoundTrips { setups: 1, taken: taken.into(), possible: possible.into() };
        }
        if let Some(took) = event.setup.and_then(|setup| setup.duration) {
            // It grows as needed, and the value is within what it can grow to.
            let _ = self.histogram().record(micros(took).clamp(1, MAX_US));
        }
    }

    fn histogram(&mut self) -> &mut Histogram<u32> {
        self.durations.get_or_insert_with(|| {
            Box::new(Histogram::new(DIGITS).expect("the library accepts this number of digits"))
        })
    }

    /// Adds what another one counted.
    pub(super) fn add(&mut self, other: &Self) {
        self.each(other, |own, theirs| *own = own.saturating_add(theirs));
        if let Some(durations) = &other.durations {
            let _ = self.histogram().add(&**durations);
        }
    }

    /// Takes away counts that were added. Durations stay.
    pub(super) fn subtract(&mut self, other: &Self) {
        self.each(other, |own, theirs| *own = own.saturating_sub(theirs));
    }

    fn each(&mut self, other: &Self, mut change: impl FnMut(&mut u64, u64)) {
        let Self { openings, syn_retransmits, handshakes, negotiated, closings, setups, paid, durations: _ } =
            self;
        change(syn_retransmits, other.syn_retransmits);
        change(setups, other.setups);
        change(&mut paid.setups, other.paid.setups);
        change(&mut paid.taken, other.paid.taken);
        change(&mut paid.possible, other.paid.possible);
        let lists: [(&mut [u64], &[u64]); 3] =
            [(openings, &other.openings), (handshakes, &other.handshakes), (closings, &other.closings)];
        let negotiated = negotiated.as_flattened_mut();
        for (own, theirs) in lists.into_iter().chain([(negotiated, other.negotiated.as_flattened())]) {
            own.iter_mut().zip(theirs).for_each(|(own, theirs)| change(own, *theirs));
        }
    }

    /// Whether nothing happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let ended = [&self.openings[..], &self.handshakes, &self.closings];
        self.setups == 0 && ended.iter().all(|counts| counts.iter().all(|&count| count == 0))
    }

    /// Openings that ended, however.
    #[must_use]
    pub fn openings(&self) -> u64 {
        self.openings.iter().sum()
    }

    /// Openings that ended this way.
    #[must_use]
    pub const fn opened(&self, outcome: Option<Outcome>) -> u64 {
        self.openings[Outcome::code_of(outcome) as usize]
    }

    /// Openings that are known to have failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.openings() - self.opened(Some(Outcome::Established)) - self.opened(None)
    }

    /// Segments of openings that were sent again: a client's SYNs, a server's SYN-ACKs.
    #[must_use]
    pub const fn syn_retransmits(&self) -> u64 {
        self.syn_retransmits
    }

    /// TLS handshakes that ended, however.
    #[must_use]
    pub fn handshakes(&self) -> u64 {
        self.handshakes.iter().sum()
    }

    /// TLS handshakes that ended this way.
    #[must_use]
    pub const fn shaken(&self, outcome: Option<TlsOutcome>) -> u64 {
        self.handshakes[TlsOutcome::code_of(outcome) as usize]
    }

    /// Completed TLS handshakes of this version.
    #[must_use]
    pub fn version(&self, version: Option<TlsVersion>) -> u64 {
        self.negotiated[usize::from(TlsVersion::code_of(version))].iter().sum()
    }

    /// Completed TLS handshakes of this class.
    #[must_use]
    pub fn class(&self, class: Option<TlsClass>) -> u64 {
        self.negotiated.iter().map(|version| version[usize::from(TlsClass::code_of(class))]).sum()
    }

    /// Closings, however.
    #[must_use]
    pub fn closings(&self) -> u64 {
        self.closings.iter().sum()
    }

    /// Closings of this style.
    #[must_use]
    pub const fn closed(&self, style: Option<CloseStyle>) -> u64 {
        self.closings[CloseStyle::code_of(style) as usize]
    }

    /// Connections that a RST ended, sent or received.
    #[must_use]
    pub const fn resets(&self) -> u64 {
        self.closed(Some(CloseStyle::ResetSent)) + self.closed(Some(CloseStyle::ResetReceived))
    }

    /// Setups of which at least something is known.
    #[must_use]
    pub const fn setups(&self) -> u64 {
        self.setups
    }

    /// The round trips of the setups, or `None` if they are known of none.
    #[must_use]
    pub fn round_trips(&self) -> Option<RoundTrips> {
        (self.paid.setups > 0).then_some(self.paid)
    }

    /// The duration that this share of the setups did not exceed, as far as durations are known. It is at
    /// most 1 % too long.
    #[must_use]
    pub fn setup(&self, quantile: f64) -> Option<Duration> {
        let durations = self.durations.as_ref().filter(|durations| !durations.is_empty())?;
        Some(Duration::from_micros(durations.value_at_quantile(quantile)))
    }
}

/// Whether it is this event that tells how the setup went, as far as that is known: with TLS its handshake,
/// else the closing, because only then it is certain that none came.
pub(super) fn tells_setup(event: &ConnectionEvent) -> bool {
    event.setup.is_some()
        && match event.stage {
            Stage::Tls => event.tls.is_some(),
            Stage::Close => event.tls.is_none(),
            Stage::Open | Stage::TimeWait => false,
        }
}
