//! The event sequences of real kernels, one test for each course that a connection can take. Times in
//! milliseconds.

mod socket;

use handshake_common::{
    CloseStyle, Connection, FastOpen, FinalAck, Initiator, Outcome,
    tcp::{
        close, open,
        state::{self, DueRecords},
        states::{
            CLOSE, CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, SYN_RECV, SYN_SENT,
        },
    },
};
use socket::Socket;

const MS: u64 = 1_000_000;

/// A connection and its records.
struct ConnectionEvent {
    connection: Connection,
    opens: u32,
    closes: u32,
}

impl ConnectionEvent {
    fn client(at: u64) -> Self {
        let mut connection = Connection::default();
        state::begin_client(&mut connection, at * MS);
        Self { connection, opens: 0, closes: 0 }
    }

    fn adopted(old: u32) -> Self {
        let mut connection = Connection::default();
        assert!(state::is_followed(old));
        state::adopt(&mut connection, old);
        Self { connection, opens: 0, closes: 0 }
    }

    fn count(&mut self, due: DueRecords) {
        self.opens += u32::from(due.contains(DueRecords::OPEN));
        self.closes += u32::from(due.contains(DueRecords::CLOSE));
    }

    fn goes(&mut self, old: u32, new: u32, at: u64, sock: &Socket) -> &mut Self {
        let due = state::transition(&mut self.connection, sock, old, new, at * MS);
        self.count(due);
        let once = self.connection;
        let again = state::transition(&mut self.connection, sock, old, new, (at + 1) * MS);
        assert_eq!((again, self.connection), (DueRecords::empty(), once), "{old} to {new} handled twice");
        self
    }

    fn resets(&mut self) -> &mut Self {
        let due = state::reset_sent(&mut self.connection);
        self.count(due);
        self
    }

    fn ends(&mut self) -> &mut Self {
        let due = state::destroyed(&mut self.connection);
        self.count(due);
        self
    }

    fn style(&self) -> (Option<Initiator>, Option<CloseStyle>) {
        assert_eq!(self.closes, 1, "one close record");
        (self.connection.initiator(), close::style(&self.connection))
    }

    /// (`duration`, `ack_wait`, `app_wait`) in milliseconds.
    fn waits(&self) -> (Option<u64>, Option<u64>, Option<u64>) {
        let ms = |us: Option<u64>| us.map(|us| us / 1000);
        let it = &self.connection;
        (ms(close::duration_us(it)), ms(close::ack_wait_us(it)), ms(close::app_wait_us(it)))
    }
}

fn established_client() -> ConnectionEvent {
    let mut story = ConnectionEvent::client(100);
    let sock = Socket { srtt_us: 50_123 << 3, ..Socket::default() };
    story.goes(SYN_SENT, ESTABLISHED, 150, &sock);
    assert_eq!(story.opens, 1);
    story
}

#[test]
fn client_opens() {
    let story = established_client();
    assert_eq!(open::outcome(&story.connection), Some(Outcome::Established));
    assert_eq!(open::duration_us(&story.connection), Some(50_000));
    assert_eq!(open::rtt_us(&story.connection), Some(50_123));
    assert_eq!(open::final_ack(&story.connection), Some(FinalAck::Bare));
}

#[test]
fn two_ends_that_dial_each_other_take_no_sample_for_a_round_trip() {
    let mut story = ConnectionEvent::client(100);
    let sock = Socket { srtt_us: 25_270 << 3, ..Socket::default() };
    story.goes(SYN_SENT, SYN_RECV, 125, &sock);
    story.goes(SYN_RECV, ESTABLISHED, 150, &sock);
    assert_eq!(story.opens, 1);
    assert!(open::is_simultaneous(&story.connection));
    assert_eq!(open::duration_us(&story.connection), Some(50_000));
    assert_eq!(open::rtt_us(&story.connection), None, "it began at the SYN-ACK");
    assert_eq!(open::final_ack(&story.connection), None);
    assert!(!open::is_simultaneous(&passive(true, false).connection), "a server's SYN_RECV");
}

#[test]
fn deferred_opening_is_timed_from_the_syn() {
    let fastopen_connect = handshake_common::ConnectionFlags::DEFERRED_SYN.bits();
    let mut story = ConnectionEvent::client(100);
    let sock = Socket { syn_facts: fastopen_connect, last_sent_ns: 400 * MS, ..Socket::default() };
    story.goes(SYN_SENT, ESTABLISHED, 450, &sock);
    assert_eq!(open::duration_us(&story.connection), Some(50_000), "not the 350 ms since connect()");

    let mut lost = ConnectionEvent::client(100);
    let sock = Socket { syn_facts: fastopen_connect, total_retrans: 1, ..Socket::default() };
    state::syn_retransmitted(&mut lost.connection, &sock, 400, 1400 * MS);
    lost.goes(SYN_SENT, ESTABLISHED, 1450, &sock);
    assert_eq!(open::duration_us(&lost.connection), Some(1_050_000), "from the first SYN");
}

