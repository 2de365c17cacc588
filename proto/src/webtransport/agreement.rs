//! What two ends of a connection agree on: the draft they speak, whether there is flow control, and
//! how many sessions there may be (draft-ietf-webtrans-http3-16, sections 3.1, 5.1, 5.2 and 7.1).
//! `docs/WIRE.md` has it as a table.

use super::{
    capsule,
    flow::{Flow, Initial, Windows},
};
use crate::h3::settings::{Settings, id};

/// Drafts of draft-ietf-webtrans-http3, as far as they differ on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Draft {
    /// 02 to 06: what browsers speak. One session on a connection.
    Draft02,
    /// 07 to 12. Sessions are counted; there is no flow control.
    Draft07,
    /// 13 and 14. Sessions are counted, and flow control came.
    Draft13,
    /// 15 and 16, the newest.
    Draft15,
}

impl Draft {
    /// The newest draft that the sender of these settings speaks, as we speak all of them.
    pub fn of(settings: &Settings) -> Option<Self> {
        let set = |id| settings.get(id).is_some_and(|value| value > 0);
        [
            (id::WT_ENABLED, Self::Draft15),
            (id::WT_MAX_SESSIONS_DRAFT13, Self::Draft13),
            (id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07, Self::Draft07),
            (id::WEBTRANSPORT_DRAFT02, Self::Draft02),
        ]
        .into_iter()
        .find_map(|(id, draft)| set(id).then_some(draft))
    }

    /// `:protocol` of a request in this draft.
    pub const fn protocol(self) -> &'static str {
        match self {
            Self::Draft15 => super::request::PROTOCOL_H3,
            _ => super::request::PROTOCOL,
        }
    }
}

/// What both ends of a connection speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    draft: Draft,
    /// What the peer grants at first; `None` where flow control is not enabled.
    flow: Option<Initial>,
    /// Sessions that a server lets its client have; `None` where its draft does not count them.
    sessions: Option<u64>,
}

/// Something without which there is no WebTransport on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    /// The peer announces no draft of WebTransport.
    #[error("the peer does not offer WebTransport")]
    Draft,
    /// SETTINGS_H3_DATAGRAM is missing.
    #[error("the peer takes no HTTP datagrams")]
    HttpDatagrams,
    /// The transport parameter max_datagram_frame_size is missing.
    #[error("the peer takes no QUIC datagrams")]
    QuicDatagrams,
    /// The server's SETTINGS_ENABLE_CONNECT_PROTOCOL is missing.
    #[error("the server takes no extended CONNECT")]
    ExtendedConnect,
}

/// Sessions at once on a connection, and what becomes of one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sessions {
    /// This many of the server's own choice; one more is answered with 429.
    UpTo(usize),
    /// One, as the draft says where there is no flow control; one more is reset with
    /// H3_REQUEST_REJECTED (draft, section 5.1).
    One,
}

impl Agreement {
    /// A server's agreement with the client that sent these settings; `quic_datagrams` says whether
    /// it takes any. The newest draft makes demands (section 3.1); a client of an older one, or of
    /// one that it does not tell, is taken as it is.
    pub fn with_client(settings: &Settings, quic_datagrams: bool) -> Result<Self, Unmet> {
        let draft = Draft::of(settings).unwrap_or(Draft::Draft02);
        if draft == Draft::Draft15 {
            demand_datagrams(settings, quic_datagrams)?;
        }
        Ok(Self::new(draft, settings))
    }

    /// A client's agreement with the server that sent these settings.
    pub fn with_server(settings: &Settings, quic_datagrams: bool) -> Result<Self, Unmet> {
        let draft = Draft::of(settings).ok_or(Unmet::Draft)?;
        if draft == Draft::Draft15 {
            if settings.get(id::ENABLE_CONNECT_PROTOCOL) != Some(1) {
                return Err(Unmet::ExtendedConnect);
            }
            demand_datagrams(settings, quic_datagrams)?;
        } else if !settings.supports_webtransport() {
            return Err(Unmet::HttpDatagrams);
        }
        Ok(Self::new(draft, settings))
    }

