//! The identity that a node shows now.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use wavry_proto::{control::Roster, id::PublicKey};

use super::{Error, Identity, MeshTls, mesh};
use crate::token::SigningKey;

/// What a node shows in handshakes and signs its requests with. Another takes its place when the node's
/// identity rotates; handshakes read what is shown at their time, from memory.
#[derive(Clone)]
pub struct Shown {
    present: watch::Sender<Arc<Present>>,
    key: watch::Sender<PublicKey>,
}

/// An identity in the forms in which it is used.
pub struct Present {
    /// The key pair.
    pub identity: Arc<Identity>,
    /// As it signs tokens.
    pub(crate) signing: SigningKey,
    /// As it is shown in handshakes.
    pub(super) certified: Arc<CertifiedKey>,
}

impl Shown {
    /// Shows this one.
    pub fn new(identity: Identity) -> Result<Self, Error> {
        let present = Present::of(identity)?;
        Ok(Self {
            key: watch::Sender::new(present.identity.public_key()),
            present: watch::Sender::new(Arc::new(present)),
        })
    }

    /// What is shown now.
    pub fn present(&self) -> Arc<Present> {
        self.present.borrow().clone()
    }

    /// Shows another from now on.
    pub fn show(&self, identity: Identity) -> Result<(), Error> {
        let present = Present::of(identity)?;
        let key = present.identity.public_key();
        self.present.send_replace(Arc::new(present));
        // Who hears of the key finds it shown.
        self.key.send_replace(key);
        Ok(())
    }

    /// TLS for the mesh, as [`Identity::mesh_tls`], by whatever identity is shown.
    pub fn mesh_tls(&self, roster: watch::Receiver<Arc<Roster>>) -> Result<MeshTls, Error> {
        mesh::tls(self.present.subscribe(), self.key.subscribe(), roster)
    }
}

impl Present {
    fn of(identity: Identity) -> Result<Self, Error> {
        Ok(Self {
            signing: SigningKey::from(&identity),
            certified: Arc::new(mesh::certified_key(&identity)?),
            identity: Arc::new(identity),
        })
    }
}
