//! When the peer's FIN came to a time-wait minisocket.

use handshake_common::tcp::minisocket::Minisocket;

use super::clock::JiffiesClock;

/// `TCP_TIMEWAIT_LEN`, nanoseconds: how long TIME_WAIT lasts, counted from the last segment that the
/// minisocket answered.
pub(super) const TIME_WAIT_NS: u64 = 60_000_000_000;
/// No TCP sends its FIN again sooner: RFC 6298 asks for a second, Linux takes 200 ms, FreeBSD 30, Windows in
/// data centres 20.
const MIN_RETRANSMISSION_NS: u64 = 20_000_000;
const MS: u64 = 1_000_000;

/// A moment of CLOCK_MONOTONIC, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) ns: u64,
    /// How far it may be off.
    pub(super) grain_ns: u64,
}

/// When the FIN came to a minisocket that is in TIME_WAIT, made at `made_ns` in FIN_WAIT2, where it had not
/// come by `not_before_ns`. Returns `None` if the minisocket contradicts that.
pub(super) fn moment(
    tw: &Minisocket,
    clock: &JiffiesClock,
    made_ns: u64,
    not_before_ns: u64,
) -> Option<Moment> {
    stamped(tw, made_ns, not_before_ns).or_else(|| timed(tw, clock, not_before_ns))
}

/// By the stamp, which tells the FIN's time only if the FIN came in a later millisecond than the birth and
/// had a time stamp: without one the birth's stays.
fn stamped(tw: &Minisocket, made_ns: u64, not_before_ns: u64) -> Option<Moment> {
    if tw.entry_stamp_ms == 0 {
        return None;
    }
    let now_ms = tw.now_ns / MS;
    // The stamp has 32 bits.
    let age_ms =
        (now_ms & u64::from(u32::MAX)).wrapping_sub(u64::from(tw.entry_stamp_ms)) & u64::from(u32::MAX);
    let came_ms = now_ms.checked_sub(age_ms)?;
    if came_ms <= made_ns / MS {
        return None;
    }
    between((came_ms * MS).max(not_before_ns), (came_ms + 1) * MS, MS)
}

/// By the timer, which was set when the FIN came, and again by every later segment that the minisocket
/// answered, above all a FIN that the peer sent again.
fn timed(tw: &Minisocket, clock: &JiffiesClock, not_before_ns: u64) -> Option<Moment> {
    let set_at = clock.at(tw.expires.checked_sub(clock.jiffies_of(TIME_WAIT_NS))?)?;
    let until = set_at.checked_add(clock.tick_ns())?;
    if set_at > tw.now_ns {
        return None;
    }
    let last = between(set_at.max(not_before_ns), until, clock.tick_ns())?;
    let once = until.saturating_sub(MIN_RETRANSMISSION_NS) <= not_before_ns;
    let grain_ns = if once { last.grain_ns } else { last.grain_ns + (last.ns - not_before_ns) };
    Some(Moment { grain_ns, ..last })
}

fn between(from_ns: u64, until_ns: u64, grain_ns: u64) -> Option<Moment> {
    let length = until_ns.checked_sub(from_ns)?;
    Some(Moment { ns: from_ns + length / 2, grain_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 4 * MS;

    /// Read at 10 s; jiffy 0 was at 0.
    fn read(set_at_ns: u64, stamp_ms: u32) -> (Minisocket, JiffiesClock) {
        let mut clock = JiffiesClock::new(TICK);
        clock.observe(10_000 * MS, 2500);
        let expires = set_at_ns / TICK + 15_000;
        let tw = Minisocket {
            now_ns: 10_000 * MS,
            expires,
            entry_stamp_ms: stamp_ms,
            substate: 6,
            ..Minisocket::default()
        };
        (tw, clock)
    }

    #[test]
    fn stamp_of_the_fin_is_right_to_a_millisecond() {
        // A FIN that was sent again at 5.2 s has moved the timer.
        let (tw, clock) = read(5_200 * MS, 5_000);
        let moment = moment(&tw, &clock, 1_000 * MS, 1_000 * MS).unwrap();
        assert_eq!(moment, Moment { ns: 5_000_500_000, grain_ns: MS });
    }

    #[test]
    fn stamp_of_the_birth_is_none_of_the_fin() {
        let (tw, clock) = read(1_010 * MS, 1_000);
        let moment = moment(&tw, &clock, 1_000 * MS + 300_000, 1_000 * MS + 200_000).unwrap();
        assert_eq!(moment, Moment { ns: 1_010 * MS, grain_ns: TICK });
    }

    #[test]
    fn timer_that_may_have_been_set_again_is_coarse() {
        let (tw, clock) = read(5_200 * MS, 0);
        let moment = moment(&tw, &clock, 1_000 * MS, 1_000 * MS).unwrap();
        assert_eq!(moment.ns, 5_202 * MS);
        assert!(moment.ns - moment.grain_ns <= 1_000 * MS, "{moment:?}");
        // It was seen without a FIN just before.
        let again = super::moment(&tw, &clock, 1_000 * MS, 5_190 * MS).unwrap();
        assert_eq!(again, Moment { ns: 5_202 * MS, grain_ns: TICK });
    }

    #[test]
    fn fin_in_the_jiffy_of_the_birth_comes_after_it() {
        let (tw, clock) = read(1_000 * MS, 1_003);
        let moment = moment(&tw, &clock, 1_003_500_000, 1_003_400_000).unwrap();
        assert_eq!(moment, Moment { ns: 1_003_700_000, grain_ns: TICK });
    }

    #[test]
    fn contradiction_is_unknown() {
        // The timer was set before the socket was closed: another length than 60 s.
        let (tw, clock) = read(500 * MS, 0);
        assert_eq!(moment(&tw, &clock, 1_000 * MS, 1_000 * MS), None);
        let (tw, clock) = read(20_000 * MS, 0);
        assert_eq!(moment(&tw, &clock, 1_000 * MS, 1_000 * MS), None);
    }

    #[test]
    fn stamp_survives_the_wrap_of_its_32_bits() {
        let wrapped = (1_u64 << 32) * MS;
        let tw = Minisocket { now_ns: wrapped + 5 * MS, entry_stamp_ms: u32::MAX, ..Minisocket::default() };
        let moment = moment(&tw, &JiffiesClock::new(TICK), wrapped - 900 * MS, wrapped - 900 * MS).unwrap();
        assert_eq!(moment, Moment { ns: wrapped - MS / 2, grain_ns: MS });
    }
}