#[test]
fn refused_opening_ends_at_once() {
    let mut story = ConnectionEvent::client(100);
    state::reset_received(&mut story.connection, &Socket::default(), SYN_SENT);
    story.goes(SYN_SENT, CLOSE, 150, &Socket { err: 111, ..Socket::default() }).ends();
    assert_eq!((story.opens, story.closes), (1, 0));
    assert_eq!(open::outcome(&story.connection), Some(Outcome::Refused));
    assert_eq!(open::fast_open(&story.connection), Some(FastOpen::None));
}

#[test]
fn opening_that_never_began_says_why_as_far_as_that_is_certain() {
    let ended = |sock: Socket| {
        let mut story = ConnectionEvent::client(100);
        story.goes(SYN_SENT, CLOSE, 100, &sock).ends();
        assert_eq!((story.opens, story.closes), (1, 0));
        open::outcome(&story.connection)
    };
    let fastopen_connect = handshake_common::ConnectionFlags::DEFERRED_SYN.bits();
    let no_syn = Socket { idle: true, ..Socket::default() };
    assert_eq!(ended(Socket { lacks_ends: true, ..no_syn.clone() }), Some(Outcome::NoLocalPort));
    assert_eq!(ended(no_syn.clone()), None, "for example no route for the port that was chosen");
    assert_eq!(ended(Socket { syn_facts: fastopen_connect, ..no_syn.clone() }), Some(Outcome::Aborted));
    assert_eq!(ended(Socket::default()), Some(Outcome::Aborted), "the SYN was on its way");
    // When a time-out or a RST ends it, the SYN is no longer in flight.
    assert_eq!(ended(Socket { err: 110, lacks_ends: true, ..no_syn }), Some(Outcome::TimedOut));
}

#[test]
fn stray_segment_does_not_end_the_opening() {
    let mut story = ConnectionEvent::client(100);
    story.resets();
    story.goes(SYN_SENT, ESTABLISHED, 150, &Socket::default());
    story.goes(ESTABLISHED, CLOSE, 200, &Socket::default()).ends();
    assert_eq!(story.style(), (None, None), "that RST was not about this connection");
}

#[test]
fn active_close_into_the_minisocket() {
    let mut story = established_client();
    story.goes(ESTABLISHED, FIN_WAIT1, 200, &Socket::default());
    story.goes(FIN_WAIT1, FIN_WAIT2, 250, &Socket { newest_acked_sent_us: 200_000, ..Socket::default() });
    story.goes(FIN_WAIT2, CLOSE, 250, &Socket::default()).ends();
    assert_eq!(story.style(), (Some(Initiator::Local), Some(CloseStyle::FourSegments)));
    assert_eq!(story.waits(), (None, Some(50), None), "when the peer's FIN came nobody saw");
    assert!(close::peer_fin_unseen(&story.connection));
}

#[test]
fn active_close_with_fin_and_ack_in_one_segment() {
    let mut story = established_client();
    let segment = Socket { segment_clock_ns: 7, newest_acked_sent_us: 200_000, ..Socket::default() };
    story.goes(ESTABLISHED, FIN_WAIT1, 200, &Socket::default());
    story.goes(FIN_WAIT1, FIN_WAIT2, 250, &segment);
    story.goes(FIN_WAIT2, CLOSE, 250, &Socket { done: true, ..segment }).ends();
    assert_eq!(story.style(), (Some(Initiator::Local), Some(CloseStyle::ThreeSegments)));
    assert_eq!(story.waits(), (Some(50), Some(50), Some(0)));
}

#[test]
fn half_close_includes_the_wait_for_the_peers_program() {
    let mut story = established_client();
    story.goes(ESTABLISHED, FIN_WAIT1, 200, &Socket::default());
    story.goes(FIN_WAIT1, FIN_WAIT2, 250, &Socket { segment_clock_ns: 7, ..Socket::default() });
    story
        .goes(FIN_WAIT2, CLOSE, 650, &Socket { done: true, segment_clock_ns: 8, ..Socket::default() })
        .ends();
    assert_eq!(story.style(), (Some(Initiator::Local), Some(CloseStyle::FourSegments)));
    assert_eq!(story.waits(), (Some(450), Some(50), Some(400)));
}

