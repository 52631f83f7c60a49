/// Asserts a comparison of times, or what happens only in time: both can fail on a busy machine. `cargo xtask
/// test` recognizes the message and may run a test that failed with it again, alone (xtask/src/repeat.rs); no
/// other failure is run again.
macro_rules! assert_time {
    ($condition:expr, $($message:tt)+) => {
        assert!($condition, "compares times: {}", format_args!($($message)+))
    };
}
