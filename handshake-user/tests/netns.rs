//! Real sockets over a link of a known length: what `handshake trace` says is compared with what really happened.
//!
//! Needs root. `cargo xtask test` builds the program and names it in `HANDSHAKE_BIN`; the tests of the link
//! itself (`testbed::`) need no program.

/// Makes tests of a function that takes a family.
macro_rules! for_each_family {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use crate::testbed::Family;

            #[test]
            fn ipv4() {
                super::$scenario(Family::V4);
            }

            #[test]
            fn ipv6() {
                super::$scenario(Family::V6);
            }
        }
    )+};
}

/// Makes tests of a function that takes the programs of both ends, named by their module.
macro_rules! for_each_program {
    ($scenario:ident: $($program:ident),+ $(,)?) => {
        mod $scenario {
            $(
                #[test]
                fn $program() {
                    super::$scenario(&crate::tls::programs::$program::PEERS);
                }
            )+
        }
    };
}

/// Makes tests of a function that takes a family and the side that acts first.
macro_rules! for_each_family_and_side {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use crate::testbed::Family;
            use crate::testbed::packet::Side;

            #[test]
            fn ipv4_by_the_client() {
                super::$scenario(Family::V4, Side::Client);
            }

            #[test]
            fn ipv6_by_the_client() {
                super::$scenario(Family::V6, Side::Client);
            }

            #[test]
            fn ipv4_by_the_server() {
                super::$scenario(Family::V4, Side::Server);
            }

            #[test]
            fn ipv6_by_the_server() {
                super::$scenario(Family::V6, Side::Server);
            }
        }
    )+};
}

/// Asserts what a busy machine can make untrue: a comparison of times. `cargo xtask test` knows these words, and may run a
/// test again that fails by them, alone (xtask/src/repeat.rs); nothing else that fails is run again.
macro_rules! assert_time {
    ($condition:expr, $($message:tt)+) => {
        assert!($condition, "compares times: {}", format_args!($($message)+))
    };
}

#[path = "netns/case.rs"]
mod case;
#[path = "netns/closes/mod.rs"]
mod closes;
#[path = "netns/lifecycle.rs"]
mod lifecycle;
#[path = "netns/opens/mod.rs"]
mod opens;
#[path = "netns/programs.rs"]
mod programs;
#[path = "netns/record.rs"]
mod record;
#[path = "netns/server.rs"]
mod server;
#[path = "netns/socket.rs"]
mod socket;
#[path = "netns/testbed/mod.rs"]
mod testbed;
#[path = "netns/tls/mod.rs"]
mod tls;
#[path = "netns/tracer.rs"]
mod tracer;
#[path = "netns/truth.rs"]
mod truth;
