//! Peers that break the rules of HTTP/3 and WebTransport, one rule at a time.
//!
//! A case is its name, the section that says what must happen, where it starts, what is sent, and
//! what must come of it. "draft" is draft-ietf-webtrans-http3, with the section numbers of its 16th
//! version. While it runs, and after it, a session on another connection goes
//! on echoing; and where the text asks for less than a connection error, so does another session on
//! the same connection.

mod bounds;
mod capsules;
mod client;
mod flow;
mod frames;
mod messages;
mod qpack;
mod run;
mod script;
mod server;
mod streams;
mod webtransport;

/// Cases as tests, and the table of them.
macro_rules! cases {
    ($($name:ident, $section:literal: $start:expr, [$($step:expr),* $(,)?] => $expected:expr;)*) => {
        pub(super) const CASES: &[(&str, &str)] = &[$((stringify!($name), $section)),*];
        $(
            #[tokio::test]
            async fn $name() {
                run($start, vec![$($step),*], $expected).await;
            }
        )*
    };
}
use cases;

#[test]
fn at_least_forty_cases_each_name_the_section_they_hold() {
    let all: Vec<_> = [
        streams::CASES,
        frames::CASES,
        messages::CASES,
        qpack::CASES,
        capsules::CASES,
        flow::CASES,
        webtransport::CASES,
        client::CASES,
    ]
    .concat();
    for (name, section) in &all {
        let known = [
            "RFC 9114, ",
            "RFC 9204, ",
            "RFC 9218, ",
            "RFC 9220, ",
            "RFC 9297, ",
            "draft, ",
        ];
        assert!(
            known.iter().any(|k| section.starts_with(k)),
            "{name}: {section}"
        );
    }
    let mut names: Vec<_> = all.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all.len(), "a name comes twice");
    assert!(all.len() >= 40, "{} cases", all.len());
}
