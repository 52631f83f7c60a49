//! Real sockets over a link with a known delay: the records of `handshake trace` are compared with what the
//! link carried.
//!
//! Needs root. `cargo xtask test` builds the program and names it in `HANDSHAKE_BIN`; the tests of the link
//! itself (`testbed::`) do not need it.

/// Generates the tests of a function that takes an address family.
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

/// Generates the tests of a function that takes the programs of both ends, one per module named.
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

/// Generates the tests of a function that takes an address family and the side that acts first.
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

#[macro_use]
#[path = "netns/assert_time.rs"]
mod assert_time;
#[path = "netns/case.rs"]
mod case;
#[path = "netns/closes/mod.rs"]
mod closes;
#[path = "netns/denied.rs"]
mod denied;
#[path = "netns/ends.rs"]
mod ends;
#[path = "netns/functions.rs"]
mod functions;
#[path = "netns/handshakes.rs"]
mod handshakes;
#[path = "netns/histograms.rs"]
mod histograms;
#[path = "netns/lifecycle.rs"]
mod lifecycle;
#[path = "netns/listeners.rs"]
mod listeners;
#[path = "netns/log.rs"]
mod log;
#[path = "netns/nginx.rs"]
mod nginx;
#[path = "netns/opens/mod.rs"]
mod opens;
#[path = "netns/pair.rs"]
mod pair;
mod program;
#[path = "netns/programs.rs"]
mod programs;
#[path = "netns/record.rs"]
mod record;
#[path = "netns/report.rs"]
mod report;
#[path = "netns/server.rs"]
mod server;
#[path = "netns/socket.rs"]
mod socket;
#[path = "top/terminal.rs"]
#[allow(dead_code, reason = "another suite uses all of it")]
mod terminal;
#[path = "netns/testbed/mod.rs"]
mod testbed;
#[path = "netns/tls/mod.rs"]
mod tls;
#[path = "netns/top.rs"]
mod top;
#[path = "netns/tracer.rs"]
mod tracer;
#[path = "netns/truth.rs"]
mod truth;
