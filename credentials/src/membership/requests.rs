//! Requests that a node signs and sends to the master for others than the membership itself.

use std::{sync::Arc, time::Duration};

use http::Method;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Mutex;

use super::work::{Link, json, read};
use crate::master::{Ask, Connection, Failure};

/// Connections that are kept open. More are made where more is asked for at once, and closed after it.
const KEPT: usize = 4;

/// Sends requests to the master as this node. Clones share connections.
#[derive(Clone)]
pub struct Requests {
    link: Arc<Link>,
    open: Arc<Mutex<Vec<Connection>>>,
}

impl Requests {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            open: Arc::default(),
        }
    }

    /// Asks for what is at `path`; it is there within `deadline`, and has `max_answer` bytes at most.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        deadline: Duration,
        max_answer: usize,
    ) -> Result<T, Failure> {
        self.ask(Ask {
            deadline,
            max_answer,
            ..Ask::get(path)
        })
        .await
    }

    /// Sends JSON to `path` by `POST` or `PUT`.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        max_answer: usize,
    ) -> Result<T, Failure> {
        self.ask(Ask {
            method,
            max_answer,
            ..Ask::post(path, json(body)?)
        })
        .await
    }

    async fn ask<T: DeserializeOwned>(&self, mut ask: Ask<'_>) -> Result<T, Failure> {
        let kept = self.open.lock().await.pop();
        let mut connection = match kept {
            Some(connection) if self.link.client.is_of_use(&connection) => connection,
            _ => self.link.client.connect().await?,
        };
        let authorization = self.link.authorization(&connection);
        ask.authorization = Some(&authorization);
        let asked = connection.ask(ask).await;
        if let Err(failure) = &asked {
            self.link.heed(failure);
        }
        match &asked {
            // The next one may show another.
            Err(failure) if failure.is_about_certificate() => {}
            // A refusal is an answer.
            Ok(_) | Err(Failure::Refused { status: ..500, .. }) => {
                let mut open = self.open.lock().await;
                if open.len() < KEPT {
                    open.push(connection);
                }
            }
            Err(_) => self.link.client.go_on_from(&connection),
        }
        read(&asked?.body)
    }
}
