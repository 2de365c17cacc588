//! Services: those of the master's configuration, and those that operators made.

use std::{collections::HashSet, sync::Arc};

use wavry_proto::{control::Service, id::ServiceName};

use super::{
    Error, Part, Snapshot, Store,
    once::{Begun, Done, Order},
};
use crate::database::sql::{Transaction, query};

/// Most services at once. With their hosts and origins they are a part of the roster that every node is
/// sent.
pub const MAX_SERVICES: usize = 10_000;

/// Why a service was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// There is no such service.
    #[error("there is no such service")]
    Unknown,
    /// It is one of the configuration.
    #[error("the service is in the master's configuration")]
    Configured,
    /// A host is bound to another service.
    #[error("{host} is bound to service {service}")]
    HostBound {
        /// The host.
        host: String,
        /// The other service.
        service: ServiceName,
    },
    /// There are [`MAX_SERVICES`] already.
    #[error("there are {MAX_SERVICES} services already")]
    TooMany,
    /// The registry failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<sqlx::Error> for ServiceError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Makes the services of the configuration those given; an operator's service of the same name makes
    /// way, and others stay.
    pub async fn configure(&self, services: &[Service]) -> Result<Snapshot, ServiceError> {
        let mut change = self.change().await?;
        let transaction = &mut change.transaction;
        query("DELETE FROM service WHERE configured")
            .execute(&mut *transaction)
            .await?;
        let kept: Vec<_> = change.before.services.iter().collect();
        let made = configured(transaction, false).await?;
        for service in services {
            let others = kept
                .iter()
                .filter(|other| made.contains(other.name.as_str()));
            let others = others.filter(|other| services.iter().all(|s| s.name != other.name));
            check_hosts(service, others.copied())?;
            write(transaction, service, true).await?;
        }
        change.commit(&[Part::Services]).await?;
        Ok(self.snapshot().await?)
    }

    /// Makes a service, or changes one that an operator made. Whether it is new.
    pub async fn put_service(
        &self,
        service: &Service,
        order: &Order,
    ) -> Result<Done<bool>, ServiceError> {
        let mut change = match self.begin(order).await? {
            Begun::New(change) => change,
            Begun::Before(done) => return Ok(done),
        };
        let transaction = &mut change.transaction;
        let services = &change.before.services;
        let is_new = services.iter().all(|other| other.name != service.name);
        if is_new && services.len() >= MAX_SERVICES {
            return Err(ServiceError::TooMany);
        }
        let of_configuration = configured(transaction, true).await?;
        if of_configuration.contains(service.name.as_str()) {
            return Err(ServiceError::Configured);
        }
        check_hosts(service, services.iter().filter(|s| s.name != service.name))?;
        write(transaction, service, false).await?;
        Ok(change
            .conclude(&self.audit, order, is_new, &[Part::Services])
            .await?)
    }

    /// Takes away a service that an operator made.
    pub async fn delete_service(
        &self,
        name: &ServiceName,
        order: &Order,
    ) -> Result<Done<()>, ServiceError> {
        let mut change = match self.begin(order).await? {
            Begun::New(change) => change,
            Begun::Before(done) => return Ok(done),
        };
        let transaction = &mut change.transaction;
        if configured(transaction, true).await?.contains(name.as_str()) {
            return Err(ServiceError::Configured);
        }
        let gone = query("DELETE FROM service WHERE name = $1")
            .bind(name.as_str())
            .execute(&mut *transaction)
            .await?;
        if gone == 0 {
            return Err(ServiceError::Unknown);
        }
        Ok(change
            .conclude(&self.audit, order, (), &[Part::Services])
            .await?)
    }
}

/// Names of services that are, or are not, of the configuration.
async fn configured(transaction: &mut Transaction, are: bool) -> Result<HashSet<String>, Error> {
    let names: Vec<String> = query("SELECT name FROM service WHERE configured = $1")
        .bind(are)
        .column(&mut *transaction)
        .await?;
    Ok(names.into_iter().collect())
}

fn check_hosts<'a>(
    service: &Service,
    others: impl IntoIterator<Item = &'a Service>,
) -> Result<(), ServiceError> {
    for other in others {
        if let Some(host) = service.hosts.iter().find(|host| other.hosts.contains(host)) {
            return Err(ServiceError::HostBound {
                host: host.clone(),
                service: other.name.clone(),
            });
        }
    }
    Ok(())
}

/// What the roster shows of them, ordered by name.
pub(super) async fn read(transaction: &mut Transaction) -> Result<Arc<[Service]>, Error> {
    let definitions = query("SELECT definition FROM service ORDER BY name");
    let definitions: Vec<String> = definitions.column(transaction).await?;
    let services = definitions
        .iter()
        .map(|definition| serde_json::from_str(definition));
    services
        .collect::<Result<_, _>>()
        .map_err(|_| Error::Row("service"))
}

async fn write(
    transaction: &mut Transaction,
    service: &Service,
    configured: bool,
) -> Result<(), Error> {
    let definition = serde_json::to_string(service).map_err(|_| Error::Row("service"))?;
    query(
        "INSERT INTO service (name, definition, configured) VALUES ($1, $2, $3)
         ON CONFLICT (name) DO UPDATE
         SET definition = excluded.definition, configured = excluded.configured",
    )
    .bind(service.name.as_str())
    .bind(definition)
    .bind(configured)
    .execute(&mut *transaction)
    .await?;
    Ok(())
}
