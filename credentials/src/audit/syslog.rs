//! Lines of an audit log as syslog messages (RFC 5424), whole: what a receiver keeps of a message still
//! verifies.

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;

use super::{Action, DONE, Line};

/// APP-NAME of every message.
const APPLICATION: &str = "wavry";
/// What a field holds that has nothing to say (RFC 5424, section 6).
const NIL: &str = "-";
/// Stands before text that is UTF-8 and not ASCII (RFC 5424, section 6.4).
const BOM: char = '\u{feff}';
/// Largest `sequenceId`; then it begins at 1 again (RFC 5424, section 7.3.1).
const MAX_SEQUENCE: u64 = 2_147_483_647;
/// How each line of an audit log begins.
const LINE_START: &str = "{\"seq\":";

/// Which part of a system messages are from (RFC 5424, section 6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Facility {
    /// Security and authorization messages.
    Auth = 4,
    /// The same, for the eyes of administrators alone.
    AuthPriv = 10,
    /// Log audit.
    #[default]
    Audit = 13,
    /// Local use 0.
    Local0 = 16,
    /// Local use 1.
    Local1,
    /// Local use 2.
    Local2,
    /// Local use 3.
    Local3,
    /// Local use 4.
    Local4,
    /// Local use 5.
    Local5,
    /// Local use 6.
    Local6,
    /// Local use 7.
    Local7,
}

/// Who sends messages.
#[derive(Debug, Clone)]
pub struct Origin {
    facility: Facility,
    host: String,
    process: u32,
}

impl Origin {
    /// This process on this host.
    pub fn of_this_process(facility: Facility) -> Self {
        let host = rustix::system::uname();
        Self::new(
            facility,
            &host.nodename().to_string_lossy(),
            std::process::id(),
        )
    }

    /// A process of a host. A name that cannot stand in a header is left out.
    pub fn new(facility: Facility, host: &str, process: u32) -> Self {
        let can_stand =
            (1..=255).contains(&host.len()) && host.bytes().all(|b| b.is_ascii_graphic());
        Self {
            facility,
            host: if can_stand { host } else { NIL }.to_owned(),
            process,
        }
    }

    /// The message that carries a line. Time, action and severity are in its header where the line can
    /// be read; one that cannot, because it was changed, is carried all the same.
    pub fn message(&self, text: &str) -> Vec<u8> {
        let line = Line::read(text).ok();
        let event = line.as_ref().map(|line| &line.event);
        let priority =
            self.facility as u8 * 8 + severity(event.map(|event| (event.action, &*event.outcome)));
        let time = event.and_then(|event| event.time.format(&Rfc3339).ok());
        let time = time.as_deref().unwrap_or(NIL);
        let action = event.map_or_else(|| NIL.to_owned(), |event| event.action.to_string());
        let sequence = line.as_ref().map_or_else(String::new, |line| {
            let sequence = line.head.seq.saturating_sub(1) % MAX_SEQUENCE + 1;
            format!("[meta sequenceId=\"{sequence}\"]")
        });
        let data = if sequence.is_empty() { NIL } else { &sequence };
        let mut message = format!(
            "<{priority}>1 {time} {host} {APPLICATION} {process} {action} {data} ",
            host = self.host,
            process = self.process,
        );
        if !text.is_ascii() {
            message.push(BOM);
        }
        message.push_str(text);
        message.into_bytes()
    }
}

/// A message as it goes over a stream: its length in bytes before it (RFC 5425, section 4.3; RFC 6587,
/// section 3.4.1).
pub fn octet_counted(message: &[u8]) -> Vec<u8> {
    let mut frame = format!("{} ", message.len()).into_bytes();
    frame.extend(message);
    frame
}

/// The line within what a receiver kept of a message, whatever it put in front; all of `text` if there
/// is none.
pub fn line_within(text: &str) -> &str {
    text.find(LINE_START).map_or(text, |start| &text[start..])
}

