//! CPU times of a process, from /proc/PID/stat.

/// CPU time in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct CpuTimes {
    pub(crate) user: f64,
    pub(crate) system: f64,
    /// Of children that have been waited for, user and system.
    pub(crate) children: f64,
}

impl CpuTimes {
    /// Reads fields 14 to 17. The name before them may contain anything, so they are counted from its closing
    /// parenthesis. Returns `None` if the text is not that of a stat file.
    pub(crate) fn parse(stat: &str) -> Option<Self> {
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        #[expect(clippy::cast_precision_loss, reason = "a hundred or so")]
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        let mut seconds = || Some(fields.next()?.parse::<f64>().ok()? / per_second);
        Some(Self { user: seconds()?, system: seconds()?, children: seconds()? + seconds()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let ticks = rustix::param::clock_ticks_per_second();
        let stat = format!("7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 {ticks} 0 {ticks} {ticks} 20 0");
        assert_eq!(CpuTimes::parse(&stat), Some(CpuTimes { user: 1.0, system: 0.0, children: 2.0 }));
        assert_eq!(CpuTimes::parse("nothing"), None);
    }
}
