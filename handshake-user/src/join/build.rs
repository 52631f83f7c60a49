//! Builds the event of a stage that ended from the raw record of the connection and the views of its TLS
//! handshake.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use handshake_common::{
    Connection, ConnectionFlags, Family, FastOpen, Role, Stage,
    tcp::{close, open},
    tls::wire::Burst,
};

use super::{
    flight, setup,
    stall::{self, Opening},
    time_wait::TimeWait,
    view::{TlsView, whole_micros},
};
use crate::{
    event::{
        Certificate, Close, ConnectionEvent, ConnectionId, Endpoint, Flight, Open, Process, SchemaVersion,
        Setup, Stall, Tls, Unseen,
    },
    host::Context,
    tls::wire::{self, cipher, group, signature},
    untrusted::Untrusted,
};

/// What the views of a connection came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Joined<'a> {
    /// The stage that ended.
    pub(super) stage: Stage,
    pub(super) connection: &'a Connection,
    /// Whether the socket is known. Otherwise only the process is, and `connection.id` is the session's
    /// number.
    pub(super) has_socket: bool,
    pub(super) tls: Option<&'a TlsView>,
    /// For a connection without TLS only at its end, when it is certain that none came.
    pub(super) setup: Option<Setup>,
    /// What became known after the socket.
    pub(super) time_wait: Option<TimeWait>,
}

impl<'a> Joined<'a> {
    /// A connection by itself.
    pub(super) fn connection(connection: &'a Connection) -> Self {
        let stage = connection.stage().unwrap_or(Stage::Close);
        Self { stage, connection, has_socket: true, tls: None, setup: None, time_wait: None }
    }

    /// The event, with the clock and the cgroups of the host.
    pub(super) fn event(self, context: &mut impl Context) -> ConnectionEvent {
        let Self { stage, connection: raw, has_socket, tls, setup, time_wait } = self;
        let is_unfollowed = raw.flags.contains(ConnectionFlags::PREEXISTING);
        // Of a connection that was not followed from its beginning, `open` is known only if it ended while we
        // watched.
        let opened = !is_unfollowed || raw.role == Role::Client.code();
        let ended_ns = match stage {
            Stage::Open => raw.open_ns,
            Stage::Close => raw.closed_ns,
            Stage::Tls => tls.and_then(|tls| tls.ended_ns).unwrap_or(0),
            Stage::TimeWait => time_wait.map_or(0, |time_wait| time_wait.at_ns),
        };
        let closed = matches!(stage, Stage::Close | Stage::TimeWait);
        ConnectionEvent {
            schema: SchemaVersion,
            stage,
            time: context.wall_time(ended_ns),
            host: context.host(),
            boot_id: context.boot_id(),
            id: id(raw, has_socket),
            role: raw.role().or(tls.and_then(|tls| tls.role)),
            family: raw.family(),
            local: has_socket.then(|| endpoint(raw.family(), raw.local, raw.local_port)),
            remote: has_socket.then(|| endpoint(raw.family(), raw.remote, raw.remote_port)),
            netns: has_socket.then_some(raw.netns),
            process: process(raw, context),
            preexisting: is_unfollowed && !raw.flags.contains(ConnectionFlags::MAYBE_UNFOLLOWED),
            open: (has_socket && opened).then(|| open_of(raw)),
            tls: tls.map(|tls| tls_of(tls, has_socket.then_some(raw))),
            setup,
            close: closed.then(|| close_of(raw, time_wait)),
            lifetime: if closed { micros(close::lifetime_us(raw)) } else { None },
        }
    }
}

fn micros(us: Option<u64>) -> Option<Duration> {
    us.map(Duration::from_micros)
}

const fn id(raw: &Connection, has_socket: bool) -> ConnectionId {
    if has_socket {
        ConnectionId::of_socket(raw.id, raw.generation)
    } else {
        ConnectionId::of_session(raw.id)
    }
}

fn open_of(raw: &Connection) -> Open {
    Open {
        outcome: open::outcome(raw),
        duration: micros(open::duration_us(raw)),
        rtt: micros(open::rtt_us(raw)),
        syn_retransmits: raw.syn_retransmits,
        final_ack: open::final_ack(raw),
        fast_open: open::fast_open(raw),
        fast_open_reason: open::fast_open_reason(raw),
        simultaneous: open::is_simultaneous(raw),
        syn_cookie: open::syn_cookie(raw),
        accept_wait: micros(open::accept_wait_us(raw)),
        listener: None,
    }
}

