//! What is on screen, and what keys do to it.

use std::{sync::Arc, time::Duration};

use handshake_common::{CloseStyle, Outcome, Role, TlsClass, TlsVersion};
use proptest::prelude::*;
use ratatui::{
    Terminal,
    backend::TestBackend,
    buffer::Buffer,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
};

use super::{
    super::live::Losses,
    draw::{Palette, draw},
    view::{Action, Data, View},
};
use crate::{
    aggregate::{Aggregate, Grouping, Limits, Span},
    cgroup::Names,
    event::{
        ConnectionEvent, ConnectionId, Process,
        testing::{closed, opened, with_tls},
    },
    output::rows::{count, per_second},
    untrusted::{is_harmless, tests::HOSTILE},
};

const SECOND: Duration = Duration::from_secs(1);

/// What happened on a host in ten seconds.
fn host(grouping: Grouping) -> Aggregate {
    let limits = Limits { groups: 3, recent: 20, span: Span::of(30 * SECOND), ..Limits::default() };
    let mut all = Aggregate::new(grouping, limits, 100 * SECOND);
    let mut take = |id: u64, event: ConnectionEvent, at: u32| {
        let event = ConnectionEvent { id: ConnectionId::of_socket(id, 0), ..event };
        all.take(&Arc::new(event), (100 + at) * SECOND);
    };
    for at in 0..6 {
        take(at.into(), opened(Role::Client), at);
        take(at.into(), with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full), at);
    }
    take(6, opened(Role::Client), 6);
    take(6, with_tls(Role::Client, TlsVersion::Tls12, TlsClass::Resumed), 6);
    let mut refused = opened(Role::Client);
    refused.open.as_mut().unwrap().outcome = Some(Outcome::Refused);
    refused.process =
        Some(Process { by: None, pid: 7, comm: Some(HOSTILE.into()), cgroup: None, names: Names::default() });
    take(7, refused, 6);
    let mut late = opened(Role::Client);
    late.open.as_mut().unwrap().syn_retransmits = 1;
    late.open.as_mut().unwrap().duration = Some(Duration::from_millis(1_050));
    take(8, late, 7);
    for at in 7..9 {
        take(u64::from(at) + 10, opened(Role::Server), at);
        let mut reset = closed(Role::Server);
        reset.close.as_mut().unwrap().style = Some(CloseStyle::ResetReceived);
        take(u64::from(at) + 10, reset, at);
    }
    let mut other = opened(Role::Client);
    other.process = Some(Process {
        by: None,
        pid: 8,
        comm: Some("服务器".into()),
        cgroup: None,
        names: Names::default(),
    });
    take(20, other, 9);
    all.advance(110 * SECOND);
    all
}

const fn data(aggregate: &Aggregate) -> Data<'_> {
    Data { aggregate, losses: Losses { records: 0, connections: 0, runs: 0 }, said: None }
}

fn buffer(view: &mut View, data: &Data<'_>, width: u16, height: u16, colours: bool) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view, data, Palette { colours })).unwrap();
    terminal.backend().buffer().clone()
}