#[test]
fn fin_behind_data_is_timed_from_its_sending() {
    let mut story = established_client();
    story.goes(ESTABLISHED, FIN_WAIT1, 200, &Socket { unsent: true, ..Socket::default() });
    let acked = Socket { newest_acked_sent_us: 1_274_000, ..Socket::default() };
    story.goes(FIN_WAIT1, FIN_WAIT2, 1324, &acked);
    assert_eq!(close::ack_wait_us(&story.connection), Some(50_000));

    let mut unclear = established_client();
    unclear.goes(ESTABLISHED, FIN_WAIT1, 200, &Socket { unsent: true, ..Socket::default() });
    unclear.goes(FIN_WAIT1, FIN_WAIT2, 1324, &Socket { total_retrans: 1, ..acked });
    assert_eq!(close::ack_wait_us(&unclear.connection), None, "sent again: which one was acknowledged?");
}

#[test]
fn simultaneous_close() {
    let mut story = established_client();
    story.goes(ESTABLISHED, FIN_WAIT1, 200, &Socket::default());
    story.goes(FIN_WAIT1, CLOSING, 225, &Socket::default());
    let last = Socket { all_acked: true, newest_acked_sent_us: 200_000, ..Socket::default() };
    story.goes(CLOSING, CLOSE, 250, &last).ends();
    assert_eq!(story.style(), (Some(Initiator::Both), Some(CloseStyle::Simultaneous)));
    assert_eq!(story.waits(), (Some(25), Some(50), None));
}

fn passive(owes_ack: bool, unsent: bool) -> ConnectionEvent {
    let mut story = ConnectionEvent::adopted(SYN_RECV);
    story.goes(SYN_RECV, ESTABLISHED, 100, &Socket { srtt_us: 50_123 << 3, ..Socket::default() });
    story.goes(ESTABLISHED, CLOSE_WAIT, 200, &Socket::default());
    story.goes(CLOSE_WAIT, LAST_ACK, 230, &Socket { unsent, owes_ack, ..Socket::default() });
    let last = Socket { all_acked: true, newest_acked_sent_us: 230_000, ..Socket::default() };
    story.goes(LAST_ACK, CLOSE, 280, &last).ends();
    assert_eq!(story.opens, 1);
    story
}

#[test]
fn passive_close() {
    let three = passive(true, false);
    assert_eq!(three.style(), (Some(Initiator::Remote), Some(CloseStyle::ThreeSegments)));
    assert_eq!(three.waits(), (Some(80), Some(50), Some(30)));
    assert_eq!(close::lifetime_us(&three.connection), Some(230_123));

    assert_eq!(passive(false, false).style(), (Some(Initiator::Remote), Some(CloseStyle::FourSegments)));
    assert_eq!(passive(true, true).style(), (Some(Initiator::Remote), None), "data may have carried the ACK");
}

#[test]
fn reset_in_either_direction_before_or_after_close() {
    let mut received = established_client();
    state::reset_received(&mut received.connection, &Socket::default(), ESTABLISHED);
    received.goes(ESTABLISHED, CLOSE, 200, &Socket { err: 104, ..Socket::default() }).ends();
    assert_eq!(received.style(), (Some(Initiator::Remote), Some(CloseStyle::ResetReceived)));

    let mut sent_after = established_client();
    sent_after.goes(ESTABLISHED, CLOSE, 200, &Socket::default());
    assert_eq!(sent_after.closes, 0, "not certain yet");
    sent_after.resets().ends();
    assert_eq!(sent_after.style(), (Some(Initiator::Local), Some(CloseStyle::ResetSent)));

    let mut sent_before = established_client();
    sent_before.resets().goes(ESTABLISHED, CLOSE, 200, &Socket::default()).ends();
    assert_eq!(sent_before.style(), (Some(Initiator::Local), Some(CloseStyle::ResetSent)));

    let mut after_fin = established_client();
    after_fin.goes(ESTABLISHED, CLOSE_WAIT, 180, &Socket::default());
    after_fin.goes(CLOSE_WAIT, CLOSE, 200, &Socket::default()).resets();
    assert_eq!(
        after_fin.style(),
        (Some(Initiator::Remote), Some(CloseStyle::ResetSent)),
        "their FIN came first"
    );
}

