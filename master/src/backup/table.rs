//! The tables of a registry: how their rows are read, written as JSON, and put back.

use serde_json::Value as Json;

use crate::database::sql::{Query, Row, Value, query};

/// A table, whole.
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) select: &'static str,
    pub(super) delete: &'static str,
    insert: &'static str,
    kinds: &'static [Kind],
}

/// What a column holds.
#[derive(Clone, Copy)]
enum Kind {
    Integer,
    Text,
    /// As hexadecimal.
    Bytes,
    Truth,
}

macro_rules! table {
    ($name:literal, $rest:literal,
     $first:literal $first_column:literal $first_kind:ident
     $(, $place:literal $column:literal $kind:ident)*) => {
        Table {
            name: $name,
            select: concat!("SELECT ", $first_column $(, ", ", $column)*, " FROM ", $name, " ", $rest),
            delete: concat!("DELETE FROM ", $name),
            insert: concat!(
                "INSERT INTO ", $name, " (", $first_column $(, ", ", $column)*,
                ") VALUES ($", $first $(, ", $", $place)*, ")"
            ),
            kinds: &[Kind::$first_kind $(, Kind::$kind)*],
        }
    };
}

/// All but the audit log's lines, each after those that it refers to. The roster's epoch is in the header,
/// and who was heard lately is known again soon.
pub(super) const TABLES: &[Table] = &[
    table!("node", "ORDER BY id", 1 "id" Text, 2 "role" Text, 3 "draining" Truth, 4 "silent" Truth,
        5 "revision" Integer, 6 "registered_by" Text, 7 "registration" Integer,
        8 "rotation_ordered" Integer, 9 "region" Text, 10 "weight" Integer,
        11 "leases_since" Integer, 12 "flow_bits" Integer, 13 "flow_packets" Integer,
        14 "names" Text),
    table!("node_key", "ORDER BY public_key", 1 "public_key" Bytes, 2 "node" Text, 3 "state" Text,
        4 "since" Integer, 5 "after_epoch" Integer, 6 "until" Integer),
    table!("retired_key", "ORDER BY public_key", 1 "public_key" Bytes, 2 "node" Text),
    table!("node_address", "ORDER BY node, position", 1 "node" Text, 2 "position" Integer,
        3 "address" Text, 4 "transit" Truth),
    table!("node_attached", "ORDER BY node, relay", 1 "node" Text, 2 "relay" Text),
    table!("node_grant", "ORDER BY node, service", 1 "node" Text, 2 "service" Text),
    table!("node_service", "ORDER BY node, service", 1 "node" Text, 2 "service" Text),
    table!("service", "ORDER BY name", 1 "name" Text, 2 "definition" Text, 3 "configured" Truth),
    table!("used_token", "ORDER BY jti", 1 "jti" Text, 2 "expires_at" Integer),
    table!("forgotten", "ORDER BY one", 1 "one" Integer, 2 "expires_at" Integer,
        3 "issued_through" Integer),
    table!("revoked_node", "ORDER BY node", 1 "node" Text, 2 "through" Integer),
    table!("revoked_key", "ORDER BY public_key", 1 "public_key" Bytes, 2 "node" Text),
    table!("revoked_subject", "ORDER BY service, subject", 1 "service" Text, 2 "subject" Text,
        3 "through" Integer),
    table!("signing_key", "ORDER BY number", 1 "number" Integer, 2 "kid" Text, 3 "paserk" Text,
        4 "sealed" Bytes, 5 "state" Text, 6 "since" Integer, 7 "until" Integer, 8 "overlap" Integer,
        9 "vault_key" Text, 10 "vault_version" Integer),
    table!("idempotency_key", "ORDER BY name", 1 "name" Bytes, 2 "operator" Bytes, 3 "request" Bytes,
        4 "outcome" Text, 5 "expires_at" Integer),
    table!("fleet", "ORDER BY one", 1 "one" Integer, 2 "revision" Integer),
    table!("fleet_entry", "ORDER BY name", 1 "name" Text, 2 "fence" Integer, 3 "holder" Text,
        4 "until" Integer, 5 "draft" Text, 6 "answers" Text, 7 "product" Text,
        8 "answers_revision" Integer, 9 "product_revision" Integer, 10 "revision" Integer),
    table!("authority", "ORDER BY number", 1 "number" Integer, 2 "hash" Text, 3 "certificate" Bytes,
        4 "sealed" Bytes, 5 "state" Text, 6 "since" Integer, 7 "until" Integer, 8 "overlap" Integer),
    table!("succession", "ORDER BY number", 1 "number" Integer, 2 "statement" Text),
    table!("audit_seal", "ORDER BY one", 1 "one" Integer, 2 "seal" Text),
    table!("audit_sink", "ORDER BY name", 1 "name" Text, 2 "seq" Integer),
];

/// The audit log's lines, after a number and some at a time.
pub(super) const PAGED: Table = table!("audit_line", "WHERE seq > $1 ORDER BY seq LIMIT 1000",
    1 "seq" Integer, 2 "line" Text);

impl Table {
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        let mut all = TABLES.iter().chain([&PAGED]);
        all.find(|table| table.name == name)
    }

    /// A row as it is written.
    pub(super) fn read(&self, row: &Row) -> Result<Vec<Json>, sqlx::Error> {
        let columns = self.kinds.iter().enumerate();
        columns
            .map(|(column, kind)| {
                Ok(match kind {
                    Kind::Integer => row.get::<Option<i64>>(column)?.into(),
                    Kind::Text => row.get::<String>(column)?.into(),
                    Kind::Bytes => row.get::<Option<Vec<u8>>>(column)?.map(hex::encode).into(),
                    Kind::Truth => row.get::<bool>(column)?.into(),
                })
            })
            .collect()
    }

    /// How a row is put back; `None` for one that is not this table's.
    pub(super) fn insert(&self, row: &[Json]) -> Option<Query> {
        if row.len() != self.kinds.len() {
            return None;
        }
        let mut insert = query(self.insert);
        for (kind, value) in self.kinds.iter().zip(row) {
            insert = insert.bind(match (kind, value) {
                (Kind::Integer, Json::Null) => Value::Integer(None),
                (Kind::Integer, value) => Value::Integer(Some(value.as_i64()?)),
                (Kind::Text, value) => Value::Text(value.as_str()?.to_owned()),
                (Kind::Bytes, Json::Null) => Value::Bytes(None),
                (Kind::Bytes, value) => Value::Bytes(Some(hex::decode(value.as_str()?).ok()?)),
                (Kind::Truth, value) => Value::Truth(value.as_bool()?),
            });
        }
        Some(insert)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sqlx::SqlitePool;

    use super::*;

    #[tokio::test]
    async fn no_table_and_no_column_is_left_out() {
        let pool = SqlitePool::connect("sqlite::memory:").await.unwrap();
        sqlx::migrate!("migrations/sqlite")
            .run(&pool)
            .await
            .unwrap();
        let columns: Vec<(String, String)> = sqlx::query_as(
            "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c
             WHERE m.type = 'table'
             AND m.name NOT IN ('_sqlx_migrations', 'node_presence', 'roster', 'fleet_member')",
        )
        .fetch_all(&pool)
        .await
        .unwrap();
        let kept = TABLES.iter().chain([&PAGED]).flat_map(|table| {
            let (list, _) = table.select["SELECT ".len()..]
                .split_once(" FROM ")
                .unwrap();
            list.split(", ")
                .map(|column| (table.name.to_owned(), column.to_owned()))
        });
        assert_eq!(kept.collect::<BTreeSet<_>>(), columns.into_iter().collect());
    }
}
