//! The kernel's `jiffies` on CLOCK_MONOTONIC. The tick advances both by the same length
//! (`tick_do_update_jiffies64`), so one moment of it is enough to know them all.

/// Levels of the timer wheel have 64 slots, each eight times as long as those of the level before
/// (`kernel/time/timer.c`: `LVL_BITS`, `LVL_CLK_SHIFT`, `TIMER_ARRAYSHIFT`; the same since Linux 4.8).
const SLOTS: u64 = 64;
const SHIFT_PER_LEVEL: u64 = 3;
const SLOT_IN_FLAGS: u32 = 22;

/// Which moment a number of `jiffies` is.
#[derive(Clone, Copy, Debug)]
pub struct JiffiesClock {
    tick_ns: u64,
    /// The moment of jiffy 0, before the boot: the earliest that was seen, for `jiffies` lag and never lead.
    zero_ns: Option<i64>,
}

impl JiffiesClock {
    /// A tick is as long as `CLOCK_MONOTONIC_COARSE` is fine.
    #[must_use]
    pub fn new(tick_ns: u64) -> Self {
        Self { tick_ns: tick_ns.max(1), zero_ns: None }
    }

    /// Nanoseconds of one tick.
    #[must_use]
    pub const fn tick_ns(&self) -> u64 {
        self.tick_ns
    }

    /// Both clocks as they were read at one moment.
    pub fn observe(&mut self, now_ns: u64, jiffies: u64) {
        let Some(zero) =
            self.length(jiffies).and_then(|length| i64::try_from(now_ns).ok()?.checked_sub(length))
        else {
            return;
        };
        self.zero_ns = Some(self.zero_ns.map_or(zero, |known| known.min(zero)));
    }

    /// When this jiffy began, nanoseconds. Returns `None` before the first observation.
    #[must_use]
    pub fn at(&self, jiffies: u64) -> Option<u64> {
        u64::try_from(self.zero_ns?.checked_add(self.length(jiffies)?)?).ok()
    }

    /// How many jiffies these nanoseconds are, to the nearest.
    #[must_use]
    pub const fn jiffies_of(&self, ns: u64) -> u64 {
        (ns + self.tick_ns / 2) / self.tick_ns
    }

    fn length(&self, jiffies: u64) -> Option<i64> {
        i64::try_from(jiffies).ok()?.checked_mul(i64::try_from(self.tick_ns).ok()?)
    }
}

/// The jiffy in which the kernel runs a timer: at the turn of its slot, not at `expires`. Returns `None` if
/// the two do not belong together.
#[must_use]
pub fn fires_at(expires: u64, timer_flags: u32) -> Option<u64> {
    let slot = u64::from(timer_flags >> SLOT_IN_FLAGS);
    let shift = slot / SLOTS * SHIFT_PER_LEVEL;
    let turn = expires >> shift;
    let ahead = (slot % SLOTS).wrapping_sub(turn) % SLOTS;
    let fires = turn.checked_add(ahead)?.checked_mul(1 << shift)?;
    (fires >= expires && fires - expires <= 1 << shift).then_some(fires)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `calc_index()` and `calc_wheel_index()` of `kernel/time/timer.c`.
    fn kernel_slot(expires: u64, clk: u64) -> (u32, u64) {
        let delta = expires - clk;
        let start = |level: u64| (SLOTS - 1) << ((level - 1) * SHIFT_PER_LEVEL);
        let level = (0..9).find(|&level| delta < start(level + 1)).unwrap();
        let shift = level * SHIFT_PER_LEVEL;
        let turn = (expires >> shift) + 1;
        (u32::try_from(level * SLOTS + turn % SLOTS).unwrap(), turn << shift)
    }

    proptest! {
        #[test]
        fn timers_fire_when_the_kernel_runs_their_slot(clk in 0_u64..1 << 40, delta in 1_u64..100_000) {
            let (slot, fires) = kernel_slot(clk + delta, clk);
            prop_assert_eq!(fires_at(clk + delta, slot << SLOT_IN_FLAGS | 0x123), Some(fires));
        }

        #[test]
        fn any_slot_is_read_without_overflow(expires in any::<u64>(), flags in any::<u32>()) {
            if let Some(fires) = fires_at(expires, flags) {
                prop_assert!(fires >= expires);
            }
        }
    }

    #[test]
    fn earliest_observation_of_a_jiffy_counts() {
        let mut clock = JiffiesClock::new(4_000_000);
        assert_eq!(clock.at(1), None);
        // Read 3 ms and then 1 ms after the tick.
        clock.observe(1_003_000_000, 1000);
        clock.observe(1_041_000_000, 1010);
        clock.observe(1_082_000_000, 1020);
        assert_eq!(clock.at(1000), Some(1_001_000_000));
        assert_eq!(clock.at(1025), Some(1_101_000_000));
        assert_eq!(clock.jiffies_of(60_000_000_000), 15_000);
        assert_eq!(clock.at(u64::MAX), None);
    }
}