fn shown(view: &mut View, data: &Data<'_>, width: u16, height: u16) -> String {
    let buffer = buffer(view, data, width, height, true);
    let lines = (0..height).map(|y| {
        let mut line = String::new();
        let mut x = 0;
        while x < width {
            let symbol = buffer[(x, y)].symbol();
            line.push_str(symbol);
            // A wide character has two cells.
            x += u16::try_from(crate::output::text::columns(symbol)).unwrap().max(1);
        }
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn press(view: &mut View, data: &Data<'_>, keys: &[KeyCode]) -> Vec<Action> {
    keys.iter().map(|&code| view.key(KeyEvent::new(code, KeyModifiers::NONE), data)).collect()
}

fn typed(view: &mut View, data: &Data<'_>, text: &str) {
    press(view, data, &text.chars().map(KeyCode::Char).collect::<Vec<_>>());
}

#[test]
fn groups_on_a_small_screen() {
    let all = host(Grouping::Process);
    let mut view = View::new(Grouping::Process, String::new());
    insta::assert_snapshot!(shown(&mut view, &data(&all), 80, 24));
}

#[test]
fn groups_on_a_wide_screen_with_losses_a_filter_and_a_line_of_the_log() {
    let all = host(Grouping::Process);
    let mut view = View::new(Grouping::Process, "--port 443".to_owned());
    let losses = Losses { records: 12, connections: 0, runs: 3 };
    let data = Data { losses, said: Some("WARN something odd".to_owned()), ..data(&all) };
    assert!(matches!(press(&mut view, &data, &[KeyCode::Char(' ')])[..], [Action::Pause]));
    insta::assert_snapshot!(shown(&mut view, &data, 140, 19));
}

#[test]
fn services_and_networks() {
    let of = |grouping| {
        let all = host(grouping);
        shown(&mut View::new(grouping, String::new()), &data(&all), 80, 16)
    };
    insta::assert_snapshot!(format!("{}\n\n{}", of(Grouping::Service), of(Grouping::Network)));
}

#[test]
fn connections_and_their_ladder() {
    let all = host(Grouping::Process);
    let data = data(&all);
    let mut view = View::new(Grouping::Process, String::new());
    press(&mut view, &data, &[KeyCode::Enter]);
    let list = shown(&mut view, &data, 80, 24);
    // The second one: TLS 1.2, resumed.
    press(&mut view, &data, &[KeyCode::Down, KeyCode::Enter]);
    let ladder = shown(&mut view, &data, 80, 24);
    insta::assert_snapshot!(format!("{list}\n\n{ladder}"));
    press(&mut view, &data, &[KeyCode::Right]);
    let scrolled = shown(&mut view, &data, 60, 24);
    assert!(scrolled.contains("\n0 ms   SYN ──"), "{scrolled}");
    press(&mut view, &data, &[KeyCode::End]);
    assert!(shown(&mut view, &data, 200, 10).contains("? is unknown."));
    press(&mut view, &data, &[KeyCode::Esc]);
    assert_eq!(shown(&mut view, &data, 80, 24), list, "with another one selected");
    press(&mut view, &data, &[KeyCode::Esc]);
    assert!(shown(&mut view, &data, 80, 24).contains("OPEN/S"));
}

#[test]
fn failed_and_slow_connections_are_listed() {
    let all = host(Grouping::Process);
    let data = data(&all);
    let mut view = View::new(Grouping::Process, String::new());
    press(&mut view, &data, &[KeyCode::Char('f')]);
    let failed = shown(&mut view, &data, 80, 24);
    assert!(failed.contains("refused") && failed.matches("10.0.0.2:443").count() == 1, "{failed}");
    press(&mut view, &data, &[KeyCode::Char('l')]);
    let slow = shown(&mut view, &data, 80, 24);
    assert!(slow.contains("1.05 s") && slow.matches("10.0.0.2:443").count() == 1, "{slow}");
}

#[test]
fn help_names_keys_and_columns() {
    let all = host(Grouping::Process);
    let data = data(&all);
    let mut view = View::new(Grouping::Process, String::new());
    press(&mut view, &data, &[KeyCode::Char('?')]);
    insta::assert_snapshot!(shown(&mut view, &data, 100, 32));
    assert!(matches!(press(&mut view, &data, &[KeyCode::Char('x')])[..], [Action::None]));
    assert!(!shown(&mut view, &data, 100, 32).contains("pause what is shown"));
    press(&mut view, &data, &[KeyCode::Char('?')]);
    assert!(!shown(&mut view, &data, 80, 24).contains("ended by a RST"));
    press(&mut view, &data, &[KeyCode::Down; 40]);
    assert!(shown(&mut view, &data, 80, 24).contains("ended by a RST"), "it scrolls");
    assert!(matches!(press(&mut view, &data, &[KeyCode::Char('q')])[..], [Action::Quit]));
}

#[test]
fn rows_are_sorted_by_any_column_and_unknown_is_last() {
    let all = host(Grouping::Process);
    let data = data(&all);
    let mut view = View::new(Grouping::Process, String::new());
    let names = |view: &View| view.rows(&data).into_iter().map(|row| row.name).collect::<Vec<_>>();
    let hostile = crate::untrusted::Untrusted::from(HOSTILE).to_string();
    let rest = "(others)".to_owned();
    let (curl, nginx) = ("curl".to_owned(), "nginx".to_owned());
    assert_eq!(names(&view), [curl.clone(), nginx.clone(), hostile.clone(), rest.clone()]);
    // FAILED
    press(&mut view, &data, &[KeyCode::Right]);
    assert_eq!(names(&view), [hostile.clone(), curl.clone(), nginx.clone(), rest.clone()]);
    press(&mut view, &data, &[KeyCode::Char('r')]);
    assert_eq!(
        names(&view),
        [nginx.clone(), curl.clone(), hostile.clone(), rest.clone()],
        "the rest stays last"
    );
    // ROLE, PROCESS, and around to RST.
    press(&mut view, &data, &[KeyCode::Left, KeyCode::Left, KeyCode::Left]);
    assert_eq!(names(&view), [hostile.clone(), curl.clone(), nginx.clone(), rest.clone()]);
    press(&mut view, &data, &[KeyCode::Left]);
    assert_eq!(names(&view), [nginx.clone(), hostile.clone(), curl.clone(), rest.clone()]);
    // TRIPS, P99: only of two there is one.
    press(&mut view, &data, &[KeyCode::Left, KeyCode::Left]);
    assert_eq!(names(&view), [curl, nginx, hostile, rest]);
    assert!(shown(&mut view, &data, 80, 24).lines().nth(2).unwrap().contains("P99▼"));
}

#[test]
fn selection_follows_its_row() {
    let mut all = host(Grouping::Process);
    let mut view = View::new(Grouping::Process, String::new());
    press(&mut view, &data(&all), &[KeyCode::Down]);
    let rows = view.rows(&data(&all));
    assert_eq!(rows[view.selected_row(&rows)].name, "nginx");
    for id in 1_000..1_100 {
        let event = ConnectionEvent { id: ConnectionId::of_socket(id, 0), ..opened(Role::Server) };
        all.take(&Arc::new(event), 110 * SECOND);
    }
    let rows = view.rows(&data(&all));
    assert_eq!((rows[0].name.as_str(), view.selected_row(&rows)), ("nginx", 0));
}

#[test]
fn filter_is_typed_checked_and_applied() {
    let all = host(Grouping::Process);
    let data = data(&all);
    let mut view = View::new(Grouping::Process, String::new());
    typed(&mut view, &data, "/--role peer");
    press(&mut view, &data, &[KeyCode::Enter]);
    insta::assert_snapshot!(shown(&mut view, &data, 80, 16).lines().last().unwrap());
    press(&mut view, &data, &[KeyCode::Backspace; 4]);
    typed(&mut view, &data, "server\x1b\u{202e}");
    let [Action::Filter(filter)] = &press(&mut view, &data, &[KeyCode::Enter])[..] else { panic!() };
    assert!(filter.passes(&opened(Role::Server)) && !filter.passes(&opened(Role::Client)));
    assert!(shown(&mut view, &data, 80, 16).lines().nth(1).unwrap().starts_with("filter: --role server"));
    // It can be changed, left as it is, and emptied.
    typed(&mut view, &data, "/ --port 1");
    press(&mut view, &data, &[KeyCode::Esc]);
    assert_eq!(view.filter, "--role server");
    typed(&mut view, &data, "/");
    view.key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL), &data);
    let [Action::Filter(filter)] = &press(&mut view, &data, &[KeyCode::Enter])[..] else { panic!() };
    assert!(filter.passes(&opened(Role::Client)) && view.filter.is_empty());
}

#[test]
fn control_keys_quit_and_stop() {
    let all = host(Grouping::Process);
    let mut view = View::new(Grouping::Process, String::new());
    let mut control = |c| view.key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL), &data(&all));
    assert!(matches!(control('c'), Action::Quit));
    assert!(matches!(control('z'), Action::Stop));
}