    fn new(draft: Draft, settings: &Settings) -> Self {
        let initial = settings.initial_flow();
        let sessions = match draft {
            Draft::Draft13 => settings.get(id::WT_MAX_SESSIONS_DRAFT13),
            Draft::Draft07 => settings.get(id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07),
            _ => None,
        };
        let declared = match draft {
            Draft::Draft02 | Draft::Draft07 => false,
            // Drafts 13 and 14: to allow several sessions is to want it.
            Draft::Draft13 => initial.declares() || sessions > Some(1),
            Draft::Draft15 => initial.declares(),
        };
        Self {
            draft,
            // We always declare it.
            flow: declared.then_some(initial),
            sessions,
        }
    }

    /// The newest draft that both speak.
    pub fn draft(&self) -> Draft {
        self.draft
    }

    /// Whether there is flow control.
    pub fn has_flow_control(&self) -> bool {
        self.flow.is_some()
    }

    /// What flow control capsules are on this connection.
    pub fn capsules(&self) -> capsule::Flow {
        match (self.draft, self.flow) {
            (_, Some(_)) => capsule::Flow::Enabled,
            (Draft::Draft13 | Draft::Draft15, None) => capsule::Flow::Ignored,
            (Draft::Draft02 | Draft::Draft07, None) => capsule::Flow::Unknown,
        }
    }

    /// Flow control of a new session, if there is any: this side grants `ours` at first and up to
    /// `windows`.
    pub fn flow(&self, ours: Initial, windows: Windows) -> Option<Flow> {
        Some(Flow::new(ours, windows, self.flow?))
    }

    /// Sessions that a server with a limit of its own lets this client have at once.
    pub fn sessions(&self, limit: usize) -> Sessions {
        match (self.draft, self.flow) {
            (_, Some(_)) | (Draft::Draft07, None) => Sessions::UpTo(limit),
            (Draft::Draft02, None) => Sessions::UpTo(limit.min(1)),
            (Draft::Draft13 | Draft::Draft15, None) => match limit {
                0 => Sessions::UpTo(0),
                _ => Sessions::One,
            },
        }
    }

    /// Sessions that a client with a limit of its own may have at once with this server.
    pub fn client_sessions(&self, limit: usize) -> usize {
        let counted = self
            .sessions
            .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        match self.sessions(limit) {
            Sessions::UpTo(limit) => limit.min(counted),
            Sessions::One => 1,
        }
    }
}

