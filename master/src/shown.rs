//! What the certificate of a connection is worth to a KeyVault, which knows whom the roster lists: from the registry in
//! a master, from the roster itself where it runs alone.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use serde_json::json;
use wavry_credentials::cert::{self, Member};

use crate::{
    authority::{Demand, now},
    channel::Channel,
    registry::Registry,
};

/// Who knows which certificates of nodes hold.
pub(crate) trait Roster: Clone + Send + Sync + 'static {
    /// The authorities that vouch for them.
    fn vouching(&self) -> &cert::Authorities;
    /// Whether this is a node as it is listed.
    fn lists(&self, member: &Member) -> bool;
}

impl Roster for Registry {
    fn vouching(&self) -> &cert::Authorities {
        self.vouching()
    }

    fn lists(&self, member: &Member) -> bool {
        self.lists(member)
    }
}

/// The same routes, which see the certificates of a node only as long as it is listed. Where they are required, who
/// shows none is refused.
pub(crate) fn as_listed(router: Router, roster: impl Roster, demand: Demand) -> Router {
    router.layer(middleware::from_fn_with_state((roster, demand), look))
}

async fn look<R: Roster>(
    State((roster, demand)): State<(R, Demand)>,
    Extension(channel): Extension<Arc<Channel>>,
    mut request: Request,
    next: Next,
) -> Response {
    let shown = channel.member(roster.vouching(), now());
    let is_listed = shown.is_ok_and(|member| roster.lists(&member));
    if demand == Demand::Required && !is_listed {
        // As Vault's clients read it.
        let errors = json!({"errors": ["a certificate of a node of this cluster is required"]});
        return (StatusCode::FORBIDDEN, Json(errors)).into_response();
    }
    // One of a node by an authority that is not trusted any more, as whoever has its key makes them, is none, either.
    if !is_listed && channel.names_member() {
        let without = channel.without_certificates();
        request.extensions_mut().insert(Arc::new(without));
    }
    next.run(request).await
}