fn tls_of(tls: &TlsView, connection: Option<&Connection>) -> Tls {
    let took_syn_data =
        connection.is_some_and(|connection| open::fast_open(connection) == Some(FastOpen::DataAccepted));
    let start = connection.and_then(|connection| setup::hello(connection, tls));
    Tls {
        role: tls.role,
        outcome: tls.outcome,
        start,
        duration: tls.duration(),
        held: tls.held,
        compute: tls.compute,
        version: tls.version,
        class: tls.class,
        cipher: tls.cipher.map(|suite| cipher_name(suite).into()),
        sni: tls.sni.as_deref().map(Untrusted::from),
        alpn: tls.alpn.as_deref().map(Untrusted::from),
        group: tls.group.map(|group| group_name(group).into()),
        signature: tls.signature.map(|scheme| signature_name(scheme).into()),
        certificate: tls.certificate.map(|certificate| Box::new(certificate_of(&certificate))),
        alpn_offered: tls
            .alpn_offered
            .as_ref()
            .map(|names| names.iter().map(|name| name.as_str().into()).collect()),
        ech_offered: tls.ech_offered,
        alert: tls.alert.map(Untrusted::from),
        alert_from: tls.alert_from.filter(|_| tls.alert.is_some()),
        error: tls.error.as_deref().map(Untrusted::from),
        library: tls.library,
        source: tls.source,
        round_trips: tls.path().zip(tls.role).map(|(path, role)| path.round_trips(role)),
        hello_retry: tls.hello_retry == Some(true),
        hello_in_syn: tls.hello_in_syn.filter(|_| took_syn_data),
        includes_hello_wait: tls.includes_hello_wait,
        flights: start.zip(tls.bursts.as_deref()).map(|(start, bursts)| flights_of(start, tls, bursts)),
        stalls: start.zip(connection).and_then(|(start, connection)| stalls_of(start, tls, connection)),
    }
}

/// Those of the handshake: a server is followed until the client has its last one, which data may show.
fn flights_of(start: Duration, tls: &TlsView, bursts: &[Burst]) -> Vec<Flight> {
    let at = |ns| start.saturating_add(whole_micros(ns));
    let took_ns = tls.ended_ns.zip(tls.start_ns).map(|(end, start)| end.saturating_sub(start));
    let flights = flight::flights(bursts).into_iter();
    let flights = flights.filter(|flight| took_ns.is_none_or(|took_ns| flight.first_ns <= took_ns));
    let seen = |flight: flight::Flight| Flight {
        from: flight.from,
        first: at(flight.first_ns),
        last: at(flight.last_ns),
    };
    flights.map(seen).collect()
}

fn stalls_of(start: Duration, tls: &TlsView, connection: &Connection) -> Option<Vec<Stall>> {
    let seen = |stall: stall::Stall| Stall {
        end: stall.end,
        cause: stall.cause,
        duration: whole_micros(stall.duration_ns),
        until: start.saturating_add(whole_micros(stall.until_ns)),
    };
    Some(stall::stalls(tls, Opening::of(connection))?.into_iter().map(seen).collect())
}

fn close_of(raw: &Connection, time_wait: Option<TimeWait>) -> Close {
    let TimeWait { duration_ns, grain_ns, end, reused_by, .. } = time_wait.unwrap_or_default();
    Close {
        initiator: raw.initiator(),
        style: close::style(raw),
        duration: micros(close::duration_us(raw)),
        ack_wait: micros(close::ack_wait_us(raw)),
        app_wait: micros(close::app_wait_us(raw)),
        time_wait: duration_ns.map(whole_micros),
        time_wait_end: end,
        reused_by: reused_by.map(|(cookie, generation)| ConnectionId::of_socket(cookie, generation)),
        grain: (grain_ns > 0).then(|| whole_micros(grain_ns)),
        late_fin: raw.flags.contains(ConnectionFlags::PEER_FIN_UNSEEN) && raw.peer_fin_ns != 0,
        unseen: close::peer_fin_unseen(raw).then_some(Unseen::PeerFin),
    }
}

/// The name of a suite, or its number as IANA writes it.
fn cipher_name(suite: u16) -> String {
    cipher::name(suite).map_or_else(|| format!("0x{suite:04X}"), str::to_owned)
}

fn group_name(number: u16) -> String {
    group::name(number).map_or_else(|| format!("0x{number:04X}"), str::to_owned)
}

fn signature_name(scheme: u16) -> String {
    signature::name(scheme).map_or_else(|| format!("0x{scheme:04X}"), str::to_owned)
}

fn certificate_of(certificate: &wire::Certificate) -> Certificate {
    let key = certificate.key;
    Certificate {
        not_after: certificate.not_after,
        key_type: key.map(|key| key.kind.into()),
        key_bits: key.and_then(|key| key.bits),
        curve: key.and_then(|key| key.curve).map(Untrusted::from),
        signature: certificate.signature.map(Untrusted::from),
    }
}

