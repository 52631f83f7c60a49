//! The kernel functions that can be hooked: each is, for a moment, and made to run.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use rustix::net::sockopt::set_socket_linger;

use super::{
    probes::NEEDS_ROOT,
    report::{Finding, FunctionReport},
};
use crate::kernel::probe::{
    Kernel, LoadError,
    function::{FUNCTIONS, FunctionHook, FunctionProbes},
};

const PAUSE: Duration = Duration::from_millis(100);

/// Tries every function.
pub(super) fn look(kernel: &Result<Kernel, LoadError>) -> Vec<FunctionReport> {
    let all = |finding: &dyn Fn() -> Finding| {
        let report = |hook: &FunctionHook| FunctionReport {
            function: hook.prototype.function,
            tier: None,
            finding: finding(),
            hits: None,
            adds: hook.adds,
        };
        FUNCTIONS.iter().map(report).collect()
    };
    let attached = match kernel {
        Ok(kernel) => FunctionProbes::attach(kernel),
        Err(error) => return all(&|| Finding::refused(error.to_string())),
    };
    let attached = match attached {
        Ok(attached) => attached,
        Err(LoadError::NotPermitted) => return all(&|| Finding::not_tested(NEEDS_ROOT)),
        Err(error) => return all(&|| Finding::refused(error.to_string())),
    };
    // What it does not provoke (a SYN cookie) others on the host may.
    if let Err(error) = provoke() {
        tracing::debug!(%error, "cannot make connections on loopback");
    }
    let hits = attached.hits().ok();
    let report = attached.probes.iter().map(|probe| {
        let tier = probe.attached.as_ref().ok().copied();
        FunctionReport {
            function: probe.hook.prototype.function,
            tier,
            finding: match &probe.attached {
                Ok(_) => Finding::AVAILABLE,
                Err(reason) => Finding::refused(reason.to_string()),
            },
            hits: tier.and(hits).map(|hits| hits[probe.hook.function as usize]),
            adds: probe.hook.adds,
        }
    });
    report.collect()
}

/// Two connections on loopback whose ends in FIN_WAIT2 become minisockets: one gets the late FIN, one is
/// ended by a RST.
fn provoke() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let at = listener.local_addr()?;
    let clients = [TcpStream::connect(at)?, TcpStream::connect(at)?];
    let [(late, _), (reset, _)] = [listener.accept()?, listener.accept()?];
    drop(clients);
    // Until their FINs are acknowledged: with a delay of 40 ms.
    thread::sleep(PAUSE);
    // Closed with a timeout of 0, it sends a RST.
    set_socket_linger(&reset, Some(Duration::ZERO))?;
    drop((late, reset));
    // The last packets are handled in a soft interrupt, of this CPU or another one.
    thread::sleep(PAUSE);
    Ok(())
}