#[test]
fn reset_for_data_after_close_is_ours_although_the_kernel_reports_it_as_received() {
    let mut story = established_client();
    story.goes(ESTABLISHED, FIN_WAIT1, 200, &Socket { data_segs_in: 3, ..Socket::default() });
    let orphan = Socket { receive_shutdown: true, data_segs_in: 4, ..Socket::default() };
    state::reset_received(&mut story.connection, &orphan, FIN_WAIT1);
    story.goes(FIN_WAIT1, CLOSE, 250, &Socket { err: 104, ..orphan }).ends();
    assert_eq!(story.style(), (Some(Initiator::Local), Some(CloseStyle::ResetSent)));
}

#[test]
fn timeout_by_a_timer() {
    let mut story = established_client();
    // The keepalive timer sends a RST before it closes the socket.
    story.resets().goes(ESTABLISHED, CLOSE, 9000, &Socket { err: 110, ..Socket::default() }).ends();
    assert_eq!(story.style(), (Some(Initiator::Local), Some(CloseStyle::TimedOut)));
    assert_eq!(story.waits(), (None, None, None));
}

#[test]
fn a_soft_error_that_the_timer_leaves_is_a_timeout_and_another_error_is_not() {
    let unreachable = Socket { err: 113, soft_err: 113, ..Socket::default() };
    let mut story = established_client();
    story.goes(ESTABLISHED, CLOSE, 9000, &unreachable).ends();
    assert_eq!(story.style(), (Some(Initiator::Local), Some(CloseStyle::TimedOut)));

    let mut told_by_recverr = established_client();
    told_by_recverr.goes(ESTABLISHED, CLOSE, 9000, &Socket { soft_err: 0, ..unreachable }).resets().ends();
    assert_eq!(told_by_recverr.style(), (Some(Initiator::Local), Some(CloseStyle::ResetSent)));
}

#[test]
fn a_fast_open_child_counts_from_its_syn_ack_not_from_its_data() {
    let mut story = ConnectionEvent::adopted(SYN_RECV);
    let answered = Socket {
        syn_data_acked: true,
        data_segs_in: 1,
        bytes_acked: 5,
        child_made_ns: 100 * MS,
        srtt_us: 50_124 << 3,
        ..Socket::default()
    };
    story.goes(SYN_RECV, ESTABLISHED, 155, &answered);
    assert_eq!(open::duration_us(&story.connection), Some(55_000));
    assert_eq!(open::rtt_us(&story.connection), None, "the sample is that of the data");
    assert_eq!(
        open::syn_cookie(&story.connection),
        Some(false),
        "a cookie makes its socket at the final ACK"
    );
}

#[test]
fn fast_open_child_closes_before_it_is_established() {
    let mut story = ConnectionEvent::adopted(SYN_RECV);
    story.goes(SYN_RECV, FIN_WAIT1, 100, &Socket::default());
    assert_eq!(story.opens, 0);
    let acked = Socket { syn_data_acked: true, srtt_us: 57_341 << 3, ..Socket::default() };
    story.goes(FIN_WAIT1, FIN_WAIT2, 150, &acked);
    assert_eq!(open::rtt_us(&story.connection), None, "that sample may be the FIN's");
    story.goes(FIN_WAIT2, CLOSE, 150, &Socket::default()).ends();
    assert_eq!((story.opens, story.closes), (1, 1));
    assert_eq!(open::outcome(&story.connection), Some(Outcome::Established));
    assert_eq!(open::fast_open(&story.connection), Some(FastOpen::DataAccepted));
    assert_eq!(open::final_ack(&story.connection), None, "its moment was not seen");
}

#[test]
fn preexisting_connection_reports_only_what_was_seen() {
    let mut story = ConnectionEvent::adopted(CLOSE_WAIT);
    story.goes(CLOSE_WAIT, LAST_ACK, 230, &Socket::default());
    story.goes(LAST_ACK, CLOSE, 280, &Socket { all_acked: true, ..Socket::default() }).ends();
    assert_eq!(story.style(), (Some(Initiator::Remote), Some(CloseStyle::FourSegments)));
    assert_eq!(story.waits(), (None, Some(50), None));
    assert_eq!(story.opens, 0);
}

#[test]
fn reused_socket_is_another_connection() {
    let mut story = established_client();
    story.goes(ESTABLISHED, CLOSE, 200, &Socket::default()).resets();
    state::begin_client(&mut story.connection, 300 * MS);
    story.goes(SYN_SENT, ESTABLISHED, 350, &Socket::default());
    assert_eq!((story.opens, story.closes, story.connection.generation), (2, 1, 1));
    assert_eq!(open::duration_us(&story.connection), Some(50_000));
    assert_eq!(close::style(&story.connection), None, "nothing is left of the connection before");
}