fn endpoint(family: Option<Family>, bytes: [u8; 16], port: u16) -> Endpoint {
    let addr = if family == Some(Family::Ipv6) {
        IpAddr::V6(Ipv6Addr::from(bytes))
    } else {
        let [a, b, c, d, ..] = bytes;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    Endpoint { addr: Some(addr.into()), port }
}

fn process(raw: &Connection, context: &mut impl Context) -> Option<Process> {
    raw.owner().map(|by| {
        let cgroup = context.cgroup(raw.cgroup);
        // The earliest moment that is known: a process that had begun by then has been the same since.
        let began_ns = if raw.syn_ns == 0 { raw.open_ns } else { raw.syn_ns };
        let names = context.names(cgroup.as_ref(), raw.pid, began_ns);
        Process { by: Some(by), pid: raw.pid, comm: Some(comm(&raw.comm)), cgroup, names }
    })
}

/// The name of a process, as the kernel keeps it: it ends at the first zero byte.
fn comm(bytes: &[u8; 16]) -> Untrusted {
    let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    Untrusted::from_bytes(&bytes[..length])
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::SystemTime;

    use handshake_common::Initiator;

    use super::*;

    /// A context without a kernel: time starts at the epoch, every cgroup is the same.
    pub(crate) struct Epoch;

    impl Context for Epoch {
        fn wall_time(&self, monotonic_ns: u64) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_nanos(monotonic_ns)
        }

        fn cgroup(&mut self, id: u64) -> Option<Untrusted> {
            (id != 0).then(|| "/system.slice/web.service".into())
        }

        fn host(&self) -> Option<Untrusted> {
            Some("web1".into())
        }

        fn boot_id(&self) -> Option<Untrusted> {
            Some("0d4c0a4e-54a5-4a0c-8a0e-0f0c9a4d2b11".into())
        }
    }

    /// The event of a raw record without TLS.
    pub(crate) fn event(raw: &Connection) -> ConnectionEvent {
        Joined::connection(raw).event(&mut Epoch)
    }

    /// The event of a TLS handshake on this connection.
    pub(crate) fn tls_event(raw: &Connection, tls: &TlsView) -> ConnectionEvent {
        let setup = setup::setup(raw, Some(tls));
        Joined { stage: Stage::Tls, tls: Some(tls), setup, ..Joined::connection(raw) }.event(&mut Epoch)
    }

    /// An established client.
    pub(crate) fn client() -> Connection {
        Connection {
            id: 0x1007,
            role: Role::Client.code(),
            family: Family::Ipv4.code(),
            stage: Stage::Open.code(),
            local: [10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            remote: [10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            local_port: 51000,
            remote_port: 443,
            netns: 4_026_531_840,
            pid: 1234,
            comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
            cgroup: 7,
            syn_ns: 1_000_000_000,
            open_ns: 1_050_646_000,
            srtt_us: 50_646,
            flags: ConnectionFlags::ESTABLISHED | ConnectionFlags::OWNER_CONNECTS,
            ..Connection::default()
        }
    }

    /// The same connection at its end, which a time-wait minisocket took over.
    pub(crate) fn closed_with_unseen_fin() -> Connection {
        let mut raw = client();
        raw.stage = Stage::Close.code();
        raw.initiator = Initiator::Local.code();
        raw.flags.insert(ConnectionFlags::ACK_WITHOUT_FIN);
        raw.flags.insert(ConnectionFlags::PEER_FIN_UNSEEN);
        (raw.our_close_ns, raw.our_fin_ns) = (2_000_000_000, 2_000_005_000);
        (raw.fin_acked_ns, raw.closed_ns) = (2_050_000_000, 2_050_020_000);
        raw
    }

    #[test]
    fn open_record_serialises_as_documented() {
        let record = event(&client());
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(
            json,
            r#"{"schema":1,"event":"open","time":"1970-01-01T00:00:01.050646Z","host":"web1","boot_id":"0d4c0a4e-54a5-4a0c-8a0e-0f0c9a4d2b11","id":"1007","role":"client","family":"ipv4","local":{"addr":"10.0.0.1","port":51000},"remote":{"addr":"10.0.0.2","port":443},"netns":4026531840,"process":{"by":"connect","pid":1234,"comm":"curl","cgroup":"/system.slice/web.service","unit":"web.service"},"open":{"outcome":"established","duration_us":50646,"rtt_us":50646,"syn_retransmits":0,"final_ack":"bare","fast_open":"none"}}"#
        );
        assert_eq!(
            serde_json::from_str::<ConnectionEvent>(&json).unwrap(),
            record,
            "what is written can be read"
        );
    }

    #[test]
    fn close_with_unseen_peer_fin_says_so() {
        let raw = closed_with_unseen_fin();
        let json = serde_json::to_value(event(&raw)).unwrap();
        assert_eq!(
            json["close"],
            serde_json::json!({"initiator":"local","style":"four_segments","ack_wait_us":49995,"unseen":"peer_fin"})
        );
        assert_eq!(json["lifetime_us"], 1_050_020);
        assert_eq!(json["open"]["duration_us"], 50_646, "the close record holds the open section too");
    }

    #[test]
    fn preexisting_connection_has_no_open_section() {
        let mut raw = client();
        raw.role = 0;
        raw.pid = 0;
        raw.stage = Stage::Close.code();
        raw.flags = ConnectionFlags::PREEXISTING;
        let record = event(&raw);
        assert!(record.preexisting && record.open.is_none() && record.lifetime.is_none());
        assert_eq!(record.process, None);
    }

    #[test]
    fn unfollowed_connection_is_not_called_preexisting() {
        let mut raw = client();
        (raw.role, raw.stage) = (0, Stage::Close.code());
        raw.flags = ConnectionFlags::PREEXISTING;
        raw.flags.insert(ConnectionFlags::MAYBE_UNFOLLOWED);
        let record = event(&raw);
        assert!(!record.preexisting && record.open.is_none() && record.lifetime.is_none());
    }
}
