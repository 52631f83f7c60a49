//! Connection close.

mod dead;
mod orderly;
mod reset;
mod time_wait;
mod traps;

use crate::{
    ends::Ends,
    testbed::{capture::Capture, packet::Side},
    truth,
};

/// The records of the end that closed first and whose socket was still there for the peer's FIN.
#[track_caller]
pub(crate) fn check_active(ends: &Ends, flow: &Capture, side: Side, style: &str) {
    let close = ends.close(side);
    close.assert_is("close.initiator", "local");
    close.assert_is("close.style", style);
    close.assert_near("close.ack_wait_us", truth::ack_wait(flow, side));
    close.assert_near("close.duration_us", truth::active_close(flow, side));
    close.assert_near_or_unknown("close.app_wait_us", truth::active_app_wait(flow, side));
}

/// The records of the end that closed first and did not wait: the kernel has replaced its socket with a
/// time-wait minisocket, and may not report what that receives.
#[track_caller]
fn check_orphan(ends: &Ends, flow: &Capture, side: Side) {
    let close = ends.close(side);
    close.assert_is("close.initiator", "local");
    close.assert_is("close.style", "four_segments");
    close.assert_near("close.ack_wait_us", truth::ack_wait(flow, side));
    close.assert_near_or_unknown("close.duration_us", truth::active_close(flow, side));
    close.assert_near_or_unknown("close.app_wait_us", truth::active_app_wait(flow, side));
}

/// The records of the end that closed second.
#[track_caller]
pub(crate) fn check_passive(ends: &Ends, flow: &Capture, side: Side, style: &str) {
    let close = ends.close(side);
    close.assert_is("close.initiator", "remote");
    close.assert_is("close.style", style);
    close.assert_near("close.app_wait_us", truth::passive_app_wait(flow, side));
    close.assert_near("close.ack_wait_us", truth::ack_wait(flow, side));
    close.assert_near("close.duration_us", truth::passive_close(flow, side));
}

/// The test process closed both ends itself.
#[track_caller]
fn check_own_process(ends: &Ends) {
    for side in [Side::Client, Side::Server] {
        ends.close(side).assert_process(std::process::id());
    }
}