fn demand_datagrams(settings: &Settings, quic: bool) -> Result<(), Unmet> {
    if settings.get(id::H3_DATAGRAM) != Some(1) {
        return Err(Unmet::HttpDatagrams);
    }
    quic.then_some(()).ok_or(Unmet::QuicDatagrams)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(list: &[(u64, u64)]) -> Settings {
        list.iter().copied().collect()
    }

    const DATAGRAMS: (u64, u64) = (id::H3_DATAGRAM, 1);
    const CONNECT: (u64, u64) = (id::ENABLE_CONNECT_PROTOCOL, 1);

    #[test]
    fn the_newest_draft_of_a_peer_is_the_one_that_is_spoken() {
        let mut all = vec![DATAGRAMS, CONNECT];
        for (id, draft, protocol) in [
            (id::WEBTRANSPORT_DRAFT02, Draft::Draft02, "webtransport"),
            (
                id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07,
                Draft::Draft07,
                "webtransport",
            ),
            (id::WT_MAX_SESSIONS_DRAFT13, Draft::Draft13, "webtransport"),
            (id::WT_ENABLED, Draft::Draft15, "webtransport-h3"),
        ] {
            all.push((id, 1));
            let agreement = Agreement::with_server(&settings(&all), true).unwrap();
            assert_eq!(agreement.draft(), draft);
            assert_eq!(draft.protocol(), protocol);
            assert_eq!(
                Agreement::with_client(&settings(&all), true).map(|a| a.draft()),
                Ok(draft)
            );
            assert_eq!(Draft::of(&settings(&[(id, 0)])), None);
        }
    }

    #[test]
    fn flow_control_is_enabled_by_any_initial_limit_where_the_draft_has_it() {
        let enabled = |list: &[(u64, u64)]| {
            Agreement::with_client(&settings(&[&[DATAGRAMS], list].concat()), true)
                .unwrap()
                .has_flow_control()
        };
        for limit in [
            id::WT_INITIAL_MAX_DATA,
            id::WT_INITIAL_MAX_STREAMS_BIDI,
            id::WT_INITIAL_MAX_STREAMS_UNI,
        ] {
            assert!(enabled(&[(id::WT_ENABLED, 1), (limit, 1)]));
            assert!(enabled(&[(id::WT_MAX_SESSIONS_DRAFT13, 1), (limit, 1)]));
            assert!(!enabled(&[(id::WT_ENABLED, 1), (limit, 0)]));
            assert!(!enabled(&[
                (id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07, 9),
                (limit, 1)
            ]));
        }
        assert!(enabled(&[(id::WT_MAX_SESSIONS_DRAFT13, 2)]));
        assert!(!enabled(&[(id::WT_MAX_SESSIONS_DRAFT13, 1)]));
    }

    #[test]
    fn the_newest_draft_demands_what_it_needs_and_older_ones_are_taken_as_they_are() {
        let new = (id::WT_ENABLED, 1);
        let client = |list: &[(u64, u64)], quic| Agreement::with_client(&settings(list), quic);
        let server = |list: &[(u64, u64)], quic| Agreement::with_server(&settings(list), quic);
        assert_eq!(client(&[new], true), Err(Unmet::HttpDatagrams));
        assert_eq!(
            client(&[new, (id::H3_DATAGRAM_DRAFT04, 1)], true),
            Err(Unmet::HttpDatagrams)
        );
        assert_eq!(client(&[new, DATAGRAMS], false), Err(Unmet::QuicDatagrams));
        assert!(client(&[new, DATAGRAMS], true).is_ok());
        assert_eq!(server(&[new, DATAGRAMS], true), Err(Unmet::ExtendedConnect));
        assert_eq!(server(&[new, CONNECT], true), Err(Unmet::HttpDatagrams));
        assert_eq!(
            server(&[new, CONNECT, DATAGRAMS], false),
            Err(Unmet::QuicDatagrams)
        );
        assert!(server(&[new, CONNECT, DATAGRAMS], true).is_ok());

        let old = (id::WEBTRANSPORT_DRAFT02, 1);
        assert!(client(&[old], false).is_ok());
        assert!(client(&[], false).is_ok());
        assert!(server(&[old, (id::H3_DATAGRAM_DRAFT04, 1)], true).is_ok());
        assert_eq!(server(&[old], true), Err(Unmet::HttpDatagrams));
        assert_eq!(server(&[DATAGRAMS, CONNECT], true), Err(Unmet::Draft));
    }

    #[test]
    fn a_connection_is_shared_only_where_the_draft_allows_it() {
        let agree = |list: &[(u64, u64)]| {
            Agreement::with_client(&settings(&[&[DATAGRAMS], list].concat()), true).unwrap()
        };
        let limited = (id::WT_INITIAL_MAX_DATA, 1);
        for (list, sessions) in [
            (&[(id::WEBTRANSPORT_DRAFT02, 1)][..], Sessions::UpTo(1)),
            (
                &[(id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07, 3)],
                Sessions::UpTo(16),
            ),
            (&[(id::WT_MAX_SESSIONS_DRAFT13, 1)], Sessions::One),
            (&[(id::WT_MAX_SESSIONS_DRAFT13, 3)], Sessions::UpTo(16)),
            (&[(id::WT_ENABLED, 1)], Sessions::One),
            (&[(id::WT_ENABLED, 1), limited], Sessions::UpTo(16)),
        ] {
            assert_eq!(agree(list).sessions(16), sessions, "{list:x?}");
            assert_eq!(agree(list).sessions(0), Sessions::UpTo(0));
        }
        let counted = agree(&[(id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07, 3)]);
        assert_eq!(counted.client_sessions(16), 3);
        assert_eq!(counted.client_sessions(2), 2);
        assert_eq!(agree(&[(id::WT_ENABLED, 1)]).client_sessions(16), 1);
        assert_eq!(
            agree(&[(id::WT_ENABLED, 1), limited]).client_sessions(16),
            16
        );
    }
}