#[test]
fn without_colours_everything_is_still_told() {
    let all = host(Grouping::Process);
    let mut view = View::new(Grouping::Process, String::new());
    let colours = |buffer: &Buffer| {
        buffer.content().iter().filter(|cell| cell.fg != ratatui::style::Color::Reset).count()
    };
    assert!(colours(&buffer(&mut view, &data(&all), 80, 24, true)) > 0);
    assert_eq!(colours(&buffer(&mut view, &data(&all), 80, 24, false)), 0);
}

#[test]
fn numbers_keep_to_their_columns() {
    let rates = [0.0, 0.04, 9.96, 99.94, 99.95, 12_345.6, 99_999.4, 99_999.5, 1e8].map(per_second);
    assert_eq!(rates, ["0", "<0.1", "10.0", "99.9", "100", "12346", "99999", "100k", "100000k"]);
    assert_eq!(
        [0, 9_999, 10_000, 999_999, 1_000_000, 12_345_678_901].map(count),
        ["0", "9999", "10k", "999k", "1M", "12G"]
    );
}

/// Keys that do something.
fn key() -> impl Strategy<Value = KeyCode> {
    prop_oneof![
        prop::sample::select(" psnfltr/?jkgGx-".chars().collect::<Vec<_>>()).prop_map(KeyCode::Char),
        prop::sample::select(vec![
            KeyCode::Enter,
            KeyCode::Esc,
            KeyCode::Up,
            KeyCode::Down,
            KeyCode::Left,
            KeyCode::Right,
            KeyCode::PageUp,
            KeyCode::PageDown,
            KeyCode::Home,
            KeyCode::End,
            KeyCode::Backspace,
        ]),
        any::<char>().prop_map(KeyCode::Char),
    ]
}

proptest! {
    #[test]
    fn any_keys_at_any_size_draw_harmless_text(
        keys in prop::collection::vec((key(), 1_u16..140, 1_u16..50), 1..20),
        name in any::<String>(),
    ) {
        let mut all = host(Grouping::Process);
        let mut named = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::HelloRetry);
        named.process.as_mut().unwrap().comm = Some(name.as_str().into());
        named.tls.as_mut().unwrap().sni = Some(name.into());
        all.take(&Arc::new(named), 110 * SECOND);
        let data = Data { said: Some(HOSTILE.to_owned()), ..data(&all) };
        let mut view = View::new(Grouping::Process, HOSTILE.to_owned());
        for (code, width, height) in keys {
            let _ = press(&mut view, &data, &[code]);
            let drawn = buffer(&mut view, &data, width, height, true);
            for cell in drawn.content() {
                prop_assert!(cell.symbol().chars().all(is_harmless), "{:?}", cell.symbol());
            }
        }
    }
}
