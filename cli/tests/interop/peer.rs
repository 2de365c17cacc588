//! The peers: how each is run, and where it differs.

use serde_json::{Map, Value};

use crate::{
    exception::{self, Exception},
    feature::Feature,
    process, script,
    stack::{self, Target},
    support::peer::peers,
};

/// Whom our layer is run against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Chromium,
    Firefox,
    Deno,
    AioquicClient,
    Pywebtransport,
    WtransportClient,
    WebTransportQuinnClient,
    AioquicServer,
    WtransportServer,
    WebTransportQuinnServer,
}

impl Peer {
    /// The clients of our server, in the order of the columns.
    pub(crate) const CLIENTS: [Self; 7] = [
        Self::Chromium,
        Self::Firefox,
        Self::Deno,
        Self::AioquicClient,
        Self::Pywebtransport,
        Self::WtransportClient,
        Self::WebTransportQuinnClient,
    ];
    /// The servers of our client.
    pub(crate) const SERVERS: [Self; 3] = [
        Self::AioquicServer,
        Self::WtransportServer,
        Self::WebTransportQuinnServer,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Chromium => "Chromium",
            Self::Firefox => "Firefox ESR",
            Self::Deno => "Deno",
            Self::AioquicClient | Self::AioquicServer => "aioquic",
            Self::Pywebtransport => "pywebtransport",
            Self::WtransportClient | Self::WtransportServer => "wtransport",
            Self::WebTransportQuinnClient | Self::WebTransportQuinnServer => "web-transport-quinn",
        }
    }

    pub(crate) fn is_client(self) -> bool {
        Self::CLIENTS.contains(&self)
    }

    /// Whether it is there. Most are always: Deno comes for one architecture, and pywebtransport
    /// wants a Python that Debian 12 lacks.
    pub(crate) fn is_installed(self) -> bool {
        match self {
            Self::Deno => peers().join(process::DENO).exists(),
            Self::Pywebtransport => peers().join("pywebtransport/bin/python").exists(),
            _ => true,
        }
    }

    /// Two of them at once are more than a small machine has time for.
    pub(crate) fn is_browser(self) -> bool {
        matches!(self, Self::Chromium | Self::Firefox)
    }

    /// The service that it is run against, or that it is.
    pub(crate) fn service(self) -> &'static str {
        match self {
            Self::AioquicServer => "aioquic",
            Self::WtransportServer => "wtransport",
            Self::WebTransportQuinnServer => "wtq",
            _ => "ours",
        }
    }

    /// What was run.
    pub(crate) fn version(self) -> String {
        match self {
            Self::Chromium => process::version("/usr/bin/chromium"),
            Self::Firefox => process::version("/usr/bin/firefox-esr"),
            Self::Deno => process::version("deno"),
            Self::AioquicClient | Self::AioquicServer => process::version("aioquic"),
            Self::Pywebtransport => process::version("pywebtransport"),
            Self::WtransportClient | Self::WtransportServer => process::locked("wtransport"),
            Self::WebTransportQuinnClient | Self::WebTransportQuinnServer => {
                process::locked("web-transport-quinn")
            }
        }
    }

    /// Runs the script against `target`; what the client saw.
    pub(crate) async fn run(self, target: Target) -> Map<String, Value> {
        match self {
            Self::AioquicClient => process::aioquic(&target).await,
            Self::Pywebtransport => process::pywebtransport(&target).await,
            Self::WtransportClient => script::run(&stack::wtransport::Dialler::new(target)).await,
            Self::WebTransportQuinnClient => {
                script::run(&stack::web_transport_quinn::Dialler::new(target)).await
            }
            Self::AioquicServer => ours(target, &[]).await,
            Self::WtransportServer | Self::WebTransportQuinnServer => {
                ours(target, &["drain by client", "drain by service"]).await
            }
            Self::Chromium => process::browser("chromium", &target, &[]).await,
            Self::Firefox => process::browser("firefox", &target, &["stop by client"]).await,
            Self::Deno => process::deno(&target, &["reset by client", "stop by client"]).await,
        }
    }

    /// Where the peer differs in a feature.
    pub(crate) fn exception(self, feature: &Feature) -> Option<Exception> {
        let mut all = exception::of(self).into_iter();
        all.find(|exception| exception.feature == feature.name)
    }
}

async fn ours(target: Target, silent: &'static [&'static str]) -> Map<String, Value> {
    script::run(&stack::ours::Dialler::new(target, silent)).await
}
