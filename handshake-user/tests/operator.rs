//! What an operator relies on: the names of units, containers and pods; the rules and the dashboard, run by a
//! real Prometheus over real traffic; the Helm chart and its container;
//! queries over the records of a fleet.
//!
//! Needs root: run through `cargo xtask test`.

#[path = "operator/agreed.rs"]
mod agreed;
#[macro_use]
#[path = "netns/assert_time.rs"]
mod assert_time;
#[path = "operator/cgroups.rs"]
mod cgroups;
#[path = "operator/container.rs"]
mod container;
#[path = "operator/fleet.rs"]
mod fleet;
#[path = "operator/kubernetes.rs"]
mod kubernetes;
mod program;
#[path = "operator/prometheus.rs"]
mod prometheus;
#[path = "operator/rules.rs"]
mod rules;
#[allow(dead_code, reason = "of the suite `netns`, which uses all of it")]
#[path = "netns/socket.rs"]
mod socket;
#[allow(dead_code, reason = "of the suite `netns`, which uses all of it")]
#[path = "netns/testbed/mod.rs"]
mod testbed;
#[path = "operator/traffic.rs"]
mod traffic;