/// RFC 5424, section 6.2.1.
fn severity(event: Option<(Action, &str)>) -> u8 {
    const ALERT: u8 = 1;
    const WARNING: u8 = 4;
    const NOTICE: u8 = 5;
    match event {
        // It was changed since it was written.
        None | Some((Action::Alarm, _)) => ALERT,
        Some((Action::Deny, _)) => WARNING,
        Some((_, outcome)) if outcome != DONE => WARNING,
        Some(_) => NOTICE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Event, Head};
    use proptest::prelude::*;

    fn origin() -> Origin {
        Origin::new(Facility::Audit, "host.example", 42)
    }

    fn message(line: &str) -> String {
        String::from_utf8(origin().message(line)).unwrap()
    }

    fn line(action: Action, subject: &str) -> String {
        let mut event = Event::now(action, subject, "/v1/nodes/register");
        event.time = time::OffsetDateTime::parse("2026-11-22T10:00:00.25Z", &Rfc3339).unwrap();
        Head::default().follow(&event).1
    }

    #[test]
    fn the_header_tells_who_when_what_and_how_grave_and_the_line_is_whole() {
        let issued = line(Action::Issue, "relay-1");
        assert_eq!(
            message(&issued),
            format!(
                "<109>1 2026-11-22T10:00:00.25Z host.example wavry 42 issue \
                 [meta sequenceId=\"1\"] {issued}"
            )
        );
        assert!(message(&line(Action::Deny, "x")).starts_with("<108>1 "));
        assert!(message(&line(Action::Alarm, "x")).starts_with("<105>1 "));
        let auth = Origin::new(Facility::AuthPriv, "h", 1).message(&issued);
        assert!(auth.starts_with(b"<85>1 "));
        let local = Origin::new(Facility::Local7, "h", 1).message(&issued);
        assert!(local.starts_with(b"<189>1 "));
    }

    #[test]
    fn a_line_that_is_not_ascii_has_a_byte_order_mark_before_it() {
        let umlaut = line(Action::Issue, "\u{e4}");
        assert!(message(&umlaut).contains(&format!("] \u{feff}{umlaut}")));
        assert_eq!(line_within(&message(&umlaut)), umlaut);
    }

    #[test]
    fn a_line_that_was_changed_is_carried_and_raises_an_alert() {
        let changed = line(Action::Issue, "relay-1").replace("relay-1", "relay-2");
        let sent = message(&changed);
        assert_eq!(
            sent,
            format!("<105>1 - host.example wavry 42 - - {changed}")
        );
    }

    #[test]
    fn a_host_name_that_breaks_the_header_is_left_out() {
        for host in ["", "a b", "\u{e4}", &"h".repeat(256)] {
            let origin = Origin::new(Facility::Audit, host, 1);
            assert!(
                String::from_utf8(origin.message("x"))
                    .unwrap()
                    .starts_with("<105>1 - - wavry")
            );
        }
    }

    #[test]
    fn the_sequence_begins_again_after_31_bits() {
        for (seq, sequence) in [(0, 1), (MAX_SEQUENCE - 1, MAX_SEQUENCE), (MAX_SEQUENCE, 1)] {
            let before = Head { seq, hash: [0; 32] };
            let (_, line) = before.follow(&Event::now(Action::Read, "x", "y"));
            let expected = format!("[meta sequenceId=\"{sequence}\"]");
            assert!(message(&line).contains(&expected), "{seq}");
        }
    }

    #[test]
    fn a_frame_begins_with_the_length_in_bytes() {
        assert_eq!(octet_counted("\u{e4}b".as_bytes()), "3 \u{e4}b".as_bytes());
    }

    proptest! {
        #[test]
        fn the_line_comes_out_of_its_message_as_it_was(subject in "\\PC{0,60}", front in "[^{]{0,40}") {
            let line = line(Action::Write, &subject);
            let kept = format!("{front}{}", message(&line));
            prop_assert_eq!(line_within(&kept), line);
        }

        #[test]
        fn whatever_stands_in_the_log_is_carried_in_one_message(text in "\\PC{0,200}") {
            let sent = message(&text);
            prop_assert!(sent.ends_with(&text));
            prop_assert!(sent.starts_with("<105>1 - "));
        }
    }
}
