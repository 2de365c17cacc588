//! docs/INTEROP.md, as the runs show it.

use std::fmt::Write as _;

use crate::{
    exception::Exception,
    feature::{Feature, Shown},
    peer::Peer,
};

/// What both runs of one peer showed, line by line.
pub(crate) struct Column {
    pub(crate) peer: Peer,
    pub(crate) version: String,
    pub(crate) direct: Vec<Shown>,
    pub(crate) mesh: Vec<Shown>,
}

/// From where on the document says what was run, which changes with every update of a peer.
const VERSIONS: &str = "## Versions";

const HEAD: &str = "# Interoperability

Wavry's WebTransport layer against what else speaks WebTransport. This page is written by
`./scripts/interop.sh` from real runs, and the test `interop` of `wavry-cli` makes the same runs and
fails where they differ from it.

Each cell is two runs of the same script: against the service itself, and through the whole mesh
(client → gateway → relay → the same service). ✓ is a run in which both ends saw what they should,
✗ one in which they did not. *lacks* is what the peer does not have; the note says what was seen
instead.

The service is asked by its path to echo, to open streams, to reset and stop them with codes 33 and
44, to close with code 4242 and a reason, to drain, and to refuse; it notes what it sees of the client.
Both ends are compared. So a refusal counts when the service sent the status and the client was
refused, even if its interface keeps the status from the page.
";

/// The whole document.
pub(crate) fn render(features: &[Feature], clients: &[Column], servers: &[Column]) -> String {
    let mut notes = Vec::new();
    let mut text = HEAD.to_owned();
    text += "\n## Clients of our server\n\n";
    text += &table(features, clients, &mut notes);
    text += "\n## Servers of our client\n\n";
    text += "Through the mesh, the relay's client is ours and the service is the peer's.\n\n";
    text += &table(features, servers, &mut notes);
    text += "\n## Notes\n\n";
    for (number, note) in notes.iter().enumerate() {
        let peers = note.peers.join(", ");
        let _ = writeln!(text, "{}. {peers}: {}", number + 1, note.evidence);
    }
    let _ = write!(text, "\n{VERSIONS}\n\n| peer | version |\n|---|---|\n");
    let mut listed = Vec::new();
    for column in clients.iter().chain(servers) {
        let peer = column.peer.title();
        if !listed.contains(&peer) {
            listed.push(peer);
            let _ = writeln!(text, "| {peer} | {} |", column.version);
        }
    }
    text
}

/// What of a document must not change by itself.
pub(crate) fn lasting(document: &str) -> &str {
    document.split(VERSIONS).next().unwrap_or_default()
}

/// Every cell that is not as it should be.
pub(crate) fn problems(features: &[Feature], columns: &[Column]) -> Vec<String> {
    let mut all = Vec::new();
    for column in columns {
        for (line, feature) in features.iter().enumerate() {
            let exception = column.peer.exception(feature);
            let expected = feature.expected(exception.as_ref());
            for (run, shown) in [("direct", &column.direct), ("mesh", &column.mesh)] {
                // Through the mesh, what is behind it is not the peer.
                let lacks =
                    exception.as_ref().is_some_and(|exception| exception.lacks) && run == "mesh";
                if shown[line] != expected && !lacks {
                    let (peer, title) = (column.peer, feature.title);
                    let (Shown { client, service }, seen) = (&expected, &shown[line]);
                    all.push(format!(
                        "{peer:?}, {title}, {run}: the client should see {client} and the service \
                         {service}; they saw {} and {}",
                        seen.client, seen.service
                    ));
                }
            }
        }
    }
    all
}

fn table(features: &[Feature], columns: &[Column], notes: &mut Vec<Note>) -> String {
    let mut text = "| feature |".to_owned();
    for column in columns {
        let _ = write!(text, " {} |", column.peer.title());
    }
    text += "\n|---|";
    text += &"---|".repeat(columns.len());
    for (line, feature) in features.iter().enumerate() {
        let _ = write!(text, "\n| {} |", feature.title);
        for column in columns {
            let _ = write!(text, " {} |", cell(feature, line, column, notes));
        }
    }
    text.push('\n');
    text
}

fn cell(feature: &Feature, line: usize, column: &Column, notes: &mut Vec<Note>) -> String {
    let exception = column.peer.exception(feature);
    let expected = feature.expected(exception.as_ref());
    let mark = |shown: &Shown| if *shown == expected { "✓" } else { "✗" };
    let (direct, mesh) = (mark(&column.direct[line]), mark(&column.mesh[line]));
    let Some(exception) = exception else {
        return format!("{direct} {mesh}");
    };
    let number = note(&exception, column, notes);
    match direct {
        "✓" if exception.lacks => format!("lacks [{number}](#notes)"),
        _ if exception.lacks => "✗".to_owned(),
        _ => format!("{direct} {mesh} [{number}](#notes)"),
    }
}

/// A note, and the peers of which it is true.
struct Note {
    evidence: &'static str,
    peers: Vec<&'static str>,
}

/// The number of a note, which several cells may share.
fn note(exception: &Exception, column: &Column, notes: &mut Vec<Note>) -> usize {
    let evidence = exception.evidence;
    let known = notes.iter().position(|note| note.evidence == evidence);
    let number = known.unwrap_or(notes.len());
    if known.is_none() {
        let peers = Vec::new();
        notes.push(Note { evidence, peers });
    }
    let (peers, title) = (&mut notes[number].peers, column.peer.title());
    if !peers.contains(&title) {
        peers.push(title);
    }
    number + 1
}
