//! What else a server could look its certificates up in.

use std::{
    collections::HashMap,
    hint::black_box,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use dashmap::DashMap;
use rustls::{
    server::{ClientHello, ResolvesServerCert, ResolvesServerCertUsingSni},
    sign::CertifiedKey,
};

use crate::certificates::Certificates;

type Key = Arc<CertifiedKey>;

/// Looks at the name, and that is all.
#[derive(Debug)]
pub(crate) struct Nothing;

impl ResolvesServerCert for Nothing {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Key> {
        black_box(hello.server_name());
        None
    }
}

#[derive(Debug)]
pub(crate) struct Bare(pub(crate) HashMap<String, Key>);

impl ResolvesServerCert for Bare {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Key> {
        self.0.get(hello.server_name()?).cloned()
    }
}

#[derive(Debug)]
pub(crate) struct Locked(pub(crate) RwLock<HashMap<String, Key>>);

impl ResolvesServerCert for Locked {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Key> {
        self.0.read().unwrap().get(hello.server_name()?).cloned()
    }
}

#[derive(Debug)]
pub(crate) struct Dash(pub(crate) DashMap<String, Key>);

impl ResolvesServerCert for Dash {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Key> {
        let found = self.0.get(hello.server_name()?)?;
        Some(found.clone())
    }
}

/// Two of them, made before, of which one is in use.
#[derive(Debug)]
pub(crate) struct Sni {
    current: RwLock<Arc<ResolvesServerCertUsingSni>>,
    made: [Arc<ResolvesServerCertUsingSni>; 2],
    turn: AtomicBool,
}

impl Sni {
    pub(crate) fn new(certificates: &Certificates) -> Self {
        let made = [(); 2].map(|()| {
            let mut made = ResolvesServerCertUsingSni::new();
            for n in 0..certificates.len() {
                let key = CertifiedKey::clone(&certificates.key(n));
                made.add(&certificates.name(n), key).unwrap();
            }
            Arc::new(made)
        });
        Self {
            current: RwLock::new(made[0].clone()),
            made,
            turn: AtomicBool::new(false),
        }
    }

    pub(crate) fn swap(&self) {
        let turn = self.turn.fetch_not(Ordering::Relaxed);
        *self.current.write().unwrap() = self.made[usize::from(!turn)].clone();
    }
}

impl ResolvesServerCert for Sni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Key> {
        self.current.read().unwrap().resolve(hello)
    }
}
